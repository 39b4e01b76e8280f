//! What the agent is told by its command line, its environment and the kernel's command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// The variable that stands for `--transport`.
const TRANSPORT_VARIABLE: &str = "FANLIGHT_TRANSPORT";
/// The parameter of the kernel's command line that stands for `--transport`.
const TRANSPORT_PARAMETER: &str = "fanlight.transport";

/// How channels are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportChoice {
    /// On rings where both ends can, else on the stream.
    #[default]
    Auto,
    /// On the stream only; shared memory is not looked for.
    Stream,
    /// On rings only: a channel that cannot have them stays closed.
    Ring,
}

impl FromStr for TransportChoice {
    type Err = InvalidOptions;

    fn from_str(text: &str) -> Result<Self, InvalidOptions> {
        match text {
            "auto" => Ok(Self::Auto),
            "stream" => Ok(Self::Stream),
            "ring" => Ok(Self::Ring),
            _ => Err(InvalidOptions::Transport(text.to_owned())),
        }
    }
}

/// What the agent is to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// How channels are opened; none: nothing was said.
    pub transport: Option<TransportChoice>,
    /// The port's device node, instead of looking for the port's name.
    pub port: Option<PathBuf>,
    /// Log what is of interest while looking for an error.
    pub verbose: bool,
}

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// To work.
    Run(Options),
    /// To say how it is used.
    Help,
    /// To say which version it is.
    Version,
}

/// Words that are not understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidOptions {
    /// Neither an option nor anything else.
    #[error("{0:?} is no option; see --help")]
    Unknown(String),
    /// An option that needs a value has none.
    #[error("{0} needs a value; see --help")]
    NoValue(&'static str),
    /// Not a transport.
    #[error("{0:?} is no transport; there are: auto, stream, ring")]
    Transport(String),
}

impl Command {
    /// Understands the words behind the program's name.
    ///
    /// # Errors
    ///
    /// When a word is unknown, or misses its value.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, InvalidOptions> {
        let mut options = Options::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let text = word.to_string_lossy();
            let (name, inline) = match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(OsString::from(value))),
                None => (text.into_owned(), None),
            };
            let mut value = |name| inline.clone().or_else(|| words.next()).ok_or(InvalidOptions::NoValue(name));
            match name.as_str() {
                "-h" | "--help" => return Ok(Self::Help),
                "-V" | "--version" => return Ok(Self::Version),
                "-v" | "--verbose" => options.verbose = true,
                "--transport" => options.transport = Some(value("--transport")?.to_string_lossy().parse()?),
                "--port" => options.port = Some(value("--port")?.into()),
                _ => return Err(InvalidOptions::Unknown(name)),
            }
        }
        Ok(Self::Run(options))
    }
}

impl Options {
    /// The transport, as told here, by this process's environment or by this system's kernel.
    ///
    /// # Errors
    ///
    /// When one of them names none that there is.
    pub fn transport_of_system(&self) -> Result<TransportChoice, InvalidOptions> {
        let variable = std::env::var(TRANSPORT_VARIABLE).ok();
        let kernel_command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        self.transport(variable.as_deref(), &kernel_command_line)
    }

    /// What the command line says, else the environment, else the kernel's command line.
    fn transport(&self, variable: Option<&str>, kernel_command_line: &str) -> Result<TransportChoice, InvalidOptions> {
        match self.transport {
            Some(transport) => Ok(transport),
            None => variable
                .or_else(|| kernel_parameter(kernel_command_line, TRANSPORT_PARAMETER))
                .map_or(Ok(TransportChoice::default()), str::parse),
        }
    }
}

/// The last value of `name=value`.
fn kernel_parameter<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    let mut values =
        command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    values.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Command, InvalidOptions> {
        Command::parse(words.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_may_have_their_value_behind_them_or_in_them() {
        let expected = Options {
            transport: Some(TransportChoice::Ring),
            port: Some(PathBuf::from("/dev/vport1p1")),
            ..Options::default()
        };
        assert_eq!(parse("--transport ring --port=/dev/vport1p1"), Ok(Command::Run(expected)));
        assert_eq!(parse(""), Ok(Command::Run(Options::default())));
        assert_eq!(parse("-v --help"), Ok(Command::Help));
        assert_eq!(parse("--version"), Ok(Command::Version));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert_eq!(parse("--transport"), Err(InvalidOptions::NoValue("--transport")));
        assert_eq!(parse("--transport=pigeon"), Err(InvalidOptions::Transport("pigeon".into())));
        assert_eq!(parse("--loud"), Err(InvalidOptions::Unknown("--loud".into())));
    }

    #[test]
    fn the_nearer_word_counts() {
        let silent = Options::default();
        let told = Options { transport: Some(TransportChoice::Auto), ..Options::default() };
        let kernel = "console=tty0 fanlight.transport=ring fanlight.transport=stream";
        assert_eq!(told.transport(Some("ring"), kernel), Ok(TransportChoice::Auto));
        assert_eq!(silent.transport(Some("ring"), kernel), Ok(TransportChoice::Ring));
        assert_eq!(silent.transport(None, kernel), Ok(TransportChoice::Stream));
        assert_eq!(silent.transport(None, "fanlight.transports=ring"), Ok(TransportChoice::Auto));
        assert_eq!(silent.transport(None, "fanlight.transport="), Err(InvalidOptions::Transport(String::new())));
    }
}
