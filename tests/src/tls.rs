//! TLS as a client of ill will has it: up to the point where the bytes of its choice begin.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::wire;

/// A connection in TLS.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Connects and asks for `protocols`, which must be granted: TLS comes next.
///
/// # Errors
///
/// When the gateway refuses.
pub fn request(address: SocketAddr, protocols: u32) -> Result<TcpStream> {
    let mut stream = wire::connect(address)?;
    std::io::Write::write_all(&mut stream, &wire::connection_request(protocols, "somebody"))?;
    let mut confirm = [0; 19];
    read_all(&mut stream, &mut confirm).context("no connection confirm")?;
    // MS-RDPBCGR 2.2.1.2.1: a negotiation response has type 2.
    ensure!(confirm[11] == 2, "refused: {confirm:02x?}");
    Ok(stream)
}

/// As [`request`], and the TLS handshake after it.
///
/// # Errors
///
/// When the gateway refuses.
pub fn open(address: SocketAddr, protocols: u32) -> Result<TlsStream> {
    let mut socket = request(address, protocols)?;
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("fanlight.test")?)?;
    while connection.is_handshaking() {
        match connection.complete_io(&mut socket) {
            Ok(_) => {}
            // Sockets of `wire` give up reading after a second; a busy machine takes longer.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("no TLS"),
        }
    }
    Ok(StreamOwned::new(connection, socket))
}

fn read_all(stream: &mut TcpStream, mut into: &mut [u8]) -> Result<()> {
    while !into.is_empty() {
        match stream.read(into) {
            Ok(0) => anyhow::bail!("the connection was closed"),
            Ok(count) => into = &mut into[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Trusts everybody: what is tested is the other side's trust.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
