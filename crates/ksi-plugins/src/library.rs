//! Libraries: named YAML files that come with KSI, and people's own, which win.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// Where things of one kind come from.
#[derive(Debug, Clone)]
pub(crate) struct Library {
    /// What they are called: `there is no … of this name`.
    pub(crate) kind: &'static str,
    /// Those that come with KSI, by name.
    pub(crate) built_in: &'static [(&'static str, &'static str)],
    /// People's own; it need not be there.
    pub(crate) folder: PathBuf,
}

/// Why something cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotLoaded<E> {
    /// Nobody has written it.
    #[error("there is no {kind} `{name}`")]
    Unknown {
        /// What it would be.
        kind: &'static str,
        /// As it was asked for.
        name: String,
    },
    /// It has a fault.
    #[error(transparent)]
    Faulty(E),
    /// Its file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// One of a library, and where it comes from.
#[derive(Debug)]
pub(crate) struct Entry<T, E> {
    pub(crate) name: String,
    /// None for one that is built in.
    pub(crate) path: Option<PathBuf>,
    pub(crate) loaded: Result<T, NotLoaded<E>>,
}

impl Library {
    /// The one of this name, read by `parse` from a file's name and text.
    pub(crate) fn load<T, E>(
        &self,
        name: &str,
        parse: impl Fn(&str, &str) -> Result<T, E>,
    ) -> Result<T, NotLoaded<E>> {
        let unknown = || NotLoaded::Unknown { kind: self.kind, name: name.to_owned() };
        if !is_name(name) {
            return Err(unknown());
        }
        let path = self.path(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                return parse(&path.display().to_string(), &text).map_err(NotLoaded::Faulty);
            }
            Err(error) if is_missing(&error) => {}
            Err(source) => return Err(NotLoaded::Unreadable { path, source }),
        }
        let mut built_in = self.built_in.iter();
        let (_, text) = built_in.find(|(known, _)| *known == name).ok_or_else(unknown)?;
        parse(&format!("{name}.yaml"), text).map_err(NotLoaded::Faulty)
    }

    /// All of them, by name; a faulty one is in the list with its fault.
    pub(crate) fn list<T, E>(
        &self,
        parse: impl Fn(&str, &str) -> Result<T, E>,
    ) -> Result<Vec<Entry<T, E>>, NotLoaded<E>> {
        let mut names: Vec<_> = self.built_in.iter().map(|(name, _)| (*name).to_owned()).collect();
        names.extend(own(&self.folder)?);
        names.sort();
        names.dedup();
        let entry = |name: String| {
            let (path, loaded) = (self.path(&name), self.load(&name, &parse));
            Entry { name, path: path.exists().then_some(path), loaded }
        };
        Ok(names.into_iter().map(entry).collect())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.yaml"))
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The names of the files in the person's folder, which need not exist.
fn own<E>(folder: &Path) -> Result<Vec<String>, NotLoaded<E>> {
    let unreadable = |source| NotLoaded::Unreadable { path: folder.to_owned(), source };
    let files = match std::fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
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

/// Reads YAML; an error is a line, from 1, and what is wrong there.
pub(crate) fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T, (u64, String)> {
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        let why = error.without_snippet().to_string();
        (line, why.split(" at line ").next().unwrap_or_default().to_owned())
    })
}

/// Whether this can be a name; it is part of the names of files.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !name.is_empty() && name.len() <= 64 && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library(folder: &Path) -> Library {
        let built_in = &[("one", "1"), ("two", "2")];
        Library { kind: "number", built_in, folder: folder.to_owned() }
    }

    fn number(_: &str, text: &str) -> Result<u32, std::num::ParseIntError> {
        text.parse()
    }

    fn names(folder: &Path) -> Vec<(String, bool, Option<u32>)> {
        let entries = library(folder).list(number).unwrap();
        entries.into_iter().map(|e| (e.name, e.path.is_some(), e.loaded.ok())).collect()
    }

    #[test]
    fn what_is_built_in_is_there_without_any_folder() {
        let folder = Path::new("/nowhere/numbers");
        let expected = [("one".to_owned(), false, Some(1)), ("two".to_owned(), false, Some(2))];
        assert_eq!(names(folder), expected);
        let error = library(folder).load("three", number).unwrap_err();
        assert_eq!(error.to_string(), "there is no number `three`");
    }

    #[test]
    fn a_file_of_ones_own_wins_and_a_faulty_one_is_listed_with_its_fault() {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [("two.yaml", "22"), ("bad.yaml", "many"), ("notes.txt", "3")] {
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        let named = |name: &str, own, number| (name.to_owned(), own, number);
        let expected = [named("bad", true, None), named("one", false, Some(1))];
        assert_eq!(names(folder.path())[..2], expected);
        assert_eq!(names(folder.path())[2..], [named("two", true, Some(22))]);
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("numbers");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(folder.path().join("secret.yaml"), "7").unwrap();
        let error = library(&inner).load("../secret", number).unwrap_err();
        assert!(matches!(error, NotLoaded::Unknown { .. }), "{error}");
    }
}
