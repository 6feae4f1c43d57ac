//! What this process has last seen of each session's row: a register that only moves to greater
//! revisions.
//!
//! The cache may drop an entry at any time, and then its slot is empty. Whoever fills an *empty*
//! slot therefore shows a [`ReadToken`] taken before it began to read: if the session's slot was
//! emptied since, or a greater revision was seen, what was read may be old and is not kept. No
//! tombstones, no clock but the logical one.
//!
//! Whoever holds an entry is told what becomes of it by its [`State`]; an entry that is not in its
//! slot any more goes on [watching](watch) its session, so that a command is noticed whatever the
//! cache could keep.

pub(crate) mod absent;
pub(crate) mod usage;
pub(crate) mod watch;

use crate::{
    Binding, Previous, Revision, SessionId, Target, WorkspaceId,
    binding::Row,
    cache::usage::{Marks, Use},
    clock::{Stamp, Tick},
    compact_instant::CompactInstant,
    settings::Settings,
    sync::lock,
    workspace::WorkspaceState,
};
use foldhash::fast::RandomState;
use moka::{notification::RemovalCause, ops::compute::Op, sync::Cache};
use std::{
    collections::HashMap,
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    },
};
use tokio::time::{Duration, Instant};
use watch::{Changed, Watch, Watches};

/// A row and the workspace it points into, so that a cached call looks nothing else up. There are
/// as many as sessions are cached, so what few of them need is in a box.
#[derive(Debug)]
pub(crate) struct CachedRow {
    pub(crate) row: Row,
    /// The row's workspace, in the row's epoch.
    pub(crate) workspace_state: Arc<WorkspaceState>,
    read: CompactInstant,
    /// There is such a row in the store.
    pub(crate) stored: bool,
    pub(crate) usage: Use,
    pub(crate) marks: Marks,
    state: AtomicU8,
    /// When the last read, or the write, began that has brought this revision.
    began: AtomicU64,
    /// When the write was answered; 0 if it was read.
    answered: AtomicU64,
    /// The version of what is known of the workspace in which the row was last found to be what is
    /// to be dialed, or 0.
    settled_in: AtomicU32,
    rest: OnceLock<Box<Rest>>,
}

/// What there is to be remembered of few rows.
#[derive(Debug, Default)]
struct Rest {
    previous: Option<Previous>,
    /// It was written by a group repair, which returns no rows: what the row names is known, its
    /// revision is a later one. When that was.
    ahead: Option<NonZeroU64>,
    /// Handles that wait to be superseded.
    waited: AtomicU32,
    /// Told what happens to the session, once the entry is not in its slot any more.
    watch: OnceLock<Arc<Watch>>,
}

/// Whether the register holds an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Current,
    /// A later row came.
    Replaced,
    /// The register does not hold it: not yet, for want of memory, or because it may be old. It is
    /// worth a look at the slot.
    Evicted,
    /// An order took it away: the row must be read anew.
    Removed,
}

/// Not known to be right: an eviction may be under way that it would undo. Nobody gets to see it in
/// the slot.
const NEW: u8 = 0;
const CURRENT: u8 = 1;
const REPLACED: u8 = 2;
const EVICTED: u8 = 3;
const REMOVED: u8 = 4;

impl CachedRow {
    /// The row is in the epoch of the workspace state.
    pub(crate) fn new(
        row: Binding,
        workspace_state: Arc<WorkspaceState>,
        stored: bool,
        read: Instant,
    ) -> Arc<Self> {
        let Binding { session, target, previous, revision, .. } = row;
        let rest = previous.map(|previous| Rest { previous: Some(previous), ..Rest::default() });
        Arc::new(Self::with_rest(
            Row { session, target, revision },
            workspace_state,
            stored,
            read.into(),
            rest,
        ))
    }

    fn with_rest(
        row: Row,
        workspace_state: Arc<WorkspaceState>,
        stored: bool,
        read: CompactInstant,
        rest: Option<Rest>,
    ) -> Self {
        Self {
            row,
            workspace_state,
            read,
            stored,
            usage: Use::default(),
            marks: Marks::default(),
            state: AtomicU8::new(NEW),
            began: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            settled_in: AtomicU32::new(0),
            rest: rest.map_or_else(OnceLock::new, |rest| Box::new(rest).into()),
        }
    }

    /// The whole row.
    pub(crate) fn binding(&self) -> Binding {
        let Row { session, target, revision } = self.row.clone();
        Binding::new(session, self.workspace(), target, revision)
            .with_previous(self.previous())
            .with_epoch(self.workspace_state.epoch())
    }

