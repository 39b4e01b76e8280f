//! The X server that a client draws on: one per client, without a screen, a keyboard or a window manager. It may have a
//! touch screen.
//!
//! What a person would do is done through the XTEST extension; what they would see is read back as pixels.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use x11rb::connection::Connection;
use x11rb::protocol::xproto::{
    AtomEnum, AutoRepeatMode, ChangeKeyboardControlAux, ConfigureWindowAux, ConnectionExt as _, ImageFormat,
    InputFocus, MapState, Window as WindowId,
};
use x11rb::protocol::xproto::{
    BUTTON_PRESS_EVENT, BUTTON_RELEASE_EVENT, KEY_PRESS_EVENT, KEY_RELEASE_EVENT, MOTION_NOTIFY_EVENT,
};
use x11rb::protocol::xtest::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;

use crate::keys::{Keyboard, Stroke, keysym};
use crate::picture::Picture;
use crate::process::Process;
use crate::touch_screen::{self, Touch, TouchScreen};
use crate::wait::{Look, wait_until};

/// How long the X server may take to start.
const START: Duration = Duration::from_secs(30);
/// Pixels of the screen: no client can be larger.
const SIZE: (u16, u16) = (1920, 1200);

/// Milliseconds the X server waits before each event of a key: somebody who types fast. A guest has room for some
/// thirty events that it has not looked at, and a busy machine lets it wait.
const KEY_DELAY: u32 = 20;

/// A screen that only the test sees.
#[derive(Debug)]
pub struct Display {
    /// Dropped first: the server must not outlive it in the middle of a request.
    connection: RustConnection,
    root: WindowId,
    keyboard: Keyboard,
    /// Connected as long as the server lives: one that has lost its finger spins.
    touch_screen: Option<TouchScreen>,
    name: String,
    _server: Process,
}

/// A window on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window(WindowId);

/// A button of the mouse, by its X number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Button {
    /// The first.
    Left = 1,
    /// The wheel pressed.
    Middle = 2,
    /// The last of the usual three.
    Right = 3,
    /// A notch of the wheel away from the person.
    WheelUp = 4,
    /// A notch towards.
    WheelDown = 5,
}

