//! What is written after a call, when, and what a lost compare-and-swap means.

use crate::{
    Binding, Event, Repair, Revision, SessionId, Target,
    outcome::RepairStatus,
    rows::Entry,
    shared::Shared,
    store::{NewBinding, Swap},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// After a write that failed; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A store that was out of reach for so long gets no more writes from this call; the next call of the session tries anew.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);
/// Rows that are known to be behind are written over; each time somebody else may be faster.
const MOST_SWAPS: u8 = 4;

/// Whether a row must be written so that it names what answered.
pub(crate) fn is_needed(row: Option<&Arc<Target>>, answered: &Arc<Target>) -> bool {
    match row {
        Some(row) => {
            !Arc::ptr_eq(row, answered) && (!row.same_place(answered) || row.generation != answered.generation)
        }
        None => true,
    }
}

/// What a lost compare-and-swap means for the one who lost it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// The row names the target already.
    Done,
    /// The row stays as it is.
    Drop,
    /// The row stays as it is, and what it names is not ordered against what answered here: it is to be validated.
    Doubt,
    /// The row is known to be behind: once more, from this revision.
    Again(Revision),
}

fn lost(entry: &Entry, target: &Target, winner: Option<&Binding>) -> Lost {
    let Some(winner) = winner.filter(|winner| winner.workspace == entry.row.workspace) else { return Lost::Drop };
    let Some(named) = &winner.target else {
        // Unbound by somebody's order. But where no row was known at all, an unbound one is just the place to write to.
        return if entry.stored { Lost::Drop } else { Lost::Again(winner.revision) };
    };
    match (named.generation, target.generation) {
        (Some(theirs), Some(mine)) if theirs < mine => Lost::Again(winner.revision),
        (Some(theirs), Some(mine)) if theirs > mine => Lost::Drop,
        // Also if only one of the two has a number: there is no doubt about a place that has just answered.
        _ if named.same_place(target) => Lost::Done,
        (Some(_), Some(_)) => Lost::Drop,
        _ => Lost::Doubt,
    }
}

/// The repairs under way, one for each session and target.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    jobs: Mutex<HashMap<(SessionId, Arc<Target>), Job>>,
    /// No more waiting between attempts: the next one is the last.
    closing: CancellationToken,
    /// Repairs that failed for good after closing had begun.
    failed_closing: AtomicUsize,
}

/// What others may see of a repair under way.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) status: RepairStatus,
    /// The first attempt has ended.
    attempted: watch::Receiver<bool>,
    /// The record was removed by order: no further attempt.
    forgotten: CancellationToken,
}

impl Job {
    /// Until the first attempt has ended, whatever became of it. Bounded by the store timeout.
    pub(crate) async fn attempted(mut self) {
        // An error means that the task is gone, and so is the attempt.
        let _ = self.attempted.wait_for(|attempted| *attempted).await;
    }
}

impl Repairs {
    /// Writes what answered into the row. A task of its own, so that nobody's drop tears it.
    pub(crate) fn begin(shared: &Arc<Shared>, entry: &Arc<Entry>, target: &Arc<Target>) -> Job {
        let key = (entry.row.session, Arc::clone(target));
        let mut jobs = shared.repairs.jobs();
        if let Some(job) = jobs.get(&key) {
            return job.clone();
        }
        let (attempted, receiver) = watch::channel(false);
        let forgotten = CancellationToken::new();
        let job = Job { status: RepairStatus::new(), attempted: receiver, forgotten: forgotten.clone() };
        jobs.insert(key.clone(), job.clone());
        drop(jobs);
        let task = Task {
            _slot: Slot { shared: Arc::clone(shared), key },
            shared: Arc::clone(shared),
            entry: Arc::clone(entry),
            target: Arc::clone(target),
            status: job.status.clone(),
            attempted,
            forgotten,
        };
        shared.tasks.spawn(task.run());
        job
    }

    /// Waits for the attempts that have begun. Returns how many repairs are left to be tried again.
    pub(crate) async fn flush(&self) -> usize {
        let jobs: Vec<Job> = self.jobs().values().cloned().collect();
        let mut left = 0;
        for job in jobs {
            job.clone().attempted().await;
            // Not whether it is still on the list: its task leaves that a moment after it has told the result.
            left += usize::from(job.status.get() == Repair::Retrying);
        }
        left
    }

