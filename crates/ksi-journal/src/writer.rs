//! The one connection that writes.

use ksi_state::{Append, AppendError, JournalError, Record, Seq};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior};

use crate::{
    chain::{self, Check},
    failed,
    row::{COLUMNS, Row},
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
struct Standing {
    epoch: u64,
    head: Seq,
    check: Check,
}

impl Writer {
    pub(crate) fn new(connection: Connection) -> Self {
        let insert = format!("INSERT INTO journal ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)");
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
        let before = self.connection.query_row("SELECT epoch FROM owner", [], |row| row.get(0))?;
        self.unwritten_over = Some(before);
        Ok(before + 1)
    }

    fn write_claim(&mut self) -> rusqlite::Result<u64> {
        // In a transaction: what a statement alone writes is only on disk when it is reset, and
        // then nobody learns that there was no room.
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute(CLAIM, [])?;
        let epoch = transaction.query_row("SELECT epoch FROM owner", [], |row| row.get(0))?;
        transaction.commit()?;
        Ok(epoch)
    }

    /// Checks owner and place and writes, in one transaction, so that nobody comes in between.
    pub(crate) fn append(&mut self, batch: Append<'_>) -> Result<(), AppendError> {
        // A transaction that is dropped is rolled back.
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(not_written)?;
        let mut standing = Standing::of(&transaction).map_err(not_written)?;
        let overtaken = self.unwritten_over.is_some_and(|before| before != standing.epoch);
        if self.unwritten_over.is_some() && !overtaken {
            transaction.execute(CLAIM, []).map_err(not_written)?;
            standing.epoch += 1;
        }
        let Append { records, expect, epoch } = batch;
        if overtaken || epoch != standing.epoch || expect != standing.head {
            return Err(AppendError::Conflict { expect, found: standing.head });
        }
        insert(&transaction, &self.insert, records.iter().map(AsRef::as_ref), &standing)?;
        transaction.commit().map_err(not_written)?;
        self.unwritten_over = None;
        if records.is_empty() { self.try_room().map_err(not_written) } else { Ok(()) }
    }

    /// Writes as much as a few facts take, and gives it free again for facts to come.
    fn try_room(&mut self) -> rusqlite::Result<()> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(
            "DROP TABLE IF EXISTS room; CREATE TABLE room (bytes BLOB NOT NULL) STRICT",
        )?;
        transaction.execute("INSERT INTO room VALUES (zeroblob(?))", [ROOM])?;
        transaction.commit()?;
        self.connection.execute_batch("DROP TABLE room")
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

    use ksi_state::testing::journal_suite::record;

    use super::*;
    use crate::{Options, open::for_writing};

    fn append(writer: &mut Writer, epoch: u64, seq: u64) -> Result<(), AppendError> {
        let records = [Arc::new(record(seq))];
        writer.append(Append { records: &records, expect: Seq(seq - 1), epoch })
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
