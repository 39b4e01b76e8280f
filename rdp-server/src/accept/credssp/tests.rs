//! Both ends in memory: the client is `sspi`'s, an independent implementation.

use ironrdp_connector::sspi::credssp::{ClientMode, ClientState, CredSspClient, CredSspMode, TsRequest as PeerRequest};
use ironrdp_connector::sspi::generator::GeneratorState;
use ironrdp_connector::sspi::ntlm::NtlmConfig;
use ironrdp_connector::sspi::{AuthIdentity, Credentials, NegotiateConfig, Username};
use md4::{Digest as _, Md4};
use proptest::prelude::*;

use super::*;

const PUBLIC_KEY: &[u8] = &[0x30, 0xFF, 0xFF, 7, 9, 200];

fn nt_hash(password: &str) -> NtHash {
    let bytes: Vec<u8> = password.encode_utf16().flat_map(u16::to_le_bytes).collect();
    NtHash::new(Md4::digest(bytes).into())
}

fn secrets() -> ServerSecrets {
    ServerSecrets {
        challenge: [1, 2, 3, 4, 5, 6, 7, 8],
        file_time: 133_000_000_000_000_000,
        nobody: NtHash::new([9; 16]),
    }
}

fn ntlm_mode() -> ClientMode {
    ClientMode::Ntlm(NtlmConfig::new("CLIENTPC".to_owned()))
}

fn spnego_mode() -> ClientMode {
    let config = Box::new(NtlmConfig::new("CLIENTPC".to_owned()));
    ClientMode::Negotiate(NegotiateConfig::new(config, Some("ntlm,!kerberos".to_owned()), "CLIENTPC".to_owned()))
}

fn client(mode: ClientMode, version: u32, user: &str, domain: Option<&str>, password: &str) -> CredSspClient {
    let username = Username::new(user, domain).unwrap();
    let identity = Credentials::AuthIdentity(AuthIdentity { username, password: password.to_owned().into() });
    let spn = "TERMSRV/host".to_owned();
    let delegate = CredSspMode::WithCredentials;
    CredSspClient::new_with_version(PUBLIC_KEY.to_vec(), identity, delegate, version, mode, spn).unwrap()
}

/// Runs an exchange to its end. Gives the server's verdict and whether the client was content.
fn run(client: &mut CredSspClient, server: &mut CredSsp) -> (Result<(), CredSspError>, bool) {
    let accounts = |claim: &Claim| (claim.user.to_lowercase() == "bob").then(|| nt_hash("secret"));
    let mut incoming = PeerRequest::default();
    loop {
        let GeneratorState::Completed(state) = client.process(incoming).start() else {
            panic!("ntlm needs no network");
        };
        let (outgoing, last) = match state {
            Ok(ClientState::ReplyNeeded(request)) => (request, false),
            Ok(ClientState::FinalMessage(request)) => (request, true),
            Err(_) => return (Ok(()), false),
        };
        let mut bytes = Vec::new();
        outgoing.encode_ts_request(&mut bytes).unwrap();
        assert_eq!(message_length(&bytes), Ok(Some(bytes.len())));
        match server.handle_message(&bytes, accounts) {
            Ok(Progress::Reply(reply)) => incoming = PeerRequest::from_buffer(&reply).unwrap(),
            Ok(Progress::Done) => return (Ok(()), last),
            Err(error) => return (Err(error), false),
        }
    }
}

#[test]
fn every_version_and_wrapping_proves_the_password() {
    for version in 2..=6 {
        for mode in [ntlm_mode(), spnego_mode()] {
            let mut server = CredSsp::new(PUBLIC_KEY.to_vec(), secrets());
            let verdict = run(&mut client(mode, version, "bob", None, "secret"), &mut server);
            assert_eq!(verdict, (Ok(()), true), "version {version}");
            assert_eq!(server.claim().unwrap().user, "bob");
        }
    }
}

