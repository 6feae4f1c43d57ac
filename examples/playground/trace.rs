//! What happened in a turn, step by step.

use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::{Duration, Instant};
use tower_bound_agent::{Event, Repair, Resolution, SessionId, Target, WorkspaceId};

/// More steps of one turn are left out.
const MOST_STEPS: usize = 24;

/// The steps of a turn. The dialer finds it in the extensions of its request.
pub(crate) struct Trace {
    pub(crate) began: Instant,
    steps: Mutex<Vec<Step>>,
}

struct Step {
    kind: &'static str,
    what: String,
    /// Milliseconds since the turn began. A question may have begun before the turn that it helps.
    from: f64,
    to: f64,
    result: String,
    good: bool,
}

impl Trace {
    pub(crate) fn begin() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), steps: Mutex::default() })
    }

    /// Adds a step that ends now.
    pub(crate) fn add(
        &self,
        kind: &'static str,
        what: impl Into<String>,
        took: Duration,
        result: Result<String, String>,
    ) {
        let to = ms(self.began.elapsed());
        let from = to - ms(took);
        let good = result.is_ok();
        let (Ok(result) | Err(result)) = result;
        let mut steps = lock(&self.steps);
        if steps.len() < MOST_STEPS {
            steps.push(Step { kind, what: what.into(), from, to, result, good });
        }
    }

    fn has(&self, kind: &str) -> bool {
        lock(&self.steps).iter().any(|step| step.kind == kind)
    }

    pub(crate) fn json(&self) -> Value {
        let mut steps: Vec<_> = lock(&self.steps)
            .iter()
            .map(|step| {
                json!({
                    "kind": step.kind, "what": step.what, "from": round(step.from), "to": round(step.to),
                    "result": step.result, "good": step.good,
                })
            })
            .collect();
        steps.sort_by(|a, b| {
            a["from"].as_f64().partial_cmp(&b["from"].as_f64()).unwrap_or(std::cmp::Ordering::Equal)
        });
        steps.into()
    }
}

/// A dial under way. Dropping it records that the dial was dropped.
pub(crate) struct Dial {
    trace: Arc<Trace>,
    what: String,
    began: Instant,
    ended: bool,
}

impl Dial {
    pub(crate) fn begin(trace: Arc<Trace>, what: String) -> Self {
        Self { trace, what, began: Instant::now(), ended: false }
    }

    pub(crate) fn end(mut self, result: Result<String, String>) {
        self.ended = true;
        self.trace.add("dial", std::mem::take(&mut self.what), self.began.elapsed(), result);
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        if !self.ended {
            let what = std::mem::take(&mut self.what);
            self.trace.add("dial", what, self.began.elapsed(), Err("dropped".into()));
        }
    }
}

/// The last trace of each session of the crate's lane, for the observer and the store.
#[derive(Clone, Default)]
pub(crate) struct Traces(Arc<Mutex<HashMap<SessionId, Traced>>>);

struct Traced {
    workspace: WorkspaceId,
    trace: Arc<Trace>,
    pending: bool,
}

impl Traces {
    pub(crate) fn begin(&self, session: SessionId, workspace: WorkspaceId, trace: Arc<Trace>) {
        lock(&self.0).insert(session, Traced { workspace, trace, pending: true });
    }

    pub(crate) fn end(&self, session: SessionId) {
        if let Some(traced) = lock(&self.0).get_mut(&session) {
            traced.pending = false;
        }
    }

    pub(crate) fn of(&self, session: SessionId) -> Option<Arc<Trace>> {
        lock(&self.0).get(&session).map(|traced| Arc::clone(&traced.trace))
    }

    /// Adds a repair of a whole workspace to the turns that led to it.
    pub(crate) fn repaired(
        &self,
        workspace: WorkspaceId,
        kind: &'static str,
        what: &str,
        took: Duration,
        result: &Result<String, String>,
    ) {
        for traced in lock(&self.0).values() {
            if traced.workspace == workspace
                && !traced.trace.has(kind)
                && traced.trace.has("switch")
            {
                traced.trace.add(kind, what, took, result.clone());
            }
        }
    }

    /// The observer of the crate's lane.
    pub(crate) fn observe(&self, event: &Event<'_>) {
        let at_once = Duration::ZERO;
        match event {
            Event::Validated { workspace, took, answer, .. } => {
                let result = match answer {
                    Ok(resolution) => Ok(match resolution {
                        Resolution::Running(target) => build(target),
                        other => other.as_str().to_owned(),
                    }),
                    Err(error) => Err(error.to_string()),
                };
                for traced in lock(&self.0).values() {
                    if traced.workspace == *workspace && traced.pending {
                        traced.trace.add("validation", "ask the resolver", *took, result.clone());
                    }
                }
            }
            Event::Switched { session, from, to, .. } => {
                if let Some(trace) = self.of(*session) {
                    let what = format!("{} → {}", build(from), build(to));
                    trace.add("switch", what, at_once, Ok("switched".into()));
                }
            }
            Event::Repaired { session, repair, .. } => {
                if let Some(trace) = self.of(*session) {
                    trace.add("repair", "repair of the row", at_once, repaired(*repair));
                }
            }
            Event::WorkspaceRepaired { workspace, repair, .. } => {
                let what = "repair of the workspace's rows";
                self.repaired(*workspace, "repair", what, at_once, &repaired(*repair));
            }
            _ => {}
        }
    }
}

fn repaired(repair: Repair) -> Result<String, String> {
    let word = repair.as_str().replace('_', " ");
    if matches!(repair, Repair::Written | Repair::NotNeeded) { Ok(word) } else { Err(word) }
}

pub(crate) fn build(target: &Target) -> String {
    match target.generation {
        Some(generation) => format!("build {}", generation.get()),
        None => "an agent".to_owned(),
    }
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

pub(crate) fn round(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