    /// When the read or write began whose answer it is.
    pub(crate) fn read(&self) -> Instant {
        self.read.into()
    }

    /// How many handles wait to be superseded, if one ever has.
    pub(crate) fn waited(&self) -> Option<&AtomicU32> {
        self.rest.get().map(|rest| &rest.waited)
    }

    pub(crate) fn make_waited(&self) -> &AtomicU32 {
        &self.rest().waited
    }

    fn rest(&self) -> &Rest {
        self.rest.get_or_init(Box::default)
    }

    fn previous(&self) -> Option<Previous> {
        self.rest.get().and_then(|rest| rest.previous)
    }

    fn ahead(&self) -> Option<Tick> {
        self.rest.get().and_then(|rest| rest.ahead).map(NonZeroU64::get)
    }

    /// It is not older than that.
    pub(crate) fn read_at(&self, token: &ReadToken) {
        self.began.store(token.stamp.began(), Ordering::Relaxed);
        self.answered.store(token.stamp.answered().unwrap_or(0), Ordering::Relaxed);
    }

    /// It is used without being kept, and goes on watching its session.
    pub(crate) fn stray(&self, token: &ReadToken) {
        self.read_at(token);
        self.leave(&token.watch, EVICTED);
    }

    /// Another read has brought the same revision: it was still the row's then, so what was written
    /// before has missed it.
    pub(crate) fn read_again(&self, token: &ReadToken) {
        self.began.fetch_max(token.stamp.began(), Ordering::Relaxed);
        self.answered.fetch_max(token.stamp.answered().unwrap_or(0), Ordering::Relaxed);
    }

    /// When the statement ran that has brought the row.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::written(self.began.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed))
    }

    /// Whether the row's revision is a later one than the entry's.
    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead().is_some()
    }

    /// The same row after a group repair, which has landed at that moment.
    pub(crate) fn repaired(&self, target: &Arc<Target>, landed: Tick) -> Arc<Self> {
        let mut row = self.row.clone();
        let mut rest =
            Rest { previous: self.previous(), ahead: NonZeroU64::new(landed), ..Rest::default() };
        if let Some(left) = row.target.replace(Arc::clone(target))
            && left.agent != target.agent
        {
            rest.previous = Some(Previous::new(left.agent, left.generation));
        }
        let word = |of: &AtomicU64| AtomicU64::new(of.load(Ordering::Relaxed));
        Arc::new(Self {
            began: word(&self.began),
            answered: word(&self.answered),
            ..Self::with_rest(
                row,
                Arc::clone(&self.workspace_state),
                self.stored,
                self.read,
                Some(rest),
            )
        })
    }

    /// Whether a row of the same revision, read since then, says more than this.
    fn is_behind(&self, read: Stamp) -> bool {
        // Read after the group repair has landed: the statement has not found the row, which may
        // have been locked.
        read.answered().is_none() && self.ahead().is_some_and(|landed| read.began() > landed)
    }

    pub(crate) fn workspace(&self) -> WorkspaceId {
        self.workspace_state.workspace()
    }

    /// Returns `true` if both rows point into one workspace in one epoch. If not, a dial that was
    /// begun by the one row proves nothing about the other.
    pub(crate) fn points_where(&self, other: &Self) -> bool {
        let place = |row: &Self| (row.workspace(), row.workspace_state.epoch());
        place(self) == place(other)
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

    pub(crate) fn is_current(&self) -> bool {
        self.state() == State::Current
    }

    /// Whether it is on its way out of its slot, or out already. Not so if it is not known to be
    /// right yet.
    pub(crate) fn has_left(&self) -> bool {
        self.state.load(Ordering::Acquire) > CURRENT
    }

    /// It may be seen in its slot, unless it has lost that already.
    fn keep(&self) {
        let _ = self.state.compare_exchange(NEW, CURRENT, Ordering::AcqRel, Ordering::Acquire);
    }

    /// It is not in its slot any more. The first reason stays.
    fn leave(&self, watch: &Arc<Watch>, reason: u8) {
        // A row that does not exist was not seen.
        if self.stored {
            watch.saw(self.row.revision, self.workspace());
        }
        // Before the state tells to look at it.
        self.rest().watch.get_or_init(|| Arc::clone(watch));
        let held = |state: u8| (state == NEW || state == CURRENT).then_some(reason);
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, held);
    }

    /// Whether a command has changed or removed the row since it was read, if it is not in its slot
    /// any more.
    pub(crate) fn is_commanded(&self) -> bool {
        let watch = self.rest.get().and_then(|rest| rest.watch.get());
        let revision = self.stored.then_some(self.row.revision);
        watch.is_some_and(|watch| watch.is_commanded(revision, self.began.load(Ordering::Relaxed)))
    }

    /// Whether the row is known to be what is to be dialed in this version of what is known of the
    /// workspace.
    pub(crate) fn is_settled_in(&self, version: u32) -> bool {
        self.settled_in.load(Ordering::Relaxed) == version
    }

    pub(crate) fn set_settled_in(&self, version: u32) {
        self.settled_in.store(version, Ordering::Relaxed);
    }
}

