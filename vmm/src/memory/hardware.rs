//! The devices by which a VM's memory changes: what QEMU is told of them, and which of them moves for a wanted amount.
//!
//! ```text
//!                    startup
//! 0 ─────────────────────┼───────────────────────────── maximum
//!   ◀─ virtio-balloon ───┤├── virtio-mem ─▶
//! ```
//!
//! A guest is started with its start-up memory. The balloon takes some of that away; memory above it is plugged in by
//! virtio-mem, which can also take all of it back. Hyper-V's device does both.

use std::time::{Duration, Instant};

use super::MemorySettings;
use crate::accelerator::AcceleratorReport;
use crate::definition::{Accelerator, Definition, MemoryDevices};
use crate::engine::Version;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The name QMP knows the balloon by.
pub(crate) const BALLOON: &str = "balloon0";
/// And the memory that is plugged in.
pub(crate) const MORE: &str = "more";
/// The first QEMU with Hyper-V's device.
const HYPER_V_SINCE: Version = Version { major: 8, minor: 2 };
/// virtio-mem plugs whole blocks; this is the least that Linux on x86 can make use of.
const BLOCK: u64 = 2 * MIB;
/// What a Linux guest takes as one; a part at the end of the device would never be used.
const GUEST_BLOCK: u64 = 128 * MIB;
/// And one with much memory.
const LARGE_GUEST_BLOCK: u64 = 2 * GIB;
const LARGE_GUEST: u64 = 64 * GIB;
/// How long a guest may take to a step before it is reminded.
const STUCK_AFTER: Duration = Duration::from_secs(3);
/// How long a guest may plug in nothing before it is taken for one that never will,
const REFUSES_AFTER: Duration = Duration::from_secs(30);
/// and how long it is not asked then.
const GIVE_UP_FOR: Duration = Duration::from_secs(600);
/// How long memory may stay plugged that should not be, before the balloon takes other memory instead.
const PINNED_AFTER: Duration = Duration::from_secs(10);

/// The devices of a VM that is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hardware {
    settings: MemorySettings,
    devices: MemoryDevices,
}

/// What is said to QEMU. Amounts in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Orders {
    /// What the balloon is to leave of the start-up memory; with Hyper-V's device, of all memory.
    pub(crate) balloon: Option<u64>,
    /// How much memory is to be plugged in.
    pub(crate) plugged: Option<u64>,
}

/// What QEMU says. Amounts in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// What the VM was started with.
    pub(crate) startup: u64,
    /// What the balloon leaves of it; with Hyper-V's device, of all memory.
    pub(crate) left: u64,
    /// What is plugged in.
    pub(crate) plugged: u64,
    /// What was asked to be plugged in.
    pub(crate) requested: u64,
    /// Most that can be plugged in; 0 without the device.
    pub(crate) region: u64,
}

/// Turns a wanted amount into orders, and insists on them.
#[derive(Debug, Default)]
pub(crate) struct Mover {
    /// What was plugged in the last time, and since when it is that much.
    plugged: Option<(u64, Instant)>,
    balloon: Option<u64>,
    /// Since when the guest has plugged in nothing of what it was asked to.
    refusing: Option<Instant>,
    /// Until when it is not asked any more.
    given_up: Option<Instant>,
}

impl Hardware {
    /// The devices of a VM whose memory follows its guest's need.
    pub(crate) fn of(definition: &Definition) -> Option<Self> {
        let devices = definition.dynamic_memory?.devices;
        Some(Self { settings: definition.memory_settings()?, devices })
    }

    /// Whether the guest's memory is changed in Hyper-V's way.
    pub(crate) fn is_hyper_v(&self) -> bool {
        self.devices == MemoryDevices::HyperV
    }

    /// The value of `-m`.
    pub(crate) fn size(&self) -> String {
        let startup = self.settings.startup / MIB;
        match self.region() / MIB {
            0 => format!("{startup}M"),
            region => format!("size={startup}M,maxmem={}M", startup + region),
        }
    }

