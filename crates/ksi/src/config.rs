//! The configuration file.

use std::{io::ErrorKind, path::Path};

use anyhow::Context;
use serde::Deserialize;

use crate::log::Keep;

/// What `config.toml` may say; every line is optional.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The model to use when a request names none, such as `local`.
    pub(crate) model: Option<String>,
    /// The local model.
    #[serde(default)]
    pub(crate) local: Local,
    /// The log of a daemon in the background.
    #[serde(default)]
    pub(crate) log: Keep,
}

/// The local model's settings.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Local {
    /// How long it stays loaded with nothing to do, in seconds.
    pub(crate) idle_seconds: u64,
}

impl Default for Local {
    fn default() -> Self {
        Local { idle_seconds: 60 }
    }
}

impl Config {
    /// Reads the file; none there is an empty one.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Config> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text)
                .with_context(|| format!("the configuration {} is not valid", path.display())),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(Config::default())
            }
            Err(error) => Err(error)
                .with_context(|| format!("the configuration {} cannot be read", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        assert_eq!(Config::read(&file).unwrap(), Config::default());
        std::fs::write(&file, "model = \"local\"\nmodle = 1\n").unwrap();
        let error = format!("{:#}", Config::read(&file).unwrap_err());
        assert!(error.contains("line 2") && error.contains("modle"), "{error}");
    }
}
