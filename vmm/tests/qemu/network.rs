//! Networks, with a guest that speaks on them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use vmm::{Definition, Forward, ForwardProtocol, Network, NetworkMode, VmState};

use crate::firmware::runs_as_first_program;
use crate::kit::{PATIENCE, TestHost, console_guest, firmware};

/// Says to a test that it runs in a network namespace that it may change.
const INSIDE: &str = "FANLIGHT_TEST_NAMESPACE";
const BRIDGE: &str = "fl-test0";
/// How long a guest on a loaded machine may take to boot and to answer.
const GUEST: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_port_leads_to_the_guest() {
    let host = TestHost::new().await;
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let forward = Forward {
        protocol: ForwardProtocol::Tcp,
        host: SocketAddrV4::new(Ipv4Addr::LOCALHOST, port),
        guest: None,
        guest_port: 7,
    };
    let network = Network { forward: vec![forward], ..Network::default() };
    let script = "modprobe virtio_net; ifconfig eth0 10.0.2.15 up; while true; do echo ready | nc -l -p 7; done";
    let definition = Definition { network, ..runs_as_first_program(console_guest("answers"), script) };
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts");
    let answer = tokio::task::spawn_blocking(move || asks(port)).await.expect("asked");
    assert_eq!(answer.as_deref(), Some("ready\n"));

    // Another VM cannot have the same port, and says so.
    let network = vm.definition().network.clone();
    let other = host.host().create(Definition { network, ..firmware("other") }).await.expect("created");
    let error = other.start().await.expect_err("the port is taken").to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}-:7 cannot be had: another program has it")), "{error}");
}

#[test]
fn a_guest_on_a_bridge_reaches_the_host() {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(on_a_bridge());
        return;
    }
    let mut again = Command::new("unshare");
    again.args(["--net", "--map-root-user"]).arg(std::env::current_exe().expect("this program"));
    again.args(["--exact", "network::a_guest_on_a_bridge_reaches_the_host", "--nocapture"]).env(INSIDE, "1");
    if !Command::new("unshare").args(["--net", "--map-root-user", "true"]).status().is_ok_and(|status| status.success())
    {
        eprintln!("skipped: this host lets nobody make network namespaces");
        return;
    }
    assert!(again.status().expect("started").success(), "see above");
}

async fn on_a_bridge() {
    ip(&format!("link add {BRIDGE} type bridge"));
    ip(&format!("addr add 192.168.77.1/24 dev {BRIDGE}"));
    ip(&format!("link set {BRIDGE} up"));
    let host = TestHost::new().await;
    let on = |mode: NetworkMode, definition| Definition { network: Network::new(mode), ..definition };
    let bridge = |definition| on(NetworkMode::Bridge(BRIDGE.parse().expect("a name")), definition);
    let script = "modprobe virtio_net; ifconfig eth0 192.168.77.2 up; \
                  until ping -c 1 -W 2 192.168.77.1; do sleep 1; done; poweroff -f";
    let pings = bridge(runs_as_first_program(console_guest("pings"), script));
    let vm = host.host().create(pings).await.expect("created");
    vm.start().await.expect("starts");
    let mut watch = vm.watch();
    let stopped = watch.wait_for(|status| status.state == VmState::Stopped);
    tokio::time::timeout(GUEST, stopped).await.expect("the guest reaches the host").expect("lives");

    // A tap device that is there already, and one that is not.
    ip("tuntap add dev fl-tap0 mode tap");
    ip("addr add 192.168.78.1/24 dev fl-tap0");
    ip("link set fl-tap0 up");
    let tap = |name: &str| NetworkMode::Tap(name.parse().expect("a name"));
    let script = script.replace("192.168.77", "192.168.78");
    let pings = on(tap("fl-tap0"), runs_as_first_program(console_guest("tap"), &script));
    let vm = host.host().create(pings).await.expect("created");
    vm.start().await.expect("starts");
    let mut watch = vm.watch();
    let stopped = watch.wait_for(|status| status.state == VmState::Stopped);
    tokio::time::timeout(GUEST, stopped).await.expect("the guest reaches the host by the tap").expect("lives");
    let vm = host.host().create(on(tap("fl-tap1"), firmware("no-tap"))).await.expect("created");
    let error = vm.start().await.expect_err("there is none").to_string();
    assert!(error.contains("ip tuntap add dev fl-tap1"), "{error}");
    let vm = host.host().create(on(NetworkMode::Bridge("lo".parse().expect("a name")), firmware("no-bridge"))).await;
    let error = vm.expect("created").start().await.expect_err("it is none").to_string();
    assert!(error.contains("lo is not a bridge"), "{error}");
}

/// Asks a port until somebody answers: QEMU takes every connection, and ends those that the guest does not.
fn asks(port: u16) -> Option<String> {
    let deadline = Instant::now() + GUEST;
    while Instant::now() < deadline {
        let mut answer = String::new();
        let asked = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"\n")?;
            stream.read_to_string(&mut answer)
        });
        if asked.is_ok() && !answer.is_empty() {
            return Some(answer);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    None
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().expect("iproute2 is there");
    assert!(status.success(), "ip {words}");
}
