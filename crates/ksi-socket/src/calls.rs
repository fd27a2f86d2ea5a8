//! A connection's requests on their way to the kernel and back.

use std::{
    future::{Future, pending},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context as Wake, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use ksi_kernel::{Act, Answer, Caller, Kernel, Origin, Reply};
use ksi_protocol::{
    Answered, Code, Error, Line, Lines, Outcome, Request, Result, call_number, plain_text,
    write_error, write_reply,
};
use serde_json::value::RawValue;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::Guest;
use crate::order::{Order, Turn};

/// So many requests of one connection may be in flight before no more are read.
const MAX_IN_FLIGHT: usize = 4096;

/// So many finished calls are taken before what they say is written.
const HANDFUL: usize = 256;

/// The event whose answer must stand on the wire before what it leads to.
const SUBSCRIBE: &str = "monitor:subscribe";

/// The requests of one connection.
pub(crate) struct Calls {
    kernel: Kernel,
    /// Whoever asks, or why the peer may ask for nothing.
    guest: Result<Guest>,
    order: Order,
    in_flight: usize,
    /// How many of those in flight may begin a subscription.
    subscribing: usize,
    /// The first that waits is polled by the connection itself; only those beside it need more.
    first: Option<Running>,
    /// It was polled since the task was last woken, and will wake it.
    is_polled: bool,
    others: FuturesUnordered<Running>,
}

/// A call that could not be answered at once.
struct Running {
    call: Answer,
    asked: Asked,
    late: Option<Pin<Box<Sleep>>>,
}

/// A call's answer, or the call itself when its deadline came first.
type Ended = (Asked, Result<Result<Box<RawValue>>, Answer>);

/// What the answer repeats of a request.
#[derive(Default)]
struct Asked {
    event: String,
    correlation_id: Option<Box<RawValue>>,
}

impl Calls {
    pub(crate) fn new(kernel: Kernel, guest: Result<Guest>) -> Self {
        Calls {
            kernel,
            guest,
            order: Order::default(),
            in_flight: 0,
            subscribing: 0,
            first: None,
            is_polled: false,
            others: FuturesUnordered::new(),
        }
    }

    /// The task was woken, perhaps by a call.
    pub(crate) fn wake(&mut self) {
        self.is_polled = false;
    }

    /// Whether no further line may be taken for now.
    pub(crate) fn is_full(&self) -> bool {
        self.in_flight >= MAX_IN_FLIGHT || self.order.is_full()
    }

    /// Whether everything is answered; what waits for its turn waits for one in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Whether the answer to a new subscription is still to come, and so its events must wait.
    pub(crate) fn is_subscribing(&self) -> bool {
        self.subscribing > 0
    }

    /// Takes a line; an answer that is ready at once goes straight to `out`.
    pub(crate) fn accept(&mut self, line: &Line, cx: &mut Wake<'_>, out: &mut BytesMut) {
        let text = match line {
            Line::Frame(text) => text,
            Line::TooLong { bytes } => return self.refuse(None, None, &too_large(*bytes), out),
        };
        let request = match Request::parse(text) {
            Ok(request) => request,
            Err(rejected) => {
                if let Some(answered) = Answered::parse(text) {
                    return self.take_reply(answered, out);
                }
                let (event, id) = (rejected.event.as_deref(), rejected.correlation_id.as_deref());
                return self.refuse(event, id, &rejected.error, out);
            }
        };
        let token = request.context.as_ref().and_then(|context| context.token.as_deref());
        let caller = self.guest.as_ref().map_err(Error::clone);
        let caller = caller.and_then(|guest| guest.check(token).map(|()| guest.caller.clone()));
        let caller = match caller {
            Ok(caller) => caller,
            Err(error) => {
                let (event, id) = (Some(request.event.as_str()), request.correlation_id.as_deref());
                return self.refuse(event, id, &error, out);
            }
        };
        let deadline = deadline(&request);
        if request.correlation_id.is_none() && self.order.busy {
            return self.order.push(Turn::Request(request, deadline), text.len());
        }
        self.start(request, caller, deadline, cx, out);
    }

    /// Takes what a plugin says about a call; only what is wrong is answered.
    fn take_reply(&mut self, answered: Result<Answered>, out: &mut BytesMut) {
        let inbox = self.guest.as_ref().ok().and_then(|guest| guest.caller.inbox.as_ref());
        let taken = answered.and_then(|Answered { call, outcome }| {
            let reply = match outcome {
                Outcome::Data(data) => Reply::Done(Ok(data)),
                Outcome::Error(error) => Reply::Done(Err(error)),
                Outcome::More(ms) => Reply::More(Duration::from_millis(ms)),
            };
            let known = inbox.is_some_and(|inbox| inbox.reply(call, reply));
            let gone = || Error::not_found(format!("no call `k{call}` waits for a reply"));
            if known { Ok(()) } else { Err(gone()) }
        });
        taken.unwrap_or_else(|error| self.refuse(None, None, &error, out));
    }

    /// The client sends nothing any more, so it will answer no call either.
    pub(crate) fn hang_up(&self) {
        if let Some(inbox) = self.guest.as_ref().ok().and_then(|guest| guest.caller.inbox.as_ref())
        {
            inbox.hang_up();
        }
    }

    /// Writes the answers of calls that have finished; whether there may be more of them.
    pub(crate) fn take_answers(&mut self, cx: &mut Wake<'_>, out: &mut BytesMut) -> bool {
        for _ in 0..HANDFUL {
            let Poll::Ready(Some((asked, ended))) = self.poll_ended(cx) else { return false };
            let result = ended.unwrap_or_else(|call| {
                // Nobody waits for it any more; it goes on all the same.
                self.kernel.tasks().spawn(format!("call {}", asked.event), call);
                Err(timed_out(&asked.event, "it goes on"))
            });
            asked.answer(&result, self.now(), out);
            self.in_flight -= 1;
            self.subscribing -= usize::from(asked.event == SUBSCRIBE);
            if asked.correlation_id.is_none() {
                self.order.busy = false;
                self.go_on(cx, out);
            }
        }
        true
    }

    /// The next call that has ended; none when no call runs.
    fn poll_ended(&mut self, cx: &mut Wake<'_>) -> Poll<Option<Ended>> {
        if let Some(first) = self.first.as_mut().filter(|_| !self.is_polled)
            && let Poll::Ready(ended) = first.poll_unpin(cx)
        {
            self.first = None;
            return Poll::Ready(Some(ended));
        }
        // Even an empty set notes who polls it, at every request.
        if self.others.is_empty() { Poll::Ready(None) } else { self.others.poll_next_unpin(cx) }
    }

    /// Answers a line that asks for nothing, in its turn.
    fn refuse(
        &mut self,
        event: Option<&str>,
        correlation_id: Option<&RawValue>,
        error: &Error,
        out: &mut BytesMut,
    ) {
        let now = self.now();
        if correlation_id.is_some() || !self.order.busy {
            return write_error(out, event, error, correlation_id, now);
        }
        let mut line = BytesMut::new();
        write_error(&mut line, event, error, None, now);
        let bytes = line.len();
        self.order.push(Turn::Answer(line), bytes);
    }

    /// Lets those that waited for their turn go on, until one of them must wait itself.
    fn go_on(&mut self, cx: &mut Wake<'_>, out: &mut BytesMut) {
        while let Some(turn) = self.order.next() {
            let caller = self.guest.as_ref().ok().map(|guest| guest.caller.clone());
            match (turn, caller) {
                (Turn::Request(request, deadline), _) if is_over(deadline) => {
                    let error = timed_out(&request.event, "it was not begun");
                    write_error(out, Some(&request.event), &error, None, self.now());
                }
                (Turn::Request(request, deadline), Some(caller)) => {
                    self.start(request, caller, deadline, cx, out);
                }
                (Turn::Request(..), None) => {}
                (Turn::Answer(line), _) => out.extend_from_slice(&line),
            }
        }
    }

    /// Asks the kernel. Most calls are answered the first time they are polled and need no task.
    fn start(
        &mut self,
        request: Request,
        mut caller: Caller,
        deadline: Option<Instant>,
        cx: &mut Wake<'_>,
        out: &mut BytesMut,
    ) {
        let Request { event, data, correlation_id, context } = request;
        let context = context.unwrap_or_default();
        caller.idempotency_key = context.idempotency_key;
        let on_behalf = context.call.map(|call| self.on_behalf(&caller, &event, &call));
        let asked = Asked { event, correlation_id };
        match on_behalf {
            Some(Ok(origin)) => caller.origin = origin,
            Some(Err(error)) => return asked.answer(&Err(error), self.now(), out),
            None => {}
        }
        if let Some(id) = &asked.correlation_id {
            let correlation = Some(text(id));
            caller.origin = Arc::new(Origin { correlation, ..Origin::clone(&caller.origin) });
        }
        let data = data.unwrap_or_else(empty);
        let mut call = self.kernel.call(caller, &asked.event, data);
        match call.as_mut().poll(cx) {
            Poll::Ready(result) => asked.answer(&result, self.now(), out),
            Poll::Pending => self.go_on_with(asked, call, deadline),
        }
    }

    /// Whoever is behind a call that the client is answering; both must be allowed the request.
    fn on_behalf(&self, own: &Caller, event: &str, call: &str) -> Result<Arc<Origin>> {
        self.kernel.check(own, Act::Send, event)?;
        let inbox = own.inbox.as_ref().zip(call_number(call));
        let origin = inbox.and_then(|(inbox, call)| inbox.origin_of(call));
        let gone = || Error::not_found(format!("you are not answering a call `{call}`"));
        origin.ok_or_else(|| gone().at("context.call"))
    }

    /// Goes on with a call that pends, beside the others of this connection.
    fn go_on_with(&mut self, asked: Asked, call: Answer, deadline: Option<Instant>) {
        self.in_flight += 1;
        self.subscribing += usize::from(asked.event == SUBSCRIBE);
        self.order.busy |= asked.correlation_id.is_none();
        let late = deadline.map(|at| Box::pin(sleep_until(at)));
        let is_timed = late.is_some();
        let call = Running { call, asked, late };
        match &self.first {
            None => (self.first, self.is_polled) = (Some(call), !is_timed),
            Some(_) => self.others.push(call),
        }
    }

    fn now(&self) -> u64 {
        self.kernel.clock().now().0
    }
}

impl Drop for Calls {
    /// A client that goes away does not cancel its calls.
    fn drop(&mut self) {
        let mut others = mem::take(&mut self.others);
        others.extend(self.first.take());
        if !others.is_empty() {
            let finish = others.for_each(|(_, ended)| async move {
                if let Err(late) = ended {
                    let _ = late.await;
                }
            });
            self.kernel.tasks().spawn("calls of a client that left", finish);
        }
    }
}

impl Future for Running {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Wake<'_>) -> Poll<Ended> {
        let ended = match self.call.as_mut().poll(cx) {
            Poll::Ready(result) => Ok(result),
            Poll::Pending => {
                let Some(late) = &mut self.late else { return Poll::Pending };
                ready!(late.as_mut().poll(cx));
                Err(mem::replace(&mut self.call, Box::pin(pending())))
            }
        };
        Poll::Ready((mem::take(&mut self.asked), ended))
    }
}

