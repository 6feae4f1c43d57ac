//! A bus within this process whose connections can break, with at most one fault.

use crate::Fault;
use futures_util::{Stream, StreamExt, stream};
use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::broadcast::{Receiver, Sender, error::RecvError};
use tower_bound_agent::{
    hints::{About, Heard, Hint, Hints},
    testing::hints::TestBus,
};

#[derive(Clone, Debug)]
enum Wire {
    Hint(Hint),
    Unreadable,
    /// The connection breaks.
    Cut,
}

#[derive(Clone)]
pub(crate) struct FaultyBus {
    fault: Option<Fault>,
    wire: Sender<Wire>,
    /// An end sends nothing while it has no stream. This is no fault.
    sends_in_stream: bool,
}

/// The bus of one process. It is not a clone, so that `FaultyBus` is the [`TestBus`].
pub(crate) struct End {
    bus: FaultyBus,
    state: Arc<State>,
}

/// What an end and its streams share.
#[derive(Default)]
struct State {
    /// How many streams there are.
    streams: AtomicUsize,
    /// A stream was created.
    has_listened: AtomicBool,
    /// A stream was dropped.
    is_ended: AtomicBool,
}

impl FaultyBus {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        Self { fault, wire: Sender::new(1024), sends_in_stream: false }
    }

    pub(crate) fn that_sends_in_its_stream() -> Self {
        Self { sends_in_stream: true, ..Self::new(None) }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

impl TestBus for FaultyBus {
    type Hints = End;

    async fn end(&self) -> End {
        End { bus: self.clone(), state: Arc::default() }
    }

    async fn disconnect(&self) -> bool {
        let _ = self.wire.send(Wire::Cut);
        true
    }

    async fn send_unreadable(&self) -> bool {
        let _ = self.wire.send(Wire::Unreadable);
        true
    }
}

/// The state of a stream.
struct Listening {
    bus: FaultyBus,
    wire: Receiver<Wire>,
    state: Arc<State>,
    is_deaf: bool,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.state.is_ended.store(true, Ordering::Relaxed);
        self.state.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Listening {
    fn of(bus: &FaultyBus, state: &Arc<State>) -> Self {
        state.streams.fetch_add(1, Ordering::Relaxed);
        let (bus, wire) = (bus.clone(), bus.wire.subscribe());
        Self { bus, wire, state: Arc::clone(state), is_deaf: false }
    }

    async fn next(&mut self) -> Option<Heard> {
        loop {
            let received = self.wire.recv().await;
            let is_ended = self.state.is_ended.load(Ordering::Relaxed);
            if is_ended && self.bus.has(Fault::ADroppedStreamEndsTheOthers) {
                return None;
            }
            match received {
                Ok(Wire::Hint(_)) if self.is_deaf => {}
                Ok(Wire::Hint(hint)) => return Some(Heard::Hint(hint)),
                Ok(Wire::Cut) => match self.bus.fault {
                    Some(Fault::ALostConnectionIsNotTold) => {}
                    Some(Fault::ALostConnectionEndsTheStream) => return None,
                    fault => {
                        self.is_deaf = fault == Some(Fault::NothingIsHeardAfterALostConnection);
                        return Some(Heard::Lagged);
                    }
                },
                Ok(Wire::Unreadable) => match self.bus.fault {
                    Some(Fault::UnreadableInputIsNotTold) => {}
                    Some(Fault::UnreadableInputEndsTheStream) => return None,
                    _ => return Some(Heard::Lagged),
                },
                Err(RecvError::Lagged(_)) if self.bus.has(Fault::LostHintsAreNotTold) => {}
                Err(RecvError::Lagged(_)) => return Some(Heard::Lagged),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

impl Hints for End {
    fn send(&self, mut hint: Hint) {
        if self.bus.sends_in_stream && self.state.streams.load(Ordering::Relaxed) == 0 {
            return;
        }
        match (self.bus.fault, &mut hint.about) {
            (Some(Fault::NothingIsCarried), _) => return,
            (Some(Fault::SendingWaits), _) => std::thread::sleep(Duration::from_millis(2)),
            (Some(Fault::OriginsAreLost), _) => hint.origin = 0,
            (Some(Fault::RevisionsAreLost), About::Session { revision, .. }) => *revision = None,
            (Some(Fault::GenerationsAreLost), About::Workspace { generation, .. }) => {
                *generation = None;
            }
            (
                Some(Fault::EpochsAreLost),
                About::Workspace { epoch, .. } | About::Reset { epoch, .. },
            ) => *epoch = None,
            (Some(Fault::HintsAreInvented), _) => {
                let invented = Hint::new(hint.origin + 1, hint.about);
                let _ = self.bus.wire.send(Wire::Hint(invented));
            }
            _ => {}
        }
        let _ = self.bus.wire.send(Wire::Hint(hint));
    }

    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static {
        let (bus, state) = (self.bus.clone(), Arc::clone(&self.state));
        let is_first = !state.has_listened.swap(true, Ordering::Relaxed);
        match bus.fault {
            Some(Fault::OnlyTheFirstStreamOfAnEndHears) if !is_first => {
                return stream::pending().boxed();
            }
            Some(Fault::ATaskOutlivesItsStream) => drop(tokio::spawn(pending::<()>())),
            _ => {}
        }
        let listen = move || Listening::of(&bus, &state);
        let heard =
            async |mut listening: Listening| listening.next().await.map(|heard| (heard, listening));
        if self.bus.has(Fault::ListeningBeginsWithTheFirstPoll) {
            return stream::once(async move { stream::unfold(listen(), heard) }).flatten().boxed();
        }
        stream::unfold(listen(), heard).boxed()
    }
}
