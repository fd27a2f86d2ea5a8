//! The child that holds the model.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    time::Duration,
};

use ksi_kernel::Code;
use ksi_process::{Cap, CappedLines, Command, Shim};
use tokio::{
    io::AsyncWriteExt,
    process::{ChildStderr, ChildStdin, ChildStdout},
};

use super::{
    lines::{Done, Line, Question, Said},
    refused,
};
use crate::work::provider::{Failure, Request, Sink};

/// A model that is loaded, or being loaded; dropping it ends the process.
pub(super) struct Child {
    path: PathBuf,
    process: ksi_process::Child,
    stdin: ChildStdin,
    stdout: CappedLines<ChildStdout>,
    stderr: Option<CappedLines<ChildStderr>>,
    complaints: VecDeque<String>,
}

/// The hidden verb under which this program is the model's process.
const VERB: &str = "__local-model";

/// One thread multiplies. More wait for each other in a busy loop, and on a machine that has other
/// work too they lose their turns doing so: five tokens a second where one makes twenty-five.
const THREADS: (&str, &str) = ("CANDLE_NUM_THREADS", "1");

/// It has nothing to put in order, so it is not given long to end.
const GRACE: Duration = Duration::from_millis(200);

/// How many of its last words on stderr are told when it crashes.
const COMPLAINTS: usize = 5;

/// A line of an answer is a word or two; what is longer is no answer.
const ANSWER: Cap = Cap { line: 64 * 1024, total: u64::MAX };

/// A line of what it complains of.
const COMPLAINT: Cap = Cap { line: 4096, total: u64::MAX };

impl Child {
    pub(super) async fn start(shim: &Shim, path: PathBuf) -> Result<Self, Failure> {
        let (name, one) = THREADS;
        let command = Command::new(shim.program()).arg(VERB).arg(&path).env(name, one);
        let command = command.grace(GRACE).effect("work", "local model");
        let mut process = command.spawn(shim).await.map_err(|error| {
            let why = std::error::Error::source(&error).map_or(String::new(), |s| format!(": {s}"));
            Failure::new(Code::ProviderError, format!("{error}{why}"))
        })?;
        let streams = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (Some(stdin), Some(stdout), stderr) = streams else {
            return Err(Failure::new(Code::Internal, "the local model has no pipes"));
        };
        Ok(Child {
            path,
            process,
            stdin,
            stdout: CappedLines::new(stdout, ANSWER),
            stderr: stderr.map(|stderr| CappedLines::new(stderr, COMPLAINT)),
            complaints: VecDeque::new(),
        })
    }

    /// The model's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Asks and passes the answer on word by word; after an error the child is not fit for more.
    pub(super) async fn answer(
        &mut self,
        request: &Request,
        sink: &dyn Sink,
    ) -> Result<(String, Done), Failure> {
        if self.ask(request).await.is_err() {
            return Err(self.crashed().await);
        }
        let mut text = String::new();
        while let Some(line) = self.next_line().await {
            let Ok(Line { id, said }) = serde_json::from_str(&line) else {
                let why = format!("the local model said what is no answer: {line}");
                return Err(Failure::new(Code::ProviderError, why));
            };
            // Without an id it speaks of itself: that it is ready, or why it never will be.
            if id.is_some_and(|id| id != request.request_id) {
                continue;
            }
            match said {
                Said::Ready(_) => sink.progress("reading the prompt"),
                Said::Token(token) => {
                    sink.text(&token);
                    text.push_str(&token);
                }
                Said::Done(done) => return Ok((text, done)),
                Said::Error(error) => return Err(refused(error)),
            }
        }
        Err(self.crashed().await)
    }

    /// Ends the process and waits until it is gone.
    pub(super) async fn stop(self) {
        let Child { process, stdin, .. } = self;
        drop(stdin);
        process.stop().await;
    }

    async fn ask(&mut self, request: &Request) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(&Question::new(request))?;
        line.push(b'\n');
        self.stdin.write_all(&line).await?;
        self.stdin.flush().await
    }

    /// The next line of its answer; what it complains of meanwhile is remembered.
    async fn next_line(&mut self) -> Option<String> {
        loop {
            let Some(stderr) = &mut self.stderr else {
                return self.stdout.next().await.ok().flatten();
            };
            tokio::select! {
                line = self.stdout.next() => return line.ok().flatten(),
                complaint = stderr.next() => match complaint {
                    Ok(Some(complaint)) => remember(&mut self.complaints, complaint),
                    _ => self.stderr = None,
                },
            }
        }
    }

    /// Why it ended in the middle of its work.
    async fn crashed(&mut self) -> Failure {
        let exit = self.process.wait().await;
        if let Some(stderr) = &mut self.stderr {
            while let Ok(Some(complaint)) = stderr.next().await {
                remember(&mut self.complaints, complaint);
            }
        }
        let mut why = format!("the local model ended with {exit}");
        for complaint in &self.complaints {
            why.push_str("; ");
            why.push_str(complaint);
        }
        Failure::new(Code::ProviderError, why)
    }
}

fn remember(complaints: &mut VecDeque<String>, complaint: String) {
    if complaints.len() == COMPLAINTS {
        complaints.pop_front();
    }
    complaints.push_back(complaint);
}
