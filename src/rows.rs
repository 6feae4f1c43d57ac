//! What this process has last seen of each session's row: a register that only moves to greater revisions.
//!
//! The cache may drop an entry at any time, and then its slot is empty. Whoever fills an *empty* slot therefore shows a
//! [`Ticket`] taken before it began to read: if the slot's stripe lost an entry since, what was read may be old and is
//! not kept. No tombstones, no clock.

use crate::{Binding, Previous, Revision, SessionId, Target, WorkspaceId, directory::Place, settings::Settings};
use moka::{
    notification::RemovalCause,
    ops::compute::{CompResult, Op},
    sync::Cache,
};
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
};
use tokio::{
    sync::{Notify, futures::Notified},
    time::{Duration, Instant},
};

/// A row and the workspace it points into, so that a cached call looks nothing else up.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) row: Binding,
    pub(crate) place: Arc<Place>,
    /// When it was read or written.
    pub(crate) read: Instant,
    /// There is such a row in the store.
    pub(crate) stored: bool,
    /// It was written by a group repair, which returns no rows: what the row names is known, its revision is a later one.
    /// When that was.
    ahead: Option<Moment>,
    /// By a call, since that was last written down.
    used: AtomicBool,
    state: AtomicU8,
    /// The orders that the slot's stripe had seen when the row was read.
    orders: AtomicU64,
    /// A [`Seen`], in one word.
    seen: AtomicU64,
    /// One more than the epoch of the workspace in which the row was last found to be what is to be dialed.
    plain_in: AtomicU64,
}

/// A point in the order of this process's statements. No clock: of two that fall into one instant, one is earlier.
pub(crate) type Moment = u64;

/// How old an entry may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// By a read that began then.
    Read(Moment),
    /// In the answer to a write of this process, which came then.
    Written(Moment),
}

impl Seen {
    const fn word(self) -> u64 {
        match self {
            Self::Read(moment) => moment << 1,
            Self::Written(moment) => moment << 1 | 1,
        }
    }

    const fn moment(self) -> Moment {
        match self {
            Self::Read(moment) | Self::Written(moment) => moment,
        }
    }
}

/// Whether the register holds an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Current,
    /// A later row came.
    Replaced,
    /// The register does not hold it: not yet, for want of memory, or because it may be old. It is worth a look at the
    /// slot.
    Evicted,
    /// An order took it away: the row must be read anew.
    Removed,
}

/// Not known to be right: an eviction may be under way that it would undo. Nobody gets to see it in the slot.
const NEW: u8 = 0;
const CURRENT: u8 = 1;
const REPLACED: u8 = 2;
const EVICTED: u8 = 3;
const REMOVED: u8 = 4;

