//! The loop: lines in, events out.

use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::time::Instant;

use serde::Deserialize;

use crate::error::{Error, Refusal};
use crate::model::Model;
use crate::protocol::{Event, Failure, Ready, Request};
use crate::writer::Stopped;

/// A longer line is answered with an error and skipped: 8,192 tokens are some 40 kB.
const MAX_LINE: usize = 1 << 20;

/// Loads the model, says so, and answers requests one after the other until the input ends.
///
/// A request that cannot be answered gets an error event and the loop goes on. If the model
/// cannot be loaded, the only event is an error without an id, and the same error is returned.
pub fn serve(model: &Path, mut input: impl BufRead, output: impl Write) -> Result<(), Error> {
    let mut events = Events { output };
    let began = Instant::now();
    let mut loaded = match Model::load(model) {
        Ok(loaded) => loaded,
        Err(error) => {
            events.failed(None, error.code(), error_text(&error))?;
            return Err(error);
        }
    };
    let load_ms = began.elapsed().as_millis() as u64;
    events.write(&Event::Ready { ready: Ready { model: name(model), load_ms } })?;
    while let Some(line) = next_line(&mut input)? {
        match line {
            Line::Blank => {}
            Line::TooLong => {
                let message = format!(
                    "the prompt is too long for this model: the request has more than {MAX_LINE} bytes"
                );
                events.failed(None, "too_long", message)?;
            }
            Line::Whole(line) => answer(&mut loaded, &line, &mut events)?,
        }
    }
    Ok(())
}

fn answer(model: &mut Model, line: &[u8], events: &mut Events<impl Write>) -> Result<(), Error> {
    let request: Request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => {
            let refusal = Refusal::BadRequest(error.to_string());
            return events.failed(id_of(line), refusal.code(), refusal.to_string());
        }
    };
    let id = &request.id;
    let say = |token| events.write(&Event::Token { id: id.clone(), token });
    match model.answer(&request, say) {
        Ok(done) => events.write(&Event::Done { id: request.id, done }),
        Err(Stopped::Unheard(error)) => Err(error),
        Err(Stopped::Refused(refusal)) => {
            events.failed(Some(request.id), refusal.code(), refusal.to_string())
        }
    }
}

/// The id of a request that is otherwise not usable.
fn id_of(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: String,
    }
    serde_json::from_slice::<OnlyId>(line).ok().map(|request| request.id)
}

fn error_text(error: &Error) -> String {
    match error {
        Error::Open { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

/// The file's name without its folder and without the endings of packing and format.
fn name(model: &Path) -> String {
    let stem = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let is_packing = |ending: &str| {
        let ending = ending.strip_prefix('I').unwrap_or(ending);
        let digit = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
        ending
            .strip_prefix('Q')
            .or(ending.strip_prefix("BF"))
            .or(ending.strip_prefix('F'))
            .is_some_and(digit)
    };
    match stem.rsplit_once('.') {
        Some((name, ending)) if is_packing(ending) => name.to_owned(),
        _ => stem,
    }
}

enum Line {
    Blank,
    TooLong,
    Whole(Vec<u8>),
}

fn next_line(input: &mut impl BufRead) -> Result<Option<Line>, Error> {
    let mut line = Vec::new();
    let limit = MAX_LINE as u64 + 1;
    let read = input.by_ref().take(limit).read_until(b'\n', &mut line).map_err(Error::Input)?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') && line.len() > MAX_LINE {
        input.skip_until(b'\n').map_err(Error::Input)?;
        return Ok(Some(Line::TooLong));
    }
    if line.trim_ascii().is_empty() {
        return Ok(Some(Line::Blank));
    }
    Ok(Some(Line::Whole(line)))
}

struct Events<W> {
    output: W,
}

impl<W: Write> Events<W> {
    fn failed(&mut self, id: Option<String>, code: &str, message: String) -> Result<(), Error> {
        self.write(&Event::Failed { id, error: Failure { code: code.to_owned(), message } })
    }

    /// One write per event, so that a reader sees whole lines at once.
    fn write(&mut self, event: &Event) -> Result<(), Error> {
        let mut line = serde_json::to_vec(event).map_err(|error| Error::Output(error.into()))?;
        line.push(b'\n');
        self.output.write_all(&line).and_then(|()| self.output.flush()).map_err(Error::Output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_model_leaves_out_how_it_is_packed() {
        for (file, wanted) in [
            ("/m/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
            ("Llama-3.2-1B.gguf", "Llama-3.2-1B"),
            ("a.BF16.gguf", "a"),
            ("a.IQ3_XS.gguf", "a"),
            ("a.Qwen.gguf", "a.Qwen"),
        ] {
            assert_eq!(name(Path::new(file)), wanted);
        }
    }

    #[test]
    fn a_line_too_long_is_skipped_and_the_next_one_read() {
        let mut text = vec![b'x'; MAX_LINE + 10];
        text.extend(b"\n\n{}\n{\"last\":1}");
        let mut input = text.as_slice();
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut input).unwrap() {
            lines.push(match line {
                Line::Blank => "blank".to_owned(),
                Line::TooLong => "too long".to_owned(),
                Line::Whole(line) => String::from_utf8(line).unwrap(),
            });
        }
        assert_eq!(lines, ["too long", "blank", "{}\n", "{\"last\":1}"]);
    }
}
