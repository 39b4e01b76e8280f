use super::super::{Network, NetworkCard, NetworkMode};
use super::*;
use crate::definition::DynamicMemory;

const HEAD: &str = "name = \"demo\"\nuuid = \"6fa9d1d2-0a37-4d7b-8f6e-0c6c3f5b2a11\"\nmemory = 256\n";

fn parse(text: &str) -> Result<Definition, DefinitionError> {
    Definition::parse(text, Path::new("demo.toml"))
}

fn refusal(text: &str) -> String {
    parse(text).expect_err("must be refused").to_string()
}

#[test]
fn the_shortest_definition_has_the_usual_hardware() {
    let definition = parse(HEAD).expect("valid");
    let uuid = Uuid::parse_str("6fa9d1d2-0a37-4d7b-8f6e-0c6c3f5b2a11").expect("valid");
    assert_eq!(definition, Definition { memory: 256, ..Definition::new("demo", uuid) });
}

#[test]
fn everything_that_can_be_said_is_read() {
    let text = format!(
        "{HEAD}vcpus = 4\naccelerator = \"tcg\"\nmonitors = 3\nnetwork = \"none\"\n\
         [bus]\nenabled = true\nmemory = 128\n\
         [session]\ninput = \"hardware\"\n\
         [checkpoints]\nevery = 60\nkeep = 24\n\
         [boot]\nkernel = \"/k\"\ninitrd = \"/i\"\ncmdline = \"quiet\"\n\
         [[disk]]\npath = \"/a.vhd\"\nformat = \"vpc\"\nbus = \"ide\"\n\
         [controllers]\nscsi = [\"virtio\", \"lsi\"]\n\
         [[disk]]\nbus = \"scsi\"\ncdrom = true\n\
         [[disk]]\nid = \"data\"\nurl = \"nbd://host/x\"\nformat = \"raw\"\nbus = \"scsi\"\ncontroller = 1\n\
         unit = 3\nserial = \"S-1\"\ncache = \"none\"\n"
    );
    let definition = parse(&text).expect("valid");
    assert_eq!((definition.vcpus, definition.monitors), (4, 3));
    assert_eq!(definition.accelerator, Accelerator::Tcg);
    assert_eq!(definition.network, Network::none());
    assert_eq!(definition.bus, Bus { enabled: true, memory: 128 });
    assert_eq!(definition.session, Session { input: Provider::Hardware });
    assert_eq!(definition.checkpoints, Some(CheckpointSchedule { every: 60, keep: 24 }));
    let Boot::DirectKernel { initrd, cmdline, .. } = definition.boot else { panic!("a kernel was given") };
    assert_eq!((initrd, cmdline.as_str()), (Some("/i".into()), "quiet"));
    assert_eq!(definition.disks[0].format, DiskFormat::Vhd);
    assert!(definition.disks[1].cdrom && definition.disks[1].readonly);
    assert_eq!((definition.disks[1].id.as_str(), &definition.disks[1].source), ("disk1", &DiskSource::Empty));
    assert_eq!(definition.controllers.scsi, [ScsiModel::Virtio, ScsiModel::Lsi]);
    let remote = DiskSource::Remote("nbd://host/x".parse().expect("valid"));
    let data = Disk {
        id: "data".into(),
        controller: 1,
        unit: Some(3),
        serial: Some("S-1".into()),
        cache: DiskCache::None,
        ..Disk::new(remote, DiskFormat::Raw, DiskBus::Scsi)
    };
    assert_eq!(definition.disks[2], data);
}

#[test]
fn memory_is_a_number_or_a_table() {
    let head = HEAD.replace("memory = 256\n", "");
    let table = "startup = 512\nminimum = 256\nmaximum = 2048\nbuffer = 30\nweight = 100\n";
    let definition = parse(&format!("{head}[memory]\n{table}")).expect("valid");
    let expected = DynamicMemory { buffer: 30, weight: 100, ..DynamicMemory::between(256, 2048) };
    assert_eq!((definition.memory, definition.dynamic_memory), (512, Some(expected)));
    let short = parse(&HEAD.replace("256", "{ startup = 512, maximum = 1024 }")).expect("valid");
    assert_eq!(short.dynamic_memory, Some(DynamicMemory::between(512, 1024)));
    assert_eq!(parse(HEAD).expect("valid").dynamic_memory, None);
}

