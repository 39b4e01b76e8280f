//! What the tests of the handshake share: a gatekeeper with one user and one machine, and a client without I/O.

use std::sync::Arc;

use console::Size;
use ironrdp_connector::credssp::CredsspSequence;
use ironrdp_connector::sspi::credssp::TsRequest;
use ironrdp_connector::sspi::generator::GeneratorState;
use ironrdp_connector::{
    ClientConnector, Config, ConnectionOutcome, Credentials, DesktopSize, Sequence, ServerName, State as _,
};
use ironrdp_core::WriteBuf;
use ironrdp_pdu::gcc::{ConnectionType, KeyboardType};
use ironrdp_pdu::nego::SecurityProtocol;
use ironrdp_pdu::rdp::capability_sets::{MajorPlatformType, RailSupportLevel};
use ironrdp_pdu::rdp::client_info::{PerformanceFlags, TimezoneInfo};
use md4::{Digest as _, Md4};

use crate::accept::ntlm::ServerSecrets;
use crate::accept::{Gatekeeper, LoginSettings, NtHash};
use crate::front::{SecurityPolicy, Target};

pub(crate) const USER: &str = "bob";
pub(crate) const PASSWORD: &str = "correct horse";
pub(crate) const VM: &str = "web01";
pub(crate) const GUID: &str = "C824F53E-95D2-46C6-9A18-23A5BB403532";
pub(crate) const PUBLIC_KEY: &[u8] = &[0x30, 0x0d, 1, 2, 3, 0xff];

/// One user, who may use one machine.
pub(crate) struct Gate;

impl Gatekeeper for Gate {
    fn nt_hash(&self, user: &str) -> Option<NtHash> {
        (user == USER).then(|| nt_hash(PASSWORD))
    }

    fn verify_password(&self, user: &str, password: &str) -> bool {
        user == USER && password == PASSWORD
    }

    fn authorise(&self, user: &str, target: &Target) -> Option<String> {
        let right = *target == Target::Default || target.names(VM, GUID);
        (right && user == USER).then(|| VM.to_owned())
    }
}

pub(crate) fn gate() -> Arc<dyn Gatekeeper> {
    Arc::new(Gate)
}

pub(crate) fn nt_hash(password: &str) -> NtHash {
    let bytes: Vec<u8> = password.encode_utf16().flat_map(u16::to_le_bytes).collect();
    NtHash::new(Md4::digest(bytes).into())
}

pub(crate) fn secrets() -> ServerSecrets {
    let nobody = NtHash::new([9; 16]);
    ServerSecrets { challenge: [1, 2, 3, 4, 5, 6, 7, 8], file_time: 133_000_000_000_000_000, nobody }
}

pub(crate) fn settings(security: SecurityPolicy) -> LoginSettings {
    LoginSettings { security, public_key: PUBLIC_KEY.to_vec(), max_desktop: Size::new(3840, 2160), secrets: secrets() }
}

/// What a client is to do.
#[derive(Clone)]
pub(crate) struct ClientPlan {
    pub(crate) user: &'static str,
    pub(crate) domain: Option<&'static str>,
    pub(crate) password: &'static str,
    pub(crate) nla: bool,
    pub(crate) tls: bool,
    pub(crate) blob: Option<String>,
    pub(crate) token: Option<&'static str>,
    /// VMConnect's order: TLS, CredSSP, X.224.
    pub(crate) direct: bool,
    pub(crate) size: (u16, u16),
    pub(crate) public_key: Vec<u8>,
}

impl Default for ClientPlan {
    fn default() -> Self {
        Self {
            user: USER,
            domain: None,
            password: PASSWORD,
            nla: true,
            tls: false,
            blob: None,
            token: None,
            direct: false,
            size: (1280, 800),
            public_key: PUBLIC_KEY.to_vec(),
        }
    }
}

impl ClientPlan {
    pub(crate) fn tls_only() -> Self {
        Self { nla: false, tls: true, ..Self::default() }
    }

    pub(crate) fn direct() -> Self {
        Self { direct: true, blob: Some(GUID.to_owned()), ..Self::default() }
    }
}

