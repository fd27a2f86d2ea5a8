//! Completions over a whole kernel, answered by scripts.

mod archive;
mod harness;
mod local;
mod queue;
mod restart;
mod retries;
