//! State: values under a key, for whoever wants to keep something.

use std::{borrow::Cow, collections::BTreeMap};

use ksi_kernel::{Ctx, Error, Fact, Facts, Fault, Out, Plugin, Result, Stamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The plugin: `state:set get delete list`.
pub fn plugin() -> Plugin<Values> {
    Plugin::new("state")
        .on("state:set", set)
        .on("state:get", get)
        .on("state:delete", delete)
        .on("state:list", list)
        .fact::<Changed>()
        .fact::<Deleted>()
        .fold(Values::changed)
        .fold(Values::deleted)
}

/// All values, by namespace and key.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Values(BTreeMap<String, BTreeMap<String, Box<RawValue>>>);

/// The longest name of a namespace or key, in bytes.
const LONGEST_NAME: usize = 512;

/// Keep a value under a key.
#[derive(Debug, Deserialize, JsonSchema)]
struct Set {
    /// The key; at most 512 bytes.
    key: String,
    /// Any JSON; its type is kept.
    #[schemars(with = "serde_json::Value")]
    value: Box<RawValue>,
    /// Which namespace the key belongs to.
    #[serde(default = "global")]
    namespace: String,
}

/// Read the value of a key.
#[derive(Debug, Deserialize, JsonSchema)]
struct Get {
    /// The key.
    key: String,
    /// Which namespace the key belongs to.
    #[serde(default = "global")]
    namespace: String,
}

/// Forget the value of a key.
#[derive(Debug, Deserialize, JsonSchema)]
struct Delete {
    /// The key.
    key: String,
    /// Which namespace the key belongs to.
    #[serde(default = "global")]
    namespace: String,
}

/// List the keys of a namespace.
#[derive(Debug, Deserialize, JsonSchema)]
struct List {
    /// Which namespace.
    #[serde(default = "global")]
    namespace: String,
    /// Only keys like this; `*` stands for anything.
    #[serde(default)]
    pattern: Option<String>,
}

fn global() -> String {
    "global".into()
}

/// What became of a key.
#[derive(Debug, Serialize, JsonSchema)]
struct Done {
    status: &'static str,
    namespace: String,
    key: String,
}

/// A key's value, if it has one.
#[derive(Debug, Serialize, JsonSchema)]
struct Got {
    #[schemars(with = "serde_json::Value")]
    value: Box<RawValue>,
    found: bool,
    namespace: String,
    key: String,
}

/// The keys, sorted.
#[derive(Debug, Serialize, JsonSchema)]
struct Keys {
    keys: Vec<String>,
    count: usize,
}

/// A value was set.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Changed {
    namespace: String,
    key: String,
    #[schemars(with = "serde_json::Value")]
    value: Box<RawValue>,
}

/// A value was deleted.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Deleted {
    namespace: String,
    key: String,
}

impl Fact for Changed {
    const NAME: &'static str = "state:changed";

    fn subject(&self) -> Cow<'_, str> {
        subject(&self.namespace, &self.key).into()
    }
}

impl Fact for Deleted {
    const NAME: &'static str = "state:deleted";

    fn subject(&self) -> Cow<'_, str> {
        subject(&self.namespace, &self.key).into()
    }
}

fn subject(namespace: &str, key: &str) -> String {
    [namespace, "/", key].concat()
}

impl Values {
    fn get(&self, namespace: &str, key: &str) -> Option<&RawValue> {
        self.0.get(namespace)?.get(key).map(AsRef::as_ref)
    }

    fn changed(&mut self, fact: &Changed, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
        let value = fact.value.clone();
        match self.0.get_mut(&fact.namespace) {
            Some(keys) => match keys.get_mut(&fact.key) {
                Some(old) => *old = value,
                None => drop(keys.insert(fact.key.clone(), value)),
            },
            None => drop(self.0.insert(fact.namespace.clone(), [(fact.key.clone(), value)].into())),
        }
        Ok(())
    }

    fn deleted(&mut self, fact: &Deleted, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
        if let Some(keys) = self.0.get_mut(&fact.namespace) {
            keys.remove(&fact.key);
            if keys.is_empty() {
                self.0.remove(&fact.namespace);
            }
        }
        Ok(())
    }
}

async fn set(cx: Ctx<Values>, req: Set) -> Result<Done> {
    let Set { key, value, namespace } = req;
    for (path, name) in [("key", &key), ("namespace", &namespace)] {
        if name.is_empty() || name.len() > LONGEST_NAME {
            let why =
                format!("a {path} has 1 to {LONGEST_NAME} bytes; this one has {}", name.len());
            return Err(Error::bad_params(why).at(path));
        }
    }
    cx.decide(|_, _| {
        let done = Done { status: "set", namespace: namespace.clone(), key: key.clone() };
        Ok((Facts::one(Changed { namespace, key, value }), done))
    })
    .await
}

async fn get(cx: Ctx<Values>, req: Get) -> Result<Got> {
    let value =
        cx.read(|values| values.get(&req.namespace, &req.key).map(ToOwned::to_owned)).await?;
    let found = value.is_some();
    Ok(Got { value: value.unwrap_or_default(), found, namespace: req.namespace, key: req.key })
}

async fn delete(cx: Ctx<Values>, req: Delete) -> Result<Done> {
    let Delete { key, namespace } = req;
    cx.decide(|values, _| {
        let status = if values.get(&namespace, &key).is_some() { "deleted" } else { "not_found" };
        let done = Done { status, namespace: namespace.clone(), key: key.clone() };
        let facts = match status {
            "deleted" => Facts::one(Deleted { namespace, key }),
            _ => Facts::none(),
        };
        Ok((facts, done))
    })
    .await
}

async fn list(cx: Ctx<Values>, req: List) -> Result<Keys> {
    let pattern = req.pattern.as_deref().unwrap_or("*");
    let keys = cx
        .read(|values| {
            let keys = values.0.get(&req.namespace).into_iter().flat_map(BTreeMap::keys);
            keys.filter(|key| like(pattern, key)).cloned().collect::<Vec<_>>()
        })
        .await?;
    Ok(Keys { count: keys.len(), keys })
}

/// Whether the text is like the pattern, in which `*` stands for anything.
fn like(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::like;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text) in
            [("*", ""), ("a*", "ab"), ("*b", "ab"), ("a*c*e", "abcde"), ("a", "a")]
        {
            assert!(like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*b", "a"), ("ab*ba", "aba"), ("*a*", "bcd")] {
            assert!(!like(pattern, text), "{pattern} {text}");
        }
    }
}
