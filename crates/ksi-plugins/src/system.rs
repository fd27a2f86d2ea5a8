//! System: how the daemon is, what it answers, and its end.
#![allow(clippy::unused_async, reason = "handlers are async, also those that need not wait")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use ksi_kernel::{Ctx, Error, EventDoc, Kind, Plugin, Result};
use ksi_protocol::did_you_mean;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, Value, to_raw_value};

use crate::Settings;

/// The plugin: `system:health discover help shutdown`, `module:list`, `api:schema`.
pub fn plugin(settings: Arc<Settings>) -> Plugin<()> {
    let lasting = Arc::new(Lasting { pid: std::process::id(), modules: OnceLock::new() });
    Plugin::new("system")
        .on("system:health", move |cx, _: Health| health(cx, settings.clone(), lasting.clone()))
        .on("system:discover", discover)
        .on("system:help", help)
        .on("system:shutdown", shutdown)
        .on("module:list", modules)
        .on("api:schema", schema)
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
    events: BTreeMap<&'static str, Described>,
    total: usize,
    namespaces: Vec<String>,
}

/// One event.
#[derive(Debug, Serialize, JsonSchema)]
struct Described {
    module: &'static str,
    #[schemars(with = "String")]
    kind: Kind,
    summary: String,
    parameters: BTreeMap<String, Parameter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<Value>,
}

/// One parameter, or one field of a fact.
#[derive(Debug, Serialize, JsonSchema)]
struct Parameter {
    #[serde(rename = "type")]
    kind: String,
    required: bool,
    default: Value,
    description: String,
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
    name: &'static str,
    status: &'static str,
    events: Vec<&'static str>,
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
        modules_loaded: daemon.plugins().len(),
        modules: lasting.modules.get_or_init(modules).clone(),
        events_registered: daemon.catalog().len(),
        background_tasks: daemon.tasks().count(),
        running: daemon.effects().running(),
        seq: seq.0,
        durable_seq: durable.0,
    })
}

async fn discover(cx: Ctx<()>, req: Discover) -> Result<Discovered> {
    let wanted = |doc: &&EventDoc| {
        req.event.as_ref().is_none_or(|event| event == doc.event)
            && req.namespace.as_ref().is_none_or(|wanted| wanted == namespace(doc.event))
    };
    let events = cx.daemon().catalog().filter(wanted);
    let events: BTreeMap<_, _> = events.map(|doc| (doc.event, describe(doc, req.detail))).collect();
    match (&req.event, &req.namespace) {
        (Some(event), _) if events.is_empty() => return Err(no_event(&cx, event)),
        (None, Some(namespace)) if events.is_empty() => return Err(no_namespace(&cx, namespace)),
        _ => {}
    }
    let mut namespaces: Vec<_> = events.keys().map(|event| namespace(event).to_owned()).collect();
    namespaces.dedup();
    Ok(Discovered { total: events.len(), events, namespaces })
}

async fn help(cx: Ctx<()>, req: Help) -> Result<Described> {
    let found = cx.daemon().catalog().find(|doc| doc.event == req.event);
    found.map(|doc| describe(doc, true)).ok_or_else(|| no_event(&cx, &req.event))
}

fn no_event(cx: &Ctx<()>, event: &str) -> Error {
    let hint = match did_you_mean(event, cx.daemon().catalog().map(|doc| doc.event)) {
        Some(known) => format!("did you mean `{known}`?"),
        None => "`ksi discover` lists those there are".to_owned(),
    };
    Error::not_found(format!("there is no event `{event}`")).at("event").hint(hint)
}

fn no_namespace(cx: &Ctx<()>, wanted: &str) -> Error {
    let known: BTreeSet<_> = cx.daemon().catalog().map(|doc| namespace(doc.event)).collect();
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

async fn modules(cx: Ctx<()>, _: ListModules) -> Result<Modules> {
    let daemon = cx.daemon();
    let degraded: BTreeMap<_, _> = daemon.degraded().into_iter().collect();
    let module = |name: &'static str| Module {
        name,
        status: if degraded.contains_key(name) { "degraded" } else { "active" },
        events: daemon.catalog().filter(|d| d.plugin == name).map(|d| d.event).collect(),
    };
    let modules: Vec<_> = daemon.plugins().map(module).collect();
    Ok(Modules { count: modules.len(), modules })
}

async fn schema(cx: Ctx<()>, _: ApiSchema) -> Result<BTreeMap<&'static str, Described>> {
    Ok(cx.daemon().catalog().map(|doc| (doc.event, describe(doc, true))).collect())
}

fn namespace(event: &str) -> &str {
    event.split(':').next().unwrap_or_default()
}

fn describe(doc: &EventDoc, detail: bool) -> Described {
    Described {
        module: doc.plugin,
        kind: doc.kind,
        summary: doc.summary.clone(),
        parameters: parameters(&doc.params),
        schema: detail.then(|| doc.params.clone()),
        reply: (detail && !doc.reply.is_null()).then(|| doc.reply.clone()),
    }
}

/// The fields of a JSON schema, as people and the wire want them.
fn parameters(schema: &Value) -> BTreeMap<String, Parameter> {
    let required: Vec<_> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().into_iter().flatten();
    let parameter = |(name, field): (&String, &Value)| {
        let parameter = Parameter {
            kind: type_name(schema, field),
            required: required.contains(&name.as_str()),
            default: field["default"].clone(),
            description: field["description"].as_str().unwrap_or_default().to_owned(),
        };
        (name.clone(), parameter)
    };
    properties.map(parameter).collect()
}

/// A field's type in a word or two; `any` where the schema leaves it open.
fn type_name(root: &Value, field: &Value) -> String {
    if let Some(target) = field["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
        return root.pointer(target).map_or("any".into(), |field| type_name(root, field));
    }
    if let Some(choices) = field["enum"].as_array() {
        return choices.iter().map(Value::to_string).collect::<Vec<_>>().join(" | ");
    }
    match &field["type"] {
        Value::String(name) if name == "array" => {
            format!("array of {}", type_name(root, &field["items"]))
        }
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            names.collect::<Vec<_>>().join(" | ")
        }
        _ => {
            let choices = field["anyOf"].as_array().or(field["oneOf"].as_array());
            let names = choices.into_iter().flatten().map(|choice| type_name(root, choice));
            let names: Vec<_> = names.filter(|name| name != "null").collect();
            if names.is_empty() { "any".into() } else { names.join(" | ") }
        }
    }
}
