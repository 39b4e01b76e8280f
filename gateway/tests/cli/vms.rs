//! VMs, from creation to deletion.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::kit::State;

#[test]
fn a_vm_is_created_shown_and_deleted() {
    let state = State::new();
    let _service = state.serve();
    let created = state.json("vm create --name web01 --memory 512 --vcpus 2");
    assert_eq!((&created["state"], &created["memory"]), (&"created".into(), &512.into()));
    assert_eq!(state.run("vm create --name WEB01").code, 4);

    let uuid = created["uuid"].as_str().unwrap();
    assert_eq!(state.json(&format!("vm show {uuid}"))["name"], "web01");
    assert_eq!(state.json("vm list")["vms"][0]["name"], "web01");
    assert_eq!(state.run("vm pause web01").code, 4, "it does not run");

    assert_eq!(state.run("vm delete web01").code, 0);
    assert_eq!(state.run("vm show web01").code, 3);
    assert_eq!(state.run("vm delete web01").code, 3);
}

#[test]
fn a_definition_goes_out_and_comes_back() {
    let state = State::new();
    let _service = state.serve();
    state.json("vm create --name web01 --memory 300");
    let shown = state.run("vm show web01 --definition");
    let file = state.path().join("copy.toml");
    fs::write(&file, &shown.stdout).unwrap();
    assert_eq!(state.run("vm delete web01").code, 0);
    assert_eq!(state.json(&format!("vm create --file {}", file.display()))["memory"], 300);
}

