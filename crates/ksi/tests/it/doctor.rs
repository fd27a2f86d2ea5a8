//! `ksi doctor`, and places where the state may not be.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use serde_json::Value;

use crate::daemon::Home;

/// What was found of one thing: the verdict, the text, the hint.
fn finding(report: &Value, check: &str) -> (String, String, String) {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|it| it["check"] == check);
    let found = found.unwrap_or_else(|| panic!("nothing on {check}: {report:#}"));
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    (text("verdict"), text("what"), text("hint"))
}

fn report(home: &Home, code: i32) -> Value {
    let output = home.ksi(&["doctor", "-o", "json"]);
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What lies below a folder, with its contents' times.
fn everything(home: &Home) -> Vec<(std::path::PathBuf, i64)> {
    let mut folders = vec![home.path().to_owned()];
    let mut all = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let found = entry.metadata().unwrap();
            all.push((entry.path(), found.mtime_nsec()));
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    all.sort();
    all
}

#[test]
fn doctor_changes_nothing_and_finds_a_new_home_well() {
    let home = Home::new();
    let report = report(&home, 0);
    assert_eq!(report["status"], "ok", "{report:#}");
    assert_eq!(finding(&report, "daemon").1, "not running");
    assert!(finding(&report, "state").1.ends_with("state will be made"));
    assert!(finding(&report, "lock").1.starts_with("nobody holds"));
    assert_eq!(finding(&report, "model").0, "note");
    assert!(everything(&home).is_empty(), "{:?}", everything(&home));
    let text = home.ok(&["doctor"]);
    assert!(text.contains("ok    program     ksi ") && text.ends_with("all is well\n"), "{text}");
}

#[test]
fn doctor_knows_the_daemon_that_runs_and_the_one_that_has_stopped() {
    let home = Home::new();
    let pid = home.json(&["start", "-o", "json"])["pid"].to_string();
    home.ok(&["emit", "state:set", "key=k", "value=1"]);
    let running = report(&home, 0);
    assert_eq!(running["status"], "ok", "{running:#}");
    assert!(finding(&running, "daemon").1.contains(&format!("process {pid}")));
    assert_eq!(finding(&running, "lock").1, format!("held by the daemon, process {pid}"));
    assert!(finding(&running, "journal").1.starts_with("facts: 1, "), "{running:#}");
    home.ok(&["stop"]);
    let before = everything(&home);
    let stopped = report(&home, 0);
    assert!(finding(&stopped, "journal").1.contains("journal.db, "), "{stopped:#}");
    assert_eq!(everything(&home), before, "it only looks");
}

#[test]
fn doctor_finds_what_does_not_work_and_says_what_to_try() {
    let home = Home::new();
    let state = home.path().join("state");
    for folder in ["state", "config", "run", "cache/models"] {
        fs::create_dir_all(home.path().join(folder)).unwrap();
    }
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(home.path().join("config/config.toml"), "model = \n").unwrap();
    fs::write(home.path().join("run/daemon.sock"), "").unwrap();
    fs::write(state.join("journal.db"), "not a database at all").unwrap();
    fs::write(home.path().join("cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"), "x").unwrap();
    let report = report(&home, 1);
    assert_eq!(report["status"], "failed");
    let expect = |check: &str, verdict: &str, what: &str, hint: &str| {
        let found = finding(&report, check);
        let right = found.0 == verdict && found.1.contains(what) && found.2.contains(hint);
        assert!(right, "{check}: {found:?}");
    };
    expect("config", "failed", "config.toml", "docs/configuration.md");
    expect("socket", "failed", "is in the way and is no socket", "move it");
    expect("journal", "failed", "is no journal", "ksi restore");
    expect("model", "warning", "is no whole model", "ksi model pull");
    expect("state", "warning", "other users can look into", "chmod 700");
}

#[test]
fn doctor_finds_a_daemon_that_holds_the_lock_and_does_not_answer() {
    let home = Home::new();
    let pid = home.json(&["start", "-o", "json"])["pid"].to_string();
    let mut elsewhere = home.command(&["doctor", "-o", "json"]);
    elsewhere.env("KSI_SOCKET", home.path().join("other.sock"));
    let output = elsewhere.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (verdict, what, hint) = finding(&report, "daemon");
    assert_eq!((output.status.code(), verdict.as_str()), (Some(1), "failed"));
    let there = home.path().join("run/daemon.sock");
    let expected = format!("the daemon (process {pid}) listens at {}", there.display());
    assert!(what.starts_with(&expected), "{what}");
    assert!(hint.contains(&format!("set KSI_SOCKET to {}", there.display())), "{hint}");
    let lock = finding(&report, "lock").1;
    assert!(lock.contains(&pid) && lock.contains("serving at"), "{lock}");
    for command in ["stop", "start", "restart", "status", "health"] {
        let mut command = home.command(&[command]);
        let output = command.env("KSI_SOCKET", home.path().join("other.sock")).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&expected), "{command:?} does not name it: {said}");
        assert_eq!(output.status.code(), Some(1), "{command:?}");
    }
}

#[test]
fn doctor_says_what_it_can_where_no_places_can_be_told() {
    let home = Home::new();
    let mut command = home.command(&["doctor", "-o", "json"]);
    let output = command.env("KSI_SOCKET", format!("/tmp/{}", "s".repeat(200))).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(finding(&report, "program").0, "ok");
    let (verdict, what, _) = finding(&report, "places");
    assert_eq!(verdict, "failed");
    assert!(what.contains("KSI_SOCKET is 205 bytes long"), "{what}");
}

#[test]
fn a_state_on_a_network_filesystem_is_refused_with_what_to_set() {
    let home = Home::new();
    let mounts = home.path().join("mounts");
    let above = fs::canonicalize(home.path()).unwrap();
    for (kind, refused) in [("nfs4", true), ("9p", true), ("fuse.sshfs", true), ("xfs", false)] {
        fs::write(&mounts, format!("1 0 0:1 / {} rw - {kind} x rw\n", above.display())).unwrap();
        for args in [&["start"][..], &["start", "--foreground"], &["restore", "none"]] {
            if !refused && args.len() == 2 {
                continue;
            }
            let output = home.command(args).env("KSI_TEST_MOUNTS", &mounts).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            let named = said.contains(kind) && said.contains("set KSI_HOME or XDG_STATE_HOME");
            assert_eq!(named, refused, "{kind} {args:?}: {said}");
            assert_eq!(output.status.code() == Some(0), !refused);
        }
        let doctor = home.command(&["doctor"]).env("KSI_TEST_MOUNTS", &mounts).output().unwrap();
        assert_eq!(doctor.status.code(), Some(i32::from(refused)));
        assert_eq!(home.path().join("state").exists(), !refused, "nothing is made there");
    }
}

#[test]
fn a_home_that_is_too_deep_has_its_socket_in_a_folder_of_its_own_under_tmp() {
    let home = Home::new();
    let deep = home.path().join("d".repeat(120));
    let temp = home.path().join("t");
    fs::create_dir(&temp).unwrap();
    let run = |args: &[&str]| {
        let mut command = home.command(args);
        command.env("KSI_HOME", &deep).env("TMPDIR", &temp).output().unwrap()
    };
    let started = run(&["start"]);
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let folder = fs::read_dir(&temp).unwrap().next().unwrap().unwrap();
    let name = folder.file_name().into_string().unwrap();
    assert!(name.starts_with(&format!("ksi-{}-", rustix::process::getuid().as_raw())), "{name}");
    assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
    assert!(run(&["--no-start", "health"]).status.success(), "every client looks there");
    assert!(run(&["stop"]).status.success());
}
