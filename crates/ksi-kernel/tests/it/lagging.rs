//! A slow listener gets every fact, and a count of the signals it missed.

use ksi_kernel::{Because, Listener, News, Seq};
use serde_json::json;

use crate::bench::{Bench, these, within};

/// More than the ring holds, with 64 KiB in each event.
const MANY: u64 = 200;

async fn flood(bench: &Bench, about: &str) {
    let text = "x".repeat(64 << 10);
    for _ in 0..MANY {
        bench.note(about, &text).await;
        bench.call("job:report", json!({ "text": text })).await.unwrap();
    }
}

/// Facts by place and reason, signals received, and signals missed, up to this fact.
async fn read(listener: &mut Listener, last: u64) -> (Vec<(u64, Because)>, u64, u64) {
    let (mut facts, mut signals, mut missed) = (Vec::new(), 0, 0);
    while facts.last().is_none_or(|(seq, _)| *seq < last) {
        match within(listener.next()).await {
            Some(News::Event(event, because)) => match event.seq() {
                Some(seq) => facts.push((seq.0, because)),
                None => signals += 1,
            },
            Some(News::Lagged { missed: count }) => missed += count,
            other => panic!("{other:?}"),
        }
    }
    (facts, signals, missed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_listener_gets_all_facts_and_a_count_of_missed_signals() {
    let bench = Bench::new();
    let mut listener = bench.listen(&["note:*", "job:*"]);
    flood(&bench, "x").await;
    bench.note("x", "last").await;
    let (facts, signals, missed) = read(&mut listener, MANY + 1).await;
    let expected: Vec<_> = (1..=MANY + 1).map(|seq| (seq, Because::Subscribed(1))).collect();
    assert_eq!(facts, expected);
    assert!(missed > 0 && signals > 0, "{signals} received, {missed} missed");
    assert_eq!(signals + missed, MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_listener_that_subscribes_to_the_past_meanwhile_gets_each_fact_once() {
    let bench = Bench::new();
    let mut listener = bench.kernel.listener();
    listener.inbox().subscribe(these(&["job:added"]), None);
    bench.add("hold-1").await.unwrap();
    flood(&bench, "x").await;
    listener.inbox().subscribe(these(&["note:*"]), Some(Seq(0)));
    bench.note("x", "last").await;
    let (mut facts, _, _) = read(&mut listener, MANY + 2).await;
    facts.sort_unstable_by_key(|(seq, _)| *seq);
    let notes = (2..=MANY + 2).map(|seq| (seq, Because::Subscribed(2)));
    let expected: Vec<_> = [(1, Because::Subscribed(1))].into_iter().chain(notes).collect();
    assert_eq!(facts, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followed_fact_reaches_a_slow_listener_once() {
    let bench = Bench::new();
    let mut listener = bench.kernel.listener();
    listener.inbox().follow("note:added", "mine");
    bench.note("mine", "1").await;
    bench.note("mine", "2").await;
    flood(&bench, "x").await;
    listener.inbox().subscribe(these(&["note:*"]), None);
    bench.note("x", "last").await;
    let (facts, _, _) = read(&mut listener, MANY + 3).await;
    assert_eq!(facts, [(1, Because::Followed), (MANY + 3, Because::Subscribed(1))]);
}
