//! The file: read as a whole or not at all, and written so that a crash leaves the old one.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use ksi_protocol::did_you_mean;
use serde_json::{Map, Value};
use toml_edit::DocumentMut;

use super::{
    settings::{Config, variable},
    value::{plain, typed, unfit},
};

/// The largest file that is read.
const MOST_BYTES: u64 = 1 << 20;

/// Where the configuration is kept, and what the environment says instead.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    /// By key: the variable's value.
    environment: BTreeMap<String, String>,
}

/// A configuration, and where its values come from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// What holds.
    pub config: Config,
    /// By key, where it is not the default.
    pub sources: BTreeMap<String, Source>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// The file.
    File,
    /// This variable of the environment.
    Variable(String),
}

/// Why a configuration cannot be had, or changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not one.
    #[error("the configuration {path}, line {line}: {why}")]
    File {
        /// The file.
        path: String,
        /// From 1.
        line: usize,
        /// What is wrong there.
        why: String,
    },
    /// A variable, or a value to be set, is not of its key's type.
    #[error("{what} is {value:?}, but must be {expected}")]
    Value {
        /// The variable, or the key.
        what: String,
        /// As it was given.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// There is no such key.
    #[error("there is no setting `{key}`; {}", hint(key))]
    Key {
        /// As it was given.
        key: String,
    },
    /// There is nothing to go back to.
    #[error("there is no backup {0}")]
    NoBackup(String),
    /// The system refused it.
    #[error("the configuration {path} cannot be {what}: {source}")]
    System {
        /// The file.
        path: String,
        /// Read or written.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn hint(key: &str) -> String {
    let keys = Config::keys();
    match did_you_mean(key, keys.iter().map(String::as_str)) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("there are {}", keys.join(", ")),
    }
}

impl ConfigFile {
    /// The file at this path, with what this process's environment says.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_environment(path, |name| std::env::var(name).ok())
    }

    /// The same, with another environment; an empty variable counts as unset.
    pub fn with_environment(
        path: impl Into<PathBuf>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let set = |key: String| {
            let value = env(&variable(&key)).filter(|value| !value.is_empty())?;
            Some((key, value))
        };
        let environment = Config::keys().into_iter().filter_map(set).collect();
        ConfigFile { path: path.into(), environment }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads file and environment; no file is an empty one.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        self.of(&self.text()?)
    }

    /// Sets a key in the file and leaves all else in it as it is; what holds then.
    pub fn set(&self, key: &str, value: &str) -> Result<Loaded, ConfigError> {
        let default = default_of(key)?;
        let value = read(key, key, &default, value)?;
        let text = self.text()?;
        self.of(&text)?;
        let wrong = |error: toml_edit::TomlError| self.wrong(&text, error.span(), error.message());
        let mut document: DocumentMut = text.parse().map_err(wrong)?;
        let mut at = document.as_table_mut();
        let (tables, name) = key.rsplit_once('.').map_or((None, key), |(t, n)| (Some(t), n));
        for table in tables.into_iter().flat_map(|tables| tables.split('.')) {
            let inner = at.entry(table).or_insert_with(toml_edit::table).as_table_mut();
            at = inner.ok_or_else(|| {
                self.wrong(&text, None, "write the settings below as a [table] to change them")
            })?;
        }
        let value: toml_edit::Value = match &value {
            Value::Number(number) => {
                i64::try_from(number.as_u64().unwrap_or(0)).unwrap_or(i64::MAX).into()
            }
            other => other.as_str().unwrap_or_default().into(),
        };
        // A comment behind the old value stays.
        match at.get_mut(name).and_then(toml_edit::Item::as_value_mut) {
            Some(old) => {
                let decor = old.decor().clone();
                *old = value;
                *old.decor_mut() = decor;
            }
            None => drop(at.insert(name, toml_edit::value(value))),
        }
        let new = document.to_string();
        let loaded = self.of(&new)?;
        if !text.is_empty() {
            self.write(&self.backup_path(), &text)?;
        }
        self.write(&self.path, &new)?;
        Ok(loaded)
    }

    /// Keeps a copy of the file beside it; where.
    pub fn back_up(&self) -> Result<PathBuf, ConfigError> {
        self.write(&self.backup_path(), &self.text()?)?;
        Ok(self.backup_path())
    }

    /// Brings back what it was before it was last set, or backed up; what holds then.
    pub fn roll_back(&self) -> Result<Loaded, ConfigError> {
        let backup = self.backup_path();
        let text = match fs::read_to_string(&backup) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ConfigError::NoBackup(backup.display().to_string()));
            }
            Err(source) => return Err(self.system("read", source)),
        };
        let loaded = self.of(&text)?;
        let now = self.text()?;
        self.write(&self.path, &text)?;
        // So that going back can be taken back.
        self.write(&backup, &now)?;
        Ok(loaded)
    }

    fn backup_path(&self) -> PathBuf {
        self.path.with_extension("toml.bak")
    }

    fn text(&self) -> Result<String, ConfigError> {
        use io::Read;
        let read = fs::metadata(&self.path).and_then(|found| {
            if !found.is_file() {
                return Err(io::Error::other("it is no file"));
            }
            let file = fs::File::open(&self.path)?;
            let mut bytes = Vec::new();
            file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(String::new());
            }
            Err(source) => return Err(self.system("read", source)),
        };
        if bytes.len() as u64 > MOST_BYTES {
            return Err(self.wrong("", None, "it is longer than 1 MiB"));
        }
        String::from_utf8(bytes).map_err(|error| {
            let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count();
            let path = self.path.display().to_string();
            ConfigError::File { path, line, why: "it is not UTF-8".to_owned() }
        })
    }

    /// What a file of this text would say.
    fn of(&self, text: &str) -> Result<Loaded, ConfigError> {
        let wrong = |error: toml::de::Error| self.wrong(text, error.span(), error.message());
        let config: Config = toml::from_str(text).map_err(wrong)?;
        let said: Value = toml::from_str(text).map_err(wrong)?;
        let mut sources = BTreeMap::new();
        let mut tree = serde_json::to_value(&config).unwrap_or_default();
        for (key, default) in Config::default().entries() {
            let pointer = format!("/{}", key.replace('.', "/"));
            if said.pointer(&pointer).is_some() {
                sources.insert(key.clone(), Source::File);
            }
            let Some(value) = self.environment.get(&key) else { continue };
            let variable = variable(&key);
            put(&mut tree, &key, read(&variable, &key, &default, value)?);
            sources.insert(key, Source::Variable(variable));
        }
        let config = serde_json::from_value(tree)
            .map_err(|error| self.wrong(text, None, &error.to_string()))?;
        if let Some((key, expected)) = unfit(&config) {
            let why = format!("`{key}` must be {expected}");
            return Err(self.wrong(text, place(text, &key), &why));
        }
        Ok(Loaded { config, sources })
    }

    fn wrong(&self, text: &str, at: Option<std::ops::Range<usize>>, why: &str) -> ConfigError {
        let before = at.and_then(|at| text.get(..at.start)).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        ConfigError::File { path: self.path.display().to_string(), line, why: plain(why) }
    }

    fn system(&self, what: &'static str, source: io::Error) -> ConfigError {
        ConfigError::System { path: self.path.display().to_string(), what, source }
    }

    /// The whole text is there, or what was there before.
    fn write(&self, path: &Path, text: &str) -> Result<(), ConfigError> {
        // A link is followed: people keep such files elsewhere.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folder = path.parent().unwrap_or(Path::new("."));
        let write = || {
            fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(text.as_bytes())?;
            if let Ok(before) = fs::metadata(&path) {
                file.as_file().set_permissions(before.permissions())?;
            }
            file.as_file().sync_all()?;
            file.persist(&path)?;
            fs::File::open(folder)?.sync_all()
        };
        write().map_err(|source| self.system("written", source))
    }
}

