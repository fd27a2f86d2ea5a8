//! How fast the daemon's socket is, against references measured in the same run.
//!
//! `make bench` prints a line per figure and exits 1 when one misses its bound; words behind
//! `cargo bench -p ksi --bench socket --` choose figures by their names. The references are
//! servers that do the least that could be called the same work; see [`reference`].

mod load;
mod reference;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use load::{Load, Runs};
use tempfile::TempDir;

/// Each figure is the median of so many runs, ours and the reference's in turn.
const RUNS: usize = 25;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "reference") {
        return reference::serve(&args[2..]);
    }
    let wanted: Vec<String> =
        args.into_iter().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map(|runtime| runtime.block_on(compare(&wanted))) {
        Ok(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

const ROUND_TRIP: &str = "round trip, p50";
const IN_FLIGHT: &str = "64 in flight on one connection";
const CONNECTIONS: &str = "64 connections";
const DURABLE: &str = "durable requests of 64 clients";
const BESIDE_P50: &str = "health beside 64 durable requests, p50";
const BESIDE_P99: &str = "health beside 64 durable requests, p99";
const TO_10: &str = "fan-out of signals to 10";
const TO_100: &str = "fan-out of signals to 100";
const CROWD: &str = "1,000 subscribers to something else, p50";
const CROWD_DURABLE: &str = "durable requests beside those";

/// What is measured, and what its ratio to the reference must be.
struct Figure {
    name: &'static str,
    bound: Bound,
    unit: &'static str,
}

const FIGURES: [Figure; 10] = [
    Figure { name: ROUND_TRIP, bound: Bound::AtMost(1.5), unit: "us" },
    Figure { name: IN_FLIGHT, bound: Bound::AtLeast(0.8), unit: "/s" },
    Figure { name: CONNECTIONS, bound: Bound::AtLeast(0.75), unit: "/s" },
    Figure { name: DURABLE, bound: Bound::AtLeast(0.75), unit: "/s" },
    Figure { name: BESIDE_P50, bound: Bound::AtMost(2.0), unit: "us" },
    Figure { name: BESIDE_P99, bound: Bound::AtMost(2.0), unit: "us" },
    Figure { name: TO_10, bound: Bound::AtLeast(0.9), unit: "/s" },
    Figure { name: TO_100, bound: Bound::AtLeast(0.9), unit: "/s" },
    Figure { name: CROWD, bound: Bound::AtMost(1.1), unit: "us" },
    Figure { name: CROWD_DURABLE, bound: Bound::AtLeast(0.9), unit: "/s" },
];

/// A figure, what it must be, and whether it is.
struct Verdict {
    name: &'static str,
    ratio: f64,
    bound: Bound,
    detail: String,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Verdict {
    #[allow(clippy::print_stdout, reason = "the figures are this program's output")]
    fn print(&self) -> bool {
        let (sign, bound, holds) = match self.bound {
            Bound::AtMost(bound) => ("<=", bound, self.ratio <= bound),
            Bound::AtLeast(bound) => (">=", bound, self.ratio >= bound),
        };
        let word = if holds { "ok" } else { "MISSED" };
        let (name, ratio) = (self.name, self.ratio);
        println!("{word:6} {name:44} {ratio:5.2}x ({sign} {bound}x)  {}", self.detail);
        holds
    }
}

async fn compare(wanted: &[String]) -> bool {
    let folder = tempfile::tempdir().expect("a temp folder");
    let ksi = Server::ksi(&folder, "ksi");
    let health = r#"{"event":"system:health","data":{},"correlation_id":"c1"}"#;
    let set = r#"{"event":"state:set","data":{"key":"bench","value":{"n":1},"namespace":"bench"},"correlation_id":"c1"}"#;
    let size = Load::new(&ksi.socket, health).reply_size().await;
    let durable_size = Load::new(&ksi.socket, set).reply_size().await;
    let echo = Server::reference(&folder, "echo", size, durable_size);
    let plain = [&ksi, &echo].map(|server| Load::new(&server.socket, health));
    let durable = [&ksi, &echo].map(|server| Load::new(&server.socket, set));
    let news = format!(
        r#"{{"event":"bench:news","data":{{"text":"{}"}},"correlation_id":"c1"}}"#,
        "x".repeat(138)
    );
    let fan = [&ksi, &echo].map(|server| Load::new(&server.socket, &news));
    let crowded = Server::ksi(&folder, "crowded");
    let _crowd = Load::new(&crowded.socket, health).subscribers(1_000, "nothing:*").await;
    let in_crowd = [&crowded, &ksi].map(|server| Load::new(&server.socket, health));
    let set_in_crowd = [&crowded, &ksi].map(|server| Load::new(&server.socket, set));
    let beside = async |side: usize| {
        let busy = durable[side].keep_busy(64);
        let quiet = plain[side].round_trip(2_000);
        tokio::select! { latency = quiet => latency, () = busy => unreachable!("it never ends") }
    };

    let mut all_hold = true;
    for Figure { name, bound, unit } in FIGURES {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let run = async |side: usize| match name {
            ROUND_TRIP => plain[side].round_trip(8_000).await.p50,
            IN_FLIGHT => plain[side].in_flight(64, 60_000).await,
            CONNECTIONS => plain[side].connections(64, 700).await,
            DURABLE => durable[side].connections(64, 300).await,
            BESIDE_P50 => beside(side).await.p50,
            BESIDE_P99 => beside(side).await.p99,
            TO_10 => fan[side].fan_out(10, 5_000).await,
            TO_100 => fan[side].fan_out(100, 1_000).await,
            CROWD => in_crowd[side].round_trip(8_000).await.p50,
            _ => set_in_crowd[side].connections(64, 300).await,
        };
        let servers = match name {
            CROWD | CROWD_DURABLE => [&crowded, &ksi],
            _ => [&ksi, &echo],
        };
        let before = servers.map(Server::processor);
        let runs = Runs::of(RUNS, run).await;
        let [ours, theirs] = [0, 1].map(|side| servers[side].processor() - before[side]);
        all_hold &= runs.verdict(name, bound, unit, ours / theirs).print();
    }
    all_hold
}

/// A server in a process of its own.
struct Server {
    socket: PathBuf,
    child: Child,
}

impl Server {
    fn ksi(folder: &TempDir, name: &str) -> Server {
        let home = folder.path().join(name);
        let mut command = command(Path::new(env!("CARGO_BIN_EXE_ksi")));
        command.args(["start", "--foreground"]).env("KSI_HOME", &home).stderr(Stdio::null());
        Server::start(command, home.join("run/daemon.sock"))
    }

    fn reference(folder: &TempDir, kind: &str, size: usize, durable_size: usize) -> Server {
        let socket = folder.path().join(kind);
        let this = std::env::current_exe().expect("this program");
        let mut command = command(&this);
        command.arg("reference").arg(&socket).arg(folder.path().join("reference.db"));
        command.args([size.to_string(), durable_size.to_string()]);
        Server::start(command, socket)
    }

    fn start(mut command: Command, socket: PathBuf) -> Server {
        let child = command.spawn().expect("a server");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(std::time::Instant::now() < deadline, "no server at {}", socket.display());
            std::thread::yield_now();
        }
        Server { socket, child }
    }

    /// How many seconds its threads have been on a processor.
    fn processor(&self) -> f64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let time = |thread: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            stat.split(' ').next()?.parse::<f64>().ok()
        };
        threads.into_iter().flatten().flatten().filter_map(time).sum::<f64>() / 1e9
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[allow(clippy::disallowed_methods, reason = "the servers under test are processes of their own")]
fn command(program: &Path) -> Command {
    Command::new(program)
}
