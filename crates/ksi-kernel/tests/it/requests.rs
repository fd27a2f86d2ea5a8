//! Who answers, and who may ask.

use std::sync::{Arc, Mutex};

use ksi_kernel::{
    Act, Answer, AnyPlugin, Caller, Clock, Code, Ctx, Error, Kernel, Plugin, Raw, Result, Setup,
    StartError,
};
use ksi_state::testing::memory::MemoryJournal;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json, value::to_raw_value};

use crate::bench::{Bench, heard, within};

/// Nothing to say
#[derive(Deserialize, JsonSchema)]
struct Nothing {}

async fn nothing(_: Ctx<()>, _: Nothing) -> Result<()> {
    std::future::ready(Ok(())).await
}

fn plugin(name: &'static str, event: &'static str) -> AnyPlugin {
    Plugin::<()>::new(name).on(event, nothing).into()
}

fn start_error(plugins: Vec<AnyPlugin>) -> StartError {
    let journal = Arc::new(MemoryJournal::default());
    let clock = Clock::system();
    let started = Kernel::start(Setup { plugins, journal, clock, snapshot_every: 0 });
    started.err().expect("it must not start")
}

#[tokio::test]
async fn a_second_owner_of_an_event_names_both() {
    let error = start_error(vec![plugin("one", "a:b"), plugin("two", "a:b")]).to_string();
    for part in ["`a:b`", "`one`", "`two`"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn two_plugins_of_one_name_do_not_start() {
    let error = start_error(vec![plugin("one", "a:b"), plugin("one", "a:c")]);
    assert!(matches!(error, StartError::Twice("one")), "{error}");
}

#[tokio::test]
async fn a_pattern_that_cannot_match_names_its_plugin() {
    let silent = |_: Ctx<()>, _| std::future::ready(());
    let watcher = Plugin::<()>::new("watcher").watch("a*b", silent).into();
    let error = start_error(vec![watcher]).to_string();
    assert!(error.contains("`watcher`") && error.contains("a*b"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_handler_answers_so_and_the_daemon_lives() {
    let bench = Bench::new();
    let error = bench.call("job:explode", json!({})).await.unwrap_err();
    assert_eq!(error.code, Code::Panicked);
    assert!(error.message.contains("job:explode") && error.message.contains("no way"), "{error}");
    assert_eq!(bench.call("job:list", json!({})).await.unwrap(), json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_watcher_hears_the_next_event() {
    let mut bench = Bench::new();
    for text in ["first", "panic", "second"] {
        bench.note("x", text).await;
    }
    assert_eq!(within(bench.watched.recv()).await.as_deref(), Some("first"));
    assert_eq!(within(bench.watched.recv()).await.as_deref(), Some("second"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_and_signals_of_a_plugin_cannot_be_sent_from_outside() {
    let bench = Bench::new();
    for event in ["job:added", "job:progress", "effect:failed"] {
        let error = bench.call(event, json!({})).await.unwrap_err();
        assert_eq!(error.code, Code::Forbidden, "{event}");
        assert!(error.message.contains(event), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_nobody_answers_is_unhandled_and_a_typing_error_is_named() {
    let bench = Bench::new();
    let hint = async |event: &str| {
        let error = bench.call(event, json!({})).await.unwrap_err();
        assert_eq!(error.code, Code::Unhandled, "{event}");
        error.hint.expect("a hint")
    };
    assert_eq!(hint("job:ad").await, "did you mean `job:add`?");
    assert_eq!(hint("jbo:list").await, "did you mean `job:list`?");
    assert!(hint("nobody:home").await.contains("ksi discover"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_parameters_name_the_path() {
    let bench = Bench::new();
    let path = async |data: Value| {
        let error = bench.call("job:add", data).await.unwrap_err();
        assert_eq!(error.code, Code::BadParams, "{error}");
        (error.path.expect("a path"), error.message)
    };
    let (at, why) = path(json!({ "id": 5 })).await;
    assert_eq!(at, "id");
    assert!(why.contains("expected a string"), "{why}");
    assert_eq!(path(json!({ "id": "x", "tags": ["a", 1] })).await.0, "tags[1]");
    let (at, why) = path(json!({})).await;
    assert_eq!(at, "id");
    assert!(why.contains("missing field `id`") && !why.contains("line"), "{why}");
}

/// A plugin that only guards.
fn guarded(
    guard: impl Fn(&Caller, Act, &str) -> Result<()> + Send + Sync + 'static,
) -> Vec<AnyPlugin> {
    let guard = move |(): &(), caller: &Caller, act, event: &str| guard(caller, act, event);
    vec![Plugin::<()>::new("guard").guard(guard).into()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guards_are_asked_before_dispatch_and_for_every_nested_call_as_the_caller() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let guard = guarded(move |caller, act, event| {
        log.lock().unwrap().push(format!("{} {act:?} {event}", caller.origin.principal));
        match event {
            "job:add" | "nobody:home" => Err(Error::new(Code::Forbidden, "not you")),
            _ => Ok(()),
        }
    });
    let bench = Bench::over(MemoryJournal::default(), guard);
    let call = |event| bench.call_as(Caller::new("agent:a"), event, json!({}));
    assert_eq!(call("job:add").await.unwrap_err().code, Code::Forbidden, "before bad parameters");
    assert_eq!(call("nobody:home").await.unwrap_err().code, Code::Forbidden, "nobody owns it");
    call("job:nested").await.unwrap();
    bench.call("job:list", json!({})).await.unwrap();
    let agent = Caller::new("agent:a");
    assert!(bench.kernel.check(&agent, Act::See, "job:add").is_err());
    let asked = asked.lock().unwrap();
    let sent = ["job:add", "nobody:home", "job:nested", "job:list"];
    let mut expected = sent.map(|event| format!("agent:a Send {event}")).to_vec();
    expected.push("agent:a See job:add".to_owned());
    assert_eq!(*asked, expected, "nothing is asked about the operator");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_guard_answers_so_and_the_daemon_lives() {
    let guard = guarded(|_, _, event| {
        assert_ne!(event, "job:peek", "it knows no such thing");
        Ok(())
    });
    let bench = Bench::over(MemoryJournal::default(), guard);
    let call = |event| bench.call_as(Caller::new("agent:a"), event, json!({}));
    let error = call("job:peek").await.unwrap_err();
    assert_eq!((error.code, error.retryable), (Code::Panicked, false));
    assert!(error.message.contains("a guard of `job:peek` panicked"), "{error}");
    call("job:list").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_owns_may_be_answered_otherwise() {
    let otherwise = |cx: Ctx<()>, event: &str, data: &Raw| -> Option<Answer> {
        let answer = format!("{event} of {} with {data}", cx.caller().origin.principal);
        (event == "my:custom:event")
            .then(|| Box::pin(async move { Ok(to_raw_value(&answer).expect("JSON")) }) as Answer)
    };
    let other = Plugin::<()>::new("other").otherwise(otherwise).into();
    let bench = Bench::over(MemoryJournal::default(), vec![other]);
    let answer = bench.call("my:custom:event", json!({ "n": 1 })).await.unwrap();
    assert_eq!(answer, "my:custom:event of operator with {\"n\":1}");
    assert_eq!(bench.call("my:other", json!({})).await.unwrap_err().code, Code::Unhandled);
    bench.call("job:list", json!({})).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_carry_the_caller_that_caused_them() {
    let bench = Bench::new();
    let mut listener = bench.listen(&["job:added"]);
    let add = json!({ "id": "hold-1" });
    bench.call_as(Caller::new("agent:a"), "job:add", add).await.unwrap();
    let event = heard(&mut listener).await;
    assert_eq!(&*event.record().unwrap().origin.principal, "agent:a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_reaches_only_those_who_listen() {
    let bench = Bench::new();
    let everything = bench.listen(&["*"]);
    let unheard = bench.call("game:move", json!({})).await.unwrap_err();
    assert_eq!(unheard.code, Code::Unhandled, "who hears all does not answer for it");
    let mut game = bench.listen(&["game:*"]);
    let reply = bench.call("game:move", json!({ "to": "e4" })).await.unwrap();
    assert_eq!(reply, json!({ "delivered": 1 }));
    let event = heard(&mut game).await;
    assert_eq!((event.name(), event.seq()), ("game:move", None));
    assert_eq!(event.data().get(), r#"{"to":"e4"}"#);
    let mut everything = everything;
    assert_eq!(heard(&mut everything).await.name(), "game:move");
    let mut jobs = bench.listen(&["job:progress"]);
    bench.call("job:report", json!({ "text": "half" })).await.unwrap();
    assert_eq!(heard(&mut jobs).await.name(), "job:progress");
    let typo = bench.call("game:", json!({})).await.unwrap_err();
    assert_eq!(typo.code, Code::BadParams, "{typo}");
}

/// So many bytes a handler holds while it waits.
const WEIGHT: usize = 4096;

async fn heavy(_: Ctx<()>, _: Nothing) -> Result<Vec<u8>> {
    let held = [7_u8; WEIGHT];
    tokio::task::yield_now().await;
    Ok(held.to_vec())
}

#[tokio::test]
async fn a_call_holds_its_handler_once() {
    let heavy = Plugin::<()>::new("heavy").on("heavy:hold", heavy).into();
    let bench = Bench::over(MemoryJournal::default(), vec![heavy]);
    let data = serde_json::value::to_raw_value(&json!({})).unwrap();
    let call = bench.kernel.call(Caller::operator(), "heavy:hold", data);
    let size = size_of_val(&*call);
    assert!((WEIGHT..2 * WEIGHT).contains(&size), "it takes {size} bytes");
}