impl Entry {
    pub(crate) fn new(row: Binding, place: Arc<Place>, stored: bool, now: Instant) -> Arc<Self> {
        let state = AtomicU8::new(NEW);
        let (orders, seen, plain_in) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self {
            row,
            place,
            read: now,
            stored,
            ahead: None,
            used: AtomicBool::new(false),
            state,
            orders,
            seen,
            plain_in,
        })
    }

    /// Before anybody else sees it: when it was read.
    pub(crate) fn read_at(&self, ticket: Ticket) {
        self.seen.store(ticket.seen.word(), Ordering::Relaxed);
        self.orders.store(ticket.orders, Ordering::Relaxed);
    }

    /// Another read has brought the same revision: it was still the row's then, so what was written before has missed it.
    pub(crate) fn read_again(&self, ticket: Ticket) {
        self.seen.fetch_max(ticket.seen.word(), Ordering::Relaxed);
    }

    /// How old it may be.
    pub(crate) fn seen(&self) -> Seen {
        let seen = self.seen.load(Ordering::Relaxed);
        if seen & 1 == 0 { Seen::Read(seen >> 1) } else { Seen::Written(seen >> 1) }
    }

    /// Whether the row's revision is a later one than the entry's.
    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    /// The same row after a group repair, which has landed at that moment.
    pub(crate) fn repaired(&self, target: &Arc<Target>, landed: Moment) -> Arc<Self> {
        let mut row = self.row.clone();
        if let Some(left) = row.target.replace(Arc::clone(target))
            && left.agent != target.agent
        {
            row.previous = Some(Previous::new(left.agent, left.generation));
        }
        let word = |of: &AtomicU64| AtomicU64::new(of.load(Ordering::Relaxed));
        Arc::new(Self {
            row,
            place: Arc::clone(&self.place),
            read: self.read,
            stored: self.stored,
            ahead: Some(landed),
            used: AtomicBool::new(self.used.load(Ordering::Relaxed)),
            state: AtomicU8::new(NEW),
            orders: word(&self.orders),
            seen: word(&self.seen),
            plain_in: AtomicU64::new(0),
        })
    }

    /// Whether a row of the same revision, read since then, says more than this.
    fn is_behind(&self, read: Seen) -> bool {
        // Read after the group repair has landed: the statement has not found the row, which may have been locked.
        matches!((self.ahead, read), (Some(landed), Seen::Read(began)) if began > landed)
    }

    /// A call has used it.
    pub(crate) fn mark_used(&self) {
        // Mostly it is marked already, and a load leaves the line shared between threads.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn workspace(&self) -> WorkspaceId {
        self.row.workspace
    }

    /// One atomic load.
    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            CURRENT => State::Current,
            REPLACED => State::Replaced,
            REMOVED => State::Removed,
            _ => State::Evicted,
        }
    }

    /// It may be seen in its slot, unless it has lost that already.
    fn keep(&self) {
        let _ = self.state.compare_exchange(NEW, CURRENT, Ordering::AcqRel, Ordering::Acquire);
    }

    /// It is not in its slot any more. The first reason stays.
    fn retire(&self, reason: u8) {
        let held = |state: u8| (state == NEW || state == CURRENT).then_some(reason);
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, held);
    }

    /// Whether the row is known to be what is to be dialed in this epoch of the workspace.
    pub(crate) fn is_plain_in(&self, epoch: u64) -> bool {
        self.plain_in.load(Ordering::Relaxed) == epoch + 1
    }

    pub(crate) fn set_plain_in(&self, epoch: u64) {
        self.plain_in.store(epoch + 1, Ordering::Relaxed);
    }
}

/// More stripes, fewer reads that are not kept because of somebody else's eviction, and fewer calls woken for nothing.
const STRIPES: usize = 1024;

/// A moment in a stripe, taken before a read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    lost: u64,
    orders: u64,
    resets: u64,
    seen: Seen,
}

/// A moment in all stripes.
#[derive(Debug)]
pub(crate) struct Tickets {
    stripes: Box<[(u64, u64)]>,
    resets: u64,
    seen: Seen,
}

#[derive(Debug)]
struct Stripe {
    lost: AtomicU64,
    /// Raised when a session is pointed elsewhere or its row goes, but not by an eviction.
    orders: AtomicU64,
    changed: Notify,
}

#[derive(Debug)]
struct Stripes {
    hasher: RandomState,
    stripes: Box<[Stripe]>,
}

impl Stripes {
    fn new() -> Self {
        let stripe = |_| Stripe { lost: AtomicU64::new(0), orders: AtomicU64::new(0), changed: Notify::new() };
        Self { hasher: RandomState::new(), stripes: (0..STRIPES).map(stripe).collect() }
    }

    fn index(&self, session: &SessionId) -> usize {
        (self.hasher.hash_one(session) % STRIPES as u64) as usize
    }

    fn of(&self, session: &SessionId) -> &Stripe {
        &self.stripes[self.index(session)]
    }
}

/// A row that may have been replaced by a transaction whose end nobody reported.
#[derive(Clone, Copy, Debug)]
struct Uncertain {
    /// A row at this revision or a later one shows that the transaction has ended.
    until_revision: Revision,
    until: Instant,
}

/// While nothing can be written down, no more sessions than this are remembered that have left the cache.
const MOST_USED_AND_GONE: usize = 100_000;

fn note_used(gone: &Mutex<Vec<SessionId>>, session: SessionId) {
    let mut gone = gone.lock().unwrap_or_else(PoisonError::into_inner);
    if gone.len() < MOST_USED_AND_GONE {
        gone.push(session);
    }
}

