//! Disks that go to another place, while their guest writes to them, and whatever is killed or pulled meanwhile.
//!
//! The guest keeps a log: it writes a record to the disk that moves, has it reach the disk (fsync), and only then its number
//! to another disk. So after any accident the disk must hold every record up to that number.
//!
//! With `FANLIGHT_TEST_LONG=1` there are 50 accidents of each kind, else a few.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vmm::{
    Bus, Definition, Disk, DiskBus, DiskError, DiskFormat, DiskSource, Job, JobState, MoveDisk, Moved, Request,
    RequestError, Vm, VmState,
};

use crate::disk_server::NbdServer;
use crate::firmware::runs_as_first_program;
use crate::kit::{PATIENCE, TestHost, console_guest, firmware, reaches, runtime, shell, signal, soon, types};

pub(crate) const SIZE: u64 = 48 << 20;
/// Where records are: the first is at one of these, the next at two.
const RECORD: u64 = 4096;

/// Run by the guest's shell from the first disk. The second has the number of the last record.
const WRITER: &str = r#"
until [ -b /dev/vdc ]; do :; done
i=$(head -c 8 /dev/vdb | tr -d '\0 '); i=${i:-0}
while :; do
i=$((i + 1))
echo "record $i of the log" | dd of=/dev/vdc bs=4096 seek=$i conv=notrunc,fsync,sync 2>/dev/null || exit
printf '%-8d' $i | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null || exit
done
exit
"#;

/// A guest that keeps a log on its third disk.
pub(crate) struct Scribe {
    acknowledged: PathBuf,
    /// Its script, the number of the last record, and its log, which moves.
    pub(crate) disks: Vec<Disk>,
}

impl Scribe {
    pub(crate) fn new(host: &TestHost) -> Self {
        let [script, acknowledged, log] = ["script", "acknowledged", "log"].map(|name| host.folder().join(name));
        fs::write(&script, WRITER).expect("written");
        for (path, size) in [(&script, 1 << 20), (&acknowledged, 1 << 20)] {
            let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).expect("a file");
            file.set_len(size).expect("stretched");
        }
        noise(&log);
        let disks = [script, acknowledged.clone(), log];
        let disks = disks.map(|path| Disk::new(path, DiskFormat::Raw, DiskBus::Virtio)).to_vec();
        Self { acknowledged, disks }
    }

    pub(crate) fn definition(&self) -> Definition {
        Definition { disks: self.disks.clone(), ..console_guest("scribe") }
    }

    /// A guest that writes as soon as it is there, without anybody who types.
    pub(crate) fn unattended(&self) -> Definition {
        let script = "mount -t devtmpfs dev /dev; modprobe virtio_blk; until [ -b /dev/vda ]; do :; done; sh /dev/vda";
        Definition { disks: self.disks.clone(), ..runs_as_first_program(console_guest("scribe"), script) }
    }

    /// Waits for the shell, and has it write.
    pub(crate) async fn write(&self, vm: &Vm) {
        let before = self.number();
        shell(&vm.console()).await;
        let deadline = Instant::now() + PATIENCE;
        while self.number() == before {
            // On a busy machine a key may get lost; a second writer writes the same.
            types(&vm.console(), "\nuntil [ -b /dev/vda ]; do :; done; sh /dev/vda &\n").await;
            let written = tokio::time::timeout(Duration::from_secs(20), self.past(before)).await;
            assert!(written.is_ok() || Instant::now() < deadline, "nothing is written");
        }
    }

    /// The number of the last record that the guest was told is on the disk.
    pub(crate) fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        let file = fs::File::open(&self.acknowledged).expect("there");
        file.read_exact_at(&mut bytes, 0).expect("read");
        String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ']).parse().unwrap_or(0)
    }

    pub(crate) async fn past(&self, number: u64) {
        while self.number() <= number {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the disk, which nobody writes to now, holds every record up to the last.
    pub(crate) fn check(&self, vm: &Vm) {
        self.check_on(&moving(vm));
    }

    /// The same of any disk.
    pub(crate) fn check_on(&self, disk: &Disk) {
        let last = self.number();
        let raw = plain(disk);
        for number in 1..=last {
            let at = usize::try_from(number * RECORD).expect("fits");
            let expected = format!("record {number} of the log\n");
            let found = String::from_utf8_lossy(&raw[at..at + expected.len()]);
            assert_eq!(found, expected, "of {last} records on {}", disk.source);
        }
    }
}

/// The disk that moves, as the definition has it now.
pub(crate) fn moving(vm: &Vm) -> Disk {
    vm.definition().disks[2].clone()
}

/// Fills a file with what no format stores as nothing.
fn noise(path: &Path) {
    let mut file = fs::File::create(path).expect("a file");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut block = Vec::with_capacity(1 << 20);
    for _ in 0..SIZE >> 20 {
        block.clear();
        while block.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend(state.to_le_bytes());
        }
        file.write_all(&block).expect("written");
    }
}

