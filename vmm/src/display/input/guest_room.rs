//! Whether the guest's keyboard and tablet have room for more.
//!
//! QEMU drops an event without a word when the guest has given its device no buffer for it. That happens while the
//! driver starts (Linux declares a device ready before it gives it the first buffer), and when a guest does
//! nothing for a good part of a second while somebody types on. So the buffers are counted, through QMP, which knows
//! the rings of virtio devices: always until the drivers are there, and then between bursts.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::engine::{KEYBOARD_DEVICE, Qmp, TABLET_DEVICE};

/// Buffers that a burst may need: two for each event, half as many again for moves.
const ENOUGH: u16 = 24;
/// How long a guest that takes nothing is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often its buffers are counted meanwhile.
const INTERVAL: Duration = Duration::from_millis(10);

/// The buffers of the guest's input devices.
pub(crate) struct GuestRoom {
    qmp: Arc<Qmp>,
    /// Its drivers have been seen to work.
    ready: bool,
    /// It took nothing the last time it was waited for.
    deaf: bool,
}

impl GuestRoom {
    pub(crate) fn new(qmp: Arc<Qmp>) -> Self {
        Self { qmp, ready: false, deaf: false }
    }

    /// Waits before the first event of a burst, unless the drivers are known to work; they do not while there is no
    /// tablet.
    pub(crate) async fn wait_for_drivers(&mut self, has_tablet: bool) {
        self.ready &= has_tablet;
        if !self.ready {
            self.wait().await;
            self.ready = has_tablet && !self.deaf;
        }
    }

    /// Waits until there is room for a burst. A guest that takes nothing at all is waited for once; what it is sent after
    /// that is lost, as with a keyboard plugged into a computer that has crashed.
    pub(crate) async fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_enough().await {
            if self.deaf || Instant::now() >= deadline {
                self.deaf = true;
                return;
            }
            sleep(INTERVAL).await;
        }
        self.deaf = false;
    }

    async fn is_enough(&self) -> bool {
        for device in [KEYBOARD_DEVICE, TABLET_DEVICE] {
            if self.free_buffers(device).await.is_some_and(|free| free < ENOUGH) {
                return false;
            }
        }
        true
    }

    /// Buffers the guest has given the device and not got back; none known while its driver is not there.
    async fn free_buffers(&self, device: &str) -> Option<u16> {
        let path = format!("/machine/peripheral/{device}/virtio-backend");
        let arguments = json!({ "path": path, "queue": 0 });
        let ring = self.qmp.execute("x-query-virtio-queue-element", arguments).await.ok()?;
        let index = |name: &str| ring[name]["idx"].as_u64().and_then(|index| u16::try_from(index).ok());
        Some(index("avail")?.wrapping_sub(index("used")?))
    }
}
