//! The queue of hints that wait to be sent: merged, bounded, and split into payloads.

use super::super::{About, Hint};
use crate::{Epoch, Generation, Revision, sync::lock};
use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard},
};
use tokio::sync::Notify;

/// The greatest number of different hints that wait.
const CAPACITY: usize = 10_000;

/// The greatest length of a payload in bytes. PostgreSQL accepts less than 8,000.
const LONGEST_PAYLOAD: usize = 4_000;

/// The separator between the hints of one payload.
pub(super) const SEPARATOR: char = ' ';

/// The payload that reports lost hints. Receivers treat it as a gap, as any payload that is no
/// hint.
const GAP: &str = "gap";

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    /// The hints by their key, which is the hint without its numbers. Each has the greatest epoch,
    /// and in it the greatest number.
    hints: HashMap<Hint, Hint>,
    /// Hints were lost because the queue was full.
    lost: bool,
}

impl Queue {
    pub(super) fn push(&self, hint: Hint) {
        let mut waiting = self.lock();
        let was_empty = waiting.is_empty();
        waiting.push(hint);
        drop(waiting);
        if was_empty {
            // Wakes all waiters, because one that is woken may be dropped before it takes a hint.
            self.filled.notify_waiters();
        }
    }

    /// Waits until there is something to send.
    pub(super) async fn filled(&self) {
        loop {
            let filled = self.filled.notified(); // created before the check, so that a later push wakes it
            if !self.lock().is_empty() {
                return;
            }
            filled.await;
        }
    }

    /// Takes all waiting hints. Dropping the batch returns them unless it was
    /// [`sent`](Batch::sent).
    pub(super) fn take(&self) -> Batch<'_> {
        Batch { queue: self, taken: mem::take(&mut *self.lock()) }
    }

    /// Locks the queue, which is consistent between two uses of the lock.
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

/// The hints that are being sent.
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

/// Returns the hints to the queue. A hint whose answer was lost is sent twice, which is allowed.
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

/// Splits a hint into its key and its numbers, in the order of comparison. Hints with and without a
/// number have different meanings, so their keys differ and they are not merged.
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
