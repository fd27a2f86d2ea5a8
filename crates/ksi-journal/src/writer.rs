//! The one connection that writes.

use ksi_state::{Append, AppendError, JournalError, Record, Seq};
use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::{
    chain::{self, Check},
    failed,
    row::{COLUMNS, Row},
};

pub(crate) struct Writer {
    connection: Connection,
    insert: String,
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
        let insert = format!("INSERT INTO journal ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)");
        Self { connection, insert }
    }

    pub(crate) fn claim(&mut self) -> Result<u64, JournalError> {
        // In a transaction: what a statement alone writes is only on disk when it is reset, and
        // then nobody learns that there was no room.
        let mut claim = || {
            let transaction =
                self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute("UPDATE owner SET epoch = epoch + 1", [])?;
            let epoch = transaction.query_row("SELECT epoch FROM owner", [], |row| row.get(0))?;
            transaction.commit()?;
            Ok(epoch)
        };
        claim().map_err(failed("it cannot be claimed"))
    }

    /// Checks owner and place and writes, in one transaction, so that nobody comes in between.
    pub(crate) fn append(&mut self, batch: Append<'_>) -> Result<(), AppendError> {
        let transaction = Transaction::begin(&self.connection).map_err(not_written)?;
        let standing = Standing::of(&self.connection).map_err(not_written)?;
        let Append { records, expect, epoch } = batch;
        if epoch != standing.epoch || expect != standing.head {
            return Err(AppendError::Conflict { expect, found: standing.head });
        }
        if records.is_empty() {
            return Ok(());
        }
        insert(&self.connection, &self.insert, records.iter().map(AsRef::as_ref), &standing)?;
        transaction.commit().map_err(not_written)
    }
}

/// A transaction whose statements are parsed once; it is rolled back when it is dropped.
struct Transaction<'c>(&'c Connection);

impl<'c> Transaction<'c> {
    fn begin(connection: &'c Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Transaction(connection))
    }

    fn commit(self) -> rusqlite::Result<()> {
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
    let (Standing { mut head, mut check, .. }, mut before) = (*standing, None);
    for record in records {
        if record.seq != head.next() {
            let message = format!("fact {} was to be written behind fact {head}", record.seq);
            return Err(JournalError { message, source: None }.into());
        }
        let row = Row::of(record)?;
        check = chain::check(&check, &row);
        row.insert(before.as_ref(), &mut statement, &check).map_err(not_written)?;
        (head, before) = (record.seq, Some(row));
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

fn not_written(error: rusqlite::Error) -> AppendError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => AppendError::Full(error.to_string()),
        _ => failed("facts cannot be written")(error).into(),
    }
}
