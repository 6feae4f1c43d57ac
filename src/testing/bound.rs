//! Connections as a call returns them.

use crate::{
    Binding, Bindings, Bound, BoundAgentLayer, BoundHandle, Event, Outcome, OutcomeKind, Repair,
    Resolution, ResolveWorkspace, Revision, SessionId, Target, WorkspaceId,
    store::{BindingStore, MemoryStore, NewBinding},
};
use futures_util::FutureExt;
use std::{
    convert::Infallible,
    future::{Pending, pending},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};
use tokio::time::Instant;
use tower_service::Service;

/// Makes a [`Bound`] without a dial: for tests of code that takes one, and for a double of the
/// wrapped service.
///
/// Behind it is a layer of its own, over a store in memory with the one row, and with a resolver
/// that never answers. So nothing happens by itself:
///
/// * [`superseded`](BoundHandle::superseded) never resolves, until [`BoundControl::supersede`] is
///   called,
/// * [`report_stale`](BoundHandle::report_stale) is counted by [`BoundControl::is_reported_stale`],
/// * [`in_use`](BoundHandle::in_use) and the connection itself are counted by
///   [`BoundControl::connections_in_use`],
/// * [`Outcome::repair`] stays as the outcome has it.
///
/// Neither `new` nor `build` needs a runtime; `superseded` does.
///
/// ```
/// use tower_bound_agent::{Bound, testing::BoundBuilder};
/// # use tower_bound_agent::{AgentId, SessionId, Target, WorkspaceId};
/// # use uuid::Uuid;
///
/// /// Code of the application: it gives a connection up that answers nonsense.
/// fn handshake(agent: &Bound<&str>) -> bool {
///     let understood = **agent == "hello";
///     if !understood {
///         agent.report_stale();
///     }
///     understood
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// # let (session, workspace) = (SessionId::new(Uuid::from_u128(1)), WorkspaceId::new(Uuid::from_u128(2)));
/// # let target = Target::new(AgentId::new(Uuid::from_u128(3))).with_generation(7);
/// let (bound, control) = BoundBuilder::new(session, workspace, target).build("what?");
/// assert!(!handshake(&bound));
/// assert!(control.is_reported_stale());
///
/// control.supersede();
/// bound.handle().superseded().await;
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct BoundBuilder {
    session: SessionId,
    workspace: WorkspaceId,
    target: Arc<Target>,
    outcome: Outcome,
}

/// The control of a [`Bound`] that [`BoundBuilder`] has made.
#[derive(Debug)]
pub struct BoundControl {
    bindings: Bindings,
    workspace: WorkspaceId,
    target: Arc<Target>,
    reported: Arc<AtomicBool>,
}

/// A resolver that never answers.
#[derive(Clone, Copy)]
pub(super) struct Silent;

impl Service<ResolveWorkspace> for Silent {
    type Response = Resolution;
    type Error = Infallible;
    type Future = Pending<Result<Resolution, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: ResolveWorkspace) -> Self::Future {
        pending()
    }
}

impl BoundBuilder {
    /// Starts with a session whose row names this target, and the outcome
    /// [`Reused`](OutcomeKind::Reused).
    pub fn new(session: SessionId, workspace: WorkspaceId, target: Target) -> Self {
        let outcome = Outcome::with(OutcomeKind::Reused, Repair::NotNeeded);
        Self { session, workspace, target: Arc::new(target), outcome }
    }

    /// Sets the outcome: see [`outcome`](super::outcome).
    pub fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// Returns the connection as a call returns it, and its control.
    pub fn build<C>(self, connection: C) -> (Bound<C>, BoundControl) {
        let Self { session, workspace, target, outcome } = self;
        let store = MemoryStore::new();
        let row = NewBinding::new(session, workspace, Some(Arc::clone(&target)));
        // The store in memory never waits.
        let created = store.create(row).now_or_never();
        debug_assert!(matches!(created, Some(Ok(_))), "the store in memory refuses nothing");
        let reported = Arc::new(AtomicBool::new(false));
        let observed = Arc::clone(&reported);
        let layer = BoundAgentLayer::builder(store, Silent).observer(move |event: &Event<'_>| {
            if let Event::ReportedStale { .. } = event {
                observed.store(true, Ordering::Relaxed);
            }
        });
        let layer = layer.build().expect("the default settings do not contradict each other");
        let shared = layer.shared();
        let token = shared.rows.read_token(session);
        let row = Binding::new(session, workspace, Some(Arc::clone(&target)), Revision::new(1));
        let entry = shared.learn(row, token);
        let handle = BoundHandle::new(Arc::clone(shared), entry, Arc::clone(&target), outcome);
        let bound = Bound::new(connection, handle, Some(Instant::now()));
        (bound, BoundControl { bindings: layer.bindings(), workspace, target, reported })
    }
}

impl BoundControl {
    /// Makes [`superseded`](BoundHandle::superseded) resolve: the layer learns of another agent of
    /// the workspace, with the next generation if the target has one.
    pub fn supersede(&self) {
        let mut agent = self.target.agent.into_uuid().as_u128();
        agent ^= 1;
        let mut newer = Target::new(uuid::Uuid::from_u128(agent).into());
        newer.generation = self
            .target
            .generation
            .map(|generation| crate::Generation::new(generation.get().saturating_add(1)));
        self.bindings.announce(self.workspace, newer);
    }

    /// Returns `true` once the connection was reported as stale.
    #[must_use]
    pub fn is_reported_stale(&self) -> bool {
        self.reported.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that the session holds: the [`Bound`] until it is dropped,
    /// and each [`InUse`](crate::InUse).
    #[must_use]
    pub fn connections_in_use(&self) -> usize {
        let sessions = self.bindings.in_use(self.workspace);
        sessions
            .iter()
            .map(|session| usize::try_from(session.connections).unwrap_or(usize::MAX))
            .sum()
    }
}
