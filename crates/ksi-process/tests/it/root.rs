//! What only root can try: run by `make test-root`.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use crate::{Helper, PROGRAM};

/// A user that nothing on the machine runs as.
const NOBODY: u32 = 64_917;

#[test]
#[allow(clippy::disallowed_methods, reason = "the test plays what is above the daemon")]
fn a_user_starts_no_more_processes_than_the_limit() {
    assert!(rustix::process::geteuid().is_root(), "needs root");
    // Where another user can get at it.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = folder.path().join("program");
    std::fs::copy(PROGRAM, &program).unwrap();

    let started = |limit: &str| {
        let mut command = std::process::Command::new(&program);
        let command = command.args(["under-limit", limit, "30"]).current_dir("/");
        Helper::run(command.uid(NOBODY).gid(NOBODY)).line().parse::<usize>().unwrap()
    };
    // The daemon, its shim and the program count too, and so do threads.
    let few = started("12");
    assert!((1..=9).contains(&few), "{few} processes");
    assert_eq!(started("1000"), 30);
}
