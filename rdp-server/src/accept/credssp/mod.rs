//! The server's side of CredSSP (MS-CSSP), over NTLM bare or in SPNEGO, for any number of users.
//!
//! ```text
//!  AwaitNegotiate ──▶ AwaitAuthenticate ──▶ AwaitPublicKey ──▶ AwaitCredentials ──▶ done
//!    │  ▲ SPNEGO with another             │                 ▲
//!    └──┘ mechanism first                 └─────────────────┘ both in one message: bare NTLM
//! ```
//!
//! The proof of the password is the sealed public key: it can only be sealed by who knows the password, and only
//! for the key of the TLS session it travels in. The delegated credentials at the end are opened and thrown away:
//! a console needs none, and clients with delegation switched off send empty ones.
//!
//! `sspi`'s server is not used: it takes a message apart with `split_at` before it knows its length, which lets
//! anyone panic it.

mod der;
mod spnego;
mod ts_request;

use sha2::{Digest, Sha256};

use self::der::Malformed;
pub use self::ts_request::MAX_MESSAGE_BYTES;
use self::ts_request::TsRequest;
use super::NtHash;
use super::ntlm::{self, Challenged, Claim, NtlmError, Seal, ServerSecrets};

/// The newest version we speak. Older clients are answered in theirs.
const VERSION: u32 = 6;
/// From this version on, the public key is bound by a hash with a nonce, before it was echoed.
const HASHED_KEY_VERSION: u32 = 5;
const STATUS_LOGON_FAILURE: u32 = 0xC000_006D;
const CLIENT_TO_SERVER: &[u8] = b"CredSSP Client-To-Server Binding Hash\0";
const SERVER_TO_CLIENT: &[u8] = b"CredSSP Server-To-Client Binding Hash\0";

/// Why CredSSP did not prove anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredSspError {
    /// The client broke the protocol.
    #[error("{0}")]
    PeerMisbehaved(&'static str),
    /// The client insists on a mechanism we do not have.
    #[error("client offers no ntlm")]
    NoNtlm,
    /// Unknown user or wrong password.
    #[error("logon denied")]
    LogonDenied,
}

impl From<Malformed> for CredSspError {
    fn from(_: Malformed) -> Self {
        Self::PeerMisbehaved("malformed credssp message")
    }
}

impl From<NtlmError> for CredSspError {
    fn from(error: NtlmError) -> Self {
        match error {
            NtlmError::PeerMisbehaved(reason) => Self::PeerMisbehaved(reason),
            NtlmError::LogonDenied => Self::LogonDenied,
        }
    }
}

/// What comes of one message.
#[derive(Debug)]
pub enum Progress {
    /// Send this and wait for the next.
    Reply(Vec<u8>),
    /// The client is who it claims to be.
    Done,
}

/// One client's exchange.
#[derive(Debug)]
pub struct CredSsp {
    state: State,
    public_key: Vec<u8>,
    version: Option<u32>,
    claim: Option<Claim>,
}

#[derive(Debug)]
enum State {
    AwaitNegotiate { secrets: ServerSecrets, wrap: Option<Spnego> },
    AwaitAuthenticate { exchange: Challenged, wrap: Option<Spnego> },
    AwaitPublicKey { seal: Seal },
    AwaitCredentials { seal: Seal },
    Over,
}

/// The client speaks SPNEGO, and listed these mechanisms.
#[derive(Debug)]
struct Spnego {
    mechanisms: Vec<u8>,
}

/// How long the first message in `bytes` is. None: more bytes are needed.
///
/// # Errors
///
/// When it is no CredSSP message, or longer than [`MAX_MESSAGE_BYTES`].
pub fn message_length(bytes: &[u8]) -> Result<Option<usize>, CredSspError> {
    if bytes.first().is_some_and(|first| *first != der::SEQUENCE) {
        return Err(CredSspError::PeerMisbehaved("not a credssp message"));
    }
    match der::total_length(bytes)? {
        Some(length) if length > MAX_MESSAGE_BYTES => Err(CredSspError::PeerMisbehaved("credssp message too long")),
        length => Ok(length),
    }
}

impl CredSsp {
    /// An exchange bound to the TLS certificate with this public key (the bits of its SubjectPublicKey).
    #[must_use]
    pub const fn new(public_key: Vec<u8>, secrets: ServerSecrets) -> Self {
        Self { state: State::AwaitNegotiate { secrets, wrap: None }, public_key, version: None, claim: None }
    }

    /// Who the client claims to be, once it has said so.
    #[must_use]
    pub const fn claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// Takes one whole message. `find` gives the NT hash for who the client claims to be.
    ///
    /// # Errors
    ///
    /// When the exchange is over. [`refusal`](Self::refusal) is then due to the client.
    pub fn handle_message(
        &mut self,
        bytes: &[u8],
        find: impl FnOnce(&Claim) -> Option<NtHash>,
    ) -> Result<Progress, CredSspError> {
        let request = TsRequest::decode(bytes)?;
        if request.error.is_some() {
            return Err(CredSspError::PeerMisbehaved("client reports an error"));
        }
        if request.version < 2 || *self.version.get_or_insert(request.version) != request.version {
            return Err(CredSspError::PeerMisbehaved("credssp version changed or unknown"));
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::AwaitNegotiate { secrets, wrap } => self.handle_negotiate(&request, secrets, wrap),
            State::AwaitAuthenticate { exchange, wrap } => self.handle_authenticate(&request, exchange, wrap, find),
            State::AwaitPublicKey { seal } => self.handle_public_key(&request, seal, None),
            State::AwaitCredentials { seal } => Self::handle_credentials(&request, seal),
            State::Over => Err(CredSspError::PeerMisbehaved("credssp message after the last")),
        }
    }

