//! Where patterns come from: the built-in ones, and people's own files, which win.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::pattern::{Error, Pattern};

/// The patterns that come with KSI, by name.
const BUILT_IN: &[(&str, &str)] = &[("debate", include_str!("../../patterns/debate.yaml"))];

/// Why a pattern cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotLoaded {
    /// Nobody has written it.
    #[error("there is no pattern `{name}`")]
    Unknown {
        /// As it was asked for.
        name: String,
    },
    /// It has a fault.
    #[error(transparent)]
    Faulty(#[from] Error),
    /// Its file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A pattern by name, and where it comes from.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// None for one that is built in.
    pub(super) path: Option<PathBuf>,
    pub(super) pattern: Result<Pattern, NotLoaded>,
}

/// The pattern of this name: the person's own, else the built-in one.
pub(super) fn load(folder: &Path, name: &str) -> Result<Pattern, NotLoaded> {
    let unknown = || NotLoaded::Unknown { name: name.to_owned() };
    if !is_name(name) {
        return Err(unknown());
    }
    let path = folder.join(format!("{name}.yaml"));
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(Pattern::parse(&path.display().to_string(), &text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(NotLoaded::Unreadable { path, source }),
    }
    let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name).ok_or_else(unknown)?;
    Ok(Pattern::parse(&format!("{name}.yaml"), text)?)
}

/// All patterns, by name; a faulty one is in the list with its fault.
pub(super) fn list(folder: &Path) -> Result<Vec<Entry>, NotLoaded> {
    let mut names: Vec<_> = BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.extend(own(folder)?);
    names.sort();
    names.dedup();
    let entry = |name: String| {
        let path = folder.join(format!("{name}.yaml"));
        let pattern = load(folder, &name);
        Entry { name, path: path.exists().then_some(path), pattern }
    };
    Ok(names.into_iter().map(entry).collect())
}

/// The names of the files in the person's folder, which need not exist.
fn own(folder: &Path) -> Result<Vec<String>, NotLoaded> {
    let unreadable = |source| NotLoaded::Unreadable { path: folder.to_owned(), source };
    let files = match std::fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut names = Vec::new();
    for file in files {
        let name = file.map_err(unreadable)?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".yaml"));
        names.extend(name.filter(|name| is_name(name)).map(str::to_owned));
    }
    Ok(names)
}

/// Whether this can be a pattern's name; it is part of the names of files.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !name.is_empty() && name.len() <= 64 && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<(String, bool, bool)> {
        let entries = list(folder).unwrap();
        entries.into_iter().map(|e| (e.name, e.path.is_some(), e.pattern.is_ok())).collect()
    }

    #[test]
    fn the_debate_is_there_without_any_folder() {
        let folder = Path::new("/nowhere/patterns");
        assert_eq!(names(folder), [("debate".to_owned(), false, true)]);
        assert_eq!(load(folder, "debate").unwrap().names(), ["Ada", "Kurt"]);
    }

    #[test]
    fn a_file_of_ones_own_wins_and_a_faulty_one_is_listed_with_its_fault() {
        let folder = tempfile::tempdir().unwrap();
        let text = BUILT_IN[0].1.replace("name: Ada", "name: Emmy");
        std::fs::write(folder.path().join("debate.yaml"), text).unwrap();
        std::fs::write(folder.path().join("broken.yaml"), "rounds: many").unwrap();
        std::fs::write(folder.path().join("notes.txt"), "no pattern").unwrap();
        assert_eq!(load(folder.path(), "debate").unwrap().names(), ["Emmy", "Kurt"]);
        let expected = [("broken".to_owned(), true, false), ("debate".to_owned(), true, true)];
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("patterns");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(folder.path().join("secret.yaml"), BUILT_IN[0].1).unwrap();
        let error = load(&inner, "../secret").unwrap_err();
        assert!(matches!(error, NotLoaded::Unknown { .. }), "{error}");
    }
}
