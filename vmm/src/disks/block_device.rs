//! Block devices of the host: by which name they are found again, and whether something uses them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::users::users_of;
use crate::definition::DiskSource;

/// A block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// The kernel's name for it: another one after the next start of the host, maybe.
    pub path: PathBuf,
    /// Names that stay (`/dev/disk/by-id`), the best first.
    pub stable: Vec<PathBuf>,
    /// Bytes.
    pub size: u64,
    /// What its maker calls it.
    pub model: Option<String>,
    /// Whether it can be pulled out.
    pub removable: bool,
    /// Whether it can only be read.
    pub readonly: bool,
    /// Why no guest may have it now, if none may.
    pub in_use: Option<String>,
}

/// Where the kernel tells of devices; elsewhere in tests.
#[derive(Debug, Clone)]
pub(crate) struct Devices {
    sys: PathBuf,
    proc: PathBuf,
    dev: PathBuf,
}

/// A device by its number.
type Number = (u32, u32);

impl BlockDevice {
    /// The name to keep it by.
    #[must_use]
    pub fn name(&self) -> &Path {
        self.stable.first().unwrap_or(&self.path)
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

impl Devices {
    /// All block devices that have a size.
    pub(crate) fn list(&self) -> io::Result<Vec<BlockDevice>> {
        let mut names: Vec<_> = fs::read_dir(self.sys.join("class/block"))?.flatten().collect();
        names.sort_by_key(fs::DirEntry::file_name);
        let devices = names.iter().filter_map(|entry| self.device(&entry.file_name().to_string_lossy()));
        Ok(devices.filter(|device| device.size > 0).collect())
    }

    /// Why no guest may have the device at `path`, if none may.
    pub(crate) fn why_in_use(&self, path: &Path) -> io::Result<Option<String>> {
        let data = fs::metadata(path)?;
        if !data.file_type().is_block_device() {
            return Ok(None);
        }
        let number = (rustix::fs::major(data.rdev()), rustix::fs::minor(data.rdev()));
        let name = fs::canonicalize(self.sys.join(format!("dev/block/{}:{}", number.0, number.1)))?;
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(self.claimed(&name).or_else(|| opened(path)))
    }

    fn device(&self, name: &str) -> Option<BlockDevice> {
        let folder = self.sys.join("class/block").join(name);
        let text = |file: &str| fs::read_to_string(folder.join(file)).ok().map(|text| text.trim().to_owned());
        let sectors: u64 = text("size")?.parse().ok()?;
        let path = self.dev.join(name.replace('!', "/"));
        let model = text("device/model").filter(|model| !model.is_empty());
        let in_use = self.claimed(name).or_else(|| opened(&path));
        Some(BlockDevice {
            stable: self.stable_names(&path),
            path,
            // The kernel counts in these, whatever the device does.
            size: sectors.saturating_mul(512),
            model: model.map(|model| model.replace(char::is_control, "?")),
            removable: text("removable").as_deref() == Some("1"),
            readonly: text("ro").as_deref() == Some("1"),
            in_use,
        })
    }

    /// None for what is no block device, or has a name that stays already.
    fn lasting_name(&self, path: &Path) -> Option<PathBuf> {
        let in_order = path.starts_with(self.dev.join("disk")) || !is_block_device(path);
        let device = fs::canonicalize(path).ok().filter(|_| !in_order)?;
        self.stable_names(&device).into_iter().next()
    }

    fn stable_names(&self, device: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dev.join("disk/by-id")).into_iter().flatten().flatten();
        let links = entries.map(|entry| entry.path());
        let mut names: Vec<_> =
            links.filter(|link| fs::canonicalize(link).is_ok_and(|target| target == device)).collect();
        // A world-wide number says nothing to people.
        names.sort_by_key(|name| {
            (name.file_name().is_some_and(|name| name.to_string_lossy().starts_with("wwn-")), name.clone())
        });
        names
    }

    /// What the kernel has the device for: it, or a part of it.
    fn claimed(&self, name: &str) -> Option<String> {
        let mounts = fs::read_to_string(self.proc.join("self/mountinfo")).unwrap_or_default();
        let swaps = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        self.and_its_parts(name).iter().find_map(|name| {
            let path = self.dev.join(name);
            let number = self.number(name);
            if let Some(place) = number.and_then(|number| mounted(&mounts, number)) {
                return Some(format!("{} is mounted at {place}", path.display()));
            }
            if is_swap(&swaps, &path) {
                return Some(format!("{} is swap space", path.display()));
            }
            self.holder(name).map(|holder| format!("{} is part of {holder}", path.display()))
        })
    }

    fn and_its_parts(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.sys.join("class/block").join(name)).into_iter().flatten().flatten();
        let parts = entries.filter(|entry| entry.path().join("partition").exists());
        let mut names: Vec<_> = parts.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.insert(0, name.into());
        names
    }

    fn number(&self, name: &str) -> Option<Number> {
        let text = fs::read_to_string(self.sys.join("class/block").join(name).join("dev")).ok()?;
        parse_number(text.trim())
    }

