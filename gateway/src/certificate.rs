//! The certificate of the RDP listener: the administrator's own, or one made on first start and kept.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::config::{CertificateFiles, Config};
use crate::files::write_atomically;

/// How long a certificate made here is valid. Clients trust it by its fingerprint, so a change costs each of
/// them a question.
const VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// A client's clock may be behind.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 3600);

/// A certificate that is ready for use.
#[derive(Debug, Clone)]
pub struct Identity {
    /// TLS 1.2 and 1.3 with this certificate.
    pub tls: Arc<ServerConfig>,
    /// The bits of its SubjectPublicKey, to which CredSSP binds the password (MS-CSSP 3.1.5).
    pub public_key: Vec<u8>,
    /// SHA-256 of the certificate.
    pub fingerprint: Fingerprint,
    /// When it ends to be valid.
    pub valid_until: SystemTime,
}

/// SHA-256 of a certificate, written as `01:23:…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read as PEM.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The new certificate cannot be kept.
    #[error("cannot write {}: {source}", file.display())]
    Unwritable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file holds no certificate, or one that is damaged.
    #[error("{} is not a certificate: {reason}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key do not belong together, or TLS cannot use them.
    #[error("{} and {} cannot be used for TLS: {source}", files.certificate.display(), files.key.display())]
    Unusable {
        /// The files.
        files: CertificateFiles,
        /// What rustls says.
        source: rustls::Error,
    },
    /// It cannot be made.
    #[error("cannot make a certificate: {0}")]
    NotMade(#[from] rcgen::Error),
}

impl Identity {
    /// Loads the certificate of `config`; on first start, makes one.
    ///
    /// # Errors
    ///
    /// When there is none that TLS can use.
    pub fn load_or_create(config: &Config) -> Result<Self, CertificateError> {
        if let Some(files) = &config.certificate {
            return Self::load(files);
        }
        let files = CertificateFiles { certificate: config.state.certificate(), key: config.state.private_key() };
        if !files.certificate.exists() || !files.key.exists() {
            create(&files)?;
        }
        Self::load(&files)
    }

    fn load(files: &CertificateFiles) -> Result<Self, CertificateError> {
        let malformed = |reason: String| CertificateError::Malformed { file: files.certificate.clone(), reason };
        let unreadable = |file: &PathBuf| {
            let file = file.clone();
            move |source| CertificateError::Unreadable { file, source }
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
            .and_then(Iterator::collect)
            .map_err(unreadable(&files.certificate))?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(unreadable(&files.key))?;
        let first = chain.first().ok_or_else(|| malformed("it holds no certificate".to_owned()))?;
        let parsed = Certificate::from_der(first).map_err(|error| malformed(error.to_string()))?;
        let fingerprint = Fingerprint(Sha256::digest(first).into());
        let tls =
            server_config(chain, key).map_err(|source| CertificateError::Unusable { files: files.clone(), source })?;
        Ok(Self {
            tls: Arc::new(tls),
            public_key: parsed.tbs_certificate.subject_public_key_info.subject_public_key.raw_bytes().to_vec(),
            fingerprint,
            valid_until: parsed.tbs_certificate.validity.not_after.to_system_time(),
        })
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().enumerate().try_for_each(|(at, byte)| write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" }))
    }
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // RDP clients do not resume; tickets and a session store would be kept for nobody.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn create(files: &CertificateFiles) -> Result<(), CertificateError> {
    let key = KeyPair::generate()?;
    let certificate = parameters()?.self_signed(&key)?;
    let write = |file: &PathBuf, mode, text: &str| {
        write_atomically(file, mode, text.as_bytes())
            .map_err(|source| CertificateError::Unwritable { file: file.clone(), source })
    };
    // The key first: a certificate without its key would be kept for ever.
    write(&files.key, 0o600, &key.serialize_pem())?;
    write(&files.certificate, 0o644, &certificate.pem())
}

fn parameters() -> Result<CertificateParams, rcgen::Error> {
    let host = host_name();
    let mut names = vec!["localhost".to_owned()];
    if host != "localhost" {
        names.push(host.clone());
    }
    let mut parameters = CertificateParams::new(names)?;
    parameters.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    parameters.subject_alt_names.push(SanType::IpAddress(Ipv6Addr::LOCALHOST.into()));
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, host);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    parameters.not_before = epoch + now.saturating_sub(CLOCK_SLACK);
    parameters.not_after = epoch + now + VALIDITY;
    Ok(parameters)
}

/// The host's name, when it can stand in a certificate.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let valid = !name.is_empty()
        && name.len() <= 64
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    if valid { name } else { "localhost".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::state::StateFolder;
    use crate::testing::TempFolder;

    fn config(folder: &TempFolder) -> Config {
        let state = StateFolder::new(folder.path());
        state.create().unwrap();
        Config::parse(state, "").unwrap()
    }

    #[test]
    fn the_certificate_of_the_first_start_is_kept() {
        let folder = TempFolder::new("certificate");
        let config = config(&folder);
        let first = Identity::load_or_create(&config).unwrap();
        let second = Identity::load_or_create(&config).unwrap();
        assert_eq!(first.fingerprint, second.fingerprint);
        assert_eq!(first.public_key, second.public_key);
        let mode = std::fs::metadata(config.state.private_key()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(first.valid_until > SystemTime::now() + VALIDITY / 2);
    }

    #[test]
    fn an_elliptic_public_key_is_an_uncompressed_point() {
        let folder = TempFolder::new("point");
        let identity = Identity::load_or_create(&config(&folder)).unwrap();
        assert_eq!((identity.public_key.len(), identity.public_key.first()), (65, Some(&4)));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let folder = TempFolder::new("mismatch");
        let mut config = config(&folder);
        Identity::load_or_create(&config).unwrap();
        let other = KeyPair::generate().unwrap();
        let key = folder.path().join("other.pem");
        std::fs::write(&key, other.serialize_pem()).unwrap();
        config.certificate = Some(CertificateFiles { certificate: config.state.certificate(), key });
        assert!(matches!(Identity::load_or_create(&config), Err(CertificateError::Unusable { .. })));
    }

    #[test]
    fn fingerprints_are_written_as_clients_write_them() {
        let text = Fingerprint([0xa5; 32]).to_string();
        assert!(text.starts_with("a5:a5:") && text.len() == 95);
    }
}
