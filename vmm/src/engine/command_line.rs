//! What QEMU is told, as a value.

use std::num::NonZero;

use serde_json::json;

use super::Version;
use super::disk::{controller_devices, device, node_name, tls_object};
use super::firmware::Flash;
use super::network::network_options;
use super::process::{BUS_MEMORY_FD, BUS_PORT_FD};
use super::tpm::TPM_SOCKET;
use crate::definition::{Accelerator, Boot, Bus, Controllers, Definition, Disk, DiskSource, Topology, Tpm, TpmModel};
use crate::memory::{BALLOON, Hardware};

/// The name QMP knows the primary display device by.
pub(crate) const DISPLAY_DEVICE: &str = "gpu0";
/// And the keyboard.
pub(crate) const KEYBOARD_DEVICE: &str = "keyboard0";
/// And the tablet.
pub(crate) const TABLET_DEVICE: &str = "tablet0";
/// And the guest's port of the bus.
pub(crate) const BUS_PORT: &str = "busport0";
/// And what that port is connected to.
pub(crate) const BUS_CHARDEV: &str = "bus0";

/// What Windows, and QEMU's VMBus, want of the processor.
const HYPER_V: &str = ",hv-relaxed,hv-vapic,hv-spinlocks=0x1fff,hv-vpindex,hv-runtime,hv-time,hv-synic,hv-stimer";

/// So many emulated processors get along on one of the host.
const CROWD: usize = 4;

/// Where the guest finds the memory of the bus. Far from the devices that QEMU places itself, from 1 on, and from those of
/// the chipset.
const BUS_MEMORY_DEVICE: u16 = 0x1e;
/// The same, as bus << 8 | device << 3 | function.
pub(crate) const BUS_MEMORY_PCI_SLOT: u16 = BUS_MEMORY_DEVICE << 3;

/// The variable that [`Launch::allocator`] gives QEMU.
pub(super) const ALLOCATOR: &str = "MALLOC_MMAP_THRESHOLD_";
/// So many monitors have their saved state in order with any QEMU.
pub(crate) const MONITORS_IN_ORDER: u8 = 3;

/// What a start adds to the definition.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// How the processors are run; never [`Accelerator::Auto`].
    pub(crate) accelerator: Accelerator,
    /// Which of the disks are block devices of the host.
    pub(crate) block_devices: Vec<bool>,
    /// The chips of the VM's UEFI, if it has that.
    pub(crate) flash: Option<Flash>,
    /// Which QEMU it is, if that is known and of interest.
    pub(crate) version: Option<Version>,
}

impl Launch {
    /// From how many bytes on QEMU shall have pages of their own for what it allocates.
    ///
    /// QEMU (9.1 and later) decides whether the state of a virtio-gpu's output has all its fields by a byte that lies 128 bytes
    /// times the output's number too far behind (`scanout_vmstate_after_v2` takes each output for the first). Up to the
    /// third that is still in the device, and nearly always the same; from the fourth on it is whatever the allocator
    /// put behind the device, and a state that was saved with another byte there than is found later cannot be
    /// loaded. In 10.0 the device has 106 784 bytes: with pages of its own, 3.7 KiB behind it are zero for ever.
    pub(crate) fn allocator(&self, monitors: u8) -> Option<&'static str> {
        (monitors > MONITORS_IN_ORDER && self.version == Some(Version { major: 10, minor: 0 })).then_some("98304")
    }
}

/// QEMU's arguments for `definition`.
///
/// QMP listens on standard input, where the process finds a socket that we have bound: paths of sockets
/// are limited to 108 bytes, those of folders are not. The processors wait for `cont`, so that
/// the display is there before the first line of the firmware.
pub(crate) fn arguments(definition: &Definition, launch: &Launch) -> Vec<String> {
    let mut arguments = Arguments(Vec::new());
    arguments.identity(definition);
    let host = std::thread::available_parallelism().map_or(1, NonZero::get);
    arguments.processors(definition, launch.accelerator, host);
    arguments.machine(launch.flash.as_ref());
    arguments.tpm(definition.tpm);
    arguments.control();
    arguments.display(definition.monitors);
    arguments.devices(definition);
    arguments.bus(definition.bus);
    arguments.boot(&definition.boot);
    arguments.controllers(&definition.controllers);
    for (index, disk) in definition.disks.iter().enumerate() {
        arguments.disk(index, disk, definition, launch);
    }
    arguments.0
}

