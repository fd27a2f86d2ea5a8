//! The provider `local`, with a program in the model's place.

use std::{fmt::Write, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use super::harness::Daemon;

/// A daemon and the name of a model whose program says what it is told.
fn start() -> (Daemon, String) {
    let daemon = Daemon::start("rules: []");
    let path = daemon.folder.path().join("tiny.gguf");
    std::fs::write(&path, b"GGUF\x03\0\0\0").unwrap();
    (daemon, format!("local:{}", path.display()))
}

async fn say(daemon: &Daemon, model: &str, prompt: &str) -> ksi_kernel::Result<Value> {
    let ask = json!({ "prompt": prompt, "model": model, "retry": { "max_attempts": 1 } });
    daemon.call("completion:sync", ask).await
}

fn pid_of(result: &Value) -> String {
    result["text"].as_str().unwrap().split(' ').next().unwrap().to_owned()
}

/// Waits until no process of this number is left, while this much time passes each moment.
async fn gone(daemon: &Daemon, pid: &str, ms: u64) {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let gone = async {
        while folder.exists() {
            daemon.clock.advance(ms);
            tokio::task::yield_now().await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(30), gone).await;
    assert!(gone.is_ok(), "process {pid} is still there");
}

#[tokio::test]
async fn one_process_answers_request_after_request() {
    let (mut daemon, model) = start();
    let first = say(&daemon, &model, "hello").await.unwrap();
    let second = say(&daemon, &model, "again").await.unwrap();
    assert!(second["text"].as_str().unwrap().ends_with(" again"), "{second}");
    assert_eq!(pid_of(&first), pid_of(&second));
    assert_eq!(first["usage"]["input"], 3);
    assert_eq!((&first["cost_usd"], &first["provider"]), (&json!(0.0), &json!("local")));
    let id = first["request_id"].as_str().unwrap();
    let progress = daemon.hear("completion:progress", id).await;
    assert_eq!(progress["phase"], "loading the model");
}

#[tokio::test]
async fn the_models_process_computes_with_one_thread() {
    let (daemon, model) = start();
    assert_eq!(say(&daemon, &model, "threads").await.unwrap()["text"], "1");
}

#[tokio::test]
async fn a_process_with_nothing_to_do_ends_and_comes_back() {
    let (daemon, model) = start();
    let first = say(&daemon, &model, "hello").await.unwrap();
    gone(&daemon, &pid_of(&first), 1_000).await;
    let second = say(&daemon, &model, "again").await.unwrap();
    assert_ne!(pid_of(&first), pid_of(&second));
}

#[tokio::test]
async fn a_cancelled_answer_ends_its_process_and_the_next_one_has_another() {
    let (mut daemon, model) = start();
    let ask = json!({ "prompt": "hang", "model": model });
    let accepted = daemon.call("completion:async", ask).await.unwrap();
    let id = accepted["request_id"].as_str().unwrap().to_owned();
    let chunk = daemon.hear("completion:chunk", &id).await;
    let pid = chunk["text"].as_str().unwrap().trim().to_owned();
    daemon.call("completion:cancel", json!({ "request_id": id })).await.unwrap();
    gone(&daemon, &pid, 0).await;
    let next = say(&daemon, &model, "hello").await.unwrap();
    assert_ne!(pid_of(&next), pid);
}

#[tokio::test]
async fn a_crash_is_told_with_its_last_words_and_tried_again() {
    let (daemon, model) = start();
    let error = say(&daemon, &model, "crash").await.unwrap_err();
    let mut told = String::from("the local model ended with exit code 3");
    for line in 2..=6 {
        write!(told, "; complaint {line}").unwrap();
    }
    assert_eq!(error.message, told);
    let ask = json!({ "prompt": "crash", "model": model, "retry": { "max_attempts": 2, "initial_ms": 0 } });
    daemon.call("completion:sync", ask).await.unwrap_err();
    assert_eq!(daemon.facts("completion:retrying").len(), 1);
    say(&daemon, &model, "hello").await.unwrap();
}

#[tokio::test]
async fn a_refused_question_leaves_the_process_in_its_place() {
    let (daemon, model) = start();
    let first = say(&daemon, &model, "hello").await.unwrap();
    let error = say(&daemon, &model, "refuse").await.unwrap_err();
    assert_eq!(error.message, "too long for me");
    assert!(error.hint.unwrap().contains("shorter prompt or topic"));
    let second = say(&daemon, &model, "again").await.unwrap();
    assert_eq!(pid_of(&first), pid_of(&second));
}

#[tokio::test]
async fn a_model_that_is_not_there_says_how_to_get_one() {
    let (daemon, _) = start();
    let error = say(&daemon, "local", "hello").await.unwrap_err();
    assert!(error.hint.unwrap().contains("ksi model pull"));
}

#[tokio::test]
async fn a_shutdown_ends_the_process() {
    let (daemon, model) = start();
    let pid = pid_of(&say(&daemon, &model, "hello").await.unwrap());
    daemon.kernel.shutdown(Duration::from_secs(30)).await;
    gone(&daemon, &pid, 0).await;
}
