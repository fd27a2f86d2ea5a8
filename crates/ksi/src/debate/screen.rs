//! What is printed of an orchestration, and what has been.

use ksi_protocol::{Code, Error, Pushed, Result as Reply};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::output::{bold, duration, harmless, say};

#[derive(Debug, Deserialize)]
struct Turn {
    request_id: String,
    speaker: String,
    text: String,
}

#[derive(Debug, Deserialize)]
struct Chunk {
    request_id: String,
    conversation_id: String,
    attempt: u32,
    offset: u64,
    text: String,
}

#[derive(Debug, Deserialize)]
struct Finished {
    turns: u32,
    usage: Usage,
    cost_usd: f64,
    duration_ms: u64,
    transcript: String,
}

#[derive(Debug, Deserialize)]
struct Failed {
    error: String,
    code: Option<Code>,
    hint: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Usage {
    input: u64,
    output: u64,
}

/// What is printed of one orchestration.
pub(super) struct Screen {
    id: String,
    json: bool,
    streaming: Option<Streaming>,
    /// What is to be printed next.
    out: String,
}

/// The turn whose words stream at present.
struct Streaming {
    request_id: String,
    attempt: u32,
    printed: String,
}

impl Screen {
    /// An empty one.
    pub(super) fn new(id: String, json: bool) -> Self {
        Screen { id, json, streaming: None, out: String::new() }
    }

    /// What is to be printed now.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    /// Shows an event, if it is one of this orchestration; the last one brings how it ended.
    pub(super) fn show(&mut self, event: &Pushed) -> anyhow::Result<Option<Reply<()>>> {
        let data: Value = serde_json::from_str(event.data.get())?;
        match event.event.as_str() {
            "completion:chunk" => self.chunk(&serde_json::from_value(data)?),
            "completion:retrying" => self.retrying(&data),
            "journal:full" => say("\n(the journal's disk is full; with room it goes on by itself)"),
            "journal:recovered" => say("\n(the journal has room again)"),
            _ if data["orchestration_id"] == self.id.as_str() => return self.fact(event, data),
            _ => {}
        }
        Ok(None)
    }

    fn fact(&mut self, event: &Pushed, data: Value) -> anyhow::Result<Option<Reply<()>>> {
        if self.json {
            let line = json!({ "event": event.event, "data": data, "seq": event.seq });
            self.out.push_str(&format!("{line}\n"));
        }
        match event.event.as_str() {
            "orchestration:turn_taken" => self.turn(&serde_json::from_value(data)?),
            "orchestration:finished" => {
                self.finished(&serde_json::from_value(data)?);
                return Ok(Some(Ok(())));
            }
            "orchestration:failed" => {
                let Failed { error, code, hint } = serde_json::from_value(data)?;
                let error = Error::new(code.unwrap_or(Code::Internal), error);
                return Ok(Some(Err(Error { hint, ..error })));
            }
            "orchestration:terminated" => {
                let reason =
                    data["reason"].as_str().map_or(String::new(), |why| format!(": {why}"));
                let why = format!("the orchestration was terminated{reason}");
                return Ok(Some(Err(Error::new(Code::Cancelled, why))));
            }
            _ => {}
        }
        Ok(None)
    }

    /// Pieces may be missing. One is printed if it continues what is printed of its attempt; what
    /// follows a gap is printed once the whole turn is known.
    fn chunk(&mut self, chunk: &Chunk) {
        let Some(speaker) = self.speaker(&chunk.conversation_id) else { return };
        if self.json {
            return;
        }
        let head = head(speaker);
        let theirs = |streaming: &&mut Streaming| {
            (&streaming.request_id, streaming.attempt) == (&chunk.request_id, chunk.attempt)
        };
        let streaming = match self.streaming.as_mut().filter(theirs) {
            Some(streaming) => streaming,
            None if chunk.offset > 0 => return,
            None => {
                self.out.push_str(&head);
                let (request_id, attempt) = (chunk.request_id.clone(), chunk.attempt);
                self.streaming.insert(Streaming { request_id, attempt, printed: String::new() })
            }
        };
        if chunk.offset == streaming.printed.len() as u64 {
            streaming.printed.push_str(&chunk.text);
            self.out.push_str(&harmless(&chunk.text));
        }
    }

    fn turn(&mut self, turn: &Turn) {
        if self.json {
            return;
        }
        let streamed = self.streaming.take().filter(|it| it.request_id == turn.request_id);
        let rest = streamed.and_then(|streamed| rest(&streamed.printed, &turn.text));
        let text = rest.unwrap_or_else(|| {
            self.out.push_str(&head(&turn.speaker));
            &turn.text
        });
        self.out.push_str(&harmless(text));
        self.out.push('\n');
    }

