//! Starting, finding and stopping the daemon.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    process::Stdio,
};

use serde_json::{Value, json};

use crate::daemon::Home;

fn code(output: &std::process::Output) -> Option<i32> {
    output.status.code()
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn start_puts_the_daemon_into_the_background_and_stop_ends_it() {
    let home = Home::new();
    assert_eq!(code(&home.ksi(&["status"])), Some(3));
    let started = home.json(&["start", "-o", "json"]);
    assert_eq!(started["started"], true);
    let again = home.json(&["start", "-o", "json"]);
    assert_eq!((&again["started"], &again["pid"]), (&json!(false), &started["pid"]));
    assert_eq!(home.ok(&["health"]).trim(), "healthy");
    assert!(home.ok(&["status"]).contains("is running: healthy"));
    assert!(home.ok(&["stop"]).contains("has stopped"));
    // Who has ended may wait for its new parent to take notice.
    let process = std::fs::read_to_string(format!("/proc/{}/stat", started["pid"]));
    assert!(process.as_ref().is_ok_and(|stat| stat.contains(") Z ")) || process.is_err());
    assert!(!home.path().join("run/daemon.sock").exists());
    assert!(home.ok(&["stop"]).contains("not running"));
}

#[test]
fn a_daemon_that_starts_on_a_full_disk_says_so_answers_and_stops() {
    let home = Home::new();
    let full = home.path().join("full");
    std::fs::write(&full, "").unwrap();
    let started = home.command(&["start"]).env("KSI_FULL", &full).output().unwrap();
    let said = String::from_utf8(started.stdout).unwrap();
    assert!(said.contains("ksi is started") && said.contains("it is degraded"), "{said}");
    assert!(said.contains("journal: its disk is full; make room"), "{said}");
    assert_eq!(home.json(&["start", "-o", "json"])["status"], "degraded");
    let refused = home.ksi(&["emit", "state:set", "key=x", "value=1"]);
    let why = stderr(&refused);
    assert!(why.contains("error: the journal's disk is full; nothing was kept"), "{why}");
    assert!(why.contains("hint: make room"), "{why}");
    home.ok(&["emit", "state:list"]);
    assert!(home.ok(&["stop"]).contains("has stopped"));
}

#[test]
fn a_command_starts_the_daemon_unless_it_may_not() {
    let home = Home::new();
    let refused = home.ksi(&["--no-start", "emit", "system:health"]);
    assert_eq!(code(&refused), Some(3));
    assert!(stderr(&refused).contains("no daemon is running"), "{}", stderr(&refused));
    assert_eq!(home.json(&["emit", "system:health"])["status"], "healthy");
    assert_eq!(home.json(&["--no-start", "emit", "system:health"])["status"], "healthy");
}

#[test]
fn commands_that_start_the_daemon_at_once_start_one() {
    let home = Home::new();
    let start = || home.command(&["start", "-o", "json"]).spawn().unwrap();
    let commands: Vec<_> = (0..6).map(|_| start()).collect();
    let outputs: Vec<_> =
        commands.into_iter().map(|command| command.wait_with_output().unwrap()).collect();
    let replies: Vec<Value> = outputs
        .iter()
        .map(|output| {
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(output)))
        })
        .collect();
    assert_eq!(replies.iter().filter(|reply| reply["started"] == true).count(), 1, "{replies:?}");
    assert!(replies.iter().all(|reply| reply["pid"] == replies[0]["pid"]), "{replies:?}");
}

#[tokio::test]
async fn a_second_daemon_on_one_home_says_who_holds_it() {
    let home = Home::new();
    let daemon = home.daemon().await;
    let second = home.ksi(&["start", "--foreground"]);
    assert_eq!(code(&second), Some(1));
    assert!(stderr(&second).contains(&daemon.pid().to_string()), "{}", stderr(&second));
    assert_eq!(home.ok(&["health"]).trim(), "healthy");
}

#[test]
fn a_daemon_that_dies_while_it_is_asked_is_replaced() {
    let home = Home::new();
    let socket = home.path().join("run/daemon.sock");
    std::fs::create_dir(home.path().join("run")).unwrap();
    // It takes the connection, and answers so many requests before it is gone.
    for (args, answers, expected) in
        [(["--no-start", "status"], 0, 3), (["-ojson", "start"], 0, 0), (["-ojson", "start"], 1, 0)]
    {
        let _ = home.ksi(&["stop"]);
        let _ = std::fs::remove_file(&socket);
        let dying = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let command = home.command(&args).spawn().unwrap();
        let (mut question, _) = dying.accept().unwrap();
        let mut lines = BufReader::new(question.try_clone().unwrap()).lines();
        for _ in 0..answers {
            let asked: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            let answer = json!({ "event": "system:health", "data": {}, "count": 1,
                "correlation_id": asked["correlation_id"], "timestamp": 1.0 });
            writeln!(question, "{answer}").unwrap();
        }
        drop((dying, question, lines));
        let output = command.wait_with_output().unwrap();
        assert_eq!(code(&output), Some(expected), "{}", stderr(&output));
    }
    assert_eq!(home.ok(&["--no-start", "health"]).trim(), "healthy");
}

