//! Effects run when they are wanted, and again when they fail.

use ksi_kernel::EffectFailed;
use serde_json::json;

use crate::bench::{Bench, START, heard, heard_as};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_effect_that_fails_panics_or_ends_without_a_fact_is_recorded_and_runs_again() {
    let cases = [
        ("fail-1", "it went wrong"),
        ("panic-1", "panicked: it blew up"),
        ("mute-1", "it ended without a fact"),
    ];
    for (key, why) in cases {
        let mut bench = Bench::new();
        let mut listener = bench.listen(&["effect:failed"]);
        bench.add(key).await.unwrap();
        for (failures, pause) in [(1, 500), (2, 1_000), (3, 2_000)] {
            assert_eq!(bench.next_start().await, key);
            let failed: EffectFailed = heard_as(&mut listener, "effect:failed").await;
            assert_eq!((failed.plugin.as_str(), failed.key.as_str()), ("jobs", key));
            assert_eq!((failed.epoch, failed.failures), (1, failures));
            assert!(failed.error.contains(why), "{}", failed.error);
            assert_eq!(failed.again_at, bench.clock.now().0 + pause);
            bench.clock.advance(pause - 1);
            assert_eq!(bench.kernel.effects().running(), 0, "it runs before its time");
            bench.clock.advance(1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_effect_that_panics_before_it_began_is_recorded_too() {
    let bench = Bench::new();
    let mut listener = bench.listen(&["effect:failed"]);
    bench.add("early-1").await.unwrap();
    for failures in [1, 2] {
        let failed: EffectFailed = heard_as(&mut listener, "effect:failed").await;
        assert_eq!(failed.failures, failures);
        assert!(failed.error.contains("before it began"), "{}", failed.error);
        bench.clock.advance(60_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_disk_is_full_no_effect_starts_and_with_room_it_runs_again_at_once() {
    let mut bench = Bench::new();
    let mut room = bench.listen(&["journal:*"]);
    let mut ended = bench.listen(&["job:done", "effect:failed"]);
    bench.add("wait-1").await.unwrap();
    assert_eq!(bench.next_start().await, "wait-1");
    bench.journal.fill();
    bench.stage.gate.notify_one();
    assert_eq!(heard(&mut room).await.name(), "journal:full");
    while bench.kernel.effects().running() > 0 {
        tokio::task::yield_now().await;
    }
    // A run that started meanwhile would take the way through the gate from the one that counts.
    bench.stage.gate.notify_one();
    bench.clock.advance(60_000);
    assert!(bench.started.try_recv().is_err(), "what it brings could not be kept");
    bench.journal.make_room();
    assert_eq!(heard(&mut room).await.name(), "journal:recovered");
    assert_eq!(bench.next_start().await, "wait-1");
    assert_eq!(heard(&mut ended).await.name(), "job:done");
    assert!(bench.started.try_recv().is_err(), "once was enough");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_effect_starts_at_its_time_and_not_before() {
    let mut bench = Bench::new();
    let later = START.0 + 5_000;
    bench.call("job:add", json!({ "id": "hold-late", "at": later })).await.unwrap();
    bench.call("job:add", json!({ "id": "hold-soon", "at": later - 1_000 })).await.unwrap();
    bench.add("hold-now").await.unwrap();
    assert_eq!(bench.next_start().await, "hold-now");
    bench.clock.advance(4_000);
    assert_eq!(bench.next_start().await, "hold-soon");
    assert_eq!(bench.kernel.effects().running(), 2);
    bench.clock.advance(1_000);
    assert_eq!(bench.next_start().await, "hold-late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_effect_whose_own_fact_ends_the_want_does_not_run_again() {
    let mut bench = Bench::new();
    let mut listener = bench.listen(&["job:done", "effect:*"]);
    bench.add("now-1").await.unwrap();
    assert_eq!(bench.next_start().await, "now-1");
    assert_eq!(heard(&mut listener).await.name(), "job:done");
    bench.clock.advance(100_000);
    bench.add("now-2").await.unwrap();
    assert_eq!(bench.next_start().await, "now-2", "and not the first again");
    assert_eq!(heard(&mut listener).await.name(), "job:done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_wanted_when_the_daemon_ended_runs_after_the_next_start() {
    let mut bench = Bench::new();
    bench.add("hold-1").await.unwrap();
    assert_eq!(bench.next_start().await, "hold-1");
    // No shutdown: the process is gone as after a kill, and its journal is there.
    let mut again = Bench::over(bench.journal.clone(), Vec::new());
    assert_eq!(again.next_start().await, "hold-1");
    assert!(bench.add("hold-2").await.is_err(), "the first owner is fenced off");
}
