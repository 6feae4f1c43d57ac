//! The tasks that wait for changes of a session.
//!
//! A *waiter list* as in `tokio::sync::Notify`, but with a key: a change wakes only the tasks that
//! wait for its session, although many sessions share a list. A waiter takes a slot of a slab, so
//! waiting allocates nothing once the slab has grown.

use crate::{SessionId, sync::lock};
use std::{
    pin::Pin,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// The waiters of some sessions. No task is woken and no waker is dropped while the lock is held.
#[derive(Default)]
pub(super) struct Waiters {
    /// The number of changes, so that a [`Changed`] misses none before its first poll.
    changes: AtomicU64,
    slab: Mutex<Slab>,
}

#[derive(Default)]
struct Slab {
    waiters: Vec<Option<Waiter>>,
    /// The indices of the slots that are free.
    free: Vec<usize>,
}

struct Waiter {
    session: SessionId,
    notified: bool,
    waker: Option<Waker>,
}

impl Waiters {
    /// Wakes the tasks that wait for changes of this session, and no others.
    pub(super) fn notify(&self, session: SessionId) {
        let wakers: Vec<Waker> = {
            let mut slab = self.lock();
            self.changes.fetch_add(1, Ordering::Release);
            slab.of(session)
                .filter_map(|waiter| {
                    waiter.notified = true;
                    waiter.waker.take()
                })
                .collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Returns `true` if a task waits for changes of this session.
    pub(super) fn is_waited_for(&self, session: SessionId) -> bool {
        self.lock().of(session).next().is_some()
    }

    /// Returns a future that ends at the next change of this session.
    pub(super) fn changed(&self, session: SessionId) -> Changed<'_> {
        let changes = self.changes.load(Ordering::Acquire);
        Changed { waiters: self, session, changes, index: None }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().waiters.iter().flatten().count()
    }

    fn lock(&self) -> MutexGuard<'_, Slab> {
        lock(&self.slab)
    }
}

impl Slab {
    fn of(&mut self, session: SessionId) -> impl Iterator<Item = &mut Waiter> {
        self.waiters.iter_mut().flatten().filter(move |waiter| waiter.session == session)
    }

    fn insert(&mut self, waiter: Waiter) -> usize {
        let index = self.free.pop().unwrap_or(self.waiters.len());
        match self.waiters.get_mut(index) {
            Some(slot) => *slot = Some(waiter),
            None => self.waiters.push(Some(waiter)),
        }
        index
    }

    fn remove(&mut self, index: usize) -> Option<Waiter> {
        let waiter = self.waiters.get_mut(index).and_then(Option::take)?;
        self.free.push(index);
        Some(waiter)
    }
}

/// Ends at a change of one session after the future was made. Joins the list at its first poll.
pub(crate) struct Changed<'a> {
    waiters: &'a Waiters,
    session: SessionId,
    /// The number of changes when the future was made.
    changes: u64,
    /// The slot of the waiter, from the first poll on.
    index: Option<usize>,
}

impl Future for Changed<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut slab = self.waiters.lock();
        let Some(index) = self.index else {
            if self.waiters.changes.load(Ordering::Relaxed) != self.changes {
                // Perhaps of another session of the list, which costs the caller one look.
                return Poll::Ready(());
            }
            let waker = Some(cx.waker().clone());
            let index = slab.insert(Waiter { session: self.session, notified: false, waker });
            drop(slab);
            self.index = Some(index);
            return Poll::Pending;
        };
        let Some(waiter) = slab.waiters.get_mut(index).and_then(Option::as_mut) else {
            return Poll::Ready(());
        };
        if waiter.notified {
            return Poll::Ready(());
        }
        let same = waiter.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        let replaced = if same { None } else { waiter.waker.replace(cx.waker().clone()) };
        drop(slab);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        let Some(index) = self.index else { return };
        let mut slab = self.waiters.lock();
        let waiter = slab.remove(index);
        drop(slab);
        drop(waiter);
    }
}
