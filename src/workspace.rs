//! The state of each workspace, for as long as this process uses the workspace.
//!
//! A [`WorkspaceState`] is a lock and a version around [`facts`], which consist of four parts
//! without a lock and without a clock:
//!
//! * [`known`]: the newest target, and what it has replaced;
//! * [`doubts`]: since when targets may be wrong;
//! * [`pace`]: the last answers of the resolver, and when to ask again;
//! * [`repairs`]: the group repairs that have landed.
//!
//! A workspace state belongs to one epoch of the workspace; all its information is invalid in the
//! next one. Rows are ordered elsewhere, by revision: see [`cache`](crate::cache).

mod doubts;
mod facts;
mod known;
mod pace;
pub(crate) mod pending;
mod registry;
mod repairs;

pub(crate) use self::{
    doubts::ToAsk,
    facts::Choice,
    pace::{AGAIN_AFTER, Verdict},
    registry::Workspaces,
    repairs::{GroupRepair, Repaired},
};

use self::{
    facts::{Facts, Judged},
    pending::{Counts, PendingDials, Queue, Slot},
    registry::Index,
};
use crate::{
    AgentId, DoubtReason, DoubtSnapshot, Epoch, Generation, SessionId, Target, VerdictSnapshot,
    WorkspaceId, WorkspaceSnapshot,
    answer::Answer,
    binding::{Behind, Row},
    clock::Stamp,
    sync::lock,
    waiters::{Changed, Place, Waiters},
};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering, fence},
    },
    task::Waker,
};
use tokio::time::Instant;

/// How many superseded targets and how many landed group repairs are remembered.
const REMEMBERED: usize = 8;

/// The state of one epoch of a workspace. Cached rows, calls, repairs and handles hold it, and the
/// last of them drops it.
#[derive(Debug)]
pub(crate) struct WorkspaceState {
    workspace: WorkspaceId,
    index: Arc<Index>,
    /// Raised by every change that may change what a session is to dial, so that the hot path has
    /// one atomic load. Never 0. It may wrap around: it is only compared with versions that were
    /// read a moment ago, or at the last call of a session.
    version: AtomicU32,
    /// The calls whose dial is pending, which may leave a doubt behind.
    waiting: AtomicU32,
    on_demand: OnceLock<Box<OnDemand>>,
    facts: Mutex<Facts>,
}

/// The fields that a workspace needs only if a task has waited for it or if it was reset.
#[derive(Debug, Default)]
struct OnDemand {
    epoch: Epoch,
    /// Made for the first dial that is pending.
    dials: OnceLock<PendingDials>,
    /// A task asks the resolver about a doubt on behalf of sessions that hold connections.
    asking: AtomicBool,
    /// Calls wait with their session, which is told when its row leaves its slot in the cache.
    waiters: Waiters<Option<SessionId>>,
}

/// The right to be the one task of a workspace that asks about a doubt.
#[derive(Debug)]
pub(crate) struct Asking(Arc<WorkspaceState>);

impl Asking {
    pub(crate) fn workspace_state(&self) -> &Arc<WorkspaceState> {
        &self.0
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.on_demand().asking.store(false, Ordering::Release);
    }
}

impl Drop for WorkspaceState {
    fn drop(&mut self) {
        self.index.remove_dropped(self.workspace);
    }
}

/// The lock, the version, and the tasks that wait for a change.
impl WorkspaceState {
    fn new(workspace: WorkspaceId, epoch: Epoch, index: Arc<Index>) -> Self {
        let on_demand = if epoch == Epoch::default() {
            OnceLock::new()
        } else {
            Box::new(OnDemand { epoch, ..OnDemand::default() }).into()
        };
        Self {
            workspace,
            index,
            version: AtomicU32::new(1),
            waiting: AtomicU32::new(0),
            on_demand,
            facts: Mutex::default(),
        }
    }

