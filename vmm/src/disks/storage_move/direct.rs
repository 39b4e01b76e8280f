//! Comparing the two places of a disk in their files, past the processes that have them open.
//!
//! Most of a comparison is copying bytes, and through the sockets of a storage daemon each is copied three times. Where both
//! places are files of this machine, `qemu-img` tells where in them the disk's bytes are, and they are read from there. What
//! is not shown to be the same in this way is left for [`super::compare`]: nothing depends on a map that is out of date.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::compare::{Look, lock};
use super::ranges::Ranges;
use crate::definition::{Disk, DiskFormat};
use crate::disks::qemu_img::QemuImg;

/// So much of a disk is mapped at a time: the map of the most scattered qcow2 image of this size fits in an answer.
const WINDOW: u64 = 2 << 30;
/// What is read at a time. It stays in the processor's cache between being read and being compared.
const PIECE: u64 = 256 * 1024;
/// How many readers there are.
const READERS: usize = 2;

/// A place whose bytes are in a file of this machine.
#[derive(Debug, Clone)]
pub(super) struct Local {
    file: Arc<File>,
    path: PathBuf,
    format: DiskFormat,
}

/// Where in its file a window of a disk is.
#[derive(Debug, PartialEq, Eq)]
struct Map(Vec<Part>);

#[derive(Debug, PartialEq, Eq)]
struct Part {
    range: Range<u64>,
    at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The part begins there in the file.
    Offset(u64),
    /// It reads as zeros and is nowhere.
    Nowhere,
    /// In another file, or there in another form.
    Elsewhere,
}

/// A line of `qemu-img map --output=json`.
#[derive(Debug, Deserialize)]
struct Extent {
    start: u64,
    length: u64,
    depth: u64,
    zero: bool,
    data: bool,
    #[serde(default)]
    compressed: bool,
    offset: Option<u64>,
}

impl Local {
    /// The place of a disk, if it is a file that can be read so.
    pub(super) fn of(disk: &Disk) -> Option<Self> {
        let path = disk.source.path()?;
        let file = File::open(path).ok()?;
        let is_file = file.metadata().ok()?.is_file();
        is_file.then(|| Self { file: Arc::new(file), path: path.into(), format: disk.format })
    }

    /// Where a window of the disk is; nothing of it, if that cannot be told.
    async fn map(&self, program: &QemuImg, window: &Range<u64>) -> Map {
        if self.format == DiskFormat::Raw {
            return Map(vec![Part { range: window.clone(), at: At::Offset(window.start) }]);
        }
        // It takes no locks: whoever fills an image lets nobody else read it.
        let image = json!({ "driver": self.format.driver(),
                            "file": { "driver": "file", "filename": self.path, "locking": "off" } });
        let length = window.end - window.start;
        let arguments = ["map", "-U", "--output=json"].map(Into::into).into_iter().chain([
            format!("--start-offset={}", window.start).into(),
            format!("--max-length={length}").into(),
            "--".into(),
            format!("json:{image}").into(),
        ]);
        let extents: Result<Vec<Extent>, _> = program.ask_about(&self.path, arguments.collect()).await;
        extents.map_or(Map(Vec::new()), Map::of)
    }

    /// Reads the bytes from `at` on; false when they are not in the file.
    fn read(&self, map: &Map, at: u64, bytes: &mut [u8]) -> bool {
        let mut left = bytes;
        let mut at = at;
        while !left.is_empty() {
            let Some(part) = map.part(at) else { return false };
            let here = usize::try_from(part.range.end - at).unwrap_or(usize::MAX).min(left.len());
            let (now, rest) = left.split_at_mut(here);
            match part.at {
                At::Nowhere => now.fill(0),
                At::Offset(offset) => {
                    let Some(position) = offset.checked_add(at - part.range.start) else { return false };
                    if self.file.read_exact_at(now, position).is_err() {
                        return false;
                    }
                }
                At::Elsewhere => return false,
            }
            at += here as u64;
            left = rest;
        }
        true
    }
}

