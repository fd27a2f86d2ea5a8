//! A plugin that echoes, waits, fails, panics and remembers.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use ksi_kernel::{Code, Ctx, Error, Fact, Facts, Pattern, Plugin, Result, Seq};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// Gates that are open; a handler waits before a closed one.
#[derive(Clone, Default)]
pub(crate) struct Gates(Arc<watch::Sender<BTreeSet<String>>>);

impl Gates {
    async fn pass(&self, gate: &str) {
        let mut gates = self.0.subscribe();
        let open = gates.wait_for(|open| open.contains(gate)).await;
        drop(open.expect("the gates outlive the plugin"));
    }

    pub(crate) fn open(&self, gate: &str) {
        self.0.send_modify(|open| {
            open.insert(gate.to_owned());
        });
    }
}

/// How many notes there are.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Notes {
    count: u64,
}

/// Something was noted.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Noted {
    text: String,
    #[serde(default)]
    by: Option<String>,
}

impl Fact for Noted {
    const NAME: &'static str = "test:noted";

    fn subject(&self) -> Cow<'_, str> {
        self.text.as_str().into()
    }
}

/// Anything
#[derive(Deserialize, JsonSchema)]
struct Anything {
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// Wait until a gate is open
#[derive(Deserialize, JsonSchema)]
struct Gate {
    gate: String,
}

/// Note a text
#[derive(Deserialize, JsonSchema)]
struct Note {
    text: String,
    #[serde(default)]
    follow: bool,
}

/// Note a text once a gate is open
#[derive(Deserialize, JsonSchema)]
struct Later {
    gate: String,
    text: String,
}

/// Subscribe to events
#[derive(Deserialize, JsonSchema)]
struct Subscribe {
    event_patterns: Vec<String>,
    since: Option<u64>,
    /// Answer only when this gate is open, though the subscription has begun.
    gate: Option<String>,
}

/// Unsubscribe
#[derive(Deserialize, JsonSchema)]
struct Unsubscribe {
    subscription: String,
}

pub(crate) fn plugin(gates: &Gates) -> Plugin<Notes> {
    let (waiting, opening, subscribing) = (gates.clone(), gates.clone(), gates.clone());
    let noting = gates.clone();
    Plugin::new("test")
        .on("test:echo", |_: Ctx<Notes>, req: Anything| async { Ok(Value::Object(req.fields)) })
        .on("test:list", |_: Ctx<Notes>, _: Anything| async { Ok(json!([{"n": 1}, {"n": 2}])) })
        .on("test:big", |_: Ctx<Notes>, _: Anything| async { Ok(json!({"text": big()})) })
        .on("test:wait", move |_: Ctx<Notes>, req: Gate| {
            let gates = waiting.clone();
            async move {
                gates.pass(&req.gate).await;
                Ok(json!({ "passed": req.gate }))
            }
        })
        .on("test:open", move |_: Ctx<Notes>, req: Gate| {
            opening.open(&req.gate);
            async move { Ok(json!({ "opened": req.gate })) }
        })
        .on("test:fail", |_: Ctx<Notes>, _: Anything| async {
            Err::<Value, _>(Error::conflict("there is one already").hint("use another name"))
        })
        .on("test:panic", panicking)
        .on("test:note", note)
        .on("test:later", move |cx: Ctx<Notes>, Later { gate, text }: Later| {
            let gates = noting.clone();
            async move {
                gates.pass(&gate).await;
                note(cx, Note { text, follow: false }).await
            }
        })
        .on("test:flash", |cx: Ctx<Notes>, req: Anything| async move {
            cx.signal("test:flashed", &req.fields);
            Ok(json!({}))
        })
        .on("monitor:subscribe", move |cx, req| subscribe(cx, req, subscribing.clone()))
        .on("monitor:unsubscribe", unsubscribe)
        .fact::<Noted>()
        .signal::<Anything>("test:flashed")
        .signal::<Anything>("system:startup")
        .fold(|notes: &mut Notes, _: &Noted, _, _| {
            notes.count += 1;
            Ok(())
        })
}

/// A mebibyte.
fn big() -> String {
    "x".repeat(1 << 20)
}

#[allow(clippy::unused_async, reason = "a handler is async")]
async fn panicking(_: Ctx<Notes>, _: Anything) -> Result<Value> {
    panic!("the plugin is at its wit's end")
}

async fn note(cx: Ctx<Notes>, req: Note) -> Result<Value> {
    let by = cx.caller().idempotency_key.clone();
    if let Some(inbox) = cx.caller().inbox.as_ref().filter(|_| req.follow) {
        inbox.follow("test:noted", &req.text);
    }
    let noted = Noted { text: req.text, by };
    cx.decide(|notes, _| Ok((Facts::one(noted), json!({ "count": notes.count + 1 })))).await
}

async fn subscribe(cx: Ctx<Notes>, req: Subscribe, gates: Gates) -> Result<Value> {
    let patterns: Result<Vec<_>> =
        req.event_patterns.iter().map(|text| Pattern::parse(text)).collect();
    let inbox = cx.caller().inbox.as_ref();
    let inbox = inbox.ok_or_else(|| Error::new(Code::BadParams, "nowhere to send events"))?;
    let (number, _) = inbox.subscribe(patterns?, req.since.map(Seq));
    if let Some(gate) = &req.gate {
        gates.pass(gate).await;
    }
    Ok(json!({ "subscription": format!("s{number}") }))
}

#[allow(clippy::unused_async, reason = "a handler is async")]
async fn unsubscribe(cx: Ctx<Notes>, req: Unsubscribe) -> Result<Value> {
    let number = req.subscription.strip_prefix('s').and_then(|text| text.parse().ok());
    let inbox = cx.caller().inbox.as_ref();
    let ended = number.zip(inbox).is_some_and(|(number, inbox)| inbox.unsubscribe(number));
    match ended {
        true => Ok(json!({ "unsubscribed": req.subscription })),
        false => Err(Error::not_found(format!("no subscription `{}`", req.subscription))),
    }
}
