//! The shapes of the lines: requests, replies, pushed events.

mod fields;
mod message;
mod request;
mod write;

pub use fields::MAX_DEPTH;
pub use message::{Message, Pushed, Reply};
pub use request::{Context, Rejected, Request, plain_text};
pub use write::{EventLine, write_error, write_reply, write_request};
