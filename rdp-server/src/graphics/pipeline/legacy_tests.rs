use std::sync::Arc;

use console::{CursorShape, CursorState, DamageSet};
use ironrdp_pdu::rdp::capability_sets::EntropyBits;
use proptest::prelude::*;

use super::tests::client_graphics;
use super::*;
use crate::graphics::RemoteFxSupport;
use crate::graphics::testing::{FastPathClient, Picture, Write, writes};

/// A guest, a pipeline and a client without a graphics channel.
struct Session {
    now: Instant,
    picture: Arc<Picture>,
    pipeline: Pipeline,
    client: FastPathClient,
}

impl Session {
    fn new(graphics: ClientGraphics, size: Size) -> Self {
        let now = Instant::now();
        let pipeline = Pipeline::new(ClientGraphics { egfx: false, ..graphics }, size, now);
        let mut session =
            Self { now, picture: Arc::new(Picture::new(size)), pipeline, client: FastPathClient::new(size) };
        session.switch_to(size);
        session
    }

    fn switch_to(&mut self, size: Size) {
        self.picture = Arc::new(Picture::new(size));
        self.damage(size.rect(), true);
    }

    fn draw(&mut self, write: Write) {
        self.picture.draw(write);
        self.damage(write.rect(), false);
    }

    fn damage(&mut self, rect: Rect, scanout_changed: bool) {
        let mut damage = DamageSet::new();
        damage.add(rect);
        let scanout: Arc<dyn console::Scanout> = self.picture.clone();
        self.pipeline.update(DisplayUpdate {
            scanout: Some(scanout),
            scanout_changed,
            damage,
            ..DisplayUpdate::default()
        });
    }

    /// One output; false when there is none.
    fn send(&mut self) -> bool {
        match self.pipeline.poll_output(self.now) {
            None => return false,
            Some(GraphicsOutput::FastPath(bytes)) => self.client.receive(&bytes),
            Some(GraphicsOutput::Reactivate(size)) => {
                assert_eq!(self.pipeline.poll_output(self.now), None, "drawn during a reactivation");
                self.client = FastPathClient::new(size);
                self.pipeline.set_desktop(size);
            }
            Some(GraphicsOutput::Gfx(_)) => panic!("there is no graphics channel"),
        }
        true
    }

    fn acknowledge(&mut self) {
        for frame in std::mem::take(&mut self.client.shown) {
            self.pipeline.handle_surface_frame_ack(self.now, frame);
        }
    }

    fn settle(&mut self) {
        while self.send() {
            self.acknowledge();
        }
    }

    fn is_same(&self) -> bool {
        let sent = self.picture.colors().into_iter().map(|color| {
            let [blue, green, red, _] = color.to_le_bytes();
            [red, green, blue]
        });
        self.client.size == console::Scanout::size(&*self.picture) && sent.eq(self.client.colors.iter().copied())
    }
}

fn remote_fx() -> ClientGraphics {
    let support = RemoteFxSupport { codec_id: 3, entropy: EntropyBits::Rlgr3 };
    ClientGraphics { remote_fx: Some(support), surface_frames: Some(2), max_request_size: 1 << 17, ..client_graphics() }
}

#[derive(Debug, Clone)]
enum Op {
    Draw(Write),
    Send,
    Resize(Size),
    Refresh(Rect),
    Suppress(bool),
}

fn ops(size: Size) -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => writes(size).prop_map(Op::Draw),
        4 => Just(Op::Send),
        1 => (1..300_u32, 1..200_u32).prop_map(|(width, height)| Op::Resize(Size::new(width, height))),
        1 => (0..400_u32, 0..300_u32, 0..400_u32, 0..300_u32).prop_map(|(x, y, w, h)| Op::Refresh(Rect::new(x, y, w, h))),
        1 => any::<bool>().prop_map(Op::Suppress),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn bitmaps_end_up_equal_to_the_guests_picture(ops in proptest::collection::vec(ops(Size::new(300, 200)), 1..20)) {
        let mut session = Session::new(client_graphics(), Size::new(300, 200));
        for op in ops {
            match op {
                Op::Draw(write) => session.draw(write),
                Op::Send => drop(session.send()),
                Op::Resize(size) => session.switch_to(size),
                Op::Refresh(rect) => session.pipeline.refresh(rect),
                Op::Suppress(suppressed) => session.pipeline.suppress(suppressed),
            }
        }
        session.pipeline.suppress(false);
        session.damage(console::Scanout::size(&*session.picture).rect(), false);
        session.settle();
        prop_assert!(session.is_same());
        prop_assert!(!session.send());
    }
}

