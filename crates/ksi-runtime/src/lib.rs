//! What runs, and when: clock, owned tasks, and the effects that states want.
//!
//! In reading order: `clock`, where time comes from; `tasks`, who owns what is spawned; `runs`,
//! what should run, pure; `effects`, which starts and stops it; `room`, what is told when the disk
//! is full; `writer`, who commits; `replies` and `refusal`, who is told of the end and
//! how; `snapshots`, which make the next start fast; `ending`, how the daemon comes to its end.

mod clock;
mod effects;
mod ending;
mod refusal;
mod replies;
pub mod room;
mod runs;
mod snapshots;
mod tasks;
#[cfg(any(test, feature = "testing"))]
pub mod world;
mod writer;

use std::{panic::AssertUnwindSafe, pin::Pin};

use futures_util::FutureExt;
use ksi_state::Fault;

pub use clock::Clock;
pub use effects::{EffectFailed, Effects, Performer, Run};
pub use ending::{Ending, finish};
pub use refusal::{reading, refused};
pub use replies::Replies;
pub use runs::{Action, Ended, Place, Runs};
pub use snapshots::Snapshots;
pub use tasks::Tasks;
pub use writer::Writer;

/// A boxed future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Runs a future to its end; a panic of it becomes a fault.
///
/// An `async fn` would hold the future twice: as it was given, and where it is polled.
pub fn caught<T>(future: impl Future<Output = T>) -> impl Future<Output = Result<T, Fault>> {
    let ended = AssertUnwindSafe(future).catch_unwind();
    ended.map(|ended| ended.map_err(|panic| Fault::of_panic(&*panic)))
}
