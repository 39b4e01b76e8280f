//! What holds the disks of a VM: a move goes on beside everything else, and some things must not happen meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::state::Request;

/// The disks of a VM that are held. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holds {
    held: Arc<Mutex<BTreeMap<String, Kind>>>,
}

/// What must not happen meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A QEMU copies the disk.
    Live,
    /// The guest stands still until the disk is where it shall be: it must not be let go on by anybody else.
    Frozen,
    /// The image is copied while no QEMU has it open.
    Off,
}

/// A disk that is held for as long as this is.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Holds,
    disk: String,
}

impl Holds {
    /// Holds a disk; none when it is held already.
    pub(crate) fn hold(&self, disk: &str, kind: Kind) -> Option<Hold> {
        let mut held = self.lock();
        if held.contains_key(disk) {
            return None;
        }
        held.insert(disk.into(), kind);
        Some(Hold { holds: self.clone(), disk: disk.into() })
    }

    /// The disks that are held.
    pub(super) fn disks(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Why a request cannot be carried out now, if it cannot.
    pub(super) fn obstacle(&self, request: &Request) -> Option<String> {
        let held = self.lock();
        let (disk, _) = held.iter().find(|(_, kind)| kind.excludes(request))?;
        Some(format!("its disk {disk} is being moved or copied; wait for that, or cancel it (`fanlight job list`)"))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kind>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    pub(crate) fn change(&self, kind: Kind) {
        self.holds.lock().insert(self.disk.clone(), kind);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.lock().remove(&self.disk);
    }
}

impl Kind {
    fn excludes(self, request: &Request) -> bool {
        match request {
            Request::Shutdown | Request::PowerOff | Request::Reset | Request::Pause | Request::SwitchDisk { .. } => {
                false
            }
            Request::Start => self == Self::Off,
            Request::Resume => self == Self::Frozen,
            // They work on all disks at once, or do away with them.
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_disk_excludes_what_would_harm_it() {
        let holds = Holds::default();
        let hold = holds.hold("disk0", Kind::Live).expect("free");
        assert!(holds.hold("disk0", Kind::Off).is_none() && holds.hold("disk1", Kind::Off).is_some());
        let save = Request::SaveSnapshot { tag: "a".parse().expect("a name") };
        assert!(holds.obstacle(&save).expect("excluded").starts_with("its disk disk0 is being moved"));
        assert_eq!(holds.obstacle(&Request::Resume), None);
        hold.change(Kind::Frozen);
        assert!(holds.obstacle(&Request::Resume).is_some() && holds.obstacle(&Request::Start).is_none());
        hold.change(Kind::Off);
        assert!(holds.obstacle(&Request::Start).is_some() && holds.obstacle(&Request::PowerOff).is_none());
        drop(hold);
        assert!(holds.obstacle(&save).is_none() && holds.hold("disk0", Kind::Off).is_some());
    }
}
