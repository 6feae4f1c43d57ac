//! The three requests: to this crate, to the dialer, and to the resolver.

use crate::{Generation, SessionId, Target, WorkspaceId};
use http::Extensions;
use std::sync::Arc;

/// The outer request: a connection to the agent of a session.
///
/// ```
/// use tower_bound_agent::{DialSession, SessionId, WorkspaceId};
/// # let (chat, workspace) = (SessionId::new(uuid::Uuid::nil()), WorkspaceId::new(uuid::Uuid::nil()));
/// let plain: DialSession = chat.into();
/// let first_turn = DialSession::new(chat).in_workspace(workspace);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "a request does nothing until a service is called with it"]
pub struct DialSession {
    /// The session whose agent is dialed.
    pub session: SessionId,
    /// The workspace of the session, if the caller names it.
    pub workspace: Option<WorkspaceId>,
    /// Extensions that are passed to the dialer unchanged.
    pub extensions: Extensions,
}

impl DialSession {
    /// Creates a request for the agent of a session.
    pub fn new(session: SessionId) -> Self {
        Self { session, workspace: None, extensions: Extensions::new() }
    }

    /// Sets the workspace to which a session without a record is bound. Default: none, and a
    /// session without a record fails with [`ErrorKind::NotBound`](crate::ErrorKind::NotBound).
    ///
    /// If the record names another workspace, the call fails with
    /// [`ErrorKind::WorkspaceMismatch`](crate::ErrorKind::WorkspaceMismatch). A session moves only
    /// by the command [`Bindings::retarget`](crate::Bindings::retarget), never as a side effect.
    pub fn in_workspace(mut self, workspace: WorkspaceId) -> Self {
        self.workspace = Some(workspace);
        self
    }

    /// Adds an extension for the dialer, such as credentials or a trace id. A value of the same
    /// type is replaced.
    pub fn with_extension<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions.insert(value);
        self
    }
}

impl DialSession {
    /// Returns the inner request for a target.
    #[inline]
    pub(crate) fn to(&self, workspace: WorkspaceId, target: Arc<Target>) -> DialAgent {
        DialAgent { session: self.session, workspace, target, extensions: self.extensions.clone() }
    }
}

impl From<SessionId> for DialSession {
    fn from(session: SessionId) -> Self {
        Self::new(session)
    }
}

/// The inner request, which the wrapped dial service receives: a connection to a target.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DialAgent {
    /// The session that the connection is for.
    pub session: SessionId,
    /// The workspace that the target serves.
    pub workspace: WorkspaceId,
    /// The target to dial.
    pub target: Arc<Target>,
    /// The extensions that the caller added to its [`DialSession`].
    pub extensions: Extensions,
}

impl DialAgent {
    /// Creates a request, for tests of dialers.
    ///
    /// ```
    /// use tower_bound_agent::{AgentId, DialAgent, SessionId, Target, WorkspaceId};
    /// use uuid::Uuid;
    ///
    /// let (chat, workspace) = (SessionId::new(Uuid::from_u128(1)), WorkspaceId::new(Uuid::from_u128(2)));
    /// let target = Target::new(AgentId::new(Uuid::from_u128(3))).with_address("127.0.0.1:9000");
    /// let ask = DialAgent::new(chat, workspace, target);
    /// assert_eq!(ask.target.address.as_deref(), Some("127.0.0.1:9000"));
    /// ```
    #[must_use]
    pub fn new(session: SessionId, workspace: WorkspaceId, target: impl Into<Arc<Target>>) -> Self {
        Self { session, workspace, target: target.into(), extensions: Extensions::new() }
    }

    /// Adds an extension, for tests of dialers that read extensions.
    #[must_use]
    pub fn with_extension<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions.insert(value);
        self
    }
}

/// The question to the resolver: which target serves the workspace *now*?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResolveWorkspace {
    /// The workspace to resolve.
    pub workspace: WorkspaceId,
    /// The greatest generation that this process knows, if it knows one. An answer with a smaller
    /// generation is discarded as old, so a resolver that reads from a replica can read such an
    /// answer again from the primary.
    pub newer_than: Option<Generation>,
}

impl ResolveWorkspace {
    /// Creates a question without a known generation, for tests of resolvers.
    #[must_use]
    pub const fn new(workspace: WorkspaceId) -> Self {
        Self { workspace, newer_than: None }
    }
}