#[test]
fn a_network_is_a_word_or_a_table() {
    let network = |text: &str| parse(&format!("{HEAD}{text}")).expect("valid").network;
    assert_eq!(network(""), Network::default());
    assert_eq!(network("network = \"user\"\n"), Network::default());
    let forwarded = network("[network]\nmode = \"user\"\nforward = [\"tcp::2222-:22\"]\ncard = \"e1000\"\n");
    assert_eq!(forwarded.forward[0].to_string(), "tcp:127.0.0.1:2222-:22");
    assert_eq!(forwarded.card, NetworkCard::E1000);
    let bridge = network("network = { mode = \"bridge\", name = \"br0\" }\n");
    assert_eq!(bridge.mode, NetworkMode::Bridge("br0".parse().expect("a name")));
}

#[test]
fn firmware_processors_and_tpm_are_read() {
    let text =
        "vcpus = 8\n[cpu]\nthreads = 2\nmodel = \"qemu32\"\n[tpm]\n[boot]\nfirmware = \"uefi\"\nsecure_boot = true\n";
    let definition = parse(&format!("{HEAD}{text}")).expect("valid");
    assert_eq!(definition.firmware, Firmware::Uefi { secure_boot: true });
    assert_eq!((definition.boot, definition.tpm), (Boot::Firmware, Some(Tpm::default())));
    let topology = definition.cpu.topology.expect("said");
    assert_eq!((topology.sockets, topology.cores, topology.threads), (1, 4, 2));
    assert_eq!(definition.cpu.model.as_deref(), Some("qemu32"));
    let with_kernel = parse(&format!("{HEAD}[boot]\nfirmware = \"uefi\"\nkernel = \"/k\"\n")).expect("valid");
    assert_eq!(with_kernel.firmware, Firmware::Uefi { secure_boot: false });
    assert!(matches!(with_kernel.boot, Boot::DirectKernel { .. }));
}

