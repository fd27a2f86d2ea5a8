//! Plugins outside the process: raw lines over the socket, as a program in any language sends them.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
};

use ksi_protocol::{Client, Code};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::daemon::{Daemon, Home, PATIENCE, data, next_of, subscribe};

/// A connection that sends and reads lines.
struct Wire(BufReader<UnixStream>);

impl Wire {
    fn new(home: &Home) -> Wire {
        let stream = UnixStream::connect(home.path().join("run/daemon.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Wire(BufReader::new(stream))
    }

    fn send(&mut self, line: &Value) {
        writeln!(self.0.get_ref(), "{line}").unwrap();
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or(Value::Null)
    }

    fn ask(&mut self, event: &str, data: &Value) -> Value {
        self.send(&json!({ "event": event, "data": data }));
        self.line()
    }

    fn reply(&mut self, call: &Value, data: &Value) {
        self.send(&json!({ "reply": call["call"], "data": data }));
    }
}

/// A plugin that answers `my:custom:event`.
fn plugin(home: &Home) -> Wire {
    let mut wire = Wire::new(home);
    let params = json!({ "properties": { "n": { "type": "integer" } }, "required": ["n"] });
    let handle = json!({ "event": "my:custom:event", "summary": "Add one", "params": params });
    let register = json!({ "name": "mine", "handles": [handle], "stops": true });
    let reply = wire.ask("plugin:register", &register);
    assert_eq!(reply["data"]["events"], json!(["my:custom:event"]), "{reply}");
    wire
}

async fn start(home: &Home) -> (Daemon, Client) {
    let daemon = home.daemon().await;
    let client = daemon.client().await;
    (daemon, client)
}

async fn ask(client: &Client, event: &str, data: &Value) -> ksi_protocol::Result<Value> {
    client.call(event, data).await
}

/// Asks beside the test.
#[allow(clippy::disallowed_methods, reason = "the task is the test's own, and awaited by it")]
fn asking(
    client: &Client,
    event: &'static str,
    data: Value,
) -> JoinHandle<ksi_protocol::Result<Value>> {
    let client = client.clone();
    tokio::spawn(async move { ask(&client, event, &data).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_a_plugin_in_another_process_is_answered_as_any_other() {
    let home = Home::new();
    let (_daemon, client) = start(&home).await;
    let mut wire = plugin(&home);
    let asked = asking(&client, "my:custom:event", json!({ "n": 1 }));
    let call = wire.line();
    assert_eq!(
        call,
        json!({ "call": "k1", "event": "my:custom:event", "data": { "n": 1 }, "principal": "operator" })
    );
    wire.reply(&call, &json!({ "n": 2 }));
    assert_eq!(asked.await.unwrap().unwrap(), json!({ "n": 2 }));

    let output = std::thread::spawn({
        let mut command = home.command(&["emit", "my:custom:event", "n=7"]);
        move || command.output().unwrap()
    });
    let call = wire.line();
    let error =
        json!({ "code": "not_found", "message": "no tea\nhint: \u{9b}2J", "hint": "boil some" });
    wire.send(&json!({ "reply": call["call"], "error": error }));
    let output = output.join().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), stderr.as_str()),
        (Some(1), "error: no tea\n  hint: 2J\nhint: boil some\n"),
        "its words command no terminal and pass for none of ours"
    );

    let help = ask(&client, "system:help", &json!({ "event": "my:custom:event" })).await.unwrap();
    assert_eq!((&help["module"], &help["summary"]), (&"mine".into(), &"Add one".into()));
    assert_eq!(help["parameters"]["n"]["type"], "integer");
    assert!(home.ok(&["discover", "my"]).contains("my:custom:event"));
    let listed = ask(&client, "plugin:list", &json!({})).await.unwrap();
    assert_eq!((&listed["count"], &listed["plugins"][0]["name"]), (&1.into(), &"mine".into()));
    let typo = ask(&client, "my:custom:evnt", &json!({})).await.unwrap_err();
    assert_eq!(typo.code, Code::Unhandled);
    assert_eq!(typo.hint.as_deref(), Some("did you mean `my:custom:event`?"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_vanishes_with_its_connection_and_its_calls_are_unavailable() {
    let home = Home::new();
    let (_daemon, client) = start(&home).await;
    let mut gone = subscribe(&client, "plugin:gone", None).await;
    let mut wire = plugin(&home);
    let asked = asking(&client, "my:custom:event", json!({}));
    assert_eq!(wire.line()["call"], "k1");
    drop(wire);
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.starts_with("plugin `mine`, `my:custom:event`: "), "{error}");
    assert_eq!(data(&next_of(&mut gone, "plugin:gone").await), json!({ "name": "mine" }));
    let error = ask(&client, "my:custom:event", &json!({})).await.unwrap_err();
    assert_eq!(error.code, Code::Unhandled);
    // Its name and its events are free again; half a connection is enough to go.
    let again = plugin(&home);
    again.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    next_of(&mut gone, "plugin:gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_answer_in_time_is_late_unless_it_asks_for_more() {
    let home = Home::new();
    let (_daemon, client) = start(&home).await;
    let mut wire = Wire::new(&home);
    let handles = json!([{ "event": "slow:one" }]);
    let register = json!({ "name": "slow", "handles": handles, "timeout_ms": 200 });
    wire.ask("plugin:register", &register);
    let asked = || asking(&client, "slow:one", json!({}));
    let late = asked();
    let call = wire.line();
    let error = late.await.unwrap().unwrap_err();
    assert_eq!((error.code, error.retryable), (Code::Timeout, true));
    wire.reply(&call, &json!({}));
    let refused = wire.line();
    assert_eq!(refused["error"]["code"], "not_found", "{refused}");

    let patient = asked();
    let call = wire.line();
    wire.send(&json!({ "reply": call["call"], "more_ms": 60_000 }));
    // Another call times out meanwhile, so more time than one has passed.
    let other = asked().await.unwrap().unwrap_err();
    assert_eq!(other.code, Code::Timeout);
    wire.line();
    wire.reply(&call, &json!({ "done": true }));
    assert_eq!(patient.await.unwrap().unwrap(), json!({ "done": true }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_or_wrong_is_refused_with_its_place() {
    let home = Home::new();
    let (_daemon, _client) = start(&home).await;
    let _first = plugin(&home);
    let mut wire = Wire::new(&home);
    let many: Vec<_> = (0..300).map(|n| json!({ "event": format!("many:e{n}") })).collect();
    let looped = json!({ "properties": { "a": { "$ref": "#/properties/a" } } });
    let own = |event: &str| json!({ "name": "x", "handles": [{ "event": event }] });
    let cases = [
        (json!({ "name": "mine" }), "conflict", "name"),
        (json!({ "name": "state" }), "conflict", "name"),
        (json!({ "name": "../x" }), "bad_params", "name"),
        (json!({ "name": "x", "handles": many }), "bad_params", "handles"),
        (json!({ "name": "x", "timeout_ms": 0 }), "bad_params", "timeout_ms"),
        (json!({ "name": "x", "watches": ["a:*:b"] }), "bad_params", "watches[0]"),
        (own("my:custom:event"), "conflict", "handles[0].event"),
        (own("state:steal"), "conflict", "handles[0].event"),
        (own("nothing"), "bad_params", "handles[0].event"),
    ];
    for (register, code, path) in cases {
        let error = wire.ask("plugin:register", &register)["error"].clone();
        assert_eq!((&error["code"], &error["path"]), (&code.into(), &path.into()), "{error}");
    }
    let both = wire.ask("plugin:register", &own("my:custom:event"))["error"]["message"].clone();
    let both = both.as_str().unwrap();
    assert!(both.contains("`mine`") && both.contains("`x`"), "{both}");
    // A schema that goes in circles does no harm.
    let handles = json!([{ "event": "circle:one", "params": looped }]);
    wire.ask("plugin:register", &json!({ "name": "circle", "handles": handles }));
    let help = wire.ask("system:help", &json!({ "event": "circle:one" }));
    assert_eq!(help["data"]["parameters"]["a"]["type"], "any", "{help}");
    for wrong in [json!({ "reply": 7 }), json!({ "reply": "k1", "data": 1, "more_ms": 1 })] {
        wire.send(&wrong);
        assert_eq!(wire.line()["error"]["code"], "bad_params");
    }
    assert_eq!(
        wire.ask("plugin:unregister", &json!({ "name": "mine" }))["error"]["code"],
        "not_found"
    );
    assert_eq!(
        wire.ask("plugin:unregister", &json!({ "name": "circle" }))["data"]["name"],
        "circle"
    );
    assert_eq!(wire.ask("circle:one", &json!({}))["error"]["code"], "unhandled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_hears_what_it_watches_and_acts_for_its_caller_while_it_answers() {
    let home = Home::new();
    let (_daemon, client) = start(&home).await;
    let mut wire = Wire::new(&home);
    let handles = json!([{ "event": "writer:write" }]);
    let register = json!({ "name": "writer", "handles": handles, "watches": ["state:changed"] });
    assert_eq!(wire.ask("plugin:register", &register)["data"]["subscription"], "s1");
    let asked = asking(&client, "writer:write", json!({}));
    let call = wire.line();
    let set = |call: &Value| {
        let data = json!({ "key": "a", "value": 1 });
        json!({ "event": "state:set", "data": data, "correlation_id": 1, "context": { "call": call } })
    };
    wire.send(&set(&call["call"]));
    let two = [wire.line(), wire.line()];
    let pushed = two.iter().find(|line| line["event"] == "state:changed").expect("it watches");
    assert_eq!(pushed["subscription"], "s1");
    wire.reply(&call, &json!({}));
    asked.await.unwrap().unwrap();
    wire.send(&set(&call["call"]));
    let error = wire.line()["error"].clone();
    assert_eq!((&error["code"], &error["path"]), (&"not_found".into(), &"context.call".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_finishes_before_the_daemon_ends_and_may_take_its_time() {
    let home = Home::new();
    let (mut daemon, client) = start(&home).await;
    let mut wire = plugin(&home);
    let mut hung = Wire::new(&home);
    hung.ask("plugin:register", &json!({ "name": "hung", "stops": true }));
    ask(&client, "system:shutdown", &json!({})).await.unwrap();
    let told = [wire.line(), wire.line()];
    let stop = told.iter().find(|line| line["event"] == "plugin:stop").expect("it is asked");
    assert!(told.iter().any(|line| line["event"] == "system:shutdown_notification"), "{told:?}");
    assert_eq!((&stop["data"]["grace_ms"], &stop["principal"]), (&5000.into(), &"system".into()));
    wire.send(&json!({ "reply": stop["call"], "more_ms": 20_000 }));
    daemon.wait_for("plugin=\"hung\"").await;
    // The other had its time and did not use it; this one asked for more.
    wire.reply(stop, &json!({}));
    let line = daemon.wait_for("has stopped").await;
    assert!(line.contains("plugin=\"mine\""), "{line}");
    assert!(daemon.wait().success());
    assert_eq!(wire.line(), Value::Null, "the connection has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once_whoever_has_not_finished() {
    let home = Home::new();
    let (mut daemon, _client) = start(&home).await;
    let mut wire = plugin(&home);
    let pid = rustix::process::Pid::from_raw(daemon.pid().cast_signed()).unwrap();
    let terminate = || rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    terminate();
    let stop = [wire.line(), wire.line()];
    assert!(stop.iter().any(|line| line["event"] == "plugin:stop"), "{stop:?}");
    terminate();
    daemon.wait_for("ending at once").await;
    assert_eq!(daemon.wait().code(), Some(1));
    // What was answered is kept all the same.
    let _again = home.daemon().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_is_allowed_may_register_and_answer() {
    let home = Home::new();
    let mut daemon = home.daemon_with(&[("KSI_LAUNCH", "1")]);
    daemon.wait_for("ready").await;
    let client = daemon.client().await;
    let mut ends = subscribe(&client, "launch:ended", None).await;
    let script = r#""$0" -o json emit plugin:register name=x 2>"$1/out""#;
    let args = json!(["-c", script, env!("CARGO_BIN_EXE_ksi"), home.path()]);
    for profile in ["restricted", "standard", "trusted"] {
        let order = json!({ "key": profile, "program": "sh", "args": args, "profile": profile });
        ask(&client, "launch:program", &order).await.unwrap();
        next_of(&mut ends, "launch:ended").await;
        let said = std::fs::read_to_string(home.path().join("out")).unwrap();
        assert!(said.contains("\"forbidden\"") && said.contains("plugin:register"), "{said}");
    }
}
