//! System: how the daemon is, what it answers, and its end.
#![allow(clippy::unused_async, reason = "handlers are async, also those that need not wait")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use ksi_kernel::{Ctx, Error, EventDoc, Kind, Plugin, Result};
use ksi_protocol::did_you_mean;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, Value, to_raw_value};

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
        .on("api:schema", move |cx, req| schema(showing.clone(), cx, req))
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

async fn schema(
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
    Described {
        module: doc.plugin.to_owned(),
        kind: doc.kind,
        summary: doc.summary.clone(),
        parameters: parameters(&doc.params),
        schema: detail.then(|| doc.params.clone()),
        reply: (detail && !doc.reply.is_null()).then(|| doc.reply.clone()),
    }
}

/// An event of a plugin outside the process, which wrote the schemas itself.
fn outsider(member: &Member, handle: &Handle, detail: bool) -> Described {
    Described {
        module: member.name().to_owned(),
        kind: Kind::Request,
        summary: handle.summary.clone(),
        parameters: parameters(&handle.params),
        schema: detail.then(|| handle.params.clone()),
        reply: (detail && !handle.reply.is_null()).then(|| handle.reply.clone()),
    }
}

/// The fields of a JSON schema, as people and the wire want them.
fn parameters(schema: &Value) -> BTreeMap<String, Parameter> {
    let required: Vec<_> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().into_iter().flatten();
    let parameter = |(name, field): (&String, &Value)| {
        let parameter = Parameter {
            kind: type_name(schema, field, DEEPEST),
            required: required.contains(&name.as_str()),
            default: field["default"].clone(),
            description: field["description"].as_str().unwrap_or_default().to_owned(),
        };
        (name.clone(), parameter)
    };
    properties.map(parameter).collect()
}

/// So far is looked into a schema; those of plugins outside the process may go in circles.
const DEEPEST: usize = 8;

/// A field's type in a word or two; `any` where the schema leaves it open.
fn type_name(root: &Value, field: &Value, depth: usize) -> String {
    let Some(depth) = depth.checked_sub(1) else { return "any".into() };
    if let Some(target) = field["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
        return root.pointer(target).map_or("any".into(), |field| type_name(root, field, depth));
    }
    if let Some(choices) = field["enum"].as_array() {
        return choices.iter().map(Value::to_string).collect::<Vec<_>>().join(" | ");
    }
    match &field["type"] {
        Value::String(name) if name == "array" => {
            format!("array of {}", type_name(root, &field["items"], depth))
        }
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            names.collect::<Vec<_>>().join(" | ")
        }
        _ => {
            let choices = field["anyOf"].as_array().or(field["oneOf"].as_array());
            let names = choices.into_iter().flatten().map(|choice| type_name(root, choice, depth));
            let names: Vec<_> = names.filter(|name| name != "null").collect();
            if names.is_empty() { "any".into() } else { names.join(" | ") }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_that_goes_in_circles_comes_to_an_end() {
        let item = json!({ "type": "array", "items": { "$ref": "#/properties/a" } });
        let schema = json!({ "properties": { "a": item, "b": { "$ref": "#/properties/b" } } });
        let parameters = parameters(&schema);
        assert!(parameters["a"].kind.starts_with("array of array of "));
        assert_eq!(parameters["b"].kind, "any");
    }
}
