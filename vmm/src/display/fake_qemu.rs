//! A fake QEMU for tests: the other end of the display's D-Bus connections, in memory.
//!
//! It does what QEMU does in the order QEMU does it: answers `RegisterListener` before it authenticates the new
//! connection as its server, reads the listener's properties, and shows pictures the way its version can.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::mpsc;
use zbus::connection::Builder;
use zbus::message::{Flags, Type};
use zbus::{Connection, Fd, Guid, Message, MessageStream, Variant};

use super::dbus::{LISTENER, PROPERTIES, UNIX_MAP, next_message};

const PATH: &str = "/org/qemu/Display1/Listener";
pub(super) const X8R8G8B8: u32 = 0x2002_0888;

/// What the fake was asked, by interface's last part and method, with its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) numbers: Vec<i64>,
}

pub(super) struct FakeQemu {
    pub(super) asked: mpsc::UnboundedReceiver<Asked>,
    listeners: mpsc::UnboundedReceiver<MessageStream>,
    pub(super) main: Connection,
}

/// One monitor of the fake: calls our listener.
pub(super) struct FakeConsole {
    connection: Connection,
    _stream: MessageStream,
    /// What the listener says it can do beyond the basics.
    pub(super) interfaces: Vec<String>,
}

impl FakeQemu {
    /// Serves the display on `socket`; `is_absolute` is the pointer's kind at first.
    pub(super) async fn serve(socket: UnixStream, is_absolute: bool) -> Self {
        let stream = server(socket).await;
        let (ask, asked) = mpsc::unbounded_channel();
        let (listen, listeners) = mpsc::unbounded_channel();
        let main = Connection::from(&stream);
        tokio::spawn(answer(stream, is_absolute, ask, listen));
        Self { asked, listeners, main }
    }

    /// The next monitor that a listener was registered for.
    pub(super) async fn console(&mut self) -> FakeConsole {
        let stream = self.listeners.recv().await.expect("a listener is registered");
        let connection = Connection::from(&stream);
        let reply = connection.call_method(None::<&str>, PATH, Some(PROPERTIES), "GetAll", &LISTENER).await;
        let body = reply.expect("QEMU reads the properties").body();
        let properties: HashMap<String, Variant<'_>> = body.deserialize().expect("properties");
        let interfaces = properties["Interfaces"].try_clone().expect("cloned");
        let interfaces = Vec::<String>::try_from(interfaces).expect("an array of strings");
        FakeConsole { connection, _stream: stream, interfaces }
    }

    /// The next thing that was asked, but for questions.
    pub(super) async fn next(&mut self) -> (String, Vec<i64>) {
        let asked = self.asked.recv().await.expect("something is asked");
        (asked.method, asked.numbers)
    }

    /// A property of the first console changes.
    pub(super) async fn change(&self, interface: &str, name: &str, value: Variant<'_>) {
        let signal = Message::signal("/org/qemu/Display1/Console_0", PROPERTIES, "PropertiesChanged")
            .build(&(interface, HashMap::from([(name, value)]), Vec::<&str>::new()))
            .expect("valid");
        self.main.send(&signal).await.expect("sent");
    }
}

impl FakeConsole {
    /// Calls as QEMU does when it does not wait.
    pub(super) async fn tell<B: serde::Serialize + zbus::DynamicType>(&self, interface: &str, method: &str, body: &B) {
        let message = Message::method_call(PATH, method)
            .interface(interface)
            .with_flags(Flags::NO_REPLY_EXPECTED)
            .build(body)
            .expect("valid");
        self.connection.send(&message).await.expect("sent");
    }

    /// Calls as QEMU does when it waits.
    pub(super) async fn call<B: serde::Serialize + zbus::DynamicType>(
        &self,
        interface: &str,
        method: &str,
        body: &B,
    ) -> zbus::Result<Message> {
        self.connection.call_method(None::<&str>, PATH, Some(interface), method, body).await
    }

    /// Shows a mapped picture of `width` × `height` pixels, all of them `pixel`.
    pub(super) async fn show_mapped(&self, width: u32, height: u32, pixel: [u8; 4]) -> zbus::Result<OwnedFd> {
        let memfd = memfd_create("fake", MemfdFlags::CLOEXEC).expect("memfd");
        let bytes = pixel.repeat(width as usize * height as usize);
        rustix::io::write(&memfd, &bytes).expect("written");
        let body = (Fd::from(memfd.as_fd()), 0_u32, width, height, width * 4, X8R8G8B8);
        self.call(UNIX_MAP, "ScanoutMap", &body).await?;
        Ok(memfd)
    }
}

async fn server(socket: UnixStream) -> MessageStream {
    let builder = Builder::unix_stream(socket).server(Guid::generate()).p2p();
    builder.build_message_stream().await.expect("the client authenticates")
}

async fn answer(
    mut stream: MessageStream,
    is_absolute: bool,
    ask: mpsc::UnboundedSender<Asked>,
    listen: mpsc::UnboundedSender<MessageStream>,
) {
    let connection = Connection::from(&stream);
    while let Ok(Some(message)) = next_message(&mut stream).await {
        if message.message_type() != Type::MethodCall {
            continue;
        }
        let header = message.header();
        let body = message.body();
        let member = header.member().expect("a method").to_string();
        let interface = header.interface().expect("an interface").to_string();
        let reply = Message::method_return(&header);
        let reply = match member.as_str() {
            "RegisterListener" => {
                let fd: zbus::OwnedFd = body.deserialize().expect("a descriptor");
                connection.send(&reply.build(&()).expect("valid")).await.expect("sent");
                let socket = UnixStream::from(OwnedFd::from(fd));
                let _ = listen.send(server(socket).await);
                continue;
            }
            "Get" => match body.deserialize::<(&str, &str)>().expect("two names") {
                (_, "IsAbsolute") => reply.build(&Variant::from(is_absolute)),
                _ => reply.build(&Variant::from(0_u32)),
            },
            _ => {
                let last = interface.rsplit('.').next().unwrap_or_default();
                let _ = ask.send(Asked { method: format!("{last}.{member}"), numbers: numbers(&body) });
                reply.build(&())
            }
        };
        if !message.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED) {
            connection.send(&reply.expect("valid")).await.expect("sent");
        }
    }
}

/// The numbers of a body, whatever their types.
fn numbers(body: &zbus::message::Body) -> Vec<i64> {
    match body.signature().to_string().as_str() {
        "u" => vec![body.deserialize::<u32>().expect("u").into()],
        "uu" | "(uu)" => {
            let (a, b): (u32, u32) = body.deserialize().expect("uu");
            vec![a.into(), b.into()]
        }
        "ii" | "(ii)" => {
            let (a, b): (i32, i32) = body.deserialize().expect("ii");
            vec![a.into(), b.into()]
        }
        "qqiiuu" | "(qqiiuu)" => {
            let (a, b, c, d, e, f): (u16, u16, i32, i32, u32, u32) = body.deserialize().expect("qqiiuu");
            vec![a.into(), b.into(), c.into(), d.into(), e.into(), f.into()]
        }
        other => panic!("a call with {other}"),
    }
}
