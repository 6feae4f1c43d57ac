//! What [`Bindings`](crate::Bindings) returns.

use super::bound::Silent;
use crate::{
    Binding, BoundAgentLayer, Current, Retargeted, SessionId, SessionInUse, Status, Target,
    WorkspaceId, store::MemoryStore,
};
use std::sync::{Arc, OnceLock};
use tokio::time::Instant;

/// Returns a [`Current`], as [`Bindings::current`](crate::Bindings::current) does.
///
/// ```
/// use tower_bound_agent::{Current, Status, testing};
/// # use tower_bound_agent::{SessionId, WorkspaceId};
/// # use uuid::Uuid;
///
/// /// What the application shows beside a chat.
/// fn badge(current: &Current) -> &'static str {
///     match current.status {
///         Status::Running if current.target.is_some() => "online",
///         Status::Starting { .. } => "starting",
///         _ => "offline",
///     }
/// }
///
/// # let (chat, workspace) = (SessionId::new(Uuid::from_u128(1)), WorkspaceId::new(Uuid::from_u128(2)));
/// assert_eq!(badge(&testing::current(chat, workspace, None, Status::Stopped)), "offline");
/// ```
#[must_use]
pub fn current(
    session: SessionId,
    workspace: WorkspaceId,
    target: Option<Arc<Target>>,
    status: Status,
) -> Current {
    Current { session, workspace, target, status }
}

/// Returns a [`SessionInUse`] with one connection that began now. The public fields can be set
/// afterwards.
///
/// ```
/// use tower_bound_agent::{SessionInUse, testing};
/// # use tower_bound_agent::{AgentId, SessionId, Target};
/// # use uuid::Uuid;
///
/// /// How many terminals the application warns before a rebuild.
/// fn warned(sessions: &[SessionInUse]) -> u32 {
///     sessions.iter().map(|session| session.connections).sum()
/// }
///
/// # let [one, two] = [1, 2].map(|id| SessionId::new(Uuid::from_u128(id)));
/// # let target = Target::new(AgentId::new(Uuid::from_u128(3)));
/// let mut sessions = [one, two].map(|session| testing::session_in_use(session, target.clone()));
/// sessions[1].connections = 4;
/// assert_eq!(warned(&sessions), 5);
/// ```
#[must_use]
pub fn session_in_use(session: SessionId, target: impl Into<Arc<Target>>) -> SessionInUse {
    SessionInUse { session, target: target.into(), connections: 1, since: Instant::now() }
}

/// Makes a [`Retargeted`] without a transaction, and its other side. It belongs to a layer of its
/// own, over a store in memory.
///
/// ```
/// use tower_bound_agent::{Retargeted, testing};
/// # use tower_bound_agent::{Binding, Revision, SessionId, WorkspaceId};
/// # use uuid::Uuid;
///
/// /// Code of the application, when its transaction has ended.
/// fn ended(retargeted: Retargeted, commit: Result<(), &str>) {
///     match commit {
///         Ok(()) => drop(retargeted.committed()),
///         Err("rolled back") => retargeted.rolled_back(),
///         Err(_) => {} // nobody knows, and the drop of `retargeted` says so
///     }
/// }
///
/// # let (chat, workspace) = (SessionId::new(Uuid::from_u128(1)), WorkspaceId::new(Uuid::from_u128(2)));
/// let row = Binding::new(chat, workspace, None, Revision::new(3));
/// let (retargeted, control) = testing::retargeted(row.clone());
/// ended(retargeted, Ok(()));
/// assert!(control.is_committed());
///
/// let (retargeted, control) = testing::retargeted(row);
/// ended(retargeted, Err("no answer"));
/// assert!(!control.is_committed() && !control.is_rolled_back());
/// ```
pub fn retargeted(binding: Binding) -> (Retargeted, RetargetedControl) {
    let layer = BoundAgentLayer::builder(MemoryStore::new(), Silent);
    let layer = layer.build().expect("the default settings do not contradict each other");
    let (retargeted, committed) = Retargeted::observed(layer.shared(), binding);
    (retargeted, RetargetedControl { committed })
}

/// The other side of a [`Retargeted`] that [`retargeted`] has made.
#[derive(Debug)]
pub struct RetargetedControl {
    committed: Arc<OnceLock<bool>>,
}

impl RetargetedControl {
    /// Returns `true` once [`committed`](Retargeted::committed) was called.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        self.committed.get() == Some(&true)
    }

    /// Returns `true` once [`rolled_back`](Retargeted::rolled_back) was called.
    #[must_use]
    pub fn is_rolled_back(&self) -> bool {
        self.committed.get() == Some(&false)
    }
}
