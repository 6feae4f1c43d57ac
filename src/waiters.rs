//! The tasks that wait for a change.
//!
//! A *waiter list* as in `tokio::sync::Notify`, but with a key: a change wakes those who wait for
//! its key and nobody else, although many keys share a list. A waiter takes a slot of a slab, so
//! that waiting allocates nothing once others have waited before. Who waits holds a number and no
//! reference, so a future can keep what it waits for next to its place in the list.

use crate::sync::lock;
use std::{
    fmt,
    pin::Pin,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// The waiters for changes of some keys. While the lock is held nobody is woken, and no waker is
/// dropped.
pub(crate) struct Waiters<K = ()> {
    /// The number of changes, so that a [`Changed`] misses none before its first poll.
    changes: AtomicU64,
    slab: Mutex<Slab<K>>,
}

struct Slab<K> {
    waiters: Vec<Option<Waiter<K>>>,
    /// The indices of the slots that are free.
    free: Vec<usize>,
}

struct Waiter<K> {
    key: K,
    notified: bool,
    waker: Option<Waker>,
}

/// A place in the list. [`Waiters::leave`] gives it back.
#[derive(Debug)]
pub(crate) struct Place(usize);

impl<K> Default for Waiters<K> {
    fn default() -> Self {
        let slab = Slab { waiters: Vec::new(), free: Vec::new() };
        Self { changes: AtomicU64::new(0), slab: Mutex::new(slab) }
    }
}

impl<K> fmt::Debug for Waiters<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiters").finish_non_exhaustive()
    }
}

impl<K: Copy + PartialEq> Waiters<K> {
    /// Wakes those who wait for changes of this key, and nobody else.
    pub(crate) fn notify(&self, key: K) {
        let wakers: Vec<Waker> = {
            let mut slab = self.lock();
            self.changes.fetch_add(1, Ordering::Release);
            slab.of(key)
                .filter_map(|waiter| {
                    waiter.notified = true;
                    waiter.waker.take()
                })
                .collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Returns `true` if anybody waits for changes of this key.
    pub(crate) fn is_waited_for(&self, key: K) -> bool {
        self.lock().of(key).next().is_some()
    }

    /// Returns a future that ends at the next change of this key.
    pub(crate) fn changed(&self, key: K) -> Changed<'_, K> {
        let changes = self.changes.load(Ordering::Acquire);
        Changed { waiters: self, key, changes, place: None }
    }

    /// Joins the list: the next change of this key wakes the task. What has changed before is for
    /// the caller to find out, after this.
    pub(crate) fn join(&self, key: K, waker: &Waker) -> Place {
        let waker = Some(waker.clone());
        Place(self.lock().insert(Waiter { key, notified: false, waker }))
    }

    /// Stays in the list, with the waker of this poll. Returns whether there was a change since the
    /// last time; the next one wakes the task in any case.
    pub(crate) fn stay(&self, place: &Place, waker: &Waker) -> bool {
        let mut slab = self.lock();
        let Some(waiter) = slab.waiters.get_mut(place.0).and_then(Option::as_mut) else {
            return false;
        };
        let was_notified = std::mem::take(&mut waiter.notified);
        let same = waiter.waker.as_ref().is_some_and(|held| held.will_wake(waker));
        let replaced = if same { None } else { waiter.waker.replace(waker.clone()) };
        drop(slab);
        drop(replaced);
        was_notified
    }

    /// Leaves the list.
    pub(crate) fn leave(&self, place: Place) {
        let mut slab = self.lock();
        let waiter = slab.remove(place.0);
        drop(slab);
        drop(waiter);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().waiters.iter().flatten().count()
    }

    fn lock(&self) -> MutexGuard<'_, Slab<K>> {
        lock(&self.slab)
    }
}

impl<K: Copy + PartialEq> Slab<K> {
    fn of(&mut self, key: K) -> impl Iterator<Item = &mut Waiter<K>> {
        self.waiters.iter_mut().flatten().filter(move |waiter| waiter.key == key)
    }

    fn insert(&mut self, waiter: Waiter<K>) -> usize {
        let index = self.free.pop().unwrap_or(self.waiters.len());
        match self.waiters.get_mut(index) {
            Some(slot) => *slot = Some(waiter),
            None => self.waiters.push(Some(waiter)),
        }
        index
    }

    fn remove(&mut self, index: usize) -> Option<Waiter<K>> {
        let waiter = self.waiters.get_mut(index).and_then(Option::take)?;
        self.free.push(index);
        Some(waiter)
    }
}

/// Ends at a change of one key after the future was made. Joins the list at its first poll.
pub(crate) struct Changed<'a, K: Copy + PartialEq = ()> {
    waiters: &'a Waiters<K>,
    key: K,
    /// The number of changes when the future was made.
    changes: u64,
    /// From the first poll on.
    place: Option<Place>,
}

impl<K: Copy + PartialEq + Unpin> Future for Changed<'_, K> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(place) = &self.place {
            let was_notified = self.waiters.stay(place, cx.waker());
            return if was_notified { Poll::Ready(()) } else { Poll::Pending };
        }
        let place = self.waiters.join(self.key, cx.waker());
        self.place = Some(place);
        // Perhaps of another key of the list, which costs the caller one look.
        let has_changed = self.waiters.changes.load(Ordering::Acquire) != self.changes;
        if has_changed { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl<K: Copy + PartialEq> Drop for Changed<'_, K> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.waiters.leave(place);
        }
    }
}
