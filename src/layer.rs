//! The layer, which wraps a dial service.

use crate::{
    Bindings, BoundAgent, BoundAgentBuilder, BoxError, Resolution, ResolveWorkspace, state::Shared,
    store::BindingStore,
};
use std::{fmt, sync::Arc};
use tower_layer::Layer;
use tower_service::Service;

/// A [`Layer`] that wraps a dial service in a [`BoundAgent`], which dials the agent that each
/// session is bound to.
///
/// A clone is cheap. All clones, and all services made from them, share one state: the cached
/// bindings, the known target of each workspace, and the reads, validations and repairs under way.
///
/// ```
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_bound_agent::{
///     AgentId, BoundAgentLayer, BoxError, DialAgent, DialSession, OutcomeKind, Resolution, ResolveWorkspace, SessionId, Target,
///     WorkspaceId, store::MemoryStore,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// # let (agent, chat) = (AgentId::new(uuid::Uuid::new_v4()), SessionId::new(uuid::Uuid::new_v4()));
/// # let workspace = WorkspaceId::new(uuid::Uuid::new_v4());
/// let resolver = service_fn(move |_: ResolveWorkspace| async move {
///     Ok::<_, BoxError>(Resolution::Running(Target::new(agent).with_generation(1)))
/// });
/// let dialer = service_fn(async |ask: DialAgent| Ok::<_, BoxError>(format!("a connection to {}", ask.target.agent)));
///
/// let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?;
/// let bindings = layer.bindings();
/// let dial = ServiceBuilder::new().layer(layer).service(dialer);
///
/// let bound = dial.clone().oneshot(DialSession::new(chat).in_workspace(workspace)).await?;
/// assert_eq!(bound.outcome().kind, OutcomeKind::FirstBind);
/// bindings.flush().await; // the binding is written in the background
/// let bound = dial.oneshot(chat.into()).await?;
/// assert_eq!(bound.outcome().kind, OutcomeKind::Reused);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct BoundAgentLayer {
    shared: Arc<Shared>,
}

impl BoundAgentLayer {
    /// Returns a builder with a store for the bindings, a resolver, and the default of every other
    /// setting.
    ///
    /// The resolver is any `Service<ResolveWorkspace, Response = Resolution>`, such as a
    /// `tower::service_fn`. The layer clones it for each question, and bounds each question by the
    /// [`resolve_timeout`](BoundAgentBuilder::resolve_timeout). The resolver may have limits and
    /// timeouts of its own.
    pub fn builder<St, R>(store: St, resolver: R) -> BoundAgentBuilder
    where
        St: BindingStore,
        R: Service<ResolveWorkspace, Response = Resolution> + Clone + Send + 'static,
        R::Error: Into<BoxError>,
        R::Future: Send,
    {
        BoundAgentBuilder::new(store, resolver)
    }

    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    #[cfg(feature = "testing")]
    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Returns a handle for commands and queries on the same bindings.
    #[must_use]
    pub fn bindings(&self) -> Bindings {
        Bindings::new(Arc::clone(&self.shared))
    }
}

impl fmt::Debug for BoundAgentLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundAgentLayer")
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for BoundAgentLayer {
    type Service = BoundAgent<S>;

    fn layer(&self, inner: S) -> BoundAgent<S> {
        BoundAgent::new(inner, Arc::clone(&self.shared))
    }
}
