//! The histories of the sessions that something is under way for: a read, a write, or the use of a
//! row that is not in its slot.
//!
//! *Lock striping* over *weak references*: the [`History`] of a session lives as long as a
//! [`Watch`] on it. The memory of the histories is therefore proportional to the work under way,
//! and no answer about one session depends on another session. The maps that find them are striped.

use crate::{
    Revision, SessionId, WorkspaceId,
    cache::{
        entry::CachedRow,
        policy::{self, History},
    },
    clock::{Clock, Stamp, Tick},
    sync::lock,
    waiters::Waiters,
};
use foldhash::fast::RandomState;
use std::{
    collections::HashMap,
    fmt,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::time::Instant;

/// Bounds what is locked, and looked through, to find the waiters of a session.
const STRIPES: usize = 1024;

/// All watches and waiters, and the logical clock that orders what happens to the sessions.
pub(super) struct Watches {
    pub(super) clock: Clock,
    /// When targets were last reset, of whatever workspace.
    reset_at: AtomicU64,
    hasher: RandomState,
    stripes: Box<[Stripe]>,
}

struct Stripe {
    watches: Mutex<Watched>,
    waiters: Waiters<SessionId>,
}

/// The watches of a stripe. While the lock is held no watch is dropped.
struct Watched {
    by_session: HashMap<SessionId, Weak<Watch>, RandomState>,
    /// The tick at which a slot of any of the sessions was last emptied. Only reads that discover
    /// their sessions (`warm`) compare with it, because they cannot watch the sessions beforehand.
    /// The loss of another session of the stripe costs such a row its slot and has no other effect.
    lost_at: Tick,
}

impl Watches {
    pub(super) fn new() -> Self {
        let hasher = RandomState::default();
        let stripe = |_| {
            let by_session = HashMap::with_hasher(hasher.clone());
            let watches = Mutex::new(Watched { by_session, lost_at: 0 });
            Stripe { watches, waiters: Waiters::default() }
        };
        let stripes = (0..STRIPES).map(stripe).collect();
        Self { clock: Clock::default(), reset_at: AtomicU64::new(0), hasher, stripes }
    }

    fn stripe(&self, session: SessionId) -> &Stripe {
        // The maps take the lowest and the highest bits of the same hash.
        &self.stripes[(self.hasher.hash_one(session) >> 32) as usize % STRIPES]
    }

    fn watched(&self, session: SessionId) -> MutexGuard<'_, Watched> {
        lock(&self.stripe(session).watches)
    }

    pub(super) fn waiters(&self, session: SessionId) -> &Waiters<SessionId> {
        &self.stripe(session).waiters
    }

    /// Begins to watch a session, or shares the existing watch.
    pub(super) fn watch(self: &Arc<Self>, session: SessionId) -> Arc<Watch> {
        self.watched(session).watch(self, session)
    }

    /// Watches a session as if from that tick on.
    pub(super) fn watch_since(self: &Arc<Self>, session: SessionId, since: Tick) -> Arc<Watch> {
        let (watch, lost_at) = {
            let mut watched = self.watched(session);
            (watched.watch(self, session), watched.lost_at)
        };
        if lost_at > since {
            raise(&mut watch.history().lost_at, lost_at);
        }
        watch
    }

    /// Records that the cache has dropped the session's row. To be called with the slot emptied
    /// already: a read that begins after the tick must not have begun before the row was gone.
    pub(super) fn record_eviction(self: &Arc<Self>, session: SessionId) -> Arc<Watch> {
        let watch = self.watch(session);
        self.record_loss(session);
        watch
    }

    /// Records that what is being read of the session may be stale.
    pub(super) fn record_loss(&self, session: SessionId) {
        self.record(session, |history, now| raise(&mut history.lost_at, now));
    }

    /// Records that every holder of the session's row must read it again.
    pub(super) fn record_doubt(&self, session: SessionId) {
        self.record(session, |history, now| {
            raise(&mut history.lost_at, now);
            raise(&mut history.commanded_at, now);
        });
    }

    /// Records that the session's row was removed, or is no longer to be used.
    pub(super) fn record_removal(&self, session: SessionId) {
        self.record(session, |history, now| {
            raise(&mut history.lost_at, now);
            raise(&mut history.commanded_at, now);
            raise(&mut history.removed_at, now);
        });
    }

    fn record(&self, session: SessionId, change: impl FnOnce(&mut History, Tick)) {
        let (watch, now) = {
            let mut watched = self.watched(session);
            let now = self.clock.tick();
            raise(&mut watched.lost_at, now);
            (watched.find(session), now)
        };
        // Changed without the stripe's lock, and dropped without it: it may be the last reference.
        if let Some(watch) = watch {
            change(&mut watch.history(), now);
        }
    }

    /// Records that targets were reset.
    pub(super) fn record_reset(&self) {
        self.reset_at.fetch_max(self.clock.tick(), Ordering::AcqRel);
    }

    fn reset_at(&self) -> Tick {
        self.reset_at.load(Ordering::Acquire)
    }

    /// Returns a number that spreads sessions evenly and is always the same for one session.
    pub(super) fn hash(&self, session: SessionId) -> u64 {
        self.hasher.hash_one(session)
    }

    /// The number of watches and of waiters.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        let stripes = self
            .stripes
            .iter()
            .map(|stripe| (lock(&stripe.watches).by_session.len(), stripe.waiters.len()));
        stripes.fold((0, 0), |sum, len| (sum.0 + len.0, sum.1 + len.1))
    }
}

