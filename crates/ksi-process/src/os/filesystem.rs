//! On what a folder lies: a disk of this machine, or something far away that looks like one.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Kinds whose files are on another machine, or come through another system's: locks and memory
/// shared between processes are then not what they are on a disk.
const REMOTE: &[&str] = &[
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "davfs",
    "drvfs",
    "glusterfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "prl_fs",
    "smb3",
    "smbfs",
    "vboxsf",
    "virtiofs",
    "vmhgfs",
];

/// The same, served by a program.
const REMOTE_PROGRAMS: &[&str] =
    &["davfs", "davfs2", "glusterfs", "gvfsd-fuse", "rclone", "s3fs", "sshfs", "vmhgfs-fuse"];

/// A mounted filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// Its kind, as the system names it.
    pub kind: String,
    /// Where it is mounted.
    pub mount: PathBuf,
}

impl Filesystem {
    /// On what a folder lies, or would lie; `mounts` is Linux's `/proc/self/mountinfo`. None where
    /// there is no such table.
    pub fn of(folder: &Path, mounts: &Path) -> Option<Self> {
        let folder = existing(folder)?;
        // A path need not be UTF-8, and those that are not can still be passed over.
        Self::find(&folder, &String::from_utf8_lossy(&fs::read(mounts).ok()?))
    }

    fn find(folder: &Path, mounts: &str) -> Option<Self> {
        // What was mounted later lies above what was there.
        let over =
            mounts.lines().filter_map(Self::parse).filter(|it| folder.starts_with(&it.mount));
        over.max_by_key(|it| it.mount.components().count())
    }

    /// One line: numbers, the mount point as the fifth field, then, behind a dash, the kind.
    fn parse(line: &str) -> Option<Self> {
        let (before, behind) = line.split_once(" - ")?;
        let mount = PathBuf::from(unescape(before.split(' ').nth(4)?));
        Some(Self { kind: behind.split(' ').next()?.to_owned(), mount })
    }

    /// Whether it is no disk of this machine.
    pub fn is_remote(&self) -> bool {
        match self.kind.strip_prefix("fuse.") {
            Some(program) => REMOTE_PROGRAMS.contains(&program),
            None => REMOTE.contains(&self.kind.as_str()),
        }
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (mounted at {})", self.kind, self.mount.display())
    }
}

/// The folder, or the nearest one above it that exists, without links.
fn existing(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find_map(|folder| fs::canonicalize(folder).ok())
}

/// Spaces and the like stand in the table as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let code = part.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => text + &char::from(code).to_string() + &part[3..],
            None => text + "\\" + part,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        30 22 0:40 / /home rw - nfs4 server:/home rw,vers=4.2\n\
        31 30 254:1 / /home/ada/fast rw - xfs /dev/vdb rw\n\
        32 22 0:41 / /mnt/c rw - 9p drvfs rw\n\
        33 22 0:42 / /mnt/with\\040space rw master:2 - fuse.sshfs ada@host: rw\n\
        34 22 0:43 / /mnt/ntfs rw - fuseblk /dev/vdc rw\n\
        35 32 254:1 / /mnt/c rw - ext4 /dev/vdd rw\n";

    #[test]
    fn a_folder_is_on_what_was_mounted_nearest_and_last() {
        let on = |folder: &str| {
            let found = Filesystem::find(Path::new(folder), MOUNTS).unwrap();
            (found.kind.clone(), found.is_remote())
        };
        let expect = |kind: &str, remote| (kind.to_owned(), remote);
        assert_eq!(on("/var/lib"), expect("ext4", false));
        assert_eq!(on("/home/ada/.local"), expect("nfs4", true));
        assert_eq!(on("/home/ada/fast/x"), expect("xfs", false));
        assert_eq!(on("/homes"), expect("ext4", false), "a name that begins alike is another");
        assert_eq!(on("/mnt/with space/x"), expect("fuse.sshfs", true));
        assert_eq!(on("/mnt/ntfs"), expect("fuseblk", false));
        assert_eq!(on("/mnt/c/x"), expect("ext4", false), "the later one hides the earlier");
        let hidden = MOUNTS.lines().take(4).collect::<Vec<_>>().join("\n");
        assert!(Filesystem::find(Path::new("/mnt/c/x"), &hidden).unwrap().is_remote());
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_where_its_parent_is() {
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("mounts");
        let above = fs::canonicalize(folder.path()).unwrap();
        let line = |at: &Path| format!("1 0 0:1 / {} rw - nfs x rw\n", at.display());
        fs::write(&table, line(&above)).unwrap();
        let found = Filesystem::of(&folder.path().join("a/b"), &table).unwrap();
        assert_eq!(found.to_string(), format!("nfs (mounted at {})", above.display()));
        assert_eq!(Filesystem::of(folder.path(), &folder.path().join("none")), None);
        fs::write(&table, "nonsense\n\n1 2 - \n").unwrap();
        assert_eq!(Filesystem::of(folder.path(), &table), None);
    }
}