#[test]
fn a_definition_is_edited_with_options_and_with_an_editor() {
    let state = State::new();
    let _service = state.serve();
    state.json("vm create --name web01 --memory 300");
    let edited = state.run("vm edit web01 --memory 400,maximum=800 --vcpus 2 --checkpoints every=60,keep=3");
    assert_eq!(edited.code, 0, "{edited:?}");
    let lines: Vec<_> = edited.stdout.lines().collect();
    let changes = [
        "web01 is edited",
        "checkpoints: none → every 60 minutes, 3 kept",
        "memory: 300 MiB → 400 MiB, then 400 to 800 as its guest needs",
        "vcpus: 1 → 2",
    ];
    assert_eq!(lines, changes, "it is off");
    assert_eq!(state.json("vm show web01")["memory"], 400);
    assert!(state.run("vm edit web01 --vcpus 2").stdout.contains("as it was"));
    assert_eq!(state.run("vm edit web01 --initrd /x").code, 2, "there is no kernel");
    assert_eq!(state.run("vm edit web02 --vcpus 2").code, 3);

    let edit = |editor: &str, answers: &str| {
        let mut command = state.command("vm edit web01");
        command.env("VISUAL", "").env("EDITOR", editor).env("TMPDIR", state.path());
        crate::kit::finish(command, answers)
    };
    let edited = edit("sed -i '1i # of the web'", "");
    assert_eq!((edited.code, edited.stdout.as_str()), (0, "web01 is as it was\n"));
    let file = state.path().join("vms/web01.toml");
    assert!(fs::read_to_string(&file).unwrap().starts_with("# of the web\n"));
    let before = fs::read_to_string(&file).unwrap();
    let refused = edit("sed -i 's/^vcpus.*/vcpus = 0/'", "n\n");
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains(".toml:4:9: `vcpus` is 1 to 32, not 0"), "{refused:?}");
    assert!(refused.stderr.contains("nothing is changed; your text is in "), "{refused:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    assert_eq!(edit("false", "").code, 1);
    // Another person is faster.
    let raced = edit(&format!("echo '# later' >> '{}' && sed -i 's/^vcpus.*/vcpus = 4/'", file.display()), "");
    assert_eq!(raced.code, 4, "{raced:?}");
    assert!(raced.stderr.contains("has been changed meanwhile"), "{raced:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), before + "# later\n");
}

#[test]
fn a_disk_with_a_system_on_it_is_imported() {
    let state = State::new();
    let _service = state.serve();
    let disk = state.path().join("old.qcow2");
    let words = |rest: &str| format!("vm create --name web01 --import --disk path={}{rest}", disk.display());
    assert_eq!(state.run("vm create --name web01 --import").code, 2, "there is no disk");
    assert_eq!(state.run(&words("")).code, 3, "it is not there");
    assert_eq!(state.run(&words(",size=1M")).code, 2, "an empty disk holds no system");
    fs::write(&disk, "no image").unwrap();
    assert_eq!(state.run(&words("")).code, 1, "it is no qcow2");
    fs::remove_file(&disk).unwrap();
    state.json(&format!("disk create {} --size 1M", disk.display()));
    assert_eq!(state.run(&words(" --cdrom empty --boot cdrom")).code, 2, "a disc is no disk");
    assert_eq!(state.run("vm list").stdout.lines().count(), 1, "nothing was made");
    state.json(&words(" --cdrom empty"));
    let text = state.run("vm show web01 --definition").stdout;
    let disks: Vec<_> = text.lines().filter(|line| line.starts_with("path") || line.starts_with("firmware")).collect();
    assert_eq!(disks, ["firmware = \"bios\"".to_owned(), format!("path = \"{}\"", disk.display())]);
}

#[test]
fn a_mistake_in_a_definition_is_named_by_line_and_column() {
    let state = State::new();
    let _service = state.serve();
    let file = state.path().join("bad.toml");
    let text = "name = 'web01'\nuuid = '7c8f1c5e-3c55-4f3f-9d0e-0a4b8d1f2e3c'\nmemory = 512\ncolour = 'red'\n";
    fs::write(&file, text).unwrap();
    let finished = state.run(&format!("vm create --file {}", file.display()));
    assert_eq!(finished.code, 2);
    assert!(finished.stderr.contains("bad.toml:4:1: unknown field `colour`"), "{}", finished.stderr);

    fs::write(state.path().join("vms/bad.toml"), text).unwrap();
    drop(_service);
    let _service = state.serve();
    let problems = state.json("vm list")["problems"].to_string();
    assert!(problems.contains("bad.toml:4:1"), "{problems}");
}

#[test]
fn a_vm_whose_definition_is_refused_is_known_and_mended() {
    let state = State::new();
    let service = state.serve();
    state.json("vm create --name web01 --memory 300");
    let (file, disk) = (state.path().join("vms/web01.toml"), state.path().join("own.qcow2"));
    state.json(&format!("disk create {} --size 1M", disk.display()));
    state.json(&format!("disk attach web01 {}", disk.display()));
    drop(service);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("memory = 300", "memory = 0")).unwrap();
    let _service = state.serve();
    let shown = state.run("vm show web01");
    assert!(shown.code == 0 && shown.stdout.contains("refused") && shown.stdout.contains("web01.toml:"), "{shown:?}");
    let list = state.run("vm list");
    assert!(list.stdout.lines().any(|line| line.starts_with("web01  refused")), "{list:?}");
    assert_eq!(state.json("vm list")["vms"][0]["state"], "refused");
    let started = state.run("vm start web01");
    assert!(started.code == 4 && started.stderr.contains("`fanlight vm edit web01` mends it"), "{started:?}");
    let deleted = state.run(&format!("disk delete {} --force", disk.display()));
    assert!(deleted.code == 4 && deleted.stderr.contains("it is a disk of VM web01"), "{deleted:?}");
    let edit = |editor: &str| {
        let mut command = state.command("vm edit web01");
        command.env("VISUAL", "").env("EDITOR", editor).env("TMPDIR", state.path());
        crate::kit::finish(command, "n\n")
    };
    let wrong = edit("sed -i 's/web01/web02/'");
    assert!(wrong.code == 2 && fs::read_to_string(&file).unwrap().contains("memory = 0"), "{wrong:?}");
    let mended = edit("sed -i 's/^memory = 0/memory = 400/'");
    assert_eq!((mended.code, mended.stdout.as_str()), (0, "web01 is mended\n"), "{mended:?}");
    assert_eq!(state.json("vm show web01")["memory"], 400);
    assert_eq!(state.json("vm list")["problems"].as_array().map(Vec::len), Some(0));
}