/// How long the row of an uncertain session is read at every call.
const UNCERTAIN_FOR: Duration = Duration::from_secs(60);

/// The register of rows.
#[derive(Debug)]
pub(crate) struct Rows {
    cache: Cache<SessionId, Arc<Entry>>,
    stripes: Arc<Stripes>,
    /// Sessions whose use was not written down before they left the cache.
    used_and_gone: Arc<Mutex<Vec<SessionId>>>,
    moments: AtomicU64,
    /// How often the targets of a workspace were dropped by order.
    resets: AtomicU64,
    uncertain: Mutex<HashMap<SessionId, Uncertain>>,
    /// Its length, so that the usual case takes no lock.
    uncertain_len: AtomicUsize,
}

impl Rows {
    pub(crate) fn new(settings: &Settings) -> Self {
        let stripes = Arc::new(Stripes::new());
        let lost = Arc::clone(&stripes);
        let used_and_gone = Arc::<Mutex<Vec<SessionId>>>::default();
        let gone = Arc::clone(&used_and_gone);
        let cache = Cache::builder()
            .max_capacity(settings.cache_capacity)
            // Bounds memory only. What is fresh is decided with tokio's clock, which moka does not know.
            .time_to_idle(settings.cache_idle)
            .eviction_listener(move |session: Arc<SessionId>, entry: Arc<Entry>, cause| {
                if cause != RemovalCause::Replaced {
                    entry.retire(EVICTED);
                    lost.of(&session).lost.fetch_add(1, Ordering::AcqRel);
                    if entry.used.swap(false, Ordering::Relaxed) {
                        note_used(&gone, *session);
                    }
                }
            })
            .build();
        Self {
            cache,
            stripes,
            used_and_gone,
            moments: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            uncertain: Mutex::default(),
            uncertain_len: AtomicUsize::new(0),
        }
    }

    pub(crate) fn get(&self, session: SessionId) -> Option<Arc<Entry>> {
        // One that is not known to be right, or is known to be on its way out, is not there for anybody.
        self.cache.get(&session).filter(|entry| entry.state() != State::Evicted)
    }

    /// To be taken before the read whose result is to be learned.
    pub(crate) fn ticket(&self, session: SessionId) -> Ticket {
        let stripe = self.stripes.of(&session);
        Ticket {
            lost: stripe.lost.load(Ordering::Acquire),
            orders: stripe.orders.load(Ordering::Acquire),
            resets: self.resets(),
            seen: Seen::Read(self.moment()),
        }
    }

    /// For a read of sessions that are not known before they are read.
    pub(crate) fn tickets(&self) -> Tickets {
        let moment = |stripe: &Stripe| (stripe.lost.load(Ordering::Acquire), stripe.orders.load(Ordering::Acquire));
        let stripes = self.stripes.stripes.iter().map(moment).collect();
        Tickets { stripes, resets: self.resets(), seen: Seen::Read(self.moment()) }
    }

    /// The one of these that is the session's.
    pub(crate) fn ticket_of(&self, tickets: &Tickets, session: SessionId) -> Ticket {
        let (lost, orders) = tickets.stripes[self.stripes.index(&session)];
        Ticket { lost, orders, resets: tickets.resets, seen: tickets.seen }
    }

    /// The ticket of a write, once it was answered.
    pub(crate) fn written(&self, ticket: Ticket) -> Ticket {
        Ticket { seen: Seen::Written(self.moment()), ..ticket }
    }

    /// A moment later than all before.
    pub(crate) fn moment(&self) -> Moment {
        self.moments.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Whether an order may have changed the row since it was read: exact but for other sessions of the stripe. Only
    /// this is left of an order whose row the cache could not keep.
    pub(crate) fn may_be_ordered_since(&self, entry: &Entry) -> bool {
        self.stripes.of(&entry.row.session).orders.load(Ordering::Acquire) != entry.orders.load(Ordering::Relaxed)
    }

    /// An order of this process has pointed the session somewhere.
    pub(crate) fn ordered(&self, session: SessionId) {
        let stripe = self.stripes.of(&session);
        stripe.orders.fetch_add(1, Ordering::AcqRel);
        stripe.changed.notify_waiters();
    }

    /// Wakes at changes of this session's slot, now and then at another one's. Sees every change after this call, also
    /// one before its first poll.
    pub(crate) fn changed(&self, session: SessionId) -> Notified<'_> {
        self.stripes.of(&session).changed.notified()
    }

