//! Who is who: what a child of the daemon may send and see, by whatever way it tries.

use std::path::PathBuf;

use ksi_protocol::{Client, Code};
use serde_json::{Value, json};

use crate::daemon::{Daemon, Home, data, next_of, subscribe};

/// A daemon with the plugin that starts programs, and a client that is the operator.
async fn daemon(home: &Home) -> (Daemon, Client) {
    let mut daemon = home.daemon_with(&[("KSI_LAUNCH", "1")]);
    daemon.wait_for("ready").await;
    let client = daemon.client().await;
    (daemon, client)
}

/// Runs a shell script under the daemon to its end; `ksi` is its `$0`, the home's path its `$1`.
async fn launch(home: &Home, client: &Client, profile: Option<&str>, script: &str) {
    let mut ends = subscribe(client, "launch:ended", None).await;
    let args = json!(["-c", script, env!("CARGO_BIN_EXE_ksi"), home.path()]);
    let order = json!({ "key": "child", "program": "sh", "args": args, "profile": profile });
    client.call::<Value>("launch:program", &order).await.unwrap();
    let end = data(&next_of(&mut ends, "launch:ended").await);
    assert_eq!(end["how"], "exit code 0", "{end}");
}

/// A permission profile of the user's own.
fn profile(home: &Home, name: &str, text: &str) {
    let folder = home.path().join("config/permissions");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
}

fn out(home: &Home) -> PathBuf {
    home.path().join("out")
}

