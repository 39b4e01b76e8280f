//! SPNEGO (RFC 4178, MS-SPNG), as far as a server that only knows NTLM needs it.
//!
//! Clients that cannot use Kerberos send bare NTLM; others wrap it: the first token lists mechanisms, possibly with
//! an optimistic Kerberos token that is passed over.

use super::der::{ENUMERATED, Malformed, OCTET_STRING, OID, Reader, SEQUENCE, context, tagged};

/// 1.3.6.1.5.5.2
const SPNEGO_OID: [u8; 6] = [0x2B, 6, 1, 5, 5, 2];
/// 1.3.6.1.4.1.311.2.2.10
const NTLM_OID: [u8; 10] = [0x2B, 6, 1, 4, 1, 0x82, 0x37, 2, 2, 10];

const ACCEPT_COMPLETED: u8 = 0;
const ACCEPT_INCOMPLETE: u8 = 1;
const REQUEST_MIC: u8 = 3;

/// What a client's first token asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Init<'a> {
    /// The list of mechanisms, encoded: what both sides sign at the end.
    pub(super) mechanisms: &'a [u8],
    /// The NTLM message, when NTLM is the client's first choice.
    pub(super) ntlm: Option<&'a [u8]>,
}

/// What a client's further tokens carry.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response<'a> {
    pub(super) ntlm: &'a [u8],
    pub(super) signature: Option<&'a [u8]>,
}

/// Whether a token is the start of SPNEGO, as opposed to bare NTLM.
pub(super) fn is_init(token: &[u8]) -> bool {
    token.first() == Some(&super::der::APPLICATION)
}

/// Reads `NegTokenInit`. None: NTLM is not among the mechanisms.
pub(super) fn read_init(token: &[u8]) -> Result<Option<Init<'_>>, Malformed> {
    let mut outer = Reader::new(Reader::new(token).value(super::der::APPLICATION)?);
    if outer.value(OID)? != SPNEGO_OID {
        return Err(Malformed);
    }
    let mut fields = Reader::new(Reader::new(outer.value(context(0))?).value(SEQUENCE)?);
    let mechanisms = fields.value(context(0))?;
    let _request_flags = fields.optional(context(1))?;
    let optimistic = fields.optional_inside(2, OCTET_STRING)?;
    let Some(place) = place_of_ntlm(mechanisms)? else {
        return Ok(None);
    };
    Ok(Some(Init { mechanisms, ntlm: optimistic.filter(|_| place == 0) }))
}

/// Reads `NegTokenResp`.
pub(super) fn read_response(token: &[u8]) -> Result<Response<'_>, Malformed> {
    let mut fields = Reader::new(Reader::new(Reader::new(token).value(context(1))?).value(SEQUENCE)?);
    let _state = fields.optional(context(0))?;
    let _mechanism = fields.optional(context(1))?;
    let ntlm = fields.optional_inside(2, OCTET_STRING)?.ok_or(Malformed)?;
    let signature = fields.optional_inside(3, OCTET_STRING)?;
    Ok(Response { ntlm, signature })
}

/// Answers the first token: NTLM it is, with our message if theirs came with it.
pub(super) fn select_ntlm(message: Option<&[u8]>) -> Vec<u8> {
    let state = if message.is_some() { ACCEPT_INCOMPLETE } else { REQUEST_MIC };
    let mut fields = tagged(context(0), &tagged(ENUMERATED, &[state]));
    fields.extend(tagged(context(1), &tagged(OID, &NTLM_OID)));
    fields.extend(message.map(|message| octets(2, message)).unwrap_or_default());
    respond(&fields)
}

/// Carries one more message.
pub(super) fn go_on(message: &[u8]) -> Vec<u8> {
    let mut fields = tagged(context(0), &tagged(ENUMERATED, &[ACCEPT_INCOMPLETE]));
    fields.extend(octets(2, message));
    respond(&fields)
}

/// Ends the negotiation, with our signature if the client gave its own.
pub(super) fn complete(signature: Option<&[u8]>) -> Vec<u8> {
    let mut fields = tagged(context(0), &tagged(ENUMERATED, &[ACCEPT_COMPLETED]));
    fields.extend(signature.map(|signature| octets(3, signature)).unwrap_or_default());
    respond(&fields)
}

fn octets(number: u8, value: &[u8]) -> Vec<u8> {
    tagged(context(number), &tagged(OCTET_STRING, value))
}

fn respond(fields: &[u8]) -> Vec<u8> {
    tagged(context(1), &tagged(SEQUENCE, fields))
}

fn place_of_ntlm(mechanisms: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut list = Reader::new(Reader::new(mechanisms).value(SEQUENCE)?);
    let mut place = 0;
    while !list.is_empty() {
        if list.value(OID)? == NTLM_OID {
            return Ok(Some(place));
        }
        place += 1;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERBEROS_OID: [u8; 9] = [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x12, 1, 2, 2];

    fn init(mechanisms: &[&[u8]], token: &[u8]) -> Vec<u8> {
        let list: Vec<u8> = mechanisms.iter().flat_map(|oid| tagged(OID, oid)).collect();
        let mut fields = tagged(context(0), &tagged(SEQUENCE, &list));
        fields.extend(octets(2, token));
        let mut outer = tagged(OID, &SPNEGO_OID);
        outer.extend(tagged(context(0), &tagged(SEQUENCE, &fields)));
        tagged(super::super::der::APPLICATION, &outer)
    }

    #[test]
    fn an_ntlm_token_is_taken_only_when_ntlm_comes_first() {
        let first = init(&[&NTLM_OID], b"ntlm");
        assert!(is_init(&first));
        assert_eq!(read_init(&first).unwrap().unwrap().ntlm, Some(&b"ntlm"[..]));
        let second = init(&[&KERBEROS_OID, &NTLM_OID], b"kerberos");
        assert_eq!(read_init(&second).unwrap().unwrap().ntlm, None);
        assert_eq!(read_init(&init(&[&KERBEROS_OID], b"kerberos")), Ok(None));
    }

    #[test]
    fn responses_are_read() {
        let mut fields = octets(2, b"ntlm");
        fields.extend(octets(3, b"signature"));
        let response = respond(&fields);
        let read = read_response(&response).unwrap();
        assert_eq!((read.ntlm, read.signature), (&b"ntlm"[..], Some(&b"signature"[..])));
        assert_eq!(read_response(b"NTLMSSP"), Err(Malformed));
    }
}
