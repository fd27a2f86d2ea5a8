//! Whose child a peer is: the walk up its parents.

use crate::os::peer::Peer;
use crate::os::process::{Process, ProcessId};

/// Where a process belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descent {
    /// Below this live shim of ours, however it got there.
    Under(ProcessId),
    /// Of our tree, but below no live shim: it may be what a killed shim left.
    Ours,
    /// Not of our tree.
    Stranger,
    /// It cannot be placed: gone already, or of another process namespace.
    Unreadable,
}

/// Parents change when one of them ends, at most so often while we look.
const TRIES: usize = 16;

/// No tree of processes is so deep; a walk that is longer went in circles.
const DEEPEST: usize = 10_000;

/// Places a peer below the shims for which `is_shim` holds, or below this process.
pub(crate) fn of(peer: &Peer, is_shim: impl Fn(ProcessId) -> bool) -> Descent {
    let (Some(peer_id), Some(own)) = (peer.id, Process::own()) else { return Descent::Unreadable };
    let mut before = None;
    for _ in 0..TRIES {
        let chain = chain(peer_id, |id| id == own.id || is_shim(id));
        // Seen twice alike, it held all the while between.
        if chain.is_some() && chain == before && peer.is_there() {
            return match chain.as_ref().and_then(|chain| chain.last()) {
                Some(top) if *top == own.id => Descent::Ours,
                Some(top) if is_shim(*top) => Descent::Under(*top),
                _ => Descent::Stranger,
            };
        }
        if !peer.is_there() {
            break;
        }
        before = chain;
    }
    Descent::Unreadable
}

/// From a process up to the first for which `stop` holds, or to where parents end; None if a link
/// broke on the way.
fn chain(from: ProcessId, stop: impl Fn(ProcessId) -> bool) -> Option<Vec<ProcessId>> {
    let mut chain = vec![from];
    while chain.len() < DEEPEST {
        let last = *chain.last()?;
        if stop(last) {
            return Some(chain);
        }
        let process = Process::read(last.pid).filter(|process| process.id == last)?;
        if process.parent == 0 {
            return Some(chain);
        }
        chain.push(Process::read(process.parent)?.id);
    }
    None
}
