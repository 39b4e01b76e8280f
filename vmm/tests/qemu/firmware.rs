//! UEFI, Secure Boot, TPMs, many processors and much memory, with real firmware and a real guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use vmm::{Boot, Cpu, Definition, Firmware, Topology, Tpm, TpmModel, Vm, VmState};

use crate::efi;
use crate::kit::{TestHost, console_guest, firmware, is_alive, reaches, sees, signal, soon};

/// How long a guest may take that 32 processors translate for on two.
const MANY_PROCESSORS: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn uefi_shows_its_screen_and_runs_a_program_and_its_variables_go_with_the_vm() {
    let host = TestHost::new().await;
    let shell = host.host().create(uefi("shell", false)).await.expect("created");
    shell.start().await.expect("starts");
    let mut viewer = shell.console().viewer();
    sees(&mut viewer, "UEFI's screen", |_, picture| picture.has_text()).await;
    let variables = devices(&host, &shell).join("variables.fd");
    assert!(variables.exists());
    shell.power_off().await.expect("switches off");
    host.host().delete("shell").await.expect("deleted");
    assert!(!variables.exists() && !devices(&host, &shell).exists());

    let program = efi::shuts_down(host.folder());
    let vm = host.host().create(runs(uefi("program", false), program)).await.expect("created");
    vm.start().await.expect("starts");
    let status = reaches(&vm, VmState::Stopped).await;
    assert_eq!(status.reason.as_deref(), Some("the guest shut down"));
}

