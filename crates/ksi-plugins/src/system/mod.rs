//! System: how the daemon is, what it answers, and its end.
#![allow(clippy::unused_async, reason = "handlers are async, also those that need not wait")]

mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use ksi_kernel::{Ctx, Error, EventDoc, Kind, Plugin, Result};
use ksi_protocol::did_you_mean;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, Value, to_raw_value};
use shape::{Parameter, example, parameters};

use crate::{
    Settings,
    outside::{Handle, Member, Outside},
};

/// The plugin: `system:health discover help shutdown`, `module:list`, `api:schema`.
pub fn plugin(settings: Arc<Settings>, outside: Outside) -> Plugin<()> {
    let (discovering, helping, listing, showing) =
        (outside.clone(), outside.clone(), outside.clone(), outside);
    let lasting = Arc::new(Lasting { pid: std::process::id(), modules: OnceLock::new() });
    Plugin::new("system")
        .on("system:health", move |cx, _: Health| health(cx, settings.clone(), lasting.clone()))
        .on("system:discover", move |cx, req| discover(discovering.clone(), cx, req))
        .on("system:help", move |cx, req| help(helping.clone(), cx, req))
        .on("system:shutdown", shutdown)
        .on("module:list", move |cx, req| modules(listing.clone(), cx, req))
        .on("api:schema", move |cx, req| api_schema(showing.clone(), cx, req))
        .signal::<Startup>("system:startup")
        .signal::<ShutdownNotification>("system:shutdown_notification")
        .on_stop(|cx: Ctx<()>| async move {
            cx.signal("system:shutdown_notification", &ShutdownNotification {});
        })
}

/// How the daemon is: healthy, or degraded and why.
#[derive(Debug, Deserialize, JsonSchema)]
struct Health {}

/// Which events there are, what they want and what they answer.
#[derive(Debug, Deserialize, JsonSchema)]
struct Discover {
    /// Only events of this namespace.
    #[serde(default)]
    namespace: Option<String>,
    /// Only this event.
    #[serde(default)]
    event: Option<String>,
    /// With the complete JSON schemas.
    #[serde(default)]
    detail: bool,
}

/// How to send one event.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "event": "state:set" }))]
struct Help {
    /// The event's name.
    event: String,
}

/// End the daemon: running work is given time to finish, the rest goes on at the next start.
#[derive(Debug, Deserialize, JsonSchema)]
struct Shutdown {}

/// The plugins, in order.
#[derive(Debug, Deserialize, JsonSchema)]
struct ListModules {}

/// The complete JSON schemas of all events.
#[derive(Debug, Deserialize, JsonSchema)]
struct ApiSchema {}

/// The daemon has started.
#[derive(Debug, Serialize, JsonSchema)]
struct Startup {}

/// The daemon is shutting down; the connection will close.
#[derive(Debug, Serialize, JsonSchema)]
struct ShutdownNotification {}

/// The daemon's health.
#[derive(Debug, Serialize, JsonSchema)]
struct Healthy {
    /// `healthy`, or `degraded`: a plugin's state cannot be trusted, or the journal has no room.
    status: &'static str,
    /// Why it is degraded, by plugin.
    problems: BTreeMap<&'static str, String>,
    /// In seconds.
    uptime: f64,
    version: &'static str,
    /// The daemon's process.
    pid: u32,
    /// Whether a service manager, such as systemd, starts and restarts the daemon.
    managed: bool,
    modules_loaded: usize,
    #[schemars(with = "Vec<String>")]
    modules: Arc<RawValue>,
    events_registered: usize,
    background_tasks: usize,
    /// Effects that run at present: completions, downloads and the like.
    running: usize,
    /// The last fact's sequence number, and the last durable one's.
    seq: u64,
    durable_seq: u64,
}

/// What of the health never changes, since it is asked for often.
struct Lasting {
    pid: u32,
    /// The plugins' names.
    modules: OnceLock<Arc<RawValue>>,
}

/// Events by name.
#[derive(Debug, Serialize, JsonSchema)]
struct Discovered {
    events: BTreeMap<String, Described>,
    total: usize,
    namespaces: Vec<String>,
}

/// One event.
#[derive(Debug, Serialize, JsonSchema)]
struct Described {
    module: String,
    #[schemars(with = "String")]
    kind: Kind,
    summary: String,
    parameters: BTreeMap<String, Parameter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<Value>,
    /// The reply's fields, with `detail`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_fields: Option<BTreeMap<String, Parameter>>,
    /// Data that has the right shape, with `detail`; of requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    example: Option<Value>,
}

/// What the daemon does next.
#[derive(Debug, Serialize, JsonSchema)]
struct Stopping {
    status: &'static str,
}

/// The plugins.
#[derive(Debug, Serialize, JsonSchema)]
struct Modules {
    modules: Vec<Module>,
    count: usize,
}

/// One plugin.
#[derive(Debug, Serialize, JsonSchema)]
struct Module {
    name: String,
    /// `active`, `degraded`, or `outside`: in another process.
    status: &'static str,
    events: Vec<String>,
}

