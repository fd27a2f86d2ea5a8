//! Watching a download grow, whatever program writes it.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A folder whose files grow.
pub(super) struct Growth {
    folder: PathBuf,
    #[cfg(target_os = "linux")]
    changes: tokio::net::unix::pipe::Receiver,
}

/// How deep below the folder a program may put its files.
const DEPTH: usize = 3;

impl Growth {
    /// Watches this folder and the folders in it.
    pub(super) fn watch(folder: &Path) -> io::Result<Self> {
        let growth = Growth {
            folder: folder.to_owned(),
            #[cfg(target_os = "linux")]
            changes: changes()?,
        };
        growth.measure()?;
        Ok(growth)
    }

    /// Returns after something was written; elsewhere than on Linux never, and then deadlines
    /// alone measure.
    pub(super) async fn changed(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            self.changes.readable().await?;
            // What changed does not matter, only that nothing stays in the queue.
            let mut events = [0; 4096];
            while self.changes.try_read(&mut events).is_ok_and(|read| read > 0) {}
            Ok(())
        }
        #[cfg(not(target_os = "linux"))]
        std::future::pending().await
    }

    /// The length of the longest file; the same bytes may lie in two places for a moment.
    pub(super) fn measure(&self) -> io::Result<u64> {
        self.longest(&self.folder, DEPTH)
    }

    fn longest(&self, folder: &Path, depth: usize) -> io::Result<u64> {
        // First the watch, then the look: what comes in between is seen by one of them.
        self.add(folder)?;
        let mut longest = 0;
        for file in std::fs::read_dir(folder)? {
            // Programs remove their files while we look.
            let Ok(file) = file else { continue };
            let Ok(metadata) = file.metadata() else { continue };
            if metadata.is_file() {
                longest = longest.max(metadata.len());
            } else if metadata.is_dir() && depth > 0 {
                longest = longest.max(self.longest(&file.path(), depth - 1).unwrap_or(0));
            }
        }
        Ok(longest)
    }

    /// Watches one folder more; watching it twice is the same as once.
    fn add(&self, folder: &Path) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::inotify::{WatchFlags, add_watch};
            let what = WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::MOVED_TO;
            add_watch(&self.changes, folder, what)?;
        }
        let _ = folder;
        Ok(())
    }
}

/// The kernel's queue of changes, which is read and waited for as a pipe is.
#[cfg(target_os = "linux")]
fn changes() -> io::Result<tokio::net::unix::pipe::Receiver> {
    use rustix::fs::inotify::{CreateFlags, init};
    let queue = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    tokio::net::unix::pipe::Receiver::from_owned_fd_unchecked(queue)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn growth_is_seen_also_in_a_folder_that_came_later() {
        let folder = tempfile::tempdir().unwrap();
        let growth = Growth::watch(folder.path()).unwrap();
        assert_eq!(growth.measure().unwrap(), 0);

        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        seen(&growth).await;
        assert_eq!(growth.measure().unwrap(), 0);

        let mut file = std::fs::File::create(inner.join("wheel")).unwrap();
        file.write_all(&[0; 1000]).unwrap();
        seen(&growth).await;
        assert_eq!(growth.measure().unwrap(), 1000);

        file.write_all(&[0; 500]).unwrap();
        seen(&growth).await;
        assert_eq!(growth.measure().unwrap(), 1500);
    }

    async fn seen(growth: &Growth) {
        let seen = tokio::time::timeout(Duration::from_secs(10), growth.changed());
        seen.await.expect("a change is seen").unwrap();
    }

    #[tokio::test]
    async fn the_longest_file_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [("a", 10), ("b", 30), ("c", 20)] {
            std::fs::write(folder.path().join(name), vec![0; bytes]).unwrap();
        }
        assert_eq!(Growth::watch(folder.path()).unwrap().measure().unwrap(), 30);
    }
}
