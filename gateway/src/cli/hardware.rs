//! The words of virt-install for what a VM is made of.

use clap::Args;
use vmm::{Boot, Cpu, Definition, Firmware, Network, NetworkMode, Topology, Tpm, TpmModel};

use super::disk_option::word;

const VCPUS_HELP: &str = "\
Virtual processors, 1 unless said otherwise: NUMBER[,sockets=N][,cores=N][,threads=N]. What is not said is filled in.";
const BOOT_HELP: &str = "\
The firmware, and what it tries first: bios, uefi or uefi,secure-boot; hd,cdrom or cdrom,hd.";
const NETWORK_HELP: &str = "\
The network card, and what it is connected to: user[,forward=tcp:127.0.0.1:2222-:22], bridge=NAME, tap=NAME or none, and
model=virtio, e1000 or rtl8139. Without an address a forwarded port is open on loopback only.";
const TPM_HELP: &str = "\
A TPM 2.0: default, crb, tis, none, or as virt-install writes it: model=tpm-crb,type=emulator,version=2.0.";

/// Processors, firmware, TPM.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub(super) struct Hardware {
    /// Virtual processors, 1 unless said otherwise
    #[arg(long, value_name = "NUMBER[,…]", value_parser = parse_vcpus, long_help = VCPUS_HELP)]
    pub(super) vcpus: Option<Vcpus>,
    /// QEMU's name of the processor model, for systems that need one; `default` for the usual one
    #[arg(long, value_name = "MODEL")]
    pub(super) cpu: Option<String>,
    /// The firmware, and what it tries first
    #[arg(long, value_name = "uefi|bios[,…]", value_parser = parse_boot, long_help = BOOT_HELP)]
    pub(super) boot: Option<BootOption>,
    /// The network card, and what it is connected to: user unless said otherwise
    #[arg(long, value_name = "user|bridge=NAME|…", value_parser = parse_network, long_help = NETWORK_HELP)]
    pub(super) network: Option<Network>,
    /// A TPM 2.0
    #[arg(long, value_name = "default|…", value_parser = parse_tpm, long_help = TPM_HELP)]
    pub(super) tpm: Option<TpmOption>,
}

/// A `--vcpus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vcpus {
    number: u8,
    topology: Option<Topology>,
}

/// A `--boot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct BootOption {
    firmware: Option<Firmware>,
    first: Option<First>,
}

/// Which of the drives come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Disks,
    Cds,
}

/// A `--tpm`; none: the VM has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TpmOption(Option<Tpm>);

impl Hardware {
    /// Makes `definition` what was asked for.
    pub(super) fn apply(&self, definition: &mut Definition) {
        if let Some(Vcpus { number, topology }) = self.vcpus {
            definition.vcpus = number;
            definition.cpu.topology = topology;
        }
        if let Some(model) = &self.cpu {
            let model = (model != "default").then(|| model.clone());
            definition.cpu = Cpu { model, ..definition.cpu };
        }
        if let Some(boot) = self.boot {
            boot.apply(definition);
        }
        if let Some(network) = &self.network {
            definition.network = network.clone();
        }
        if let Some(TpmOption(tpm)) = self.tpm {
            definition.tpm = tpm;
        }
    }
}

impl BootOption {
    fn apply(self, definition: &mut Definition) {
        if let Some(firmware) = self.firmware {
            definition.firmware = firmware;
        }
        match self.first {
            None => {}
            // The order of the definition is the order of the firmware; within a kind it stays.
            Some(First::Disks) => definition.disks.sort_by_key(|disk| disk.cdrom),
            Some(First::Cds) => definition.disks.sort_by_key(|disk| !disk.cdrom),
        }
        if self.first.is_some() {
            definition.boot = Boot::Firmware;
        }
    }
}

/// Reads `4`, `vcpus=4,sockets=1,cores=4`.
fn parse_vcpus(text: &str) -> Result<Vcpus, String> {
    let (mut number, mut sockets, mut cores, mut threads) = (None, None, None, None);
    for part in text.split(',') {
        let value = |text: &str| text.parse::<u8>().map(Some).map_err(|_| format!("`{text}` is not 1 to 32"));
        match part.split_once('=') {
            None | Some(("vcpus", _)) => number = value(part.trim_start_matches("vcpus="))?,
            Some(("sockets", count)) => sockets = value(count)?,
            Some(("cores", count)) => cores = value(count)?,
            Some(("threads", count)) => threads = value(count)?,
            Some(_) => return Err(format!("`{part}` is not one of sockets=, cores=, threads=")),
        }
    }
    let product = || {
        let of = |count: Option<u8>| count.unwrap_or(1);
        of(sockets).checked_mul(of(cores))?.checked_mul(of(threads))
    };
    let number = number.or_else(product).ok_or("more than 32 processors")?;
    let said = sockets.or(cores).or(threads).is_some();
    let topology = said.then(|| Topology::complete(number, sockets, cores, threads)).transpose()?;
    Ok(Vcpus { number, topology })
}

/// Reads `uefi`, `uefi,secure-boot`, `bios`, `hd,cdrom`.
fn parse_boot(text: &str) -> Result<BootOption, String> {
    let mut option = BootOption::default();
    for part in text.split(',') {
        match (part, option.firmware) {
            ("uefi", _) => option.firmware = Some(Firmware::Uefi { secure_boot: false }),
            ("bios", _) => option.firmware = Some(Firmware::Bios),
            ("secure-boot" | "secure_boot", Some(Firmware::Uefi { .. })) => {
                option.firmware = Some(Firmware::Uefi { secure_boot: true });
            }
            ("secure-boot" | "secure_boot", _) => return Err("secure-boot goes behind uefi".into()),
            ("hd", _) => option.first = option.first.or(Some(First::Disks)),
            ("cdrom", _) => option.first = option.first.or(Some(First::Cds)),
            _ => return Err(format!("`{part}` is not one of uefi, secure-boot, bios, hd, cdrom")),
        }
    }
    Ok(option)
}

