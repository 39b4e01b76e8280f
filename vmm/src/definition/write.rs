//! A definition back to text.

use std::path::Path;

use serde::Serialize;

use super::cpu::CpuFile;
use super::firmware::{FirmwareWord, TpmTable};
use super::memory::MemoryFile;
use super::network::NetworkFile;
use super::{
    Accelerator, Boot, Controllers, Definition, Disk, DiskBus, DiskCache, DiskFormat, DiskSource, IdeModel, Provider,
    ScsiModel,
};

impl Definition {
    /// The text of its file; [`parse`](Self::parse) reads the same value from it.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let firmware = BootTable {
            firmware: Some(FirmwareWord::of(self.firmware)),
            secure_boot: self.firmware.secure_boot().then_some(true),
            ..BootTable::default()
        };
        let boot = match &self.boot {
            Boot::Firmware => firmware,
            Boot::DirectKernel { kernel, initrd, cmdline } => BootTable {
                kernel: kernel.to_str(),
                initrd: initrd.as_deref().and_then(Path::to_str),
                cmdline: (!cmdline.is_empty()).then_some(cmdline),
                ..if self.firmware.is_uefi() { firmware } else { BootTable::default() }
            },
        };
        let file = FileTable {
            name: &self.name,
            uuid: self.uuid.to_string(),
            memory: self.dynamic_memory.is_none().then_some(self.memory),
            vcpus: self.vcpus,
            accelerator: self.accelerator,
            monitors: self.monitors,
            dynamic_memory: MemoryFile::of(self),
            network: Some(NetworkFile::of(&self.network)).filter(|network| !network.is_table()),
            network_table: Some(NetworkFile::of(&self.network)).filter(NetworkFile::is_table),
            bus: BusTable { enabled: self.bus.enabled, memory: self.bus.memory },
            session: SessionTable { input: self.session.input },
            checkpoints: self
                .checkpoints
                .map(|schedule| CheckpointsTable { every: schedule.every, keep: schedule.keep }),
            cpu: CpuFile::of(&self.cpu),
            tpm: self.tpm.map(|tpm| TpmTable { model: tpm.model }),
            boot,
            controllers: (self.controllers != Controllers::default()).then(|| ControllersTable::of(&self.controllers)),
            disks: self.disks.iter().map(DiskTable::of).collect(),
        };
        // Only maps with keys that are not strings cannot be written, and there are none.
        toml::to_string(&file).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct FileTable<'a> {
    name: &'a str,
    uuid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u32>,
    vcpus: u8,
    accelerator: Accelerator,
    monitors: u8,
    /// The same key; a table stands after all values.
    #[serde(rename = "memory", skip_serializing_if = "Option::is_none")]
    dynamic_memory: Option<MemoryFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkFile<'a>>,
    /// The same key; a table stands after all values.
    #[serde(rename = "network", skip_serializing_if = "Option::is_none")]
    network_table: Option<NetworkFile<'a>>,
    bus: BusTable,
    session: SessionTable,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoints: Option<CheckpointsTable>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuFile<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tpm: Option<TpmTable>,
    boot: BootTable<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    controllers: Option<ControllersTable<'a>>,
    #[serde(rename = "disk", skip_serializing_if = "Vec::is_empty")]
    disks: Vec<DiskTable<'a>>,
}

#[derive(Serialize)]
struct BusTable {
    enabled: bool,
    memory: u32,
}

#[derive(Serialize)]
struct SessionTable {
    input: Provider,
}

#[derive(Serialize)]
struct CheckpointsTable {
    every: u32,
    keep: u16,
}

#[derive(Serialize, Default)]
struct BootTable<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    firmware: Option<FirmwareWord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secure_boot: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initrd: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmdline: Option<&'a String>,
}

#[derive(Serialize)]
struct ControllersTable<'a> {
    ide: &'a [IdeModel],
    scsi: &'a [ScsiModel],
}

#[derive(Serialize)]
struct DiskTable<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    format: DiskFormat,
    bus: DiskBus,
    #[serde(skip_serializing_if = "is_first")]
    controller: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<&'a str>,
    #[serde(skip_serializing_if = "is_usual")]
    cache: DiskCache,
    readonly: bool,
    cdrom: bool,
}

impl<'a> ControllersTable<'a> {
    fn of(controllers: &'a Controllers) -> Self {
        Self { ide: &controllers.ide, scsi: &controllers.scsi }
    }
}

