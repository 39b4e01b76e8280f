//! USB devices, for the guest. (`docs/bus.md`, section 9.7)
//!
//! The host attaches devices; the guest plugs each into a virtual host controller of its own and sends what its drivers
//! submit as requests, one per URB. The completion of the request is that of the URB; an interrupt endpoint that has
//! nothing to say leaves its request open. Standard requests that change a device's state (set configuration, set
//! interface, clear a halt) are sent like any other: the host sees to what its side must do for them. *Set address*
//! stays in the guest. At most 256 requests are open in all, and 64 of a device.
//!
//! ```text
//! host                                                          guest
//! Attach { device: 1, High, descriptors }                  ──▶
//!                                                          ◀──  Attached { device: 1, Ok }
//!                                                          ◀──  Request Submit { device: 1, endpoint: 0, Control … }
//! Response Complete { Ok, 18 bytes }                       ──▶
//!                                                          ◀──  Request Submit { device: 1, endpoint: 1, InterruptIn }
//!                                                          ◀──  Unlink { txid }
//! Response Complete { Canceled }                           ──▶
//! Detach { device: 1, Unplugged }                          ──▶
//!                                                          ◀──  Detached { device: 1 }
//! ```

use super::bounded::{Data, List, Text};
use super::define::{codes, messages, ranged};

mod transfer;

pub use transfer::{Completion, ControlTransfer, IsochronousOut, PacketResult, Setup, Transfer};

/// Bytes of a device descriptor.
pub const DEVICE_DESCRIPTOR: usize = 18;
/// Longest configuration with all that belongs to it, in bytes.
pub const MAX_CONFIGURATION: usize = 16 * 1024;
/// Most configurations of a device.
pub const MAX_CONFIGURATIONS: usize = 8;
/// Longest name of a device, in bytes.
pub const MAX_NAME: usize = 256;
/// Longest transfer, in bytes. The guest cuts longer bulk transfers.
pub const MAX_TRANSFER: usize = 512 * 1024;
/// Most packets of an isochronous transfer.
pub const MAX_PACKETS: usize = 1024;
/// Most devices at a time.
pub const MAX_DEVICES: usize = 16;
/// Most open requests of a device.
pub const MAX_OPEN: usize = 64;

messages! {
    /// What the host sends unasked.
    pub enum ToGuest {
        /// A device is there.
        Attach = 0x01 {
            /// Its number, not used before on this channel.
            device: u32,
            /// How fast it is.
            speed: Speed,
            /// Its device descriptor, as it is.
            descriptor: [u8; DEVICE_DESCRIPTOR],
            /// Its configuration descriptors, each with all that belongs to it, in the order of their index.
            configurations: List<Data<MAX_CONFIGURATION>, MAX_CONFIGURATIONS>,
            /// What people call it; may be empty.
            name: Text<MAX_NAME>,
        },
        /// A device is gone. Requests that are open are answered with [`Status::Gone`].
        Detach = 0x02 {
            /// Which.
            device: u32,
            /// Why.
            why: DetachReason,
        },
    }
}

messages! {
    /// What the guest sends unasked.
    pub enum ToHost {
        /// What became of a device: the answer to [`ToGuest::Attach`].
        Attached = 0x81 {
            /// Which.
            device: u32,
            /// What.
            result: AttachResult,
        },
        /// The guest uses a device no longer: the answer to [`ToGuest::Detach`], or unasked. No request for it follows.
        Detached = 0x82 {
            /// Which.
            device: u32,
        },
        /// A request is to be answered soon: with [`Status::Canceled`], or with what it came to.
        Unlink = 0x83 {
            /// The request's `txid`. One that is not open is ignored.
            txid: u64,
        },
    }
}

messages! {
    /// What the guest asks.
    pub enum Request {
        /// A URB: [`Response::Complete`].
        Submit = 0x101 {
            /// Of which device.
            device: u32,
            /// Which endpoint; the transfer says which direction.
            endpoint: Endpoint,
            /// What.
            transfer: Transfer,
        },
        /// Reset a device: [`Response::Complete`] without data. Its configuration is set again by the guest.
        Reset = 0x102 {
            /// Which.
            device: u32,
        },
    }
}

