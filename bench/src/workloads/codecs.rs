//! What the graphics pipeline costs by itself, in ratios to what the memory of this machine allows.
//!
//! Every round does each case once, so that a slow moment hits all of them; medians are over the rounds. Between two
//! runs of a case the ceilings walk through more memory than any cache holds: the cases start cold, as they do in a
//! gateway that has had nothing to do since the last frame.

use std::hint::black_box;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use console::{DamageSet, DisplayUpdate, Rect, Scanout, Size};
use ironrdp_core::encode_vec;
use ironrdp_pdu::rdp::capability_sets::EntropyBits;
use rdp_server::graphics::{
    BitmapHeader, ClientGraphics, ColorDepth, GraphicsOutput, Pipeline, PointerSupport, RemoteFxSupport,
};
use serde_json::json;

use super::page::{PIXEL, Page};
use crate::machine::Span;
use crate::report::{Report, Row, median};
use fanlight_tests::headless::{Decode, Screen, SharedScreen};

const SIZE: Size = Size::new(1920, 1080);
/// Together larger than the caches of any machine this runs on.
const COLD_FRAMES: usize = 24;
const ROUNDS: usize = 15;
/// Real text: what is on the pages.
const TEXT: &str = concat!(
    include_str!("codecs.rs"),
    include_str!("page.rs"),
    include_str!("../../../tests/src/headless/mod.rs"),
    include_str!("../../../tests/src/headless/connect.rs"),
    include_str!("../../../tests/src/headless/picture.rs"),
    include_str!("../report.rs"),
);

/// Runs everything.
pub(crate) fn run() -> Result<Report> {
    let span = Span::start(&[])?;
    let mut ceilings = Ceilings::new(&Page::text(SIZE, TEXT, 0));
    let mut cases = cases();
    for case in &mut cases {
        case.start()?;
    }
    for round in 1..=ROUNDS {
        for case in &mut cases {
            let damage = case.draw(round);
            let ceiling = ceilings.measure();
            case.measure(damage, ceiling)?;
            case.check()?;
        }
    }
    report(&ceilings, &cases, span.foreign()?)
}

/// A monitor that shows one page after the other.
struct Slides(Mutex<Page>);

impl Slides {
    fn page(&self) -> MutexGuard<'_, Page> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scanout for Slides {
    fn size(&self) -> Size {
        SIZE
    }

    fn copy_rect(&self, rect: Rect, into: &mut [u8], stride: usize) {
        self.page().copy_rect(rect, into, stride);
    }
}

/// How fast the memory is.
struct Ceilings {
    frames: Vec<Vec<u8>>,
    target: Vec<u8>,
    next: usize,
    all: Vec<Ceiling>,
}

/// Seconds for one whole frame.
#[derive(Clone, Copy)]
struct Ceiling {
    read: f64,
    compare: f64,
    copy: f64,
}

impl Ceilings {
    fn new(page: &Page) -> Self {
        let frames = vec![page.bytes().to_vec(); COLD_FRAMES];
        Self { frames, target: page.bytes().to_vec(), next: 0, all: Vec::new() }
    }

    /// Each once, on frames that were not touched for a while.
    fn measure(&mut self) -> Ceiling {
        let quarter = |quarters: usize| (self.next + quarters * COLD_FRAMES / 4) % COLD_FRAMES;
        let (one, other, copied, read) = (quarter(0), quarter(1), quarter(2), quarter(3));
        let Self { frames, target, .. } = self;
        let ceiling = Ceiling {
            compare: seconds(|| assert!(black_box(&frames[one]) == black_box(&frames[other]))),
            copy: seconds(|| black_box(&mut *target).copy_from_slice(black_box(&frames[copied]))),
            read: seconds(|| {
                let words = black_box(&frames[read]).chunks_exact(8);
                let word = |word: &[u8]| u64::from_le_bytes(word.try_into().unwrap_or_default());
                black_box(words.fold(0_u64, |sum, bytes| sum.wrapping_add(word(bytes))));
            }),
        };
        self.next = (self.next + 1) % COLD_FRAMES;
        self.all.push(ceiling);
        ceiling
    }

    fn median(&self, which: fn(&Ceiling) -> f64) -> f64 {
        median(&self.all.iter().map(which).collect::<Vec<_>>())
    }
}