impl Map {
    fn of(extents: Vec<Extent>) -> Self {
        let parts = extents.into_iter().map(|extent| {
            let at = match extent.offset {
                _ if extent.zero => At::Nowhere,
                // An offset in what the image stands on is one in another file.
                Some(offset) if extent.data && !extent.compressed && extent.depth == 0 => At::Offset(offset),
                _ => At::Elsewhere,
            };
            Part { range: extent.start..extent.start.saturating_add(extent.length), at }
        });
        Self(parts.collect())
    }

    /// What there is at a position.
    fn part(&self, at: u64) -> Option<&Part> {
        let after = self.0.partition_point(|part| part.range.end <= at);
        self.0.get(after).filter(|part| part.range.contains(&at))
    }
}

/// Reads `ranges` in both places. What cannot be read so counts as different. `seen` is told how many bytes more have been
/// compared.
pub(super) async fn look(
    program: &QemuImg,
    places: [&Local; 2],
    ranges: &Ranges,
    seen: impl Fn(u64),
) -> io::Result<Look> {
    let mut look = Look::default();
    for window in windows(ranges) {
        let whole = window.start..window.start.saturating_add(WINDOW);
        let (ours, theirs) = tokio::join!(places[0].map(program, &whole), places[1].map(program, &whole));
        let [source, target] = places.map(Local::clone);
        let work = Work::new([(source, ours), (target, theirs)], &window.ranges);
        look.extend(work.done(&seen).await?);
    }
    Ok(look)
}

/// A part of the disk that has one map, and what is to be read of it.
struct Window {
    start: u64,
    ranges: Ranges,
}

fn windows(ranges: &Ranges) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    for piece in ranges.pieces(WINDOW) {
        let start = piece.start / WINDOW * WINDOW;
        match windows.last_mut().filter(|last| last.start == start) {
            Some(last) => last.ranges.insert(piece),
            None => {
                let mut ranges = Ranges::default();
                ranges.insert(piece);
                windows.push(Window { start, ranges });
            }
        }
    }
    windows
}

/// A window that is read.
#[derive(Debug)]
struct Work {
    places: [(Local, Map); 2],
    pieces: Mutex<std::vec::IntoIter<Range<u64>>>,
}

/// Ends the reading when nobody waits for it any more.
struct Waits(Arc<Work>);

impl Drop for Waits {
    fn drop(&mut self) {
        *lock(&self.0.pieces) = Vec::new().into_iter();
    }
}

impl Work {
    fn new(places: [(Local, Map); 2], ranges: &Ranges) -> Arc<Self> {
        let pieces: Vec<Range<u64>> = ranges.pieces(PIECE).collect();
        Arc::new(Self { places, pieces: Mutex::new(pieces.into_iter()) })
    }

    async fn done(self: Arc<Self>, seen: &impl Fn(u64)) -> io::Result<Look> {
        let waits = Waits(self);
        let (tell, mut told) = mpsc::channel(READERS);
        let mut readers = JoinSet::new();
        for _ in 0..READERS {
            let (work, tell) = (waits.0.clone(), tell.clone());
            readers.spawn_blocking(move || work.read(&tell));
        }
        drop(tell);
        while let Some(bytes) = told.recv().await {
            seen(bytes);
        }
        let mut look = Look::default();
        while let Some(theirs) = readers.join_next().await {
            look.extend(theirs.map_err(io::Error::other)?);
        }
        Ok(look)
    }

