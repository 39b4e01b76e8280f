//! States, requests, and gateways that come and go.

use std::fs;
use std::time::SystemTime;

use serde_json::Value;
use vmm::{HostError, RequestError, VmState};

use crate::kit::{TestHost, console_guest, is_alive, reaches, sees, shell, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_started_paused_resumed_reset_and_switched_off() {
    let host = TestHost::new().await;
    let vm = host.firmware_vm("one").await;
    assert_eq!(vm.status().state, VmState::Created);
    vm.start().await.expect("starts");
    let status = vm.status();
    let pid = status.pid.expect("a process");
    assert_eq!(status.state, VmState::Running);
    assert!(is_alive(pid));
    vm.pause().await.expect("pauses");
    assert_eq!(vm.status().state, VmState::Paused);
    vm.reset().await.expect("resets");
    assert_eq!(vm.status().state, VmState::Paused, "a reset does not let it go on");
    vm.resume().await.expect("resumes");
    assert_eq!(vm.status().state, VmState::Running);
    let refusal = vm.resume().await.expect_err("it runs");
    assert_eq!(refusal.to_string(), "cannot resume a VM that is running: it runs already");
    vm.power_off().await.expect("switches off");
    let status = vm.status();
    assert_eq!((status.state, status.pid), (VmState::Stopped, None));
    assert!(!is_alive(pid));
    vm.start().await.expect("starts again");
    vm.power_off().await.expect("switches off again");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_come_together_are_carried_out_in_order() {
    let host = TestHost::new().await;
    let vm = host.firmware_vm("one").await;
    let (start, pause, resume, off) = tokio::join!(vm.start(), vm.pause(), vm.resume(), vm.power_off());
    for done in [start, pause, resume, off] {
        done.expect("carried out");
    }
    assert_eq!(vm.status().state, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_shuts_down_when_asked_and_is_waited_for() {
    let host = TestHost::new().await;
    let vm = host.host().create(console_guest("guest")).await.expect("created");
    vm.start().await.expect("starts");
    shell(&vm.console()).await;
    let asked = async {
        loop {
            // Before its button's driver is there, a guest does not hear it.
            let press = vm.shutdown();
            match tokio::time::timeout(std::time::Duration::from_secs(3), press).await {
                Ok(done) => return done,
                Err(_) if vm.status().state == VmState::Running => {}
                Err(_) => return Ok(()),
            }
        }
    };
    soon("the guest goes down", asked).await.expect("shuts down");
    let status = reaches(&vm, VmState::Stopped).await;
    assert_eq!(status.reason.as_deref(), Some("the guest shut down"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_gateway_takes_the_same_qemu_back() {
    let mut host = TestHost::new().await;
    let vm = host.firmware_vm("kept").await;
    vm.start().await.expect("starts");
    let (pid, since) = (vm.status().pid, vm.status().since);
    let mut viewer = vm.console().viewer();
    sees(&mut viewer, "the firmware", |_, picture| picture.has_text()).await;
    drop((vm, viewer));
    host.reopen().await;
    let vm = host.vm("KEPT");
    let status = vm.status();
    assert!(status.since <= since, "it has run since its start, not since the gateway's");
    assert_eq!((status.state, status.pid), (VmState::Running, pid));
    assert_eq!(status.accelerator.expect("asked for").accelerator, vmm::Accelerator::Tcg);
    sees(&mut vm.console().viewer(), "the firmware again", |_, picture| picture.has_text()).await;
    vm.pause().await.expect("its monitor answers");
    drop(vm);
    let closed = SystemTime::now();
    host.reopen().await;
    let status = host.vm("kept").status();
    assert_eq!(status.state, VmState::Paused);
    assert!(status.since > since && status.since <= closed, "it stands still since it was paused");
    host.vm("kept").power_off().await.expect("switches off");
    assert!(!is_alive(pid.expect("a process")));
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_belongs_to_nobodys_session_and_holds_nobodys_files() {
    let host = TestHost::new().await;
    let held = host.folder().join("held");
    let _held = fs::File::create(&held).expect("created");
    let vm = host.firmware_vm("alone").await;
    vm.start().await.expect("starts");
    let pid = vm.status().pid.expect("a process");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("alive");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    assert_eq!((fields[2], fields[3]), (pid.to_string().as_str(), pid.to_string().as_str()), "group and session");
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("alive") {
        let target = fs::read_link(entry.expect("entry").path()).unwrap_or_default();
        assert_ne!(target, held, "QEMU holds a file of ours");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_vms_live_side_by_side() {
    let host = TestHost::new().await;
    let (a, b) = (host.firmware_vm("a").await, host.firmware_vm("b").await);
    let (first, second) = tokio::join!(a.start(), b.start());
    first.expect("starts");
    second.expect("starts");
    a.power_off().await.expect("switches off");
    assert_eq!(b.status().state, VmState::Running);
    sees(&mut b.console().viewer(), "the firmware", |_, picture| picture.has_text()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_numbers_are_unique_and_deleted_vms_are_gone() {
    let mut host = TestHost::new().await;
    let vm = host.firmware_vm("One").await;
    let taken = host.host().create(crate::kit::firmware("ONE")).await.expect_err("the name is taken");
    assert_eq!(taken.to_string(), "there is already a VM with the name One");
    vm.start().await.expect("starts");
    let refused = host.host().delete("one").await.expect_err("it is on");
    assert!(matches!(refused, HostError::Request(RequestError::Refused(_))), "{refused}");
    vm.power_off().await.expect("switches off");
    host.host().delete(&vm.uuid().to_string()).await.expect("deleted");
    assert_eq!(vm.status().state, VmState::Deleted);
    assert!(host.host().list().is_empty());
    assert_eq!(fs::read_dir(&host.config.definitions).expect("there").count(), 0);
    assert!(vm.start().await.is_err());
    drop(vm);
    host.reopen().await;
    assert!(host.host().list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_that_are_wrong_are_named_and_stop_nothing_else() {
    let mut host = TestHost::new().await;
    host.firmware_vm("good").await;
    let good = fs::read_to_string(host.config.definitions.join("good.toml")).expect("written");
    fs::write(host.config.definitions.join("bad.toml"), "name = \"bad\"\ncolour = 3\n").expect("written");
    fs::write(host.config.definitions.join("other.toml"), &good).expect("written");
    fs::write(host.config.definitions.join("twin.toml"), good.replace("good", "twin")).expect("written");
    host.reopen().await;
    assert_eq!(host.host().list().len(), 1);
    let problems: Vec<String> = host.host().problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].contains("bad.toml:2:1: unknown field `colour`"), "{problems:?}");
    assert!(problems[1].contains("other.toml:1:1: the file of a VM named \"good\" is \"good.toml\""), "{problems:?}");
    assert!(problems[2].contains("twin.toml:1:1: another VM has the same uuid"), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_says_everything_as_json() {
    let host = TestHost::new().await;
    let vm = host.firmware_vm("json").await;
    vm.start().await.expect("starts");
    let status = reaches(&vm, VmState::Running).await;
    let json: Value = serde_json::to_value(&status).expect("JSON");
    assert_eq!((&json["state"], &json["accelerator"]["accelerator"]), (&"running".into(), &"tcg".into()));
    assert!(json["since"].as_u64().is_some_and(|since| since > 1_700_000_000));
}
