//! FreeRDP as a person would use it: a window on a display of its own.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::display::{Button, Display, Window};
use crate::picture::{Likeness, Picture};
use crate::process::Process;
use crate::scratch;
use crate::text::{Font, Screen};
use crate::touch_screen::Touch;
use crate::wait::{Look, wait_until};

/// How long a client may take to show its window, or to end when it must.
pub const CONNECT: Duration = Duration::from_secs(60);
/// How long a change may take to be seen.
pub const SEEN: Duration = Duration::from_secs(60);

/// A client's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// FreeRDP 3.
    FreeRdp3,
    /// FreeRDP 2.11.
    FreeRdp2,
}

/// A client that is about to be started.
#[derive(Debug, Clone)]
#[must_use]
pub struct Connect {
    program: Program,
    file: Option<PathBuf>,
    /// Where to and as whom, as options.
    logon: Vec<String>,
    size: (u16, u16),
    options: Vec<String>,
    touch_screen: bool,
}

/// A client that runs. Dropping it kills it and its display.
#[derive(Debug)]
pub struct Client {
    process: Process,
    display: Display,
    folder: PathBuf,
    window: Option<Window>,
}

/// How a client ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// What it told the system.
    pub status: ExitStatus,
    /// The errors that its log names, such as `ERRINFO_LOGOFF_BY_USER`.
    pub errors: Vec<String>,
}

impl Connect {
    /// A FreeRDP 3 with a window of 1280x800 that connects to `address`.
    pub fn to(address: SocketAddr, user: &str, password: &str) -> Self {
        Self {
            program: Program::FreeRdp3,
            file: None,
            logon: vec![format!("/v:{address}"), format!("/u:{user}"), format!("/p:{password}")],
            size: (1280, 800),
            options: Vec::new(),
            touch_screen: false,
        }
    }

    /// A FreeRDP 3 that is given an RDP file and a password.
    pub fn by_file(file: &Path, password: &str) -> Self {
        Self {
            program: Program::FreeRdp3,
            file: Some(file.to_owned()),
            logon: vec![format!("/p:{password}")],
            size: (1280, 800),
            options: Vec::new(),
            touch_screen: false,
        }
    }

    /// Another program.
    pub fn program(self, program: Program) -> Self {
        Self { program, ..self }
    }

    /// Another size of the window.
    pub fn size(self, width: u16, height: u16) -> Self {
        Self { size: (width, height), ..self }
    }

    /// More options, as they are written on the command line.
    pub fn with<I: IntoIterator<Item: Into<String>>>(mut self, options: I) -> Self {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }

    /// With a touch screen, and the channel for it.
    pub fn with_touch_screen(self) -> Self {
        Self { touch_screen: true, ..self }.with(["+multitouch"])
    }

    /// Starts the client.
    ///
    /// # Errors
    ///
    /// When it or its display cannot be started.
    pub fn start(&self) -> Result<Client> {
        let folder = scratch::folder("client")?;
        let display = match self.touch_screen {
            true => Display::start_with_touch_screen(&folder)?,
            false => Display::start(&folder)?,
        };
        let mut command = Command::new(self.program.name());
        command.args(self.arguments()).env("DISPLAY", display.name());
        // Its own home: nothing of the person who runs the tests is read or written.
        command.env("HOME", &folder).env_remove("XDG_CONFIG_HOME").env_remove("XDG_CACHE_HOME").env("LANG", "C");
        let process = Process::start(command, &folder.join("client.log"))?;
        Ok(Client { process, display, folder, window: None })
    }

