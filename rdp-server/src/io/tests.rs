//! Both ends over a pipe, with real TLS and a clock that jumps: minutes of waiting take no time.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use tokio::time::Instant;

use super::*;
use crate::testing::{Act, Client, ClientPlan, GUID, USER, VM, blob_bytes, gate};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const PIPE_BYTES: usize = 256 * 1024;

fn server() -> FrontConfig {
    use rcgen::PublicKeyData as _;
    let made = rcgen::generate_simple_self_signed(["host".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let tls =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    FrontConfig::new(Arc::new(tls), made.signing_key.der_bytes().to_vec())
}

type Accepting = JoinHandle<(Result<Accepted<DuplexStream>, AcceptError>, Duration)>;

/// Accepts on one end of a pipe. Gives the other end, and when and how it went.
fn start(config: &FrontConfig, pipe_bytes: usize) -> (DuplexStream, Accepting) {
    let (client, stream) = duplex(pipe_bytes);
    let config = config.clone();
    let accepting = tokio::spawn(async move {
        let began = Instant::now();
        let result = accept(stream, PEER, &config, gate()).await;
        (result, began.elapsed())
    });
    (client, accepting)
}

async fn refusal(accepting: Accepting) -> (AcceptError, Duration) {
    let (result, took) = accepting.await.unwrap();
    (result.expect_err("the client is refused"), took)
}

/// Believes every certificate: the client's own check is CredSSP's.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

type TlsClient = tokio_rustls::client::TlsStream<DuplexStream>;

async fn connect_tls(stream: DuplexStream, version: &'static rustls::SupportedProtocolVersion) -> TlsClient {
    let config = ClientConfig::builder_with_protocol_versions(&[version])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    let name = ServerName::try_from("host").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// Runs a client up to its session. Gives its end of the connection.
async fn run_client(
    mut stream: DuplexStream,
    plan: ClientPlan,
    version: &'static rustls::SupportedProtocolVersion,
) -> Result<TlsClient, String> {
    let mut client = Client::new(plan);
    let mut acts = client.start();
    let mut buffer = vec![0; 4096];
    'plain: loop {
        for act in acts {
            match act {
                Act::Send(bytes) => stream.write_all(&bytes).await.unwrap(),
                Act::StartTls => break 'plain,
                Act::Connected { .. } => panic!("no session without tls"),
            }
        }
        let count = stream.read(&mut buffer).await.unwrap();
        if count == 0 {
            return Err("closed".to_owned());
        }
        acts = client.handle(&buffer[..count])?;
    }
    let mut stream = connect_tls(stream, version).await;
    let mut acts = client.tls_started()?;
    loop {
        for act in acts {
            match act {
                Act::Send(bytes) => stream.write_all(&bytes).await.map_err(|error| error.to_string())?,
                Act::StartTls => panic!("tls inside tls"),
                Act::Connected { .. } => return Ok(stream),
            }
        }
        stream.flush().await.unwrap();
        let count = stream.read(&mut buffer).await.map_err(|error| error.to_string())?;
        if count == 0 {
            return Err("closed".to_owned());
        }
        acts = client.handle(&buffer[..count])?;
    }
}

fn plan(config: &FrontConfig, plan: ClientPlan) -> ClientPlan {
    ClientPlan { public_key: config.public_key.clone(), ..plan }
}

#[tokio::test]
async fn every_order_reaches_a_session_in_both_versions_of_tls() {
    let config = server();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for wish in [ClientPlan::default(), ClientPlan::tls_only(), ClientPlan::direct()] {
            let (stream, accepting) = start(&config, PIPE_BYTES);
            let client = run_client(stream, plan(&config, wish), version).await;
            assert!(client.is_ok(), "{:?}", client.err());
            let accepted = accepting.await.unwrap().0.unwrap();
            assert_eq!((accepted.handshake().user.as_str(), accepted.handshake().vm.as_str()), (USER, VM));
        }
    }
}

#[tokio::test]
async fn a_refused_client_hears_why_before_the_connection_ends() {
    let config = server();
    let wrong = ClientPlan { password: "wrong", ..ClientPlan::default() };
    let (stream, accepting) = start(&config, PIPE_BYTES);
    let told = run_client(stream, plan(&config, wrong), &rustls::version::TLS13).await.unwrap_err();
    assert!(told.contains("error status"), "{told}");
    assert_eq!(refusal(accepting).await.0.failed_user(), Some(USER));

    let nowhere = ClientPlan { domain: Some("nosuch"), ..ClientPlan::tls_only() };
    let (stream, accepting) = start(&config, PIPE_BYTES);
    let told = run_client(stream, plan(&config, nowhere), &rustls::version::TLS12).await.unwrap_err();
    assert!(told.contains("insufficient access privileges"), "{told}");
    assert!(matches!(refusal(accepting).await.0, AcceptError::NotAllowed { .. }));

    let (mut stream, accepting) = start(&config, PIPE_BYTES);
    stream.write_all(&[3, 0, 0, 11, 6, 0xE0, 0, 0, 0, 0, 0]).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[11..], [3, 0, 8, 0, 1, 0, 0, 0]);
    drop(stream);
    assert!(matches!(refusal(accepting).await.0, AcceptError::Unsupported(_)));
}

