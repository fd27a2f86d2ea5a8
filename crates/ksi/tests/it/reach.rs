//! Daemons that are not there for a moment, or not at all, and what commands say of them.

use std::{
    io::BufRead,
    process::{Child, Output},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::daemon::{Daemon, Home, next_of, subscribe};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_halted_daemon_is_named_by_every_command_and_works_again_when_it_goes_on() {
    let home = Home::new();
    let daemon = home.daemon().await;
    let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let commands: [&[&str]; 9] = [
        &["status"],
        &["health"],
        &["doctor"],
        &["stop"],
        &["start"],
        &["restart"],
        &["emit", "state:list"],
        &["listen", "*"],
        &["journal", "stats"],
    ];
    let started: Vec<Child> =
        commands.map(|args| home.command(args).spawn().unwrap()).into_iter().collect();
    let named = format!("the daemon (process {}) has not answered in 10s", daemon.pid());
    let hint = format!("kill -CONT {}", daemon.pid());
    let outputs: Vec<_> =
        started.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    for (args, output) in commands.into_iter().zip(outputs) {
        let text = said(&output) + &String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&named) && text.contains(&hint), "{args:?}: {text}");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
    }
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(home.ok(&["health"]).trim(), "healthy");
}

#[test]
fn what_listens_on_the_socket_without_a_word_is_no_daemon_that_runs() {
    let home = Home::new();
    std::fs::create_dir(home.path().join("run")).unwrap();
    let socket = home.path().join("run/daemon.sock");
    let _mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let output = home.ksi(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("what listens on the daemon's socket has not answered"));
    assert!(said(&output).contains("hint: end what listens there"), "{}", said(&output));
    std::fs::remove_file(&socket).unwrap();
}

/// A daemon that ends only when its grace of three seconds is over.
async fn draining(home: &Home) -> Daemon {
    let (model, _) = home.script("rules:\n  - {hang: true}\n");
    home.ok(&["config", "set", "shutdown.grace_seconds", "3"]);
    let mut daemon = home.daemon().await;
    let client = daemon.client().await;
    let mut started = subscribe(&client, "completion:started", None).await;
    let ask = json!({ "prompt": "never", "model": model });
    let _: Value = client.call("completion:async", &ask).await.unwrap();
    next_of(&mut started, "completion:started").await;
    kill_process(Pid::from_raw(daemon.pid().cast_signed()).unwrap(), Signal::TERM).unwrap();
    daemon.wait_for("shutting down").await;
    daemon
}

#[tokio::test]
async fn a_daemon_that_is_shutting_down_is_said_to_be_and_every_stop_waits_until_it_is_gone() {
    let home = Home::new();
    let mut daemon = draining(&home).await;
    let stops = [(); 3].map(|()| home.command(&["stop"]).spawn().unwrap());
    let pid = daemon.pid();
    let status = home.ksi(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(
        (status.status.code(), text),
        (Some(3), format!("ksi is shutting down (pid {pid})\n"))
    );
    let status = home.ksi(&["status", "-o", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status, json!({ "running": false, "stage": "ending", "pid": pid }));
    let refused = home.ksi(&["--no-start", "emit", "state:list"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(said(&refused).contains("is shutting down"), "{}", said(&refused));
    let doctor = home.ksi(&["doctor"]);
    assert!(doctor.stdout.lines().any(|line| line.unwrap().contains("is shutting down")));
    assert!(daemon.try_wait().is_none(), "it was seen while it was shutting down");
    for stop in stops {
        let output = stop.wait_with_output().unwrap();
        assert_eq!(output.stdout, format!("ksi has stopped (pid {pid})\n").into_bytes());
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }
    assert!(daemon.wait().success());
    assert_eq!(home.ksi(&["status"]).stdout, b"ksi is not running; `ksi start` starts it\n");
}

#[tokio::test]
async fn who_starts_a_daemon_while_another_is_shutting_down_waits_for_the_next() {
    let home = Home::new();
    let mut daemon = draining(&home).await;
    let commands = [&["start"][..], &["emit", "state:list"], &["health"], &["journal", "stats"]];
    let started = commands.map(|args| home.command(args).spawn().unwrap());
    assert!(daemon.try_wait().is_none(), "it was still there when they began");
    for (args, child) in commands.into_iter().zip(started) {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", said(&output));
    }
    assert!(daemon.wait().success());
    assert_ne!(home.json(&["health", "-o", "json"])["pid"], daemon.pid());
}

#[tokio::test]
async fn a_command_that_meets_a_daemon_that_is_just_starting_waits_for_it() {
    let home = Home::new();
    let mut daemon = home.daemon_with(&[]);
    while !home.path().join("state/daemon.lock").exists() {
        assert!(daemon.try_wait().is_none(), "it has ended");
    }
    let health = home.json(&["health", "-o", "json"]);
    assert_eq!(health["pid"], daemon.pid());
}

#[test]
fn a_holder_of_the_lock_that_has_not_said_yet_what_it_does_is_waited_for() {
    let home = Home::new();
    home.ok(&["start"]);
    home.ok(&["stop"]);
    let path = home.path().join("state/daemon.lock");
    let lock = ksi_process::lock::Lock::acquire(&path).unwrap();
    let status = home.command(&["status"]).spawn().unwrap();
    let output = status.wait_with_output().unwrap();
    let named = format!("process {} holds {}", std::process::id(), path.display());
    assert!(said(&output).contains(&named), "{}", said(&output));
    let mut status = home.command(&["status"]).spawn().unwrap();
    let looked = format!("/proc/{}/stat", status.id());
    assert!(std::fs::exists(looked).unwrap() && status.try_wait().unwrap().is_none());
    drop(lock);
    assert_eq!(status.wait_with_output().unwrap().status.code(), Some(3));
}
