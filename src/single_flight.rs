//! Single flight: one running task for each key, whose result many callers wait for.
//!
//! The work is a task of its own, so it survives the caller that has started it.

use crate::{
    pulse::{has_stopped, patience, with_signs},
    sync::lock,
    tasks::Tasks,
};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    select,
    sync::watch,
    time::{Duration, Instant, sleep_until},
};

/// The progress of a flight, as its waiting callers see it.
#[derive(Debug)]
struct Flying<T> {
    /// When the flight last showed that its runtime is driven.
    seen: Instant,
    answer: Option<T>,
}

/// Waits for the result of a flight. Dropping it changes nothing for the others.
#[derive(Debug)]
pub(crate) struct Waiter<T> {
    id: u64,
    began: Instant,
    every: Duration,
    flying: watch::Receiver<Flying<T>>,
}

impl<T> Clone for Waiter<T> {
    fn clone(&self) -> Self {
        Self { flying: self.flying.clone(), ..*self }
    }
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// The result has not come in time. The flight goes on.
    Late,
    /// The flight has crashed (a panic, the end of its runtime), or the layer was closed.
    Ended,
    /// The runtime of the flight is not driven: joining again begins another flight.
    Stopped,
}

impl<T: Clone> Waiter<T> {
    /// Returns when the flight began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Waits for the result, for `at_most` if that is given. Cancel safe.
    pub(crate) async fn result(&mut self, at_most: Option<Duration>) -> Result<T, Missed> {
        let joined = Instant::now();
        let late_at = at_most.map(|at_most| joined + at_most);
        loop {
            // The guard must not live across an await: it is a lock.
            let (seen, answer) = {
                let flying = self.flying.borrow_and_update();
                (flying.seen, flying.answer.clone())
            };
            if let Some(answer) = answer {
                return Ok(answer);
            }
            let now = Instant::now();
            if has_stopped(seen, self.every, now) {
                return Err(Missed::Stopped);
            }
            let mut until = seen + patience(self.every);
            match late_at {
                // Late only if the runtime was seen to be driven in the meantime. If it was not,
                // the flight has stopped, which the missing sign will show.
                Some(late_at) if late_at <= now && seen > joined => return Err(Missed::Late),
                Some(late_at) if late_at > now => until = until.min(late_at),
                _ => {}
            }
            select! {
                biased;
                changed = self.flying.changed() => changed.map_err(|_| Missed::Ended)?,
                () = sleep_until(until) => {}
            }
        }
    }

    fn has_stopped(&self, now: Instant) -> bool {
        has_stopped(self.flying.borrow().seen, self.every, now)
    }
}

type Running<K, T> = Mutex<HashMap<K, Waiter<T>>>;

/// The running flights, one for each key.
#[derive(Debug)]
pub(crate) struct Flights<K, T> {
    /// The time between two signs of life. A flight whose work ends sooner shows none.
    every: Duration,
    begun: AtomicU64,
    running: Arc<Running<K, T>>,
}

