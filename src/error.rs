//! The error of a call or a command: a kind to match on, and its causes.

use crate::{SessionId, Target, WorkspaceId};
use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

/// A boxed error, as [`tower::BoxError`](https://docs.rs/tower/latest/tower/type.BoxError.html).
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// Returns `true` if this holds for the error or one of its sources. The source of an
/// [`io::Error`](std::io::Error) is that of the error inside it, which is looked at as well.
pub(crate) fn any_source(
    error: &(dyn StdError + 'static),
    holds: impl Fn(&(dyn StdError + 'static)) -> bool,
) -> bool {
    std::iter::successors(Some(error), |&error| inside(error).or_else(|| error.source())).any(holds)
}

fn inside<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    Some(error.downcast_ref::<std::io::Error>()?.get_ref()?)
}

/// A cause that all waiters of a flight share.
pub(crate) type SharedError = Arc<dyn StdError + Send + Sync + 'static>;

/// The kind of an [`Error`]: the reason why a call returned no connection or a command failed.
///
/// The kinds keep apart what callers handle differently: "stopped" is not "gone", "starting" is not
/// "stopped", and a resolver that failed is none of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The session has no record, and the caller named no workspace.
    ///
    /// Name one with [`DialSession::in_workspace`](crate::DialSession::in_workspace) or
    /// [`Bindings::retarget`](crate::Bindings::retarget).
    NotBound,
    /// The session's record names another workspace than the caller.
    ///
    /// [`Bindings::retarget`](crate::Bindings::retarget) moves the session.
    WorkspaceMismatch {
        /// The workspace in the record.
        bound: WorkspaceId,
        /// The workspace that the caller named.
        asked: WorkspaceId,
    },
    /// The session was retargeted, or its workspace was reset, during the call, and no dial was
    /// left for what it points at now. Try again.
    Retargeted,
    /// A build of the workspace is under way.
    Starting {
        /// The time after which to try again, if the resolver knows it.
        retry_after: Option<Duration>,
    },
    /// The workspace exists, and no agent runs in it.
    Stopped,
    /// The workspace no longer exists.
    Gone,
    /// The agent could not be dialed, and the resolver names no other one. [`Error::dial_error`]
    /// has the cause.
    Unreachable {
        /// A newer target that became known when the call had no dial left. The next call dials it.
        newer: Option<Arc<Target>>,
    },
    /// Another agent answered at the address of the dialed one, which the dialer reported with a
    /// [`WrongAgentError`](crate::WrongAgentError), and the resolver names no other target.
    /// [`Error::dial_error`] has the cause.
    WrongAgent,
    /// The [`dial_timeout`](crate::BoundAgentBuilder::dial_timeout) passed.
    TimedOut {
        /// The last verdict of the resolver on the target that was being dialed.
        last: LastVerdict,
    },
    /// The wrapped dial service failed in `poll_ready`, so it is broken. This is no evidence about
    /// any agent.
    Dialer,
    /// The dial failed for a reason in this process: no free descriptor or port, shed load, or an
    /// error that the dialer marked as a [`LocalError`](crate::LocalError). This is no evidence
    /// about any agent, so the resolver was not asked and nothing was dialed again.
    Local,
    /// No target was known, and the resolver failed or gave no usable answer.
    /// [`Error::validation_error`] has the cause.
    Resolver,
    /// The store could not read or write the binding, and nothing was changed.
    /// [`Error::store_error`] has the cause.
    Store,
    /// A command was sent to the store and was not answered, so it may or may not have been carried
    /// out. Read the binding before repeating it.
    OutcomeUnknown,
    /// The layer was closed with [`Bindings::close`](crate::Bindings::close).
    Closed,
}

impl ErrorKind {
    /// Returns the kind as a word in snake case, for logs and the labels of metrics. The words do
    /// not change within 0.1.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NotBound => "not_bound",
            Self::WorkspaceMismatch { .. } => "workspace_mismatch",
            Self::Retargeted => "retargeted",
            Self::Starting { .. } => "starting",
            Self::Stopped => "stopped",
            Self::Gone => "gone",
            Self::Unreachable { .. } => "unreachable",
            Self::WrongAgent => "wrong_agent",
            Self::TimedOut { .. } => "timed_out",
            Self::Dialer => "dialer",
            Self::Local => "local",
            Self::Resolver => "resolver",
            Self::Store => "store",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBound => {
                f.write_str("not bound to a workspace; name one with `in_workspace` or `retarget`")
            }
            Self::WorkspaceMismatch { bound, asked } => {
                write!(f, "bound to workspace {bound}, not to {asked}; move it with `retarget`")
            }
            Self::Retargeted => f.write_str(
                "retargeted during the call, and no dial was left for the new workspace; try again",
            ),
            Self::Starting { retry_after: Some(after) } => {
                write!(f, "the workspace is starting; try again after {after:?}")
            }
            Self::Starting { retry_after: None } => {
                f.write_str("the workspace is starting; try again later")
            }
            Self::Stopped => f.write_str("the workspace is stopped"),
            Self::Gone => f.write_str("the workspace no longer exists"),
            Self::Unreachable { newer: None } => f.write_str(
                "the agent could not be dialed, and no other agent is known; try again later",
            ),
            Self::Unreachable { newer: Some(newer) } => {
                write!(
                    f,
                    "no dial was left for agent {}, which became known late; try again",
                    newer.agent
                )
            }
            Self::WrongAgent => f.write_str(
                "another agent listens at the address of the dialed one, and no other target is \
                 known; try again later",
            ),
            Self::TimedOut { last } => {
                write!(f, "no connection within `dial_timeout` ({last}); try again later")
            }
            Self::Dialer => f.write_str("the dial service failed in `poll_ready`; replace it"),
            Self::Local => {
                f.write_str("the dial failed for a reason in this process, not in the agent")
            }
            Self::Resolver => f.write_str("the resolver named no agent to dial; try again later"),
            Self::Store => {
                f.write_str("the store could not read or write the binding; nothing was changed")
            }
            Self::OutcomeUnknown => f.write_str(
                "the store did not confirm the command; read the binding before repeating it",
            ),
            Self::Closed => f.write_str("the layer was closed with `Bindings::close`"),
        }
    }
}

