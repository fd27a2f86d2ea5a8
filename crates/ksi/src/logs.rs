//! `ksi logs`: what the daemon has logged, also when it does not run.

use std::{
    fs::File,
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use ksi_process::{Watch, unread};

use crate::{connect::Cx, fail::FAILED, output::say, signals::Signals};

/// So much is read at once.
const PIECE: u64 = 64 << 10;

/// Prints the last lines of the daemon's log, and what comes, if it is to be followed.
pub(crate) async fn logs(cx: &Cx, lines: usize, follow: bool) -> anyhow::Result<ExitCode> {
    let path = cx.log();
    let mut signals = Signals::new()?;
    let mut log = Log::open(&path)?;
    if let Some(file) = &mut log.file {
        print(&tail(file, lines)?)?;
    } else if !follow {
        say(format!("there is no log at {}: no daemon has run in the background", path.display()));
        return Ok(ExitCode::from(FAILED));
    }
    if !follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let mut watch = Watch::new()?;
        log.watch(&mut watch)?;
        // What came before it was watched.
        log.pass_on()?;
        tokio::select! {
            changed = watch.changed() => changed?,
            _ = signals.next() => return Ok(ExitCode::SUCCESS),
            () = unread() => return Ok(ExitCode::SUCCESS),
        }
        log.pass_on()?;
    }
}

/// The daemon's log, as far as it has been read.
struct Log {
    path: PathBuf,
    /// None until there is one.
    file: Option<File>,
}

impl Log {
    fn open(path: &Path) -> anyhow::Result<Log> {
        let file = match File::open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("{} cannot be read", path.display()));
            }
        };
        Ok(Log { path: path.to_owned(), file })
    }

    fn watch(&self, watch: &mut Watch) -> anyhow::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let what = || format!("{} cannot be watched", folder.display());
        watch.entries(folder).with_context(what)?;
        if self.file.is_some() {
            // It may be gone by now, which the folder tells.
            let _ = watch.content(&self.path);
        }
        Ok(())
    }

    /// Prints what has come, to the end of this file, and then of one that took its place.
    fn pass_on(&mut self) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            if file.metadata()?.len() < file.stream_position()? {
                // Somebody has emptied it.
                file.rewind()?;
            }
            print_rest(file)?;
        }
        let next = Log::open(&self.path)?.file;
        if let Some(mut next) = next.filter(|next| self.is_another(next)) {
            print_rest(&mut next)?;
            self.file = Some(next);
        }
        Ok(())
    }

    fn is_another(&self, other: &File) -> bool {
        let id = |file: &File| file.metadata().ok().map(|found| (found.dev(), found.ino()));
        self.file.as_ref().and_then(id) != id(other)
    }
}

/// The last lines of a file, which is then read to its end.
fn tail(file: &mut File, lines: usize) -> std::io::Result<Vec<u8>> {
    let end = file.seek(SeekFrom::End(0))?;
    let (mut start, mut text) = (end, Vec::new());
    while start > 0 && newlines(&text) <= lines {
        let from = start.saturating_sub(PIECE);
        let mut piece = vec![0; (start - from) as usize];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut piece)?;
        piece.append(&mut text);
        (text, start) = (piece, from);
    }
    file.seek(SeekFrom::Start(end))?;
    let ends: Vec<_> = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').collect();
    let ends_in_one = text.last() == Some(&b'\n');
    // The newline before the first line that is wanted.
    let before = ends.len().checked_sub(lines + usize::from(ends_in_one));
    let from = before.map_or(0, |index| ends[index].0 + 1);
    Ok(if lines == 0 { Vec::new() } else { text.split_off(from) })
}

fn newlines(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

fn print_rest(file: &mut File) -> std::io::Result<()> {
    std::io::copy(file, &mut std::io::stdout().lock())?;
    std::io::stdout().flush()
}

fn print(text: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found_however_long_the_file_is() {
        let mut file = tempfile::tempfile().unwrap();
        let mut last = |text: &str, lines| {
            file.set_len(0).unwrap();
            file.rewind().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            String::from_utf8(tail(&mut file, lines).unwrap()).unwrap()
        };
        assert_eq!(last("", 5), "");
        assert_eq!(last("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last("a\nb\nc\n", 9), "a\nb\nc\n");
        assert_eq!(last("a\nb\nunfinished", 2), "b\nunfinished");
        assert_eq!(last("a\nb\n", 0), "");
        let long: String = (0..50_000).map(|n| format!("line {n}\n")).collect();
        assert_eq!(last(&long, 1), "line 49999\n");
        assert_eq!(last(&long, 20_000).lines().count(), 20_000);
    }
}
