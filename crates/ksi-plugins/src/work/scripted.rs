//! A provider that answers by a script and logs what it was asked; for tests and rehearsals.
//!
//! The model's name is `scripted:/path/script.yaml`, or `scripted/NAME` for the file `NAME.yaml`
//! in the models folder. The script is read anew for every call:
//!
//! ```yaml
//! log: calls.ndjson       # one line per call, written before the answer; beside the script
//! concurrency: 64         # how many calls run at the same time
//! delay_ms: 0             # before each word of an answer
//! rules:                  # the first one that fits answers
//!   - when: prime         # fits if the newest prompt contains this
//!     turn: 2             # fits if the conversation holds so many answers already
//!     attempts: 1         # fits the first so many attempts only
//!     fail: {code: rate_limited, message: slow down, retry_after_ms: 50, permanent: false}
//!   - fail: {times: 2}    # fails the first two attempts; from the third on the rule answers
//!     answers: [at last]
//!   - hang: true          # never answers
//!     attempts: 1
//!   - answers: [One., Two.] # by the number of answers in the conversation; the last one stays
//!     delay_ms: 20
//!   - echo: true          # says the prompt again
//! ```
//!
//! In answers `{prompt}`, `{instructions}`, `{turn}` (from 1 on), `{conversation}` and `{model}`
//! stand for what was asked. `code` is `provider_error` unless given. What is answered depends on
//! the request and its attempt alone, so that it is the same after a restart of the daemon. A
//! line of the log is the request as the provider got it: `request_id`, `attempt`,
//! `conversation_id`, `model`, `instructions`, `messages` and so on.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ksi_kernel::Code;
use serde::Deserialize;

use super::provider::{
    BoxFuture, Description, Failure, Gate, Outcome, Provider, Request, Sink, StopReason, Usage,
};