messages! {
    /// What the host answers.
    pub enum Response {
        /// It does not know the request.
        Unsupported = 0,
        /// What it came to. Whether it can be the answer to the request is the guest's to check
        /// ([`Transfer::admits`]).
        Complete = 0x101 {
            /// All of it.
            completion: Completion,
        },
    }
}

codes! {
    /// How fast a device is.
    pub enum Speed: u8 {
        /// 1.5 Mbit/s.
        Low = 1,
        /// 12 Mbit/s.
        Full = 2,
        /// 480 Mbit/s.
        High = 3,
        /// 5 Gbit/s.
        Super = 4,
        /// 10 Gbit/s and more.
        SuperPlus = 5,
    }
}

codes! {
    /// Why a device is gone.
    pub enum DetachReason: u8 {
        /// It was unplugged.
        Unplugged = 1,
        /// Its client left, or took it back.
        SessionLeft = 2,
        /// The host's rules.
        Policy = 3,
    }
}

codes! {
    /// What became of a device in the guest.
    pub enum AttachResult: u8 {
        /// It is plugged in.
        Ok = 0,
        /// All ports of that speed are taken.
        NoPort = 1,
        /// The guest's rules forbid it.
        NotAllowed = 2,
        /// Its system answered with an error, or has no such controller.
        Failed = 3,
    }
}

ranged! {
    /// Number of an endpoint, without its direction.
    pub struct Endpoint(u8) = 0..=15;
}

codes! {
    /// What a URB came to.
    pub enum Status: u8 {
        /// What was asked for; an IN transfer may be short.
        Ok = 0,
        /// The endpoint is halted.
        Stall = 1,
        /// It was unlinked.
        Canceled = 2,
        /// The device did not answer in time.
        Timeout = 3,
        /// The device sent more than was asked for.
        Overflow = 4,
        /// The device sent less, and that was not allowed.
        Short = 5,
        /// Broken on the way: checksum, bit stuffing, no answer.
        Protocol = 6,
        /// The device is gone.
        Gone = 7,
        /// The request makes no sense: there is no such device or endpoint, or it is of another type.
        Invalid = 8,
        /// The host's rules forbid it.
        NotAllowed = 9,
        /// Too many requests are open.
        Busy = 10,
        /// Something else.
        Failed = 11,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attaching_reads_as_it_is_specified() {
        let descriptor = std::array::from_fn(|at| u8::try_from(at).expect("small"));
        let attach = ToGuest::Attach {
            device: 1,
            speed: Speed::High,
            descriptor,
            configurations: List::from([Data::new(vec![9, 2]).expect("it fits")]),
            name: Text::new("x").expect("it fits"),
        };
        let bytes =
            [[0x01, 0, 0, 0, 1, 0, 0, 0, 3].as_slice(), &descriptor, &[1, 0, 2, 0, 0, 0, 9, 2, 1, 0, b'x']].concat();
        assert_eq!(attach.encode(), bytes);
        assert_eq!(ToGuest::decode(&bytes), Ok(attach));
        let answer = ToHost::Attached { device: 1, result: AttachResult::NoPort };
        assert_eq!(ToHost::decode(&[0x81, 0, 0, 0, 1, 0, 0, 0, 1]), Ok(answer));
    }

    #[test]
    fn an_endpoint_has_a_number_only() {
        let reset = Request::Reset { device: 1 };
        assert_eq!(Request::decode(&[0x02, 0x01, 0, 0, 1, 0, 0, 0]), Ok(reset));
        let submit = |endpoint: u8| Request::decode(&[0x01, 0x01, 0, 0, 1, 0, 0, 0, endpoint, 4, 8, 0, 0, 0]);
        assert!(submit(15).is_ok());
        assert!(submit(0x81).is_err());
    }
}
