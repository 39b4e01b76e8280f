//! The host's end of a VM's network card.
//!
//! QEMU opens tap devices itself: what its sandbox denies is starting programs. One for a bridge is made by that, and is gone
//! with QEMU; we connect it before the processors run.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use uuid::Uuid;

use crate::definition::{Definition, NetworkCard, NetworkMode};

/// iproute2's program.
const IP: &str = "ip";

/// The options of QEMU for the card of `definition` and its other end; none where there is no card.
pub(crate) fn network_options(definition: &Definition) -> Option<(String, String)> {
    let tap = |name: &str| format!("tap,id=net0,ifname={name},script=no,downscript=no");
    let netdev = match &definition.network.mode {
        NetworkMode::None => return None,
        NetworkMode::User => {
            let forwards = definition.network.forward.iter().map(|forward| format!(",hostfwd={forward}"));
            format!("user,id=net0{}", forwards.collect::<String>())
        }
        NetworkMode::Tap(name) => tap(name.as_str()),
        NetworkMode::Bridge(_) => tap(&tap_name(definition.uuid)),
    };
    let driver = match definition.network.card {
        NetworkCard::Virtio => "virtio-net-pci",
        NetworkCard::E1000 => "e1000",
        NetworkCard::Rtl8139 => "rtl8139",
    };
    Some((netdev, format!("{driver},id=nic0,netdev=net0,mac={}", mac(definition.uuid))))
}

/// Whether the other end is there; why not, in words.
pub(crate) async fn check_network(definition: &Definition, deadline: Duration) -> Result<(), String> {
    match &definition.network.mode {
        NetworkMode::None | NetworkMode::User => Ok(()),
        NetworkMode::Bridge(name) => ip(&["link", "show", "type", "bridge", "dev", name.as_str()], deadline)
            .await
            .and_then(|found| if found.is_empty() { Err(format!("{name} is not a bridge")) } else { Ok(()) })
            .map_err(|error| format!("network: {error}")),
        NetworkMode::Tap(name) => ip(&["link", "show", "dev", name.as_str()], deadline)
            .await
            .map(drop)
            .map_err(|error| format!("network: {error}; make it with `ip tuntap add dev {name} mode tap user USER`")),
    }
}

/// Connects the tap device of a QEMU that has just been started with its bridge.
pub(crate) async fn connect_network(definition: &Definition, deadline: Duration) -> Result<(), String> {
    let NetworkMode::Bridge(bridge) = &definition.network.mode else { return Ok(()) };
    let tap = tap_name(definition.uuid);
    ip(&["link", "set", "dev", &tap, "master", bridge.as_str(), "up"], deadline)
        .await
        .map(drop)
        .map_err(|error| format!("network: {tap} cannot be connected with {bridge}: {error}"))
}

/// The tap device of a VM that is on a bridge.
fn tap_name(uuid: Uuid) -> String {
    let [a, b, c, d, ..] = *uuid.as_bytes();
    format!("fl{a:02x}{b:02x}{c:02x}{d:02x}")
}

/// A locally administered address that stays the same for the life of the VM.
fn mac(uuid: Uuid) -> String {
    let [.., a, b, c] = *uuid.as_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

async fn ip(arguments: &[&str], deadline: Duration) -> Result<String, String> {
    let mut command = Command::new(IP);
    command.arg("-o").args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(deadline, command.output()).await.map_err(|_| format!("{IP} does not answer"))?;
    let output = output.map_err(|error| format!("{IP} (package iproute2): {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::Network;

    const UUID: Uuid = Uuid::from_u128(0x6fa9_d1d2_0a37_4d7b_8f6e_0c6c_3f5b_2a11);

    fn options(network: Network) -> Option<(String, String)> {
        network_options(&Definition { network, ..Definition::new("demo", UUID) })
    }

    #[test]
    fn each_mode_has_its_other_end() {
        assert_eq!(options(Network::none()), None);
        let forward = vec!["tcp::2222-:22".parse().expect("a port"), "udp:0.0.0.0:53-:53".parse().expect("a port")];
        let (netdev, device) = options(Network { forward, ..Network::default() }).expect("a card");
        assert_eq!(netdev, "user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp:0.0.0.0:53-:53");
        assert_eq!(device, "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:5b:2a:11");
        let named = |mode: fn(_) -> NetworkMode| {
            options(Network { card: NetworkCard::E1000, ..Network::new(mode("br0".parse().expect("a name"))) })
        };
        let (netdev, device) = named(NetworkMode::Tap).expect("a card");
        assert_eq!(netdev, "tap,id=net0,ifname=br0,script=no,downscript=no");
        assert!(device.starts_with("e1000,id=nic0"));
        let (netdev, _) = named(NetworkMode::Bridge).expect("a card");
        assert_eq!(netdev, "tap,id=net0,ifname=fl6fa9d1d2,script=no,downscript=no");
    }

    #[tokio::test]
    async fn a_bridge_or_tap_that_is_not_there_is_a_reason() {
        for mode in [NetworkMode::Bridge, NetworkMode::Tap] {
            let network = Network::new(mode("fl-nowhere".parse().expect("a name")));
            let definition = Definition { network, ..Definition::new("demo", UUID) };
            let error = check_network(&definition, Duration::from_secs(60)).await.expect_err("not there");
            assert!(error.contains("fl-nowhere"), "{error}");
        }
    }
}
