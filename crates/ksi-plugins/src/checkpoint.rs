//! Checkpoint: snapshots of what the plugins know, and the upkeep of the journal behind them.

use std::{path::PathBuf, sync::Arc};

use ksi_journal::{Kept, SqliteJournal};
use ksi_kernel::{Ctx, Error, Plugin, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The plugin: `checkpoint:save list status`, `journal:stats verify compact backup`.
pub fn plugin(journal: Arc<SqliteJournal>) -> Plugin<()> {
    let [list, stats, verify, compact, backup] = std::array::from_fn(|_| journal.clone());
    Plugin::new("checkpoint")
        .on("checkpoint:save", save)
        .on("checkpoint:list", move |_, _: List| snapshots(list.clone()))
        .on("checkpoint:status", move |cx, _: Status| status(cx, journal.clone()))
        .on("journal:stats", move |_, _: Stats| stats_of(stats.clone()))
        .on("journal:verify", move |_, _: Verify| verified(verify.clone()))
        .on("journal:compact", move |_, _: Compact| compacted(compact.clone()))
        .on("journal:backup", move |_, req| backed_up(backup.clone(), req))
}

/// Make a snapshot now, so that the next start has less to fold.
#[derive(Debug, Deserialize, JsonSchema)]
struct Save {}

/// List the snapshots, newest first.
#[derive(Debug, Deserialize, JsonSchema)]
struct List {}

/// How much the next start would have to fold.
#[derive(Debug, Deserialize, JsonSchema)]
struct Status {}

/// How the journal stands.
#[derive(Debug, Deserialize, JsonSchema)]
struct Stats {}

/// Check that every fact in the journal is what was written.
#[derive(Debug, Deserialize, JsonSchema)]
struct Verify {}

/// Give the system back what the journal's file no longer needs; nothing is written meanwhile.
#[derive(Debug, Deserialize, JsonSchema)]
struct Compact {}

/// Copy the journal and its snapshots into one file, while everything goes on.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "path": "/mnt/backups/ksi.db" }))]
struct Backup {
    /// The new file, from the root.
    path: PathBuf,
}

/// What became of the snapshot.
#[derive(Debug, Serialize, JsonSchema)]
struct Saved {
    status: &'static str,
    /// The last fact that it holds.
    seq: u64,
}

/// The snapshots.
#[derive(Debug, Serialize, JsonSchema)]
struct Snapshots {
    snapshots: Vec<Snapshot>,
    count: usize,
}

/// One snapshot.
#[derive(Debug, Serialize, JsonSchema)]
struct Snapshot {
    path: PathBuf,
    bytes: u64,
    /// The last fact that it holds; none when it cannot be used.
    seq: Option<u64>,
    /// What it holds of each plugin.
    plugins: Vec<Section>,
    /// Why it cannot be used.
    problem: Option<String>,
}

/// One plugin's part of a snapshot.
#[derive(Debug, Serialize, JsonSchema)]
struct Section {
    plugin: String,
    /// The version of its state's shape.
    version: u16,
    /// The last fact that its state holds.
    seq: u64,
    bytes: usize,
}

/// How much is in a snapshot and how much is not.
#[derive(Debug, Serialize, JsonSchema)]
struct Behind {
    /// The newest snapshot's last fact; 0 when there is none.
    snapshot_seq: u64,
    /// The last durable fact.
    durable_seq: u64,
    /// So many facts the next start folds.
    behind: u64,
}

/// The journal in numbers.
#[derive(Debug, Serialize, JsonSchema)]
struct Counted {
    /// How many facts it holds.
    facts: u64,
    /// The first of them; none when it is empty.
    first_seq: Option<u64>,
    /// The last of them.
    last_seq: u64,
    /// When the first happened, in seconds since the epoch.
    since: Option<f64>,
    documents: u64,
    /// The size of its file.
    bytes: u64,
    /// How much of that is free for what comes.
    free_bytes: u64,
    /// The size of its log.
    log_bytes: u64,
}

/// Every fact up to this one is what was written.
#[derive(Debug, Serialize, JsonSchema)]
struct Verified {
    status: &'static str,
    seq: u64,
}

/// The file before and after.
#[derive(Debug, Serialize, JsonSchema)]
struct Compacted {
    status: &'static str,
    bytes_before: u64,
    bytes: u64,
}

/// The copy.
#[derive(Debug, Serialize, JsonSchema)]
struct BackedUp {
    status: &'static str,
    path: PathBuf,
    /// The last fact in it.
    seq: u64,
    bytes: u64,
}

async fn save(cx: Ctx<()>, _: Save) -> Result<Saved> {
    let made = cx.daemon().snapshots().make().await;
    Ok(Saved { status: "saved", seq: made.map_err(|error| failed(&error))?.0 })
}

async fn snapshots(journal: Arc<SqliteJournal>) -> Result<Snapshots> {
    let kept = blocking(move || journal.snapshots().map_err(|error| failed(&error))).await?;
    let snapshots: Vec<_> = kept.into_iter().map(Snapshot::of).collect();
    Ok(Snapshots { count: snapshots.len(), snapshots })
}

impl Snapshot {
    fn of(kept: Kept) -> Self {
        let Kept { path, bytes, header } = kept;
        match header {
            Err(error) => {
                let problem = Some(with_causes(&error));
                Snapshot { path, bytes, seq: None, plugins: Vec::new(), problem }
            }
            Ok(header) => {
                let plugins = header.sections.into_iter().map(|entry| Section {
                    plugin: entry.plugin,
                    version: entry.version,
                    seq: entry.seq,
                    bytes: entry.bytes,
                });
                let (seq, plugins) = (Some(header.seq), plugins.collect());
                Snapshot { path, bytes, seq, plugins, problem: None }
            }
        }
    }
}

async fn status(cx: Ctx<()>, journal: Arc<SqliteJournal>) -> Result<Behind> {
    let kept = blocking(move || journal.snapshots().map_err(|error| failed(&error))).await?;
    let newest = kept.into_iter().find_map(|kept| kept.header.ok());
    let snapshot_seq = newest.map_or(0, |header| header.seq);
    let durable_seq = cx.daemon().position().1.0;
    Ok(Behind { snapshot_seq, durable_seq, behind: durable_seq.saturating_sub(snapshot_seq) })
}

async fn stats_of(journal: Arc<SqliteJournal>) -> Result<Counted> {
    let stats = blocking(move || journal.stats().map_err(|error| failed(&error))).await?;
    Ok(Counted {
        facts: stats.facts,
        first_seq: stats.first,
        last_seq: stats.last,
        since: stats.since.map(|at| at as f64 / 1000.0),
        documents: stats.documents,
        bytes: stats.bytes,
        free_bytes: stats.free,
        log_bytes: stats.log,
    })
}

async fn verified(journal: Arc<SqliteJournal>) -> Result<Verified> {
    let checked = move || {
        journal.verify_all().map_err(|error| {
            let error = Error::unavailable(with_causes(&error)).retryable(false);
            error.hint("`ksi stop`, then `ksi restore` brings a backup back")
        })
    };
    Ok(Verified { status: "well", seq: blocking(checked).await?.0 })
}

async fn compacted(journal: Arc<SqliteJournal>) -> Result<Compacted> {
    let compact = move || {
        let before = journal.stats()?.bytes;
        journal.compact()?;
        Ok(Compacted { status: "compacted", bytes_before: before, bytes: journal.stats()?.bytes })
    };
    blocking(move || compact().map_err(|error: ksi_state::JournalError| failed(&error))).await
}

async fn backed_up(journal: Arc<SqliteJournal>, Backup { path }: Backup) -> Result<BackedUp> {
    if !path.is_absolute() {
        return Err(Error::bad_params("it must begin at the root").at("path"));
    }
    blocking(move || {
        let written = journal
            .backup(&path)
            .map_err(|error| Error::unavailable(with_causes(&error)).at("path").retryable(false))?;
        Ok(BackedUp { status: "saved", path, seq: written.seq.0, bytes: written.bytes })
    })
    .await
}

async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R> + Send + 'static,
) -> Result<R> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::internal("work on the journal panicked")))
}

fn failed(error: &ksi_state::JournalError) -> Error {
    Error::unavailable(with_causes(error))
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
