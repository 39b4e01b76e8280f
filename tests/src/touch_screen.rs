//! A touch screen without hardware: the X server's `inputtest` driver, which takes fingers from a socket.
//!
//! Its packets are structures of C on this machine (`xf86-input-inputtest-protocol.h`, version 1.1). Each finger is
//! waited for until the X server has passed it to its clients.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::wait::{Look, wait_until};

/// Fingers that it feels at the same time.
pub const FINGERS: u32 = 10;

/// How long the X server may take to offer its socket, or to pass a finger on.
const PATIENCE: Duration = Duration::from_secs(30);
/// The axes of the driver, whatever the size of the screen.
const AXIS: f64 = 65_536.0;

/// `enum xf86ITEventType`.
mod event {
    pub(super) const CLIENT_VERSION: u32 = 0;
    pub(super) const WAIT_FOR_SYNC: u32 = 1;
    pub(super) const TOUCH: u32 = 6;
}

/// `enum xf86ITResponseType`.
mod response {
    pub(super) const SERVER_VERSION: u32 = 0;
    pub(super) const SYNC_FINISHED: u32 = 1;
}

/// The places of `xf86ITEventTouch`: a header, who and what, a mask of axes, and two rows of doubles.
mod touch {
    pub(super) const SIZE: usize = VALUATORS + 2 * 64 * 8;
    pub(super) const MASK: usize = 20;
    pub(super) const VALUATORS: usize = 32;
}

/// What a finger does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// It begins to touch.
    Down,
    /// It moves.
    Move,
    /// It is lifted.
    Up,
}

/// The screen, for whoever touches it.
#[derive(Debug)]
pub struct TouchScreen {
    socket: UnixStream,
    size: (u16, u16),
}

/// What an X server has to know to have one, in the words of xorg.conf: a screen of `size` pixels that feels fingers.
///
/// Pointer and keyboard, without which it does not start, are of the same driver, and silent. Sockets are in `folder`.
#[must_use]
pub fn configuration(folder: &Path, (width, height): (u16, u16)) -> String {
    let devices: String = DEVICES.iter().map(|(name, kind)| device(folder, name, kind)).collect();
    // Blanking of any size but 160: that is for monitors that say so.
    let (right, bottom) = (width + 240, height + 35);
    format!(
        r#"{devices}
Section "Device"
    Identifier "card"
    Driver "dummy"
    VideoRam 65536
EndSection
Section "Monitor"
    Identifier "monitor"
    HorizSync 5-1000
    VertRefresh 5-500
    Modeline "wanted" 200 {width} {} {} {right} {height} {} {} {bottom}
EndSection
Section "Screen"
    Identifier "screen"
    Device "card"
    Monitor "monitor"
    DefaultDepth 24
    SubSection "Display"
        Depth 24
        Modes "wanted"
        Virtual {width} {height}
    EndSubSection
EndSection
Section "ServerLayout"
    Identifier "layout"
    Screen "screen"
    InputDevice "pointer" "CorePointer"
    InputDevice "keyboard" "CoreKeyboard"
    InputDevice "touch" "SendCoreEvents"
EndSection
Section "ServerFlags"
    Option "AutoAddDevices" "false"
EndSection
"#,
        width + 48,
        width + 80,
        height + 3,
        height + 9,
    )
}

/// Names and kinds of the driver's devices.
const DEVICES: [(&str, &str); 3] = [(TOUCH_DEVICE, "Touch"), ("pointer", "PointerAbsolute"), ("keyboard", "Keyboard")];
const TOUCH_DEVICE: &str = "touch";

fn device(folder: &Path, name: &str, kind: &str) -> String {
    format!(
        r#"Section "InputDevice"
    Identifier "{name}"
    Driver "inputtest"
    Option "SocketPath" "{}"
    Option "DeviceType" "{kind}"
    Option "TouchCount" "{FINGERS}"
EndSection
"#,
        socket(folder, name).display()
    )
}

fn socket(folder: &Path, device: &str) -> PathBuf {
    folder.join(format!("{device}.socket"))
}

impl TouchScreen {
    /// The screen of an X server that was started with [`configuration`] of the same folder and size.
    ///
    /// # Errors
    ///
    /// When the driver is not there, or speaks another version.
    pub fn connect(folder: &Path, size: (u16, u16)) -> Result<Self> {
        let path = socket(folder, TOUCH_DEVICE);
        let socket = wait_until(PATIENCE, "the driver of the touch screen", || {
            Ok(match UnixStream::connect(&path) {
                Ok(socket) => Look::Found(socket),
                Err(error) => Look::NotYet(format!("{} cannot be connected: {error}", path.display())),
            })
        })?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut screen = Self { socket, size };
        let mut hello = header(12, event::CLIENT_VERSION);
        hello.extend([1_u16, 1].map(u16::to_ne_bytes).concat());
        screen.socket.write_all(&hello)?;
        let version = screen.answer(response::SERVER_VERSION)?;
        ensure!(version.first_chunk() == Some(&1_u16.to_ne_bytes()), "the driver speaks version {version:?}");
        Ok(screen)
    }