#[tokio::test]
async fn a_socket_left_by_a_killed_daemon_is_in_nobodys_way() {
    let home = Home::new();
    home.daemon().await.kill();
    assert!(home.path().join("run/daemon.sock").exists(), "nothing was left behind");
    assert_eq!(code(&home.ksi(&["status"])), Some(3));
    home.daemon().await;
}

#[tokio::test]
async fn socket_and_folders_are_the_owners_alone() {
    let home = Home::new();
    let _daemon = home.daemon().await;
    let mode = |path: &str| {
        std::fs::metadata(home.path().join(path)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("run"), mode("run/daemon.sock"), mode("state")), (0o700, 0o600, 0o700));
}

#[test]
fn a_broken_configuration_names_file_and_line_and_the_daemon_does_not_start() {
    let home = Home::new();
    let config = home.path().join("config");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("config.toml"), "model = \"local\"\n[lokal]\n").unwrap();
    let output = home.ksi(&["start"]);
    assert_eq!(code(&output), Some(1));
    let said = stderr(&output);
    assert!(said.contains("config.toml") && said.contains("line 2"), "{said}");
}

#[test]
fn a_home_that_cannot_be_written_is_an_error_that_says_so() {
    let home = Home::new();
    let file = home.path().join("file");
    std::fs::File::create(&file).unwrap().write_all(b"x").unwrap();
    let output = home.command(&["start"]).env("KSI_HOME", file.join("below")).output().unwrap();
    assert_eq!(code(&output), Some(1));
    assert!(stderr(&output).contains("cannot be made"), "{}", stderr(&output));
}

