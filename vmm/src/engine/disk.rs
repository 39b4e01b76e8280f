//! Disks as QEMU is told of them, on its command line or while it runs: the same values.
//!
//! A disk has a *device*, which the guest sees, and a *node*, which has the bytes. Their names are made of the disk's own
//! (`id` in the definition), and stay the same for as long as the disk is the same:
//!
//! | what | name | example |
//! | --- | --- | --- |
//! | device (`device_del`, `blockdev-open-tray`) | `ID` | `disk1` |
//! | node of its format: what the guest reads and writes, what is mirrored and snapshotted | `ID.GENERATION` | `disk1.0` |
//! | certificates of its server (`object-add`) | `tls-ID` | `tls-disk1` |
//!
//! A VM starts with generation 0 of each disk; a disk that moves and a drive that gets another disc have a node of the next
//! generation. Which one is the disk's is what `query-block` shows at its device. An empty drive has no node. The node of the
//! file below the format has no name of ours.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::definition::{
    Controllers, Disk, DiskBus, DiskCache, DiskFormat, DiskSource, IdeModel, NbdServer, Remote, ScsiModel, Tls,
};

/// How long requests wait for an NBD server that has gone before they fail, in seconds: a server that is started again is
/// noticed by nobody.
const NBD_RECONNECT: u32 = 5;
/// How long a web server may take to answer, in seconds: less than a VM's start may take.
const HTTP_TIMEOUT: u32 = 5;

/// The name QMP knows a disk's bytes by: `generation` is 0 when the VM starts, and greater after each move.
pub(crate) fn node_name(disk: &str, generation: u32) -> String {
    format!("{disk}.{generation}")
}

/// The disk and the generation that a node is of, if it is one of ours.
pub(crate) fn parse_node_name(node: &str) -> Option<(&str, u32)> {
    let (disk, generation) = node.rsplit_once('.')?;
    Some((disk, generation.parse().ok()?))
}

/// The disk whose device QMP shows by that name: its own, or a path to the device or a part of it.
pub(crate) fn parse_device_name(qdev: &str) -> &str {
    let name = qdev.strip_prefix("/machine/peripheral/").unwrap_or(qdev);
    name.split('/').next().unwrap_or(name)
}

/// What `blockdev-add` makes the node `name` of.
pub(crate) fn node(disk: &Disk, name: &str, is_block_device: impl Fn(&Path) -> bool) -> Value {
    let mut file = match &disk.source {
        DiskSource::Empty => Map::new(),
        DiskSource::Path(path) => {
            let driver = if is_block_device(path) { "host_device" } else { "file" };
            object(json!({ "driver": driver, "filename": path }))
        }
        DiskSource::Remote(remote) => remote_file(remote, &disk.id),
    };
    let mut node = object(json!({
        "node-name": name,
        "driver": disk.format.driver(),
        "read-only": disk.readonly,
        "discard": "unmap",
    }));
    if disk.cache == DiskCache::None {
        let cache = json!({ "direct": true, "no-flush": false });
        file.insert("cache".into(), cache.clone());
        node.insert("cache".into(), cache);
    }
    if matches!((&disk.source, disk.format), (DiskSource::Remote(_), DiskFormat::Qcow2 | DiskFormat::Vmdk)) {
        // Which other files of this host are read is not the server's to say.
        node.insert("backing".into(), Value::Null);
    }
    node.insert("file".into(), file.into());
    node.into()
}

/// What `object-add` makes the certificates of a disk's connection of, if it has any.
pub(crate) fn tls_object(disk: &Disk) -> Option<Value> {
    let DiskSource::Remote(Remote::Nbd { tls: Some(tls), .. }) = &disk.source else { return None };
    Some(json!({
        "qom-type": "tls-creds-x509",
        "id": tls_name(&disk.id),
        "endpoint": "client",
        "dir": tls.certificates,
        "verify-peer": true,
    }))
}

