//! The classes of channels: who they are, what they may use, and the messages of each.
//!
//! One module per class, with the messages of both directions and their encodings (`docs/bus.md`, section 9).

use uuid::{Uuid, uuid};

pub mod audio_in;
pub mod audio_out;
pub mod clipboard;
pub mod folder;
pub mod fuzz_oracle;
pub mod guest_info;
pub mod heartbeat;
pub mod input;
pub mod memory;
pub mod shutdown;
pub mod time_sync;
pub mod usb;
pub mod video;

mod audio;
mod bounded;
mod define;
mod field;
mod file_time;
mod name;
#[cfg(test)]
mod round_trips;

pub use bounded::{Data, List, Text};
pub use file_time::FileTime;

/// A class of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Keyboard, pointer, touch, pen.
    Input,
    /// Pictures of one head.
    Video,
    /// Sound from the guest.
    AudioOut,
    /// Sound for the guest.
    AudioIn,
    /// The clipboard.
    Clipboard,
    /// Folders of the client or the host.
    Folder,
    /// USB devices.
    Usb,
    /// Is the guest alive?
    Heartbeat,
    /// The guest's clock.
    TimeSync,
    /// Going down on request.
    Shutdown,
    /// What the guest is and has.
    GuestInfo,
    /// How much memory the guest needs.
    Memory,
}

/// In which order the frames of channels go out. Smaller is sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// Keys and pointers.
    Input,
    /// Sound.
    Audio,
    /// Pictures.
    Video,
    /// Everything else, in turns.
    Bulk,
}

/// What the channels of a class may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Data bytes of the ring from host to guest.
    pub h2g_ring: u32,
    /// Data bytes of the ring from guest to host.
    pub g2h_ring: u32,
    /// Longest message, put together from its packets.
    pub message: u32,
}

impl Limits {
    const fn new(h2g_ring: u32, g2h_ring: u32, message: u32) -> Self {
        Self { h2g_ring, g2h_ring, message }
    }
}

const KIB: u32 = 1024;
const MIB: u32 = 1024 * 1024;

impl Class {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Input,
        Self::Video,
        Self::AudioOut,
        Self::AudioIn,
        Self::Clipboard,
        Self::Folder,
        Self::Usb,
        Self::Heartbeat,
        Self::TimeSync,
        Self::Shutdown,
        Self::GuestInfo,
        Self::Memory,
    ];

    /// The GUID on the wire. The numbers are fixed for ever.
    #[must_use]
    pub const fn guid(self) -> Uuid {
        match self {
            Self::Input => uuid!("08b101e2-48b1-5ba4-9085-d82472a93003"),
            Self::Video => uuid!("617e5582-458f-5456-939e-c2cb9369719c"),
            Self::AudioOut => uuid!("3d668271-8dba-5a5e-ade1-b8a19c4c298a"),
            Self::AudioIn => uuid!("bff0256b-3f9b-520b-a910-913b365b0a30"),
            Self::Clipboard => uuid!("fa2f6032-33cf-534d-8c11-def5c3d35714"),
            Self::Folder => uuid!("cb08b2d1-cb29-52fa-bbaa-2ef9f20f1d79"),
            Self::Usb => uuid!("58614a1b-0f02-50c0-8927-ca641eb16365"),
            Self::Heartbeat => uuid!("c2896161-b120-57ba-8d49-6add8dfbfc31"),
            Self::TimeSync => uuid!("fbc7b9a3-f951-5839-a875-a734124ca125"),
            Self::Shutdown => uuid!("78456d29-2a46-5fb8-816d-a8e8712be53e"),
            Self::GuestInfo => uuid!("44c8cac7-ada5-598b-8c62-1f714b807159"),
            Self::Memory => uuid!("0b36f53e-0e5c-5d62-8757-b8b934240b10"),
        }
    }

    /// The class with this GUID.
    #[must_use]
    pub fn from_guid(guid: Uuid) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.guid() == guid)
    }

    /// What people and instance GUIDs call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Video => "video",
            Self::AudioOut => "audio-out",
            Self::AudioIn => "audio-in",
            Self::Clipboard => "clipboard",
            Self::Folder => "folder",
            Self::Usb => "usb",
            Self::Heartbeat => "heartbeat",
            Self::TimeSync => "timesync",
            Self::Shutdown => "shutdown",
            Self::GuestInfo => "guest-info",
            Self::Memory => "memory",
        }
    }

    /// The instance with this number of a VM: the same after every restart.
    #[must_use]
    pub fn instance(self, vm: Uuid, index: u16) -> Uuid {
        Uuid::new_v5(&vm, format!("{}{index}", self.name()).as_bytes())
    }

    /// In which order its frames go out.
    #[must_use]
    pub const fn priority(self) -> Priority {
        match self {
            Self::Input => Priority::Input,
            Self::AudioOut | Self::AudioIn => Priority::Audio,
            Self::Video => Priority::Video,
            _ => Priority::Bulk,
        }
    }

    /// What its channels may use.
    #[must_use]
    pub const fn limits(self) -> Limits {
        match self {
            Self::Input => Limits::new(64 * KIB, 16 * KIB, 4 * KIB),
            Self::Video => Limits::new(64 * KIB, 256 * KIB, MIB),
            Self::AudioOut => Limits::new(16 * KIB, 256 * KIB, 64 * KIB),
            Self::AudioIn => Limits::new(128 * KIB, 16 * KIB, 64 * KIB),
            Self::Clipboard => Limits::new(256 * KIB, 256 * KIB, MIB),
            Self::Folder => Limits::new(MIB, MIB, MIB + 4 * KIB),
            Self::Usb => Limits::new(MIB, MIB, MIB),
            Self::Memory => Limits::new(16 * KIB, 16 * KIB, 4 * KIB),
            Self::Heartbeat | Self::TimeSync | Self::Shutdown | Self::GuestInfo => {
                Limits::new(16 * KIB, 16 * KIB, 16 * KIB)
            }
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_is_found_by_its_guid() {
        for class in Class::ALL {
            assert_eq!(Class::from_guid(class.guid()), Some(class));
        }
        assert_eq!(Class::from_guid(Uuid::nil()), None);
    }

    #[test]
    fn the_specification_has_every_class() {
        let specification = include_str!("../../../docs/bus.md");
        let size = |bytes: u32| match (bytes / MIB, bytes % MIB / KIB) {
            (0, kib) => format!("{kib} K"),
            (mib, 0) => format!("{mib} M"),
            (mib, kib) => format!("{mib} M + {kib} K"),
        };
        for class in Class::ALL {
            let priority = match class.priority() {
                Priority::Input => 1,
                Priority::Audio => 2,
                Priority::Video => 3,
                Priority::Bulk => 4,
            };
            let Limits { h2g_ring, g2h_ring, message } = class.limits();
            let (rings, message) = (format!("{} / {}", size(h2g_ring), size(g2h_ring)), size(message));
            let row = format!("| {class} | `{}` | {priority} | {rings} | {message} |", class.guid());
            assert!(specification.contains(&row), "{row}");
        }
    }
}
