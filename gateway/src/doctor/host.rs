//! The machine itself.

use std::fs::{self, OpenOptions};

use vmm::Host;

use super::{Check, Level};

/// Less free memory than this and a second VM does not start.
const LITTLE_MEMORY_KIB: u64 = 512 * 1024;
/// What a host of several VMs should have: Windows' Hyper-V asks for as much.
const USUAL_MEMORY_KIB: u64 = 4 * 1024 * 1024;
/// A machine of 4 GiB tells the kernel of a little less.
const MEMORY_TOLERANCE: u64 = 8;

/// How the kernel promises memory (`Documentation/mm/overcommit-accounting`).
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";

/// Looks at processor, hardware virtualisation and memory.
pub(super) async fn look(host: &Host) -> Vec<Check> {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = Processor::parse(&processors);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    vec![
        processor.bits(),
        processor.virtualisation(),
        processor.address_translation(),
        kvm_device(),
        accelerator(host).await,
        self::memory(&memory),
        overcommit(&fs::read_to_string(OVERCOMMIT).unwrap_or_default(), &memory),
    ]
}

/// What `/proc/cpuinfo` says of the first processor.
#[derive(Debug, Default)]
struct Processor {
    model: String,
    flags: Vec<String>,
}

impl Processor {
    fn parse(text: &str) -> Self {
        let first = text.split("\n\n").next().unwrap_or_default();
        let mut processor = Self::default();
        for (name, value) in first.lines().filter_map(|line| line.split_once(':')) {
            match name.trim() {
                "model name" => value.trim().clone_into(&mut processor.model),
                // Newer kernels list what is Intel's virtualisation's apart.
                "flags" | "vmx flags" => processor.flags.extend(value.split_whitespace().map(str::to_owned)),
                _ => {}
            }
        }
        processor
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|other| other == flag)
    }

    fn bits(&self) -> Check {
        if self.has("lm") {
            return Check::new("processor", Level::Good, self.model.as_str(), "64 bit: runs 32- and 64-bit guests");
        }
        let found = format!("{} {}", std::env::consts::ARCH, self.model);
        Check::new("processor", Level::Poor, found.trim(), "not an x86 of 64 bit: guests are translated")
            .mend("take a host with a 64-bit processor of Intel or AMD")
    }

    fn virtualisation(&self) -> Check {
        const NAME: &str = "virtualisation";
        match (self.has("vmx"), self.has("svm"), self.has("hypervisor")) {
            (true, ..) => Check::new(NAME, Level::Good, "VT-x", "the processor can run guests"),
            (_, true, _) => Check::new(NAME, Level::Good, "AMD-V", "the processor can run guests"),
            (.., true) => Check::new(NAME, Level::Poor, "none in this VM", "guests are translated")
                .mend("let the host of this machine pass its virtualisation on (nested virtualisation)"),
            _ => Check::new(NAME, Level::Poor, "none", "guests are translated")
                .mend("switch VT-x or AMD-V (SVM) on in the firmware, if the processor has it"),
        }
    }

    fn address_translation(&self) -> Check {
        const NAME: &str = "address translation";
        match (self.has("ept"), self.has("npt")) {
            (true, _) => Check::new(NAME, Level::Good, "EPT", "second-level: guests' memory costs no exits"),
            (_, true) => Check::new(NAME, Level::Good, "NPT", "second-level: guests' memory costs no exits"),
            _ => Check::new(
                NAME,
                Level::Poor,
                "no second level",
                "guests whose programs come and go are slow, if KVM runs them",
            )
            .mend("take a processor with EPT (Intel, since 2008) or RVI (AMD), or let the host pass it on"),
        }
    }
}

fn kvm_device() -> Check {
    const FILE: &str = "/dev/kvm";
    match OpenOptions::new().read(true).write(true).open(FILE) {
        Ok(_) => Check::new("kvm device", Level::Good, FILE, "can be opened"),
        Err(error) => {
            let mend = if error.kind() == std::io::ErrorKind::PermissionDenied {
                "put the gateway's user into the group kvm: usermod -aG kvm USER"
            } else {
                "modprobe kvm_intel, or kvm_amd"
            };
            Check::new("kvm device", Level::Poor, format!("{FILE}: {error}"), "guests are translated").mend(mend)
        }
    }
}

async fn accelerator(host: &Host) -> Check {
    let report = host.probe_accelerator().await;
    let kvm = report.accelerator == vmm::Accelerator::Kvm;
    let level = if kvm { Level::Good } else { Level::Poor };
    let meaning = if kvm {
        "VMs run at the speed of the hardware"
    } else {
        "VMs run, with their processors translated in software: about ten times slower"
    };
    let check = Check::new("accelerator", level, format!("{}: {}", report.accelerator, report.why), meaning);
    if kvm {
        check
    } else {
        check.mend("see what is said above of virtualisation, address translation and the kvm device")
    }
}

