//! The place of the socket's file, watched, so that a file that goes is noticed.

use std::{future::pending, io, path::Path};

use ksi_process::Watch;

use crate::BindError;

/// The folder of the socket, and the one above: a folder that is removed can be made again.
pub(crate) struct Place {
    /// None where nothing can be watched; then a socket that goes stays away.
    watch: Option<Watch>,
    lost: bool,
}

impl Place {
    pub(crate) fn watch(path: &Path) -> Place {
        let watch = Watch::new().map_err(|error| not_watched(path, &error)).ok();
        let place = Place { watch, lost: false };
        place.watch_again(path);
        place
    }

    /// Of a file that somebody else looks after.
    pub(crate) fn unwatched() -> Place {
        Place { watch: None, lost: false }
    }

    /// Watches the folders that are there now.
    pub(crate) fn watch_again(&self, path: &Path) {
        let Some(watch) = &self.watch else { return };
        for folder in path.ancestors().skip(1).take(2) {
            if let Err(error) = watch.entries(folder) {
                not_watched(folder, &error);
            }
        }
    }

    /// Returns when something has changed.
    pub(crate) async fn changed(&mut self) {
        let Some(watch) = &mut self.watch else { return pending().await };
        if let Err(error) = watch.changed().await {
            tracing::warn!(%error, "the socket's folder is not watched any more");
            self.watch = None;
        }
    }

    pub(crate) fn is_well(&mut self) {
        self.lost = false;
    }

    /// Says so once, until it is well again.
    pub(crate) fn is_lost(&mut self, error: &BindError) {
        if !self.lost {
            tracing::error!(%error, "the socket is gone and cannot be made anew yet");
        }
        self.lost = true;
    }
}

fn not_watched(path: &Path, error: &io::Error) {
    tracing::warn!(path = %path.display(), %error, "not watched: a socket that is removed stays away");
}
