//! Numbers on the wire that have names. One without a name is kept as it came: a newer peer may know more of them.

/// An enum of the numbers that have names, and `Other` for the rest.
macro_rules! numbers {
    ($(#[$docs:meta])* $name:ident: $number:ty { $($(#[$variant_docs:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$docs])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_docs])* $variant,)*
            /// A number that has no name here.
            Other($number),
        }

        impl $name {
            /// What the number means.
            #[must_use]
            pub const fn from_wire(number: $number) -> Self {
                match number {
                    $($value => Self::$variant,)*
                    number => Self::Other(number),
                }
            }

            /// The number on the wire.
            #[must_use]
            pub const fn to_wire(self) -> $number {
                match self {
                    $(Self::$variant => $value,)*
                    Self::Other(number) => number,
                }
            }
        }
    };
}

numbers! {
    /// Why something that was asked for is not done: of ERROR, OPEN_RESULT and ATTACH_RESULT.
    ErrorCode: u32 {
        /// It does not know how, or the two did not agree on it.
        Unsupported = 1,
        /// The message is not what it should be.
        Malformed = 2,
        /// There is no channel of that number.
        UnknownChannel = 3,
        /// It makes no sense just then.
        WrongState = 4,
        /// There are too many, or no memory is left.
        NoRoom = 5,
        /// It may not be.
        NotAllowed = 6,
        /// The guest has not shown that it sees the shared memory.
        RegionNotProved = 7,
        /// Later, perhaps.
        Busy = 8,
    }
}

numbers! {
    /// Why a channel is closed or an offer withdrawn.
    Reason: u16 {
        /// It is not needed any more.
        Done = 0,
        /// The other end broke a rule.
        Fault = 1,
        /// The other end breaks rules again and again.
        Misbehaving = 2,
        /// Who served it is gone.
        ServiceGone = 3,
        /// The session that it belonged to has ended.
        SessionLeft = 4,
        /// It may not be there.
        Policy = 5,
        /// The device that it stood for is gone.
        DeviceRemoved = 6,
    }
}

numbers! {
    /// How the host receives a guest.
    ContactStatus: u16 {
        /// The two can talk.
        Welcome = 0,
        /// The host speaks another major version.
        OtherVersion = 1,
        /// Not now.
        Busy = 2,
    }
}

numbers! {
    /// What the guest runs.
    Os: u32 {
        /// Linux.
        Linux = 1,
        /// Windows.
        Windows = 2,
        /// FreeBSD and its kin.
        Bsd = 3,
    }
}

numbers! {
    /// What carries a channel's packets.
    TransportCode: u16 {
        /// Rings in shared memory.
        Ring = 1,
        /// DATA frames.
        Stream = 3,
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "unsupported",
            Self::Malformed => "malformed",
            Self::UnknownChannel => "unknown channel",
            Self::WrongState => "wrong state",
            Self::NoRoom => "no room",
            Self::NotAllowed => "not allowed",
            Self::RegionNotProved => "region not proved",
            Self::Busy => "busy",
            Self::Other(number) => return write!(f, "code {number}"),
        })
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Fault => "fault",
            Self::Misbehaving => "misbehaving",
            Self::ServiceGone => "service gone",
            Self::SessionLeft => "session left",
            Self::Policy => "policy",
            Self::DeviceRemoved => "device removed",
            Self::Other(number) => return write!(f, "reason {number}"),
        })
    }
}

impl std::fmt::Display for Os {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Linux => "Linux",
            Self::Windows => "Windows",
            Self::Bsd => "BSD",
            Self::Other(number) => return write!(f, "system {number}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_a_name_come_out_as_they_came_in() {
        for number in 0..20 {
            assert_eq!(ErrorCode::from_wire(number).to_wire(), number);
        }
        assert_eq!(ErrorCode::from_wire(9), ErrorCode::Other(9));
        assert_eq!(Reason::from_wire(0xffff).to_wire(), 0xffff);
        assert_eq!(TransportCode::from_wire(2), TransportCode::Other(2));
    }

    #[test]
    fn they_are_said_in_words() {
        assert_eq!(ErrorCode::RegionNotProved.to_string(), "region not proved");
        assert_eq!(Reason::Other(77).to_string(), "reason 77");
    }
}