async fn health(cx: Ctx<()>, settings: Arc<Settings>, lasting: Arc<Lasting>) -> Result<Healthy> {
    let daemon = cx.daemon();
    let names = || daemon.plugins().collect::<Vec<_>>();
    let modules = || to_raw_value(&names()).unwrap_or_default().into();
    let problems: BTreeMap<_, _> = daemon.degraded().into_iter().collect();
    let (seq, durable) = daemon.position();
    Ok(Healthy {
        status: if problems.is_empty() { "healthy" } else { "degraded" },
        problems,
        uptime: cx.now().0.saturating_sub(settings.started.0) as f64 / 1000.0,
        version: settings.version,
        pid: lasting.pid,
        managed: settings.managed,
        modules_loaded: daemon.plugins().len(),
        modules: lasting.modules.get_or_init(modules).clone(),
        events_registered: daemon.catalog().len(),
        background_tasks: daemon.tasks().count(),
        running: daemon.effects().running(),
        seq: seq.0,
        durable_seq: durable.0,
    })
}

/// Every event, also of plugins outside the process.
fn described(cx: &Ctx<()>, outside: &Outside, detail: bool) -> BTreeMap<String, Described> {
    let own = cx.daemon().catalog().map(|doc| (doc.event.to_owned(), describe(doc, detail)));
    let members = outside.members();
    let others = members.iter().flat_map(|member| {
        let entry = move |handle: &Handle| (handle.event.clone(), outsider(member, handle, detail));
        member.handles().iter().map(entry)
    });
    own.chain(others).collect()
}

async fn discover(outside: Outside, cx: Ctx<()>, req: Discover) -> Result<Discovered> {
    let all = described(&cx, &outside, req.detail);
    let names: Vec<_> = all.keys().cloned().collect();
    let wanted = |name: &str| {
        req.event.as_ref().is_none_or(|event| event == name)
            && req.namespace.as_ref().is_none_or(|wanted| wanted == namespace(name))
    };
    let events: BTreeMap<_, _> = all.into_iter().filter(|(name, _)| wanted(name)).collect();
    match (&req.event, &req.namespace) {
        (Some(event), _) if events.is_empty() => return Err(no_event(&names, event)),
        (None, Some(namespace)) if events.is_empty() => {
            return Err(no_namespace(&names, namespace));
        }
        _ => {}
    }
    let mut namespaces: Vec<_> = events.keys().map(|event| namespace(event).to_owned()).collect();
    namespaces.dedup();
    Ok(Discovered { total: events.len(), events, namespaces })
}

async fn help(outside: Outside, cx: Ctx<()>, req: Help) -> Result<Described> {
    let mut all = described(&cx, &outside, true);
    let names: Vec<_> = all.keys().cloned().collect();
    all.remove(&req.event).ok_or_else(|| no_event(&names, &req.event))
}

fn no_event(known: &[String], event: &str) -> Error {
    let hint = match did_you_mean(event, known.iter().map(String::as_str)) {
        Some(known) => format!("did you mean `{known}`?"),
        None => "`ksi discover` lists those there are".to_owned(),
    };
    Error::not_found(format!("there is no event `{event}`")).at("event").hint(hint)
}

fn no_namespace(known: &[String], wanted: &str) -> Error {
    let known: BTreeSet<_> = known.iter().map(|event| namespace(event)).collect();
    let hint = match did_you_mean(wanted, known.iter().copied()) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("there are: {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    };
    Error::not_found(format!("there is no namespace `{wanted}`")).at("namespace").hint(hint)
}

async fn shutdown(cx: Ctx<()>, _: Shutdown) -> Result<Stopping> {
    cx.daemon().ending().ask();
    Ok(Stopping { status: "stopping" })
}

async fn modules(outside: Outside, cx: Ctx<()>, _: ListModules) -> Result<Modules> {
    let daemon = cx.daemon();
    let degraded: BTreeMap<_, _> = daemon.degraded().into_iter().collect();
    let module = |name: &'static str| Module {
        name: name.to_owned(),
        status: if degraded.contains_key(name) { "degraded" } else { "active" },
        events: daemon.catalog().filter(|d| d.plugin == name).map(|d| d.event.into()).collect(),
    };
    let outsider = |member: &Arc<Member>| Module {
        name: member.name().to_owned(),
        status: "outside",
        events: member.handles().iter().map(|handle| handle.event.clone()).collect(),
    };
    let modules = daemon.plugins().map(module);
    let modules: Vec<_> = modules.chain(outside.members().iter().map(outsider)).collect();
    Ok(Modules { count: modules.len(), modules })
}

async fn api_schema(
    outside: Outside,
    cx: Ctx<()>,
    _: ApiSchema,
) -> Result<BTreeMap<String, Described>> {
    Ok(described(&cx, &outside, true))
}

fn namespace(event: &str) -> &str {
    event.split(':').next().unwrap_or_default()
}

fn describe(doc: &EventDoc, detail: bool) -> Described {
    let EventDoc { plugin, kind, summary, params, reply, .. } = doc;
    described_as(plugin, *kind, summary, params, reply, detail)
}

/// An event of a plugin outside the process, which wrote the schemas itself.
fn outsider(member: &Member, handle: &Handle, detail: bool) -> Described {
    let Handle { summary, params, reply, .. } = handle;
    described_as(member.name(), Kind::Request, summary, params, reply, detail)
}

fn described_as(
    module: &str,
    kind: Kind,
    summary: &str,
    params: &Value,
    reply: &Value,
    detail: bool,
) -> Described {
    let replies = detail && !reply.is_null();
    Described {
        module: module.to_owned(),
        kind,
        summary: summary.to_owned(),
        parameters: parameters(params),
        schema: detail.then(|| params.clone()),
        reply: replies.then(|| reply.clone()),
        reply_fields: replies.then(|| parameters(reply)),
        example: (detail && kind == Kind::Request).then(|| example(params)),
    }
}
