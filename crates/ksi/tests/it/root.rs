//! What only root can try.

use std::os::unix::{fs::PermissionsExt, process::CommandExt};

use crate::daemon::Home;

#[tokio::test]
async fn another_user_is_forbidden_everything() {
    let home = Home::new();
    let daemon = home.daemon().await;
    // As if the folders were open to all; the file of the program must be readable too.
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(home.path(), 0o755);
    open(&home.path().join("run"), 0o755);
    open(&home.path().join("run/daemon.sock"), 0o666);
    let program = home.path().join("ksi");
    std::fs::copy(env!("CARGO_BIN_EXE_ksi"), &program).unwrap();
    for event in ["system:health", "state:set", "nobody:home"] {
        let mut command = home.program(program.to_str().unwrap());
        command.args(["-o", "json", "--no-start", "emit", event]);
        let output = command.uid(65534).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("\"forbidden\"") && stderr.contains("another user"), "{stderr}");
    }
    drop(daemon);
}
