//! What waits to be sent: merged, bounded, and cut into payloads.

use super::super::{About, Hint};
use crate::{Epoch, Generation, Revision, sync::lock};
use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard},
};
use tokio::sync::Notify;

/// More different hints than this do not wait.
const CAPACITY: usize = 10_000;

/// In bytes. PostgreSQL takes less than 8,000.
const LONGEST_PAYLOAD: usize = 4_000;

/// Between the hints of one payload.
pub(super) const SEPARATOR: char = ' ';

/// The payload that tells everybody of hints that were lost. Like everything that is no hint, it is
/// heard as a gap.
const GAP: &str = "gap";

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    /// By what they say apart from their numbers; of each the greatest epoch, and in that the
    /// greatest number.
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
        lock(&self.waiting)
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

/// A hint without its numbers, and the numbers in the order in which they are compared. A hint
/// without a number says something else than one that has it, so the two are not merged.
fn split(hint: Hint) -> (Hint, [Option<i64>; 2]) {
    let (no_epoch, no_generation, no_revision) =
        (|_| Epoch::new(0), |_| Generation::new(0), |_| Revision::new(0));
    let (about, numbers) = match hint.about {
        About::Workspace { workspace, generation, epoch } => (
            About::Workspace {
                workspace,
                generation: generation.map(no_generation),
                epoch: epoch.map(no_epoch),
            },
            [epoch.map(Epoch::get), generation.map(Generation::get)],
        ),
        About::Session { session, revision } => (
            About::Session { session, revision: revision.map(no_revision) },
            [None, revision.map(Revision::get)],
        ),
        About::Reset { workspace, epoch } => {
            (About::Reset { workspace, epoch: epoch.map(no_epoch) }, [epoch.map(Epoch::get), None])
        }
    };
    (Hint::new(hint.origin, about), numbers)
}
