//! MS-CSSP 2.2.1 TSRequest: the envelope of every CredSSP message.

use super::der::{self, INTEGER, Malformed, OCTET_STRING, Reader, SEQUENCE, context, integer, tagged};

/// Longest message that is read. A Kerberos ticket with a large PAC has some 12 KiB.
pub const MAX_MESSAGE_BYTES: usize = 32 * 1024;

/// One CredSSP message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TsRequest {
    pub(super) version: u32,
    /// An NTLM or SPNEGO message.
    pub(super) token: Option<Vec<u8>>,
    /// The client's credentials, sealed.
    pub(super) credentials: Option<Vec<u8>>,
    /// The proof that both sides see the same TLS key, sealed.
    pub(super) public_key: Option<Vec<u8>>,
    /// An NTSTATUS.
    pub(super) error: Option<u32>,
    pub(super) nonce: Option<[u8; 32]>,
}

impl TsRequest {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut outer = Reader::new(bytes);
        let mut fields = Reader::new(outer.value(SEQUENCE)?);
        let version = der::unsigned(fields.optional_inside(0, INTEGER)?.ok_or(Malformed)?)?;
        let token = match fields.optional_inside(1, SEQUENCE)? {
            Some(list) => Some(first_token(list)?.to_vec()),
            None => None,
        };
        let credentials = fields.optional_inside(2, OCTET_STRING)?.map(<[u8]>::to_vec);
        let public_key = fields.optional_inside(3, OCTET_STRING)?.map(<[u8]>::to_vec);
        let error = fields.optional_inside(4, INTEGER)?.map(der::unsigned).transpose()?;
        let nonce = fields.optional_inside(5, OCTET_STRING)?;
        let nonce = nonce.map(TryInto::try_into).transpose().map_err(|_| Malformed)?;
        Ok(Self { version, token, credentials, public_key, error, nonce })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let octets = |number: u8, value: &[u8]| tagged(context(number), &tagged(OCTET_STRING, value));
        let mut fields = tagged(context(0), &integer(self.version));
        if let Some(token) = &self.token {
            let item = tagged(SEQUENCE, &octets(0, token));
            fields.extend(tagged(context(1), &tagged(SEQUENCE, &item)));
        }
        if let Some(credentials) = &self.credentials {
            fields.extend(octets(2, credentials));
        }
        if let Some(public_key) = &self.public_key {
            fields.extend(octets(3, public_key));
        }
        if let Some(error) = self.error {
            fields.extend(tagged(context(4), &integer(error)));
        }
        if let Some(nonce) = &self.nonce {
            fields.extend(octets(5, nonce));
        }
        tagged(SEQUENCE, &fields)
    }
}

/// `NegoData ::= SEQUENCE OF SEQUENCE { negoToken [0] OCTET STRING }`; only the first item is ever used.
fn first_token(list: &[u8]) -> Result<&[u8], Malformed> {
    let item = Reader::new(list).value(SEQUENCE)?;
    Reader::new(item).optional_inside(0, OCTET_STRING)?.ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_known_message_has_its_known_bytes() {
        let request = TsRequest { version: 6, token: Some(vec![1, 2, 3]), ..TsRequest::default() };
        let bytes = [0x30, 18, 0xA0, 3, 2, 1, 6, 0xA1, 11, 0x30, 9, 0x30, 7, 0xA0, 5, 4];
        assert_eq!(request.encode()[..16], bytes);
        let refusal = TsRequest { version: 6, error: Some(0xC000_006D), ..TsRequest::default() };
        assert_eq!(refusal.encode(), [0x30, 13, 0xA0, 3, 2, 1, 6, 0xA4, 6, 2, 4, 0xC0, 0, 0, 0x6D]);
    }

    proptest! {
        #[test]
        fn messages_come_back_as_they_were(
            version in 2u32..7,
            token in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
            credentials in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
            public_key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
            error in proptest::option::of(any::<u32>()),
            nonce in proptest::option::of(any::<[u8; 32]>()),
        ) {
            let request = TsRequest { version, token, credentials, public_key, error, nonce };
            prop_assert_eq!(TsRequest::decode(&request.encode()), Ok(request));
        }

        #[test]
        fn random_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = TsRequest::decode(&bytes);
        }
    }
}
