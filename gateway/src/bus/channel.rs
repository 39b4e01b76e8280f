//! A channel of the core, as its service sees it.

use enhanced_session::endpoint::{ChannelId, Host, SendError};
use enhanced_session::message::Txid;
use enhanced_session::region::Mapping;
use tracing::debug;

use super::services::{Channel, Full, Moment, Services};

/// One channel of a VM's core.
pub(super) struct HostChannel<'a> {
    pub(super) host: &'a mut Host<Mapping>,
    pub(super) id: ChannelId,
}

impl HostChannel<'_> {
    /// Takes what has come to the channel's service. A guest whose words cannot be read loses the channel.
    pub(super) fn read(self, at: Moment, services: &mut Services) {
        while let Some(message) = self.host.receive(self.id) {
            if let Err(error) = services.handle(at, self.id, message) {
                self.host.fault(self.id, error);
                return;
            }
        }
    }
}

impl Channel for HostChannel<'_> {
    fn send(&mut self, payload: Vec<u8>) -> Result<(), Full> {
        self.host.send(self.id, payload).map_err(|error| full(self.id, error))
    }

    fn request(&mut self, payload: Vec<u8>) -> Result<Txid, Full> {
        self.host.request(self.id, payload).map_err(|error| full(self.id, error))
    }
}

/// Everything that keeps a message from being sent passes, or ends the channel, which is an event of its own.
fn full(id: ChannelId, error: SendError) -> Full {
    if error != SendError::Full {
        debug!(channel = id.0, %error, "a message waits");
    }
    Full
}
