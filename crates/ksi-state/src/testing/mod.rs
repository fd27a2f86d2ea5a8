//! For tests: looks at states, places to stop, and a journal in memory.

pub use ksi_record::testing::memory;

/// One plugin's state and wants at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The plugin.
    pub plugin: &'static str,
    /// Why its state cannot be trusted.
    pub degraded: Option<String>,
    /// Its state.
    pub state: serde_json::Value,
    /// Its wants, as text.
    pub wanted: Vec<String>,
}

/// Whether the journal has no room: as long as there is the file that `KSI_FULL` names.
pub fn is_full() -> bool {
    static FILE: std::sync::OnceLock<Option<std::path::PathBuf>> = std::sync::OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os("KSI_FULL").map(Into::into));
    file.as_ref().is_some_and(|file| file.exists())
}

/// Stops this thread for good where `KSI_HOLD=point:n` says, once fact `n` is reached.
///
/// It says so on stderr first, so that a test can kill the process exactly there.
#[allow(clippy::print_stderr, reason = "the test reads it")]
pub fn hold(point: &str, last: Option<&std::sync::Arc<crate::Record>>) {
    let Some(n) = last.map(|record| record.seq.0) else { return };
    static HOLD: std::sync::OnceLock<Option<(String, u64)>> = std::sync::OnceLock::new();
    let hold = HOLD.get_or_init(|| {
        let text = std::env::var("KSI_HOLD").ok()?;
        let (point, n) = text.split_once(':')?;
        Some((point.to_owned(), n.parse().ok()?))
    });
    if hold.as_ref().is_some_and(|(at, from)| at == point && n >= *from) {
        eprintln!("held at {point}:{n}");
        loop {
            std::thread::park();
        }
    }
}
