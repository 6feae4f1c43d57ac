//! A cached row and what has become of it.
//!
//! An *immutable value with an atomic state*: the row of an entry never changes, and its [`State`]
//! only moves forward, from provisional to current and from there to the reason why it has left its
//! slot. A holder of an entry learns the state with one atomic load.

use crate::{
    Binding, Previous, Target, WorkspaceId,
    binding::Row,
    cache::{
        policy::CurrentRow,
        usage::{Marks, Use},
        watch::{ReadToken, Watch},
    },
    clock::{Stamp, Tick},
    compact_instant::CompactInstant,
    workspace::WorkspaceState,
};
use std::{
    num::NonZeroU64,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};
use tokio::time::Instant;

/// A session's row together with the state of its workspace, so that a cached call needs no second
/// look-up. There may be a million entries, so fields that only some of them need are boxed.
#[derive(Debug)]
pub(crate) struct CachedRow {
    pub(crate) row: Row,
    /// The state of the row's workspace in the row's epoch.
    pub(crate) workspace_state: Arc<WorkspaceState>,
    read: CompactInstant,
    /// The store has such a row.
    pub(crate) stored: bool,
    pub(crate) usage: Use,
    pub(crate) marks: Marks,
    /// A [`State`], or [`PROVISIONAL`].
    state: AtomicU8,
    /// The [`Stamp`], in two words. Later reads of the same revision move it forward.
    began: AtomicU64,
    /// 0 for a read.
    answered: AtomicU64,
    /// The version of the workspace state in which the row's own target was found to be the one to
    /// dial, in no doubt; 0 if in none.
    settled_in: AtomicU32,
    extra: OnceLock<Box<Extra>>,
}

/// The fields that only some cached rows need.
#[derive(Debug, Default)]
struct Extra {
    previous: Option<Previous>,
    /// When the group repair landed that has written the row. Such a repair returns no rows: the
    /// target is known, and the store's revision is later than the entry's.
    repaired_at: Option<NonZeroU64>,
    /// The number of handles that wait to be superseded.
    waiting_handles: AtomicU32,
    /// Tells whether a command has ended the row, once the entry is not in its slot any more.
    watch: OnceLock<Arc<Watch>>,
}

/// The relation of an entry to its slot in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// The entry is in its slot.
    Current = 1,
    /// A later row has taken the slot.
    Replaced,
    /// The entry is not in the slot, and nothing is known against its row: it was evicted because
    /// the cache was full, or it was not cached because it may be stale. The slot may hold a later
    /// row.
    Evicted,
    /// A command, or a row that could not be found, has emptied the slot. The row must be read
    /// again.
    Removed,
}

/// The entry is in the slot and not confirmed: an eviction that is under way may have emptied the
/// slot of a later row. Reads as [`State::Evicted`].
const PROVISIONAL: u8 = 0;

impl CachedRow {
    /// Makes an entry that is provisional. The row is in the epoch of the workspace state.
    pub(crate) fn new(
        row: Binding,
        workspace_state: Arc<WorkspaceState>,
        stored: bool,
        read: Instant,
    ) -> Arc<Self> {
        let Binding { session, target, previous, revision, .. } = row;
        let extra = previous.map(|previous| Extra { previous: Some(previous), ..Extra::default() });
        let row = Row { session, target, revision };
        Arc::new(Self::with_extra(row, workspace_state, stored, read.into(), extra))
    }

    fn with_extra(
        row: Row,
        workspace_state: Arc<WorkspaceState>,
        stored: bool,
        read: CompactInstant,
        extra: Option<Extra>,
    ) -> Self {
        Self {
            row,
            workspace_state,
            read,
            stored,
            usage: Use::default(),
            marks: Marks::default(),
            state: AtomicU8::new(PROVISIONAL),
            began: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            settled_in: AtomicU32::new(0),
            extra: extra.map_or_else(OnceLock::new, |extra| Box::new(extra).into()),
        }
    }

    /// Returns the same row after a group repair, which has landed at that tick.
    pub(crate) fn after_group_repair(&self, target: &Arc<Target>, landed: Tick) -> Arc<Self> {
        let mut row = self.row.clone();
        let mut extra = Extra {
            previous: self.previous(),
            repaired_at: NonZeroU64::new(landed),
            ..Extra::default()
        };
        if let Some(left) = row.target.replace(Arc::clone(target))
            && left.agent != target.agent
        {
            extra.previous = Some(Previous::new(left.agent, left.generation));
        }
        let workspace_state = Arc::clone(&self.workspace_state);
        let repaired = Self::with_extra(row, workspace_state, self.stored, self.read, Some(extra));
        repaired.set_stamp(self.stamp());
        Arc::new(repaired)
    }

    /// Returns the whole row.
    pub(crate) fn binding(&self) -> Binding {
        let Row { session, target, revision } = self.row.clone();
        Binding::new(session, self.workspace(), target, revision)
            .with_previous(self.previous())
            .with_epoch(self.workspace_state.epoch())
    }

    #[inline]
    pub(crate) fn workspace(&self) -> WorkspaceId {
        self.workspace_state.workspace()
    }