#[tokio::test]
async fn frames_flow_both_ways_after_the_handshake() {
    let config = server();
    let (stream, accepting) = start(&config, PIPE_BYTES);
    let mut client = run_client(stream, plan(&config, ClientPlan::default()), &rustls::version::TLS13).await.unwrap();
    let (mut reader, mut writer, _) = accepting.await.unwrap().0.unwrap().into_split();

    client.write_all(&[4, 3, 9, 3, 0, 0, 8, 1, 2, 3, 4, 4]).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(reader.next_frame().await.unwrap(), Some(Frame::FastPath(vec![4, 3, 9])));
    assert_eq!(reader.next_frame().await.unwrap(), Some(Frame::Tpkt(vec![3, 0, 0, 8, 1, 2, 3, 4])));
    // A reader that is dropped in the middle of a frame has lost nothing.
    let cut = timeout(Duration::from_millis(20), reader.next_frame()).await;
    assert!(cut.is_err());
    client.write_all(&[3, 7]).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(reader.next_frame().await.unwrap(), Some(Frame::FastPath(vec![4, 3, 7])));

    writer.write(b"to the client").await.unwrap();
    let mut received = [0; 13];
    client.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"to the client");
    writer.shutdown().await.unwrap();
    assert_eq!(client.read(&mut received).await.unwrap(), 0);
    drop(client);
    assert_eq!(reader.next_frame().await.unwrap(), None);
}

#[tokio::test]
async fn a_session_that_breaks_off_within_a_frame_is_told_from_one_that_ends() {
    let config = server();
    for (last, whole) in [(&[4u8, 3, 9][..], true), (&[4, 3][..], false)] {
        let (stream, accepting) = start(&config, PIPE_BYTES);
        let mut client =
            run_client(stream, plan(&config, ClientPlan::tls_only()), &rustls::version::TLS13).await.unwrap();
        let (mut reader, _writer, _) = accepting.await.unwrap().0.unwrap().into_split();
        client.write_all(last).await.unwrap();
        client.flush().await.unwrap();
        drop(client);
        if whole {
            assert!(reader.next_frame().await.unwrap().is_some());
            assert!(reader.next_frame().await.unwrap().is_none());
        } else {
            assert!(matches!(reader.next_frame().await, Err(FrameError::Truncated)));
        }
    }
}

/// Sends one byte a second, for as long as anybody listens.
async fn trickle<T: AsyncWrite + Unpin>(mut stream: T, bytes: Vec<u8>) -> T {
    for byte in bytes {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err() {
            break;
        }
    }
    stream
}

