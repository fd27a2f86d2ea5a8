//! Children: how KSI starts programs so that none of them outlives it.
//!
//! Every child runs under a *shim*: the `ksi` binary itself under a hidden verb, one small
//! process per child. Starting process and shim hold the two ends of a socket pair, the
//! *lifeline*. When the starter's end closes, for whatever reason, `kill -9` included, the shim
//! ends the program and every descendant of it, and then itself.
//!
//! ```text
//! daemon ──lifeline── shim (own session, subreaper) ── program (own group) ── its children …
//! ```
//!
//! A daemon's shim has a [home](Shim::at_home): then the daemon is a subreaper and ends what a
//! killed shim leaves, each effect has a lock, and what was left by a former daemon is ended at
//! the start.
//!
//! Reading order: [`Command`] and [`Child`] are the daemon's side, `shim` is the other side.
//! `family` ends what a killed shim leaves, `leftovers` what a killed daemon and its killed shim
//! left, `effect_lock` keeps two runs of one effect apart. [`Peer`] and [`Descent`] say whose
//! child is at the other end of a socket, and an [`Identity`] whom it speaks for. [`spawn_detached`] starts the daemon itself, [`lock`]
//! keeps it alone. `os` is the one module that speaks to the operating system.

mod child;
mod command;
mod descent;
mod detach;
mod effect_lock;
mod enforcement;
mod environment;
mod family;
mod home;
mod identity;
#[cfg(target_os = "linux")]
mod leftovers;
mod limits;
pub mod lock;
mod os;
mod output;
mod report;
mod shim;
mod tree;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

pub use child::Child;
pub use command::{Command, Error, Stream};
pub use descent::Descent;
pub use detach::{Detached, NotReady, Readiness, spawn_detached};
pub use enforcement::{Enforcement, enforcement};
pub use environment::Environment;
pub use identity::Identity;
pub use limits::Limits;
pub use os::filesystem::Filesystem;
pub use os::peer::Peer;
pub use os::process::ProcessId;
pub use os::{unread::unread, watch::Watch};
pub use output::{Cap, CappedLines, Tail, tail};
pub use report::Exit;

const SHIM_VERB: &str = "__shim";
const DETACH_VERB: &str = "__detach";

/// The program that runs the hidden verbs, the `ksi` binary itself; and the shims that it runs.
#[derive(Clone, Debug)]
pub struct Shim {
    program: PathBuf,
    home: Option<Arc<home::Home>>,
}

impl Shim {
    /// The shim that this program is under its hidden verb.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), home: None }
    }

    /// This very program, also after a new version took its place on disk.
    pub fn current() -> std::io::Result<Self> {
        // The link names the running file, not its path: a daemon whose binary was replaced
        // still starts shims that speak its own protocol.
        if cfg!(target_os = "linux") {
            return Ok(Self::new("/proc/self/exe"));
        }
        Ok(Self::new(std::env::current_exe()?))
    }

    /// The same for the daemon of this state folder, which it holds locked. From now on what a
    /// killed shim leaves falls to this process and is ended, so every process that this one
    /// starts must come from this shim or a clone of it.
    pub fn at_home(self, state: &Path) -> std::io::Result<Self> {
        Ok(Self { home: Some(Arc::new(home::Home::open(state)?)), ..self })
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Ends what a former daemon of this home left when it and a shim were killed, and returns
    /// how many processes that were; to be called before anything starts.
    pub fn end_leftovers(&self) -> std::io::Result<usize> {
        #[cfg(target_os = "linux")]
        if let Some(home) = &self.home {
            return leftovers::end(home);
        }
        Ok(0)
    }

    /// Whom the children of this shim speak for, if it lives.
    pub fn identity(&self, id: ProcessId) -> Option<Arc<Identity>> {
        self.home.as_ref()?.family.identity(id)
    }

    /// Whose child a peer is.
    pub fn descent(&self, peer: &Peer) -> Descent {
        descent::of(peer, |id| self.home.as_ref().is_some_and(|home| home.family.is_live(id)))
    }
}

/// Runs the hidden verb that this process was started with, if any; call it first in `main`,
/// before any runtime or thread, and return its exit code.
pub fn run_hidden_verb() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next()?;
    if verb == SHIM_VERB {
        return Some(shim::run(args));
    }
    if verb == DETACH_VERB {
        return Some(detach::run(args));
    }
    None
}
