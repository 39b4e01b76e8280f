//! MS-RDPBCGR 2.2.1.1 Client X.224 Connection Request PDU, read early for its routing data.
//!
//! The acceptor reads the same bytes again for the protocol's own purposes; here it matters what a load balancer
//! or a person put into them: `Cookie: msts=vm.NAME`, `tsv://vsb.GUID`, a bare name or GUID.

use ironrdp_pdu::nego::SecurityProtocol;

use super::first_bytes::MAX_REQUEST_BYTES;
use super::target::Target;

/// Bytes of the TPKT header and the fixed part of the X.224 one.
const FIXED_BYTES: usize = 11;
const NEGOTIATION_TYPE: u8 = 1;

/// What a connection request says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRequest {
    /// The machine that the routing token names.
    pub target: Option<Target>,
    /// The user that `Cookie: mstshash=` names. Clients cut it short: a hint, nothing more.
    pub user_hint: Option<String>,
    /// The protocols the client can do; empty is Standard RDP Security.
    pub protocols: SecurityProtocol,
}

/// Why a connection request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionRequestError {
    /// It is no X.224 connection request.
    #[error("not an x.224 connection request")]
    NotARequest,
    /// Its length fields disagree.
    #[error("connection request with contradicting lengths")]
    Length,
    /// Its routing token is not printable ASCII.
    #[error("routing token is not printable ascii")]
    Token,
    /// What follows the routing token is no negotiation request.
    #[error("malformed negotiation request")]
    Negotiation,
}

/// Reads a whole TPKT PDU.
///
/// # Errors
///
/// When it is no connection request.
pub fn read(pdu: &[u8]) -> Result<ConnectionRequest, ConnectionRequestError> {
    let [3, 0, high, low, indicator, code, _, _, _, _, _class, variable @ ..] = pdu else {
        return Err(ConnectionRequestError::NotARequest);
    };
    if code & 0xF0 != 0xE0 {
        return Err(ConnectionRequestError::NotARequest);
    }
    let length = u16::from_be_bytes([*high, *low]);
    // The X.224 length indicator counts what follows it.
    let consistent = usize::from(length) == pdu.len() && usize::from(*indicator) + 5 == pdu.len();
    if !consistent || length > MAX_REQUEST_BYTES || pdu.len() < FIXED_BYTES {
        return Err(ConnectionRequestError::Length);
    }
    read_variable(variable)
}

/// Routing token and cookie, each ended by CR LF, then the negotiation request. All are optional.
fn read_variable(mut rest: &[u8]) -> Result<ConnectionRequest, ConnectionRequestError> {
    let mut request = ConnectionRequest { target: None, user_hint: None, protocols: SecurityProtocol::empty() };
    loop {
        // Padding of a token that was handed on as a wide string may also come after its CR LF.
        while let [b' ' | 0, tail @ ..] = rest {
            rest = tail;
        }
        if rest.is_empty() || rest.first() == Some(&NEGOTIATION_TYPE) {
            break;
        }
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            // Without CR LF: a token alone, from a client too old to negotiate.
            read_line(rest, &mut request)?;
            return Ok(request);
        };
        let (line, tail) = rest.split_at(end);
        read_line(line, &mut request)?;
        rest = tail.get(2..).unwrap_or_default();
    }
    request.protocols = read_negotiation(rest)?;
    Ok(request)
}

fn read_line(line: &[u8], request: &mut ConnectionRequest) -> Result<(), ConnectionRequestError> {
    // Clients that hand the token on as a wide string pad odd lengths with a space or a NUL.
    let end = line.iter().rposition(|byte| !matches!(byte, b' ' | 0)).map_or(0, |last| last + 1);
    let line = line.get(..end).unwrap_or_default();
    if !line.iter().all(|byte| (0x20..0x7F).contains(byte)) {
        return Err(ConnectionRequestError::Token);
    }
    let line = str::from_utf8(line).map_err(|_| ConnectionRequestError::Token)?;
    if let Some(user) = strip_prefix(line, "Cookie: mstshash=") {
        request.user_hint = Some(user.to_owned());
    } else if request.target.is_none() {
        request.target = read_token(line);
    }
    Ok(())
}

/// The machine a routing token names, if it is one of ours.
fn read_token(token: &str) -> Option<Target> {
    if let Some(cookie) = strip_prefix(token, "Cookie: msts=") {
        // Anything else is a load balancer's address and port.
        return strip_prefix(cookie, "vm.").and_then(Target::parse);
    }
    if strip_prefix(token, "Cookie:").is_some() {
        return None;
    }
    let token = strip_prefix(token, "tsv://").or_else(|| strip_prefix(token, "mth://")).unwrap_or(token);
    let name = strip_prefix(token, "vsb.").or_else(|| strip_prefix(token, "vm.")).unwrap_or(token);
    Target::parse(name)
}

