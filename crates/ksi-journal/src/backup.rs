//! Backups: a journal and its snapshots in one file, which is a journal itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ksi_record::{JournalError, Seq};
use rusqlite::params;
use tempfile::NamedTempFile;

use crate::{OpenError, SqliteJournal, VerifyError, open, shelf::Shelf};

/// A copy that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The last fact in it.
    pub seq: Seq,
    /// Its size.
    pub bytes: u64,
}

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It would have replaced something.
    #[error("{0} is there already; nothing was changed")]
    There(PathBuf),
    /// A file cannot be read or written.
    #[error("{path} cannot be written or read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite cannot read or write it.
    #[error("{path} cannot be written or read")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The backup is no journal.
    #[error("the backup cannot be used")]
    Unusable(#[source] OpenError),
    /// The backup's facts are not what was written.
    #[error("the backup is damaged")]
    Damaged(#[from] VerifyError),
    /// The backup lacks its end.
    #[error("the backup is damaged: its end is missing")]
    Cut,
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl From<OpenError> for BackupError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Damaged { source, .. } => BackupError::Damaged(source),
            other => BackupError::Unusable(other),
        }
    }
}

const TABLE: &str = "CREATE TABLE snapshots (name TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT";

impl SqliteJournal {
    /// Copies the journal and its snapshots into a new file; reads and appends go on meanwhile.
    pub fn backup(&self, path: &Path) -> Result<Written, BackupError> {
        let _upkeep = self.upkeep();
        if path.exists() {
            return Err(BackupError::There(path.to_owned()));
        }
        let copy = new_file_beside(path)?;
        let into = copy.path().to_string_lossy().into_owned();
        let copied = self.reader.with(|connection| connection.execute("VACUUM INTO ?", [&into]));
        copied.map_err(|source| sqlite(path, source))?;
        add_snapshots(copy.path(), &self.shelf).map_err(|source| sqlite(path, source))?;
        let reader = SqliteJournal::open_read_only(copy.path())?;
        let seq = reader.head()?;
        drop(reader);
        let kept = copy.as_file().sync_all().and_then(|()| {
            let file = copy.persist_noclobber(path).map_err(|error| error.error)?;
            Ok(file.metadata()?.len())
        });
        match kept {
            Ok(bytes) => Ok(Written { seq, bytes }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(BackupError::There(path.to_owned()))
            }
            Err(source) => Err(BackupError::File { path: path.to_owned(), source }),
        }
    }

    /// Makes a new journal in this file from a backup, every fact of which is checked first.
    pub fn restore(backup: &Path, path: &Path) -> Result<Written, BackupError> {
        if path.exists() {
            return Err(BackupError::There(path.to_owned()));
        }
        let reader = SqliteJournal::open_read_only(backup)?;
        let seq = reader.verify_all()?;
        drop(reader);
        let copy = new_file_beside(path)?;
        let file = |source| BackupError::File { path: path.to_owned(), source };
        let bytes = fs::copy(backup, copy.path()).map_err(file)?;
        if !whole(copy.path(), bytes).map_err(|source| sqlite(path, source))? {
            return Err(BackupError::Cut);
        }
        take_snapshots(copy.path(), &Shelf::beside(path)).map_err(|error| match error {
            Taking::Sqlite(source) => sqlite(path, source),
            Taking::File(source) => file(source),
        })?;
        copy.as_file().sync_all().map_err(file)?;
        copy.persist_noclobber(path).map_err(|error| file(error.error))?;
        Ok(Written { seq, bytes })
    }
}

fn new_file_beside(path: &Path) -> Result<NamedTempFile, BackupError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let made = fs::metadata(folder).and_then(|_| {
        // The error names the file's passing name, which says nothing to anybody.
        NamedTempFile::new_in(folder).map_err(|error| error.kind().into())
    });
    made.map_err(|source| BackupError::File { path: path.to_owned(), source })
}

fn add_snapshots(copy: &Path, shelf: &Shelf) -> rusqlite::Result<()> {
    let connection = open::writing_connection(copy)?;
    connection.execute_batch(TABLE)?;
    for file in shelf.files().unwrap_or_default() {
        // One that cannot be read now could not be used later either.
        let Ok(data) = fs::read(&file) else { continue };
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
        connection.execute("INSERT INTO snapshots VALUES (?, ?)", params![name, data])?;
    }
    Ok(())
}

/// Whether the file has all the bytes of its pages; SQLite makes up the end of the last one.
fn whole(copy: &Path, bytes: u64) -> rusqlite::Result<bool> {
    let connection = open::writing_connection(copy)?;
    let number = |pragma| connection.query_row(pragma, [], |row| row.get::<_, u64>(0));
    Ok(bytes >= number("PRAGMA page_count")? * number("PRAGMA page_size")?)
}

enum Taking {
    Sqlite(rusqlite::Error),
    File(io::Error),
}

impl From<rusqlite::Error> for Taking {
    fn from(error: rusqlite::Error) -> Self {
        Taking::Sqlite(error)
    }
}

impl From<io::Error> for Taking {
    fn from(error: io::Error) -> Self {
        Taking::File(error)
    }
}

/// The snapshots' names come from a file that may be anybody's: only their digits are used.
fn take_snapshots(copy: &Path, shelf: &Shelf) -> Result<(), Taking> {
    let connection = open::writing_connection(copy)?;
    let there = "SELECT count(*) FROM sqlite_schema WHERE name = 'snapshots' AND type = 'table'";
    if connection.query_row(there, [], |row| row.get::<_, u64>(0))? == 0 {
        return Ok(());
    }
    {
        let mut statement = connection.prepare("SELECT name, data FROM snapshots")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (name, data): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let seq = name.strip_suffix(".snapshot").and_then(|digits| digits.parse().ok());
            if let Some(seq) = seq {
                shelf.bring_back(Seq(seq), &data)?;
            }
        }
    }
    connection.execute_batch("DROP TABLE snapshots")?;
    Ok(())
}

fn sqlite(path: &Path, source: rusqlite::Error) -> BackupError {
    BackupError::Sqlite { path: path.to_owned(), source }
}
