//! What the service itself needs: its folder, its ports, who may log on.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Check, Level, run};
use crate::certificate::Identity;
use crate::config::Config;
use crate::users::Users;

/// Less free space than this and a guest's disk may fill it before anybody looks.
const LITTLE_DISK: u64 = 1 << 30;
/// A session takes a handful of descriptors, a flood of connections a few hundred.
const FEW_DESCRIPTORS: u64 = 4096;
/// A certificate that ends sooner is worth a word.
const CERTIFICATE_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Looks at everything; `listening` is where the service that asks listens, if there is one.
pub(super) async fn look(config: &Config, listening: Option<&[SocketAddr]>) -> Vec<Check> {
    let ports = match listening {
        Some(addresses) => Check::new("ports", Level::Good, list(addresses), "clients are awaited here"),
        None => ports(&config.listen.addresses, config.listen.chosen),
    };
    vec![state_folder(config), ports, bridges().await, descriptors(), certificate(config), users(config)]
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Tries the ports that `serve` will want.
fn ports(addresses: &[SocketAddr], chosen: bool) -> Check {
    let taken: Vec<String> = addresses
        .iter()
        .filter_map(|address| match TcpListener::bind(address) {
            Ok(_) => None,
            // As for `serve`: an address that only the default names may be missing on this host.
            Err(error) if !chosen && error.kind() == std::io::ErrorKind::AddrNotAvailable => None,
            Err(error) => Some(format!("{address}: {error}")),
        })
        .collect();
    if taken.is_empty() {
        return Check::new(
            "ports",
            Level::Good,
            format!("{} are free", list(addresses)),
            "clients can be awaited there",
        );
    }
    Check::new("ports", Level::Missing, taken.join("; "), "the service cannot listen there").mend(
        "stop the program that has the port (ss -ltnp), or choose others with --listen or [listen] in fanlight.toml",
    )
}

/// Whether VMs can be connected to bridges of the host.
async fn bridges() -> Check {
    const NAME: &str = "bridges";
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    if let Err(error) = device {
        return Check::new(NAME, Level::Poor, format!("/dev/net/tun: {error}"), "VMs have NAT networks only")
            .mend("modprobe tun");
    }
    if !may_change_networks() {
        return Check::new(
            NAME,
            Level::Poor,
            "not the right to change networks",
            "VMs have NAT, or tap devices made for them",
        )
        .mend("give the gateway CAP_NET_ADMIN: `AmbientCapabilities=` of the systemd unit, or run it as root");
    }
    if let Err(error) = run(Path::new("ip"), &["-V"]).await {
        return Check::new(NAME, Level::Poor, format!("ip: {error}"), "VMs have NAT networks only")
            .mend("apt-get install iproute2, and have it in the gateway's PATH");
    }
    Check::new(NAME, Level::Good, "/dev/net/tun", "VMs can be connected to bridges of the host")
}

/// CAP_NET_ADMIN, the twelfth bit.
fn may_change_networks() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & (1 << 12) != 0)
}

fn state_folder(config: &Config) -> Check {
    let folder = config.state.path();
    // Before the first start there is nothing; what counts is the disk it will lie on.
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let writable = rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok();
    if !writable {
        return Check::new(
            "state folder",
            Level::Missing,
            format!("{} cannot be written", folder.display()),
            "nothing can be kept",
        )
        .mend("choose another folder with --state or FANLIGHT_STATE");
    }
    if let Err(error) = config.state.known_version() {
        return Check::new("state folder", Level::Missing, error.to_string(), "the service does not start on it")
            .mend("use the newer fanlight, or choose another folder with --state or FANLIGHT_STATE");
    }
    let free = rustix::fs::statvfs(there).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    let found = format!("{}, {} MiB free", folder.display(), free >> 20);
    if free < LITTLE_DISK {
        return Check::new("state folder", Level::Poor, found, "a guest that writes may soon stop")
            .mend("make room on that disk");
    }
    Check::new("state folder", Level::Good, found, "keeps definitions, users and the certificate")
}

fn descriptors() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let found = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("at most {limit}"));
    if limit.is_some_and(|limit| limit < FEW_DESCRIPTORS) {
        return Check::new("open files", Level::Poor, found, "a flood of connections is harder to bear")
            .mend("raise the hard limit: `LimitNOFILE=` of the systemd unit, or ulimit -Hn");
    }
    Check::new("open files", Level::Good, found, "enough for many connections")
}

/// Looks only: the certificate is made by `serve`.
fn certificate(config: &Config) -> Check {
    if config.certificate.is_none() && !config.state.certificate().exists() {
        return Check::new("certificate", Level::Good, "none yet", "made on first start");
    }
    match Identity::load_or_create(config) {
        Err(error) => Check::new("certificate", Level::Missing, error.to_string(), "no client can connect")
            .mend("mend the files, or remove them so that a new certificate is made"),
        Ok(identity) => {
            let left = identity.valid_until.duration_since(SystemTime::now()).unwrap_or_default();
            let found = format!("sha256:{}, {} days left", identity.fingerprint, left.as_secs() / (24 * 3600));
            if left < CERTIFICATE_NOTICE {
                return Check::new("certificate", Level::Poor, found, "clients will soon warn").mend("renew it");
            }
            Check::new("certificate", Level::Good, found, "clients know the gateway by it")
        }
    }
}

fn users(config: &Config) -> Check {
    match Users::open(config.state.users()) {
        Err(error) => Check::new("users", Level::Missing, error.to_string(), "nobody can log on").mend("mend the file"),
        Ok(users) if users.book().is_empty() => {
            Check::new("users", Level::Poor, "none", "nobody can log on, and only loopback is listened on")
                .mend("fanlight user add NAME")
        }
        Ok(users) => Check::new("users", Level::Good, users.book().len().to_string(), "can log on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_another_program_has_stops_the_service() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap();
        let check = ports(&[taken], true);
        assert_eq!(check.level, Level::Missing);
        assert!(check.found.starts_with(&taken.to_string()), "{}", check.found);
        drop(other);
        assert_eq!(ports(&[taken], true).level, Level::Good);
        // Of a network for documentation: no host has it.
        let elsewhere = ["192.0.2.1:3389".parse().unwrap()];
        assert_eq!(ports(&elsewhere, true).level, Level::Missing);
        assert_eq!(ports(&elsewhere, false).level, Level::Good);
    }
}
