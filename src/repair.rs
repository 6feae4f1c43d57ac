//! What is written after a call, when, and by which statements.
//!
//! Two kinds: a *group repair* writes all rows of a workspace that are behind, on its own condition ([`group`]); a session's
//! *own* repair compares with what its call has read ([`own`]).

use crate::{
    Event, Repair, Revision, SessionId, Target, WorkspaceId,
    binding::Behind,
    directory::Repaired,
    error::{Cause, SharedError},
    outcome::RepairStatus,
    rows::Entry,
    shared::Shared,
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

mod group;
mod own;

/// After a write that failed; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A store that was out of reach for so long gets no more writes from this call; the next call of the session tries anew.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);

/// What must be written so that a row names what has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    Nothing,
    /// This row.
    Own,
    /// All rows of its workspace that are behind as it is.
    Group(Behind),
}

fn needed(row: Option<&Arc<Target>>, stored: bool, answered: &Arc<Target>) -> Needed {
    let Some(row) = row.filter(|_| stored) else { return Needed::Own };
    if Arc::ptr_eq(row, answered) || row.is(answered) {
        return Needed::Nothing;
    }
    let behind = Behind::of(row, answered);
    if behind.includes(row, answered) { Needed::Group(behind) } else { Needed::Own }
}

/// What a repair writes: one for each of these is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// With the revision that it writes over: what was written over an earlier one, before an order, is another repair.
    Own(SessionId, Arc<Target>, Revision),
    Group(WorkspaceId, Behind, Arc<Target>),
}

/// The repairs under way.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    running: Mutex<HashMap<Key, Running>>,
    /// No more waiting between attempts: the next one is the last.
    closing: CancellationToken,
    /// Repairs that failed for good after closing had begun.
    failed_closing: AtomicUsize,
}

#[derive(Debug)]
struct Running {
    job: Job,
    /// The record was removed by order: no further attempt.
    forgotten: CancellationToken,
    /// What the calls went by that have asked for it.
    entries: HashMap<SessionId, Arc<Entry>>,
}

/// What others may see of a repair under way.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) status: RepairStatus,
    /// How the last attempt has ended, if one has.
    attempted: watch::Receiver<Option<Attempted>>,
}

/// What became of an attempt: the store could be written, or why not.
type Attempted = Result<(), SharedError>;

impl Job {
    /// Waits until the first attempt has ended. Bounded by the store timeout for each statement.
    ///
    /// # Errors
    ///
    /// Why the store could not be written.
    pub(crate) async fn attempted(mut self) -> Attempted {
        // An error means that the task is gone, and so is the attempt.
        let attempted = self.attempted.wait_for(Option::is_some).await.ok().and_then(|attempted| attempted.clone());
        attempted.unwrap_or_else(|| Err(Cause::TaskEnded.shared()))
    }
}

impl Repairs {
    /// Sees to it that the row names what has answered. `None` if it does already; else the job that writes it, a task of
    /// its own, so that nobody's drop tears it.
    pub(crate) fn begin(shared: &Arc<Shared>, entry: &Arc<Entry>, target: &Arc<Target>) -> Option<Job> {
        let needed = needed(entry.row.target.as_ref(), entry.stored, target);
        if needed == Needed::Nothing {
            return None;
        }
        // With the list locked, so that a group repair has either landed by now or takes this row along.
        let mut running = shared.repairs.running();
        let own = || Key::Own(entry.row.session, Arc::clone(target), entry.row.revision);
        let key = match needed {
            Needed::Nothing | Needed::Own => own(),
            Needed::Group(behind) => match entry.place.repair_of(entry.seen(), behind, target) {
                Repaired::NotYet => Key::Group(entry.workspace(), behind, Arc::clone(target)),
                Repaired::Missed => own(),
                Repaired::Already(landed) => {
                    drop(running);
                    shared.repaired(entry, target, landed);
                    return None;
                }
            },
        };
        if let Some(running) = running.get_mut(&key) {
            running.entries.insert(entry.row.session, Arc::clone(entry));
            return Some(running.job.clone());
        }
        let (attempted, receiver) = watch::channel(None);
        let forgotten = CancellationToken::new();
        let job = Job { status: RepairStatus::new(), attempted: receiver };
        let entries = HashMap::from([(entry.row.session, Arc::clone(entry))]);
        running.insert(key.clone(), Running { job: job.clone(), forgotten: forgotten.clone(), entries });
        drop(running);
        let task = Task {
            _slot: Slot { shared: Arc::clone(shared), key: key.clone() },
            shared: Arc::clone(shared),
            key,
            entry: Arc::clone(entry),
            target: Arc::clone(target),
            status: job.status.clone(),
            attempted,
            forgotten,
        };
        shared.tasks.spawn(task.run());
        Some(job)
    }

