//! What a client of ill will sends: bytes, without regard to what the other side expects.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The time between two bytes of a client that is slow on purpose.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Security protocols a client can ask for in its connection request.
pub mod protocol {
    /// Standard RDP security: none of the others.
    pub const RDP: u32 = 0;
    /// TLS.
    pub const SSL: u32 = 1;
    /// CredSSP in TLS.
    pub const HYBRID: u32 = 2;
}

/// What became of a connection that the test did not close.
#[derive(Debug, Clone)]
pub struct Closed {
    /// How long it lasted.
    pub after: Duration,
    /// What the gateway sent before.
    pub answer: Vec<u8>,
}

/// An X.224 connection request for `protocols` with a cookie for `user`.
#[must_use]
pub fn connection_request(protocols: u32, user: &str) -> Vec<u8> {
    let mut body = format!("Cookie: mstshash={user}\r\n").into_bytes();
    body.extend([1, 0, 8, 0]);
    body.extend(protocols.to_le_bytes());
    let indicator = u8::try_from(6 + body.len()).unwrap_or(u8::MAX);
    let mut request = tpkt_header(4 + 1 + usize::from(indicator));
    request.extend([indicator, 0xe0, 0, 0, 0, 0, 0]);
    request.extend(body);
    request
}

/// The four bytes before a PDU; they claim a `length` that includes themselves.
#[must_use]
pub fn tpkt_header(length: usize) -> Vec<u8> {
    let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    vec![3, 0, high, low]
}

/// Bytes that look random and are the same for the same `seed`.
#[must_use]
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// Connects.
///
/// # Errors
///
/// When nobody listens.
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PAUSE))?;
    Ok(stream)
}

/// Connects, sends `bytes` and waits until the gateway closes.
///
/// # Errors
///
/// When it does not within `limit`.
pub fn send_and_wait(address: SocketAddr, bytes: &[u8], limit: Duration) -> Result<Closed> {
    let mut stream = connect(address)?;
    let start = Instant::now();
    // A gateway that has seen enough closes while the rest is sent.
    let _ = stream.write_all(bytes);
    wait_for_close(&mut stream, start, limit)
}

/// Sends `bytes` and waits until the gateway closes. The read timeout of `stream` has to be [`PAUSE`], as
/// [`connect`] sets it.
///
/// # Errors
///
/// When it does not within `limit`.
pub fn send_in(mut stream: impl Read + Write, bytes: &[u8], limit: Duration) -> Result<Closed> {
    // A gateway that has seen enough closes while the rest is sent.
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    drip(stream, &[], limit)
}

/// Sends `bytes` one by one, a second apart, and then nothing, until the gateway closes. The read timeout of
/// `stream` has to be [`PAUSE`], as [`connect`] sets it.
///
/// # Errors
///
/// When it does not within `limit`.
pub fn drip(mut stream: impl Read + Write, bytes: &[u8], limit: Duration) -> Result<Closed> {
    let start = Instant::now();
    let mut answer = Vec::new();
    let mut rest = bytes.iter();
    while start.elapsed() < limit {
        let sent = rest.next().map_or(Ok(()), |byte| stream.write_all(&[*byte]).and_then(|()| stream.flush()));
        // The pause between two bytes is spent listening.
        if sent.is_err() || read_some(&mut stream, &mut answer)? {
            return Ok(Closed { after: start.elapsed(), answer });
        }
    }
    bail!("still open after {} s", limit.as_secs())
}

/// Reads until the gateway closes; the time counts from `start`.
///
/// # Errors
///
/// When it does not within `limit`.
pub fn wait_for_close(stream: &mut TcpStream, start: Instant, limit: Duration) -> Result<Closed> {
    let mut answer = Vec::new();
    loop {
        let left = limit.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
        let left =
            left.with_context(|| format!("still open after {} s, having sent {answer:02x?}", limit.as_secs()))?;
        stream.set_read_timeout(Some(left))?;
        if read_some(stream, &mut answer)? {
            return Ok(Closed { after: start.elapsed(), answer });
        }
        ensure!(answer.len() < 1 << 20, "the gateway talks without end");
    }
}

/// Reads what comes until the read times out; whether the other side has closed.
fn read_some(stream: &mut impl Read, into: &mut Vec<u8>) -> Result<bool> {
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(0) => Ok(true),
        Ok(count) => {
            into.extend(&bytes[..count]);
            Ok(false)
        }
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(false),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => Ok(true),
            _ => Err(error.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_request_has_the_lengths_of_its_parts() {
        let expected =
            b"\x03\x00\x00\x28\x23\xe0\x00\x00\x00\x00\x00Cookie: mstshash=ab\r\n\x01\x00\x08\x00\x03\x00\x00\x00";
        let request = connection_request(protocol::SSL | protocol::HYBRID, "ab");
        assert_eq!(request, expected);
    }

    #[test]
    fn noise_is_repeatable() {
        assert_eq!(noise(7, 100), noise(7, 100));
        assert_ne!(noise(7, 100), noise(8, 100));
    }
}
