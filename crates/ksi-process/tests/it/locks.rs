//! One holder at a time, and none for longer than it lives.

use ksi_process::lock::{Error, Held, Holder, Lock};

use crate::Helper;

#[test]
fn the_second_holder_is_told_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let mut holder = Helper::start(&["hold", path.to_str().unwrap()]);
    assert_eq!(holder.line(), "held");

    let error = Lock::acquire(&path).unwrap_err();
    let pid = holder.process.id();
    assert_eq!(error.to_string(), format!("{} is locked by process {pid}", path.display()));
    let Error::Held { held, .. } = error else { panic!("{error:?}") };
    assert_eq!(held, Held { pid: Some(pid) });
}

#[test]
fn a_killed_holder_frees_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let mut holder = Helper::start(&["hold", path.to_str().unwrap()]);
    assert_eq!(holder.line(), "held");
    holder.kill();

    let _ours = Lock::acquire(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("pid {}", std::process::id()));
    assert!(lines[1].starts_with("started "), "{text}");
    assert_eq!(lines.len(), 2);
}

#[test]
fn what_the_file_says_is_no_proof() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    std::fs::write(&path, "pid 1\nstarted long ago, by somebody who never took the lock\n")
        .unwrap();
    let first = Lock::acquire(&path).unwrap();
    assert!(!std::fs::read_to_string(&path).unwrap().contains("the lock"));
    std::fs::write(&path, "nonsense").unwrap();
    let error = Lock::acquire(&path).unwrap_err();
    assert!(matches!(error, Error::Held { held: Held { pid: None }, .. }), "{error:?}");
    drop(first);
    Lock::acquire(&path).unwrap();
}

#[test]
fn a_file_that_cannot_be_used_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let error = Lock::acquire(&folder.path().join("no/such/folder")).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error:?}");
}

#[test]
fn a_holder_that_is_about_to_go_is_waited_for_and_one_that_stays_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let first = Lock::acquire(&path).unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap());
    let (at, patience) = (path.clone(), std::time::Duration::from_secs(30));
    let second = std::thread::spawn(move || Lock::acquire_within(&at, patience));
    let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&format!(":{inode} "));
    while !std::fs::read_to_string("/proc/locks").unwrap().lines().any(waits) {}
    let holder = |note: Option<&str>| {
        Some(Holder { pid: std::process::id(), note: note.map(str::to_owned) })
    };
    assert_eq!(ksi_process::lock::holder(&path), holder(None));
    for note in ["serving at /some/where", "ending"] {
        first.note(note).unwrap();
        assert_eq!(ksi_process::lock::holder(&path), holder(Some(note)));
    }
    drop(first);
    let second = second.join().unwrap().unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("pid "));

    let error = Lock::acquire_within(&path, std::time::Duration::from_millis(1)).unwrap_err();
    let us = Held { pid: Some(std::process::id()) };
    assert!(matches!(error, Error::Held { held, .. } if held == us), "{error:?}");
    drop(second);
    assert_eq!(ksi_process::lock::holder(&path), None);
}
