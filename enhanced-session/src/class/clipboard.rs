//! The clipboard. (`docs/bus.md`, section 9.5)
//!
//! Both ends say the same things: [`ToGuest`] and [`ToHost`] are one type. Who copied offers what there is, without the
//! data; who wants to paste asks for one format, piece by piece, and decides so how fast it comes. Files are a format
//! of their own: a list, and pieces of their contents.
//!
//! The newest offer is the clipboard, of whichever end it is. Each names the last offer that its sender had heard of.
//! When two cross (the host gets one that does not name its own last) the host's stays: the host ignores the guest's,
//! the guest takes the host's. Data of an older offer can be asked for as long as it is locked.
//!
//! ```text
//! A                                                          B
//! Offer { serial: 4, seen: 9, [7 "text/plain…"] }       ──▶
//!                                                       ◀──  Request Read { serial: 4, format: 7, offset: 0, length }
//! Response Piece { total: 700000, 524288 bytes }        ──▶
//!                                                       ◀──  Request Read { serial: 4, format: 7, offset: 524288, … }
//! Response Piece { total: 700000, 175712 bytes }        ──▶
//!                                                       ◀──  Offer { serial: 10, seen: 4, … }    the clipboard is B's
//! ```

use super::bounded::{Data, List, Text};
use super::define::{codes, flags, messages, ranged, record};
use super::file_time::FileTime;
pub use super::name::{MAX_NAME, MAX_PATH, Path};

/// Most formats of an offer.
pub const MAX_FORMATS: usize = 64;
/// Longest name of a format, in bytes.
pub const MAX_FORMAT_NAME: usize = 128;
/// Longest piece, in bytes.
pub const MAX_PIECE: usize = 512 * 1024;
/// Most files that one answer lists.
pub const MAX_LISTED: usize = 512;
/// Most files of an offer.
pub const MAX_FILES: u32 = 100_000;
/// Most locked offers per end; who locks more loses the oldest lock.
pub const MAX_LOCKS: usize = 16;

/// Names of formats that every end should know. Others are allowed; names are compared to the byte.
pub mod format {
    /// Text, UTF-8, lines end with LF.
    pub const TEXT: &str = "text/plain;charset=utf-8";
    /// HTML, UTF-8, without the header that Windows puts before it.
    pub const HTML: &str = "text/html";
    /// Rich text.
    pub const RTF: &str = "text/rtf";
    /// A picture.
    pub const PNG: &str = "image/png";
    /// Files: see [`FormatFlags::files`](super::FormatFlags::files).
    pub const FILES: &str = "application/x-fanlight-files";
}

/// What the host sends unasked.
pub type ToGuest = Message;
/// What the guest sends unasked.
pub type ToHost = Message;

messages! {
    /// What either end sends unasked.
    pub enum Message {
        /// What this end can do: first, and when that changes.
        Capabilities = 0x01 {
            /// What.
            capabilities: Capabilities,
            /// Most bytes of one format, files excepted, that it will paste.
            max_bytes: u64,
        },
        /// Something was copied: the clipboard is this end's.
        Offer = 0x02 {
            /// The sender's number for it, one more with each.
            serial: u32,
            /// The last serial that it had from the other end, 0 if none.
            seen: u32,
            /// What there is, the most telling first. None: the clipboard is empty.
            formats: List<Format, MAX_FORMATS>,
        },
        /// The receiver's offer will be asked for even when it is no longer the clipboard.
        Lock = 0x03 {
            /// The receiver's.
            serial: u32,
        },
        /// No more.
        Unlock = 0x04 {
            /// The receiver's.
            serial: u32,
        },
        /// The rest of a format is not wanted: requests for it that are open are answered with
        /// [`ClipboardError::Canceled`], and what was prepared can go.
        Cancel = 0x05 {
            /// The receiver's.
            serial: u32,
            /// Of that offer.
            format: u32,
        },
    }
}

messages! {
    /// What either end asks of the other's offer.
    pub enum Request {
        /// A piece of a format.
        Read = 0x101 {
            /// The receiver's offer.
            serial: u32,
            /// Of that offer; not one of files.
            format: u32,
            /// Where the piece begins, in bytes.
            offset: u64,
            /// How long it may be, in bytes.
            length: PieceLength,
        },
        /// Some of the files.
        ListFiles = 0x102 {
            /// The receiver's offer.
            serial: u32,
            /// Of that offer; one of files.
            format: u32,
            /// The first to be listed, from 0.
            first: u32,
        },
        /// A piece of a file.
        ReadFile = 0x103 {
            /// The receiver's offer.
            serial: u32,
            /// Of that offer; one of files.
            format: u32,
            /// Its place in the list.
            file: u32,
            /// Where the piece begins, in bytes.
            offset: u64,
            /// How long it may be, in bytes.
            length: PieceLength,
        },
    }
}

