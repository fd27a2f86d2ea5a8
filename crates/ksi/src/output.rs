//! stdout is data, stderr is talk.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

pub(crate) use ksi_protocol::harmless;
use ksi_protocol::is_command;
use serde::Serialize;

/// Prints a line of data.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints a piece of data at once.
pub(crate) fn piece(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints data as JSON.
pub(crate) fn json(data: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(escaped(&serde_json::to_string_pretty(data)?))?)
}

/// Prints data as one line of JSON.
pub(crate) fn json_line(data: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(escaped(&serde_json::to_string(data)?))?)
}

/// JSON that means the same, without what could command a terminal: it stands in texts alone.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match is_command(c) && c != '\n' {
            true => text += &format!("\\u{:04x}", u32::from(c)),
            false => text.push(c),
        }
    }
    text
}

/// Says something to the person, also in words of others; a closed stderr is their choice.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{}", harmless(&text.to_string()));
}

/// Whether stdout may be coloured.
pub(crate) fn coloured() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The text in bold, where that can be seen.
pub(crate) fn bold(text: &str) -> String {
    if coloured() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

/// Milliseconds as people say them.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// A size as people say it.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} KB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_means_the_same_and_commands_no_terminal() {
        let data = serde_json::json!({ "a\u{202e}": ["\u{9b}2J\u{7f}\x1b[1m", "é שלום\n"] });
        let text = escaped(&serde_json::to_string_pretty(&data).unwrap());
        assert!(text.contains(r"\u009b2J\u007f\u001b") && text.contains("é שלום"), "{text}");
        assert_eq!(harmless(&text), text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), data);
    }

    #[test]
    fn sizes_read_well() {
        let said = [12, 12_345, 123_456_789].map(bytes);
        assert_eq!(said, ["12 bytes", "12 KB", "123 MB"]);
    }

    #[test]
    fn durations_read_well() {
        let said = [12, 1234, 61_500].map(duration);
        assert_eq!(said, ["12 ms", "1.2 s", "1 min 1 s"]);
    }
}
