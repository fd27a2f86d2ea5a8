//! Starting a program under a shim.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::child::{Child, FirstWord};
use crate::effect_lock::EffectLock;
use crate::environment::Environment;
use crate::home::{Effect, MARK};
use crate::identity::{Identity, TOKEN_FD};
use crate::limits::Limits;
use crate::os::descriptors;
use crate::report::Exit;
use crate::shim::{LockOrder, Orders};
use crate::{SHIM_VERB, Shim};

const GRACE: Duration = Duration::from_secs(5);

/// How long an older run of the same effect may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

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
    /// An older run of the same effect has not ended.
    #[error("cannot start {program}: an older run of {effect} has not ended, it is {}", whose(*.holder))]
    Busy {
        /// As it was asked for.
        program: String,
        /// The effect's name.
        effect: String,
        /// The shim of the older run, if it is known.
        holder: Option<u32>,
    },
    /// The lock of its effect, or its cgroup, could not be made.
    #[error("cannot start {program}: {path} cannot be made; check that its folder is writable")]
    Place {
        /// As it was asked for.
        program: String,
        /// What could not be made.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
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

fn whose(pid: Option<u32>) -> String {
    pid.map_or_else(|| "a process not known".to_owned(), |pid| format!("process {pid}"))
}

/// Where a standard stream of a program leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// To us.
    #[default]
    Pipe,
    /// Nowhere.
    Null,
    /// Where ours leads.
    Inherit,
}

