//! Limits of single processes, inherited by what they start.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits::Limits;

/// Processor time between the warning and the kill.
const CPU_GRACE: u64 = 5;

/// A private mapping that nobody may write to costs nothing, and many programs reserve huge ones:
/// so what is limited is data, not address space. Where data does not count mappings it is all
/// the same the next best.
const MEMORY: Resource = Resource::Data;

/// Puts limits on what the command starts: its cgroup, by that group's open `cgroup.procs`, and
/// the limits of each process.
pub(crate) fn apply(command: &mut Command, limits: Limits, cgroup: Option<OwnedFd>) {
    let wanted = wanted(limits);
    if wanted.iter().all(Option::is_none) && cgroup.is_none() {
        return;
    }
    let set = move || -> io::Result<()> {
        if let Some(members) = &cgroup {
            // 0 is whoever writes.
            rustix::io::write(members, b"0")?;
        }
        for (resource, limit) in wanted.iter().flatten() {
            setrlimit(*resource, *limit)?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are
    // allowed: it makes a few system calls, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(set);
    }
}

fn wanted(limits: Limits) -> [Option<(Resource, Rlimit)>; 4] {
    let limit = |resource, wanted: Option<u64>, spare: u64| {
        wanted.map(|soft| (resource, within(soft, soft.saturating_add(spare), resource)))
    };
    [
        limit(MEMORY, limits.memory, 0),
        limit(Resource::Cpu, limits.cpu_seconds, CPU_GRACE),
        limit(Resource::Nofile, limits.files, 0),
        limit(Resource::Nproc, limits.processes, 0),
    ]
}

/// Nobody but root may have more than we may have ourselves.
fn within(soft: u64, hard: u64, resource: Resource) -> Rlimit {
    let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    Rlimit { current: Some(soft.min(most)), maximum: Some(hard.min(most)) }
}
