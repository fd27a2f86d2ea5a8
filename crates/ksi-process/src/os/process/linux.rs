//! Processes as /proc shows them; signalled through pidfd, never by a bare number.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, RawPid, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal,
    set_child_subreaper, waitid,
};

/// A process for good: a number is used again, a number with its start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    /// Its number.
    pub pid: RawPid,
    /// When it started, in clock ticks after boot.
    pub start: u64,
}

/// What /proc says about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    pub(crate) parent: RawPid,
    pub(crate) group: RawPid,
    pub(crate) session: RawPid,
    /// It has ended, and its parent has not looked yet.
    pub(crate) zombie: bool,
}

impl Process {
    /// Reads a process, if it is there and ours to see.
    pub(crate) fn read(pid: RawPid) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// This process.
    pub(crate) fn own() -> Option<Self> {
        Self::read(getpid().as_raw_pid())
    }

    /// The command name in parentheses may hold anything, so fields count from its end.
    fn parse(stat: &str) -> Option<Self> {
        let (pid, _) = stat.split_once(' ')?;
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(Self {
            id: ProcessId { pid: pid.parse().ok()?, start: fields.get(19)?.parse().ok()? },
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            zombie: ["Z", "X"].contains(fields.first()?),
        })
    }

    /// Signals it; that it is gone already is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pidfd) = self.id.hold()? else { return Ok(()) };
        match pidfd_send_signal(pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it was started without an environment.
    pub(crate) fn is_bare(&self) -> bool {
        std::fs::read(format!("/proc/{}/environ", self.id.pid)).is_ok_and(|text| text.is_empty())
    }

    /// Whether a variable of the environment that it was started with begins like this.
    pub(crate) fn has_variable(&self, start: &[u8]) -> bool {
        let environment = std::fs::read(format!("/proc/{}/environ", self.id.pid));
        let environment = environment.unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(start))
    }
}

impl ProcessId {
    /// The process that this names, held so that its number stays its own; None if it is gone.
    pub(crate) fn hold(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The number may have gone to another process since we looked; now it is held.
        let same = Process::read(self.pid).is_some_and(|now| now.id == self);
        Ok(same.then_some(pidfd))
    }
}

/// Every process that is ours to see.
pub(crate) fn all() -> Vec<Process> {
    let Ok(folder) = std::fs::read_dir("/proc") else { return Vec::new() };
    let names = folder.flatten().map(|entry| entry.file_name());
    let numbers = names.filter(|name| name.as_bytes()[0].is_ascii_digit());
    numbers.filter_map(|name| Process::read(name.to_str()?.parse().ok()?)).collect()
}

/// The descendants of `ancestor` among `all`, each parent before its children.
pub(crate) fn below(ancestor: RawPid, all: &[Process]) -> Vec<Process> {
    let mut children: HashMap<RawPid, Vec<Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(*process);
    }
    let mut found = children.remove(&ancestor).unwrap_or_default();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|process| process.id.pid) {
        found.extend(children.remove(&parent).unwrap_or_default());
        next += 1;
    }
    found
}

/// The processes above this one, the nearest first.
pub(crate) fn above(process: RawPid, all: &[Process]) -> Vec<RawPid> {
    let parents: HashMap<_, _> = all.iter().map(|one| (one.id.pid, one.parent)).collect();
    let mut found: Vec<RawPid> = Vec::new();
    let mut now = process;
    while let Some(parent) = parents.get(&now).copied().filter(|pid| *pid > 0) {
        // What was read while parents changed may be a circle.
        if found.contains(&parent) {
            break;
        }
        found.push(parent);
        now = parent;
    }
    found
}

/// Signals every descendant of this process that is not in `group`.
pub(crate) fn signal_outside(group: Option<Pid>, signal: Signal) {
    let group = group.map(Pid::as_raw_pid);
    let found = below(getpid().as_raw_pid(), &all());
    for process in found.iter().filter(|process| Some(process.group) != group) {
        // It fails when the process changed to another user.
        let _ = process.signal(signal);
    }
}

/// Whether the process has ended, seen at once; a zombie has.
pub(crate) fn has_ended(pidfd: &OwnedFd) -> bool {
    let at_once = Timespec::default();
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&at_once)) == Ok(1)
}

/// From now on what loses its parent below this process falls to it.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Waits for the end of this one child and forgets it; nobody else may wait for it.
pub(crate) fn reap(pid: RawPid) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(()) };
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED) {
            Ok(_) | Err(Errno::CHILD) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What tells this boot of the machine from any other.
pub(crate) fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: RawPid, parent: RawPid) -> Process {
        let id = ProcessId { pid, start: 1 };
        Process { id, parent, group: pid, session: pid, zombie: false }
    }

    #[test]
    fn a_command_name_with_blanks_and_parentheses_is_read() {
        let tail = "0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 98765 11 12";
        let process = Process::parse(&format!("42 (a) b (c) Z 7 40 39 0 {tail}")).unwrap();
        assert_eq!(process.id.pid, 42);
        assert_eq!((process.parent, process.group, process.session), (7, 40, 39));
        assert!(process.zombie);
    }

    #[test]
    fn our_own_start_time_is_read() {
        let process = Process::own().unwrap();
        let parent = rustix::process::getppid().unwrap().as_raw_pid();
        assert_eq!((process.id.pid, process.parent), (getpid().as_raw_pid(), parent));
        assert!(process.id.start > 0 && !process.zombie);
        assert!(process.id.hold().unwrap().is_some_and(|pidfd| !has_ended(&pidfd)));
    }

    #[test]
    fn a_number_that_another_process_has_by_now_is_not_held() {
        let own = Process::own().unwrap().id;
        assert!(ProcessId { start: own.start + 1, ..own }.hold().unwrap().is_none());
    }

    #[test]
    fn descendants_are_found_through_generations_and_strangers_left_out() {
        let all = [process(9, 5), process(5, 2), process(3, 1), process(2, 1), process(6, 2)];
        let found: Vec<_> = below(2, &all).iter().map(|process| process.id.pid).collect();
        assert_eq!(found, [5, 6, 9]);
    }

    #[test]
    fn ancestors_are_found_and_a_circle_ends() {
        let all = [process(9, 5), process(5, 2), process(2, 1), process(1, 0)];
        assert_eq!(above(9, &all), [5, 2, 1]);
        assert_eq!(above(8, &[process(8, 7), process(7, 8)]), [7, 8]);
    }
}
