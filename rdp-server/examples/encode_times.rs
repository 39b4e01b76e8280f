//! How long pictures take to encode, next to what the memory of this machine allows.
//!
//! `cargo run --release -p rdp-server --example encode_times [PAGE...]`
//!
//! A page is a file of 1920 × 1080 pixels, 4 bytes each (blue, green, red, unused); without any, pages of letters
//! are drawn. Times are medians; the client acknowledges everything at once.

use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::{DamageSet, DisplayUpdate, Rect, Scanout, Size};
use ironrdp_pdu::gcc::ClientEarlyCapabilityFlags;
use ironrdp_pdu::rdp::capability_sets::EntropyBits;
use rdp_server::graphics::{ClientGraphics, GraphicsMode, GraphicsOutput, Pipeline, RemoteFxSupport};

const SIZE: Size = Size::new(1920, 1080);
const BYTES: usize = 1920 * 1080 * 4;
const ROUNDS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<_> = std::env::args().skip(1).collect();
    let mut pages = Vec::new();
    for file in &files {
        pages.push(std::fs::read(file)?);
    }
    if pages.is_empty() {
        pages = (0..4).map(letters).collect();
    }
    if pages.iter().any(|page| page.len() != BYTES) {
        return Err(format!("a page has {BYTES} bytes").into());
    }

    ceilings(&pages);
    if pages.len() > 1 {
        page_flips("EGFX", Path::Egfx, &pages);
        page_flips("RemoteFX", Path::RemoteFx, &pages);
        page_flips("bitmaps", Path::Bitmap, &pages);
    }
    typing(&pages[0]);
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Path {
    Egfx,
    RemoteFx,
    Bitmap,
}

/// What reading, comparing and copying a picture takes when it is not in any cache.
fn ceilings(pages: &[Vec<u8>]) {
    // More than the last-level cache holds.
    let many: Vec<Vec<u8>> = (0..24).map(|at| pages[at % pages.len()].clone()).collect();
    let mut target = vec![0_u8; BYTES];
    let mut at = 0;
    let compare = median(|| {
        at = (at + 2) % many.len();
        let (a, b) = (&many[at], &many[at + 1]);
        // Equal pictures have to be read to the end; so do unequal ones, row by row.
        time(|| a.chunks_exact(7680).zip(b.chunks_exact(7680)).filter(|(a, b)| black_box(a) == black_box(b)).count())
    });
    let copy = median(|| {
        at = (at + 1) % many.len();
        time(|| target.copy_from_slice(black_box(&many[at])))
    });
    println!("memcmp of two pictures  {compare:>10.3?}");
    println!("memcpy of one picture   {copy:>10.3?}");

    let mut session = Session::new(Path::Egfx);
    session.flip(&pages[0]);
    session.settle();
    let scan = median(|| {
        // Evict what the last round left in the caches.
        black_box(many.iter().flat_map(|page| page.iter().step_by(64)).map(|byte| u64::from(*byte)).sum::<u64>());
        session.damage(SIZE.rect());
        time(|| session.poll())
    });
    println!("scan without change     {scan:>10.3?}  {:.2} x (memcmp + memcpy)", ratio(scan, compare + copy));
}

/// From one page to the next, everything damaged.
fn page_flips(name: &str, path: Path, pages: &[Vec<u8>]) {
    let mut session = Session::new(path);
    let started = Instant::now();
    session.flip(&pages[0]);
    let first_bytes = session.settle();
    println!("{name}: first picture    {:>10.3?}  {first_bytes} bytes", started.elapsed());
    let (mut bytes, mut frames) = (0, 0);
    let flip = median(|| {
        frames += 1;
        session.flip(&pages[frames % pages.len()]);
        let started = Instant::now();
        bytes += session.settle();
        started.elapsed()
    });
    println!("{name}: page flip        {flip:>10.3?}  {} bytes", bytes / frames);
}

/// One letter at a time.
fn typing(page: &[u8]) {
    let mut session = Session::new(Path::Egfx);
    session.flip(page);
    session.settle();
    let mut sizes = Vec::new();
    let mut x = 0;
    let glyph = median(|| {
        x += 8;
        let rect = Rect::new(x, 512, 8, 16);
        session.picture.draw(rect, |pixel_x, pixel_y| if letter(pixel_x, pixel_y, x) { 0x00aa_aaaa } else { 0 });
        session.damage(rect);
        let started = Instant::now();
        sizes.push(session.poll());
        started.elapsed()
    });
    sizes.sort_unstable();
    println!(
        "one letter              {glyph:>10.3?}  {} bytes, at most {}",
        sizes[sizes.len() / 2],
        sizes[sizes.len() - 1]
    );
}

struct Session {
    now: Instant,
    picture: Arc<Picture>,
    pipeline: Pipeline,
    frame: u32,
}

