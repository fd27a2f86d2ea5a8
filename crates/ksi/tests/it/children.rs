//! No child outlives the daemon, its shim, or both: real children that do not want to end.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use ksi_protocol::Client;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal},
};
use serde_json::{Value, json};

use crate::daemon::{Daemon, Home, PATIENCE, data, next_of, subscribe};

/// A child that ignores what asks it to end, holds its pipes, and notes its pid and start time.
const NASTY: &str = r#"trap '' TERM HUP INT
    echo "$$ $(cut -d' ' -f22 /proc/$$/stat)" >> "$0"
    exec tail -f /dev/null"#;

/// Five of them, by all tricks: two with an empty environment, one of which also left the session.
/// What has an empty environment and is an orphan is in its session; what left that has a parent.
const ALL: &str = r#"trap '' TERM HUP INT
    nasty="$1"
    sh -c "$nasty" "$0" &
    ( ( setsid sh -c "$nasty" "$0" & ) & )
    ( sh -c "$nasty" "$0" & )
    ( env -i /bin/sh -c "$nasty" "$0" & )
    env -i setsid /bin/sh -c "$nasty" "$0" &
    wait"#;

/// A run of `ALL` under the daemon.
struct Run {
    shim: Pid,
    /// By the number and start time that each wrote itself.
    written: Vec<(i32, String)>,
    /// Those found now, by that or by the marker.
    held: Vec<OwnedFd>,
}

/// The number of the first start's fact, behind the wish.
const STARTED: u64 = 2;

const MARKER: &str = "KSI_TEST_MARKER=nasty";

fn start_of(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (fields[0] != "Z").then(|| fields[19].to_owned())
}

/// The processes that bear the marker and this home's path.
fn marked(home: &Home) -> Vec<i32> {
    let numbers = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let home = format!("KSI_TEST_HOME={}", home.path().display());
    let bears = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let has = |text: &str| environment.split(|b| *b == 0).any(|v| v == text.as_bytes());
        has(MARKER) && has(&home)
    };
    numbers.filter(bears).collect()
}

/// None for one that was on its way out, such as the parent of an orphan.
fn hold(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).ok()
}

impl Run {
    fn find(home: &Home, shim: u64) -> Run {
        let text = std::fs::read_to_string(pids(home)).unwrap();
        let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
        let written: Vec<(i32, String)> =
            pairs.map(|(pid, start)| (pid.parse().unwrap(), start.to_owned())).collect();
        assert_eq!(written.len(), 5, "{text}");
        let marked = marked(home);
        // Three of the five, the shell and the shim.
        assert!(marked.len() >= 5, "{marked:?}");
        let all = written.iter().map(|(pid, _)| *pid).chain(marked);
        let held = all.filter_map(hold).collect();
        std::fs::remove_file(pids(home)).unwrap();
        Run { shim: Pid::from_raw(i32::try_from(shim).unwrap()).unwrap(), written, held }
    }

    fn kill_shim(&self, signal: Signal) {
        kill_process(self.shim, signal).unwrap();
    }

    fn wait_until_gone(&self) {
        for process in &self.held {
            let patience = Timespec::try_from(PATIENCE).unwrap();
            let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&patience));
            assert_eq!(ended, Ok(1), "a child outlived its daemon");
        }
        self.assert_gone();
    }

    /// All are gone, at once.
    fn assert_gone(&self) {
        for process in &self.held {
            let ended =
                poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&Timespec::default()));
            assert_eq!(ended, Ok(1), "a child is still there");
        }
        for (pid, start) in &self.written {
            assert_ne!(start_of(*pid).as_ref(), Some(start), "process {pid} is still there");
        }
    }
}