/// The bytes of a disk that is a file, as far as they are in it.
pub(crate) fn plain(disk: &Disk) -> Vec<u8> {
    let path = disk.source.path().expect("a file");
    let driver = if disk.format == DiskFormat::Vhd { "vpc" } else { disk.format.word() };
    let raw = path.with_extension("plain");
    let made = Command::new("qemu-img").args(["convert", "-U", "-f", driver, "-O", "raw"]).arg(path).arg(&raw).status();
    assert!(made.expect("qemu-img runs").success());
    let bytes = fs::read(&raw).expect("read");
    fs::remove_file(raw).expect("removed");
    bytes
}

pub(crate) fn sha256(bytes: &[u8], folder: &Path) -> String {
    let file = folder.join("sum");
    fs::write(&file, bytes).expect("written");
    let output = Command::new("sha256sum").arg(&file).output().expect("sha256sum runs");
    String::from_utf8_lossy(&output.stdout).split(' ').next().expect("a sum").to_owned()
}

pub(crate) fn to(target: impl Into<String>) -> MoveDisk {
    let target = target.into();
    MoveDisk { target, format: None, rate: None, verify: false, delete_source: false, leave_snapshots: false }
}

pub(crate) fn file(host: &TestHost, name: &str) -> (PathBuf, MoveDisk) {
    let path = host.folder().join(name);
    (path.clone(), to(path.display().to_string()))
}

pub(crate) async fn begin(host: &TestHost, vm: &Vm, request: MoveDisk) -> Job {
    host.host().disks().move_disk(vm, "disk2", request).await.expect("begun")
}

pub(crate) async fn ended(host: &TestHost, job: &Job) -> Job {
    until(host, job, |job| job.state.is_final()).await
}

pub(crate) async fn until(host: &TestHost, job: &Job, enough: impl Fn(&Job) -> bool) -> Job {
    let jobs = host.host().jobs();
    let mut now = jobs.get(job.id).expect("remembered");
    let deadline = Instant::now() + 2 * PATIENCE;
    while !enough(&now) {
        assert!(Instant::now() < deadline, "it stays {now:?}");
        now = jobs.wait(job.id, now.revision, Duration::from_secs(1)).await.expect("remembered");
    }
    now
}

pub(crate) async fn moved(host: &TestHost, job: &Job) -> Moved {
    let job = ended(host, job).await;
    assert_eq!((job.state, job.problem.as_deref()), (JobState::Done, None), "{job:?}");
    serde_json::from_value(job.result.expect("a result")).expect("it says where the disk is")
}

/// How many accidents of each kind.
pub(crate) fn rounds(usual: u64) -> u64 {
    let may_take_long = std::env::var_os("FANLIGHT_TEST_LONG").is_some_and(|value| !value.is_empty() && value != "0");
    if may_take_long { 50 } else { usual }
}

