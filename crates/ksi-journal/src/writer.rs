//! The one connection that writes.

use std::time::Duration;

use ksi_record::{Append, AppendError, Document, JournalError, Record, Seq};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use crate::{
    chain::{self, Chain, Check},
    failed,
    prune::{Needless, Retention},
    row::{COLUMNS, Row},
    texts::{self, Cut},
};

const CLAIM: &str = "UPDATE owner SET epoch = epoch + 1";

/// So many bytes must find room before facts are taken again.
const ROOM: i64 = 64 << 10;

pub(crate) struct Writer {
    connection: Connection,
    insert: String,
    /// Claimed over this epoch, with no room yet to write it down.
    unwritten_over: Option<u64>,
}

/// How the journal stands when a transaction begins.
#[derive(Clone, Copy)]
struct Standing {
    epoch: u64,
    head: Seq,
    check: Check,
}

impl Writer {
    pub(crate) fn new(connection: Connection) -> Self {
        let insert = format!("INSERT INTO journal ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)");
        Self { connection, insert, unwritten_over: None }
    }

    pub(crate) fn claim(&mut self) -> Result<u64, JournalError> {
        let claimed = match self.write_claim() {
            Err(error) if is_full(&error) => self.claim_later(),
            claimed => claimed,
        };
        claimed.map_err(failed("it cannot be claimed"))
    }

    /// Without room the first append writes the claim down; who claims before that is the owner.
    fn claim_later(&mut self) -> rusqlite::Result<u64> {
        let before = self.epoch()?;
        self.unwritten_over = Some(before);
        Ok(before + 1)
    }

    fn epoch(&self) -> rusqlite::Result<u64> {
        self.connection.query_row("SELECT epoch FROM owner", [], |row| row.get(0))
    }

    fn write_claim(&self) -> rusqlite::Result<u64> {
        // In a transaction: what a statement alone writes is only on disk when it is reset, and
        // then nobody learns that there was no room.
        let transaction = Transaction::begin(&self.connection)?;
        self.connection.execute(CLAIM, [])?;
        let epoch = self.epoch()?;
        transaction.commit()?;
        Ok(epoch)
    }

    /// Checks owner and place and writes, in one transaction, so that nobody comes in between.
    pub(crate) fn append(&mut self, batch: Append<'_>) -> Result<(), AppendError> {
        let transaction = Transaction::begin(&self.connection).map_err(not_written)?;
        let mut standing = Standing::of(&self.connection).map_err(not_written)?;
        let overtaken = self.unwritten_over.is_some_and(|before| before != standing.epoch);
        if self.unwritten_over.is_some() && !overtaken {
            self.connection.execute(CLAIM, []).map_err(not_written)?;
            standing.epoch += 1;
        }
        let Append { records, documents, expect, epoch } = batch;
        if overtaken || epoch != standing.epoch || expect != standing.head {
            return Err(AppendError::Conflict { expect, found: standing.head });
        }
        insert(&self.connection, &self.insert, records.iter().map(AsRef::as_ref), &standing)?;
        write(&self.connection, documents).map_err(not_written)?;
        transaction.commit().map_err(not_written)?;
        self.unwritten_over = None;
        if records.is_empty() { self.try_room().map_err(not_written) } else { Ok(()) }
    }

    /// Takes away a handful of facts; false when no more of them may go.
    pub(crate) fn prune(
        &self,
        needless: &mut Needless,
        retention: Retention,
    ) -> rusqlite::Result<bool> {
        needless.take(&self.connection, retention)
    }

    /// Gives back to the system what the file no longer needs, and merges the log into it.
    pub(crate) fn compact(&self) -> rusqlite::Result<()> {
        self.connection.execute_batch("VACUUM")?;
        self.tidy_up();
        Ok(())
    }

    pub(crate) fn tidy_up(&self) {
        let _ = self.connection.busy_timeout(Duration::ZERO);
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }

    /// Writes as much as a few facts take, and gives it free again for facts to come.
    fn try_room(&self) -> rusqlite::Result<()> {
        let transaction = Transaction::begin(&self.connection)?;
        self.connection.execute_batch(
            "DROP TABLE IF EXISTS room; CREATE TABLE room (bytes BLOB NOT NULL) STRICT",
        )?;
        self.connection.execute("INSERT INTO room VALUES (zeroblob(?))", [ROOM])?;
        transaction.commit()?;
        self.connection.execute_batch("DROP TABLE room")
    }
}

/// A transaction whose statements are parsed once; it is rolled back when it is dropped.
pub(crate) struct Transaction<'c>(&'c Connection);