async fn assert_too_slow(accepting: Accepting, step: Step, limit: Duration, after: Duration) {
    let (error, took) = refusal(accepting).await;
    assert!(
        matches!(error, AcceptError::TooSlow { step: s, limit: l } if s == step && l == limit),
        "{error} instead of {step} after {limit:?}"
    );
    assert!(took >= after && took <= after + FAREWELL_TIME, "{step}: {took:?} instead of {after:?}");
}

fn request(protocols: u8) -> Vec<u8> {
    vec![3, 0, 0, 0x13, 0x0e, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, protocols, 0, 0, 0]
}

#[tokio::test(start_paused = true)]
async fn a_silent_or_slow_client_loses_its_place_in_time() {
    let config = server();
    let (stream, accepting) = start(&config, PIPE_BYTES);
    assert_too_slow(accepting, Step::FirstBytes, FIRST_BYTES_TIME, FIRST_BYTES_TIME).await;
    drop(stream);

    let (stream, accepting) = start(&config, PIPE_BYTES);
    let client = tokio::spawn(trickle(stream, blob_bytes(GUID)));
    assert_too_slow(accepting, Step::FirstBytes, FIRST_BYTES_TIME, FIRST_BYTES_TIME).await;
    client.abort();

    let (mut stream, accepting) = start(&config, PIPE_BYTES);
    stream.write_all(&blob_bytes(GUID)).await.unwrap();
    let client = tokio::spawn(trickle(stream, request(1)));
    assert_too_slow(accepting, Step::ConnectionRequest, PRECONNECTION_TIME, PRECONNECTION_TIME).await;
    client.abort();

    let (mut stream, accepting) = start(&config, PIPE_BYTES);
    stream.write_all(&blob_bytes(GUID)[..12]).await.unwrap();
    let client = tokio::spawn(trickle(stream, blob_bytes(GUID)[12..].to_vec()));
    assert_too_slow(accepting, Step::Preconnection, PRECONNECTION_TIME, PRECONNECTION_TIME).await;
    client.abort();

    let (mut stream, accepting) = start(&config, PIPE_BYTES);
    stream.write_all(&request(1)[..6]).await.unwrap();
    let client = tokio::spawn(trickle(stream, request(1)[6..].to_vec()));
    assert_too_slow(accepting, Step::ConnectionRequest, PRECONNECTION_TIME, PRECONNECTION_TIME).await;
    client.abort();
}

#[tokio::test(start_paused = true)]
async fn a_slow_tls_handshake_ends_in_time() {
    let config = server();
    for first in [request(1), Vec::new()] {
        let (mut stream, accepting) = start(&config, PIPE_BYTES);
        stream.write_all(&first).await.unwrap();
        stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.unwrap();
        let client = tokio::spawn(trickle(stream, vec![7; 100]));
        assert_too_slow(accepting, Step::Tls, TLS_TIME, TLS_TIME).await;
        client.abort();
    }
}

/// A client that has TLS, in the ordinary order.
async fn tls_client(
    mut stream: DuplexStream,
    protocols: u8,
    version: &'static rustls::SupportedProtocolVersion,
) -> TlsClient {
    stream.write_all(&request(protocols)).await.unwrap();
    let mut confirm = [0; 19];
    stream.read_exact(&mut confirm).await.unwrap();
    connect_tls(stream, version).await
}

