//! The client's end of NBD (the protocol of network block devices), as far as reading a disk needs it.
//!
//! Fixed newstyle negotiation, then one request at a time. A connection for reading gets simple replies; one that asks which
//! ranges a disk has ("metadata contexts") gets structured ones. Whoever serves is not trusted: lengths are checked.

use std::io;
use std::ops::Range;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// Both ends speak fixed newstyle, and send no zeros for padding.
const CLIENT_FLAGS: u32 = 0b11;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED: u32 = 8;
const OPTION_SET_CONTEXT: u32 = 10;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_CONTEXT: u32 = 4;
const INFO_EXPORT: u16 = 0;
const COMMAND_READ: u16 = 0;
const COMMAND_FLUSH: u16 = 3;
const COMMAND_STATUS: u16 = 7;
const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_STATUS: u16 = 5;
/// Longest answer to an option.
const MAX_OPTION_REPLY: usize = 64 * 1024;
/// Longest chunk of a structured reply: many extents.
const MAX_CHUNK: usize = 32 * 1024 * 1024;
/// Most bytes whose status is asked for at a time.
const MAX_STATUS: u64 = 1 << 30;

/// An export of an NBD server.
#[derive(Debug)]
pub(super) struct Export {
    stream: UnixStream,
    size: u64,
    context: Option<u32>,
    /// Names the request under way.
    cookie: u64,
}

/// A range, and the flags that the context gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) range: Range<u64>,
    pub(super) flags: u32,
}

impl Export {
    /// Opens the export `name`, to be asked for the extents of `context` or, without one, for its bytes.
    pub(super) async fn open(mut stream: UnixStream, name: &str, context: Option<&str>) -> io::Result<Self> {
        if (stream.read_u64().await?, stream.read_u64().await?) != (GREETING, OPTION) {
            return Err(invalid("no NBD server"));
        }
        stream.read_u16().await?;
        stream.write_u32(CLIENT_FLAGS).await?;
        let mut export = Self { stream, size: 0, context: None, cookie: 0 };
        if let Some(context) = context {
            export.option(OPTION_STRUCTURED, &[]).await?;
            export.set_context(name, context).await?;
        }
        export.go(name).await?;
        Ok(export)
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Reads the bytes from `at` on.
    pub(super) async fn read(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| invalid("too much to read at a time"))?;
        self.request(COMMAND_READ, at, length).await?;
        self.simple_reply().await?;
        self.stream.read_exact(bytes).await.map(drop)
    }

