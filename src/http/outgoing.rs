//! The body of a request, observed while it is sent.

use crate::sync::lock;
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};
use tokio::time::{Duration, Instant};

/// Maximum number of bytes of a body that are recorded for sending it again.
const MOST_RECORDED: usize = 64 * 1024;

/// Tracks whether a pending request waits for the connection, the caller or the agent. Shared by
/// the request's body and the call that waits for the response.
#[derive(Debug)]
pub(super) struct Progress(Mutex<Turn>);

#[derive(Clone, Copy, Debug)]
enum Turn {
    /// The connection has not started the request: its stream is not open yet.
    Queued(Instant),
    /// The connection has sent all available data and polls for more of the body.
    Caller,
    /// Since this instant there is data that the agent has not read or not answered.
    Agent(Instant),
    /// The caller's body failed.
    Failed,
    /// The connection dropped the body at this instant; the agent is to answer.
    Sent(Instant),
}

impl Progress {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Turn::Queued(Instant::now()))))
    }

    /// Returns `true` if the caller's body failed, so that a closed connection is no evidence
    /// against the agent.
    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.turn(), Turn::Failed)
    }

    /// Returns since when the request waits for the agent, if it does.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        match *self.turn() {
            Turn::Agent(since) | Turn::Sent(since) => Some(since),
            Turn::Queued(_) | Turn::Caller | Turn::Failed => None,
        }
    }

    /// Returns since when the request waits for the connection to start it, if it does.
    pub(super) fn queued_since(&self) -> Option<Instant> {
        match *self.turn() {
            Turn::Queued(since) => Some(since),
            _ => None,
        }
    }

    /// Returns `true` if the agent has read nothing for at least `after`, although data is
    /// available.
    pub(super) fn is_stalled(&self, after: Duration) -> bool {
        matches!(*self.turn(), Turn::Agent(since) if since.elapsed() >= after)
    }

    /// Returns `true` if the connection has dropped the body.
    pub(super) fn is_sent(&self) -> bool {
        matches!(*self.turn(), Turn::Sent(_))
    }

    fn set(&self, turn: Turn) {
        *self.turn() = turn;
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        lock(&self.0)
    }
}

/// How a body can be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeats {
    /// Only if nothing of it was read.
    Untouched,
    /// From a record of the frames that were read.
    Recorded,
}

/// The caller's body, which each attempt to send the request reads.
#[derive(Debug)]
pub(super) struct Source<B>(Mutex<SourceState<B>>);

#[derive(Debug)]
struct SourceState<B> {
    body: Option<B>,
    /// Something was read from the body.
    touched: bool,
    ended: bool,
    /// The attempt that may read the body. Earlier ones get nothing more.
    attempt: u32,
    /// The frames that were read so far; `None` if they are not recorded, or exceeded the limit.
    record: Option<Vec<Recorded>>,
    recorded: usize,
}

#[derive(Clone, Debug)]
enum Recorded {
    Data(Bytes),
    Trailers(::http::HeaderMap),
}

impl<B> Source<B> {
    pub(super) fn new(body: B, repeats: Repeats) -> Arc<Self> {
        let record = (repeats == Repeats::Recorded).then(Vec::new);
        Arc::new(Self(Mutex::new(SourceState {
            body: Some(body),
            touched: false,
            ended: false,
            attempt: 0,
            record,
            recorded: 0,
        })))
    }

    /// Returns the body for another attempt. Earlier attempts get nothing from now on.
    pub(super) fn attempt(self: &Arc<Self>, progress: Arc<Progress>) -> Outgoing<B> {
        let attempt = {
            let mut held = lock(&self.0);
            held.attempt += 1;
            held.attempt
        };
        Outgoing { source: Arc::clone(self), attempt, at: 0, progress }
    }

    /// Returns `true` if the body can be sent again from its beginning.
    pub(super) fn is_repeatable(&self) -> bool {
        let held = lock(&self.0);
        held.body.is_some() && (!held.touched || held.record.is_some())
    }
}

/// The body as one attempt sends it.
#[derive(Debug)]
pub(super) struct Outgoing<B> {
    source: Arc<Source<B>>,
    attempt: u32,
    /// Index of the next frame of the record.
    at: usize,
    progress: Arc<Progress>,
}

impl<B> Drop for Outgoing<B> {
    fn drop(&mut self) {
        let mut turn = self.progress.turn();
        if !matches!(*turn, Turn::Failed) {
            *turn = Turn::Sent(Instant::now());
        }
        drop(turn);
        let mut held = lock(&self.source.0);
        // No attempt can send the rest, so drop the caller's body.
        let body = (held.attempt == self.attempt && held.touched && held.record.is_none())
            .then(|| held.body.take());
        drop(held);
        drop(body);
    }
}

impl<B: Body + Unpin> Body for Outgoing<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let mut held = lock(&this.source.0);
        if held.attempt != this.attempt {
            // Neither an end nor an error: the connection that polls is closing, and its agent must
            // not take a truncated body for a complete one.
            return Poll::Pending;
        }
        if let Some(frame) = held.record.as_ref().and_then(|record| record.get(this.at)).cloned() {
            this.at += 1;
            this.progress.set(Turn::Agent(Instant::now()));
            return Poll::Ready(Some(Ok(frame.into())));
        }
        let ended = held.ended;
        let Some(body) = held.body.as_mut().filter(|_| !ended) else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
            this.progress.set(Turn::Caller);
            return Poll::Pending;
        };
        this.progress.set(match frame {
            Some(Err(_)) => Turn::Failed,
            _ => Turn::Agent(Instant::now()),
        });
        let Some(frame) = frame else {
            held.ended = true;
            return Poll::Ready(None);
        };
        held.touched = true;
        let frame =
            frame.map(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())));
        match &frame {
            Ok(frame) => {
                held.note(frame);
                this.at += 1;
            }
            Err(_) => held.record = None,
        }
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        let held = lock(&self.source.0);
        let replayed = held.record.as_ref().is_none_or(|record| record.len() <= self.at);
        replayed && held.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let held = lock(&self.source.0);
        let mut hint = held.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        let again: u64 = held.record.iter().flatten().skip(self.at).map(Recorded::length).sum();
        if again > 0 {
            let (lower, upper) = (hint.lower() + again, hint.upper().map(|upper| upper + again));
            hint = SizeHint::new();
            hint.set_lower(lower);
            if let Some(upper) = upper {
                hint.set_upper(upper);
            }
        }
        hint
    }
}

impl<B> SourceState<B> {
    fn note(&mut self, frame: &Frame<Bytes>) {
        let Some(record) = &mut self.record else { return };
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => {
                self.recorded += data.len();
                record.push(Recorded::Data(data.clone()));
            }
            (None, Some(trailers)) => record.push(Recorded::Trailers(trailers.clone())),
            (None, None) => {}
        }
        if self.recorded > MOST_RECORDED {
            self.record = None;
        }
    }
}

impl Recorded {
    fn length(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

impl From<Recorded> for Frame<Bytes> {
    fn from(recorded: Recorded) -> Self {
        match recorded {
            Recorded::Data(data) => Self::data(data),
            Recorded::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}
