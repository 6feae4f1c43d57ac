//! A hint bus that loses, delays, doubles and reorders hints as scripted.

use futures_util::{Stream, stream};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
};
use tokio::{
    sync::Notify,
    time::{Duration, Instant, sleep_until},
};
use tower_bound_agent::hints::{Heard, Hint, Hints};

/// The fate of a hint on its way to one listener.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    Lost,
    /// The hint arrives after this time. A later hint with a shorter delay may overtake it.
    After(u64),
    Twice(u64, u64),
    /// The hint is lost, and the loss is reported after this time.
    Gap(u64),
}

/// A hint bus without tasks. Clones are the ends of one bus.
#[derive(Clone)]
pub struct Wire(Arc<Mutex<State>>);

struct State {
    fates: Vec<Fate>,
    /// The number of hints whose fate was decided.
    met: usize,
    /// Orders the messages that arrive at the same instant.
    number: usize,
    listeners: Vec<Weak<Listener>>,
}

#[derive(Default)]
struct Listener {
    /// The messages by arrival time, then by sending order.
    coming: Mutex<BTreeMap<(Instant, usize), Heard>>,
    more: Notify,
}

impl Wire {
    /// Creates a bus that applies the fates in turn, cyclically. Without fates every hint arrives
    /// at once.
    pub fn new(fates: Vec<Fate>) -> Self {
        Self(Arc::new(Mutex::new(State { fates, met: 0, number: 0, listeners: Vec::new() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Makes all later hints arrive at once.
    pub fn heal(&self) {
        self.state().fates.clear();
    }

    /// Sends a message to all listeners.
    pub fn say(&self, heard: Heard) {
        let state = &mut *self.state();
        state.listeners.retain(|listener| listener.strong_count() > 0);
        for listener in state.listeners.iter().filter_map(Weak::upgrade) {
            let fate = state.fates.get(state.met % state.fates.len().max(1)).copied();
            let comings = match fate.unwrap_or(Fate::After(0)) {
                Fate::Lost => vec![],
                Fate::After(after) => vec![(after, heard)],
                Fate::Twice(one, other) => vec![(one, heard), (other, heard)],
                Fate::Gap(after) => vec![(after, Heard::Lagged)],
            };
            for (after, heard) in comings {
                let at = Instant::now() + Duration::from_millis(after);
                listener.coming.lock().unwrap().insert((at, state.number), heard);
                state.number += 1;
            }
            state.met += 1;
            listener.more.notify_one();
        }
    }
}

impl Hints for Wire {
    fn send(&self, hint: Hint) {
        self.say(Heard::Hint(hint));
    }

    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static {
        let listener = Arc::new(Listener::default());
        self.state().listeners.push(Arc::downgrade(&listener));
        stream::unfold(listener, async |listener| {
            loop {
                let next = listener.coming.lock().unwrap().first_key_value().map(|(next, _)| *next);
                match next {
                    Some(next) if next.0 <= Instant::now() => {
                        let heard = listener.coming.lock().unwrap().remove(&next)?;
                        return Some((heard, listener));
                    }
                    Some((at, _)) => tokio::select! {
                        () = sleep_until(at) => {}
                        () = listener.more.notified() => {}
                    },
                    None => listener.more.notified().await,
                }
            }
        })
    }
}
