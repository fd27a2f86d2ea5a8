//! How fast the daemon's socket is, against references measured in the same run.
//!
//! `make bench` prints a line per figure and exits 1 when one misses its bound. The references are
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
const RUNS: usize = 5;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "reference") {
        return reference::serve(&args[2..]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map(|runtime| runtime.block_on(compare())) {
        Ok(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// A figure, what it must be, and whether it is.
struct Verdict {
    name: &'static str,
    ratio: f64,
    bound: Bound,
    detail: String,
}

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

async fn compare() -> bool {
    let folder = tempfile::tempdir().expect("a temp folder");
    let ksi = Server::ksi(&folder);
    let health = r#"{"event":"system:health","data":{},"correlation_id":"c1"}"#;
    let set = r#"{"event":"state:set","data":{"key":"bench","value":{"n":1},"namespace":"bench"},"correlation_id":"c1"}"#;
    let size = Load::new(&ksi.socket, health).reply_size().await;
    let durable_size = Load::new(&ksi.socket, set).reply_size().await;
    let echo = Server::reference(&folder, "echo", size, durable_size);
    let ours = Load::new(&ksi.socket, health);
    let theirs = Load::new(&echo.socket, health);

    let mut verdicts = Vec::new();
    let pair =
        Runs::of(RUNS, async |side| [&ours, &theirs][side].round_trip(20_000).await.p50).await;
    verdicts.push(pair.latency("round trip, p50", Bound::AtMost(1.5)));
    let pair =
        Runs::of(RUNS, async |side| [&ours, &theirs][side].in_flight(64, 100_000).await).await;
    verdicts.push(pair.rate("64 in flight on one connection", Bound::AtLeast(0.8)));
    let pair =
        Runs::of(RUNS, async |side| [&ours, &theirs][side].connections(64, 1_500).await).await;
    verdicts.push(pair.rate("64 connections", Bound::AtLeast(0.75)));

    let durable = Load::new(&ksi.socket, set);
    let durable_echo = Load::new(&echo.socket, set);
    let both = [&durable, &durable_echo];
    let pair = Runs::of(RUNS, async |side| both[side].connections(64, 300).await).await;
    verdicts.push(pair.rate("durable requests of 64 clients", Bound::AtLeast(0.75)));

    let beside = async |side: usize| {
        let busy = both[side].keep_busy(64);
        let quiet = [&ours, &theirs][side].round_trip(4_000);
        tokio::select! { latency = quiet => latency, () = busy => unreachable!("it never ends") }
    };
    let pair = Runs::of(RUNS, async |side| beside(side).await.p50).await;
    verdicts.push(pair.latency("health beside 64 durable requests, p50", Bound::AtMost(2.0)));
    let pair = Runs::of(RUNS, async |side| beside(side).await.p99).await;
    verdicts.push(pair.latency("health beside 64 durable requests, p99", Bound::AtMost(2.0)));
    verdicts.iter().filter(|verdict| !verdict.print()).count() == 0
}

/// A server in a process of its own.
struct Server {
    socket: PathBuf,
    child: Child,
}

impl Server {
    fn ksi(folder: &TempDir) -> Server {
        let home = folder.path().join("ksi");
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
