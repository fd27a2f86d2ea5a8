//! For tests: replays a recorded conversation with a socket. The format: `transcripts/README.md`.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Map, Value};

/// How long a line may take to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Replays every `*.ndjson` file of a folder, each over connections of its own; returns how many.
///
/// An error names the file, the line and what came instead.
pub fn replay_all(socket: &Path, folder: &Path) -> Result<usize, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "ndjson"));
    files.sort();
    for file in &files {
        replay(socket, file)?;
    }
    Ok(files.len())
}

/// Replays one file.
pub fn replay(socket: &Path, file: &Path) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut replayer = Replayer { socket, connections: HashMap::new(), bound: BTreeMap::new() };
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let done = serde_json::from_str(line).map_err(|error| error.to_string());
        let done = done.and_then(|step| replayer.step(&step));
        done.map_err(|why| format!("{}:{number}: {why}", file.display()))?;
    }
    Ok(())
}

struct Replayer<'a> {
    socket: &'a Path,
    connections: HashMap<String, BufReader<UnixStream>>,
    bound: BTreeMap<String, Value>,
}

impl Replayer<'_> {
    fn step(&mut self, step: &Map<String, Value>) -> Result<(), String> {
        let on = step.get("on").and_then(Value::as_str).unwrap_or("a").to_owned();
        let times = step.get("times").and_then(Value::as_u64).unwrap_or(1) as usize;
        let verb = step.keys().find(|key| !["on", "times"].contains(&key.as_str()));
        let verb = verb.ok_or("a step without a verb")?;
        let argument = &step[verb];
        match verb.as_str() {
            "note" => Ok(()),
            "send" => self.send(&on, format!("{}\n", self.filled(argument)?).as_bytes()),
            "send_raw" => self.send(&on, text(argument)?.repeat(times).as_bytes()),
            "send_hex" => self.send(&on, &bytes(text(argument)?)?.repeat(times)),
            "end_input" => {
                let ended = self.connection(&on)?.get_ref().shutdown(Shutdown::Write);
                ended.map_err(|error| error.to_string())
            }
            "expect" => {
                let line = self.line(&on)?.ok_or("the connection ended")?;
                let mut bound = self.bound.clone();
                matches(argument, &line, &mut bound).map_err(|why| format!("{why}, in {line}"))?;
                self.bound = bound;
                Ok(())
            }
            "expect_in_any_order" => self.expect_in_any_order(&on, argument),
            "expect_end" => match self.line(&on)? {
                None => Ok(()),
                Some(line) => Err(format!("expected the end, got {line}")),
            },
            other => Err(format!("there is no step `{other}`")),
        }
    }

    fn expect_in_any_order(&mut self, on: &str, expected: &Value) -> Result<(), String> {
        let mut expected = expected.as_array().ok_or("expected a list")?.clone();
        while !expected.is_empty() {
            let line = self.line(on)?.ok_or("the connection ended")?;
            let mut bound = BTreeMap::new();
            let found = expected.iter().position(|one| {
                bound = self.bound.clone();
                matches(one, &line, &mut bound).is_ok()
            });
            expected.remove(found.ok_or_else(|| format!("nobody expects {line}"))?);
            self.bound = bound;
        }
        Ok(())
    }

    fn connection(&mut self, on: &str) -> Result<&mut BufReader<UnixStream>, String> {
        if !self.connections.contains_key(on) {
            let connect = || {
                let stream = UnixStream::connect(self.socket)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(BufReader::new(stream))
            };
            let made = connect().map_err(|error: std::io::Error| error.to_string())?;
            self.connections.insert(on.to_owned(), made);
        }
        self.connections.get_mut(on).ok_or_else(|| "no connection".to_owned())
    }

    fn send(&mut self, on: &str, bytes: &[u8]) -> Result<(), String> {
        let mut stream = self.connection(on)?.get_ref();
        stream.write_all(bytes).map_err(|error| error.to_string())
    }

    fn line(&mut self, on: &str) -> Result<Option<Value>, String> {
        let mut line = String::new();
        let read = self.connection(on)?.read_line(&mut line);
        if read.map_err(|error| format!("no line came: {error}"))? == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line).map(Some).map_err(|error| format!("{error}: {line}"))
    }

    /// What is to be sent, with names replaced by what they are bound to.
    fn filled(&self, value: &Value) -> Result<Value, String> {
        match value {
            Value::String(name) if name.starts_with('$') => {
                self.bound.get(name).cloned().ok_or_else(|| format!("{name} is not bound yet"))
            }
            Value::Array(values) => values.iter().map(|value| self.filled(value)).collect(),
            Value::Object(fields) => {
                let filled = |(key, value): (&String, _)| Ok((key.clone(), self.filled(value)?));
                fields.iter().map(filled).collect::<Result<Map<_, _>, String>>().map(Value::Object)
            }
            value => Ok(value.clone()),
        }
    }
}

