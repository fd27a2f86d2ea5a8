//! The shapes of the lines: requests, replies, pushed events.

mod call;
mod fields;
mod message;
mod number;
mod request;
mod write;

pub use call::{Answered, LONGEST_CALL_MS, Outcome, call_number, write_call};
pub use fields::MAX_DEPTH;
pub use message::{Message, Pushed, Reply};
pub use request::{Context, Rejected, Request, plain_text};
pub use write::{EventLine, write_error, write_reply, write_request};
