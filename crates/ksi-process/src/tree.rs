//! The tree under a shim: reaping it, asking it to end, ending it.

use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait};

use crate::os::process;
use crate::report::Exit;

/// The program, leader of its own group, and all that descends from it.
pub(crate) struct Tree {
    program: Pid,
    exit: Option<Exit>,
}

impl Tree {
    pub(crate) fn new(program: Pid) -> Self {
        Self { program, exit: None }
    }

    /// How the program ended, once it did.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Reaps what has ended; false when nothing is left.
    pub(crate) fn reap(&mut self) -> io::Result<bool> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.program => self.exit = exit_of(status),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return Ok(true),
                Err(Errno::CHILD) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks everything in the tree to end; what is stopped is woken to hear it.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
    }

    /// Ends everything in the tree that can be found now; ask again until nothing is left,
    /// because a dying parent may just have had another child.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // Until the program is reaped its number cannot belong to another group; where there is
        // no other way to reach what it left behind, the small risk is taken.
        let known = self.exit.is_none() || cfg!(not(target_os = "linux"));
        let group = known.then_some(self.program);
        if let Some(group) = group {
            // It fails only when nobody is in the group any more.
            let _ = kill_process_group(group, signal);
        }
        process::signal_outside(group, signal);
    }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    let code = status.exit_status().map(Exit::Code);
    code.or_else(|| status.terminating_signal().map(Exit::Signal))
}
