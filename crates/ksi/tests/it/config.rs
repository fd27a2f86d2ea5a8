//! The configuration, through the program: with and without a daemon, by SIGHUP and when asked.

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::daemon::{Home, data, next_of, subscribe};

fn file(home: &Home) -> PathBuf {
    home.path().join("config/config.toml")
}

fn write(home: &Home, text: &str) {
    std::fs::create_dir_all(home.path().join("config")).unwrap();
    std::fs::write(file(home), text).unwrap();
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn settings_are_shown_got_and_set_without_a_daemon() {
    let home = Home::new();
    assert_eq!(home.ok(&["config", "path"]).trim(), file(&home).to_str().unwrap());
    assert_eq!(home.ok(&["config", "get", "local.idle_seconds"]).trim(), "60");
    write(&home, "# mine\n[local]\nidle_seconds = 5 # short\n");
    assert!(home.ok(&["config", "set", "model", "local"]).contains("changed: model"));
    let text = std::fs::read_to_string(file(&home)).unwrap();
    assert!(text.contains("# mine") && text.contains("idle_seconds = 5 # short"), "{text}");
    let mut command = home.command(&["config", "show"]);
    let shown = command.env("KSI_LOG_KEEP_FILES", "9").output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let line = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("model"), ["model", "local", "file"]);
    assert_eq!(line("log.keep_files"), ["log.keep_files", "9", "KSI_LOG_KEEP_FILES"]);
    assert_eq!(line("log.max_bytes"), ["log.max_bytes", "10485760", "default"]);
    assert_eq!(
        home.json(&["config", "show", "-o", "json"])["settings"].as_array().unwrap().len(),
        8
    );
    assert_eq!(home.ksi(&["--no-start", "health"]).status.code(), Some(3), "none was started");
}

#[test]
fn what_cannot_be_set_is_refused_and_the_file_stays() {
    let home = Home::new();
    write(&home, "model = \"a\"\n");
    for (key, value, why) in [
        ("modle", "x", "did you mean `model`?"),
        ("../x", "x", "there is no setting"),
        ("log.keep_files", "many", "must be a whole number"),
        ("log.keep_files", "-1", "must be a whole number"),
    ] {
        let refused = home.ksi(&["config", "set", key, value]);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(why), "{}", stderr(&refused));
    }
    write(&home, "model = \"a\"\nmodle = 1\n");
    let broken = home.ksi(&["config", "set", "model", "b"]);
    assert_eq!(broken.status.code(), Some(1));
    assert!(stderr(&broken).contains("config.toml, line 2: "), "{}", stderr(&broken));
    assert_eq!(std::fs::read_to_string(file(&home)).unwrap(), "model = \"a\"\nmodle = 1\n");
    let mut wrong = home.command(&["start"]);
    write(&home, "");
    let wrong = wrong.env("KSI_LOCAL_IDLE_SECONDS", "soon").output().unwrap();
    assert!(stderr(&wrong).contains("KSI_LOCAL_IDLE_SECONDS is \"soon\""), "{}", stderr(&wrong));
}

