//! Repairs: which write follows a call whose row does not name the target that answered.
//!
//! There are two kinds. A *group repair* writes all rows of a workspace that are behind, on a
//! condition of its own ([`group`]). A session's *own* repair compares with the row that its call
//! has read ([`own`]). Each is a tracked [`task`], so that a dropped call does not tear it.
//!
//! The state is in [`state::repairs`](crate::state::repairs); this room adds the methods.

use crate::{
    Repair, RepairSnapshot, SessionId, Target, WorkspaceId,
    binding::Behind,
    cache::CachedRow,
    error::Cause,
    pulse::{has_stopped, patience},
    repair::task::Task,
    state::{
        Shared,
        repairs::{Job, Key, Repairs, Running},
    },
    sync::lock,
    workspace::Repaired,
};
use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, atomic::Ordering},
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

mod group;
mod own;
mod task;

/// The limit of repairs under way. A call that needs one more is told that it failed, and the next
/// call of its session tries again.
const MOST_REPAIRS: usize = 100_000;
/// The number of a repair without a task.
const NO_TASK: u64 = 0;
/// A flush ends after so many waits during which the store answered no statement.
const MOST_WAITS_IN_VAIN: u8 = 3;

/// The write that makes a row name the target that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    Nothing,
    /// This row.
    Own,
    /// All rows of its workspace that are behind as this one is.
    Group(Behind),
}

/// Returns which write a row needs. `stored`: the store has such a row.
fn needed(row: Option<&Arc<Target>>, stored: bool, answered: &Arc<Target>) -> Needed {
    let Some(row) = row.filter(|_| stored) else { return Needed::Own };
    if Arc::ptr_eq(row, answered) || row.is(answered) {
        return Needed::Nothing;
    }
    let behind = Behind::of(row, answered);
    if behind.includes(row, answered) { Needed::Group(behind) } else { Needed::Own }
}

