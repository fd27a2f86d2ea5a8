use std::os::unix::net::UnixListener;

use ksi_protocol::{Client, ConnectError};

use crate::daemon::connected;

#[tokio::test]
async fn without_a_socket_no_daemon_is_running() {
    let folder = tempfile::tempdir().unwrap();
    let error = Client::connect(&folder.path().join("daemon.sock")).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotRunning(_)), "{error:?}");
    assert_eq!(error.hint(), Some("start it with `ksi start`"));
}

#[tokio::test]
async fn a_socket_that_a_dead_daemon_left_behind_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("daemon.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let error = Client::connect(&socket).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused(_)), "{error:?}");
}

#[tokio::test]
async fn what_is_no_socket_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let below_a_file = folder.path().join("file/daemon.sock");
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = Client::connect(&below_a_file).await.unwrap_err();
    assert!(matches!(error, ConnectError::Failed { .. }), "{error:?}");
}

#[tokio::test]
async fn the_connection_ends_with_its_last_owner() {
    let (client, mut daemon) = connected().await;
    let clone = client.clone();
    let unasked = client.unasked();
    drop((client, clone));
    drop(unasked);
    assert_eq!(daemon.request().await, None);
}