impl<'a> DiskTable<'a> {
    fn of(disk: &'a Disk) -> Self {
        let url = if let DiskSource::Remote(remote) = &disk.source { Some(remote.to_string()) } else { None };
        Self {
            id: &disk.id,
            path: disk.source.path(),
            url,
            format: disk.format,
            bus: disk.bus,
            controller: disk.controller,
            unit: disk.unit,
            serial: disk.serial.as_deref(),
            cache: disk.cache,
            readonly: disk.readonly,
            cdrom: disk.cdrom,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_first(controller: &u8) -> bool {
    *controller == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_usual(cache: &DiskCache) -> bool {
    *cache == DiskCache::default()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;
    use std::path::PathBuf;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::definition::source::tests::remote;
    use crate::definition::{
        Bus, CheckpointSchedule, Cpu, DynamicMemory, Firmware, Forward, ForwardProtocol, MemoryDevices, Network,
        NetworkCard, NetworkMode, Session, Topology, Tpm, TpmModel,
    };

    fn path() -> impl Strategy<Value = PathBuf> {
        "/[a-zA-Z0-9 ,=\"'\\\\é/._-]{1,40}".prop_map(PathBuf::from)
    }

    fn boot() -> impl Strategy<Value = Boot> {
        let kernel = (path(), proptest::option::of(path()), "[ -~]{0,60}")
            .prop_map(|(kernel, initrd, cmdline)| Boot::DirectKernel { kernel, initrd, cmdline });
        prop_oneof![Just(Boot::Firmware), kernel]
    }

    fn source() -> impl Strategy<Value = DiskSource> {
        prop_oneof![
            4 => path().prop_map(DiskSource::Path),
            1 => remote().prop_map(DiskSource::Remote),
            1 => Just(DiskSource::Empty),
        ]
    }

    fn disk() -> impl Strategy<Value = Disk> {
        let formats = prop_oneof![
            Just(DiskFormat::Raw),
            Just(DiskFormat::Qcow2),
            Just(DiskFormat::Vhd),
            Just(DiskFormat::Vhdx),
            Just(DiskFormat::Vmdk)
        ];
        let buses = prop_oneof![Just(DiskBus::Ide), Just(DiskBus::Scsi), Just(DiskBus::Virtio)];
        let id = prop_oneof![3 => Just(String::new()), 1 => "[a-z][a-z0-9-]{0,16}"];
        let place = (0_u8..3, proptest::option::weighted(0.2, 0_u8..9));
        let caches = prop_oneof![Just(DiskCache::Writeback), Just(DiskCache::None)];
        let kinds = (any::<bool>(), any::<bool>(), caches, proptest::option::of("[A-Za-z0-9._ -]{1,21}"));
        (id, source(), formats, buses, place, kinds).prop_map(
            |(id, source, format, bus, (controller, unit), (readonly, cdrom, cache, serial))| Disk {
                id,
                source,
                format,
                bus,
                controller,
                unit,
                serial,
                cache,
                readonly,
                cdrom,
            },
        )
    }

    fn controllers() -> impl Strategy<Value = Controllers> {
        let ide = proptest::collection::vec(prop_oneof![Just(IdeModel::Ahci), Just(IdeModel::Piix)], 0..4);
        let scsi = proptest::collection::vec(prop_oneof![Just(ScsiModel::Virtio), Just(ScsiModel::Lsi)], 0..6);
        (ide, scsi).prop_map(|(ide, scsi)| Controllers { ide, scsi })
    }

    fn bus() -> impl Strategy<Value = (Bus, Session)> {
        let memory = prop_oneof![Just(0), (0_u32..12).prop_map(|power| 1 << power), 0_u32..3000];
        let input = prop_oneof![Just(Provider::Auto), Just(Provider::Hardware), Just(Provider::Bus)];
        (any::<bool>(), memory, input).prop_map(|(enabled, memory, input)| (Bus { enabled, memory }, Session { input }))
    }

    fn memory() -> impl Strategy<Value = (u32, Option<DynamicMemory>)> {
        let devices = prop_oneof![Just(MemoryDevices::Virtio), Just(MemoryDevices::HyperV)];
        let table = (8_u32..3000, 200_u32..8000, 0_u16..2100, 0_u16..10_100, devices);
        (16_u32..5000, proptest::option::of(table)).prop_map(|(memory, table)| {
            let dynamic = table.map(|(minimum, maximum, buffer, weight, devices)| DynamicMemory {
                minimum,
                maximum,
                buffer,
                weight,
                devices,
            });
            (memory, dynamic)
        })
    }

    fn checkpoints() -> impl Strategy<Value = Option<CheckpointSchedule>> {
        let schedule = (0_u32..20_000, 0_u16..120).prop_map(|(every, keep)| CheckpointSchedule { every, keep });
        proptest::option::of(schedule)
    }

    fn network() -> impl Strategy<Value = Network> {
        let name = || "[a-z][a-z0-9.-]{0,14}".prop_map(|name| name.parse().expect("a name"));
        let mode = prop_oneof![
            Just(NetworkMode::None),
            Just(NetworkMode::User),
            name().prop_map(NetworkMode::Bridge),
            name().prop_map(NetworkMode::Tap)
        ];
        let forward = (any::<bool>(), any::<u32>(), 1_u16.., proptest::option::of(any::<u32>()), 1_u16..).prop_map(
            |(tcp, host, port, guest, guest_port)| Forward {
                protocol: if tcp { ForwardProtocol::Tcp } else { ForwardProtocol::Udp },
                host: SocketAddrV4::new(host.into(), port),
                guest: guest.map(Into::into),
                guest_port,
            },
        );
        let card = prop_oneof![Just(NetworkCard::Virtio), Just(NetworkCard::E1000), Just(NetworkCard::Rtl8139)];
        (mode, proptest::collection::vec(forward, 0..3), card).prop_map(|(mode, forward, card)| Network {
            mode,
            forward,
            card,
        })
    }

    fn hardware() -> impl Strategy<Value = (Cpu, Firmware, Option<Tpm>)> {
        let topology = (0_u8..4, 0_u8..9, 0_u8..3);
        let topology = topology.prop_map(|(sockets, cores, threads)| Topology { sockets, cores, threads });
        let cpu = (proptest::option::of(topology), proptest::option::of("[a-z0-9,+-]{0,12}"))
            .prop_map(|(topology, model)| Cpu { topology, model });
        let firmware =
            prop_oneof![Just(Firmware::Bios), any::<bool>().prop_map(|secure_boot| Firmware::Uefi { secure_boot })];
        let tpm = prop_oneof![Just(TpmModel::Crb), Just(TpmModel::Tis)].prop_map(|model| Tpm { model });
        (cpu, firmware, proptest::option::of(tpm))
    }

    fn definition() -> impl Strategy<Value = Definition> {
        let numbers = (memory(), 0_u8..40, 0_u8..20, network());
        let disks = (controllers(), proptest::collection::vec(disk(), 0..5));
        ("[a-zA-Z0-9 ._-]{1,20}", any::<u128>(), numbers, bus(), hardware(), (boot(), checkpoints()), disks).prop_map(
            |(
                name,
                uuid,
                ((memory, dynamic_memory), vcpus, monitors, network),
                (bus, session),
                (cpu, firmware, tpm),
                (boot, checkpoints),
                (controllers, disks),
            )| {
                let mut definition = Definition {
                    memory,
                    dynamic_memory,
                    vcpus,
                    monitors,
                    network,
                    bus,
                    session,
                    checkpoints,
                    cpu,
                    firmware,
                    tpm,
                    boot,
                    controllers,
                    disks,
                    ..Definition::new(name, Uuid::from_u128(uuid))
                };
                definition.settle();
                definition
            },
        )
    }

    proptest! {
        #[test]
        fn a_valid_definition_is_read_as_it_was_written_and_an_invalid_one_refused(definition in definition()) {
            let read = Definition::parse(&definition.to_toml(), Path::new("x.toml"));
            match definition.validate() {
                Ok(()) => prop_assert_eq!(read, Ok(definition)),
                // A CD is read-only without saying so.
                Err(_) if definition.disks.iter().any(|disk| disk.cdrom && !disk.readonly) => {}
                Err(error) => prop_assert_eq!(read.map_err(|read| read.reason), Err(error.to_string())),
            }
        }

        #[test]
        fn any_text_is_read_or_refused_at_a_place_that_exists(text in "[ -~\n\té]{0,200}") {
            if let Err(error) = Definition::parse(&text, Path::new("x.toml")) {
                prop_assert!(error.line >= 1 && error.line <= text.matches('\n').count() + 1);
                prop_assert!(error.column >= 1 && error.column <= text.chars().count() + 1);
            }
        }
    }
}
