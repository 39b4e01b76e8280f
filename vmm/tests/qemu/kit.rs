//! A host in a temporary folder, and waits with a deadline.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use console::{DisplayUpdate, KeyEvent, KeyState, Scanout, Size};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;
use vmm::{Accelerator, Boot, Console, Definition, Host, HostConfig, Network, Status, Viewer, Vm, VmState};

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
        network: Network::none(),
        ..Definition::new(name, Uuid::from_u128(rand()))
    }
}

/// The kernel and the initramfs of the project's console guest.
pub(crate) fn console_files() -> (PathBuf, PathBuf) {
    let path = |variable: &str| -> PathBuf {
        let value = std::env::var_os(variable);
        value
            .unwrap_or_else(|| panic!("{variable} is not set: run this test by `./x test`, which builds the image"))
            .into()
    };
    (path("FANLIGHT_CONSOLE_KERNEL"), path("FANLIGHT_CONSOLE_INITRD"))
}

/// A VM with the project's console guest.
pub(crate) fn console_guest(name: &str) -> Definition {
    let (kernel, initrd) = console_files();
    let boot = Boot::DirectKernel {
        kernel,
        initrd: Some(initrd),
        // These tests speak on the port themselves.
        cmdline: "console=tty0 quiet fanlight.agent=none".into(),
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

/// Looks until `enough` says so of a picture; when it never does, the last picture is kept as a file.
pub(crate) async fn sees(viewer: &mut Viewer, what: &str, mut enough: impl FnMut(&DisplayUpdate, &Picture) -> bool) {
    let mut picture = Picture::default();
    let look = async {
        loop {
            viewer.changed().await;
            let update = viewer.take();
            picture = update.scanout.as_deref().map(Picture::of).unwrap_or_default();
            if enough(&update, &picture) {
                return;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, look).await.is_err() {
        panic!("{what}: not within {PATIENCE:?}; {}", picture.keep());
    }
}

/// Types on the US layout, as fast as the guest shows what it is typed.
///
/// QEMU's keyboard has 64 places for what the guest has not looked at (a letter takes four, one with Shift eight) and forgets the rest.
pub(crate) async fn types(console: &Console, text: &str) {
    let mut viewer = console.viewer();
    for some in text.encode_utf16().collect::<Vec<_>>().chunks(6) {
        viewer.take();
        for unit in some {
            send(console, KeyEvent::Unicode { unit: *unit, state: KeyState::Pressed }).await;
        }
        // A guest that shows nothing of it is not waited for for ever.
        let _ = tokio::time::timeout(Duration::from_secs(1), viewer.changed()).await;
    }
}

/// Sends a key as a session does: when there is no room, it waits.
pub(crate) async fn send(console: &Console, event: KeyEvent) {
    while console.send_key(event).is_err() {
        soon("room for input", console.input_room()).await;
    }
}

/// Waits until the guest's shell answers.
pub(crate) async fn shell(console: &Console) {
    let mut viewer = console.viewer();
    soon("a shell", async {
        let mut answers = false;
        while !answers {
            // Until it answers, it is asked again; a guest that is not there yet forgets.
            types(console, "\n").await;
            let seen = sees(&mut viewer, "prompts", |_, picture| prompts(picture) >= 3);
            answers = tokio::time::timeout(Duration::from_secs(1), seen).await.is_ok();
        }
    })
    .await;
}

/// How many lines with the same text follow each other, on a screen with lines of 16 pixels.
fn prompts(picture: &Picture) -> usize {
    let lines: Vec<&[u8]> = picture.pixels.chunks_exact((picture.size.width as usize * 64).max(1)).collect();
    let same = |line: &&[u8]| lines.iter().filter(|other| other == &line).count();
    lines.iter().filter(|line| lit(line) > 100).map(same).max().unwrap_or(0)
}

/// The most characters of a kind in a row, on a screen of 8 × 16 cells.
pub(crate) fn longest_run(picture: &Picture) -> usize {
    let stride = picture.size.width as usize * 4;
    let cell = |row: usize, column: usize| -> Vec<u8> {
        let start = |line: usize| (row * 16 + line) * stride + column * 32;
        (0..16).flat_map(|line| picture.pixels[start(line)..][..32].iter().copied()).collect()
    };
    let (rows, columns) = (picture.size.height as usize / 16, picture.size.width as usize / 8);
    let runs = (0..rows).map(|row| {
        let (mut longest, mut run, mut last) = (0, 0, Vec::new());
        for column in 0..columns {
            let this = cell(row, column);
            run = if this == last { run + 1 } else { 1 };
            // An 'm' has many lit pixels; blanks and dashes do not count.
            if lit(&this) > 25 {
                longest = longest.max(run);
            }
            last = this;
        }
        longest
    });
    runs.max().unwrap_or(0)
}

/// A copy of what a screen showed.
#[derive(Default)]
pub(crate) struct Picture {
    pub(crate) size: Size,
    /// Four bytes each, rows without gaps.
    pub(crate) pixels: Vec<u8>,
}

impl Picture {
    fn of(scanout: &dyn Scanout) -> Self {
        let size = scanout.size();
        let stride = size.width as usize * 4;
        let mut pixels = vec![0; stride * size.height as usize];
        scanout.copy_rect(size.rect(), &mut pixels, stride);
        Self { size, pixels }
    }

    /// Writes it as a file that every viewer of pictures opens, and says where.
    fn keep(&self) -> String {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fanlight-vmm-{}-{number}.ppm", std::process::id()));
        let mut file = format!("P6 {} {} 255\n", self.size.width, self.size.height).into_bytes();
        file.extend(self.pixels.chunks(4).flat_map(|pixel| [pixel[2], pixel[1], pixel[0]]));
        match fs::write(&path, file) {
            Ok(()) => format!("the screen is in {}", path.display()),
            Err(error) => format!("the screen cannot be kept: {error}"),
        }
    }

    /// So many of its lines.
    pub(crate) fn top(&self, lines: usize) -> Self {
        let length = (self.size.width as usize * 4 * lines).min(self.pixels.len());
        Self { size: self.size, pixels: self.pixels[..length].to_vec() }
    }

    /// Whether there is more on it than a cursor and a few words.
    pub(crate) fn has_text(&self) -> bool {
        lit(&self.pixels) > 500
    }
}

/// How many pixels are not black.
fn lit(pixels: &[u8]) -> usize {
    pixels.chunks(4).filter(|pixel| pixel[..3].iter().any(|colour| *colour > 64)).count()
}

/// Threads for one gateway: when they end, nothing of it does anything more.
pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads")
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
