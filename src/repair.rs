//! What is written after a call, when, and by which statements.
//!
//! Two kinds: a *group repair* writes all rows of a workspace that are behind, on its own condition
//! ([`group`]); a session's *own* repair compares with what its call has read ([`own`]).

use crate::{
    Event, Repair, SessionId, Target,
    backoff::{Backoff, Jitter},
    binding::Behind,
    cache::CachedRow,
    error::{Cause, SharedError},
    pulse::{has_stopped, patience, with_signs},
    state::{
        Shared,
        repairs::{Attempted, Job, Key, Repairs, Running},
        statement::no_answer,
    },
    store::StoreError,
    sync::lock,
    workspace::Repaired,
};
use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, MutexGuard, atomic::Ordering},
};
use tokio::time::{Duration, Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

mod group;
mod own;

/// The pauses after attempts that failed.
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(15), Jitter::Above);
/// A store that was out of reach for so long gets no more writes from this call; the next call of
/// the session tries anew.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);

/// More are not begun: a call that needs one more is told that it failed, and the next call of its
/// session tries anew.
const MOST_REPAIRS: usize = 100_000;
/// A repair without a task.
const NO_TASK: u64 = 0;
/// So often a flush waits without seeing any answer before it ends.
const MOST_WAITS_IN_VAIN: u8 = 3;

/// What must be written so that a row names what has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needed {
    Nothing,
    /// This row.
    Own,
    /// All rows of its workspace that are behind as it is.
    Group(Behind),
}

/// The result of the statements of one attempt, and the session's row as they left or found it.
type Written = (Repair, Option<Arc<CachedRow>>);

fn needed(row: Option<&Arc<Target>>, stored: bool, answered: &Arc<Target>) -> Needed {
    let Some(row) = row.filter(|_| stored) else { return Needed::Own };
    if Arc::ptr_eq(row, answered) || row.is(answered) {
        return Needed::Nothing;
    }
    let behind = Behind::of(row, answered);
    if behind.includes(row, answered) { Needed::Group(behind) } else { Needed::Own }
}

impl Repairs {
    /// Sees to it that the row names what has answered. `None` if it does already; else the job
    /// that writes it, a task of its own, so that nobody's drop tears it. `awaited`: a call waits
    /// for the first attempt before it returns, so that it does not queue behind what nobody waits
    /// for.
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
        // With the list locked, so that a group repair has either landed by now or takes this row
        // along.
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
        if running.len() >= MOST_REPAIRS && !running.contains_key(&key) {
            return Some(Job::new(Repair::Failed, Some(Err(Cause::TooManyRepairs.shared()))));
        }
        let now = Instant::now();
        let known = running.entry(key.clone()).or_insert_with(|| Running {
            task: NO_TASK,
            seen: now,
            job: Job::new(Repair::Pending, None),
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
            // If it is refused, it fails.
            let _ = shared.tasks.spawn(task.run());
        }
        Some(job)
    }

    /// The task that a repair needs: if there is none yet, or if nobody drives the runtime of the
    /// one that there is.
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
        Some(Task {
            _slot: Slot { shared: Arc::clone(shared), key: key.clone(), task: known.task },
            id: known.task,
            shared: Arc::clone(shared),
            target: Arc::clone(key.target()),
            key: key.clone(),
            entry: Arc::clone(&known.entry),
            job: known.job.clone(),
            awaited: known.awaited,
            forgotten: known.forgotten.clone(),
        })
    }

    /// Begins anew what waits on runtimes that nobody drives.
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

    /// Waits for the attempts that have begun. Returns how many repairs are left to be tried again,
    /// or still wait.
    pub(crate) async fn flush(shared: &Arc<Shared>) -> usize {
        let repairs = &shared.repairs;
        let mut jobs: Vec<Job> = Vec::new();
        let mut in_vain = 0;
        // Twice: what a group repair has missed gets a repair of its own when that lands.
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
        // Not whether it is still on the list: its task leaves that a moment after it has told the
        // result.
        let waiting = jobs.iter().filter(|job| job.status.get() == Repair::Pending).count();
        waiting
            + repairs
                .running()
                .values()
                .filter(|running| running.job.status.get() == Repair::Retrying)
                .count()
    }

    /// What the session's calls have not written by now is not to be written: some of them compare
    /// with nothing, since they were served without the store, and would bring back a record that
    /// was removed by order.
    pub(crate) fn forget(&self, session: SessionId) {
        for (key, running) in self.running().iter() {
            if matches!(key, Key::Own(of, ..) if *of == session) {
                running.forgotten.cancel();
            }
        }
    }

    /// What the calls went by that have asked for this repair by now.
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

    /// How many did not land, once all tasks have ended.
    pub(crate) fn unwritten(&self) -> usize {
        self.failed_closing.load(Ordering::Acquire) + self.running().len()
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        lock(&self.running)
    }
}

/// Takes a repair off the list however its task ends, unless another one has taken it over.
struct Slot {
    shared: Arc<Shared>,
    key: Key,
    task: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut running = self.shared.repairs.running();
        if running.get(&self.key).is_none_or(|running| running.task != self.task) {
            return;
        }
        let Some(Running { job, .. }) = running.remove(&self.key) else { return };
        drop(running);
        if job.is_unwritten() {
            // Dropped with its runtime or by the end of closing, or refused after that.
            job.status.set(Repair::Failed);
        }
        job.attempted.send_if_modified(|attempted| match attempted {
            Some(_) => false,
            None => {
                *attempted = Some(Err(Cause::TaskEnded.shared()));
                true
            }
        });
        if job.status.get() == Repair::Failed && self.shared.is_closed() {
            self.shared.repairs.failed_closing.fetch_add(1, Ordering::AcqRel);
        }
    }
}