#[test]
fn a_restart_with_a_broken_file_leaves_the_daemon_running() {
    let home = Home::new();
    let pid = home.json(&["start", "-o", "json"])["pid"].clone();
    write(&home, "x = [\n");
    let refused = home.ksi(&["restart"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("config.toml, line "), "{}", stderr(&refused));
    assert_eq!(home.json(&["health", "-o", "json"])["pid"], pid);
}

#[tokio::test]
async fn a_daemon_that_runs_takes_what_is_set_and_goes_back() {
    let home = Home::new();
    let mut daemon = home.daemon_with(&[("KSI_LOG_MAX_BYTES", "5000000")]);
    daemon.wait_for("ready").await;
    let client = daemon.client().await;
    let mut changes = subscribe(&client, "config:changed", None).await;
    assert_eq!(
        home.ok(&["config", "set", "log.keep_files", "7"]).trim(),
        "changed: log.keep_files"
    );
    let changed = data(&next_of(&mut changes, "config:changed").await);
    assert_eq!(changed, json!({ "keys": ["log.keep_files"] }));
    let later = home.ok(&["config", "set", "model", "local"]);
    assert!(later.contains("model from the next start"), "{later}");
    let weak = home.ok(&["config", "set", "log.max_bytes", "1"]);
    assert!(weak.contains("KSI_LOG_MAX_BYTES is stronger"), "{weak}");
    let get = |key: &str| home.json(&["emit", "config:get", &format!("key={key}")]);
    assert_eq!(get("log.keep_files")["value"], 7);
    assert_eq!(
        (&get("log.max_bytes")["value"], &get("log.max_bytes")["source"]),
        (&json!(5_000_000), &json!("KSI_LOG_MAX_BYTES"))
    );
    home.ok(&["emit", "config:backup"]);
    home.ok(&["config", "set", "log.keep_files", "8"]);
    home.ok(&["emit", "config:rollback"]);
    assert_eq!(get("log.keep_files")["value"], 7);
    let refused = home.ksi(&["config", "set", "log.keep_files", "99999999999"]);
    assert!(!refused.status.success());
    assert_eq!(get("log.keep_files")["value"], 7);
}

#[tokio::test]
async fn a_broken_file_is_refused_when_it_is_read_again_and_the_old_one_stays() {
    let home = Home::new();
    write(&home, "[log]\nkeep_files = 3\n");
    let mut daemon = home.daemon().await;
    let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    let get = || home.json(&["emit", "config:get", "key=log.keep_files"])["value"].clone();
    write(&home, "[log]\nkeep_files = 4\nkeep = 1\n");
    kill_process(pid, Signal::HUP).unwrap();
    let line = daemon.wait_for("what held before stays").await;
    assert!(line.contains("config.toml, line 3: ") && line.contains("keep"), "{line}");
    let refused = home.ksi(&["config", "reload"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("line 3"), "{}", stderr(&refused));
    assert_eq!(get(), 3);
    write(&home, "[log]\nkeep_files = 4\n");
    kill_process(pid, Signal::HUP).unwrap();
    daemon.wait_for("the configuration was read again").await;
    assert_eq!(get(), 4);
    write(&home, "[log]\nkeep_files = 5\n");
    assert_eq!(home.ok(&["config", "reload"]).trim(), "changed: log.keep_files");
    assert_eq!(get(), 5);
}

#[tokio::test]
async fn of_changes_at_the_same_time_none_is_lost() {
    let home = Home::new();
    let daemon = home.daemon().await;
    let keys = ["log.keep_files", "log.max_bytes", "local.idle_seconds", "shutdown.grace_seconds"];
    let commands: Vec<_> = keys
        .iter()
        .map(|key| home.command(&["config", "set", key, "77"]).spawn().unwrap())
        .collect();
    for mut command in commands {
        assert!(command.wait().unwrap().success());
    }
    for key in keys {
        assert_eq!(home.ok(&["config", "get", key]).trim(), "77");
    }
    drop(daemon);
}

#[test]
fn a_log_that_was_moved_away_is_begun_anew_by_a_hangup() {
    let home = Home::new();
    let pid = home.json(&["start", "-o", "json"])["pid"].as_i64().unwrap();
    let log = home.path().join("state/daemon.log");
    std::fs::rename(&log, home.path().join("state/moved")).unwrap();
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::HUP).unwrap();
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("was read again")) {
        std::thread::yield_now();
    }
    home.ok(&["stop"]);
    assert!(std::fs::read_to_string(&log).unwrap().contains("ended"));
}

#[test]
fn the_reference_of_the_configuration_is_what_the_program_says() {
    let home = Home::new();
    let said = home.ok(&["config", "show", "--markdown"]);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(said, kept, "docs/configuration.md is stale: run `make docs`");
}

#[tokio::test]
async fn how_much_of_the_past_is_kept_can_be_said() {
    let home = Home::new();
    home.ok(&["config", "set", "journal.keep_bytes", "1"]);
    let daemon = home.daemon().await;
    let client = daemon.client().await;
    for round in 0..3 {
        for value in 0..20 {
            let data = json!({ "key": "k", "value": value + round });
            client.emit("state:set", &data).await.unwrap();
        }
        home.ok(&["checkpoint", "save"]);
    }
    let first = || home.json(&["journal", "stats", "-o", "json"])["first_seq"].as_u64().unwrap();
    // Facts go after the snapshot that has made them needless.
    while first() < 20 {}
}

#[test]
fn what_is_neither_text_nor_number_is_no_setting() {
    let home = Home::new();
    for value in ["null", "{\"a\":1}", "[1]", "true"] {
        let refused = home.ksi(&["emit", "config:set", "key=model", &format!("value={value}")]);
        let told = String::from_utf8(refused.stderr).unwrap();
        assert!(told.contains("but must be a text or a number\nat: value"), "{value}: {told}");
    }
    let refused = home.ksi(&["config", "set", "log.keep_files", "4294967296"]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("must be a whole number from 0 to 4294967295"), "{told}");
    assert_eq!(refused.status.code(), Some(2));
}