    fn on_demand(&self) -> &OnDemand {
        self.on_demand.get_or_init(Box::default)
    }

    #[inline]
    pub(crate) fn workspace(&self) -> WorkspaceId {
        self.workspace
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.on_demand.get().map_or_else(Epoch::default, |on_demand| on_demand.epoch)
    }

    #[inline]
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }

    /// Changes the facts. If `change` returns `true`, raises the version and wakes the tasks that
    /// wait for a change.
    fn change(&self, change: impl FnOnce(&mut Facts) -> bool) -> bool {
        let mut facts = self.facts();
        let has_changed = change(&mut facts);
        if has_changed {
            // With the facts locked, so that a version that was read with a choice never belongs to
            // an earlier state.
            let next = self.version.load(Ordering::Relaxed).wrapping_add(1).max(1);
            self.version.store(next, Ordering::Release);
        }
        drop(facts);
        if has_changed {
            fence(Ordering::SeqCst);
            if let Some(on_demand) = self.on_demand.get() {
                on_demand.waiters.notify_all();
            }
        }
        has_changed
    }

    /// Wakes the calls that wait with this session's row, which has left its slot in the cache. It
    /// has the state of a row that has left.
    pub(crate) fn row_left(&self, session: SessionId) {
        // As in `change`.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.on_demand().waiters.notify(Some(session));
        }
    }

    /// Waits for the next change after this call, even if that comes before the first poll.
    pub(crate) fn changed(&self) -> Changed<'_, Option<SessionId>> {
        let changed = self.on_demand().waiters.changed(None);
        // A change after this fence finds a waiter to notify. The version of a change before it is
        // seen by the caller's next look.
        fence(Ordering::SeqCst);
        changed
    }

    /// Counts a call whose dial is pending, and wakes its task at the next change after this call,
    /// and when the session's row leaves its slot.
    pub(crate) fn join(&self, session: SessionId, waker: &Waker) -> Place {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = self.on_demand().waiters.join(Some(session), waker);
        // As in `changed`.
        fence(Ordering::SeqCst);
        place
    }

    /// The call goes on waiting: the next change wakes its task, with the waker of this poll.
    pub(crate) fn stay(&self, place: &Place, waker: &Waker) {
        self.on_demand().waiters.stay(place, waker);
    }

    /// The call has ended its wait.
    pub(crate) fn leave(&self, place: Place) {
        self.on_demand().waiters.leave(place);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Begins to ask the resolver on behalf of sessions that hold connections. Returns `None` if a
    /// task asks already.
    pub(crate) fn begin_to_ask(state: &Arc<Self>) -> Option<Asking> {
        (!state.on_demand().asking.swap(true, Ordering::AcqRel)).then(|| Asking(Arc::clone(state)))
    }

    /// Ends the epoch: calls and handles with this state must look their rows up again.
    fn reset(&self) {
        self.change(|facts| {
            facts.reset();
            true
        });
    }
}

/// Pending dials.
impl WorkspaceState {
    #[inline]
    fn dials(&self) -> Option<&PendingDials> {
        self.on_demand.get()?.dials.get()
    }

    /// Counts the pending dials to all targets of the workspace.
    pub(crate) fn pending_dials(&self) -> Counts {
        self.dials().map_or_else(Counts::default, PendingDials::count)
    }

    /// Returns the queue of a target that has as many pending dials as it may have.
    #[inline]
    pub(crate) fn queue(&self, target: &Target) -> Option<Queue> {
        self.dials()?.queue(target)
    }

    /// Takes a slot for a dial that is pending.
    pub(crate) fn enter(&self, target: &Arc<Target>) -> Slot {
        let dials = || PendingDials::new(self.index.max_pending_dials);
        self.on_demand().dials.get_or_init(dials).enter(target)
    }

