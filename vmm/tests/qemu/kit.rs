//! A host in a temporary folder, and waits with a deadline.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use console::{DisplayUpdate, Rect, Scanout, Size};
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;
use vmm::{Accelerator, Boot, Definition, Host, HostConfig, Network, Status, Viewer, Vm, VmState};

/// How long anything may take that must happen; slow machines are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A host of its own, whose QEMUs end with it.
pub(crate) struct TestHost {
    folder: PathBuf,
    pub(crate) config: HostConfig,
    host: Option<Host>,
}

impl TestHost {
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// A host whose settings are not the usual ones.
    pub(crate) async fn with(change: impl FnOnce(&mut HostConfig)) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("fanlight-vmm-{}-{number}", std::process::id()));
        let mut config = HostConfig::new(folder.join("vms"), folder.join("run"));
        change(&mut config);
        let host = Some(Host::open(config.clone()).await.expect("host opens"));
        Self { folder, config, host }
    }

    pub(crate) fn host(&self) -> &Host {
        self.host.as_ref().expect("the host is open")
    }

    /// Ends the gateway's part and starts it anew, as a gateway that was killed and started does.
    pub(crate) async fn reopen(&mut self) {
        self.host = None;
        self.host = Some(Host::open(self.config.clone()).await.expect("host opens"));
    }

    /// Ends the gateway's part, and no more.
    pub(crate) fn close(&mut self) {
        self.host = None;
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A VM that shows the firmware's screen and finds nothing to boot.
    pub(crate) async fn firmware_vm(&self, name: &str) -> Vm {
        self.host().create(firmware(name)).await.expect("created")
    }

    pub(crate) fn vm(&self, name: &str) -> Vm {
        self.host().find(name).expect("there is such a VM")
    }

    fn runtime_folders(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.config.runtime).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        for folder in self.runtime_folders() {
            // The second line begins with the number of the process.
            let Ok(text) = fs::read_to_string(folder.join("pid")) else { continue };
            let pid = text.lines().nth(1).and_then(|stat| stat.split(' ').next()?.parse().ok());
            if let Some(pid) = pid.filter(|pid| is_alive(*pid)) {
                signal(pid, Signal::KILL);
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn firmware(name: &str) -> Definition {
    Definition {
        memory: 64,
        accelerator: Accelerator::Tcg,
        network: Network::None,
        ..Definition::new(name, Uuid::from_u128(rand()))
    }
}

/// A VM with the project's console guest.
pub(crate) fn console_guest(name: &str) -> Definition {
    let path = |variable: &str| -> PathBuf {
        let value = std::env::var_os(variable);
        value
            .unwrap_or_else(|| panic!("{variable} is not set: run this test by `./x test`, which builds the image"))
            .into()
    };
    let boot = Boot::DirectKernel {
        kernel: path("FANLIGHT_CONSOLE_KERNEL"),
        initrd: Some(path("FANLIGHT_CONSOLE_INITRD")),
        cmdline: "console=tty0 quiet".into(),
    };
    Definition { memory: 256, boot, ..firmware(name) }
}

/// A number that no other test of this run has.
fn rand() -> u128 {
    Uuid::new_v4().as_u128()
}

/// Waits for what must happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Waits until the VM is in `state`.
pub(crate) async fn reaches(vm: &Vm, state: VmState) -> Status {
    let mut watch = vm.watch();
    let reached = watch.wait_for(|status| status.state == state);
    tokio::time::timeout(PATIENCE, reached)
        .await
        .unwrap_or_else(|_| panic!("{state} was not reached: {:?}", vm.status()))
        .expect("the driver lives")
        .clone()
}

/// Looks until `enough` says so of a picture, and returns what was seen last.
pub(crate) async fn sees(viewer: &mut Viewer, what: &str, mut enough: impl FnMut(&DisplayUpdate, &[u8]) -> bool) {
    soon(what, async {
        loop {
            viewer.changed().await;
            let update = viewer.take();
            let pixels = update.scanout.as_deref().map(pixels).unwrap_or_default();
            if enough(&update, &pixels) {
                return;
            }
        }
    })
    .await;
}

/// All pixels of a picture, four bytes each.
pub(crate) fn pixels(scanout: &dyn Scanout) -> Vec<u8> {
    let Size { width, height } = scanout.size();
    let mut pixels = vec![0; width as usize * height as usize * 4];
    scanout.copy_rect(Rect::new(0, 0, width, height), &mut pixels, width as usize * 4);
    pixels
}

/// How many pixels are not black.
pub(crate) fn lit(pixels: &[u8]) -> usize {
    pixels.chunks(4).filter(|pixel| pixel[..3].iter().any(|colour| *colour > 64)).count()
}

/// Whether the process exists and has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, after)| after.trim_start().starts_with(['Z', 'X'])))
}

/// Sends a signal to a process this test started.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process number")).expect("not zero");
    kill_process(pid, signal).expect("the process is there");
}