/// When an accident happens in a round: the step of the move, and how far that is.
pub(crate) fn moment(round: u64) -> impl Fn(&Job) -> bool {
    let number = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let percent = (number / 8 % 100) as f32;
    let steps = ["preparing", "copying", "copying", "copying", "comparing", "comparing", "switching", "releasing"];
    let step = steps[usize::try_from(number % 8).expect("small")];
    let order = move |step: &str| steps.iter().position(|found| *found == step).unwrap_or(steps.len());
    move |job| {
        let at = order(job.step.as_deref().unwrap_or("preparing"));
        job.state.is_final()
            || at > order(step)
            || (at == order(step) && job.progress.percent >= percent)
            || (at == order(step) && job.progress.total == 0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_goes_through_all_formats_while_its_guest_writes() {
    let host = TestHost::new().await;
    let scribe = Scribe::new(&host);
    let vm = host.host().create(scribe.definition()).await.expect("created");
    vm.start().await.expect("starts");
    scribe.write(&vm).await;
    for name in ["one.qcow2", "two.vhdx", "three.vhd", "four.raw"] {
        let source = moving(&vm);
        let (path, request) = file(&host, name);
        let last = name == "four.raw";
        let request = MoveDisk { verify: true, delete_source: last, ..request };
        let job = begin(&host, &vm, request).await;
        let moved = moved(&host, &job).await;
        assert_eq!((moved.target.as_str(), moved.source), (path.to_str().expect("text"), source.source.to_string()));
        assert!(moved.compared >= SIZE && moved.stood_still.is_some(), "{} compared", moved.compared);
        assert_eq!(moving(&vm), Disk { source: path.into(), format: moved.format, ..source.clone() });
        let written = fs::read_to_string(host.config.definitions.join("scribe.toml")).expect("there");
        assert_eq!(Definition::parse(&written, Path::new("x")).expect("read"), *vm.definition());
        if last {
            assert!(!moved.source_kept && !source.source.path().expect("a file").exists());
        } else {
            assert_eq!(moved.sha256, Some(sha256(&plain(&source), host.folder())), "what was at the switch");
        }
        let number = scribe.number();
        soon("the guest to write on", scribe.past(number)).await;
        assert_eq!(vm.status().state, VmState::Running);
    }
    vm.power_off().await.expect("off");
    scribe.check(&vm);
    let moves = host.folder().join("moves");
    soon("an empty journal", async {
        while fs::read_dir(&moves).expect("there").count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_disks_of_a_vm_move_at_the_same_time() {
    let host = TestHost::new().await;
    let scribe = Scribe::new(&host);
    let other = host.folder().join("other");
    noise(&other);
    let mut definition = scribe.definition();
    definition.disks.push(Disk::new(other.clone(), DiskFormat::Raw, DiskBus::Virtio));
    let vm = host.host().create(definition).await.expect("created");
    let images = host.host().disks();
    let both = async |first: &str, second: &str| {
        let (one, two) = (file(&host, first).1, file(&host, second).1);
        let one = images.move_disk(&vm, "disk2", MoveDisk { verify: true, ..one }).await.expect("begun");
        let two = images.move_disk(&vm, "disk3", MoveDisk { verify: true, ..two }).await.expect("begun");
        (moved(&host, &one).await, moved(&host, &two).await)
    };
    let is_sum = |moved: &Moved, bytes: &[u8]| moved.sha256 == Some(sha256(bytes, host.folder()));
    // Off.
    let (one, two) = both("off-one.qcow2", "off-two.qcow2").await;
    assert!(is_sum(&one, &plain(&scribe.disks[2])) && is_sum(&two, &fs::read(&other).expect("there")));
    vm.start().await.expect("starts");
    scribe.write(&vm).await;
    // In both orders of their ends.
    for round in 0..4 {
        let source = moving(&vm);
        let (one, two) = both(&format!("{round}-one.qcow2"), &format!("{round}-two.raw")).await;
        assert!(is_sum(&one, &plain(&source)), "what was at the switch");
        assert!(is_sum(&two, &fs::read(&other).expect("there")), "the other");
        assert!(one.compared >= SIZE && two.compared >= SIZE);
    }
    let number = scribe.number();
    soon("the guest to write on", scribe.past(number)).await;
    vm.power_off().await.expect("off");
    scribe.check(&vm);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_is_killed_at_any_moment_leaves_one_complete_disk() {
    let host = TestHost::new().await;
    let scribe = Scribe::new(&host);
    let vm = host.host().create(scribe.definition()).await.expect("created");
    for round in 0..rounds(3) {
        vm.start().await.expect("starts");
        scribe.write(&vm).await;
        let source = moving(&vm);
        let format = if round % 2 == 0 { "qcow2" } else { "raw" };
        let (path, request) = file(&host, &format!("{round}.{format}"));
        let job = begin(&host, &vm, MoveDisk { rate: Some(SIZE), ..request }).await;
        until(&host, &job, moment(round)).await;
        signal(vm.status().pid.expect("a process"), Signal::KILL);
        reaches(&vm, VmState::Failed).await;
        let job = ended(&host, &job).await;
        let disk = moving(&vm);
        let source_path = source.source.path().expect("a file");
        if job.state == JobState::Done {
            assert_eq!(disk.source, DiskSource::Path(path));
            fs::remove_file(source_path).expect("kept");
        } else {
            assert_eq!(disk, source, "{job:?}");
            assert!(!path.exists(), "an incomplete copy stays: {job:?}");
        }
        scribe.check(&vm);
    }
}

#[test]
fn a_gateway_that_is_killed_at_any_moment_is_succeeded_by_one_that_goes_on() {
    let mut life = runtime();
    let mut host = life.block_on(TestHost::new());
    let scribe = Scribe::new(&host);
    life.block_on(async {
        let vm = host.host().create(scribe.definition()).await.expect("created");
        vm.start().await.expect("starts");
        scribe.write(&vm).await;
    });
    for round in 0..rounds(4) {
        let name = if round % 2 == 0 { format!("{round}.qcow2") } else { format!("{round}.raw") };
        let (path, request) = file(&host, &name);
        let (source, job) = life.block_on(async {
            let vm = host.vm("scribe");
            let source = moving(&vm);
            let job = begin(&host, &vm, MoveDisk { rate: Some(SIZE), ..request }).await;
            until(&host, &job, moment(round + 7)).await;
            (source, job)
        });
        // Nothing of this gateway does anything more.
        life.shutdown_timeout(PATIENCE);
        life = runtime();
        life.block_on(async {
            host.reopen().await;
            let vm = host.vm("scribe");
            let job = ended(&host, &job).await;
            reaches(&vm, VmState::Running).await;
            let disk = moving(&vm);
            if job.state == JobState::Done {
                assert_eq!(disk.source, DiskSource::Path(path));
                fs::remove_file(source.source.path().expect("a file")).expect("kept");
            } else {
                assert_eq!(disk, source, "{job:?}");
                assert!(!path.exists(), "an incomplete copy stays: {job:?}");
            }
            let number = scribe.number();
            soon("the guest to write on", scribe.past(number)).await;
        });
    }
    life.block_on(async {
        let vm = host.vm("scribe");
        vm.power_off().await.expect("off");
        scribe.check(&vm);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_pulled_and_a_move_that_is_cancelled_leave_the_disk_as_it_was() {
    let host = TestHost::new().await;
    let scribe = Scribe::new(&host);
    let vm = host.host().create(scribe.definition()).await.expect("created");
    vm.start().await.expect("starts");
    scribe.write(&vm).await;
    let source = moving(&vm);
    let (path, request) = file(&host, "cancelled.qcow2");
    let job = begin(&host, &vm, MoveDisk { rate: Some(SIZE / 8), ..request }).await;
    let second = host.host().disks().move_disk(&vm, "disk2", file(&host, "second.raw").1).await;
    assert!(matches!(second, Err(DiskError::InUse { .. })), "{second:?}");
    let error = vm.save_snapshot("a".parse().expect("a name")).await.expect_err("a disk moves").to_string();
    assert!(error.contains("its disk disk2 is being moved"), "{error}");
    until(&host, &job, |job| job.progress.done > 0).await;
    host.host().jobs().cancel(job.id).expect("in time");
    let cancelled = ended(&host, &job).await;
    assert_eq!(cancelled.state, JobState::Cancelled, "{cancelled:?}");
    assert!(!path.exists() && moving(&vm) == source);

    let export = host.folder().join("export.raw");
    fs::File::create(&export).and_then(|file| file.set_len(SIZE)).expect("an image");
    let server = NbdServer::start(&export, None).await;
    let job = begin(&host, &vm, MoveDisk { rate: Some(SIZE / 8), ..to(server.url()) }).await;
    until(&host, &job, |job| job.progress.done > 0).await;
    drop(server);
    let pulled = ended(&host, &job).await;
    assert_eq!(pulled.state, JobState::Failed, "{pulled:?}");
    assert_eq!(moving(&vm), source);
    let number = scribe.number();
    soon("the guest to write on", scribe.past(number)).await;

    let server = NbdServer::start(&export, None).await;
    let job = begin(&host, &vm, to(server.url())).await;
    assert_eq!(moved(&host, &job).await.target, server.url());
    let number = scribe.number();
    soon("the guest to write on", scribe.past(number)).await;
    let (path, request) = file(&host, "back.raw");
    let job = begin(&host, &vm, request).await;
    assert!(moved(&host, &job).await.source_kept);
    assert_eq!(moving(&vm).source, DiskSource::Path(path));
    vm.power_off().await.expect("off");
    scribe.check(&vm);
}

/// Stands in for QEMU: the same, but no file becomes longer than the log's disk.
fn narrow_qemu(host: &TestHost) -> PathBuf {
    let (path, blocks) = (host.folder().join("qemu"), SIZE / 512);
    let script = format!("#!/bin/sh\ntrap '' XFSZ\nulimit -f {blocks}\nexec qemu-system-x86_64 \"$@\"\n");
    fs::write(&path, script).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_full_leaves_the_disk_as_it_was() {
    let mut host = TestHost::new().await;
    host.config.qemu = Some(narrow_qemu(&host));
    host.reopen().await;
    let log = host.folder().join("log");
    noise(&log);
    let disks = vec![Disk::new(log.clone(), DiskFormat::Raw, DiskBus::Virtio)];
    // What memory it has is a file, too.
    let bus = Bus { enabled: false, ..Bus::default() };
    let definition = Definition { memory: 32, bus, disks, ..firmware("full") };
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts");
    // Its tables are more than there is room for.
    let (path, request) = file(&host, "full.qcow2");
    let job = host.host().disks().move_disk(&vm, "disk0", request).await.expect("begun");
    let full = ended(&host, &job).await;
    assert_eq!(full.state, JobState::Failed, "{full:?}");
    let problem = full.problem.expect("a reason");
    assert!(problem.contains("File too large"), "{problem}");
    assert!(!path.exists() && vm.definition().disks[0].source == DiskSource::Path(log));
    assert_eq!(vm.status().state, VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_off_is_served_by_the_same_request_and_not_started_meanwhile() {
    let host = TestHost::new().await;
    let log = host.folder().join("log.img");
    noise(&log);
    let disks = vec![Disk::new(log.clone(), DiskFormat::Raw, DiskBus::Virtio)];
    let vm = host.host().create(Definition { disks, ..firmware("off") }).await.expect("created");
    let images = host.host().disks();
    let (path, request) = file(&host, "off.qcow2");
    let slow = MoveDisk { rate: Some(SIZE / 2), ..request.clone() };
    let job = images.move_disk(&vm, "disk0", slow).await.expect("begun");
    until(&host, &job, |job| job.progress.done > 0).await;
    let Err(RequestError::Failed { request: Request::Start, reason, .. }) = vm.start().await else {
        panic!("it is copied")
    };
    assert!(reason.contains("is being moved"), "{reason}");
    host.host().jobs().cancel(job.id).expect("in time");
    assert_eq!(ended(&host, &job).await.state, JobState::Cancelled);
    assert!(!path.exists());

    let job = images.move_disk(&vm, "disk0", MoveDisk { verify: true, ..request }).await.expect("begun");
    let moved = moved(&host, &job).await;
    assert_eq!((moved.stood_still, moved.source_kept), (None, true));
    assert_eq!(moved.sha256, Some(sha256(&fs::read(&log).expect("there"), host.folder())));
    assert_eq!(plain(&vm.definition().disks[0]), fs::read(&log).expect("there"));
    vm.start().await.expect("starts");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_moved_is_refused_before_anything_is_made() {
    let host = TestHost::new().await;
    let images = host.host().disks();
    let [a, b, c, snapshots] = ["a.img", "b.img", "c.img", "snapshots.qcow2"].map(|name| host.folder().join(name));
    for path in [&a, &b, &c] {
        fs::File::create(path).and_then(|file| file.set_len(1 << 20)).expect("an image");
    }
    let commands = [vec!["create", "-q", "-f", "qcow2"], vec!["snapshot", "-c", "one"]];
    for command in commands {
        let size = (command[0] == "create").then_some("1M");
        let made = Command::new("qemu-img").args(&command).arg(&snapshots).args(size).status();
        assert!(made.expect("qemu-img runs").success());
    }
    let mut disks = vec![Disk::new(a.clone(), DiskFormat::Raw, DiskBus::Virtio)];
    disks.push(Disk::new(snapshots, DiskFormat::Qcow2, DiskBus::Virtio));
    disks.push(Disk::cdrom(DiskSource::Empty, DiskBus::Ide));
    let huge = host.folder().join("huge.img");
    fs::File::create(&huge).and_then(|file| file.set_len(8 << 40)).expect("an image");
    disks.push(Disk::new(huge, DiskFormat::Raw, DiskBus::Virtio));
    let vm = host.host().create(Definition { disks, ..firmware("refused") }).await.expect("created");
    let other = Definition { disks: vec![Disk::new(b.clone(), DiskFormat::Raw, DiskBus::Virtio)], ..firmware("other") };
    host.host().create(other).await.expect("created");
    let before = fs::read_dir(host.folder()).expect("there").count();
    let (free, request) = file(&host, "free.raw");
    let words = |path: &Path| path.display().to_string();
    for (disk, request, reason) in [
        ("disk7", request.clone(), "has no disk disk7"),
        ("disk0", to(words(&a)), "is at"),
        ("disk0", to(words(&b)), "it is a disk of VM other"),
        ("disk0", to(words(&c)), "nothing is overwritten"),
        ("disk0", to("relative.raw"), "absolute"),
        ("disk0", to(words(&host.folder().join("nameless"))), "does not tell"),
        ("disk0", to("https://host/x.raw"), "never written to"),
        ("disk0", to(words(&host.folder().join("missing/x.raw"))), "No such file"),
        ("disk0", MoveDisk { format: Some(DiskFormat::Vmdk), ..request.clone() }, "only read"),
        ("disk1", request.clone(), "holds 1 checkpoint of"),
        ("disk2", request.clone(), "is only read"),
        // It holds nothing, but its zeros would be written.
        ("disk3", to(words(&host.folder().join("huge.vhdx"))), "free"),
    ] {
        let error = images.move_disk(&vm, disk, request).await.expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(fs::read_dir(host.folder()).expect("there").count(), before);
    let request = MoveDisk { leave_snapshots: true, ..request };
    let job = images.move_disk(&vm, "disk1", request).await.expect("begun");
    assert!(moved(&host, &job).await.source_kept && free.exists());
}
