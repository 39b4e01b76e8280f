//! UEFI firmware: which the host has, and what each VM's keeps.
//!
//! Distributions describe their builds in JSON (QEMU's `docs/interop/firmware.json`), so that nobody has to know their
//! paths. A VM has its own copy of the variables (boot entries, keys): one for the firmware that starts anything, one
//! for the firmware that starts what is signed, since keys that were not enrolled there would make no Secure Boot here.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::definition::{Firmware, make_folder, replace_file};

/// Where descriptions are; of two files of a name the first counts, and all are tried in the order of their names.
const FOLDERS: [&str; 2] = ["/etc/qemu/firmware", "/usr/share/qemu/firmware"];
/// Largest description, and most of a template, in bytes.
const MAX_DESCRIPTION: u64 = 64 * 1024;
const MAX_TEMPLATE: u64 = 64 * 1024 * 1024;

/// The two flash chips of a VM with UEFI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flash {
    /// The program; shared by all VMs.
    pub(crate) code: PathBuf,
    /// The variables, this VM's own.
    pub(crate) variables: PathBuf,
    /// Whether only the firmware itself, in system management mode, may write them.
    pub(crate) guarded: bool,
}

/// A build of UEFI that the host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Build {
    pub(crate) code: PathBuf,
    template: PathBuf,
    guarded: bool,
}

/// The flash chips of a VM that keeps its own things in `folder`; its variables are made when there are none.
///
/// # Errors
///
/// Why not, in words.
pub(crate) fn flash(firmware: Firmware, folder: &Path) -> Result<Option<Flash>, String> {
    let Firmware::Uefi { secure_boot } = firmware else { return Ok(None) };
    let build = find(secure_boot).ok_or_else(|| missing(secure_boot))?;
    let name = if secure_boot { "variables-secure.fd" } else { "variables.fd" };
    let variables = folder.join(name);
    let size = |path: &Path| fs::metadata(path).map(|data| data.len()).map_err(|error| told(path, &error));
    let wanted = size(&build.template)?;
    if wanted > MAX_TEMPLATE {
        return Err(format!("{} is larger than any flash chip", build.template.display()));
    }
    if !variables.exists() {
        let template = fs::read(&build.template).map_err(|error| told(&build.template, &error))?;
        make_folder(folder).map_err(|error| told(folder, &error))?;
        replace_file(&variables, &template).map_err(|error| told(&variables, &error))?;
    }
    if size(&variables)? != wanted {
        return Err(format!(
            "{} was made for another build of UEFI than {}; move it away, and the VM begins with new variables",
            variables.display(),
            build.code.display()
        ));
    }
    Ok(Some(Flash { code: build.code, variables, guarded: build.guarded }))
}

/// The build of UEFI to take here.
pub(crate) fn find(secure_boot: bool) -> Option<Build> {
    find_in(&FOLDERS.map(PathBuf::from), secure_boot)
}

fn missing(secure_boot: bool) -> String {
    let which = if secure_boot { "with Secure Boot and enrolled keys " } else { "" };
    format!("no UEFI firmware {which}for q35 machines is described in {}; install ovmf", FOLDERS.join(" or "))
}

fn told(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn find_in(folders: &[PathBuf], secure_boot: bool) -> Option<Build> {
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let found = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let new = found.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let new: Vec<_> = new.filter(|path| files.iter().all(|other| other.file_name() != path.file_name())).collect();
        files.extend(new);
    }
    files.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    files.iter().filter_map(|file| Description::read(file)).find_map(|description| description.build(secure_boot))
}

/// The parts of a description that matter.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Description {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    executable: Option<Image>,
    nvram_template: Option<Image>,
}

#[derive(Deserialize)]
struct Image {
    filename: PathBuf,
    format: String,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

impl Description {
    /// None where it cannot be read: one that nobody can use is nobody's trouble as long as there are others.
    fn read(file: &Path) -> Option<Self> {
        let small = fs::metadata(file).is_ok_and(|data| data.len() <= MAX_DESCRIPTION);
        let text = small.then(|| fs::read(file).ok()).flatten()?;
        serde_json::from_slice(&text)
            .inspect_err(|error| tracing::debug!(file = %file.display(), %error, "skipped"))
            .ok()
    }

