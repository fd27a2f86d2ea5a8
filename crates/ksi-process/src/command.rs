//! Starting a program under a shim.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::child::Child;
use crate::descriptors;
use crate::environment::Environment;
use crate::report::Exit;
use crate::shim::Orders;
use crate::{SHIM_VERB, Shim};

const GRACE: Duration = Duration::from_secs(5);

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is missing, not executable, or the system refused it.
    #[error("cannot start {program}: check that it is installed, executable and on the PATH")]
    Program {
        /// As it was asked for.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// The folder to start it in is not there.
    #[error("cannot start {program} in {folder}: no such folder")]
    Folder {
        /// As it was asked for.
        program: String,
        /// As it was asked for.
        folder: PathBuf,
    },
    /// The process between us and the program could not be started.
    #[error("cannot start the shim {shim} for {program}: out of processes, memory or descriptors?")]
    Shim {
        /// Path of the shim.
        shim: PathBuf,
        /// As it was asked for.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// The process between us and the program ended before it said anything.
    #[error("the shim {shim} for {program} ended with {exit} before it started it")]
    Silent {
        /// Path of the shim.
        shim: PathBuf,
        /// As it was asked for.
        program: String,
        /// How the shim ended.
        exit: Exit,
    },
    /// The log file of a detached program could not be opened.
    #[error("cannot open the log file {path}: check that its folder exists and is writable")]
    Log {
        /// As it was asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A program to start: clean environment, the three standard streams as pipes, 5 s of grace.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use ksi_process::{Command, Exit, Shim};
///
/// let mut child = Command::new("sort").arg("-r").spawn(&Shim::current()?).await?;
/// drop(child.stdin.take());
/// assert_eq!(child.wait().await, Exit::Code(0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    environment: Environment,
    folder: Option<PathBuf>,
    grace: Duration,
    streams: [Stdio; 3],
}

impl Command {
    /// A program by its path, or by its name on the PATH.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            environment: Environment::new(),
            folder: None,
            grace: GRACE,
            streams: [Stdio::piped(), Stdio::piped(), Stdio::piped()],
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(self, arg: impl Into<OsString>) -> Self {
        self.args([arg])
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment = self.environment.set(name, value);
        self
    }

    /// Lets more of our variables through; `PIP_*` means all that begin with `PIP_`.
    #[must_use]
    pub fn inherit<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.environment = self.environment.inherit(names);
        self
    }

    /// Starts it in this folder instead of ours.
    #[must_use]
    pub fn current_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// How long its tree may take to end after it was asked to, before it is killed.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Where it reads from, instead of a pipe.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.streams[0] = stdin.into();
        self
    }

    /// Where it writes to, instead of a pipe.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.streams[1] = stdout.into();
        self
    }

    /// Where it complains to, instead of a pipe.
    #[must_use]
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.streams[2] = stderr.into();
        self
    }

    /// Starts it, and returns when it runs; needs a tokio runtime with I/O. Dropping the future
    /// ends what was started.
    pub async fn spawn(self, shim: &Shim) -> Result<Child, Error> {
        let program = self.program.display().to_string();
        if let Some(folder) = self.folder.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(Error::Folder { program, folder: folder.clone() });
        }
        let fail = |program, source| Error::Shim { shim: shim.program.clone(), program, source };
        let mut child = match self.start(shim) {
            Ok(child) => child,
            Err(source) => return Err(fail(program, source)),
        };
        match child.started().await {
            Ok(Ok(())) => Ok(child),
            Ok(Err(source)) => Err(Error::Program { program, source }),
            Err(exit) => Err(Error::Silent { shim: shim.program.clone(), program, exit }),
        }
    }

    fn start(self, shim: &Shim) -> io::Result<Child> {
        let (lifeline, theirs) = UnixStream::pair()?;
        lifeline.set_nonblocking(true)?;
        let lifeline = tokio::net::UnixStream::from_std(lifeline)?;

        let orders = Orders {
            lifeline: theirs.as_raw_fd(),
            grace: self.grace,
            program: self.program,
            args: self.args,
        };
        let mut command = new_process(&shim.program);
        command.arg(SHIM_VERB).args(orders.into_args());
        command.env_clear().envs(self.environment.of(std::env::vars_os()));
        if let Some(folder) = self.folder {
            command.current_dir(folder);
        }
        let [stdin, stdout, stderr] = self.streams;
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        descriptors::hand_over(&mut command, OwnedFd::from(theirs));

        // With the command goes our copy of the shim's end, or its death would not be heard.
        let shim = tokio::process::Command::from(command).spawn()?;
        Ok(Child::new(shim, lifeline))
    }
}

/// The one place where a process is made.
#[allow(clippy::disallowed_methods, reason = "the shim itself has to be started by something")]
pub(crate) fn new_process(program: impl AsRef<OsStr>) -> std::process::Command {
    std::process::Command::new(program)
}
