//! The shelf: snapshots as files beside the journal, each written whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use ksi_record::{Millis, Section, Seq, Snapshot};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chain::Check;

/// So many snapshots are kept: should the newest not be readable, there is one more.
const KEPT: usize = 2;

/// The shape of the files.
const SHAPE: u32 = 1;

/// A folder of snapshots, which is made when the first is written.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    pub(crate) folder: PathBuf,
}

/// What a snapshot's first line says of the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Header {
    ksi_snapshot: u32,
    /// The last fact that it holds.
    pub seq: u64,
    /// That fact's check: the snapshot belongs to the journal with this fact.
    check: String,
    /// Of all that follows the first line.
    sha256: String,
    /// What it holds of each plugin, in order.
    pub sections: Vec<Entry>,
}

/// A section, as its snapshot's first line tells of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// The plugin.
    pub plugin: String,
    /// The version of its state's shape.
    pub version: u16,
    /// The last fact that its state holds.
    pub seq: u64,
    /// When that happened, in milliseconds since the epoch.
    pub at: u64,
    /// The length of its state.
    pub bytes: usize,
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Unreadable(#[from] io::Error),
    /// It is not what was written.
    #[error("it is not what was written")]
    Damaged,
    /// A later version of this program wrote it.
    #[error("it has shape {0}, this program knows {SHAPE}; use a newer version of it")]
    Newer(u32),
    /// It was made of another journal, or of a later one.
    #[error("it belongs to another journal: this one has no such fact {0}")]
    Foreign(Seq),
}

impl Shelf {
    /// The shelf of the journal in this file.
    pub(crate) fn beside(journal: &Path) -> Self {
        Self { folder: journal.with_extension("snapshots") }
    }

    /// The files, newest first.
    pub(crate) fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            files.extend(path.extension().is_some_and(|kind| kind == "snapshot").then_some(path));
        }
        files.sort_unstable_by(|a, b| b.cmp(a));
        Ok(files)
    }

    /// Whether there are snapshots; what cannot be read may hold some.
    pub(crate) fn may_hold_any(&self) -> bool {
        self.files().map_or(true, |files| !files.is_empty())
    }

    /// Writes a snapshot and forgets all but the newest; returns when it is safe from a crash.
    pub(crate) fn put(&self, snapshot: &Snapshot, seq: Seq, check: &Check) -> io::Result<()> {
        self.make()?;
        let mut digest = Sha256::new();
        for section in snapshot.values() {
            digest.update(&section.state);
        }
        let header = Header {
            ksi_snapshot: SHAPE,
            seq: seq.0,
            check: hex(check),
            sha256: hex(&digest.finalize()),
            sections: snapshot.iter().map(Entry::of).collect(),
        };
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        let mut to = io::BufWriter::new(file.as_file_mut());
        serde_json::to_writer(&mut to, &header)?;
        to.write_all(b"\n")?;
        for section in snapshot.values() {
            to.write_all(section.state.as_bytes())?;
        }
        to.flush()?;
        drop(to);
        self.name(file, seq)?;
        self.files()?.iter().skip(KEPT).try_for_each(fs::remove_file)
    }
}

impl Shelf {
    /// Puts the snapshot of a backup where it was.
    pub(crate) fn bring_back(&self, seq: Seq, bytes: &[u8]) -> io::Result<()> {
        self.make()?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(bytes)?;
        self.name(file, seq)
    }

    fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)
    }

    fn name(&self, file: tempfile::NamedTempFile, seq: Seq) -> io::Result<()> {
        file.as_file().sync_all()?;
        // As many digits as the largest number has, so that names sort as the numbers do.
        file.persist(self.folder.join(format!("{:020}.snapshot", seq.0)))?;
        File::open(&self.folder)?.sync_all()
    }
}

impl Entry {
    fn of((plugin, section): (&String, &Section)) -> Self {
        let Section { seq, at, version, state } = section;
        let (plugin, bytes) = (plugin.clone(), state.len());
        Entry { plugin, version: *version, seq: seq.0, at: at.0, bytes }
    }
}

impl Header {
    /// Reads a file's first line, and hands out the rest.
    pub(crate) fn read(file: &Path) -> Result<(Header, String), SnapshotError> {
        #[derive(Deserialize)]
        struct Shape {
            ksi_snapshot: u32,
        }
        let mut text = String::from_utf8(fs::read(file)?).map_err(|_| SnapshotError::Damaged)?;
        let (line, _) = text.split_once('\n').ok_or(SnapshotError::Damaged)?;
        let damaged = |_| SnapshotError::Damaged;
        let Shape { ksi_snapshot } = serde_json::from_str(line).map_err(damaged)?;
        if ksi_snapshot != SHAPE {
            return Err(SnapshotError::Newer(ksi_snapshot));
        }
        let header = serde_json::from_str(line).map_err(damaged)?;
        let states = text.split_off(line.len() + 1);
        Ok((header, states))
    }

    /// Whether the journal's fact with this check is the last that the snapshot holds.
    pub(crate) fn fits(&self, check: Option<Check>) -> Result<(), SnapshotError> {
        let fits = check.is_some_and(|check| hex(&check) == self.check);
        if fits { Ok(()) } else { Err(SnapshotError::Foreign(Seq(self.seq))) }
    }

    /// The snapshot with these states, if they are what was written.
    pub(crate) fn open(self, mut states: String) -> Result<Snapshot, SnapshotError> {
        if hex(&Sha256::digest(&states)) != self.sha256 {
            return Err(SnapshotError::Damaged);
        }
        let mut snapshot = Snapshot::new();
        for Entry { plugin, version, seq, at, bytes } in self.sections {
            if !states.is_char_boundary(bytes) {
                return Err(SnapshotError::Damaged);
            }
            let rest = states.split_off(bytes);
            let section = Section { seq: Seq(seq), at: Millis(at), version, state: states };
            snapshot.insert(plugin, section);
            states = rest;
        }
        Ok(snapshot)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
