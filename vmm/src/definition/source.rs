//! Where the bytes of a disk are: a file or device of this host, or a server.
//!
//! Servers are named by URLs: `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH` of the NBD URI specification,
//! with an `s` after `nbd` for TLS, whose certificates are in the folder of `?tls-certificates=`; `http://` and `https://`
//! as everywhere.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::DiskFormat;

/// The port of NBD servers that name none.
const NBD_PORT: u16 = 10_809;
/// Longest URL.
const MAX_URL: usize = 4096;

/// Where the bytes of a disk are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DiskSource {
    /// Nowhere: a drive without a disc.
    Empty,
    /// A file or a block device of this host, or of a share that is mounted; absolute.
    Path(PathBuf),
    /// A server.
    Remote(Remote),
}

/// A disk on a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Remote {
    /// An export of an NBD server.
    Nbd {
        /// Where the server is.
        server: NbdServer,
        /// What it calls the disk.
        export: String,
        /// How the connection is secured, if it is.
        tls: Option<Tls>,
    },
    /// A file that a web server gives out; it is never written to.
    Http {
        /// The whole URL.
        url: String,
    },
}

/// Where an NBD server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NbdServer {
    /// On a network.
    Tcp {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
    },
    /// On this host, at the socket with that path.
    Unix(PathBuf),
}

/// How a connection is secured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tls {
    /// The folder of `ca-cert.pem`, and of `client-cert.pem` with `client-key.pem` where the server wants to know its
    /// clients; absolute.
    pub certificates: PathBuf,
    /// The name in the server's certificate, when it is not that of the URL.
    pub hostname: Option<String>,
}

/// A URL that is not one, or leads to nothing that is known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(String);

impl DiskSource {
    /// The path, when it is on this host.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Empty | Self::Remote(_) => None,
        }
    }

    /// The format that the end of its name tells.
    #[must_use]
    pub fn named_format(&self) -> Option<DiskFormat> {
        match self {
            Self::Path(path) => DiskFormat::of_name(path),
            Self::Remote(Remote::Http { url }) => DiskFormat::of_name(Path::new(url)),
            Self::Remote(Remote::Nbd { .. }) | Self::Empty => None,
        }
    }

    /// Reads a path or a URL, as people write it.
    ///
    /// # Errors
    ///
    /// When it looks like a URL and is none that is known here.
    pub fn of_words(text: &str) -> Result<Self, InvalidUrl> {
        if text.contains("://") { text.parse().map(Self::Remote) } else { Ok(Self::Path(text.into())) }
    }
}

/// As [`of_words`](DiskSource::of_words) reads it; nothing is the empty text.
impl Serialize for DiskSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::Empty { serializer.serialize_str("") } else { serializer.collect_str(self) }
    }
}

impl<'de> Deserialize<'de> for DiskSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = String::deserialize(deserializer)?;
        if words.is_empty() { Ok(Self::Empty) } else { Self::of_words(&words).map_err(serde::de::Error::custom) }
    }
}

impl From<PathBuf> for DiskSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl FromStr for Remote {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let invalid = |reason: &str| InvalidUrl(format!("`{}` {reason}", text.replace(char::is_control, "?")));
        if text.len() > MAX_URL {
            return Err(InvalidUrl(format!("a URL has {MAX_URL} bytes at most")));
        }
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return Err(invalid("has characters that are in no URL"));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("is not a URL"))?;
        match scheme {
            "http" | "https" if rest.starts_with('/') || rest.is_empty() => Err(invalid("names no host")),
            "http" | "https" => Ok(Self::Http { url: text.into() }),
            "nbd" | "nbds" | "nbd+unix" | "nbds+unix" => nbd(scheme, rest).map_err(|reason| invalid(&reason)),
            _ => Err(invalid("is not nbd://, nbd+unix://, nbds://, http:// or https://")),
        }
    }
}

fn nbd(scheme: &str, rest: &str) -> Result<Remote, String> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (place, export) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(export)?;
    let mut parameters = Parameters::of(query)?;
    let server = if scheme.ends_with("unix") {
        let socket = parameters.take("socket").ok_or("needs ?socket=PATH")?;
        if place.is_empty() {
            NbdServer::Unix(absolute(socket)?)
        } else {
            return Err("names a host and a socket".into());
        }
    } else {
        host_and_port(place)?
    };
    let certificates = parameters.take("tls-certificates");
    let hostname = parameters.take("tls-hostname");
    let tls = match (scheme.starts_with("nbds"), certificates) {
        (true, Some(folder)) => Some(Tls { certificates: absolute(folder)?, hostname }),
        (true, None) => return Err("needs ?tls-certificates=FOLDER".into()),
        (false, None) if hostname.is_none() => None,
        (false, _) => return Err("is secured only when it begins with nbds".into()),
    };
    parameters.none_left()?;
    Ok(Remote::Nbd { server, export, tls })
}

fn host_and_port(place: &str) -> Result<NbdServer, String> {
    // The colons of an IPv6 address are between brackets.
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("has a bracket without its other")?;
            (host, after.strip_prefix(':').or(after.is_empty().then_some("")).ok_or("has something after the bracket")?)
        }
        None => place.split_once(':').unwrap_or((place, "")),
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    if host.is_empty() || !host.chars().all(is_host) {
        return Err("names no host".into());
    }
    let port = if port.is_empty() { Some(NBD_PORT) } else { port.parse().ok() };
    let port = port.filter(|port| *port > 0).ok_or("has no port after the colon")?;
    Ok(NbdServer::Tcp { host: host.into(), port })
}

