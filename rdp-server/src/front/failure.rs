//! Which security protocol a connection gets, and what a client is told that can do none of those allowed.

use ironrdp_core::encode_vec;
use ironrdp_pdu::nego::{ConnectionConfirm, FailureCode, ResponseFlags, SecurityProtocol};
use ironrdp_pdu::x224::X224;

/// Which ways of logging on are allowed. Standard RDP Security never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SecurityPolicy {
    /// Network Level Authentication only.
    NlaOnly,
    /// Network Level Authentication for clients that offer it, otherwise the password in Client Info over TLS.
    #[default]
    NlaOrTls,
    /// The password in Client Info over TLS only.
    TlsOnly,
}

impl SecurityPolicy {
    const fn allowed(self) -> SecurityProtocol {
        let nla = SecurityProtocol::HYBRID.union(SecurityProtocol::HYBRID_EX);
        match self {
            Self::NlaOnly => nla,
            Self::NlaOrTls => nla.union(SecurityProtocol::SSL),
            Self::TlsOnly => SecurityProtocol::SSL,
        }
    }

    /// The strongest protocol that both sides can do, for the ordinary order: X.224 before TLS.
    ///
    /// # Errors
    ///
    /// The code to answer with when there is none.
    pub fn select(self, requested: SecurityProtocol) -> Result<SecurityProtocol, FailureCode> {
        let both = requested & self.allowed();
        [SecurityProtocol::HYBRID_EX, SecurityProtocol::HYBRID, SecurityProtocol::SSL]
            .into_iter()
            .find(|protocol| both.contains(*protocol))
            .ok_or(match self {
                Self::NlaOnly => FailureCode::HYBRID_REQUIRED_BY_SERVER,
                Self::NlaOrTls | Self::TlsOnly => FailureCode::SSL_REQUIRED_BY_SERVER,
            })
    }
}

/// The answer that accepts a connection request, as a whole PDU.
#[must_use]
pub fn confirm(protocol: SecurityProtocol) -> Vec<u8> {
    let flags = ResponseFlags::EXTENDED_CLIENT_DATA_SUPPORTED | ResponseFlags::DYNVC_GFX_PROTOCOL_SUPPORTED;
    encode(ConnectionConfirm::Response { flags, protocol })
}

/// The answer that refuses a connection request (MS-RDPBCGR 2.2.1.2.2 RDP Negotiation Failure), as a whole PDU.
#[must_use]
pub fn refuse(code: FailureCode) -> Vec<u8> {
    encode(ConnectionConfirm::Failure { code })
}

fn encode(confirm: ConnectionConfirm) -> Vec<u8> {
    // A fixed-size PDU into a buffer of its own size: it always fits.
    encode_vec(&X224(confirm)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_common_protocol_is_selected() {
        let table = [
            (SecurityPolicy::NlaOrTls, 0x0b, Ok(8)),
            (SecurityPolicy::NlaOrTls, 3, Ok(2)),
            (SecurityPolicy::NlaOrTls, 1, Ok(1)),
            (SecurityPolicy::NlaOrTls, 0, Err(1)),
            (SecurityPolicy::NlaOrTls, 4, Err(1)),
            (SecurityPolicy::NlaOnly, 1, Err(5)),
            (SecurityPolicy::NlaOnly, 0, Err(5)),
            (SecurityPolicy::NlaOnly, 0x0b, Ok(8)),
            (SecurityPolicy::TlsOnly, 0x0b, Ok(1)),
            (SecurityPolicy::TlsOnly, 2, Err(1)),
        ];
        for (policy, requested, expected) in table {
            let selected = policy.select(SecurityProtocol::from_bits_retain(requested));
            assert_eq!(selected.map(|p| p.bits()).map_err(u32::from), expected, "{policy:?} {requested:#x}");
        }
    }

    #[test]
    fn answers_have_their_known_bytes() {
        let answer = confirm(SecurityProtocol::HYBRID);
        assert_eq!(answer[..6], [3, 0, 0, 0x13, 0x0e, 0xd0]);
        assert_eq!(answer[11..], [2, 3, 8, 0, 2, 0, 0, 0]);
        assert_eq!(refuse(FailureCode::HYBRID_REQUIRED_BY_SERVER)[11..], [3, 0, 8, 0, 5, 0, 0, 0]);
    }
}
