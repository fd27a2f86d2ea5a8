//! Whose child is at the other end of a socket.

use std::io::Write;
use std::os::unix::net::UnixStream;

use crate::Helper;

#[test]
fn each_peer_is_placed_where_it_descends_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
    let (state, socket) = (path("state"), path("socket"));
    std::fs::create_dir(&state).unwrap();
    let mut daemon = Helper::start(&["peers", &state, &socket]);
    assert_eq!(daemon.line(), "itself Ours");

    let known = ["after", "away", "child"].map(|name| format!("{name} agent:test"));
    let others = ["gone Unreadable", "token agent:test proved"].map(str::to_owned);
    assert_eq!(daemon.sorted_lines(5), [&known[..], &others].concat());
    // Its daemon ends it as soon as it notices; until then it is nobody's.
    let killer = daemon.line();
    assert!(["killer Ours", "killer Unreadable"].contains(&killer.as_str()), "{killer}");

    let mut stranger = UnixStream::connect(&socket).unwrap();
    stranger.write_all(b"test").unwrap();
    assert_eq!(daemon.line(), "test Stranger");
}
