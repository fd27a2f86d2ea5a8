//! stdout is data, stderr is talk.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

pub(crate) use ksi_protocol::harmless;
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
    Ok(line(serde_json::to_string_pretty(data)?)?)
}

/// Prints data as one line of JSON.
pub(crate) fn json_line(data: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string(data)?)?)
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