#[test]
fn the_proof_uses_the_names_as_the_client_wrote_them() {
    for (user, domain) in [("BoB", Some("web01")), ("bob", Some("Web01")), ("bob", None)] {
        let mut server = CredSsp::new(PUBLIC_KEY.to_vec(), secrets());
        let verdict = run(&mut client(ntlm_mode(), 6, user, domain, "secret"), &mut server);
        assert_eq!(verdict, (Ok(()), true));
        let claim = server.claim().unwrap();
        assert_eq!((claim.user.as_str(), claim.domain.as_str()), (user, domain.unwrap_or_default()));
    }
}

#[test]
fn a_wrong_password_and_an_unknown_user_get_the_same_answer() {
    for mode in [ntlm_mode, spnego_mode] {
        let mut answers = Vec::new();
        for (user, password) in [("bob", "wrong"), ("nobody", "secret"), ("nobody", "")] {
            let mut server = CredSsp::new(PUBLIC_KEY.to_vec(), secrets());
            let (verdict, content) = run(&mut client(mode(), 6, user, None, password), &mut server);
            assert_eq!((verdict, content), (Err(CredSspError::LogonDenied), false));
            assert_eq!(server.claim().unwrap().user, user);
            answers.push(server.refusal());
        }
        let expected = [0x30, 13, 0xA0, 3, 2, 1, 6, 0xA4, 6, 2, 4, 0xC0, 0, 0, 0x6D];
        assert!(answers.iter().all(|answer| answer.as_deref() == Some(&expected[..])));
    }
}

#[test]
fn whoever_knows_nobodys_hash_is_still_nobody() {
    let mut server = CredSsp::new(PUBLIC_KEY.to_vec(), ServerSecrets { nobody: nt_hash("secret"), ..secrets() });
    let verdict = run(&mut client(ntlm_mode(), 6, "nobody", None, "secret"), &mut server);
    assert_eq!(verdict.0, Err(CredSspError::LogonDenied));
}

#[test]
fn another_certificate_is_noticed() {
    for version in [2, 6] {
        let mut server = CredSsp::new(b"another key".to_vec(), secrets());
        let verdict = run(&mut client(ntlm_mode(), version, "bob", None, "secret"), &mut server);
        assert_eq!(verdict.0, Err(OTHER_KEY));
    }
}

#[test]
fn messages_in_other_states_are_refused() {
    let request = |request: TsRequest| request.encode();
    let table = [
        TsRequest { version: 6, ..TsRequest::default() },
        TsRequest { version: 6, public_key: Some(vec![0; 40]), ..TsRequest::default() },
        TsRequest { version: 6, credentials: Some(vec![0; 40]), ..TsRequest::default() },
        TsRequest { version: 6, error: Some(5), ..TsRequest::default() },
        TsRequest { version: 1, token: Some(b"NTLMSSP\0".to_vec()), ..TsRequest::default() },
        TsRequest { version: 6, token: Some(b"NTLMSSP\0\x03\0\0\0".to_vec()), ..TsRequest::default() },
        TsRequest { version: 6, token: Some(vec![0x60, 0]), ..TsRequest::default() },
    ];
    for message in table {
        let mut server = CredSsp::new(PUBLIC_KEY.to_vec(), secrets());
        let bytes = request(message.clone());
        assert!(server.handle_message(&bytes, |_| None).is_err(), "{message:?}");
        assert!(server.handle_message(&bytes, |_| None).is_err(), "{message:?} again");
    }
}

