//! The one connection that writes.

use ksi_state::{Append, AppendError, JournalError, Record, Seq};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior};

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
        // A transaction that is dropped is rolled back.
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(not_written)?;
        let standing = Standing::of(&transaction).map_err(not_written)?;
        let Append { records, expect, epoch } = batch;
        if epoch != standing.epoch || expect != standing.head {
            return Err(AppendError::Conflict { expect, found: standing.head });
        }
        if records.is_empty() {
            return Ok(());
        }
        insert(&transaction, &self.insert, records.iter().map(AsRef::as_ref), &standing)?;
        transaction.commit().map_err(not_written)
    }
}

fn insert<'a>(
    transaction: &Transaction<'_>,
    sql: &str,
    records: impl Iterator<Item = &'a Record>,
    standing: &Standing,
) -> Result<(), AppendError> {
    let mut statement = transaction.prepare_cached(sql).map_err(not_written)?;
    let Standing { mut head, mut check, .. } = *standing;
    for record in records {
        if record.seq != head.next() {
            let message = format!("fact {} was to be written behind fact {head}", record.seq);
            return Err(JournalError { message, source: None }.into());
        }
        let row = Row::of(record)?;
        check = chain::check(&check, &row);
        row.insert(&mut statement, &check).map_err(not_written)?;
        head = record.seq;
    }
    Ok(())
}

impl Standing {
    fn of(transaction: &Transaction<'_>) -> rusqlite::Result<Self> {
        let epoch = transaction
            .prepare_cached("SELECT epoch FROM owner")?
            .query_row([], |row| row.get(0))?;
        let last = transaction
            .prepare_cached(r#"SELECT seq, "check" FROM journal ORDER BY seq DESC LIMIT 1"#)?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (head, check) = last.unwrap_or((0, chain::START));
        Ok(Self { epoch, head: Seq(head), check })
    }
}

fn not_written(error: rusqlite::Error) -> AppendError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => AppendError::Full(error.to_string()),
        _ => failed("facts cannot be written")(error).into(),
    }
}