/// What the script has written, line by line as JSON.
fn written(home: &Home) -> Vec<Value> {
    let text = std::fs::read_to_string(out(home)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[tokio::test]
async fn a_restricted_child_that_shows_no_token_may_not_spawn_an_agent() {
    let home = Home::new();
    let (_daemon, client) = daemon(&home).await;
    let script = r#"exec 2>>"$1/out"
        "$0" -o json emit agent:spawn '{"agent_id": "x"}' && exit 9
        "$0" -o json emit state:set key=a value=1 && exit 9
        "$0" -o json emit nobody:home && exit 9
        ( setsid env -i KSI_SOCKET="$KSI_SOCKET" HOME=/ "$0" -o json emit state:get key=a 2>>"$1/out" )
        "$0" -o json emit permission:set_agent agent_id=launch:child level=trusted && exit 9
        "$0" -o json health >/dev/null"#;
    launch(&home, &client, None, script).await;
    let refused = written(&home);
    assert_eq!(refused.len(), 5, "{refused:?}");
    for error in refused.iter().map(|line| &line["error"]) {
        assert_eq!(error["code"], "forbidden", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with("`launch:child` may not send `"), "{message}");
        assert!(message.contains("its profile `restricted`"), "{message}");
    }
    let key = json!({ "key": "a" });
    assert_eq!(client.call::<Value>("state:get", &key).await.unwrap()["found"], false);
}

#[tokio::test]
async fn a_child_may_what_its_profile_allows_and_its_facts_bear_its_name() {
    let home = Home::new();
    profile(&home, "writer", "{summary: writes, send: ['state:*'], see: []}");
    let (_daemon, client) = daemon(&home).await;
    launch(&home, &client, Some("writer"), r#""$0" emit state:set key=a value=1"#).await;
    let asked = json!({ "event_patterns": ["state:changed"] });
    let events: Value = client.call("monitor:get_events", &asked).await.unwrap();
    assert_eq!(events["events"][0]["principal"], "launch:child");
    assert_eq!((&events["events"][0]["data"]["key"], &events["count"]), (&"a".into(), &1.into()));
}

#[tokio::test]
async fn a_child_hears_and_reads_only_what_its_profile_shows() {
    let home = Home::new();
    let see = "{summary: sees, send: ['monitor:*', 'system:*'], see: ['state:deleted']}";
    profile(&home, "watcher", see);
    let (_daemon, client) = daemon(&home).await;
    for (event, key) in [("state:set", "a"), ("state:set", "b"), ("state:delete", "a")] {
        client.call::<Value>(event, &json!({ "key": key, "value": 1 })).await.unwrap();
    }
    let script = r#"exec >"$1/out"
        "$0" -o json emit monitor:get_events '{"reverse": false}' | tr -d '\n'; echo
        "$0" -o json emit monitor:get_events '{"event_patterns": ["state:changed"]}' | tr -d '\n'; echo
        "$0" -o json listen '*' --since 0 >"$1/heard" & listener=$!
        until grep -q . "$1/heard"; do :; done
        kill $listener; cat "$1/heard""#;
    launch(&home, &client, Some("watcher"), script).await;
    let lines = written(&home);
    let [all, changed, heard] = &lines[..] else { panic!("{lines:?}") };
    let names = |events: &Value| -> Vec<String> {
        let events = events["events"].as_array().unwrap().iter();
        events.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(all), ["state:deleted"]);
    assert_eq!(names(changed), [""; 0]);
    assert_eq!((&heard["event"], &heard["seq"]), (&"state:deleted".into(), &3.into()));
    let operator: Value = client.call("monitor:get_events", &json!({})).await.unwrap();
    assert!(operator["count"].as_u64().unwrap() >= 6, "{operator}");
}

#[tokio::test]
async fn a_child_cannot_act_through_another_plugin() {
    let home = Home::new();
    let starter = "{summary: starts, send: ['orchestration:*', 'completion:providers'], see: []}";
    profile(&home, "starter", starter);
    let (model, log) = home.script("log: $LOG\nrules: [{answers: [Never.]}]\n");
    let (_daemon, client) = daemon(&home).await;
    let mut ends = subscribe(&client, "orchestration:*", None).await;
    let script = format!(
        r#""$0" emit orchestration:start '{{"vars": {{"topic": "x"}}, "model": "{model}"}}'"#
    );
    launch(&home, &client, Some("starter"), &script).await;
    let failed = data(&next_of(&mut ends, "orchestration:failed").await);
    let why = failed["error"].as_str().unwrap();
    assert!(why.contains("`launch:child` may not send `completion:"), "{failed}");
    assert!(!log.exists(), "no model was asked");
}

#[tokio::test]
async fn a_child_whose_shim_is_gone_is_nobody() {
    let home = Home::new();
    let (_daemon, client) = daemon(&home).await;
    let mut ends = subscribe(&client, "launch:ended", None).await;
    // Its shim is the parent; what it leaves is ended, but may be quicker.
    let script = r#"shim=$PPID
        until [ -e "$1/go" ]; do :; done
        kill -9 $shim
        while kill -0 $shim 2>/dev/null; do :; done
        "$0" -o json emit state:set key=a value=1 >"$1/out" 2>&1"#;
    let args = json!(["-c", script, env!("CARGO_BIN_EXE_ksi"), home.path()]);
    let order = json!({ "key": "child", "program": "sh", "args": args });
    let mut starts = subscribe(&client, "launch:started", None).await;
    client.call::<Value>("launch:program", &order).await.unwrap();
    next_of(&mut starts, "launch:started").await;
    std::fs::write(home.path().join("go"), "").unwrap();
    assert_eq!(data(&next_of(&mut ends, "launch:ended").await)["how"], "signal 9");
    if let Ok(text) = std::fs::read_to_string(out(&home)) {
        assert!(text.is_empty() || text.contains("unauthenticated"), "{text}");
    }
    let key = json!({ "key": "a" });
    assert_eq!(client.call::<Value>("state:get", &key).await.unwrap()["found"], false);
}

#[tokio::test]
async fn a_token_is_its_childs_alone_and_stands_nowhere_else() {
    let home = Home::new();
    let (_daemon, client) = daemon(&home).await;
    let script = r#"cat /proc/self/fd/$KSI_TOKEN_FD >"$1/token"; env >"$1/out""#;
    launch(&home, &client, None, script).await;
    let token = std::fs::read_to_string(home.path().join("token")).unwrap();
    assert_eq!(token.len(), 64, "{token}");
    assert!(!std::fs::read_to_string(out(&home)).unwrap().contains(&token));
    let context = ksi_protocol::Context { token: Some(token.clone()), ..Default::default() };
    let stolen =
        client.call_with::<Value>("system:health", &json!({}), &context).await.unwrap_err();
    assert_eq!(stolen.code, Code::Unauthenticated);
    let events: Value = client.call("monitor:get_events", &json!({})).await.unwrap();
    assert!(!events.to_string().contains(&token), "a fact holds it");
}

#[tokio::test]
async fn a_childs_profile_is_never_wider_than_its_parents() {
    let home = Home::new();
    let text = "{summary: x, send: ['state:*', 'permission:*'], see: []}";
    profile(&home, "parent", text);
    let (_daemon, client) = daemon(&home).await;
    let script = r#"exec >>"$1/out" 2>&1
        set_agent() { "$0" -o json emit permission:set_agent "$@" | tr -d '\n'; echo; }
        set_agent agent_id=kid level=standard
        set_agent agent_id=kid level=parent
        set_agent agent_id=launch:child level=parent
        "$0" -o json emit permission:validate_spawn level=trusted | tr -d '\n'"#;
    launch(&home, &client, Some("parent"), script).await;
    let lines = std::fs::read_to_string(out(&home)).unwrap();
    let lines: Vec<Value> =
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let [wide, kid, own, spawn] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(wide["error"]["code"], "forbidden", "{wide}");
    assert!(wide["error"]["message"].as_str().unwrap().contains("`launch:child` itself may not"));
    assert_eq!((&kid["principal"], &kid["parent"]), (&"agent:kid".into(), &"launch:child".into()));
    assert_eq!(own["error"]["code"], "forbidden", "{own}");
    assert_eq!(spawn["valid"], false, "{spawn}");

    // The parent loses what the child was given, and so does the child.
    let narrow = json!({ "agent_id": "launch:child", "level": "restricted" });
    client.call::<Value>("permission:set_agent", &narrow).await.unwrap();
    let asked = json!({ "agent_id": "kid", "event": "state:set" });
    let may: Value = client.call("permission:check", &asked).await.unwrap();
    assert_eq!(may["may_send"], false, "{may}");
    assert!(may["reason"].as_str().unwrap().contains("of `launch:child` above it"), "{may}");
}

#[tokio::test]
async fn profiles_are_kept_over_a_restart_and_a_broken_file_is_named() {
    let home = Home::new();
    profile(&home, "broken", "summary: x\nsend: []\nsea: []\n");
    let first = home.daemon().await;
    drop(first.client().await);
    home.ok(&["permission", "set", "ada", "researcher"]);
    first.kill();
    let _second = home.daemon().await;
    let ada = home.json(&["permission", "get", "ada", "-o", "json"]);
    assert_eq!((&ada["principal"], &ada["level"]), (&"agent:ada".into(), &"researcher".into()));
    assert!(
        home.ok(&["permission", "check", "orchestration:start", "--as", "ada"])
            .contains("may send")
    );
    let refused = home.ksi(&["permission", "check", "agent:spawn", "--as", "ada"]);
    assert_eq!(refused.status.code(), Some(1));
    let list = home.ok(&["permission", "list"]);
    for name in ["restricted", "standard", "trusted", "researcher"] {
        assert!(list.contains(name), "{list}");
    }
    let broken = home.ksi(&["permission", "set", "ada", "broken"]);
    let stderr = String::from_utf8(broken.stderr).unwrap();
    assert!(stderr.contains("broken.yaml, line 3") && stderr.contains("sea"), "{stderr}");
    let escape = home.ksi(&["permission", "set", "../../x", "standard"]);
    assert_eq!(escape.status.code(), Some(2), "{}", String::from_utf8_lossy(&escape.stderr));
    let shown = home.ok(&["permission", "show", "restricted"]);
    assert!(shown.contains("system:health"), "{shown}");
}
