//! The init of this system, told by the commands that everybody has.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use enhanced_session::class::shutdown::{Action, Actions};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Mode, Outcome, System};

/// Where commands are looked for; what the environment says does not matter.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// There when systemd is the init.
const SYSTEMD: &str = "/run/systemd/system";
/// How long systemd may take to say what it is doing.
const JOBS_PATIENCE: Duration = Duration::from_millis(500);
/// Most of a command's complaint that is read, and of a list of jobs.
const MAX_OUTPUT_BYTES: u64 = 16 * 1024;

/// The init, and what was started last.
pub(super) struct Init {
    systemctl: Option<PathBuf>,
    child: Option<Child>,
    /// Those that nobody waits for.
    others: Vec<Child>,
}

impl Init {
    pub(super) fn find() -> Self {
        let systemctl = if Path::new(SYSTEMD).exists() { find("systemctl") } else { None };
        Self { systemctl, child: None, others: Vec::new() }
    }

    fn command(&self, action: Action, mode: Mode, text: &str) -> Option<Command> {
        let (program, arguments) = match &self.systemctl {
            Some(systemctl) => (systemctl.clone(), systemctl_arguments(action, mode, text)),
            None => {
                let force = (mode == Mode::Now).then(|| OsString::from("-f"));
                (find(plain_command(action)?)?, force.into_iter().collect())
            }
        };
        let mut command = Command::new(program);
        command.args(arguments);
        Some(command)
    }
}

impl System for Init {
    fn actions(&self) -> Actions {
        let has = |action| self.systemctl.is_some() || plain_command(action).and_then(find).is_some();
        Actions {
            power_off: has(Action::PowerOff),
            reboot: has(Action::Reboot),
            hibernate: self.systemctl.is_some() && can_hibernate(&read("/sys/power/disk"), &read("/proc/swaps")),
        }
    }

    fn tell_users(&mut self, text: &str) {
        // systemd does it when it is told to go.
        if self.systemctl.is_some() {
            return;
        }
        match find("wall") {
            Some(wall) => {
                let child =
                    Command::new(wall).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
                self.others.extend(child.ok().map(|mut child| {
                    // A pipe holds more than the longest text.
                    let _ = child.stdin.take().map(|mut input| input.write_all(text.as_bytes()));
                    child
                }));
            }
            // The screen that is shown.
            None => {
                let screen = fs::OpenOptions::new().write(true).open("/dev/tty0");
                let _ = screen.and_then(|mut screen| write!(screen, "\r\n{text}\r\n"));
            }
        }
    }

    fn start(&mut self, action: Action, mode: Mode, text: &str) -> io::Result<()> {
        let mut command = self.command(action, mode, text).ok_or(io::ErrorKind::NotFound)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let earlier = self.child.replace(command.spawn()?);
        self.others.extend(earlier);
        Ok(())
    }

    fn poll_ended(&mut self) -> Option<Outcome> {
        self.others.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let status = self.child.as_mut()?.try_wait().ok()??;
        let complaint = self.child.take()?.stderr.map(complaint).unwrap_or_default();
        Some(if status.success() { Outcome::Done } else { failure(complaint, &status.to_string()) })
    }

    fn action_under_way(&mut self) -> Option<Action> {
        let jobs = output(Command::new(self.systemctl.as_ref()?).args(["list-jobs", "--no-legend", "--plain"]))?;
        action_of_jobs(&jobs)
    }
}

fn systemctl_arguments(action: Action, mode: Mode, text: &str) -> Vec<OsString> {
    let mode = match mode {
        Mode::Ask => "--check-inhibitors=yes",
        Mode::Force => "--ignore-inhibitors",
        Mode::Now => "--force",
    };
    let verb = match action {
        Action::PowerOff => "poweroff",
        Action::Reboot => "reboot",
        Action::Hibernate => "hibernate",
    };
    let message = (!text.is_empty()).then(|| OsString::from(format!("--message={text}")));
    [mode.into(), "--no-ask-password".into(), verb.into()].into_iter().chain(message).collect()
}

const fn plain_command(action: Action) -> Option<&'static str> {
    match action {
        Action::PowerOff => Some("poweroff"),
        Action::Reboot => Some("reboot"),
        Action::Hibernate => None,
    }
}

fn find(command: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(command)).find(|path| path.exists())
}

/// The kernel can write its memory somewhere, and there is somewhere.
fn can_hibernate(disk: &str, swaps: &str) -> bool {
    let disk = disk.trim();
    !disk.is_empty() && disk != "[disabled]" && swaps.lines().count() > 1
}

