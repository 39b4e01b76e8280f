//! `fanlight.toml`: what the administrator decided, checked and typed.
//!
//! ```toml
//! [listen]
//! addresses = ["0.0.0.0", "[::]:3390"]   # an address without a port gets 3389 and 2179
//!
//! [tls]
//! certificate = "/etc/ssl/fanlight.pem"  # both or none; none: made on first start
//! key = "/etc/ssl/private/fanlight.key"
//!
//! [login]
//! nla = "allow"                          # or "require", "off"
//!
//! [limits]
//! sessions = 256
//!
//! [memory]
//! pool = 8192                            # MiB for all VMs together; none: all but the reserve
//! reserve = 2048                         # MiB that stay free; none: a twentieth, at least 1024
//! reclaim-after = 300                    # seconds
//!
//! [qemu]
//! program = "/usr/bin/qemu-system-x86_64"
//! ```

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::Spanned;
use vmm::memory::MemoryConfig;

use crate::door::Budgets;
use crate::state::StateFolder;

/// The ports of RDP and of Hyper-V's VMConnect.
pub const DEFAULT_PORTS: [u16; 2] = [3389, 2179];
/// More sessions than this are a mistake in the file, not a wish.
const MAX_SESSIONS: usize = 65_536;
/// How much memory VMs may have together, or leave, in MiB.
const MEMORY_MIB: RangeInclusive<u64> = 16..=64 * 1024 * 1024;
/// How long a guest may keep memory that it does not use and nobody else asks for, in seconds.
const RECLAIM_AFTER: RangeInclusive<u64> = 1..=86_400;

/// Everything `serve` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where everything is kept.
    pub state: StateFolder,
    /// Where RDP clients are awaited once a user exists.
    pub listen: Listen,
    /// The user's own certificate, instead of the one made on first start.
    pub certificate: Option<CertificateFiles>,
    /// Whether clients may, must or must not log on by NLA.
    pub nla: Nla,
    /// How many connections are kept in each stage.
    pub budgets: Budgets,
    /// The QEMU to run, when it is not the one in `PATH`.
    pub qemu: Option<PathBuf>,
    /// How the memory of VMs is managed.
    pub memory: MemoryConfig,
}

/// The addresses to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Each address and port.
    pub addresses: Vec<SocketAddr>,
    /// Whether the administrator named them; an address that only the default names may be missing on this host.
    pub chosen: bool,
}

/// PEM files of a certificate chain and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Network Level Authentication: the password is proved before the session starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nla {
    /// The client chooses.
    #[default]
    Allow,
    /// A client without NLA is refused.
    Require,
    /// Not offered; no NT hashes are kept for new users.
    Off,
}

/// What is wrong with the configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file says something that has no meaning.
    #[error("{}:{line}:{column}: {reason}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
}

impl Config {
    /// Reads the configuration of a state folder; without a file, the defaults.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read or has a mistake.
    pub fn load(state: StateFolder) -> Result<Self, ConfigError> {
        let file = state.config();
        match fs::read_to_string(&file) {
            Ok(text) => Self::parse(state, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::parse(state, ""),
            Err(source) => Err(ConfigError::Unreadable { file, source }),
        }
    }

    /// Reads `text` as the configuration file of `state`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] with the place of the first mistake.
    pub fn parse(state: StateFolder, text: &str) -> Result<Self, ConfigError> {
        let path = state.config();
        let file: File = toml::from_str(text).map_err(|error| {
            let reason = error.message().lines().collect::<Vec<_>>().join(", ");
            invalid(&path, text, error.span().unwrap_or(0..0), reason)
        })?;
        Self::try_from((state, file)).map_err(|mistake| invalid(&path, text, mistake.span, mistake.reason))
    }
}

impl Default for Listen {
    fn default() -> Self {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        let addresses = loopback.iter().flat_map(|ip| DEFAULT_PORTS.map(|port| SocketAddr::new(*ip, port))).collect();
        Self { addresses, chosen: false }
    }
}

impl Listen {
    /// Exactly these addresses.
    #[must_use]
    pub fn on(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, chosen: true }
    }

