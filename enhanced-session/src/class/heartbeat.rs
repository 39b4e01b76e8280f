//! Is the guest alive? (`docs/bus.md`, section 9.8)
//!
//! The host sends a beat every two seconds, the guest answers each with the next number and how it is. Numbers are
//! the host's: it adds two to what it sent last, so that a late answer is told from a present one. A guest that has
//! not answered for some beats is shown as lost; whether anything is done about it is not the bus's to decide.
//!
//! ```text
//! host                          guest
//! Beat { sequence: 40 }    ──▶
//!                          ◀──  Beat { sequence: 41, state: Healthy }
//! Beat { sequence: 42 }    ──▶
//!                          ◀──  Beat { sequence: 43, state: Stopped }      it shuts down
//! ```

use std::time::Duration;

use super::define::{codes, messages};

/// How often the host sends a beat.
pub const INTERVAL: Duration = Duration::from_secs(2);

messages! {
    /// What the host sends.
    pub enum ToGuest {
        /// Are you there?
        Beat = 0x01 {
            /// Even; two more with each beat.
            sequence: u64,
        },
    }
}

messages! {
    /// What the guest sends.
    pub enum ToHost {
        /// Yes.
        Beat = 0x81 {
            /// That of the host's beat, plus one (modulo 2⁶⁴).
            sequence: u64,
            /// How the guest is.
            state: State,
        },
    }
}

codes! {
    /// How a guest is.
    pub enum State: u32 {
        /// All is well.
        Healthy = 1,
        /// It runs, and something that it needs does not: a service of the agent failed, the system is in its rescue mode.
        Critical = 2,
        /// It is going down: no more beats will be answered.
        Stopped = 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_read_as_they_are_specified() {
        let beat = ToGuest::Beat { sequence: 40 };
        assert_eq!(beat.encode(), [0x01, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0]);
        let answer = [0x81, 0, 0, 0, 41, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        assert_eq!(ToHost::decode(&answer), Ok(ToHost::Beat { sequence: 41, state: State::Critical }));
    }

    #[test]
    fn a_state_that_is_none_is_refused() {
        let answer = [0x81, 0, 0, 0, 41, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0];
        assert!(ToHost::decode(&answer).is_err());
    }
}