/// A SPNEGO client that would rather use Kerberos, made of a bare NTLM client.
#[test]
fn a_client_that_prefers_kerberos_is_led_to_ntlm() {
    use super::der::{APPLICATION, OCTET_STRING, OID, SEQUENCE, context, tagged};

    let octets = |number: u8, value: &[u8]| tagged(context(number), &tagged(OCTET_STRING, value));
    let respond = |token: &[u8]| tagged(context(1), &tagged(SEQUENCE, &octets(2, token)));
    let send = |server: &mut CredSsp, request: PeerRequest| {
        let mut bytes = Vec::new();
        request.encode_ts_request(&mut bytes).unwrap();
        server.handle_message(&bytes, |claim| (claim.user == "bob").then(|| nt_hash("secret"))).unwrap()
    };
    let reply = |progress| match progress {
        Progress::Reply(reply) => PeerRequest::from_buffer(&reply).unwrap(),
        Progress::Done => panic!("too early"),
    };
    let mut server = CredSsp::new(PUBLIC_KEY.to_vec(), secrets());
    let mut client = client(ntlm_mode(), 6, "bob", None, "secret");
    let mut next = |incoming: PeerRequest| match client.process(incoming).start() {
        GeneratorState::Completed(Ok(ClientState::ReplyNeeded(request) | ClientState::FinalMessage(request))) => {
            request
        }
        _ => panic!("the client gave up"),
    };

    let kerberos = tagged(OID, &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x12, 1, 2, 2]);
    let ntlm = tagged(OID, &[0x2B, 6, 1, 4, 1, 0x82, 0x37, 2, 2, 10]);
    let mut fields = tagged(context(0), &tagged(SEQUENCE, &[kerberos, ntlm].concat()));
    fields.extend(octets(2, b"a ticket nobody here can read"));
    let mut init = tagged(OID, &[0x2B, 6, 1, 5, 5, 2]);
    init.extend(tagged(context(0), &tagged(SEQUENCE, &fields)));
    let init = PeerRequest { nego_tokens: Some(tagged(APPLICATION, &init)), ..PeerRequest::default() };
    let selected = reply(send(&mut server, init)).nego_tokens.unwrap();
    assert!(selected.windows(10).any(|bytes| bytes == [0x2B, 6, 1, 4, 1, 0x82, 0x37, 2, 2, 10]));

    let mut negotiate = next(PeerRequest::default());
    negotiate.nego_tokens = Some(respond(&negotiate.nego_tokens.unwrap()));
    let mut challenge = reply(send(&mut server, negotiate));
    let wrapped = challenge.nego_tokens.take().unwrap();
    let at = wrapped.windows(8).position(|bytes| bytes == b"NTLMSSP\0").unwrap();
    challenge.nego_tokens = Some(wrapped[at..].to_vec());

    let mut authenticate = next(challenge);
    authenticate.nego_tokens = Some(respond(&authenticate.nego_tokens.unwrap()));
    let mut bound = reply(send(&mut server, authenticate));
    assert!(bound.nego_tokens.take().is_some() && bound.pub_key_auth.is_some());
    assert!(matches!(send(&mut server, next(bound)), Progress::Done));
}

#[test]
fn the_echoed_key_carries_over() {
    assert_eq!(incremented(&[0xFF, 0xFF, 7]), [0, 0, 8]);
    assert_eq!(incremented(&[1, 2]), [2, 2]);
}

proptest! {
    #[test]
    fn an_altered_exchange_never_ends_well(at in 0usize..700, bit in 0u8..8, round in 0usize..3) {
        let mut server = CredSsp::new(PUBLIC_KEY.to_vec(), secrets());
        let mut client = client(ntlm_mode(), 6, "bob", None, "secret");
        let mut incoming = PeerRequest::default();
        for now in 0..3 {
            let GeneratorState::Completed(Ok(ClientState::ReplyNeeded(outgoing) | ClientState::FinalMessage(outgoing))) =
                client.process(incoming.clone()).start() else { return Ok(()) };
            let mut bytes = Vec::new();
            outgoing.encode_ts_request(&mut bytes).unwrap();
            let mut altered = false;
            if now == round && at < bytes.len() {
                bytes[at] ^= 1 << bit;
                altered = true;
            }
            match server.handle_message(&bytes, |claim| (claim.user == "bob").then(|| nt_hash("secret"))) {
                Ok(Progress::Reply(reply)) => incoming = PeerRequest::from_buffer(&reply).unwrap(),
                // Some bits mean nothing: the client's version in NEGOTIATE, DER's own slack.
                Ok(Progress::Done) => prop_assert!(!altered || round != 2 || at < 20),
                Err(_) => return Ok(()),
            }
        }
    }

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut server = CredSsp::new(PUBLIC_KEY.to_vec(), secrets());
        prop_assert!(server.handle_message(&bytes, |_| None).is_err());
    }
}
