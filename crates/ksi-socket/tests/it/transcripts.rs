//! The recorded conversations that hold for every daemon, with this crate's test plugin.

use std::path::Path;

use crate::daemon::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn the_transcripts_hold() {
    let server = TestServer::start();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../transcripts");
    let socket = server.socket.clone();
    let replayed =
        tokio::task::spawn_blocking(move || ksi_socket::testing::replay_all(&socket, &folder));
    let replayed = replayed.await.unwrap().unwrap_or_else(|why| panic!("{why}"));
    assert!(replayed >= 4, "only {replayed} transcripts");
}