    /// Has all that was written reach the disk.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.request(COMMAND_FLUSH, 0, 0).await?;
        self.simple_reply().await
    }

    /// The extents of the whole disk in the context that it was opened with.
    pub(super) async fn extents(&mut self) -> io::Result<Vec<Extent>> {
        let (mut extents, mut at) = (Vec::new(), 0);
        while at < self.size {
            let length = (self.size - at).min(MAX_STATUS);
            // As many as there are of the range, not only the first.
            self.request(COMMAND_STATUS, at, u32::try_from(length).unwrap_or(u32::MAX)).await?;
            let before = at;
            for (length, flags) in self.status_reply().await? {
                let end = at.saturating_add(length.into()).min(self.size);
                extents.push(Extent { range: at..end, flags });
                at = end;
            }
            if at == before {
                return Err(invalid("a status of nothing"));
            }
        }
        Ok(extents)
    }

    async fn request(&mut self, command: u16, at: u64, length: u32) -> io::Result<()> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28);
        request.extend(REQUEST.to_be_bytes());
        request.extend(0_u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(length.to_be_bytes());
        self.stream.write_all(&request).await
    }

    async fn simple_reply(&mut self) -> io::Result<()> {
        let (magic, error, cookie) =
            (self.stream.read_u32().await?, self.stream.read_u32().await?, self.stream.read_u64().await?);
        match (magic, error) {
            (SIMPLE_REPLY, 0) if cookie == self.cookie => Ok(()),
            // The protocol's numbers are those of Linux.
            (SIMPLE_REPLY, error) if error != 0 => Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(0))),
            _ => Err(invalid("a reply that is none")),
        }
    }

    /// The lengths and flags that a status is made of.
    async fn status_reply(&mut self) -> io::Result<Vec<(u32, u32)>> {
        let mut extents = Vec::new();
        loop {
            let magic = self.stream.read_u32().await?;
            let (flags, kind) = (self.stream.read_u16().await?, self.stream.read_u16().await?);
            let cookie = self.stream.read_u64().await?;
            let length = self.stream.read_u32().await?;
            if magic != STRUCTURED_REPLY || cookie != self.cookie {
                return Err(invalid("a reply that is none"));
            }
            let bytes = self.bytes(length, MAX_CHUNK).await?;
            match kind {
                CHUNK_NONE => {}
                CHUNK_STATUS => {
                    let (context, pairs) = bytes.split_at_checked(4).ok_or_else(|| invalid("a status of nothing"))?;
                    if Some(number(context)) == self.context {
                        let pairs = pairs.chunks_exact(8).map(|pair| pair.split_at(4));
                        extents.extend(pairs.map(|(length, flags)| (number(length), number(flags))));
                    }
                }
                _ => return Err(invalid("the status cannot be told")),
            }
            if flags & CHUNK_DONE != 0 {
                return Ok(extents);
            }
        }
    }

    async fn go(&mut self, name: &str) -> io::Result<()> {
        let mut data = named(name);
        data.extend(0_u16.to_be_bytes());
        for (kind, reply) in self.option(OPTION_GO, &data).await? {
            if let (REPLY_INFO, [a, b, rest @ ..]) = (kind, reply.as_slice())
                && u16::from_be_bytes([*a, *b]) == INFO_EXPORT
                && let Some(size) = rest.first_chunk()
            {
                self.size = u64::from_be_bytes(*size);
            }
        }
        Ok(())
    }

    async fn set_context(&mut self, name: &str, context: &str) -> io::Result<()> {
        let mut data = named(name);
        data.extend(1_u32.to_be_bytes());
        data.extend(named(context));
        let replies = self.option(OPTION_SET_CONTEXT, &data).await?;
        let granted = replies.iter().find(|(kind, _)| *kind == REPLY_CONTEXT);
        let id = granted.and_then(|(_, reply)| reply.first_chunk::<4>());
        self.context = Some(u32::from_be_bytes(*id.ok_or_else(|| invalid("the server does not know the context"))?));
        Ok(())
    }

    /// Asks for an option, and returns what is said before the acknowledgement.
    async fn option(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<(u32, Vec<u8>)>> {
        let mut request = Vec::new();
        request.extend(OPTION.to_be_bytes());
        request.extend(option.to_be_bytes());
        request.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request).await?;
        let mut replies = Vec::new();
        loop {
            let (magic, echo) = (self.stream.read_u64().await?, self.stream.read_u32().await?);
            let (kind, length) = (self.stream.read_u32().await?, self.stream.read_u32().await?);
            if (magic, echo) != (OPTION_REPLY, option) {
                return Err(invalid("a reply that is none"));
            }
            let bytes = self.bytes(length, MAX_OPTION_REPLY).await?;
            match kind {
                REPLY_ACK => return Ok(replies),
                // The highest bit says that it is an error, and the data why.
                kind if kind >> 31 != 0 => return Err(invalid(&String::from_utf8_lossy(&bytes))),
                kind if replies.len() < 16 => replies.push((kind, bytes)),
                _ => return Err(invalid("a reply without end")),
            }
        }
    }

    async fn bytes(&mut self, length: u32, most: usize) -> io::Result<Vec<u8>> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > most {
            return Err(invalid("a reply that is too long"));
        }
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).await?;
        Ok(bytes)
    }
}

