//! The cached rows: for each session a register that only moves to greater revisions.
//!
//! An *optimistic cache* over moka. Statements lock nothing: a read or write of a row takes a
//! [`ReadToken`] before it is sent, and shows the token with its result. A row with a greater
//! revision replaces the one in its slot. An *empty* slot has no revision to compare with, because
//! moka may evict a row at any time and no tombstone stays behind. There the token decides: if the
//! slot was emptied after the read began, or a greater revision was seen, the row may be stale and
//! is not cached.
//!
//! * [`entry`]: a cached row and its state, which shows how the cache has treated it since.
//! * [`policy`]: the decisions, as pure functions.
//! * [`watch`]: what happened to a session, in ticks of the logical clock, for as long as anything
//!   about it is under way.
//! * [`uncertain`]: sessions whose row is not cached for a while.
//! * [`absent`]: sessions that have no row.
//! * [`usage`]: the sessions in use.

mod absent;
mod entry;
mod policy;
mod uncertain;
pub(crate) mod usage;
mod watch;

pub(crate) use entry::{CachedRow, State};
pub(crate) use watch::{BulkReadToken, ReadToken};

use crate::{
    Revision, SessionId, Target,
    clock::{Stamp, Tick},
    settings::Settings,
    waiters::{Changed, Waiters},
};
use absent::AbsentSessions;
use foldhash::fast::RandomState;
use moka::{notification::RemovalCause, ops::compute::Op, sync::Cache};
use policy::{Keep, NewRow, winner};
use std::sync::Arc;
use tokio::time::Instant;
use uncertain::UncertainSessions;
use watch::{Watch, Watches};

/// The cached rows of all sessions.
#[derive(Debug)]
pub(crate) struct RowCache {
    slots: Cache<SessionId, Slot, RandomState>,
    watches: Arc<Watches>,
    uncertain: UncertainSessions,
    absent: AbsentSessions,
}

/// `None` only for the time that [`RowCache::await_eviction`] takes.
type Slot = Option<Arc<CachedRow>>;

impl RowCache {
    pub(crate) fn new(settings: &Settings) -> Self {
        let watches = Arc::new(Watches::new());
        let evicted_from = Arc::clone(&watches);
        // Called with the slot emptied, and before another value is put there.
        let on_eviction = move |session: Arc<SessionId>, slot: Slot, cause| {
            if let Some(entry) = slot.filter(|_| cause != RemovalCause::Replaced) {
                entry.leave(&evicted_from.record_eviction(*session), State::Evicted);
            }
        };
        let slots = Cache::builder()
            .max_capacity(settings.cache_capacity)
            // Bounds memory only: moka's clock is not tokio's, which decides what is fresh.
            .time_to_idle(settings.cache_time_to_idle)
            .eviction_listener(on_eviction)
            .build_with_hasher(RandomState::default());
        let (uncertain, absent) = Default::default();
        Self { slots, watches, uncertain, absent }
    }

    /// Returns the session's entry, unless it is provisional or on its way out.
    pub(crate) fn get(&self, session: SessionId) -> Option<Arc<CachedRow>> {
        let entry = self.slots.get(&session)??;
        (entry.state() != State::Evicted).then_some(entry)
    }

    /// Returns all entries, in no order. Does not count as a use.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Arc<CachedRow>> + Send {
        self.slots.iter().filter_map(|(_, slot)| slot)
    }

    /// Returns the session's entry, as [`get`](Self::get) does, and does not count as a use. Visits
    /// all entries: the cache offers no other look-up that leaves no trace.
    pub(crate) fn peek(&self, session: SessionId) -> Option<Arc<CachedRow>> {
        if !self.slots.contains_key(&session) {
            return None;
        }
        let mut slots = self.slots.iter();
        let entry = slots.find(|(of, _)| **of == session)?.1?;
        (entry.state() != State::Evicted).then_some(entry)
    }

    /// Returns roughly how many rows are cached.
    pub(crate) fn len(&self) -> u64 {
        self.slots.entry_count()
    }

    /// Returns how many rows are cached, after the cache has caught up with what was done to it.
    pub(crate) fn count(&self) -> u64 {
        self.slots.run_pending_tasks();
        self.slots.entry_count()
    }

    /// Returns which of so many parts of all sessions this one is in.
    pub(crate) fn part_of(&self, session: SessionId, parts: u64) -> u64 {
        self.watches.hash(session) % parts
    }
}

/// Tokens, and the clock that they are stamped with.
impl RowCache {
    /// Returns the token to take before a statement is sent that reads or writes the session's row.
    pub(crate) fn read_token(&self, session: SessionId) -> ReadToken {
        let watch = self.watches.watch(session);
        ReadToken { stamp: Stamp::read(self.tick()), at: Instant::now(), watch }
    }

    /// Returns the token to take before a read that finds out which sessions it reads.
    pub(crate) fn bulk_read_token(&self) -> BulkReadToken {
        BulkReadToken { began: self.tick(), at: Instant::now() }
    }

