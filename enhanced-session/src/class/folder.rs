//! Folders of the client or the host, for the guest. (`docs/bus.md`, section 9.6)
//!
//! The host announces *shares*; the guest mounts each and turns what its system asks into requests, which have the
//! shape of FUSE's. A *node* is a file or folder that the host has told the guest about, by a number that is the same
//! until the guest forgets it; a *handle* is an open one. Both are the host's numbers, and a request with another is
//! answered with an error. A folder whose client leaves is removed: what is open then fails with
//! [`FolderError::Gone`].
//!
//! ```text
//! host                                                       guest
//! ShareAdded { share: 1, root: 1, "Documents" }         ──▶
//!                                                       ◀──  ShareState { share: 1, Mounted, "/media/Documents" }
//!                                                       ◀──  Request Lookup { parent: 1, "a.txt" }
//! Response Entry { node: 9, attributes, … }             ──▶
//!                                                       ◀──  Request Open { node: 9, read }
//! Response Opened { handle: 3 }                         ──▶
//!                                                       ◀──  Request Read { handle: 3, offset: 0, length: 4096 }
//! Response Data { 812 bytes }                           ──▶
//!                                                       ◀──  Request Release { handle: 3 }
//! Response Done                                         ──▶
//!                                                       ◀──  Forget { [node 9, 1 time] }
//! ```

use std::time::Duration;

use super::bounded::{List, Text};
use super::define::{codes, flags, messages, ranged, record};
use super::file_time::FileTime;
pub use super::name::{MAX_NAME, MAX_PATH, Name};

mod request;

pub use request::{Request, Response};

/// Longest piece that is read or written, in bytes.
pub const MAX_IO: usize = 1024 * 1024;
/// Most entries in one answer about a folder.
pub const MAX_ENTRIES: usize = 1024;
/// Most nodes in one message that forgets.
pub const MAX_FORGETS: usize = 256;
/// Most shares at a time.
pub const MAX_SHARES: usize = 64;

messages! {
    /// What the host sends unasked.
    pub enum ToGuest {
        /// There is a folder.
        ShareAdded = 0x01 {
            /// Its number, not used before on this channel.
            share: u32,
            /// The node of the folder itself. It needs no [`Request::Lookup`] and is never forgotten.
            root: u64,
            /// What to call it, once among the shares of a channel.
            name: Name,
            /// More about it.
            flags: ShareFlags,
        },
        /// A folder is gone. Its nodes and handles are void.
        ShareRemoved = 0x02 {
            /// Which.
            share: u32,
        },
        /// A node was changed by somebody else: what the guest keeps of it is old.
        NodeChanged = 0x03 {
            /// Which.
            node: u64,
            /// Whether its contents changed, not only its attributes.
            contents: bool,
        },
        /// A name in a folder was given to another file, or to none, by somebody else.
        EntryChanged = 0x04 {
            /// The folder.
            parent: u64,
            /// The name.
            name: Name,
        },
    }
}

messages! {
    /// What the guest sends unasked.
    pub enum ToHost {
        /// The guest keeps nodes no longer.
        Forget = 0x81 {
            /// Which.
            nodes: List<Forget, MAX_FORGETS>,
        },
        /// Who asked gave up: the request is to be answered soon, with its result or with
        /// [`FolderError::Interrupted`].
        Cancel = 0x82 {
            /// The request's `txid`. One that is not open is ignored.
            txid: u64,
        },
        /// What became of a share.
        ShareState = 0x83 {
            /// Which.
            share: u32,
            /// What.
            state: Mount,
            /// Where it is in the guest, or why it is not.
            text: Text<MAX_PATH>,
        },
    }
}

flags! {
    /// More about a share.
    pub struct ShareFlags: u16 {
        /// Nothing can be changed.
        pub read_only = 1,
        /// Names that differ only in case are the same.
        pub case_insensitive = 2,
        /// It is a removable disk of the client's.
        pub removable = 4,
    }
}

codes! {
    /// What became of a share in the guest.
    pub enum Mount: u8 {
        /// It can be used.
        Mounted = 1,
        /// It cannot, on purpose: the guest's rules or its user do not want it.
        Unmounted = 2,
        /// It cannot: the guest's system answered with an error.
        Failed = 3,
    }
}

record! {
    /// A node that the guest keeps no longer.
    #[derive(Copy)]
    pub struct Forget {
        /// Which.
        pub node: u64,
        /// How many of the answers that told it ([`Entry`]) are forgotten by this: all of them, and the number is free.
        pub count: u64,
    }
}

record! {
    /// A node that was looked up or made. Each time that one is told counts for [`Forget`].
    #[derive(Copy)]
    pub struct Entry {
        /// Its number.
        pub node: u64,
        /// What it is.
        pub attributes: Attributes,
        /// How long the guest may take the name for this node without asking again.
        pub name_valid: Duration,
        /// The same for the attributes.
        pub attributes_valid: Duration,
    }
}

