//! What holds for the repository as a whole, checked by reading its files.

mod files;
mod manifests;
mod matrix;
mod modules;
mod names;
mod rust;
mod size;
mod tests;
mod text;