/// Reads `user`, `user,forward=tcp::2222-:22,model=e1000`, `bridge=br0`, `tap=tap0`, `none`.
fn parse_network(text: &str) -> Result<Network, String> {
    let told = |error: vmm::InvalidNetwork| error.to_string();
    let mut network = Network::default();
    for part in text.split(',') {
        match part.split_once('=') {
            None if part == "user" || part == "default" => network.mode = NetworkMode::User,
            None if part == "none" => network.mode = NetworkMode::None,
            Some(("network", "default")) => network.mode = NetworkMode::User,
            Some(("bridge", name)) => network.mode = NetworkMode::Bridge(name.parse().map_err(told)?),
            Some(("tap", name)) => network.mode = NetworkMode::Tap(name.parse().map_err(told)?),
            Some(("forward", port)) => network.forward.push(port.parse().map_err(told)?),
            Some(("model", card)) => network.card = word(card)?,
            _ => return Err(format!("`{part}` is not one of user, none, bridge=, tap=, forward=, model=")),
        }
    }
    Ok(network)
}

/// Reads `default`, `none`, `tis`, `model=tpm-crb,type=emulator,version=2.0`.
fn parse_tpm(text: &str) -> Result<TpmOption, String> {
    let mut tpm = Tpm::default();
    for part in text.split(',') {
        match part {
            "none" => return Ok(TpmOption(None)),
            "default" | "emulator" | "type=emulator" | "backend.type=emulator" => {}
            "version=2.0" | "backend.version=2.0" => {}
            "crb" | "model=tpm-crb" => tpm.model = TpmModel::Crb,
            "tis" | "model=tpm-tis" => tpm.model = TpmModel::Tis,
            _ => {
                return Err(format!(
                    "`{part}` is not one of default, none, crb, tis, model=, type=emulator, version=2.0"
                ));
            }
        }
    }
    Ok(TpmOption(Some(tpm)))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use vmm::{Disk, DiskBus, DiskFormat, DiskSource, NetworkCard};

    use super::*;

    #[test]
    fn processors_are_read_as_virt_install_writes_them() {
        let topology = |sockets, cores, threads| Some(Topology { sockets, cores, threads });
        for (text, number, expected) in [
            ("4", 4, None),
            ("vcpus=4", 4, None),
            ("4,sockets=1,cores=4", 4, topology(1, 4, 1)),
            ("8,sockets=2,threads=2", 8, topology(2, 2, 2)),
            ("sockets=2,cores=4", 8, topology(2, 4, 1)),
        ] {
            assert_eq!(parse_vcpus(text), Ok(Vcpus { number, topology: expected }), "{text}");
        }
        for text in ["", "x", "4,sockets=3", "4,dies=2", "300", "sockets=200,cores=200"] {
            assert!(parse_vcpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn firmware_and_boot_order_are_read_and_applied() {
        let path = |name: &str| std::path::PathBuf::from(format!("/{name}"));
        let mut definition = Definition::new("demo", Uuid::nil());
        let disk = |name, cdrom| match cdrom {
            true => Disk::cdrom(DiskSource::Path(path(name)), DiskBus::Ide),
            false => Disk::new(path(name), DiskFormat::Raw, DiskBus::Ide),
        };
        definition.disks = vec![disk("a", false), disk("b", true), disk("c", false)];
        parse_boot("uefi,secure-boot,cdrom,hd").expect("read").apply(&mut definition);
        assert_eq!(definition.firmware, Firmware::Uefi { secure_boot: true });
        let order: Vec<_> = definition.disks.iter().filter_map(|disk| disk.source.path()).collect();
        assert_eq!(order, [&path("b"), &path("a"), &path("c")]);
        parse_boot("hd").expect("read").apply(&mut definition);
        assert!(definition.disks[2].cdrom && definition.firmware.is_uefi());
        for text in ["", "secure-boot", "bios,secure-boot", "network", "uefi,"] {
            assert!(parse_boot(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_are_read_as_virt_install_writes_them() {
        assert_eq!(parse_network("user"), Ok(Network::default()));
        assert_eq!(parse_network("none"), Ok(Network::none()));
        let bridge = parse_network("bridge=br0,model=e1000").expect("read");
        assert_eq!((bridge.mode, bridge.card), (NetworkMode::Bridge("br0".parse().unwrap()), NetworkCard::E1000));
        let user = parse_network("user,forward=tcp::2222-:22,forward=udp::53-:53").expect("read");
        assert_eq!(user.forward.len(), 2);
        for text in ["", "bridge=", "nat", "user,forward=22", "model=ne2k"] {
            assert!(parse_network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn tpms_are_read_as_virt_install_writes_them() {
        let tis = Tpm { model: TpmModel::Tis };
        assert_eq!(parse_tpm("default"), Ok(TpmOption(Some(Tpm::default()))));
        assert_eq!(parse_tpm("none"), Ok(TpmOption(None)));
        assert_eq!(parse_tpm("backend.type=emulator,backend.version=2.0,model=tpm-tis"), Ok(TpmOption(Some(tis))));
        assert!(parse_tpm("version=1.2").is_err() && parse_tpm("passthrough").is_err());
    }
}