impl<K, T> Flights<K, T>
where
    K: Copy + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, begun: AtomicU64::new(0), running: Arc::default() }
    }

    /// Joins the running flight of `key`, or starts one. A flight whose runtime is not driven is
    /// replaced.
    ///
    /// `landed` returns what the caller would have taken in place of a flight. It is called if none
    /// is running: one that has landed after the caller had looked for its result has left the
    /// result by now.
    pub(crate) fn join<F>(
        &self,
        key: K,
        tasks: &Tasks,
        landed: impl FnOnce() -> Option<T>,
        work: impl FnOnce() -> F,
    ) -> Waiter<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let now = Instant::now();
        let mut running = lock(&self.running);
        if let Some(waiter) = running.get(&key).filter(|waiter| !waiter.has_stopped(now)) {
            return waiter.clone();
        }
        let (found, flying) = watch::channel(Flying { seen: now, answer: None });
        let (id, every) = (self.begun.fetch_add(1, Ordering::Relaxed), self.every);
        let waiter = Waiter { id, began: now, every, flying };
        if let Some(answer) = landed() {
            found.send_modify(|flying| flying.answer = Some(answer));
            return waiter;
        }
        running.insert(key, waiter.clone());
        drop(running);
        let slot = Slot { key, id, running: Arc::clone(&self.running) };
        let work = work();
        // After the layer was closed no task begins: there is no result, as after a crash.
        let _ = tasks.spawn(async move {
            let slot = slot;
            let answer = with_signs(every, work, || {
                found.send_modify(|flying| flying.seen = Instant::now())
            })
            .await;
            // The slot is freed first: a caller that joins from here on gets a flight that began
            // later.
            drop(slot);
            found.send_modify(|flying| flying.answer = Some(answer));
        });
        waiter
    }

    /// Joins the running flight of `key`, if there is one.
    pub(crate) fn running(&self, key: K) -> Option<Waiter<T>> {
        lock(&self.running).get(&key).cloned()
    }

    /// Returns the result of a flight. If `since` is given, the flight began then or later: a
    /// flight that began earlier is waited for, then the next one is joined.
    pub(crate) async fn answer<F>(
        &self,
        since: Option<Instant>,
        at_most: Option<Duration>,
        key: K,
        tasks: &Tasks,
        landed: impl Fn() -> Option<T>,
        work: impl Fn() -> F,
    ) -> Result<T, Missed>
    where
        F: Future<Output = T> + Send + 'static,
    {
        loop {
            let mut waiter = self.join(key, tasks, &landed, &work);
            match waiter.result(at_most).await {
                Err(Missed::Stopped) => {}
                Ok(_) | Err(Missed::Ended) if since.is_some_and(|since| waiter.began() < since) => {
                }
                answer => return answer,
            }
        }
    }

    /// Returns how many flights are under way.
    pub(crate) fn len(&self) -> usize {
        lock(&self.running).len()
    }
}

/// Frees the key however the task ends: done, panicked, or dropped with its runtime. Leaves the key
/// alone if another flight has it by now.
struct Slot<K: Eq + Hash + Copy, T> {
    key: K,
    id: u64,
    running: Arc<Running<K, T>>,
}

