//! How a file becomes a journal, and which files do not.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::{Retention, VerifyError, shelf::Shelf};

/// Marks an SQLite file as ours: `KSIj` in ASCII.
const APPLICATION: i64 = 0x4b53_496a;

/// The shape of the tables below, once brought up to date.
const SHAPE: i64 = 1 + UPGRADES.len() as i64;

/// No secondary index: each costs the commit far more than reading gains.
const TABLES: &str = r#"
    CREATE TABLE journal (
        seq INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        name TEXT NOT NULL,
        v INTEGER NOT NULL,
        subject TEXT NOT NULL,
        principal TEXT NOT NULL,
        correlation TEXT,
        cause INTEGER,
        chain TEXT,
        data TEXT NOT NULL,
        "check" BLOB NOT NULL
    ) STRICT;
    CREATE TABLE owner (epoch INTEGER NOT NULL) STRICT;
    INSERT INTO owner VALUES (0);
"#;

/// What makes each shape the next one; a new file goes through all of them too.
const UPGRADES: [&str; 2] = [
    r#"
    CREATE TABLE documents (
        collection TEXT NOT NULL,
        key TEXT NOT NULL,
        sort INTEGER NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (collection, key)
    ) STRICT;
    CREATE INDEX documents_in_order ON documents (collection, sort, key);
    CREATE TABLE gaps (
        last INTEGER PRIMARY KEY,
        first INTEGER NOT NULL,
        "check" BLOB NOT NULL
    ) STRICT;
"#,
    "
    ALTER TABLE journal ADD COLUMN texts BLOB;
    ALTER TABLE documents ADD COLUMN texts BLOB;
    CREATE TABLE blobs (id INTEGER PRIMARY KEY, data TEXT NOT NULL) STRICT;
    CREATE TABLE blob_uses (
        hash BLOB PRIMARY KEY,
        id INTEGER NOT NULL,
        uses INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
];

/// The shape from which on long texts are kept apart.
const WITH_TEXTS: i64 = 3;

/// What a file of an older shape lacks, for a connection that may not bring it up to date: views of
/// this connection alone, which come before the tables of their names.
const WITHOUT_TEXTS: &str = "
    CREATE TEMP VIEW journal AS SELECT *, NULL AS texts FROM main.journal;
    CREATE TEMP VIEW documents AS SELECT *, NULL AS texts FROM main.documents;
    CREATE TEMP VIEW blobs AS SELECT NULL AS id, NULL AS data WHERE false;
    CREATE TEMP VIEW blob_uses AS SELECT NULL AS hash, NULL AS id WHERE false;
";

/// Another process that writes at this moment is waited for so long.
const BUSY: Duration = Duration::from_secs(5);

/// The log is copied into the file every so many pages (16 MiB): rarely enough to cost little,
/// often enough to keep the log short.
const PAGES_PER_CHECKPOINT: i64 = 4_096;

/// A reader keeps so many pages: it reads forward and seldom looks back, and memory that was never
/// touched before costs a start more than what the system has cached anyway.
const READER_CACHE: i64 = 64;

/// A log that a large batch made longer than this is cut back.
const LOG_BYTES: i64 = 64 << 20;

/// Limits of a journal.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The file may have so many pages of 4 KiB; an append beyond finds no room.
    pub max_pages: Option<u32>,
    /// What of the past is kept.
    pub retention: Retention,
}

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its folder is not there.
    #[error("{path} cannot be opened: its folder does not exist; create it first")]
    NoFolder {
        /// The file.
        path: PathBuf,
    },
    /// The file is gone or empty, and the snapshots of what was in it are not.
    #[error(
        "{path} is gone or empty, and snapshots of it are in {}: \
         `ksi restore FILE --replace` brings a backup back; to begin anew, move that folder away",
        snapshots.display()
    )]
    Gone {
        /// The file.
        path: PathBuf,
        /// Where its snapshots are.
        snapshots: PathBuf,
    },
    /// The file is something else.
    #[error("{path} is not a journal; move it away or choose another file")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A later version of this program wrote it.
    #[error("{path} has shape {found}, this program knows {SHAPE}; use a newer version of it")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its shape.
        found: i64,
    },
    /// Its newest facts are not what was written.
    #[error("{path} is damaged: `ksi restore FILE --replace` brings a backup back")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: VerifyError,
    },
    /// SQLite cannot open it.
    #[error("{path} cannot be opened")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The working folder, which a relative path begins at, cannot be found.
    #[error("{path} cannot be found")]
    Lost {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a file says that it is.
enum Identity {
    Empty,
    /// Of this shape.
    Journal(i64),
    Newer(i64),
    Foreign,
}

/// The path from the root: readers open the file later, when the working folder may be another.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, OpenError> {
    std::path::absolute(path).map_err(|source| OpenError::Lost { path: path.into(), source })
}

