//! The Unix socket: connections, frames to events.
//!
//! [`Server`] binds the socket and gives each connection a task of its own. That task alone reads,
//! asks the kernel, and writes; so no lock is held over a write, and a client that does not read
//! keeps nobody waiting but itself. [`Server::run`] says what a client may rely on.

mod bell;
mod calls;
mod connection;
mod guest;
mod order;
mod place;
mod server;
mod share;
#[cfg(feature = "testing")]
pub mod testing;

pub use guest::{Admit, Guest, another_user, same_user};
pub use server::{BindError, Server};
