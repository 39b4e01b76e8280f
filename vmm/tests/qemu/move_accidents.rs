//! Moves whose target is pulled or full, or that somebody cancels, at moments that nobody chose, and half of the time the
//! gateway is killed then, too.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm::{Disk, DiskBus, DiskFormat, DiskSource, JobState, MoveDisk, Vm, VmState};

use crate::disk_server::NbdServer;
use crate::kit::{PATIENCE, TestHost, reaches, runtime, soon};
use crate::moves::{SIZE, Scribe, begin, ended, file, moment, moving, rounds, to, until};
use crate::places::Mount;

/// How long an accident lasts if the move does not come to its end over it.
const ACCIDENT: Duration = Duration::from_secs(5);

/// Where a disk goes, and what happens on the way.
enum Accident {
    /// The server ends, and is there again later.
    Pulled {
        export: PathBuf,
        server: Option<NbdServer>,
    },
    /// Somebody else takes all the room, and gives it back later.
    Full {
        folder: PathBuf,
    },
    Cancelled,
}

impl Accident {
    /// The one of a round. Who may mount nothing has no place that becomes full.
    async fn of(round: u64, host: &TestHost, small: Option<&Mount>) -> (Self, MoveDisk) {
        let name = format!("{round}.{}", if round.is_multiple_of(2) { "qcow2" } else { "raw" });
        match (round % 3, small) {
            (0, _) => {
                let export = host.folder().join(format!("{round}.export"));
                fs::File::create(&export).and_then(|file| file.set_len(SIZE)).expect("an image");
                let server = NbdServer::start(&export, None).await;
                let request = to(server.url());
                (Self::Pulled { export, server: Some(server) }, request)
            }
            (1, Some(small)) => {
                let target = small.0.join(name).display().to_string();
                (Self::Full { folder: small.0.clone() }, to(target))
            }
            _ => (Self::Cancelled, file(host, &name).1),
        }
    }

    fn happen(&mut self, host: &TestHost, job: &vmm::Job) {
        match self {
            Self::Pulled { server, .. } => drop(server.take()),
            Self::Full { folder } => {
                let mut filler = fs::File::create(folder.join("filler")).expect("a name takes no room");
                while filler.write_all(&[1; 4096]).is_ok() {}
            }
            // It may have come to its end, or be past the point from which on it is done.
            Self::Cancelled => drop(host.host().jobs().cancel(job.id)),
        }
    }

    async fn end(&mut self) {
        match self {
            Self::Pulled { export, server } => *server = Some(NbdServer::start(export, None).await),
            Self::Full { folder } => fs::remove_file(folder.join("filler")).expect("there"),
            Self::Cancelled => {}
        }
    }
}

#[test]
fn whatever_befalls_a_move_there_is_one_complete_disk_and_the_guest_writes_on() {
    let mut life = runtime();
    let mut host = life.block_on(TestHost::new());
    let small = Mount::in_memory(3 * SIZE, host.folder().join("small"));
    let scribe = Scribe::new(&host);
    life.block_on(async {
        let vm = host.host().create(scribe.unattended()).await.expect("created");
        vm.start().await.expect("starts");
        soon("the guest to write", scribe.past(0)).await;
    });
    // What the disk is on now, if a server.
    let mut under = None;
    for round in 0..rounds(6) {
        let (mut accident, source, target, job) = life.block_on(async {
            let (mut accident, request) = Accident::of(round, &host, small.as_ref()).await;
            let (vm, target) = (host.vm("scribe"), DiskSource::of_words(&request.target).expect("a place"));
            let source = moving(&vm).source;
            let job = begin(&host, &vm, MoveDisk { rate: Some(SIZE), ..request }).await;
            until(&host, &job, moment(round + 23)).await;
            accident.happen(&host, &job);
            (accident, source, target, job)
        });
        let is_killed = round / 3 % 2 == 1;
        if is_killed {
            // Nothing of this gateway does anything more.
            life.shutdown_timeout(PATIENCE);
            life = runtime();
            life.block_on(host.reopen());
        }
        life.block_on(async {
            let vm = host.vm("scribe");
            // Some wait for the end of the accident.
            let _ = tokio::time::timeout(ACCIDENT, ended(&host, &job)).await;
            accident.end().await;
            let job = ended(&host, &job).await;
            let status = vm.status();
            assert_ne!(status.state, VmState::Failed, "round {round}, killed: {is_killed}, {status:?}, {job:?}");
            let number = scribe.number();
            soon("the guest to write on", scribe.past(number)).await;
            reaches(&vm, VmState::Running).await;
            let disk = moving(&vm);
            let (is, other) = if job.state == JobState::Done { (&target, &source) } else { (&source, &target) };
            assert_eq!(&disk.source, is, "round {round}, killed: {is_killed}, {job:?}");
            if let Some(other) = other.path().filter(|path| path.exists()) {
                assert_eq!(job.state, JobState::Done, "an incomplete copy stays: {}, {job:?}", other.display());
                fs::remove_file(other).expect("removed");
            }
            if let Accident::Pulled { export, server } = accident
                && job.state == JobState::Done
            {
                under = Some((export, server));
            } else if disk.source.path().is_some() {
                under = None;
            }
            is_complete(&scribe, &vm, under.as_ref().map(|(export, _)| export.as_path())).await;
        });
    }
}

/// While nobody writes, the disk holds every record. It is in the file `export` if it is on a server.
async fn is_complete(scribe: &Scribe, vm: &Vm, export: Option<&Path>) {
    vm.pause().await.expect("pauses");
    match export {
        Some(export) => scribe.check_on(&Disk::new(export.to_path_buf(), DiskFormat::Raw, DiskBus::Virtio)),
        None => scribe.check(vm),
    }
    vm.resume().await.expect("resumes");
}
