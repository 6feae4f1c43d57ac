//! What happens to a session, for those who must not miss it: reads and writes under way, rows that
//! are held outside of the cache, and waiters.
//!
//! A [`Watch`] is the record of one session. It exists while somebody holds it, so the records take
//! no more room than what is under way, and no answer about one session depends on another one.

use crate::{
    Revision, SessionId, WorkspaceId,
    clock::{Clock, Tick},
    sync::lock,
};
use foldhash::fast::RandomState;
use std::{
    collections::HashMap,
    fmt,
    hash::BuildHasher,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// Bounds what is looked through, and locked, to find a session's waiters.
const STRIPES: usize = 1024;

/// The watches and the waiters, and the logical clock that orders reads, writes, losses and
/// commands of this process.
pub(super) struct Watches {
    clock: Clock,
    hasher: RandomState,
    stripes: Box<[Stripe]>,
}

/// Those of some sessions. While its lock is held nobody is woken, and no waker and no watch is
/// dropped.
struct Stripe {
    /// Counts changes, so that a [`Changed`] misses none between its creation and its first poll.
    changes: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    /// When a slot of any of the sessions was emptied last. Only for reads of sessions that are not
    /// known before they are read: a loss of another session costs such a row its place in the
    /// cache, nothing else.
    lost_at: Tick,
    watches: HashMap<SessionId, Weak<Watch>, RandomState>,
    /// With holes, whose indices are in `free`.
    waiters: Vec<Option<Waiter>>,
    free: Vec<usize>,
}

struct Waiter {
    session: SessionId,
    told: bool,
    waker: Option<Waker>,
}

impl Watches {
    pub(super) fn new() -> Self {
        let hasher = RandomState::default();
        let stripe = |_| Stripe {
            changes: AtomicU64::new(0),
            inner: Mutex::new(Inner {
                lost_at: 0,
                watches: HashMap::with_hasher(hasher.clone()),
                waiters: Vec::new(),
                free: Vec::new(),
            }),
        };
        let stripes = (0..STRIPES).map(stripe).collect();
        Self { clock: Clock::default(), hasher, stripes }
    }

    /// A tick later than all before.
    pub(super) fn tick(&self) -> Tick {
        self.clock.tick()
    }

    fn stripe(&self, session: SessionId) -> &Stripe {
        // The maps take the lowest and the highest bits of the same hash.
        &self.stripes[(self.hasher.hash_one(session) >> 32) as usize % STRIPES]
    }

    /// Begins to watch a session, or joins those who do.
    pub(super) fn watch(self: &Arc<Self>, session: SessionId) -> Arc<Watch> {
        self.stripe(session).lock().watch(self, session)
    }

    /// Watches a session as if from that moment on.
    pub(super) fn watch_since(self: &Arc<Self>, session: SessionId, since: Tick) -> Arc<Watch> {
        let (watch, lost_at) = {
            let mut inner = self.stripe(session).lock();
            (inner.watch(self, session), inner.lost_at)
        };
        if lost_at > since {
            watch.happened().lost_at.raise(lost_at);
        }
        watch
    }

    /// The session's row has left the cache. To be called with the slot emptied already.
    pub(super) fn evicted(self: &Arc<Self>, session: SessionId) -> Arc<Watch> {
        let (watch, now) = {
            let mut inner = self.stripe(session).lock();
            (inner.watch(self, session), inner.lose(self.tick()))
        };
        watch.happened().lost_at.raise(now);
        watch
    }

    /// What is being read of the session may be old.
    pub(super) fn lost(&self, session: SessionId) {
        self.tell(session, |happened, now| happened.lost_at.raise(now));
    }

    /// The session's row is gone, or must be looked at anew by everybody who holds it.
    pub(super) fn removed(&self, session: SessionId) {
        self.tell(session, |happened, now| {
            happened.lost_at.raise(now);
            happened.removed_at.raise(now);
        });
    }

    fn tell(&self, session: SessionId, change: impl FnOnce(&mut Happened, Tick)) {
        let (watch, now) = {
            let mut inner = self.stripe(session).lock();
            let now = inner.lose(self.tick());
            (inner.find(session), now)
        };
        if let Some(watch) = watch {
            change(&mut watch.happened(), now);
        }
    }

    /// Wakes those who wait for changes of this session, and nobody else.
    pub(super) fn notify(&self, session: SessionId) {
        let stripe = self.stripe(session);
        let wakers: Vec<Waker> = {
            let mut inner = stripe.lock();
            stripe.changes.fetch_add(1, Ordering::Release);
            let waiters =
                inner.waiters.iter_mut().flatten().filter(|waiter| waiter.session == session);
            waiters
                .filter_map(|waiter| {
                    waiter.told = true;
                    waiter.waker.take()
                })
                .collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether anybody waits for changes of this session.
    pub(super) fn is_waited_for(&self, session: SessionId) -> bool {
        self.stripe(session).lock().waiters.iter().flatten().any(|waiter| waiter.session == session)
    }

    /// A number that is as good as random, and always the same for a session.
    pub(super) fn hash(&self, session: SessionId) -> u64 {
        self.hasher.hash_one(session)
    }

    /// Ends at the next change of this session.
    pub(super) fn changed(&self, session: SessionId) -> Changed<'_> {
        let stripe = self.stripe(session);
        Changed { stripe, session, changes: stripe.changes.load(Ordering::Acquire), index: None }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        let stripes = self.stripes.iter().map(|stripe| {
            let inner = stripe.lock();
            (inner.watches.len(), inner.waiters.iter().flatten().count())
        });
        stripes.fold((0, 0), |sum, len| (sum.0 + len.0, sum.1 + len.1))
    }
}

impl Stripe {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    /// To be dropped without the lock, as it may be the last one that holds the watch.
    fn find(&self, session: SessionId) -> Option<Arc<Watch>> {
        self.watches.get(&session).and_then(Weak::upgrade)
    }

    fn watch(&mut self, watches: &Arc<Watches>, session: SessionId) -> Arc<Watch> {
        if let Some(watch) = self.find(session) {
            return watch;
        }
        let watch =
            Arc::new(Watch { session, watches: Arc::clone(watches), happened: Mutex::default() });
        self.watches.insert(session, Arc::downgrade(&watch));
        watch
    }

    fn lose(&mut self, now: Tick) -> Tick {
        self.lost_at.raise(now);
        now
    }
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").finish_non_exhaustive()
    }
}

trait Raise {
    fn raise(&mut self, to: Self);
}

impl Raise for Tick {
    fn raise(&mut self, to: Self) {
        *self = to.max(*self);
    }
}

/// The record of one session, from when it began to be held.
pub(super) struct Watch {
    session: SessionId,
    watches: Arc<Watches>,
    happened: Mutex<Happened>,
}

#[derive(Debug, Default)]
struct Happened {
    /// What was read from before this may be older than what was seen.
    lost_at: Tick,
    removed_at: Tick,
    /// Rows below this revision were overtaken by a command.
    commanded: Option<Revision>,
    commanded_at: Tick,
    /// The greatest revision that was seen, and where it points.
    seen: Option<(Revision, WorkspaceId)>,
}

impl Happened {
    fn command(&mut self, revision: Revision, now: Tick) {
        self.commanded = self.commanded.max(Some(revision));
        self.commanded_at.raise(now);
    }
}

impl Watch {
    fn happened(&self) -> MutexGuard<'_, Happened> {
        lock(&self.happened)
    }

    /// A row was read, written or held. Of two that point to different workspaces, the earlier one
    /// was overtaken by a command, whoever gave it.
    pub(super) fn saw(&self, revision: Revision, workspace: WorkspaceId) {
        let mut happened = self.happened();
        match happened.seen {
            Some((seen, there)) => {
                if workspace != there {
                    happened.command(seen.max(revision), self.watches.tick());
                }
                if revision > seen {
                    happened.seen = Some((revision, workspace));
                }
            }
            None => happened.seen = Some((revision, workspace)),
        }
    }

    /// A command of this process has left the row at this revision.
    pub(super) fn commanded(&self, revision: Revision) {
        let now = self.watches.tick();
        self.happened().command(revision, now);
    }

    /// Whether a row of this revision, by a read or write that began then, is not older than
    /// anything that was seen.
    pub(super) fn may_fill(&self, revision: Revision, began: Tick) -> bool {
        let happened = self.happened();
        happened.lost_at < began && happened.seen.is_none_or(|(seen, _)| revision >= seen)
    }

    /// Whether a command has changed or removed the row since. `None` for a row that did not exist
    /// then: no revision orders it against what was commanded before.
    pub(super) fn is_commanded(&self, revision: Option<Revision>, began: Tick) -> bool {
        let happened = self.happened();
        let overtaken = match revision {
            Some(revision) => happened.commanded.is_some_and(|commanded| commanded > revision),
            None => happened.commanded_at > began,
        };
        happened.removed_at > began || overtaken
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut inner = self.watches.stripe(self.session).lock();
        // Somebody may have made a new one in the meantime.
        if inner.watches.get(&self.session).is_some_and(|watch| watch.strong_count() == 0) {
            inner.watches.remove(&self.session);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Ends at a change of one session after its creation. Registers at its first poll, without an
/// allocation if others have waited before.
pub(crate) struct Changed<'a> {
    stripe: &'a Stripe,
    session: SessionId,
    changes: u64,
    index: Option<usize>,
}

impl Future for Changed<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut guard = self.stripe.lock();
        let inner = &mut *guard;
        let Some(index) = self.index else {
            if self.stripe.changes.load(Ordering::Relaxed) != self.changes {
                // Perhaps of another session, which costs one look.
                return Poll::Ready(());
            }
            let waiter = Some(Waiter {
                session: self.session,
                told: false,
                waker: Some(cx.waker().clone()),
            });
            let index = inner.free.pop().unwrap_or(inner.waiters.len());
            match inner.waiters.get_mut(index) {
                Some(hole) => *hole = waiter,
                None => inner.waiters.push(waiter),
            }
            drop(guard);
            self.index = Some(index);
            return Poll::Pending;
        };
        let Some(waiter) = inner.waiters.get_mut(index).and_then(Option::as_mut) else {
            return Poll::Ready(());
        };
        if waiter.told {
            return Poll::Ready(());
        }
        let same = waiter.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        let replaced = if same { None } else { waiter.waker.replace(cx.waker().clone()) };
        drop(guard);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        let Some(index) = self.index else { return };
        let mut inner = self.stripe.lock();
        let waiter = inner.waiters.get_mut(index).and_then(Option::take);
        if waiter.is_some() {
            inner.free.push(index);
        }
        drop(inner);
        drop(waiter);
    }
}
