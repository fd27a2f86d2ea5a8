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

/// Runs a script with its home on a disk of its own, six megabytes of memory, which nothing but the
/// script sees; what it says on stdout and on stderr.
fn on_a_small_disk(home: &Home, script: &str) -> (String, String) {
    let mount = "mount -t tmpfs -o size=6m ksi-test \"$KSI_HOME\"";
    let script = format!("{mount} && KSI={}; {script}", env!("CARGO_BIN_EXE_ksi"));
    let output = home.program("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

#[test]
fn a_disk_that_is_really_full_refuses_what_would_be_kept_and_recovers_by_itself() {
    let home = Home::new();
    let (out, err) = on_a_small_disk(
        &home,
        r#"
        $KSI start && $KSI emit state:set key=before value=1
        dd if=/dev/zero of=$KSI_HOME/ballast bs=4k 2>/dev/null
        n=0; while $KSI emit state:set key=k$n value=1 >/dev/null 2>/tmp/ksi-full-$$; do
            n=$((n+1)); [ $n -lt 2000 ] || exit 9
        done
        cat /tmp/ksi-full-$$ >&2; rm /tmp/ksi-full-$$
        $KSI health; $KSI emit state:get key=before; $KSI doctor
        rm $KSI_HOME/ballast
        until $KSI emit state:set key=after value=2 2>/dev/null; do :; done
        $KSI health; $KSI stop
        "#,
    );
    assert!(err.contains("disk is full; nothing was kept"), "{err}\n{out}");
    assert!(out.contains("degraded") && out.contains("journal: its disk is full"), "{out}\n{err}");
    assert!(out.contains("\"found\": true"), "reads go on: {out}");
    assert!(out.contains("FAIL  disk"), "{out}");
    assert!(out.contains("healthy\n") && out.contains("has stopped"), "{out}\n{err}");

    let (_, err) = on_a_small_disk(
        &home,
        "dd if=/dev/zero of=$KSI_HOME/ballast bs=4k 2>/dev/null; $KSI start; $KSI doctor >&2; :",
    );
    assert!(err.contains("No space left on device"), "a new home on a full disk: {err}");
    assert!(err.contains("FAIL  disk") && err.contains("hint: make room"), "{err}");
}