    /// Waits for the attempts that have begun. Returns how many repairs are left to be tried again.
    pub(crate) async fn flush(&self) -> usize {
        // Twice: what a group repair has missed gets a repair of its own when that lands.
        for _ in 0..2 {
            let jobs: Vec<Job> = self.running().values().map(|running| running.job.clone()).collect();
            for job in jobs {
                let _ = job.attempted().await;
            }
        }
        // Not whether it is still on the list: its task leaves that a moment after it has told the result.
        self.running().values().filter(|running| running.job.status.get() == Repair::Retrying).count()
    }

    /// What the session's calls have not written by now is not to be written: some of them compare with nothing, since
    /// they were served without the store, and would bring back a record that was removed by order.
    pub(crate) fn forget(&self, session: SessionId) {
        for (key, running) in self.running().iter() {
            if matches!(key, Key::Own(of, ..) if *of == session) {
                running.forgotten.cancel();
            }
        }
    }

    /// What the calls went by that have asked for this repair by now.
    fn take_entries(&self, key: &Key) -> Vec<Arc<Entry>> {
        let mut running = self.running();
        let entries = running.get_mut(key).map(|running| std::mem::take(&mut running.entries));
        entries.unwrap_or_default().into_values().collect()
    }

    /// Lets every repair end with its next attempt.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// How many did not land, once all tasks have ended.
    pub(crate) fn unwritten(&self) -> usize {
        self.failed_closing.load(Ordering::Acquire) + self.running().len()
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a repair off the list however its task ends, unless closing cut it short.
struct Slot {
    shared: Arc<Shared>,
    key: Key,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(Running { job, .. }) = self.shared.repairs.running().remove(&self.key) else { return };
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
    key: Key,
    /// What the call went by that began it.
    entry: Arc<Entry>,
    target: Arc<Target>,
    status: RepairStatus,
    attempted: watch::Sender<Option<Attempted>>,
    forgotten: CancellationToken,
}

impl Task {
    async fn run(self) {
        let give_up = Instant::now() + GIVE_UP_AFTER;
        let mut pause = FIRST_PAUSE;
        loop {
            let last = self.shared.repairs.closing.is_cancelled() || Instant::now() >= give_up;
            let attempt = match self.key {
                Key::Own(..) => self.write_own().await,
                Key::Group(_, behind, _) => self.write_group(behind).await,
            };
            let (repair, attempted) = match attempt {
                Ok(repair) => (repair, Ok(())),
                Err(error) => {
                    (if last { Repair::Failed } else { Repair::Retrying }, Err(Arc::new(error) as SharedError))
                }
            };
            self.tell(repair, attempted);
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
                return self.tell(Repair::Lost, Ok(()));
            }
        }
    }

    fn tell(&self, repair: Repair, attempted: Attempted) {
        self.status.set(repair);
        self.attempted.send_replace(Some(attempted));
        let (workspace, target) = (self.entry.workspace(), &*self.target);
        self.shared.emit(&match self.key {
            Key::Own(session, ..) => Event::Repaired { session, workspace, target, repair },
            Key::Group(..) => Event::WorkspaceRepaired { workspace, target, repair },
        });
    }
}

#[cfg(test)]
mod tests;
