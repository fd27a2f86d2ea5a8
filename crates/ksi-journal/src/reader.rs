//! Reading, on connections of its own, so that no read holds up an append.

use std::{
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
};

use ksi_record::{Document, JournalError, Query, Record, Select, Seq};
use rusqlite::{Connection, OptionalExtension};

use crate::{
    OpenError,
    chain::{self, Chain, Check},
    failed, open, query,
    row::{COLUMNS, Row},
    texts,
};

/// From so many facts on, two threads read them.
const MANY: usize = 1_024;

/// So many connections stay open when nobody reads.
const IDLE: usize = 4;

/// A journal that is only looked at.
pub struct Reader {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

type Trusted = Result<Reader, OpenError>;

/// Why a journal's facts cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A fact was changed, lost or put in after it was written.
    #[error("fact {seq} of the journal is not what was written")]
    Broken {
        /// The first such fact's place.
        seq: Seq,
    },
    /// A text was changed or lost after it was written; only documents say it.
    #[error("a text of the journal's documents is not what was written")]
    Text,
    /// The file could not be read so far.
    #[error(transparent)]
    Unreadable(#[from] JournalError),
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let path = open::absolute(path)?;
        let connection = open::for_reading(&path)?;
        Ok(Self { path, idle: Mutex::new(vec![connection]) })
    }

    /// The same journal, unless a fact behind this one is not what was written.
    pub(crate) fn trusted(self, from: impl FnOnce(&Self) -> Result<Seq, JournalError>) -> Trusted {
        let checked = from(&self).map_err(VerifyError::from).and_then(|from| self.verify(from));
        match checked {
            Ok(_) => Ok(self),
            Err(source) => Err(OpenError::Damaged { path: self.path, source }),
        }
    }

    /// The journal's file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The last fact's place; `Seq(0)` when there is none.
    pub fn head(&self) -> Result<Seq, JournalError> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT max(seq) FROM journal")?;
            let head: Option<u64> = statement.query_row([], |row| row.get(0))?;
            Ok(Seq(head.unwrap_or(0)))
        })
        .map_err(failed("its last fact cannot be found"))
    }

    /// Facts up to this one may be gone; `Seq(0)` when none is.
    pub fn pruned(&self) -> Result<Seq, JournalError> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT max(last) FROM gaps")?;
            let last: Option<u64> = statement.query_row([], |row| row.get(0))?;
            Ok(Seq(last.unwrap_or(0)))
        })
        .map_err(failed("where facts have gone cannot be found"))
    }

    /// The facts that the query asks for; many at once are read by two threads.
    pub fn read(&self, query: &Query) -> Result<Vec<Record>, JournalError> {
        let Some([first, second]) = halves(query) else { return self.select(query) };
        let (first, rest) = thread::scope(|scope| {
            let rest = scope.spawn(|| self.select(&second));
            let first = self.select(&first);
            (first, rest.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        let (mut facts, rest) = (first?, rest?);
        // Where facts are missing, the second half begins elsewhere.
        if facts.len() < first_half(query.limit) {
            return self.select(query);
        }
        facts.extend(rest);
        Ok(facts)
    }

    fn select(&self, asked: &Query) -> Result<Vec<Record>, JournalError> {
        let Some(query::Statement { sql, values }) = query::Statement::of(asked) else {
            return Ok(Vec::new());
        };
        let most = asked.bytes;
        let found = self.with(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query(rusqlite::params_from_iter(values))?;
            let (mut records, mut bytes) = (Vec::new(), 0);
            while (most == 0 || bytes < most)
                && let Some(row) = rows.next()?
            {
                let (fact, data, _) = Row::whole(connection, row)?;
                bytes += data.as_ref().map_or(0, |data| data.len());
                records.push(match &data {
                    Some(data) => Row { data, ..fact }.record(),
                    None => Err(fact.lost()),
                });
            }
            Ok(records)
        });
        found.map_err(failed("facts cannot be read"))?.into_iter().collect()
    }

    /// The documents that are asked for.
    pub fn documents(&self, select: &Select) -> Result<Vec<Document>, JournalError> {
        let found = self.with(|connection| query::documents(connection, select));
        found.map_err(failed("documents cannot be read"))
    }

    /// The check of this fact, if it is there.
    pub(crate) fn check(&self, seq: Seq) -> Result<Option<Check>, JournalError> {
        let Ok(seq) = i64::try_from(seq.0) else { return Ok(None) };
        self.with(|connection| before(connection, seq)).map_err(failed("facts cannot be read"))
    }

    /// Whether facts went from the journal's beginning.
    pub(crate) fn begins_later(&self) -> Result<bool, JournalError> {
        const FIRST: &str = "SELECT ifnull(min(seq), 1) > 1 FROM journal";
        let first = self.with(|connection| connection.query_row(FIRST, [], |row| row.get(0)));
        first.map_err(failed("facts cannot be read"))
    }

    /// Checks every fact behind `from` against the one before it; returns the last one's place.
    pub fn verify(&self, from: Seq) -> Result<Seq, VerifyError> {
        let checked = self.with(|connection| verify(connection, from));
        let last = checked.map_err(failed("facts cannot be read"))?;
        last.map_err(|seq| VerifyError::Broken { seq })
    }

    /// Checks every fact, and every text that facts and documents share.
    pub fn verify_all(&self) -> Result<Seq, VerifyError> {
        let last = self.verify(Seq(0))?;
        match self.with(texts::verify).map_err(failed("texts cannot be read"))? {
            true => Ok(last),
            false => Err(VerifyError::Text),
        }
    }

    /// Runs on an idle connection, or on a new one; it is kept when all went well.
    pub(crate) fn with<R>(
        &self,
        run: impl FnOnce(&Connection) -> rusqlite::Result<R>,
    ) -> rusqlite::Result<R> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let connection = match kept {
            Some(connection) => connection,
            None => open::reading_connection(&self.path)?,
        };
        let result = run(&connection)?;
        let mut idle = idle();
        if idle.len() < IDLE {
            idle.push(connection);
        }
        Ok(result)
    }
}