#[test]
fn a_refusal_says_where_and_why() {
    let cases = [
        ("name = ", "demo.toml:1:8: "),
        ("nam = \"x\"", "demo.toml:1:1: unknown field `nam`"),
        ("name = 5", "demo.toml:1:8: invalid type: integer `5`, expected a string"),
        ("name = \"x\"", "demo.toml:1:1: missing field `uuid`"),
        ("name = \"x\"\nuuid = \"12\"\nmemory = 64", "demo.toml:2:8: `uuid` is not a UUID"),
        (&format!("{HEAD}vcpus = 33\n"), "demo.toml:4:9: `vcpus` is 1 to 32, not 33"),
        (&format!("{HEAD}vcpus = 300\n"), "demo.toml:4:9: invalid value: integer `300`, expected u8"),
        (&format!("{HEAD}monitors = 0\n"), "demo.toml:4:12: `monitors` is 1 to 16, not 0"),
        (&format!("{HEAD}  colour = 1\n"), "demo.toml:4:3: unknown field `colour`"),
        (&format!("{HEAD}accelerator = \"hvf\"\n"), "demo.toml:4:15: unknown variant `hvf`"),
        (&format!("{HEAD}name = \"again\"\n"), "demo.toml:4:1: duplicate key"),
        (&HEAD.replace("256", "0"), "demo.toml:3:10: `memory` is 16 to 1048576 MiB, not 0"),
        (&HEAD.replace("256", "\"1G\""), "demo.toml:3:10: invalid type: string \"1G\", expected MiB or a table"),
        (&HEAD.replace("256", "-1"), "demo.toml:3:10: invalid value: integer `-1`, expected MiB or a table"),
        (&HEAD.replace("256", "{ minimum = 64 }"), "demo.toml:3:10: missing field `startup`"),
        (&HEAD.replace("256", "{ startup = 4 }"), "demo.toml:3:22: `memory` is 16 to 1048576 MiB, not 4"),
        (&HEAD.replace("256", "{ startup = 64, top = 4 }"), "demo.toml:3:26: unknown field `top`"),
        (
            &HEAD.replace("256", "{ startup = 64, minimum = 65 }"),
            "demo.toml:3:36: `minimum` is 16 to `startup` (64) MiB, not 65",
        ),
        (
            &HEAD.replace("256", "{ startup = 64, maximum = 63 }"),
            "demo.toml:3:36: `maximum` is `startup` (64) to 1048576 MiB, not 63",
        ),
        (&HEAD.replace("256", "{ startup = 64, buffer = 4 }"), "demo.toml:3:35: `buffer` is 5 to 2000 %, not 4"),
        (&HEAD.replace("256", "{ startup = 64, weight = 10001 }"), "demo.toml:3:35: `weight` is 0 to 10000"),
        (&HEAD.replace("256", "{ startup = 64, weight = -1 }"), "demo.toml:3:35: invalid value: integer `-1`"),
        (&HEAD.replace("256", "{ startup = 64, devices = \"xen\" }"), "demo.toml:3:36: unknown variant `xen`"),
        (
            &format!("{}accelerator = \"tcg\"\n", HEAD.replace("256", "{ startup = 64, devices = \"hyperv\" }")),
            "demo.toml:3:36: `devices = \"hyperv\"` needs KVM",
        ),
        (&HEAD.replace("demo", "a/b"), "demo.toml:1:8: `name` may not have '/'"),
        (&HEAD.replace("demo", ".."), "demo.toml:1:8: `name` "),
        (&HEAD.replace("demo", ""), "demo.toml:1:8: `name` is empty"),
        (&format!("{HEAD}[bus]\nmemory = 48\n"), "demo.toml:5:10: `memory` of the bus is 0 or a power of two"),
        (&format!("{HEAD}[bus]\nmemory = 2048\n"), "demo.toml:5:10: `memory` of the bus is 0 or a power of two"),
        (&format!("{HEAD}[bus]\nenabled = 1\n"), "demo.toml:5:11: invalid type: integer `1`, expected a boolean"),
        (&format!("{HEAD}[bus]\nsize = 1\n"), "demo.toml:5:1: unknown field `size`"),
        (
            &format!("{HEAD}[session]\ninput = \"bus\"\n[bus]\nenabled = false\n"),
            "demo.toml:5:9: `input = \"bus\"` needs a bus, which `[bus]` switches off",
        ),
        (&format!("{HEAD}[session]\ninput = \"agent\"\n"), "demo.toml:5:9: unknown variant `agent`"),
        (&format!("{HEAD}[session]\nsound = \"bus\"\n"), "demo.toml:5:1: unknown field `sound`"),
        (&format!("{HEAD}[checkpoints]\nevery = 5\n"), "demo.toml:4:1: missing field `keep`"),
        (
            &format!("{HEAD}[checkpoints]\nevery = 0\nkeep = 3\n"),
            "demo.toml:5:9: `every` of the checkpoints is 1 to 10080 minutes, not 0",
        ),
        (
            &format!("{HEAD}[checkpoints]\nevery = 5\nkeep = 101\n"),
            "demo.toml:6:8: `keep` of the checkpoints is 1 to 100, not 101",
        ),
        (&format!("{HEAD}[boot]\n"), "demo.toml:4:1: `[boot]` needs"),
        (&format!("{HEAD}[boot]\ninitrd = \"/i\"\n"), "demo.toml:4:1: `[boot]` needs"),
        (&format!("{HEAD}[boot]\nfirmware = \"bios\"\ncmdline = \"x\"\n"), "demo.toml:6:11: `cmdline` goes with"),
        (&format!("{HEAD}[boot]\nsecure_boot = true\nkernel = \"/k\"\n"), "demo.toml:5:15: `secure_boot` goes with"),
        (&format!("{HEAD}[boot]\nfirmware = \"efi\"\n"), "demo.toml:5:12: unknown variant `efi`"),
        (
            &format!("{}[boot]\nfirmware = \"uefi\"\n", HEAD.replace("256", "32")),
            "demo.toml:4:1: UEFI needs 64 MiB of memory, not 32",
        ),
        (&format!("{HEAD}vcpus = 4\n[cpu]\nsockets = 3\n"), "demo.toml:5:1: 3 sockets of 1 cores of 1 threads make 3"),
        (&format!("{HEAD}[cpu]\nmodel = \"a b\"\n"), "demo.toml:5:9: `model` is a name of QEMU's"),
        (&format!("{HEAD}network = \"bridge\"\n"), "demo.toml:4:11: a bridge or tap has a name"),
        (&format!("{HEAD}network = \"lan\"\n"), "demo.toml:4:11: unknown variant `lan`"),
        (&format!("{HEAD}network = 5\n"), "demo.toml:4:11: invalid type: integer `5`, expected \"user\""),
        (&format!("{HEAD}[network]\nmode = \"tap\"\n"), "demo.toml:5:8: a bridge or tap needs its `name`"),
        (
            &format!("{HEAD}[network]\nmode = \"tap\"\nname = \"a/b\"\n"),
            "demo.toml:6:8: \"a/b\" is no name of a network interface",
        ),
        (
            &format!("{HEAD}[network]\nmode = \"user\"\nforward = [\"tcp::1-:1\", \"80\"]\n"),
            "demo.toml:6:25: \"80\" is no forwarded port",
        ),
        (
            &format!("{HEAD}[network]\nmode = \"none\"\nforward = [\"tcp::1-:1\"]\n"),
            "demo.toml:4:1: `forward` goes with `mode = \"user\"` only",
        ),
        (
            &format!("{HEAD}network = {{ mode = \"user\", forward = [\"tcp::1-:1\", \"tcp::1-:2\"] }}\n"),
            "demo.toml:4:11: tcp:127.0.0.1:1-:2: the host's port is forwarded twice",
        ),
        (&format!("{HEAD}[tpm]\nmodel = \"spi\"\n"), "demo.toml:5:9: unknown variant `spi`"),
        (&format!("{HEAD}[boot]\nkernel = \"k\"\n"), "demo.toml:5:10: `kernel` must be an absolute path"),
        (&format!("{HEAD}[boot]\nkernel = \"/k\"\nkernal = 1\n"), "demo.toml:6:1: unknown field `kernal`"),
        (
            &format!("{HEAD}[[disk]]\npath = \"/d\"\nformat = \"raw\"\n[[disk]]\npath = \"/d\"\nformat = \"raw\"\n"),
            "demo.toml:8:8: disk disk1 is the same file as disk disk0",
        ),
        (&format!("{HEAD}[[disk]]\npath = \"/d\"\nformat = \"vdi\"\n"), "demo.toml:6:10: unknown variant `vdi`"),
        (&format!("{HEAD}[[disk]]\npath = \"d\"\nformat = \"raw\"\n"), "demo.toml:5:8: `path` must be an absolute"),
        (
            &format!("{HEAD}[[disk]]\npath = \"/d\"\nformat = \"raw\"\nbus = \"virtio\"\ncdrom = true\n"),
            "demo.toml:4:1: disk disk0: a CD needs bus",
        ),
        (&format!("{HEAD}[[disk]]\npath = \"/d\"\n"), "demo.toml:4:1: missing field `format`"),
        (&format!("{HEAD}[[disk]]\nformat = \"raw\"\n"), "demo.toml:4:1: disk disk0 needs a `path` or a `url`"),
        (
            &format!("{HEAD}[[disk]]\nformat = \"raw\"\nurl = \"ftp://h/x\"\n"),
            "demo.toml:6:7: `url`: `ftp://h/x` is not nbd://",
        ),
        (
            &format!("{HEAD}[[disk]]\nformat = \"raw\"\nurl = \"nbd://h/x\"\npath = \"/d\"\n"),
            "demo.toml:6:7: `path` and `url` exclude each other",
        ),
        (
            &format!("{HEAD}[[disk]]\nformat = \"raw\"\nurl = \"https://h/x\"\n"),
            "demo.toml:6:7: disk disk0: what a web server gives out is only read",
        ),
        (
            &format!("{HEAD}[[disk]]\nid = \"Disk\"\npath = \"/d\"\nformat = \"raw\"\n"),
            "demo.toml:5:6: disk 1: `id` is a letter",
        ),
        (
            &format!("{HEAD}[[disk]]\npath = \"/d\"\nformat = \"raw\"\nbus = \"scsi\"\ncontroller = 1\n"),
            "demo.toml:4:1: disk disk0: there is no controller 1 of bus \"scsi\"",
        ),
        (&format!("{HEAD}[controllers]\nscsi = []\n"), "demo.toml:4:1: there are 1 to 4 controllers"),
        (&format!("{HEAD}[controllers]\nscsi = [\"buslogic\"]\n"), "demo.toml:5:9: unknown variant `buslogic`"),
        (
            &format!("{HEAD}[[disk]]\npath = \"/d\"\nformat = \"vmdk\"\n"),
            "demo.toml:4:1: disk disk0: vmdk images are only read",
        ),
        ("é = 1", "demo.toml:1:1: "),
    ];
    for (text, start) in cases {
        let said = refusal(text);
        assert!(said.starts_with(start), "{text:?}\n said {said:?}\n want {start:?}");
    }
}