pub(crate) fn for_writing(path: &Path, options: &Options) -> Result<Connection, OpenError> {
    let path = absolute(path)?;
    if path.parent().is_some_and(|folder| !folder.is_dir()) {
        return Err(OpenError::NoFolder { path });
    }
    let shelf = Shelf::beside(&path);
    if is_gone(&path) && shelf.may_hold_any() {
        return Err(OpenError::Gone { snapshots: shelf.folder, path });
    }
    // Looked at before anything is written: a foreign file stays as it is.
    let create = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let opened = connect(&path, create).and_then(|connection| {
        let identity = identity(&connection)?;
        Ok((connection, identity))
    });
    let (mut connection, identity) = opened.map_err(|source| sqlite(&path, source))?;
    known(&path, &identity)?;
    prepare(&mut connection, options).map_err(|source| sqlite(&path, source))?;
    Ok(connection)
}

/// A journal is never empty: its tables are made together with the file's first page.
fn is_gone(path: &Path) -> bool {
    match path.metadata() {
        Ok(file) => file.len() == 0,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

pub(crate) fn for_reading(path: &Path) -> Result<Connection, OpenError> {
    let opened = reading_connection(path).and_then(|connection| {
        let identity = identity(&connection)?;
        Ok((connection, identity))
    });
    let (connection, identity) = opened.map_err(|source| sqlite(path, source))?;
    match identity {
        Identity::Empty => Err(OpenError::Foreign { path: path.into() }),
        identity => known(path, &identity).map(|()| connection),
    }
}

pub(crate) fn reading_connection(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.pragma_update(None, "cache_size", READER_CACHE)?;
    if matches!(identity(&connection)?, Identity::Journal(shape) if shape < WITH_TEXTS) {
        connection.execute_batch(WITHOUT_TEXTS)?;
    }
    Ok(connection)
}

/// A connection that leaves no log of its own behind: all is in the file when it closes.
pub(crate) fn writing_connection(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "journal_mode", "delete")?;
    Ok(connection)
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    // Without SQLITE_OPEN_URI: a path is a path, whatever it begins with.
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

fn identity(connection: &Connection) -> rusqlite::Result<Identity> {
    let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let application = number("PRAGMA application_id")?;
    let shape = number("PRAGMA user_version")?;
    Ok(match (application, shape) {
        (APPLICATION, shape @ 1..=SHAPE) => Identity::Journal(shape),
        (APPLICATION, newer) => Identity::Newer(newer),
        (0, 0) if number("SELECT count(*) FROM sqlite_schema")? == 0 => Identity::Empty,
        _ => Identity::Foreign,
    })
}

fn known(path: &Path, identity: &Identity) -> Result<(), OpenError> {
    match identity {
        Identity::Empty | Identity::Journal(_) => Ok(()),
        Identity::Newer(found) => Err(OpenError::Newer { path: path.into(), found: *found }),
        Identity::Foreign => Err(OpenError::Foreign { path: path.into() }),
    }
}

/// Durable at each commit, and with tables.
fn prepare(connection: &mut Connection, options: &Options) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", PAGES_PER_CHECKPOINT)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
    if let Some(pages) = options.max_pages {
        connection.pragma_update(None, "max_page_count", pages)?;
    }
    // Two processes may open a new file at the same time: the second finds the tables.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let shape = match identity(&transaction)? {
        Identity::Empty => {
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            1
        }
        Identity::Journal(shape) => shape,
        Identity::Newer(_) | Identity::Foreign => return Ok(()),
    };
    for upgrade in UPGRADES.iter().skip(usize::try_from(shape - 1).unwrap_or_default()) {
        transaction.execute_batch(upgrade)?;
    }
    transaction.pragma_update(None, "user_version", SHAPE)?;
    transaction.commit()
}

fn sqlite(path: &Path, source: rusqlite::Error) -> OpenError {
    match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => OpenError::Foreign { path: path.into() },
        _ => OpenError::Sqlite { path: path.into(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_that_writes_has_a_log_and_syncs_it_at_each_commit() {
        const FULL: i64 = 2;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let connection = for_writing(&path, &Options::default()).unwrap();
        let text = |sql| connection.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(text("PRAGMA journal_mode"), "wal");
        assert_eq!(number("PRAGMA synchronous"), FULL);
        assert_eq!(number("PRAGMA wal_autocheckpoint"), PAGES_PER_CHECKPOINT);
        assert_eq!(number("PRAGMA journal_size_limit"), LOG_BYTES);
    }

    #[test]
    fn a_commit_looks_up_no_secondary_index() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(TABLES).unwrap();
        UPGRADES.iter().for_each(|upgrade| connection.execute_batch(upgrade).unwrap());
        let count =
            "SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'journal'";
        assert_eq!(connection.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    }
}
