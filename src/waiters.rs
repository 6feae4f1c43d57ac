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

/// So many slots are kept when the last waiter of a herd has left.
const MOST_KEPT: usize = 32;

/// The waiters for changes of some keys. While the lock is held nobody is woken, and no waker is
/// dropped.
pub(crate) struct Waiters<K> {
    /// The number of changes, so that a [`Changed`] misses none before its first poll.
    changes: AtomicU64,
    slab: Mutex<Slab<K>>,
}

struct Slab<K> {
    slots: Vec<Slot<K>>,
    /// The first of the free slots; the number of the slots if none is free.
    free: usize,
    /// How many slots are taken.
    taken: usize,
}

enum Slot<K> {
    Free {
        /// The free slot after this one.
        next: usize,
    },
    Waiter {
        key: K,
        /// `None` once the waiter was notified.
        waker: Option<Waker>,
    },
}

/// A place in the list. [`Waiters::leave`] gives it back.
#[derive(Debug)]
pub(crate) struct Place(usize);

impl<K> Default for Waiters<K> {
    fn default() -> Self {
        let slab = Slab { slots: Vec::new(), free: 0, taken: 0 };
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
        self.notify_where(|waits_for| waits_for == key);
    }

    /// Wakes all who wait.
    pub(crate) fn notify_all(&self) {
        self.notify_where(|_| true);
    }

    fn notify_where(&self, changed: impl Fn(K) -> bool) {
        let wakers: Vec<Waker> = {
            let mut slab = self.lock();
            self.changes.fetch_add(1, Ordering::Release);
            slab.of(changed).filter_map(Option::take).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Returns `true` if anybody waits for changes of this key.
    pub(crate) fn is_waited_for(&self, key: K) -> bool {
        self.lock().of(|waits_for| waits_for == key).next().is_some()
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
        Place(self.lock().insert(Slot::Waiter { key, waker }))
    }

    /// Stays in the list, with the waker of this poll. Returns whether there was a change since the
    /// last time; the next one wakes the task in any case.
    pub(crate) fn stay(&self, place: &Place, waker: &Waker) -> bool {
        let mut slab = self.lock();
        let Some(Slot::Waiter { waker: held, .. }) = slab.slots.get_mut(place.0) else {
            return false;
        };
        let same = held.as_ref().is_some_and(|held| held.will_wake(waker));
        let replaced = if same { None } else { Some(held.replace(waker.clone())) };
        drop(slab);
        matches!(replaced, Some(None))
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
        self.lock().slots.iter().filter(|slot| matches!(slot, Slot::Waiter { .. })).count()
    }

    fn lock(&self) -> MutexGuard<'_, Slab<K>> {
        lock(&self.slab)
    }
}

impl<K: Copy + PartialEq> Slab<K> {
    /// Returns the wakers of those who wait for such a key.
    fn of(&mut self, is_meant: impl Fn(K) -> bool) -> impl Iterator<Item = &mut Option<Waker>> {
        self.slots.iter_mut().filter_map(move |slot| match slot {
            Slot::Waiter { key, waker } if is_meant(*key) => Some(waker),
            _ => None,
        })
    }

    fn insert(&mut self, waiter: Slot<K>) -> usize {
        let index = self.free;
        self.taken += 1;
        match self.slots.get_mut(index) {
            Some(slot) => {
                if let Slot::Free { next } = std::mem::replace(slot, waiter) {
                    self.free = next;
                }
            }
            None => {
                self.slots.push(waiter);
                self.free = self.slots.len();
            }
        }
        index
    }

    fn remove(&mut self, index: usize) -> Option<Slot<K>> {
        let slot = self.slots.get_mut(index)?;
        let next = std::mem::replace(&mut self.free, index);
        let waiter = std::mem::replace(slot, Slot::Free { next });
        self.taken -= 1;
        if self.taken == 0 && self.slots.len() > MOST_KEPT {
            (self.slots, self.free) = (Vec::new(), 0);
        }
        Some(waiter)
    }
}

/// Ends at a change of one key after the future was made. Joins the list at its first poll.
pub(crate) struct Changed<'a, K: Copy + PartialEq> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_taken_again_and_a_herd_leaves_no_room_behind() {
        let waiters = Waiters::<u8>::default();
        let join = |key| waiters.join(key, Waker::noop());
        let (one, two, three) = (join(1), join(2), join(3));
        assert_eq!((one.0, two.0, three.0), (0, 1, 2));
        waiters.leave(two);
        waiters.leave(one);
        let again = [join(4), join(5), join(6)];
        assert_eq!(again.each_ref().map(|place| place.0), [0, 1, 3]);
        assert_eq!(
            (waiters.is_waited_for(1), waiters.is_waited_for(4), waiters.len()),
            (false, true, 4)
        );
        let herd: Vec<Place> = (0..100).map(|_| join(7)).collect();
        for place in herd.into_iter().chain(again).chain([three]) {
            assert!(!waiters.stay(&place, Waker::noop()));
            waiters.leave(place);
        }
        let slab = waiters.lock();
        assert_eq!((slab.slots.capacity(), slab.free, slab.taken), (0, 0, 0));
    }

    #[test]
    fn a_waiter_that_stays_is_notified_of_each_change_of_its_key() {
        let waiters = Waiters::<u8>::default();
        let (one, two) = (waiters.join(1, Waker::noop()), waiters.join(2, Waker::noop()));
        for _ in 0..2 {
            waiters.notify(1);
            let stay = |place| waiters.stay(place, Waker::noop());
            assert_eq!((stay(&one), stay(&one), stay(&two)), (true, false, false));
        }
        waiters.leave(one);
        waiters.leave(two);
        assert_eq!(waiters.len(), 0);
    }
}
