//! Oracles for fuzz targets: each takes any bytes and panics only when an invariant is broken.

mod session;
mod touch;

use std::sync::Arc;

use console::Size;

use crate::accept::credssp::{self, CredSsp, Progress};
use crate::accept::ntlm::{self, ServerSecrets};
use crate::accept::{AcceptError, Gatekeeper, Login, LoginSettings, NtHash, Output};
use crate::front::first_bytes::{FIRST_BYTES, classify};
use crate::front::{FrameSplitter, SecurityPolicy, Target, connection_request, preconnection};
pub use crate::graphics::fuzz_gfx_client_message;
pub use session::{fuzz_display_control, fuzz_dynamic_channels, fuzz_input, fuzz_session, fuzz_static_channel};
pub use touch::fuzz_touch;

/// A verdict about the first bytes comes in time and never changes.
pub fn fuzz_first_bytes(bytes: &[u8]) {
    let mut before = None;
    for length in 0..=bytes.len().min(2 * FIRST_BYTES) {
        let now = classify(&bytes[..length]);
        assert!(before.is_none() || now == before, "a verdict changed");
        assert!(now.is_some() || length < FIRST_BYTES, "no verdict after {length} bytes");
        before = now;
    }
}

/// The splitter consumes bytes, asks for more or fails: it never spins, and gives back all it was given.
///
/// # Panics
///
/// When it does not.
pub fn fuzz_framing(bytes: &[u8]) {
    let mut splitter = FrameSplitter::new();
    let mut handed_out = 0;
    for chunk in bytes.chunks(1 + bytes.len() / 7) {
        splitter.push(chunk);
        loop {
            let pending = splitter.pending().len();
            match splitter.next_frame() {
                Ok(Some(frame)) => {
                    assert!(!frame.bytes().is_empty(), "an empty frame");
                    assert_eq!(splitter.pending().len() + frame.bytes().len(), pending, "bytes lost");
                    assert!(bytes[handed_out..].starts_with(frame.bytes()), "bytes changed");
                    handed_out += frame.bytes().len();
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(splitter.next_frame(), Err(error), "an error went away");
                    return;
                }
            }
        }
    }
    assert_eq!(handed_out + splitter.pending().len(), bytes.len(), "bytes lost");
}

/// A blob is read, refused, or needs more bytes than there are; it never takes more than there are.
pub fn fuzz_preconnection(bytes: &[u8]) {
    if let Ok(Some((_, size))) = preconnection::read(bytes) {
        assert!((16..=preconnection::MAX_BLOB_BYTES).contains(&size) && size <= bytes.len(), "size {size}");
    }
}

/// A connection request is read or refused.
pub fn fuzz_connection_request(bytes: &[u8]) {
    let _ = connection_request::read(bytes);
}

/// A client that sends `bytes` after TLS in the ordinary order, with any password right, is refused, waited for or
/// let in; the first byte chooses between TLS and CredSSP.
pub fn fuzz_login(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else {
        return;
    };
    let protocols = 1 + choice % 3;
    let request = [3, 0, 0, 0x13, 0x0e, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, protocols, 0, 0, 0];
    let settings = LoginSettings {
        security: SecurityPolicy::NlaOrTls,
        public_key: vec![1, 2, 3],
        max_desktop: Size::new(1920, 1080),
        secrets: ServerSecrets { challenge: [7; 8], file_time: 0, nobody: NtHash::new([0; 16]) },
    };
    let mut login = Login::new(settings, Arc::new(OpenGate));
    for part in [&request[..], bytes] {
        if login.handle_bytes(part).is_err() || answer(&mut login).is_err() {
            return;
        }
    }
}

/// Does what a login asks for, until it asks for nothing.
fn answer(login: &mut Login) -> Result<(), AcceptError> {
    while let Some(output) = login.poll_output() {
        match output {
            Output::StartTls => login.tls_started()?,
            Output::VerifyPassword { .. } => login.password_verified(true)?,
            Output::Send(bytes) => assert!(!bytes.is_empty(), "an empty message"),
            Output::Authenticated | Output::Active(_) => {}
        }
    }
    Ok(())
}

/// A CredSSP exchange of two messages, cut at a length given by the first byte, never ends in a proof.
pub fn fuzz_credssp(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else {
        return;
    };
    let secrets = ServerSecrets { challenge: [7; 8], file_time: 0, nobody: NtHash::new([0; 16]) };
    let mut credssp = CredSsp::new(vec![1, 2, 3], secrets);
    let (first, second) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    for message in [first, second] {
        let _ = credssp::message_length(message);
        let progress = credssp.handle_message(message, |_| Some(NtHash::new([1; 16])));
        assert!(!matches!(progress, Ok(Progress::Done)), "a proof out of nothing");
        if progress.is_err() {
            return;
        }
    }
}

/// An NTLM exchange with a fixed challenge: each message is read or refused.
pub fn fuzz_ntlm(negotiate_and_authenticate: &[u8]) {
    let bytes = negotiate_and_authenticate;
    let (negotiate, authenticate) = bytes.split_at(bytes.len().min(40));
    let secrets = ServerSecrets { challenge: [7; 8], file_time: 0, nobody: NtHash::new([0; 16]) };
    if let Ok((exchange, _)) = ntlm::challenge(negotiate, secrets) {
        let (_, verdict) = exchange.authenticate(authenticate, |_| Some(NtHash::new([1; 16])));
        assert!(verdict.is_err(), "a proof out of nothing");
    }
}

struct OpenGate;

impl Gatekeeper for OpenGate {
    fn nt_hash(&self, _: &str) -> Option<NtHash> {
        None
    }

    fn verify_password(&self, _: &str, _: &str) -> bool {
        true
    }

    fn authorise(&self, _: &str, _: &Target) -> Option<String> {
        Some(String::new())
    }
}