messages! {
    /// What the other answers.
    pub enum Response {
        /// It does not know the request.
        Unsupported = 0,
        /// To [`Request::Read`]. Shorter than was asked for only at the end.
        Piece = 0x101 {
            /// Bytes of all of it; the same in each answer.
            total: u64,
            /// From the offset that was asked for.
            data: Data<MAX_PIECE>,
        },
        /// To [`Request::ListFiles`]. Fewer than `total` less `first`: to be asked again from there. Never none
        /// before the end.
        Files = 0x102 {
            /// All files of the format, at most [`MAX_FILES`]; the same in each answer.
            total: u32,
            /// From the first that was asked for.
            files: List<File, MAX_LISTED>,
        },
        /// To [`Request::ReadFile`]. Shorter than was asked for only at the end of the file.
        FilePiece = 0x103 {
            /// From the offset that was asked for.
            data: Data<MAX_PIECE>,
        },
        /// To all of them.
        Failed = 0xffff {
            /// Why.
            error: ClipboardError,
        },
    }
}

flags! {
    /// What an end can do with the other's offers.
    pub struct Capabilities: u32 {
        /// Paste files.
        pub files = 1,
    }
}

record! {
    /// One form of what was copied.
    pub struct Format {
        /// Its number, once in an offer.
        pub id: u32,
        /// What it is: a media type, or the name that the sender's system has for it.
        pub name: Text<MAX_FORMAT_NAME>,
        /// More about it.
        pub flags: FormatFlags,
        /// How many bytes it will be; none if it must be made first.
        pub size: Option<u64>,
    }
}

flags! {
    /// More about a format.
    pub struct FormatFlags: u16 {
        /// It stands for files: to be read by [`Request::ListFiles`] and [`Request::ReadFile`].
        pub files = 1,
        /// A password or the like: not to be kept in a history.
        pub secret = 2,
    }
}

record! {
    /// A file or folder that was copied. A folder stands before what is in it.
    pub struct File {
        /// Where it is below the place to which it is pasted.
        pub path: Path,
        /// Bytes; 0 for a folder.
        pub size: u64,
        /// More about it.
        pub flags: FileFlags,
        /// When it was last written, if that is known.
        pub modified: Option<FileTime>,
    }
}

flags! {
    /// More about a file.
    pub struct FileFlags: u16 {
        /// It is a folder.
        pub directory = 1,
        /// It is not to be written.
        pub read_only = 2,
        /// It is not to be shown.
        pub hidden = 4,
        /// It is a program.
        pub executable = 8,
    }
}

ranged! {
    /// Bytes of a piece.
    pub struct PieceLength(u32) = 1..=524_288;
}

codes! {
    /// Why there is nothing to paste.
    pub enum ClipboardError: u16 {
        /// The offer is not the clipboard any more, and not locked.
        Stale = 1,
        /// The offer has no such format, or it is not of this sort.
        NoFormat = 2,
        /// The format has no such file, or it is a folder.
        NoFile = 3,
        /// Who asked gave up.
        Canceled = 4,
        /// The rules of this end do not allow it.
        NotAllowed = 5,
        /// It is more than the ends can carry.
        TooLarge = 6,
        /// The program that copied did not give it.
        Failed = 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_reads_as_it_is_specified() {
        let offer = Message::Offer {
            serial: 4,
            seen: 9,
            formats: List::from([Format {
                id: 7,
                name: Text::new("a/b").expect("it fits"),
                flags: FormatFlags { files: false, secret: true },
                size: Some(3),
            }]),
        };
        let bytes = [
            [0x02, 0, 0, 0, 4, 0, 0, 0, 9, 0, 0, 0, 1, 0].as_slice(),
            &[7, 0, 0, 0, 3, 0, b'a', b'/', b'b', 2, 0, 1, 3, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(offer.encode(), bytes);
        assert_eq!(ToGuest::decode(&bytes), Ok(offer));
    }

    #[test]
    fn files_read_as_they_are_specified() {
        let answer = [
            [0x02, 0x01, 0, 0, 2, 0, 0, 0, 1, 0].as_slice(),
            &[3, 0, b'a', b'/', b'b', 5, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0],
        ]
        .concat();
        let file = File {
            path: Path::new("a/b").expect("a path"),
            size: 5,
            flags: FileFlags { executable: true, ..FileFlags::default() },
            modified: None,
        };
        assert_eq!(Response::decode(&answer), Ok(Response::Files { total: 2, files: List::from([file]) }));
    }

    #[test]
    fn a_file_cannot_be_pasted_above_the_place_it_is_pasted_to() {
        let answer =
            [0x02, 0x01, 0, 0, 1, 0, 0, 0, 1, 0, 4, 0, b'.', b'.', b'/', b'b', 5, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
        assert!(Response::decode(&answer).is_err());
    }

    #[test]
    fn a_piece_is_bounded() {
        let read = |length: u32| {
            let mut bytes = vec![0x01, 0x01, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(length.to_le_bytes());
            Request::decode(&bytes)
        };
        assert!(read(1).is_ok() && read(524_288).is_ok());
        assert!(read(0).is_err() && read(524_289).is_err());
        assert_eq!(usize::try_from(PieceLength::MAX), Ok(MAX_PIECE));
    }
}