/// The provider `scripted`.
pub struct Scripted {
    folder: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Script {
    log: Option<PathBuf>,
    concurrency: u32,
    delay_ms: u64,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rule {
    when: Option<String>,
    turn: Option<usize>,
    attempts: Option<u32>,
    fail: Option<Fail>,
    hang: bool,
    echo: bool,
    answers: Vec<String>,
    delay_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Fail {
    code: Code,
    message: String,
    retry_after_ms: Option<u64>,
    times: Option<u32>,
    permanent: bool,
}

const CONCURRENCY: u32 = 64;
const PATIENCE_MS: u64 = 60_000;

impl Default for Script {
    fn default() -> Self {
        Script { log: None, concurrency: CONCURRENCY, delay_ms: 0, rules: Vec::new() }
    }
}

impl Default for Fail {
    fn default() -> Self {
        let message = "the script says so".into();
        let code = Code::ProviderError;
        Fail { code, message, retry_after_ms: None, times: None, permanent: false }
    }
}

impl Scripted {
    /// Scripts without a path lie in this folder.
    pub fn new(folder: PathBuf) -> Self {
        Scripted { folder }
    }

    fn path(&self, model: &str) -> Result<PathBuf, Failure> {
        let unnamed = || {
            Failure::permanent(Code::BadParams, format!("model `{model}` names no script"))
                .hint("`scripted:/path/script.yaml`, or `scripted/NAME`")
        };
        if let Some(path) = model.strip_prefix("scripted:") {
            return Ok(path.into());
        }
        let name = model.strip_prefix("scripted/").ok_or_else(unnamed)?;
        let plain = |letter: char| letter.is_alphanumeric() || "-_".contains(letter);
        if name.is_empty() || !name.chars().all(plain) {
            return Err(unnamed());
        }
        Ok(self.folder.join(name).with_extension("yaml"))
    }

    fn script(&self, model: &str) -> Result<Script, Failure> {
        Script::read(&self.path(model)?)
    }
}

impl Provider for Scripted {
    fn describe(&self) -> Description {
        Description {
            name: "scripted".into(),
            models: vec!["scripted:/path/script.yaml".into(), "scripted/NAME".into()],
            concurrency: CONCURRENCY,
            paid: false,
            streams: true,
            first_token_ms: PATIENCE_MS,
            silence_ms: PATIENCE_MS,
        }
    }

    fn check(&self, model: &str) -> Result<(), Failure> {
        self.script(model).map(drop)
    }

    fn gate(&self, model: &str) -> Gate {
        let limit = self.script(model).map_or(CONCURRENCY, |script| script.concurrency);
        Gate { name: model.to_owned(), limit }
    }

    fn complete(
        &self,
        request: Request,
        sink: Arc<dyn Sink>,
    ) -> BoxFuture<Result<Outcome, Failure>> {
        let path = self.path(&request.model);
        Box::pin(async move {
            let path = path?;
            let script = Script::read(&path)?;
            script.log_call(&path, &request)?;
            script.answer(&request, &*sink).await
        })
    }
}

impl Script {
    fn read(path: &Path) -> Result<Script, Failure> {
        let unusable = |why: String| {
            let shown = path.display();
            Failure::permanent(Code::BadParams, format!("script {shown} is unusable: {why}"))
                .hint("mend it, or name another: `scripted:/path/script.yaml`, or `scripted/NAME`")
        };
        // Of a pipe nothing would come, and whoever waits for it would wait for ever.
        let kind = std::fs::metadata(path).map_err(|error| unusable(error.to_string()))?;
        if !kind.is_file() {
            return Err(unusable("this is no file".to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
        serde_saphyr::from_str(&text).map_err(|error| unusable(error.to_string()))
    }

    /// Adds the request to the log in one write, so that lines of several calls do not mix.
    fn log_call(&self, script: &Path, request: &Request) -> Result<(), Failure> {
        let Some(log) = &self.log else { return Ok(()) };
        let path = script.parent().unwrap_or(Path::new(".")).join(log);
        let write = || -> io::Result<()> {
            let mut line = serde_json::to_vec(request)?;
            line.push(b'\n');
            OpenOptions::new().create(true).append(true).open(&path)?.write_all(&line)
        };
        write().map_err(|error| {
            let why = format!("log {} cannot be written: {error}", path.display());
            Failure::permanent(Code::ProviderError, why)
        })
    }

    async fn answer(&self, request: &Request, sink: &dyn Sink) -> Result<Outcome, Failure> {
        let Some(rule) = self.rules.iter().find(|rule| rule.fits(request)) else {
            let why = "no rule of the script fits this request";
            return Err(Failure::permanent(Code::ProviderError, why)
                .hint("a rule without `when`, `turn` and `attempts` fits every request"));
        };
        if let Some(fail) = rule.fail.as_ref().filter(|fail| fail.is_due(request)) {
            return Err(fail.failure());
        }
        if rule.hang {
            std::future::pending::<()>().await;
        }
        let text = rule.text(request)?;
        let delay = Duration::from_millis(rule.delay_ms.unwrap_or(self.delay_ms));
        for word in text.split_inclusive(' ') {
            if !delay.is_zero() {
                sink.pause(delay).await;
            }
            sink.text(word);
        }
        let input = request.messages.iter().map(|message| words(&message.content)).sum();
        let usage = Usage { input, output: words(&text), ..Usage::default() };
        let stop_reason = StopReason::End;
        Ok(Outcome { text, session_id: None, stop_reason, usage, cost_usd: 0.0 })
    }
}

impl Rule {
    fn fits(&self, request: &Request) -> bool {
        self.when.as_ref().is_none_or(|text| request.prompt().contains(text))
            && self.turn.is_none_or(|turn| turn == request.turn())
            && self.attempts.is_none_or(|attempts| request.attempt <= attempts)
    }

    fn text(&self, request: &Request) -> Result<String, Failure> {
        if self.echo {
            return Ok(request.prompt().to_owned());
        }
        let turn = request.turn();
        let Some(answer) = self.answers.get(turn).or(self.answers.last()) else {
            let why = "the rule of the script that fits has no answer";
            return Err(Failure::permanent(Code::ProviderError, why));
        };
        let instructions = request.instructions.as_deref().unwrap_or_default();
        let filled = answer
            .replace("{turn}", &(turn + 1).to_string())
            .replace("{conversation}", &request.conversation_id)
            .replace("{model}", &request.model)
            .replace("{instructions}", instructions)
            .replace("{prompt}", request.prompt());
        Ok(filled)
    }
}

impl Fail {
    fn is_due(&self, request: &Request) -> bool {
        self.times.is_none_or(|times| request.attempt <= times)
    }

    fn failure(&self) -> Failure {
        Failure {
            retry_after_ms: self.retry_after_ms,
            permanent: self.permanent,
            ..Failure::new(self.code, self.message.clone())
        }
    }
}

/// A script's tokens are words.
fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt;

    use super::*;
    use crate::work::provider::Message;

    /// Keeps what it hears; pauses take no time.
    #[derive(Default)]
    struct Ears(Mutex<(Vec<String>, Duration)>);

    impl Sink for Ears {
        fn text(&self, text: &str) {
            self.0.lock().unwrap().0.push(text.to_owned());
        }
        fn progress(&self, _: &str) {}
        fn pause(&self, duration: Duration) -> BoxFuture<()> {
            self.0.lock().unwrap().1 += duration;
            Box::pin(async {})
        }
        fn spawn(&self, _: &str, _: BoxFuture<()>) {}
    }

    fn request(turns: usize, attempt: u32, prompt: &str) -> Request {
        let earlier = [Message::user("before"), Message::assistant("yes")];
        let mut messages: Vec<_> = (0..turns).flat_map(|_| earlier.clone()).collect();
        messages.push(Message::user(prompt));
        Request {
            request_id: "req_1".into(),
            attempt,
            conversation_id: "ada".into(),
            model: "scripted/s".into(),
            instructions: Some("be brief".into()),
            messages,
            max_tokens: None,
            seed: 1,
            temperature: None,
            avoid_repeats: Vec::new(),
        }
    }

    fn answered(yaml: &str, request: &Request) -> Option<Result<String, Failure>> {
        let script: Script = serde_saphyr::from_str(yaml).unwrap();
        let outcome = script.answer(request, &Ears::default()).now_or_never()?;
        Some(outcome.map(|outcome| outcome.text))
    }

    #[test]
    fn an_answer_depends_on_the_turn_and_the_last_one_stays() {
        let script = "rules: [{answers: [one, two]}]";
        for (turn, expected) in [(0, "one"), (1, "two"), (2, "two")] {
            let answer = answered(script, &request(turn, 1, "go on"));
            assert_eq!(answer, Some(Ok(expected.to_owned())));
        }
    }

    #[test]
    fn the_first_rule_that_fits_answers() {
        let script =
            "rules: [{when: prime, answers: [yes]}, {turn: 1, answers: [{turn}]}, {echo: true}]";
        let script = script.replace("[{turn}]", "['{turn} of {conversation}: {instructions}']");
        let say = |turns, prompt| answered(&script, &request(turns, 1, prompt)).unwrap().unwrap();
        assert_eq!(say(0, "is 7 prime?"), "yes");
        assert_eq!(say(1, "and then"), "2 of ada: be brief");
        assert_eq!(say(0, "and then"), "and then");
    }

    #[test]
    fn a_rule_fails_so_often_and_then_answers() {
        let script =
            "rules: [{fail: {code: rate_limited, retry_after_ms: 50, times: 2}, answers: [ok]}]";
        for attempt in [1, 2] {
            let failure = answered(script, &request(0, attempt, "x")).unwrap().unwrap_err();
            assert_eq!((failure.code, failure.retry_after_ms), (Code::RateLimited, Some(50)));
        }
        assert_eq!(answered(script, &request(0, 3, "x")), Some(Ok("ok".into())));
    }

    #[test]
    fn a_hanging_rule_gives_no_answer_until_its_attempts_are_over() {
        let script = "rules: [{hang: true, attempts: 1}, {answers: [ok]}]";
        assert_eq!(answered(script, &request(0, 1, "x")), None);
        assert_eq!(answered(script, &request(0, 2, "x")), Some(Ok("ok".into())));
    }

    #[test]
    fn words_come_one_by_one_each_after_its_delay() {
        let script: Script =
            serde_saphyr::from_str("{delay_ms: 5, rules: [{answers: [a b c]}]}").unwrap();
        let ears = Ears::default();
        let outcome = script.answer(&request(0, 1, "x"), &ears).now_or_never();
        assert_eq!(outcome.unwrap().unwrap().usage.output, 3);
        let (heard, paused) = ears.0.into_inner().unwrap();
        assert_eq!((heard, paused.as_millis()), (vec!["a ".into(), "b ".into(), "c".into()], 15));
    }

    #[test]
    fn every_call_is_logged_before_it_is_answered() {
        let folder = tempfile::tempdir().unwrap();
        let script = "{log: calls.ndjson, rules: [{hang: true}]}";
        std::fs::write(folder.path().join("s.yaml"), script).unwrap();
        let provider = Scripted::new(folder.path().to_owned());
        for attempt in [1, 2] {
            let ears = Arc::new(Ears::default());
            let call = provider.complete(request(0, attempt, "say hello"), ears);
            assert!(call.now_or_never().is_none(), "it hangs");
        }
        let log = std::fs::read_to_string(folder.path().join("calls.ndjson")).unwrap();
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["attempt"], 2);
        assert_eq!(lines[1]["messages"][0]["content"], "say hello");
        assert_eq!(lines[1]["instructions"], "be brief");
    }

    #[test]
    fn a_script_that_is_missing_or_misspelt_fails_for_good() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("bad.yaml"), "rules: [{answer: [x]}]").unwrap();
        let provider = Scripted::new(folder.path().to_owned());
        for (model, words) in [
            ("scripted/bad", "answer"),
            ("scripted/gone", "No such file"),
            ("scripted/../etc", "names no script"),
        ] {
            let request = Request { model: model.into(), ..request(0, 1, "x") };
            let outcome = provider.complete(request, Arc::new(Ears::default()));
            let failure = outcome.now_or_never().unwrap().unwrap_err();
            assert!(failure.permanent && failure.message.contains(words), "{failure}");
        }
    }
}
