//! Servers that give disks out, and certificates for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::kit::soon;

/// The name in the server's certificate.
pub(crate) const SERVER_NAME: &str = "disks.example";

/// A server of one export, `disk`, at a socket of this host. It ends with this value.
pub(crate) struct NbdServer {
    process: Child,
    socket: PathBuf,
    certificates: Option<PathBuf>,
}

impl NbdServer {
    /// Gives out a raw image. With `certificates`, a folder of [`certificates`], only to those who can show one.
    pub(crate) async fn start(image: &Path, certificates: Option<&Path>) -> Self {
        let socket = image.with_extension("sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=0", "--cache=writeback", "-f", "raw", "-x", "disk", "-k"]).arg(&socket);
        if let Some(folder) = certificates {
            let folder = folder.join("server");
            let object = format!("tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={}", folder.display());
            command.args(["--object", &object, "--tls-creds", "tls"]);
        }
        let process = command.arg(image).spawn().expect("qemu-nbd starts");
        let server = Self { process, socket, certificates: certificates.map(Into::into) };
        soon("an NBD server", async {
            while tokio::net::UnixStream::connect(&server.socket).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        server
    }

    /// What a disk on it has for its URL.
    pub(crate) fn url(&self) -> String {
        let socket = self.socket.display();
        match &self.certificates {
            Some(folder) => {
                let folder = folder.join("client");
                let folder = folder.display();
                format!("nbds+unix:///disk?socket={socket}&tls-certificates={folder}&tls-hostname={SERVER_NAME}")
            }
            None => format!("nbd+unix:///disk?socket={socket}"),
        }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// Makes `folder` with the certificates of a server in `server`, and those of its clients in `client`.
pub(crate) fn certificates(folder: &Path) {
    let mut authority = parameters("authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("signed");
    for (role, purpose) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let mut own = parameters(role);
        own.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        own.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("a key");
        let certificate = own.signed_by(&key, &authority).expect("signed");
        let folder = folder.join(role);
        fs::create_dir_all(&folder).expect("a folder");
        for (name, text) in [
            ("ca-cert.pem".to_owned(), authority.pem()),
            (format!("{role}-cert.pem"), certificate.pem()),
            (format!("{role}-key.pem"), key.serialize_pem()),
        ] {
            fs::write(folder.join(name), text).expect("written");
        }
    }
}

fn parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::new([SERVER_NAME.to_owned()]).expect("a name");
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters
}