    /// Returns the token of one session that such a read has found.
    pub(crate) fn read_token_of(&self, bulk: BulkReadToken, session: SessionId) -> ReadToken {
        let BulkReadToken { began, at } = bulk;
        let watch = self.watches.watch_since(session, began);
        ReadToken { stamp: Stamp::read(began), at, watch }
    }

    /// Returns the token of a write that was answered just now.
    pub(crate) fn written(&self, token: ReadToken) -> ReadToken {
        ReadToken { stamp: Stamp::written(token.stamp.began(), self.tick()), ..token }
    }

    /// Returns a tick that is later than all before.
    pub(crate) fn tick(&self) -> Tick {
        self.watches.clock.tick()
    }

    /// Invalidates all tokens: a reset has changed the targets of some workspace, and a read that
    /// is under way may still return the old ones.
    pub(crate) fn invalidate_tokens(&self) {
        self.watches.record_reset();
    }
}

/// Rows come in.
impl RowCache {
    /// Caches the row of a statement unless a later one is known. Returns what to use from here on.
    pub(crate) fn learn(&self, new: Arc<CachedRow>, token: &ReadToken) -> Arc<CachedRow> {
        let session = new.row.session;
        self.absent.remove(session, self.tick());
        new.set_stamp(token.stamp);
        // Before the slot is looked at, so that no older row that others have read fills it.
        token.watch.record_row(new.row.revision, new.workspace());
        if self.uncertain.forbids(session, new.row.revision, new.read()) {
            new.leave(&token.watch, State::Evicted);
            return new;
        }
        let (mut keep, mut current) = (Keep::Neither, None);
        let _ = self.slots.entry(session).and_compute_with(|slot| {
            current = slot.and_then(|slot| slot.into_value());
            let row = NewRow {
                revision: new.row.revision,
                epoch: new.workspace_state.epoch(),
                stamp: token.stamp,
                may_fill: token.may_fill(new.row.revision),
            };
            keep = winner(current.as_ref().map(|current| current.as_current()), row);
            if keep != Keep::New {
                return Op::Nop;
            }
            if let Some(current) = &current {
                replace(current, &new, &token.watch);
            }
            Op::Put(Some(Arc::clone(&new)))
        });
        match (keep, current) {
            (Keep::Current, Some(current)) => {
                if current.row.revision == new.row.revision {
                    current.read_again(token);
                }
                return current;
            }
            (Keep::New, Some(_)) => {}
            (Keep::New, None) => self.confirm(&new, token),
            (Keep::Neither | Keep::Current, _) => new.leave(&token.watch, reason_to_leave(token)),
        }
        // Also of a row that is not cached: it may name another workspace, and nothing in the slot
        // will say so.
        self.waiters(session).notify(session);
        new
    }

    /// Confirms an entry that was put into an empty slot, or takes it out again. By now every loss
    /// shows that came before the entry: moka tells of an eviction before it fills the slot anew,
    /// and a hint that found the slot empty was recorded before that.
    fn confirm(&self, new: &Arc<CachedRow>, token: &ReadToken) {
        if token.confirm(new) {
            return;
        }
        new.leave(&token.watch, reason_to_leave(token));
        let _ = self.slots.entry(new.row.session).and_compute_with(|slot| match slot {
            Some(slot) if slot.value().as_ref().is_some_and(|held| Arc::ptr_eq(held, new)) => {
                Op::Remove
            }
            _ => Op::Nop,
        });
    }

    /// Replaces an entry by the row as a group repair has written it, which has landed at that
    /// tick. Returns the new entry, or `None` if the slot holds something else by now.
    pub(crate) fn learn_group_repair(
        &self,
        entry: &Arc<CachedRow>,
        target: &Arc<Target>,
        landed: Tick,
    ) -> Option<Arc<CachedRow>> {
        let session = entry.row.session;
        let watch = self.watches.watch(session);
        let mut replaced_by = None;
        let _ = self.slots.entry(session).and_compute_with(|slot| {
            let held = slot.and_then(|slot| slot.into_value());
            if !held.is_some_and(|held| Arc::ptr_eq(&held, entry)) || !entry.is_current() {
                return Op::Nop;
            }
            let repaired = entry.after_group_repair(target, landed);
            replace(entry, &repaired, &watch);
            replaced_by = Some(Arc::clone(&repaired));
            Op::Put(Some(repaired))
        });
        if replaced_by.is_some() {
            self.waiters(session).notify(session);
        }
        replaced_by
    }
}

/// Rows go.
impl RowCache {
    /// Removes the session's row: the next call reads it again, and no read that is under way fills
    /// the slot.
    pub(crate) fn remove(&self, session: SessionId) {
        self.take_out(session, |_| State::Removed);
    }

    /// Removes the session's row, because a read with this token has found none. A row that came
    /// after that read may be there all the same, or be what was deleted before it: its holders
    /// must look at the slot, or read.
    pub(crate) fn not_found(&self, session: SessionId, token: &ReadToken) {
        let read = token.stamp.latest();
        self.take_out(session, |entry| {
            if entry.stamp().latest() > read { State::Evicted } else { State::Removed }
        });
    }

