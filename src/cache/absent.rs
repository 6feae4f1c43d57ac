//! Sessions that were found to have no row, for a second.
//!
//! A *negative cache*: callers may name sessions that do not exist as often as they like, and each
//! costs one read per second. It needs the same care as the cached rows: a read that began before
//! news of the session must not say afterwards that there is no row.

use crate::{SessionId, cache::watch::ReadToken, clock::Tick};
use moka::sync::Cache;
use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering, fence},
};
use tokio::time::{Duration, Instant};

/// How long a read that found no row is an answer.
const FRESH: Duration = Duration::from_secs(1);
/// Sessions beyond this number are read each time.
const CAPACITY: u64 = 10_000;
/// Sessions share ticks. Two that share one cost a read that was not needed, nothing else.
const STRIPES: usize = 64;

#[derive(Debug)]
pub(super) struct AbsentSessions {
    /// When the read began that found no row.
    sessions: Cache<SessionId, Instant>,
    hasher: RandomState,
    /// When the last news came of a session of each stripe.
    news_at: [AtomicU64; STRIPES],
}

impl Default for AbsentSessions {
    fn default() -> Self {
        // Bounds memory only: moka's clock is not tokio's, which decides what is fresh.
        let sessions = Cache::builder().max_capacity(CAPACITY).time_to_live(FRESH).build();
        let news_at = std::array::from_fn(|_| AtomicU64::new(0));
        Self { sessions, hasher: RandomState::new(), news_at }
    }
}

impl AbsentSessions {
    fn news_at(&self, session: SessionId) -> &AtomicU64 {
        &self.news_at[self.hasher.hash_one(session) as usize % STRIPES]
    }

    /// Notes that a read with this token has found no row.
    pub(super) fn insert(&self, session: SessionId, token: &ReadToken) {
        self.sessions.insert(session, token.at);
        // Compared after the insertion, while `remove` records the news before it invalidates: one
        // of the two sees the other.
        fence(Ordering::SeqCst);
        if self.news_at(session).load(Ordering::Acquire) > token.stamp.began() {
            self.sessions.invalidate(&session);
        }
    }

    /// Records news at this tick: there may be a row, because one was read or written, or another
    /// process said so.
    pub(super) fn remove(&self, session: SessionId, now: Tick) {
        self.news_at(session).fetch_max(now, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.sessions.invalidate(&session);
    }

    pub(super) fn contains(&self, session: SessionId, now: Instant) -> bool {
        self.sessions.get(&session).is_some_and(|began| now < began + FRESH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cache::RowCache, settings::Settings};
    use tokio::time::advance;
    use uuid::Uuid;

    fn session(n: u128) -> SessionId {
        SessionId::new(Uuid::from_u128(n))
    }

    fn cache() -> RowCache {
        RowCache::new(&Settings::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_without_a_row_is_remembered_for_a_second() {
        let cache = cache();
        let token = cache.read_token(session(1));
        assert!(!cache.is_absent(session(1), Instant::now()));
        advance(Duration::from_millis(400)).await;
        cache.note_absent(session(1), &token);
        assert!(
            cache.is_absent(session(1), Instant::now())
                && !cache.is_absent(session(2), Instant::now())
        );
        advance(Duration::from_millis(599)).await;
        assert!(cache.is_absent(session(1), Instant::now()));
        advance(Duration::from_millis(1)).await;
        assert!(!cache.is_absent(session(1), Instant::now()), "counted from the begin of the read");
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_a_session_ends_its_absence() {
        let cache = cache();
        cache.note_absent(session(1), &cache.read_token(session(1)));
        cache.record_hint(session(1), None);
        assert!(!cache.is_absent(session(1), Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_began_before_the_news_is_not_remembered() {
        let cache = cache();
        let token = cache.read_token(session(1));
        cache.record_hint(session(1), None);
        cache.note_absent(session(1), &token);
        assert!(!cache.is_absent(session(1), Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_is_bounded() {
        let cache = cache();
        for n in 0..30_000 {
            cache.note_absent(session(n), &cache.read_token(session(n)));
        }
        cache.absent.sessions.run_pending_tasks();
        assert!(cache.absent.sessions.entry_count() <= CAPACITY);
    }
}
