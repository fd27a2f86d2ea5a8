//! Cgroups, version 2, where a subtree is delegated to us: one leaf for each shim's tree.
//!
//! A group that has members cannot hand controllers to groups below it. So the daemon moves
//! itself into a group of its own below the delegated one, and the leaves stand beside that.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::limits::Limits;

/// Where the daemon itself goes.
const DAEMON: &str = "ksi-daemon";

/// What the names of leaves begin with.
const LEAF: &str = "ksi-effect-";

/// What a leaf limits.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

/// A delegated subtree that this process has made its own.
#[derive(Debug)]
pub(crate) struct Cgroups {
    base: PathBuf,
}

/// Why there are no cgroups for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Undelegated {
    /// The system has no cgroups, or none of version 2.
    Absent,
    /// These controllers are not in the hierarchy, or not handed down to us.
    Controllers(Vec<&'static str>),
    /// The group exists and is not ours to change.
    NotOurs(PathBuf),
}

impl fmt::Display for Undelegated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "this system has no cgroups of version 2"),
            Self::Controllers(missing) => {
                let missing = missing.join(" and ");
                write!(f, "the controllers {missing} of cgroups v2 are not handed down to us")
            }
            Self::NotOurs(group) => {
                write!(f, "the cgroup {} is not delegated to us", group.display())
            }
        }
    }
}

/// Where cgroups are mounted, and what this process is.
pub(crate) struct Place {
    /// Of cgroups v2.
    mount: Option<PathBuf>,
    /// Of the process, below the mount.
    group: Option<PathBuf>,
    root: bool,
}

impl Place {
    /// A process as the system shows it; None is this one.
    pub(crate) fn of(pid: Option<u32>) -> Self {
        let own = || "self".to_owned();
        let proc = Path::new("/proc").join(pid.map_or_else(own, |pid| pid.to_string()));
        let read = |name| fs::read_to_string(proc.join(name)).unwrap_or_default();
        let root = rustix::process::geteuid().is_root();
        Self::parse(&read("cgroup"), &read("mountinfo"), root)
    }

    fn parse(cgroup: &str, mounts: &str, root: bool) -> Self {
        let mount = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let version_2 = after.split(' ').next() == Some("cgroup2");
            version_2.then(|| before.split(' ').nth(4).map(PathBuf::from)).flatten()
        });
        let group = cgroup.lines().find_map(|line| line.strip_prefix("0::/"));
        Self { mount, group: group.map(PathBuf::from), root }
    }

    /// The group that is delegated to us, with the controllers that we need.
    pub(crate) fn delegated(&self) -> Result<PathBuf, Undelegated> {
        let (Some(mount), Some(group)) = (&self.mount, &self.group) else {
            return Err(Undelegated::Absent);
        };
        let mut group = mount.join(group);
        if group.ends_with(DAEMON) {
            group.pop();
        }
        let offered = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
        let offered: Vec<&str> = offered.split_whitespace().collect();
        let missing = CONTROLLERS.into_iter().filter(|name| !offered.contains(name));
        let missing: Vec<_> = missing.collect();
        if !missing.is_empty() {
            return Err(Undelegated::Controllers(missing));
        }
        let writable = |name| File::options().write(true).open(group.join(name)).is_ok();
        let ours = writable("cgroup.subtree_control") && writable("cgroup.procs");
        // Root may write everywhere; that does not make it root's to change.
        if !ours || (self.root && !is_marked(&group)) {
            return Err(Undelegated::NotOurs(group));
        }
        Ok(group)
    }
}

/// A service manager marks what it delegates.
#[cfg(target_os = "linux")]
fn is_marked(group: &Path) -> bool {
    let marked = |name: &str| {
        let mut value = [0; 8];
        matches!(rustix::fs::getxattr(group, name, &mut value), Ok(1)) && value[0] == b'1'
    };
    marked("trusted.delegate") || marked("user.delegate")
}

#[cfg(not(target_os = "linux"))]
fn is_marked(_group: &Path) -> bool {
    false
}

impl Cgroups {
    /// Makes the delegated subtree ours, if there is one.
    pub(crate) fn claim() -> Option<Self> {
        let base = match Place::of(None).delegated() {
            Ok(base) => base,
            Err(why) => {
                tracing::debug!(%why, "no cgroups: limits hold for each process by itself");
                return None;
            }
        };
        let claimed = Self::claim_in(base);
        let failed = |error: &io::Error| {
            tracing::warn!(%error, "no cgroups: limits hold for each process by itself");
        };
        claimed.inspect_err(failed).ok()
    }

    fn claim_in(base: PathBuf) -> io::Result<Self> {
        let daemon = base.join(DAEMON);
        make(&daemon)?;
        fs::write(daemon.join("cgroup.procs"), std::process::id().to_string())?;
        let handed_down = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
        fs::write(base.join("cgroup.subtree_control"), handed_down)?;
        Ok(Self { base })
    }

