//! A bus within this process whose connections can break, with at most one fault.

use crate::Fault;
use futures_util::{Stream, StreamExt, stream};
use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
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
    has_listener: Arc<AtomicBool>,
}

/// The bus as one process has it; not a clone, so that `FaultyBus` is the [`TestBus`].
pub(crate) struct End {
    bus: FaultyBus,
    is_ended: Arc<AtomicBool>,
}

impl FaultyBus {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        Self { fault, wire: Sender::new(1024), has_listener: Arc::default() }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

impl TestBus for FaultyBus {
    type Hints = End;

    async fn end(&self) -> End {
        End { bus: self.clone(), is_ended: Arc::default() }
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

/// What a stream goes by.
struct Listening {
    bus: FaultyBus,
    wire: Receiver<Wire>,
    /// A stream of the same end was dropped.
    is_ended: Arc<AtomicBool>,
    is_deaf: bool,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
    }
}

impl Listening {
    fn of(end: &FaultyBus, is_ended: &Arc<AtomicBool>) -> Self {
        let (bus, wire) = (end.clone(), end.wire.subscribe());
        Self { bus, wire, is_ended: Arc::clone(is_ended), is_deaf: false }
    }

    async fn next(&mut self) -> Option<Heard> {
        loop {
            let received = self.wire.recv().await;
            let is_ended = self.is_ended.load(Ordering::Relaxed);
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
        let (bus, is_ended) = (self.bus.clone(), Arc::clone(&self.is_ended));
        let is_first = !bus.has_listener.swap(true, Ordering::Relaxed);
        match bus.fault {
            Some(Fault::OnlyTheFirstListenerHears) if !is_first => {
                return stream::pending().boxed();
            }
            Some(Fault::ATaskOutlivesItsStream) => drop(tokio::spawn(pending::<()>())),
            _ => {}
        }
        let listen = move || Listening::of(&bus, &is_ended);
        let heard =
            async |mut listening: Listening| listening.next().await.map(|heard| (heard, listening));
        if self.bus.has(Fault::ListeningBeginsWithTheFirstPoll) {
            return stream::once(async move { stream::unfold(listen(), heard) }).flatten().boxed();
        }
        stream::unfold(listen(), heard).boxed()
    }
}