/// The last verdict of the resolver before a dial timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LastVerdict {
    /// The resolver gave no answer, or its last answers were errors.
    Unknown,
    /// The resolver named the target that was being dialed.
    Same,
    /// The resolver named another target than the bound one, and that target was being dialed.
    Superseded,
    /// A build of the workspace is under way.
    Starting,
    /// The workspace exists, and no agent runs in it.
    Stopped,
    /// The workspace no longer exists.
    Gone,
}

impl LastVerdict {
    /// Returns the verdict as a word in snake case, for logs and the labels of metrics. The words
    /// do not change within 0.1.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Same => "same",
            Self::Superseded => "superseded",
            Self::Starting => "starting",
            Self::Stopped => "stopped",
            Self::Gone => "gone",
        }
    }
}

impl fmt::Display for LastVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "the resolver gave no answer",
            Self::Same => "the resolver confirmed the agent",
            Self::Superseded => "the agent replaced the bound one",
            Self::Starting => "the workspace was starting",
            Self::Stopped => "the workspace was stopped",
            Self::Gone => "the workspace was gone",
        })
    }
}

/// The error of a call or a command.
///
/// [`Display`](fmt::Display) formats one line without the causes, and [`source`](StdError::source)
/// leads to them. If both a dial and its validation failed, `source` is the dial's error;
/// [`dial_error`](Error::dial_error) and [`validation_error`](Error::validation_error) return each.
///
/// ```
/// use tower_bound_agent::{Error, ErrorKind};
/// fn status(error: &Error) -> u16 {
///     match error.kind() {
///         ErrorKind::NotBound => 404,
///         ErrorKind::Gone => 410,
///         ErrorKind::Starting { .. } | ErrorKind::Stopped => 503,
///         ErrorKind::TimedOut { .. } => 504,
///         _ => 502,
///     }
/// }
/// ```
pub struct Error(Box<Inner>); // boxed, so that `Result<Bound<C>, Error>` stays small