    /// Records that a target has answered a dial, if other dials are pending. `times`: when it
    /// began, and now.
    #[inline]
    pub(crate) fn answered_dial(
        &self,
        target: &Target,
        times: impl FnOnce() -> (Instant, Instant),
    ) {
        if let Some(dials) = self.dials() {
            dials.answered(target, times);
        }
    }

    /// Records that an agent has answered a dial. `asked`: after the resolver was asked about it.
    #[inline]
    pub(crate) fn answered(&self, agent: AgentId, asked: bool, now: impl FnOnce() -> Instant) {
        let is_watched = self.waiting.load(Ordering::Relaxed) > 0;
        if asked || is_watched {
            self.note_answered(agent, is_watched.then(now));
        }
    }

    fn note_answered(&self, agent: AgentId, watched: Option<Instant>) {
        let in_herd = self.dials().is_some_and(|dials| dials.is_in_use());
        self.facts().answered(agent, watched, in_herd);
    }
}

/// The facts.
impl WorkspaceState {
    /// Chooses what a session with this row, read at `read`, is to dial: the newer of the row's
    /// target and the known target. Returns the version that this was chosen from, too.
    pub(crate) fn choose(&self, row: &Row, read: Instant, now: Instant) -> (Choice, u32) {
        let mut facts = self.facts();
        (facts.choose(row, read, now), self.version.load(Ordering::Relaxed))
    }

    /// Learns what a row names, which may be a later build. Returns the target, shared by all rows
    /// that name the same.
    pub(crate) fn learn_row(&self, target: &Arc<Target>, read: Instant) -> Arc<Target> {
        let mut named = Arc::clone(target);
        self.change(|facts| {
            named = facts.known.intern(target);
            facts.learn_row(&named, read)
        });
        named
    }

    /// Learns from the answer to a question that began at `began`. Returns what the answer is
    /// worth, and when to ask again if a dial still hangs.
    pub(crate) fn learn_answer(
        &self,
        answer: Answer,
        began: Instant,
        now: Instant,
    ) -> (Answer, Instant) {
        let mut judged = None;
        self.change(|facts| {
            let Judged { answer, again, is_news } =
                facts.learn_answer(answer, began, now, self.index.intervals);
            judged = Some((answer, again));
            is_news
        });
        judged.unwrap_or((Answer::Unknown, now))
    }

    /// Learns which target the control plane has announced. Returns `false` if a newer one is
    /// known.
    pub(crate) fn announced(&self, target: Arc<Target>, now: Instant) -> bool {
        let (answer, _) = self.learn_answer(Answer::Running(Arc::clone(&target)), now, now);
        let is_believed = matches!(answer, Answer::Running(_));
        if is_believed {
            self.facts().known.note_announced(&target);
        }
        is_believed
    }

    /// Hears that another process has reached this generation, or that the agent may be another
    /// one. Returns `false` if that is no news.
    pub(crate) fn hear(&self, generation: Option<Generation>, now: Instant) -> bool {
        self.change(|facts| facts.hear(generation, now))
    }

    /// Raises a doubt about every target of the workspace.
    pub(crate) fn doubt(&self, reason: DoubtReason, now: Instant) {
        self.change(|facts| {
            facts.doubts_mut().raise(reason, now);
            true
        });
    }

    /// Raises a doubt about one agent: a command dropped it from a row, or a row that won over a
    /// newer answer names it and nothing is known of it here.
    pub(crate) fn doubt_agent(&self, agent: AgentId, reason: DoubtReason, now: Instant) {
        self.change(|facts| {
            facts.doubts_mut().raise_about(agent, reason, now);
            true
        });
    }

    /// Raises a doubt, because a call was dropped while its dial, begun at `began`, was pending.
    /// Returns `false` if that says nothing about the agent.
    pub(crate) fn doubt_dropped(&self, agent: AgentId, began: Instant, now: Instant) -> bool {
        self.change(|facts| facts.doubts_mut().dropped(agent, began, now))
    }