    /// The values of `-object` and `-device`, in order.
    pub(crate) fn devices(&self) -> Vec<(&'static str, String)> {
        let region = self.region() / MIB;
        let mut options = Vec::new();
        if region > 0 {
            // Nothing is set aside for it on the host: that there is enough is what the policy is for.
            let backend = format!("memory-backend-memfd,id=moreram,size={region}M,share=on,reserve=off");
            options.push(("-object", backend));
        }
        if self.is_hyper_v() {
            let memory = if region > 0 { ",memdev=moreram" } else { "" };
            options.push(("-device", "vmbus-bridge".into()));
            options.push(("-device", format!("hv-balloon,id={BALLOON},status-report=on{memory}")));
            return options;
        }
        options.push(("-device", format!("virtio-balloon-pci,id={BALLOON},deflate-on-oom=on,free-page-reporting=on")));
        if region > 0 {
            let device = format!("virtio-mem-pci,id={MORE},memdev=moreram,block-size={}M", BLOCK / MIB);
            options.push(("-device", format!("{device},requested-size=0")));
        }
        options
    }

    /// Room for all memory above the start-up memory, in whole blocks of the guest.
    fn region(&self) -> u64 {
        let block = if self.settings.startup >= LARGE_GUEST { LARGE_GUEST_BLOCK } else { GUEST_BLOCK };
        self.settings.maximum.saturating_sub(self.settings.startup).next_multiple_of(block)
    }
}

/// Why this host has no devices for a guest whose memory is changed in Hyper-V's way; an unknown version may have them.
pub(crate) fn hyper_v_obstacle(report: &AcceleratorReport, version: Option<Version>) -> Option<String> {
    if report.accelerator != Accelerator::Kvm {
        return Some(format!("memory with `devices = \"hyperv\"` needs KVM; {}", report.why));
    }
    let Version { major, minor } = version.filter(|version| *version < HYPER_V_SINCE)?;
    Some(format!("memory with `devices = \"hyperv\"` needs QEMU 8.2, and this is {major}.{minor}"))
}

impl Orders {
    /// Nothing to say.
    pub(crate) const NONE: Self = Self { balloon: None, plugged: None };
}

impl Amounts {
    /// What the guest has, in bytes.
    pub(crate) fn assigned(&self) -> u64 {
        self.left.saturating_add(self.plugged)
    }
}

impl Mover {
    /// What to tell QEMU so that the guest comes to have `level` bytes and never less than `least`.
    pub(crate) fn orders(
        &mut self,
        now: Instant,
        level: u64,
        least: u64,
        amounts: &Amounts,
        devices: MemoryDevices,
    ) -> Orders {
        if devices == MemoryDevices::HyperV {
            let balloon = whole_mib(level).max(least);
            return Orders { balloon: self.balloon_order(balloon, amounts.left), plugged: None };
        }
        let wanted = level.saturating_sub(amounts.startup).min(amounts.region) / BLOCK * BLOCK;
        let since = self.unchanged_since(now, amounts.plugged);
        self.note_refusal(now, amounts);
        // What a guest cannot unplug (its kernel uses it), it may be able to give elsewhere.
        let pinned = amounts.plugged.saturating_sub(wanted);
        let pinned = if now.saturating_duration_since(since) >= PINNED_AFTER { pinned } else { 0 };
        let balloon = whole_mib(level.min(amounts.startup).saturating_sub(pinned)).max(least.min(amounts.startup));
        Orders {
            balloon: self.balloon_order(balloon, amounts.left),
            plugged: plug_order(wanted, amounts, now.saturating_duration_since(since) >= STUCK_AFTER),
        }
    }

    /// Whether the guest takes memory beyond its start-up memory, as far as is known.
    pub(crate) fn grows(&self, now: Instant) -> bool {
        self.given_up.is_none_or(|until| now >= until)
    }

