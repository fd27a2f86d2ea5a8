//! `ksi emit`, `ksi listen` and `ksi discover`, and the reference made from them.

use std::{
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout},
};

use ksi_protocol::{Client, Code};
use serde_json::{Value, json};

use crate::daemon::Home;

#[test]
fn a_value_set_by_one_command_is_read_by_the_next_also_after_a_restart() {
    let home = Home::new();
    let set = home.json(&["emit", "state:set", "key=a", "value={\"n\": [1, \"1\"]}"]);
    assert_eq!(set, json!({"status": "set", "namespace": "global", "key": "a"}));
    home.ok(&["stop"]);
    let got = home.json(&["emit", "state:get", "{\"key\": \"a\"}"]);
    assert_eq!(got["value"], json!({"n": [1, "1"]}));
}

#[test]
fn errors_say_what_where_and_what_to_try() {
    let home = Home::new();
    let unknown = home.ksi(&["emit", "state:sett"]);
    assert_eq!(unknown.status.code(), Some(1));
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(said.contains("error: no plugin answers `state:sett`"), "{said}");
    assert!(said.contains("hint: did you mean `state:set`?"), "{said}");
    let wrong = home.ksi(&["emit", "state:get", "key=1"]);
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(said.contains("expected a string") && said.contains("at: key"), "{said}");
    let wrong = home.ksi(&["emit", "state:get", "key=1", "-o", "json"]);
    let error: Value = serde_json::from_slice(&wrong.stderr).unwrap();
    assert_eq!(
        (&error["error"]["code"], &error["error"]["path"]),
        (&json!("bad_params"), &json!("key"))
    );
    let usage = home.ksi(&["emit", "state:get", "key"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn every_error_in_json_keeps_its_hint() {
    let home = Home::new();
    let error = |args: &[&str], code: i32| -> Value {
        let output = home.ksi(&[args, &["-o", "json"]].concat());
        assert_eq!((output.status.code(), &*output.stdout), (Some(code), &b""[..]), "{args:?}");
        serde_json::from_slice::<Value>(&output.stderr).unwrap()["error"].take()
    };
    let gone = error(&["--no-start", "emit", "system:health"], 3);
    assert_eq!((&gone["code"], &gone["retryable"]), (&json!("unavailable"), &json!(true)));
    assert_eq!(gone["hint"], "start it with `ksi start`");
    let usage = error(&["emit", "state:get", "key"], 2);
    assert_eq!(usage["code"], "bad_params");
    assert!(usage["hint"].as_str().unwrap().contains("ksi emit state:set"), "{usage}");
    let event = error(&["emit", "state:sett"], 1);
    assert_eq!(event["hint"], "did you mean `state:set`?");
}

#[test]
fn what_every_command_prints_is_json_when_asked_for() {
    let home = Home::new();
    let (model, _) = home.script("rules: [{answers: [Tea.]}]\n");
    let printed = |args: &[&str]| -> Vec<Value> {
        let output = home.ksi(&[args, &["-o", "json"]].concat());
        let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        let values: Result<Vec<_>, _> = values.collect();
        let values = values.unwrap_or_else(|why| panic!("{args:?}: {why}"));
        assert!(!values.is_empty(), "{args:?} prints nothing");
        values
    };
    assert_eq!(printed(&["stop"]), [json!({ "stopped": false })]);
    for command in ["status", "start", "health", "status", "discover", "discover --markdown"] {
        printed(&command.split(' ').collect::<Vec<_>>());
    }
    let events = printed(&["orchestrate", "x", "--model", &model]);
    let id = events[0]["data"]["orchestration_id"].as_str().unwrap();
    printed(&["describe", "orchestration", id]);
    printed(&["describe", "conversation", &format!("{id}/Ada")]);
    for command in ["get orchestrations", "get conversations", "model list", "emit system:health"] {
        printed(&command.split(' ').collect::<Vec<_>>());
    }
    assert_eq!(printed(&["stop"])[0]["stopped"], true);
}

#[test]
fn facts_cannot_be_forged_from_outside() {
    let home = Home::new();
    for event in ["state:changed", "orchestration:finished", "completion:result", "system:startup"]
    {
        let output = home.ksi(&["emit", event, "-o", "json"]);
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["error"]["code"], "forbidden", "{event}");
    }
}

#[test]
fn listen_prints_facts_from_the_journal_and_then_live() {
    let home = Home::new();
    home.ok(&["emit", "state:set", "key=a", "value=1"]);
    let mut listen = Listening::start(&home, &["--since", "0"]);
    assert_eq!(listen.next()["data"]["value"], 1);
    home.ok(&["emit", "state:set", "key=a", "value=2"]);
    let second = listen.next();
    assert_eq!((&second["event"], &second["data"]["value"]), (&json!("state:changed"), &json!(2)));
}

#[test]
fn listen_ends_in_peace_when_the_daemon_was_stopped_and_does_not_come_back() {
    let home = Home::new();
    home.ok(&["emit", "state:set", "key=a", "value=1"]);
    let mut listen = Listening::start(&home, &["--since", "0"]);
    listen.next();
    home.ok(&["stop"]);
    assert!(listen.lines.next().is_none());
    assert_eq!(listen.child.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn listen_goes_on_over_a_kill_and_a_restart_with_every_fact_once() {
    const EACH: u64 = 20;
    let home = Home::new();
    let set = async |client: &Client, from: u64| {
        for value in from..from + EACH {
            let data = json!({ "key": "a", "value": value });
            client.call::<Value>("state:set", &data).await.unwrap();
        }
    };
    let daemon = home.daemon().await;
    let mut listen = Listening::start(&home, &["--since", "0"]);
    set(&daemon.client().await, 0).await;
    // Some have been printed, and some are still on their way.
    assert_eq!(listen.next()["data"]["value"], 0);
    daemon.kill();
    let daemon = home.daemon().await;
    set(&daemon.client().await, EACH).await;
    home.ok(&["restart"]);
    drop(daemon);
    let client = Client::connect(&home.path().join("run/daemon.sock")).await.unwrap();
    set(&client, 2 * EACH).await;
    let mut last = 0;
    for value in 1..3 * EACH {
        let fact = listen.next();
        assert_eq!(fact["data"]["value"], value);
        assert!(fact["seq"].as_u64().unwrap() > last, "{fact} behind {last}");
        last = fact["seq"].as_u64().unwrap();
    }
}

/// `ksi listen state:*` in JSON.
struct Listening {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Listening {
    fn start(home: &Home, args: &[&str]) -> Listening {
        let args = [&["listen", "state:*", "-o", "json"], args].concat();
        let mut child = home.command(&args).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Listening { child, lines }
    }

    fn next(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().expect("it has ended").unwrap()).unwrap()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn discover_lists_a_namespace_and_shows_an_event() {
    let home = Home::new();
    let list = home.ok(&["discover", "state"]);
    assert!(list.contains("state:set") && !list.contains("system:"), "{list}");
    let event = home.ok(&["discover", "state:set"]);
    assert!(event.contains("key: string (required)"), "{event}");
    let json = home.json(&["discover", "-o", "json"]);
    assert_eq!(json["total"].as_u64().unwrap() as usize, json["events"].as_object().unwrap().len());
}

#[test]
fn how_many_facts_are_read_at_once_is_1_to_1000() {
    let home = Home::new();
    for key in ["key=a", "key=b"] {
        home.ok(&["emit", "state:set", key, "value=1"]);
    }
    let read = |limit: &str| home.ksi(&["emit", "monitor:get_events", limit, "-o", "json"]);
    for (limit, count) in [("limit=1", 1), ("limit=1000", 2)] {
        let events: Value = serde_json::from_slice(&read(limit).stdout).unwrap();
        assert_eq!(events["count"], count);
    }
    for limit in ["limit=0", "limit=1001", "limit=99999"] {
        let said: Value = serde_json::from_slice(&read(limit).stderr).unwrap();
        let error = &said["error"];
        assert_eq!((&error["code"], &error["path"]), (&json!("bad_params"), &json!("limit")));
        assert!(error["message"].as_str().unwrap().contains("1 to 1000"), "{said}");
    }
}

#[test]
fn who_sends_an_event_that_nobody_owns_is_told_what_listener_it_needs() {
    let home = Home::new();
    let output = home.ksi(&["emit", "shop:opened"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("exactly `shop:opened` or on `shop:*`"), "{said}");
    let (_, command) = said.split_once("ksi listen '").unwrap();
    let (pattern, _) = command.split_once('\'').unwrap();
    let mut listen = home.command(&["listen", pattern]).spawn().unwrap();
    // Once it is subscribed, the event is delivered; before, it is refused as above.
    while !home.ksi(&["emit", "shop:opened", "at=9"]).status.success() {
        assert!(listen.try_wait().unwrap().is_none(), "it listens no more");
    }
    let mut line = String::new();
    BufReader::new(listen.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("shop:opened") && line.contains("9"), "{line}");
    listen.kill().unwrap();
    listen.wait().unwrap();
}

#[test]
fn every_event_and_parameter_is_described() {
    let home = Home::new();
    let found = home.json(&["discover", "-o", "json"]);
    for (name, event) in found["events"].as_object().unwrap() {
        assert_ne!(event["summary"], "", "{name} has no description");
    }
}

#[test]
fn the_reference_of_events_is_what_the_daemon_says() {
    let home = Home::new();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/events.md");
    let written = std::fs::read_to_string(file).unwrap_or_default();
    let said = home.ok(&["discover", "--markdown"]);
    assert!(written == said, "docs/events.md is stale: run `make docs`");
}

#[tokio::test]
async fn every_example_in_the_reference_is_a_request_that_the_daemon_understands() {
    let home = Home::new();
    let daemon = home.daemon().await;
    let client = daemon.client().await;
    let reference = include_str!("../../../../docs/events.md");
    let examples: Vec<Value> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("> "))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(examples.len() > 40);
    let mut wrong = Vec::new();
    for example in examples {
        let event = example["event"].as_str().unwrap();
        // One ends the daemon, the other talks to the world.
        if ["system:shutdown", "model:pull"].contains(&event) {
            continue;
        }
        let error = client.call::<Value>(event, &example["data"]).await.err();
        use Code::{BadParams, Forbidden, Internal, Panicked, Unhandled};
        let faults = [BadParams, Forbidden, Internal, Panicked, Unhandled];
        if error.as_ref().is_some_and(|error| faults.contains(&error.code)) {
            wrong.push(format!("{example}: {error:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a line is what the documentation says; `…` stands for anything.
fn is_as_documented(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::String(any), _) if any == "…" => true,
        (Value::Object(expected), Value::Object(found)) => {
            expected.len() == found.len()
                && expected.iter().all(|(key, value)| {
                    found.get(key).is_some_and(|found| is_as_documented(value, found))
                })
        }
        _ => expected == found,
    }
}

#[tokio::test]
async fn what_the_api_reference_shows_is_what_is_said() {
    let home = Home::new();
    let _daemon = home.daemon().await;
    let stream = std::os::unix::net::UnixStream::connect(home.path().join("run/daemon.sock"));
    let mut stream = BufReader::new(stream.unwrap());
    stream.get_ref().set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let reference = include_str!("../../../../docs/api.md");
    let (mut sent, mut waiting) = (0, Vec::<Value>::new());
    let next = |stream: &mut BufReader<_>| {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    for line in reference.lines() {
        if let Some(request) = line.strip_prefix("> ") {
            assert!(waiting.is_empty(), "said and not documented: {waiting:?}");
            std::io::Write::write_all(stream.get_mut(), format!("{request}\n").as_bytes()).unwrap();
            sent += 1;
        } else if let Some(expected) = line.strip_prefix("< ") {
            let expected = serde_json::from_str(expected).unwrap();
            // An answer and the news that it leads to may come in either order.
            let found = waiting.iter().position(|found| is_as_documented(&expected, found));
            if found.map(|at| waiting.remove(at)).is_none() {
                let mut found = next(&mut stream);
                if !is_as_documented(&expected, &found) {
                    waiting.push(std::mem::replace(&mut found, next(&mut stream)));
                }
                assert!(is_as_documented(&expected, &found), "{expected}\n{found}\n{waiting:?}");
            }
        }
    }
    assert!(sent > 10 && waiting.is_empty());
}

#[test]
fn every_error_code_is_in_the_api_reference() {
    let reference = include_str!("../../../../docs/api.md");
    let source = include_str!("../../../ksi-protocol/src/error.rs");
    let begin = source.find("pub enum Code {").unwrap();
    let codes = source[begin..].lines().skip(1).take_while(|line| *line != "}");
    let codes = codes.filter_map(|line| line.trim().strip_suffix(','));
    let codes: Vec<_> = codes.filter(|code| code.chars().all(char::is_alphanumeric)).collect();
    assert!(codes.len() > 15, "{codes:?}");
    for code in codes {
        let code: Code = serde_json::from_value(json!(snake(code))).unwrap();
        let row = format!("| `{}` |", serde_json::to_value(code).unwrap().as_str().unwrap());
        assert!(reference.contains(&row), "no row {row}");
    }
}

fn snake(camel: &str) -> String {
    let parts = camel.chars().enumerate().flat_map(|(at, c)| {
        let gap = (c.is_uppercase() && at > 0).then_some('_');
        gap.into_iter().chain([c.to_ascii_lowercase()])
    });
    parts.collect()
}