    fn build(self, secure_boot: bool) -> Option<Build> {
        let has = |feature: &str| self.features.iter().any(|other| other == feature);
        let q35 = |target: &Target| {
            target.architecture == "x86_64" && target.machines.iter().any(|machine| machine.starts_with("pc-q35"))
        };
        let fits = self.interface_types.iter().any(|kind| kind == "uefi")
            && self.mapping.device == "flash"
            && self.targets.iter().any(q35)
            && if secure_boot { has("secure-boot") && has("enrolled-keys") } else { !has("secure-boot") };
        let guarded = has("requires-smm");
        let (code, template) = (self.mapping.executable?, self.mapping.nvram_template?);
        let raw = code.format == "raw" && template.format == "raw";
        let there = code.filename.exists() && template.filename.exists();
        (fits && raw && there).then_some(Build { code: code.filename, template: template.filename, guarded })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("fanlight-firmware-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("temporary folder");
            Self(path)
        }

        fn describe(&self, name: &str, code: &str, features: &str) {
            let file = |name: &str| self.0.join(name);
            fs::write(file(code), "code").expect("written");
            fs::write(file("template"), "variables").expect("written");
            let text = format!(
                r#"{{"description": "x", "interface-types": ["uefi"], "features": [{features}], "tags": [],
                "mapping": {{"device": "flash", "executable": {{"filename": {:?}, "format": "raw"}},
                "nvram-template": {{"filename": {:?}, "format": "raw"}}}},
                "targets": [{{"architecture": "x86_64", "machines": ["pc-q35-*"]}}]}}"#,
                file(code),
                file("template"),
            );
            fs::write(file(name), text).expect("written");
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_first_description_that_fits_is_taken() {
        let (first, second) = (Folder::new("first"), Folder::new("second"));
        second.describe("40-secure.json", "secure", r#""secure-boot", "enrolled-keys", "requires-smm""#);
        second.describe("50-setup.json", "setup", r#""secure-boot", "requires-smm""#);
        second.describe("60-plain.json", "plain", r#""acpi-s3""#);
        second.describe("70-late.json", "late", "");
        fs::write(first.0.join("10-broken.json"), "{").expect("written");
        let folders = [first.0.clone(), second.0.clone()];
        let name = |secure| find_in(&folders, secure).map(|build| (build.code, build.guarded));
        assert_eq!(name(true), Some((second.0.join("secure"), true)));
        assert_eq!(name(false), Some((second.0.join("plain"), false)));
        // The administrator's file of the same name counts instead, and an empty one switches it off.
        fs::write(first.0.join("60-plain.json"), "").expect("written");
        assert_eq!(name(false), Some((second.0.join("late"), false)));
        assert_eq!(find_in(std::slice::from_ref(&first.0), true), None);
    }

    #[test]
    fn variables_are_copied_once_and_never_taken_for_those_of_another_build() {
        let folder = Folder::new("variables");
        let own = folder.0.join("vm");
        assert_eq!(flash(Firmware::Bios, &own), Ok(None));
        assert!(!own.exists());
        let uefi = Firmware::Uefi { secure_boot: false };
        let made = flash(uefi, &own).expect("ovmf is installed").expect("flash");
        let length = fs::metadata(&made.variables).expect("there").len();
        fs::write(&made.variables, vec![7; usize::try_from(length).expect("fits")]).expect("written");
        assert_eq!(flash(uefi, &own), Ok(Some(made.clone())));
        assert_eq!(fs::read(&made.variables).expect("there")[0], 7, "what it kept is still there");
        let secure = flash(Firmware::Uefi { secure_boot: true }, &own).expect("ovmf").expect("flash");
        assert!(secure.guarded && secure.variables != made.variables);
        fs::write(&made.variables, "short").expect("written");
        assert!(flash(uefi, &own).expect_err("another size").contains("was made for another build"));
    }
}
