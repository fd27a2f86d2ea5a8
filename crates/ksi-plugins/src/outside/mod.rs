//! Plugins outside the process: whoever has a connection may answer events.
#![allow(clippy::unused_async, reason = "handlers are async, also those that need not wait")]

mod registry;

use std::{sync::Arc, time::Duration};

use ksi_kernel::{Answer, Ctx, Error, Inbox, Pattern, Plugin, Raw, Result};
use ksi_protocol::{LONGEST_CALL_MS, check_event_name};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::to_raw_value};

pub use registry::{Handle, Member, Outside};

/// So many events may one plugin answer.
const MOST_EVENTS: usize = 256;

/// So large may be all that it says about them, in bytes.
const MOST_BYTES: usize = 256 << 10;

/// How long a plugin has to finish when the daemon ends, unless it asks for more.
const STOPPING: Duration = Duration::from_secs(5);

/// What a plugin is asked when the daemon ends.
const STOP: &str = "plugin:stop";

/// The plugin: `plugin:register unregister list`.
pub fn plugin(outside: &Outside) -> Plugin<()> {
    let with = || outside.clone();
    let (registering, leaving, listing, answering, stopping) =
        (with(), with(), with(), with(), with());
    Plugin::new("plugin")
        .on("plugin:register", move |cx, req| register(registering.clone(), cx, req))
        .on("plugin:unregister", move |cx, req| unregister(leaving.clone(), cx, req))
        .on("plugin:list", move |_: Ctx<()>, _: ListPlugins| {
            let listed = list(&listing);
            async { Ok(listed) }
        })
        .signal::<Registered>("plugin:registered")
        .signal::<Gone>("plugin:gone")
        .signal::<Stop>(STOP)
        .otherwise(move |cx, event, data| otherwise(&answering, &cx, event, data))
        .on_stop(move |_| stop(stopping.clone()))
}

/// Answer events from this connection, for as long as it lives
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "name": "mine", "handles": [{ "event": "my:custom:event", "summary": "Add one" }] }))]
struct Register {
    /// Small letters, digits, `-` and `_`.
    name: String,
    /// The events that it answers; each has one owner.
    #[serde(default)]
    handles: Vec<Handle>,
    /// Events to hear of, as if the connection subscribed to them.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    watches: Vec<Pattern>,
    /// How long it has to answer a call, in milliseconds; a call may be given more with `more_ms`.
    #[serde(default = "minute")]
    timeout_ms: u64,
    /// Whether it is asked `plugin:stop` when the daemon ends, and waited for.
    #[serde(default)]
    stops: bool,
}

fn minute() -> u64 {
    60_000
}

/// Answer no events from this connection any more
#[derive(Debug, Deserialize, JsonSchema)]
struct Unregister {
    /// As it was registered.
    name: String,
}

/// The plugins in other processes
#[derive(Debug, Deserialize, JsonSchema)]
struct ListPlugins {}

/// A plugin in another process answers events
#[derive(Debug, Serialize, JsonSchema)]
struct Registered {
    name: String,
    events: Vec<String>,
    /// Of `watches`, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription: Option<String>,
}

/// A plugin in another process answers no more
#[derive(Debug, Serialize, JsonSchema)]
struct Gone {
    name: String,
}

/// The daemon ends: a plugin that asked for it is called with this, and waited for
#[derive(Debug, Serialize, JsonSchema)]
struct Stop {
    /// How long it has, unless it asks for more.
    grace_ms: u64,
}

/// Plugins by name.
#[derive(Debug, Serialize, JsonSchema)]
struct Listed {
    plugins: Vec<Line>,
    count: usize,
}

/// One plugin.
#[derive(Debug, Serialize, JsonSchema)]
struct Line {
    name: String,
    events: Vec<String>,
    /// For whom its connection speaks.
    principal: String,
    /// When it registered, in seconds since the epoch.
    since: f64,
    /// How many calls it has not answered.
    waiting: usize,
}

async fn register(outside: Outside, cx: Ctx<()>, req: Register) -> Result<Registered> {
    let inbox = cx.caller().inbox.clone();
    let inbox = inbox.ok_or_else(|| Error::conflict("only a connection can register"))?;
    check(&cx, &req)?;
    let member = outside.join(Member {
        name: req.name,
        handles: req.handles,
        principal: cx.caller().origin.principal.clone(),
        since: cx.now(),
        patience: Duration::from_millis(req.timeout_ms),
        stops: req.stops,
        inbox: inbox.clone(),
    })?;
    let watches = Some(req.watches).filter(|watches| !watches.is_empty());
    let subscription = watches.map(|watches| format!("s{}", inbox.subscribe(watches, None).0));
    let (name, events) = (member.name.clone(), events(&member));
    cx.daemon().tasks().spawn(format!("plugin {name}"), {
        let cx = cx.clone();
        async move {
            member.inbox.gone().await;
            leave(&outside, &cx, &member);
        }
    });
    tracing::info!(plugin = name, events = events.len(), "registered");
    let registered = Registered { name, events, subscription };
    cx.signal("plugin:registered", &registered);
    Ok(registered)
}