    /// Starts the client and waits for its window.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn open(&self) -> Result<Client> {
        let mut client = self.start()?;
        client.wait_for_window()?;
        Ok(client)
    }

    /// Logs on and off again; whether the server took the password.
    ///
    /// # Errors
    ///
    /// When the client does not say.
    pub fn logs_on(&self) -> Result<bool> {
        let mut client = self.clone().with(["+auth-only"]).start()?;
        client.process.wait_for_line(CONNECT, "the result of the logon", |line| {
            // One is success here, whatever the exit status of programs means elsewhere.
            let (_, status) = line.split_once("Authentication only, exit status ")?;
            Some(status.trim() == "1")
        })
    }

    fn arguments(&self) -> Vec<OsString> {
        let (width, height) = self.size;
        let size = format!("/size:{width}x{height}");
        // With a clipboard it mounts a folder for files, which stays mounted when it is killed.
        let window = [&size, "/cert:ignore", "-decorations", "/window-position:0x0", "-clipboard"].map(str::to_owned);
        // A file is only taken in the first place, and a port only after what sets another by default.
        let options = self.options.iter().cloned().chain(window).chain(self.logon.iter().cloned());
        self.file.iter().map(OsString::from).chain(options.map(OsString::from)).collect()
    }
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::FreeRdp3 => "xfreerdp3",
            Self::FreeRdp2 => "xfreerdp",
        }
    }
}

impl Client {
    /// What is to be seen in its window.
    ///
    /// # Errors
    ///
    /// When there is no window.
    pub fn picture(&self) -> Result<Picture> {
        self.display.picture(self.window()?)
    }

    /// Reads what is written in its window.
    ///
    /// # Errors
    ///
    /// When there is no window.
    pub fn screen(&self, font: &Font) -> Result<Screen> {
        Ok(font.read(&self.picture()?))
    }

    /// Waits until `seen` is content with what is written in the window, and returns that.
    ///
    /// # Errors
    ///
    /// When it never is.
    pub fn wait_for_screen(&self, font: &Font, what: &str, seen: impl Fn(&Screen) -> bool) -> Result<Screen> {
        self.wait_for_screen_within(SEEN, font, what, seen)
    }

    /// As [`wait_for_screen`](Self::wait_for_screen), with more or less patience.
    ///
    /// # Errors
    ///
    /// When it never is.
    pub fn wait_for_screen_within(
        &self,
        limit: Duration,
        font: &Font,
        what: &str,
        seen: impl Fn(&Screen) -> bool,
    ) -> Result<Screen> {
        let found = wait_until(limit, what, || {
            let screen = self.screen(font)?;
            Ok(if seen(&screen) { Look::Found(screen) } else { Look::NotYet(format!("the client shows:\n{screen:?}")) })
        });
        found.map_err(|error| self.with_evidence(error))
    }

    /// Waits until the window shows what `guest` returns.
    ///
    /// # Errors
    ///
    /// When it never does; both pictures are kept then.
    pub fn wait_for_picture(&self, likeness: Likeness, mut guest: impl FnMut() -> Result<Picture>) -> Result<Picture> {
        let mut last = None;
        let shown = wait_until(SEEN, "the guest's picture in the client", || {
            let wanted = guest()?;
            let own = self.picture()?;
            if own.shows(&wanted, likeness) {
                return Ok(Look::Found(own));
            }
            let difference = own.difference(&wanted);
            last = Some(wanted);
            Ok(Look::NotYet(difference))
        });
        shown.map_err(|error| {
            if let Some(wanted) = last {
                // The error is what counts; a picture that cannot be kept is not worth another.
                let _ = wanted.save(&self.folder.join("guest.png"));
            }
            self.with_evidence(error)
        })
    }

    /// Waits until there is something to see in the window, whatever it is.
    ///
    /// # Errors
    ///
    /// When it stays empty.
    pub fn wait_for_drawing(&self) -> Result<Picture> {
        let drawn = wait_until(SEEN, "something to see", || {
            let picture = self.picture()?;
            Ok(if picture.is_plain() { Look::NotYet("the window is empty".to_owned()) } else { Look::Found(picture) })
        });
        drawn.map_err(|error| self.with_evidence(error))
    }

