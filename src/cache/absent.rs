//! Sessions that were found to have no row, for a second.
//!
//! A *negative cache*: callers may name sessions that do not exist as often as they like, and each
//! costs one read per second. It is a bounded memory of reads, so it needs the same care as the
//! cached rows: a read that began before a command or a hint must not say afterwards that there is
//! no row.

use crate::SessionId;
use moka::sync::Cache;
use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::time::{Duration, Instant};

/// How long a read that found no row is an answer.
const FRESH: Duration = Duration::from_secs(1);
/// More sessions are not remembered, and are read each time.
const CAPACITY: u64 = 10_000;
/// Sessions share counters. Two that share one cost a read that was not needed, nothing else.
const STRIPES: usize = 64;

#[derive(Debug)]
pub(crate) struct Absent {
    /// When the read began that found no row.
    sessions: Cache<SessionId, Instant>,
    hasher: RandomState,
    /// How often something was heard of the sessions of a stripe.
    heard: [AtomicU64; STRIPES],
}

/// Taken before a read begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    began: Instant,
    heard: u64,
}

impl Default for Absent {
    fn default() -> Self {
        // moka's clock only bounds the memory; freshness is decided with tokio's.
        let sessions = Cache::builder().max_capacity(CAPACITY).time_to_live(FRESH).build();
        Self {
            sessions,
            hasher: RandomState::new(),
            heard: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Absent {
    fn stripe(&self, session: SessionId) -> &AtomicU64 {
        &self.heard[self.hasher.hash_one(session) as usize % STRIPES]
    }

    pub(crate) fn before_read(&self, session: SessionId) -> Before {
        Before { began: Instant::now(), heard: self.stripe(session).load(Ordering::Acquire) }
    }

    /// The read has found no row.
    pub(crate) fn note(&self, session: SessionId, before: Before) {
        self.sessions.insert(session, before.began);
        // Looked at after the insertion, while `hear` counts before its removal: one of the two
        // sees the other.
        if self.stripe(session).load(Ordering::Acquire) != before.heard {
            self.sessions.invalidate(&session);
        }
    }

    /// There may be a row by now: one was read or written, or another process said so.
    pub(crate) fn hear(&self, session: SessionId) {
        self.stripe(session).fetch_add(1, Ordering::AcqRel);
        self.sessions.invalidate(&session);
    }

    /// Returns `true` if a read that began within the last second found no row.
    pub(crate) fn contains(&self, session: SessionId, now: Instant) -> bool {
        self.sessions.get(&session).is_some_and(|began| now < began + FRESH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;
    use uuid::Uuid;

    fn session(n: u128) -> SessionId {
        SessionId::new(Uuid::from_u128(n))
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_without_a_row_is_remembered_for_a_second() {
        let absent = Absent::default();
        let before = absent.before_read(session(1));
        assert!(!absent.contains(session(1), Instant::now()));
        advance(Duration::from_millis(400)).await;
        absent.note(session(1), before);
        assert!(
            absent.contains(session(1), Instant::now())
                && !absent.contains(session(2), Instant::now())
        );
        advance(Duration::from_millis(599)).await;
        assert!(absent.contains(session(1), Instant::now()));
        advance(Duration::from_millis(1)).await;
        assert!(!absent.contains(session(1), Instant::now()), "counted from the begin of the read");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_heard_of_a_session_ends_it() {
        let absent = Absent::default();
        absent.note(session(1), absent.before_read(session(1)));
        absent.hear(session(1));
        assert!(!absent.contains(session(1), Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_began_before_something_was_heard_is_not_remembered() {
        let absent = Absent::default();
        let before = absent.before_read(session(1));
        absent.hear(session(1));
        absent.note(session(1), before);
        assert!(!absent.contains(session(1), Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_is_bounded() {
        let absent = Absent::default();
        for n in 0..30_000 {
            absent.note(session(n), absent.before_read(session(n)));
        }
        absent.sessions.run_pending_tasks();
        assert!(absent.sessions.entry_count() <= CAPACITY);
    }
}