impl Display {
    /// Starts an X server; its log goes into `folder`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(folder: &Path) -> Result<Self> {
        let mut command = Command::new("Xvfb");
        let (width, height) = SIZE;
        command.args(["-screen", "0", &format!("{width}x{height}x24")]);
        Self::open(Process::start(with_common_arguments(command), &folder.join("xvfb.log"))?)
    }

    /// Starts an X server with a touch screen; its logs go into `folder`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_with_touch_screen(folder: &Path) -> Result<Self> {
        let configuration = folder.join("xorg.conf");
        fs::write(&configuration, touch_screen::configuration(folder, SIZE))?;
        let mut command = Command::new("Xorg");
        command.arg("-config").arg(configuration).arg("-logfile").arg(folder.join("xorg-details.log"));
        // It has no terminal, wants none, and leaves those of others alone.
        command.args(["vt99", "-sharevts", "-novtswitch"]);
        let server = Process::start(with_common_arguments(command), &folder.join("xorg.log"))?;
        let mut display = Self::open(server)?;
        display.touch_screen = Some(TouchScreen::connect(folder, SIZE)?);
        Ok(display)
    }

    fn open(mut server: Process) -> Result<Self> {
        let number: u32 = server.wait_for_line(START, "the number of the display", |line| line.parse().ok())?;
        let name = format!(":{number}");
        let (connection, screen) = x11rb::connect(Some(&name)).with_context(|| format!("no X server on {name}"))?;
        let root = connection.setup().roots.get(screen).context("an X server without a screen")?.root;
        let keyboard = Keyboard::of(&connection)?;
        // A key is held as long as the test says: a slow machine must not make two letters of one.
        let no_repeat = ChangeKeyboardControlAux::new().auto_repeat_mode(AutoRepeatMode::OFF);
        connection.change_keyboard_control(&no_repeat)?.check()?;
        Ok(Self { connection, root, keyboard, touch_screen: None, name, _server: server })
    }

    /// What `DISPLAY` has to be for programs that shall draw here.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The visible window whose title has `title` in it, if there is one.
    ///
    /// # Errors
    ///
    /// When the X server fails.
    pub fn window(&self, title: &str) -> Result<Option<Window>> {
        for window in self.connection.query_tree(self.root)?.reply()?.children {
            // A window may be gone before it is asked.
            let Ok(attributes) = self.connection.get_window_attributes(window)?.reply() else { continue };
            let name = self.connection.get_property(false, window, AtomEnum::WM_NAME, AtomEnum::ANY, 0, 256)?.reply();
            let named = name.is_ok_and(|name| String::from_utf8_lossy(&name.value).contains(title));
            if named && attributes.map_state == MapState::VIEWABLE {
                return Ok(Some(Window(window)));
            }
        }
        Ok(None)
    }

    /// What is to be seen in `window`.
    ///
    /// # Errors
    ///
    /// When the window is gone.
    pub fn picture(&self, window: Window) -> Result<Picture> {
        let at = self.connection.get_geometry(window.0)?.reply().context("the window is gone")?;
        // From the root, where what another window hides is hidden; parts beside the screen cannot be asked for.
        let (x, y) = (at.x.max(0), at.y.max(0));
        let width = at.width.min(SIZE.0.saturating_sub(x.unsigned_abs()));
        let height = at.height.min(SIZE.1.saturating_sub(y.unsigned_abs()));
        let image = self.connection.get_image(ImageFormat::Z_PIXMAP, self.root, x, y, width, height, u32::MAX)?;
        Picture::from_bgrx(width.into(), height.into(), &image.reply()?.data)
    }

    /// Gives `window` the keyboard.
    ///
    /// # Errors
    ///
    /// When the window does not get it.
    pub fn focus(&self, window: Window) -> Result<()> {
        wait_until(Duration::from_secs(10), "the keyboard focus", || {
            self.connection.set_input_focus(InputFocus::PARENT, window.0, x11rb::CURRENT_TIME)?.check()?;
            let focus = self.connection.get_input_focus()?.reply()?.focus;
            Ok(Look::when(focus == window.0, || format!("window {focus} has it")))
        })
    }

    /// Changes the size of `window`, as a person who drags its corner.
    ///
    /// # Errors
    ///
    /// When the window is gone.
    pub fn resize(&self, window: Window, width: u16, height: u16) -> Result<()> {
        let size = ConfigureWindowAux::new().width(u32::from(width)).height(u32::from(height));
        Ok(self.connection.configure_window(window.0, &size)?.check()?)
    }

    /// Types `text` on a US keyboard.
    ///
    /// # Errors
    ///
    /// When there is no key for one of its characters, or the X server fails.
    pub fn type_text(&self, text: &str) -> Result<()> {
        let shift = self.keyboard.stroke(keysym::SHIFT)?;
        for character in text.chars() {
            let stroke = self.keyboard.stroke(keysym::of(character))?;
            if stroke.shifted {
                self.key(shift, true)?;
            }
            self.key(stroke, true)?;
            self.key(stroke, false)?;
            if stroke.shifted {
                self.key(shift, false)?;
            }
        }
        self.sync()
    }

    /// Presses the key of a keysym and holds it.
    ///
    /// # Errors
    ///
    /// When there is none, or the X server fails.
    pub fn press(&self, keysym: u32) -> Result<()> {
        self.key(self.keyboard.stroke(keysym)?, true)?;
        self.sync()
    }

    /// Lets go of the key of a keysym.
    ///
    /// # Errors
    ///
    /// When there is none, or the X server fails.
    pub fn release(&self, keysym: u32) -> Result<()> {
        self.key(self.keyboard.stroke(keysym)?, false)?;
        self.sync()
    }

    /// Moves the pointer to a point of the screen.
    ///
    /// # Errors
    ///
    /// When the X server fails.
    pub fn move_pointer(&self, x: i16, y: i16) -> Result<()> {
        self.connection.xtest_fake_input(MOTION_NOTIFY_EVENT, 0, 0, self.root, x, y, 0)?;
        self.sync()
    }

    /// Presses a button of the mouse and lets go.
    ///
    /// # Errors
    ///
    /// When the X server fails.
    pub fn click(&self, button: Button) -> Result<()> {
        for event in [BUTTON_PRESS_EVENT, BUTTON_RELEASE_EVENT] {
            self.connection.xtest_fake_input(event, button as u8, 0, self.root, 0, 0, 0)?;
        }
        self.sync()
    }

    /// A finger does something at a point of the screen; see [`TouchScreen::touch`].
    ///
    /// # Errors
    ///
    /// When there is no touch screen, or the X server fails.
    pub fn touch(&mut self, finger: u32, what: Touch, x: u16, y: u16) -> Result<()> {
        self.touch_screen.as_mut().context("this display has no touch screen")?.touch(finger, what, x, y)
    }

    fn key(&self, stroke: Stroke, pressed: bool) -> Result<()> {
        let event = if pressed { KEY_PRESS_EVENT } else { KEY_RELEASE_EVENT };
        self.connection.xtest_fake_input(event, stroke.keycode, KEY_DELAY, self.root, 0, 0, 0)?;
        Ok(())
    }

    /// Waits until the X server has done everything that was asked.
    fn sync(&self) -> Result<()> {
        self.connection.get_input_focus()?.reply()?;
        Ok(())
    }
}

fn with_common_arguments(mut command: Command) -> Command {
    // Without `-noreset` it forgets its settings whenever the last window is closed.
    command.args(["-displayfd", "1", "-noreset", "-nolisten", "tcp"]);
    command
}
