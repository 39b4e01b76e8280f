//! Both ends in memory: no TLS, no sockets, no clock. The client is IronRDP's.

use ironrdp_pdu::nego::SecurityProtocol;

use super::*;
use crate::accept::activation::IO_CHANNEL_ID;
use crate::testing::{Act, Client, ClientPlan, GUID, PASSWORD, USER, VM, blob_bytes, gate, settings};

mod order;

/// A client and a server, and the wire between them.
pub(in crate::accept) struct Pair {
    client: Client,
    login: Login,
    /// Each message of the client, as it was sent.
    pub(in crate::accept) sent: Vec<Vec<u8>>,
    /// The most bytes that arrive at a time.
    chunk: usize,
}

/// How it ended.
#[derive(Debug)]
pub(in crate::accept) struct Outcome {
    pub(in crate::accept) server: Result<Handshake, AcceptError>,
    /// The desktop's size as the client knows it, or what went wrong there.
    client: Result<Option<(u16, u16)>, String>,
}

impl Pair {
    pub(in crate::accept) fn new(plan: ClientPlan, security: SecurityPolicy) -> Self {
        let login = Login::new(settings(security), gate());
        Self { client: Client::new(plan), login, sent: Vec::new(), chunk: usize::MAX }
    }

    fn in_chunks_of(mut self, chunk: usize) -> Self {
        self.chunk = chunk;
        self
    }

    pub(in crate::accept) fn run(&mut self) -> Outcome {
        let mut acts: VecDeque<Act> = self.client.start().into();
        let mut outcome = Outcome { server: Err(AcceptError::Closed { step: Step::FirstBytes }), client: Ok(None) };
        let mut server_error = None;
        loop {
            while let Some(output) = self.login.poll_output() {
                match output {
                    Output::Send(bytes) => self.deliver(&bytes, &mut acts, &mut outcome),
                    Output::VerifyPassword { user, password } => {
                        let right = gate().verify_password(&user, &password);
                        server_error = self.login.password_verified(right).err().or(server_error);
                    }
                    Output::StartTls => {
                        let _hello = self.login.take_pending();
                        server_error = self.login.tls_started().err().or(server_error);
                    }
                    Output::Active(handshake) => outcome.server = Ok(*handshake),
                    Output::Authenticated => {}
                }
            }
            if let Some(error) = server_error {
                outcome.server = Err(error);
                return outcome;
            }
            match acts.pop_front() {
                Some(Act::Send(bytes)) => {
                    self.sent.push(bytes.clone());
                    for chunk in bytes.chunks(self.chunk.min(bytes.len())) {
                        server_error = server_error.or_else(|| self.login.handle_bytes(chunk).err());
                    }
                }
                Some(Act::StartTls) => {
                    // In VMConnect's order TLS is what tells it; in the ordinary order it was told by then.
                    if self.login.step() <= Step::Preconnection {
                        server_error = self.login.handle_bytes(&[0x16, 3, 1]).err();
                    }
                    self.start_tls(&mut acts, &mut outcome);
                }
                Some(Act::Connected { desktop }) => outcome.client = Ok(Some(desktop)),
                None => return outcome,
            }
        }
    }

    fn start_tls(&mut self, acts: &mut VecDeque<Act>, outcome: &mut Outcome) {
        match self.client.tls_started() {
            Ok(more) => acts.extend(more),
            Err(error) => outcome.client = Err(error),
        }
    }

    fn deliver(&mut self, bytes: &[u8], acts: &mut VecDeque<Act>, outcome: &mut Outcome) {
        for chunk in bytes.chunks(self.chunk.min(bytes.len())) {
            match self.client.handle(chunk) {
                Ok(more) => acts.extend(more),
                Err(error) => outcome.client = Err(error),
            }
        }
    }
}

fn run(plan: ClientPlan) -> Outcome {
    Pair::new(plan, SecurityPolicy::NlaOrTls).run()
}

fn accepted(plan: ClientPlan) -> Handshake {
    let outcome = run(plan);
    assert_eq!(outcome.client, Ok(Some((1280, 800))));
    outcome.server.unwrap()
}

