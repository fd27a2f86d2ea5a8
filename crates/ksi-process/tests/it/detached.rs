//! A daemon that is started, heard and left alone.

use std::path::Path;
use std::time::Duration;

use ksi_process::{Detached, Environment, Error, NotReady, spawn_detached};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use crate::{PATIENCE, PROGRAM, shim};

/// A started daemon, killed at the end of the test.
struct Daemon {
    folder: tempfile::TempDir,
    detached: Option<Detached>,
    /// None when it had ended before it could be looked at.
    process: Option<std::os::fd::OwnedFd>,
    pid: Pid,
}

impl Daemon {
    fn ready(&mut self, timeout: Duration) -> Result<(), NotReady> {
        self.detached.take().unwrap().ready(timeout)
    }

    fn is_running(&self) -> bool {
        let process = self.process.as_ref().unwrap();
        let at_once = Timespec::default();
        poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&at_once)).unwrap() == 0
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself. It is nobody's child, so nobody can wait for it.
        let _ = self.process.as_ref().map(|process| pidfd_send_signal(process, Signal::KILL));
    }
}

fn start(manner: &str) -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("daemon.log");
    let environment = Environment::new().set("GIVEN", "by hand");
    let program = Path::new(PROGRAM);
    let args = ["daemon", manner];
    let detached = spawn_detached(&shim(), program, args, &environment, &log).unwrap();
    let pid = Pid::from_raw(detached.pid().cast_signed()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).ok();
    Daemon { folder, detached: Some(detached), process, pid }
}

/// Fields of /proc/PID/stat after the command name: state, parent, group, session, terminal.
fn stat(pid: Pid) -> Vec<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(1).take(4).map(|field| field.parse().unwrap()).collect()
}

#[test]
fn a_daemon_that_is_ready_runs_on_its_own() {
    let mut daemon = start("ready");
    daemon.ready(PATIENCE).unwrap();
    let pid = daemon.pid;

    let [parent, group, session, terminal] = stat(pid)[..] else { panic!("{:?}", stat(pid)) };
    let [_, _, own_session, _] = stat(getpid())[..] else { panic!("{:?}", stat(getpid())) };
    assert_ne!(parent, getpid().as_raw_pid());
    assert_eq!(group, pid.as_raw_pid());
    assert_ne!(session, own_session);
    assert_eq!(terminal, 0);

    let log = daemon.folder.path().join("daemon.log");
    let proc = Path::new("/proc").join(pid.to_string());
    assert_eq!(proc.join("cwd").read_link().unwrap(), Path::new("/"));
    let mut open: Vec<_> = proc.join("fd").read_dir().unwrap().map(|e| e.unwrap().path()).collect();
    open.sort();
    let open: Vec<_> = open.iter().map(|path| path.read_link().unwrap()).collect();
    assert_eq!(open, [Path::new("/dev/null"), &log, &log]);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "printed by the daemon\n");

    let environment = std::fs::read_to_string(proc.join("environ")).unwrap();
    assert!(environment.split('\0').any(|variable| variable == "GIVEN=by hand"));
    assert!(!environment.contains("CARGO_MANIFEST_DIR="));
}

#[test]
fn the_text_of_a_failure_reaches_the_one_who_started_it() {
    let answer = start("failed").ready(PATIENCE);
    assert_eq!(answer, Err(NotReady::Failed("no port is free\ntry another".to_owned())));
}

#[test]
fn a_daemon_that_ends_without_a_word_is_noticed_at_once() {
    assert_eq!(start("silent").ready(PATIENCE), Err(NotReady::Ended));
}

#[test]
fn a_daemon_that_takes_too_long_is_left_alone() {
    let mut daemon = start("late");
    let patience = Duration::from_millis(20);
    assert_eq!(daemon.ready(patience), Err(NotReady::Late(patience)));
    assert!(daemon.is_running());
}

#[test]
fn a_missing_program_and_an_unusable_log_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let attempt = |program: &str, log: &str| {
        let log = folder.path().join(log);
        spawn_detached(&shim(), Path::new(program), [""; 0], &Environment::new(), &log)
    };
    let error = attempt("/no/such/daemon", "log").unwrap_err();
    let Error::Program { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
    let error = attempt(PROGRAM, "no/such/log").unwrap_err();
    assert!(matches!(error, Error::Log { .. }), "{error:?}");
}
