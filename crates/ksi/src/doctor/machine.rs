//! What the machine gives: its system, limits, and what is enforced for children.

use ksi_process::{Watch, enforcement};
use rustix::process::{Resource, getrlimit};

use super::{Finding, daemon::Running};

/// A connection takes one descriptor, a child three.
const DESCRIPTORS: u64 = 1024;

/// A child takes two processes or more, and this user's other programs count too.
const PROCESSES: u64 = 256;

pub(super) fn look(running: Option<&Running>) -> Vec<Finding> {
    vec![program(), system(), descriptors(), processes(), watches(), children(running)]
}

fn program() -> Finding {
    let path = std::env::current_exe().map(|path| format!(", {}", path.display()));
    Finding::ok("program", format!("ksi {}{}", crate::daemon::VERSION, path.unwrap_or_default()))
}

fn system() -> Finding {
    let system = rustix::system::uname();
    let [name, release, machine] = [system.sysname(), system.release(), system.machine()]
        .map(|text| text.to_string_lossy().into_owned());
    let what = format!("{name} {release} on {machine}");
    match cfg!(target_os = "linux") {
        true => Finding::ok("system", what),
        false => Finding::warning(
            "system",
            format!("{what}: best effort, not tested by us; children are ended by process group"),
        ),
    }
}

fn descriptors() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    let (soft, hard) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    let what = format!("a process may open {} files, {} if it asks", count(soft), count(hard));
    match soft >= DESCRIPTORS {
        true => Finding::ok("files", what),
        false => Finding::warning("files", format!("{what}; each client and child takes some"))
            .hint(format!("`ulimit -n {}` before `ksi start`", hard.min(4096))),
    }
}

fn processes() -> Finding {
    let limit = getrlimit(Resource::Nproc).current.unwrap_or(u64::MAX);
    let what = format!("this user may have {} processes", count(limit));
    match limit >= PROCESSES {
        true => Finding::ok("processes", what),
        false => Finding::warning("processes", what).hint("`ulimit -u 4096` before `ksi start`"),
    }
}

/// A number, where no limit is one too.
fn count(limit: u64) -> String {
    if limit == u64::MAX { "any number of".to_owned() } else { limit.to_string() }
}

fn watches() -> Finding {
    let watched = Watch::new().and_then(|watch| watch.entries("/".as_ref()));
    match watched {
        Ok(()) => Finding::ok("watches", "folders can be watched"),
        Err(error) => Finding::warning(
            "watches",
            format!("folders cannot be watched ({error}): a socket that is removed stays away"),
        )
        .hint("raise fs.inotify.max_user_instances and fs.inotify.max_user_watches with sysctl"),
    }
}

fn children(running: Option<&Running>) -> Finding {
    let enforced = enforcement(running.map(|running| running.pid));
    match enforced.complete && enforced.whole_tree {
        true => Finding::ok("children", enforced.to_string()),
        false => Finding::note("children", enforced.to_string()),
    }
}