#[test]
fn a_client_that_cannot_follow_sees_what_fits() {
    let graphics = ClientGraphics { desktop_resize: false, ..client_graphics() };
    let mut session = Session::new(graphics, Size::new(200, 150));
    session.settle();
    session.switch_to(Size::new(333, 99));
    session.draw(Write::Fill { rect: Rect::new(0, 0, 333, 99), color: 0x0012_3456 });
    session.settle();
    assert_eq!(session.pipeline.desktop_size(), Size::new(200, 150));
    assert!(session.client.colors[..200 * 99].iter().all(|color| *color == [0x12, 0x34, 0x56]));
}

#[test]
fn a_size_that_a_client_refuses_is_asked_for_once() {
    let mut session = Session::new(client_graphics(), Size::new(200, 150));
    session.switch_to(Size::new(300, 150));
    assert_eq!(session.pipeline.poll_output(session.now), Some(GraphicsOutput::Reactivate(Size::new(300, 150))));
    session.pipeline.set_desktop(Size::new(256, 150));
    session.client = FastPathClient::new(Size::new(256, 150));
    session.settle();
    assert_eq!(session.pipeline.desktop_size(), Size::new(256, 150));
    session.switch_to(Size::new(100, 100));
    session.settle();
    assert!(session.is_same());
}

#[test]
fn remote_fx_frames_wait_for_their_acknowledgements() {
    let mut session = Session::new(remote_fx(), Size::new(640, 480));
    assert_eq!(session.pipeline.mode(), GraphicsMode::Waiting);
    session.settle();
    assert_eq!(session.pipeline.mode(), GraphicsMode::RemoteFx);
    let mut sent = 0;
    for seed in 0..10 {
        session.draw(Write::Text { rect: Rect::new(5, 5, 300, 200), seed });
        sent += usize::from(session.send());
    }
    assert_eq!(sent, 2);
    assert!(session.pipeline.next_timeout().is_some());
    session.acknowledge();
    session.settle();
    assert!(session.client.longest <= 1 << 17);
    assert_eq!(session.pipeline.next_timeout(), None);
}

#[test]
fn many_tiles_of_noise_are_cut_into_updates_the_client_takes() {
    let mut session = Session::new(remote_fx(), Size::new(1024, 768));
    session.draw(Write::Noise { rect: Rect::new(0, 0, 1024, 768), seed: 1 });
    session.settle();
    assert!(session.client.longest > 1 << 16 && session.client.longest <= 1 << 17);
}

#[test]
fn a_restored_window_is_drawn_again() {
    let mut session = Session::new(client_graphics(), Size::new(100, 100));
    session.settle();
    session.pipeline.suppress(true);
    session.client = FastPathClient::new(Size::new(100, 100));
    assert!(!session.send());
    session.pipeline.suppress(false);
    session.settle();
    assert!(session.is_same());
}

#[test]
fn pointers_go_before_pictures_and_again_after_a_reactivation() {
    let mut session = Session::new(client_graphics(), Size::new(100, 100));
    let bgra = vec![0xff; 16 * 16 * 4];
    let shape = CursorShape { size: Size::new(16, 16), hotspot: Point::default(), bgra };
    let cursor = CursorState { shape: Some(Arc::new(shape)), ..CursorState::default() };
    session.pipeline.update(DisplayUpdate { cursor: Some(cursor), ..DisplayUpdate::default() });
    let first = session.pipeline.poll_output(session.now);
    let Some(GraphicsOutput::FastPath(pointer)) = first else { panic!("{first:?}") };
    assert_eq!(pointer[3] & 0xf, 0xb, "not a new pointer");
    session.settle();
    session.pipeline.set_desktop(Size::new(100, 100));
    assert_eq!(session.pipeline.poll_output(session.now), Some(GraphicsOutput::FastPath(pointer)));
}
