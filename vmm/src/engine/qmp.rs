//! QEMU's monitor protocol: commands with deadlines, answers found by their number, and events.
//!
//! Our own rather than the `qapi` crate: a file descriptor must travel with the bytes of the very command
//! that names it, and there the writer of the stream is out of reach.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, mpsc, oneshot};
use tokio::task::JoinHandle;

/// Longest line QEMU may send.
const MAX_LINE: usize = 4 * 1024 * 1024;
/// Events kept for a driver that is busy; what is more is made up for by asking for the state.
const MAX_EVENTS: usize = 64;

/// A command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    /// QEMU says no.
    #[error("QEMU refused {command}: {reason}")]
    Refused { command: String, reason: String },
    /// QEMU says nothing.
    #[error("QEMU did not answer {command} within {} s", deadline.as_secs_f32())]
    TimedOut { command: String, deadline: Duration },
    /// The connection ended.
    #[error("QEMU closed its monitor")]
    Closed,
    /// What came is not QMP.
    #[error("QEMU's monitor: {0}")]
    Io(#[from] io::Error),
}

/// Something happened in QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// QMP's name for it.
    pub(crate) name: String,
    /// What belongs to it.
    pub(crate) data: Value,
}

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    shared: Arc<Shared>,
    /// One command's bytes at a time, and the number of the next.
    writer: AsyncMutex<u64>,
    deadline: Duration,
    reader: JoinHandle<()>,
    /// Held by whoever has QEMU's NBD server, of which there is one.
    nbd_server: AsyncMutex<()>,
}

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    waiting: Mutex<Waiting>,
    missed_events: AtomicBool,
}

/// Who waits for which answer; none once the connection has ended.
type Waiting = Option<HashMap<u64, oneshot::Sender<Answer>>>;
type Answer = Result<Value, String>;

impl Qmp {
    /// Greets QEMU on `stream`. Each command has `deadline` from then on.
    pub(crate) async fn open(
        stream: UnixStream,
        deadline: Duration,
    ) -> Result<(Self, mpsc::Receiver<Event>), QmpError> {
        let (events, receiver) = mpsc::channel(MAX_EVENTS);
        let shared = Arc::new(Shared {
            stream,
            waiting: Mutex::new(Some(HashMap::new())),
            missed_events: AtomicBool::new(false),
        });
        let reader = tokio::spawn(read(shared.clone(), events));
        let qmp = Self { shared, writer: AsyncMutex::new(0), deadline, reader, nbd_server: AsyncMutex::new(()) };
        // QEMU takes commands before its greeting is read, so there is no need to wait for that.
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok((qmp, receiver))
    }

    /// Carries out one command and returns what it returns.
    pub(crate) async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.transact(command, arguments, None, self.deadline).await
    }

    /// Carries out one command that QEMU may take longer to answer than others.
    pub(crate) async fn execute_within(
        &self,
        deadline: Duration,
        command: &str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        self.transact(command, arguments, None, deadline).await
    }

    /// Carries out one command that takes a file descriptor with it.
    pub(crate) async fn execute_with_fd(
        &self,
        command: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.transact(command, arguments, Some(fd), self.deadline).await
    }

    /// Waits until nobody else has QEMU's NBD server.
    pub(crate) async fn nbd_server(&self) -> AsyncMutexGuard<'_, ()> {
        self.nbd_server.lock().await
    }

    /// Whether events were dropped since this was asked last.
    pub(crate) fn take_missed_events(&self) -> bool {
        self.shared.missed_events.swap(false, Ordering::Relaxed)
    }

    async fn transact(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let exchange = async {
            let (sender, answer) = oneshot::channel();
            self.send(command, arguments, fd, sender).await?;
            answer.await.map_err(|_| QmpError::Closed)
        };
        let answer = tokio::time::timeout(deadline, exchange)
            .await
            .map_err(|_| QmpError::TimedOut { command: command.into(), deadline })??;
        answer.map_err(|reason| QmpError::Refused { command: command.into(), reason })
    }

    async fn send(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        sender: oneshot::Sender<Answer>,
    ) -> Result<(), QmpError> {
        let mut next = self.writer.lock().await;
        let id = *next;
        *next += 1;
        if let Some(waiting) = self.shared.waiting().as_mut() {
            // Those whose deadline passed.
            waiting.retain(|_, sender| !sender.is_closed());
            waiting.insert(id, sender);
        } else {
            return Err(QmpError::Closed);
        }
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let mut broken = CloseUnlessDone { shared: &self.shared, done: false };
        self.shared.write(line.as_bytes(), fd).await?;
        broken.done = true;
        Ok(())
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A command that was written in part (its deadline passed) makes sense to nobody: the connection ends there.
struct CloseUnlessDone<'a> {
    shared: &'a Shared,
    done: bool,
}

