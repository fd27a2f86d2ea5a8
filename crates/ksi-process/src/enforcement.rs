//! What is enforced on this machine, for people.

use std::fmt;

use crate::os::cgroup::Place;

/// What the promises about children amount to on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforcement {
    /// Whether memory and processes are limited for all of a child together.
    pub whole_tree: bool,
    /// Whether no child can outlive its daemon, whatever it does.
    pub complete: bool,
    why: String,
}

/// What is enforced for children of a running daemon, by its process id; without one, for those
/// of this process.
pub fn enforcement(daemon: Option<u32>) -> Enforcement {
    let delegated = Place::of(daemon).delegated();
    Enforcement {
        whole_tree: delegated.is_ok(),
        complete: cfg!(target_os = "linux"),
        why: delegated.map_or_else(|why| why.to_string(), |_| String::new()),
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.complete {
            return write!(
                f,
                "best effort: on this system only a child's own process group is ended with it, \
                 and limits hold for each of its processes by itself; not tested by us"
            );
        }
        if self.whole_tree {
            return write!(
                f,
                "memory and processes of a child are limited for all its processes together, \
                 by cgroups; processor time and open files for each process by itself"
            );
        }
        let who = match rustix::process::geteuid().is_root() {
            true => "and the number of processes not at all, because this is root",
            false => "and the number of processes for all of this user's together",
        };
        write!(
            f,
            "memory, processor time and open files of a child are limited for each of its \
             processes by itself, not for all together, {who}; the reason: {}",
            self.why
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_what_is_enforced_and_why_no_more_is() {
        let why = "no reason".to_owned();
        let said = |whole_tree, complete| Enforcement { whole_tree, complete, why: why.clone() };
        assert!(said(true, true).to_string().contains("for all its processes together"));
        assert!(said(false, true).to_string().ends_with("the reason: no reason"));
        assert!(said(false, false).to_string().starts_with("best effort"));
        assert_eq!(enforcement(None), enforcement(Some(std::process::id())));
    }
}
