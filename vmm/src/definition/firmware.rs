//! What runs before the guest's own programs, and what keeps its secrets.

use std::fmt;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::parse::Misplaced;

/// Least memory of a VM with UEFI, in MiB: below, the firmware does not come up.
pub(super) const UEFI_MEMORY_MIB: u32 = 64;

/// The program that a VM's processors run first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF. What it is told to keep (boot entries, keys) is kept with the VM.
    Uefi {
        /// Whether it starts nothing but what is signed by a key that it knows: at first those of Microsoft, by which the
        /// boot loaders of distributions are signed, too.
        secure_boot: bool,
    },
}

/// A TPM 2.0, whose keys are kept with the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tpm {
    /// By which registers the guest finds it.
    pub model: TpmModel,
}

/// By which registers a guest finds its TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TpmModel {
    /// A command response buffer, which current systems expect.
    #[default]
    Crb,
    /// The interface of TPM 1.2 and of chips on a bus, for older systems.
    Tis,
}

impl Firmware {
    /// Whether it is UEFI.
    #[must_use]
    pub fn is_uefi(self) -> bool {
        matches!(self, Self::Uefi { .. })
    }

    /// Whether it starts only what is signed.
    #[must_use]
    pub fn secure_boot(self) -> bool {
        self == Self::Uefi { secure_boot: true }
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bios => "bios",
            Self::Uefi { secure_boot: false } => "uefi",
            Self::Uefi { secure_boot: true } => "uefi with Secure Boot",
        })
    }
}

/// How the file says which firmware.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FirmwareWord {
    Bios,
    Uefi,
}

impl FirmwareWord {
    pub(super) fn of(firmware: Firmware) -> Self {
        if firmware.is_uefi() { Self::Uefi } else { Self::Bios }
    }

    /// The firmware that a `[boot]` table asks for.
    pub(super) fn firmware(word: Option<Self>, secure_boot: Option<&Spanned<bool>>) -> Result<Firmware, Misplaced> {
        let asked = secure_boot.is_some_and(|key| *key.get_ref());
        match (word.unwrap_or(Self::Bios), secure_boot) {
            (Self::Uefi, _) => Ok(Firmware::Uefi { secure_boot: asked }),
            (Self::Bios, Some(key)) if asked => {
                Err((key.span(), "`secure_boot` goes with `firmware = \"uefi\"` only".into()))
            }
            (Self::Bios, _) => Ok(Firmware::Bios),
        }
    }
}

/// `[tpm]` as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TpmTable {
    #[serde(default)]
    pub(super) model: TpmModel,
}
