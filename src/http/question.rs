//! Validation of agents that do not begin to answer.
//!
//! A request without a response head is validated as a slow dial is: the resolver is asked in the
//! background whether the session has another target. The delay is longer than for dials, since
//! healthy agents may take long to answer. A budget bounds the questions, so that agents which
//! become slower do not cause a query for each request. News from other sources reaches a waiting
//! request at once.

use super::outgoing::Progress;
use crate::{
    BoundHandle, Target,
    single_flight::{Missed, Waiter},
    state::{Validated, standing::Superseded},
    sync::lock,
};
use std::{
    future::pending,
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};
use tokio::{
    select,
    time::{Duration, Instant, sleep, sleep_until},
};

/// Requests are not watched before this time, since most have their answer by then.
const UNWATCHED: Duration = Duration::from_millis(5);
/// Upper bound of the delay, however late an agent's answers usually begin.
const LATEST: Duration = Duration::from_secs(15);

/// Histogram of an agent's times to the response head. Buckets are powers of two of a millisecond,
/// and old values decay.
#[derive(Debug, Default)]
pub(super) struct HeadTimes(Mutex<Histogram>);

const BUCKETS: usize = 20;
/// When the total exceeds this number, all counts are halved.
const REMEMBERED: u32 = 256;

#[derive(Debug, Default)]
struct Histogram {
    counts: [u32; BUCKETS],
    total: u32,
}

impl HeadTimes {
    pub(super) fn record(&self, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - millis.leading_zeros()) as usize;
        let mut histogram = match self.0.try_lock() {
            Ok(histogram) => histogram,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // The statistics need not be complete; requests must not wait for each other.
            Err(TryLockError::WouldBlock) => return,
        };
        histogram.counts[bucket.min(BUCKETS - 1)] += 1;
        histogram.total += 1;
        if histogram.total > REMEMBERED {
            histogram.counts.iter_mut().for_each(|count| *count /= 2);
            histogram.total = histogram.counts.iter().sum();
        }
    }

    /// Returns how long a request waits before the resolver is asked: `floor`, or the 95th
    /// percentile plus a quarter.
    fn question_after(&self, floor: Duration) -> Duration {
        let histogram = lock(&self.0);
        let mut later = histogram.total / 20;
        for (bucket, count) in histogram.counts.iter().enumerate().rev() {
            if *count > later {
                let upper = Duration::from_millis(1 << bucket);
                return floor.max((upper + upper / 4).min(LATEST));
            }
            later -= count;
        }
        floor
    }
}

/// Budget of questions: one for every 100 requests, and bursts of 100.
#[derive(Debug)]
pub(super) struct Budget(AtomicU32);

const PRICE: u32 = 100;
const MOST_SAVED: u32 = 100 * PRICE;

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU32::new(MOST_SAVED))
    }
}

impl Budget {
    /// Adds one request's share to the budget.
    pub(super) fn earn(&self) {
        // The budget is nearly always full, so this is usually one load.
        if self.0.load(Ordering::Relaxed) < MOST_SAVED {
            let more = |saved: u32| (saved < MOST_SAVED).then_some(saved + 1);
            let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        }
    }

    fn spend(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| saved.checked_sub(PRICE))
            .is_ok()
    }
}

/// How long a request waits for its response head, and what ends the wait.
pub(super) struct Watch<'a> {
    pub(super) heads: &'a HeadTimes,
    pub(super) budget: &'a Budget,
    /// How long the agent may neither read nor answer.
    pub(super) within: Option<Duration>,
    /// How long the connection may take to start the request.
    pub(super) queued_within: Duration,
    pub(super) question_after: Option<Duration>,
    /// Returns `true` if the request stops waiting once its session has another agent.
    pub(super) leaves: &'a (dyn Fn() -> bool + Send + Sync),
    /// Set once the request has waited longer than `UNWATCHED`.
    pub(super) is_watched: AtomicBool,
}

/// Why the wait for a response ended.
pub(super) enum WaitEnded {
    /// The agent did not answer in time.
    TimedOut,
    /// The session has another target, which is given if it is known.
    Superseded(Option<Arc<Target>>),
    /// The connection has ended.
    Connection,
}

