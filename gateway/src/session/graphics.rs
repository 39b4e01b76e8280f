//! The task between a monitor and a client: newest picture in, PDUs out, at the pace of both.

use std::sync::Arc;
use std::time::Instant;

use console::{DisplayUpdate, Scanout, Size};
use rdp_server::connection::{GraphicsAddress, frame_graphics_message};
use rdp_server::graphics::{GraphicsOutput, Pipeline};
use tokio::sync::{mpsc, watch};
use tracing::debug;
use vmm::{Console, Status, Viewer, VmState};

use super::notice::Notice;
use super::sizing::Sizing;
use super::writer::{Outbox, Picture};

/// Pixels of damage from which encoding leaves the async thread: a tenth of a millisecond of work and more.
const LARGE_DAMAGE: u64 = 128 * 1024;

/// What the session tells the task.
#[derive(Debug)]
pub(super) enum GraphicsInput {
    /// The graphics channel is open.
    Opened(GraphicsAddress),
    /// It is closed, or there never was one.
    Closed,
    /// A message of the client on it.
    Message(Vec<u8>),
    /// A surface frame was shown.
    FrameAcknowledged(u32),
    /// A part of the picture is wanted again.
    Refresh(console::Rect),
    /// Nobody looks, or somebody looks again.
    Suppress(bool),
    /// The client's desktop has this size now.
    Reactivated(Size),
    /// The client moved its pointer.
    PointerAt(console::Point),
    /// The client wants its monitor in this size.
    Wanted(Size),
}

/// What the task tells the session.
#[derive(Debug)]
pub(super) enum GraphicsReport {
    /// The desktop must change its size by deactivation and reactivation.
    Reactivate(Size),
    /// The client broke the protocol of the graphics channel; it is to be closed.
    Misbehaved,
}

/// The task's state.
pub(super) struct GraphicsTask {
    pub(super) vm: String,
    pub(super) pipeline: Pipeline,
    pub(super) console: Console,
    pub(super) viewer: Viewer,
    pub(super) sizing: Sizing,
    pub(super) status: watch::Receiver<Status>,
    /// The size of the client's desktop, for the session.
    pub(super) desktop: watch::Sender<Size>,
    pub(super) inputs: mpsc::Receiver<GraphicsInput>,
    pub(super) reports: mpsc::Sender<GraphicsReport>,
    pub(super) outbox: Outbox,
    /// Where graphics messages go while the channel is open.
    pub(super) address: Option<GraphicsAddress>,
    /// Whether the client sees a notice instead of a guest.
    pub(super) notice: bool,
    /// Pixels that the next frame may have to look at.
    pub(super) damage: u64,
    /// When the oldest change that is not sent yet was reported.
    pub(super) since: Option<Instant>,
}

impl GraphicsTask {
    /// Runs until the session drops its end, or the writer is gone.
    pub(super) async fn run(mut self) {
        self.look();
        let mut idle = false;
        loop {
            let timeout = [self.pipeline.next_timeout(), self.sizing.timeout()].into_iter().flatten().min();
            // Race semantics: every source keeps what a losing branch did not take.
            tokio::select! {
                biased;
                input = self.inputs.recv() => match input {
                    Some(input) => self.apply(input).await,
                    None => return,
                },
                () = self.viewer.changed() => self.look(),
                // A receiver whose sender is gone (the VM was deleted) must not spin here.
                Ok(()) = self.status.changed() => self.look(),
                room = self.outbox.graphics.clone().reserve_owned(), if !idle => match room {
                    Ok(room) => {
                        idle = !self.send_next(room).await;
                        continue;
                    }
                    Err(_) => return,
                },
                () = sleep_until(timeout), if timeout.is_some() => {
                    if let Some(update) = self.sizing.overdue(Instant::now()) {
                        self.show(update);
                    }
                }
            }
            idle = false;
        }
    }

