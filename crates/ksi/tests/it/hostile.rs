//! What anybody can send to the real daemon: each has its answer, and the daemon is well afterwards.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::daemon::{Daemon, Home, PATIENCE};

/// One raw connection.
struct Wire(BufReader<UnixStream>);

impl Wire {
    fn to(socket: &Path) -> Wire {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Wire(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no answer, but `{line}`"))
    }

    fn ask(&mut self, line: &str) -> Value {
        self.send(format!("{line}\n").as_bytes());
        self.next()
    }
}

/// A daemon, and somebody who looks at it.
struct Watched {
    socket: PathBuf,
    daemon: Daemon,
    watch: Wire,
}

impl Watched {
    async fn of(home: &Home) -> Watched {
        let (daemon, socket) = (home.daemon().await, home.path().join("run/daemon.sock"));
        let watch = Wire::to(&socket);
        Watched { socket, daemon, watch }
    }

    /// It answers, it is healthy, and it is the same process as ever.
    fn is_well(&mut self, after: &str) {
        let health = self.watch.ask(r#"{"event":"system:health"}"#);
        let (status, pid) = (&health["data"]["status"], &health["data"]["pid"]);
        assert_eq!((status, pid), (&json!("healthy"), &json!(self.daemon.pid())), "after {after}");
        let set = r#"{"event":"state:set","data":{"key":"well","value":1}}"#;
        assert_eq!(self.watch.ask(set)["data"]["status"], "set", "after {after}");
    }

    /// How much memory the daemon has of its own, in bytes.
    fn memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

fn line(text: &str) -> Vec<u8> {
    format!("{text}\n").into_bytes()
}

fn set(value: &str) -> Vec<u8> {
    line(&format!(r#"{{"event":"state:set","data":{{"key":"k","value":{value}}}}}"#))
}

/// What is sent; the code of its answer; what its message, path or hint says.
fn table() -> Vec<(Vec<u8>, &'static str, &'static str)> {
    let event = |name: &str| line(&format!(r#"{{"event":"{name}","data":{{}}}}"#));
    let subscribe = |data: &str| line(&format!(r#"{{"event":"monitor:subscribe","data":{data}}}"#));
    let long = |bytes: usize| set(&format!("\"{}\"", "x".repeat(bytes)));
    vec![
        (line("{"), "bad_json", "line 1 column 1"),
        (line("hello"), "bad_json", "must be a JSON object"),
        (line(r#"{"event":"system:health"} {"#), "bad_json", "column 27"),
        (line(r#"{"event":"system:health","event":"a:b"}"#), "bad_json", "event"),
        (
            b"{\"event\":\"system:health\",\"x\":\"\xff\"}\n".to_vec(),
            "bad_json",
            "not UTF-8 at line 1 column 31",
        ),
        (b"\xc3\x28\n".to_vec(), "bad_json", "not UTF-8 at line 1 column 1"),
        (line("[]"), "bad_json", "object"),
        (line(r#"[{"event":"system:health"}]"#), "bad_json", "object"),
        (line("42"), "bad_json", "object"),
        (line("null"), "bad_json", "object"),
        (line("\"system:health\""), "bad_json", "object"),
        (line(&"[".repeat(100_000)), "bad_json", "not an array"),
        (set(&"[".repeat(100_000)), "bad_json", "column"),
        (
            set(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))),
            "bad_json",
            "nests too deeply",
        ),
        (
            line(&format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000))),
            "bad_json",
            "nests too deeply",
        ),
        (long(10 << 20), "too_large", "8388608"),
        (set("1e999"), "bad_params", "the number 1e999 is larger than any double"),
        (set(&format!("[{}]", "9".repeat(1_000))), "bad_params", "larger than any double"),
        (line(r#"{"event":"my:news","data":{"n":-1e400}}"#), "bad_params", "-1e400"),
        (
            line(r#"{"event":"state:set","data":{"key":"k","key":"l","value":1}}"#),
            "bad_params",
            "duplicate field `key`",
        ),
        (line("{}"), "bad_params", "`event` is missing"),
        (line(r#"{"event":7}"#), "bad_params", "a string"),
        (line(r#"{"event":"system:health","data":[]}"#), "bad_params", "`data` must be an object"),
        (line(r#"{"event":"system:health","data":7}"#), "bad_params", "`data` must be an object"),
        (
            line(r#"{"event":"system:health","context":7}"#),
            "bad_params",
            "`context` must be an object",
        ),
        (
            line(r#"{"event":"system:health","context":{"timeout_ms":-1}}"#),
            "bad_params",
            "a whole number of milliseconds",
        ),
        (line(r#"{"event":"state:set","data":{"value":1}}"#), "bad_params", "missing field `key`"),
        (
            line(r#"{"event":"state:set","data":{"kye":"k","value":1}}"#),
            "bad_params",
            "did you mean `key`?",
        ),
        (
            line(r#"{"event":"state:set","data":{"key":7,"value":1}}"#),
            "bad_params",
            "expected a string",
        ),
        (subscribe(r#"{"event_patterns":["a:b",7]}"#), "bad_params", "event_patterns[1]"),
        (subscribe(r#"{"event_patterns":["a*b"]}"#), "bad_params", "event_patterns[0]"),
        (subscribe(r#"{"event_patterns":["*"],"since":-1}"#), "bad_params", "since"),
        (subscribe(r#"{"event_patterns":["*"],"since":1e30}"#), "bad_params", "since"),
        (subscribe(r#"{"event_patterns":[]}"#), "bad_params", "at least one pattern"),
        (event("system:helth"), "unhandled", "did you mean `system:health`?"),
        (event("nobody:home"), "unhandled", "no plugin answers `nobody:home`"),
        (event(""), "bad_params", "event"),
        (event("no noun"), "bad_params", "event"),
        (event("a:*"), "bad_params", "event"),
        (event("system:startup"), "forbidden", "system:startup"),
        (event("system:shutdown_notification"), "forbidden", "system:shutdown_notification"),
        (event("completion:result"), "forbidden", "completion:result"),
        (event("completion:queued"), "forbidden", "completion:queued"),
        (event("state:changed"), "forbidden", "state:changed"),
        (event("effect:failed"), "forbidden", "effect:failed"),
        (event("journal:full"), "forbidden", "journal:full"),
    ]
}

#[tokio::test]
async fn every_hostile_line_has_its_error_and_the_daemon_is_well_afterwards() {
    let home = Home::new();
    let mut watched = Watched::of(&home).await;
    let mut wire = Wire::to(&watched.socket);
    let mut wrong = Vec::new();
    for (bytes, code, said) in table() {
        let start: String = String::from_utf8_lossy(&bytes).chars().take(80).collect();
        wire.send(&bytes);
        let answer = wire.next();
        let error = &answer["error"];
        let all = format!("{} {} {}", error["message"], error["path"], error["hint"]);
        if error["code"] != code || !all.replace("\\\"", "\"").contains(said) {
            wrong.push(format!("{start}: {answer}"));
        }
        watched.is_well(&start);
        // The same connection lives on.
        let echoed =
            wire.ask(r#"{"event":"state:get","data":{"key":"well"},"correlation_id":[1]}"#);
        assert_eq!((&echoed["data"]["value"], &echoed["correlation_id"]), (&json!(1), &json!([1])));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn numbers_keep_their_digits_and_unknown_fields_are_ignored() {
    let home = Home::new();
    let watched = Watched::of(&home).await;
    let mut wire = Wire::to(&watched.socket);
    let huge = "[123456789012345678901234567890, 1e308, -0.10, 1E-999, \"1e999\"]";
    wire.send(&set(huge));
    assert_eq!(wire.next()["data"]["status"], "set");
    wire.send(&line(r#"{"event":"state:get","data":{"key":"k"}}"#));
    let mut answer = String::new();
    wire.0.read_line(&mut answer).unwrap();
    assert!(answer.contains(huge), "{answer}");
    let unknown =
        r#"{"event":"state:get","data":{"key":"k","later":[1]},"priority":9,"context":{"x":1}}"#;
    assert_eq!(wire.ask(unknown)["data"]["found"], true);
}

#[tokio::test]
async fn half_lines_and_half_closed_connections_harm_nobody() {
    let home = Home::new();
    let mut watched = Watched::of(&home).await;
    for cut in [1, 10, 30] {
        let mut wire = Wire::to(&watched.socket);
        wire.send(&set("1")[..cut]);
        drop(wire);
        watched.is_well("half a line and a close");
    }
    let mut wire = Wire::to(&watched.socket);
    wire.send(br#"{"event":"state:get","data":{"key":"well"},"correlation_id":1}"#);
    wire.0.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(wire.next()["data"]["value"], 1, "a last line needs no newline");
    let mut rest = Vec::new();
    assert_eq!(wire.0.read_to_end(&mut rest).unwrap(), 0);

    let mut wire = Wire::to(&watched.socket);
    wire.send(br#"{"event":"state:get","data":{"#);
    wire.0.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(wire.next()["error"]["code"], "bad_json");
    watched.is_well("a half-close in half a line");
}

#[tokio::test]
async fn a_thousand_connections_and_the_churn_of_more_are_served() {
    let home = Home::new();
    let mut watched = Watched::of(&home).await;
    let health = r#"{"event":"system:health","correlation_id":7}"#;
    let mut wires: Vec<_> = (0..1_000).map(|_| Wire::to(&watched.socket)).collect();
    watched.is_well("a thousand connections");
    for wire in &mut wires {
        wire.send(&line(health));
    }
    for wire in &mut wires {
        assert_eq!(wire.next()["correlation_id"], 7);
    }
    drop(wires);
    for round in 0..3_000 {
        let mut wire = Wire::to(&watched.socket);
        match round % 4 {
            0 => {}
            1 => wire.send(b"{"),
            2 => wire.send(&line(health)),
            _ => assert_eq!(wire.ask(health)["correlation_id"], 7),
        }
    }
    watched.is_well("churn");
    // Those that have gone are forgotten, and their descriptors with them.
    let open = || std::fs::read_dir(format!("/proc/{}/fd", watched.daemon.pid())).unwrap().count();
    while open() > 100 {}
}

#[tokio::test]
async fn a_thousand_readers_that_never_read_cost_a_bounded_amount_of_memory() {
    let home = Home::new();
    let mut watched = Watched::of(&home).await;
    let subscribe = r#"{"event":"monitor:subscribe","data":{"event_patterns":["state:*","my:*"]}}"#;
    let mut wires: Vec<_> = (0..1_000).map(|_| Wire::to(&watched.socket)).collect();
    for wire in &mut wires {
        assert_eq!(wire.ask(subscribe)["data"]["subscription"], "s1");
    }
    let before = watched.memory();
    let text = "x".repeat(10_000);
    for round in 0..2_000 {
        // Facts and signals by turns: 40 MB for each who would read them.
        let fact =
            format!(r#"{{"event":"state:set","data":{{"key":"k","value":"{round}{text}"}}}}"#);
        let signal = format!(r#"{{"event":"my:news","data":{{"text":"{text}"}}}}"#);
        assert_eq!(watched.watch.ask(&fact)["data"]["status"], "set");
        assert_eq!(watched.watch.ask(&signal)["data"]["delivered"], 1_000);
    }
    let grown = watched.memory().saturating_sub(before) >> 20;
    // Without a bound it is more than a gigabyte.
    assert!(grown < 160, "{grown} MB");
    watched.is_well("a thousand readers that do not read");

    // One that reads after all misses no fact.
    let mut wire = wires.pop().unwrap();
    let mut facts = 0;
    while facts < 2_000 {
        let event = wire.next();
        if event["event"] == "state:changed" && event["data"]["key"] == "k" {
            facts += 1;
            assert_eq!(event["seq"], facts);
        }
    }
    drop(wires);
    watched.is_well("their end");
}
