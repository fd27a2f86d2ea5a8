//! Watching files and folders, so that nobody has to look again and again.

use std::io;
use std::path::Path;

#[cfg(target_os = "linux")]
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
#[cfg(target_os = "linux")]
use tokio::io::unix::AsyncFd;

/// Says when something changes; needs a tokio runtime. On systems without inotify it never does.
#[derive(Debug)]
pub struct Watch {
    #[cfg(target_os = "linux")]
    inotify: AsyncFd<std::os::fd::OwnedFd>,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            #[cfg(target_os = "linux")]
            // SAFETY: it owns the descriptor, which nobody replaces or closes before it is dropped.
            inotify: unsafe {
                AsyncFd::register(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)?
            },
        })
    }

    /// Watches which entries a folder has; to be said again when another takes its place.
    pub fn entries(&self, folder: &Path) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        self.add(
            folder,
            WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVE
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF
                | WatchFlags::ONLYDIR,
        )?;
        let _ = folder;
        Ok(())
    }

    /// Watches what a file holds.
    pub fn content(&self, file: &Path) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        self.add(file, WatchFlags::MODIFY)?;
        let _ = file;
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn add(&self, path: &Path, what: WatchFlags) -> io::Result<()> {
        inotify::add_watch(self.inotify.get_ref(), path, what)?;
        Ok(())
    }

    /// Returns when something has changed since it returned last; what it was is to be looked at.
    pub async fn changed(&mut self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        loop {
            let mut ready = self.inotify.readable().await?;
            let mut events = [0; 4096];
            let mut some = false;
            loop {
                match rustix::io::read(self.inotify.get_ref(), &mut events) {
                    Ok(_) => some = true,
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if some {
                return Ok(());
            }
        }
        #[cfg(not(target_os = "linux"))]
        std::future::pending().await
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn changed(watch: &mut Watch) {
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, watch.changed())
            .await
            .expect("it changed")
            .expect("it is watched");
    }

    #[tokio::test]
    async fn what_is_made_written_and_removed_is_noticed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (file, inner) = (folder.path().join("file"), folder.path().join("inner"));
        let mut watch = Watch::new().unwrap();
        watch.entries(folder.path()).unwrap();
        std::fs::write(&file, "").unwrap();
        changed(&mut watch).await;
        watch.content(&file).unwrap();
        std::fs::write(&file, "x").unwrap();
        changed(&mut watch).await;
        std::fs::create_dir(&inner).unwrap();
        changed(&mut watch).await;
        std::fs::write(inner.join("deep"), "x").unwrap();
        let quiet = tokio::time::timeout(Duration::ZERO, watch.changed()).await;
        assert!(quiet.is_err(), "below it is not watched");
        assert!(watch.entries(&file).is_err() && watch.content(&folder.path().join("no")).is_err());
    }
}
