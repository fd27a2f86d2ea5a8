//! `ksi checkpoint`, `ksi journal`, `ksi backup` and `ksi restore`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use ksi_journal::SqliteJournal;
use ksi_process::lock::Lock;
use ksi_protocol::{Code, Error};
use serde_json::{Value, json};

use crate::{
    args::{CheckpointVerb, JournalVerb},
    connect::Cx,
    daemon::JOURNAL,
    output::{bytes, json, line},
};

/// Makes or lists snapshots.
pub(crate) async fn checkpoint(cx: &Cx, verb: &CheckpointVerb) -> anyhow::Result<ExitCode> {
    let event = match verb {
        CheckpointVerb::Save => "checkpoint:save",
        CheckpointVerb::List => "checkpoint:list",
        CheckpointVerb::Status => "checkpoint:status",
    };
    let reply: Value = cx.client().await?.call(event, &json!({})).await?;
    if cx.json() {
        json(&reply)?;
        return Ok(ExitCode::SUCCESS);
    }
    match verb {
        CheckpointVerb::Save => line(format!("saved up to fact {}", reply["seq"]))?,
        CheckpointVerb::Status => line(behind(&reply))?,
        CheckpointVerb::List => {
            reply["snapshots"].as_array().into_iter().flatten().try_for_each(|snapshot| {
                let path = snapshot["path"].as_str().unwrap_or_default();
                let size = bytes(snapshot["bytes"].as_u64().unwrap_or_default());
                match snapshot["problem"].as_str() {
                    Some(problem) => line(format!("{path}  cannot be used: {problem}")),
                    None => line(format!("{path}  up to fact {}, {size}", snapshot["seq"])),
                }
            })?
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How much the next start would have to fold.
fn behind(reply: &Value) -> String {
    let since = match reply["behind"].as_u64().unwrap_or_default() {
        0 => "no fact has come since".to_owned(),
        1 => "1 fact has come since".to_owned(),
        facts => format!("{facts} facts have come since"),
    };
    match reply["snapshot_seq"].as_u64().unwrap_or_default() {
        0 => format!("there is no snapshot; {}", since.replace(" since", "")),
        seq => format!("the newest snapshot holds all up to fact {seq}; {since}"),
    }
}

/// Looks after the journal.
pub(crate) async fn journal(cx: &Cx, verb: &JournalVerb) -> anyhow::Result<ExitCode> {
    let event = match verb {
        JournalVerb::Stats => "journal:stats",
        JournalVerb::Verify => "journal:verify",
        JournalVerb::Compact => "journal:compact",
    };
    let reply: Value = cx.client().await?.call(event, &json!({})).await?;
    if cx.json() {
        json(&reply)?;
        return Ok(ExitCode::SUCCESS);
    }
    let size = |name: &str| bytes(reply[name].as_u64().unwrap_or_default());
    match verb {
        JournalVerb::Stats => {
            line(format!("{:10} {}", "facts", reply["facts"]))?;
            line(format!("{:10} {}", "first", reply["first_seq"]))?;
            line(format!("{:10} {}", "last", reply["last_seq"]))?;
            line(format!("{:10} {}", "documents", reply["documents"]))?;
            line(format!("{:10} {}, {} of it free", "file", size("bytes"), size("free_bytes")))?;
            line(format!("{:10} {}", "log", size("log_bytes")))?;
        }
        JournalVerb::Verify => {
            line(format!("every fact up to {} is what was written", reply["seq"]))?;
        }
        JournalVerb::Compact => {
            line(format!("{} instead of {}", size("bytes"), size("bytes_before")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Copies the journal into one file while the daemon runs.
pub(crate) async fn backup(cx: &Cx, file: &Path) -> anyhow::Result<ExitCode> {
    let path = std::path::absolute(file)?;
    let reply: Value = cx.client().await?.call("journal:backup", &json!({ "path": path })).await?;
    if cx.json() {
        json(&reply)?;
        return Ok(ExitCode::SUCCESS);
    }
    let size = bytes(reply["bytes"].as_u64().unwrap_or_default());
    line(format!("{} holds all up to fact {}, {size}", path.display(), reply["seq"]))?;
    Ok(ExitCode::SUCCESS)
}

/// Brings a backup back into the home of a daemon that does not run.
pub(crate) fn restore(cx: &Cx, file: &Path, replace: bool) -> anyhow::Result<ExitCode> {
    crate::daemon::state_folder(&cx.paths)?;
    if let Err(why) = std::fs::File::open(file) {
        let why = format!("{} cannot be read: {why}", file.display());
        return Err(Error::new(Code::NotFound, why).hint("nothing was changed").into());
    }
    let _lock = Lock::acquire(&cx.paths.lock).map_err(|error| {
        Error::conflict(error.to_string()).hint("`ksi stop` first: nothing was changed")
    })?;
    let journal = cx.paths.state.join(JOURNAL);
    let aside = match (journal.exists(), replace) {
        (false, _) => None,
        (true, true) => Some(move_aside(&journal)?),
        (true, false) => {
            let why = format!("{} is there already", journal.display());
            let hint = "`--replace` moves it aside; nothing was changed";
            return Err(Error::conflict(why).hint(hint).into());
        }
    };
    let restored = SqliteJournal::restore(file, &journal);
    let restored = match (restored, &aside) {
        (Err(error), Some(aside)) => {
            move_back(aside, &journal)?;
            return Err(error).with_context(|| format!("{} was not restored", file.display()));
        }
        (restored, _) => {
            restored.with_context(|| format!("{} was not restored", file.display()))?
        }
    };
    if cx.json() {
        json(&json!({ "status": "restored", "seq": restored.seq, "replaced": aside }))?;
        return Ok(ExitCode::SUCCESS);
    }
    line(format!("restored up to fact {}", restored.seq))?;
    if let Some(aside) = aside {
        line(format!("what was there before is now {}", aside.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The files that make up a journal besides its own.
const BESIDE: [&str; 3] = ["db-wal", "db-shm", "snapshots"];

/// Gives the journal and what belongs to it a name that nothing has yet.
fn move_aside(journal: &Path) -> anyhow::Result<PathBuf> {
    let free = |number: &u32| !journal.with_file_name(format!("before-{number}.db")).exists();
    let number = (1..u32::MAX).find(free).context("there is no free name")?;
    let aside = journal.with_file_name(format!("before-{number}.db"));
    rename_all(journal, &aside)?;
    Ok(aside)
}

fn move_back(aside: &Path, journal: &Path) -> anyhow::Result<()> {
    rename_all(aside, journal)
}

fn rename_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    for kind in BESIDE {
        let (from, to) = (from.with_extension(kind), to.with_extension(kind));
        if from.exists() {
            std::fs::rename(&from, &to)
                .with_context(|| format!("{} cannot be moved aside", from.display()))?;
        }
    }
    // Last: as long as it is there, so is the journal.
    std::fs::rename(from, to).with_context(|| format!("{} cannot be moved aside", from.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_since_the_newest_snapshot_is_told_in_a_sentence() {
        let told = |seq, facts| behind(&json!({ "snapshot_seq": seq, "behind": facts }));
        assert_eq!(told(0, 0), "there is no snapshot; no fact has come");
        assert_eq!(told(0, 7), "there is no snapshot; 7 facts have come");
        let newest = "the newest snapshot holds all up to fact 9";
        assert_eq!(told(9, 0), format!("{newest}; no fact has come since"));
        assert_eq!(told(9, 1), format!("{newest}; 1 fact has come since"));
        assert_eq!(told(9, 2), format!("{newest}; 2 facts have come since"));
    }
}
