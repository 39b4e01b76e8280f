//! Each oracle with its seeds, and with mutations of them.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fanlight_fuzz_smoke::{Mutator, Oracle, TARGETS};

const INPUTS: usize = 6000;
/// A slow oracle stops here: the run is for every day.
const TIME: Duration = Duration::from_millis(1500);

fn fuzz_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = fuzz_folder("seeds").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.expect("a seed has a name").path()).collect();
    files.sort();
    files.iter().map(|file| (file.display().to_string(), fs::read(file).expect("a seed is readable"))).collect()
}

fn feed(oracle: Oracle, what: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| oracle(input))).is_err() {
        let bytes: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{what}: the oracle broke on {bytes}");
    }
}

fn smoke(target: &str) {
    let (_, oracle) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of this name");
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "{target} has no seeds");
    for (name, seed) in &seeds {
        feed(*oracle, name, seed);
    }
    let seeds: Vec<_> = seeds.into_iter().map(|(_, seed)| seed).collect();
    let (mut mutator, end) = (Mutator::new(1), Instant::now() + TIME);
    for number in 0..INPUTS {
        feed(*oracle, &format!("{target}, input {number}"), &mutator.next_input(&seeds));
        if Instant::now() > end {
            return;
        }
    }
}

macro_rules! smoke {
    ($($target:ident),*) => {
        $(#[test]
        fn $target() {
            smoke(stringify!($target));
        })*

        #[test]
        fn every_fuzz_target_has_its_oracle_its_seeds_and_its_test() {
            let listed: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
            let names = |folder: &str| -> BTreeSet<String> {
                let files = fs::read_dir(fuzz_folder(folder)).unwrap();
                files.map(|file| file.expect("a seed has a name").path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
            };
            assert_eq!(names("fuzz_targets"), listed);
            assert_eq!(names("seeds"), listed);
            assert_eq!(BTreeSet::from([$(stringify!($target).to_owned()),*]), listed);
        }
    };
}

smoke!(
    bus_classes,
    bus_control,
    bus_guest,
    bus_host,
    bus_region,
    bus_ring,
    bus_stream,
    connection_request,
    credssp,
    definition,
    display_control,
    dynamic_channels,
    first_bytes,
    framing,
    graphics,
    hyperv_image,
    image_info,
    input,
    login,
    ntlm,
    preconnection,
    session,
    static_channel,
    touch
);
