//! A guest of 32 bits on a processor that has no others.

use std::path::PathBuf;

use vmm::{Boot, Cpu, Definition};

use crate::kit::{Picture, TestHost, console_files, firmware, sees};

#[tokio::test(flavor = "multi_thread")]
async fn a_32_bit_guest_runs_on_a_32_bit_processor() {
    let host = TestHost::new().await;
    let definition = Definition {
        cpu: Cpu { topology: None, model: Some("qemu32".into()) },
        boot: Boot::DirectKernel { kernel: memory_test(), initrd: None, cmdline: String::new() },
        ..firmware("old")
    };
    let vm = host.host().create(definition).await.expect("created");
    vm.start().await.expect("starts");
    let mut viewer = vm.console().viewer();
    let mut first = Vec::new();
    sees(&mut viewer, "its screen", |_, picture| {
        first.clone_from(&picture.pixels);
        is_blue(picture)
    })
    .await;
    sees(&mut viewer, "what it counts", |_, picture| is_blue(picture) && picture.pixels != first).await;
}

/// The program of 32 bits that tests memory, as Debian has it.
fn memory_test() -> PathBuf {
    let path = console_files().0.with_file_name("memtest32");
    assert!(path.exists(), "{} is not there: build the image anew (`./x image console`)", path.display());
    path
}

/// Its screen, unlike that of any firmware.
fn is_blue(picture: &Picture) -> bool {
    let pixels = || picture.pixels.chunks_exact(4);
    let blue = pixels().filter(|pixel| pixel[0] > 100 && pixel[1] < 60 && pixel[2] < 60).count();
    blue * 2 > pixels().count().max(1)
}