    /// Asks those who hold the session's row, which is not cached, to read it: a hint says that it
    /// has changed.
    pub(crate) fn ask_to_read(&self, session: SessionId) {
        self.watches.record_doubt(session);
        self.await_eviction(session);
        self.waiters(session).notify(session);
    }

    fn take_out(&self, session: SessionId, reason: impl FnOnce(&CachedRow) -> State) {
        let watch = self.watches.watch(session);
        let mut is_empty = false;
        let _ = self.slots.entry(session).and_compute_with(|slot| {
            // With the slot locked, so that what fills it from here on began to be read later.
            self.watches.record_removal(session);
            match slot.and_then(|slot| slot.into_value()) {
                Some(entry) => {
                    entry.leave(&watch, reason(&entry));
                    Op::Remove
                }
                None => {
                    is_empty = true;
                    Op::Nop
                }
            }
        });
        if is_empty {
            self.await_eviction(session);
        }
        self.waiters(session).notify(session);
    }

    /// Records that a command of this process has written the session's row, which was learned
    /// already.
    pub(crate) fn record_command(&self, session: SessionId) {
        let watch = self.watches.watch(session);
        watch.record_command();
        if self.get(session).is_none() {
            // The row could not be cached. An earlier entry that is being evicted may be all that
            // its holders go by.
            self.await_eviction(session);
        }
        self.waiters(session).notify(session);
    }

    /// Waits for an eviction from this slot that is under way, so that its entry has left when this
    /// returns. Only a value that is put into the slot makes moka wait.
    fn await_eviction(&self, session: SessionId) {
        let _ = self.slots.entry(session).and_compute_with(|slot| match slot {
            None => Op::Put(None),
            Some(_) => Op::Nop,
        });
        let _ = self.slots.entry(session).and_compute_with(|slot| match slot {
            Some(slot) if slot.value().is_none() => Op::Remove,
            _ => Op::Nop,
        });
    }
}

/// News and doubts about rows.
impl RowCache {
    /// Records a hint: another process has written the session's row at this revision, or removed
    /// it (`None`). Returns `true` if a row is cached that does not show it.
    pub(crate) fn record_hint(&self, session: SessionId, revision: Option<Revision>) -> bool {
        self.absent.remove(session, self.tick());
        // Before the slot is looked at, so that a row that is being read is either not cached, or
        // found here.
        self.watches.record_loss(session);
        self.cached_below(session, revision).is_some()
    }

    /// Returns the session's entry if its revision is below this one. `None`: whatever it is.
    pub(crate) fn cached_below(
        &self,
        session: SessionId,
        revision: Option<Revision>,
    ) -> Option<Arc<CachedRow>> {
        let entry = self.slots.get(&session).flatten().filter(|entry| !entry.has_left())?;
        revision.is_none_or(|revision| entry.row.revision < revision).then_some(entry)
    }

    /// Notes that a read with this token has found no row, for a second.
    pub(crate) fn note_absent(&self, session: SessionId, token: &ReadToken) {
        self.absent.insert(session, token);
    }

    /// Returns `true` if a read that began within the last second has found no row, and there was
    /// no news since.
    pub(crate) fn is_absent(&self, session: SessionId, now: Instant) -> bool {
        self.absent.contains(session, now)
    }

    /// Waits for the next change of this session: of its slot, or by a command. No change after
    /// this call is missed, also none before the first poll.
    pub(crate) fn changed(&self, session: SessionId) -> Changed<'_, SessionId> {
        self.waiters(session).changed(session)
    }

    /// Returns the list of those who wait for changes of this session.
    pub(crate) fn waiters(&self, session: SessionId) -> &Waiters<SessionId> {
        self.watches.waiters(session)
    }

    /// Returns `true` if a task waits for changes of the session.
    pub(crate) fn is_waited_for(&self, session: SessionId) -> bool {
        self.waiters(session).is_waited_for(session)
    }

    /// Marks the session as uncertain: a transaction may write, or have written, this revision, and
    /// its end will not be reported. For a while every call reads the row.
    pub(crate) fn mark_uncertain(&self, session: SessionId, until: Revision, now: Instant) {
        self.uncertain.insert(session, until, now);
        // After the mark, so that a row that fills the slot from here on is checked against it.
        self.remove(session);
    }

    /// Returns `true` if the session's row must be read by a read that begins with the call.
    pub(crate) fn must_read(&self, session: SessionId) -> bool {
        self.uncertain.contains(session)
    }
}

/// Puts `new` in the place of the entry that its slot holds. Needs no second check: it is not the
/// slot's emptiness that speaks for `new`.
fn replace(current: &CachedRow, new: &CachedRow, watch: &Arc<Watch>) {
    new.marks.inherit(&current.marks);
    current.leave(watch, State::Replaced);
    new.make_current();
}

/// Returns why a row that cannot be cached is not in its slot.
fn reason_to_leave(token: &ReadToken) -> State {
    if token.is_invalidated() { State::Removed } else { State::Evicted }
}

#[cfg(test)]
mod tests;