fn memory(text: &str) -> Check {
    let (Some(total), Some(available)) = (kib(text, "MemTotal"), kib(text, "MemAvailable")) else {
        return Check::new("memory", Level::Poor, "unknown", "/proc/meminfo cannot be read");
    };
    let found = format!("{} MiB, {} MiB available", total >> 10, available >> 10);
    if available < LITTLE_MEMORY_KIB {
        return Check::new("memory", Level::Poor, found, "little room for VMs").mend("stop a VM or another program");
    }
    if total + total / MEMORY_TOLERANCE < USUAL_MEMORY_KIB {
        return Check::new("memory", Level::Poor, found, "room for a small VM; for several, 4 GiB are usual");
    }
    Check::new("memory", Level::Good, found, "room for VMs")
}

/// Judges what [`OVERCOMMIT`] and `/proc/meminfo` say. Guests' memory is shared memory that is counted when it is touched:
/// where no more is promised than there is, a guest meets the limit long after it was started.
fn overcommit(mode: &str, memory: &str) -> Check {
    const NAME: &str = "over-commit";
    let mode = mode.trim();
    if mode != "2" {
        let found = if mode.is_empty() { "unknown".to_owned() } else { format!("vm.overcommit_memory = {mode}") };
        return Check::new(NAME, Level::Good, found, "guests may have what they touch of their memory");
    }
    let mib = |name| kib(memory, name).map_or_else(|| "?".to_owned(), |kib| (kib >> 10).to_string());
    let found = format!("vm.overcommit_memory = 2, {} of {} MiB promised", mib("Committed_AS"), mib("CommitLimit"));
    let meaning = "VMs do not start beyond that limit, and one whose guest touches more memory is ended";
    Check::new(NAME, Level::Poor, found, meaning)
        .mend("sysctl vm.overcommit_memory=0, or raise vm.overcommit_ratio; a file in /etc/sysctl.d keeps it")
}

/// A line of `/proc/meminfo`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_judged_by_their_flags() {
        let intel =
            Processor::parse("model name\t: Xeon\nflags\t\t: fpu lm vmx\nvmx flags\t: vnmi ept\n\nflags\t: none\n");
        let levels = |processor: &Processor| {
            [processor.bits().level, processor.virtualisation().level, processor.address_translation().level]
        };
        assert_eq!(levels(&intel), [Level::Good; 3]);
        assert_eq!(intel.bits().found, "Xeon");
        assert_eq!(levels(&Processor::parse("flags : lm svm npt")), [Level::Good; 3]);
        let nested = Processor::parse("flags : lm hypervisor");
        assert_eq!(levels(&nested), [Level::Good, Level::Poor, Level::Poor]);
        assert!(nested.virtualisation().mend.unwrap().contains("nested"));
        assert_eq!(levels(&Processor::parse("")), [Level::Poor; 3], "a processor of another kind stops nothing");
    }

    #[test]
    fn memory_is_judged_by_what_there_is_and_what_is_left() {
        let judge = |total: u64, available: u64| {
            memory(&format!("MemTotal: {} kB\nMemFree: 1 kB\nMemAvailable: {} kB\n", total << 10, available << 10))
                .level
        };
        assert_eq!(judge(16_000, 8_000), Level::Good);
        assert_eq!(judge(3_900, 3_000), Level::Good, "a machine of 4 GiB");
        assert_eq!(judge(2_000, 1_500), Level::Poor);
        assert_eq!(judge(16_000, 100), Level::Poor);
        assert_eq!(memory("").level, Level::Poor);
    }

    #[test]
    fn a_host_that_promises_no_more_than_it_has_is_told_of_its_limit() {
        let memory = "CommitLimit:     4096000 kB\nCommitted_AS:    2048000 kB\nCommitLimitX: 1 kB\n";
        let strict = overcommit("2\n", memory);
        let found = "vm.overcommit_memory = 2, 2000 of 4000 MiB promised";
        assert_eq!((strict.level, strict.found.as_str()), (Level::Poor, found));
        assert!(strict.mend.unwrap().contains("sysctl vm.overcommit_memory=0"));
        assert_eq!(overcommit("2", "").level, Level::Poor, "whatever the numbers");
        for usual in ["0\n", "1\n", ""] {
            assert_eq!(overcommit(usual, memory).level, Level::Good, "{usual:?}");
        }
    }
}
