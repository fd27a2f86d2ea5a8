//! Runs the loop over given lines and reads its events.

use std::env;
use std::io::{BufRead, BufReader, Lines, PipeReader, PipeWriter, Write, pipe};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use ksi_local::{Done, Error, Event, Failure, Message, Request, Role, Sampling, serve};

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// One request's events, put together.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) pieces: Vec<String>,
    pub(crate) end: Result<Done, Failure>,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        self.pieces.concat()
    }

    pub(crate) fn done(&self) -> &Done {
        self.end.as_ref().expect("an answer")
    }

    pub(crate) fn error(&self) -> &Failure {
        self.end.as_ref().expect_err("an error")
    }
}

/// The model file: `KSI_TEST_MODEL`, else where the script puts it.
pub(crate) fn model() -> PathBuf {
    let path = env::var_os("KSI_TEST_MODEL").map_or_else(fetched, PathBuf::from);
    assert!(
        path.is_file(),
        "the test model is not at {}: run tools/fetch-test-model once, or set KSI_TEST_MODEL",
        path.display()
    );
    path
}

fn fetched() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("KSI_TEST_CACHE")
        .or_else(|| set("HOME").map(|home| home.join(".cache/ksi-test")))
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/ksi-test"));
    cache.join("models").join(FILE)
}

/// Feeds these bytes to the loop; all events, `ready` first.
pub(crate) fn run(input: &[u8]) -> Vec<Event> {
    let mut output = Vec::new();
    serve(&model(), input, &mut output).expect("the loop ends well at the end of its input");
    let lines = output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("an event per line")).collect()
}

/// A running loop that is asked one thing after the other, as the daemon asks its child.
pub(crate) struct Session {
    input: Option<PipeWriter>,
    events: Lines<BufReader<PipeReader>>,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Session {
    pub(crate) fn start() -> Self {
        let (requests, input) = pipe().expect("a pipe");
        let (output, events) = pipe().expect("a pipe");
        let (path, requests) = (model(), BufReader::new(requests));
        let thread = thread::spawn(move || serve(&path, requests, events));
        let mut session = Self {
            input: Some(input),
            events: BufReader::new(output).lines(),
            thread: Some(thread),
        };
        let Event::Ready { .. } = session.event() else { panic!("ready comes first") };
        session
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        self.ask_line(&serde_json::to_string(request).expect("a request is JSON"))
    }

    pub(crate) fn ask_line(&mut self, line: &str) -> Reply {
        writeln!(self.input.as_mut().expect("open"), "{line}").expect("the loop reads");
        let mut pieces = Vec::new();
        loop {
            match self.event() {
                Event::Ready { .. } => panic!("ready comes only once"),
                Event::Token { token, .. } => pieces.push(token),
                Event::Done { done, .. } => return Reply { pieces, end: Ok(done) },
                Event::Failed { error, .. } => return Reply { pieces, end: Err(error) },
            }
        }
    }

    fn event(&mut self) -> Event {
        let line = self.events.next().expect("the loop goes on").expect("text");
        serde_json::from_str(&line).expect("an event per line")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.input.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            let ended = ended.expect("a thread").expect("the loop does not panic");
            ended.expect("the loop ends well at the end of its input");
        }
    }
}

/// Sends these requests to one loop.
pub(crate) fn ask(requests: &[Request]) -> Vec<Reply> {
    let mut session = Session::start();
    requests.iter().map(|request| session.ask(request)).collect()
}

pub(crate) fn message(role: Role, content: &str) -> Message {
    Message { role, content: content.to_owned() }
}

/// A greedy request of a user's question, with few tokens so that tests are quick.
pub(crate) fn request(messages: Vec<Message>) -> Request {
    Request {
        id: "r1".to_owned(),
        conversation: None,
        messages,
        max_tokens: 24,
        seed: 7,
        avoid: Vec::new(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
    }
}