impl Watched {
    fn find(&self, session: SessionId) -> Option<Arc<Watch>> {
        self.by_session.get(&session).and_then(Weak::upgrade)
    }

    fn watch(&mut self, watches: &Arc<Watches>, session: SessionId) -> Arc<Watch> {
        if let Some(watch) = self.find(session) {
            return watch;
        }
        let watch =
            Arc::new(Watch { session, watches: Arc::clone(watches), history: Mutex::default() });
        self.by_session.insert(session, Arc::downgrade(&watch));
        watch
    }
}

fn raise(tick: &mut Tick, to: Tick) {
    *tick = to.max(*tick);
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").finish_non_exhaustive()
    }
}

/// Keeps the history of one session.
pub(super) struct Watch {
    session: SessionId,
    watches: Arc<Watches>,
    history: Mutex<History>,
}

impl Watch {
    fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    /// Records a row that was read, written or held. Of two rows with different workspaces the
    /// earlier one was ended by a command, of this process or of another one.
    pub(super) fn record_row(&self, revision: Revision, workspace: WorkspaceId) {
        let mut history = self.history();
        let now = self.watches.clock.tick();
        raise(&mut history.seen_at, now);
        if history.see(revision, workspace) {
            raise(&mut history.commanded_at, now);
        }
    }

    /// Records that a command of this process has written the row.
    pub(super) fn record_command(&self) {
        let mut history = self.history();
        raise(&mut history.commanded_at, self.watches.clock.tick());
    }

    pub(super) fn may_be_commanded(&self, began: Tick) -> bool {
        policy::may_be_commanded(&self.history(), began)
    }

    pub(super) fn is_moved(&self, row: (Revision, WorkspaceId), began: Tick) -> bool {
        policy::is_moved(&self.history(), row, began)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.watches.watched(self.session);
        // Another task may have created a new one in the meantime.
        if watched.by_session.get(&self.session).is_some_and(|watch| watch.strong_count() == 0) {
            watched.by_session.remove(&self.session);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Proof of when a read or a write began, to be shown with the row that it brings.
///
/// The *optimistic* part of the cache: no statement locks anything. The token is taken before the
/// statement is sent, and when the row arrives the history of its session tells whether the row may
/// fill an empty slot. The token holds the session's watch meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct ReadToken {
    /// When the statement began and, of a write, was answered.
    pub(super) stamp: Stamp,
    /// The time at which the statement began.
    pub(crate) at: Instant,
    pub(super) watch: Arc<Watch>,
}

impl ReadToken {
    /// Returns `true` if the row cannot be older than what was seen of its session.
    pub(super) fn may_fill(&self, revision: Revision) -> bool {
        let history = self.watch.history();
        policy::may_fill(&history, self.watch.watches.reset_at(), revision, self.stamp.began())
    }

    /// Makes the entry current if its row may still fill the slot. Nothing is recorded between the
    /// check and the change.
    pub(super) fn confirm(&self, entry: &CachedRow) -> bool {
        let history = self.watch.history();
        let reset_at = self.watch.watches.reset_at();
        let confirmed =
            policy::may_fill(&history, reset_at, entry.row.revision, self.stamp.began());
        if confirmed {
            entry.make_current();
        }
        confirmed
    }

    /// Returns `true` if a read with this token that has found no row proves nothing: a row was
    /// seen since the token was taken.
    pub(crate) fn may_have_row(&self) -> bool {
        policy::may_have_row(&self.watch.history(), self.stamp.began())
    }

    /// Returns `true` if targets were reset since the token was taken.
    pub(super) fn is_invalidated(&self) -> bool {
        policy::is_invalidated(self.watch.watches.reset_at(), self.stamp.began())
    }
}

/// A token for a read that finds out which sessions it reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BulkReadToken {
    pub(super) began: Tick,
    pub(super) at: Instant,
}
