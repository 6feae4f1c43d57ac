//! A semaphore that survives the runtimes of its users.

use crate::{
    SessionId, WorkspaceId,
    pulse::{has_stopped, with_signs},
    sync::lock,
};
use std::{
    collections::HashMap,
    hash::Hash,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, Weak},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Duration, Instant, timeout},
};

/// The key of statements of which only one is sent at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A command about a session.
    Command(SessionId),
    /// A reset of a workspace.
    Reset(WorkspaceId),
    /// A session's own repair.
    Repair(SessionId),
    /// A group repair of a workspace.
    GroupRepair(WorkspaceId),
    /// A batch of housekeeping.
    Purge,
    /// The loading of recently used rows.
    Warm,
}

/// A semaphore with `most` permits, first in, first out.
///
/// The holder of a [`Pass`] gives a sign of life at each interval. If no sign is seen, the holders,
/// or the first waiters, are on runtimes that are not driven. Then the gate replaces its semaphore,
/// and waiters that are still driven move to the new one.
#[derive(Debug)]
pub(crate) struct Gate {
    most: usize,
    /// The interval between two signs of life.
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    semaphore: Arc<Semaphore>,
    seen: Instant,
}

/// A permit of a [`Gate`].
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    _permit: OwnedSemaphorePermit,
}

impl Gate {
    pub(crate) fn new(most: usize, every: Duration) -> Arc<Self> {
        let state = State { semaphore: Arc::new(Semaphore::new(most)), seen: Instant::now() };
        Arc::new(Self { most, every, state: Mutex::new(state) })
    }

    pub(crate) async fn pass(self: &Arc<Self>) -> Pass {
        loop {
            let semaphore = self.semaphore();
            let mut permit = pin!(semaphore.acquire_owned());
            loop {
                match timeout(self.every, permit.as_mut()).await {
                    Ok(Ok(permit)) => {
                        let pass = Pass { gate: Arc::clone(self), _permit: permit };
                        pass.sign();
                        return pass;
                    }
                    // The semaphore was replaced.
                    Ok(Err(_)) => break,
                    Err(_) => drop(self.semaphore()),
                }
            }
        }
    }

    /// Returns the semaphore to wait at, after replacing it if none of its users is driven.
    fn semaphore(&self) -> Arc<Semaphore> {
        let now = Instant::now();
        let mut state = self.state();
        if state.semaphore.available_permits() == 0 && has_stopped(state.seen, self.every, now) {
            state.semaphore.close();
            *state = State { semaphore: Arc::new(Semaphore::new(self.most)), seen: now };
        }
        Arc::clone(&state.semaphore)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Pass {
    /// Runs the work that the pass is held for.
    pub(crate) async fn hold<T>(self, work: impl Future<Output = T>) -> T {
        let done = with_signs(self.gate.every, work, || self.sign()).await;
        // The next waiter gets its pass now, so the wait for its first sign starts now.
        self.sign();
        done
    }

    fn sign(&self) {
        self.gate.state().seen = Instant::now();
    }
}

/// A gate for each key that is in use.
#[derive(Debug)]
pub(crate) struct Gates<K> {
    most: usize,
    every: Duration,
    gates: Mutex<HashMap<K, Weak<Gate>>>,
}

impl<K: Eq + Hash> Gates<K> {
    pub(crate) fn new(most: usize, every: Duration) -> Self {
        Self { most, every, gates: Mutex::default() }
    }

    pub(crate) fn of(&self, key: K) -> Arc<Gate> {
        let mut gates = lock(&self.gates);
        if let Some(gate) = gates.get(&key).and_then(Weak::upgrade) {
            return gate;
        }
        if gates.len() == gates.capacity() {
            // Unused gates are removed before the map grows.
            gates.retain(|_, gate| gate.strong_count() > 0);
        }
        let gate = Gate::new(self.most, self.every);
        gates.insert(key, Arc::downgrade(&gate));
        gate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::{
        runtime::{Builder, Runtime},
        task::JoinSet,
        time::sleep,
    };

    const EVERY: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_gate_grants_no_more_passes_than_its_limit() {
        let gate = Gate::new(2, EVERY);
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..10 {
            let (gate, inside, most) = (Arc::clone(&gate), Arc::clone(&inside), Arc::clone(&most));
            tasks.spawn(async move {
                let work = async {
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    sleep(Duration::from_secs(20)).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                };
                gate.pass().await.hold(work).await;
            });
        }
        tasks.join_all().await;
        assert_eq!((most.load(Ordering::SeqCst), begin.elapsed()), (2, Duration::from_secs(100)));
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    }

    #[test]
    fn passes_and_queue_places_of_an_undriven_runtime_go_to_other_runtimes() {
        let gate = Gate::new(2, EVERY);
        let undriven = runtime();
        undriven.block_on(async {
            for _ in 0..5 {
                let gate = Arc::clone(&gate);
                tokio::spawn(
                    async move { gate.pass().await.hold(std::future::pending::<()>()).await },
                );
            }
            tokio::task::yield_now().await;
        });
        runtime().block_on(async {
            let begin = Instant::now();
            let (one, two) = tokio::join!(gate.pass(), gate.pass());
            assert!(begin.elapsed() <= 2 * EVERY, "{:?}", begin.elapsed());
            drop((one, two));
        });
        drop(undriven);
        // Passes of the old semaphore that are returned late add no permits to the new one.
        runtime().block_on(async {
            let _both = tokio::join!(gate.pass(), gate.pass());
            let mut third = tokio_test::task::spawn(gate.pass());
            assert!(third.poll().is_pending());
        });
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_has_a_gate_and_unused_gates_are_removed() {
        let gates = Gates::new(1, EVERY);
        let held = gates.of(0).pass().await;
        assert!(tokio_test::task::spawn(async { gates.of(0).pass().await }).poll().is_pending());
        for key in 1..10_000 {
            drop(gates.of(key).pass().await);
        }
        assert!(gates.gates.lock().unwrap().len() < 10);
        assert!(tokio_test::task::spawn(async { gates.of(0).pass().await }).poll().is_pending());
        drop(held);
        gates.of(0).pass().await;
    }
}
