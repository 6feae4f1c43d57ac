//! The three requests: to this crate, to the dialer, to the resolver.

use crate::{Generation, SessionId, Target, WorkspaceId};
use http::Extensions;
use std::sync::Arc;

/// The outer request: a connection to the agent of this session, please.
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
    /// Whose agent is wanted.
    pub session: SessionId,
    /// Where the session points, if the caller says so.
    pub workspace: Option<WorkspaceId>,
    /// Handed to the dialer as they are.
    pub extensions: Extensions,
}

impl DialSession {
    /// A request for the agent of this session.
    pub fn new(session: SessionId) -> Self {
        Self { session, workspace: None, extensions: Extensions::new() }
    }

    /// Binds a session that has no record yet to this workspace.
    ///
    /// A record that names another workspace makes the call fail with
    /// [`ErrorKind::WorkspaceMismatch`](crate::ErrorKind::WorkspaceMismatch): retargeting is an
    /// order ([`Bindings::retarget`](crate::Bindings::retarget)), never a side effect.
    pub fn in_workspace(mut self, workspace: WorkspaceId) -> Self {
        self.workspace = Some(workspace);
        self
    }

    /// Adds something for the dialer (credentials, a trace id).
    pub fn with_extension<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions.insert(value);
        self
    }
}

impl DialSession {
    /// The inner request for this target.
    pub(crate) fn to(&self, workspace: WorkspaceId, target: Arc<Target>) -> DialAgent {
        DialAgent { session: self.session, workspace, target, extensions: self.extensions.clone() }
    }
}

impl From<SessionId> for DialSession {
    fn from(session: SessionId) -> Self {
        Self::new(session)
    }
}

/// The inner request, which the wrapped dial service gets: connect to this target.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DialAgent {
    /// The session that wants the connection.
    pub session: SessionId,
    /// The workspace that the target serves.
    pub workspace: WorkspaceId,
    /// Where to dial.
    pub target: Arc<Target>,
    /// What the caller added to its [`DialSession`].
    pub extensions: Extensions,
}

impl DialAgent {
    /// For tests of dialers.
    #[must_use]
    pub fn new(session: SessionId, workspace: WorkspaceId, target: impl Into<Arc<Target>>) -> Self {
        Self { session, workspace, target: target.into(), extensions: Extensions::new() }
    }

    /// For tests of dialers that read extensions.
    #[must_use]
    pub fn with_extension<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions.insert(value);
        self
    }
}

/// The question to the resolver: which target serves this workspace *now*?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResolveWorkspace {
    /// The workspace in question.
    pub workspace: WorkspaceId,
    /// The greatest generation that is known here. An answer below it is known to be old, so a
    /// resolver that may be answered by a lagging replica can look for a better source.
    pub newer_than: Option<Generation>,
}

impl ResolveWorkspace {
    /// For tests of resolvers.
    #[must_use]
    pub const fn new(workspace: WorkspaceId) -> Self {
        Self { workspace, newer_than: None }
    }
}
