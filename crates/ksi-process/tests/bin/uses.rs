//! Programs that use much of the machine.

use std::fs::File;
use std::process::Stdio;

use ksi_process::{Command, Limits, Shim};
use tokio::io::AsyncReadExt;

use crate::{park, runtime, say};

pub(crate) fn allocate(mib: usize) {
    let mut memory: Vec<u8> = Vec::new();
    match memory.try_reserve_exact(mib << 20) {
        Ok(()) => {
            memory.resize(mib << 20, 1);
            say(&format!("{} MiB", memory.len() >> 20));
        }
        Err(_) => say("refused"),
    }
}

pub(crate) fn spin() {
    let mut number = 0_u64;
    loop {
        number = std::hint::black_box(number.wrapping_add(1));
    }
}

pub(crate) fn open_files() {
    let open = || File::open("/dev/null").ok();
    let files: Vec<_> = std::iter::from_fn(open).take(1000).collect();
    say(&format!("{}", files.len()));
}

/// Starts processes until it is refused; says how many it started, and ends them.
#[allow(clippy::disallowed_methods, reason = "plays a program that starts others")]
pub(crate) fn start_many(count: usize) {
    let own = std::env::current_exe().unwrap();
    let start = || {
        let mut command = std::process::Command::new(&own);
        command.args(["block", "up"]).stdout(Stdio::null()).spawn().ok()
    };
    let mut started: Vec<_> = std::iter::from_fn(start).take(count).collect();
    say(&format!("{}", started.len()));
    for process in &mut started {
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

/// Starts the one that starts many, under a limit.
pub(crate) fn under_limit(processes: u64, count: &str) {
    runtime().block_on(async {
        let own = std::env::current_exe().unwrap();
        let limits = Limits { processes: Some(processes), ..Limits::default() };
        let command = Command::new(own).args(["start-many", count]).limits(limits);
        let mut child = command.spawn(&Shim::current().unwrap()).await.unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        say(text.trim_end());
        assert!(child.wait().await.success());
    });
    park();
}