/// What a client wants done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Send(Vec<u8>),
    StartTls,
    Connected { desktop: (u16, u16) },
}

/// IronRDP's client, fed with bytes.
pub(crate) struct Client {
    plan: ClientPlan,
    connector: ClientConnector,
    credssp: Option<CredsspSequence>,
    input: Vec<u8>,
    acts: Vec<Act>,
}

impl Client {
    pub(crate) fn new(plan: ClientPlan) -> Self {
        let mut connector = ClientConnector::new(config(&plan), ([127, 0, 0, 1], 1).into())
            .with_static_channel(ironrdp_dvc::DrdynvcClient::new());
        if let Some(token) = plan.token {
            connector = connector.with_load_balance_info(token.to_owned());
        }
        Self { plan, connector, credssp: None, input: Vec::new(), acts: Vec::new() }
    }

    /// The client's first acts.
    pub(crate) fn start(&mut self) -> Vec<Act> {
        if let Some(blob) = &self.plan.blob {
            self.acts.push(Act::Send(blob_bytes(blob)));
        }
        if self.plan.direct {
            self.acts.push(Act::StartTls);
        } else {
            self.advance().expect("a client can start");
        }
        std::mem::take(&mut self.acts)
    }

    pub(crate) fn tls_started(&mut self) -> Result<Vec<Act>, String> {
        if self.plan.direct {
            self.start_credssp(SecurityProtocol::HYBRID)?;
        } else {
            self.connector.mark_security_upgrade_as_done();
        }
        self.advance()?;
        Ok(std::mem::take(&mut self.acts))
    }

    pub(crate) fn handle(&mut self, bytes: &[u8]) -> Result<Vec<Act>, String> {
        self.input.extend_from_slice(bytes);
        self.advance()?;
        Ok(std::mem::take(&mut self.acts))
    }

    fn advance(&mut self) -> Result<(), String> {
        loop {
            let again = if self.credssp.is_some() { self.advance_credssp()? } else { self.advance_connector()? };
            if !again {
                return Ok(());
            }
        }
    }

    fn advance_connector(&mut self) -> Result<bool, String> {
        if self.connector.should_perform_security_upgrade() {
            if !self.plan.direct {
                self.acts.push(Act::StartTls);
                return Ok(false);
            }
            self.connector.mark_security_upgrade_as_done();
        }
        if self.connector.should_perform_credssp() {
            if self.plan.direct {
                self.connector.mark_credssp_as_done();
            } else {
                let state = format!("{:?}", self.connector.state);
                let ex = state.contains("HYBRID_EX");
                let protocol = if ex { SecurityProtocol::HYBRID_EX } else { SecurityProtocol::HYBRID };
                self.start_credssp(protocol)?;
                return Ok(true);
            }
        }
        let mut out = WriteBuf::new();
        match self.connector.next_pdu_hint() {
            Some(hint) => {
                let Some((_, size)) = hint.find_size(&self.input).map_err(|error| error.to_string())? else {
                    return Ok(false);
                };
                if self.input.len() < size {
                    return Ok(false);
                }
                let pdu: Vec<u8> = self.input.drain(..size).collect();
                self.connector.step(&pdu, None, &mut out).map_err(|error| error.report().to_string())?;
            }
            None => {
                if let Some(ConnectionOutcome::Connected(result)) = self.connector.state.take_outcome() {
                    let desktop = (result.desktop_size.width, result.desktop_size.height);
                    self.acts.push(Act::Connected { desktop });
                    return Ok(false);
                }
                if self.connector.state.is_terminal()
                    || self.acts.iter().any(|act| matches!(act, Act::Connected { .. }))
                {
                    return Ok(false);
                }
                self.connector.step(&[], None, &mut out).map_err(|error| error.report().to_string())?;
            }
        }
        self.send(out.filled());
        Ok(true)
    }

