//! Under a service manager: readiness, watchdog, and a socket that it listens on.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener},
    },
    process::{Output, Stdio},
};

use rusqlite::Connection;
use serde_json::json;

use crate::daemon::{Home, PATIENCE};

/// What a service manager hears.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn of(home: &Home) -> Manager {
        let path = home.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager { socket, path: path.to_str().unwrap().to_owned() }
    }

    /// The next message: assignments, one in a line.
    fn next(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("the daemon says something");
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    /// Reads on until a message holds this line.
    fn until(&self, line: &str) {
        while !self.next().lines().any(|said| said == line) {}
    }

    /// Throws away what was said and not read yet.
    fn forget(&self) {
        while !self.is_silent() {}
    }

    /// Whether nothing was said that is not read yet.
    fn is_silent(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let read = self.socket.recv(&mut [0; 4096]);
        self.socket.set_nonblocking(false).unwrap();
        read.is_err()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn the_service_manager_is_told_of_readiness_reload_and_the_end() {
    let home = Home::new();
    let manager = Manager::of(&home);
    let mut daemon = home.daemon_with(&[("NOTIFY_SOCKET", &manager.path)]);
    assert!(manager.next().lines().any(|line| line == "READY=1"), "first of all");
    assert_eq!(home.json(&["health", "-o", "json"])["managed"], true);

    rustix::process::kill_process(
        rustix::process::Pid::from_raw(daemon.pid() as i32).unwrap(),
        rustix::process::Signal::HUP,
    )
    .unwrap();
    let reloading = manager.next();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(manager.next(), "READY=1\n");

    let refused = home.ksi(&["restart"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("systemctl --user restart ksi"), "{}", stderr(&refused));
    home.ok(&["stop"]);
    assert!(manager.next().starts_with("STOPPING=1\n"));
    assert!(daemon.wait().success());
}

#[tokio::test]
async fn a_daemon_that_is_not_managed_says_nothing_and_can_be_restarted() {
    let home = Home::new();
    let _daemon = home.daemon().await;
    assert_eq!(home.json(&["health", "-o", "json"])["managed"], false);
}

#[tokio::test]
async fn the_watchdog_hears_nothing_while_the_disk_does_not_write() {
    let home = Home::new();
    let manager = Manager::of(&home);
    let env = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "400000")];
    let mut daemon = home.daemon_with(&env);
    manager.until("READY=1");
    manager.until("WATCHDOG=1");
    manager.until("WATCHDOG=1");

    // As a disk that hangs: the writer waits, and what was decided is not durable.
    let other = Connection::open(home.path().join("state/journal.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let client = daemon.client().await;
    let data = json!({ "key": "k", "value": 1 });
    let call = client.call::<serde_json::Value>("state:set", &data);
    let hang = async {
        daemon.wait_for("has not written since").await;
        manager.forget();
        daemon.wait_for("has not written since").await;
        assert!(manager.is_silent(), "between two looks");
        other.execute_batch("ROLLBACK").unwrap();
        manager.until("WATCHDOG=1");
    };
    let (set, ()) = tokio::join!(call, hang);
    assert_eq!(set.unwrap()["status"], "set");
}

/// `ksi start --foreground`, with a socket as descriptor 3, as a service manager starts it.
fn activated(home: &Home, listener: OwnedFd, sockets: &str) -> std::process::Command {
    let mut command = home.program("sh");
    let script = format!(
        "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS={sockets} exec {} start --foreground",
        env!("CARGO_BIN_EXE_ksi")
    );
    command.args(["-c", &script]).stdin(Stdio::from(listener));
    command
}

#[test]
fn a_socket_that_was_handed_over_is_served_and_left_where_it_is() {
    let home = Home::new();
    let socket = home.path().join("run/daemon.sock");
    fs::create_dir(home.path().join("run")).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    // Who connects before there is a daemon waits for it.
    let early = home.command(&["--no-start", "health"]).spawn().unwrap();
    for _ in 0..2 {
        let handed_over = listener.try_clone().unwrap().into();
        let mut daemon = activated(&home, handed_over, "1").spawn().unwrap();
        assert_eq!(home.ok(&["--no-start", "health"]).trim(), "healthy");
        assert_eq!(home.json(&["health", "-o", "json"])["managed"], true);
        assert!(home.ok(&["stop"]).contains("has stopped"));
        assert!(daemon.wait().unwrap().success());
        assert!(socket.exists(), "the file is the service manager's");
    }
    let early = early.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&early.stdout), "healthy\n", "{}", stderr(&early));
    drop(listener);
    fs::remove_file(socket).unwrap();
}

#[test]
fn what_is_no_socket_of_ours_is_refused_with_a_sentence() {
    let home = Home::new();
    let elsewhere = home.path().join("other.sock");
    let listener = || UnixListener::bind(&elsewhere).unwrap();
    let refused = |handed_over: OwnedFd, sockets| {
        let output = activated(&home, handed_over, sockets).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        stderr(&output)
    };
    let said = refused(listener().into(), "1");
    let place = format!("is {}, and clients look at", elsewhere.display());
    assert!(said.contains(&place), "{said}");
    let said = refused(fs::File::open("/dev/null").unwrap().into(), "1");
    assert!(said.contains("no Unix socket"), "{said}");
    let said = refused(fs::File::open("/dev/null").unwrap().into(), "2");
    assert!(said.contains("2 sockets were handed over, and ksi listens on one"), "{said}");
}

#[test]
fn the_units_that_we_ship_say_what_this_program_understands() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/systemd");
    let unit = |name: &str| fs::read_to_string(format!("{folder}/{name}")).unwrap();
    let value = |unit: &str, key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
        line.unwrap_or_else(|| panic!("no {key}")).to_owned()
    };
    let (service, socket) = (unit("ksi.service"), unit("ksi.socket"));
    assert_eq!(value(&service, "Type"), "notify-reload");
    let home = Home::new();
    let start = value(&service, "ExecStart");
    let (program, args) = start.split_once(' ').unwrap();
    assert!(program.ends_with("/ksi"));
    let help: Vec<_> = args.split(' ').chain(["--help"]).collect();
    home.ok(&help);
    let paths = ksi_protocol::Paths::from_env(&|name| match name {
        "XDG_RUNTIME_DIR" => Some("/run/user/1".to_owned()),
        "HOME" => Some("/home/ada".to_owned()),
        _ => None,
    })
    .unwrap();
    let listen = value(&socket, "ListenStream").replace("%t", "/run/user/1");
    assert_eq!(listen, paths.socket.to_str().unwrap());
}