    /// Keeps the entry unless a later one was seen; returns what is to be used from here on.
    pub(crate) fn learn(&self, new: Arc<Entry>, ticket: Ticket) -> Arc<Entry> {
        let session = new.row.session;
        new.read_at(ticket);
        if self.is_uncertain(session, new.row.revision, new.read) {
            new.retire(EVICTED);
            return new;
        }
        let stripe = self.stripes.of(&session);
        let result = self.cache.entry(session).and_compute_with(|current| match current.map(|e| e.into_value()) {
            Some(current) if current.row.revision > new.row.revision => Op::Nop,
            Some(current) if current.row.revision == new.row.revision && !current.is_behind(ticket.seen) => {
                current.read_again(ticket);
                Op::Nop
            }
            // What is there may be old itself, so being later than that says nothing.
            Some(current)
                if current.state() == State::Evicted && stripe.lost.load(Ordering::Acquire) != ticket.lost =>
            {
                Op::Nop
            }
            Some(current) => {
                if current.workspace() != new.workspace() {
                    stripe.orders.fetch_add(1, Ordering::AcqRel);
                }
                new.used.fetch_or(current.used.load(Ordering::Relaxed), Ordering::Relaxed);
                current.retire(REPLACED);
                new.keep();
                Op::Put(Arc::clone(&new))
            }
            None if stripe.lost.load(Ordering::Acquire) == ticket.lost => Op::Put(Arc::clone(&new)),
            None => Op::Nop,
        });
        match result {
            CompResult::Inserted(entry) => {
                // An eviction that was under way empties the slot before it counts as a loss, and both before a value
                // is put there: by now the loss shows.
                if stripe.lost.load(Ordering::Acquire) == ticket.lost {
                    new.keep();
                } else {
                    self.discard(&new);
                }
                stripe.changed.notify_waiters();
                entry.into_value()
            }
            CompResult::ReplacedWith(entry) => {
                stripe.changed.notify_waiters();
                entry.into_value()
            }
            CompResult::Unchanged(entry) if entry.value().row.revision >= new.row.revision => entry.into_value(),
            CompResult::Unchanged(_) | CompResult::Removed(_) | CompResult::StillNone(_) => {
                new.retire(EVICTED);
                new
            }
        }
    }

    /// A group repair that has landed at that moment has written the row, if it still was as in this entry. What the slot
    /// holds by now is not touched if it is another one.
    pub(crate) fn repaired(&self, entry: &Arc<Entry>, target: &Arc<Target>, landed: Moment) {
        let session = entry.row.session;
        let result = self.cache.entry(session).and_compute_with(|current| match current {
            Some(current) if Arc::ptr_eq(current.value(), entry) && entry.state() == State::Current => {
                let repaired = entry.repaired(target, landed);
                entry.retire(REPLACED);
                repaired.keep();
                Op::Put(repaired)
            }
            _ => Op::Nop,
        });
        if let CompResult::ReplacedWith(_) = result {
            self.stripes.of(&session).changed.notify_waiters();
        }
    }

    /// Takes this very entry out of its slot; it may be old.
    fn discard(&self, entry: &Arc<Entry>) {
        entry.retire(EVICTED);
        let _ = self.cache.entry(entry.row.session).and_compute_with(|current| match current {
            Some(current) if Arc::ptr_eq(current.value(), entry) => Op::Remove,
            _ => Op::Nop,
        });
    }

    /// The next call reads the row anew, and no read that is under way fills the slot.
    pub(crate) fn remove(&self, session: SessionId) {
        self.take_out(session, |_| REMOVED);
    }

    /// A read that began with the ticket has found no row. What has come since then may be there all the same, or was
    /// deleted before that read: who holds it must look at the row to know.
    pub(crate) fn not_found(&self, session: SessionId, ticket: Ticket) {
        let later = |entry: &Entry| entry.seen().moment() > ticket.seen.moment();
        self.take_out(session, |entry| if later(entry) { EVICTED } else { REMOVED });
    }

