//! What happens, as it travels: one bounded ring of news, read by everyone at their own pace.
//!
//! In reading order: `event`, a durable fact or a passing signal; `ring`, the shared buffer and
//! each listener's place in it; `ear`, what one listener wants; `listener`, one reader, from the journal first and then live;
//! `caller`, who asks, and where they are heard; `line`, what is asked of a listener in turn.

mod caller;
mod ear;
mod event;
mod line;
mod listener;
mod ring;

pub use caller::{Act, Caller};
pub use ear::Because;
pub use event::Event;
pub use line::{Asked, Call, Reply};
pub use listener::{Inbox, Listener, News};
pub use ring::{Overview, Ring};