#[tokio::test(start_paused = true)]
async fn slow_credssp_and_slow_settings_end_in_time() {
    let config = server();
    let (stream, accepting) = start(&config, PIPE_BYTES);
    let client = tls_client(stream, 2, &rustls::version::TLS13).await;
    let client = tokio::spawn(trickle(client, vec![0x30; 1].into_iter().chain([0x82, 1, 0]).chain([0; 90]).collect()));
    assert_too_slow(accepting, Step::CredSsp, CREDSSP_TIME, CREDSSP_TIME).await;
    client.abort();

    let (stream, accepting) = start(&config, PIPE_BYTES);
    let client = tls_client(stream, 1, &rustls::version::TLS13).await;
    let client = tokio::spawn(trickle(client, [3, 0, 1, 0].into_iter().chain([0; 90]).collect()));
    assert_too_slow(accepting, Step::Settings, LOGIN_TIME, LOGIN_TIME).await;
    client.abort();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_ends_in_time() {
    let config = server();
    let (mut stream, accepting) = start(&config, 8);
    stream.write_all(&request(1)).await.unwrap();
    let (error, took) = refusal(accepting).await;
    assert!(matches!(error, AcceptError::TooSlow { step: Step::Tls, .. }), "{error}");
    assert!(took <= TLS_TIME + FAREWELL_TIME, "{took:?}");
}

#[tokio::test]
async fn a_stranger_that_sends_too_much_is_cut_off() {
    let config = server();
    let (stream, accepting) = start(&config, PIPE_BYTES);
    let mut client = tls_client(stream, 1, &rustls::version::TLS13).await;
    client.write_all(&[3, 0, 0xFF, 0xFF]).await.unwrap();
    client.write_all(&vec![0; STRANGER_BYTES]).await.unwrap();
    client.flush().await.unwrap();
    let (error, _) = refusal(accepting).await;
    assert!(matches!(error, AcceptError::TooMuch { step: Step::Settings, limit: STRANGER_BYTES }), "{error}");
}

#[tokio::test]
async fn the_budget_of_strangers_ends_with_the_password() {
    let mut config = server();
    config.limits.stranger_bytes = 4000;
    let (stream, accepting) = start(&config, PIPE_BYTES);
    let mut client = run_client(stream, plan(&config, ClientPlan::default()), &rustls::version::TLS13).await.unwrap();
    let (mut reader, _writer, _) = accepting.await.unwrap().0.unwrap().into_split();
    let frame = [&[3u8, 0, 0x20, 0][..], &[0; 0x1FFC]].concat();
    client.write_all(&frame).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(reader.next_frame().await.unwrap(), Some(Frame::Tpkt(frame)));
}

#[tokio::test]
async fn a_half_open_connection_is_told_from_a_slow_one() {
    let config = server();
    let (mut stream, accepting) = start(&config, PIPE_BYTES);
    stream.write_all(&[3, 0]).await.unwrap();
    drop(stream);
    assert!(matches!(refusal(accepting).await.0, AcceptError::Closed { step: Step::FirstBytes }));

    let (stream, accepting) = start(&config, PIPE_BYTES);
    // The server has the last word of this handshake: it is in the next step for certain.
    drop(tls_client(stream, 2, &rustls::version::TLS12).await);
    assert!(matches!(refusal(accepting).await.0, AcceptError::Closed { step: Step::CredSsp }));
}

#[tokio::test]
async fn bytes_glued_behind_the_blob_reach_tls() {
    // A hello in the same segment as the blob: what was read too far must not be lost.
    let config = server();
    let (stream, accepting) = start(&config, PIPE_BYTES);
    let (mut near, far) = duplex(PIPE_BYTES);
    let glue = tokio::spawn(async move {
        let (mut near_read, mut near_write) = tokio::io::split(&mut near);
        let (mut stream_read, mut stream_write) = tokio::io::split(stream);
        let mut first = vec![0; 4096];
        let count = near_read.read(&mut first).await.unwrap();
        stream_write.write_all(&[&blob_bytes(VM)[..], &first[..count]].concat()).await.unwrap();
        let _ = tokio::join!(
            tokio::io::copy(&mut near_read, &mut stream_write),
            tokio::io::copy(&mut stream_read, &mut near_write)
        );
    });
    let without_blob = ClientPlan { blob: None, ..ClientPlan::direct() };
    let client = run_client(far, plan(&config, without_blob), &rustls::version::TLS13).await;
    assert!(client.is_ok(), "{:?}", client.err());
    assert_eq!(accepting.await.unwrap().0.unwrap().handshake().vm, VM);
    glue.abort();
}