#[test]
fn nla_tls_and_vmconnects_order_reach_an_active_session() {
    for (plan, protocol) in [
        (ClientPlan::default(), SecurityProtocol::HYBRID_EX),
        (ClientPlan::tls_only(), SecurityProtocol::SSL),
        (ClientPlan::direct(), SecurityProtocol::HYBRID),
        (ClientPlan { blob: None, ..ClientPlan::direct() }, SecurityProtocol::HYBRID),
    ] {
        let handshake = accepted(plan);
        assert_eq!(handshake.protocol, protocol);
        assert_eq!((handshake.user.as_str(), handshake.vm.as_str()), (USER, VM));
        assert_eq!(handshake.desktop_size, Size::new(1280, 800));
        assert_eq!((handshake.client.name.as_str(), handshake.client.build), ("CLIENTPC", 7));
        assert_eq!(handshake.client.keyboard_layout, 0x409);
        assert_eq!(handshake.channel_id("DRDYNVC"), Some(1004));
        assert!(!handshake.capabilities.is_empty());
    }
}

#[test]
fn a_whole_handshake_arrives_byte_by_byte() {
    for plan in [ClientPlan::default(), ClientPlan::tls_only(), ClientPlan::direct()] {
        let outcome = Pair::new(plan, SecurityPolicy::NlaOrTls).in_chunks_of(1).run();
        assert_eq!(outcome.client, Ok(Some((1280, 800))));
        assert_eq!(outcome.server.unwrap().vm, VM);
    }
}

#[test]
fn every_way_to_name_the_machine_leads_to_it() {
    let plan = ClientPlan::default;
    for plan in [
        ClientPlan { blob: Some(VM.to_owned()), ..plan() },
        ClientPlan { blob: Some(format!("{GUID};EnhancedMode=1")), ..plan() },
        ClientPlan { token: Some("Cookie: msts=vm.web01"), ..plan() },
        ClientPlan { token: Some("tsv://vsb.c824f53e-95d2-46c6-9a18-23a5bb403532"), ..plan() },
        ClientPlan { token: Some("WEB01 "), ..plan() },
        ClientPlan { domain: Some("Web01"), ..plan() },
        ClientPlan { user: "bob#web01", ..plan() },
        ClientPlan { domain: Some("Web01"), ..ClientPlan::tls_only() },
        ClientPlan { user: "web01/bob@anything", ..ClientPlan::tls_only() },
        ClientPlan { blob: Some(format!("{VM};EnhancedMode=1")), ..ClientPlan::direct() },
        // The stronger wish wins, whatever the weaker one says.
        ClientPlan { blob: Some(VM.to_owned()), token: Some("nosuch"), domain: Some("nosuch"), ..plan() },
        ClientPlan { token: Some(VM), domain: Some("nosuch"), ..plan() },
    ] {
        let enhanced = plan.blob.as_ref().is_some_and(|blob| blob.contains("EnhancedMode=1"));
        let handshake = accepted(plan);
        assert_eq!((handshake.vm.as_str(), handshake.enhanced), (VM, enhanced));
    }
}

#[test]
fn an_unknown_machine_is_refused_only_after_the_password() {
    let plan = ClientPlan::default;
    let tls = ClientPlan::tls_only;
    for plan in [
        ClientPlan { blob: Some("nosuch".to_owned()), ..plan() },
        ClientPlan { token: Some("nosuch"), ..plan() },
        ClientPlan { domain: Some("nosuch"), ..plan() },
        ClientPlan { domain: Some("nosuch"), ..tls() },
        ClientPlan { token: Some("nosuch"), ..tls() },
        ClientPlan { blob: Some("nosuch".to_owned()), ..ClientPlan::direct() },
    ] {
        let right = run(plan.clone());
        assert!(matches!(right.server, Err(AcceptError::NotAllowed { .. })), "{:?}", right.server);
        let told = right.client.unwrap_err();
        assert!(told.contains("insufficient access privileges"), "{told}");
        let wrong = run(ClientPlan { password: "wrong", ..plan });
        assert!(matches!(wrong.server, Err(AcceptError::WrongCredentials { .. })), "{:?}", wrong.server);
    }
}

