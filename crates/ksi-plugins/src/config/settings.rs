//! What can be configured: the types that say it are also its schema and its documentation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What `config.toml` may say; every line is optional.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The model to use when a request names none, such as `local`.
    pub model: Option<String>,
    /// The local model.
    pub local: Local,
    /// The log of a daemon in the background.
    pub log: Log,
    /// How the daemon ends.
    pub shutdown: Shutdown,
    /// What makes the next start fast.
    pub checkpoint: Checkpoint,
    /// How much is kept of the past.
    pub journal: Journal,
}

/// The local model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Local {
    /// How long it stays loaded with nothing to do, in seconds.
    pub idle_seconds: u64,
}

/// The log of a daemon in the background.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How large a file becomes before the next is begun, in bytes; 1 or more.
    #[schemars(range(min = 1))]
    pub max_bytes: u64,
    /// How many full files are kept.
    pub keep_files: u32,
}

/// How the daemon ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// How long running work may take to finish, in seconds.
    pub grace_seconds: u32,
}

/// What makes the next start fast.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// A snapshot is made whenever so many facts have come: some 20 ms of a start.
    #[schemars(range(min = 1))]
    pub snapshot_every: u64,
}

/// How much is kept of what two snapshots hold as well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Journal {
    /// Facts older than so many days go.
    pub keep_days: u32,
    /// The oldest facts go when the journal has more than so many bytes.
    pub keep_bytes: u64,
}

/// What holds from the next start of the daemon on; all else holds at once.
const FROM_NEXT_START: [&str; 5] = [
    "model",
    "local.idle_seconds",
    "checkpoint.snapshot_every",
    "journal.keep_days",
    "journal.keep_bytes",
];

impl Default for Local {
    fn default() -> Self {
        Local { idle_seconds: 60 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { max_bytes: 10 << 20, keep_files: 5 }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { grace_seconds: 30 }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Checkpoint { snapshot_every: 10_000 }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Journal { keep_days: 30, keep_bytes: 1 << 30 }
    }
}

impl Config {
    /// Every key and its value, such as `local.idle_seconds`, in the order of the documentation.
    pub fn entries(&self) -> Vec<(String, Value)> {
        let tree = serde_json::to_value(self).unwrap_or_default();
        let order = |key: &String| key.contains('.');
        let mut entries = Vec::new();
        flatten("", &tree, &mut entries);
        entries.sort_by_key(|(key, _)| order(key));
        entries
    }

    /// All keys.
    pub fn keys() -> Vec<String> {
        Config::default().entries().into_iter().map(|(key, _)| key).collect()
    }
}

/// Whether a change of this key holds only from the next start on.
pub fn waits_for_start(key: &str) -> bool {
    FROM_NEXT_START.contains(&key)
}

/// The variable of the environment that takes the place of a key.
pub fn variable(key: &str) -> String {
    format!("KSI_{}", key.replace('.', "_").to_uppercase())
}

fn flatten(before: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    let Value::Object(fields) = value else {
        return into.push((before.to_owned(), value.clone()));
    };
    for (name, value) in fields {
        let key = if before.is_empty() { name.clone() } else { format!("{before}.{name}") };
        flatten(&key, value, into);
    }
}

/// The reference of all keys, as Markdown.
pub fn reference() -> String {
    let mut text = String::from(
        "<!-- Made by `ksi config show --markdown`. -->\n\n# Configuration\n\n\
         `config.toml` lies where `ksi config path` says. Every line is optional; a broken file is \
         refused with its line, and what was in force stays.\n\n\
         A variable of the environment takes the place of a line; an empty one counts as unset. \
         `ksi config show` says where each value comes from, `ksi config set KEY VALUE` changes the \
         file and keeps its comments, `ksi config reload` and SIGHUP read it again.\n\n\
         | key | default | variable | holds | meaning |\n|---|---|---|---|---|\n",
    );
    for (key, value) in Config::default().entries() {
        let default = if value.is_null() { "none".to_owned() } else { format!("`{value}`") };
        let holds = if waits_for_start(&key) { "from the next start" } else { "at once" };
        let (variable, meaning) = (variable(&key), meaning(&key));
        text += &format!("| `{key}` | {default} | `{variable}` | {holds} | {meaning} |\n");
    }
    text
}

/// What the types say of a key.
pub(super) fn schema(key: &str) -> Value {
    let schema = schemars::schema_for!(Config).to_value();
    key.split('.').fold(schema.clone(), |at, name| {
        let inner = at["properties"][name].clone();
        let target = inner["$ref"].as_str().and_then(|path| path.strip_prefix('#'));
        target.and_then(|target| schema.pointer(target)).cloned().unwrap_or(inner)
    })
}

/// A key's documentation.
fn meaning(key: &str) -> String {
    schema(key)["description"].as_str().unwrap_or_default().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_default_a_variable_and_a_meaning() {
        let keys = Config::keys();
        assert!(keys.contains(&"model".to_owned()) && keys.contains(&"log.max_bytes".to_owned()));
        assert_eq!(variable("local.idle_seconds"), "KSI_LOCAL_IDLE_SECONDS");
        for row in reference().lines().filter(|line| line.starts_with("| `")) {
            let cells = row.trim_matches('|').split('|');
            assert!(cells.clone().all(|cell| !cell.trim().is_empty()), "{row}");
            assert_eq!(cells.count(), 5, "{row}");
        }
        assert!(FROM_NEXT_START.iter().all(|key| keys.contains(&(*key).to_owned())));
    }
}
