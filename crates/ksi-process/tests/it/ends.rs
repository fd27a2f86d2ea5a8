//! No end of a daemon, handle, program or shim leaves a process behind.

use std::time::Duration;

use ksi_process::{Child, Command, Exit};
use rustix::process::{Pid, Signal, kill_process};

use crate::marked::Marked;
use crate::{Helper, PATIENCE, PROGRAM, bounded, new_marker, shim, sorted_lines};

/// Each line of it is one process that prints its kind; the shell itself waits for them.
const PLAIN: &str = r#""$0" block plain & wait"#;
const STUBBORN: &str = r#"trap '' TERM HUP INT; "$0" block stubborn & wait"#;
const OWN_SESSION: &str = r#""$0" own-session away & wait"#;
const ORPHAN: &str = r#"( "$0" block orphan & ); "$0" block parent & wait"#;
const EVERYTHING: &str = r#"trap '' TERM HUP INT
    ( ( "$0" own-session away & ) & )
    ( "$0" block orphan & )
    "$0" block stubborn & wait"#;

async fn spawn(script: &str, marker: &str, grace: Duration) -> Child {
    let command = Command::new("sh").arg("-c").arg(script).arg(PROGRAM).grace(grace);
    command.env("KSI_TEST_MARKER", marker).spawn(&shim()).await.unwrap()
}

fn nobody_survives_the_daemon(script: &str, kinds: &[&str]) {
    let marker = new_marker();
    let mut host = Helper::start(&["host", &marker, script]);
    assert_eq!(host.sorted_lines(kinds.len()), kinds);
    let tree = Marked::find(&marker);
    // Shim and shell besides those that spoke.
    assert!(tree.count() >= kinds.len() + 2, "{} processes", tree.count());
    host.kill();
    tree.wait_until_gone();
}

#[test]
fn nobody_survives_a_killed_daemon() {
    nobody_survives_the_daemon(PLAIN, &["plain"]);
}

#[test]
fn nobody_survives_a_killed_daemon_by_ignoring_signals() {
    nobody_survives_the_daemon(STUBBORN, &["stubborn"]);
}

#[test]
fn nobody_survives_a_killed_daemon_in_another_session() {
    nobody_survives_the_daemon(OWN_SESSION, &["away"]);
}

#[test]
fn nobody_survives_a_killed_daemon_as_an_orphan() {
    nobody_survives_the_daemon(ORPHAN, &["orphan", "parent"]);
}

#[test]
fn nobody_survives_a_killed_daemon_by_all_tricks_at_once() {
    nobody_survives_the_daemon(EVERYTHING, &["away", "orphan", "stubborn"]);
}

#[tokio::test]
async fn dropping_the_handle_ends_the_tree() {
    let marker = new_marker();
    let mut child = spawn(EVERYTHING, &marker, Duration::ZERO).await;
    assert_eq!(sorted_lines(&mut child, 3).await, ["away", "orphan", "stubborn"]);
    let tree = Marked::find(&marker);
    assert!(tree.count() >= 5);
    drop(child);
    tree.wait_until_gone();
}

#[tokio::test]
async fn stop_returns_after_the_last_process_is_gone() {
    let marker = new_marker();
    let mut child = spawn(EVERYTHING, &marker, Duration::ZERO).await;
    sorted_lines(&mut child, 3).await;
    assert!(Marked::find(&marker).count() >= 5);
    assert_eq!(bounded(child.stop()).await, Exit::Signal(9));
    assert_eq!(Marked::find(&marker).count(), 0);
}

#[tokio::test]
async fn a_program_that_ends_when_asked_is_not_killed() {
    let script = r#"trap 'exit 5' TERM; "$0" block up & wait"#;
    let mut child = spawn(script, &new_marker(), PATIENCE * 10).await;
    assert_eq!(sorted_lines(&mut child, 1).await, ["up"]);
    assert_eq!(bounded(child.stop()).await, Exit::Code(5));
}

#[tokio::test]
async fn a_stopped_program_is_woken_to_hear_that_it_has_to_end() {
    let script = r#"trap 'exit 6' TERM; "$0" block $$ & wait"#;
    let mut child = spawn(script, &new_marker(), PATIENCE * 10).await;
    let pid = sorted_lines(&mut child, 1).await[0].parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    assert_eq!(bounded(child.stop()).await, Exit::Code(6));
}

#[tokio::test]
async fn a_program_that_does_not_end_in_its_grace_is_killed() {
    let marker = new_marker();
    let mut child = spawn(STUBBORN, &marker, Duration::from_millis(50)).await;
    sorted_lines(&mut child, 1).await;
    let begun = std::time::Instant::now();
    assert_eq!(bounded(child.stop()).await, Exit::Signal(9));
    assert!(begun.elapsed() >= Duration::from_millis(50), "{:?}", begun.elapsed());
    assert_eq!(Marked::find(&marker).count(), 0);
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it() {
    let marker = new_marker();
    let script = r#"trap '' TERM; ( "$0" own-session away & ) ; read line; exit 7"#;
    let mut child = spawn(script, &marker, Duration::ZERO).await;
    sorted_lines(&mut child, 1).await;
    assert!(Marked::find(&marker).count() >= 3);
    // Waiting closes stdin, which ends the shell's read.
    assert_eq!(bounded(child.wait()).await, Exit::Code(7));
    assert_eq!(Marked::find(&marker).count(), 0);
}

#[tokio::test]
async fn a_shim_that_is_asked_to_end_ends_its_tree() {
    let marker = new_marker();
    let mut child = spawn(EVERYTHING, &marker, Duration::ZERO).await;
    sorted_lines(&mut child, 3).await;
    let shim = Pid::from_raw(child.pid().cast_signed()).unwrap();
    kill_process(shim, Signal::TERM).unwrap();
    assert_eq!(bounded(child.wait()).await, Exit::Signal(9));
    assert_eq!(Marked::find(&marker).count(), 0);
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing() {
    let marker = new_marker();
    let command = Command::new("sh").args(["-c", PLAIN, PROGRAM]).grace(Duration::ZERO);
    let start = command.env("KSI_TEST_MARKER", &marker);
    let shim = shim();
    let mut start = Box::pin(start.spawn(&shim));
    // Polled once, it has made the shim, which has not answered yet.
    let first = std::future::poll_fn(|cx| std::task::Poll::Ready(start.as_mut().poll(cx))).await;
    assert!(first.is_pending());
    let tree = Marked::find(&marker);
    assert!(tree.count() >= 1);
    drop(start);
    tree.wait_until_gone();
}

#[test]
fn a_hundred_starts_leave_no_descriptor_and_no_zombie() {
    let mut helper = Helper::start(&["spawn-many"]);
    assert_eq!(helper.line(), "0 children left");
}