/// What `device_add` makes the device of a disk of; `node` is none for an empty drive.
pub(crate) fn device(disk: &Disk, controllers: &Controllers, node: Option<&str>, bootindex: Option<usize>) -> Value {
    let mut device = place(disk, controllers);
    device.insert("id".into(), disk.id.clone().into());
    if let Some(node) = node {
        device.insert("drive".into(), node.into());
    }
    if let Some(serial) = &disk.serial {
        device.insert("serial".into(), serial.clone().into());
    }
    if let Some(bootindex) = bootindex {
        device.insert("bootindex".into(), bootindex.into());
    }
    if !disk.cdrom {
        // A guest whose disk fails stands still until it is back, rather than to learn of it.
        device.insert("werror".into(), "stop".into());
        device.insert("rerror".into(), "stop".into());
    }
    device.into()
}

/// The devices of the controllers that the machine does not have anyway.
pub(crate) fn controller_devices(controllers: &Controllers) -> Vec<String> {
    let ide = controllers.ide.iter().enumerate().filter_map(|(index, model)| match model {
        IdeModel::Ahci if index == 0 => None,
        IdeModel::Ahci => Some(format!("ich9-ahci,id=sata{index}")),
        IdeModel::Piix => Some(format!("piix3-ide,id=pata{index}")),
    });
    let scsi = controllers.scsi.iter().enumerate().map(|(index, model)| match model {
        ScsiModel::Virtio => format!("virtio-scsi-pci,id=scsi{index}"),
        ScsiModel::Lsi => format!("lsi53c895a,id=scsi{index}"),
    });
    ide.chain(scsi).collect()
}

/// The driver of the device and where it sits.
fn place(disk: &Disk, controllers: &Controllers) -> Map<String, Value> {
    let (controller, unit) = (disk.controller, disk.unit.unwrap_or(0));
    object(match disk.bus {
        DiskBus::Virtio => json!({ "driver": "virtio-blk-pci" }),
        DiskBus::Scsi => {
            let driver = if disk.cdrom { "scsi-cd" } else { "scsi-hd" };
            json!({ "driver": driver, "bus": format!("scsi{controller}.0"), "scsi-id": unit, "lun": 0 })
        }
        DiskBus::Ide => {
            let driver = if disk.cdrom { "ide-cd" } else { "ide-hd" };
            let (bus, unit) = match controllers.ide.get(usize::from(controller)) {
                Some(IdeModel::Piix) => (format!("pata{controller}.{}", unit / 2), unit % 2),
                _ if controller == 0 => (format!("ide.{unit}"), 0),
                _ => (format!("sata{controller}.{unit}"), 0),
            };
            json!({ "driver": driver, "bus": bus, "unit": unit })
        }
    })
}

fn remote_file(remote: &Remote, disk: &str) -> Map<String, Value> {
    let (server, export, tls) = match remote {
        Remote::Http { url } => {
            let driver = if url.starts_with("https") { "https" } else { "http" };
            return object(json!({ "driver": driver, "url": url, "timeout": HTTP_TIMEOUT }));
        }
        Remote::Nbd { server, export, tls } => (server, export, tls),
    };
    let server = match server {
        NbdServer::Tcp { host, port } => json!({ "type": "inet", "host": host, "port": port.to_string() }),
        NbdServer::Unix(path) => json!({ "type": "unix", "path": path }),
    };
    let mut file = object(json!({
        "driver": "nbd",
        "server": server,
        "export": export,
        "reconnect-delay": NBD_RECONNECT,
    }));
    if let Some(Tls { hostname, .. }) = tls {
        file.insert("tls-creds".into(), tls_name(disk).into());
        if let Some(hostname) = hostname {
            file.insert("tls-hostname".into(), hostname.clone().into());
        }
    }
    file
}

