//! The recorded conversations that need a whole daemon.

use std::path::Path;

use crate::daemon::Home;

#[tokio::test]
async fn the_daemons_transcripts_hold() {
    let home = Home::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../transcripts/daemon");
    let models = home.path().join("cache/models");
    std::fs::create_dir_all(&models).unwrap();
    std::fs::copy(folder.join("rehearsal.yaml"), models.join("rehearsal.yaml")).unwrap();
    let _daemon = home.daemon().await;
    let socket = home.path().join("run/daemon.sock");
    let replayed = ksi_socket::testing::replay_all(&socket, &folder);
    assert!(replayed.unwrap_or_else(|why| panic!("{why}")) >= 8, "a transcript is missing");
}