#[tokio::test(flavor = "multi_thread")]
async fn secure_boot_does_not_run_what_nobody_signed() {
    let host = TestHost::new().await;
    let program = efi::shuts_down(host.folder());
    let vm = host.host().create(runs(uefi("secure", true), program)).await.expect("created");
    vm.start().await.expect("starts");
    // It goes on to what it finds elsewhere, which is nothing, and says so at the top of the screen.
    let mut viewer = vm.console().viewer();
    sees(&mut viewer, "nothing to boot", |_, picture| picture.top(100).has_text()).await;
    assert_eq!(vm.status().state, VmState::Running);
    let kept = devices(&host, &vm);
    assert!(kept.join("variables-secure.fd").exists() && !kept.join("variables.fd").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_firmware_finds_a_tpm_whose_state_stays() {
    let host = TestHost::new().await;
    let program = efi::shuts_down_with_tpm(host.folder());
    let tpm = |model| Some(Tpm { model });
    let with = |name, tpm| Definition { tpm, ..runs(uefi(name, false), program.clone()) };
    for (name, model) in [("crb", TpmModel::Crb), ("tis", TpmModel::Tis)] {
        let vm = host.host().create(with(name, tpm(model))).await.expect("created");
        vm.start().await.expect("starts");
        reaches(&vm, VmState::Stopped).await;
        let state = devices(&host, &vm).join("tpm/tpm2-00.permall");
        assert!(state.exists(), "{model:?} keeps its keys");
        // The one before has let go of its state.
        vm.start().await.expect("starts again");
        reaches(&vm, VmState::Stopped).await;
        host.host().delete(name).await.expect("deleted");
        assert!(!state.exists());
    }
    let vm = host.host().create(with("none", None)).await.expect("created");
    vm.start().await.expect("starts");
    // Without, the same program stands still: it must be the TPM that ended the others.
    let mut viewer = vm.console().viewer();
    sees(&mut viewer, "UEFI's screen", |_, picture| picture.has_text()).await;
    assert_eq!(vm.status().state, VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_that_is_killed_is_told_by_any_gateway_and_is_there_again_after_a_start() {
    let mut host = TestHost::new().await;
    let definition = Definition { tpm: Some(Tpm::default()), ..firmware("tpm") };
    let uuid = definition.uuid;
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts");
    let first = tpm_pid(&host, uuid);
    assert!(is_alive(first));
    drop(vm);
    host.reopen().await;
    let vm = host.vm("tpm");
    assert!(is_alive(first), "it outlives a gateway");
    signal(first, Signal::KILL);
    let told = |reason: &Option<String>| reason.as_ref().is_some_and(|reason| reason.contains("swtpm ended"));
    let mut watch = vm.watch();
    let status =
        soon("a reason", watch.wait_for(|status| told(&status.reason))).await.expect("the driver lives").clone();
    assert_eq!(status.state, VmState::Running);
    let reason = status.reason.expect("a reason");
    assert!(reason.contains("no TPM until the VM is started anew"), "{reason}");
    vm.power_off().await.expect("switches off");
    vm.start().await.expect("starts");
    assert_eq!(vm.status().reason, None);
    let second = tpm_pid(&host, uuid);
    assert!(is_alive(second));
    // It ends with QEMU, however that ends.
    signal(vm.status().pid.expect("a process"), Signal::KILL);
    reaches(&vm, VmState::Failed).await;
    assert!(!is_alive(second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_program_that_is_not_there_is_a_reason() {
    let host = TestHost::with(|config| config.swtpm = Some("/nonexistent/swtpm".into())).await;
    let vm = host.host().create(Definition { tpm: Some(Tpm::default()), ..firmware("tpm") }).await.expect("created");
    let error = vm.start().await.expect_err("no TPM").to_string();
    assert!(error.contains("cannot start the TPM (/nonexistent/swtpm): install swtpm"), "{error}");
    assert_eq!(vm.status().state, VmState::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_counts_32_processors_in_two_sockets() {
    let host = TestHost::new().await;
    let package = "/sys/devices/system/cpu/cpu31/topology/physical_package_id";
    let check = format!("[ $(nproc) = 32 ] && [ $(cat {package}) = 1 ] && poweroff -f");
    let definition = Definition {
        vcpus: 32,
        cpu: Cpu { topology: Some(Topology { sockets: 2, cores: 16, threads: 1 }), model: None },
        ..runs_as_first_program(console_guest("many"), &check)
    };
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts");
    let mut watch = vm.watch();
    let stopped = watch.wait_for(|status| status.state == VmState::Stopped);
    let status = tokio::time::timeout(MANY_PROCESSORS, stopped).await.expect("the guest counts 32").expect("lives");
    assert_eq!(status.reason.as_deref(), Some("the guest shut down"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_of_512_gib_starts_where_the_host_promises_more_than_it_has() {
    let host = TestHost::new().await;
    let vm = host.host().create(Definition { memory: 512 * 1024, ..firmware("large") }).await.expect("created");
    let strict = fs::read_to_string("/proc/sys/vm/overcommit_memory").expect("Linux").trim() == "2";
    match vm.start().await {
        Ok(()) => {
            let mut viewer = vm.console().viewer();
            sees(&mut viewer, "the firmware's screen", |_, picture| picture.has_text()).await;
        }
        Err(error) => assert!(strict && error.to_string().contains("allocate memory"), "{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_32_bit_processor_runs_the_firmware_and_an_unknown_one_is_a_reason() {
    let host = TestHost::new().await;
    let model = |name: &str, model: &str| Definition {
        cpu: Cpu { topology: None, model: Some(model.into()) },
        ..firmware(name)
    };
    let vm = host.host().create(model("old", "qemu32")).await.expect("created");
    vm.start().await.expect("starts");
    let mut viewer = vm.console().viewer();
    sees(&mut viewer, "the firmware's screen", |_, picture| picture.has_text()).await;
    let vm = host.host().create(model("odd", "abacus")).await.expect("created");
    let error = vm.start().await.expect_err("there is none").to_string();
    assert!(error.contains("unable to find CPU model 'abacus'"), "{error}");
}

fn uefi(name: &str, secure_boot: bool) -> Definition {
    Definition { memory: 128, firmware: Firmware::Uefi { secure_boot }, ..firmware(name) }
}

fn runs(definition: Definition, program: PathBuf) -> Definition {
    Definition { boot: Boot::DirectKernel { kernel: program, initrd: None, cmdline: String::new() }, ..definition }
}

/// The guest's kernel runs `script` and nothing else.
pub(crate) fn runs_as_first_program(definition: Definition, script: &str) -> Definition {
    let Boot::DirectKernel { kernel, initrd, .. } = definition.boot else { panic!("a console guest has a kernel") };
    let script = format!("export PATH=/bin; mount -t proc proc /proc; mount -t sysfs sys /sys; {script}; sleep 100000");
    let cmdline = format!("console=tty0 quiet rdinit=/bin/sh -- -c \"{script}\"");
    Definition { boot: Boot::DirectKernel { kernel, initrd, cmdline }, ..definition }
}

fn devices(host: &TestHost, vm: &Vm) -> PathBuf {
    host.config.devices.join(vm.uuid().to_string())
}

fn tpm_pid(host: &TestHost, uuid: uuid::Uuid) -> u32 {
    let file: &Path = &host.config.runtime.join(uuid.to_string()).join("tpm.pid");
    let text = fs::read_to_string(file).expect("a TPM runs");
    text.lines().nth(1).and_then(|stat| stat.split(' ').next()?.parse().ok()).expect("a process number")
}