fn default_of(key: &str) -> Result<Value, ConfigError> {
    let mut entries = Config::default().entries().into_iter();
    let found = entries.find(|(known, _)| known == key);
    found.map(|(_, value)| value).ok_or_else(|| ConfigError::Key { key: key.to_owned() })
}

/// A text as a value of this key; `what` is where it was given.
fn read(what: &str, key: &str, default: &Value, text: &str) -> Result<Value, ConfigError> {
    let value = text.chars().take(80).collect();
    let what = what.to_owned();
    typed(key, default, text).map_err(|expected| ConfigError::Value { what, value, expected })
}

/// Where a key's value stands.
fn place(text: &str, key: &str) -> Option<std::ops::Range<usize>> {
    let document = toml_edit::Document::parse(text).ok()?;
    key.split('.').try_fold(document.as_item(), |at, name| at.get(name))?.span()
}

fn put(tree: &mut Value, key: &str, value: Value) {
    let mut at = tree;
    for name in key.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[name];
    }
    *at = value;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(folder: &Path) -> ConfigFile {
        ConfigFile::with_environment(folder.join("config.toml"), |_| None)
    }

    fn error(text: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.toml"), text).unwrap();
        file(folder.path()).load().unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_file_is_named_with_its_line_and_why() {
        for (text, line, why) in [
            (&b"model = \"local\"\nmodle = 1\n"[..], 2, "modle"),
            (b"[local]\nidle_seconds = -1\n", 2, "integer `-1`"),
            (b"\n\n[local\n", 3, ""),
            (b"[log]\nmax_bytes = 99999999999999999999\n", 2, ""),
            (b"[log]\nmax_bytes = 0\n", 2, "`log.max_bytes` must be a whole number from 1 to"),
            (b"model = ' '\n[checkpoint]\nsnapshot_every = 1", 1, "`model` must be a text that"),
            (b"\n[checkpoint]\n\nsnapshot_every = 0\n", 4, "must be a whole number from 1 to"),
            (b"[log]\nkeep_files = 'x'", 2, "expected a whole number, 0 or more"),
            (b"log = 5", 1, "expected a table"),
            (b"model = 'a'\nmodel = 'b'\n", 2, "duplicate"),
            (b"model = '\n\xff'", 2, "UTF-8"),
        ] {
            let error = error(text);
            assert!(error.contains(&format!("config.toml, line {line}: ")), "{error}");
            assert!(error.contains(why), "{error}");
        }
        assert!(error(&vec![b'#'; 2 << 20]).contains("longer than 1 MiB"));
    }

    #[test]
    fn what_is_no_file_is_an_error_and_none_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(file(folder.path()).load().unwrap(), Loaded::default());
        fs::create_dir(folder.path().join("config.toml")).unwrap();
        let error = file(folder.path()).load().unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{error}");
        fs::remove_dir(folder.path().join("config.toml")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.path().join("config.toml"), 0o600.into())
            .unwrap();
        let error = file(folder.path()).load().unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "it is no file");
    }

    #[test]
    fn the_environment_wins_over_the_file_and_empty_is_unset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, "model = \"a\"\n[local]\nidle_seconds = 1\n").unwrap();
        let env = |name: &str| match name {
            "KSI_LOCAL_IDLE_SECONDS" => Some("7".to_owned()),
            "KSI_MODEL" => Some(String::new()),
            _ => None,
        };
        let loaded = ConfigFile::with_environment(&path, env).load().unwrap();
        assert_eq!(
            (loaded.config.local.idle_seconds, loaded.config.model.as_deref()),
            (7, Some("a"))
        );
        let variable = Source::Variable("KSI_LOCAL_IDLE_SECONDS".to_owned());
        assert_eq!(loaded.sources["local.idle_seconds"], variable);
        assert_eq!(loaded.sources["model"], Source::File);
        let env = |name: &str| (name == "KSI_LOG_KEEP_FILES").then(|| "many".to_owned());
        let error = ConfigFile::with_environment(&path, env).load().unwrap_err().to_string();
        assert!(error.contains("KSI_LOG_KEEP_FILES is \"many\""), "{error}");
    }

    #[test]
    fn setting_keeps_comments_order_and_mode_and_a_wrong_value_changes_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let text = "# mine\nmodel = \"a\" # why\n\n[log] # all of it\nkeep_files = 3\n";
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let file = file(folder.path());
        file.set("model", "b\"\n").unwrap();
        file.set("log.keep_files", "4").unwrap();
        let loaded = file.set("local.idle_seconds", " 5 ").unwrap();
        assert_eq!(loaded.config.model.as_deref(), Some("b\"\n"));
        let now = fs::read_to_string(&path).unwrap();
        for part in ["# mine\nmodel = ", " # why\n", "[log] # all of it\nkeep_files = 4\n"] {
            assert!(now.contains(part), "{now}");
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        for (key, value) in
            [("log.keep_files", "x"), ("log.keep_fils", "1"), ("../x", "1"), ("log", "1")]
        {
            assert!(file.set(key, value).is_err());
        }
        assert!(file.set("log.keep_files", "99999999999").is_err(), "too large for its type");
        assert_eq!(fs::read_to_string(&path).unwrap(), now);
        let error = file.set("log.keep_fils", "1").unwrap_err().to_string();
        assert!(error.contains("did you mean `log.keep_files`?"), "{error}");
    }

    #[test]
    fn a_broken_file_is_not_written_over_and_going_back_can_be_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = (folder.path().join("config.toml"), file(folder.path()));
        let none = file.roll_back().unwrap_err().to_string();
        assert!(none.contains("there is no backup"), "{none}");
        file.set("model", "a").unwrap();
        file.set("model", "b").unwrap();
        assert_eq!(file.roll_back().unwrap().config.model.as_deref(), Some("a"));
        assert_eq!(file.roll_back().unwrap().config.model.as_deref(), Some("b"));
        fs::write(&path, "model = ").unwrap();
        assert!(file.set("model", "c").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "model = ");
    }

    #[test]
    fn a_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real.toml");
        fs::write(&real, "model = \"a\"\n").unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("config.toml")).unwrap();
        file(folder.path()).set("model", "b").unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "model = \"b\"\n");
        assert!(fs::symlink_metadata(folder.path().join("config.toml")).unwrap().is_symlink());
    }

    proptest! {
        #[test]
        fn what_is_set_is_read_back(model in "\\PC*\\S.*", idle in 0..i64::MAX as u64, keep: u32) {
            let folder = tempfile::tempdir().unwrap();
            let file = file(folder.path());
            file.set("local.idle_seconds", &idle.to_string()).unwrap();
            file.set("model", &model).unwrap();
            file.set("log.keep_files", &keep.to_string()).unwrap();
            let config = file.load().unwrap().config;
            prop_assert_eq!(config.model, Some(model));
            prop_assert_eq!((config.local.idle_seconds, config.log.keep_files), (idle, keep));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("config.toml"), &text).unwrap();
            let file = file(folder.path());
            if file.load().is_ok() {
                let _ = file.set("log.keep_files", "1");
                prop_assert!(file.load().is_ok());
            }
        }
    }
}
