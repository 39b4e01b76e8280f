//! CredSSP: the client proves that it knows the password.

use ironrdp_pdu::nego::SecurityProtocol;

use super::{Flow, Login, Output, State, misbehaved};
use crate::accept::activation::Negotiated;
use crate::accept::credssp::{self, CredSspError};
use crate::accept::error::{AcceptError, Step};
use crate::accept::gatekeeper::{Gatekeeper, NtHash};
use crate::accept::ntlm::{Claim, SERVER_NAME};
use crate::front::LogonName;

/// MS-RDPBCGR 2.2.10.2 Early User Authorization Result PDU: success. Rights are judged later, for all alike.
const EARLY_AUTHORIZATION_SUCCESS: [u8; 4] = [0; 4];

impl Login {
    pub(super) fn read_credssp(&mut self) -> Result<Flow, AcceptError> {
        let State::CredSsp { credssp, negotiated } = &mut self.state else {
            unreachable!("called in this state only");
        };
        let length = credssp::message_length(self.input.pending()).map_err(|error| misbehaved(Step::CredSsp, error))?;
        let Some(message) = length.and_then(|length| self.input.pending().get(..length)) else {
            return Ok(Flow::Wait);
        };
        let consumed = message.len();
        let gate = &self.gate;
        let progress = credssp.handle_message(message, |claim| find_hash(gate.as_ref(), claim));
        let negotiated = *negotiated;
        self.input.consume(consumed);
        match progress {
            Ok(credssp::Progress::Reply(reply)) => {
                self.outputs.push_back(Output::Send(reply));
                Ok(Flow::Again)
            }
            Ok(credssp::Progress::Done) => self.finish_credssp(negotiated),
            Err(error) => self.fail_credssp(error),
        }
    }

    fn finish_credssp(&mut self, negotiated: Option<Negotiated>) -> Result<Flow, AcceptError> {
        let Some(name) = self.claimed_name() else {
            return Err(misbehaved(Step::CredSsp, "credssp ended without a name"));
        };
        self.outputs.push_back(Output::Authenticated);
        self.state = match negotiated {
            None => State::DirectRequest { name },
            Some(negotiated) => {
                if negotiated.selected == SecurityProtocol::HYBRID_EX {
                    self.outputs.push_back(Output::Send(EARLY_AUTHORIZATION_SUCCESS.to_vec()));
                }
                State::Connect { negotiated, name: Some(name) }
            }
        };
        Ok(Flow::Again)
    }

    fn fail_credssp(&mut self, error: CredSspError) -> Result<Flow, AcceptError> {
        let name = self.claimed_name();
        let State::CredSsp { credssp, .. } = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("called in this state only");
        };
        self.outputs.extend(credssp.refusal().map(Output::Send));
        match (error, name) {
            (CredSspError::LogonDenied, name) => {
                Err(AcceptError::WrongCredentials { user: name.map_or_else(String::new, |name| name.account) })
            }
            (CredSspError::NoNtlm, _) => Err(AcceptError::Unsupported("client offers no ntlm for nla".to_owned())),
            (error, _) => Err(misbehaved(Step::CredSsp, error)),
        }
    }

    fn claimed_name(&self) -> Option<LogonName> {
        match &self.state {
            State::CredSsp { credssp, .. } => credssp.claim().map(logon_name),
            _ => None,
        }
    }
}

fn logon_name(claim: &Claim) -> LogonName {
    LogonName::read(&claim.user, &claim.domain, &[&claim.workstation, SERVER_NAME])
}

/// The hash of the bare account: the proof itself is checked with the names as the client sent them.
fn find_hash(gate: &dyn Gatekeeper, claim: &Claim) -> Option<NtHash> {
    gate.nt_hash(&logon_name(claim).account)
}
