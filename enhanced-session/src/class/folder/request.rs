//! What the guest asks of a share, and the host's answers.

use std::time::Duration;

use super::{AttributeFlags, FileTime};
use super::{
    Attributes, DirectoryEntry, Entry, FolderError, IoLength, LockRange, MAX_ENTRIES, MAX_IO, Name, OpenFlags,
};
use crate::class::bounded::{Data, List};
use crate::class::define::messages;

messages! {
    /// What the guest asks. Each is answered with the response that it names, or with [`Response::Failed`].
    pub enum Request {
        /// The node with a name in a folder: [`Response::Entry`].
        Lookup = 0x101 {
            /// The folder.
            parent: u64,
            /// In it.
            name: Name,
        },
        /// What a node is: [`Response::Attributes`].
        ReadAttributes = 0x102 {
            /// Which.
            node: u64,
            /// One of its handles, if there is one.
            handle: Option<u64>,
        },
        /// Change what is there, keep what is not: [`Response::Attributes`].
        SetAttributes = 0x103 {
            /// Which.
            node: u64,
            /// One of its handles, if there is one.
            handle: Option<u64>,
            /// Bytes: what is behind is lost, what was not there is zero.
            size: Option<u64>,
            /// When its contents were last written.
            modified: Option<FileTime>,
            /// When it was last read.
            accessed: Option<FileTime>,
            /// When it was made.
            created: Option<FileTime>,
            /// More about it. What the other end cannot keep is ignored.
            flags: Option<AttributeFlags>,
        },
        /// Open a file: [`Response::Opened`].
        Open = 0x104 {
            /// Which.
            node: u64,
            /// What for.
            flags: OpenFlags,
        },
        /// Open a file by its name, and make it if it is not there: [`Response::Created`].
        Create = 0x105 {
            /// The folder.
            parent: u64,
            /// In it.
            name: Name,
            /// What for.
            flags: OpenFlags,
            /// Whether it is an error if it is there.
            exclusive: bool,
            /// What it is to be if it is made.
            attributes: AttributeFlags,
        },
        /// A piece of a file: [`Response::Data`].
        Read = 0x106 {
            /// Of the file.
            handle: u64,
            /// Where it begins, in bytes.
            offset: u64,
            /// How long it is, in bytes.
            length: IoLength,
        },
        /// A piece for a file: [`Response::Written`].
        Write = 0x107 {
            /// Of the file.
            handle: u64,
            /// Where it begins, in bytes. Without a meaning if the file is open to append.
            offset: u64,
            /// The piece.
            data: Data<MAX_IO>,
        },
        /// A program closes one of its descriptors: errors of earlier writes are told. [`Response::Done`].
        Flush = 0x108 {
            /// Of the file.
            handle: u64,
        },
        /// What was written is to be on the disk: [`Response::Done`].
        Sync = 0x109 {
            /// Of a file or folder.
            handle: u64,
            /// Whether attributes that are not needed to read it may wait.
            data_only: bool,
        },
        /// Close a file or folder; its locks go: [`Response::Done`].
        Release = 0x10a {
            /// Of a file or folder.
            handle: u64,
        },
        /// Open a folder: [`Response::Opened`].
        OpenDirectory = 0x10b {
            /// Which.
            node: u64,
        },
        /// What is in a folder, without `.` and `..`: [`Response::Directory`].
        ReadDirectory = 0x10c {
            /// Of the folder.
            handle: u64,
            /// Where to go on: that of the last entry before, 0 at first.
            cookie: u64,
            /// About how many bytes of entries are wanted; at least one entry comes if there is one.
            length: IoLength,
            /// Whether nodes are wanted.
            nodes: bool,
        },
        /// Make a folder: [`Response::Entry`].
        MakeDirectory = 0x10d {
            /// In this one.
            parent: u64,
            /// With this name.
            name: Name,
        },
        /// Take a file out of its folder: [`Response::Done`]. Handles of it stay good.
        Unlink = 0x10e {
            /// The folder.
            parent: u64,
            /// In it.
            name: Name,
        },
        /// Remove an empty folder: [`Response::Done`].
        RemoveDirectory = 0x10f {
            /// The folder that it is in.
            parent: u64,
            /// In it.
            name: Name,
        },
        /// Give a file or folder another name or place: [`Response::Done`].
        Rename = 0x110 {
            /// The folder that it is in.
            parent: u64,
            /// In it.
            name: Name,
            /// The folder where it goes.
            new_parent: u64,
            /// Its name there.
            new_name: Name,
            /// Whether what has that name may be replaced.
            replace: bool,
        },
        /// How much room there is: [`Response::Space`].
        ReadSpace = 0x111 {
            /// A node of the share.
            node: u64,
        },
        /// Lock or unlock bytes of a file: [`Response::Done`].
        Lock = 0x112 {
            /// Of the file.
            handle: u64,
            /// Whose lock it is; locks of one owner do not hinder each other.
            owner: u64,
            /// Which bytes.
            range: LockRange,
            /// Whether to wait until it can be had. [`super::ToHost::Cancel`] ends the waiting.
            wait: bool,
        },
        /// What would hinder a lock: [`Response::Holder`].
        TestLock = 0x113 {
            /// Of the file.
            handle: u64,
            /// Whose it would be.
            owner: u64,
            /// Which bytes.
            range: LockRange,
        },
    }
}

