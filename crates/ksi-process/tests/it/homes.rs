//! A daemon with a home: nothing survives its shims, whoever is killed, and no effect runs twice.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::marked::{Marked, wait_for_end};
use crate::{Helper, PROGRAM, new_marker};

/// All tricks at once; two of them have an empty environment, one of which also left the session.
const NASTY: &str = r#"trap '' TERM HUP INT
    ( ( "$0" nasty-away "$1" away & ) & )
    ( "$0" nasty "$1" orphan & )
    ( env -i "$0" nasty "$1" bare & )
    ( ( env -i setsid "$0" nasty "$1" far & ) & )
    "$0" nasty "$1" child & wait"#;
const WORDS: [&str; 5] = ["away", "bare", "child", "far", "orphan"];

/// The same, where an empty environment stays in its session.
const NASTY_IN_SESSION: &str = r#"trap '' TERM HUP INT
    ( ( "$0" nasty-away "$1" away & ) & )
    ( "$0" nasty "$1" orphan & )
    ( env -i "$0" nasty "$1" bare & )
    env -i setsid "$0" nasty "$1" far & "$0" nasty "$1" child & wait"#;

/// What a run of the script started.
struct Run {
    daemon: Helper,
    shim: Pid,
    marker: String,
    /// Each by the number and start time that it wrote itself.
    processes: Vec<(Pid, u64, OwnedFd)>,
}

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn pids(&self) -> PathBuf {
        self.0.path().join("pids")
    }

    fn daemon(&self, marker: &str, script: &str, grace: &str) -> Helper {
        Helper::start(&["home", self.0.path().to_str().unwrap(), marker, script, grace])
    }

    fn run(&self, script: &str, grace: &str) -> Run {
        let marker = new_marker();
        let mut daemon = self.daemon(&marker, script, grace);
        assert_eq!(daemon.line(), "0 leftovers");
        let shim = daemon.line().strip_prefix("shim ").unwrap().parse().unwrap();
        assert_eq!(daemon.sorted_lines(5), WORDS);
        let processes = read(&self.pids());
        assert_eq!(processes.len(), 5);
        std::fs::remove_file(self.pids()).unwrap();
        Run { daemon, shim: Pid::from_raw(shim).unwrap(), marker, processes }
    }
}

fn read(pids: &Path) -> Vec<(Pid, u64, OwnedFd)> {
    let text = std::fs::read_to_string(pids).unwrap();
    let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
    let pid = |text: &str| Pid::from_raw(text.parse().unwrap()).unwrap();
    let hold = |pid| pidfd_open(pid, PidfdFlags::empty()).unwrap();
    pairs.map(|(p, start)| (pid(p), start.parse().unwrap(), hold(pid(p)))).collect()
}

impl Run {
    /// How many of them there are still, by marker and by what they wrote of themselves.
    fn left(&self) -> (usize, usize) {
        let there = |pid: Pid, start: u64| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let Some((_, fields)) = stat.rsplit_once(')') else { return false };
            let fields: Vec<&str> = fields.split_whitespace().collect();
            fields[19] == start.to_string() && fields[0] != "Z"
        };
        let written = self.processes.iter().filter(|(pid, start, _)| there(*pid, *start)).count();
        (Marked::find(&self.marker).count(), written)
    }

    fn wait_until_gone(&self) {
        for (_, _, pidfd) in &self.processes {
            wait_for_end(pidfd);
        }
        Marked::find(&self.marker).wait_until_gone();
        assert_eq!(self.left(), (0, 0));
    }
}

