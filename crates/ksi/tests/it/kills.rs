//! Two hundred times `kill -9` under mixed load: what was answered is there, and nothing twice.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
};

use ksi_protocol::{Client, Context};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::daemon::{Home, PATIENCE, next_of, subscribe};

const ROUNDS: usize = 200;
const WRITERS: usize = 4;

/// What the clients know, over all rounds.
#[derive(Default)]
struct Known {
    /// Of each writer's key: the last value that was acknowledged, and the last that was sent.
    values: RefCell<BTreeMap<String, (u64, u64)>>,
    /// Idempotency keys that were sent, with the request's id where there was an answer.
    requests: RefCell<BTreeMap<String, Option<String>>>,
    answers: Cell<usize>,
}

/// Load that goes on until the daemon dies; it is killed behind so many answers.
struct Load<'a> {
    known: &'a Known,
    client: &'a Client,
    model: &'a str,
    round: usize,
    enough: usize,
    reached: Notify,
}

impl Load<'_> {
    fn answered(&self) {
        self.known.answers.set(self.known.answers.get() + 1);
        if self.known.answers.get() >= self.enough {
            self.reached.notify_one();
        }
    }

    async fn write(&self, writer: usize) {
        let key = format!("writer{writer}");
        loop {
            let value = self.known.values.borrow().get(&key).map_or(1, |(_, sent)| sent + 1);
            self.known.values.borrow_mut().entry(key.clone()).or_default().1 = value;
            let data = json!({ "key": key, "value": value });
            if self.client.call::<Value>("state:set", &data).await.is_err() {
                return;
            }
            self.known.values.borrow_mut().entry(key.clone()).or_default().0 = value;
            self.answered();
        }
    }

    async fn complete(&self) {
        for number in 0.. {
            let key = format!("{}-{number}", self.round);
            self.known.requests.borrow_mut().insert(key.clone(), None);
            let Ok(id) = ask(self.client, self.model, &key).await else { return };
            self.known.requests.borrow_mut().insert(key, Some(id));
            self.answered();
        }
    }

    async fn checkpoint(&self) {
        let _ = self.client.call::<Value>("checkpoint:save", &json!({})).await;
    }
}

async fn ask(client: &Client, model: &str, key: &str) -> ksi_protocol::Result<String> {
    let context = Context { idempotency_key: Some(key.to_owned()), ..Context::default() };
    let conversation = key.split('-').next();
    let data = json!({ "prompt": key, "model": model, "conversation_id": conversation });
    let reply: Value = client.call_with("completion:async", &data, &context).await?;
    Ok(reply["request_id"].as_str().unwrap().to_owned())
}

impl Known {
    /// Every value that was acknowledged is there, or a later one that was sent.
    async fn hold(&self, client: &Client, place: &str) {
        let values = self.values.borrow().clone();
        for (key, (acknowledged, sent)) in values {
            let got: Value = client.call("state:get", &json!({ "key": key })).await.unwrap();
            let value = got["value"].as_u64().unwrap_or_default();
            assert!((acknowledged..=sent).contains(&value), "{place}: {key}: {acknowledged} {got}");
        }
    }

    /// Every request has one id and one result, also those that were sent without an answer.
    async fn end(&self, client: &Client, model: &str, place: &str) {
        let requests = self.requests.borrow().clone();
        let mut ids = BTreeSet::new();
        let mut results = subscribe(client, "completion:result", Some(0)).await;
        for (key, known) in requests {
            let id = ask(client, model, &key).await.unwrap();
            assert!(known.is_none_or(|known| known == id), "{place}: {key}");
            assert!(ids.insert(id), "{place}: {key} is another's");
        }
        let mut ended = BTreeSet::new();
        while ended.len() < ids.len() {
            let result = next_of(&mut results, "completion:result").await;
            let id = crate::daemon::data(&result)["request_id"].as_str().unwrap().to_owned();
            assert!(ids.contains(&id) && ended.insert(id.clone()), "{place}: {id} ended twice");
        }
    }
}

/// Every fact's name and request, in order; their numbers have no gap.
async fn facts(client: &Client, place: &str) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    loop {
        let page = json!({ "after": facts.len(), "reverse": false, "limit": 1000 });
        let page: Value = client.call("monitor:get_events", &page).await.unwrap();
        let events = page["events"].as_array().unwrap();
        for event in events {
            assert_eq!(event["seq"], facts.len() + 1, "{place}");
            let text = |name: &str| event[name].as_str().unwrap().to_owned();
            facts.push((text("event"), text("subject")));
        }
        if events.is_empty() {
            return facts;
        }
    }
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the seed, for whoever wants to see it again")]
async fn two_hundred_kills_under_mixed_load_lose_and_double_nothing() {
    let seed = std::env::var("KSI_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("KSI_SEED={seed}");
    let (mut dice, known, home) = (fastrand::Rng::with_seed(seed), Known::default(), Home::new());
    let (model, _) = home.script("{concurrency: 8, rules: [{echo: true}]}");
    for round in 0..ROUNDS {
        let place = format!("round {round}, KSI_SEED={seed}");
        let daemon = home.daemon().await;
        let client = daemon.client().await;
        known.hold(&client, &place).await;
        let enough = known.answers.get() + dice.usize(1..60);
        let (reached, model) = (Notify::new(), model.as_str());
        let load = Load { known: &known, client: &client, model, round, enough, reached };
        let save = dice.u8(..8) == 0;
        let writers = futures_util::future::join_all((0..WRITERS).map(|n| load.write(n)));
        let saving = async {
            if save {
                load.checkpoint().await;
            }
        };
        let killing = async {
            load.reached.notified().await;
            daemon.kill();
        };
        let all = async { tokio::join!(writers, load.complete(), saving, killing) };
        tokio::time::timeout(PATIENCE, all).await.expect(&place);
    }
    let place = format!("at the end, KSI_SEED={seed}");
    let daemon = home.daemon().await;
    let client = daemon.client().await;
    known.hold(&client, &place).await;
    known.end(&client, &model, &place).await;
    let facts = facts(&client, &place).await;
    for name in ["completion:queued", "completion:result"] {
        let of_name: Vec<_> = facts.iter().filter(|(event, _)| event == name).collect();
        let requests: BTreeSet<_> = of_name.iter().map(|(_, request)| request).collect();
        assert_eq!(of_name.len(), requests.len(), "{place}: {name} twice for one request");
        assert_eq!(requests.len(), known.requests.borrow().len(), "{place}: {name}");
    }
    assert!(facts.len() > ROUNDS * 10, "there was load: {}", facts.len());
}
