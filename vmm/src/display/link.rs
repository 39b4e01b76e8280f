//! The connection to one QEMU's display, from `add_client` until it ends.
//!
//! ```text
//!            getfd + add_client (QMP)
//! main     ──────────────────────────▶ QEMU   Keyboard, Mouse, SetUIInfo; their properties' changes come back
//! listener ──── RegisterListener ────▶ QEMU   one per monitor: pictures and cursors come back
//! ```

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use console::Size;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use zbus::message::Type;
use zbus::{Connection, Fd, Message, MessageStream, Variant};

use super::Display;
use super::dbus::{CONSOLE, KEYBOARD, MOUSE, PROPERTIES, console_path, next_message, socket_pair};
use super::input::{GuestRoom, InputState, Pump};
use super::listener;
use super::monitor::Monitor;
use crate::engine::{Qmp, QmpError};

/// How long the whole of attaching may take.
const ATTACH_DEADLINE: Duration = Duration::from_secs(10);

/// QEMU's display could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("QEMU's display: {0}")]
    DBus(#[from] zbus::Error),
    #[error("QEMU's display: {0}")]
    Io(#[from] std::io::Error),
    #[error("QEMU's display was not there within {} s", ATTACH_DEADLINE.as_secs())]
    TimedOut,
}

/// A display that is connected. Its monitors go dark when it is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    display: Arc<Display>,
    connections: Vec<Connection>,
    tasks: JoinSet<zbus::Result<()>>,
}

impl Link {
    /// Connects `display` to the QEMU behind `qmp`.
    pub(crate) async fn attach(qmp: &Arc<Qmp>, display: &Arc<Display>) -> Result<Self, LinkError> {
        let link = async {
            let (ours, theirs) = socket_pair()?;
            qmp.execute_with_fd("getfd", json!({ "fdname": "display" }), theirs.as_fd()).await?;
            qmp.execute("add_client", json!({ "protocol": "@dbus-display", "fdname": "display" })).await?;
            drop(theirs);
            Self::connect(ours, display, Some(GuestRoom::new(qmp.clone()))).await
        };
        tokio::time::timeout(ATTACH_DEADLINE, link).await.map_err(|_| LinkError::TimedOut)?
    }

    /// Everything after QEMU has got its end of `socket`.
    pub(super) async fn connect(
        socket: std::os::unix::net::UnixStream,
        display: &Arc<Display>,
        guest: Option<GuestRoom>,
    ) -> Result<Self, LinkError> {
        let main = zbus::connection::Builder::unix_stream(socket).p2p().build_message_stream().await?;
        let connection = Connection::from(&main);
        let mut link = Self { display: display.clone(), connections: vec![connection.clone()], tasks: JoinSet::new() };
        let input = display.input_state.clone();
        link.tasks.spawn(follow_properties(main, input.clone()));
        let monitors = display.monitors().clone();
        for (index, monitor) in monitors.iter().enumerate() {
            let wanted = monitor.wanted_size().subscribe();
            link.tasks.spawn(tell_size(connection.clone(), index, wanted));
            link.listen(&connection, index, monitor.clone()).await?;
        }
        read_properties(&connection, &input).await?;
        display.queue.open(true);
        if let Some(first) = monitors.into_iter().next() {
            link.tasks.spawn(Pump::new(connection, display.queue.clone(), input, first, guest).run());
        }
        Ok(link)
    }

