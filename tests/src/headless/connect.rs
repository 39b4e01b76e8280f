//! From a TCP address to an activated session: TLS, CredSSP, then the connection sequence.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use ironrdp_connector::credssp::CredsspSequence;
use ironrdp_connector::sspi::generator::GeneratorState;
use ironrdp_connector::{
    ClientConnector, ClientConnectorState, Config, ConnectionOutcome, ConnectionResult, Credentials, DesktopSize,
    Sequence as _, ServerName,
};
use ironrdp_core::WriteBuf;
use ironrdp_dvc::DrdynvcClient;
use ironrdp_pdu::gcc::{ConnectionType, KeyboardType};
use ironrdp_pdu::rdp::capability_sets::{MajorPlatformType, RailSupportLevel};
use ironrdp_pdu::rdp::client_info::{PerformanceFlags, TimezoneInfo};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpSocket;
use tokio_rustls::client::TlsStream;
use x509_cert::der::Decode as _;

use super::socket::{Counted, Framed};
use super::{Options, Timeline, tls};

/// A client whose session is active.
pub(super) struct Connected {
    pub(super) framed: Framed<TlsStream<Counted>>,
    pub(super) result: ConnectionResult,
    pub(super) timeline: Timeline,
}

/// Connects and logs on.
pub(super) async fn connect(options: &Options, channels: DrdynvcClient) -> Result<Connected> {
    let mut timeline = Timeline::start();
    let socket = TcpSocket::new_v4()?;
    if let Some(size) = options.receive_buffer {
        socket.set_recv_buffer_size(size)?;
    }
    let stream = socket.connect(options.address).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    timeline.connected = Instant::now();

    let mut connector = ClientConnector::new(config(options), own_address()).with_static_channel(channels);
    let mut framed = Framed::new(Counted::new(stream));
    while !connector.should_perform_security_upgrade() {
        step(&mut framed, &mut connector).await?;
    }
    let tls = tls::connect(framed.into_stream()?).await?;
    connector.mark_security_upgrade_as_done();
    timeline.encrypted = Instant::now();

    let public_key = public_key(&tls)?;
    let mut framed = Framed::new(tls);
    if !connector.should_perform_credssp() {
        bail!("the server does not offer NLA");
    }
    log_on(&mut framed, &mut connector, public_key).await?;
    timeline.authenticated = Instant::now();

    loop {
        if connector.should_perform_multitransport() {
            let mut out = WriteBuf::new();
            connector.skip_multitransport(&mut out)?;
            framed.write(out.filled()).await?;
            continue;
        }
        step(&mut framed, &mut connector).await?;
        match connector.state.take_outcome() {
            Some(ConnectionOutcome::Connected(result)) => {
                timeline.activated = Instant::now();
                return Ok(Connected { framed, result, timeline });
            }
            Some(ConnectionOutcome::Redirected(_)) => bail!("the server redirects"),
            None => {}
        }
    }
}

/// One step of the connection sequence: at most one PDU in, at most one batch out.
async fn step<S>(framed: &mut Framed<S>, connector: &mut ClientConnector) -> Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut out = WriteBuf::new();
    match connector.next_pdu_hint() {
        Some(hint) => {
            let pdu = framed.read_by_hint(hint).await?;
            connector.step(&pdu, None, &mut out)
        }
        None => connector.step_no_input(&mut out),
    }
    .map_err(|error| anyhow!("the connection sequence failed: {}", error.report()))?;
    if !out.filled().is_empty() {
        framed.write(out.filled()).await?;
    }
    Ok(())
}

async fn log_on(
    framed: &mut Framed<TlsStream<Counted>>,
    connector: &mut ClientConnector,
    public_key: Vec<u8>,
) -> Result<()> {
    let ClientConnectorState::Credssp { selected_protocol, .. } = connector.state else {
        bail!("not the time for CredSSP");
    };
    let (mut sequence, mut request) = CredsspSequence::init(
        connector.config.credentials.clone(),
        connector.config.domain.as_deref(),
        selected_protocol,
        ServerName::new("localhost"),
        public_key,
        None,
    )?;
    loop {
        let state = match sequence.process_ts_request(request).start() {
            GeneratorState::Completed(state) => state?,
            GeneratorState::Suspended(_) => bail!("NTLM asks for a network service"),
        };
        let mut out = WriteBuf::new();
        sequence.handle_process_result(state, &mut out)?;
        if !out.filled().is_empty() {
            framed.write(out.filled()).await?;
        }
        let Some(hint) = sequence.next_pdu_hint() else { break };
        let answer = framed.read_by_hint(hint).await.context("no answer to the logon")?;
        match sequence.decode_server_message(&answer)? {
            Some(next) => request = next,
            None => break,
        }
    }
    connector.mark_credssp_as_done();
    Ok(())
}

/// The bits of the server's public key, to which CredSSP binds the logon.
fn public_key(tls: &TlsStream<Counted>) -> Result<Vec<u8>> {
    let (_, session) = tls.get_ref();
    let certificate: &CertificateDer<'_> =
        session.peer_certificates().and_then(<[_]>::first).context("the server has no certificate")?;
    let certificate = x509_cert::Certificate::from_der(certificate)?;
    let key = certificate.tbs_certificate.subject_public_key_info.subject_public_key;
    Ok(key.as_bytes().context("the server's key is not whole bytes")?.to_vec())
}

fn own_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn config(options: &Options) -> Config {
    Config {
        desktop_size: DesktopSize { width: options.size.0, height: options.size.1 },
        monitor_layout: None,
        desktop_scale_factor: 100,
        desktop_physical_size: None,
        desktop_orientation: None,
        device_scale_factor: None,
        monitor_extended_layout: None,
        relative_mouse_input: false,
        enable_tls: false,
        enable_credssp: true,
        enable_standard_rdp_security: false,
        credentials: Credentials::UsernamePassword {
            username: options.user.clone(),
            password: options.password.clone(),
        },
        domain: options.vm.clone(),
        client_build: 22_621,
        client_name: "headless".to_owned(),
        keyboard_type: KeyboardType::IBM_ENHANCED,
        keyboard_subtype: 0,
        keyboard_functional_keys_count: 12,
        keyboard_layout: 0x409,
        connection_type: ConnectionType::Lan,
        ime_file_name: String::new(),
        bitmap: None,
        dig_product_id: String::new(),
        client_dir: "C:\\".to_owned(),
        alternate_shell: String::new(),
        work_dir: String::new(),
        remote_application_mode: false,
        rail_support_level: RailSupportLevel::empty(),
        platform: MajorPlatformType::UNIX,
        hardware_id: None,
        request_data: None,
        autologon: true,
        enable_audio_playback: false,
        enable_audio_capture: false,
        performance_flags: PerformanceFlags::empty(),
        license_cache: None,
        timezone_info: TimezoneInfo::default(),
        compression_type: None,
        enable_server_pointer: true,
        pointer_software_rendering: false,
        multitransport_flags: None,
        support_dyn_vc_gfx_protocol: true,
    }
}
