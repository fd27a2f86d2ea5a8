use std::path::{Path, PathBuf};

/// The longest path that a Unix socket can have, without the zero at its end.
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Where KSI keeps its things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Whoever holds this file locked is the daemon of this state. It lies in the state folder:
    /// two daemons with different sockets must still exclude each other.
    pub lock: PathBuf,
    /// Journal, logs and workspaces.
    pub state: PathBuf,
    /// `config.toml`, profiles, patterns, plugins and prices.
    pub config: PathBuf,
    /// Where models are put.
    pub models: PathBuf,
    /// Where models may lie already, shared with the user's other homes of KSI.
    pub shared_models: Option<PathBuf>,
}

/// Why there is no place for KSI's things.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Neither `KSI_HOME` nor the user's home folder is known.
    #[error(
        "cannot tell where KSI's files are: HOME is not set, or no absolute path; set it or KSI_HOME"
    )]
    NoHome,
    /// `KSI_SOCKET` names a path that no socket can have.
    #[error(
        "KSI_SOCKET is {length} bytes long, and this system takes {MAX_SOCKET_PATH}; \
         set it to a shorter path"
    )]
    SocketTooLong {
        /// Its length in bytes.
        length: usize,
    },
}

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Paths {
    /// The paths that this process's environment asks for, made absolute.
    pub fn discover() -> Result<Self, PathError> {
        Self::from_env(&|name| {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
            if !name.starts_with("KSI_") {
                return Some(value);
            }
            // The daemon leaves the folder it was started in.
            let path = std::path::absolute(&value).ok();
            path.and_then(|path| path.into_os_string().into_string().ok()).or(Some(value))
        })
    }

    /// The paths that an environment asks for; an empty variable counts as unset.
    pub fn from_env(env: Env<'_>) -> Result<Self, PathError> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let (run, state, config, models, shared_models) = match env("KSI_HOME").map(PathBuf::from) {
            Some(home) => (
                home.join("run"),
                home.join("state"),
                home.join("config"),
                home.join("cache/models"),
                folder(&env, "XDG_CACHE_HOME", ".cache").ok().map(|cache| cache.join("models")),
            ),
            None => {
                let state = folder(&env, "XDG_STATE_HOME", ".local/state")?;
                let run = absolute(&env, "XDG_RUNTIME_DIR").map(|runtime| runtime.join("ksi"));
                let config = folder(&env, "XDG_CONFIG_HOME", ".config")?;
                let models = folder(&env, "XDG_CACHE_HOME", ".cache")?.join("models");
                (run.unwrap_or_else(|| state.join("run")), state, config, models, None)
            }
        };
        let socket = match env("KSI_SOCKET").map(PathBuf::from) {
            Some(socket) if length(&socket) > MAX_SOCKET_PATH => {
                return Err(PathError::SocketTooLong { length: length(&socket) });
            }
            Some(socket) => socket,
            None => short_enough(&env, run.join("daemon.sock")),
        };
        Ok(Self { socket, lock: state.join("daemon.lock"), state, config, models, shared_models })
    }

    /// Where a model file is, or where it belongs when it is nowhere yet.
    pub fn model(&self, file: &str) -> PathBuf {
        let own = self.models.join(file);
        let shared = self.shared_models.as_ref().map(|folder| folder.join(file));
        shared.filter(|shared| !own.exists() && shared.exists()).unwrap_or(own)
    }
}

/// KSI's folder below one of the user's base folders.
fn folder(env: Env<'_>, name: &str, below_home: &str) -> Result<PathBuf, PathError> {
    let base = absolute(env, name);
    let base = base.or_else(|| absolute(env, "HOME").map(|home| home.join(below_home)));
    base.map(|base| base.join("ksi")).ok_or(PathError::NoHome)
}