impl Drop for Run {
    /// A test that failed leaves nothing either.
    fn drop(&mut self) {
        for process in &self.held {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}

fn pids(home: &Home) -> PathBuf {
    home.path().join("pids")
}

async fn daemon(home: &Home) -> Daemon {
    let mut daemon = home.daemon_with(&[("KSI_LAUNCH", "1")]);
    daemon.wait_for("ready").await;
    daemon
}

fn program(home: &Home, grace_ms: u64) -> Value {
    let env = json!({ "KSI_TEST_MARKER": "nasty", "KSI_TEST_HOME": home.path() });
    let args = json!(["-c", ALL, pids(home), NASTY]);
    json!({ "key": "one", "program": "sh", "args": args, "env": env, "grace_ms": grace_ms })
}

/// Waits until the first run behind `since` is complete.
async fn run(home: &Home, client: &Client, since: u64) -> Run {
    let mut events = subscribe(client, "launch:*", Some(since)).await;
    let started = data(&next_of(&mut events, "launch:started").await);
    complete(home, &started).await
}

async fn complete(home: &Home, started: &Value) -> Run {
    wait_for_lines(&pids(home), 5).await;
    Run::find(home, started["pid"].as_u64().unwrap())
}

/// Bounded polling of what other programs write.
async fn wait_for_lines(path: &Path, count: usize) {
    let lines = || std::fs::read_to_string(path).unwrap_or_default().lines().count();
    let written = async {
        while lines() < count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.expect("all children write");
}

async fn launch(home: &Home, client: &Client, grace_ms: u64) -> Run {
    client.call::<Value>("launch:program", &program(home, grace_ms)).await.unwrap();
    run(home, client, 0).await
}

#[tokio::test]
async fn no_child_survives_a_killed_daemon() {
    let home = Home::new();
    let daemon = daemon(&home).await;
    let run = launch(&home, &daemon.client().await, 50).await;
    daemon.kill();
    run.wait_until_gone();
    assert_eq!(marked(&home), [0; 0]);
}

#[tokio::test]
async fn no_child_survives_its_killed_shim() {
    let home = Home::new();
    let daemon = daemon(&home).await;
    let client = daemon.client().await;
    let run = launch(&home, &client, 60_000).await;
    let mut ends = subscribe(&client, "launch:ended", Some(0)).await;
    run.kill_shim(Signal::KILL);
    let end = data(&next_of(&mut ends, "launch:ended").await);
    assert_eq!(end["how"], "signal 9");
    run.assert_gone();
    assert_eq!(marked(&home), [0; 0]);
    let children = format!("/proc/{0}/task/{0}/children", daemon.pid());
    assert_eq!(std::fs::read_to_string(children).unwrap(), "", "no zombie stays");
}

#[tokio::test]
async fn no_child_survives_daemon_and_shim_killed_at_once_and_the_next_start() {
    let home = Home::new();
    let first = daemon(&home).await;
    let run_before = launch(&home, &first.client().await, 0).await;
    // A stopped shim does not see its daemon go before it goes itself.
    run_before.kill_shim(Signal::STOP);
    first.kill();
    run_before.kill_shim(Signal::KILL);
    assert!(run_before.written.iter().all(|(pid, start)| start_of(*pid).as_ref() == Some(start)));

    let second = daemon(&home).await;
    run_before.assert_gone();
    // It is still wanted, so it runs again.
    let run = run(&home, &second.client().await, STARTED).await;
    second.kill();
    run.wait_until_gone();
}

#[tokio::test]
async fn a_run_does_not_begin_before_the_last_process_of_the_older_one_is_gone() {
    let home = Home::new();
    let first = daemon(&home).await;
    let older = launch(&home, &first.client().await, 500).await;
    first.kill();
    let second = daemon(&home).await;
    assert!(older.written.iter().any(|(pid, start)| start_of(*pid).as_ref() == Some(start)));
    let client = second.client().await;
    let mut starts = subscribe(&client, "launch:started", Some(STARTED)).await;
    let started = data(&next_of(&mut starts, "launch:started").await);
    older.assert_gone();
    let newer = complete(&home, &started).await;
    second.kill();
    newer.wait_until_gone();
}

#[tokio::test]
async fn another_home_is_left_alone() {
    let (ours, theirs) = (Home::new(), Home::new());
    let their_daemon = daemon(&theirs).await;
    let run = launch(&theirs, &their_daemon.client().await, 0).await;
    let daemon = daemon(&ours).await;
    let here = launch(&ours, &daemon.client().await, 0).await;
    here.kill_shim(Signal::STOP);
    daemon.kill();
    here.kill_shim(Signal::KILL);
    drop(self::daemon(&ours).await);
    here.assert_gone();
    assert!(run.written.iter().all(|(pid, start)| start_of(*pid).as_ref() == Some(start)));
    their_daemon.kill();
    run.wait_until_gone();
}

#[tokio::test]
async fn what_a_program_says_beyond_the_cap_is_dropped_and_counted() {
    let home = Home::new();
    let daemon = daemon(&home).await;
    let client = daemon.client().await;
    let mut ends = subscribe(&client, "launch:ended", None).await;
    let args = ["-c", "yes 0123456789 | head -c 50000000"];
    let request = json!({ "key": "loud", "program": "sh", "args": args });
    client.call::<Value>("launch:program", &request).await.unwrap();
    let end = data(&next_of(&mut ends, "launch:ended").await);
    assert_eq!(end["how"], "exit code 0");
    let newlines = 50_000_000 / 11;
    assert_eq!(end["dropped"].as_u64(), Some(50_000_000 - newlines - 1024 * 1024));
}