    fn note_refusal(&mut self, now: Instant, amounts: &Amounts) {
        if amounts.plugged > 0 {
            (self.refusing, self.given_up) = (None, None);
        } else if amounts.requested > 0 {
            let since = *self.refusing.get_or_insert(now);
            if now.saturating_duration_since(since) >= REFUSES_AFTER {
                (self.refusing, self.given_up) = (None, Some(now + GIVE_UP_FOR));
            }
        }
    }

    /// Ordered anew as long as it is not so: the guest may have taken memory out of the balloon, or QEMU been loaded from
    /// a saved state.
    fn balloon_order(&mut self, balloon: u64, left: u64) -> Option<u64> {
        let is_new = self.balloon.replace(balloon) != Some(balloon);
        (is_new || left != balloon).then_some(balloon)
    }

    fn unchanged_since(&mut self, now: Instant, plugged: u64) -> Instant {
        match self.plugged {
            Some((same, since)) if same == plugged => since,
            _ => self.plugged.insert((plugged, now)).1,
        }
    }
}

/// Linux tries a step that failed for want of memory again after a minute, or when it is asked for another amount: so it
/// is asked for a block less, and then for all again.
fn plug_order(wanted: u64, amounts: &Amounts, stuck: bool) -> Option<u64> {
    if amounts.region == 0 {
        return None;
    }
    if amounts.requested != wanted {
        return Some(wanted);
    }
    (stuck && amounts.plugged < wanted).then(|| wanted - BLOCK)
}

