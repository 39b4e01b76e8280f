//! From MCS Connect Initial on: who may go where, and the session that comes of it.

use ironrdp_pdu::rdp::client_info::Credentials;
use zeroize::Zeroizing;

use super::{Flow, Login, Output, State, misbehaved};
use crate::accept::activation::{Activation, IO_CHANNEL_ID, Negotiated, Progress, Refusal, USER_CHANNEL_ID};
use crate::accept::error::{AcceptError, Step};
use crate::accept::handshake::Handshake;
use crate::accept::ntlm::SERVER_NAME;
use crate::front::LogonName;
use crate::front::framing::MAX_TPKT_BYTES;

impl Login {
    pub(super) fn read_connect(&mut self) -> Result<Flow, AcceptError> {
        self.input.set_limit(MAX_TPKT_BYTES);
        let Some(frame) = self.next_frame()? else {
            return Ok(Flow::Wait);
        };
        let State::Connect { negotiated, name } = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("called in this state only");
        };
        let mut out = Vec::new();
        let connected = Activation::connect(frame.bytes(), negotiated, self.settings.max_desktop, &mut out);
        self.send(out);
        let activation = Box::new(connected.map_err(|refusal| refused(Step::Settings, refusal))?);
        self.state = State::Activation { activation, negotiated, name };
        Ok(Flow::Again)
    }

    pub(super) fn read_activation(&mut self) -> Result<Flow, AcceptError> {
        let Some(frame) = self.next_frame()? else {
            return Ok(Flow::Wait);
        };
        let step = self.step();
        let (State::Activation { activation, .. } | State::Permitted { activation, .. }) = &mut self.state else {
            unreachable!("called in these states only");
        };
        let mut out = Vec::new();
        let progress = activation.handle_frame(&frame, &mut out);
        self.send(out);
        match progress.map_err(|refusal| refused(step, refusal))? {
            Progress::Wait => {}
            Progress::Credentials(credentials) => self.judge(credentials)?,
            Progress::Active => self.finish(),
        }
        Ok(Flow::Again)
    }

    /// Client Info is there: with CredSSP the user is known, without it the password in there decides.
    fn judge(&mut self, credentials: Credentials) -> Result<(), AcceptError> {
        let State::Activation { activation, negotiated, name } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(misbehaved(Step::Activation, "client info came twice"));
        };
        let password = Zeroizing::new(credentials.password);
        if let Some(name) = name {
            return self.authorise(activation, negotiated, name);
        }
        let domain = credentials.domain.as_deref().unwrap_or_default();
        let name = LogonName::read(&credentials.username, domain, &[&activation.client.name, SERVER_NAME]);
        self.outputs.push_back(Output::VerifyPassword { user: name.account.clone(), password });
        self.state = State::Password { activation, negotiated, name };
        Ok(())
    }

    pub(super) fn authorise(
        &mut self,
        mut activation: Box<Activation>,
        negotiated: Negotiated,
        name: LogonName,
    ) -> Result<(), AcceptError> {
        let target = self.routing.resolve(name.target);
        let Some(vm) = self.gate.authorise(&name.account, &target) else {
            self.deny(*activation);
            return Err(AcceptError::NotAllowed { user: name.account, target });
        };
        let mut out = Vec::new();
        let permitted = activation.permit(&mut out);
        self.send(out);
        permitted.map_err(|refusal| refused(Step::Activation, refusal))?;
        self.state = State::Permitted { activation, negotiated, user: name.account, vm };
        Ok(())
    }

    pub(super) fn deny(&mut self, activation: Activation) {
        let mut out = Vec::new();
        activation.deny(&mut out);
        self.send(out);
    }

    fn finish(&mut self) {
        let State::Permitted { activation, negotiated, user, vm } = std::mem::replace(&mut self.state, State::Over)
        else {
            unreachable!("a session is active only after permission");
        };
        let client = activation.client.clone();
        let desktop_size = activation.desktop;
        let static_channels = activation.static_channels.clone();
        let message_channel_id = activation.message_channel_id;
        let (acceptor, capabilities, input_events) = activation.finish();
        self.outputs.push_back(Output::Active(Box::new(Handshake {
            user,
            vm,
            enhanced: self.enhanced,
            protocol: negotiated.selected,
            client,
            desktop_size,
            capabilities,
            static_channels,
            user_channel_id: USER_CHANNEL_ID,
            io_channel_id: IO_CHANNEL_ID,
            message_channel_id,
            input_events,
            acceptor: Some(Box::new(acceptor)),
        })));
    }
}

fn refused(step: Step, refusal: Refusal) -> AcceptError {
    match refusal {
        Refusal::Misbehaved(reason) => misbehaved(step, reason),
        Refusal::Left => AcceptError::Closed { step },
    }
}
