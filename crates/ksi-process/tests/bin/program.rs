//! The programs of the tests: `ksi` itself as far as the hidden verbs go, a daemon to be killed,
//! and children that do not want to end.

#![allow(clippy::print_stdout, reason = "the tests read it")]
#![allow(clippy::unwrap_used, reason = "part of the tests, which fail by a panic")]

use std::path::Path;
use std::process::{ExitCode, Stdio};

use ksi_process::{Command, Readiness, Shim, lock::Lock};
use tokio::io::{AsyncBufReadExt, BufReader};

fn main() -> ExitCode {
    if let Some(code) = ksi_process::run_hidden_verb() {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["block", word] => block(word),
        ["own-session", word] => {
            rustix::process::setsid().unwrap();
            block(word)
        }
        ["descriptors"] => say(&open_descriptors().join(" ")),
        ["host", marker, script] => host(marker, script),
        ["spawn-many"] => spawn_many(),
        ["hold", path] => {
            let _lock = Lock::acquire(Path::new(path)).unwrap();
            block("held")
        }
        ["daemon", "ready"] => {
            let readiness = Readiness::from_env();
            say("printed by the daemon");
            readiness.ready();
            park()
        }
        ["daemon", "failed"] => Readiness::from_env().failed("no port is free\ntry another"),
        ["daemon", "silent"] => drop(Readiness::from_env()),
        ["daemon", "late"] => {
            let _readiness = Readiness::from_env();
            park()
        }
        _ => return ExitCode::from(64),
    }
    ExitCode::SUCCESS
}

fn say(line: &str) {
    println!("{line}");
}

fn block(word: &str) -> ! {
    say(word);
    park()
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

fn open_descriptors() -> Vec<String> {
    let folder = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut open: Vec<_> = folder.map(|e| e.unwrap().path()).collect();
    // The listing's own descriptor is closed by now, and so has no target.
    open.retain(|path| path.read_link().is_ok());
    open.sort();
    open.iter().map(|path| path.file_name().unwrap().display().to_string()).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Plays the daemon: starts a shell script under a shim, passes on what it prints, and waits.
fn host(marker: &str, script: &str) {
    runtime().block_on(async {
        let own = std::env::current_exe().unwrap();
        let command = Command::new("sh").arg("-c").arg(script).arg(own);
        let command = command.env("KSI_TEST_MARKER", marker).grace(std::time::Duration::ZERO);
        let mut child = command.spawn(&Shim::current().unwrap()).await.unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            say(&line);
        }
        say(&format!("the program ended: {}", child.wait().await));
    });
}

/// Starts 100 programs that are waited for, stopped or dropped; says what that left behind.
fn spawn_many() {
    runtime().block_on(async {
        let shim = Shim::current().unwrap();
        let cat = || Command::new("cat").stderr(Stdio::inherit());
        cat().spawn(&shim).await.unwrap().wait().await;
        let before = open_descriptors();
        for number in 0..100 {
            let mut child = cat().spawn(&shim).await.unwrap();
            match number % 3 {
                0 => assert!(child.wait().await.success()),
                1 => drop(child.stop().await),
                _ => drop(child),
            }
        }
        // Those that were dropped end on their own; any further end lets the runtime reap them.
        let mut children = own_children();
        for _ in 0..200 {
            if children == 0 {
                break;
            }
            cat().spawn(&shim).await.unwrap().wait().await;
            children = own_children();
        }
        assert_eq!(open_descriptors(), before);
        say(&format!("{children} children left"));
    });
}

fn own_children() -> usize {
    let own = rustix::process::getpid();
    let list = std::fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap();
    list.split_whitespace().count()
}