    /// Waits until QEMU, or one of its connections, is gone. Cancel safe.
    pub(crate) async fn closed(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => tracing::debug!(%error, "display connection ended"),
            _ => tracing::debug!("display connection ended"),
        }
    }

    /// Lets go of the display; when this returns, nothing of it shows any more.
    pub(crate) async fn detach(mut self) {
        self.tasks.shutdown().await;
    }

    async fn listen(&mut self, main: &Connection, index: usize, monitor: Arc<Monitor>) -> Result<(), LinkError> {
        let (ours, theirs) = socket_pair()?;
        // QEMU's main loop waits for our side of the handshake from the moment it handles the call.
        let handshake = tokio::spawn(zbus::connection::Builder::unix_stream(ours).p2p().build_message_stream());
        let fd = Fd::from(theirs.as_fd());
        let path = console_path(index);
        main.call_method(None::<&str>, path.as_str(), Some(CONSOLE), "RegisterListener", &fd).await?;
        let stream = handshake.await.map_err(std::io::Error::other)??;
        self.connections.push(Connection::from(&stream));
        self.tasks.spawn(listener::serve(stream, monitor));
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Before the connections end, which QEMU notices: nothing may be shown after this.
        self.tasks.abort_all();
        self.display.go_dark();
        for connection in self.connections.drain(..) {
            tokio::spawn(connection.close());
        }
    }
}

/// Keeps the lights of the keyboard and the kind of pointer up to date.
async fn follow_properties(mut stream: MessageStream, input: Arc<InputState>) -> zbus::Result<()> {
    let path = console_path(0);
    while let Some(message) = next_message(&mut stream).await? {
        let header = message.header();
        if message.message_type() == Type::Signal
            && header.member().is_some_and(|member| member == "PropertiesChanged")
            && header.path().is_some_and(|of| of.as_str() == path)
        {
            take_properties(&message, &input)?;
        }
    }
    Ok(())
}

fn take_properties(message: &Message, input: &InputState) -> zbus::Result<()> {
    let body = message.body();
    let (interface, changed, _): (&str, HashMap<&str, Variant<'_>>, Vec<&str>) = body.deserialize()?;
    match interface {
        KEYBOARD => note_lights(changed.get("Modifiers"), input),
        MOUSE => note_pointer(changed.get("IsAbsolute"), input),
        _ => {}
    }
    Ok(())
}

/// Asks for what [`follow_properties`] would only hear of when it changes.
async fn read_properties(connection: &Connection, input: &InputState) -> zbus::Result<()> {
    let lights = get_property(connection, KEYBOARD, "Modifiers").await?.body();
    note_lights(Some(&lights.deserialize()?), input);
    let pointer = get_property(connection, MOUSE, "IsAbsolute").await?.body();
    note_pointer(Some(&pointer.deserialize()?), input);
    Ok(())
}

async fn get_property(connection: &Connection, interface: &str, name: &str) -> zbus::Result<Message> {
    connection.call_method(None::<&str>, console_path(0), Some(PROPERTIES), "Get", &(interface, name)).await
}

fn note_lights(value: Option<&Variant<'_>>, input: &InputState) {
    if let Some(mask) = value.and_then(|value| u32::try_from(value).ok()) {
        input.set_lights(mask);
    }
}

fn note_pointer(value: Option<&Variant<'_>>, input: &InputState) {
    if let Some(is_absolute) = value.and_then(|value| bool::try_from(value).ok()) {
        input.set_absolute(is_absolute);
    }
}

/// Tells the guest each size that is wished for, the newest only when it cannot follow.
async fn tell_size(
    connection: Connection,
    index: usize,
    mut wanted: watch::Receiver<Option<Size>>,
) -> zbus::Result<()> {
    let path = console_path(index);
    wanted.mark_changed();
    while wanted.changed().await.is_ok() {
        let Some(size) = *wanted.borrow_and_update() else { continue };
        let (width_mm, height_mm) = (millimetres(size.width), millimetres(size.height));
        let body = (width_mm, height_mm, 0_i32, 0_i32, size.width, size.height);
        match connection.call_method(None::<&str>, path.as_str(), Some(CONSOLE), "SetUIInfo", &body).await {
            Ok(_) => tracing::debug!(monitor = index, %size, "the guest is told a size"),
            // A graphics card that has one size only; nothing to be done.
            Err(zbus::Error::MethodError(_, reason, _)) => {
                tracing::debug!(monitor = index, %size, ?reason, "the guest's graphics takes no size");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The physical length of `pixels` at 96 to the inch.
fn millimetres(pixels: u32) -> u16 {
    u16::try_from(u64::from(pixels) * 254 / 960).unwrap_or(u16::MAX)
}