    /// Returns `true` if both rows point into one workspace in one epoch. If not, a dial that was
    /// begun for the one row proves nothing about the other.
    pub(crate) fn points_where(&self, other: &Self) -> bool {
        let of = |row: &Self| (row.workspace(), row.workspace_state.epoch());
        of(self) == of(other)
    }

    /// Returns when the read or write began that has brought the row.
    pub(crate) fn read(&self) -> Instant {
        self.read.into()
    }

    pub(super) fn previous(&self) -> Option<Previous> {
        self.extra.get().and_then(|extra| extra.previous)
    }

    fn extra(&self) -> &Extra {
        self.extra.get_or_init(Box::default)
    }

    /// Returns `true` if a group repair has written the row: the store's revision is later than the
    /// entry's.
    pub(crate) fn is_group_repaired(&self) -> bool {
        self.repaired_at().is_some()
    }

    fn repaired_at(&self) -> Option<Tick> {
        self.extra.get().and_then(|extra| extra.repaired_at).map(NonZeroU64::get)
    }

    /// Returns how many handles wait to be superseded, or `None` if none ever has.
    pub(super) fn waiting_handles(&self) -> Option<&AtomicU32> {
        self.extra.get().map(|extra| &extra.waiting_handles)
    }

    pub(super) fn make_waiting_handles(&self) -> &AtomicU32 {
        &self.extra().waiting_handles
    }

    /// Returns what is compared when another row of the session is learned.
    pub(super) fn as_current(&self) -> CurrentRow {
        CurrentRow {
            revision: self.row.revision,
            epoch: self.workspace_state.epoch(),
            repaired_at: self.repaired_at(),
            confirmed: self.state() != State::Evicted,
        }
    }
}

/// When the row was read or written.
impl CachedRow {
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::written(self.began.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed))
    }

    pub(super) fn set_stamp(&self, stamp: Stamp) {
        self.began.store(stamp.began(), Ordering::Relaxed);
        self.answered.store(stamp.answered().unwrap_or(0), Ordering::Relaxed);
    }

    /// Notes that the session still has no row, or still this row, after the token was taken.
    pub(crate) fn read_again(&self, token: &ReadToken) {
        self.began.fetch_max(token.stamp.began(), Ordering::Relaxed);
        self.answered.fetch_max(token.stamp.answered().unwrap_or(0), Ordering::Relaxed);
    }
}

/// The entry's state.
impl CachedRow {
    /// Returns the state: one atomic load.
    #[inline]
    pub(crate) fn state(&self) -> State {
        const CURRENT: u8 = State::Current as u8;
        const REPLACED: u8 = State::Replaced as u8;
        const REMOVED: u8 = State::Removed as u8;
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

    /// Returns `true` if the entry is on its way out of its slot, or out already. A provisional
    /// entry is not.
    pub(super) fn has_left(&self) -> bool {
        self.state.load(Ordering::Acquire) > State::Current as u8
    }

    /// Provisional => current. An entry that has left its slot stays as it is.
    pub(super) fn make_current(&self) {
        let (from, to) = (PROVISIONAL, State::Current as u8);
        let _ = self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Provisional or current => `reason`. The first reason stays. From here on the entry watches
    /// its session, and so do the calls that wait with it, which are woken for that.
    pub(super) fn leave(&self, watch: &Arc<Watch>, reason: State) {
        // A row that does not exist was not seen.
        if self.stored {
            watch.record_row(self.row.revision, self.workspace());
        }
        // Before the state is changed, which sends the holders to look at it.
        self.extra().watch.get_or_init(|| Arc::clone(watch));
        let leave = |state: u8| (state <= State::Current as u8).then_some(reason as u8);
        let left = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, leave);
        if left.is_ok() {
            self.workspace_state.row_left(self.row.session);
        }
    }

    /// Marks an entry that is used without being cached, with the token of its read.
    pub(crate) fn leave_uncached(&self, token: &ReadToken) {
        self.set_stamp(token.stamp);
        self.leave(&token.watch, State::Evicted);
    }

    /// Returns `true` if a command may have changed or removed the row since it was read. Always
    /// `false` of an entry in its slot, which a command replaces or removes.
    pub(crate) fn may_be_commanded(&self) -> bool {
        self.is_watched(Watch::may_be_commanded)
    }

    /// Returns `true` if the session was pointed at another workspace, or its row removed, since
    /// this row was read. A row that did not exist cannot have been removed. Always `false` of an
    /// entry in its slot.
    pub(crate) fn is_moved(&self) -> bool {
        let row = (self.row.revision, self.workspace());
        let is_moved = |watch: &Watch, began| watch.is_moved(row, began);
        self.stored && (self.state() == State::Removed || self.is_watched(is_moved))
    }

    fn is_watched(&self, since: impl FnOnce(&Watch, Tick) -> bool) -> bool {
        let watch = self.extra.get().and_then(|extra| extra.watch.get());
        watch.is_some_and(|watch| since(watch, self.began.load(Ordering::Relaxed)))
    }

    /// Returns `true` if the row's own target was found to be the one to dial in this version of
    /// the workspace state.
    #[inline]
    pub(crate) fn is_settled_in(&self, version: u32) -> bool {
        self.settled_in.load(Ordering::Relaxed) == version
    }

    pub(crate) fn set_settled_in(&self, version: u32) {
        self.settled_in.store(version, Ordering::Relaxed);
    }
}
