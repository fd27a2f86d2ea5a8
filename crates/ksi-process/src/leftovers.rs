//! What a former daemon of a home left, when it was killed together with a shim: ended before
//! anything starts.
//!
//! A lock file that nobody holds was left by a killed shim. Its tree is found by the mark in the
//! environment, by the shim's session, and below what is so found. What took off its
//! environment *and* left the session *and* has no parent of its own tree is not found. A shim
//! that still holds its lock is ending its tree within its grace: it is left to that, and the
//! next attempt at its effect waits for its lock.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{RawPid, Signal, getpid};

use crate::effect_lock::{EffectLock, Taken};
use crate::home::Home;
use crate::os::process::{self, Process, ProcessId};
use crate::os::wake;

/// Who was killed ends at once; only a process that hangs in the system takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The lock files of a home, by whether somebody holds them.
#[derive(Default)]
struct Found {
    /// Left by a killed shim; ours now.
    free: Vec<EffectLock>,
    /// Shims that are ending their trees.
    live: Vec<RawPid>,
}

/// Ends what is left and returns how many processes that were.
pub(crate) fn end(home: &Home) -> io::Result<usize> {
    let found = look(home)?;
    if found.free.is_empty() && home.known {
        return Ok(0);
    }
    let shims: Vec<_> = found.free.iter().filter_map(EffectLock::record).map(|r| r.shim).collect();
    let mark = home.mark_of_all();
    let deadline = Instant::now() + PATIENCE;
    let mut ended = HashSet::new();
    loop {
        let all = process::all();
        let left = survivors(&all, &shims, &found.live, |process| process.has_variable(&mark));
        if left.is_empty() {
            break;
        }
        if !kill(&left, deadline)? {
            let pids: Vec<_> = left.iter().map(|process| process.id.pid).collect();
            tracing::error!(?pids, "what a former daemon left does not end");
            break;
        }
        ended.extend(left.iter().map(|process| process.id));
    }
    for lock in &found.free {
        lock.remove()?;
        if let Some(cgroups) = &home.cgroups {
            cgroups.remove(lock.path());
        }
    }
    Ok(ended.len())
}

fn look(home: &Home) -> io::Result<Found> {
    let mut found = Found::default();
    for entry in std::fs::read_dir(&home.locks)? {
        // One that a shim removed meanwhile is of no interest.
        let Ok(lock) = EffectLock::existing(entry?.path()) else { continue };
        match lock.try_take()? {
            Taken::Ours => found.free.push(lock),
            Taken::Held(pid) => found.live.extend(pid.map(u32::cast_signed)),
            Taken::Stale => {}
        }
    }
    Ok(found)
}

/// What is marked or of a killed shim's session, and all below; but neither this process and
/// those above it, nor what a live shim takes care of.
fn survivors(
    all: &[Process],
    shims: &[ProcessId],
    live: &[RawPid],
    marked: impl Fn(&Process) -> bool,
) -> Vec<Process> {
    let own = getpid().as_raw_pid();
    let mut spared: HashSet<RawPid> = process::above(own, all).into_iter().collect();
    spared.insert(own);
    for shim in live {
        spared.insert(*shim);
        spared.extend(process::below(*shim, all).iter().map(|process| process.id.pid));
    }
    // A session bears its number as long as somebody is in it. If its leader is there and is not
    // the shim, then the session ended, and another began under the number.
    let of_session = |process: &Process, shim: &ProcessId| {
        let leader = all.iter().find(|one| one.id.pid == shim.pid);
        process.session == shim.pid
            && process.id.start >= shim.start
            && leader.is_none_or(|leader| leader.id == *shim)
    };
    let mut found: Vec<Process> = Vec::new();
    for process in all.iter().filter(|process| !process.zombie) {
        if shims.iter().any(|shim| of_session(process, shim)) || marked(process) {
            found.push(*process);
            found.extend(process::below(process.id.pid, all));
        }
    }
    found.sort_by_key(|process| process.id);
    found.dedup_by_key(|process| process.id);
    found.retain(|process| !process.zombie && !spared.contains(&process.id.pid));
    found
}

/// Ends them and waits until they are gone; false if one of them is still there.
fn kill(processes: &[Process], deadline: Instant) -> io::Result<bool> {
    let held = processes.iter().filter_map(|process| process.id.hold().transpose());
    let held: Vec<OwnedFd> = held.collect::<io::Result<_>>()?;
    for pidfd in &held {
        // One of another user cannot be ended, and is still there when the time is over.
        let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    }
    for pidfd in &held {
        while !process::has_ended(pidfd) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Ok(false);
            };
            wake::wait(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(left))?;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: RawPid, parent: RawPid, session: RawPid) -> Process {
        let id = ProcessId { pid, start: pid.unsigned_abs().into() };
        Process { id, parent, group: pid, session, zombie: false }
    }

    fn found(all: &[Process], shims: &[ProcessId], live: &[RawPid], marked: RawPid) -> Vec<RawPid> {
        let found = survivors(all, shims, live, |process| process.id.pid == marked);
        found.iter().map(|process| process.id.pid).collect()
    }

    /// Above every number that this process and its parents have.
    const SHIM: RawPid = 5_000_000;

    #[test]
    fn survivors_are_those_of_the_session_the_marked_and_all_below() {
        let shim = ProcessId { pid: SHIM, start: u64::from(SHIM.unsigned_abs()) };
        let all = [
            process(SHIM + 1, 1, SHIM),
            process(SHIM + 2, SHIM + 1, SHIM + 2),
            process(SHIM + 3, 1, SHIM + 3),
            process(SHIM + 4, SHIM + 3, SHIM + 3),
            process(SHIM + 5, 1, SHIM + 5),
        ];
        assert_eq!(found(&all, &[shim], &[], 0), [SHIM + 1, SHIM + 2]);
        assert_eq!(found(&all, &[], &[], SHIM + 3), [SHIM + 3, SHIM + 4]);
    }

    #[test]
    fn a_session_that_another_began_under_the_number_is_spared() {
        let shim = ProcessId { pid: SHIM, start: 7 };
        let all = [process(SHIM, 1, SHIM), process(SHIM + 1, SHIM, SHIM)];
        assert_eq!(found(&all, &[shim], &[], 0), [] as [RawPid; 0]);
        let older = ProcessId { pid: SHIM, start: u64::from(SHIM.unsigned_abs()) + 9 };
        assert_eq!(found(&all[1..], &[older], &[], 0), [] as [RawPid; 0]);
    }

    #[test]
    fn what_a_live_shim_takes_care_of_is_left_to_it() {
        let all = [
            process(SHIM, 1, SHIM),
            process(SHIM + 1, SHIM, SHIM),
            process(SHIM + 2, SHIM + 1, SHIM),
        ];
        assert_eq!(found(&all, &[], &[SHIM], SHIM + 2), [] as [RawPid; 0]);
        assert_eq!(found(&all, &[], &[], SHIM + 1), [SHIM + 1, SHIM + 2]);
    }

    #[test]
    fn this_process_and_those_above_it_are_spared() {
        let all = process::all();
        let own = Process::own().unwrap();
        assert!(found(&all, &[], &[], own.id.pid).iter().all(|pid| *pid != own.id.pid));
        assert!(found(&all, &[], &[], own.parent).iter().all(|pid| *pid != own.parent));
    }
}