#[test]
fn columns_count_characters() {
    let text = format!("{HEAD}disk = [{{ path = \"/é/ü\", format = \"nope\" }}]\n");
    assert!(refusal(&text).starts_with("demo.toml:4:35: unknown variant `nope`"), "{}", refusal(&text));
}

#[test]
fn a_file_that_is_not_there_says_so() {
    let error = Definition::load(Path::new("/nonexistent/x.toml")).expect_err("missing");
    assert!(error.to_string().starts_with("/nonexistent/x.toml:1:1: No such file"), "{error}");
}

#[test]
fn what_is_no_text_of_a_sensible_size_is_not_read_whole() {
    let path = std::env::temp_dir().join(format!("fanlight-definition-large-{}", std::process::id()));
    let says = |reason: &str| {
        let error = Definition::load(&path).expect_err("refused").to_string();
        assert!(error.ends_with(&format!(":1:1: {reason}")), "{error}");
    };
    let file = std::fs::File::create(&path).expect("created");
    file.set_len(1 << 36).expect("stretched");
    says("larger than 262144 bytes");
    std::fs::write(&path, b"name = \"\xff\"").expect("written");
    says("it is not UTF-8");
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("a folder");
    says("it is not a file");
    std::fs::remove_dir(&path).expect("removed");
}
