//! What a VM's processors look like to its guest.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::Definition;
use super::check::{Problem, problem};
use super::parse::About;

/// Longest name of a processor model, with what is switched on and off in it.
const MAX_MODEL: usize = 200;

/// What a VM's processors look like to its guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cpu {
    /// How many there are of what; none: one socket with a core for each virtual processor, as systems that are licensed
    /// by sockets like it.
    pub topology: Option<Topology>,
    /// QEMU's name of the model, such as `qemu32` or `Skylake-Client,-avx2`; none: the host's own where the hardware runs
    /// it, else the least that 64-bit systems need.
    pub model: Option<String>,
}

/// Sockets, cores, threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Topology {
    /// Sockets.
    pub sockets: u8,
    /// Cores of each socket.
    pub cores: u8,
    /// Threads of each core.
    pub threads: u8,
}

impl Topology {
    /// Fills in what is not said: threads are one, and the rest is cores where it can be.
    ///
    /// # Errors
    ///
    /// When that does not make `vcpus`.
    pub fn complete(vcpus: u8, sockets: Option<u8>, cores: Option<u8>, threads: Option<u8>) -> Result<Self, String> {
        let threads = match (sockets, cores, threads) {
            (Some(sockets), Some(cores), None) => quotient(vcpus, sockets, cores).unwrap_or(1),
            (.., threads) => threads.unwrap_or(1),
        };
        let (sockets, cores) = match (sockets, cores) {
            (Some(sockets), Some(cores)) => (sockets, cores),
            (None, Some(cores)) => (quotient(vcpus, cores, threads).unwrap_or(1), cores),
            (sockets, None) => {
                let sockets = sockets.unwrap_or(1);
                (sockets, quotient(vcpus, sockets, threads).unwrap_or(1))
            }
        };
        let topology = Self { sockets, cores, threads };
        if topology.vcpus() == u32::from(vcpus) { Ok(topology) } else { Err(topology.mismatch(vcpus)) }
    }

    /// One socket with `vcpus` cores.
    #[must_use]
    pub fn one_socket(vcpus: u8) -> Self {
        Self { sockets: 1, cores: vcpus, threads: 1 }
    }

    fn vcpus(self) -> u32 {
        u32::from(self.sockets) * u32::from(self.cores) * u32::from(self.threads)
    }

    fn mismatch(self, vcpus: u8) -> String {
        let Self { sockets, cores, threads } = self;
        let makes = self.vcpus();
        format!(
            "{sockets} sockets of {cores} cores of {threads} threads make {makes} processors, and `vcpus` is {vcpus}"
        )
    }
}

/// `all` by `a` and `b`, where that leaves nothing.
fn quotient(all: u8, a: u8, b: u8) -> Option<u8> {
    let by = u32::from(a) * u32::from(b);
    let all = u32::from(all);
    (by != 0 && all % by == 0).then(|| u8::try_from(all / by).ok()).flatten()
}

impl Definition {
    /// How the processors are told to the guest.
    #[must_use]
    pub fn topology(&self) -> Topology {
        self.cpu.topology.unwrap_or_else(|| Topology::one_socket(self.vcpus))
    }

    pub(super) fn cpu_problem(&self) -> Option<Problem> {
        if let Some(topology) = self.cpu.topology
            && topology.vcpus() != u32::from(self.vcpus)
        {
            return problem(About::Cpu, topology.mismatch(self.vcpus));
        }
        let model = self.cpu.model.as_deref()?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.,+=".contains(c);
        if model.is_empty() || model.len() > MAX_MODEL || !model.chars().all(fits) {
            let reason = format!("`model` is a name of QEMU's (`qemu-system-x86_64 -cpu help`), not {model:?}");
            return problem(About::CpuModel, reason);
        }
        None
    }
}

/// `[cpu]` as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CpuTable {
    sockets: Option<u8>,
    cores: Option<u8>,
    threads: Option<u8>,
    model: Option<Spanned<String>>,
}

impl CpuTable {
    pub(super) fn into_cpu(self, vcpus: u8) -> Result<Cpu, String> {
        let topology = match (self.sockets, self.cores, self.threads) {
            (None, None, None) => None,
            // Whether it fits is judged with the rest.
            (Some(sockets), Some(cores), Some(threads)) => Some(Topology { sockets, cores, threads }),
            (sockets, cores, threads) => Some(Topology::complete(vcpus, sockets, cores, threads)?),
        };
        Ok(Cpu { topology, model: self.model.map(Spanned::into_inner) })
    }

    pub(super) fn model_span(&self) -> Option<Range<usize>> {
        self.model.as_ref().map(Spanned::span)
    }
}

/// `[cpu]` as it is written.
#[derive(Serialize)]
pub(super) struct CpuFile<'a> {
    #[serde(flatten)]
    topology: Option<Topology>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
}

impl<'a> CpuFile<'a> {
    pub(super) fn of(cpu: &'a Cpu) -> Option<Self> {
        (*cpu != Cpu::default()).then_some(Self { topology: cpu.topology, model: cpu.model.as_deref() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_of_the_topology_is_filled_in() {
        let complete = |vcpus, sockets, cores, threads| {
            Topology::complete(vcpus, sockets, cores, threads).map(|t| (t.sockets, t.cores, t.threads))
        };
        assert_eq!(complete(8, None, None, None), Ok((1, 8, 1)));
        assert_eq!(complete(8, Some(2), None, None), Ok((2, 4, 1)));
        assert_eq!(complete(8, None, Some(2), None), Ok((4, 2, 1)));
        assert_eq!(complete(8, None, None, Some(2)), Ok((1, 4, 2)));
        assert_eq!(complete(8, Some(2), Some(2), None), Ok((2, 2, 2)));
        assert_eq!(complete(8, None, Some(2), Some(2)), Ok((2, 2, 2)));
        for wrong in
            [complete(8, Some(3), None, None), complete(8, Some(0), None, None), complete(4, Some(1), Some(2), Some(1))]
        {
            assert!(wrong.is_err(), "{wrong:?}");
        }
        let said = Topology::complete(4, Some(2), Some(4), None).expect_err("eight");
        assert_eq!(said, "2 sockets of 4 cores of 1 threads make 8 processors, and `vcpus` is 4");
        assert!(Topology::complete(32, Some(255), Some(255), Some(255)).is_err());
    }
}