struct Inner {
    kind: ErrorKind,
    /// `None` for errors of `poll_ready` and of commands about a workspace.
    session: Option<SessionId>,
    /// The workspace of a command or question that concerns no single session.
    workspace: Option<WorkspaceId>,
    dial: Option<BoxError>,
    validation: Option<SharedError>,
    store: Option<SharedError>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner {
            kind,
            session: None,
            workspace: None,
            dial: None,
            validation: None,
            store: None,
        }))
    }

    pub(crate) fn of(mut self, session: SessionId) -> Self {
        self.0.session = Some(session);
        self
    }

    pub(crate) fn about(mut self, workspace: WorkspaceId) -> Self {
        self.0.workspace = Some(workspace);
        self
    }

    pub(crate) fn with_dial(mut self, cause: Option<BoxError>) -> Self {
        self.0.dial = cause;
        self
    }

    pub(crate) fn with_validation(mut self, cause: Option<SharedError>) -> Self {
        self.0.validation = cause;
        self
    }

    pub(crate) fn with_store(mut self, cause: Option<SharedError>) -> Self {
        self.0.store = cause;
        self
    }

    /// Replaces the kind and keeps the causes.
    pub(crate) fn because(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Returns the kind, for a program to match on.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Returns the session of the call or command. `None` for an error of `poll_ready` and for a
    /// command about a workspace.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        self.0.session
    }

    /// Returns the error of the last dial, if a dial failed.
    #[must_use]
    pub fn dial_error(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.0.dial.as_deref()
    }

    /// Returns the error of the last validation, if the resolver failed or did not answer in time.
    #[must_use]
    pub fn validation_error(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.0.validation.as_deref()
    }

    /// Returns the error of the store, if a read or a write failed. Usually it can be downcast to a
    /// [`StoreError`](crate::store::StoreError).
    #[must_use]
    pub fn store_error(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.0.store.as_deref()
    }

    /// Returns the time after which to try again, if the workspace is starting and the resolver
    /// knows it.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self.0.kind {
            ErrorKind::Starting { retry_after } => retry_after,
            _ => None,
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("session", &self.0.session)
            .field("workspace", &self.0.workspace)
            .field("dial", &self.0.dial)
            .field("validation", &self.0.validation)
            .field("store", &self.0.store)
            .finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, session, workspace, .. } = &*self.0;
        match (session, workspace) {
            (Some(session), _) => write!(f, "session {session}: {kind}"),
            (None, Some(workspace)) => write!(f, "workspace {workspace}: {kind}"),
            (None, None) => kind.fmt(f),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let Inner { dial, validation, store, .. } = &*self.0;
        match (dial, validation, store) {
            (Some(dial), ..) => Some(&**dial),
            (None, Some(validation), _) => Some(&**validation),
            (None, None, Some(store)) => Some(&**store),
            (None, None, None) => None,
        }
    }
}

/// The causes that this crate itself creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cause {
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    #[error("no answer yet")]
    NoAnswerYet,
    #[error("an earlier statement is unanswered, so nothing was sent within {0:?}")]
    Unanswered(Duration),
    #[error("all `background_connections` were in use for {0:?}")]
    NoConnection(Duration),
    #[error("too many repairs are pending")]
    TooManyRepairs,
    #[error("too many statements are unanswered")]
    TooManyUnanswered,
    #[error("the resolver panicked")]
    ResolverPanicked,
    #[error("the task ended without an answer")]
    TaskEnded,
    #[error("the answer is older than what is known (a lagging replica?)")]
    OldAnswer,
}

impl Cause {
    pub(crate) fn shared(self) -> SharedError {
        Arc::new(self)
    }
}
