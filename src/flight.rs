//! Single flight: one running question that many wait for.
//!
//! The work is a task of its own, so it survives the one who started it; the others only wait for what it finds.

use crate::tasks::Tasks;
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::watch, time::Instant};

/// A seat in a flight. Dropping it changes nothing for the others.
#[derive(Debug)]
pub(crate) struct Seat<T> {
    began: Instant,
    landed: watch::Receiver<Option<T>>,
}

impl<T> Clone for Seat<T> {
    fn clone(&self) -> Self {
        Self { began: self.began, landed: self.landed.clone() }
    }
}

impl<T: Clone> Seat<T> {
    /// When the question began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// `None` if the flight crashed (a panic, the end of its runtime). Cancel safe.
    pub(crate) async fn landed(&mut self) -> Option<T> {
        // The guard of `wait_for` must not live across an await: it is a lock.
        self.landed.wait_for(Option::is_some).await.ok().and_then(|found| found.clone())
    }
}

type Running<K, T> = Mutex<HashMap<K, Seat<T>>>;

/// The running flights, one a key.
#[derive(Debug)]
pub(crate) struct Flights<K, T> {
    running: Arc<Running<K, T>>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

impl<K, T> Flights<K, T>
where
    K: Copy + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Takes a seat in the running flight of `key`, or starts one.
    pub(crate) fn join<F>(&self, key: K, tasks: &Tasks, work: impl FnOnce() -> F) -> Seat<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut running = lock(&self.running);
        if let Some(seat) = running.get(&key) {
            return seat.clone();
        }
        let (found, landed) = watch::channel(None);
        let seat = Seat { began: Instant::now(), landed };
        running.insert(key, seat.clone());
        drop(running);
        let slot = Slot { key, running: Arc::clone(&self.running) };
        let work = work();
        tasks.spawn(async move {
            let slot = slot;
            let answer = work.await;
            // The slot goes first: who joins from here on gets a flight that began later.
            drop(slot);
            let _ = found.send(Some(answer));
        });
        seat
    }

    /// A seat in the running flight of `key`, if there is one.
    #[cfg(feature = "http")]
    pub(crate) fn running(&self, key: K) -> Option<Seat<T>> {
        lock(&self.running).get(&key).cloned()
    }

    /// The answer of a flight that began at `since` or later: one that began earlier is waited for, then the next one
    /// is joined.
    pub(crate) async fn join_since<F>(&self, since: Instant, key: K, tasks: &Tasks, work: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        loop {
            let mut seat = self.join(key, tasks, &work);
            let answer = seat.landed().await;
            if seat.began() >= since {
                return answer;
            }
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.running).len()
    }
}

/// Frees the key however the task ends: done, panicked, or dropped with its runtime.
struct Slot<K: Eq + Hash + Copy, T> {
    key: K,
    running: Arc<Running<K, T>>,
}

impl<K: Eq + Hash + Copy, T> Drop for Slot<K, T> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::time::{Duration, sleep};

    #[tokio::test(start_paused = true)]
    async fn a_flight_survives_its_starter() {
        let runs = Arc::new(AtomicUsize::new(0));
        let (flights, tasks) = (Flights::<u8, usize>::default(), Tasks::default());
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                sleep(Duration::from_secs(1)).await;
                runs.fetch_add(1, Ordering::SeqCst) + 7
            }
        };
        let first = flights.join(1, &tasks, work);
        let mut second = flights.join(1, &tasks, work);
        drop(first);
        assert_eq!(second.landed().await, Some(7));
        assert_eq!((runs.load(Ordering::SeqCst), flights.len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_needs_a_later_read_waits_for_the_next_flight() {
        let runs = Arc::new(AtomicUsize::new(0));
        let (flights, tasks) = (Flights::<u8, usize>::default(), Tasks::default());
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                let run = runs.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_secs(1)).await;
                run
            }
        };
        let mut early = flights.join(1, &tasks, work);
        sleep(Duration::from_millis(10)).await;
        let later = flights.join_since(Instant::now(), 1, &tasks, work).await;
        assert_eq!((early.landed().await, later), (Some(0), Some(1)));
    }

    #[tokio::test]
    async fn a_crash_frees_the_key_and_tells_everyone() {
        let (flights, tasks) = (Flights::<u8, u8>::default(), Tasks::default());
        let mut first = flights.join(1, &tasks, || async { panic!("on purpose") });
        let mut second = flights.join(1, &tasks, || async { 1 });
        assert_eq!((first.landed().await, second.landed().await, flights.len()), (None, None, 0));
        assert_eq!(flights.join(1, &tasks, || async { 2 }).landed().await, Some(2));
    }

    #[test]
    fn a_runtime_that_goes_frees_the_key() {
        let (flights, tasks) = (Flights::<u8, u8>::default(), Tasks::default());
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = runtime();
        let mut seat = first.block_on(async { flights.join(1, &tasks, std::future::pending) });
        drop(first);
        assert_eq!(flights.len(), 0);
        assert_eq!(runtime().block_on(seat.landed()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn closing_ends_what_does_not_end_by_itself() {
        let (flights, tasks) = (Flights::<u8, u8>::default(), Tasks::default());
        let mut seat = flights.join(1, &tasks, std::future::pending);
        tasks.close(Duration::from_secs(3)).await;
        assert_eq!((seat.landed().await, flights.len()), (None, 0));
    }
}