/// The two halves of a query for so many facts in order that a second thread is worth its while.
fn halves(query: &Query) -> Option<[Query; 2]> {
    let Query { after, limit, .. } = *query;
    let plain = Query::page(after, limit);
    let middle = Seq(after.0.checked_add(first_half(limit) as u64)?);
    let rest = limit - first_half(limit);
    let first = Query { until: Some(middle), ..Query::page(after, first_half(limit)) };
    (limit >= MANY && *query == plain).then(|| [first, Query::page(middle, rest)])
}

fn first_half(limit: usize) -> usize {
    limit / 2
}

/// The last fact's place, or that of the first one that does not fit behind the one before it.
fn verify(connection: &Connection, from: Seq) -> rusqlite::Result<Result<Seq, Seq>> {
    let Ok(after) = i64::try_from(from.0) else { return Ok(Ok(from)) };
    let start = if after == 0 { Some(chain::START) } else { before(connection, after)? };
    let (mut last, mut chain) = (from, start.map(Chain::up_to));
    let sql = format!("SELECT {COLUMNS} FROM journal WHERE seq > ? ORDER BY seq");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([after])?;
    while let Some(row) = rows.next()? {
        let next = last.next();
        // A value of the wrong type is a change like any other.
        let Ok((fact, Some(data), check)) = Row::whole(connection, row) else {
            return Ok(Err(next));
        };
        let fact = Row { data: &data, ..fact };
        if i64::try_from(next.0) != Ok(fact.seq) || chain.is_none() {
            chain = gap(connection, next, fact.seq - 1)?.map(Chain::up_to);
        }
        // The check covers the place too, so that a lost fact shows as well.
        if chain.as_mut().map(|chain| chain.next(&fact)) != Some(check) {
            return Ok(Err(next));
        }
        last = Seq(fact.seq.unsigned_abs());
    }
    Ok(Ok(last))
}

fn before(connection: &Connection, seq: i64) -> rusqlite::Result<Option<Check>> {
    let mut statement =
        connection.prepare_cached(r#"SELECT "check" FROM journal WHERE seq = ?"#)?;
    statement.query_row([seq], |row| row.get(0)).optional()
}

/// The check of the last of the facts that went from here to there, if all of them went.
fn gap(connection: &Connection, from: Seq, to: i64) -> rusqlite::Result<Option<Check>> {
    const GAP: &str = r#"SELECT "check" FROM gaps WHERE last = ? AND first <= ?"#;
    let Ok(from) = i64::try_from(from.0) else { return Ok(None) };
    connection.prepare_cached(GAP)?.query_row([to, from], |row| row.get(0)).optional()
}