    /// Types `text`.
    ///
    /// # Errors
    ///
    /// When there is no window, or no key for a character.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.display.type_text(text)
    }

    /// Holds a key down; see [`keysym`](crate::keys::keysym).
    ///
    /// # Errors
    ///
    /// When there is no such key.
    pub fn press(&self, keysym: u32) -> Result<()> {
        self.display.press(keysym)
    }

    /// Lets go of a key.
    ///
    /// # Errors
    ///
    /// When there is no such key.
    pub fn release(&self, keysym: u32) -> Result<()> {
        self.display.release(keysym)
    }

    /// Presses a key and lets go.
    ///
    /// # Errors
    ///
    /// When there is no such key.
    pub fn tap(&self, keysym: u32) -> Result<()> {
        self.press(keysym)?;
        self.release(keysym)
    }

    /// Moves the pointer to a point of its window.
    ///
    /// # Errors
    ///
    /// When the display fails.
    pub fn move_pointer(&self, x: i16, y: i16) -> Result<()> {
        self.display.move_pointer(x, y)
    }

    /// Clicks or turns the wheel.
    ///
    /// # Errors
    ///
    /// When the display fails.
    pub fn click(&self, button: Button) -> Result<()> {
        self.display.click(button)
    }

    /// A finger does something at a point of its window; needs [`Connect::with_touch_screen`].
    ///
    /// # Errors
    ///
    /// When the display fails.
    pub fn touch(&mut self, finger: u32, what: Touch, x: u16, y: u16) -> Result<()> {
        self.display.touch(finger, what, x, y)
    }

    /// Changes the size of its window.
    ///
    /// # Errors
    ///
    /// When there is no window.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        self.display.resize(self.window()?, width, height)
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Whether it runs.
    ///
    /// # Errors
    ///
    /// When the system does not know.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn wait_for_end(&mut self) -> Result<End> {
        let status = self.process.wait(CONNECT)?;
        Ok(End { status, errors: errors(&self.process.log()) })
    }

    /// Closes it as a person would.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn close(mut self) -> Result<()> {
        self.process.terminate().map(drop)
    }

    /// Waits for its window and gives it the keyboard.
    ///
    /// # Errors
    ///
    /// When there is none, with what the client wrote.
    pub fn wait_for_window(&mut self) -> Result<()> {
        let window = wait_until(CONNECT, "the client's window", || {
            let Some(window) = self.display.window("FreeRDP")? else {
                let ended = self.process.ended()?.map(|status| format!("it ended with {status}"));
                anyhow::ensure!(ended.is_none(), "no window: {}\n{}", ended.unwrap_or_default(), self.process.tail());
                return Ok(Look::NotYet(format!("it wrote:\n{}", self.process.tail())));
            };
            Ok(Look::Found(window))
        })?;
        self.display.focus(window)?;
        self.window = Some(window);
        Ok(())
    }

    fn window(&self) -> Result<Window> {
        self.window.context("the client has shown no window")
    }

    /// Keeps what the window shows and says where.
    fn with_evidence(&self, error: anyhow::Error) -> anyhow::Error {
        let kept = self.picture().and_then(|picture| picture.save(&self.folder.join("client.png")));
        let evidence = match kept {
            Ok(()) => format!("pictures and logs are in {}", self.folder.display()),
            Err(lost) => format!("there is no picture: {lost}; logs are in {}", self.folder.display()),
        };
        error.context(format!("{evidence}\n{}", self.process.tail()))
    }
}

/// The names of errors in a client's log, each once.
fn errors(log: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for word in log.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        let is_error = word.starts_with("ERRINFO_") || word.starts_with("ERRCONNECT_");
        if is_error && !found.iter().any(|known| known == word) {
            found.push(word.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_found_in_a_log() {
        let log = "[rdp_print_errinfo]: ERRINFO_LOGOFF_BY_USER (0x0000000C):The user\nfoo ERRINFO_LOGOFF_BY_USER\n\
                   ERRCONNECT_LOGON_FAILURE [0x00020014]\n";
        assert_eq!(errors(log), ["ERRINFO_LOGOFF_BY_USER", "ERRCONNECT_LOGON_FAILURE"]);
    }
}
