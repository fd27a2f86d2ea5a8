//! A daemon that places who connects, and those who connect.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use ksi_process::{Command, Descent, Peer, Shim};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getppid, kill_process, pidfd_open};

use crate::{park, runtime, say};

/// Every kind of peer below the shim: one that shows its token, a child, a grandchild that went
/// away, one that is gone when it is looked at, and one that kills its own shim.
const SCRIPT: &str = r#"
    token=$(cat /proc/self/fd/$KSI_TOKEN_FD)
    env | grep -q "$token" && token=leaked
    "$0" connect "$1" "$token" &
    "$0" connect "$1" child &
    ( ( setsid "$0" connect "$1" away & ) & )
    "$0" connect "$1" gone-before; "$0" connect "$1" after &
    read line
    "$0" kill-shim-and-connect "$1" killer &
    wait"#;

/// Says of each that connects where it belongs, once it has said its name.
pub(crate) fn place(state: &Path, path: &Path) {
    runtime().block_on(async {
        let listener = UnixListener::bind(path).unwrap();
        let shim = Shim::current().unwrap().at_home(state).unwrap();
        let _own = UnixStream::connect(path).unwrap();
        let peer = Peer::of(listener.accept().unwrap().0).unwrap();
        assert_eq!(peer.pid(), std::process::id());
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
        say(&format!("itself {:?}", shim.descent(&peer)));
        let own = std::env::current_exe().unwrap();
        let command = Command::new("sh").arg("-c").arg(SCRIPT).arg(own).arg(path);
        let command = command.principal("agent:test");
        let mut child = command.spawn(&shim).await.unwrap();
        let mut unseen = Vec::new();
        let mut placed = 0;
        loop {
            let (mut socket, _) = listener.accept().unwrap();
            let mut name = [0; 128];
            let length = socket.read(&mut name).unwrap();
            let name = String::from_utf8_lossy(&name[..length]).into_owned();
            if name == "gone-before" {
                unseen.push(socket);
                continue;
            }
            let peer = Peer::of(&socket).unwrap();
            let place = match shim.descent(&peer) {
                Descent::Under(id) if Some(id) == child.id() => {
                    let identity = shim.identity(id).unwrap();
                    let proved = if identity.is_proved_by(&name) { " proved" } else { "" };
                    format!("{identity:?}{proved}")
                }
                other => format!("{other:?}"),
            };
            let name = if name.len() == 64 { "token" } else { &name };
            say(&format!("{name} {place}"));
            placed += 1;
            if placed == 4 {
                // All others were placed while their shim lived.
                use tokio::io::AsyncWriteExt;
                child.stdin.as_mut().unwrap().write_all(b"now\n").await.unwrap();
            }
            // Now the one before was waited for by its parent.
            let gone = if name == "after" { std::mem::take(&mut unseen) } else { Vec::new() };
            for socket in gone {
                let peer = Peer::of(&socket).unwrap();
                say(&format!("gone {:?}", shim.descent(&peer)));
            }
        }
    });
}

/// Connects and says a name; one that is to be gone ends at once.
pub(crate) fn connect(socket: &Path, name: &str) {
    let mut socket = UnixStream::connect(socket).unwrap();
    socket.write_all(name.as_bytes()).unwrap();
    if name != "gone-before" {
        park();
    }
}

/// The shim is the parent of the shell that started this.
pub(crate) fn kill_shim_and_connect(socket: &str, name: &str) {
    let shell = getppid().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{shell}/stat")).unwrap();
    let parent = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap();
    let shim = Pid::from_raw(parent.parse().unwrap()).unwrap();
    let held = pidfd_open(shim, PidfdFlags::empty()).unwrap();
    kill_process(shim, Signal::KILL).unwrap();
    // Until it is gone this process still descends from a live shim.
    poll(&mut [PollFd::new(&held, PollFlags::IN)], None).unwrap();
    connect(Path::new(socket), name);
}
