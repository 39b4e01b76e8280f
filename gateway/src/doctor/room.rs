//! The free room where the VMs' disks lie: a guest whose disk cannot grow stands still.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use vmm::Definition;

use super::{Check, Level};

const NAME: &str = "room for disks";
/// One part in so many of a file system is to stay free,
const FREE_SHARE: u64 = 20;
/// but at least so much, and no more than that.
const FREE_AT_LEAST: u64 = 1 << 30;
const FREE_IS_ENOUGH: u64 = 32 << 30;
/// A share whose server is gone answers never.
const ANSWER: Duration = Duration::from_secs(10);
/// Most VMs that are named.
const MAX_NAMED: usize = 3;

/// A folder with disks, and the VMs that have them.
type Folders = BTreeMap<PathBuf, BTreeSet<String>>;

/// A file system with disks.
#[derive(Debug, PartialEq, Eq)]
struct FileSystem {
    folder: PathBuf,
    vms: BTreeSet<String>,
    free: u64,
    size: u64,
}

/// Looks at each file system with a disk that a VM of the folder `definitions` writes to.
pub(super) async fn look(definitions: &Path) -> Vec<Check> {
    let folders = folders_of_disks(definitions);
    if folders.is_empty() {
        return vec![Check::new(NAME, Level::Good, "no VM has a disk in a file", "nothing grows")];
    }
    let mut systems: BTreeMap<u64, FileSystem> = BTreeMap::new();
    let mut checks = Vec::new();
    for (folder, vms) in folders {
        match answered(&folder).await {
            Ok((device, free, size)) => {
                let system = || FileSystem { folder, vms: BTreeSet::new(), free, size };
                systems.entry(device).or_insert_with(system).vms.extend(vms);
            }
            Err(error) => {
                let found = format!("{}: {error}", folder.display());
                let meaning = format!("the disks of {} cannot be used", in_words(&vms));
                checks.push(Check::new(NAME, Level::Poor, found, meaning).mend("mount what is missing there"));
            }
        }
    }
    checks.extend(systems.values().map(FileSystem::judge));
    checks
}

impl FileSystem {
    fn judge(&self) -> Check {
        let [free, size] = [self.free, self.size].map(|bytes| bytes >> 20);
        let found = format!("{}: {free} MiB of {size} free", self.folder.display());
        let wanted = (self.size / FREE_SHARE).clamp(FREE_AT_LEAST, FREE_IS_ENOUGH);
        if self.free >= wanted {
            let meaning = format!("the disks of {} may grow", in_words(&self.vms));
            return Check::new(NAME, Level::Good, found, meaning);
        }
        let meaning = format!("the guests of {} stand still when their disks cannot grow", in_words(&self.vms));
        Check::new(NAME, Level::Poor, found, meaning).mend(format!(
            "have at least {} MiB free there, or move disks elsewhere: `fanlight disk move VM DISK TARGET`",
            wanted >> 20
        ))
    }
}

/// The folders of the files that VMs write to. A definition that cannot be read is reported elsewhere.
fn folders_of_disks(definitions: &Path) -> Folders {
    let mut folders = Folders::new();
    let files = std::fs::read_dir(definitions).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "toml"));
    for definition in files.filter_map(|file| Definition::load(&file).ok()) {
        let written = definition.disks.iter().filter(|disk| !disk.readonly && !disk.cdrom);
        for path in written.filter_map(|disk| disk.source.path()).filter(|path| !path.starts_with("/dev")) {
            let folder = path.parent().unwrap_or(path).to_path_buf();
            folders.entry(folder).or_default().insert(definition.name.clone());
        }
    }
    folders
}

/// The file system of a folder, its free and its whole size. On a thread of its own, which may hang for ever.
async fn answered(folder: &Path) -> std::io::Result<(u64, u64, u64)> {
    let (tell, told) = oneshot::channel();
    let folder = folder.to_path_buf();
    std::thread::Builder::new().name("room".into()).spawn(move || {
        // Nobody may wait for it any more.
        let _ = tell.send(ask(&folder));
    })?;
    match timeout(ANSWER, told).await {
        Ok(Ok(answer)) => answer,
        _ => Err(std::io::Error::other("does not answer")),
    }
}

fn ask(folder: &Path) -> std::io::Result<(u64, u64, u64)> {
    let device = std::fs::metadata(folder)?.dev();
    let numbers = rustix::fs::statvfs(folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(numbers.f_frsize);
    Ok((device, bytes(numbers.f_bavail), bytes(numbers.f_blocks)))
}

fn in_words(vms: &BTreeSet<String>) -> String {
    let named: Vec<&str> = vms.iter().take(MAX_NAMED).map(String::as_str).collect();
    match vms.len().saturating_sub(MAX_NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::TempFolder;

    const GIB: u64 = 1 << 30;

    fn judge(free: u64, size: u64) -> Check {
        let vms = ["a", "b", "c", "d"].map(str::to_owned).into();
        FileSystem { folder: "/srv".into(), vms, free, size }.judge()
    }

    #[test]
    fn a_share_of_each_file_system_is_to_be_free() {
        assert_eq!(judge(6 * GIB, 100 * GIB).level, Level::Good);
        let check = judge(4 * GIB, 100 * GIB);
        assert_eq!((check.level, check.found.as_str()), (Level::Poor, "/srv: 4096 MiB of 102400 free"));
        assert_eq!(check.meaning, "the guests of a, b, c and 1 more stand still when their disks cannot grow");
        assert!(check.mend.unwrap().starts_with("have at least 5120 MiB free there"));
        assert_eq!(judge(GIB / 2, 2 * GIB).level, Level::Poor, "a quarter of little is little");
        assert_eq!(judge(40 * GIB, 10_000 * GIB).level, Level::Good, "a small share of much is enough");
    }

    #[tokio::test]
    async fn each_file_system_with_a_disk_is_looked_at_once() {
        let folder = TempFolder::new("room");
        let disks = folder.path().join("disks");
        fs::create_dir(&disks).unwrap();
        assert_eq!(look(folder.path()).await[0].found, "no VM has a disk in a file");
        let define = |name: &str, path: &Path, number: u32| {
            let disk = format!("[[disk]]\npath = \"{}\"\nformat = \"raw\"\n", path.display());
            let uuid = format!("00000000-0000-4000-8000-{number:012}");
            let text = format!("name = \"{name}\"\nuuid = \"{uuid}\"\nmemory = 64\nvcpus = 1\n\n{disk}");
            fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
        };
        define("one", &folder.path().join("a.raw"), 1);
        define("two", &disks.join("b.raw"), 2);
        define("gone", Path::new("/nonexistent/c.raw"), 3);
        let checks = look(folder.path()).await;
        let [gone, there] = &checks[..] else { panic!("{checks:#?}") };
        assert_eq!((gone.level, gone.meaning.as_str()), (Level::Poor, "the disks of gone cannot be used"));
        assert!(there.meaning.contains("one, two"), "{there:?}");
    }
}
