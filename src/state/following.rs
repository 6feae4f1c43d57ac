//! Which task follows what other processes write: one in each layer.

use crate::sync::lock;
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};
use tokio::time::Instant;

/// Which task follows.
#[derive(Debug)]
pub(crate) struct Following {
    /// Its number; 0 if there is none.
    pub(crate) current: AtomicU64,
    pub(crate) begun: AtomicU64,
    /// When it was last seen to be driven.
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
    pub(crate) fn is(&self, number: u64) -> bool {
        self.current.load(Ordering::Acquire) == number
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Instant> {
        lock(&self.seen)
    }
}