impl Drop for CloseUnlessDone<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.shared.close();
        }
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        // Whoever waits learns it from the sender that goes away.
        *self.waiting() = None;
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
    }

    async fn write(&self, mut bytes: &[u8], mut fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.writable().await?;
            let sent = self.stream.try_io(Interest::WRITABLE, || send(&self.stream, bytes, fd));
            match sent {
                Ok(count) => {
                    bytes = bytes.get(count..).unwrap_or_default();
                    fd = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes in one line; `false` when it is not QMP.
    fn take_line(&self, line: &[u8], events: &mpsc::Sender<Event>) -> bool {
        let Ok(message) = serde_json::from_slice::<Incoming>(line) else { return false };
        if let Some(name) = message.event {
            if events.try_send(Event { name, data: message.data }).is_err() {
                self.missed_events.store(true, Ordering::Relaxed);
            }
            return true;
        }
        let answer = match message.error {
            Some(error) => Err(error.desc),
            None => Ok(message.returned),
        };
        // The greeting has no number, and nobody waits any more for an answer that came too late.
        if let Some(id) = message.id
            && let Some(sender) = self.waiting().as_mut().and_then(|waiting| waiting.remove(&id))
        {
            let _ = sender.send(answer);
        }
        true
    }
}

fn send(stream: &UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a file descriptor"));
    }
    let bytes = [io::IoSlice::new(bytes)];
    Ok(sendmsg(stream.as_fd(), &bytes, &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Reads until the connection ends or breaks.
async fn read(shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    if let Err(error) = read_lines(&shared, &events).await {
        tracing::debug!(%error, "QMP connection broke");
    }
    shared.close();
}

async fn read_lines(shared: &Shared, events: &mpsc::Sender<Event>) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        shared.stream.readable().await?;
        match shared.stream.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        let mut rest = buffer.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end + 1);
            if !shared.take_line(line, events) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not a QMP message"));
            }
            rest = after;
        }
        let used = buffer.len() - rest.len();
        buffer.drain(..used);
        if buffer.len() > MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without end"));
        }
    }
}