/// One client's pipeline and what it is shown.
struct Case {
    name: &'static str,
    pipeline: Pipeline,
    /// The other end, for clients with the graphics channel.
    screen: Option<SharedScreen>,
    slides: Arc<Slides>,
    /// Changes the page for a round; returns what a guest would say has changed.
    draw: fn(&mut Page, usize) -> Rect,
    results: Vec<Shown>,
}

/// One picture sent.
struct Shown {
    seconds: f64,
    bytes: usize,
    /// Measured just before.
    ceiling: Ceiling,
}

fn cases() -> Vec<Case> {
    let remote_fx = RemoteFxSupport { codec_id: 3, entropy: EntropyBits::Rlgr3 };
    let remote_fx = || ClientGraphics { remote_fx: Some(remote_fx), surface_frames: Some(8), ..client(false) };
    vec![
        Case::new("scan, nothing changed", client(true), |_, _| SIZE.rect()),
        Case::new("glyph, tight damage", client(true), type_one),
        Case::new("glyph, whole screen damaged", client(true), |page, round| {
            type_one(page, round);
            SIZE.rect()
        }),
        Case::new("text page", client(true), turn_page),
        Case::new("text scrolled by 3 lines", client(true), |page, round| {
            *page = Page::text(SIZE, TEXT, 3 * round);
            SIZE.rect()
        }),
        Case::new("RemoteFX: text page", remote_fx(), turn_page),
        Case::new("RemoteFX: photo", remote_fx(), |page, round| {
            *page = Page::photo(SIZE, round);
            SIZE.rect()
        }),
        Case::new("bitmaps: text page", client(false), turn_page),
    ]
}

fn type_one(page: &mut Page, round: usize) -> Rect {
    let typed = "the quick brown fox jumps over the lazy dog".chars().cycle().nth(round).unwrap_or('x');
    page.type_character(typed, 20 + u32::try_from(round).unwrap_or(0), 30)
}

fn turn_page(page: &mut Page, round: usize) -> Rect {
    *page = Page::text(SIZE, TEXT, 60 * round);
    SIZE.rect()
}

fn client(egfx: bool) -> ClientGraphics {
    ClientGraphics {
        egfx,
        remote_fx: None,
        surface_frames: None,
        color_depth: ColorDepth::Bpp32,
        bitmap_header: BitmapHeader::Omitted,
        desktop_resize: true,
        pointer: PointerSupport { cache_size: 25, color_cache_size: 25, max_side: 384 },
        max_request_size: 3 << 20,
    }
}

impl Case {
    fn new(name: &'static str, client: ClientGraphics, draw: fn(&mut Page, usize) -> Rect) -> Self {
        let screen = client.egfx.then(|| SharedScreen::new(Decode::Pixels));
        let pipeline = Pipeline::new(client, SIZE, Instant::now());
        let slides = Arc::new(Slides(Mutex::new(Page::text(SIZE, TEXT, 0))));
        Self { name, pipeline, screen, slides, draw, results: Vec::new() }
    }

    /// Opens the channel and sends the first picture.
    fn start(&mut self) -> Result<()> {
        match &self.screen {
            Some(_) => {
                self.pipeline.gfx_opened(Instant::now());
                self.pipeline.handle_gfx_message(Instant::now(), &encode_vec(&Screen::hello())?)?;
            }
            None => self.pipeline.gfx_closed(),
        }
        self.show(DamageSet::full(SIZE), true)?;
        self.check()
    }

    fn draw(&mut self, round: usize) -> DamageSet {
        let mut damage = DamageSet::new();
        damage.add((self.draw)(&mut self.slides.page(), round));
        damage
    }

    fn measure(&mut self, damage: DamageSet, ceiling: Ceiling) -> Result<()> {
        let (seconds, bytes) = self.show(damage, false)?;
        self.results.push(Shown { seconds, bytes, ceiling });
        Ok(())
    }

    fn median(&self, which: fn(&Shown) -> f64) -> f64 {
        median(&self.results.iter().map(which).collect::<Vec<_>>())
    }

