//! The task of one repair: attempts with pauses, until the repair has landed or is given up.

use crate::{
    Event, Repair, Target,
    backoff::{Backoff, Jitter},
    cache::CachedRow,
    error::{Cause, SharedError},
    pulse::with_signs,
    state::{
        Shared,
        repairs::{Job, Key, Running},
        statement::no_answer,
    },
    store::StoreError,
};
use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
};
use tokio::time::{Duration, Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// The pauses after attempts that failed.
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(15), Jitter::Above);
/// A repair gives up when the store was out of reach for so long. The next call of the session
/// begins another one.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);

/// Writes one repair. However it ends, it takes the repair off the list when it is dropped, unless
/// another task has taken the repair over.
pub(super) struct Task {
    id: u64,
    pub(super) shared: Arc<Shared>,
    pub(super) key: Key,
    /// The row of the call that began the repair.
    pub(super) entry: Arc<CachedRow>,
    job: Job,
    awaited: bool,
    forgotten: CancellationToken,
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut running = self.shared.repairs.running();
        if running.get(&self.key).is_none_or(|running| running.task != self.id) {
            return;
        }
        let Some(Running { job, .. }) = running.remove(&self.key) else { return };
        drop(running);
        if job.is_unwritten() {
            // Dropped with its runtime or at the end of closing, or refused after that.
            job.status.set(Repair::Failed);
        }
        job.attempted.send_if_modified(|attempted| {
            let is_untold = attempted.result.is_none();
            attempted.result.get_or_insert_with(|| Err(Cause::TaskEnded.shared()));
            is_untold
        });
        if job.status.get() == Repair::Failed && self.shared.is_closed() {
            self.shared.repairs.failed_closing.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Task {
    /// A task with the number of the repair's entry on the list.
    pub(super) fn new(shared: Arc<Shared>, key: Key, running: &Running) -> Self {
        Self {
            id: running.task,
            shared,
            key,
            entry: Arc::clone(&running.entry),
            job: running.job.clone(),
            awaited: running.awaited,
            forgotten: running.forgotten.clone(),
        }
    }

    /// The target that answered.
    pub(super) fn target(&self) -> &Arc<Target> {
        self.key.target()
    }

    pub(super) async fn run(self) {
        // If another task takes the repair over, this one returns.
        let replaced = CancellationToken::new();
        let sign = || {
            if !self.is_current(Some(Instant::now())) {
                replaced.cancel();
            }
        };
        let write = replaced.run_until_cancelled(self.write());
        with_signs(self.shared.settings.store_timeout, write, sign).await;
    }

    /// Tries until the repair has landed or is given up.
    async fn write(&self) {
        let repairs = &self.shared.repairs;
        let give_up = Instant::now() + GIVE_UP_AFTER;
        let mut backoff = BACKOFF;
        loop {
            // Boxed, so that a repair that pauses is small.
            let (attempt, last) = Box::pin(self.attempt(give_up)).await;
            let (repair, result) = match attempt {
                Ok(repair) => (repair, Ok(())),
                Err(error) => (
                    if last || self.is_creation() { Repair::Failed } else { Repair::Retrying },
                    Err(Arc::new(error) as SharedError),
                ),
            };
            self.tell(repair, result);
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

    /// Makes one attempt, when no other statement about these rows is unanswered and, unless a call
    /// waits for the repair, one of the connections for background statements is free. Returns
    /// `true` with the result of the last attempt.
    async fn attempt(&self, give_up: Instant) -> (Result<Repair, StoreError>, bool) {
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
            Err(_) if self.is_creation() => {
                return (Err(StoreError::Unavailable(Cause::Unanswered(within).into())), true);
            }
            Err(_) => {
                let unanswered = Some(Err(Cause::Unanswered(within).shared()));
                self.job.attempted.send_modify(|attempted| attempted.result = unanswered);
                passes.await
            }
        };
        if !self.is_current(None)
            || self.forgotten.is_cancelled()
            || self.entry.workspace_state.supersedes(self.target())
        {
            // The row is for a later repair to write.
            return (Ok(Repair::Lost), true);
        }
        let began = Instant::now();
        let closing = || shared.repairs.closing.is_cancelled();
        let last = closing() || began >= give_up;
        let write = async {
            match self.key {
                Key::Own(..) => self.write_own().await,
                Key::Group(_, _, behind, _) => self.write_group(behind).await,
            }
        };
        let written = alone.hold(async {
            match background {
                Some(background) => background.hold(write).await,
                None => write.await,
            }
        });
        let written = written.await;
        // A statement without an answer until closing ended the wait is not sent again.
        (written, last || closing() && began.elapsed() >= shared.settings.store_timeout)
    }

    /// Returns `true` if a call waits for this repair to create the session's row. It fails with
    /// the first attempt, and so does the repair: the next call begins another one, and is not told
    /// of a failure from before.
    fn is_creation(&self) -> bool {
        let Self { shared, entry, .. } = self;
        let is_known = || self.job.row().is_some() || shared.rows.get(entry.row.session).is_some();
        self.awaited && !shared.settings.serve_without_store && !is_known()
    }

    /// Waits for the answer to a statement. Notifies the waiting calls if the answer is overdue.
    pub(super) async fn answer<T>(
        &self,
        verb: &'static str,
        statement: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut answer = pin!(self.shared.answer(verb, statement));
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

    /// Returns `true` if no other task has taken the repair over. `seen`: the instant at which this
    /// one was seen to be driven.
    fn is_current(&self, seen: Option<Instant>) -> bool {
        let mut running = self.shared.repairs.running();
        let Some(running) = running.get_mut(&self.key).filter(|running| running.task == self.id)
        else {
            return false;
        };
        running.seen = seen.unwrap_or(running.seen);
        true
    }

    /// Records the row that the store has returned.
    pub(super) fn found(&self, row: Option<Arc<CachedRow>>) {
        // Waiting calls read the row after the end of the attempt, so none is woken before.
        self.job.attempted.send_if_modified(|attempted| {
            attempted.row = row;
            false
        });
    }

    /// Reports the result of an attempt to the waiting calls and to the observer.
    fn tell(&self, repair: Repair, result: Result<(), SharedError>) {
        if !self.is_current(None) {
            return;
        }
        self.job.status.set(repair);
        // A failed attempt remains the result when the repair is given up afterwards: a call that
        // is about to look must not take the row for written. Nor is what was found before the
        // command a row.
        let given_up = repair == Repair::Lost && self.forgotten.is_cancelled();
        self.job.attempted.send_modify(|attempted| {
            if given_up {
                attempted.row = None;
            }
            if !given_up || !matches!(attempted.result, Some(Err(_))) {
                attempted.result = Some(result.clone());
            }
        });
        let error = result.as_ref().err().map(|error| &**error);
        let (workspace, target) = (self.entry.workspace(), &**self.target());
        self.shared.emit(&match self.key {
            Key::Own(session, ..) => Event::Repaired { session, workspace, target, repair, error },
            Key::Group(..) => Event::WorkspaceRepaired { workspace, target, repair, error },
        });
    }
}