struct Arguments(Vec<String>);

impl Arguments {
    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn device(&mut self, value: impl Into<String>) {
        self.option("-device", value);
    }

    fn identity(&mut self, definition: &Definition) {
        self.option("-name", format!("guest={}", definition.name));
        self.option("-uuid", definition.uuid.to_string());
        self.0.push("-nodefaults".into());
        self.0.push("-no-user-config".into());
        // A guest that takes QEMU over must not start programs, change users or use forgotten system calls.
        self.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny");
    }

    fn processors(&mut self, definition: &Definition, accelerator: Accelerator, host: usize) {
        // Shared, so that later a vhost-user device can be given the guest's memory.
        self.option("-object", format!("memory-backend-memfd,id=ram0,size={}M,share=on", definition.memory));
        let hardware = Hardware::of(definition);
        self.option("-m", hardware.map_or_else(|| format!("{}M", definition.memory), |hardware| hardware.size()));
        let Topology { sockets, cores, threads } = definition.topology();
        let topology = format!("sockets={sockets},cores={cores},threads={threads}");
        self.option("-smp", format!("{},{topology}", definition.vcpus));
        self.option("-accel", if accelerator == Accelerator::Kvm { "kvm" } else { emulation(definition.vcpus, host) });
        let hyper_v = hardware.is_some_and(|hardware| hardware.is_hyper_v());
        let model = definition.cpu.model.as_deref().unwrap_or(cpu(accelerator));
        self.option("-cpu", format!("{model}{}", if hyper_v { HYPER_V } else { "" }));
        self.option("-rtc", "base=utc");
    }

    fn machine(&mut self, flash: Option<&Flash>) {
        let Some(flash) = flash else { return self.option("-machine", "q35,memory-backend=ram0") };
        let guard = if flash.guarded { "on" } else { "off" };
        self.option("-machine", format!("q35,memory-backend=ram0,smm={guard},pflash0=code,pflash1=variables"));
        self.option("-global", format!("driver=cfi.pflash01,property=secure,value={guard}"));
        // A guest's sleep would hand what the firmware guards to the guest.
        self.option("-global", "ICH9-LPC.disable_s3=1");
        for (name, path, readonly) in [("code", &flash.code, true), ("variables", &flash.variables, false)] {
            let file = json!({ "driver": "file", "filename": path });
            let node = json!({ "node-name": name, "driver": "raw", "read-only": readonly, "file": file });
            self.option("-blockdev", node.to_string());
        }
    }

    fn tpm(&mut self, tpm: Option<Tpm>) {
        let Some(Tpm { model }) = tpm else { return };
        self.option("-chardev", format!("socket,id=tpmctl,path={TPM_SOCKET}"));
        self.option("-tpmdev", "emulator,id=tpm0,chardev=tpmctl");
        let model = match model {
            TpmModel::Crb => "tpm-crb",
            TpmModel::Tis => "tpm-tis",
        };
        self.device(format!("{model},tpmdev=tpm0"));
    }

    fn control(&mut self) {
        self.option("-chardev", "socket,id=qmp,fd=0,server=on,wait=off");
        self.option("-mon", "chardev=qmp,mode=control");
        self.0.push("-S".into());
        // A guest that goes down leaves QEMU standing, so that we learn why even when we were not there.
        self.option("-action", "shutdown=pause,panic=pause");
    }

    fn display(&mut self, monitors: u8) {
        self.option("-display", "dbus,p2p=yes");
        self.device(format!("virtio-vga,id={DISPLAY_DEVICE},max_outputs={monitors}"));
    }

