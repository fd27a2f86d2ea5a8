//! What you need to talk to KSI: frames, codec, client.
//!
//! One JSON object per line goes both ways over a Unix socket. [`Lines`] cuts the bytes into lines,
//! [`Request`] and [`Message`] give them types, the `write_*` functions write them, [`Paths`] says
//! where the socket is, and [`Client`] does all of it for a program that has something to ask.

mod client;
mod codec;
mod doc;
mod error;
mod frame;
mod path;
mod pattern;
mod similar;
mod text;

pub use client::{Client, ConnectError, Feed, FeedError, News, Options, Subscription};
pub use codec::{Line, Lines};
pub use doc::{EventDoc, Kind, Raw, parse_data};
pub use error::{Code, Error, Result};
pub use frame::{
    Answered, Context, EventLine, LONGEST_CALL_MS, MAX_DEPTH, Message, Outcome, Pushed, Rejected,
    Reply, Request, call_number, plain_text, write_call, write_error, write_reply, write_request,
};
pub use path::{PathError, Paths};
pub use pattern::{Pattern, check_event_name};
pub use similar::did_you_mean;
pub use text::{harmless, is_command};
