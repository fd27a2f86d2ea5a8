//! The repository's own files, build output and caches left out.

use std::fs;
use std::path::{Path, PathBuf};

/// Hidden folders that hold files people write.
const HIDDEN_SOURCES: [&str; 4] = [".cargo", ".ci", ".config", ".github"];

/// The folder that holds the workspace.
pub(super) fn repository() -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    crates.and_then(Path::parent).expect("the crate lies two folders deep").to_owned()
}

/// The folders of the workspace's crates, sorted.
pub(super) fn crates() -> Vec<PathBuf> {
    entries(&repository().join("crates")).into_iter().filter(|path| path.is_dir()).collect()
}

/// All files below a folder, sorted; none when there is no such folder.
pub(super) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let (inner, files): (Vec<_>, Vec<_>) =
            entries(&folder).into_iter().partition(|path| path.is_dir());
        folders.extend(inner.into_iter().filter(|inner| holds_sources(inner)));
        found.extend(files);
    }
    found.sort();
    found
}

/// All files below a folder whose name ends in `.extension`.
pub(super) fn files_with_extension(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let files = files_below(folder).into_iter();
    files.filter(|file| file.extension().is_some_and(|found| found == extension)).collect()
}

/// A path as people write it: from the repository's root.
pub(super) fn shown(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}

/// The text of a file that must be there.
pub(super) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", shown(path)))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

fn holds_sources(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let hidden = name.starts_with('.') && !HIDDEN_SOURCES.contains(&name.as_ref());
    // The files by which cargo's target folder and Python's environments say what they are.
    let made = ["CACHEDIR.TAG", "pyvenv.cfg"].iter().any(|mark| folder.join(mark).exists());
    !hidden && !made && name != "__pycache__"
}