    fn devices(&mut self, definition: &Definition) {
        self.device(format!("virtio-keyboard-pci,id={KEYBOARD_DEVICE}"));
        // virtio-multitouch is left out: beside it the tablet takes the touch screen's BTN_TOUCH (QEMU 10.0).
        self.device(format!("virtio-tablet-pci,id={TABLET_DEVICE}"));
        self.device("qemu-xhci,id=usb0,p2=8,p3=8");
        self.device("virtio-serial-pci,id=serial0");
        match Hardware::of(definition) {
            Some(hardware) => hardware.devices().into_iter().for_each(|(option, value)| self.option(option, value)),
            None => self.device(format!("virtio-balloon-pci,id={BALLOON},deflate-on-oom=on")),
        }
        if let Some((netdev, device)) = network_options(definition) {
            self.option("-netdev", netdev);
            self.device(device);
        }
    }

    fn bus(&mut self, bus: Bus) {
        if !bus.enabled {
            return;
        }
        self.option("-chardev", format!("socket,id={BUS_CHARDEV},fd={BUS_PORT_FD},server=on,wait=off"));
        let port = format!("virtserialport,id={BUS_PORT},bus=serial0.0,chardev={BUS_CHARDEV}");
        self.device(format!("{port},name=org.fanlight.bus.0"));
        if bus.memory > 0 {
            // A file rather than a memfd of QEMU's own, which nobody else could open.
            let file = format!("mem-path=/proc/self/fd/{BUS_MEMORY_FD},size={}M", bus.memory);
            self.option("-object", format!("memory-backend-file,id=busmem0,share=on,{file}"));
            // `master`: the memory belongs to the VM's state. Without, QEMU saves none.
            let device = "ivshmem-plain,id=busmem,memdev=busmem0,master=on";
            self.device(format!("{device},addr={BUS_MEMORY_DEVICE:#x}"));
        }
    }

    fn boot(&mut self, boot: &Boot) {
        let Boot::DirectKernel { kernel, initrd, cmdline } = boot else { return };
        self.option("-kernel", kernel.display().to_string());
        if let Some(initrd) = initrd {
            self.option("-initrd", initrd.display().to_string());
        }
        if !cmdline.is_empty() {
            self.option("-append", cmdline.as_str());
        }
    }

    fn controllers(&mut self, controllers: &Controllers) {
        for device in controller_devices(controllers) {
            self.device(device);
        }
    }

    fn disk(&mut self, index: usize, disk: &Disk, definition: &Definition, launch: &Launch) {
        let name = node_name(&disk.id, 0);
        let node = (disk.source != DiskSource::Empty).then_some(name.as_str());
        if let Some(object) = tls_object(disk) {
            self.option("-object", object.to_string());
        }
        if node.is_some() {
            let is_block_device = |_: &_| launch.block_devices.get(index).copied().unwrap_or(false);
            self.option("-blockdev", super::disk::node(disk, &name, is_block_device).to_string());
        }
        self.device(device(disk, &definition.controllers, node, Some(index + 1)).to_string());
    }
}

/// How processors are emulated on a host with `host` of its own.
///
/// A guest's processors wait for each other by spinning: where many share one of the host, they take from each other what they
/// wait for. One thread that runs them in turn starts 16 of them on 2 twice as fast, 32 five times, and 8 as fast.
fn emulation(vcpus: u8, host: usize) -> &'static str {
    let crowded = usize::from(vcpus) > host.saturating_mul(CROWD);
    if crowded { "tcg,thread=single" } else { "tcg,thread=multi" }
}

