//! A port without a bus: its bytes come back as they are. What the port alone costs is measured with it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use guest_agent::port::find_node;
use tracing::{info, warn};

/// What the host calls that port.
const NAME: &str = "org.fanlight.echo.0";
/// How often is looked whether somebody has come to the host's end: until then the driver reads nothing at once.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Sends back what comes on that port, in a thread of its own, if the guest has it.
pub(crate) fn start() {
    if let Some(node) = find_node(NAME) {
        thread::spawn(move || {
            info!(node = %node.display(), "echoing");
            if let Err(error) = echo(&node) {
                warn!(%error, "echoing no more");
            }
        });
    }
}

/// As plain as it can be: two system calls for what came together.
fn echo(node: &Path) -> io::Result<()> {
    let mut port = File::options().read(true).write(true).open(node)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match port.read(&mut buffer)? {
            0 => thread::sleep(LOOK_EVERY),
            count => port.write_all(buffer.get(..count).unwrap_or_default())?,
        }
    }
}