/// A text with its length before it.
fn named(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("NBD: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers what an option or a request asks, from a script: bytes to await, bytes to send.
    async fn served(script: Vec<(usize, Vec<u8>)>, context: Option<&str>) -> io::Result<Export> {
        let (ours, mut theirs) = UnixStream::pair().expect("socket pair");
        tokio::spawn(async move {
            for (await_bytes, answer) in script {
                let mut asked = vec![0; await_bytes];
                if theirs.read_exact(&mut asked).await.is_err() || theirs.write_all(&answer).await.is_err() {
                    return;
                }
            }
            // Whoever waits for more waits for the end.
        });
        Export::open(ours, "x", context).await
    }

    fn greeting() -> (usize, Vec<u8>) {
        let mut bytes = GREETING.to_be_bytes().to_vec();
        bytes.extend(OPTION.to_be_bytes());
        bytes.extend(3_u16.to_be_bytes());
        (0, bytes)
    }

    fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_REPLY.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(named(std::str::from_utf8(data).unwrap_or_default()));
        if std::str::from_utf8(data).is_err() {
            bytes.truncate(bytes.len() - 4);
            bytes.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
            bytes.extend(data);
        }
        bytes
    }

    fn go(size: u64) -> Vec<u8> {
        let mut info = INFO_EXPORT.to_be_bytes().to_vec();
        info.extend(size.to_be_bytes());
        info.extend([0xff, 0xff]);
        [reply(OPTION_GO, REPLY_INFO, &info), reply(OPTION_GO, REPLY_ACK, &[])].concat()
    }

    const ASKED_GO: usize = 4 + 16 + 4 + 1 + 2;

    fn simple(cookie: u64, error: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = SIMPLE_REPLY.to_be_bytes().to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[tokio::test]
    async fn bytes_are_read_and_errors_are_the_hosts() {
        let script = vec![
            greeting(),
            (ASKED_GO, go(8)),
            (28, simple(1, 0, b"eight by")),
            (28, simple(2, 5, b"")),
            (28, simple(9, 0, b"")),
        ];
        let mut export = served(script, None).await.expect("opens");
        assert_eq!(export.size(), 8);
        let mut bytes = [0; 8];
        export.read(0, &mut bytes).await.expect("read");
        assert_eq!(&bytes, b"eight by");
        assert_eq!(export.read(0, &mut bytes).await.unwrap_err().raw_os_error(), Some(5));
        assert_eq!(export.flush().await.unwrap_err().kind(), io::ErrorKind::InvalidData, "another's reply");
        assert!(export.flush().await.is_err(), "it is gone");
    }

    #[tokio::test]
    async fn extents_are_those_of_the_context() {
        let context = [9_u32.to_be_bytes().as_slice(), b"c"].concat();
        let mut status = STRUCTURED_REPLY.to_be_bytes().to_vec();
        status.extend([CHUNK_DONE, CHUNK_STATUS].iter().flat_map(|number| number.to_be_bytes()));
        status.extend(1_u64.to_be_bytes());
        status.extend([20_u32, 9, 4, 0, 100, 1].iter().flat_map(|number| number.to_be_bytes()));
        let set = [reply(OPTION_SET_CONTEXT, REPLY_CONTEXT, &context), reply(OPTION_SET_CONTEXT, REPLY_ACK, &[])];
        let script = vec![
            greeting(),
            (4 + 16, reply(OPTION_STRUCTURED, REPLY_ACK, &[])),
            (16 + 4 + 1 + 4 + 4 + 1, set.concat()),
            (ASKED_GO - 4, go(8)),
            (28, status),
        ];
        let mut export = served(script, Some("c")).await.expect("opens");
        let extents = export.extents().await.expect("told");
        assert_eq!(extents, [Extent { range: 0..4, flags: 0 }, Extent { range: 4..8, flags: 1 }]);
    }

    #[tokio::test]
    async fn what_is_no_server_is_refused() {
        let error = served(vec![(0, vec![7; 18])], None).await.unwrap_err();
        assert_eq!(error.to_string(), "NBD: no NBD server");
        let missing = reply(OPTION_GO, 0x8000_0006, b"export 'x' not present");
        let error = served(vec![greeting(), (ASKED_GO, missing)], None).await.unwrap_err();
        assert_eq!(error.to_string(), "NBD: export 'x' not present");
        let mut long = reply(OPTION_GO, REPLY_INFO, &[]);
        long.truncate(long.len() - 4);
        long.extend(u32::MAX.to_be_bytes());
        let error = served(vec![greeting(), (ASKED_GO, long)], None).await.unwrap_err();
        assert_eq!(error.to_string(), "NBD: a reply that is too long");
    }
}
