//! What only root can try.

use std::os::unix::{
    fs::{PermissionsExt, lchown},
    process::CommandExt,
};

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

#[test]
fn a_socket_folder_of_another_user_is_refused_also_behind_a_link() {
    const NOBODY: u32 = 65534;
    let home = Home::new();
    let (own, theirs) = (home.path().join("own"), home.path().join("theirs"));
    let link = home.path().join("link");
    std::fs::create_dir(&own).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::symlink(&own, &link).unwrap();
    for of_another in [&theirs, &link] {
        lchown(of_another, Some(NOBODY), None).unwrap();
    }
    for (folder, refused) in [(&theirs, true), (&link, true), (&own, false)] {
        let mut command = home.command(&["start"]);
        let output = command.env("KSI_SOCKET", folder.join("s")).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), !refused, "{said}");
        assert_eq!(said.contains("other users can change the folder"), refused, "{said}");
    }
    let stop = home.command(&["stop"]).env("KSI_SOCKET", own.join("s")).output().unwrap();
    assert!(stop.status.success());
}