    /// Encodes and sends one thing; false when there is nothing to send now.
    async fn send_next(&mut self, room: mpsc::OwnedPermit<Picture>) -> bool {
        let now = Instant::now();
        let output = if self.damage >= LARGE_DAMAGE {
            tokio::task::block_in_place(|| self.pipeline.poll_output(now))
        } else {
            self.pipeline.poll_output(now)
        };
        let size = self.pipeline.desktop_size();
        self.desktop.send_if_modified(|known| std::mem::replace(known, size) != size);
        match output {
            Some(GraphicsOutput::Gfx(message)) => {
                if let Some(address) = self.address {
                    room.send(Picture { pdus: frame_graphics_message(address, &message), since: self.since.take() });
                }
            }
            Some(GraphicsOutput::FastPath(pdus)) => {
                room.send(Picture { pdus, since: self.since.take() });
            }
            Some(GraphicsOutput::Reactivate(size)) => self.report(GraphicsReport::Reactivate(size)).await,
            None => {
                self.damage = 0;
                // What turned out to be no change needs no picture; what waits for the client goes on ageing.
                if !self.pipeline.is_pending() {
                    self.since = None;
                }
                return false;
            }
        }
        true
    }

    async fn apply(&mut self, input: GraphicsInput) {
        let now = Instant::now();
        match input {
            GraphicsInput::Opened(address) => {
                self.address = Some(address);
                self.pipeline.gfx_opened(now);
                self.damage = u64::MAX;
            }
            GraphicsInput::Closed => {
                self.address = None;
                self.pipeline.gfx_closed();
                self.damage = u64::MAX;
            }
            GraphicsInput::Message(message) => {
                if let Err(error) = self.pipeline.handle_gfx_message(now, &message) {
                    debug!(%error, "graphics channel closed");
                    self.report(GraphicsReport::Misbehaved).await;
                }
            }
            GraphicsInput::FrameAcknowledged(frame_id) => self.pipeline.handle_surface_frame_ack(now, frame_id),
            GraphicsInput::Refresh(rect) => {
                self.pipeline.refresh(rect);
                self.damage = u64::MAX;
            }
            GraphicsInput::Suppress(suppressed) => self.pipeline.suppress(suppressed),
            GraphicsInput::Reactivated(size) => {
                self.pipeline.set_desktop(size);
                self.damage = u64::MAX;
            }
            GraphicsInput::PointerAt(at) => self.pipeline.client_pointer(now, at),
            GraphicsInput::Wanted(size) => {
                if let Some(size) = self.sizing.wanted(size, now) {
                    self.console.request_size(size);
                }
            }
        }
    }

    /// The session's queue for reports is never full: it reads them before anything else.
    async fn report(&self, report: GraphicsReport) {
        // A session that ends no longer needs them.
        let _ = self.reports.send(report).await;
    }

    /// Takes what changed on the monitor, or shows why there is nothing to see.
    fn look(&mut self) {
        let mut update = self.viewer.take();
        match &update.scanout {
            Some(_) if self.notice => {
                self.notice = false;
                update.scanout_changed = true;
            }
            Some(_) => {}
            None => {
                let status = self.status.borrow_and_update().clone();
                let notice: Arc<dyn Scanout> = Arc::new(self.notice_of(&status));
                update = DisplayUpdate { damage: console::DamageSet::full(notice.size()), ..update };
                update.scanout = Some(notice);
                update.scanout_changed = true;
                self.notice = true;
            }
        }
        if let Some(update) = self.sizing.pass(update, Instant::now()) {
            self.show(update);
        }
    }

    fn show(&mut self, update: DisplayUpdate) {
        self.since = self.since.or(update.since);
        let damage: u64 = update.damage.rects().iter().map(|rect| rect.area()).sum();
        self.damage = if update.scanout_changed { u64::MAX } else { self.damage.saturating_add(damage) };
        self.pipeline.update(update);
    }

    fn notice_of(&self, status: &Status) -> Notice {
        let title = match status.state {
            VmState::Created | VmState::Stopped => format!("{} is off", self.vm),
            VmState::Failed => format!("{} has failed", self.vm),
            state => format!("{} is {state}", self.vm),
        };
        let mut lines: Vec<_> = status.reason.iter().flat_map(|reason| reason.lines()).map(str::to_owned).collect();
        if matches!(status.state, VmState::Created | VmState::Stopped | VmState::Failed) {
            lines.push(format!("start it with: fanlight vm start {}", self.vm));
        }
        Notice::new(self.pipeline.desktop_size(), &title, &lines)
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}