    /// A new leaf with these limits, for the effect whose lock has this name.
    pub(crate) fn leaf(&self, lock: &Path, limits: Limits) -> io::Result<PathBuf> {
        let leaf = self.path(lock);
        make(&leaf)?;
        let set = |name, limit: Option<u64>| {
            let limit = limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
            fs::write(leaf.join(name), limit)
        };
        set("memory.max", limits.memory)?;
        set("pids.max", limits.processes)?;
        Ok(leaf)
    }

    /// Removes the leaf of an effect, when nobody is in it any more.
    pub(crate) fn remove(&self, lock: &Path) {
        remove(&self.path(lock));
    }

    fn path(&self, lock: &Path) -> PathBuf {
        let name = lock.file_name().unwrap_or_default();
        self.base.join(format!("{LEAF}{}", name.display()))
    }
}

/// The open list of a leaf's members: whoever writes to it goes in.
pub(crate) fn members(leaf: &Path) -> io::Result<OwnedFd> {
    Ok(File::options().write(true).open(leaf.join("cgroup.procs"))?.into())
}

/// Removes a leaf; one that does not exist is removed.
pub(crate) fn remove(leaf: &Path) {
    match fs::remove_dir(leaf) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(leaf = %leaf.display(), %error, "a cgroup stays behind"),
    }
}

fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - tmpfs tmpfs rw\n\
                          33 31 0:29 / $MOUNT rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    /// A folder that looks like a hierarchy, with our group `user/app` in it.
    struct Hierarchy(tempfile::TempDir);

    impl Hierarchy {
        fn new(controllers: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let group = folder.path().join("user/app");
            fs::create_dir_all(&group).unwrap();
            fs::write(group.join("cgroup.controllers"), controllers).unwrap();
            fs::write(group.join("cgroup.subtree_control"), "").unwrap();
            fs::write(group.join("cgroup.procs"), "").unwrap();
            Self(folder)
        }

        fn group(&self) -> PathBuf {
            self.0.path().join("user/app")
        }

        fn place(&self, group: &str, root: bool) -> Place {
            let mounts = MOUNTS.replace("$MOUNT", self.0.path().to_str().unwrap());
            Place::parse(&format!("4:memory:/x\n0::{group}\n"), &mounts, root)
        }
    }

    #[test]
    fn a_subtree_with_our_controllers_that_we_may_write_is_delegated() {
        let tree = Hierarchy::new("cpu memory pids\n");
        assert_eq!(tree.place("/user/app", false).delegated(), Ok(tree.group()));
        let moved = tree.place("/user/app/ksi-daemon", false).delegated();
        assert_eq!(moved, Ok(tree.group()), "where we have moved ourselves to");
    }

    #[test]
    fn what_is_missing_is_named() {
        let without = Hierarchy::new("cpu pids\n").place("/user/app", false).delegated();
        let why = without.unwrap_err();
        assert_eq!(
            why.to_string(),
            "the controllers memory of cgroups v2 are not handed down to us"
        );
        assert_eq!(Place::parse("", MOUNTS, false).delegated(), Err(Undelegated::Absent));
        assert_eq!(Place::parse("0::/", "", false).delegated(), Err(Undelegated::Absent));
    }

    #[test]
    fn what_root_may_write_is_not_delegated_for_that() {
        let tree = Hierarchy::new("memory pids\n");
        let answer = tree.place("/user/app", true).delegated();
        assert_eq!(answer, Err(Undelegated::NotOurs(tree.group())));
        fs::remove_file(tree.group().join("cgroup.subtree_control")).unwrap();
        let answer = tree.place("/user/app", false).delegated();
        assert_eq!(answer, Err(Undelegated::NotOurs(tree.group())));
    }

    #[test]
    fn the_daemon_moves_aside_and_each_effect_gets_a_leaf_with_its_limits() {
        let tree = Hierarchy::new("memory pids\n");
        let cgroups = Cgroups::claim_in(tree.group()).unwrap();
        let read = |path: &str| fs::read_to_string(tree.group().join(path)).unwrap();
        assert_eq!(read("ksi-daemon/cgroup.procs"), std::process::id().to_string());
        assert_eq!(read("cgroup.subtree_control"), "+memory +pids");
        let lock = Path::new("/home/effects/abc");
        let limits = Limits { memory: Some(4096), ..Limits::default() };
        let leaf = cgroups.leaf(lock, limits).unwrap();
        assert_eq!(leaf, tree.group().join("ksi-effect-abc"));
        assert_eq!(read("ksi-effect-abc/memory.max"), "4096");
        assert_eq!(read("ksi-effect-abc/pids.max"), "max");
        // Files of a real group vanish with it.
        fs::remove_file(leaf.join("memory.max")).unwrap();
        fs::remove_file(leaf.join("pids.max")).unwrap();
        cgroups.remove(lock);
        assert!(!leaf.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_real_hierarchy_is_read() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = Place::of(None);
        assert_eq!(place.mount.is_some(), mounts.contains(" - cgroup2 "));
        match place.delegated() {
            Ok(group) => assert!(group.join("cgroup.subtree_control").exists()),
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    }
}
