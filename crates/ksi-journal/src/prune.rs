//! Pruning: facts that snapshots have made needless go, oldest first.

use std::collections::HashSet;

use ksi_record::Seq;
use rusqlite::{Connection, params};

use crate::{texts, writer::Transaction};

/// How much is kept of what snapshots have made needless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Facts that happened so long before the newest snapshot may go, in milliseconds.
    pub age_ms: u64,
    /// Facts beyond so many bytes of the file may go.
    pub bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age_ms: 30 * 24 * 60 * 60 * 1_000, bytes: 1 << 30 }
    }
}

/// So many facts go at once: an append waits for no more than these.
const AT_ONCE: usize = 500;

/// What may go: facts before this one, and at most those that are old or too much.
#[derive(Debug)]
pub(crate) struct Needless {
    /// The older snapshot begins where this fact ends.
    pub(crate) before: Seq,
    /// What happened before this may go, in milliseconds since the epoch.
    pub(crate) at: i64,
    /// The newest of each value's facts, which stay.
    kept: HashSet<i64>,
    /// How far it has come.
    reached: i64,
}

impl Needless {
    /// Of each key of `state:*` the last fact stays: it is the only place that says who set it.
    pub(crate) fn find(connection: &Connection, before: Seq, at: i64) -> rusqlite::Result<Self> {
        let before_ = i64::try_from(before.0).unwrap_or(i64::MAX);
        const LAST: &str = "SELECT max(seq) FROM journal
            WHERE seq < ? AND name >= 'state:' AND name < 'state;' GROUP BY subject";
        let mut statement = connection.prepare(LAST)?;
        let kept = statement.query_map([before_], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(Self { before, at, kept, reached: 0 })
    }

    /// Takes away a handful; false when nothing more may go.
    pub(crate) fn take(
        &mut self,
        connection: &Connection,
        retention: Retention,
    ) -> rusqlite::Result<bool> {
        let transaction = Transaction::begin(connection)?;
        let too_much = bytes_in_use(connection)? > retention.bytes;
        let handful = self.handful(connection, too_much)?;
        let Some((last, _)) = handful.last() else { return Ok(false) };
        self.reached = *last;
        for (seq, check) in handful.iter().filter(|(seq, _)| !self.kept.contains(seq)) {
            go(connection, *seq, check)?;
        }
        transaction.commit()?;
        Ok(true)
    }

    fn handful(
        &self,
        connection: &Connection,
        too_much: bool,
    ) -> rusqlite::Result<Vec<(i64, Vec<u8>)>> {
        const NEXT: &str = r#"SELECT seq, "check" FROM journal
            WHERE seq > ? AND seq < ? AND (at < ? OR ?) ORDER BY seq LIMIT ?"#;
        let before = i64::try_from(self.before.0).unwrap_or(i64::MAX);
        let mut statement = connection.prepare_cached(NEXT)?;
        let rows = statement
            .query_map(params![self.reached, before, self.at, too_much, AT_ONCE as i64], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        rows.collect()
    }
}

/// Takes away one fact. What is left of it, and of those before it that went, is a gap: from where
/// to where, and the check by which the fact behind it is checked.
fn go(connection: &Connection, seq: i64, check: &[u8]) -> rusqlite::Result<()> {
    const LONGER: &str = r#"UPDATE gaps SET last = ?1, "check" = ?2 WHERE last = ?1 - 1"#;
    const NEW: &str = r#"INSERT INTO gaps (first, last, "check") VALUES (?1, ?1, ?2)"#;
    if connection.prepare_cached(LONGER)?.execute(params![seq, check])? == 0 {
        connection.prepare_cached(NEW)?.execute(params![seq, check])?;
    }
    const DELETE: &str = "DELETE FROM journal WHERE seq = ? RETURNING texts";
    let texts: Option<Vec<u8>> =
        connection.prepare_cached(DELETE)?.query_row([seq], |row| row.get(0))?;
    texts.map_or(Ok(()), |places| texts::release(connection, &places))?;
    Ok(())
}

/// What the file holds, without the pages that are free for what comes.
pub(crate) fn bytes_in_use(connection: &Connection) -> rusqlite::Result<u64> {
    let [bytes, free] = bytes(connection)?;
    Ok(bytes - free)
}

/// The file's size once its log is in it, and how much of that is free for what comes.
pub(crate) fn bytes(connection: &Connection) -> rusqlite::Result<[u64; 2]> {
    let number = |sql| connection.query_row(sql, [], |row| row.get::<_, u64>(0));
    let size = number("PRAGMA page_size")?;
    Ok([number("PRAGMA page_count")? * size, number("PRAGMA freelist_count")? * size])
}
