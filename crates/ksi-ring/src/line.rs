//! Lines: what is asked of whoever listens, and what they reply.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use ksi_protocol::{Code, Error, Raw, Result};
use ksi_state::Origin;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep_until};

/// A request to the other end of a line.
#[derive(Debug)]
pub struct Call {
    /// Names it in the reply; no number is used twice on a line.
    pub id: u64,
    /// What is asked.
    pub event: String,
    /// Its fields.
    pub data: Raw,
    /// On whose behalf.
    pub origin: Arc<Origin>,
}

/// What the other end says about a call.
#[derive(Debug)]
pub enum Reply {
    /// This is the answer.
    Done(Result<Raw>),
    /// The answer will take so long from now.
    More(Duration),
}

/// Both directions of a line.
#[derive(Debug, Default)]
pub(crate) struct Line {
    calls: Mutex<Calls>,
    /// Nobody replies any more.
    gone: watch::Sender<bool>,
    awake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Calls {
    last: u64,
    /// Those that the other end has not been told of.
    untold: VecDeque<Call>,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    origin: Arc<Origin>,
    done: oneshot::Sender<Result<Raw>>,
    more: watch::Sender<Duration>,
}

/// An answer that is still to come; dropping it forgets the call.
#[derive(Debug)]
pub struct Asked {
    id: u64,
    line: Arc<Line>,
    done: oneshot::Receiver<Result<Raw>>,
    more: watch::Receiver<Duration>,
}

impl Line {
    pub(crate) fn new(awake: Arc<Notify>) -> Arc<Line> {
        Arc::new(Line { awake, ..Line::default() })
    }

    pub(crate) fn ask(
        self: &Arc<Self>,
        event: &str,
        data: Raw,
        origin: Arc<Origin>,
        patience: Duration,
    ) -> Asked {
        let (done, is_done) = oneshot::channel();
        let (more, longer) = watch::channel(patience);
        let mut calls = self.calls.lock();
        calls.last += 1;
        let id = calls.last;
        // Dropped at once, the sender tells the asker that nobody is there.
        if !*self.gone.borrow() {
            calls.waiting.insert(id, Waiting { origin: origin.clone(), done, more });
            calls.untold.push_back(Call { id, event: event.to_owned(), data, origin });
        }
        drop(calls);
        self.awake.notify_one();
        Asked { id, line: self.clone(), done: is_done, more: longer }
    }

    /// The next call that the other end is to be told of.
    pub(crate) fn next(&self) -> Option<Call> {
        self.calls.lock().untold.pop_front()
    }

    /// Takes what the other end says; false if no such call waits.
    pub(crate) fn reply(&self, id: u64, reply: Reply) -> bool {
        let mut calls = self.calls.lock();
        match reply {
            Reply::Done(result) => {
                let waiting = calls.waiting.remove(&id);
                waiting.is_some_and(|waiting| waiting.done.send(result).is_ok())
            }
            Reply::More(time) => {
                let waiting = calls.waiting.get(&id);
                waiting.is_some_and(|waiting| waiting.more.send(time).is_ok())
            }
        }
    }

    /// On whose behalf a call was made that waits for its answer.
    pub(crate) fn origin(&self, id: u64) -> Option<Arc<Origin>> {
        self.calls.lock().waiting.get(&id).map(|waiting| waiting.origin.clone())
    }

    /// How many calls wait.
    pub(crate) fn waiting(&self) -> usize {
        self.calls.lock().waiting.len()
    }

    /// The other end says nothing any more.
    pub(crate) fn hang_up(&self) {
        let mut calls = self.calls.lock();
        self.gone.send_replace(true);
        calls.untold.clear();
        calls.waiting.clear();
    }

    /// Returns once the other end says nothing any more.
    pub(crate) async fn gone(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }
}

impl Asked {
    /// The answer, when it comes in time; the other end may ask for more of it.
    pub async fn answer(mut self) -> Result<Raw> {
        let mut end = Instant::now() + *self.more.borrow();
        loop {
            tokio::select! {
                biased;
                done = &mut self.done => return done.unwrap_or_else(|_| Err(nobody())),
                Ok(()) = self.more.changed() => end = Instant::now() + *self.more.borrow(),
                () = sleep_until(end) => {
                    return Err(Error::new(Code::Timeout, "it was not answered in time"));
                }
            }
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut calls = self.line.calls.lock();
        calls.waiting.remove(&self.id);
        calls.untold.retain(|call| call.id != self.id);
    }
}

fn nobody() -> Error {
    Error::unavailable("whoever answers it went away; whether it was done is not known")
}

#[cfg(test)]
mod tests {
    use serde_json::value::to_raw_value;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn ask(line: &Arc<Line>) -> Asked {
        line.ask("a:b", to_raw_value(&1).unwrap(), Arc::default(), PATIENCE)
    }

    fn two() -> Reply {
        Reply::Done(Ok(to_raw_value(&2).unwrap()))
    }

    #[tokio::test]
    async fn a_call_is_told_and_its_answer_comes_once() {
        let line = Line::new(Arc::default());
        let asked = ask(&line);
        let call = line.next().unwrap();
        assert_eq!((call.event.as_str(), call.data.get(), line.waiting()), ("a:b", "1", 1));
        assert!(line.next().is_none() && line.reply(call.id, two()));
        assert_eq!(asked.answer().await.unwrap().get(), "2");
        assert!(!line.reply(call.id, two()), "a second answer");
        assert!(!line.reply(77, Reply::More(PATIENCE)) && line.origin(call.id).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_more_time_gets_it_and_who_does_not_is_late() {
        let (line, begun) = (Line::new(Arc::default()), Instant::now());
        let asked = ask(&line);
        assert!(line.reply(1, Reply::More(3 * PATIENCE)));
        assert_eq!(asked.answer().await.unwrap_err().code, Code::Timeout);
        assert_eq!(begun.elapsed(), 3 * PATIENCE);
        assert_eq!((line.waiting(), line.next().is_none()), (0, true), "it is forgotten");
    }

    #[tokio::test]
    async fn all_who_wait_are_told_when_the_other_end_hangs_up() {
        let line = Line::new(Arc::default());
        let before = ask(&line);
        line.hang_up();
        line.gone().await;
        for asked in [before, ask(&line)] {
            assert_eq!(asked.answer().await.unwrap_err().code, Code::Unavailable);
        }
        assert!(line.next().is_none());
    }
}