impl Repairs {
    /// Begins the repair after which the row names the target that answered, or joins it. Returns
    /// `None` if the row needs none. `awaited`: a call waits for the first attempt, so the repair
    /// does not queue behind repairs that no call waits for.
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        entry: &Arc<CachedRow>,
        target: &Arc<Target>,
        awaited: bool,
    ) -> Option<Job> {
        let needed = needed(entry.row.target.as_ref(), entry.stored, target);
        if needed == Needed::Nothing {
            return None;
        }
        // The list is locked before the look, so that a group repair either has landed by now or
        // takes this row along.
        let mut running = shared.repairs.running();
        let own = || Key::Own(entry.row.session, Arc::clone(target), entry.row.revision);
        let key = match needed {
            Needed::Nothing | Needed::Own => own(),
            Needed::Group(behind) => {
                match entry.workspace_state.repair_of(entry.stamp(), behind, target) {
                    Repaired::NotYet => Key::Group(
                        entry.workspace(),
                        entry.workspace_state.epoch(),
                        behind,
                        Arc::clone(target),
                    ),
                    Repaired::Missed => own(),
                    Repaired::Already(landed) => {
                        drop(running);
                        shared.repaired(entry, target, landed);
                        return None;
                    }
                }
            }
        };
        let verb = match key {
            Key::Group(..) => "replace_agent",
            Key::Own(..) if entry.stored => "compare_and_swap",
            Key::Own(..) => "create",
        };
        if running.len() >= MOST_REPAIRS && !running.contains_key(&key) {
            return Some(Job::new(verb, Repair::Failed, Some(Cause::TooManyRepairs.shared())));
        }
        let now = Instant::now();
        let known = running.entry(key.clone()).or_insert_with(|| Running {
            task: NO_TASK,
            began: now,
            seen: now,
            job: Job::new(verb, Repair::Pending, None),
            entry: Arc::clone(entry),
            awaited,
            forgotten: CancellationToken::new(),
            entries: HashMap::new(),
        });
        known.entries.insert(entry.row.session, Arc::clone(entry));
        let job = known.job.clone();
        let task = shared.repairs.task_of(&key, known, shared, now);
        drop(running);
        if let Some(task) = task {
            // After closing it is refused: dropping it makes the repair fail.
            let _ = shared.tasks.spawn(task.run());
        }
        Some(job)
    }

    /// Returns a task for a repair that has none, or whose task is on a runtime that is not driven.
    fn task_of(
        &self,
        key: &Key,
        known: &mut Running,
        shared: &Arc<Shared>,
        now: Instant,
    ) -> Option<Task> {
        if known.task != NO_TASK && !has_stopped(known.seen, shared.settings.store_timeout, now) {
            return None;
        }
        known.task = self.tasks.fetch_add(1, Ordering::Relaxed) + 1;
        known.seen = now;
        Some(Task::new(Arc::clone(shared), key.clone(), known))
    }

    /// Restarts the repairs whose tasks are on runtimes that are not driven.
    fn take_over(shared: &Arc<Shared>) {
        let now = Instant::now();
        let mut running = shared.repairs.running();
        let tasks: Vec<Task> = running
            .iter_mut()
            .filter_map(|(key, known)| shared.repairs.task_of(key, known, shared, now))
            .collect();
        drop(running);
        for task in tasks {
            let _ = shared.tasks.spawn(task.run());
        }
    }

    /// Waits for the attempts that have begun. Returns how many repairs are still pending or will
    /// be tried again.
    pub(crate) async fn flush(shared: &Arc<Shared>) -> usize {
        let repairs = &shared.repairs;
        let mut jobs: Vec<Job> = Vec::new();
        let mut in_vain = 0;
        // Twice, because a row that a group repair has missed gets its own repair when that lands.
        for _ in 0..2 {
            jobs = repairs.running().values().map(|running| running.job.clone()).collect();
            for job in &jobs {
                let mut answered = repairs.answered.load(Ordering::Relaxed);
                while in_vain < MOST_WAITS_IN_VAIN
                    && timeout(patience(shared.settings.store_timeout), job.tried()).await.is_err()
                {
                    Self::take_over(shared);
                    let before =
                        std::mem::replace(&mut answered, repairs.answered.load(Ordering::Relaxed));
                    in_vain = if answered == before { in_vain + 1 } else { 0 };
                }
            }
        }
        // The status counts, not the list: a task leaves the list a moment after it has told the
        // result.
        let waiting = jobs.iter().filter(|job| job.status.get() == Repair::Pending).count();
        waiting
            + repairs
                .running()
                .values()
                .filter(|running| running.job.status.get() == Repair::Retrying)
                .count()
    }

    /// Ends the session's own repairs. Those of calls that were served without the store compare
    /// with no revision, and would bring back a row that a command has removed.
    pub(crate) fn forget(&self, session: SessionId) {
        for (key, running) in self.running().iter() {
            if matches!(key, Key::Own(of, ..) if *of == session) {
                running.forgotten.cancel();
            }
        }
    }

    /// Takes the rows of the calls that have asked for this repair by now.
    fn take_entries(&self, key: &Key) -> Vec<Arc<CachedRow>> {
        let mut running = self.running();
        let entries = running.get_mut(key).map(|running| std::mem::take(&mut running.entries));
        entries.unwrap_or_default().into_values().collect()
    }

    /// Lets every repair end with its next attempt.
    pub(crate) fn close(shared: &Arc<Shared>) {
        shared.repairs.closing.cancel();
        Self::take_over(shared);
    }

    /// Returns how many repairs did not land, once all tasks have ended.
    pub(crate) fn unwritten(&self) -> usize {
        self.failed_closing.load(Ordering::Acquire) + self.running().len()
    }

    /// Returns the state of each repair under way.
    pub(crate) fn states(&self) -> Vec<Repair> {
        self.running().values().map(|running| running.job.status.get()).collect()
    }

    /// Describes the repairs under way that are about this workspace, or about this session.
    pub(crate) fn inspect(
        &self,
        workspace: Option<WorkspaceId>,
        session: Option<SessionId>,
        now: Instant,
    ) -> Vec<RepairSnapshot> {
        let running = self.running();
        let is_asked_for = |running: &Running| {
            workspace.is_none_or(|workspace| running.entry.workspace() == workspace)
                && session.is_none_or(|session| {
                    running.entry.row.session == session || running.entries.contains_key(&session)
                })
        };
        let found = running.iter().filter(|(_, running)| is_asked_for(running));
        found
            .map(|(key, running)| RepairSnapshot {
                session: match key {
                    Key::Own(session, ..) => Some(*session),
                    Key::Group(..) => None,
                },
                target: Arc::clone(key.target()),
                state: running.job.status.get(),
                began_ago: now.saturating_duration_since(running.began),
                error: running.job.last_error(),
            })
            .collect()
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        lock(&self.running)
    }
}

#[cfg(test)]
mod tests;
