//! What a program gets and gives, with a shim in between.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;

use ksi_process::{Command, Error, Exit, Shim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{PROGRAM, bounded, shim};

fn sh(script: &str) -> Command {
    Command::new("sh").arg("-c").arg(script)
}

/// Runs it to its end and returns what it printed.
async fn output(command: Command) -> String {
    let mut child = command.spawn(&shim()).await.unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(child.wait().await, Exit::Code(0));
    text
}

#[tokio::test]
async fn exit_codes_are_passed_on() {
    for code in [0, 3, 137, 255] {
        let mut child = sh(&format!("exit {code}")).spawn(&shim()).await.unwrap();
        assert_eq!(child.wait().await, Exit::Code(code));
        assert_eq!(child.wait().await, Exit::Code(code), "asked a second time");
    }
}

#[tokio::test]
async fn signals_are_passed_on() {
    for signal in [9, 15, 6] {
        let mut child = sh(&format!("kill -{signal} $$")).spawn(&shim()).await.unwrap();
        assert_eq!(child.wait().await, Exit::Signal(signal));
    }
}

#[tokio::test]
async fn streams_pass_through_in_both_directions() {
    let mut child = sh("cat; echo trouble >&2").spawn(&shim()).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let write = async {
        stdin.write_all(&sent).await.unwrap();
        drop(stdin);
    };
    let mut received = Vec::new();
    let (_, length) = tokio::join!(write, stdout.read_to_end(&mut received));
    assert_eq!(length.unwrap(), sent.len());
    assert!(received == sent);

    let mut complaint = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaint).await.unwrap();
    assert_eq!(complaint, "trouble\n");
}

#[tokio::test]
async fn a_stream_the_program_closed_is_closed_though_it_runs_on() {
    let mut child = sh("exec >&-; read line; exit 4").spawn(&shim()).await.unwrap();
    let mut stdout = child.stdout.take().unwrap();
    assert_eq!(bounded(stdout.read(&mut [0; 8])).await.unwrap(), 0);
    child.stdin.as_mut().unwrap().write_all(b"go on\n").await.unwrap();
    assert_eq!(child.wait().await, Exit::Code(4));
}

#[tokio::test]
async fn the_environment_is_clean() {
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "there is something to hide");
    let allowed = "PATH HOME LANG TZ TMPDIR GIVEN";
    let allowed: Vec<&str> = allowed.split_whitespace().collect();
    let text = output(Command::new("env").env("GIVEN", "by hand")).await;
    for line in text.lines() {
        let name = line.split_once('=').unwrap().0.to_uppercase();
        assert!(allowed.contains(&name.as_str()) || name.starts_with("LC_"), "{line}");
    }
    assert!(text.lines().any(|line| line == "GIVEN=by hand"));
    assert!(text.lines().any(|line| line.starts_with("PATH=")));

    let more = output(Command::new("env").inherit(["CARGO_MANIFEST_*"])).await;
    assert!(more.lines().any(|line| line.starts_with("CARGO_MANIFEST_DIR=")));
}

#[tokio::test]
async fn the_folder_is_the_one_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let text = output(Command::new("pwd").args(["-P"]).current_dir(folder.path())).await;
    assert_eq!(text.trim_end(), folder.path().canonicalize().unwrap().to_str().unwrap());
}

#[tokio::test]
async fn a_descriptor_left_open_by_mistake_does_not_reach_the_program() {
    let file = tempfile::tempfile().unwrap();
    let careless = rustix::io::dup(&file).unwrap();
    assert!(rustix::io::fcntl_getfd(&careless).unwrap().is_empty(), "it crosses an exec");
    assert!(careless.as_raw_fd() > 2);
    assert_eq!(output(Command::new(PROGRAM).arg("descriptors")).await, "0 1 2\n");
}

#[tokio::test]
async fn the_program_leads_a_group_of_its_own_in_the_session_of_its_shim() {
    let mut child = sh("cut -d' ' -f1,4-7 /proc/$$/stat; read line").spawn(&shim()).await.unwrap();
    let line = crate::sorted_lines(&mut child, 1).await.remove(0);
    let shim = child.pid().to_string();
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [pid, parent, group, session, terminal] = fields[..] else { panic!("{line}") };
    assert_eq!((parent, session, terminal), (&*shim, &*shim, "0"));
    assert_eq!(group, pid);
    child.stop().await;
}

#[tokio::test]
async fn a_missing_program_is_an_error_that_says_so() {
    let error = Command::new("/no/such/program").spawn(&shim()).await.unwrap_err();
    let Error::Program { program, source } = error else { panic!("{error:?}") };
    assert_eq!(program, "/no/such/program");
    assert_eq!(source.kind(), ErrorKind::NotFound);

    let error = Command::new("/dev/null").spawn(&shim()).await.unwrap_err();
    let Error::Program { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn a_missing_folder_and_a_missing_shim_are_told_apart() {
    let error = Command::new("true").current_dir("/no/such/folder").spawn(&shim()).await;
    assert!(matches!(error, Err(Error::Folder { .. })), "{error:?}");

    let missing = Shim::new("/no/such/shim");
    let error = Command::new("true").spawn(&missing).await;
    assert!(matches!(error, Err(Error::Shim { .. })), "{error:?}");

    let mute = Shim::new("/bin/false");
    let error = Command::new("true").spawn(&mute).await.unwrap_err();
    let Error::Silent { exit, .. } = error else { panic!("{error:?}") };
    assert_eq!(exit, Exit::Code(1));
}