    fn retrying(&self, data: &Value) {
        if self.json {
            return;
        }
        if data["conversation_id"].as_str().and_then(|id| self.speaker(id)).is_some() {
            let reason = data["reason"].as_str().unwrap_or("it failed");
            let delay = duration(data["delay_ms"].as_u64().unwrap_or(0));
            say(format!("\n({reason}; trying again in {delay})"));
        }
    }

    fn finished(&self, end: &Finished) {
        if self.json {
            return;
        }
        let Finished { turns, usage, cost_usd, duration_ms, transcript } = end;
        let tokens = usage.input + usage.output;
        let time = duration(*duration_ms);
        say(format!(
            "\n{turns} turns, {tokens} tokens ({} read, {} written), {time}, {cost_usd:.4} USD",
            usage.input, usage.output
        ));
        say(format!("transcript: {transcript}"));
        say("the daemon runs on; `ksi stop` stops it");
    }

    /// Whose conversation this is; none if it belongs to something else.
    fn speaker<'a>(&self, conversation_id: &'a str) -> Option<&'a str> {
        conversation_id.strip_prefix(&self.id)?.strip_prefix('/')
    }
}

fn head(speaker: &str) -> String {
    format!("\n{}\n", bold(&harmless(speaker)))
}

/// What is left of a text of which this much is printed; none if something else was printed.
/// Space at the ends does not count: one of the two may have been trimmed.
fn rest<'a>(printed: &str, text: &'a str) -> Option<&'a str> {
    let text = text.trim();
    text.strip_prefix(printed.trim_start()).or_else(|| (text == printed.trim()).then_some(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen() -> Screen {
        Screen::new("d-1".into(), false)
    }

    fn chunk(screen: &mut Screen, attempt: u32, offset: u64, text: &str) {
        let (request_id, conversation_id) = ("r".into(), "d-1/Ada".into());
        screen.chunk(&Chunk { request_id, conversation_id, attempt, offset, text: text.into() });
    }

    fn turn(screen: &mut Screen, text: &str) {
        let (request_id, speaker) = ("r".into(), "Ada".into());
        screen.turn(&Turn { request_id, speaker, text: text.into() });
    }

    #[test]
    fn what_follows_a_gap_is_printed_with_the_whole_turn() {
        let mut screen = screen();
        chunk(&mut screen, 1, 0, "Für ");
        chunk(&mut screen, 1, 5, "tea ");
        chunk(&mut screen, 1, 12, "calm.");
        assert_eq!(screen.take(), "\nAda\nFür tea ");
        turn(&mut screen, "Für tea is calm.");
        assert_eq!(screen.take(), "is calm.\n");
    }

    #[test]
    fn a_turn_whose_beginning_was_missed_is_printed_as_a_whole() {
        let mut screen = screen();
        chunk(&mut screen, 1, 4, "is calm.");
        turn(&mut screen, "Tea is calm.");
        assert_eq!(screen.take(), "\nAda\nTea is calm.\n");
    }

    #[test]
    fn a_new_attempt_begins_anew() {
        let mut screen = screen();
        chunk(&mut screen, 1, 0, "Tea ");
        chunk(&mut screen, 2, 0, "Coffee ");
        turn(&mut screen, "Coffee wakes.");
        assert_eq!(screen.take(), "\nAda\nTea \nAda\nCoffee wakes.\n");
    }

    #[test]
    fn an_answer_that_is_not_what_was_streamed_is_printed_as_a_whole() {
        let mut screen = screen();
        chunk(&mut screen, 1, 0, "Tea ");
        turn(&mut screen, "Coffee wakes.");
        assert_eq!(screen.take(), "\nAda\nTea \nAda\nCoffee wakes.\n");
    }

    #[test]
    fn space_that_only_one_of_the_two_has_is_no_difference() {
        for (streamed, text) in [(" Tea.\n", "Tea."), ("Tea.", " Tea.\n"), ("Tea.", "Tea.")] {
            let mut screen = screen();
            chunk(&mut screen, 1, 0, streamed);
            screen.take();
            turn(&mut screen, text);
            assert_eq!(screen.take(), "\n", "{streamed:?} {text:?}");
        }
    }

    #[test]
    fn what_others_say_is_not_shown() {
        let mut screen = Screen::new("d-2".into(), false);
        chunk(&mut screen, 1, 0, "Tea ");
        assert_eq!(screen.take(), "");
    }
}