#[derive(Deserialize)]
struct Incoming {
    #[serde(default, rename = "return")]
    returned: Value,
    error: Option<IncomingError>,
    id: Option<u64>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct IncomingError {
    desc: String,
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    /// A QEMU that returns for each command what `answer` makes of it and its arguments.
    pub(crate) fn obliging_qemu(mut answer: impl FnMut(&str, &Value) -> Value + Send + 'static) -> UnixStream {
        fake_qemu(move |command, id, arguments| {
            format!("{}\n", json!({ "return": answer(command, arguments), "id": id }))
        })
    }

    /// The same, which may refuse.
    pub(crate) fn refusing_qemu(
        mut answer: impl FnMut(&str, &Value) -> Result<Value, &'static str> + Send + 'static,
    ) -> UnixStream {
        fake_qemu(move |command, id, arguments| {
            let answer = match answer(command, arguments) {
                Ok(answer) => json!({ "return": answer, "id": id }),
                Err(reason) => json!({ "error": { "class": "GenericError", "desc": reason }, "id": id }),
            };
            format!("{answer}\n")
        })
    }

    /// A QEMU that answers each line with what `answer` makes of its command, number and arguments.
    fn fake_qemu(mut answer: impl FnMut(&str, u64, &Value) -> String + Send + 'static) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut lines = BufReader::new(reader).lines();
            let _ = writer.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await;
            while let Ok(Some(line)) = lines.next_line().await {
                let message: Value = serde_json::from_str(&line).expect("JSON");
                let reply = match message["execute"].as_str().expect("a command") {
                    "qmp_capabilities" => format!("{{\"return\": {{}}, \"id\": {}}}\n", message["id"]),
                    command => answer(command, message["id"].as_u64().expect("a number"), &message["arguments"]),
                };
                if writer.write_all(reply.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        ours
    }

    #[tokio::test]
    async fn answers_find_their_commands_in_any_order_and_late_ones_nobody() {
        let fake = fake_qemu(|command, id, _| match command {
            "first" => String::new(),
            _ => format!(
                "{{\"return\": 2, \"id\": {id}}}\n{{\"return\": 9, \"id\": 77}}\n{{\"return\": 1, \"id\": {}}}\n",
                id - 1
            ),
        });
        let (qmp, _events) = Qmp::open(fake, DEADLINE).await.expect("open");
        let first = qmp.execute("first", json!({}));
        let second = qmp.execute("second", json!({}));
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first.expect("answered"), second.expect("answered")), (json!(1), json!(2)));
    }

    #[tokio::test]
    async fn a_refusal_carries_qemus_words() {
        let fake =
            fake_qemu(|_, id, _| format!("{{\"error\": {{\"class\": \"X\", \"desc\": \"no such\"}}, \"id\": {id}}}\n"));
        let (qmp, _events) = Qmp::open(fake, DEADLINE).await.expect("open");
        let error = qmp.execute("quit", json!({})).await.expect_err("refused");
        assert_eq!(error.to_string(), "QEMU refused quit: no such");
    }

    #[tokio::test]
    async fn silence_is_a_timeout_and_the_connection_lives_on() {
        let fake = fake_qemu(|command, id, _| match command {
            "stop" => String::new(),
            _ => format!("{{\"return\": {{}}, \"id\": {id}}}\n"),
        });
        let (mut qmp, _events) = Qmp::open(fake, DEADLINE).await.expect("open");
        qmp.deadline = Duration::from_millis(50);
        let error = qmp.execute("stop", json!({})).await.expect_err("silent");
        assert_eq!(error.to_string(), "QEMU did not answer stop within 0.05 s");
        qmp.deadline = DEADLINE;
        qmp.execute("cont", json!({})).await.expect("answered");
    }

    #[tokio::test]
    async fn what_is_not_qmp_ends_the_connection() {
        let (qmp, _events) = Qmp::open(fake_qemu(|_, _, _| "hello\n".into()), DEADLINE).await.expect("open");
        assert!(matches!(qmp.execute("stop", json!({})).await, Err(QmpError::Closed)));
        assert!(matches!(qmp.execute("cont", json!({})).await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn a_flood_of_events_is_cut_and_noticed() {
        let fake = fake_qemu(|_, id, _| {
            let flood = "{\"event\": \"RESET\", \"data\": {\"guest\": true}}\n".repeat(MAX_EVENTS + 5);
            format!("{flood}{{\"return\": {{}}, \"id\": {id}}}\n")
        });
        let (qmp, mut events) = Qmp::open(fake, DEADLINE).await.expect("open");
        qmp.execute("cont", json!({})).await.expect("answered");
        assert!(qmp.take_missed_events() && !qmp.take_missed_events());
        let mut count = 0;
        while let Ok(event) = events.try_recv() {
            assert_eq!((event.name.as_str(), &event.data["guest"]), ("RESET", &json!(true)));
            count += 1;
        }
        assert_eq!(count, MAX_EVENTS);
    }
}
