//! A disk by which a guest tells what it sees: its shell writes to it, and the image is read from outside.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmm::{Disk, DiskBus, DiskFormat, Vm};

use crate::kit::{PATIENCE, TestHost, types};

const SIZE: u64 = 1 << 20;
/// How long an answer takes when no key was lost.
const AGAIN: Duration = Duration::from_secs(15);

/// The first virtio disk of a console guest.
pub(crate) struct TellTale {
    path: PathBuf,
    asked: u32,
    /// The last answer.
    pub(crate) said: String,
}

impl TellTale {
    pub(crate) fn new(host: &TestHost) -> Self {
        let path = host.folder().join("telltale.raw");
        fs::File::create(&path).and_then(|file| file.set_len(SIZE)).expect("an image");
        Self { path, asked: 0, said: String::new() }
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk::new(self.path.clone(), DiskFormat::Raw, DiskBus::Virtio)
    }

    /// What the guest has written so far.
    pub(crate) fn text(&self) -> String {
        let bytes = fs::read(&self.path).expect("the image");
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }

    /// Runs a command in the guest's shell; what it writes. `/dev/vda` must be this disk. On a busy machine a key may get
    /// lost: then it is typed again, so it must do no harm a second time. Where it was only slow the second line is read
    /// when the first has answered, and whatever is asked next may have begun: then it is left out.
    pub(crate) async fn ask(&mut self, vm: &Vm, command: &str) -> String {
        self.asked += 1;
        let end = format!("end {}", self.asked);
        // Its driver is loaded some time after the shell is there.
        let there = "until [ -b /dev/vda ]; do :; done";
        let done = format!("/tmp/answered.{}", self.asked);
        let answer = format!("({command}; echo; echo {end}) >/dev/vda 2>&1; sync; >{done}");
        let line = format!("\n{there}; [ -e {done} ] || {{ {answer}; }}\n");
        let deadline = Instant::now() + PATIENCE;
        let mut typed: Option<Instant> = None;
        loop {
            if typed.is_none_or(|at| at.elapsed() > AGAIN) {
                types(&vm.console(), &line).await;
                typed = Some(Instant::now());
            }
            let text = self.text();
            if let Some((said, _)) = text.split_once(&format!("\n{end}\n")) {
                self.said = said.trim_end().to_owned();
                return self.said.clone();
            }
            assert!(Instant::now() < deadline, "{command}: not within {PATIENCE:?}; so far:\n{text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