    /// Reads addresses as the administrator writes them: `IP` (both default ports), `IP:PORT` or `[IP6]:PORT`.
    ///
    /// # Errors
    ///
    /// A sentence that names the first text which is no address.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut addresses = Vec::new();
        for text in texts {
            addresses.extend(parse_address(text)?);
        }
        Ok(Self::on(addresses))
    }

    /// The same ports on loopback only: what is open while there is no user to log on.
    #[must_use]
    pub fn loopback_only(&self) -> Self {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in &self.addresses {
            let ip = match address.ip() {
                ip if ip.is_loopback() => ip,
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            let address = SocketAddr::new(ip, address.port());
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Self { addresses, chosen: self.chosen }
    }
}

fn parse_address(text: &str) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let ip: IpAddr = text
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .map_err(|_| format!("`{text}` is not an address: write IP, IP:PORT or [IP6]:PORT"))?;
    Ok(DEFAULT_PORTS.map(|port| SocketAddr::new(ip, port)).to_vec())
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    listen: ListenFile,
    tls: TlsFile,
    login: LoginFile,
    limits: LimitsFile,
    memory: MemoryFile,
    qemu: QemuFile,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct ListenFile {
    addresses: Option<Vec<Spanned<String>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct TlsFile {
    certificate: Option<Spanned<PathBuf>>,
    key: Option<Spanned<PathBuf>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct LoginFile {
    nla: Nla,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct LimitsFile {
    sessions: Option<Spanned<usize>>,
    waiting: Option<Spanned<usize>>,
    waiting_per_address: Option<Spanned<usize>>,
    silent: Option<Spanned<usize>>,
    silent_per_address: Option<Spanned<usize>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct MemoryFile {
    pool: Option<Spanned<u64>>,
    reserve: Option<Spanned<u64>>,
    reclaim_after: Option<Spanned<u64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct QemuFile {
    program: Option<Spanned<PathBuf>>,
}

struct Mistake {
    span: Range<usize>,
    reason: String,
}

impl TryFrom<(StateFolder, File)> for Config {
    type Error = Mistake;

    fn try_from((state, file): (StateFolder, File)) -> Result<Self, Mistake> {
        Ok(Self {
            certificate: file.tls.check()?,
            listen: file.listen.check()?,
            nla: file.login.nla,
            budgets: file.limits.check()?,
            memory: file.memory.check()?,
            qemu: file.qemu.program.map(absolute).transpose()?,
            state,
        })
    }
}

impl ListenFile {
    fn check(self) -> Result<Listen, Mistake> {
        let Some(texts) = self.addresses else { return Ok(Listen::default()) };
        let mut addresses = Vec::new();
        for text in texts {
            let span = text.span();
            addresses.extend(parse_address(&text.into_inner()).map_err(|reason| Mistake { span, reason })?);
        }
        Ok(Listen::on(addresses))
    }
}

impl TlsFile {
    fn check(self) -> Result<Option<CertificateFiles>, Mistake> {
        let alone = |span, missing| {
            Err(Mistake { span, reason: format!("`certificate` and `key` go together: {missing} is missing") })
        };
        match (self.certificate, self.key) {
            (None, None) => Ok(None),
            (Some(one), None) => alone(one.span(), "`key`"),
            (None, Some(one)) => alone(one.span(), "`certificate`"),
            (Some(certificate), Some(key)) => {
                Ok(Some(CertificateFiles { certificate: absolute(certificate)?, key: absolute(key)? }))
            }
        }
    }
}

impl LimitsFile {
    fn check(self) -> Result<Budgets, Mistake> {
        let mut budgets = Budgets::default();
        for (given, budget) in [
            (self.sessions, &mut budgets.sessions),
            (self.waiting, &mut budgets.waiting),
            (self.waiting_per_address, &mut budgets.waiting_per_address),
            (self.silent, &mut budgets.silent),
            (self.silent_per_address, &mut budgets.silent_per_address),
        ] {
            let Some(given) = given else { continue };
            let span = given.span();
            *budget = given.into_inner();
            if !(1..=MAX_SESSIONS).contains(budget) {
                return Err(Mistake { span, reason: format!("must be 1 to {MAX_SESSIONS}") });
            }
        }
        Ok(budgets)
    }
}

impl MemoryFile {
    fn check(self) -> Result<MemoryConfig, Mistake> {
        let mut config = MemoryConfig::default();
        config.pool.size = self.pool.map(|given| within(&given, MEMORY_MIB)).transpose()?.map(|mib| mib << 20);
        config.pool.reserve = self.reserve.map(|given| within(&given, MEMORY_MIB)).transpose()?.map(|mib| mib << 20);
        if let Some(given) = self.reclaim_after {
            config.tuning.reclaim_after = Duration::from_secs(within(&given, RECLAIM_AFTER)?);
        }
        Ok(config)
    }
}

fn within(given: &Spanned<u64>, range: RangeInclusive<u64>) -> Result<u64, Mistake> {
    let value = *given.get_ref();
    if range.contains(&value) {
        return Ok(value);
    }
    Err(Mistake { span: given.span(), reason: format!("must be {} to {}", range.start(), range.end()) })
}

fn absolute(path: Spanned<PathBuf>) -> Result<PathBuf, Mistake> {
    let span = path.span();
    let path = path.into_inner();
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Mistake { span, reason: format!("`{}` must be an absolute path", path.display()) })
    }
}

fn invalid(file: &Path, text: &str, span: Range<usize>, reason: String) -> ConfigError {
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    ConfigError::Invalid { file: file.to_owned(), line, column, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(StateFolder::new("/s"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_written_means_both_ports_on_loopback() {
        let listen = parse("").unwrap().listen;
        assert!(listen.addresses.iter().all(|address| address.ip().is_loopback()));
        assert!(
            DEFAULT_PORTS.iter().all(|port| listen.addresses.contains(&SocketAddr::new([127, 0, 0, 1].into(), *port)))
        );
    }

    #[test]
    fn an_address_without_port_gets_both() {
        let listen = parse("[listen]\naddresses = ['10.0.0.1', '[::]:4000']\n").unwrap().listen;
        let texts: Vec<_> = listen.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.1:3389", "10.0.0.1:2179", "[::]:4000"]);
        let loopback: Vec<_> = listen.loopback_only().addresses.iter().map(ToString::to_string).collect();
        assert_eq!(loopback, ["127.0.0.1:3389", "127.0.0.1:2179", "[::1]:4000"]);
    }

    #[test]
    fn memory_is_written_in_mib() {
        let memory = parse("[memory]\npool = 2048\nreserve = 512\nreclaim-after = 60\n").unwrap().memory;
        assert_eq!((memory.pool.size, memory.pool.reserve), (Some(2 << 30), Some(512 << 20)));
        assert_eq!(memory.tuning.reclaim_after, Duration::from_secs(60));
        assert_eq!(parse("").unwrap().memory.pool.size, None);
    }

    #[test]
    fn mistakes_are_named_with_line_and_column() {
        let table = [
            ("[listen]\nadresses = []\n", "/s/fanlight.toml:2:1: unknown field `adresses`"),
            ("[login]\nnla = 'maybe'\n", "/s/fanlight.toml:2:7: unknown variant `maybe`"),
            ("[listen]\naddresses = [\n  'localhost',\n]\n", "/s/fanlight.toml:3:3: `localhost` is not an address"),
            ("[limits]\nsessions = 0\n", "/s/fanlight.toml:2:12: must be 1 to"),
            ("[limits]\nsessions = -1\n", "/s/fanlight.toml:2:12: "),
            ("[tls]\nkey = '/k'\n", "/s/fanlight.toml:2:7: `certificate` and `key` go together"),
            ("[memory]\npool = 4\n", "/s/fanlight.toml:2:8: must be 16 to"),
            ("[memory]\nreclaim-after = 0\n", "/s/fanlight.toml:2:17: must be 1 to"),
            ("[qemu]\nprogram = 'qemu'\n", "/s/fanlight.toml:2:11: `qemu` must be an absolute path"),
            ("[listen\n", "/s/fanlight.toml:1:8: "),
        ];
        for (text, expected) in table {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{text:?} gave {error:?}");
        }
    }
}
