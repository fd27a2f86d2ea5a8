//! What people and the daemon do with a journal besides reading and writing facts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ksi_record::{JournalError, Seq, Snapshot};
use rusqlite::Connection;

use crate::{
    Reader, SqliteJournal, failed,
    prune::{Needless, bytes},
    shelf::{Header, Shelf, SnapshotError},
};

/// How a journal stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// How many facts it holds.
    pub facts: u64,
    /// The first of them; none when it is empty.
    pub first: Option<u64>,
    /// When that happened, in milliseconds since the epoch.
    pub since: Option<u64>,
    /// The last of them.
    pub last: u64,
    /// How many documents it holds.
    pub documents: u64,
    /// The size of its file.
    pub bytes: u64,
    /// How much of that is free for what comes.
    pub free: u64,
    /// The size of its log.
    pub log: u64,
}

/// A snapshot, and whether it can be used.
#[derive(Debug)]
pub struct Kept {
    /// Its file.
    pub path: PathBuf,
    /// The file's size.
    pub bytes: u64,
    /// What it says of itself, or why it cannot be used.
    pub header: Result<Header, SnapshotError>,
}

impl SqliteJournal {
    /// The snapshots, newest first.
    pub fn snapshots(&self) -> Result<Vec<Kept>, JournalError> {
        let files = self.shelf.files().map_err(unreadable)?;
        let kept = |path: PathBuf| {
            let bytes = fs::metadata(&path).map_or(0, |file| file.len());
            let header = self.usable(&path).map(|(header, _)| header);
            Kept { header, bytes, path }
        };
        Ok(files.into_iter().map(kept).collect())
    }

    pub(crate) fn newest_snapshot(&self) -> Result<Snapshot, JournalError> {
        let mut why = None;
        for file in self.shelf.files().map_err(unreadable)? {
            match self.usable(&file).and_then(|(header, states)| header.open(states)) {
                Ok(snapshot) => return Ok(snapshot),
                Err(error) => why = why.or(Some((file, error))),
            }
        }
        if !self.reader.begins_later()? {
            return Ok(Snapshot::new());
        }
        let lost = "its first facts have been pruned, and no snapshot holds what they said";
        let message = match &why {
            Some((file, _)) => format!("{lost}: {} cannot be used", file.display()),
            None => lost.to_owned(),
        };
        let message = format!("{message}; `ksi restore` brings a backup back");
        Err(JournalError { message, source: why.map(|(_, error)| error.into()) })
    }

    fn usable(&self, file: &Path) -> Result<(Header, String), SnapshotError> {
        usable(&self.reader, file)
    }

    pub(crate) fn put(&self, snapshot: &Snapshot) -> Result<(), JournalError> {
        let last = snapshot.values().map(|section| section.seq).max().unwrap_or_default();
        let Some(check) = self.reader.check(last)? else {
            let message = format!("a snapshot up to fact {last} is none of this journal");
            return Err(JournalError { message, source: None });
        };
        self.shelf.put(snapshot, last, &check).map_err(|source| JournalError {
            message: "a snapshot cannot be written".to_owned(),
            source: Some(source.into()),
        })
    }

    /// Takes away what both snapshots have made needless, as far as it is old or too much.
    pub(crate) fn prune(&self) -> Result<(), JournalError> {
        let mut usable = self.snapshots()?.into_iter().map_while(|kept| kept.header.ok());
        let (Some(newest), Some(older)) = (usable.next(), usable.next()) else { return Ok(()) };
        let Some(before) = older.sections.iter().map(|section| section.seq).min() else {
            return Ok(());
        };
        let now = newest.sections.iter().map(|section| section.at).max().unwrap_or_default();
        let at = i64::try_from(now.saturating_sub(self.retention.age_ms)).unwrap_or_default();
        let find = |connection: &Connection| Needless::find(connection, Seq(before), at);
        let not_pruned = "facts cannot be pruned";
        let mut needless = self.reader.with(find).map_err(failed(not_pruned))?;
        // The writer is let go after each handful, so that no append waits long.
        while self.writer()?.prune(&mut needless, self.retention).map_err(failed(not_pruned))? {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// How it stands.
    pub fn stats(&self) -> Result<Stats, JournalError> {
        const FACTS: &str = "SELECT count(*), min(seq), min(at), ifnull(max(seq), 0) FROM journal";
        let look = |connection: &Connection| {
            let (facts, first, since, last) = connection.query_row(FACTS, [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?;
            let count = "SELECT count(*) FROM documents";
            let documents = connection.query_row(count, [], |row| row.get(0))?;
            Ok((facts, first, since, last, documents, bytes(connection)?))
        };
        let seen = self.reader.with(look).map_err(failed("facts cannot be counted"))?;
        let (facts, first, since, last, documents, [bytes, free]) = seen;
        let mut log = self.reader.path().as_os_str().to_owned();
        log.push("-wal");
        let log = fs::metadata(log).map_or(0, |file| file.len());
        Ok(Stats { facts, first, since, last, documents, bytes, free, log })
    }

    /// Gives the system back what the file no longer needs; nothing is written meanwhile.
    pub fn compact(&self) -> Result<(), JournalError> {
        self.writer()?.compact().map_err(failed("it cannot be compacted"))
    }
}

/// The last fact that the newest usable snapshot holds; a start folds what comes behind it.
///
/// Of a plugin that was degraded it may hold less; the facts since were checked by the starts
/// that left it so.
pub(crate) fn newest_seq(reader: &Reader, shelf: &Shelf) -> Result<Seq, JournalError> {
    let files = shelf.files().map_err(unreadable)?;
    let mut newest = files.iter().filter_map(|file| usable(reader, file).ok());
    Ok(newest.next().map_or(Seq(0), |(header, _)| Seq(header.seq)))
}

fn usable(reader: &Reader, file: &Path) -> Result<(Header, String), SnapshotError> {
    let (header, states) = Header::read(file)?;
    let check = reader.check(Seq(header.seq)).map_err(std::io::Error::other)?;
    header.fits(check)?;
    Ok((header, states))
}

fn unreadable(source: io::Error) -> JournalError {
    let message = "the folder of its snapshots cannot be read".to_owned();
    JournalError { message, source: Some(source.into()) }
}
