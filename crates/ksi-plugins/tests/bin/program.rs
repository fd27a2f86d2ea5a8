//! Plays `ksi` in tests: the shim, and a local model that does what the prompt says.

use std::{
    io::{BufRead, Write},
    process::ExitCode,
};

use serde_json::{Value, json};

fn main() -> ExitCode {
    if let Some(code) = ksi_process::run_hidden_verb() {
        return code;
    }
    let model = std::env::args().nth(1).is_some_and(|verb| verb == "__local-model");
    if model { serve() } else { ExitCode::from(2) }
}

/// Answers with its own process number and the prompt.
fn serve() -> ExitCode {
    say(&json!({ "ready": { "model": "tiny", "load_ms": 1 } }));
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Ok(request) = serde_json::from_str::<Value>(&line) else { break };
        let id = &request["id"];
        let prompt = request["messages"].as_array().and_then(|all| all.last());
        let prompt = prompt.and_then(|last| last["content"].as_str()).unwrap_or_default();
        match prompt {
            "crash" => return crash(),
            "threads" => {
                let threads = std::env::var("CANDLE_NUM_THREADS").unwrap_or_default();
                say(&json!({ "id": id, "token": threads }));
                say(&json!({ "id": id, "done": { "stop_reason": "end" } }));
                continue;
            }
            "refuse" => {
                let error = json!({ "code": "too_long", "message": "too long for me" });
                say(&json!({ "id": id, "error": error }));
                continue;
            }
            _ => {}
        }
        say(&json!({ "id": id, "token": format!("{} ", std::process::id()) }));
        if prompt == "hang" {
            loop {
                std::thread::park();
            }
        }
        say(&json!({ "id": id, "token": prompt }));
        let usage = json!({ "input": 3, "output": 2, "cached": 1 });
        let done = json!({ "stop_reason": "end", "usage": usage, "duration_ms": 1, "dropped": 0 });
        say(&json!({ "id": id, "done": done }));
    }
    ExitCode::SUCCESS
}

fn crash() -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    for line in 1..=6 {
        let _ = writeln!(stderr, "complaint {line}");
    }
    ExitCode::from(3)
}

fn say(line: &Value) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
