//! The follower: the one task of a layer that follows what other processes write.

use crate::sync::lock;
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
use tokio::time::Instant;

/// Which task is the follower.
#[derive(Debug)]
pub(crate) struct Following {
    /// The number of the follower; 0 if there is none.
    pub(crate) current: AtomicU64,
    /// How many followers were ever begun.
    pub(crate) begun: AtomicU64,
    /// When the follower last showed that its runtime is driven.
    pub(crate) seen: Mutex<Instant>,
}

impl Default for Following {
    fn default() -> Self {
        Self {
            current: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            seen: Mutex::new(Instant::now()),
        }
    }
}

impl Following {
    /// Returns whether the follower has this number.
    #[inline]
    pub(crate) fn is(&self, number: u64) -> bool {
        self.current.load(Ordering::Acquire) == number
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Instant> {
        lock(&self.seen)
    }
}
