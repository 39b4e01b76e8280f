//! Programs that a test runs: output kept in a file, ended when dropped.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait::{Look, wait_until};

/// How long a program that is asked to end may take.
const ENDING: Duration = Duration::from_secs(20);
/// Lines of output that an error shows.
const TAIL: usize = 25;

/// The groups that run now, for a test run that is interrupted.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A running program in a process group of its own. Dropping it kills the group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; what it writes is appended to `log`.
    ///
    /// # Errors
    ///
    /// When the program is not there or the log cannot be written.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        note_command(&file, &command)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start `{name}`: is it installed?"))?;
        let process = Self { name, child, log: log.to_owned(), status: None };
        groups().insert(process.pid().as_raw_nonzero().get());
        Ok(process)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Everything it wrote so far, on standard output and standard error.
    #[must_use]
    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    /// The file with everything it wrote.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// Waits for a line for which `find` finds something.
    ///
    /// # Errors
    ///
    /// When there is none within `limit`, or the program ends before.
    pub fn wait_for_line<T>(&mut self, limit: Duration, what: &str, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        wait_until(limit, what, || {
            let ended = self.ended()?;
            if let Some(found) = self.log().lines().find_map(&find) {
                return Ok(Look::Found(found));
            }
            match ended {
                Some(status) => bail!("`{}` ended with {status} before {what}:\n{}", self.name, self.tail()),
                None => Ok(Look::NotYet(format!("`{}` wrote:\n{}", self.name, self.tail()))),
            }
        })
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    ///
    /// When the system does not know.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    ///
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of `{}`", self.name);
        wait_until(limit, what, || Ok(Look::or_not_yet(self.ended()?, || format!("it wrote:\n{}", self.tail()))))
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)
    }

    /// Interrupts it, as Ctrl-C does (SIGINT), and waits.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn interrupt(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::INT)
    }

    /// Ends it and its children without asking (SIGKILL).
    pub fn kill(&mut self) {
        let pid = self.pid();
        if self.status.is_none() {
            // It may have ended meanwhile: its group is then gone, which is what is wanted. The id is still ours,
            // because nobody has waited for it.
            let _ = kill_process_group(pid, Signal::KILL);
            self.status = self.child.wait().ok();
        }
        groups().remove(&pid.as_raw_nonzero().get());
    }

    fn signal(&mut self, signal: Signal) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        kill_process(self.pid(), signal)?;
        self.wait(ENDING)
    }

    /// The last lines it wrote.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a short program to its end with `input` on standard input.
///
/// # Errors
///
/// When it cannot be started or is not done within `limit`.
pub fn run(mut command: Command, input: &str, limit: Duration) -> Result<Output> {
    let name = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let pid = Pid::from_child(&child);
    let stdin = child.stdin.take();
    if let Some(mut stdin) = stdin {
        // A program that does not read what it is told may have ended: its status says more than this error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(limit) {
        Ok(output) => output.with_context(|| format!("cannot wait for {name}")),
        Err(_) => {
            kill_process(pid, Signal::KILL)?;
            // It is waited for, so that its id was not somebody else's a moment ago.
            let _ = waiting.join();
            bail!("{name} was not done after {} s", limit.as_secs())
        }
    }
}

/// Kills every group that still runs: for a run that is interrupted.
pub fn kill_all() {
    for group in std::mem::take(&mut *groups()) {
        if let Some(pid) = Pid::from_raw(group) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// The text of a log, whatever bytes are in it; nothing when it is not there.
#[must_use]
pub fn read_log(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn note_command(mut log: &File, command: &Command) -> Result<()> {
    Ok(writeln!(log, "$ {command:?}")?)
}

fn groups() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_line_is_waited_for_and_children_end_with_their_parent() {
        let log = scratch::folder("process").unwrap().join("log");
        let mut process = Process::start(shell("sleep 1000 & echo child $!; wait"), &log).unwrap();
        let child: i32 = process
            .wait_for_line(Duration::from_secs(10), "the child", |line| line.strip_prefix("child ")?.parse().ok())
            .unwrap();
        drop(process);
        let gone = |pid| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
        wait_until(Duration::from_secs(10), "its end", || Ok(Look::when(!gone(child), || "it runs".into()))).unwrap();
    }

    #[test]
    fn a_program_that_ends_too_early_is_quoted() {
        let log = scratch::folder("process").unwrap().join("log");
        let mut process = Process::start(shell("echo no luck; exit 3"), &log).unwrap();
        let error = process.wait_for_line(Duration::from_secs(10), "luck", |line| (line == "luck").then_some(()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("no luck") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn a_short_program_gets_its_input_and_has_a_deadline() {
        let output = run(Command::new("cat"), "hello", Duration::from_secs(10)).unwrap();
        assert_eq!(output.stdout, b"hello");
        assert!(run(shell("exec sleep 1000"), "", Duration::from_millis(50)).is_err());
    }
}
