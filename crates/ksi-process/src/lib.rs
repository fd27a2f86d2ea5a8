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
//! Reading order: [`Command`] and [`Child`] are the daemon's side, `shim` is the other side,
//! `tree` finds and ends descendants. [`spawn_detached`] starts the daemon itself, [`lock`] keeps
//! it alone. `descriptors` is the one module with `unsafe` code.

mod child;
mod command;
mod descriptors;
mod detach;
mod environment;
pub mod lock;
mod report;
mod shim;
mod tree;
mod wake;

use std::path::PathBuf;
use std::process::ExitCode;

pub use child::Child;
pub use command::{Command, Error};
pub use detach::{Detached, NotReady, Readiness, spawn_detached};
pub use environment::Environment;
pub use report::Exit;

const SHIM_VERB: &str = "__shim";
const DETACH_VERB: &str = "__detach";

/// The program that runs the hidden verbs: the `ksi` binary itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shim {
    /// Absolute path of the program.
    pub program: PathBuf,
}

impl Shim {
    /// This very program, also after a new version took its place on disk.
    pub fn current() -> std::io::Result<Self> {
        // The link names the running file, not its path: a daemon whose binary was replaced
        // still starts shims that speak its own protocol.
        if cfg!(target_os = "linux") {
            return Ok(Self { program: PathBuf::from("/proc/self/exe") });
        }
        Ok(Self { program: std::env::current_exe()? })
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
