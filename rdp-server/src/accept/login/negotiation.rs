//! Up to TLS, and X.224 behind it in VMConnect's order.

use ironrdp_pdu::nego::{FailureCode, SecurityProtocol};

use super::{AfterTls, Flow, Login, Output, State, misbehaved};
use crate::accept::activation::Negotiated;
use crate::accept::error::{AcceptError, Step};
use crate::front::first_bytes::{FirstBytes, MAX_REQUEST_BYTES, classify};
use crate::front::{SecurityPolicy, connection_request, failure, preconnection};

impl Login {
    pub(super) fn read_first_bytes(&mut self) -> Result<Flow, AcceptError> {
        let after_blob = matches!(self.state, State::Preconnected);
        match classify(self.input.pending()) {
            None => return Ok(Flow::Wait),
            Some(FirstBytes::X224) => self.state = State::ConnectionRequest,
            Some(FirstBytes::Tls) => {
                if self.settings.security == SecurityPolicy::TlsOnly {
                    return Err(AcceptError::Unsupported(
                        "tls before x.224 needs nla, which is switched off".to_owned(),
                    ));
                }
                self.start_tls(AfterTls::CredSsp(None));
            }
            Some(FirstBytes::Preconnection) if !after_blob => self.state = State::Preconnection,
            Some(FirstBytes::Http) => return Err(AcceptError::Unsupported("client speaks http".to_owned())),
            Some(FirstBytes::Preconnection | FirstBytes::Unknown) => {
                return Err(misbehaved(self.step(), "client speaks neither rdp nor tls"));
            }
        }
        Ok(Flow::Again)
    }

    pub(super) fn read_preconnection(&mut self) -> Result<Flow, AcceptError> {
        let read = preconnection::read(self.input.pending());
        let Some((blob, size)) = read.map_err(|error| misbehaved(Step::Preconnection, error))? else {
            return Ok(Flow::Wait);
        };
        self.input.consume(size);
        self.routing.preconnection = blob.target;
        self.enhanced = blob.enhanced;
        self.state = State::Preconnected;
        Ok(Flow::Again)
    }

    pub(super) fn read_connection_request(&mut self) -> Result<Flow, AcceptError> {
        self.input.set_limit(MAX_REQUEST_BYTES.into());
        let Some(request) = self.next_request()? else {
            return Ok(Flow::Wait);
        };
        let selected = match self.settings.security.select(request.protocols) {
            Ok(selected) => selected,
            Err(code) => return self.refuse(code, request.protocols),
        };
        self.outputs.push_back(Output::Send(failure::confirm(selected)));
        let negotiated = Negotiated { requested: request.protocols, selected };
        self.start_tls(if selected == SecurityProtocol::SSL {
            AfterTls::Connect(negotiated)
        } else {
            AfterTls::CredSsp(Some(negotiated))
        });
        Ok(Flow::Wait)
    }

    /// VMConnect's order: there is no early user authorization in it, so HYBRID is the only answer.
    pub(super) fn read_direct_request(&mut self) -> Result<Flow, AcceptError> {
        self.input.set_limit(MAX_REQUEST_BYTES.into());
        let Some(request) = self.next_request()? else {
            return Ok(Flow::Wait);
        };
        if !request.protocols.contains(SecurityProtocol::HYBRID) {
            return self.refuse(FailureCode::INCONSISTENT_FLAGS, request.protocols);
        }
        let State::DirectRequest { name } = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("called in this state only");
        };
        self.outputs.push_back(Output::Send(failure::confirm(SecurityProtocol::HYBRID)));
        let negotiated = Negotiated { requested: request.protocols, selected: SecurityProtocol::HYBRID };
        self.state = State::Connect { negotiated, name: Some(name) };
        Ok(Flow::Again)
    }

    fn next_request(&mut self) -> Result<Option<connection_request::ConnectionRequest>, AcceptError> {
        let Some(frame) = self.next_frame()? else {
            return Ok(None);
        };
        let request =
            connection_request::read(frame.bytes()).map_err(|error| misbehaved(Step::ConnectionRequest, error))?;
        self.routing.token.clone_from(&request.target);
        Ok(Some(request))
    }

    fn refuse(&mut self, code: FailureCode, requested: SecurityProtocol) -> Result<Flow, AcceptError> {
        self.state = State::Over;
        self.outputs.push_back(Output::Send(failure::refuse(code)));
        Err(AcceptError::Unsupported(format!("client can only do {requested}: {code}")))
    }

    fn start_tls(&mut self, after: AfterTls) {
        self.state = State::Tls(after);
        self.outputs.push_back(Output::StartTls);
    }
}