record! {
    /// What a node is.
    #[derive(Copy)]
    pub struct Attributes {
        /// File or folder.
        pub kind: NodeKind,
        /// Bytes.
        pub size: u64,
        /// Bytes that it takes on its disk.
        pub allocated: u64,
        /// When its contents were last written.
        pub modified: FileTime,
        /// When it was last read.
        pub accessed: FileTime,
        /// When it was made; 0 if not known.
        pub created: FileTime,
        /// How many names it has; 1 if not known.
        pub links: u32,
        /// More about it.
        pub flags: AttributeFlags,
    }
}

codes! {
    /// What a node can be. Symbolic links are followed by the host as far as they stay inside the share, others and
    /// devices are not there.
    pub enum NodeKind: u8 {
        /// A file.
        File = 1,
        /// A folder.
        Directory = 2,
    }
}

flags! {
    /// More about a node.
    pub struct AttributeFlags: u16 {
        /// It is not to be written.
        pub read_only = 1,
        /// It is not to be shown.
        pub hidden = 2,
        /// It belongs to the system.
        pub system = 4,
        /// It was changed since the last backup.
        pub archive = 8,
        /// It is a program. Ends without such a thing say yes for every file.
        pub executable = 0x10,
    }
}

flags! {
    /// What a file is opened for.
    pub struct OpenFlags: u16 {
        /// To be read.
        pub read = 1,
        /// To be written.
        pub write = 2,
        /// What is written goes to its end, wherever that is then.
        pub append = 4,
        /// It loses its contents first.
        pub truncate = 8,
    }
}

record! {
    /// Something in a folder.
    pub struct DirectoryEntry {
        /// Its name.
        pub name: Name,
        /// What it is.
        pub kind: NodeKind,
        /// Where to go on behind it.
        pub cookie: u64,
        /// When it was asked for: the node, as if it had been looked up.
        pub entry: Option<Entry>,
    }
}

record! {
    /// Bytes of a file that are locked.
    #[derive(Copy)]
    pub struct LockRange {
        /// For whom.
        pub kind: LockKind,
        /// The first, from the beginning of the file.
        pub start: u64,
        /// How many; 0: all from there on.
        pub length: u64,
    }
}

codes! {
    /// What a lock keeps others from.
    pub enum LockKind: u8 {
        /// Writing.
        Shared = 1,
        /// Reading and writing.
        Exclusive = 2,
        /// Nothing: it is given up.
        Unlock = 3,
    }
}

ranged! {
    /// Bytes that are to be read.
    pub struct IoLength(u32) = 0..=1_048_576;
}

codes! {
    /// Why a request is not done. `docs/bus.md` says what each is on Linux and on Windows.
    pub enum FolderError: u16 {
        /// There is no such file.
        NotFound = 1,
        /// The client or the host does not allow it.
        NotAllowed = 2,
        /// The name is taken.
        Exists = 3,
        /// It is not a folder.
        NotDirectory = 4,
        /// It is a folder.
        IsDirectory = 5,
        /// The folder is not empty.
        NotEmpty = 6,
        /// The disk is full.
        NoSpace = 7,
        /// The share, the disk or the file is not to be written.
        ReadOnly = 8,
        /// Somebody else has it open or locked in a way that forbids this.
        Busy = 9,
        /// Another lock holds these bytes.
        Locked = 10,
        /// The request makes no sense.
        Invalid = 11,
        /// The client or the host cannot do this at all.
        Unsupported = 12,
        /// Who asked gave up.
        Interrupted = 13,
        /// No such handle.
        BadHandle = 14,
        /// No such node.
        Stale = 15,
        /// The name cannot be there.
        BadName = 16,
        /// The share is gone, or the client.
        Gone = 17,
        /// The file would be too long.
        TooLarge = 18,
        /// From one share to another.
        CrossShare = 19,
        /// Too many are open.
        TooManyOpen = 20,
        /// A fault of the disk, or something else.
        Io = 21,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_reads_as_it_is_specified() {
        let added = ToGuest::ShareAdded {
            share: 1,
            root: 0x0102,
            name: Name::new("Docs").expect("a name"),
            flags: ShareFlags { read_only: true, case_insensitive: true, removable: false },
        };
        let bytes =
            [[0x01, 0, 0, 0, 1, 0, 0, 0, 0x02, 0x01, 0, 0, 0, 0, 0, 0].as_slice(), b"\x04\0Docs\x03\0"].concat();
        assert_eq!(added.encode(), bytes);
        assert_eq!(ToGuest::decode(&bytes), Ok(added));
        let forget = ToHost::Forget { nodes: List::from([Forget { node: 9, count: 2 }]) };
        let bytes = [0x81, 0, 0, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(ToHost::decode(&bytes), Ok(forget));
    }

    #[test]
    fn a_share_is_not_called_like_another_place() {
        let mut bytes = ToGuest::ShareAdded {
            share: 1,
            root: 1,
            name: Name::new("xx").expect("a name"),
            flags: ShareFlags::default(),
        }
        .encode();
        bytes[18..20].copy_from_slice(b"..");
        assert!(ToGuest::decode(&bytes).is_err());
    }
}