/// Taken before a read or a write, to be shown with its answer. Holds the session's watch
/// meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct ReadToken {
    stamp: Stamp,
    pub(crate) at: Instant,
    watch: Arc<Watch>,
}

/// Taken before a read of sessions that are not known before they are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadTokens {
    began: Tick,
    at: Instant,
}

/// A row that may have been replaced by a transaction whose end nobody reported.
#[derive(Clone, Copy, Debug)]
struct Uncertain {
    /// A row at this revision or a later one shows that the transaction has ended.
    until_revision: Revision,
    until: Instant,
}

/// How long the row of an uncertain session is read at every call.
const UNCERTAIN_FOR: Duration = Duration::from_secs(60);

/// The register of rows.
#[derive(Debug)]
pub(crate) struct RowCache {
    /// A slot that holds no entry makes its session wait for an eviction that is under way: a value
    /// is put into a slot before its predecessor is evicted, or after that was told to the
    /// listener.
    cache: Cache<SessionId, Option<Arc<CachedRow>>, RandomState>,
    watches: Arc<Watches>,
    /// When the targets of a workspace were last dropped by order.
    reset_at: AtomicU64,
    uncertain: Mutex<HashMap<SessionId, Uncertain>>,
    /// Its length, so that the usual case takes no lock.
    uncertain_len: AtomicUsize,
}

/// What becomes of a row that is learned.
enum Learned {
    /// It is in the slot, which held an entry before.
    Kept,
    /// It is in the slot, which was empty; an eviction may be under way that it would undo.
    Filled,
    /// Another one is in the slot, and at least as good.
    Known(Arc<CachedRow>),
    /// It may be old.
    NotKept,
}

impl RowCache {
    pub(crate) fn new(settings: &Settings) -> Self {
        let watches = Arc::new(Watches::new());
        let evictions = Arc::clone(&watches);
        let cache = Cache::builder()
            .max_capacity(settings.cache_capacity)
            // Bounds memory only. What is fresh is decided with tokio's clock, which moka does not
            // know.
            .time_to_idle(settings.cache_time_to_idle)
            .eviction_listener(
                move |session: Arc<SessionId>, entry: Option<Arc<CachedRow>>, cause| {
                    let Some(entry) = entry.filter(|_| cause != RemovalCause::Replaced) else {
                        return;
                    };
                    let watch = evictions.evicted(*session);
                    entry.leave(&watch, EVICTED);
                },
            )
            .build_with_hasher(RandomState::default());
        Self {
            cache,
            watches,
            reset_at: AtomicU64::new(0),
            uncertain: Mutex::default(),
            uncertain_len: AtomicUsize::new(0),
        }
    }

    pub(crate) fn get(&self, session: SessionId) -> Option<Arc<CachedRow>> {
        // One that is not known to be right, or is known to be on its way out, is not there for
        // anybody.
        self.cache.get(&session).flatten().filter(|entry| entry.state() != State::Evicted)
    }

    /// To be taken before the read or write whose result is to be learned.
    pub(crate) fn read_token(&self, session: SessionId) -> ReadToken {
        let watch = self.watches.watch(session);
        ReadToken { stamp: Stamp::read(self.tick()), at: Instant::now(), watch }
    }

    /// For a read of sessions that are not known before they are read.
    pub(crate) fn read_tokens(&self) -> ReadTokens {
        ReadTokens { began: self.tick(), at: Instant::now() }
    }

    /// The one of these that is the session's.
    pub(crate) fn read_token_of(&self, tokens: ReadTokens, session: SessionId) -> ReadToken {
        let ReadTokens { began, at } = tokens;
        ReadToken { stamp: Stamp::read(began), at, watch: self.watches.watch_since(session, began) }
    }

    /// The ticket of a write, once it was answered.
    pub(crate) fn written(&self, token: ReadToken) -> ReadToken {
        ReadToken { stamp: Stamp::written(token.stamp.began(), self.tick()), ..token }
    }

