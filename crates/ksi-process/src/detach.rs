//! Starting a program that belongs to nobody: the daemon itself.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::command::{Error, new_process};
use crate::environment::Environment;
use crate::os::{descriptors, wake};
use crate::report::Report;
use crate::{DETACH_VERB, Shim};

/// Tells a detached program the number of the descriptor on which it says that it is ready.
const READY_VARIABLE: &str = "KSI_READY_FD";
const READY: &[u8] = b"ready\n";
const FAILED: &[u8] = b"failed\n";

/// A program that runs on its own, and whose first word has not been heard yet.
#[derive(Debug)]
pub struct Detached {
    pid: u32,
    first_word: PipeReader,
}

/// Why a detached program is not ready.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It said so itself.
    #[error("{0}")]
    Failed(String),
    /// It ended without a word.
    #[error("it ended before it was ready: its log file says more")]
    Ended,
    /// It has not said anything yet, and runs on.
    #[error("it did not say within {} s that it is ready: its log file says more", .0.as_secs_f32())]
    Late(Duration),
}

/// Starts a program in a session of its own, in `/`, without a terminal, a parent among our
/// processes or any of our descriptors; what it prints is appended to the log file.
pub fn spawn_detached<A: Into<OsString>>(
    shim: &Shim,
    program: &Path,
    args: impl IntoIterator<Item = A>,
    environment: &Environment,
    log: &Path,
) -> Result<Detached, Error> {
    let opened = File::options().create(true).append(true).mode(0o600).open(log);
    let log_file = opened.map_err(|source| Error::Log { path: log.to_owned(), source })?;

    let name = program.display().to_string();
    let args = [program.into()].into_iter().chain(args.into_iter().map(Into::into));
    let started = start(shim, args, environment, log_file);
    let (first_word, output) = started.map_err(|source| Error::Shim {
        shim: shim.program.clone(),
        program: name.clone(),
        source,
    })?;

    let answer = String::from_utf8_lossy(&output.stdout);
    let answer = answer.trim_end();
    if let Some(pid) = answer.strip_prefix("pid ").and_then(|pid| pid.parse().ok()) {
        return Ok(Detached { pid, first_word });
    }
    if let Some(Report::Failed(number)) = Report::parse(answer) {
        let source = io::Error::from_raw_os_error(number);
        return Err(Error::Program { program: name, source });
    }
    let exit = crate::child::exit_of(output.status);
    Err(Error::Silent { shim: shim.program.clone(), program: name, exit })
}

/// Runs the intermediate process, which is gone when this returns.
fn start(
    shim: &Shim,
    program_and_args: impl Iterator<Item = OsString>,
    environment: &Environment,
    log: File,
) -> io::Result<(PipeReader, Output)> {
    let (first_word, ready) = io::pipe()?;
    let mut command = new_process(&shim.program);
    command.arg(DETACH_VERB).arg(ready.as_raw_fd().to_string()).args(program_and_args);
    command.env_clear().envs(environment.of(std::env::vars_os())).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    descriptors::hand_over(&mut command, OwnedFd::from(ready));
    let intermediate = command.spawn()?;
    Ok((first_word, intermediate.wait_with_output()?))
}

/// The hidden verb of the intermediate process: starts the program in a new session, says its
/// pid on stdout and ends, which leaves the program without a parent and without a terminal.
pub(crate) fn run(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let number = args.next().and_then(|number| number.to_str()?.parse().ok());
    let (Some(number), Some(program)) = (number, args.next()) else {
        let _ = writeln!(io::stderr(), "error: this verb is for ksi itself to use");
        return ExitCode::from(2);
    };
    let (answer, code) = match leave_behind(number, program, args) {
        Ok(pid) => (format!("pid {pid}"), ExitCode::SUCCESS),
        Err(error) => (Report::failed(&error).to_string(), ExitCode::FAILURE),
    };
    // Without a reader the one who asked is gone, and the program runs as it was asked to.
    let _ = writeln!(io::stdout(), "{answer}");
    code
}

fn leave_behind(
    ready: RawFd,
    program: OsString,
    args: impl Iterator<Item = OsString>,
) -> io::Result<u32> {
    let ready = descriptors::take_inherited(ready)?;
    rustix::process::setsid()?;
    descriptors::close_inherited()?;
    let mut command = new_process(program);
    command.args(args).env(READY_VARIABLE, ready.as_raw_fd().to_string());
    // Our stdin is /dev/null already, our stderr the log file.
    command.stdout(io::stderr()).process_group(0);
    descriptors::hand_over(&mut command, ready);
    Ok(command.spawn()?.id())
}

impl Detached {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its first word, at most this long; whatever the answer, it is left alone.
    pub fn ready(mut self, timeout: Duration) -> Result<(), NotReady> {
        let begun = Instant::now();
        let mut heard = Vec::new();
        loop {
            let Some(left) = timeout.checked_sub(begun.elapsed()) else {
                return Err(NotReady::Late(timeout));
            };
            match self.read_more(&mut heard, left) {
                Ok(true) => {}
                Ok(false) => return verdict(&heard),
                Err(error) => return Err(NotReady::Failed(error.to_string())),
            }
        }
    }

    /// False at the end, which comes right behind the word.
    fn read_more(&mut self, heard: &mut Vec<u8>, timeout: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.first_word, PollFlags::IN)];
        wake::wait(&mut fds, Some(timeout))?;
        if fds[0].revents().is_empty() {
            return Ok(true);
        }
        let mut buffer = [0; 4096];
        let length = self.first_word.read(&mut buffer)?;
        heard.extend_from_slice(&buffer[..length]);
        Ok(length > 0)
    }
}

fn verdict(heard: &[u8]) -> Result<(), NotReady> {
    if heard == READY {
        return Ok(());
    }
    let failed = heard.strip_prefix(FAILED).map(String::from_utf8_lossy);
    Err(failed.map_or(NotReady::Ended, |text| NotReady::Failed(text.trim_end().to_owned())))
}

/// A detached program's side: says once whether it is ready. Dropped without a word, it counts
/// as having ended.
#[derive(Debug)]
pub struct Readiness {
    /// None when nobody waits, as in the foreground.
    starter: Option<File>,
}

impl Readiness {
    /// Finds who waits for this process, if anybody; call it once, early in `main`.
    pub fn from_env() -> Self {
        let number = std::env::var(READY_VARIABLE).ok().and_then(|number| number.parse().ok());
        let taken = number.and_then(|number| descriptors::take_inherited(number).ok());
        Self { starter: taken.map(File::from) }
    }

    /// Says that all is well.
    pub fn ready(self) {
        self.say(READY);
    }

    /// Says why it is not going to be ready.
    pub fn failed(self, text: &str) {
        self.say(&[FAILED, text.as_bytes()].concat());
    }

    fn say(self, words: &[u8]) {
        let Some(mut starter) = self.starter else { return };
        // Whoever waited may have given up; that is no reason to fail.
        let _ = starter.write_all(words);
    }
}
