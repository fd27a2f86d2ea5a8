//! What a child may use, tried.

use ksi_process::{Command, Exit, Limits};
use tokio::io::AsyncReadExt;

use crate::{PROGRAM, bounded, shim};

async fn run(args: &[&str], limits: Limits) -> (String, Exit) {
    let command = Command::new(PROGRAM).args(args.iter().copied()).limits(limits);
    let mut child = command.spawn(&shim()).await.unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    (text.trim_end().to_owned(), bounded(child.wait()).await)
}

#[tokio::test]
async fn memory_beyond_the_limit_is_refused() {
    let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    assert_eq!(run(&["allocate", "16"], limits).await.0, "16 MiB");
    assert_eq!(run(&["allocate", "128"], limits).await.0, "refused");
    assert_eq!(run(&["allocate", "128"], Limits::default()).await.0, "128 MiB");
}

#[tokio::test]
async fn a_limit_holds_for_what_a_child_starts() {
    let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    let command = Command::new("sh").args(["-c", r#""$0" allocate 128; exit"#, PROGRAM]);
    let mut child = command.limits(limits).spawn(&shim()).await.unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "refused\n");
    assert_eq!(child.wait().await, Exit::Code(0));
}

#[tokio::test]
async fn a_program_that_computes_for_too_long_is_ended() {
    let limits = Limits { cpu_seconds: Some(1), ..Limits::default() };
    let (_, exit) = run(&["spin"], limits).await;
    assert_eq!(exit, Exit::Signal(signal_hook::consts::SIGXCPU));
}

#[tokio::test]
async fn files_beyond_the_limit_are_not_opened() {
    let limits = Limits { files: Some(20), ..Limits::default() };
    // Three are the standard streams.
    assert_eq!(run(&["open-files"], limits).await.0, "17");
    assert_eq!(run(&["open-files"], Limits::default()).await.0, "1000");
}

#[tokio::test]
async fn a_limit_above_our_own_is_ours() {
    let most = Some(u64::MAX);
    let limits = Limits { memory: most, cpu_seconds: most, files: most, processes: most };
    assert_eq!(run(&["allocate", "1"], limits).await, ("1 MiB".to_owned(), Exit::Code(0)));
}