impl<'c> Transaction<'c> {
    pub(crate) fn begin(connection: &'c Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Transaction(connection))
    }

    pub(crate) fn commit(self) -> rusqlite::Result<()> {
        self.0.prepare_cached("COMMIT")?.execute([]).map(drop)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // What failed for want of room SQLite has rolled back itself.
        if !self.0.is_autocommit() {
            let _ = self.0.execute_batch("ROLLBACK");
        }
    }
}

fn insert<'a>(
    connection: &Connection,
    sql: &str,
    records: impl Iterator<Item = &'a Record>,
    standing: &Standing,
) -> Result<(), AppendError> {
    let mut statement = connection.prepare_cached(sql).map_err(not_written)?;
    let (mut head, mut chain, mut before) = (standing.head, Chain::up_to(standing.check), None);
    for record in records {
        if record.seq != head.next() {
            let message = format!("fact {} was to be written behind fact {head}", record.seq);
            return Err(JournalError { message, source: None }.into());
        }
        let row = Row::of(record)?;
        let check = chain.next(&row);
        head = record.seq;
        let Some(Cut { rest, places }) = texts::keep(connection, row.data).map_err(not_written)?
        else {
            row.insert(before.as_ref(), &mut statement, &check, None).map_err(not_written)?;
            before = Some(row);
            continue;
        };
        let row = Row { data: &rest, ..row };
        row.insert(None, &mut statement, &check, Some(&places)).map_err(not_written)?;
        before = None;
    }
    Ok(())
}

fn write(connection: &Connection, documents: &[Document]) -> rusqlite::Result<()> {
    const PUT: &str = "INSERT INTO documents (collection, key, sort, data, texts)
        VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
        SET sort = excluded.sort, data = excluded.data, texts = excluded.texts";
    const BEFORE: &str = "SELECT texts FROM documents
        WHERE collection = ? AND key = ? AND texts IS NOT NULL";
    for Document { collection, key, sort, data } in documents {
        let mut before = connection.prepare_cached(BEFORE)?;
        let before: Option<Vec<u8>> =
            before.query_row([collection, key], |row| row.get(0)).optional()?;
        let cut = texts::keep(connection, data.get())?;
        let (data, places) = match &cut {
            Some(Cut { rest, places }) => (rest.as_str(), Some(places)),
            None => (data.get(), None),
        };
        connection.prepare_cached(PUT)?.execute(params![collection, key, sort, data, places])?;
        before.map_or(Ok(()), |places| texts::release(connection, &places))?;
    }
    Ok(())
}

impl Standing {
    fn of(connection: &Connection) -> rusqlite::Result<Self> {
        const LAST: &str = r#"SELECT epoch, seq, "check" FROM owner
            LEFT JOIN journal ON seq = (SELECT max(seq) FROM journal)"#;
        connection.prepare_cached(LAST)?.query_row([], |row| {
            let (head, check) = (row.get::<_, Option<u64>>(1)?, row.get::<_, Option<_>>(2)?);
            let (head, check) = (Seq(head.unwrap_or(0)), check.unwrap_or(chain::START));
            Ok(Self { epoch: row.get(0)?, head, check })
        })
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

fn not_written(error: rusqlite::Error) -> AppendError {
    match is_full(&error) {
        true => AppendError::Full(error.to_string()),
        false => failed("facts cannot be written")(error).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ksi_record::testing::journal_suite::record;

    use super::*;
    use crate::{Options, open::for_writing};

    fn append(writer: &mut Writer, epoch: u64, seq: u64) -> Result<(), AppendError> {
        let records = [Arc::new(record(seq))];
        writer.append(Append { records: &records, documents: &[], expect: Seq(seq - 1), epoch })
    }

    #[test]
    fn a_claim_that_found_no_room_holds_from_the_first_append_on_unless_another_came_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let open = || Writer::new(for_writing(&path, &Options::default()).unwrap());
        let (mut first, mut second, mut third) = (open(), open(), open());
        let old = first.claim().unwrap();
        let epoch = second.claim_later().unwrap();
        append(&mut first, old, 1).unwrap();
        append(&mut second, epoch, 2).unwrap();
        append(&mut second, epoch, 3).unwrap();
        assert!(matches!(append(&mut first, old, 4), Err(AppendError::Conflict { .. })));
        let late = third.claim_later().unwrap();
        let epoch = first.claim().unwrap();
        assert_eq!(late, epoch, "only who was first is the owner of this epoch");
        assert!(matches!(append(&mut third, late, 4), Err(AppendError::Conflict { .. })));
        append(&mut first, epoch, 4).unwrap();
    }
}
