//! Nothing is heard of what is not on disk.

use futures_util::FutureExt;
use ksi_kernel::{Caller, Code, Journal, Seq};
use ksi_state::{AppendError, JournalError};
use serde_json::{json, value::to_raw_value};

use crate::bench::{Bench, heard, within};

fn full() -> AppendError {
    AppendError::Full("the disk is full".into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_writer_lets_no_reply_no_fact_and_no_effect_out() {
    let mut bench = Bench::new();
    let mut listener = bench.listen(&["*"]);
    bench.journal.freeze();
    let data = to_raw_value(&json!({ "id": "hold-1" })).unwrap();
    let request = bench.kernel.call(Caller::operator(), "job:add", data);
    let mut request = Box::pin(request);
    assert!(request.as_mut().now_or_never().is_none());
    bench.wait_frozen();
    let read = bench.kernel.call(Caller::operator(), "job:list", to_raw_value(&json!({})).unwrap());
    let mut read = Box::pin(read);
    assert!(read.as_mut().now_or_never().is_none(), "a read waits for what it saw");
    assert!(request.as_mut().now_or_never().is_none(), "a reply before its fact was durable");
    assert!(listener.next().now_or_never().is_none(), "a fact before it was durable");
    assert_eq!(bench.kernel.effects().running(), 0, "an effect before its fact was durable");
    assert!(bench.started.try_recv().is_err());
    assert_eq!(bench.call("job:peek", json!({})).await.unwrap(), 1, "a peek does not wait");
    assert_eq!(bench.kernel.position(), (Seq(1), Seq(0)));
    bench.journal.thaw();
    assert_eq!(within(request).await.unwrap().get(), "1");
    assert_eq!(within(read).await.unwrap().get(), r#"["hold-1"]"#);
    assert_eq!(heard(&mut listener).await.name(), "job:added");
    assert_eq!(bench.next_start().await, "hold-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_waits_for_what_it_was_based_on() {
    let bench = Bench::new();
    bench.journal.freeze();
    let add = || {
        let data = to_raw_value(&json!({ "id": "hold-1" })).unwrap();
        Box::pin(bench.kernel.call(Caller::operator(), "job:add", data))
    };
    let (mut first, mut second) = (add(), add());
    assert!(first.as_mut().now_or_never().is_none());
    bench.wait_frozen();
    assert!(second.as_mut().now_or_never().is_none(), "it is a conflict with what may be lost");
    bench.journal.fail_next(full());
    bench.journal.thaw();
    for request in [first, second] {
        assert_eq!(within(request).await.unwrap_err().code, Code::Unavailable);
    }
}

/// Facts in one commit, their effects and what these say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_effect_says_is_heard_behind_every_fact_of_the_commit_that_led_to_it() {
    const MANY: usize = 500;
    let bench = Bench::new();
    let mut listener = bench.listen(&["note:added", "job:added", "job:progress"]);
    bench.journal.freeze();
    let mut requests: Vec<_> = (0..=MANY)
        .map(|n| match n {
            0 => ("note:add", json!({ "about": "x", "text": "fills the first commit" })),
            n => ("job:add", json!({ "id": format!("tell-{n}") })),
        })
        .map(|(event, data)| {
            let data = to_raw_value(&data).unwrap();
            let mut request = Box::pin(bench.kernel.call(Caller::operator(), event, data));
            assert!(request.as_mut().now_or_never().is_none());
            if event == "note:add" {
                bench.wait_frozen();
            }
            request
        })
        .collect();
    bench.journal.thaw();
    assert_eq!(heard(&mut listener).await.name(), "note:added");
    for n in 0..MANY {
        assert_eq!(heard(&mut listener).await.name(), "job:added", "after {n} facts");
    }
    assert_eq!(heard(&mut listener).await.name(), "job:progress");
    for request in requests.drain(..) {
        within(request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_batch_is_durable_no_effect_of_the_next_starts_or_stops() {
    let mut bench = Bench::new();
    bench.add("wait-1").await.unwrap();
    assert_eq!(bench.next_start().await, "wait-1");
    bench.journal.freeze();
    bench.stage.gate.notify_one();
    bench.wait_frozen();
    let data = to_raw_value(&json!({ "id": "hold-2" })).unwrap();
    let mut next = Box::pin(bench.kernel.call(Caller::operator(), "job:add", data));
    assert!(next.as_mut().now_or_never().is_none());
    assert_eq!(bench.kernel.effects().running(), 1, "the first still runs, the second does not");
    assert!(bench.started.try_recv().is_err());
    bench.journal.thaw();
    within(next).await.unwrap();
    assert_eq!(bench.next_start().await, "hold-2");
    assert_eq!(bench.call("job:list", json!({})).await.unwrap(), json!(["hold-2"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_room_rolls_memory_back_and_says_that_nothing_was_kept() {
    let mut bench = Bench::new();
    let mut room = bench.listen(&["journal:recovered"]);
    bench.add("hold-1").await.unwrap();
    assert_eq!(bench.next_start().await, "hold-1");
    bench.journal.fail_next(full());
    let error = bench.add("hold-2").await.unwrap_err();
    assert_eq!((error.code, error.retryable), (Code::Unavailable, true));
    assert_eq!(error.message, "the journal's disk is full; nothing was kept");
    assert_eq!(error.hint.as_deref(), Some("make room and try again"));
    assert_eq!(bench.kernel.position(), (Seq(1), Seq(1)));
    assert_eq!(bench.call("job:list", json!({})).await.unwrap(), json!(["hold-1"]));
    assert_eq!(bench.kernel.effects().running(), 1);
    heard(&mut room).await;
    bench.add("hold-3").await.unwrap();
    assert_eq!(bench.next_start().await, "hold-3", "the first was not started again");
    let [live, fresh] = bench.kernel.audit().unwrap();
    assert_eq!(live, fresh);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_journal_asks_the_daemon_to_end() {
    let bench = Bench::new();
    let io = JournalError { message: "no such device".into(), source: None };
    bench.journal.fail_next(AppendError::Io(io));
    let error = bench.add("hold-1").await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("the outcome is unknown: "), "{error}");
    within(bench.kernel.ending().asked()).await;
    assert!(bench.kernel.ending().has_failed());
    assert_eq!(bench.add("hold-2").await.unwrap_err().code, Code::Shutdown);
    assert_eq!(bench.journal.head().unwrap(), Seq(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_many_facts_of_eight_tasks_memory_equals_a_fold_from_the_start() {
    let bench = std::sync::Arc::new(Bench::new());
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let bench = bench.clone();
            let kernel = bench.kernel.clone();
            kernel.tasks().spawn("many", async move {
                for n in 0..100 {
                    bench.add(&format!("now-{task}-{n}")).await.unwrap();
                    bench.note("x", "y").await;
                }
            })
        })
        .collect();
    for task in tasks {
        within(task).await.unwrap();
    }
    // Each job's effect ends it; the listener hears the last of them from the journal or live.
    let mut listener = bench.kernel.listener();
    listener.inbox().subscribe(crate::bench::these(&["job:done"]), Some(Seq(0)));
    for _ in 0..800 {
        heard(&mut listener).await;
    }
    assert_eq!(bench.call("job:list", json!({})).await.unwrap(), json!([]));
    assert_eq!(bench.kernel.position(), (Seq(2_400), Seq(2_400)));
    let [live, fresh] = bench.kernel.audit().unwrap();
    assert_eq!(live, fresh);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_once_and_named_until_there_is_room_and_reads_go_on() {
    let bench = Bench::new();
    let mut listener = bench.listen(&["journal:*"]);
    bench.journal.fill();
    for _ in 0..3 {
        let refused = bench.add("hold-1").await.unwrap_err();
        assert_eq!((refused.code, refused.retryable), (Code::Unavailable, true));
        let degraded = bench.kernel.degraded();
        let [("journal", why)] = &degraded[..] else { panic!("{degraded:?}") };
        assert!(why.contains("disk is full"), "{why}");
        assert_eq!(bench.call("job:list", json!({})).await.unwrap(), json!([]));
    }
    assert_eq!(heard(&mut listener).await.name(), "journal:full");
    bench.journal.make_room();
    assert_eq!(heard(&mut listener).await.name(), "journal:recovered");
    assert_eq!(bench.kernel.degraded(), []);
    bench.add("hold-1").await.unwrap();
    assert!(listener.next().now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_starts_without_room_can_be_read_and_begins_when_there_is_some() {
    let mut bench = Bench::new();
    bench.add("hold-1").await.unwrap();
    assert_eq!(bench.next_start().await, "hold-1");
    bench.journal.fill();
    let mut again = Bench::over(bench.journal.clone(), Vec::new());
    let mut room = again.listen(&["journal:recovered"]);
    assert_eq!(again.kernel.degraded().len(), 1);
    assert_eq!(again.call("job:list", json!({})).await.unwrap(), json!(["hold-1"]));
    assert_eq!(again.add("hold-2").await.unwrap_err().code, Code::Unavailable);
    assert_eq!(again.kernel.effects().running(), 0);
    again.journal.make_room();
    heard(&mut room).await;
    assert_eq!(again.next_start().await, "hold-1");
    again.add("hold-2").await.unwrap();
}
