//! Running the program, and the service, in a state folder of their own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_fanlight");
/// Two busy cores are slow; nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A state folder that is gone when the test is.
pub(crate) struct State {
    path: PathBuf,
    base: PathBuf,
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running `fanlight serve`; killed when the test ends.
pub(crate) struct Service {
    child: Child,
    log: PathBuf,
    pub(crate) announced: Value,
}

impl State {
    pub(crate) fn new() -> Self {
        Self::at("")
    }

    /// A state folder `below` a temporary one.
    pub(crate) fn at(below: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = std::env::temp_dir().join(format!("fanlight-cli-{}-{number}", std::process::id()));
        let path = base.join("state").join(below);
        fs::create_dir_all(&path).unwrap();
        Self { path, base }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a command with these words as arguments.
    pub(crate) fn run(&self, words: &str) -> Finished {
        self.run_with_input(words, "")
    }

    pub(crate) fn run_with_input(&self, words: &str, input: &str) -> Finished {
        finish(self.command(words), input)
    }

    /// Runs a command that has to succeed, and reads the JSON it prints.
    pub(crate) fn json(&self, words: &str) -> Value {
        let finished = self.run(&format!("{words} --json"));
        assert_eq!(finished.code, 0, "{words}: {finished:?}");
        serde_json::from_str(&finished.stdout).unwrap()
    }

    pub(crate) fn add_user(&self, name: &str, password: &str) {
        let finished = self.run_with_input(&format!("user add {name}"), &format!("{password}\n"));
        assert_eq!(finished.code, 0, "{finished:?}");
    }

    /// Starts a service on a free port of loopback.
    pub(crate) fn serve(&self) -> Service {
        self.serve_with("--listen 127.0.0.1:0")
    }

    pub(crate) fn serve_with(&self, words: &str) -> Service {
        let log = self.base.join("log");
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        let mut child = self
            .command(&format!("serve --json {words}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let announced = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("no service: {line:?} {}", fs::read_to_string(&log).unwrap()));
        Service { child, log, announced }
    }

    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(words.split_whitespace()).env("FANLIGHT_STATE", &self.path).env_remove("FANLIGHT_LOG");
        command
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.base);
    }
}

impl Service {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.announced["listening"][0].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Resident memory in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end; the exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        eventually("the service ends", || self.child.try_wait().unwrap()).code()
    }

    /// Stops it as an administrator does.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.wait(), Some(0), "{}", self.log());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command until it ends.
pub(crate) fn finish(mut command: Command, input: &str) -> Finished {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that does not want the input has closed the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Finished {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Waits until `look` finds something.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