    /// A device that stands on this one: a volume group, a RAID, an encrypted device.
    fn holder(&self, name: &str) -> Option<String> {
        let holders = fs::read_dir(self.sys.join("class/block").join(name).join("holders")).ok()?;
        let holder = holders.flatten().next()?.file_name().to_string_lossy().into_owned();
        let called = fs::read_to_string(self.sys.join("class/block").join(&holder).join("dm/name"));
        Some(called.map_or(holder, |name| name.trim().to_owned()))
    }
}

/// Whether a guest may have what `path` names; why not, in words, if it is a block device that something uses.
pub(crate) fn require_free(path: &Path) -> Result<(), String> {
    match Devices::default().why_in_use(path) {
        Ok(None) => Ok(()),
        Ok(Some(by)) => Err(format!("{} is in use: {by}", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Makes the name of a block device one that stays, where there is such a name.
pub(crate) fn lasting_name(source: &mut DiskSource) {
    if let DiskSource::Path(path) = source
        && let Some(name) = Devices::default().lasting_name(path)
    {
        *path = name;
    }
}

/// Whether QEMU has to open it as a device of the host.
pub(crate) fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.file_type().is_block_device())
}

/// Who has it open: a file system that spans several devices shows only by this, and so does another QEMU.
fn opened(path: &Path) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if rustix::fs::open(path, flags, Mode::empty()).is_err_and(|error| error == rustix::io::Errno::BUSY) {
        return Some("a file system or another device of this host has it".into());
    }
    // One that cannot be looked at is not known to be used.
    let users = users_of(path).unwrap_or_default();
    users.into_iter().find(|user| user.writes).map(|user| user.in_words())
}

/// Where a device is mounted (`/proc/self/mountinfo`, proc(5): the third field is its number, the fifth the place).
fn mounted(mounts: &str, number: Number) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (parse_number(fields.nth(2)?) == Some(number)).then_some(())?;
        fields.nth(1)
    })
}

fn is_swap(swaps: &str, path: &Path) -> bool {
    swaps.lines().skip(1).any(|line| line.split_whitespace().next().is_some_and(|name| Path::new(name) == path))
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host that has what these tests say.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("fanlight-block-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            let fake = Self(path);
            fake.file("proc/self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw\n27 1 8:18 / /srv rw - ext4 x rw\n");
            let swap = fake.0.join("dev/sdc");
            fake.file(
                "proc/swaps",
                &format!("Filename Type Size Used Priority\n{} partition 1 0 -2\n", swap.display()),
            );
            for (name, number) in [("sda", "8:0"), ("sdb", "8:16"), ("sdc", "8:32"), ("sdd", "8:48"), ("dm-0", "253:0")]
            {
                fake.file(&format!("sys/class/block/{name}/dev"), number);
                fake.file(&format!("sys/class/block/{name}/size"), "2048\n");
                fake.file(&format!("dev/{name}"), "");
            }
            fake.file("sys/class/block/sdb/sdb2/partition", "2");
            fake.file("sys/class/block/sdb2/dev", "8:18\n");
            fake.file("sys/class/block/sdd/holders/dm-0/x", "");
            fake.file("sys/class/block/dm-0/dm/name", "vg0-data\n");
            fake.file("sys/class/block/sda/device/model", "Sample SSD \n");
            fake.file("sys/class/block/sda/removable", "1\n");
            fs::create_dir_all(fake.0.join("dev/disk/by-id")).expect("a folder");
            for link in ["wwn-0x5000", "ata-Sample_SSD_1"] {
                symlink("../../sda", fake.0.join("dev/disk/by-id").join(link)).expect("linked");
            }
            fake
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("written");
        }

        fn host(&self) -> Devices {
            let root = fs::canonicalize(&self.0).expect("there");
            Devices { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev") }
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn devices_are_named_by_what_stays() {
        let fake = Fake::new("names");
        let devices = fake.host().list().expect("listed");
        let sda = devices.iter().find(|device| device.path.ends_with("sda")).expect("there");
        assert_eq!(sda.name().file_name().expect("a name"), "ata-Sample_SSD_1");
        assert_eq!((sda.size, sda.model.as_deref(), sda.removable), (1 << 20, Some("Sample SSD"), true));
        assert_eq!(sda.in_use, None);
    }

    #[test]
    fn a_device_is_in_use_when_a_part_of_it_is() {
        let fake = Fake::new("used");
        let used =
            |name: &str| fake.host().claimed(name).unwrap_or_default().replace(fake.0.to_str().expect("text"), "");
        assert_eq!(used("sda"), "");
        assert_eq!(used("sdb"), "/dev/sdb2 is mounted at /srv");
        assert_eq!(used("sdc"), "/dev/sdc is swap space");
        assert_eq!(used("sdd"), "/dev/sdd is part of vg0-data");
    }

    #[test]
    fn a_file_is_no_device() {
        assert_eq!(Devices::default().why_in_use(Path::new("/proc/self/exe")).expect("looked"), None);
        assert!(Devices::default().why_in_use(Path::new("/nonexistent")).is_err());
    }
}
