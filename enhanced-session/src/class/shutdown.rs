//! Going down on request. (`docs/bus.md`, section 9.10)
//!
//! The host asks, the guest answers whether it will; that it has gone is seen from the virtual machine. A guest that
//! goes down on its own says so first, so that an end is not taken for a crash.
//!
//! ```text
//! host                                                        guest
//!                                                        ◀──  Capabilities { power_off, reboot }
//! Request Down { action: PowerOff, timeout: 60 s, … }    ──▶
//!                                                        ◀──  Response Accepted
//!                                                        ◀──  GoingDown { action: PowerOff }
//! ```

use std::time::Duration;

use super::bounded::Text;
use super::define::{codes, flags, messages};

/// Longest text for the users of a guest, in bytes.
pub const MAX_MESSAGE: usize = 2048;
/// Longest reason of a refusal, in bytes.
pub const MAX_REASON: usize = 256;

messages! {
    /// What the guest sends unasked.
    pub enum ToHost {
        /// What it can do: first, and when that changes.
        Capabilities = 0x81 {
            /// The actions.
            actions: Actions,
        },
        /// It goes down, asked or not. Nothing else needs to follow.
        GoingDown = 0x82 {
            /// How.
            action: Action,
        },
    }
}

messages! {
    /// What the host asks.
    pub enum Request {
        /// Please go down.
        Down = 0x101 {
            /// How.
            action: Action,
            /// Whether programs are ended that do not want to end.
            force: bool,
            /// How long programs may take to end. Zero: as long as the guest's system usually gives them.
            timeout: Duration,
            /// What is shown to the guest's users and written to its log; may be empty.
            message: Text<MAX_MESSAGE>,
        },
    }
}

messages! {
    /// What the guest answers.
    pub enum Response {
        /// It does not know the request.
        Unsupported = 0,
        /// It begins to.
        Accepted = 0x101,
        /// It does not.
        Refused = 0xffff {
            /// Why.
            why: Refusal,
            /// The same for people, in the system's words; may be empty.
            reason: Text<MAX_REASON>,
        },
    }
}

codes! {
    /// Where a guest goes.
    pub enum Action: u8 {
        /// Off.
        PowerOff = 1,
        /// Off, and on again.
        Reboot = 2,
        /// Off, with its memory on its disk.
        Hibernate = 3,
    }
}

flags! {
    /// What a guest can do.
    pub struct Actions: u16 {
        /// [`Action::PowerOff`].
        pub power_off = 1,
        /// [`Action::Reboot`].
        pub reboot = 2,
        /// [`Action::Hibernate`].
        pub hibernate = 4,
    }
}

codes! {
    /// Why a guest does not go down.
    pub enum Refusal: u16 {
        /// It cannot do this action.
        Unsupported = 1,
        /// Its rules forbid it.
        NotAllowed = 2,
        /// A program or an update holds it up, and `force` was not set.
        Held = 3,
        /// It is going down already.
        AlreadyGoing = 4,
        /// Its system answered with an error.
        Failed = 5,
    }
}

impl Actions {
    /// Whether `action` is among them.
    #[must_use]
    pub const fn has(self, action: Action) -> bool {
        match action {
            Action::PowerOff => self.power_off,
            Action::Reboot => self.reboot,
            Action::Hibernate => self.hibernate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_a_refusal_read_as_they_are_specified() {
        let request = Request::Down {
            action: Action::Reboot,
            force: true,
            timeout: Duration::from_nanos(0x0102),
            message: Text::new("é").expect("it fits"),
        };
        let bytes = [0x01, 0x01, 0, 0, 2, 1, 0x02, 0x01, 0, 0, 0, 0, 0, 0, 2, 0, 0xc3, 0xa9];
        assert_eq!(request.encode(), bytes);
        assert_eq!(Request::decode(&bytes), Ok(request));
        assert_eq!(
            Response::decode(&[0xff, 0xff, 0, 0, 3, 0, 0, 0]),
            Ok(Response::Refused { why: Refusal::Held, reason: Text::default() })
        );
        assert_eq!(Response::decode(&[0, 0, 0, 0]), Ok(Response::Unsupported));
    }

    #[test]
    fn a_text_for_users_is_bounded() {
        let mut bytes = vec![0x01, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([0x01, 0x08]);
        bytes.extend([b'x'; MAX_MESSAGE + 1]);
        assert!(Request::decode(&bytes).is_err());
    }

    #[test]
    fn flags_without_a_meaning_are_refused() {
        assert!(ToHost::decode(&[0x81, 0, 0, 0, 7, 0]).is_ok());
        assert!(ToHost::decode(&[0x81, 0, 0, 0, 8, 0]).is_err());
        assert!(ToHost::decode(&[0x81, 0, 1, 0, 7, 0]).is_err());
    }
}