fn matches(
    expected: &Value,
    found: &Value,
    bound: &mut BTreeMap<String, Value>,
) -> Result<(), String> {
    match (expected, found) {
        (Value::String(name), _) if name.starts_with('$') => placeholder(name, found, bound),
        (Value::Object(wanted), _) if wanted.contains_key("$contains") => {
            let part = text(&wanted["$contains"])?;
            let holds = found.as_str().is_some_and(|found| found.contains(part));
            if holds { Ok(()) } else { Err(format!("expected a text with {part:?}, got {found}")) }
        }
        (Value::Object(wanted), Value::Object(fields)) => object(wanted, fields, bound),
        (Value::Array(wanted), Value::Array(values)) if wanted.len() == values.len() => {
            wanted.iter().zip(values).try_for_each(|(one, other)| matches(one, other, bound))
        }
        _ if expected == found => Ok(()),
        _ => Err(format!("expected {expected}, got {found}")),
    }
}

fn placeholder(
    name: &str,
    found: &Value,
    bound: &mut BTreeMap<String, Value>,
) -> Result<(), String> {
    let fits = match name {
        "$any" => true,
        "$number" => found.is_number(),
        "$string" => found.is_string(),
        "$bool" => found.is_boolean(),
        "$object" => found.is_object(),
        "$array" => found.is_array(),
        name => bound.entry(name.to_owned()).or_insert_with(|| found.clone()) == found,
    };
    if fits {
        return Ok(());
    }
    let known = bound.get(name).map(|value| format!(" ({value})")).unwrap_or_default();
    Err(format!("expected {name}{known}, got {found}"))
}

fn object(
    wanted: &Map<String, Value>,
    fields: &Map<String, Value>,
    bound: &mut BTreeMap<String, Value>,
) -> Result<(), String> {
    for (key, value) in wanted.iter().filter(|(key, _)| *key != "$more") {
        let field = fields.get(key).ok_or_else(|| format!("`{key}` is missing"))?;
        matches(value, field, bound).map_err(|why| format!("`{key}`: {why}"))?;
    }
    let more = fields.keys().find(|key| !wanted.contains_key(*key));
    match more.filter(|_| !wanted.contains_key("$more")) {
        None => Ok(()),
        Some(key) => Err(format!("`{key}` was not expected")),
    }
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("expected a text, got {value}"))
}

fn bytes(hex: &str) -> Result<Vec<u8>, String> {
    let pair = |at| u8::from_str_radix(hex.get(at..at + 2).unwrap_or("?"), 16);
    let bytes: Result<_, _> = (0..hex.len()).step_by(2).map(pair).collect();
    bytes.map_err(|error| format!("{hex:?} is not hexadecimal: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fits(expected: &Value, found: &Value) -> bool {
        matches(expected, found, &mut BTreeMap::new()).is_ok()
    }

    #[test]
    fn an_object_must_have_the_same_keys_unless_more_are_allowed() {
        assert!(fits(&json!({"a": 1}), &json!({"a": 1})));
        assert!(!fits(&json!({"a": 1}), &json!({"a": 1, "b": 2})));
        assert!(!fits(&json!({"a": 1, "b": 2}), &json!({"a": 1})));
        assert!(fits(&json!({"a": 1, "$more": true}), &json!({"a": 1, "b": 2})));
    }

    #[test]
    fn a_placeholder_takes_its_type_and_a_name_the_same_value_again() {
        assert!(fits(&json!(["$number", "$string", "$any"]), &json!([1.5, "x", null])));
        assert!(!fits(&json!("$number"), &json!("1")));
        assert!(fits(&json!(["$id", "$id"]), &json!(["x", "x"])));
        assert!(!fits(&json!(["$id", "$id"]), &json!(["x", "y"])));
        assert!(fits(&json!({"$contains": "mean"}), &json!("did you mean")));
        assert!(!fits(&json!({"$contains": "mean"}), &json!("did you")));
    }
}
