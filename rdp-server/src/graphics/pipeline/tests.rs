use std::sync::Arc;

use console::DamageSet;
use ironrdp_egfx::pdu::QueueDepth;
use proptest::prelude::*;

use super::*;
use crate::graphics::testing::{GfxClient, Picture, Write, writes};
use crate::graphics::{BitmapHeader, ColorDepth, PointerSupport};

const MS: Duration = Duration::from_millis(1);

pub(super) fn client_graphics() -> ClientGraphics {
    ClientGraphics {
        egfx: true,
        remote_fx: None,
        surface_frames: None,
        color_depth: ColorDepth::Bpp32,
        bitmap_header: BitmapHeader::Omitted,
        desktop_resize: true,
        pointer: PointerSupport { cache_size: 25, color_cache_size: 25, max_side: 96 },
        max_request_size: 1 << 20,
    }
}

/// A guest, a pipeline and a client.
struct Session {
    now: Instant,
    picture: Arc<Picture>,
    pipeline: Pipeline,
    client: GfxClient,
}

impl Session {
    fn new(size: Size) -> Self {
        let now = Instant::now();
        let mut pipeline = Pipeline::new(client_graphics(), size, now);
        pipeline.gfx_opened(now);
        let mut session = Self { now, picture: Arc::new(Picture::new(size)), pipeline, client: GfxClient::new() };
        session.say(&GfxClient::advertise());
        session.switch_to(size);
        session
    }

    fn say(&mut self, message: &[u8]) {
        self.pipeline.handle_gfx_message(self.now, message).unwrap();
    }

    fn switch_to(&mut self, size: Size) {
        self.picture = Arc::new(Picture::new(size));
        self.pipeline.update(DisplayUpdate {
            scanout: Some(self.picture.clone()),
            scanout_changed: true,
            damage: DamageSet::full(size),
            ..DisplayUpdate::default()
        });
    }

    fn draw(&mut self, write: Write) {
        self.picture.draw(write);
        let mut damage = DamageSet::new();
        damage.add(write.rect());
        self.pipeline.update(DisplayUpdate {
            scanout: Some(self.picture.clone()),
            scanout_changed: false,
            damage,
            ..DisplayUpdate::default()
        });
    }

    /// Sends one message, if there is one; returns its length.
    fn send(&mut self) -> Option<usize> {
        match self.pipeline.poll_output(self.now)? {
            GraphicsOutput::Gfx(message) => {
                self.client.receive(&message);
                Some(message.len())
            }
            other => panic!("not for the graphics channel: {other:?}"),
        }
    }

    fn acknowledge(&mut self) {
        for frame in std::mem::take(&mut self.client.shown) {
            self.say(&GfxClient::acknowledge(frame));
        }
    }

    /// Sends and acknowledges until there is nothing more to send; returns the bytes.
    fn settle(&mut self) -> usize {
        let mut bytes = 0;
        while let Some(sent) = self.send() {
            bytes += sent;
            self.acknowledge();
        }
        bytes
    }

    fn assert_same(&self) {
        let (size, colors) = self.client.picture();
        assert_eq!(size, console::Scanout::size(&*self.picture));
        assert_eq!(size, self.pipeline.desktop_size());
        assert!(colors == self.picture.colors(), "the client shows something else");
    }
}

#[derive(Debug, Clone)]
enum Op {
    Draw(Write),
    Send,
    Acknowledge,
    Settle,
    Resize(Size),
    Refresh(Rect),
    Suppress(bool),
    Switch(bool),
    Readvertise,
    Wait,
}

fn ops(size: Size) -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => writes(size).prop_map(Op::Draw),
        4 => Just(Op::Send),
        2 => Just(Op::Acknowledge),
        2 => Just(Op::Settle),
        1 => (1..700_u32, 1..500_u32).prop_map(|(width, height)| Op::Resize(Size::new(width, height))),
        1 => (0..500_u32, 0..400_u32, 0..500_u32, 0..400_u32).prop_map(|(x, y, w, h)| Op::Refresh(Rect::new(x, y, w, h))),
        1 => any::<bool>().prop_map(Op::Suppress),
        1 => any::<bool>().prop_map(Op::Switch),
        1 => Just(Op::Readvertise),
        1 => Just(Op::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    #[test]
    fn the_client_ends_up_with_the_guests_picture_to_the_bit(ops in proptest::collection::vec(ops(Size::new(600, 420)), 1..40)) {
        let mut session = Session::new(Size::new(600, 420));
        for op in ops {
            match op {
                Op::Draw(write) => session.draw(write),
                Op::Send => drop(session.send()),
                Op::Acknowledge => session.acknowledge(),
                Op::Settle => {
                    session.settle();
                }
                Op::Resize(size) => session.switch_to(size),
                Op::Refresh(rect) => session.pipeline.refresh(rect),
                Op::Suppress(suppressed) => session.pipeline.suppress(suppressed),
                // The monitor goes off, or on again with what it showed.
                Op::Switch(on) => session.pipeline.update(DisplayUpdate {
                    scanout: on.then(|| session.picture.clone() as Arc<dyn console::Scanout>),
                    scanout_changed: true,
                    ..DisplayUpdate::default()
                }),
                Op::Readvertise => {
                    session.client = GfxClient::new();
                    session.say(&GfxClient::advertise());
                }
                Op::Wait => session.now += 40 * MS,
            }
        }
        session.pipeline.suppress(false);
        let size = console::Scanout::size(&*session.picture);
        session.pipeline.update(DisplayUpdate {
            scanout: Some(session.picture.clone()),
            scanout_changed: false,
            damage: DamageSet::full(size),
            ..DisplayUpdate::default()
        });
        session.acknowledge();
        session.settle();
        session.assert_same();
        prop_assert_eq!(session.send(), None);
    }
}