/// Relative base folders are invalid and count as unset, as the XDG specification wants it.
fn absolute(env: Env<'_>, name: &str) -> Option<PathBuf> {
    env(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The path itself, or, when no socket can have it, one in the temp folder named by the user and a
/// hash of the path. Whoever creates that folder must see that it is the user's own and 0700: its
/// name can be guessed.
fn short_enough(env: Env<'_>, socket: PathBuf) -> PathBuf {
    if length(&socket) <= MAX_SOCKET_PATH {
        return socket;
    }
    let user = rustix::process::getuid().as_raw();
    let name =
        format!("ksi-{user}-{:016x}/daemon.sock", fnv1a(socket.as_os_str().as_encoded_bytes()));
    let temp = absolute(env, "TMPDIR").map(|temp| temp.join(&name));
    temp.filter(|path| length(path) <= MAX_SOCKET_PATH)
        .unwrap_or_else(|| Path::new("/tmp").join(name))
}

fn length(path: &Path) -> usize {
    path.as_os_str().len()
}

/// 64-bit FNV-1a: any program that wants to find the socket has it in a few lines.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(env: &[(&str, &str)]) -> Result<Paths, PathError> {
        Paths::from_env(&|name| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn path(text: &str) -> PathBuf {
        PathBuf::from(text)
    }

    #[test]
    fn a_home_of_its_own_holds_everything() {
        let paths = paths(&[("KSI_HOME", "/k"), ("HOME", "/h"), ("XDG_STATE_HOME", "/s")]).unwrap();
        let expected = Paths {
            socket: path("/k/run/daemon.sock"),
            lock: path("/k/state/daemon.lock"),
            state: path("/k/state"),
            config: path("/k/config"),
            models: path("/k/cache/models"),
            shared_models: Some(path("/h/.cache/ksi/models")),
        };
        assert_eq!(paths, expected);
    }

    #[test]
    fn without_one_the_base_folders_of_the_user_are_taken() {
        let env = [
            ("XDG_RUNTIME_DIR", "/r"),
            ("XDG_STATE_HOME", "/s"),
            ("XDG_CONFIG_HOME", "/c"),
            ("XDG_CACHE_HOME", "/x"),
        ];
        let expected = Paths {
            socket: path("/r/ksi/daemon.sock"),
            lock: path("/s/ksi/daemon.lock"),
            state: path("/s/ksi"),
            config: path("/c/ksi"),
            models: path("/x/ksi/models"),
            shared_models: None,
        };
        assert_eq!(paths(&env), Ok(expected));
    }

    #[test]
    fn without_those_the_home_folder_is() {
        let paths = paths(&[("HOME", "/h")]).unwrap();
        assert_eq!(paths.socket, path("/h/.local/state/ksi/run/daemon.sock"));
        assert_eq!(paths.state, path("/h/.local/state/ksi"));
        assert_eq!(paths.config, path("/h/.config/ksi"));
        assert_eq!(paths.models, path("/h/.cache/ksi/models"));
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let names = ["KSI_HOME", "KSI_SOCKET", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"];
        let mut env: Vec<_> = names.map(|name| (name, "")).to_vec();
        env.push(("HOME", "/h"));
        assert_eq!(paths(&env), paths(&[("HOME", "/h")]));
        assert_eq!(paths(&[("HOME", "")]), Err(PathError::NoHome));
    }

    #[test]
    fn a_relative_base_folder_counts_as_unset() {
        assert_eq!(paths(&[("HOME", "/h"), ("XDG_STATE_HOME", "s")]), paths(&[("HOME", "/h")]));
    }

    #[test]
    fn no_home_is_an_error_unless_ksi_has_one() {
        assert_eq!(paths(&[]), Err(PathError::NoHome));
        assert_eq!(paths(&[("KSI_HOME", "/k")]).unwrap().shared_models, None);
    }

    #[test]
    fn the_socket_may_be_named_alone() {
        let paths = paths(&[("KSI_SOCKET", "/t/s"), ("KSI_HOME", "/k")]).unwrap();
        assert_eq!(paths.socket, path("/t/s"));
        assert_eq!(paths.lock, path("/k/state/daemon.lock"));
    }

    #[test]
    fn a_named_socket_that_is_too_long_is_an_error() {
        let long = format!("/{}", "s".repeat(MAX_SOCKET_PATH));
        let error = PathError::SocketTooLong { length: MAX_SOCKET_PATH + 1 };
        assert_eq!(paths(&[("KSI_SOCKET", &long), ("HOME", "/h")]), Err(error));
        assert!(paths(&[("KSI_SOCKET", &long[1..]), ("HOME", "/h")]).is_ok());
    }

    #[test]
    fn a_home_that_is_too_deep_has_its_socket_in_the_temp_folder() {
        let socket =
            |home: &str, temp| paths(&[("KSI_HOME", home), ("TMPDIR", temp)]).unwrap().socket;
        let deep = format!("/{}", "k".repeat(120));
        let user = rustix::process::getuid().as_raw();
        let found = socket(&deep, "/t").display().to_string();
        let hash = found
            .strip_prefix(&format!("/t/ksi-{user}-"))
            .and_then(|rest| rest.strip_suffix("/daemon.sock"))
            .unwrap();
        assert_eq!(hash.len(), 16);
        assert_eq!(socket(&deep, "/t"), path(&found), "the same for daemon and client");
        assert_ne!(socket(&format!("{deep}k"), "/t"), path(&found), "another for another home");
        assert!(socket(&deep, &deep).starts_with("/tmp"), "also when the temp folder is deep");
        assert!(socket(&deep, "").starts_with("/tmp"));
    }

    #[test]
    fn every_client_can_check_its_rule_against_the_same_list() {
        #[derive(serde::Deserialize)]
        struct Row {
            env: std::collections::HashMap<String, String>,
            socket: Option<String>,
        }
        let list = include_str!("../../../transcripts/paths/socket.ndjson");
        assert!(list.lines().count() > 8);
        let user = rustix::process::getuid().as_raw().to_string();
        for line in list.lines() {
            let Row { env, socket } = serde_json::from_str(line).unwrap();
            let found = Paths::from_env(&|name| env.get(name).cloned()).ok();
            let found = found.map(|paths| paths.socket.display().to_string());
            assert_eq!(found, socket.map(|socket| socket.replace("UID", &user)), "{line}");
        }
    }

    #[test]
    fn the_hash_is_the_one_that_others_can_compute() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_longest_path_allowed_can_be_bound() {
        let folder = tempfile::tempdir().unwrap();
        let name = "s".repeat(MAX_SOCKET_PATH - folder.path().as_os_str().len() - 1);
        std::os::unix::net::UnixListener::bind(folder.path().join(&name)).unwrap();
        let longer = folder.path().join(name + "s");
        assert!(std::os::unix::net::UnixListener::bind(longer).is_err());
    }

    #[test]
    fn a_model_is_taken_from_the_shared_folder_when_only_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("k").display().to_string();
        let cache = folder.path().join("x").display().to_string();
        let paths = paths(&[("KSI_HOME", &home), ("XDG_CACHE_HOME", &cache)]).unwrap();
        let shared = paths.shared_models.clone().unwrap();
        assert_eq!(paths.model("m"), paths.models.join("m"));
        std::fs::create_dir_all(&shared).unwrap();
        std::fs::write(shared.join("m"), "").unwrap();
        assert_eq!(paths.model("m"), shared.join("m"));
        std::fs::create_dir_all(&paths.models).unwrap();
        std::fs::write(paths.models.join("m"), "").unwrap();
        assert_eq!(paths.model("m"), paths.models.join("m"));
    }
}
