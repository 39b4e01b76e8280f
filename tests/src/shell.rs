//! Programs in a guest that connect to the test: a shell, or the bytes of a device.
//!
//! A guest with a network finds this machine's loopback at 10.0.2.2. Nothing of this passes the keyboard, the screen or
//! the bus, so it can watch all three.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait::{Look, wait_until};

/// How long a program in a guest may take to connect, and a command to end.
const PATIENCE: Duration = Duration::from_secs(120);
/// What ends the output of a command: no command of a test writes it.
const END: &str = "--end-of-command--";

/// A port for one program in a guest.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
}

/// A shell in a guest. When it is dropped the shell ends.
#[derive(Debug)]
pub struct Shell {
    stream: BufReader<TcpStream>,
}

impl Port {
    /// Opens a port.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn open() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// The guest's command that connects here; without more it sends its standard input.
    ///
    /// # Errors
    ///
    /// When the system does not know the port.
    pub fn command(&self) -> Result<String> {
        Ok(format!("nc 10.0.2.2 {}", self.listener.local_addr()?.port()))
    }

    /// Waits for the program.
    ///
    /// # Errors
    ///
    /// When it does not come.
    pub fn accept(&self) -> Result<TcpStream> {
        let stream = wait_until(PATIENCE, "a program in the guest to connect", || match self.listener.accept() {
            Ok((stream, _)) => Ok(Look::Found(stream)),
            Err(error) => Ok(Look::NotYet(error.to_string())),
        })?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

impl Shell {
    /// A line that has a shell connect to `port`, and go on beside the shell that reads it.
    ///
    /// # Errors
    ///
    /// As [`Port::command`].
    pub fn line(port: &Port) -> Result<String> {
        Ok(format!("({} -e sh 2>/dev/null &)", port.command()?))
    }

    /// The shell that has connected.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Runs a command, and returns what it wrote, without its errors.
    ///
    /// # Errors
    ///
    /// When the shell is gone, or the command does not end.
    pub fn run(&mut self, command: &str) -> Result<String> {
        let mut answer = String::new();
        writeln!(self.stream.get_mut(), "{command}\necho {END}")
            .with_context(|| format!("`{command}` in the guest"))?;
        while answer.lines().next_back() != Some(END) {
            let read = self.stream.read_line(&mut answer).with_context(|| format!("`{command}` in the guest"))?;
            ensure!(read > 0, "the guest's shell ended in `{command}` after {answer:?}");
        }
        Ok(answer.trim_end().trim_end_matches(END).trim_end().to_owned())
    }
}