/// Whether it can be let in, as far as it does not depend on the others outside.
fn check(cx: &Ctx<()>, req: &Register) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    if req.name.is_empty() || req.name.len() > 64 || !req.name.chars().all(plain) {
        let error = Error::bad_params("a plugin's name is 1 to 64 small letters, digits, - and _");
        return Err(error.at("name"));
    }
    if cx.daemon().plugins().any(|name| name == req.name) {
        let why = format!("`{}` is a plugin of the daemon itself", req.name);
        return Err(Error::conflict(why).at("name").hint("take another name"));
    }
    if !(1..=LONGEST_CALL_MS).contains(&req.timeout_ms) {
        let error = Error::bad_params(format!("`timeout_ms` can be 1 to {LONGEST_CALL_MS}"));
        return Err(error.at("timeout_ms"));
    }
    let bytes = to_raw_value(&req.handles).map_or(usize::MAX, |raw| raw.get().len());
    if req.handles.len() > MOST_EVENTS || bytes > MOST_BYTES {
        let why =
            format!("a plugin answers at most {MOST_EVENTS} events, said in {MOST_BYTES} bytes");
        return Err(Error::bad_params(why).at("handles"));
    }
    for (index, handle) in req.handles.iter().enumerate() {
        let at = || format!("handles[{index}].event");
        check_event_name(&handle.event).map_err(|error| error.at(at()))?;
        if req.handles[..index].iter().any(|other| other.event == handle.event) {
            return Err(Error::bad_params(format!("`{}` stands twice", handle.event)).at(at()));
        }
        let namespace = handle.event.split_inclusive(':').next().unwrap_or_default();
        let mut known = cx.daemon().catalog();
        if let Some(owner) = known.find(|doc| doc.event.starts_with(namespace)) {
            let why = format!("`{namespace}*` belongs to the daemon's plugin `{}`", owner.plugin);
            return Err(Error::conflict(why).at(at()).hint("take a namespace of your own"));
        }
    }
    Ok(())
}

async fn unregister(outside: Outside, cx: Ctx<()>, req: Unregister) -> Result<Gone> {
    let own = |member: &Arc<Member>| {
        let inbox: Option<&Arc<Inbox>> = cx.caller().inbox.as_ref();
        member.name == req.name && inbox.is_some_and(|inbox| Arc::ptr_eq(inbox, &member.inbox))
    };
    let member = outside.members().into_iter().find(own);
    let unknown = || Error::not_found(format!("this connection has no plugin `{}`", req.name));
    leave(&outside, &cx, &member.ok_or_else(|| unknown().at("name"))?);
    Ok(Gone { name: req.name })
}

fn leave(outside: &Outside, cx: &Ctx<()>, member: &Arc<Member>) {
    if outside.leave(member) {
        tracing::info!(plugin = member.name, "answers no more");
        cx.signal("plugin:gone", &Gone { name: member.name.clone() });
    }
}

fn list(outside: &Outside) -> Listed {
    let line = |member: Arc<Member>| Line {
        events: events(&member),
        principal: member.principal.to_string(),
        since: member.since.0 as f64 / 1000.0,
        waiting: member.inbox.waiting(),
        name: member.name.clone(),
    };
    let plugins: Vec<_> = outside.members().into_iter().map(line).collect();
    Listed { count: plugins.len(), plugins }
}

fn events(member: &Member) -> Vec<String> {
    member.handles.iter().map(|handle| handle.event.clone()).collect()
}

/// The answer of the plugin that owns the event; none when the namespace is nobody's.
fn otherwise(outside: &Outside, cx: &Ctx<()>, event: &str, data: &Raw) -> Option<Answer> {
    let Some(owner) = outside.owner(event) else {
        let error = outside.unhandled(event)?;
        return Some(Box::pin(std::future::ready(Err(error))));
    };
    let (event, data, origin) = (event.to_owned(), data.clone(), cx.caller().origin.clone());
    Some(Box::pin(async move { owner.ask(&event, data, origin).await }))
}

/// Asks all at once who want to be asked, and names each as it has finished, and those who have not.
async fn stop(outside: Outside) {
    let members = outside.members().into_iter().filter(|member| member.stops);
    let stops = members.map(|member| async move {
        let grace_ms = STOPPING.as_millis() as u64;
        let Ok(data) = to_raw_value(&json!({ "grace_ms": grace_ms })) else { return };
        let origin = ksi_kernel::Caller::system().origin;
        match member.inbox.ask(STOP, data, origin, STOPPING).answer().await {
            Ok(_) => tracing::info!(plugin = member.name, "has stopped"),
            Err(error) => tracing::warn!(plugin = member.name, %error, "has not stopped"),
        }
    });
    futures_util::future::join_all(stops).await;
}