#[test]
fn a_new_surface_is_part_of_the_first_frame() {
    let mut session = Session::new(Size::new(300, 200));
    session.send();
    assert_eq!(session.client.commands, ["confirm"]);
    session.send();
    assert_eq!(session.client.commands, ["reset", "create", "map", "start", "fill", "end"]);
    session.acknowledge();
    session.switch_to(Size::new(200, 300));
    session.send();
    assert_eq!(session.client.commands, ["delete", "reset", "create", "map", "start", "fill", "end"]);
    session.assert_same();
}

#[test]
fn a_typed_letter_is_small() {
    let mut session = Session::new(Size::new(1920, 1080));
    session.settle();
    let letters: Vec<usize> = (0..40)
        .map(|at| {
            session.draw(Write::Text { rect: Rect::new(8 * at, 512, 8, 16), seed: at });
            session.settle()
        })
        .collect();
    session.assert_same();
    // Headers of the dynamic channel, the static channel, MCS, X.224 and TPKT are about 30 bytes.
    assert!(letters.iter().all(|bytes| *bytes <= 170), "{letters:?}");
}

#[test]
fn a_console_that_scrolls_is_a_copy_and_a_line() {
    let size = Size::new(1024, 768);
    let mut session = Session::new(size);
    session.draw(Write::Text { rect: size.rect(), seed: 1 });
    session.settle();
    for line in 0..5 {
        session.draw(Write::Scroll { rect: size.rect(), by: 16 });
        session.draw(Write::Text { rect: Rect::new(0, 752, 1024, 16), seed: 50 + line });
        let bytes = session.settle();
        assert_eq!(session.client.commands[..2], ["start", "copy"]);
        assert!(bytes < 4_000, "{bytes} bytes");
        session.assert_same();
    }
}

#[test]
fn without_change_nothing_is_sent() {
    let mut session = Session::new(Size::new(640, 480));
    session.settle();
    session.draw(Write::Scroll { rect: Rect::new(0, 0, 640, 480), by: 16 });
    assert_eq!(session.send(), None);
    assert_eq!(session.pipeline.next_timeout(), None);
}

#[test]
fn while_the_window_is_closed_damage_merges_and_the_newest_state_is_sent() {
    let mut session = Session::new(Size::new(640, 480));
    session.settle();
    let mut sent = 0;
    for seed in 0..50 {
        session.draw(Write::Noise { rect: Rect::new(10, 10, 100, 100), seed });
        sent += usize::from(session.send().is_some());
    }
    assert_eq!(sent, 2);
    assert!(session.pipeline.next_timeout().is_some());
    session.acknowledge();
    assert!(session.send().is_some());
    session.assert_same();
}

#[test]
fn a_client_that_suspends_acknowledgements_gets_every_frame() {
    let mut session = Session::new(Size::new(640, 480));
    session.settle();
    session.say(&GfxClient::acknowledge_with(1, QueueDepth::Suspend));
    for seed in 0..20 {
        session.draw(Write::Text { rect: Rect::new(10, 10, 100, 100), seed });
        assert!(session.send().is_some());
    }
    session.assert_same();
}

#[test]
fn a_client_that_never_opens_the_channel_is_waited_for_once() {
    let now = Instant::now();
    let mut pipeline = Pipeline::new(client_graphics(), Size::new(64, 64), now);
    let until = pipeline.next_timeout().unwrap();
    assert!(pipeline.poll_output(now).is_none());
    pipeline.poll_output(until);
    assert_eq!(pipeline.next_timeout(), None);
    // Late is not too late.
    pipeline.handle_gfx_message(until, &GfxClient::advertise()).unwrap();
    assert!(matches!(pipeline.poll_output(until), Some(GraphicsOutput::Gfx(_))));
}

#[test]
fn what_a_client_may_not_send_is_an_error_that_names_it() {
    let now = Instant::now();
    let advertise = GfxClient::advertise();
    let truncated = &advertise[..advertise.len() - 1];
    let mut long = advertise.clone();
    long[4] += 1;
    let cases: [(&[u8], &str); 7] = [
        (&[1, 2, 3], "RDPGFX_HEADER"),
        (&[0xff, 0xff, 0, 0, 8, 0, 0, 0], "0xffff"),
        (&[0x0b, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "0x000b"),
        (&GfxClient::acknowledge(1), "RDPGFX_FRAME_ACKNOWLEDGE_PDU: sent before its capabilities"),
        (&[0x10, 0, 0, 0, 10, 0, 0, 0, 0, 0], "RDPGFX_CACHE_IMPORT_OFFER_PDU"),
        (truncated, "RDPGFX_CAPS_ADVERTISE_PDU"),
        (&long, "RDPGFX_CAPS_ADVERTISE_PDU"),
    ];
    for (bytes, expected) in cases {
        let mut pipeline = Pipeline::new(client_graphics(), Size::new(64, 64), now);
        pipeline.gfx_opened(now);
        let error = pipeline.handle_gfx_message(now, bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_import_offer_is_answered_with_no_entries() {
    let mut session = Session::new(Size::new(64, 64));
    session.settle();
    let mut offer = vec![0x10, 0, 0, 0, 22, 0, 0, 0, 1, 0];
    offer.extend_from_slice(&[7; 12]);
    session.say(&offer);
    session.send();
    assert_eq!(session.client.commands, ["import none"]);
}