#[test]
fn the_images_of_a_vm_that_is_deleted_are_named_or_go() {
    let state = State::new();
    let _service = state.serve();
    let [own, base, above] = ["own.qcow2", "base.qcow2", "above.qcow2"].map(|name| state.path().join(name));
    for (name, disk) in [("web01", &own), ("web02", &base)] {
        state.json(&format!("disk create {} --size 1M", disk.display()));
        state.json(&format!("vm create --name {name} --disk path={}", disk.display()));
    }
    let deleted = state.run("vm delete web01");
    let stays = format!("{} stays", own.display());
    assert!(deleted.code == 0 && deleted.stdout.contains(&stays) && own.exists(), "{deleted:?}");
    state.json(&format!("disk create {} --backing {}", above.display(), base.display()));
    let deleted = state.run("vm delete web02 --disks");
    assert!(deleted.code == 0 && deleted.stdout.contains("above.qcow2 stands on it") && base.exists(), "{deleted:?}");
    state.json(&format!("vm create --name web03 --disk path={}", own.display()));
    let deleted = state.run("vm delete web03 --disks");
    assert!(deleted.code == 0 && deleted.stdout.contains("own.qcow2 is deleted") && !own.exists(), "{deleted:?}");
}

#[test]
fn a_disk_is_created_with_its_vm_and_not_without() {
    let state = State::new();
    let _service = state.serve();
    let disk = state.path().join("disk.img");
    let words = |name: &str| format!("vm create --name {name} --disk path={},size=16M,format=raw", disk.display());
    state.json(&words("web01"));
    assert_eq!(fs::metadata(&disk).unwrap().len(), 16 << 20);
    assert_eq!(state.run(&words("web02")).code, 4, "an image that is there is not overwritten");
    assert_eq!(state.run("vm show web02").code, 3);
}

#[test]
fn an_rdp_file_names_gateway_and_vm() {
    let state = State::new();
    let service = state.serve();
    state.json("vm create --name web01");
    let text = state.run("rdp-file web01 --user anna").stdout;
    assert!(text.contains(&format!("full address:s:{}\r\n", service.address())), "{text}");
    assert!(text.contains("loadbalanceinfo:s:tsv://vm.web01\r\n") && text.contains("username:s:anna\r\n"), "{text}");
    assert_eq!(state.run("rdp-file nothing").code, 3);
}

#[test]
fn a_guest_runs_pauses_and_outlives_the_service() {
    let state = State::new();
    let service = state.serve();
    state.json("vm create --name web01 --memory 64 --accelerator tcg --network none");
    let started = state.json("vm start web01");
    assert_eq!((&started["state"], &started["accelerator"]), (&"running".into(), &"tcg".into()));
    assert_eq!(state.run("vm start web01").code, 4);
    assert_eq!(state.run("vm delete web01").code, 4);
    assert_eq!(state.json("vm pause web01")["state"], "paused");
    assert_eq!(state.json("vm resume web01")["state"], "running");
    let picture = state.path().join("web01.png");
    assert_eq!(state.run(&format!("vm screenshot web01 --output {}", picture.display())).code, 0);
    assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG"));

    service.stop();
    let service = state.serve();
    let found = state.json("vm show web01");
    assert_eq!((&found["state"], &found["pid"]), (&"running".into(), &started["pid"]));
    assert_eq!(state.json("vm stop web01")["state"], "stopped");
    assert_eq!(state.run("vm delete web01").code, 0);
    service.stop();
}

#[test]
fn a_name_that_is_taken_is_told_as_the_vm_has_it() {
    let state = State::new();
    let _service = state.serve();
    state.json("vm create --name web01 --memory 64");
    let taken = state.run("vm create --name WEB01 --memory 64");
    assert!(taken.code == 4 && taken.stderr.contains("there is already a VM with the name web01"), "{taken:?}");
}

#[test]
fn a_vm_that_wants_kvm_where_that_is_broken_points_to_the_doctor() {
    let state = State::new();
    let qemu = state.path().join("qemu-system-x86_64");
    let script = "#!/bin/sh\necho 'qemu-system-x86_64: error: failed to set MSR 0x10a' >&2\nexit 1\n";
    fs::write(&qemu, script).unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!("[qemu]\nprogram = \"{}\"\n", qemu.display());
    fs::write(state.path().join("fanlight.toml"), config).unwrap();
    let _service = state.serve();
    state.json("vm create --name web01 --memory 64 --accelerator kvm --network none");
    let failed = state.run("vm start web01");
    assert!(failed.code == 1 && failed.stderr.contains("failed to set MSR"), "{failed:?}");
    assert!(failed.stderr.contains("`fanlight doctor` says whether KVM works here"), "{failed:?}");
    state.json("vm edit web01 --accelerator auto");
    let failed = state.run("vm start web01");
    assert!(failed.code == 1 && !failed.stderr.contains("doctor"), "it is not KVM: {failed:?}");
}