    /// Updates the picture and encodes until there is nothing left to send; returns the time and the bytes.
    fn show(&mut self, damage: DamageSet, scanout_changed: bool) -> Result<(f64, usize)> {
        let scanout: Arc<dyn Scanout> = self.slides.clone();
        let started = Instant::now();
        self.pipeline.update(DisplayUpdate {
            scanout: Some(scanout),
            scanout_changed,
            damage,
            since: Some(started),
            ..DisplayUpdate::default()
        });
        let mut elapsed = started.elapsed().as_secs_f64();
        let mut bytes = 0;
        loop {
            let started = Instant::now();
            let output = self.pipeline.poll_output(started);
            elapsed += started.elapsed().as_secs_f64();
            match output {
                Some(GraphicsOutput::Gfx(message)) => {
                    bytes += message.len();
                    let screen = self.screen.as_ref().context("a message on a channel that is not open")?;
                    for answer in screen.lock().handle_message(&message)? {
                        self.pipeline.handle_gfx_message(Instant::now(), &encode_vec(&answer)?)?;
                    }
                }
                Some(GraphicsOutput::FastPath(pdus)) => {
                    bytes += pdus.len();
                    for frame in 0..u32::try_from(self.results.len() + 2)? {
                        self.pipeline.handle_surface_frame_ack(Instant::now(), frame);
                    }
                }
                Some(GraphicsOutput::Reactivate(size)) => self.pipeline.set_desktop(size),
                None => return Ok((elapsed, bytes)),
            }
        }
    }

    /// Compares what the client decoded with what the guest showed last.
    fn check(&self) -> Result<()> {
        let Some(screen) = &self.screen else { return Ok(()) };
        let screen = screen.lock();
        let shown = self.slides.page();
        for (y, row) in shown.bytes().chunks_exact(SIZE.width as usize * PIXEL).enumerate() {
            let decoded = screen.picture().row(y).context("the client has no picture")?;
            let same = row.chunks_exact(PIXEL).zip(decoded.chunks_exact(PIXEL)).all(|(a, b)| a[..3] == b[..3]);
            ensure!(same, "{}: row {y} differs at the client", self.name);
        }
        Ok(())
    }
}

fn report(ceilings: &Ceilings, cases: &[Case], foreign: f64) -> Result<Report> {
    let mut report = Report::new("codecs");
    let frame = SIZE.rect().area() as f64 * PIXEL as f64;
    let ceiling = |name: &str, which: fn(&Ceiling) -> f64, bytes: f64| -> Row {
        let seconds = ceilings.median(which);
        vec![("ceiling, cold", json!(name)), ("ms", json!(seconds * 1e3)), ("GB/s", json!(bytes / seconds / 1e9))]
    };
    report.table(
        format!("One frame of {SIZE}, {:.2} MB; foreign load {foreign} cores", frame / 1e6),
        vec![
            ceiling("read", |one| one.read, frame),
            ceiling("compare (memcmp)", |one| one.compare, 2.0 * frame),
            ceiling("copy (memcpy)", |one| one.copy, 2.0 * frame),
        ],
    );
    let tiles = f64::from(SIZE.width.div_ceil(64) * SIZE.height.div_ceil(64));
    let rows = cases.iter().map(|case| {
        let seconds = case.median(|one| one.seconds);
        let bytes = case.median(|one| one.bytes as f64);
        vec![
            ("case", json!(case.name)),
            ("ms", json!(seconds * 1e3)),
            ("× read", json!(case.median(Shown::reads))),
            ("× compare", json!(case.median(Shown::compares))),
            ("bytes", json!(bytes)),
            ("% of frame", json!(100.0 * bytes / frame)),
            ("1000 tiles/s", json!(tiles / seconds / 1e3)),
        ]
    });
    report.table("Median of update and encode, one core; ratios to the ceilings measured just before", rows.collect());
    let case = |name| cases.iter().find(|case| case.name == name).context("a case is missing");
    let glyph = case("glyph, whole screen damaged")?.median(|one| one.bytes as f64);
    let scan = case("scan, nothing changed")?.median(Shown::compares);
    let page = case("text page")?;
    report.at_most("glyph", glyph, 200.0, "B");
    report.at_most("scan of a frame and copy to the shadow", scan, 1.3, "× compare");
    report.at_most("text page", page.median(Shown::reads), 30.0, "× read");
    report.at_most("text page", 100.0 * page.median(|one| one.bytes as f64) / frame, 3.0, "% of the frame");
    Ok(report)
}

impl Shown {
    fn reads(&self) -> f64 {
        self.seconds / self.ceiling.read
    }

    fn compares(&self) -> f64 {
        self.seconds / self.ceiling.compare
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}