struct Task {
    _slot: Slot,
    id: u64,
    shared: Arc<Shared>,
    key: Key,
    /// What the call went by that began it.
    entry: Arc<CachedRow>,
    target: Arc<Target>,
    job: Job,
    awaited: bool,
    forgotten: CancellationToken,
}

impl Task {
    async fn run(self) {
        // If another task has taken it over, this one ends where it stands.
        let replaced = CancellationToken::new();
        let sign = || {
            if !self.is_current(Some(Instant::now())) {
                replaced.cancel();
            }
        };
        let write = replaced.run_until_cancelled(self.write());
        with_signs(self.shared.settings.store_timeout, write, sign).await;
    }

    async fn write(&self) {
        let repairs = &self.shared.repairs;
        let give_up = Instant::now() + GIVE_UP_AFTER;
        let mut backoff = BACKOFF;
        loop {
            // Boxed, so that a repair that only waits is small.
            let (attempt, last) = Box::pin(self.attempt(give_up)).await;
            let (repair, attempted) = match attempt {
                Ok((repair, row)) => (repair, Ok(row)),
                Err(error) => (
                    if last { Repair::Failed } else { Repair::Retrying },
                    Err(Arc::new(error) as SharedError),
                ),
            };
            self.tell(repair, attempted);
            if repair != Repair::Retrying {
                return;
            }
            tokio::select! {
                () = repairs.closing.cancelled() => {}
                () = self.forgotten.cancelled() => {}
                () = sleep(backoff.next()) => {}
            }
        }
    }

    /// One attempt, once there is no other statement about these rows, and a connection for the
    /// background unless a call waits for it. Says whether it was the last one.
    async fn attempt(&self, give_up: Instant) -> (Result<Written, StoreError>, bool) {
        let Self { shared, .. } = self;
        let within = shared.settings.store_timeout;
        let mut passes = pin!(async {
            let alone = shared.one_of_a_kind.of(self.key.kind()).pass().await;
            let background = match self.awaited {
                true => None,
                false => Some(shared.background.pass().await),
            };
            (alone, background)
        });
        let (alone, background) = match timeout(within, passes.as_mut()).await {
            Ok(passes) => passes,
            Err(_) => {
                self.job.attempted.send_replace(Some(Err(Cause::Unanswered(within).shared())));
                passes.await
            }
        };
        if !self.is_current(None)
            || self.forgotten.is_cancelled()
            || self.entry.workspace_state.supersedes(&self.target)
        {
            // Somebody's later repair will be right, this one would not.
            return (Ok((Repair::Lost, None)), true);
        }
        let began = Instant::now();
        let closing = || shared.repairs.closing.is_cancelled();
        let last = closing() || began >= give_up;
        let write = async {
            match self.key {
                Key::Own(..) => self.write_own().await,
                Key::Group(_, _, behind, _) => {
                    self.write_group(behind).await.map(|repair| (repair, None))
                }
            }
        };
        let written = alone.hold(async {
            match background {
                Some(background) => background.hold(write).await,
                None => write.await,
            }
        });
        let written = written.await;
        // What had no answer until closing ended the wait is not sent once more.
        (written, last || closing() && began.elapsed() >= shared.settings.store_timeout)
    }

    /// Waits for the answer to a statement, and tells if it is overdue.
    async fn answer<T>(
        &self,
        statement: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut answer = pin!(self.shared.answer(statement));
        let answer = match timeout(self.shared.settings.store_timeout, answer.as_mut()).await {
            Ok(answer) => answer,
            Err(_) => {
                if self.job.status.get() != Repair::Retrying {
                    self.tell(
                        Repair::Retrying,
                        Err(Arc::new(no_answer(self.shared.settings.store_timeout))),
                    );
                }
                answer.await
            }
        };
        self.shared.repairs.answered.fetch_add(1, Ordering::Relaxed);
        answer
    }

    /// Whether no other task has taken the repair over. If not, it was seen to be driven at the
    /// given instant.
    fn is_current(&self, seen: Option<Instant>) -> bool {
        let mut running = self.shared.repairs.running();
        let Some(running) = running.get_mut(&self.key).filter(|running| running.task == self.id)
        else {
            return false;
        };
        running.seen = seen.unwrap_or(running.seen);
        true
    }

    fn tell(&self, repair: Repair, attempted: Attempted) {
        if !self.is_current(None) {
            return;
        }
        self.job.status.set(repair);
        // A repair that is given up after an attempt has failed does not make a success of it: a
        // call may still be about to look, and must not take the row for written.
        let given_up = repair == Repair::Lost && self.forgotten.is_cancelled();
        self.job.attempted.send_modify(|last| {
            if !given_up || !matches!(last, Some(Err(_))) {
                *last = Some(attempted);
            }
        });
        let (workspace, target) = (self.entry.workspace(), &*self.target);
        self.shared.emit(&match self.key {
            Key::Own(session, ..) => Event::Repaired { session, workspace, target, repair },
            Key::Group(..) => Event::WorkspaceRepaired { workspace, target, repair },
        });
    }
}

#[cfg(test)]
mod tests;
