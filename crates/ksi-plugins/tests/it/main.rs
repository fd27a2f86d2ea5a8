//! The plugins over a whole kernel.

#![allow(clippy::unwrap_used, reason = "a test says with a panic that it fails")]

mod model;
mod orchestration;
mod work;
