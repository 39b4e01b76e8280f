//! The port and the memory of the bus.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::fstat;
use rustix::io::{pread, pwrite};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use vmm::{Bus, BusConnection, BusPort, BusPortState, Definition, Vm, VmState};

use crate::kit::{PATIENCE, TestHost, console_guest, firmware, shell, soon, types};

/// How a guest's shell opens the port.
const OPEN: &str = "exec 3<>$(echo /dev/vport*)\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_the_port_follows_the_guest() {
    let host = TestHost::new().await;
    let vm = running_guest(&host, "port").await;
    let (port, console) = (vm.bus(), vm.console());
    let state = knows(&port, "a port", |state| state.present && state.vm_running).await;
    assert_eq!(state, BusPortState { generation: 1, present: true, vm_running: true, port_open: false, resets: 0 });
    types(&console, OPEN).await;
    knows(&port, "it is open", |state| state.port_open).await;
    vm.pause().await.expect("pauses");
    assert!(!port.state().vm_running && port.state().port_open);
    vm.resume().await.expect("resumes");
    knows(&port, "it runs", |state| state.vm_running).await;
    types(&console, "exec 3>&-\n").await;
    knows(&port, "it is closed", |state| !state.port_open).await;
    types(&console, OPEN).await;
    knows(&port, "it is open again", |state| state.port_open).await;
    vm.reset().await.expect("resets");
    // The firmware may start over once more by itself.
    let state = knows(&port, "it is closed by a reset", |state| state.resets >= 1 && !state.port_open).await;
    assert!(state.present);
    vm.power_off().await.expect("switches off");
    let state = port.state();
    assert_eq!(state, BusPortState { generation: 1, resets: state.resets, ..BusPortState::default() });
    vm.start().await.expect("starts");
    knows(&port, "another QEMU", |state| state.generation == 2 && state.present && state.vm_running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_both_ways_and_wait_for_each_other() {
    let host = TestHost::new().await;
    let vm = running_guest(&host, "bytes").await;
    let mut stream = vm.bus().connect().await.expect("connects").stream;
    types(&vm.console(), OPEN).await;
    types(&vm.console(), "read x <&3; echo got $x >&3; cat <&3 >&3\n").await;
    // The guest need not be there yet.
    stream.write_all(b"ping\n").await.expect("sent");
    reads(&mut stream, b"got ping\n").await;
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (mut reader, mut writer) = stream.split();
    let mut answer = vec![0; bytes.len()];
    let exchange = async { tokio::try_join!(writer.write_all(&bytes), reader.read_exact(&mut answer)) };
    soon("all of it comes back", exchange).await.expect("connected");
    assert!(answer == bytes, "what came back is something else");
}

#[tokio::test(flavor = "multi_thread")]
async fn little_of_what_is_sent_waits_where_it_cannot_be_overtaken() {
    let host = TestHost::new().await;
    let vm = host.firmware_vm("full").await;
    vm.start().await.expect("starts");
    let port = vm.bus();
    knows(&port, "a port", |state| state.present).await;
    let stream = port.connect().await.expect("connects").stream;
    let mut taken = 0;
    loop {
        match stream.try_write(&[7; 16 * 1024 + 12]) {
            Ok(count) => taken += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!((1..=16 * 1024 + 12).contains(&taken), "{taken} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_and_guest_see_the_same_memory_and_another_gateway_too() {
    let mut host = TestHost::new().await;
    let vm = running_guest(&host, "memory").await;
    let BusConnection { mut stream, memory, generation } = vm.bus().connect().await.expect("connects");
    let memory = memory.expect("there is some");
    assert_eq!((memory.size(), generation), (64 << 20, 1));
    assert_eq!(pwrite(&memory, &0x1234_abcd_u32.to_le_bytes(), 0x1000).expect("memory"), 4);
    types(&vm.console(), OPEN).await;
    let slot = memory.pci_slot();
    let device = format!("0000:{:02x}:{:02x}.{}", slot >> 8, (slot >> 3) & 31, slot & 7);
    types(&vm.console(), &format!("cd /sys/bus/pci/devices/{device}; echo 1 >enable\n")).await;
    types(&vm.console(), "r=$(sed -n 3p resource); a=${r%% *}; devmem $((a + 4096)) 32 >&3\n").await;
    reads(&mut stream, b"0x1234ABCD\n").await;
    types(&vm.console(), "devmem $((a + 67108856)) 32 0xcafe; echo done >&3\n").await;
    reads(&mut stream, b"done\n").await;
    assert_eq!(word(&memory, (64 << 20) - 8), 0xcafe);

    let identity = fstat(&memory).expect("a file").st_ino;
    let old = vm.bus();
    drop((vm, memory, stream));
    host.reopen().await;
    assert!(!old.state().present, "the driver of before is gone");
    let vm = host.vm("memory");
    let port = vm.bus();
    let state = BusPortState { generation: 1, present: true, vm_running: true, port_open: true, resets: 0 };
    assert_eq!(port.state(), state, "known when the host is open");
    let BusConnection { mut stream, memory, .. } = port.connect().await.expect("connects again");
    let memory = memory.expect("it is found again");
    assert_eq!((fstat(&memory).expect("a file").st_ino, memory.size()), (identity, 64 << 20));
    assert_eq!(word(&memory, 0x1000), 0x1234_abcd);
    pwrite(&memory, &77_u32.to_le_bytes(), 0x1000).expect("memory");
    types(&vm.console(), "devmem $((a + 4096)) 32 >&3\n").await;
    reads(&mut stream, b"0x0000004D\n").await;
    vm.power_off().await.expect("switches off");
    assert!(port.memory().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_has_what_its_definition_says_of_the_bus() {
    let host = TestHost::new().await;
    let without = |name: &str, bus: Bus| Definition { bus, ..firmware(name) };
    let portless = without("portless", Bus { enabled: false, memory: 64 });
    let vm = host.host().create(portless).await.expect("created");
    vm.start().await.expect("starts");
    let state = knows(&vm.bus(), "it runs", |state| state.vm_running).await;
    assert!(!state.present);
    assert!(vm.bus().memory().is_none());
    assert!(vm.bus().connect().await.is_err());
    let small = without("small", Bus { enabled: true, memory: 0 });
    let vm = host.host().create(small).await.expect("created");
    vm.start().await.expect("starts");
    knows(&vm.bus(), "a port", |state| state.present).await;
    assert!(vm.bus().connect().await.expect("connects").memory.is_none());
    let large = without("large", Bus { enabled: true, memory: 1024 });
    let vm = host.host().create(large).await.expect("created");
    vm.start().await.expect("starts");
    assert_eq!(vm.bus().memory().map(|memory| memory.size()), Some(1 << 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_follows_another_and_ends_with_qemu() {
    let host = TestHost::new().await;
    let vm = host.firmware_vm("again").await;
    let port = vm.bus();
    assert_eq!(port.connect().await.expect_err("it is off").kind(), io::ErrorKind::NotConnected);
    vm.start().await.expect("starts");
    for _ in 0..3 {
        drop(port.connect().await.expect("connects"));
    }
    let mut stream = port.connect().await.expect("connects").stream;
    vm.power_off().await.expect("switches off");
    let end = soon("the end", stream.read(&mut [0; 16])).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert_eq!(vm.status().state, VmState::Stopped);
}

async fn running_guest(host: &TestHost, name: &str) -> Vm {
    let vm = host.host().create(console_guest(name)).await.expect("created");
    vm.start().await.expect("starts");
    shell(&vm.console()).await;
    vm
}

/// Waits until the port is known to be so.
async fn knows(port: &BusPort, what: &str, enough: impl FnMut(&BusPortState) -> bool) -> BusPortState {
    let mut watch = port.watch();
    let known = tokio::time::timeout(PATIENCE, watch.wait_for(enough)).await;
    *known.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}: {:?}", port.state())).expect("the VM is there")
}

async fn reads(stream: &mut UnixStream, expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    soon("an answer of the guest", stream.read_exact(&mut read)).await.expect("connected");
    assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(expected));
}

fn word(memory: impl AsFd, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    assert_eq!(pread(memory, &mut bytes, offset).expect("memory"), 4);
    u32::from_le_bytes(bytes)
}