messages! {
    /// What the host answers.
    pub enum Response {
        /// It does not know the request.
        Unsupported = 0,
        /// A node.
        Entry = 0x101 {
            /// It.
            entry: Entry,
        },
        /// What a node is.
        Attributes = 0x102 {
            /// What.
            attributes: Attributes,
            /// How long the guest may use that without asking again.
            valid: Duration,
        },
        /// It is open.
        Opened = 0x104 {
            /// Its number until it is released.
            handle: u64,
        },
        /// It is there and open.
        Created = 0x105 {
            /// Its node.
            entry: Entry,
            /// Its number until it is released.
            handle: u64,
        },
        /// A piece of a file.
        Data = 0x106 {
            /// As long as was asked for; shorter only at the end of the file.
            data: Data<MAX_IO>,
        },
        /// A piece was written.
        Written = 0x107 {
            /// How much of it, in bytes, from its beginning.
            length: u32,
        },
        /// It is done.
        Done = 0x108,
        /// What is in a folder.
        Directory = 0x10c {
            /// The next entries; none: there are no more.
            entries: List<DirectoryEntry, MAX_ENTRIES>,
        },
        /// How much room there is.
        Space = 0x111 {
            /// Bytes in all.
            total: u64,
            /// Bytes that are free.
            free: u64,
            /// Bytes that are free for this user.
            available: u64,
            /// Bytes that are given at a time.
            block: u32,
        },
        /// What would hinder a lock.
        Holder = 0x113 {
            /// A lock that does; none: nothing.
            range: Option<LockRange>,
        },
        /// It is not done.
        Failed = 0xffff {
            /// Why.
            error: FolderError,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LockKind, NodeKind};
    use super::*;

    #[test]
    fn requests_read_as_they_are_specified() {
        let lookup = Request::Lookup { parent: 1, name: Name::new("é").expect("a name") };
        assert_eq!(lookup.encode(), [0x01, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0xc3, 0xa9]);
        let truncate = Request::SetAttributes {
            node: 9,
            handle: None,
            size: Some(2),
            modified: None,
            accessed: None,
            created: None,
            flags: Some(AttributeFlags { read_only: true, ..AttributeFlags::default() }),
        };
        let bytes =
            [[0x03, 0x01, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0].as_slice(), &[1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]]
                .concat();
        assert_eq!(Request::decode(&bytes), Ok(truncate));
        let lock = [
            [0x12, 0x01, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0].as_slice(),
            &[2, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1],
        ]
        .concat();
        let range = LockRange { kind: LockKind::Exclusive, start: 4, length: 5 };
        assert_eq!(Request::decode(&lock), Ok(Request::Lock { handle: 3, owner: 7, range, wait: true }));
    }

    #[test]
    fn an_entry_reads_as_it_is_specified() {
        let attributes = Attributes {
            kind: NodeKind::Directory,
            size: 1,
            allocated: 2,
            modified: FileTime(3),
            accessed: FileTime(4),
            created: FileTime(5),
            links: 6,
            flags: AttributeFlags { executable: true, ..AttributeFlags::default() },
        };
        let entry = Entry {
            node: 9,
            attributes,
            name_valid: Duration::from_nanos(7),
            attributes_valid: Duration::from_nanos(8),
        };
        let number = |number: u8| [number, 0, 0, 0, 0, 0, 0, 0];
        let bytes = [
            [0x01, 0x01, 0, 0].as_slice(),
            &number(9),
            &[2],
            &[number(1), number(2), number(3), number(4), number(5)].concat(),
            &[6, 0, 0, 0, 0x10, 0],
            &number(7),
            &number(8),
        ]
        .concat();
        assert_eq!(Response::Entry { entry }.encode(), bytes);
        assert_eq!(Response::decode(&bytes), Ok(Response::Entry { entry }));
    }

    #[test]
    fn what_is_read_and_written_is_bounded() {
        assert_eq!(usize::try_from(IoLength::MAX), Ok(MAX_IO));
        let mut write = vec![0x07, 0x01, 0, 0];
        write.extend([0; 16]);
        write.extend(1_048_577u32.to_le_bytes());
        write.resize(write.len() + 1_048_577, 0);
        assert!(Request::decode(&write).is_err());
    }

    #[test]
    fn what_was_not_done_says_why() {
        assert_eq!(Response::decode(&[0xff, 0xff, 0, 0, 6, 0]), Ok(Response::Failed { error: FolderError::NotEmpty }));
        assert!(Response::decode(&[0xff, 0xff, 0, 0, 0, 0]).is_err());
    }
}
