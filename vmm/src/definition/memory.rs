//! How much memory a VM has: always the same, or as its guest needs it.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Spanned;

use super::check::{Problem, problem};
use super::parse::About;
use super::{Accelerator, Definition, MEMORY_MIB};

/// Least and most buffer, in percent.
pub const MEMORY_BUFFER: RangeInclusive<u16> = 5..=2000;
/// Least and most weight.
pub const MEMORY_WEIGHT: RangeInclusive<u16> = 0..=crate::memory::MAX_WEIGHT;

/// Memory that follows the guest's need. It starts with [`Definition::memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DynamicMemory {
    /// What it keeps under all circumstances, in MiB.
    pub minimum: u32,
    /// What it never exceeds, in MiB.
    pub maximum: u32,
    /// How much it should have beyond its need, in percent of the need.
    pub buffer: u16,
    /// How much it counts when memory is short.
    pub weight: u16,
    /// Whose devices change it.
    pub devices: MemoryDevices,
}

/// By which devices a guest's memory is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryDevices {
    /// virtio-balloon and virtio-mem, for which Linux has drivers.
    #[default]
    Virtio,
    /// Hyper-V's dynamic memory, for which Windows has one. Needs KVM.
    HyperV,
}

impl DynamicMemory {
    /// Memory between `minimum` and `maximum` MiB, with the usual buffer and weight.
    #[must_use]
    pub fn between(minimum: u32, maximum: u32) -> Self {
        Self { minimum, maximum, buffer: 20, weight: 5000, devices: MemoryDevices::Virtio }
    }

    /// Why it cannot be, for a VM that starts with `startup` MiB.
    pub(super) fn problem(&self, startup: u32, accelerator: Accelerator) -> Option<Problem> {
        let (least, most) = (MEMORY_MIB.start(), MEMORY_MIB.end());
        if !(*least..=startup).contains(&self.minimum) {
            let reason = format!("`minimum` is {least} to `startup` ({startup}) MiB, not {}", self.minimum);
            return problem(About::Memory(MemoryPart::Minimum), reason);
        }
        if !(startup..=*most).contains(&self.maximum) {
            let reason = format!("`maximum` is `startup` ({startup}) to {most} MiB, not {}", self.maximum);
            return problem(About::Memory(MemoryPart::Maximum), reason);
        }
        if !MEMORY_BUFFER.contains(&self.buffer) {
            let (least, most) = (MEMORY_BUFFER.start(), MEMORY_BUFFER.end());
            return problem(
                About::Memory(MemoryPart::Buffer),
                format!("`buffer` is {least} to {most} %, not {}", self.buffer),
            );
        }
        if !MEMORY_WEIGHT.contains(&self.weight) {
            let most = MEMORY_WEIGHT.end();
            return problem(About::Memory(MemoryPart::Weight), format!("`weight` is 0 to {most}, not {}", self.weight));
        }
        if self.devices == MemoryDevices::HyperV && accelerator == Accelerator::Tcg {
            return problem(About::Memory(MemoryPart::Devices), "`devices = \"hyperv\"` needs KVM");
        }
        None
    }
}

/// How the file says it.
#[derive(Serialize)]
pub(super) struct MemoryFile {
    startup: u32,
    minimum: u32,
    maximum: u32,
    buffer: u16,
    weight: u16,
    devices: MemoryDevices,
}

impl MemoryFile {
    pub(super) fn of(definition: &Definition) -> Option<Self> {
        let DynamicMemory { minimum, maximum, buffer, weight, devices } = definition.dynamic_memory?;
        Some(Self { startup: definition.memory, minimum, maximum, buffer, weight, devices })
    }
}

impl Definition {
    /// What the VM's owner wants of its memory, when it follows the guest's need.
    #[must_use]
    pub fn memory_settings(&self) -> Option<crate::memory::MemorySettings> {
        let bytes = |mib: u32| u64::from(mib) << 20;
        self.dynamic_memory.map(|dynamic| crate::memory::MemorySettings {
            minimum: bytes(dynamic.minimum),
            startup: bytes(self.memory),
            maximum: bytes(dynamic.maximum),
            buffer: dynamic.buffer,
            weight: dynamic.weight,
        })
    }
}

/// `memory = 512`, or a table.
pub(super) enum MemoryKey {
    Static(u32),
    Dynamic(MemoryTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemoryTable {
    pub(super) startup: Spanned<u32>,
    pub(super) minimum: Option<Spanned<u32>>,
    pub(super) maximum: Option<Spanned<u32>>,
    pub(super) buffer: Option<Spanned<u16>>,
    pub(super) weight: Option<Spanned<u16>>,
    pub(super) devices: Option<Spanned<MemoryDevices>>,
}

impl MemoryKey {
    pub(super) fn startup(&self) -> u32 {
        match self {
            Self::Static(mib) => *mib,
            Self::Dynamic(table) => *table.startup.get_ref(),
        }
    }

    pub(super) fn dynamic(&self) -> Option<DynamicMemory> {
        let Self::Dynamic(table) = self else { return None };
        let startup = self.startup();
        let usual = DynamicMemory::between(startup, startup);
        Some(DynamicMemory {
            minimum: table.minimum.as_ref().map_or(usual.minimum, |key| *key.get_ref()),
            maximum: table.maximum.as_ref().map_or(usual.maximum, |key| *key.get_ref()),
            buffer: table.buffer.as_ref().map_or(usual.buffer, |key| *key.get_ref()),
            weight: table.weight.as_ref().map_or(usual.weight, |key| *key.get_ref()),
            devices: table.devices.as_ref().map_or(usual.devices, |key| *key.get_ref()),
        })
    }
}

/// What a problem of the memory is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryPart {
    Startup,
    Minimum,
    Maximum,
    Buffer,
    Weight,
    Devices,
}

/// Where each part stands in the file; a part that is not said stands where all of them do.
pub(super) struct MemorySpans {
    whole: Range<usize>,
    parts: Vec<(MemoryPart, Range<usize>)>,
}

impl MemorySpans {
    pub(super) fn of(key: &Spanned<MemoryKey>) -> Self {
        let mut parts = Vec::new();
        if let MemoryKey::Dynamic(table) = key.get_ref() {
            parts.push((MemoryPart::Startup, table.startup.span()));
            parts.extend(table.minimum.as_ref().map(|key| (MemoryPart::Minimum, key.span())));
            parts.extend(table.maximum.as_ref().map(|key| (MemoryPart::Maximum, key.span())));
            parts.extend(table.buffer.as_ref().map(|key| (MemoryPart::Buffer, key.span())));
            parts.extend(table.weight.as_ref().map(|key| (MemoryPart::Weight, key.span())));
            parts.extend(table.devices.as_ref().map(|key| (MemoryPart::Devices, key.span())));
        }
        Self { whole: key.span(), parts }
    }

    pub(super) fn find(&self, part: MemoryPart) -> &Range<usize> {
        self.parts.iter().find(|(other, _)| *other == part).map_or(&self.whole, |(_, span)| span)
    }
}

impl<'de> Deserialize<'de> for MemoryKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not an untagged enum: that forgets where in the table a mistake is, and which.
        deserializer.deserialize_any(MemoryVisitor)
    }
}

struct MemoryVisitor;

impl<'de> Visitor<'de> for MemoryVisitor {
    type Value = MemoryKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MiB or a table with `startup`")
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<MemoryKey, E> {
        let mib = u32::try_from(value).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))?;
        Ok(MemoryKey::Static(mib))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MemoryKey, A::Error> {
        MemoryTable::deserialize(MapAccessDeserializer::new(map)).map(MemoryKey::Dynamic)
    }
}