/// The name QMP knows the certificates of a disk's connection by.
pub(crate) fn tls_name(disk: &str) -> String {
    format!("tls-{disk}")
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(object) = value { object } else { Map::new() }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn disk(bus: DiskBus) -> Disk {
        Disk { id: "data".into(), ..Disk::new(PathBuf::from("/a,b=\"c\".vhd"), DiskFormat::Vhd, bus) }
    }

    fn remote(url: &str) -> Disk {
        Disk { source: DiskSource::Remote(url.parse().expect("a URL")), ..disk(DiskBus::Scsi) }
    }

    #[test]
    fn a_path_stays_one_path_and_a_device_is_opened_as_one() {
        let vhd = disk(DiskBus::Virtio);
        let told = node(&vhd, "data.0", |_| false);
        assert_eq!((&told["driver"], &told["node-name"]), (&"vpc".into(), &"data.0".into()));
        assert_eq!(told["file"], json!({ "driver": "file", "filename": "/a,b=\"c\".vhd" }));
        assert_eq!(node(&vhd, "data.0", |_| true)["file"]["driver"], "host_device");
        let uncached = node(&Disk { cache: DiskCache::None, ..vhd }, "data.0", |_| false);
        assert_eq!((&uncached["cache"]["direct"], &uncached["file"]["cache"]["direct"]), (&true.into(), &true.into()));
    }

    #[test]
    fn a_server_is_told_with_its_certificates() {
        let told = node(&remote("nbds://[::1]/a?tls-certificates=/etc/tls&tls-hostname=disks"), "data.0", |_| false);
        assert_eq!(told["file"]["server"], json!({ "type": "inet", "host": "::1", "port": "10809" }));
        assert_eq!((&told["file"]["tls-creds"], &told["file"]["tls-hostname"]), (&"tls-data".into(), &"disks".into()));
        let object = tls_object(&remote("nbds://host/a?tls-certificates=/etc/tls")).expect("certificates");
        assert_eq!((&object["id"], &object["dir"]), (&"tls-data".into(), &"/etc/tls".into()));
        assert_eq!(tls_object(&remote("nbd://host/a")), None);
        let told = node(&remote("nbd+unix:///a?socket=/s"), "data.0", |_| false);
        assert_eq!(told["file"]["server"], json!({ "type": "unix", "path": "/s" }));
        assert_eq!(node(&remote("https://host/a.iso"), "data.0", |_| false)["file"]["driver"], "https");
        let qcow2 = Disk { format: DiskFormat::Qcow2, ..remote("https://host/a.qcow2") };
        assert_eq!(node(&qcow2, "data.0", |_| false).get("backing"), Some(&Value::Null));
    }

    #[test]
    fn disks_sit_where_they_shall() {
        let controllers =
            Controllers { ide: vec![IdeModel::Ahci, IdeModel::Piix, IdeModel::Ahci], scsi: vec![ScsiModel::Lsi] };
        assert_eq!(
            controller_devices(&controllers),
            ["piix3-ide,id=pata1", "ich9-ahci,id=sata2", "lsi53c895a,id=scsi0"]
        );
        let at = |bus, controller, unit| {
            let told = device(&Disk { controller, unit, ..disk(bus) }, &controllers, Some("data.0"), None);
            (told["bus"].as_str().unwrap_or("").to_owned(), told["unit"].as_u64().or(told["scsi-id"].as_u64()))
        };
        assert_eq!(at(DiskBus::Ide, 0, Some(4)), ("ide.4".into(), Some(0)));
        assert_eq!(at(DiskBus::Ide, 1, Some(3)), ("pata1.1".into(), Some(1)));
        assert_eq!(at(DiskBus::Ide, 2, Some(5)), ("sata2.5".into(), Some(0)));
        assert_eq!(at(DiskBus::Scsi, 0, Some(6)), ("scsi0.0".into(), Some(6)));
        assert_eq!(at(DiskBus::Virtio, 0, None), (String::new(), None));
    }

    #[test]
    fn an_empty_drive_has_no_node() {
        let drive = Disk { id: "cd".into(), unit: Some(1), ..Disk::cdrom(DiskSource::Empty, DiskBus::Ide) };
        let told = device(&drive, &Controllers::default(), None, Some(3));
        assert_eq!(told, json!({ "driver": "ide-cd", "id": "cd", "bus": "ide.1", "unit": 0, "bootindex": 3 }));
    }

    #[test]
    fn names_lead_back_to_their_disks() {
        assert_eq!(parse_node_name(&node_name("disk1", 7)), Some(("disk1", 7)));
        assert_eq!(parse_node_name("#block123"), None);
        assert_eq!(parse_device_name("/machine/peripheral/disk4/virtio-backend"), "disk4");
        assert_eq!(parse_device_name("disk1"), "disk1");
    }
}