    /// Compares pieces until there are none left.
    fn read(&self, tell: &mpsc::Sender<u64>) -> Look {
        let (mut look, mut ours, mut theirs) = (Look::default(), Vec::new(), Vec::new());
        let next = || lock(&self.pieces).next();
        let [(source, source_map), (target, target_map)] = &self.places;
        while let Some(piece) = next() {
            let length = piece.end - piece.start;
            // A piece is far smaller.
            let size = usize::try_from(length).unwrap_or(0);
            ours.resize(size, 0);
            theirs.resize(size, 0);
            let is_read =
                source.read(source_map, piece.start, &mut ours) && target.read(target_map, piece.start, &mut theirs);
            look.judge(&piece, &ours, if is_read { &theirs } else { &[] });
            if tell.blocking_send(length).is_err() {
                break;
            }
        }
        look
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(json: &str) -> Map {
        Map::of(serde_json::from_str(json).expect("extents"))
    }

    #[test]
    fn only_what_is_in_the_file_itself_has_a_place() {
        let map = extents(
            r#"[{ "start": 0, "length": 10, "depth": 0, "present": true, "zero": false, "data": true, "offset": 500 },
                { "start": 10, "length": 10, "depth": 1, "present": true, "zero": false, "data": true, "offset": 500 },
                { "start": 20, "length": 10, "depth": 0, "zero": false, "data": true, "compressed": true, "offset": 7 },
                { "start": 30, "length": 10, "depth": 0, "present": true, "zero": false, "data": true },
                { "start": 40, "length": 10, "depth": 1, "present": false, "zero": true, "data": false },
                { "start": 60, "length": 10, "depth": 0, "present": true, "zero": true, "data": false, "offset": 9 }]"#,
        );
        let at = |position| map.part(position).map(|part| part.at);
        assert_eq!([at(0), at(9)], [Some(At::Offset(500)); 2]);
        assert_eq!([at(10), at(20), at(30)], [Some(At::Elsewhere); 3]);
        assert_eq!([at(45), at(60)], [Some(At::Nowhere); 2]);
        assert_eq!([at(50), at(70)], [None; 2], "what is not told is not known");
    }

    #[test]
    fn a_window_is_asked_for_once() {
        let mut ranges = Ranges::default();
        for range in [5..10, WINDOW - 5..WINDOW + 5, 3 * WINDOW..3 * WINDOW + 1] {
            ranges.insert(range);
        }
        let windows = windows(&ranges);
        let starts: Vec<_> = windows.iter().map(|window| (window.start, window.ranges.length())).collect();
        assert_eq!(starts, [(0, 10), (WINDOW, 5), (3 * WINDOW, 1)]);
    }

    #[tokio::test]
    async fn bytes_are_compared_where_the_map_says_and_else_differ() {
        let folder = std::env::temp_dir().join(format!("fanlight-direct-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        let local = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).expect("written");
            Local { file: Arc::new(File::open(&path).expect("opens")), path, format: DiskFormat::Raw }
        };
        let grain = 64 * 1024;
        let text: Vec<u8> = (0..4 * grain).map(|at| (at / 7 % 251) as u8).collect();
        // The halves are the other way round, and the last quarter is missing.
        let turned = [&text[2 * grain..3 * grain], &text[..2 * grain]].concat();
        let (source, target) = (local("source", &text), local("target", &turned));
        let part = |start: usize, end: usize, at| Part { range: start as u64 * 65536..end as u64 * 65536, at };
        let ours = Map(vec![part(0, 4, At::Offset(0)), part(4, 6, At::Nowhere)]);
        let theirs = Map(vec![
            part(0, 2, At::Offset(65536)),
            part(2, 4, At::Offset(0)),
            part(4, 5, At::Nowhere),
            part(5, 6, At::Elsewhere),
        ]);
        let work = Work::new([(source, ours), (target, theirs)], &Ranges::whole(6 * 65536));
        let seen = Mutex::new(0);
        let look = work.done(&|bytes| *lock(&seen) += bytes).await.expect("read");
        std::fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(*lock(&seen), 6 * 65536);
        let differ: Vec<_> = look.differ.iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(differ, [(3 * 65536, 6 * 65536)]);
    }
}