/// MS-RDPBCGR 2.2.1.1.1 RDP Negotiation Request, with the correlation block that may follow it.
fn read_negotiation(bytes: &[u8]) -> Result<SecurityProtocol, ConnectionRequestError> {
    match bytes {
        [] => Ok(SecurityProtocol::empty()),
        [NEGOTIATION_TYPE, _flags, 8, 0, a, b, c, d, ..] => {
            Ok(SecurityProtocol::from_bits_retain(u32::from_le_bytes([*a, *b, *c, *d])))
        }
        _ => Err(ConnectionRequestError::Negotiation),
    }
}

fn strip_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| text.get(prefix.len()..)).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(lines: &str, negotiation: &[u8]) -> Vec<u8> {
        let length = u8::try_from(FIXED_BYTES + lines.len() + negotiation.len()).unwrap();
        let mut pdu = vec![3, 0, 0, length, length - 5, 0xE0, 0, 0, 0, 0, 0];
        pdu.extend(lines.bytes());
        pdu.extend(negotiation);
        pdu
    }

    const ALL: [u8; 8] = [1, 0, 8, 0, 0x0b, 0, 0, 0];

    #[test]
    fn the_golden_request_is_read() {
        let golden = request("Cookie: msts=vm.web01\r\n", &ALL);
        assert_eq!(golden[..7], [3, 0, 0, 0x2a, 0x25, 0xe0, 0]);
        let read = read(&golden).unwrap();
        assert_eq!(read.target, Target::parse("WEB01"));
        assert_eq!(read.protocols.bits(), 0x0b);
    }

    #[test]
    fn each_form_of_token_names_its_machine() {
        let guid = "C824F53E-95D2-46C6-9A18-23A5BB403532";
        let table = [
            ("Cookie: msts=vm.web01\r\n".to_owned(), Some("web01"), None),
            ("Cookie: msts=3640205228.15629.0000\r\n".to_owned(), None, None),
            (format!("tsv://vsb.{guid}\r\n"), Some(guid), None),
            ("tsv://web01 \r\n".to_owned(), Some("web01"), None),
            ("tsv://web01\r\n ".to_owned(), Some("web01"), None),
            ("mth://vm.web01\0\r\n".to_owned(), Some("web01"), None),
            ("web01\r\n".to_owned(), Some("web01"), None),
            (format!("{{{guid}}}\r\n"), Some(guid), None),
            ("Cookie: mstshash=Administr\r\n".to_owned(), None, Some("Administr")),
            ("web01\r\nCookie: mstshash=bob\r\n".to_owned(), Some("web01"), Some("bob")),
            ("Cookie: other=1\r\n".to_owned(), None, None),
            (String::new(), None, None),
        ];
        for (lines, target, hint) in table {
            let read = read(&request(&lines, &ALL)).unwrap();
            assert_eq!(read.target, target.and_then(Target::parse), "{lines}");
            assert_eq!(read.user_hint.as_deref(), hint, "{lines}");
            assert_eq!(read.protocols.bits(), 0x0b, "{lines}");
        }
    }

    #[test]
    fn no_negotiation_request_is_standard_security() {
        assert!(read(&request("", &[])).unwrap().protocols.is_empty());
        assert!(read(&request("Cookie: mstshash=bob\r\n", &[])).unwrap().protocols.is_empty());
    }

    #[test]
    fn malformed_requests_are_refused() {
        let mut wrong_indicator = request("", &ALL);
        wrong_indicator[4] += 1;
        assert_eq!(read(&wrong_indicator), Err(ConnectionRequestError::Length));
        let mut data = request("", &ALL);
        data[5] = 0xF0;
        assert_eq!(read(&data), Err(ConnectionRequestError::NotARequest));
        assert_eq!(read(&request("", &ALL[..6])), Err(ConnectionRequestError::Negotiation));
        assert_eq!(read(&request("a\u{7f}b\r\n", &ALL)), Err(ConnectionRequestError::Token));
        assert_eq!(read(&[]), Err(ConnectionRequestError::NotARequest));
    }

    #[test]
    fn a_correlation_block_may_follow() {
        let mut negotiation = vec![1, 8, 8, 0, 3, 0, 0, 0, 6, 0, 36, 0];
        negotiation.extend([0x5A; 32]);
        assert_eq!(read(&request("", &negotiation)).unwrap().protocols.bits(), 3);
    }

    proptest! {
        #[test]
        fn random_variable_parts_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_variable(&bytes);
        }
    }
}
