//! What waits to be sent: merged, bounded, and cut into payloads.

use super::super::{About, Hint};
use crate::{Generation, Revision};
use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// More different hints than this do not wait.
const CAPACITY: usize = 10_000;

/// In bytes. PostgreSQL takes less than 8,000.
const LONGEST_PAYLOAD: usize = 4_000;

/// Between the hints of one payload.
pub(super) const SEPARATOR: char = ' ';

/// The payload that tells everybody of hints that were lost. Like everything that is no hint, it is heard as a gap.
const GAP: &str = "gap";

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    /// By what they say apart from their number; of each the greatest number.
    hints: HashMap<Hint, Hint>,
    /// Some did not find room.
    lost: bool,
}

impl Queue {
    pub(super) fn push(&self, hint: Hint) {
        let mut waiting = self.lock();
        let was_empty = waiting.is_empty();
        waiting.push(hint);
        drop(waiting);
        if was_empty {
            // Everyone: who is woken may be dropped before it takes anything.
            self.filled.notify_waiters();
        }
    }

    /// Waits until there is something to send.
    pub(super) async fn filled(&self) {
        loop {
            let filled = self.filled.notified(); // before the look: what comes after it wakes this one
            if !self.lock().is_empty() {
                return;
            }
            filled.await;
        }
    }

    /// All that waits. It goes back unless it was [`sent`](Batch::sent).
    pub(super) fn take(&self) -> Batch<'_> {
        Batch { queue: self, taken: mem::take(&mut *self.lock()) }
    }

    /// Between two uses of the lock the state is always whole.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.hints.is_empty() && !self.lost
    }

    fn push(&mut self, hint: Hint) {
        let (rest, number) = split(hint);
        if let Some(known) = self.hints.get_mut(&rest) {
            if number > split(*known).1 {
                *known = hint;
            }
        } else if self.hints.len() < CAPACITY {
            self.hints.insert(rest, hint);
        } else {
            self.lost = true;
        }
    }
}

/// What is being sent.
pub(super) struct Batch<'q> {
    queue: &'q Queue,
    taken: Waiting,
}

impl Batch<'_> {
    pub(super) fn payloads(&self) -> Vec<String> {
        let mut payloads = Vec::new();
        let mut payload = String::new();
        for hint in self.taken.hints.values().map(Hint::to_string) {
            if !payload.is_empty() {
                if payload.len() + SEPARATOR.len_utf8() + hint.len() > LONGEST_PAYLOAD {
                    payloads.push(mem::take(&mut payload));
                } else {
                    payload.push(SEPARATOR);
                }
            }
            payload.push_str(&hint);
        }
        if !payload.is_empty() {
            payloads.push(payload);
        }
        if self.taken.lost {
            payloads.push(GAP.to_owned());
        }
        payloads
    }

    pub(super) fn sent(mut self) {
        self.taken = Waiting::default();
    }
}

/// Whether it was sent or not: a hint may be doubled.
impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for hint in self.taken.hints.drain().map(|(_, hint)| hint) {
            self.queue.push(hint);
        }
        if self.taken.lost {
            self.queue.lock().lost = true;
            self.queue.filled.notify_waiters();
        }
    }
}

/// A hint without its number, and the number. A hint without a number says something else than one that has one, so
/// the two are not merged.
fn split(hint: Hint) -> (Hint, Option<i64>) {
    let (about, number) = match hint.about {
        About::Workspace { workspace, generation: Some(generation) } => {
            (About::Workspace { workspace, generation: Some(Generation::new(0)) }, Some(generation.get()))
        }
        About::Session { session, revision: Some(revision) } => {
            (About::Session { session, revision: Some(Revision::new(0)) }, Some(revision.get()))
        }
        about @ (About::Workspace { generation: None, .. }
        | About::Session { revision: None, .. }
        | About::Reset { .. }) => (about, None),
    };
    (Hint::new(hint.origin, about), number)
}