    /// One finger does something at a point of the screen, in pixels. Fingers have numbers of the caller's choice.
    ///
    /// # Errors
    ///
    /// When the X server is gone.
    pub fn touch(&mut self, finger: u32, what: Touch, x: u16, y: u16) -> Result<()> {
        // XI2's event types.
        let kind: u32 = match what {
            Touch::Down => 18,
            Touch::Move => 19,
            Touch::Up => 20,
        };
        let mut packet = header(touch::SIZE, event::TOUCH);
        packet.extend([finger, kind].map(u32::to_ne_bytes).concat());
        packet.resize(touch::SIZE, 0);
        packet[touch::MASK] = 0b11;
        let place = |at: u16, side: u16| ((f64::from(at) + 0.5) * AXIS / f64::from(side)).to_ne_bytes();
        let places = [place(x, self.size.0), place(y, self.size.1)].concat();
        packet[touch::VALUATORS..touch::VALUATORS + places.len()].copy_from_slice(&places);
        packet.extend(header(8, event::WAIT_FOR_SYNC));
        self.socket.write_all(&packet)?;
        self.answer(response::SYNC_FINISHED).map(drop)
    }

    /// The body of the next answer, which must be of that kind.
    fn answer(&mut self, wanted: u32) -> Result<Vec<u8>> {
        let mut word = [0; 4];
        let mut next = || -> Result<u32> {
            self.socket.read_exact(&mut word).context("the X server does not answer")?;
            Ok(u32::from_ne_bytes(word))
        };
        let (length, kind) = (next()?, next()?);
        let Some(left @ 0..=64) = length.checked_sub(8) else { bail!("an answer of {length} bytes") };
        let mut body = vec![0; left as usize];
        self.socket.read_exact(&mut body)?;
        ensure!(kind == wanted, "the X server answers {kind}, not {wanted}");
        Ok(body)
    }
}

/// `xf86ITEventHeader`: the length of the whole, and what it is.
fn header(length: usize, kind: u32) -> Vec<u8> {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    [length, kind].map(u32::to_ne_bytes).concat()
}

#[cfg(test)]
mod tests {
    use x11rb::connection::Connection as _;
    use x11rb::protocol::Event;
    use x11rb::protocol::xinput::{ConnectionExt as _, Device, EventMask, XIEventMask};
    use x11rb::rust_connection::RustConnection;

    use super::*;
    use crate::display::Display;
    use crate::scratch;

    /// What the X server tells a client: the finger's number, what it did, and the pixel.
    fn next(connection: &RustConnection) -> (u32, Touch, i32, i32) {
        let event = wait_until(PATIENCE, "a finger", || {
            Ok(Look::or_not_yet(connection.poll_for_event()?, || "there is none".to_owned()))
        });
        let (what, event) = match event.unwrap() {
            Event::XinputTouchBegin(event) => (Touch::Down, event),
            Event::XinputTouchUpdate(event) => (Touch::Move, event),
            Event::XinputTouchEnd(event) => (Touch::Up, event),
            other => panic!("{other:?}"),
        };
        (event.detail, what, event.root_x >> 16, event.root_y >> 16)
    }

    #[test]
    fn an_x_server_feels_ten_fingers_where_they_are() {
        let mut display = Display::start_with_touch_screen(&scratch::folder("touch-screen").unwrap()).unwrap();
        let (connection, screen) = x11rb::connect(Some(display.name())).unwrap();
        let root = connection.setup().roots[screen].root;
        connection.xinput_xi_query_version(2, 2).unwrap().reply().unwrap();
        let mask = XIEventMask::TOUCH_BEGIN | XIEventMask::TOUCH_UPDATE | XIEventMask::TOUCH_END;
        let mask = EventMask { deviceid: u16::from(Device::ALL_MASTER), mask: vec![mask] };
        connection.xinput_xi_select_events(root, &[mask]).unwrap().check().unwrap();

        let place = |finger: u32, step: u16| (100 * u16::try_from(finger).unwrap() + step, 1199 - step);
        let mut ids = Vec::new();
        for (what, step) in [(Touch::Down, 0), (Touch::Move, 7), (Touch::Up, 7)] {
            for finger in 0..FINGERS {
                let (x, y) = place(finger, step);
                display.touch(finger, what, x, y).unwrap();
                let (id, seen, seen_x, seen_y) = next(&connection);
                assert_eq!((seen, seen_x, seen_y), (what, i32::from(x), i32::from(y)), "finger {finger}");
                if what == Touch::Down {
                    ids.push(id);
                }
                assert_eq!(ids[finger as usize], id, "finger {finger}");
            }
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 10, "{ids:?}");
    }
}