impl Drop for Run {
    /// A test that failed leaves nothing either.
    fn drop(&mut self) {
        for (_, _, pidfd) in &self.processes {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

#[test]
fn nothing_survives_a_killed_shim() {
    let home = Home::new();
    let mut run = home.run(NASTY, "0");
    // The shell, its shim, and those with an environment.
    assert!(run.left().0 >= 5 && run.left().1 == 5, "{:?}", run.left());
    kill_process(run.shim, Signal::KILL).unwrap();
    assert_eq!(run.daemon.line(), "the program ended: signal 9");
    assert_eq!(run.left(), (0, 0), "when the handle says so, nothing is left");
    assert_eq!(run.daemon.line(), "0 locks");
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the test plays what is above the daemon")]
fn what_a_shell_started_before_it_became_the_daemon_is_spared() {
    let home = Home::new();
    let (state, marker) = (home.0.path().to_str().unwrap(), new_marker());
    let script = r#""$0" block sidecar & exec "$0" home "$@""#;
    let mut command = std::process::Command::new("sh");
    let mut daemon = Helper::run(command.args(["-c", script, PROGRAM, state, &marker, NASTY, "0"]));
    let mut first = daemon.sorted_lines(3);
    assert_eq!((first.remove(0).as_str(), first.remove(1).as_str()), ("0 leftovers", "sidecar"));
    let shim = first[0].strip_prefix("shim ").unwrap().parse().unwrap();
    assert_eq!(daemon.sorted_lines(5), WORDS);
    kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    assert_eq!(daemon.line(), "the program ended: signal 9");
    assert_eq!(Marked::find(&marker).count(), 0);
    let children = format!("/proc/{0}/task/{0}/children", daemon.process.id());
    let children = std::fs::read_to_string(children).unwrap();
    let sidecar: Vec<&str> = children.split_whitespace().collect();
    assert_eq!(sidecar.len(), 1, "only the sidecar is left");
    kill_process(Pid::from_raw(sidecar[0].parse().unwrap()).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn nothing_survives_a_killed_daemon_of_a_home() {
    let home = Home::new();
    let mut run = home.run(NASTY, "0");
    run.daemon.kill();
    run.wait_until_gone();
    // The shim removes the lock as its last deed.
    let mut next = home.daemon(&new_marker(), "echo next", "0");
    assert_eq!(next.line(), "0 leftovers");
}

#[test]
fn nothing_survives_a_killed_daemon_and_shim_and_the_next_start() {
    let home = Home::new();
    let mut run = home.run(NASTY_IN_SESSION, "0");
    // Stopped, the shim notices nothing of its daemon's end before it is killed too.
    kill_process(run.shim, Signal::STOP).unwrap();
    run.daemon.kill();
    kill_process(run.shim, Signal::KILL).unwrap();
    assert_eq!(run.left().1, 5, "they live on, until");

    let elsewhere = Home::new();
    let mut other = elsewhere.daemon(&new_marker(), "echo other", "0");
    assert_eq!(other.line(), "0 leftovers", "they are not another home's to end");
    assert_eq!(run.left().1, 5);

    let mut next = home.daemon(&new_marker(), "echo next", "0");
    let leftovers = next.line();
    let count: usize = leftovers.strip_suffix(" leftovers").unwrap().parse().unwrap();
    assert!(count >= 6, "{leftovers}");
    assert_eq!(run.left(), (0, 0), "gone before anything starts");
    assert!(next.line().starts_with("shim "));
    assert_eq!(next.line(), "next");
}

#[test]
fn two_runs_of_an_effect_never_overlap_though_the_daemon_was_killed() {
    let home = Home::new();
    let mut run = home.run(NASTY, "400");
    run.daemon.kill();
    let mut next = home.daemon(&new_marker(), "echo next; read line", "0");
    assert_eq!(next.line(), "0 leftovers", "its shim takes care of them");
    let shim = next.line();
    assert_eq!(run.left(), (0, 0), "the program starts when nothing is left of the older run");
    assert!(shim.starts_with("shim "), "{shim}");
    assert_eq!(next.line(), "next");
}

#[test]
fn who_waits_in_vain_for_an_older_run_is_told_who_holds_it() {
    let home = Home::new();
    let mut run = home.run(NASTY, "0");
    kill_process(run.shim, Signal::STOP).unwrap();
    run.daemon.kill();
    let mut next = home.daemon(&new_marker(), "impatient", "0");
    assert_eq!(next.line(), "0 leftovers");
    let why = format!("an older run of test/one has not ended, it is process {}", run.shim);
    assert_eq!(next.line(), format!("busy: cannot start sh: {why}"));
    kill_process(run.shim, Signal::CONT).unwrap();
    run.wait_until_gone();
}

#[test]
fn a_hundred_runs_of_one_effect_follow_each_other() {
    let home = Home::new();
    let mut helper = Helper::start(&["again-and-again", home.0.path().to_str().unwrap()]);
    assert_eq!(helper.line(), "100 runs, 0 at once, 0 locks");
}

#[tokio::test]
async fn a_wait_that_is_given_up_leaves_nothing() {
    let home = Home::new();
    let mut run = home.run(NASTY, "0");
    kill_process(run.shim, Signal::STOP).unwrap();
    run.daemon.kill();
    let marker = new_marker();
    let mut next = home.daemon(&marker, "never", "0");
    assert_eq!(next.line(), "0 leftovers");
    let waiting = crate::bounded(async {
        loop {
            let waiting = Marked::find(&marker);
            if waiting.count() == 1 {
                return waiting;
            }
            tokio::task::yield_now().await;
        }
    });
    let waiting = waiting.await;
    next.kill();
    waiting.wait_until_gone();
    kill_process(run.shim, Signal::CONT).unwrap();
    run.wait_until_gone();
}
