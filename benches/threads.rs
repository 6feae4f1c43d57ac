//! Measures calls of cached sessions from several tasks at once, and look-ups in moka from the same
//! number of tasks.
//!
//! ```text
//! cargo bench --bench threads                  # 11 rounds
//! cargo bench --bench threads -- --rounds 31
//! ```
//!
//! The tasks share a runtime of two threads. A round measures every line once, the layer and moka
//! in turns, and the table has the median of the rounds. Other load on the machine slows both, so
//! only the ratios of one run are comparable:
//!
//! * *of moka*: calls per second, divided by look-ups per second.
//! * *speed-up*: calls per second, divided by those of one task; of the layer, and of moka.
//! * *scales*: the speed-up of the layer, divided by moka's. Below 1, calls contend for more than
//!   the cache's own data.

#![allow(clippy::disallowed_types)] // the benchmark measures real time

use benches::{Dialer, bind, calls, gets, layer, moka, sessions};
use std::{sync::Arc, time::Instant};
use tokio::{runtime::Runtime, task::JoinSet};
use tower::Layer;
use tower_bound_agent::{BoundAgentLayer, BoxError, DialSession, SessionId, store::MemoryStore};

const TASKS: [u64; 4] = [1, 2, 4, 8];
/// Number of calls of one measurement, by all tasks together.
const CALLS: u64 = 240_000;

/// Layer and cache, with the same sessions in both.
struct Cached {
    name: &'static str,
    sessions: Arc<[SessionId]>,
    layer: BoundAgentLayer,
    moka: moka::sync::Cache<SessionId, Arc<u8>>,
}

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    // Without `--bench`, as in `cargo test --all-targets`, everything runs once and briefly.
    let (mut rounds, mut each, mut many) = (1, 800, 100);
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--bench" => (rounds, each, many) = (11, CALLS, 100_000),
            "--rounds" => rounds = arguments.next().ok_or("how many rounds?")?.parse()?,
            _ => {}
        }
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let cached = |name, n| {
        let (sessions, layer) = (sessions(n), layer(MemoryStore::new()));
        runtime.block_on(bind(&layer, &sessions));
        let moka = moka(&sessions);
        Cached { name, sessions: sessions.into(), layer, moka }
    };
    for cached in [cached("one session", 1), cached("many sessions", many)] {
        // For each number of tasks, the rates of the rounds.
        let mut rates = TASKS.map(|_| (Vec::new(), Vec::new()));
        for round in 0..rounds {
            for (tasks, (layer, moka)) in TASKS.into_iter().zip(&mut rates) {
                // The second one finds warmer caches of the processor, so the order alternates.
                if round % 2 == 0 {
                    layer.push(cached.calls(&runtime, tasks, each));
                    moka.push(cached.gets(&runtime, tasks, each));
                } else {
                    moka.push(cached.gets(&runtime, tasks, each));
                    layer.push(cached.calls(&runtime, tasks, each));
                }
            }
        }
        println!(
            "\n{:<14} {:>12} {:>12} {:>8} {:>16} {:>7}",
            cached.name, "calls/s", "moka/s", "of moka", "speed-up (moka)", "scales"
        );
        let median_of = |rate: &dyn Fn(usize) -> f64| median((0..rounds).map(rate).collect());
        for (tasks, (layer, moka)) in TASKS.into_iter().zip(&rates) {
            let (layer_of_one, moka_of_one) = &rates[0];
            let faster = |round| layer[round] / layer_of_one[round];
            let moka_faster = |round| moka[round] / moka_of_one[round];
            println!(
                "{:<14} {:>12.0} {:>12.0} {:>8.2} {:>7.2} ({:>6.2}) {:>7.2}",
                format!("{tasks} tasks"),
                median_of(&|round| layer[round]),
                median_of(&|round| moka[round]),
                median_of(&|round| layer[round] / moka[round]),
                median_of(&faster),
                median_of(&moka_faster),
                median_of(&|round| faster(round) / moka_faster(round)),
            );
        }
    }
    Ok(())
}

impl Cached {
    /// Returns the calls per second of this number of tasks.
    fn calls(&self, runtime: &Runtime, tasks: u64, each: u64) -> f64 {
        rate(runtime, tasks, each, |task| {
            let service = self.layer.layer(Dialer { pending_once: false });
            let sessions = Arc::clone(&self.sessions);
            async move {
                calls(service, each / tasks, |i| DialSession::new(at(&sessions, task, i))).await;
            }
        })
    }

    /// Returns the look-ups per second of this number of tasks.
    fn gets(&self, runtime: &Runtime, tasks: u64, each: u64) -> f64 {
        rate(runtime, tasks, each, |task| {
            let (moka, sessions) = (self.moka.clone(), Arc::clone(&self.sessions));
            async move {
                gets(&moka, each / tasks, |i| at(&sessions, task, i));
            }
        })
    }
}

/// Returns the session of a task's call. Each task has a random order of its own.
fn at(sessions: &[SessionId], task: u64, i: u64) -> SessionId {
    let at = (i + task * 12_345).wrapping_mul(48_271) % sessions.len() as u64;
    sessions[at as usize]
}

fn rate<F>(runtime: &Runtime, tasks: u64, each: u64, work: impl Fn(u64) -> F) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let began = Instant::now();
    let mut running = JoinSet::new();
    for task in 0..tasks {
        running.spawn_on(work(task), runtime.handle());
    }
    runtime.block_on(running.join_all());
    each as f64 / began.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