impl From<Stream> for Stdio {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Pipe => Self::piped(),
            Stream::Null => Self::null(),
            Stream::Inherit => Self::inherit(),
        }
    }
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
    streams: [Stream; 3],
    limits: Limits,
    effect: Option<String>,
    principal: Option<String>,
    patience: Duration,
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
            streams: [Stream::Pipe; 3],
            limits: Limits::default(),
            effect: None,
            principal: None,
            patience: PATIENCE,
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

    /// Lets proxies and certificates through too, for a program that talks to the world.
    #[must_use]
    pub fn network(mut self) -> Self {
        self.environment = self.environment.network();
        self
    }

    /// Says which effect it runs for. Of one effect only one run is there at a time in a home,
    /// its last descendant counted, over any death of a daemon: a new one waits until the older
    /// has ended, 60 s at most. A shim without a home knows no other runs.
    #[must_use]
    pub fn effect(mut self, plugin: &str, key: &str) -> Self {
        self.effect = Some(format!("{plugin}/{key}"));
        self
    }

    /// Whom it speaks for when it connects to the daemon, and lets it know its token: the variable
    /// `KSI_TOKEN_FD` is the number of a descriptor to read it from. Without this a child speaks
    /// for its effect, as `child:PLUGIN/KEY`, and has no token. A shim without a home gives none.
    #[must_use]
    pub fn principal(mut self, principal: impl Into<String>) -> Self {
        self.principal = Some(principal.into());
        self
    }

    /// How long to wait for the end of an older run of the same effect.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// What it may use of the machine.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
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
    pub fn stdin(mut self, stdin: Stream) -> Self {
        self.streams[0] = stdin;
        self
    }

    /// Where it writes to, instead of a pipe.
    #[must_use]
    pub fn stdout(mut self, stdout: Stream) -> Self {
        self.streams[1] = stdout;
        self
    }

    /// Where it complains to, instead of a pipe.
    #[must_use]
    pub fn stderr(mut self, stderr: Stream) -> Self {
        self.streams[2] = stderr;
        self
    }

    /// Starts it, and returns when it runs; needs a tokio runtime with I/O and time. Dropping the
    /// future ends what was started.
    pub async fn spawn(self, shim: &Shim) -> Result<Child, Error> {
        let program = self.program.display().to_string();
        if let Some(folder) = self.folder.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(Error::Folder { program, folder: folder.clone() });
        }
        let effect = shim.home.as_ref().map(|home| home.effect(self.effect.as_deref()));
        loop {
            let mut child = self.start(shim, effect.as_ref())?;
            let mut word = child.first_word().await;
            if let FirstWord::Waiting(holder) = word {
                let next = tokio::time::timeout(self.patience, child.first_word()).await;
                let effect = || effect.clone().map_or_else(String::new, |effect| effect.name);
                let busy = |_| Error::Busy { program: program.clone(), effect: effect(), holder };
                word = next.map_err(busy)?;
            }
            match word {
                FirstWord::Started => return Ok(child),
                FirstWord::Stale | FirstWord::Waiting(_) => {}
                FirstWord::Failed(source) => return Err(Error::Program { program, source }),
                FirstWord::Silent(exit) => {
                    return Err(Error::Silent { shim: shim.program.clone(), program, exit });
                }
            }
        }
    }

    fn start(&self, shim: &Shim, effect: Option<&Effect>) -> Result<Child, Error> {
        let program = || self.program.display().to_string();
        let fail = |source| Error::Shim { shim: shim.program.clone(), program: program(), source };
        let (Some(home), Some(effect)) = (&shim.home, effect) else {
            let (mut command, lifeline) = self.prepare(shim, None).map_err(fail)?;
            let process = command.spawn().map_err(fail)?;
            return Ok(Child::new(process, lifeline, None));
        };
        let path = home.locks.join(&effect.file);
        let place = |source, path| Error::Place { program: program(), path, source };
        let lock = EffectLock::open(path.clone()).map_err(|source| place(source, path))?;
        let leaf = home.cgroups.as_ref().map(|groups| groups.leaf(lock.path(), self.limits));
        let leaf = leaf.transpose().map_err(|source| place(source, lock.path().to_owned()))?;
        let (identity, token) = self.identity(effect).map_err(fail)?;
        let mark = home.mark(effect);
        let at_home = AtHome { mark, effect, lock: &lock, leaf: leaf.clone(), token };
        let (command, lifeline) = self.prepare(shim, Some(at_home)).map_err(fail)?;
        let started = home.family.add(lock, leaf, identity, move || {
            // Here it goes, and our copies of the shim's descriptors with it.
            let mut command = command;
            let process = command.spawn()?;
            Ok((process.id().unwrap_or_default().cast_signed(), process))
        });
        let (id, process, over) = started.map_err(fail)?;
        Ok(Child::new(process, lifeline, Some((id, over))))
    }

    /// Whom it speaks for, and where it can read its token.
    fn identity(&self, effect: &Effect) -> io::Result<(Identity, Option<OwnedFd>)> {
        let Some(principal) = &self.principal else {
            return Ok((Identity::without_token(&format!("child:{}", effect.name)), None));
        };
        let (identity, token) = Identity::with_token(principal)?;
        Ok((identity, Some(token.into())))
    }

    /// The shim's command line, environment and descriptors; dropped with the command are our
    /// copies of these, or the shim's death would not be heard.
    fn prepare(
        &self,
        shim: &Shim,
        at_home: Option<AtHome<'_>>,
    ) -> io::Result<(tokio::process::Command, tokio::net::UnixStream)> {
        let (lifeline, theirs) = UnixStream::pair()?;
        lifeline.set_nonblocking(true)?;
        let lifeline = tokio::net::UnixStream::from_std(lifeline)?;
        let mut orders = Orders {
            lifeline: theirs.as_raw_fd(),
            grace: self.grace,
            limits: self.limits,
            lock: None,
            cgroup: None,
            token: None,
            program: self.program.clone(),
            args: self.args.clone(),
        };
        let mut command = new_process(&shim.program);
        command.env_clear().envs(self.environment.of(std::env::vars_os()));
        if let Some(AtHome { mark, effect, lock, leaf, token }) = at_home {
            let (file, path) = (lock.share()?, lock.path().to_owned());
            let effect = effect.name.clone();
            orders.lock = Some(LockOrder { file: file.as_raw_fd(), path, effect });
            orders.cgroup = leaf;
            command.env(MARK, mark);
            descriptors::hand_over(&mut command, file);
            if let Some(token) = token {
                orders.token = Some(token.as_raw_fd());
                command.env(TOKEN_FD, token.as_raw_fd().to_string());
                descriptors::hand_over(&mut command, token);
            }
        }
        command.arg(SHIM_VERB).args(orders.into_args());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let [stdin, stdout, stderr] = self.streams.map(Stdio::from);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        descriptors::hand_over(&mut command, OwnedFd::from(theirs));
        Ok((tokio::process::Command::from(command), lifeline))
    }
}

/// What a shim with a home gets besides.
struct AtHome<'a> {
    mark: OsString,
    effect: &'a Effect,
    lock: &'a EffectLock,
    leaf: Option<PathBuf>,
    /// Where the program can read its token.
    token: Option<OwnedFd>,
}

/// The one place where a process is made.
#[allow(clippy::disallowed_methods, reason = "the shim itself has to be started by something")]
pub(crate) fn new_process(program: impl AsRef<OsStr>) -> std::process::Command {
    std::process::Command::new(program)
}