impl Asked {
    fn answer(&self, result: &Result<Box<RawValue>>, now: u64, out: &mut BytesMut) {
        let id = self.correlation_id.as_deref();
        match result {
            Ok(data) => write_reply(out, &self.event, data, id, now),
            Err(error) => write_error(out, Some(&self.event), error, id, now),
        }
    }
}

/// Until when the caller waits; a time too far off to be counted is for ever.
fn deadline(request: &Request) -> Option<Instant> {
    let timeout = request.context.as_ref()?.timeout_ms?;
    Instant::now().checked_add(Duration::from_millis(timeout))
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|at| at <= Instant::now())
}

/// A correlation id as facts carry it: what a string says, other JSON as it stands.
fn text(id: &RawValue) -> String {
    let parsed = || serde_json::from_str(id.get()).unwrap_or_else(|_| id.get().to_owned());
    plain_text(id).map_or_else(parsed, str::to_owned)
}

fn empty() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_default()
}

fn too_large(bytes: usize) -> Error {
    let limit = Lines::LIMIT;
    Error::new(Code::TooLarge, format!("the line is {bytes} bytes long; the limit is {limit}"))
        .hint("send less at a time, or put large texts into files")
}

fn timed_out(event: &str, what: &str) -> Error {
    Error::new(Code::Timeout, format!("`{event}` was not answered in the time given; {what}"))
}
