//! Monitor: subscriptions to what happens, and a look at what has happened.
#![allow(clippy::unused_async, reason = "handlers are async, also those that need not wait")]

use std::sync::Arc;

use ksi_kernel::{
    Act, Caller, Ctx, Error, Inbox, Kind, Millis, Origin, Pattern, Plugin, Query, Record, Result,
    Seq,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The plugin: `monitor:subscribe unsubscribe get_events`; it keeps nothing.
pub fn plugin() -> Plugin<()> {
    Plugin::new("monitor")
        .on("monitor:subscribe", subscribe)
        .on("monitor:unsubscribe", unsubscribe)
        .on("monitor:get_events", get_events)
        .signal::<Lagged>("monitor:lagged")
}

/// Receive the events that match, as they happen or from an earlier fact on.
#[derive(Debug, Deserialize, JsonSchema)]
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
struct Unsubscribe {
    /// As the subscription was named, such as `s1`.
    subscription: String,
}

/// Read facts from the journal.
#[derive(Debug, Deserialize, JsonSchema)]
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

/// So many facts can be read at once.
const MOST: usize = 1000;

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
    let (number, since) = inbox(cx.caller())?.subscribe(req.event_patterns, req.since.map(Seq));
    Ok(Subscribed { subscription: format!("s{number}"), status: "subscribed", since: since.0 })
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

async fn get_events(cx: Ctx<()>, req: GetEvents) -> Result<Events> {
    if !(1..=MOST).contains(&req.limit) {
        let hint = "with `reverse` false, `after` asks for those that follow";
        return Err(Error::bad_params(format!("`limit` can be 1 to {MOST}"))
            .at("limit")
            .hint(hint));
    }
    // What was acknowledged before this request must be in its answer.
    cx.read(|()| ()).await?;
    let names = match visible(&cx, &req.event_patterns) {
        Some(names) if names.is_empty() => return Ok(Events { events: Vec::new(), count: 0 }),
        Some(names) => names,
        None => req.event_patterns.iter().map(Pattern::to_string).collect(),
    };
    let millis = |seconds: f64| Millis((seconds.max(0.0) * 1000.0) as u64);
    let query = Query {
        after: Seq(req.after.unwrap_or(0)),
        since: req.since.map(millis),
        before: req.until.map(millis),
        names,
        subject: req.subject,
        correlation: req.correlation_id,
        newest_first: req.reverse,
        limit: req.limit,
        ..Query::default()
    };
    let events: Vec<_> =
        cx.journal(move |journal| journal.read(&query)).await?.into_iter().map(happened).collect();
    Ok(Events { count: events.len(), events })
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
