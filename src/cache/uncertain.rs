//! Sessions whose row a transaction of unknown outcome may still change.
//!
//! A *distrust list with a deadline*: while a session is on it, its row is read at every call and
//! not cached. The session leaves the list when a read shows that the transaction has ended, or
//! after [`UNCERTAIN_FOR`].

use crate::{Revision, SessionId, sync::lock};
use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::time::{Duration, Instant};

/// How long the row of an uncertain session is read at every call.
const UNCERTAIN_FOR: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub(super) struct Uncertain {
    /// A row of this revision or a later one shows that the transaction has ended.
    until_revision: Revision,
    until: Instant,
}

#[derive(Debug, Default)]
pub(super) struct UncertainSessions {
    sessions: Mutex<HashMap<SessionId, Uncertain>>,
    /// The length of the map, so that the usual case takes no lock.
    len: AtomicUsize,
}

impl UncertainSessions {
    /// Adds the session, or replaces what was noted of it.
    pub(super) fn insert(&self, session: SessionId, until_revision: Revision, now: Instant) {
        let mut sessions = self.lock();
        sessions.retain(|_, uncertain| now < uncertain.until);
        sessions.insert(session, Uncertain { until_revision, until: now + UNCERTAIN_FOR });
        self.len.store(sessions.len(), Ordering::Release);
    }

    /// Returns `true` if a row of this revision, read at `read`, must not be cached. If it may be,
    /// the session is not uncertain any more.
    pub(super) fn forbids(&self, session: SessionId, revision: Revision, read: Instant) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut sessions = self.lock();
        let Some(uncertain) = sessions.get(&session) else { return false };
        if revision < uncertain.until_revision && read < uncertain.until {
            return true;
        }
        sessions.remove(&session);
        self.len.store(sessions.len(), Ordering::Release);
        false
    }

    pub(super) fn contains(&self, session: SessionId) -> bool {
        !self.is_empty() && self.lock().contains_key(&session)
    }

    fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Uncertain>> {
        lock(&self.sessions)
    }
}
