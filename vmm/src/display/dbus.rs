//! The names of QEMU's display interfaces, and the two lines of D-Bus that everything here needs.

use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::Pin;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use zbus::export::futures_core::Stream as _;
use zbus::message::{Flags, Message};
use zbus::{DynamicType, MessageStream};

pub(super) const CONSOLE: &str = "org.qemu.Display1.Console";
pub(super) const KEYBOARD: &str = "org.qemu.Display1.Keyboard";
pub(super) const MOUSE: &str = "org.qemu.Display1.Mouse";
pub(super) const LISTENER: &str = "org.qemu.Display1.Listener";
pub(super) const UNIX_MAP: &str = "org.qemu.Display1.Listener.Unix.Map";
pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The object of one monitor.
pub(super) fn console_path(index: usize) -> String {
    format!("/org/qemu/Display1/Console_{index}")
}

/// Two ends of a connection; neither is left open in a program we start.
pub(super) fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    Ok((ours.into(), theirs.into()))
}

/// The next message; `None` when the connection has ended. Cancel safe.
pub(super) async fn next_message(stream: &mut MessageStream) -> zbus::Result<Option<Message>> {
    poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await.transpose()
}

/// A call that QEMU is not to answer.
pub(super) fn call_without_answer<B>(path: &str, interface: &str, member: &str, body: &B) -> zbus::Result<Message>
where
    B: serde::Serialize + DynamicType,
{
    Message::method_call(path, member).interface(interface).with_flags(Flags::NO_REPLY_EXPECTED).build(body)
}