impl<K: Eq + Hash + Copy, T> Drop for Slot<K, T> {
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        if running.get(&self.key).is_some_and(|waiter| waiter.id == self.id) {
            running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::{
        runtime::{Builder, Runtime},
        time::sleep,
    };

    const EVERY: Duration = Duration::from_secs(5);

    fn nothing<T>() -> Option<T> {
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_survives_the_caller_that_started_it() {
        let runs = Arc::new(AtomicUsize::new(0));
        let (flights, tasks) = (Flights::<u8, usize>::new(EVERY), Tasks::default());
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                sleep(Duration::from_secs(1)).await;
                runs.fetch_add(1, Ordering::SeqCst) + 7
            }
        };
        let first = flights.join(1, &tasks, nothing, work);
        let mut second = flights.join(1, &tasks, nothing, work);
        drop(first);
        assert_eq!(second.result(None).await, Ok(7));
        assert_eq!((runs.load(Ordering::SeqCst), flights.len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_needs_a_later_read_waits_for_the_next_flight() {
        let runs = Arc::new(AtomicUsize::new(0));
        let (flights, tasks) = (Flights::<u8, usize>::new(EVERY), Tasks::default());
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                let run = runs.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_secs(1)).await;
                run
            }
        };
        let mut early = flights.join(1, &tasks, nothing, work);
        sleep(Duration::from_millis(10)).await;
        let later = flights.answer(Some(Instant::now()), None, 1, &tasks, nothing, work).await;
        assert_eq!((early.result(None).await, later), (Ok(0), Ok(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_landed_result_is_taken_unless_a_flight_is_under_way() {
        let (flights, tasks) = (Flights::<u8, u8>::new(EVERY), Tasks::default());
        let mut landed = flights.join(1, &tasks, || Some(7), std::future::pending);
        assert_eq!((landed.result(None).await, flights.len()), (Ok(7), 0));
        let work = || async { 8 };
        let mut begun = flights.join(1, &tasks, nothing, work);
        let mut joined = flights.join(1, &tasks, || panic!("a flight is under way"), work);
        assert_eq!((begun.result(None).await, joined.result(None).await), (Ok(8), Ok(8)));
    }

    #[tokio::test]
    async fn a_crash_frees_the_key_and_ends_every_wait() {
        let (flights, tasks) = (Flights::<u8, u8>::new(EVERY), Tasks::default());
        let mut first = flights.join(1, &tasks, nothing, || async { panic!("on purpose") });
        let mut second = flights.join(1, &tasks, nothing, || async { 1 });
        assert_eq!(
            (first.result(None).await, second.result(None).await, flights.len()),
            (Err(Missed::Ended), Err(Missed::Ended), 0)
        );
        assert_eq!(flights.join(1, &tasks, nothing, || async { 2 }).result(None).await, Ok(2));
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    }

    #[test]
    fn a_runtime_that_shuts_down_frees_the_key() {
        let (flights, tasks) = (Flights::<u8, u8>::new(EVERY), Tasks::default());
        let first = runtime();
        let mut waiter =
            first.block_on(async { flights.join(1, &tasks, nothing, std::future::pending) });
        drop(first);
        assert_eq!(flights.len(), 0);
        assert_eq!(runtime().block_on(waiter.result(None)), Err(Missed::Ended));
    }

    #[tokio::test(start_paused = true)]
    async fn closing_ends_a_flight_that_does_not_end_by_itself() {
        let (flights, tasks) = (Flights::<u8, u8>::new(EVERY), Tasks::default());
        let mut waiter = flights.join(1, &tasks, nothing, std::future::pending);
        tasks.close(Duration::from_secs(3)).await;
        assert_eq!((waiter.result(None).await, flights.len()), (Err(Missed::Ended), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_result_ends_the_wait_and_the_next_caller_waits_for_the_same_flight() {
        let (flights, tasks) = (Flights::<u8, u8>::new(EVERY), Tasks::default());
        let work = || async {
            sleep(Duration::from_secs(17)).await;
            7
        };
        let begin = Instant::now();
        let joined = |wait| {
            let (flights, tasks) = (&flights, &tasks);
            async move {
                sleep(Duration::from_secs(wait)).await;
                (
                    flights.answer(None, Some(EVERY), 1, tasks, nothing, work).await,
                    begin.elapsed().as_secs(),
                )
            }
        };
        let answers =
            tokio::join!(joined(0), joined(3), joined(5), joined(11), joined(13), joined(16));
        let late = |at| (Err(Missed::Late), at);
        assert_eq!(answers, (late(5), late(8), late(10), late(16), (Ok(7), 17), (Ok(7), 17)));
    }

    #[test]
    fn a_flight_on_a_runtime_that_is_not_driven_is_replaced_and_answers_no_later_caller() {
        let (flights, tasks) = (Flights::<u8, u8>::new(EVERY), Tasks::default());
        let work = |answer: u8| {
            move || async move {
                sleep(Duration::from_secs(2)).await;
                answer
            }
        };
        let undriven = runtime();
        let mut first = undriven.block_on(async { flights.join(1, &tasks, nothing, work(1)) });
        let driven = runtime();
        let mut second = driven.block_on(async {
            let begin = Instant::now();
            assert_eq!(
                flights.join(1, &tasks, nothing, work(2)).result(None).await,
                Err(Missed::Stopped)
            );
            assert!(begin.elapsed() <= EVERY + Duration::from_secs(1));
            flights.join(1, &tasks, nothing, work(2))
        });
        // The first one goes on, and neither frees nor answers the second one.
        assert_eq!(undriven.block_on(first.result(None)), Ok(1));
        assert_eq!(flights.len(), 1);
        driven.block_on(async {
            let mut third = flights.join(1, &tasks, nothing, work(3));
            assert_eq!(
                (second.result(None).await, third.result(None).await, flights.len()),
                (Ok(2), Ok(2), 0)
            );
        });
    }

    #[tokio::test(start_paused = true)]
    async fn after_closing_there_is_no_flight() {
        let (flights, tasks) = (Flights::<u8, u8>::new(EVERY), Tasks::default());
        tasks.close(Duration::ZERO).await;
        let answer =
            flights.answer(Some(Instant::now()), None, 1, &tasks, nothing, || async { 1 }).await;
        assert_eq!((answer, flights.len()), (Err(Missed::Ended), 0));
    }
}