fn whole_mib(bytes: u64) -> u64 {
    bytes / MIB * MIB
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::definition::DynamicMemory;

    const LEAST: u64 = 128 * MIB;

    fn hardware(startup: u32, maximum: u32, devices: MemoryDevices) -> Hardware {
        let dynamic = DynamicMemory { devices, ..DynamicMemory::between(64, maximum) };
        let definition = Definition {
            memory: startup,
            dynamic_memory: Some(dynamic),
            ..Definition::new("demo", Uuid::from_u128(1))
        };
        Hardware::of(&definition).expect("dynamic")
    }

    fn amounts(left: u64, plugged: u64, requested: u64) -> Amounts {
        let (startup, region) = (512 * MIB, 1536 * MIB);
        Amounts { startup, left: left * MIB, plugged: plugged * MIB, requested: requested * MIB, region }
    }

    fn orders(mover: &mut Mover, now: Instant, level: u64, amounts: Amounts) -> (Option<u64>, Option<u64>) {
        let orders = mover.orders(now, level * MIB, LEAST, &amounts, MemoryDevices::Virtio);
        (orders.balloon.map(|bytes| bytes / MIB), orders.plugged.map(|bytes| bytes / MIB))
    }

    #[test]
    fn memory_above_the_start_is_a_device_of_whole_guest_blocks() {
        let some = hardware(512, 2000, MemoryDevices::Virtio);
        assert_eq!(some.size(), "size=512M,maxmem=2048M");
        let devices: Vec<String> = some.devices().into_iter().map(|(_, value)| value).collect();
        assert_eq!(devices[0], "memory-backend-memfd,id=moreram,size=1536M,share=on,reserve=off");
        assert!(devices[2].starts_with("virtio-mem-pci,id=more,memdev=moreram,"), "{devices:?}");
        let none = hardware(512, 512, MemoryDevices::Virtio);
        assert_eq!((none.size().as_str(), none.devices().len()), ("512M", 1));
        let large = hardware(64 * 1024, 65 * 1024, MemoryDevices::Virtio);
        assert_eq!(large.size(), "size=65536M,maxmem=67584M");
    }

    #[test]
    fn windows_has_one_device_for_both_ways() {
        let devices = hardware(512, 1024, MemoryDevices::HyperV).devices();
        assert_eq!(devices[1].1, "vmbus-bridge");
        assert_eq!(devices[2].1, "hv-balloon,id=balloon0,status-report=on,memdev=moreram");
        let mut mover = Mover::default();
        let amounts = Amounts { startup: 512 * MIB, left: 512 * MIB, plugged: 0, requested: 0, region: 0 };
        let orders = mover.orders(Instant::now(), 800 * MIB, LEAST, &amounts, MemoryDevices::HyperV);
        assert_eq!(orders, Orders { balloon: Some(800 * MIB), plugged: None });
    }

    #[test]
    fn a_host_without_the_devices_of_windows_says_why() {
        let report = |accelerator| AcceleratorReport { accelerator, why: "no /dev/kvm".into() };
        let version = |major, minor| Some(Version { major, minor });
        for fine in [None, version(8, 2), version(10, 0)] {
            assert_eq!(hyper_v_obstacle(&report(Accelerator::Kvm), fine), None);
            let why = hyper_v_obstacle(&report(Accelerator::Tcg), fine).expect("it cannot be");
            assert!(why.ends_with("needs KVM; no /dev/kvm"), "{why}");
        }
        let why = hyper_v_obstacle(&report(Accelerator::Kvm), version(7, 2)).expect("too old");
        assert!(why.ends_with("needs QEMU 8.2, and this is 7.2"), "{why}");
    }

    #[test]
    fn the_balloon_moves_below_the_start_and_virtio_mem_above() {
        let (mut mover, now) = (Mover::default(), Instant::now());
        assert_eq!(orders(&mut mover, now, 300, amounts(512, 0, 0)), (Some(300), None));
        assert_eq!(orders(&mut mover, now, 300, amounts(300, 0, 0)), (None, None), "it is so");
        assert_eq!(orders(&mut mover, now, 301, amounts(300, 0, 0)), (Some(301), None));
        assert_eq!(orders(&mut mover, now, 700, amounts(300, 0, 0)), (Some(512), Some(188)));
        assert_eq!(orders(&mut mover, now, 9000, amounts(512, 188, 188)), (None, Some(1536)), "no more than there is");
        assert_eq!(orders(&mut mover, now, 20, amounts(512, 0, 0)), (Some(128), None), "never less than the least");
    }

    #[test]
    fn what_the_guest_took_by_itself_is_ordered_back() {
        let (mut mover, now) = (Mover::default(), Instant::now());
        orders(&mut mover, now, 300, amounts(512, 0, 0));
        assert_eq!(orders(&mut mover, now, 300, amounts(340, 0, 0)), (Some(300), None));
    }

    #[test]
    fn a_guest_that_hesitates_is_asked_again() {
        let (mut mover, now) = (Mover::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(orders(&mut mover, now, 768, amounts(512, 0, 0)).1, Some(256));
        assert_eq!(orders(&mut mover, after(1), 768, amounts(512, 0, 256)).1, None);
        assert_eq!(orders(&mut mover, after(4), 768, amounts(512, 0, 256)).1, Some(254));
        assert_eq!(orders(&mut mover, after(5), 768, amounts(512, 0, 254)).1, Some(256));
        assert_eq!(orders(&mut mover, after(6), 768, amounts(512, 256, 256)).1, None);
    }

    #[test]
    fn a_guest_without_a_driver_is_not_asked_for_ever() {
        let (mut mover, now) = (Mover::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        for second in 0..=30 {
            assert!(mover.grows(after(second)));
            orders(&mut mover, after(second), 768, amounts(512, 0, 256));
        }
        assert!(!mover.grows(after(31)) && !mover.grows(after(600)) && mover.grows(after(640)));
        orders(&mut mover, after(700), 768, amounts(512, 128, 256));
        assert!(mover.grows(after(700)));
    }

    #[test]
    fn memory_that_cannot_be_unplugged_is_taken_elsewhere() {
        let (mut mover, now) = (Mover::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(orders(&mut mover, now, 500, amounts(512, 256, 256)), (Some(500), Some(0)));
        assert_eq!(orders(&mut mover, after(1), 500, amounts(500, 100, 0)), (None, None));
        assert_eq!(orders(&mut mover, after(12), 500, amounts(500, 100, 0)), (Some(400), None));
        assert_eq!(orders(&mut mover, after(13), 500, amounts(400, 0, 0)), (Some(500), None), "it came back after all");
    }
}
