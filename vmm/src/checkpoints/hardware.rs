//! Whether a VM is still the one whose memory was kept: memory cannot be loaded into other hardware.

use std::path::Path;

use crate::definition::{Accelerator, Boot, Definition, DiskFormat, DiskSource};

/// What differs between the VM of `then`, a definition's text, and that of `now`, so that the memory of the one cannot be
/// loaded into the other. A text that cannot be read raises no objection.
pub(super) fn difference(then: &str, now: &Definition) -> Option<String> {
    let then = Definition::parse(then, Path::new("checkpoint")).ok()?;
    let numbers = [
        ("memory", then.memory, now.memory, " MiB"),
        ("vcpus", then.vcpus.into(), now.vcpus.into(), ""),
        ("monitors", then.monitors.into(), now.monitors.into(), ""),
    ];
    for (what, then, now, unit) in numbers {
        if then != now {
            return Some(format!("`{what}` was {then}{unit} and is {now}{unit}"));
        }
    }
    if then.disks.len() != now.disks.len() {
        return Some(format!("it had {} disks and has {}", then.disks.len(), now.disks.len()));
    }
    let accelerators = [then.accelerator, now.accelerator];
    if accelerators.contains(&Accelerator::Kvm) && accelerators.contains(&Accelerator::Tcg) {
        return Some(format!("`accelerator` was \"{}\" and is \"{}\"", then.accelerator, now.accelerator));
    }
    if hardware(&then) == hardware(now) { None } else { Some("its definition has been changed".into()) }
}

/// The definition without what the guest's memory does not depend on.
fn hardware(definition: &Definition) -> Definition {
    let mut hardware = definition.clone();
    hardware.name = String::new();
    hardware.accelerator = Accelerator::Auto;
    hardware.session = crate::definition::Session::default();
    hardware.checkpoints = None;
    // Only whether QEMU loads a kernel, and not which.
    if let Boot::DirectKernel { kernel, initrd, cmdline } = &mut hardware.boot {
        (*kernel, *initrd, *cmdline) = (Default::default(), None, String::new());
    }
    for disk in &mut hardware.disks {
        (disk.source, disk.format) = (DiskSource::Empty, DiskFormat::Raw);
    }
    hardware
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use uuid::Uuid;

    use super::*;
    use crate::definition::{Bus, Disk, DiskBus, Network, Provider, Session};

    fn demo() -> Definition {
        let disk = Disk::new(PathBuf::from("/a.qcow2"), DiskFormat::Qcow2, DiskBus::Virtio);
        let mut demo = Definition { disks: vec![disk], ..Definition::new("demo", Uuid::from_u128(5)) };
        demo.settle();
        demo
    }

    fn said(change: impl FnOnce(&mut Definition)) -> Option<String> {
        let mut now = demo();
        change(&mut now);
        difference(&demo().to_toml(), &now)
    }

    #[test]
    fn what_the_guest_does_not_see_may_change() {
        assert_eq!(said(|_| ()), None);
        assert_eq!(said(|now| now.name = "other".into()), None);
        assert_eq!(said(|now| now.session = Session { input: Provider::Hardware }), None);
        assert_eq!(said(|now| now.disks[0].source = PathBuf::from("/moved.qcow2").into()), None);
        assert_eq!(said(|now| now.disks[0].format = DiskFormat::Vhdx), None, "it had no overlay then");
        assert_eq!(said(|now| now.accelerator = Accelerator::Tcg), None, "it may have been translated before");
        assert_eq!(difference("nonsense", &demo()), None);
    }

    #[test]
    fn what_the_guest_sees_may_not() {
        assert_eq!(said(|now| now.memory = 256).as_deref(), Some("`memory` was 512 MiB and is 256 MiB"));
        assert_eq!(said(|now| now.vcpus = 2).as_deref(), Some("`vcpus` was 1 and is 2"));
        assert_eq!(said(|now| now.disks.clear()).as_deref(), Some("it had 1 disks and has 0"));
        for change in [
            |now: &mut Definition| now.network = Network::none(),
            |now: &mut Definition| now.bus = Bus { enabled: false, memory: 0 },
            |now: &mut Definition| now.disks[0].bus = DiskBus::Scsi,
        ] {
            assert_eq!(said(change).as_deref(), Some("its definition has been changed"));
        }
    }
}