    /// Raises a doubt, because a session has reported its connection to this target as stale.
    /// Returns `false` if that is no news.
    pub(crate) fn doubt_reported(&self, session: SessionId, target: &Target, now: Instant) -> bool {
        self.change(|facts| facts.reported(session, target, now))
    }

    /// Returns the doubt about the workspace that was raised after `answered`, and when to ask the
    /// resolver about it. `None` if there is none.
    pub(crate) fn doubt_to_ask(&self, answered: Option<Instant>, now: Instant) -> Option<ToAsk> {
        self.facts().doubts().to_ask(answered, now)
    }

    /// Returns until when a call whose dial hangs does not need to ask.
    pub(crate) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.facts().pace().paused_until(now)
    }

    /// Returns the last verdict of the resolver, unless a doubt is younger than its question.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.facts().verdict().cloned()
    }

    pub(crate) fn newest_generation(&self) -> Option<Generation> {
        self.facts().known.generation()
    }

    /// Returns `true` if a repair must not write the target: a newer one is known, or the epoch has
    /// ended.
    pub(crate) fn supersedes(&self, target: &Target) -> bool {
        self.facts().supersedes(target)
    }

    /// Returns when the question began that was answered with this target, or when it was read in a
    /// row; `None` if it is not the known target.
    pub(crate) fn named_at(&self, target: &Target) -> Option<Instant> {
        self.facts().known.named_at(target)
    }

    /// Returns `true` if the epoch has ended.
    pub(crate) fn is_reset(&self) -> bool {
        self.facts().is_reset()
    }

    /// Returns `true` if a connection to this target, made at `made`, is not to be used again: the
    /// target was replaced, or was in doubt since, whatever was answered then.
    #[cfg(feature = "http")]
    pub(crate) fn outdates(&self, target: &Target, made: Instant) -> bool {
        self.facts().outdates(target, made)
    }

    /// Returns `true` if the known target was named in answer to a question that began after this
    /// instant, or read in a row after it, and was not denied since.
    pub(crate) fn runs_since(&self, began: Instant) -> bool {
        self.facts().known.is_named_since(began)
    }

    /// Records a group repair that has landed.
    pub(crate) fn repaired(&self, repair: GroupRepair) {
        self.facts().repairs_mut().land(repair);
    }

    /// Returns what the group repairs to `target` have made of a row that is behind it.
    pub(crate) fn repair_of(&self, stamp: Stamp, behind: Behind, target: &Target) -> Repaired {
        self.facts().repairs().of_row(stamp, behind, target)
    }
}

/// A look from outside, which changes nothing.
impl WorkspaceState {
    /// Returns what a session with this row, read at `read`, would dial, and why that may be wrong.
    pub(crate) fn preview(
        &self,
        row: &Row,
        read: Instant,
        now: Instant,
    ) -> (Choice, Option<DoubtSnapshot>) {
        self.facts().preview(row, read, now)
    }

    /// Describes the facts and the pending dials. The fields about other things are empty.
    pub(crate) fn inspect(&self, now: Instant) -> WorkspaceSnapshot {
        let Counts { pending, queued } = self.pending_dials();
        let facts = self.facts();
        let known = &facts.known;
        WorkspaceSnapshot {
            workspace: self.workspace,
            epoch: self.epoch(),
            target: known.target().cloned(),
            source: known.source(),
            superseded: known.superseded().to_vec(),
            doubts: facts.doubts().list(now),
            verdict: facts.verdict().map(|verdict| VerdictSnapshot {
                status: (&verdict.answer).into(),
                answered_ago: now.saturating_duration_since(verdict.landed),
            }),
            validating_for: None,
            asks_again_in: facts
                .pace()
                .paused_until(now)
                .map(|until| until.saturating_duration_since(now)),
            repairs: Vec::new(),
            cached_rows: 0,
            held_connections: 0,
            pending_dials: pending,
            queued_calls: queued,
        }
    }
}

#[cfg(test)]
mod tests;