    /// The message that tells the client why it is refused: the same for every reason.
    ///
    /// None for clients of a version that cannot be told.
    #[must_use]
    pub fn refusal(&self) -> Option<Vec<u8>> {
        let told = self.version.is_some_and(|version| version >= 3 && version != 5);
        told.then(|| TsRequest { error: Some(STATUS_LOGON_FAILURE), ..self.answer() }.encode())
    }

    fn handle_negotiate(
        &mut self,
        request: &TsRequest,
        secrets: ServerSecrets,
        wrap: Option<Spnego>,
    ) -> Result<Progress, CredSspError> {
        let token = request.token.as_deref().ok_or(MISSING_TOKEN)?;
        match wrap {
            None if !spnego::is_init(token) => {
                let (exchange, challenge) = ntlm::challenge(token, secrets)?;
                self.state = State::AwaitAuthenticate { exchange, wrap: None };
                Ok(self.reply_token(challenge))
            }
            None => {
                let init = spnego::read_init(token)?.ok_or(CredSspError::NoNtlm)?;
                let wrap = Some(Spnego { mechanisms: init.mechanisms.to_vec() });
                let Some(negotiate) = init.ntlm else {
                    self.state = State::AwaitNegotiate { secrets, wrap };
                    return Ok(self.reply_token(spnego::select_ntlm(None)));
                };
                let (exchange, challenge) = ntlm::challenge(negotiate, secrets)?;
                self.state = State::AwaitAuthenticate { exchange, wrap };
                Ok(self.reply_token(spnego::select_ntlm(Some(&challenge))))
            }
            Some(wrap) => {
                let response = spnego::read_response(token)?;
                let (exchange, challenge) = ntlm::challenge(response.ntlm, secrets)?;
                self.state = State::AwaitAuthenticate { exchange, wrap: Some(wrap) };
                Ok(self.reply_token(spnego::go_on(&challenge)))
            }
        }
    }

    fn handle_authenticate(
        &mut self,
        request: &TsRequest,
        exchange: Challenged,
        wrap: Option<Spnego>,
        find: impl FnOnce(&Claim) -> Option<NtHash>,
    ) -> Result<Progress, CredSspError> {
        let token = request.token.as_deref().ok_or(MISSING_TOKEN)?;
        let response = wrap.as_ref().map(|_| spnego::read_response(token)).transpose()?;
        let authenticate = response.as_ref().map_or(token, |response| response.ntlm);
        let (claim, verdict) = exchange.authenticate(authenticate, find);
        self.claim = claim;
        let mut seal = verdict?;
        let last_token = match (wrap, response.and_then(|response| response.signature)) {
            (Some(wrap), Some(signature)) => {
                Some(spnego::complete(Some(&seal.countersign(&wrap.mechanisms, signature)?)))
            }
            (Some(_), None) => Some(spnego::complete(None)),
            (None, _) => None,
        };
        if request.public_key.is_some() {
            return self.handle_public_key(request, seal, last_token);
        }
        self.state = State::AwaitPublicKey { seal };
        // Bare NTLM has nothing more to say; its clients send the key in the same message.
        last_token.map(|token| self.reply_token(token)).ok_or(CredSspError::PeerMisbehaved("no public key"))
    }

    fn handle_public_key(
        &mut self,
        request: &TsRequest,
        mut seal: Seal,
        token: Option<Vec<u8>>,
    ) -> Result<Progress, CredSspError> {
        let sealed = request.public_key.as_deref().ok_or(CredSspError::PeerMisbehaved("no public key"))?;
        let opened = seal.open(sealed)?;
        let answer = if request.version >= HASHED_KEY_VERSION {
            let nonce = request.nonce.as_ref().ok_or(CredSspError::PeerMisbehaved("no nonce"))?;
            let bound = |magic| Sha256::new().chain_update(magic).chain_update(nonce).chain_update(&self.public_key);
            if opened.as_slice() != bound(CLIENT_TO_SERVER).finalize().as_slice() {
                return Err(OTHER_KEY);
            }
            bound(SERVER_TO_CLIENT).finalize().to_vec()
        } else {
            if opened.as_slice() != self.public_key {
                return Err(OTHER_KEY);
            }
            incremented(&self.public_key)
        };
        let public_key = Some(seal.seal(&answer));
        self.state = State::AwaitCredentials { seal };
        Ok(Progress::Reply(TsRequest { token, public_key, ..self.answer() }.encode()))
    }

    /// An answer with nothing in it, in the version both sides speak.
    fn answer(&self) -> TsRequest {
        let version = self.version.unwrap_or(VERSION).min(VERSION);
        TsRequest { version, ..TsRequest::default() }
    }

    fn reply_token(&self, token: Vec<u8>) -> Progress {
        Progress::Reply(TsRequest { token: Some(token), ..self.answer() }.encode())
    }

    fn handle_credentials(request: &TsRequest, mut seal: Seal) -> Result<Progress, CredSspError> {
        let sealed = request.credentials.as_deref().ok_or(CredSspError::PeerMisbehaved("no credentials"))?;
        seal.open(sealed)?;
        Ok(Progress::Done)
    }
}

const MISSING_TOKEN: CredSspError = CredSspError::PeerMisbehaved("credssp message without a token");
const OTHER_KEY: CredSspError = CredSspError::PeerMisbehaved("client sees another certificate than ours");

/// The public key plus one, as the number whose least significant byte comes first (MS-CSSP 3.1.5).
fn incremented(public_key: &[u8]) -> Vec<u8> {
    let mut carry = true;
    let add = |byte: &u8| {
        let (sum, overflow) = byte.overflowing_add(u8::from(carry));
        carry = overflow;
        sum
    };
    public_key.iter().map(add).collect()
}

#[cfg(test)]
mod tests;
