//! The end comes in phases, each with a bound.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use ksi_kernel::{AnyPlugin, Caller, Code, Journal, Plugin, Query};
use ksi_state::testing::memory::MemoryJournal;
use serde_json::{json, value::to_raw_value};

use crate::bench::{Bench, Stage, heard, within};

const LONG: Duration = Duration::from_secs(60);

fn names(journal: &MemoryJournal) -> Vec<String> {
    let records = journal.read(&Query::default()).unwrap();
    records.into_iter().map(|record| record.name.into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_requests_are_refused_while_what_runs_finishes_and_calls_what_it_needs() {
    let mut bench = Bench::new();
    bench.add("wait-1").await.unwrap();
    bench.next_start().await;
    let (kernel, data) = (bench.kernel.clone(), to_raw_value(&json!({})).unwrap());
    let begun = bench
        .kernel
        .tasks()
        .spawn("request", async move { kernel.call(Caller::operator(), "job:wait", data).await });
    assert_eq!(bench.next_start().await, "handler");
    let kernel = bench.kernel.clone();
    let mut ending = Box::pin(kernel.shutdown(LONG));
    assert!(ending.as_mut().now_or_never().is_none(), "an effect runs");
    within(bench.kernel.ending().closing()).await;
    let refused = bench.call("job:list", json!({})).await.unwrap_err();
    assert_eq!((refused.code, refused.retryable), (Code::Shutdown, true));
    bench.stage.door.notify_one();
    let reply = within(begun).await.unwrap().expect("its own call is not refused");
    assert_eq!(reply.get(), r#"["wait-1"]"#);
    bench.stage.gate.notify_one();
    within(ending).await;
    assert_eq!(names(&bench.journal), ["job:added", "job:done"]);
    assert_eq!(bench.kernel.tasks().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_effect_that_outlives_the_grace_is_stopped_and_runs_after_the_next_start() {
    let mut bench = Bench::new();
    bench.add("hold-1").await.unwrap();
    bench.next_start().await;
    within(bench.kernel.shutdown(Duration::ZERO)).await;
    assert_eq!(names(&bench.journal), ["job:added"], "to be stopped is no failure");
    assert_eq!(bench.kernel.tasks().count(), 0);
    let mut again = Bench::over(bench.journal.clone(), Vec::new());
    assert_eq!(again.next_start().await, "hold-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_full_disk_nothing_that_runs_is_waited_for() {
    let mut bench = Bench::new();
    for id in ["hold-1", "hold-2"] {
        bench.add(id).await.unwrap();
        bench.next_start().await;
    }
    bench.journal.fill();
    bench.add("hold-3").await.unwrap_err();
    within(bench.kernel.shutdown(Duration::from_secs(3_600))).await;
    assert_eq!(bench.kernel.tasks().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_disk_fills_during_the_grace_nothing_is_waited_for_any_more() {
    let mut bench = Bench::new();
    for id in ["hold-1", "wait-2"] {
        bench.add(id).await.unwrap();
        bench.next_start().await;
    }
    bench.journal.fill();
    let kernel = bench.kernel.clone();
    let mut ending = Box::pin(kernel.shutdown(Duration::from_secs(3_600)));
    assert!(ending.as_mut().now_or_never().is_none(), "effects run");
    bench.stage.gate.notify_one();
    within(ending).await;
}

fn stops(name: &'static str, stage: &Arc<Stage>, panics: bool) -> AnyPlugin {
    let stage = stage.clone();
    let stop = move |_| {
        stage.log(format!("{name} stops"));
        assert!(!panics, "it does not want to");
        std::future::ready(())
    };
    Plugin::<()>::new(name).on_stop(stop).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_stop_in_reverse_order_though_one_panics() {
    let log = Bench::new().stage;
    let more = vec![stops("second", &log, false), stops("third", &log, true)];
    let bench = Bench::over(MemoryJournal::default(), more);
    within(bench.kernel.shutdown(LONG)).await;
    assert_eq!(*log.log.lock().unwrap(), ["third stops", "second stops"]);
    assert_eq!(*bench.stage.log.lock().unwrap(), ["jobs stop"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_end_when_they_have_read_what_was_there() {
    let bench = Bench::new();
    let mut listener = bench.listen(&["note:*"]);
    bench.note("x", "last words").await;
    within(bench.kernel.shutdown(LONG)).await;
    assert_eq!(heard(&mut listener).await.name(), "note:added");
    assert!(within(listener.next()).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_end_is_ended() {
    let bench = Bench::new();
    let stubborn = bench.kernel.tasks().spawn("stubborn", std::future::pending::<()>());
    bench.kernel.shutdown(LONG).await;
    assert!(stubborn.await.unwrap_err().is_cancelled());
    assert_eq!(bench.kernel.tasks().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_twice_is_shutting_down_once() {
    let bench = Bench::new();
    within(bench.kernel.shutdown(LONG)).await;
    within(bench.kernel.shutdown(LONG)).await;
    assert_eq!(bench.call("job:list", json!({})).await.unwrap_err().code, Code::Shutdown);
}
