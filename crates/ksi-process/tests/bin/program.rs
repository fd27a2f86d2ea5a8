//! The programs of the tests: `ksi` itself as far as the hidden verbs go, a daemon to be killed,
//! and children that do not want to end.

#![allow(clippy::print_stdout, reason = "the tests read it")]
#![allow(clippy::unwrap_used, reason = "part of the tests, which fail by a panic")]

mod peers;
mod uses;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use ksi_process::{Command, Error, Readiness, Shim, Stream, lock::Lock};
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
        ["nasty", file, word] => nasty(file, word),
        ["nasty-away", file, word] => {
            rustix::process::setsid().unwrap();
            nasty(file, word)
        }
        ["home", state, marker, script, grace] => at_home(state, marker, script, grace),
        ["again-and-again", state] => again_and_again(Path::new(state)),
        ["peers", state, socket] => peers::place(Path::new(state), Path::new(socket)),
        ["connect", socket, word] => peers::connect(Path::new(socket), word),
        ["kill-shim-and-connect", socket, word] => peers::kill_shim_and_connect(socket, word),
        ["allocate", mib] => uses::allocate(mib.parse().unwrap()),
        ["spin"] => uses::spin(),
        ["open-files"] => uses::open_files(),
        ["start-many", count] => uses::start_many(count.parse().unwrap()),
        ["under-limit", processes, count] => uses::under_limit(processes.parse().unwrap(), count),
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

/// Ignores what asks it to end, and notes who it is: pid and start time.
fn nasty(file: &str, word: &str) -> ! {
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        let ignored = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        signal_hook::flag::register(signal, ignored).unwrap();
    }
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (pid, _) = stat.split_once(' ').unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
    let mut file = std::fs::File::options().append(true).create(true).open(file).unwrap();
    file.write_all(format!("{pid} {start}\n").as_bytes()).unwrap();
    block(word)
}

/// Plays a daemon with a home: ends leftovers, starts a shell script as the effect `test/one`,
/// and passes on what it prints.
fn at_home(state: &str, marker: &str, script: &str, grace: &str) {
    runtime().block_on(async {
        let shim = Shim::current().unwrap().at_home(Path::new(state)).unwrap();
        say(&format!("{} leftovers", shim.end_leftovers().unwrap()));
        let own = std::env::current_exe().unwrap();
        let command = Command::new("sh").arg("-c").arg(script).arg(own).effect("test", "one");
        let command = command.env("KSI_TEST_MARKER", marker).arg(Path::new(state).join("pids"));
        let command = command.grace(Duration::from_millis(grace.parse().unwrap()));
        let patience =
            if script == "impatient" { Duration::from_millis(50) } else { Duration::MAX };
        let mut child = match command.patience(patience).spawn(&shim).await {
            Ok(child) => child,
            Err(error @ Error::Busy { .. }) => return say(&format!("busy: {error}")),
            Err(error) => panic!("{error:?}"),
        };
        say(&format!("shim {}", child.pid()));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let marks = child.id();
        while let Some(line) = lines.next_line().await.unwrap() {
            say(&line);
        }
        assert!(marks.is_some());
        say(&format!("the program ended: {}", child.wait().await));
        let left = std::fs::read_dir(Path::new(state).join("effects")).unwrap().count();
        say(&format!("{left} locks"));
        park();
    });
}

/// Wants one effect a hundred times, ten at once; each run makes a folder that none may find.
fn again_and_again(state: &Path) {
    runtime().block_on(async {
        let shim = Shim::current().unwrap().at_home(state).unwrap();
        let (mut good, mut bad) = (0, 0);
        for _ in 0..10 {
            let mut runs = tokio::task::JoinSet::new();
            for _ in 0..10 {
                let script = r#"mkdir "$0" || exit 3; rmdir "$0""#;
                let command = Command::new("sh").arg("-c").arg(script).arg(state.join("running"));
                let (command, shim) = (command.effect("test", "one"), shim.clone());
                runs.spawn(async move { command.spawn(&shim).await.unwrap().wait().await });
            }
            for exit in runs.join_all().await {
                if exit.success() { good += 1 } else { bad += 1 }
            }
        }
        let left = std::fs::read_dir(state.join("effects")).unwrap().count();
        say(&format!("{good} runs, {bad} at once, {left} locks"));
    });
}

/// Starts 100 programs that are waited for, stopped or dropped; says what that left behind.
fn spawn_many() {
    runtime().block_on(async {
        let shim = Shim::current().unwrap();
        let cat = || Command::new("cat").stderr(Stream::Inherit);
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