    /// A tick later than all before.
    pub(crate) fn tick(&self) -> Tick {
        self.watches.tick()
    }

    /// A command of this process has left the session's row at this revision.
    pub(crate) fn commanded(&self, session: SessionId, revision: Revision) {
        let watch = self.watches.watch(session);
        watch.commanded(revision);
        if self.get(session).is_none() {
            // The cache could not keep what was written: an entry that is being evicted may be all
            // that there is.
            let _ = self.cache.entry(session).and_compute_with(|current| match current {
                None => Op::Put(None),
                Some(_) => Op::Nop,
            });
            self.empty(session);
        }
        self.watches.notify(session);
    }

    /// Ends when this session's slot has changed or a command has come, and for no other session's
    /// sake. Sees every change after this call, also one before its first poll.
    pub(crate) fn changed(&self, session: SessionId) -> Changed<'_> {
        self.watches.changed(session)
    }

    /// Whether what was read may fill an empty slot.
    fn may_fill(&self, row: &Row, token: &ReadToken) -> bool {
        !self.is_void(token) && token.watch.may_fill(row.revision, token.stamp.began())
    }

    /// Keeps the entry unless a later one was seen; returns what is to be used from here on.
    pub(crate) fn learn(&self, new: Arc<CachedRow>, token: &ReadToken) -> Arc<CachedRow> {
        let session = new.row.session;
        new.read_at(token);
        // Before anything is looked at: what is read by others and is behind this must not fill the
        // slot.
        token.watch.saw(new.row.revision, new.workspace());
        if self.is_uncertain(session, new.row.revision, new.read()) {
            new.leave(&token.watch, EVICTED);
            return new;
        }
        let mut learned = Learned::NotKept;
        let _ = self.cache.entry(session).and_compute_with(|current| {
            let (op, became) = match current.and_then(|current| current.into_value()) {
                Some(current) if current.row.revision > new.row.revision => {
                    (Op::Nop, Learned::Known(current))
                }
                Some(current)
                    if current.row.revision == new.row.revision
                        && current.workspace_state.epoch() >= new.workspace_state.epoch()
                        && !current.is_behind(token.stamp) =>
                {
                    current.read_again(token);
                    (Op::Nop, Learned::Known(current))
                }
                // What is there may be old itself, so being later than that says nothing.
                Some(current)
                    if current.state() == State::Evicted && !self.may_fill(&new.row, token) =>
                {
                    (Op::Nop, Learned::NotKept)
                }
                Some(current) => {
                    new.marks.inherit(&current.marks);
                    current.leave(&token.watch, REPLACED);
                    new.keep();
                    (Op::Put(Some(Arc::clone(&new))), Learned::Kept)
                }
                None if self.may_fill(&new.row, token) => {
                    (Op::Put(Some(Arc::clone(&new))), Learned::Filled)
                }
                None => (Op::Nop, Learned::NotKept),
            };
            learned = became;
            op
        });
        match learned {
            Learned::Kept => self.watches.notify(session),
            Learned::Filled => {
                // An eviction that was under way empties the slot before it counts as a loss, and
                // both before a value is put there. A hint that found the slot empty has counted as
                // one before that. By now the loss shows.
                fence(Ordering::SeqCst);
                if self.may_fill(&new.row, token) {
                    new.keep();
                } else {
                    new.leave(&token.watch, self.why_not_kept(token));
                    self.discard(&new);
                }
                self.watches.notify(session);
            }
            Learned::Known(current) => return current,
            Learned::NotKept => {
                new.leave(&token.watch, self.why_not_kept(token));
                // It may say that the session was pointed elsewhere, and nothing in the slot will.
                self.watches.notify(session);
            }
        }
        new
    }

    /// A group repair that has landed at that moment has written the row, if it still was as in
    /// this entry. What the slot holds by now is not touched if it is another one.
    pub(crate) fn repaired(
        &self,
        entry: &Arc<CachedRow>,
        target: &Arc<Target>,
        landed: Tick,
    ) -> Option<Arc<CachedRow>> {
        let session = entry.row.session;
        let watch = self.watches.watch(session);
        let mut replaced_by = None;
        let _ = self.cache.entry(session).and_compute_with(|current| {
            match current.and_then(|e| e.into_value()) {
                Some(current)
                    if Arc::ptr_eq(&current, entry) && entry.state() == State::Current =>
                {
                    let repaired = entry.repaired(target, landed);
                    entry.leave(&watch, REPLACED);
                    repaired.marks.inherit(&entry.marks);
                    repaired.keep();
                    replaced_by = Some(Arc::clone(&repaired));
                    Op::Put(Some(repaired))
                }
                _ => Op::Nop,
            }
        });
        if replaced_by.is_some() {
            self.watches.notify(session);
        }
        replaced_by
    }

    fn why_not_kept(&self, token: &ReadToken) -> u8 {
        if self.is_void(token) { REMOVED } else { EVICTED }
    }

    /// Takes this very entry out of its slot.
    fn discard(&self, entry: &Arc<CachedRow>) {
        let _ = self.cache.entry(entry.row.session).and_compute_with(|current| match current {
            Some(current)
                if current.value().as_ref().is_some_and(|current| Arc::ptr_eq(current, entry)) =>
            {
                Op::Remove
            }
            _ => Op::Nop,
        });
    }

    /// The next call reads the row anew, and no read that is under way fills the slot.
    pub(crate) fn remove(&self, session: SessionId) {
        self.take_out(session, |_| REMOVED);
    }

    /// A read that began with the ticket has found no row. What has come since then may be there
    /// all the same, or was deleted before that read: who holds it must look at the row to know.
    pub(crate) fn not_found(&self, session: SessionId, token: &ReadToken) {
        let began = token.stamp.latest();
        self.take_out(
            session,
            |entry| if entry.stamp().latest() > began { EVICTED } else { REMOVED },
        );
    }

    fn take_out(&self, session: SessionId, reason: impl FnOnce(&CachedRow) -> u8) {
        let watch = self.watches.watch(session);
        let mut empty = false;
        let _ = self.cache.entry(session).and_compute_with(|current| {
            self.watches.removed(session);
            match current.and_then(|current| current.into_value()) {
                Some(entry) => {
                    entry.leave(&watch, reason(&entry));
                    Op::Remove
                }
                None => {
                    empty = true;
                    // Waits for an eviction that is under way, so that its entry is told as well.
                    Op::Put(None)
                }
            }
        });
        if empty {
            self.empty(session);
        }
        self.watches.notify(session);
    }

    /// Ends a wait for an eviction.
    fn empty(&self, session: SessionId) {
        let _ = self.cache.entry(session).and_compute_with(|current| match current {
            Some(current) if current.value().is_none() => Op::Remove,
            _ => Op::Nop,
        });
    }

    /// Another process has written the session's row at this revision, or removed it (`None`). Says
    /// whether a row is cached that does not show it.
    pub(crate) fn hear(&self, session: SessionId, revision: Option<Revision>) -> bool {
        // A read that is under way may bring what was there before. First, so that it is either not
        // kept, or found here.
        self.watches.lost(session);
        fence(Ordering::SeqCst);
        self.below(session, revision).is_some()
    }

    /// What is cached if it does not show this revision, or at all if there is to be none.
    pub(crate) fn below(
        &self,
        session: SessionId,
        revision: Option<Revision>,
    ) -> Option<Arc<CachedRow>> {
        let entry = self.cache.get(&session).flatten().filter(|entry| !entry.has_left())?;
        revision.is_none_or(|revision| entry.row.revision < revision).then_some(entry)
    }

    /// Whether somebody waits for changes of the session.
    pub(crate) fn is_waited_for(&self, session: SessionId) -> bool {
        self.watches.is_waited_for(session)
    }

    /// All that are cached, in no order. Does not count as a use.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Arc<CachedRow>> + Send {
        self.cache.iter().filter_map(|(_, entry)| entry)
    }

    /// Which of so many parts of all sessions this one is in.
    pub(crate) fn part_of(&self, session: SessionId, parts: u64) -> u64 {
        self.watches.hash(session) % parts
    }

    /// How many are cached, roughly.
    pub(crate) fn len(&self) -> u64 {
        self.cache.entry_count()
    }

    /// The targets of a workspace were dropped by order: no read that is under way fills an empty
    /// slot, or is an answer.
    pub(crate) fn void_tokens(&self) {
        self.reset_at.fetch_max(self.tick(), Ordering::AcqRel);
    }

    /// Whether targets may have been dropped by order since the ticket was taken.
    fn is_void(&self, token: &ReadToken) -> bool {
        self.reset_at.load(Ordering::Acquire) > token.stamp.began()
    }

    /// Somebody may write or have written this revision, and nobody will say: for a while every
    /// call of the session reads the row.
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
        lock(&self.uncertain)
    }
}

#[cfg(test)]
mod tests;