#[test]
fn a_home_that_is_named_from_the_working_folder_is_the_daemons_too() {
    let home = Home::new();
    let relative = |args: &[&str]| {
        let mut command = home.command(args);
        command.current_dir(home.path()).env("KSI_HOME", "below").output().unwrap()
    };
    let started = relative(&["start"]);
    assert_eq!(code(&started), Some(0), "{}", stderr(&started));
    assert!(home.path().join("below/run/daemon.sock").exists());
    assert_eq!(code(&relative(&["stop"])), Some(0));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let home = Home::new();
    home.ok(&["start"]);
    let mut discover = home.command(&["discover"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(discover.stdout.take());
    assert_eq!(discover.wait().unwrap().code(), Some(0));
    // These would print no more by themselves.
    for args in [&["listen", "no:such", "--since", "0"][..], &["logs", "-f"]] {
        let mut follow = home.command(args).stdout(Stdio::piped()).spawn().unwrap();
        drop(follow.stdout.take());
        assert_eq!(follow.wait().unwrap().code(), Some(0), "{args:?}");
    }
}

#[tokio::test]
async fn a_signal_ends_the_daemon_like_a_request() {
    let home = Home::new();
    let mut daemon = home.daemon().await;
    let pid = rustix::process::Pid::from_raw(daemon.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    daemon.wait_for("ended").await;
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_stopped_daemon_leaves_no_log_that_the_next_start_must_read() {
    let home = Home::new();
    home.ok(&["emit", "state:set", "key=a", "value=1"]);
    let log = home.path().join("state/journal.db-wal");
    assert_ne!(std::fs::metadata(&log).unwrap().len(), 0, "nothing was logged");
    home.ok(&["stop"]);
    assert_eq!(std::fs::metadata(&log).map_or(0, |log| log.len()), 0);
    assert!(home.ok(&["emit", "state:get", "key=a"]).contains(r#""value": 1"#));
}

#[test]
fn restart_replaces_the_daemon_and_starts_one_where_none_runs() {
    let home = Home::new();
    assert!(home.ok(&["restart"]).contains("did not run and is started"));
    home.ok(&["emit", "state:set", "key=a", "value=1"]);
    let before = home.json(&["health", "-o", "json"])["pid"].clone();
    let restarted = home.json(&["restart", "-o", "json"]);
    assert_eq!((&restarted["stopped"], &restarted["status"]), (&before, &json!("healthy")));
    assert_ne!(restarted["pid"], before);
    assert_eq!(home.json(&["health", "-o", "json"])["pid"], restarted["pid"]);
    assert_eq!(home.json(&["emit", "state:get", "key=a"])["value"], 1);
    assert!(home.ok(&["restart"]).contains("ksi has restarted: pid "));
}

#[test]
fn a_daemon_of_another_version_is_named_once_and_restart_replaces_it() {
    let home = Home::new();
    let started = home.command(&["start"]).env("KSI_TEST_VERSION", "0.0.7").output().unwrap();
    assert!(stderr(&started).contains("the daemon is ksi 0.0.7, and this is ksi"));
    let emitted = home.ksi(&["emit", "state:list"]);
    assert_eq!(code(&emitted), Some(0));
    let note = stderr(&emitted);
    assert_eq!(note.matches("0.0.7").count(), 1, "{note}");
    assert!(note.contains("hint: `ksi restart` replaces it"), "{note}");
    let for_programs = home.ksi(&["emit", "state:list", "-o", "json"]);
    assert_eq!(stderr(&for_programs), "");
    let restarted = home.ksi(&["restart"]);
    assert_eq!((code(&restarted), stderr(&restarted).as_str()), (Some(0), ""));
    assert_eq!(stderr(&home.ksi(&["emit", "state:list"])), "");
}

#[tokio::test]
async fn a_socket_that_is_removed_is_made_anew_and_who_is_connected_notices_nothing() {
    let home = Home::new();
    let mut daemon = home.daemon().await;
    let client = daemon.client().await;
    let socket = home.path().join("run/daemon.sock");
    std::fs::remove_file(&socket).unwrap();
    daemon.wait_for("made anew").await;
    assert_eq!(home.ok(&["--no-start", "health"]).trim(), "healthy");
    // The folder goes with it.
    std::fs::rename(home.path().join("run"), home.path().join("elsewhere")).unwrap();
    daemon.wait_for("made anew").await;
    assert_eq!(home.ok(&["--no-start", "health"]).trim(), "healthy");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let health: Value = client.call("system:health", &json!({})).await.unwrap();
    assert_eq!(health["pid"], daemon.pid());
}

#[tokio::test]
async fn what_stands_in_the_sockets_place_is_left_alone_until_it_goes() {
    let home = Home::new();
    let mut daemon = home.daemon().await;
    let socket = home.path().join("run/daemon.sock");
    let other = home.path().join("run/notes");
    std::fs::write(&other, "mine").unwrap();
    std::fs::rename(&other, &socket).unwrap();
    let line = daemon.wait_for("cannot be made anew yet").await;
    assert!(line.contains("is in the way"), "{line}");
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "mine");
    std::fs::remove_file(&socket).unwrap();
    daemon.wait_for("made anew").await;
    assert_eq!(home.ok(&["--no-start", "health"]).trim(), "healthy");
}

#[test]
fn the_log_is_kept_in_files_of_a_bounded_size_and_no_line_is_lost() {
    let home = Home::new();
    std::fs::create_dir_all(home.path().join("config")).unwrap();
    let text = "[log]\nmax_bytes = 2000\nkeep_files = 50\n";
    std::fs::write(home.path().join("config/config.toml"), text).unwrap();
    home.ok(&["start"]);
    for number in 0..60 {
        home.ok(&["emit", "plugin:register", &format!("name=n{number}")]);
    }
    home.ok(&["stop"]);
    let log = |number: usize| match number {
        0 => home.path().join("state/daemon.log"),
        number => home.path().join(format!("state/daemon.log.{number}")),
    };
    let files = (0..50).filter(|number| log(*number).exists()).count();
    assert!(files > 3, "{files} files");
    let mut all = String::new();
    for number in (0..files).rev() {
        let text = std::fs::read_to_string(log(number)).unwrap();
        assert!(text.len() < 2500 && text.ends_with('\n'), "{} bytes", text.len());
        all += &text;
    }
    let registered: Vec<_> = all.lines().filter(|line| line.contains(" registered ")).collect();
    assert_eq!(registered.len(), 60);
    for (number, line) in registered.iter().enumerate() {
        assert!(line.contains(&format!("plugin=\"n{number}\"")), "{number}: {line}");
    }
    let mode = std::fs::metadata(log(0)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn logs_are_shown_without_a_daemon_and_followed_over_a_restart() {
    let home = Home::new();
    let none = home.ksi(&["logs"]);
    assert_eq!(code(&none), Some(1));
    assert!(stderr(&none).contains("there is no log at"), "{}", stderr(&none));
    home.ok(&["start"]);
    home.ok(&["stop"]);
    assert!(home.ok(&["logs"]).lines().last().unwrap().contains("ended"));
    assert_eq!(home.ok(&["logs", "-n", "2"]).lines().count(), 2);

    let mut follow = home.command(&["logs", "-f", "-n", "1"]).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().contains("ended"));
    home.ok(&["start"]);
    lines.find(|line| line.contains("ready")).expect("what comes");
    // The file is moved away, as a rotation does, and another daemon begins a new one.
    let log = home.path().join("state/daemon.log");
    std::fs::rename(&log, home.path().join("state/daemon.log.1")).unwrap();
    home.ok(&["restart"]);
    lines.find(|line| line.contains("ready")).expect("what another file says");
    let pid = rustix::process::Pid::from_raw(follow.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(follow.wait().unwrap().code(), Some(0));
}

#[test]
fn a_daemon_whose_log_nobody_takes_goes_on() {
    let home = Home::new();
    let script = format!("exec {} start --foreground 2>/dev/full", env!("CARGO_BIN_EXE_ksi"));
    let mut daemon = home.program("sh").args(["-c", &script]).spawn().unwrap();
    while !home.ksi(&["--no-start", "health"]).status.success() {
        assert!(daemon.try_wait().unwrap().is_none(), "it has ended");
    }
    assert_eq!(home.json(&["health", "-o", "json"])["pid"], daemon.id());
    home.ok(&["stop"]);
    assert!(daemon.wait().unwrap().success());
}
