//! How `ksi orchestrate` ends before the debate does.

use std::{
    io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write},
    os::unix::fs::PermissionsExt,
    process::{Child, Stdio},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, mknodat},
    process::{Pid, Signal, kill_process},
};
use serde_json::{Value, json};

use crate::daemon::{Home, next_of, subscribe};

/// The first turn is a word; who hears that word never answers.
const STUCK: &str =
    "log: $LOG\nrules:\n  - {when: Marzipan, hang: true}\n  - answers: [Marzipan.]\n";

#[test]
fn ctrl_c_ends_the_orchestration_and_says_how_to_look_at_it() {
    ends_by(Signal::INT, 130);
}

#[test]
fn sigterm_ends_the_orchestration_as_ctrl_c_does() {
    ends_by(Signal::TERM, 143);
}

#[test]
fn a_closed_terminal_ends_the_orchestration_as_ctrl_c_does() {
    ends_by(Signal::HUP, 129);
}

fn ends_by(signal: Signal, code: i32) {
    let home = Home::new();
    let (model, _) = home.script(STUCK);
    let mut child = home.command(&["orchestrate", "Is P=NP?", "--model", &model]).spawn().unwrap();
    wait_for_line(&mut child, "Marzipan.");
    send(&child, signal);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    let (_, look) =
        said.rsplit_once("ksi describe orchestration ").unwrap_or_else(|| panic!("{said}"));
    let seen = home.json(&["describe", "orchestration", look.trim(), "-o", "json"]);
    assert_eq!(seen["status"], "terminated", "{seen}");
    assert_eq!(home.json(&["emit", "system:health"])["running"], 0, "its turn still runs");
}

#[test]
fn under_nohup_a_closed_terminal_ends_nothing() {
    let home = Home::new();
    let (model, _) = home.script(STUCK);
    let args = ["orchestrate", "Is P=NP?", "--model", &model];
    let mut child = home.command_under("nohup", &args).spawn().unwrap();
    wait_for_line(&mut child, "Marzipan.");
    send(&child, Signal::HUP);
    send(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[tokio::test]
async fn ctrl_c_is_heard_while_nobody_reads() {
    let home = Home::new();
    let daemon = home.daemon().await;
    let (model, _) = home.script(STUCK);
    let client = daemon.client().await;
    let mut turns = subscribe(&client, "orchestration:turn_taken", None).await;
    let (_reader, full) = full_pipe();
    let mut command = home.command(&["orchestrate", "x", "--model", &model]);
    let mut child = command.stdout(full).spawn().unwrap();
    next_of(&mut turns, "orchestration:turn_taken").await;
    send(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let runs: Value = client.call("orchestration:list", &json!({})).await.unwrap();
    assert_eq!(runs[0]["status"], "terminated", "{runs}");
}

/// A pipe into which not one more byte goes.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(b" ").is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

#[tokio::test]
async fn ctrl_c_while_it_starts_ends_it_once_it_has_started() {
    let home = Home::new();
    let daemon = home.daemon().await;
    let (model, _) = home.script(STUCK);
    let mut child = home.command(&["orchestrate", "x", "--model", &model]).spawn().unwrap();
    let pid = Pid::from_raw(daemon.pid() as i32).unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    read_until(&mut stderr, "model: ");
    kill_process(pid, Signal::STOP).unwrap();
    send(&child, Signal::INT);
    kill_process(pid, Signal::CONT).unwrap();
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    let client = daemon.client().await;
    let runs: Value = client.call("orchestration:list", &json!({})).await.unwrap();
    assert_eq!(runs[0]["status"], "terminated", "{runs} {said}");
}

#[tokio::test]
async fn who_asks_twice_does_not_wait_until_it_has_started() {
    let home = Home::new();
    let mut daemon = home.daemon_with(&[("KSI_HOLD", "append:1")]);
    daemon.wait_for("ready").await;
    let (model, _) = home.script(STUCK);
    let mut child = home.command(&["orchestrate", "x", "--model", &model]).spawn().unwrap();
    daemon.wait_for("held").await;
    send(&child, Signal::INT);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    read_until(&mut stderr, "ask again to leave at once");
    send(&child, Signal::INT);
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("not known: ksi get orchestrations"), "{said}");
    daemon.kill();
}

#[test]
fn ctrl_c_while_the_model_is_fetched_starts_nothing() {
    let home = Home::new();
    let (pip, gate) = (home.path().join("python3"), home.path().join("gate"));
    mknodat(CWD, &gate, FileType::Fifo, Mode::RWXU, 0).unwrap();
    std::fs::write(&pip, format!("#!/bin/sh\nread go < {}\nexit 1\n", gate.display())).unwrap();
    std::fs::set_permissions(&pip, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = home.command(&["orchestrate", "x"]);
    let mut child = command.env("PATH", home.path()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    read_until(&mut stderr, "fetching the local model");
    send(&child, Signal::INT);
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("nothing was started"), "{said}");
    assert_eq!(home.json(&["get", "orchestrations", "-o", "json"]), json!([]));
    assert_eq!(home.json(&["model", "list", "-o", "json"])[0]["status"], "pulling");
    // Opened once pip waits for it, and closed at once: pip ends, and the daemon can.
    std::fs::File::options().write(true).open(gate).unwrap();
}

#[test]
fn when_nobody_reads_any_more_it_says_that_the_orchestration_goes_on() {
    let home = Home::new();
    let (model, _) = home.script(STUCK);
    let mut command = home.command(&["orchestrate", "x", "--model", &model]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    goes_on(&home, &said);
}

#[test]
fn when_there_is_no_room_for_what_is_said_it_says_that_the_orchestration_goes_on() {
    let home = Home::new();
    let (model, _) = home.script(STUCK);
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = home.command(&["orchestrate", "x", "--model", &model]);
    let output = command.stdout(full()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    goes_on(&home, &said);
    command.args(["-o", "json"]);
    let output = command.stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&output.stderr).unwrap();
    let text = |name: &str| said["error"][name].as_str().unwrap().replace("; ", "\n");
    goes_on(&home, &format!("{}\n{}", text("message"), text("hint")));
}

/// It says that the orchestration goes on, how to look at it and how to end it; and so it is.
fn goes_on(home: &Home, said: &str) {
    assert!(said.contains("the orchestration goes on"), "{said}");
    let command = |before: &str| -> Vec<String> {
        let (_, line) = said.split_once(before).unwrap_or_else(|| panic!("{said}"));
        line.lines().next().unwrap().split(' ').map(str::to_owned).collect()
    };
    let look = command("look at it with: ksi ");
    assert!(home.command(&[]).args(look).output().unwrap().status.success());
    let ended = home.command(&[]).args(command("end it with: ksi ")).output().unwrap();
    let ended: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(ended["status"], "terminated");
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Reads what the command prints until a line says this; the rest of it is read and forgotten.
fn wait_for_line(child: &mut Child, text: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    read_until(&mut lines, text);
    std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
}

/// Reads up to and with the line that contains this.
fn read_until(lines: &mut impl BufRead, text: &str) {
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it never said `{text}`");
    }
}