    /// What the session's calls have not written by now is not to be written: some of them compare with nothing, since
    /// they were served without the store, and would bring back a record that was removed by order.
    pub(crate) fn forget(&self, session: SessionId) {
        self.jobs().iter().filter(|(key, _)| key.0 == session).for_each(|(_, job)| job.forgotten.cancel());
    }

    /// Lets every repair end with its next attempt.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// How many did not land, once all tasks have ended.
    pub(crate) fn unwritten(&self) -> usize {
        self.failed_closing.load(Ordering::Acquire) + self.jobs().len()
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<(SessionId, Arc<Target>), Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a repair off the list however its task ends, unless closing cut it short.
struct Slot {
    shared: Arc<Shared>,
    key: (SessionId, Arc<Target>),
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut jobs = self.shared.repairs.jobs();
        let Some(job) = jobs.remove(&self.key) else { return };
        drop(jobs);
        if matches!(job.status.get(), Repair::Pending | Repair::Retrying) {
            // Dropped with its runtime or by the end of closing.
            job.status.set(Repair::Failed);
        }
        if job.status.get() == Repair::Failed && self.shared.is_closed() {
            self.shared.repairs.failed_closing.fetch_add(1, Ordering::AcqRel);
        }
    }
}

struct Task {
    _slot: Slot,
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    target: Arc<Target>,
    status: RepairStatus,
    attempted: watch::Sender<bool>,
    forgotten: CancellationToken,
}

impl Task {
    async fn run(self) {
        let give_up = Instant::now() + GIVE_UP_AFTER;
        let mut pause = FIRST_PAUSE;
        loop {
            let last = self.shared.repairs.closing.is_cancelled() || Instant::now() >= give_up;
            let repair = match self.attempt().await {
                Some(repair) => repair,
                None if last => Repair::Failed,
                None => Repair::Retrying,
            };
            self.tell(repair);
            if repair != Repair::Retrying {
                return;
            }
            tokio::select! {
                () = self.shared.repairs.closing.cancelled() => {}
                () = self.forgotten.cancelled() => {}
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            if self.forgotten.is_cancelled() || self.entry.place.supersedes(&self.target) {
                // Somebody's later repair will be right, this one would not.
                return self.tell(Repair::Lost);
            }
        }
    }

    fn tell(&self, repair: Repair) {
        self.status.set(repair);
        self.attempted.send_replace(true);
        self.shared.emit(&Event::Repaired {
            session: self.entry.row.session,
            workspace: self.entry.workspace(),
            target: &self.target,
            repair,
        });
    }

    /// One try, from the revision that the call went by. `None` if the store could not be written.
    async fn attempt(&self) -> Option<Repair> {
        let Self { shared, entry, target, .. } = self;
        let session = entry.row.session;
        let new = NewBinding::new(session, entry.workspace(), Some(Arc::clone(target)));
        let mut expected = entry.stored.then_some(entry.row.revision);
        for _ in 0..MOST_SWAPS {
            let ticket = shared.rows.ticket(session);
            let swap = match expected {
                Some(revision) => shared.in_time(shared.store.compare_and_swap(revision, new.clone())).await,
                None => shared.in_time(shared.store.create(new.clone())).await,
            };
            let winner = match swap.ok()? {
                Swap::Applied(row) => {
                    shared.learn(row, ticket);
                    return Some(Repair::Written);
                }
                Swap::Conflict(winner) => winner,
            };
            let verdict = lost(entry, target, winner.as_ref());
            match winner {
                Some(winner) => {
                    if let (Lost::Doubt, Some(named)) = (verdict, &winner.target) {
                        entry.place.doubt_agent(named.agent, Instant::now());
                    }
                    shared.learn(winner, ticket);
                }
                // Deleted: the next call finds that out.
                None => shared.rows.remove(session),
            }
            match verdict {
                Lost::Done => return Some(Repair::Written),
                Lost::Drop | Lost::Doubt => return Some(Repair::Lost),
                Lost::Again(revision) => expected = Some(revision),
            }
        }
        Some(Repair::Lost)
    }
}

#[cfg(test)]
mod tests;
