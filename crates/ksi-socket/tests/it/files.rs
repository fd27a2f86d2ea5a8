//! The socket's file and its folder.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use ksi_socket::{BindError, Server};

use crate::daemon::{TestServer, patiently};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn nobody_else_can_reach_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/daemon.sock");
    let server = Server::bind(&path).unwrap();
    assert_eq!(server.path(), path);
    assert_eq!(mode(&path), 0o600);
    assert_eq!((mode(&folder.path().join("a/b")), mode(&folder.path().join("a"))), (0o700, 0o700));
}

#[tokio::test]
async fn a_socket_that_was_left_behind_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("daemon.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = Server::bind(&path).unwrap();
    tokio::net::UnixStream::connect(&path).await.unwrap();
    drop(server);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("daemon.sock");
    fs::write(&path, "precious").unwrap();
    let error = Server::bind(&path).unwrap_err();
    assert!(matches!(error, BindError::Occupied { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn a_folder_that_others_may_change_is_refused_unless_it_is_sticky() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("daemon.sock");
    let allow =
        |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    allow(0o777);
    let error = Server::bind(&path).unwrap_err();
    assert!(matches!(error, BindError::Shared { .. }), "{error}");
    allow(0o1777);
    assert!(Server::bind(&path).is_ok());
}

#[tokio::test]
async fn a_path_that_no_socket_can_have_is_an_error_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x".repeat(200));
    let error = Server::bind(&path).unwrap_err();
    assert!(matches!(error, BindError::Bind { .. }), "{error}");
    assert!(error.to_string().contains("KSI_SOCKET"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_leaves_another_daemons_socket_alone() {
    let mut server = TestServer::start();
    fs::remove_file(&server.socket).unwrap();
    // Another inode for certain: it is taken while the other one still exists.
    let other = server.socket.with_extension("new");
    let _listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
    fs::rename(&other, &server.socket).unwrap();
    server.shut_down().await;
    patiently(&mut server.accepting).await.unwrap();
    assert!(server.socket.exists());
}
