//! States that a VM goes back to.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::io::{pread, pwrite};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use vmm::{
    Boot, BusPortState, Deadlines, Definition, Disk, DiskBus, DiskFormat, DiskSource, QuiesceReason, RequestError,
    SnapshotTag, Vm, VmState,
};

use crate::kit::{TestHost, console_guest, firmware, longest_run, reaches, sees, shell, signal, soon, types};

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_goes_back_to_what_it_was() {
    let mut host = TestHost::new().await;
    let definition = Definition { disks: vec![qcow2(&host, "a")], ..Guest::definition("back") };
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts");
    let mut guest = Guest::at(&vm).await;
    shell(&vm.console()).await;
    guest.run("echo one >/tmp/file; until [ -b /dev/vda ]; do :; done; echo one >/dev/vda; sync").await;
    types(&guest.vm.console(), "clear; printf 'm%.0s' $(seq 33); echo\n").await;
    let mut viewer = vm.console().viewer();
    sees(&mut viewer, "the screen to be kept", |_, picture| longest_run(picture) == 33).await;
    let memory = vm.bus().memory().expect("there is some");
    pwrite(&memory, b"first", 0x5000).expect("memory");
    vm.save_snapshot(tag("first")).await.expect("saved");
    assert_eq!(vm.status().state, VmState::Running);
    pwrite(&memory, b"later", 0x5000).expect("memory");
    assert_eq!(tags(&vm).await, ["first"]);
    guest.run("echo two >/tmp/file; echo two >/dev/vda; sync").await;
    types(&guest.vm.console(), "clear\n").await;
    sees(&mut viewer, "another screen", |_, picture| longest_run(picture) < 33).await;
    assert_eq!(guest.tell(&files()).await, "two two");
    vm.save_snapshot(tag("second one")).await.expect("saved");
    let listed = vm.snapshots().await.expect("listed");
    assert!(listed[0].taken <= listed[1].taken && listed.iter().all(|snapshot| snapshot.size > 1 << 20), "{listed:?}");

    let before = vm.bus().state();
    vm.load_snapshot(tag("first")).await.expect("loaded");
    let state = vm.bus().state();
    assert_eq!(state, BusPortState { resets: before.resets + 1, port_open: state.port_open, ..before });
    let mut watch = vm.bus().watch();
    soon("the port is open as it was", watch.wait_for(|state| state.port_open)).await.expect("the VM is there");
    sees(&mut viewer, "the screen that was kept", |_, picture| longest_run(picture) == 33).await;
    assert_eq!(guest.tell(&files()).await, "one one");
    let mut bytes = [0; 5];
    pread(&memory, &mut bytes, 0x5000).expect("memory");
    assert_eq!(&bytes, b"first", "the memory of the bus belongs to the state");
    vm.pause().await.expect("pauses");
    vm.load_snapshot(tag("second one")).await.expect("loaded");
    assert_eq!(vm.status().state, VmState::Paused, "who stood still does so");
    vm.resume().await.expect("resumes");
    assert_eq!(guest.tell(&files()).await, "two two");

    drop((vm, guest, viewer));
    host.reopen().await;
    let vm = host.vm("back");
    assert_eq!(tags(&vm).await, ["first", "second one"]);
    vm.delete_snapshot(tag("second one")).await.expect("deleted");
    vm.power_off().await.expect("switches off");
    vm.load_snapshot(tag("first")).await.expect("starts with it");
    assert_eq!(vm.status().state, VmState::Running);
    let mut viewer = vm.console().viewer();
    sees(&mut viewer, "the screen that was kept", |_, picture| longest_run(picture) == 33).await;
    assert_eq!(tags(&vm).await, ["first"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_and_changes_nothing() {
    let host = TestHost::new().await;
    let vm = firmware_vm(&host, "plain").await;
    let error = vm.load_snapshot(tag("a")).await.expect_err("there is none").to_string();
    assert_eq!(error, "cannot load a snapshot of this VM: there is no snapshot `a`");
    assert_eq!(vm.status().state, VmState::Created);
    vm.start().await.expect("starts");
    for refused in [vm.load_snapshot(tag("a")).await, vm.delete_snapshot(tag("a")).await] {
        assert!(refused.expect_err("there is none").to_string().ends_with("there is no snapshot `a`"));
    }
    vm.save_snapshot(tag("a")).await.expect("saved");
    let error = vm.save_snapshot(tag("a")).await.expect_err("the name is taken").to_string();
    assert_eq!(error, "cannot save a snapshot of this VM: there is a snapshot `a` already");
    assert_eq!((vm.status().state, vm.bus().state().resets), (VmState::Running, 0));

    let remote = Disk::new(DiskSource::of_words("nbd://127.0.0.1/a").expect("a URL"), DiskFormat::Raw, DiskBus::Virtio);
    let disks = vec![qcow2(&host, "mixed"), remote];
    let mixed = host.host().create(Definition { disks, ..firmware("mixed") }).await.expect("created");
    let error = mixed.save_snapshot(tag("a")).await.expect_err("a disk of a server").to_string();
    let why = "disk 2 (nbd://127.0.0.1/a) is writable and no file of this host, so it keeps no snapshots; move it to one \
               (`fanlight disk move`)";
    assert_eq!(error, format!("cannot save a snapshot of this VM: {why}"));
    assert_eq!((mixed.snapshots().await, mixed.status().state), (Err(why.into()), VmState::Created));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_under_way_when_the_state_is_saved() {
    let host = TestHost::new().await;
    let vm = firmware_vm(&host, "quiet").await;
    vm.start().await.expect("starts");
    let mut requests = vm.bus().quiesce_requests();
    let saving = tokio::spawn(save(&vm, "a"));
    let quiesce = soon("a question", requests.next()).await.expect("asked");
    assert_eq!(quiesce.reason, QuiesceReason::Save);
    assert!(vm.status().state == VmState::Running && !saving.is_finished());
    assert_eq!(tags(&vm).await, [""; 0], "nothing is saved yet");
    soon("the end", quiesce.ready()).await;
    saving.await.expect("no panic").expect("saved");
    let loading = tokio::spawn({
        let vm = vm.clone();
        async move { vm.load_snapshot(tag("a")).await }
    });
    let quiesce = soon("a question", requests.next()).await.expect("asked");
    assert_eq!(quiesce.reason, QuiesceReason::Load);
    assert!(!vm.bus().state().vm_running || !loading.is_finished());
    let before = vm.bus().state().resets;
    soon("the end", quiesce.ready()).await;
    assert_eq!(vm.bus().state().resets, before + 1, "known when it is over");
    loading.await.expect("no panic").expect("loaded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_many_monitors_goes_back_every_time() {
    let host = TestHost::new().await;
    let definition = Definition { monitors: 8, disks: vec![qcow2(&host, "a")], ..console_guest("many") };
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts");
    shell(&vm.console()).await;
    vm.save_snapshot(tag("a")).await.expect("saved");
    for _ in 0..4 {
        vm.load_snapshot(tag("a")).await.expect("loaded");
        vm.power_off().await.expect("switches off");
        vm.load_snapshot(tag("a")).await.expect("loaded into another QEMU");
    }
    shell(&vm.console()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_is_killed_while_it_saves_leaves_the_older_state() {
    let host = TestHost::new().await;
    let vm = vm_with_a_state(&host, "killed").await;
    let saving = stop_while_it_saves(&vm).await;
    signal(vm.status().pid.expect("a process"), Signal::KILL);
    let killed = "QEMU ended by signal 9 (killed)";
    assert_eq!(reaches(&vm, VmState::Failed).await.reason.as_deref(), Some(killed));
    let error = saving.await.expect("no panic").expect_err("killed").to_string();
    assert_eq!(error, format!("cannot save a snapshot of this VM: {killed}"));
    vm.load_snapshot(tag("old")).await.expect("loaded");
    assert_eq!(tags(&vm).await, ["old"]);
    sees(&mut vm.console().viewer(), "the firmware", |_, picture| picture.has_text()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_saves_counts_as_one_that_runs_and_is_switched_off_when_asked() {
    let second = Duration::from_secs(1);
    let quick =
        Deadlines { command: second, end: second, heartbeat: Duration::from_millis(100), ..Deadlines::default() };
    let host = TestHost::with(|config| config.deadlines = quick).await;
    let vm = vm_with_a_state(&host, "off").await;
    let saving = stop_while_it_saves(&vm).await;
    let mut watch = vm.watch();
    let fails = tokio::time::timeout(3 * second, watch.wait_for(|status| status.state != VmState::Running));
    assert!(fails.await.is_err(), "a QEMU that saves is silent for as long as it takes");
    let (pausing, off) = tokio::join!(vm.pause(), vm.power_off());
    off.expect("switches off");
    let error = saving.await.expect("no panic").expect_err("given up").to_string();
    assert_eq!(error, "cannot save a snapshot of this VM: it is to be powered off first");
    let error = pausing.expect_err("it waited for the save").to_string();
    assert_eq!(error, "cannot pause a VM that is running: it is to be powered off first");
    assert_eq!(vm.status().state, VmState::Stopped);
    vm.load_snapshot(tag("old")).await.expect("loaded");
    assert_eq!(tags(&vm).await, ["old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_takes_too_long_is_a_failure_and_the_vm_comes_back() {
    let host = TestHost::with(|config| config.deadlines.snapshot = Duration::from_secs(15)).await;
    let vm = vm_with_a_state(&host, "slow").await;
    let saving = stop_while_it_saves(&vm).await;
    let error = saving.await.expect("no panic").expect_err("given up").to_string();
    assert_eq!(error, "cannot save a snapshot of this VM: QEMU did not answer snapshot-save within 15 s");
    let status = reaches(&vm, VmState::Failed).await;
    signal(status.pid.expect("it is still there"), Signal::CONT);
    reaches(&vm, VmState::Running).await;
    assert_eq!(tags(&vm).await, ["old", "new"]);
    vm.save_snapshot(tag("newer")).await.expect("saved");
}

/// A VM with the snapshot `old`.
async fn vm_with_a_state(host: &TestHost, name: &str) -> Vm {
    let vm = firmware_vm(host, name).await;
    vm.start().await.expect("starts");
    sees(&mut vm.console().viewer(), "the firmware", |_, picture| picture.has_text()).await;
    vm.save_snapshot(tag("old")).await.expect("saved");
    vm
}

/// Begins to save `new`, and stops QEMU in the middle of it. The answer comes when QEMU goes on, or never.
async fn stop_while_it_saves(vm: &Vm) -> JoinHandle<Result<(), RequestError>> {
    let pid = vm.status().pid.expect("a process");
    loop {
        let mut watch = vm.bus().watch();
        let mut saving = tokio::spawn(save(vm, "new"));
        tokio::select! {
            stands_still = watch.wait_for(|state| !state.vm_running) => drop(stands_still.expect("the VM is there")),
            done = &mut saving => done.expect("no panic").expect("saved, before anybody looked"),
        }
        signal(pid, Signal::STOP);
        // What is in the file's list was saved already: it was too fast for us.
        if !Command::new("qemu-img")
            .args(["info", "-U"])
            .arg(vm.definition().disks[0].source.path().expect("a file"))
            .output()
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(" new "))
        {
            return saving;
        }
        signal(pid, Signal::CONT);
        if !saving.is_finished() {
            saving.await.expect("no panic").expect("saved");
        }
        vm.delete_snapshot(tag("new")).await.expect("deleted");
    }
}

async fn firmware_vm(host: &TestHost, name: &str) -> Vm {
    let definition = Definition { disks: vec![qcow2(host, name)], ..firmware(name) };
    host.host().create(definition).await.expect("created")
}

fn qcow2(host: &TestHost, name: &str) -> Disk {
    let path: PathBuf = host.folder().join(format!("{name}.qcow2"));
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("64M").status();
    assert!(made.expect("qemu-img runs").success());
    Disk::new(path, DiskFormat::Qcow2, DiskBus::Virtio)
}

/// Saves beside what the test does.
fn save(vm: &Vm, name: &str) -> impl Future<Output = Result<(), RequestError>> + use<> {
    let (vm, tag) = (vm.clone(), tag(name));
    async move { vm.save_snapshot(tag).await }
}

fn tag(name: &str) -> SnapshotTag {
    name.parse().expect("a name")
}

async fn tags(vm: &Vm) -> Vec<String> {
    let snapshots = vm.snapshots().await.expect("listed");
    snapshots.iter().map(|snapshot| snapshot.tag.to_string()).collect()
}

/// What tells what is in a file in memory and on the disk.
fn files() -> String {
    "echo 3 >/proc/sys/vm/drop_caches; echo $(cat /tmp/file) $(head -c 3 /dev/vda)".into()
}

/// A guest that carries out what comes through the port, and answers there.
pub(crate) struct Guest {
    vm: Vm,
    port: UnixStream,
}

impl Guest {
    /// A console guest that is one. Nobody types what starts the reader: keys get lost, and a guest that was saved has one already.
    pub(crate) fn definition(name: &str) -> Definition {
        let definition = console_guest(name);
        let Boot::DirectKernel { kernel, initrd, cmdline } = definition.boot else { panic!("it has a kernel") };
        let reader = "until p=$(echo /dev/vport?p*) && [ -c $p ]; do sleep 1; done; set -f; exec 3<>$p; \
                      while :; do while read c <&3; do eval $c >&3; echo . >&3; done; sleep 1; done";
        let script = format!("export PATH=/bin; mount -t devtmpfs dev /dev; ({reader}) & exec /init");
        let cmdline = format!("{cmdline} rdinit=/bin/sh -- -c \"{script}\"");
        Definition { boot: Boot::DirectKernel { kernel, initrd, cmdline }, ..definition }
    }

    pub(crate) async fn at(vm: &Vm) -> Self {
        let port = vm.bus().connect().await.expect("connects").stream;
        let mut guest = Self { vm: vm.clone(), port };
        assert_eq!(guest.tell("echo here").await, "here");
        guest
    }

    pub(crate) async fn run(&mut self, command: &str) {
        self.tell(command).await;
    }

    /// The words that a command answers.
    pub(crate) async fn tell(&mut self, command: &str) -> String {
        self.port.write_all(format!("{command}\n").as_bytes()).await.expect("connected");
        let mut answer = Vec::new();
        soon("an answer of the guest", async {
            while !answer.ends_with(b".\n") {
                answer.push(self.port.read_u8().await.expect("connected"));
            }
        })
        .await;
        String::from_utf8_lossy(&answer).trim_end_matches(".\n").trim().into()
    }
}
