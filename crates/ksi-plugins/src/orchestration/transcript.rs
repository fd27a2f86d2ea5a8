//! The transcript: a Markdown file of what was said.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use ksi_protocol::harmless;

use super::{facts::Totals, run::Run};

/// Where the transcript of a run lies.
pub(super) fn path(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("{id}.md"))
}

/// Writes a transcript so that no crash leaves half of one.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // A name of its own: an effect that was stopped may still be writing when the next one does.
    let mut part = tempfile::Builder::new().prefix(".part-").tempfile_in(folder)?;
    part.write_all(text.as_bytes())?;
    part.as_file().sync_all()?;
    part.persist(path)?;
    File::open(folder)?.sync_all()
}

/// The transcript's text; `end` says why there are no more turns, if not because all were taken.
pub(super) fn text(run: &Run, totals: &Totals, end: Option<&str>) -> String {
    let started = &run.started;
    let title = started.vars.get("topic").unwrap_or(&started.pattern);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# {}\n", one_line(title));
    let _ = writeln!(text, "- Orchestration: {}", started.orchestration_id);
    let _ = writeln!(text, "- Pattern: {}", started.pattern);
    for (name, value) in &started.vars {
        let _ = writeln!(text, "- {name}: {}", one_line(value));
    }
    let _ = writeln!(text, "- Model: {}", started.model);
    let _ = writeln!(text, "- Date: {}", date(run.started_at.0));
    for turn in &run.turns {
        let _ = writeln!(text, "\n## {} (turn {})\n", turn.speaker, turn.turn);
        let _ = writeln!(text, "{}", turn.text.trim());
    }
    if let Some(end) = end {
        let _ = writeln!(text, "\n*{end}*");
    }
    let _ = writeln!(text, "\n---\n\n{}", figures(totals));
    // People read it with `cat`.
    harmless(&text)
}

fn figures(totals: &Totals) -> String {
    let Totals { turns, usage, cost_usd, duration_ms, .. } = totals;
    let plural = if *turns == 1 { "" } else { "s" };
    let seconds = *duration_ms as f64 / 1000.0;
    format!(
        "{turns} turn{plural}, {} tokens read, {} written, {cost_usd:.4} USD, {seconds:.1} s",
        usage.input, usage.output
    )
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn date(ms: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(ms as i64).unwrap_or_default();
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_again_replaces_the_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder.path().join("transcripts"), "r1");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        let files = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 1);
    }

    #[test]
    fn two_who_write_at_once_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path(), "r1");
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4).map(|_| scope.spawn(|| write(&path, "same"))).collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
        });
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "same");
    }

    #[test]
    fn figures_read_as_a_sentence() {
        let totals = Totals { turns: 1, duration_ms: 1_250, ..Totals::default() };
        assert_eq!(figures(&totals), "1 turn, 0 tokens read, 0 written, 0.0000 USD, 1.2 s");
    }

    #[test]
    fn a_topic_of_several_lines_stays_a_title() {
        assert_eq!(one_line("Is P=NP?\n## no"), "Is P=NP? ## no");
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
    }
}
