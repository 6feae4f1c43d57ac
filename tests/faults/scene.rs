//! Parts that the tests of every database share: waiting, and continuous turns.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use support::*;
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Duration, Instant, sleep, timeout},
};
use tower_bound_agent::{AgentId, BoundAgentLayer, Error, Repair, SessionId, store::StoreError};

/// Polls until other tasks have made the condition true.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(90);
    while Instant::now() < end {
        if let Some(found) = look().await {
            return found;
        }
        sleep(ms(10)).await;
    }
    panic!("waited too long until {what}");
}

pub(crate) async fn until_true(what: &str, mut look: impl AsyncFnMut() -> bool) {
    until(what, async || look().await.then_some(())).await;
}

/// Awaits a future that must end even if the server fails.
pub(crate) async fn ends<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), what).await.expect("the future ends by itself")
}

/// Returns the store's error within an error of a call or a command.
pub(crate) fn store_error(error: &Error) -> &StoreError {
    error
        .store_error()
        .and_then(|cause| cause.downcast_ref())
        .unwrap_or_else(|| panic!("{error:?}"))
}

/// The turns of one session so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    pub(crate) all: u64,
    /// The agent that answered last, and the repair of that outcome.
    pub(crate) last: Option<(AgentId, Repair)>,
}

#[derive(Default)]
struct Seen {
    sessions: BTreeMap<SessionId, Turns>,
    longest: Duration,
    repairs: Vec<Repair>,
    errors: Vec<String>,
}

/// Sessions that make turns continuously, with one task for each group.
pub(crate) struct Load {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(world: &World, layer: &BoundAgentLayer, groups: &[Vec<SessionId>]) -> Self {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let mut tasks = JoinSet::new();
        for group in groups {
            let (dial, group) = (world.dial(layer), group.clone());
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            tasks.spawn(async move {
                for session in group.into_iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let begin = Instant::now();
                    let bound = call(&dial, session).await;
                    let mut seen = seen.lock().unwrap();
                    seen.longest = seen.longest.max(begin.elapsed());
                    match bound {
                        Ok(bound) => {
                            let turns = seen.sessions.entry(session).or_default();
                            turns.all += 1;
                            let repair = bound.outcome().repair();
                            turns.last = Some((bound.agent, repair));
                            if !seen.repairs.contains(&repair) {
                                seen.repairs.push(repair);
                            }
                        }
                        Err(error) => seen.errors.push(format!("{error:?}")),
                    }
                }
            });
        }
        Self { seen, stop, tasks }
    }

    pub(crate) fn turns(&self, session: SessionId) -> Turns {
        self.seen.lock().unwrap().sessions.get(&session).cloned().unwrap_or_default()
    }

    /// Waits until each session has made `more` turns.
    pub(crate) async fn go_on(&self, sessions: &[SessionId], more: u64) {
        let goals: Vec<_> =
            sessions.iter().map(|session| (*session, self.turns(*session).all + more)).collect();
        until_true("the turns go on", async || {
            goals.iter().all(|(session, goal)| self.turns(*session).all >= *goal)
        })
        .await;
    }

    /// Waits until each session talks to this agent.
    pub(crate) async fn talks_to(&self, sessions: &[SessionId], agent: AgentId) {
        until_true("the sessions talk to the new agent", async || {
            sessions
                .iter()
                .all(|session| self.turns(*session).last.is_some_and(|(last, _)| last == agent))
        })
        .await;
    }

    /// Waits until the repair of one session is being retried.
    pub(crate) async fn is_retrying(&self, sessions: &[SessionId]) {
        until_true("a write has failed", async || {
            sessions.iter().any(|session| {
                self.turns(*session).last.is_some_and(|(_, last)| last == Repair::Retrying)
            })
        })
        .await;
    }

    /// Waits for the turns that have begun. Asserts that no turn failed and that no repair
    /// was lost or failed. Returns the number of turns, and the duration of the longest.
    pub(crate) async fn end(mut self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        let seen = self.seen.lock().unwrap();
        assert_eq!(seen.errors, Vec::<String>::new());
        assert!(
            !seen.repairs.iter().any(|repair| matches!(repair, Repair::Lost | Repair::Failed)),
            "{:?}",
            seen.repairs
        );
        (seen.sessions.values().map(|turns| turns.all).sum(), seen.longest)
    }
}

/// Waits until the number of tasks is no greater than before.
pub(crate) async fn no_task_is_left(before: usize) {
    until_true("the tasks have ended", async || {
        Handle::current().metrics().num_alive_tasks() <= before
    })
    .await;
}