fn failure(complaint: String, status: &str) -> Outcome {
    match complaint.trim() {
        "" => Outcome::Failed(status.to_owned()),
        // systemctl: Operation inhibited by "apt" (PID 17 "apt", user root), reason is "updating".
        held if held.contains("inhibited") => Outcome::Held(held.to_owned()),
        other => Outcome::Failed(other.to_owned()),
    }
}

fn complaint(stderr: impl io::Read) -> String {
    let mut bytes = Vec::new();
    // The process has ended: there is no more than what is in the pipe.
    let _ = stderr.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `137 reboot.target start waiting`
fn action_of_jobs(jobs: &str) -> Option<Action> {
    jobs.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        match (words.next()?, words.next()?) {
            ("poweroff.target" | "halt.target", "start") => Some(Action::PowerOff),
            ("reboot.target" | "kexec.target" | "soft-reboot.target", "start") => Some(Action::Reboot),
            _ => None,
        }
    })
}

/// What a command prints, if it does not take long.
fn output(command: &mut Command) -> Option<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let mut stdout = child.stdout.take()?;
    let deadline = Instant::now() + JOBS_PATIENCE;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while u64::try_from(bytes.len()).unwrap_or(u64::MAX) < MAX_OUTPUT_BYTES {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok()?;
        let ready = poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&left));
        match ready.ok().filter(|count| *count > 0).map(|_| stdout.read(&mut buffer)) {
            Some(Ok(count)) if count > 0 => bytes.extend_from_slice(buffer.get(..count)?),
            _ => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told_by_options() {
        let arguments = |mode, text| systemctl_arguments(Action::Reboot, mode, text);
        assert_eq!(arguments(Mode::Ask, ""), ["--check-inhibitors=yes", "--no-ask-password", "reboot"]);
        assert_eq!(
            arguments(Mode::Force, "-f update"),
            ["--ignore-inhibitors", "--no-ask-password", "reboot", "--message=-f update"]
        );
    }

    #[test]
    fn a_list_of_jobs_tells_where_the_system_goes() {
        let jobs = "  1 cron.service stop running\n137 reboot.target start waiting\n";
        assert_eq!(action_of_jobs(jobs), Some(Action::Reboot));
        assert_eq!(action_of_jobs("9 poweroff.target start waiting\n"), Some(Action::PowerOff));
        assert_eq!(action_of_jobs("9 poweroff.target stop waiting\n\n x"), None);
    }

    #[test]
    fn a_program_that_holds_the_system_up_is_told_from_an_error() {
        let held = "Operation inhibited by \"apt\" (PID 17 \"apt\", user root), reason is \"updating\".\n";
        assert_eq!(failure(held.into(), "exit status: 1"), Outcome::Held(held.trim().into()));
        assert_eq!(
            failure("Failed to connect to bus\n".into(), ""),
            Outcome::Failed("Failed to connect to bus".into())
        );
        assert_eq!(failure(String::new(), "exit status: 1"), Outcome::Failed("exit status: 1".into()));
    }

    #[test]
    fn hibernation_needs_a_kernel_that_can_and_a_place() {
        let swaps = "Filename Type Size Used Priority\n/dev/vda2 partition 1 0 -2\n";
        assert!(can_hibernate("[platform] shutdown reboot\n", swaps));
        assert!(!can_hibernate("[disabled]\n", swaps));
        assert!(!can_hibernate("", swaps));
        assert!(!can_hibernate("[platform]\n", "Filename Type Size Used Priority\n"));
    }

    #[test]
    fn what_a_command_prints_is_read_and_one_that_hangs_is_ended() {
        assert_eq!(output(Command::new("echo").arg("some jobs")).as_deref(), Some("some jobs\n"));
        assert_eq!(output(Command::new("sleep").arg("1000")).as_deref(), Some(""));
    }

    #[test]
    fn a_command_that_fails_tells_why() {
        let mut init = Init { systemctl: Some(find("cat").unwrap()), child: None, others: Vec::new() };
        init.start(Action::PowerOff, Mode::Ask, "").unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let outcome = loop {
            match init.poll_ended() {
                Some(outcome) => break outcome,
                None => assert!(Instant::now() < deadline, "cat does not end"),
            }
            std::thread::yield_now();
        };
        assert!(matches!(&outcome, Outcome::Failed(reason) if reason.contains("check-inhibitors")), "{outcome:?}");
    }
}