    fn start_credssp(&mut self, protocol: SecurityProtocol) -> Result<(), String> {
        let credentials = credentials(&self.plan);
        let name = ServerName::new("host");
        let key = self.plan.public_key.clone();
        let (sequence, first) = CredsspSequence::init(credentials, self.plan.domain, protocol, name, key, None)
            .map_err(|error| error.report().to_string())?;
        self.credssp = Some(sequence);
        self.process(first)
    }

    fn process(&mut self, request: TsRequest) -> Result<(), String> {
        let sequence = self.credssp.as_mut().expect("credssp runs");
        let mut out = WriteBuf::new();
        let GeneratorState::Completed(state) = sequence.process_ts_request(request).start() else {
            panic!("ntlm needs no network");
        };
        let state = state.map_err(|error| error.to_string())?;
        sequence.handle_process_result(state, &mut out).map_err(|error| error.report().to_string())?;
        self.send(out.filled());
        Ok(())
    }

    fn advance_credssp(&mut self) -> Result<bool, String> {
        let sequence = self.credssp.as_mut().expect("credssp runs");
        let Some(hint) = sequence.next_pdu_hint() else {
            self.credssp = None;
            if self.plan.direct {
                let mut out = WriteBuf::new();
                self.connector
                    .initiate_with_security_protocol(SecurityProtocol::HYBRID, &mut out)
                    .map_err(|error| error.report().to_string())?;
                self.send(out.filled());
            } else {
                self.connector.mark_credssp_as_done();
            }
            return Ok(true);
        };
        let size = hint.find_size(&self.input).map_err(|error| error.to_string())?;
        let Some((_, size)) = size.filter(|(_, size)| self.input.len() >= *size) else {
            return Ok(false);
        };
        let pdu: Vec<u8> = self.input.drain(..size).collect();
        if let Some(request) = sequence.decode_server_message(&pdu).map_err(|error| error.report().to_string())? {
            self.process(request)?;
        }
        Ok(true)
    }

    fn send(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.acts.push(Act::Send(bytes.to_vec()));
        }
    }
}

/// A pre-connection blob of version 2.
pub(crate) fn blob_bytes(text: &str) -> Vec<u8> {
    let units: Vec<u16> = text.encode_utf16().chain([0]).collect();
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(18 + 2 * units.len()).unwrap().to_le_bytes());
    bytes.extend([0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(u16::try_from(units.len()).unwrap().to_le_bytes());
    bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes
}

fn credentials(plan: &ClientPlan) -> Credentials {
    Credentials::UsernamePassword { username: plan.user.to_owned(), password: plan.password.to_owned() }
}

fn config(plan: &ClientPlan) -> Config {
    Config {
        desktop_size: DesktopSize { width: plan.size.0, height: plan.size.1 },
        monitor_layout: None,
        desktop_scale_factor: 100,
        desktop_physical_size: None,
        desktop_orientation: None,
        device_scale_factor: None,
        monitor_extended_layout: None,
        relative_mouse_input: false,
        enable_tls: plan.tls,
        enable_credssp: plan.nla,
        enable_standard_rdp_security: !plan.tls && !plan.nla,
        credentials: credentials(plan),
        domain: plan.domain.map(str::to_owned),
        client_build: 7,
        client_name: "CLIENTPC".to_owned(),
        keyboard_type: KeyboardType(4),
        keyboard_subtype: 0,
        keyboard_functional_keys_count: 12,
        keyboard_layout: 0x409,
        connection_type: ConnectionType::Lan,
        ime_file_name: String::new(),
        bitmap: None,
        dig_product_id: String::new(),
        client_dir: String::new(),
        alternate_shell: String::new(),
        work_dir: String::new(),
        remote_application_mode: false,
        rail_support_level: RailSupportLevel::empty(),
        platform: MajorPlatformType::UNIX,
        hardware_id: None,
        request_data: None,
        autologon: false,
        enable_audio_playback: false,
        enable_audio_capture: false,
        performance_flags: PerformanceFlags::default(),
        license_cache: None,
        timezone_info: TimezoneInfo::default(),
        compression_type: None,
        enable_server_pointer: true,
        pointer_software_rendering: false,
        multitransport_flags: None,
        support_dyn_vc_gfx_protocol: true,
    }
}