    fn take_out(&self, session: SessionId, reason: impl FnOnce(&Entry) -> u8) {
        let stripe = self.stripes.of(&session);
        let _ = self.cache.entry(session).and_compute_with(|current| {
            stripe.lost.fetch_add(1, Ordering::AcqRel);
            stripe.orders.fetch_add(1, Ordering::AcqRel);
            match current {
                Some(entry) => {
                    let entry = entry.into_value();
                    entry.retire(reason(&entry));
                    Op::Remove
                }
                None => Op::Nop,
            }
        });
        stripe.changed.notify_waiters();
    }

    /// Another process has written the session's row at this revision, or removed it (`None`). Says whether a row is
    /// cached that does not show it.
    pub(crate) fn hear(&self, session: SessionId, revision: Option<Revision>) -> bool {
        let below = self.below(session, revision).is_some();
        if !below {
            // A read that is under way may bring what was there before.
            self.stripes.of(&session).lost.fetch_add(1, Ordering::AcqRel);
        }
        below
    }

    /// What is cached if it does not show this revision, or at all if there is to be none.
    pub(crate) fn below(&self, session: SessionId, revision: Option<Revision>) -> Option<Arc<Entry>> {
        self.get(session).filter(|entry| revision.is_none_or(|revision| entry.row.revision < revision))
    }

    /// All that are cached. Does not count as a use.
    pub(crate) fn entries(&self) -> Vec<Arc<Entry>> {
        self.cache.iter().map(|(_, entry)| entry).collect()
    }

    /// The sessions that calls have used since the last time.
    pub(crate) fn take_used(&self) -> Vec<SessionId> {
        let mut used = std::mem::take(&mut *self.used_and_gone.lock().unwrap_or_else(PoisonError::into_inner));
        let cached = self.cache.iter().filter(|(_, entry)| entry.used.swap(false, Ordering::Relaxed));
        used.extend(cached.map(|(session, _)| *session));
        used
    }

    /// They could not be written down.
    pub(crate) fn put_back_used(&self, sessions: &[SessionId]) {
        for session in sessions {
            match self.cache.get(session) {
                Some(entry) => entry.mark_used(),
                None => note_used(&self.used_and_gone, *session),
            }
        }
    }

    /// The targets of a workspace were dropped by order: no read that is under way fills an empty slot, teaches anything,
    /// or is an answer.
    pub(crate) fn void_tickets(&self) {
        self.resets.fetch_add(1, Ordering::AcqRel);
        for stripe in &self.stripes.stripes {
            stripe.lost.fetch_add(1, Ordering::AcqRel);
            stripe.orders.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    /// Whether targets may have been dropped by order since the ticket was taken.
    pub(crate) fn is_void(&self, ticket: Ticket) -> bool {
        self.resets() != ticket.resets
    }

    /// Somebody may write or have written this revision, and nobody will say: for a while every call of the session
    /// reads the row.
    pub(crate) fn distrust(&self, session: SessionId, until_revision: Revision, now: Instant) {
        let mut uncertain = self.uncertain();
        uncertain.retain(|_, entry| now < entry.until);
        uncertain.insert(session, Uncertain { until_revision, until: now + UNCERTAIN_FOR });
        self.uncertain_len.store(uncertain.len(), Ordering::Release);
        drop(uncertain);
        // After it was noted: who fills the slot from here on has seen the note.
        self.remove(session);
    }

    fn is_uncertain(&self, session: SessionId, revision: Revision, now: Instant) -> bool {
        if self.uncertain_len.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut uncertain = self.uncertain();
        let Some(entry) = uncertain.get(&session) else { return false };
        if revision < entry.until_revision && now < entry.until {
            return true;
        }
        uncertain.remove(&session);
        self.uncertain_len.store(uncertain.len(), Ordering::Release);
        false
    }

    /// Whether the session's row must be read by a read that begins with the call.
    pub(crate) fn must_read(&self, session: SessionId) -> bool {
        self.uncertain_len.load(Ordering::Acquire) > 0 && self.uncertain().contains_key(&session)
    }

    fn uncertain(&self) -> MutexGuard<'_, HashMap<SessionId, Uncertain>> {
        self.uncertain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
