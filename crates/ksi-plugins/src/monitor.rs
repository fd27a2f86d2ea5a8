//! Monitor: subscriptions to what happens, and a look at what has happened.
#![allow(clippy::unused_async, reason = "handlers are async, also those that need not wait")]

use std::sync::Arc;

use ksi_kernel::{
    Act, Caller, Code, Ctx, Error, Inbox, Kind, Millis, Origin, Pattern, Plugin, Query, Record,
    Result, Seq,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

/// The plugin: `monitor:subscribe unsubscribe get_events get_correlation_chain get_session_events
/// get_stats`; it keeps nothing.
pub fn plugin() -> Plugin<()> {
    Plugin::new("monitor")
        .on("monitor:subscribe", subscribe)
        .on("monitor:unsubscribe", unsubscribe)
        .on("monitor:get_events", get_events)
        .on("monitor:get_correlation_chain", get_correlation_chain)
        .on("monitor:get_session_events", get_session_events)
        .on("monitor:get_stats", get_stats)
        .signal::<Lagged>("monitor:lagged")
}

/// Receive the events that match, as they happen or from an earlier fact on.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "event_patterns": ["completion:*"], "since": 0 }))]
struct Subscribe {
    /// Names or `namespace:*` or `*`.
    #[schemars(with = "Vec<String>")]
    event_patterns: Vec<Pattern>,
    /// Facts behind this sequence number come first; without it, only what happens from now on.
    /// What another subscription of the connection has delivered already comes again.
    #[serde(default)]
    since: Option<u64>,
}

/// End a subscription of this connection.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "subscription": "s1" }))]
struct Unsubscribe {
    /// As the subscription was named, such as `s1`.
    subscription: String,
}

/// Read facts from the journal.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "event_patterns": ["state:*"], "limit": 10 }))]
struct GetEvents {
    /// Names or `namespace:*`; without them, every fact.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    event_patterns: Vec<Pattern>,
    /// Only facts at this time or later, in seconds since the epoch.
    #[serde(default)]
    since: Option<f64>,
    /// Only facts before this time, in seconds since the epoch.
    #[serde(default)]
    until: Option<f64>,
    /// Only facts behind this sequence number.
    #[serde(default)]
    after: Option<u64>,
    /// Only facts about this, such as a request's id.
    #[serde(default)]
    subject: Option<String>,
    /// Only facts of the requests with this correlation id.
    #[serde(default)]
    correlation_id: Option<String>,
    /// At most so many: 1 to 1000.
    #[serde(default = "hundred")]
    limit: usize,
    /// Newest first.
    #[serde(default = "yes")]
    reverse: bool,
}

/// Read what requests with one correlation id have led to, oldest first
#[derive(Debug, Deserialize, JsonSchema)]
struct GetCorrelationChain {
    /// As the client has chosen it.
    correlation_id: String,
    /// At most so many: 1 to 1000.
    #[serde(default = "hundred")]
    limit: usize,
}

/// Read the facts of one conversation, oldest first
#[derive(Debug, Deserialize, JsonSchema)]
struct GetSessionEvents {
    /// The conversation.
    session_id: String,
    /// At most so many: 1 to 1000.
    #[serde(default = "hundred")]
    limit: usize,
}

/// How many events there are, and for how many
#[derive(Debug, Deserialize, JsonSchema)]
struct GetStats {}

/// So many facts can be read at once.
const MOST: usize = 1000;

/// And no more once their data has so many bytes: an answer may wait in memory for its reader.
const MOST_BYTES: usize = 8 << 20;

fn hundred() -> usize {
    100
}

fn yes() -> bool {
    true
}

/// The subscription's name; its events carry it.
#[derive(Debug, Serialize, JsonSchema)]
struct Subscribed {
    subscription: String,
    status: &'static str,
    /// The facts behind this one come.
    since: u64,
    /// Facts up to this one may be gone, and those that are do not come; only there when that is
    /// behind `since`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pruned: Option<u64>,
}

/// What became of the subscription.
#[derive(Debug, Serialize, JsonSchema)]
struct Unsubscribed {
    status: &'static str,
}

/// Facts from the journal.
#[derive(Debug, Serialize, JsonSchema)]
struct Events {
    events: Vec<Happened>,
    count: usize,
    /// There are more, only there when it is so: no fact is added once these have 8 MiB. `after` the
    /// last one reads on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    more: bool,
    /// Facts up to this one may be gone: the journal keeps only so much of the past.
    #[serde(skip_serializing_if = "Option::is_none")]
    pruned: Option<u64>,
}

/// What goes through the daemon; `events`, `missed` are counted since its start.
#[derive(Debug, Serialize, JsonSchema)]
struct Stats {
    /// The last fact's sequence number, and the last durable one's.
    seq: u64,
    durable_seq: u64,
    /// Facts up to this one may be gone; 0 when none is.
    pruned: u64,
    events: Published,
    /// Who listens: connections and plugins that have subscribed.
    listeners: usize,
    subscriptions: usize,
    /// Signals that listeners were too slow for; no fact is ever missed.
    missed: u64,
    ring: Kept,
}

/// How many events were published since the daemon's start.
#[derive(Debug, Serialize, JsonSchema)]
struct Published {
    facts: u64,
    signals: u64,
}

/// What is kept in memory for those who listen.
#[derive(Debug, Serialize, JsonSchema)]
struct Kept {
    events: usize,
    bytes: usize,
    capacity_bytes: usize,
}

/// One fact.
#[derive(Debug, Serialize, JsonSchema)]
struct Happened {
    event: String,
    #[schemars(with = "serde_json::Value")]
    data: Box<RawValue>,
    seq: u64,
    timestamp: f64,
    subject: String,
    principal: String,
    correlation_id: Option<String>,
}

/// A slow reader missed signals; facts are never missed.
#[derive(Debug, Serialize, JsonSchema)]
struct Lagged {
    /// How many signals.
    missed: u64,
}

async fn subscribe(cx: Ctx<()>, req: Subscribe) -> Result<Subscribed> {
    if req.event_patterns.is_empty() {
        let error = Error::bad_params("a subscription needs at least one pattern");
        return Err(error.at("event_patterns").hint("`[\"*\"]` stands for everything"));
    }
    let inbox = inbox(cx.caller())?;
    // Before it begins: what is pruned from here on is read before it goes, or is newer.
    let pruned = match req.since {
        Some(since) => pruned(&cx, since).await?,
        None => None,
    };
    let (number, since) = inbox.subscribe(req.event_patterns, req.since.map(Seq));
    let subscription = format!("s{number}");
    Ok(Subscribed { subscription, status: "subscribed", since: since.0, pruned })
}

async fn unsubscribe(cx: Ctx<()>, req: Unsubscribe) -> Result<Unsubscribed> {
    let number = req.subscription.strip_prefix('s').and_then(|number| number.parse().ok());
    let known = match number {
        Some(number) => inbox(cx.caller())?.unsubscribe(number),
        None => false,
    };
    if !known {
        let why = format!("this connection has no subscription `{}`", req.subscription);
        return Err(Error::not_found(why));
    }
    Ok(Unsubscribed { status: "unsubscribed" })
}

fn inbox(caller: &Caller) -> Result<&Inbox> {
    let none = || Error::conflict("only a connection can subscribe");
    caller.inbox.as_deref().ok_or_else(none)
}

/// Up to where facts behind this one may be gone.
async fn pruned(cx: &Ctx<()>, since: u64) -> Result<Option<u64>> {
    let pruned = cx.journal(|journal| journal.pruned()).await?;
    Ok(Some(pruned.0).filter(|pruned| *pruned > since))
}

async fn get_events(cx: Ctx<()>, req: GetEvents) -> Result<Events> {
    let millis = |seconds: f64| Millis((seconds.max(0.0) * 1000.0) as u64);
    let query = Query {
        after: Seq(req.after.unwrap_or(0)),
        since: req.since.map(millis),
        before: req.until.map(millis),
        subjects: req.subject.into_iter().collect(),
        correlation: req.correlation_id,
        newest_first: req.reverse,
        limit: req.limit,
        ..Query::default()
    };
    read(&cx, &req.event_patterns, query).await
}

async fn get_correlation_chain(cx: Ctx<()>, req: GetCorrelationChain) -> Result<Events> {
    let (correlation, limit) = (Some(req.correlation_id), req.limit);
    read(&cx, &[], Query { correlation, limit, ..Query::default() }).await
}

/// What is asked of the conversation's owner.
#[derive(Deserialize)]
struct Conversation {
    turns: Vec<Turn>,
    open: Vec<String>,
}

#[derive(Deserialize)]
struct Turn {
    request_id: String,
}

async fn get_session_events(cx: Ctx<()>, req: GetSessionEvents) -> Result<Events> {
    let data = json!({ "conversation_id": &req.session_id });
    let asked = cx.call("conversation:get", &data).await;
    let Conversation { turns, open } = asked.map_err(|error| match error.code {
        Code::NotFound => error.at("session_id"),
        _ => error,
    })?;
    let requests = turns.into_iter().map(|turn| turn.request_id).chain(open);
    let subjects: Vec<_> = requests.chain([req.session_id]).collect();
    read(&cx, &[], Query { subjects, limit: req.limit, ..Query::default() }).await
}

async fn get_stats(cx: Ctx<()>, _: GetStats) -> Result<Stats> {
    let (seq, durable) = cx.daemon().position();
    let pruned = cx.journal(|journal| journal.pruned()).await?;
    let ring = cx.daemon().listener().inbox().overview();
    Ok(Stats {
        seq: seq.0,
        durable_seq: durable.0,
        pruned: pruned.0,
        events: Published { facts: ring.facts, signals: ring.signals },
        listeners: ring.listeners,
        subscriptions: ring.subscriptions,
        missed: ring.missed,
        ring: Kept { events: ring.kept, bytes: ring.bytes, capacity_bytes: ring.capacity },
    })
}

/// What a query finds of the facts that match a pattern, if there are any, and may be seen.
async fn read(cx: &Ctx<()>, patterns: &[Pattern], query: Query) -> Result<Events> {
    if !(1..=MOST).contains(&query.limit) {
        let hint = "`monitor:get_events` with `reverse` false and `after` reads those that follow";
        return Err(Error::bad_params(format!("`limit` can be 1 to {MOST}"))
            .at("limit")
            .hint(hint));
    }
    // What was acknowledged before this request must be in its answer.
    cx.read(|()| ()).await?;
    let names = match visible(cx, patterns) {
        Some(names) if names.is_empty() => {
            return Ok(Events { events: Vec::new(), count: 0, more: false, pruned: None });
        }
        Some(names) => names,
        None => patterns.iter().map(Pattern::to_string).collect(),
    };
    let pruned = pruned(cx, query.after.0).await?;
    let query = Query { names, bytes: MOST_BYTES, ..query };
    let found = cx.journal(move |journal| journal.read(&query)).await?;
    let more = found.iter().map(|fact| fact.data.get().len()).sum::<usize>() >= MOST_BYTES;
    let events: Vec<_> = found.into_iter().map(happened).collect();
    Ok(Events { count: events.len(), events, more, pruned })
}

/// The facts among these that the caller may see; none when that is all of them.
fn visible(cx: &Ctx<()>, patterns: &[Pattern]) -> Option<Vec<String>> {
    let (caller, daemon) = (cx.caller(), cx.daemon());
    if caller.is_unbound() {
        return None;
    }
    let asked = |name: &str| patterns.is_empty() || patterns.iter().any(|p| p.matches(name));
    let facts = daemon.catalog().filter(|doc| doc.kind == Kind::Fact).map(|doc| doc.event);
    let seen = facts.filter(|name| asked(name) && daemon.check(caller, Act::See, name).is_ok());
    Some(seen.map(str::to_owned).collect())
}

fn happened(record: Record) -> Happened {
    let Record { seq, at, name, subject, origin, data, .. } = record;
    let Origin { principal, correlation, .. } = Arc::unwrap_or_clone(origin);
    Happened {
        event: name.into_owned(),
        data,
        seq: seq.0,
        timestamp: at.0 as f64 / 1000.0,
        subject,
        principal: principal.to_string(),
        correlation_id: correlation,
    }
}