impl Watch<'_> {
    /// Records that the response has begun. The time is not read for immediate responses.
    pub(super) fn answered(&self, progress: &Progress) {
        if !self.is_watched.load(Ordering::Relaxed) {
            self.heads.record(Duration::ZERO);
        } else if let Some(since) = progress.silent_since() {
            self.heads.record(since.elapsed());
        }
    }

    /// Resolves when the request is to wait no longer.
    pub(super) async fn over(
        &self,
        handle: &BoundHandle,
        progress: &Progress,
        gone: impl Future<Output = ()>,
    ) -> WaitEnded {
        // One timer, which nearly every request drops before it fires.
        sleep(self.within.map_or(UNWATCHED, |within| within.min(UNWATCHED))).await;
        self.is_watched.store(true, Ordering::Relaxed);
        // Boxed, so that a request which is answered soon does not carry the room for it.
        let superseded = Box::pin(self.superseded(handle, progress));
        select! {
            () = self.silence(progress) => WaitEnded::TimedOut,
            target = superseded => WaitEnded::Superseded(target),
            () = gone => WaitEnded::Connection,
        }
    }

    /// Resolves when the agent was silent for too long in its turn.
    async fn silence(&self, progress: &Progress) {
        let Some(within) = self.within else { return pending().await };
        loop {
            let now = Instant::now();
            let at = match progress.queued_since() {
                // Counted from when the stream is open, but the connection may not take for ever to
                // open it.
                Some(since) => since + self.queued_within + within,
                // While the request waits for its caller, the delay starts anew.
                None => progress.silent_since().unwrap_or(now) + within,
            };
            if at <= now {
                return;
            }
            // If the stream opens meanwhile, its deadline is earlier than that of a queued request.
            sleep_until(at.min(now + within)).await;
        }
    }

    /// Waits until the session has another target. Asks the resolver if the agent is late or in
    /// doubt.
    async fn superseded(&self, handle: &BoundHandle, progress: &Progress) -> Option<Arc<Target>> {
        let (shared, mut entry, target) = handle.watched();
        let place = Arc::clone(&entry.workspace_state);
        let session = entry.row.session;
        let mut question: Option<Waiter<Validated>> = None;
        // The latest doubt that was asked about, so that each is asked about once.
        let mut asked: Option<Instant> = None;
        let mut not_before = Instant::now();
        loop {
            // Created before the comparison, so that no change is missed in between.
            let (row_changed, place_changed) = (shared.rows.changed(session), place.changed());
            match shared.superseded(&entry, &target).await {
                Superseded::No => {}
                Superseded::Yes if (self.leaves)() => return shared.target_of(session),
                // The agent is draining: later news cannot bring the session back to it.
                Superseded::Yes => return pending().await,
                Superseded::Reread(row) => {
                    entry = row;
                    continue;
                }
            }
            let now = Instant::now();
            let mut look_again = None;
            if question.is_none() {
                // A report about this connection fails the request soon. Whether the agent was
                // replaced is left to the next call, which may come later.
                let (choice, _) = shared.choose(&entry);
                let doubt =
                    choice.doubt().filter(|doubt| Some(*doubt) > asked && !handle.is_reported());
                if let Some(since) = doubt {
                    asked = doubt;
                    question = Some(shared.validate(&place, since));
                } else if let Some(floor) = self.question_after {
                    let after = self.heads.question_after(floor);
                    // Not before then, if it is the caller's turn.
                    let late = progress.silent_since().unwrap_or(now) + after;
                    let at = late.max(not_before).max(place.paused_until(now).unwrap_or(now));
                    if at > now {
                        look_again = Some(at);
                    } else if let Some(running) = shared.validations.running(place.workspace()) {
                        // Another request, or a dial, has asked already.
                        asked = Some(now);
                        question = Some(running);
                    } else if self.budget.spend() {
                        asked = Some(now);
                        question = Some(shared.validate(&place, now));
                    } else {
                        not_before = now + after;
                        look_again = Some(not_before);
                    }
                }
            }
            select! {
                () = row_changed => {}
                () = place_changed => {}
                again = answered(&mut question) => {
                    // If its runtime has stopped, start another question here.
                    question = (again == Err(Missed::Stopped)).then(|| shared.validate(&place, now));
                    // The loop compares again after the answer.
                    not_before = again.unwrap_or(now + LATEST);
                }
                () = at(look_again) => {}
            }
        }
    }
}

/// Waits for the answer and returns when to ask again; pending while there is no question.
async fn answered(question: &mut Option<Waiter<Validated>>) -> Result<Instant, Missed> {
    match question {
        Some(waiter) => waiter.result(None).await.map(|validated| validated.again),
        None => pending().await,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_delay_exceeds_the_95th_percentile_of_answers() {
        let (heads, floor) = (HeadTimes::default(), Duration::from_secs(2));
        assert_eq!(heads.question_after(floor), floor);
        for _ in 0..200 {
            heads.record(Duration::from_millis(5));
        }
        // One in twenty is above the 95th percentile.
        for _ in 0..10 {
            heads.record(Duration::from_secs(10));
        }
        assert_eq!(heads.question_after(floor), floor);
        for _ in 0..300 {
            heads.record(Duration::from_secs(3));
        }
        assert_eq!(heads.question_after(floor), Duration::from_millis(4096 + 1024));
        for _ in 0..2_000 {
            heads.record(Duration::from_secs(3_600_000));
        }
        assert_eq!(heads.question_after(floor), LATEST);
        for _ in 0..2_000 {
            heads.record(Duration::ZERO);
        }
        assert_eq!(heads.question_after(floor), floor);
    }

    #[test]
    fn after_a_burst_of_100_the_budget_allows_one_question_per_100_requests() {
        let budget = Budget::default();
        let mut questions = 0;
        for _ in 0..50_000 {
            budget.earn();
            questions += u32::from(budget.spend());
        }
        // The first request finds the budget full.
        assert_eq!(questions, 100 + 499);
    }
}