fn absolute(path: String) -> Result<PathBuf, String> {
    if path.starts_with('/') { Ok(path.into()) } else { Err(format!("has {path:?}, which is not an absolute path")) }
}

/// What follows the `?`.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn of(query: &str) -> Result<Self, String> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        });
        decoded.collect::<Result<_, String>>().map(Self)
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(found, _)| found == name)?;
        Some(self.0.remove(at).1)
    }

    fn none_left(&self) -> Result<(), String> {
        self.0.first().map_or(Ok(()), |(name, _)| Err(format!("has ?{name}=, which is not known")))
    }
}

/// Turns `%41` into `A`.
fn decode(text: &str) -> Result<String, String> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or("has a % without two digits")?);
        rest = after.get(2..).unwrap_or_default();
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
    if text.contains(char::is_control) { Err("has control characters".into()) } else { Ok(text) }
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (server, export, tls) = match self {
            Self::Http { url } => return f.write_str(url),
            Self::Nbd { server, export, tls } => (server, export, tls),
        };
        f.write_str(if tls.is_some() { "nbds" } else { "nbd" })?;
        let mut parameters = Vec::new();
        match server {
            NbdServer::Unix(socket) => {
                write!(f, "+unix:///{}", encode(export))?;
                parameters.push(format!("socket={}", encode(&socket.to_string_lossy())));
            }
            NbdServer::Tcp { host, port } => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                let port = if *port == NBD_PORT { String::new() } else { format!(":{port}") };
                write!(f, "://{host}{port}/{}", encode(export))?;
            }
        }
        if let Some(tls) = tls {
            parameters.push(format!("tls-certificates={}", encode(&tls.certificates.to_string_lossy())));
            parameters.extend(tls.hostname.as_ref().map(|name| format!("tls-hostname={}", encode(name))));
        }
        if parameters.is_empty() { Ok(()) } else { write!(f, "?{}", parameters.join("&")) }
    }
}

impl fmt::Display for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("nothing"),
            Self::Path(path) => path.display().fmt(f),
            Self::Remote(remote) => remote.fmt(f),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tls() -> impl Strategy<Value = Option<Tls>> {
        let tls = ("/[ -~]{1,20}", proptest::option::of("[ -~]{1,20}"))
            .prop_map(|(folder, hostname)| Tls { certificates: folder.into(), hostname });
        proptest::option::of(tls)
    }

    pub(in crate::definition) fn remote() -> impl Strategy<Value = Remote> {
        let host = prop_oneof!["[a-z0-9.-]{1,12}", "[0-9a-f]{1,4}:[0-9a-f:]{1,10}"];
        let tcp = (host, 1_u16..).prop_map(|(host, port)| NbdServer::Tcp { host, port });
        let unix = "/[ -~é]{1,20}".prop_map(|path| NbdServer::Unix(path.into()));
        let nbd = (prop_oneof![tcp, unix], "[ -~é]{0,20}", tls()).prop_map(|(server, export, tls)| Remote::Nbd {
            server,
            export,
            tls,
        });
        prop_oneof![nbd, "https?://[a-z.]{1,12}/[!-~]{0,20}".prop_map(|url| Remote::Http { url })]
    }

    proptest! {
        #[test]
        fn a_url_is_read_as_it_was_written(remote in remote()) {
            prop_assert_eq!(remote.to_string().parse(), Ok(remote));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(nbds?(\\+unix)?://)?[ -~é]{0,40}") {
            if let Ok(remote) = text.parse::<Remote>() {
                prop_assert_eq!(remote.to_string().parse(), Ok(remote));
            }
        }
    }

    #[test]
    fn urls_are_those_of_the_specification() {
        let server = NbdServer::Tcp { host: "fe80::1%eth0".into(), port: 10_810 };
        let nbd = Remote::Nbd { server, export: "web 01".into(), tls: None };
        assert_eq!("nbd://[fe80::1%eth0]:10810/web%2001".parse(), Ok(nbd));
        let server = NbdServer::Unix("/run/nbd.sock".into());
        assert_eq!(
            "nbd+unix:///?socket=/run/nbd.sock".parse(),
            Ok(Remote::Nbd { server, export: "".into(), tls: None })
        );
        let Ok(Remote::Nbd { server, tls: Some(tls), .. }) = "nbds://host/x?tls-certificates=/etc/tls".parse() else {
            panic!("must be read")
        };
        assert_eq!(server, NbdServer::Tcp { host: "host".into(), port: NBD_PORT });
        assert_eq!(tls, Tls { certificates: "/etc/tls".into(), hostname: None });
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (text, reason) in [
            ("ftp://host/x", "is not nbd://"),
            ("/srv/x", "is not a URL"),
            ("nbd:///x", "names no host"),
            ("nbd://host:0/x", "has no port"),
            ("nbd://host/x?socket=/a", "has ?socket="),
            ("nbd+unix://host/x?socket=/a", "a host and a socket"),
            ("nbd+unix:///x?socket=a", "not an absolute path"),
            ("nbds://host/x", "needs ?tls-certificates"),
            ("nbd://host/x?tls-certificates=/a", "begins with nbds"),
            ("nbd://host/%4", "a % without two digits"),
            ("nbd://host/%00", "control characters"),
            ("https:///x", "names no host"),
            ("http://a b", "in no URL"),
        ] {
            let error = text.parse::<Remote>().expect_err("must be refused").to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
