//! `fanlight rdp-file`: a file that RDP clients open.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::Context;
use crate::api::client::segment;
use crate::api::model::{ServiceStatus, VmInfo};
use crate::config::DEFAULT_PORTS;
use crate::files::write_atomically;
use crate::problem::{Code, Problem};

/// Write an .rdp file that connects to a VM
///
/// mstsc, FreeRDP, Remmina and Microsoft's apps open it. It holds no password.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight rdp-file web01 > web01.rdp
  fanlight rdp-file web01 --user anna --address gateway.example --output web01.rdp
  fanlight rdp-file web01 --route blob        for clients without load balance info")]
pub(super) struct RdpFile {
    /// The VM: name or UUID
    vm: String,
    /// How clients reach the gateway: HOST or HOST:PORT [default: the address it listens on]
    #[arg(long, value_name = "HOST[:PORT]")]
    address: Option<String>,
    /// The user to log on as
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// How the file names the VM
    #[arg(long, value_enum, default_value_t = Route::Token)]
    route: Route,
    /// The file to write [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// How a client says which VM it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Route {
    /// Load balance info: sent as a routing token
    Token,
    /// A pre-connection blob, as for Hyper-V
    Blob,
    /// In front of the user name, as VM\USER
    User,
    /// Not at all: the only VM the user may use
    None,
}

/// What an .rdp file says.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) address: &'a str,
    pub(super) vm: &'a str,
    pub(super) user: Option<&'a str>,
    pub(super) route: Route,
}

impl RdpFile {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        let vm: VmInfo = context.client.get(&format!("/v1/vms/{}", segment(&self.vm))).await?;
        let address = match self.address {
            Some(address) => address,
            None => reachable(&context.client.get::<ServiceStatus>("/v1/status").await?)?.to_string(),
        };
        let text =
            contents(&Target { address: &address, vm: &vm.name, user: self.user.as_deref(), route: self.route })?;
        match &self.output {
            None if context.output.is_json() => context.output.value(&serde_json::json!({ "rdp": text }), String::new),
            None => context.output.text(&text),
            Some(file) => {
                std::fs::write(file, &text).map_err(|error| {
                    Problem::new(Code::Internal, format!("cannot write {}: {error}", file.display()))
                })?;
                let file = file.display().to_string();
                context.output.value(&serde_json::json!({ "file": file }), || format!("written to {file}"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The text of the file: `name:type:value` lines as mstsc writes them.
///
/// # Errors
///
/// When a value would break out of its line.
pub(super) fn contents(target: &Target<'_>) -> Result<String, Problem> {
    let Target { address, vm, user, route } = target;
    if [Some(*address), Some(*vm), *user].iter().flatten().any(|text| text.contains(char::is_control)) {
        return Err(Problem::new(Code::Invalid, "the address, VM and user cannot hold control characters"));
    }
    let mut lines = vec![format!("full address:s:{address}")];
    match (route, user) {
        (Route::User, Some(user)) => lines.push(format!("username:s:{vm}\\{user}")),
        (Route::User, None) => {
            return Err(Problem::new(Code::Invalid, "`--route user` needs `--user`"));
        }
        (_, Some(user)) => lines.push(format!("username:s:{user}")),
        (_, None) => {}
    }
    match route {
        Route::Token => lines.push(format!("loadbalanceinfo:s:tsv://vm.{vm}")),
        Route::Blob => lines.push(format!("pcb:s:{vm}")),
        Route::User | Route::None => {}
    }
    lines.extend(SETTINGS.map(str::to_owned));
    Ok(lines.iter().flat_map(|line| [line.as_str(), "\r\n"]).collect())
}

/// Writes the file of the demo.
pub(super) fn write(file: &std::path::Path, target: &Target<'_>) -> Result<(), Problem> {
    let text = contents(target)?;
    write_atomically(file, 0o600, text.as_bytes())
        .map_err(|error| Problem::new(Code::Internal, format!("cannot write {}: {error}", file.display())))
}

/// What suits a VM's console: a window whose size the guest follows, and every key goes to the guest.
const SETTINGS: [&str; 10] = [
    "prompt for credentials:i:0",
    // Warn about the self-signed certificate, once: the client then remembers it.
    "authentication level:i:2",
    "enablecredsspsupport:i:1",
    "negotiate security layer:i:1",
    "screen mode id:i:1",
    "dynamic resolution:i:1",
    "session bpp:i:32",
    "compression:i:1",
    "keyboardhook:i:1",
    "autoreconnection enabled:i:1",
];

/// An address of the gateway that a client can use; one that is not loopback is preferred.
fn reachable(status: &ServiceStatus) -> Result<SocketAddr, Problem> {
    let addresses = status.listening.iter().filter_map(|text| text.parse::<SocketAddr>().ok());
    let best = addresses.min_by_key(|address| {
        (
            address.ip().is_unspecified(),
            address.ip().is_loopback(),
            address.is_ipv6(),
            address.port() != DEFAULT_PORTS[0],
        )
    });
    match best {
        Some(address) if !address.ip().is_unspecified() => Ok(address),
        Some(SocketAddr::V4(_) | SocketAddr::V6(_)) => {
            Err(Problem::new(Code::Invalid, "the gateway listens on every address of this host")
                .hint("say by which one clients reach it, with --address"))
        }
        None => Err(Problem::new(Code::Conflict, "the gateway listens nowhere")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(route: Route, user: Option<&str>) -> Vec<String> {
        let text = contents(&Target { address: "gateway:3389", vm: "web01", user, route }).unwrap();
        assert!(text.ends_with("\r\n"));
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn each_route_names_the_vm_in_its_own_line() {
        assert!(lines(Route::Token, None).contains(&"loadbalanceinfo:s:tsv://vm.web01".to_owned()));
        assert!(lines(Route::Blob, Some("anna")).contains(&"pcb:s:web01".to_owned()));
        assert!(lines(Route::User, Some("anna")).contains(&"username:s:web01\\anna".to_owned()));
        assert!(lines(Route::Token, Some("anna")).contains(&"username:s:anna".to_owned()));
    }

    #[test]
    fn every_line_is_a_name_a_type_and_a_value() {
        for line in lines(Route::Token, Some("anna")) {
            let mut parts = line.splitn(3, ':');
            let (name, kind, value) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            assert!(!name.is_empty() && !value.is_empty() && matches!(kind, "i" | "s"), "{line}");
        }
    }

    #[test]
    fn a_value_cannot_add_a_line() {
        let target = Target { address: "a\r\nalternate shell:s:evil", vm: "web01", user: None, route: Route::None };
        assert!(contents(&target).is_err());
    }
}