/// The processor model; the probe of the accelerator uses the same.
pub(crate) fn cpu(accelerator: Accelerator) -> &'static str {
    // Translating the newer instructions of `max` costs more than they save.
    if accelerator == Accelerator::Kvm { "host" } else { "qemu64" }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::Value;
    use uuid::Uuid;

    use super::*;
    use crate::definition::{DiskBus, DiskFormat, Network};

    const UUID: Uuid = Uuid::from_u128(0x6fa9_d1d2_0a37_4d7b_8f6e_0c6c_3f5b_2a11);

    fn build(definition: &Definition) -> Vec<String> {
        arguments(definition, &launch(None))
    }

    fn launch(version: Option<Version>) -> Launch {
        Launch { accelerator: Accelerator::Tcg, block_devices: vec![], flash: None, version }
    }

    fn read(text: &str) -> Value {
        serde_json::from_str(text).expect("JSON")
    }

    fn values<'a>(arguments: &'a [String], option: &str) -> Vec<&'a str> {
        arguments.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn processors_that_would_crowd_out_each_other_are_run_in_turn() {
        let on_two = |vcpus| emulation(vcpus, 2);
        assert_eq!([1, 8].map(on_two), ["tcg,thread=multi"; 2]);
        assert_eq!([9, 32].map(on_two), ["tcg,thread=single"; 2]);
        assert_eq!(emulation(32, 8), "tcg,thread=multi");
    }

    #[test]
    fn the_usual_hardware_is_there() {
        let definition = Definition { monitors: 3, vcpus: 2, ..Definition::new("demo", UUID) };
        let arguments = build(&definition);
        let devices = values(&arguments, "-device");
        assert!(devices.contains(&"virtio-vga,id=gpu0,max_outputs=3"));
        for kind in ["keyboard", "tablet", "serial", "balloon", "net"] {
            assert_eq!(devices.iter().filter(|device| device.starts_with(&format!("virtio-{kind}-pci"))).count(), 1);
        }
        assert!(devices.contains(&"virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:5b:2a:11"));
        assert_eq!(values(&arguments, "-smp"), ["2,sockets=1,cores=2,threads=1"]);
        assert_eq!(values(&arguments, "-accel"), ["tcg,thread=multi"]);
        assert_eq!(values(&arguments, "-cpu"), ["qemu64"]);
        assert_eq!(values(&arguments, "-object")[0], "memory-backend-memfd,id=ram0,size=512M,share=on");
        assert!(!arguments.contains(&"-kernel".into()));
    }

    #[test]
    fn without_a_network_there_is_no_card() {
        let arguments = build(&Definition { network: Network::none(), ..Definition::new("demo", UUID) });
        assert!(values(&arguments, "-netdev").is_empty());
        assert!(!values(&arguments, "-device").iter().any(|device| device.starts_with("virtio-net")));
    }

    #[test]
    fn the_bus_has_a_port_and_the_memory_that_is_wished_for() {
        let with = |bus| build(&Definition { bus, ..Definition::new("demo", UUID) });
        let count = |arguments: &[String], what: &str| arguments.iter().filter(|text| text.starts_with(what)).count();
        let arguments = with(Bus { enabled: true, memory: 128 });
        assert!(arguments.contains(&"socket,id=bus0,fd=3,server=on,wait=off".into()));
        assert!(
            arguments.contains(&"virtserialport,id=busport0,bus=serial0.0,chardev=bus0,name=org.fanlight.bus.0".into())
        );
        assert!(
            arguments.contains(&"memory-backend-file,id=busmem0,share=on,mem-path=/proc/self/fd/4,size=128M".into())
        );
        assert!(arguments.contains(&"ivshmem-plain,id=busmem,memdev=busmem0,master=on,addr=0x1e".into()));
        assert_eq!(BUS_MEMORY_PCI_SLOT, 0x00f0);
        let arguments = with(Bus { enabled: true, memory: 0 });
        assert_eq!((count(&arguments, "virtserialport"), count(&arguments, "ivshmem")), (1, 0));
        let arguments = with(Bus { enabled: false, memory: 64 });
        assert_eq!((count(&arguments, "virtserialport"), count(&arguments, "ivshmem")), (0, 0));
        assert_eq!(count(&arguments, "socket,id=bus0"), 0);
    }

    #[test]
    fn uefi_is_two_flash_chips_and_a_tpm_is_beside_them() {
        let flash = Flash { code: "/c,1".into(), variables: "/v".into(), guarded: true };
        let launch = Launch { flash: Some(flash.clone()), ..launch(None) };
        let definition = Definition { tpm: Some(Tpm { model: TpmModel::Tis }), ..Definition::new("demo", UUID) };
        let arguments = arguments(&definition, &launch);
        let machine = values(&arguments, "-machine");
        assert_eq!(machine, ["q35,memory-backend=ram0,smm=on,pflash0=code,pflash1=variables"]);
        assert!(values(&arguments, "-global").contains(&"driver=cfi.pflash01,property=secure,value=on"));
        let nodes: Vec<serde_json::Value> =
            values(&arguments, "-blockdev").iter().map(|node| serde_json::from_str(node).expect("JSON")).collect();
        assert_eq!((&nodes[0]["file"]["filename"], &nodes[0]["read-only"]), (&json!("/c,1"), &json!(true)));
        assert_eq!((&nodes[1]["file"]["filename"], &nodes[1]["read-only"]), (&json!("/v"), &json!(false)));
        assert!(values(&arguments, "-device").contains(&"tpm-tis,tpmdev=tpm0"));
        assert!(values(&arguments, "-chardev").contains(&"socket,id=tpmctl,path=tpm.sock"));
        assert_eq!(values(&build(&Definition::new("demo", UUID)), "-machine"), ["q35,memory-backend=ram0"]);
    }

    #[test]
    fn the_allocator_is_told_only_what_is_known_to_help() {
        let known = launch(Some(Version { major: 10, minor: 0 }));
        assert_eq!((known.allocator(3), known.allocator(4)), (None, Some("98304")));
        for version in [None, Some(Version { major: 10, minor: 1 }), Some(Version { major: 7, minor: 2 })] {
            assert_eq!(launch(version).allocator(16), None);
        }
    }

    #[test]
    fn a_kernel_is_given_as_it_is() {
        let boot = Boot::DirectKernel {
            kernel: "/k,1".into(),
            initrd: Some("/i".into()),
            cmdline: "console=tty0 a=\"b,c\"".into(),
        };
        let arguments = build(&Definition { boot, ..Definition::new("demo", UUID) });
        assert_eq!(values(&arguments, "-kernel"), ["/k,1"]);
        assert_eq!(values(&arguments, "-append"), ["console=tty0 a=\"b,c\""]);
    }

    #[test]
    fn disks_come_after_their_controllers_and_in_boot_order() {
        let path = |name: &str| PathBuf::from(format!("/{name}"));
        let disks = vec![
            Disk::new(path("a"), DiskFormat::Qcow2, DiskBus::Scsi),
            Disk::cdrom(DiskSource::Empty, DiskBus::Ide),
            Disk::new(path("b"), DiskFormat::Raw, DiskBus::Virtio),
        ];
        let mut definition = Definition { disks, ..Definition::new("demo", UUID) };
        definition.settle();
        let arguments = arguments(&definition, &Launch { block_devices: vec![false, false, true], ..launch(None) });
        let nodes: Vec<Value> = values(&arguments, "-blockdev").into_iter().map(read).collect();
        let told: Vec<_> =
            nodes.iter().map(|node| (node["node-name"].clone(), node["file"]["driver"].clone())).collect();
        assert_eq!(told, [("disk0.0".into(), "file".into()), ("disk2.0".into(), "host_device".into())]);
        let devices = values(&arguments, "-device");
        let [.., controller, scsi, drive, virtio] = &devices[..] else { panic!("{devices:?}") };
        assert_eq!(*controller, "virtio-scsi-pci,id=scsi0");
        for (device, id, node, order) in [
            (scsi, "disk0", json!("disk0.0"), 1),
            (drive, "disk1", Value::Null, 2),
            (virtio, "disk2", json!("disk2.0"), 3),
        ] {
            let device = read(device);
            assert_eq!((&device["id"], &device["drive"], &device["bootindex"]), (&id.into(), &node, &order.into()));
        }
    }

    #[test]
    fn hardware_runs_the_processors_of_its_own_model() {
        let launch = Launch { accelerator: Accelerator::Kvm, ..launch(None) };
        let arguments = arguments(&Definition::new("demo", UUID), &launch);
        assert_eq!(values(&arguments, "-cpu"), ["host"]);
    }
}
