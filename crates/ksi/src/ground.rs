//! Whether what the daemon writes is still where the next one will look for it.

use std::{
    fs,
    future::pending,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ksi_process::Watch;

/// A file that must stay where it is; a system lets one write to a file that was removed.
pub(crate) struct Ground {
    file: PathBuf,
    /// The file as it was when it was opened.
    was: (u64, u64),
    /// None where nothing can be watched.
    watch: Option<Watch>,
}

impl Ground {
    pub(crate) fn under(file: &Path) -> io::Result<Ground> {
        let watch = Watch::new().and_then(|watch| {
            // The file's folder, and where that lies.
            file.ancestors().skip(1).take(2).try_for_each(|folder| watch.entries(folder))?;
            Ok(watch)
        });
        let not_watched = |error: &io::Error| {
            tracing::warn!(file = %file.display(), %error, "not watched: its loss is not noticed");
        };
        let watch = watch.inspect_err(not_watched).ok();
        Ok(Ground { file: file.to_owned(), was: identity(file)?, watch })
    }

    /// Returns once the file is gone, or another has taken its place.
    pub(crate) async fn lost(&mut self) {
        while identity(&self.file).is_ok_and(|now| now == self.was) {
            let Some(watch) = &mut self.watch else { return pending().await };
            if let Err(error) = watch.changed().await {
                tracing::warn!(%error, "the state folder is not watched any more");
                self.watch = None;
            }
        }
    }
}

fn identity(file: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(file).map(|found| (found.dev(), found.ino()))
}
