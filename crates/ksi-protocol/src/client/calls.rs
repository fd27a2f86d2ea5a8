use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::subscription::{Begun, Interest, Queue};
use crate::{Code, Error, Pushed, Reply, Result};

/// What a connection waits for: answers to its calls, events for its subscriptions.
#[derive(Debug, Default)]
pub(super) struct Calls {
    last_id: u64,
    in_flight: HashMap<u64, Call>,
    subscriptions: Vec<Subscribed>,
    unasked: Vec<Arc<Queue>>,
    /// The newest that were ended, oldest first.
    ended_subscriptions: VecDeque<String>,
    shutting_down: bool,
    ended: Option<Error>,
}

/// So many ended subscriptions are remembered: of older ones nothing is on its way any more.
const REMEMBERED: usize = 64;

#[derive(Debug)]
pub(super) struct Call {
    pub(super) event: String,
    pub(super) answer: oneshot::Sender<Result<Reply>>,
    /// Whether the daemon would recognize the call if it were sent again.
    pub(super) idempotent: bool,
    /// How long its line is, once it is known.
    pub(super) bytes: usize,
    pub(super) after: After,
}

/// What the answer to a call means for the connection itself.
#[derive(Debug)]
pub(super) enum After {
    Nothing,
    /// Events follow right behind the answer, so nobody but the reader can be in time for them.
    Subscribe(Interest),
    /// From here on nothing that happens bears this subscription's id.
    Unsubscribe(String),
}

#[derive(Debug)]
struct Subscribed {
    id: String,
    interest: Interest,
}

impl Calls {
    /// Notes a call that is about to be sent, and gives it an id.
    pub(super) fn begin(&mut self, call: Call) -> Result<u64> {
        if let Some(error) = self.not_sent() {
            return Err(error);
        }
        if let After::Unsubscribe(id) = &call.after {
            self.ended_subscriptions.push_back(id.clone());
            if self.ended_subscriptions.len() > REMEMBERED {
                self.ended_subscriptions.pop_front();
            }
        }
        self.last_id += 1;
        self.in_flight.insert(self.last_id, call);
        Ok(self.last_id)
    }

    pub(super) fn sized(&mut self, id: u64, bytes: usize) {
        if let Some(call) = self.in_flight.get_mut(&id) {
            call.bytes = bytes;
        }
    }

    /// Nobody waits for this call any more. What it means for the connection still happens.
    pub(super) fn forget(&mut self, id: u64) {
        if self.in_flight.get(&id).is_some_and(|call| matches!(call.after, After::Nothing)) {
            self.in_flight.remove(&id);
        }
    }

    /// Gives an answer to who waits for it. Returns the id of a subscription that was dropped
    /// before it had one.
    pub(super) fn answered(
        &mut self,
        id: Option<&RawValue>,
        answer: Result<Reply>,
    ) -> Option<String> {
        let id = id.and_then(|id| id.get().parse().ok()).or_else(|| self.too_large(&answer))?;
        let call = self.in_flight.remove(&id)?;
        let answer = match call.after {
            After::Nothing => answer,
            After::Subscribe(interest) => {
                let queue = interest.queue.clone();
                let answer = answer.and_then(|reply| self.subscribed(reply, interest));
                if queue.is_closed() {
                    return queue.id().map(ToOwned::to_owned);
                }
                answer
            }
            After::Unsubscribe(id) => {
                self.subscriptions.retain(|subscribed| subscribed.id != id);
                answer
            }
        };
        // Who gave up waiting dropped the other end.
        let _ = call.answer.send(answer);
        None
    }

    /// Who sent a line that the daemon found too long to look for its id: nobody else's is longer.
    fn too_large(&self, answer: &Result<Reply>) -> Option<u64> {
        answer.as_ref().err().filter(|error| error.code == Code::TooLarge)?;
        self.in_flight.iter().max_by_key(|(_, call)| call.bytes).map(|(id, _)| *id)
    }

    fn subscribed(&mut self, reply: Reply, mut interest: Interest) -> Result<Reply> {
        let begun: Begun = serde_json::from_str(reply.data.get()).map_err(|error| {
            Error::internal(format!("the answer to `{}` is not as expected: {error}", reply.event))
        })?;
        interest.since = begun.since.or(interest.since);
        let id = begun.subscription.clone();
        interest.queue.begin(begun);
        self.subscriptions.push(Subscribed { id, interest });
        Ok(reply)
    }

    /// Gives an event to the subscriptions that want it.
    pub(super) fn pushed(&mut self, event: Pushed) {
        self.shutting_down |= event.event == "system:shutdown_notification";
        let mut queues: Vec<_> = self.subscriptions.iter().filter(|it| it.wants(&event)).collect();
        let known = self.subscriptions.iter().any(|it| it.id == event.subscription);
        let Some(last) = queues.pop() else {
            if !known {
                self.unasked.iter().for_each(|queue| queue.push(event.clone()));
            }
            return;
        };
        for subscribed in queues {
            subscribed.interest.queue.push(event.clone());
        }
        last.interest.queue.push(event);
    }

    /// A subscription that must be read from before more can be taken in.
    pub(super) fn full(&self) -> Option<Arc<Queue>> {
        let queues = self.subscriptions.iter().map(|subscribed| &subscribed.interest.queue);
        queues.chain(&self.unasked).find(|queue| queue.is_full()).cloned()
    }

    pub(super) fn ended_subscriptions(&self) -> Vec<String> {
        self.ended_subscriptions.iter().cloned().collect()
    }

    pub(super) fn listen_unasked(&mut self, queue: Arc<Queue>) {
        match &self.ended {
            Some(error) => queue.end(error),
            None => self.unasked.push(queue),
        }
    }

    pub(super) fn ignore_unasked(&mut self, queue: &Arc<Queue>) {
        self.unasked.retain(|known| !Arc::ptr_eq(known, queue));
    }

    /// The connection is gone: all who wait learn why.
    pub(super) fn end(&mut self, reason: Error) {
        let reason = if self.shutting_down {
            Error::new(Code::Shutdown, "the daemon has shut down")
        } else {
            reason
        };
        let error = self.ended.get_or_insert(reason);
        let subscribed = self.subscriptions.drain(..).map(|subscribed| subscribed.interest.queue);
        subscribed.chain(self.unasked.drain(..)).for_each(|queue| queue.end(error));
        for (_, call) in self.in_flight.drain() {
            let unknown = format!("{error}; whether `{}` was done is unknown", call.event);
            let error = Error::new(error.code, unknown)
                .hint("look at what there is before you send it again")
                .retryable(call.idempotent);
            let _ = call.answer.send(Err(error));
        }
    }

    /// Why nothing can be sent any more.
    pub(super) fn not_sent(&self) -> Option<Error> {
        let ended = self.ended.as_ref()?;
        Some(Error::new(ended.code, format!("{ended}; nothing was sent")).retryable(true))
    }
}

impl Subscribed {
    /// An event comes once, with the id of the first subscription that it matches; the later ones
    /// that match it get it from here.
    fn wants(&self, event: &Pushed) -> bool {
        if self.id == event.subscription {
            return true;
        }
        in_order(&self.id) > in_order(&event.subscription) && self.interest.covers(event)
    }
}

/// Ids of subscriptions count up: `s2` comes before `s10`.
fn in_order(id: &str) -> (usize, &str) {
    (id.len(), id)
}