impl Session {
    fn new(path: Path) -> Self {
        let now = Instant::now();
        let mut client = ClientGraphics::from_handshake(&[], ClientEarlyCapabilityFlags::empty(), 32);
        client.egfx = path == Path::Egfx;
        client.max_request_size = 1 << 20;
        if path == Path::RemoteFx {
            client.remote_fx = Some(RemoteFxSupport { codec_id: 3, entropy: EntropyBits::Rlgr3 });
        }
        let mut pipeline = Pipeline::new(client, SIZE, now);
        if path == Path::Egfx {
            pipeline.gfx_opened(now);
            // RDPGFX_CAPS_ADVERTISE_PDU with version 8.
            let advertise = [0x12, 0, 0, 0, 22, 0, 0, 0, 1, 0, 4, 0, 8, 0, 4, 0, 0, 0, 0, 0, 0, 0];
            pipeline.handle_gfx_message(now, &advertise).expect("this is a proper advertisement");
            assert!(matches!(pipeline.mode(), GraphicsMode::Egfx { .. }));
        }
        let picture = Arc::new(Picture { pixels: Mutex::new(vec![0; BYTES]) });
        let mut session = Self { now, picture, pipeline, frame: 0 };
        session.damage(SIZE.rect());
        session.settle();
        session
    }

    fn flip(&mut self, page: &[u8]) {
        self.picture.pixels.lock().unwrap_or_else(PoisonError::into_inner).copy_from_slice(page);
        self.damage(SIZE.rect());
    }

    fn damage(&mut self, rect: Rect) {
        let mut damage = DamageSet::new();
        damage.add(rect);
        self.pipeline.update(DisplayUpdate { scanout: Some(self.picture.clone()), damage, ..DisplayUpdate::default() });
    }

    /// One output; returns its length.
    fn poll(&mut self) -> usize {
        let output = self.pipeline.poll_output(self.now);
        let bytes = match &output {
            Some(GraphicsOutput::Gfx(bytes) | GraphicsOutput::FastPath(bytes)) => bytes.len(),
            _ => 0,
        };
        if matches!(output, Some(GraphicsOutput::Gfx(_))) {
            self.acknowledge();
        }
        bytes
    }

    fn settle(&mut self) -> usize {
        std::iter::from_fn(|| Some(self.poll()).filter(|bytes| *bytes > 0)).sum()
    }

    /// RDPGFX_FRAME_ACKNOWLEDGE_PDU for every frame so far.
    fn acknowledge(&mut self) {
        let mut ack = vec![0x0d, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0];
        ack.extend_from_slice(&self.frame.to_le_bytes());
        ack.extend_from_slice(&[0; 4]);
        self.pipeline.handle_gfx_message(self.now, &ack).expect("this is a proper acknowledgement");
        self.frame += 1;
    }
}

struct Picture {
    pixels: Mutex<Vec<u8>>,
}

impl Picture {
    fn draw(&self, rect: Rect, color: impl Fn(u32, u32) -> u32) {
        let mut pixels = self.pixels.lock().unwrap_or_else(PoisonError::into_inner);
        for y in rect.y..rect.bottom() {
            for x in rect.x..rect.right() {
                let at = (y as usize * 1920 + x as usize) * 4;
                pixels[at..at + 4].copy_from_slice(&color(x, y).to_le_bytes());
            }
        }
    }
}

impl Scanout for Picture {
    fn size(&self) -> Size {
        SIZE
    }

    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
        let pixels = self.pixels.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = rect.width as usize * 4;
        for row in 0..rect.height as usize {
            let start = ((rect.y as usize + row) * 1920 + rect.x as usize) * 4;
            into[row * stride..][..bytes].copy_from_slice(&pixels[start..start + bytes]);
        }
    }
}

/// A page of letters, each line a bit longer or shorter.
fn letters(seed: u32) -> Vec<u8> {
    let picture = Picture { pixels: Mutex::new(vec![0; BYTES]) };
    picture.draw(SIZE.rect(), |x, y| {
        let line_length = 300 + y / 16 * 7919 % 1500;
        if x < line_length && letter(x, y, seed * 977 + x / 8 + y / 16 * 240) { 0x00aa_aaaa } else { 0 }
    });
    picture.pixels.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a pixel of a cell of 8 by 16 is lit, for one of 64 letters.
fn letter(x: u32, y: u32, which: u32) -> bool {
    let strokes = (which.wrapping_mul(0x9e37_79b1) >> 26).wrapping_mul(0x85eb_ca77) ^ 0x5bd1_e995;
    (2..13).contains(&(y % 16)) && x % 8 != 7 && strokes.rotate_left(y % 16 / 2 * 3 + x % 8 / 2) & 1 == 1
}

fn median(mut round: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS).map(|_| round()).collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn time<T>(work: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    black_box(work());
    started.elapsed()
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