#[test]
fn a_wrong_password_and_an_unknown_user_are_told_the_same() {
    for plan in [ClientPlan::default(), ClientPlan::tls_only(), ClientPlan::direct()] {
        let wrong = run(ClientPlan { password: "wrong", ..plan.clone() });
        let unknown = run(ClientPlan { user: "mallory", ..plan });
        assert_eq!(wrong.client, unknown.client);
        assert!(wrong.client.is_err());
        assert_eq!(wrong.server.unwrap_err().failed_user(), Some(USER));
        assert_eq!(unknown.server.unwrap_err().failed_user(), Some("mallory"));
    }
}

#[test]
fn the_policy_decides_which_ways_are_open() {
    let run = |plan: ClientPlan, security| Pair::new(plan, security).run();
    let both = || ClientPlan { tls: true, ..ClientPlan::default() };
    assert_eq!(run(both(), SecurityPolicy::NlaOnly).server.unwrap().protocol, SecurityProtocol::HYBRID_EX);
    assert_eq!(run(both(), SecurityPolicy::TlsOnly).server.unwrap().protocol, SecurityProtocol::SSL);
    let refused = run(ClientPlan::tls_only(), SecurityPolicy::NlaOnly);
    assert!(matches!(refused.server, Err(AcceptError::Unsupported(_))));
    assert!(refused.client.unwrap_err().contains("CredSSP"));
    let refused = run(ClientPlan::direct(), SecurityPolicy::TlsOnly);
    assert!(matches!(refused.server, Err(AcceptError::Unsupported(_))));
}

#[test]
fn another_certificate_is_no_wrong_password() {
    let outcome = run(ClientPlan { public_key: b"a machine in the middle".to_vec(), ..ClientPlan::default() });
    assert!(matches!(outcome.server, Err(AcceptError::PeerMisbehaved { step: Step::CredSsp, .. })));
}

#[test]
fn a_desktop_is_as_large_as_wished_within_the_limits() {
    for (size, expected) in [((1, 60000), (200, 2160)), ((1024, 768), (1024, 768))] {
        let outcome = run(ClientPlan { size, ..ClientPlan::default() });
        assert_eq!(outcome.client, Ok(Some(expected)));
        let handshake = outcome.server.unwrap();
        assert_eq!(handshake.desktop_size, Size::new(expected.0.into(), expected.1.into()));
        assert_eq!(handshake.client.requested_size, Size::new(size.0.into(), size.1.into()));
    }
}

#[test]
fn two_blobs_http_and_noise_are_refused() {
    let twice = [blob_bytes(VM), blob_bytes(VM)].concat();
    for bytes in [&twice[..], b"GET / HTTP/1.1\r\n", b"SSH-2.0-x", &[3, 0, 0, 3], &[16, 0, 0, 0, 9]] {
        let mut login = Login::new(settings(SecurityPolicy::NlaOrTls), gate());
        assert!(login.handle_bytes(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn bytes_behind_the_handshake_belong_to_the_session() {
    let mut pair = Pair::new(ClientPlan::tls_only(), SecurityPolicy::NlaOrTls);
    assert!(pair.run().server.is_ok());
    let mut login = Login::new(settings(SecurityPolicy::NlaOrTls), gate());
    let last = pair.sent.pop().unwrap();
    order::replay(&mut login, &pair.sent);
    login.handle_bytes(&[&last[..], &[4, 3, 0]].concat()).unwrap();
    let outputs: Vec<_> = std::iter::from_fn(|| login.poll_output()).collect();
    assert!(matches!(outputs.last(), Some(Output::Active(_))));
    assert_eq!(login.take_pending(), [4, 3, 0]);
}

#[test]
fn a_login_can_move_between_threads() {
    const fn is_send<T: Send>() {}
    is_send::<Login>();
    is_send::<Handshake>();
    let _ = PASSWORD;
}
