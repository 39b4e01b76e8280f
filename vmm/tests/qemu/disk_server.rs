//! Servers that give disks out, and certificates for them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

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

/// A web server on loopback that gives out one file, and whole or in ranges. It ends with the test's runtime.
pub(crate) async fn web_server(file: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let bytes: Arc<[u8]> = fs::read(file).expect("the file").into();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that goes away in between has what it wanted.
            tokio::spawn(answer(stream, bytes.clone()));
        }
    });
    format!("http://{address}/{}", file.file_name().expect("a name").display())
}

/// Answers one request, and closes the connection.
async fn answer(stream: TcpStream, bytes: Arc<[u8]>) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let mut asked = Vec::new();
    while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
        asked.push(line.to_ascii_lowercase());
    }
    let range = asked.iter().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
    let (start, end) = range.unwrap_or(("0", ""));
    let start = start.parse().unwrap_or(0).min(bytes.len());
    let end = end.parse().map_or(bytes.len(), |last: usize| (last + 1).clamp(start, bytes.len()));
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    let length = end - start;
    let head = format!(
        "HTTP/1.1 {status}\r\nAccept-Ranges: bytes\r\nContent-Length: {length}\r\n\
         Content-Range: bytes {start}-{}/{}\r\nConnection: close\r\n\r\n",
        end.saturating_sub(1),
        bytes.len()
    );
    let mut stream = lines.into_inner().into_inner();
    stream.write_all(head.as_bytes()).await?;
    if asked.first().is_some_and(|line| line.starts_with("get")) {
        stream.write_all(&bytes[start..end]).await?;
    }
    stream.shutdown().await
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
