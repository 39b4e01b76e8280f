//! What goes wrong stays where it is, and says why.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::process::Signal;
use vmm::{Accelerator, Boot, Deadlines, Definition, Disk, DiskBus, DiskFormat, VmState};

use crate::kit::{TestHost, firmware, is_alive, reaches, runtime, sees, signal, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_is_killed_is_a_failure_with_a_reason_and_starts_again() {
    let host = TestHost::new().await;
    let (vm, other) = (host.firmware_vm("killed").await, host.firmware_vm("other").await);
    vm.start().await.expect("starts");
    other.start().await.expect("starts");
    let mut viewer = vm.console().viewer();
    sees(&mut viewer, "text", |_, picture| picture.has_text()).await;
    signal(vm.status().pid.expect("a process"), Signal::KILL);
    let status = reaches(&vm, VmState::Failed).await;
    assert_eq!(status.reason.as_deref(), Some("QEMU ended by signal 9 (killed)"));
    assert_eq!(status.pid, None);
    sees(&mut viewer, "darkness", |update, _| update.scanout.is_none()).await;
    assert_eq!(other.status().state, VmState::Running);
    vm.start().await.expect("starts again");
    sees(&mut viewer, "text again", |_, picture| picture.has_text()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_hangs_is_a_failure_and_comes_back_or_is_switched_off() {
    let quick =
        Deadlines { command: Duration::from_secs(2), heartbeat: Duration::from_millis(500), ..Deadlines::default() };
    let host = TestHost::with(|config| config.deadlines = quick).await;
    let vm = host.firmware_vm("hangs").await;
    vm.start().await.expect("starts");
    let pid = vm.status().pid.expect("a process");
    signal(pid, Signal::STOP);
    let status = reaches(&vm, VmState::Failed).await;
    assert_eq!(status.reason.as_deref(), Some("QEMU did not answer query-status within 2 s"));
    assert_eq!(status.pid, Some(pid), "it is still there");
    signal(pid, Signal::CONT);
    reaches(&vm, VmState::Running).await;
    signal(pid, Signal::STOP);
    let error = vm.pause().await.expect_err("it hangs");
    assert_eq!(error.to_string(), "cannot pause this VM: QEMU did not answer stop within 2 s");
    reaches(&vm, VmState::Failed).await;
    vm.power_off().await.expect("by force");
    assert!(!is_alive(pid));
    vm.start().await.expect("starts again");
    let pid = vm.status().pid.expect("a process");
    signal(pid, Signal::STOP);
    vm.power_off().await.expect("by force, too");
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_finds_a_hanging_qemu_opens_and_gets_it_back() {
    let quick = Deadlines { command: Duration::from_secs(2), ..Deadlines::default() };
    let mut host = TestHost::with(|config| config.deadlines = quick).await;
    host.firmware_vm("fine").await;
    let vm = host.firmware_vm("hangs").await;
    vm.start().await.expect("starts");
    let pid = vm.status().pid.expect("a process");
    signal(pid, Signal::STOP);
    drop(vm);
    host.reopen().await;
    let vm = host.vm("hangs");
    assert_eq!((vm.status().state, vm.status().pid), (VmState::Failed, Some(pid)));
    host.vm("fine").start().await.expect("others go on");
    signal(pid, Signal::CONT);
    reaches(&vm, VmState::Running).await;
    sees(&mut vm.console().viewer(), "text", |_, picture| picture.has_text()).await;
}

#[test]
fn a_qemu_that_ended_between_two_gateways_is_a_failure() {
    let life = runtime();
    let mut host = life.block_on(TestHost::new());
    let pid = life.block_on(async {
        let vm = host.firmware_vm("gone").await;
        vm.start().await.expect("starts");
        vm.status().pid.expect("a process")
    });
    // Nobody must be watching when it ends.
    host.close();
    life.shutdown_timeout(crate::kit::PATIENCE);
    runtime().block_on(async {
        signal(pid, Signal::KILL);
        soon("the end", async {
            while is_alive(pid) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        host.reopen().await;
        let status = host.vm("gone").status();
        assert_eq!(status.state, VmState::Failed);
        assert!(status.reason.expect("a reason").starts_with("QEMU ended while no gateway was there"));
        host.vm("gone").start().await.expect("starts again");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_qemu_says_when_it_cannot_start_is_the_reason() {
    let host = TestHost::new().await;
    let image = host.folder().join("broken.qcow2");
    fs::write(&image, "this is no image").expect("written");
    let disk = Disk::new(image, DiskFormat::Qcow2, DiskBus::Virtio);
    let vm = host.host().create(Definition { disks: vec![disk], ..firmware("broken") }).await.expect("created");
    let error = vm.start().await.expect_err("no image").to_string();
    assert!(error.starts_with("cannot start this VM: QEMU ended with exit code 1: "), "{error}");
    assert!(error.contains("not in qcow2 format"), "{error}");
    assert_eq!(vm.status().state, VmState::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_kernel_is_named_before_qemu_is_bothered() {
    let host = TestHost::new().await;
    let boot = Boot::DirectKernel { kernel: "/nonexistent/vmlinux".into(), initrd: None, cmdline: String::new() };
    let vm = host.host().create(Definition { boot, ..firmware("kernelless") }).await.expect("created");
    let error = vm.start().await.expect_err("no kernel").to_string();
    assert_eq!(error, "cannot start this VM: kernel /nonexistent/vmlinux: No such file or directory (os error 2)");
    assert_eq!(vm.status().state, VmState::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_cannot_be_run_is_a_failure_of_its_vm() {
    let host = TestHost::with(|config| config.qemu = Some("/nonexistent/qemu".into())).await;
    let vm = host.firmware_vm("none").await;
    let error = vm.start().await.expect_err("no QEMU").to_string();
    assert!(error.contains("QEMU ended with exit code 127"), "{error}");
    assert!(error.contains("/nonexistent/qemu"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_takes_what_works_here() {
    let host = TestHost::new().await;
    let definition = Definition { accelerator: Accelerator::Auto, ..firmware("auto") };
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts with whatever works");
    let report = vm.status().accelerator.expect("started");
    assert_eq!(report, host.host().probe_accelerator().await);
    sees(&mut vm.console().viewer(), "text", |_, picture| picture.has_text()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_whose_path_is_longer_than_a_sockets_may_be_works() {
    let host = TestHost::with(|config| {
        let long = "a-folder-with-a-long-name/".repeat(8);
        config.runtime = config.runtime.join(long);
    })
    .await;
    let vm = host.firmware_vm("deep").await;
    vm.start().await.expect("starts");
    vm.power_off().await.expect("switches off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_folder_that_cannot_be_used_is_a_failure_with_a_reason() {
    let host = TestHost::new().await;
    let vm = host.firmware_vm("readonly").await;
    let folder = host.config.runtime.join(vm.uuid().to_string());
    fs::write(&folder, "a file is in the way").expect("written");
    let error = vm.start().await.expect_err("no folder").to_string();
    assert!(error.starts_with("cannot start this VM: runtime folder "), "{error}");
    assert_eq!(vm.status().state, VmState::Failed);
    fs::remove_file(&folder).expect("removed");
    vm.start().await.expect("starts");
    let mode = fs::metadata(&folder).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_runtime_folder_is_a_failure_with_a_reason() {
    let host = TestHost::new().await;
    let (vm, other) = (host.firmware_vm("full").await, host.firmware_vm("other").await);
    let folder = host.config.runtime.join(vm.uuid().to_string());
    fs::create_dir_all(&folder).expect("created");
    // The first thing that a start writes there finds no room.
    std::os::unix::fs::symlink("/dev/full", folder.join("pid")).expect("linked");
    let error = vm.start().await.expect_err("no room").to_string();
    assert!(error.starts_with("cannot start this VM: QEMU ended with exit code"), "{error}");
    assert!(error.contains("I/O error") || error.contains("No space left"), "{error}");
    assert_eq!(vm.status().state, VmState::Failed);
    other.start().await.expect("others go on");
    vm.start().await.expect("the link is gone, so there is room");
}
