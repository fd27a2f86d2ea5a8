//! The tree under a shim: reaping it, asking it to end, ending it.

use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait};

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
        descendants::signal_outside(group, signal);
    }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    let code = status.exit_status().map(Exit::Code);
    code.or_else(|| status.terminating_signal().map(Exit::Signal))
}

#[cfg(target_os = "linux")]
pub(crate) mod descendants {
    //! Descendants by walking /proc; signalled through pidfd, never by a bare number.

    use std::collections::HashMap;

    use rustix::process::{Pid, PidfdFlags, RawPid, Signal, getpid, pidfd_open, pidfd_send_signal};

    /// What /proc says about a process; pid and start time together name it for good.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Process {
        pub(crate) pid: RawPid,
        pub(crate) parent: RawPid,
        pub(crate) group: RawPid,
        /// Clock ticks after boot.
        pub(crate) start: u64,
    }

    impl Process {
        /// Reads a process, if it is there and ours to see.
        pub(crate) fn read(pid: RawPid) -> Option<Self> {
            Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        }

        /// The command name in parentheses may hold anything, so fields count from its end.
        pub(super) fn parse(stat: &str) -> Option<Self> {
            let (pid, _) = stat.split_once(' ')?;
            let (_, rest) = stat.rsplit_once(')')?;
            let fields: Vec<&str> = rest.split_whitespace().collect();
            Some(Self {
                pid: pid.parse().ok()?,
                parent: fields.get(1)?.parse().ok()?,
                group: fields.get(2)?.parse().ok()?,
                start: fields.get(19)?.parse().ok()?,
            })
        }

        fn signal(&self, signal: Signal) {
            let Some(Ok(pidfd)) =
                Pid::from_raw(self.pid).map(|p| pidfd_open(p, PidfdFlags::empty()))
            else {
                return;
            };
            // The number may have gone to another process since we looked; now it is held.
            if Self::read(self.pid).is_some_and(|now| now.start == self.start) {
                // It fails when the process ended meanwhile, or changed to another user.
                let _ = pidfd_send_signal(pidfd, signal);
            }
        }
    }

    /// Signals every descendant of this process that is not in `group`.
    pub(super) fn signal_outside(group: Option<Pid>, signal: Signal) {
        let group = group.map(Pid::as_raw_pid);
        let found = below(getpid().as_raw_pid(), &all());
        for process in found.iter().filter(|process| Some(process.group) != group) {
            process.signal(signal);
        }
    }

    fn all() -> Vec<Process> {
        let Ok(folder) = std::fs::read_dir("/proc") else { return Vec::new() };
        let numbers = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.filter_map(Process::read).collect()
    }

    /// The descendants of `ancestor` among `all`, each parent before its children.
    pub(super) fn below(ancestor: RawPid, all: &[Process]) -> Vec<Process> {
        let mut children: HashMap<RawPid, Vec<Process>> = HashMap::new();
        for process in all {
            children.entry(process.parent).or_default().push(*process);
        }
        let mut found = children.remove(&ancestor).unwrap_or_default();
        let mut next = 0;
        while let Some(parent) = found.get(next).map(|process| process.pid) {
            found.extend(children.remove(&parent).unwrap_or_default());
            next += 1;
        }
        found
    }
}

#[cfg(not(target_os = "linux"))]
mod descendants {
    //! Best effort: without subreapers and /proc only the program's own group is ended.

    use rustix::process::{Pid, Signal};

    pub(super) fn signal_outside(_group: Option<Pid>, _signal: Signal) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::descendants::{Process, below};

    #[test]
    fn a_command_name_with_blanks_and_parentheses_is_read() {
        let tail = "0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 98765 11 12";
        let process = Process::parse(&format!("42 (a) b (c) S 7 40 39 0 {tail}")).unwrap();
        assert_eq!(process.pid, 42);
        assert_eq!((process.parent, process.group), (7, 40));
    }

    #[test]
    fn our_own_start_time_is_read() {
        let pid = rustix::process::getpid().as_raw_pid();
        let process = Process::read(pid).unwrap();
        let parent = rustix::process::getppid().unwrap().as_raw_pid();
        assert_eq!((process.pid, process.parent), (pid, parent));
        assert!(process.start > 0);
    }

    #[test]
    fn descendants_are_found_through_generations_and_strangers_left_out() {
        let process = |pid, parent| Process { pid, parent, group: pid, start: 1 };
        let all = [process(9, 5), process(5, 2), process(3, 1), process(2, 1), process(6, 2)];
        let found: Vec<_> = below(2, &all).iter().map(|process| process.pid).collect();
        assert_eq!(found, [5, 6, 9]);
    }
}
