//! What runs, and when: clock, owned tasks, and the effects that states want.
//!
//! In reading order: `clock`, where time comes from; `tasks`, who owns what is spawned; `runs`,
//! what should run, pure; `effects`, which starts and stops it; `room`, what is told when the disk
//! is full; `replies`, who is told of the end.

mod clock;
mod effects;
mod replies;
pub mod room;
mod runs;
mod tasks;
#[cfg(any(test, feature = "testing"))]
pub mod world;

use std::{panic::AssertUnwindSafe, pin::Pin};

use futures_util::FutureExt;
use ksi_state::Fault;

pub use clock::Clock;
pub use effects::{EffectFailed, Effects, Performer, Run};
pub use replies::Replies;
pub use runs::{Action, Ended, Place, Runs};
pub use tasks::Tasks;

/// A boxed future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Runs a future to its end; a panic of it becomes a fault.
///
/// An `async fn` would hold the future twice: as it was given, and where it is polled.
pub fn caught<T>(future: impl Future<Output = T>) -> impl Future<Output = Result<T, Fault>> {
    let ended = AssertUnwindSafe(future).catch_unwind();
    ended.map(|ended| ended.map_err(|panic| Fault::of_panic(&*panic)))
}
