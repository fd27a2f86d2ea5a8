//! Each fact comes once, in order, under its lowest subscription.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Wake, Waker},
};

use futures_util::FutureExt;
use ksi_kernel::{Because, Listener, News, Seq};
use serde_json::json;

use crate::bench::{Bench, heard, these, within};

/// The next fact's place and the reason for it.
async fn next(listener: &mut Listener) -> (u64, Because) {
    match within(listener.next()).await {
        Some(News::Event(event, because)) => (event.seq().expect("a fact").0, because),
        other => panic!("no event but {other:?}"),
    }
}

async fn seqs(listener: &mut Listener, count: usize) -> Vec<u64> {
    let mut seqs = Vec::new();
    for _ in 0..count {
        seqs.push(next(listener).await.0);
    }
    seqs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fact_comes_once_under_the_lowest_subscription_that_matches() {
    let bench = Bench::new();
    let mut listener = bench.kernel.listener();
    for patterns in [&["job:done"][..], &["note:*"], &["*", "note:added"]] {
        listener.inbox().subscribe(these(patterns), None);
    }
    bench.note("x", "1").await;
    bench.add("hold-1").await.unwrap();
    assert_eq!(next(&mut listener).await, (1, Because::Subscribed(2)));
    assert_eq!(next(&mut listener).await, (2, Because::Subscribed(3)));
    assert!(listener.inbox().unsubscribe(2));
    assert!(!listener.inbox().unsubscribe(2));
    bench.note("x", "2").await;
    assert_eq!(next(&mut listener).await, (3, Because::Subscribed(3)));
    let begun = listener.inbox().subscribe(these(&["note:*"]), None);
    assert_eq!(begun, (4, Seq(3)), "no number is used twice, and it begins behind the last fact");
    assert!(listener.next().now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_since_a_fact_hands_over_exactly_while_facts_flow() {
    let bench = Arc::new(Bench::new());
    let writer = bench.clone();
    let writing = bench.kernel.tasks().spawn("writer", async move {
        for n in 0..600 {
            writer.note("x", &n.to_string()).await;
        }
    });
    let mut live = bench.listen(&["note:*"]);
    for since in [0, 5, 9, 10] {
        // Everything asked for is on disk by then, and more comes.
        while next(&mut live).await.0 < 10 * (since + 1) {}
        let mut listener = bench.kernel.listener();
        listener.inbox().subscribe(these(&["note:*"]), Some(Seq(since)));
        let expected: Vec<u64> = (since + 1..=600).collect();
        assert_eq!(seqs(&mut listener, expected.len()).await, expected);
    }
    within(writing).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_subscription_brings_nothing_twice_though_the_listener_has_not_read_yet() {
    let bench = Bench::new();
    let mut listener = bench.kernel.listener();
    listener.inbox().subscribe(these(&["job:*"]), None);
    bench.add("hold-1").await.unwrap();
    bench.note("x", "before").await;
    bench.call("job:report", json!({ "text": "unasked" })).await.unwrap();
    // Fact 1 waits unread; fact 2 is wanted by the past of subscription 2 alone.
    listener.inbox().subscribe(these(&["note:*"]), Some(Seq(0)));
    bench.note("x", "after").await;
    let mut all = Vec::new();
    for _ in 0..4 {
        match within(listener.next()).await {
            Some(News::Event(event, because)) => all.push((event.seq().map(|s| s.0), because)),
            other => panic!("{other:?}"),
        }
    }
    let (one, two) = (Because::Subscribed(1), Because::Subscribed(2));
    assert_eq!(all, [(Some(2), two), (Some(1), one), (None, one), (Some(3), two)]);
    assert!(listener.next().now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_from_now_on_brings_nothing_that_was_published_before() {
    let bench = Bench::new();
    let mut listener = bench.kernel.listener();
    listener.inbox().subscribe(these(&["job:added"]), None);
    bench.add("hold-1").await.unwrap();
    bench.note("x", "before").await;
    bench.call("job:report", json!({ "text": "before" })).await.unwrap();
    listener.inbox().subscribe(these(&["note:*", "job:progress"]), None);
    bench.note("x", "after").await;
    assert_eq!(seqs(&mut listener, 2).await, [1, 3]);
    assert!(listener.next().now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_subscriptions_since_a_fact_bring_each_fact_once() {
    let bench = Bench::new();
    for n in 0..10 {
        bench.note("x", &n.to_string()).await;
    }
    let mut listener = bench.kernel.listener();
    listener.inbox().subscribe(these(&["note:*"]), Some(Seq(6)));
    listener.inbox().subscribe(these(&["*"]), Some(Seq(3)));
    listener.inbox().subscribe(these(&["note:added"]), Some(Seq(0)));
    bench.note("x", "live").await;
    let mut all = Vec::new();
    for _ in 0..11 {
        all.push(next(&mut listener).await);
    }
    let expected = [(7..=10, 1), (4..=6, 2), (1..=3, 3), (11..=11, 1)];
    let expected: Vec<_> = expected
        .into_iter()
        .flat_map(|(seqs, number)| seqs.map(move |seq| (seq, Because::Subscribed(number))))
        .collect();
    assert_eq!(all, expected);
    assert!(listener.next().now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_unsubscribed_before_it_was_read_does_not_come() {
    let bench = Bench::new();
    bench.note("x", "1").await;
    let mut listener = bench.kernel.listener();
    let (number, _) = listener.inbox().subscribe(these(&["note:*"]), Some(Seq(0)));
    listener.inbox().subscribe(these(&["job:*"]), Some(Seq(0)));
    bench.note("x", "2").await;
    listener.inbox().unsubscribe(number);
    bench.add("hold-1").await.unwrap();
    assert_eq!(next(&mut listener).await, (3, Because::Subscribed(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followed_fact_comes_once_and_only_for_its_subject() {
    let bench = Bench::new();
    let mut listener = bench.kernel.listener();
    bench.note("mine", "before").await;
    listener.inbox().follow("note:added", "mine");
    for about in ["other", "mine", "mine"] {
        bench.note(about, "text").await;
    }
    assert_eq!(next(&mut listener).await, (3, Because::Followed));
    assert!(listener.next().now_or_never().is_none());
    listener.inbox().subscribe(these(&["note:*"]), None);
    listener.inbox().follow("note:added", "mine");
    bench.note("mine", "subscribed").await;
    assert_eq!(next(&mut listener).await, (5, Because::Subscribed(1)));
    listener.inbox().unsubscribe(1);
    bench.note("mine", "too late").await;
    assert!(listener.next().now_or_never().is_none(), "the follow was fulfilled already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_news_that_is_cancelled_loses_nothing() {
    let bench = Bench::new();
    for n in 0..600 {
        bench.note("x", &n.to_string()).await;
    }
    let mut listener = bench.kernel.listener();
    listener.inbox().subscribe(these(&["note:*"]), Some(Seq(0)));
    let mut seqs = Vec::new();
    while seqs.len() < 600 {
        // Polled once and dropped, then awaited.
        let news = match listener.next().now_or_never() {
            Some(news) => news,
            None => within(listener.next()).await,
        };
        let Some(News::Event(event, _)) = news else { panic!("{news:?}") };
        seqs.push(event.seq().unwrap().0);
    }
    assert_eq!(seqs, (1..=600).collect::<Vec<_>>());
}

struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_want_an_event_is_not_woken_by_it() {
    let bench = Bench::new();
    let mut listener = bench.listen(&["job:done", "game:*"]);
    listener.inbox().follow("note:added", "mine");
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    {
        let waker = Waker::from(wakes.clone());
        let mut waiting = pin!(listener.next());
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        // The same namespaces, other names or subjects.
        bench.add("hold-1").await.unwrap();
        bench.note("other", "text").await;
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
        bench.call("game:move", json!({})).await.unwrap();
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
    }
    assert_eq!(heard(&mut listener).await.name(), "game:move");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_ended_subscription_had_not_delivered_another_that_asked_for_it_does() {
    let bench = Bench::new();
    let mut listener = bench.kernel.listener();
    listener.inbox().subscribe(these(&["note:*"]), None);
    for n in 0..600 {
        bench.note("x", &n.to_string()).await;
    }
    listener.inbox().subscribe(these(&["note:*"]), Some(Seq(0)));
    assert_eq!(next(&mut listener).await, (1, Because::Subscribed(1)), "the second left it to it");
    assert!(listener.inbox().unsubscribe(1));
    assert!(!listener.inbox().unsubscribe(1));
    assert_eq!(seqs(&mut listener, 599).await, (2..=600).collect::<Vec<_>>());
    bench.note("x", "last").await;
    assert_eq!(next(&mut listener).await, (601, Because::Subscribed(2)));
    assert!(listener.next().now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_a_subscription_and_begins_anew_is_given_again_what_it_asks_for() {
    let bench = Bench::new();
    let mut listener = bench.kernel.listener();
    listener.inbox().subscribe(these(&["note:*"]), None);
    for n in 0..600 {
        bench.note("x", &n.to_string()).await;
    }
    assert_eq!(seqs(&mut listener, 300).await, (1..=300).collect::<Vec<_>>());
    assert!(listener.inbox().unsubscribe(1));
    listener.inbox().subscribe(these(&["note:*"]), Some(Seq(100)));
    // What was at hand already is still given for the first.
    let rest = seqs(&mut listener, 212 + 500).await;
    assert_eq!(rest[..212], (301..=512).collect::<Vec<_>>());
    assert_eq!(rest[212..], (101..=600).collect::<Vec<_>>());
    bench.note("x", "last").await;
    assert_eq!(next(&mut listener).await, (601, Because::Subscribed(2)));
}
