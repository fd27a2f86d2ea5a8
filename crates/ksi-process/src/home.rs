//! A daemon's home, as far as children are concerned: where the locks of its effects lie, how
//! its children are marked, and the shims that live.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::family::Family;
use crate::os::cgroup::Cgroups;

/// The variable that marks a child: whose it is, and which effect's. What it starts inherits it.
pub(crate) const MARK: &str = "KSI_CHILD";

/// How many letters of an effect's name are shown.
const LONGEST_NAME: usize = 200;

/// What all shims of a daemon share.
#[derive(Debug)]
pub(crate) struct Home {
    /// The folder of the locks.
    pub(crate) locks: PathBuf,
    /// Whether the folder was there; without it nobody knows what a former daemon left.
    pub(crate) known: bool,
    /// Tells this home from every other on the machine.
    instance: String,
    pub(crate) family: Arc<Family>,
    pub(crate) cgroups: Option<Cgroups>,
    unnamed: AtomicU64,
}

/// Which effect a child belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) name: String,
    /// Of its lock and its cgroup.
    pub(crate) file: String,
}

impl Home {
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let locks = state.join("effects");
        let known = locks.is_dir();
        let instance = instance(state)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&locks)?;
        Ok(Self {
            known,
            family: Family::start(mark_of_all(&instance))?,
            instance,
            cgroups: Cgroups::claim(),
            unnamed: AtomicU64::new(0),
            locks,
        })
    }

    /// The effect of this name, or one that nobody else has.
    pub(crate) fn effect(&self, name: Option<&str>) -> Effect {
        let number = || self.unnamed.fetch_add(1, Ordering::Relaxed);
        let unnamed = || format!("unnamed/{}/{}", std::process::id(), number());
        let name = name.map_or_else(unnamed, str::to_owned);
        let hash = Sha256::digest(&name);
        let file = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        // It travels as an argument and in a variable, and people read it.
        let printable = |letter: char| if letter.is_control() { '?' } else { letter };
        Effect { name: name.chars().take(LONGEST_NAME).map(printable).collect(), file }
    }

    /// The value of the mark for a child of this effect.
    pub(crate) fn mark(&self, effect: &Effect) -> OsString {
        format!("{}/{}", self.instance, effect.name).into()
    }

    /// How the variable begins in all children of this home.
    pub(crate) fn mark_of_all(&self) -> Vec<u8> {
        mark_of_all(&self.instance)
    }
}

fn mark_of_all(instance: &str) -> Vec<u8> {
    format!("{MARK}={instance}/").into_bytes()
}

/// A folder's identity: a copy is another home, and so is one of the same path elsewhere, such as
/// in a container.
fn instance(folder: &Path) -> io::Result<String> {
    let folder = folder.metadata()?;
    let born = folder.created().ok();
    let born = born.and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok());
    let born = born.map_or(0, |born| born.as_nanos());
    Ok(format!("{:x}-{:x}-{born:x}", folder.dev(), folder.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_moved_stays_the_same_home_and_a_copy_is_another() {
        let parent = tempfile::tempdir().unwrap();
        let folder = |name| parent.path().join(name);
        std::fs::create_dir(folder("a")).unwrap();
        let a = instance(&folder("a")).unwrap();
        std::fs::rename(folder("a"), folder("b")).unwrap();
        std::fs::create_dir(folder("a")).unwrap();
        assert_eq!(instance(&folder("b")).unwrap(), a);
        assert_ne!(instance(&folder("a")).unwrap(), a);
    }
}
