//! The one error of a call, with a kind to match on and the causes behind it.

use crate::{SessionId, Target, WorkspaceId};
use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

/// Any error, as `tower` has it.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// A cause that many waiters of one flight are told of.
pub(crate) type SharedError = Arc<dyn StdError + Send + Sync + 'static>;

/// Why there is no connection.
///
/// "Stopped" is not "gone", "starting" is not "stopped", and a resolver that failed is none of
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The session has no record, and the caller named no workspace.
    NotBound,
    /// The session's record names another workspace than the caller did.
    WorkspaceMismatch {
        /// What the record names.
        bound: WorkspaceId,
        /// What the caller named.
        asked: WorkspaceId,
    },
    /// The session was pointed at other workspaces faster than they could be dialed.
    Retargeted,
    /// The workspace is being built.
    Starting {
        /// When to try again, if the resolver could tell.
        retry_after: Option<Duration>,
    },
    /// Nothing runs in the workspace.
    Stopped,
    /// The workspace does not exist any more.
    Gone,
    /// The agent could not be dialed, and the resolver knows no better one.
    Unreachable {
        /// A newer target that became known when no dial was left to try it with.
        newer: Option<Arc<Target>>,
    },
    /// The dial timeout passed.
    TimedOut {
        /// What the resolver had said last about the target that was being dialed.
        last: LastVerdict,
    },
    /// The wrapped dial service itself is broken (its readiness failed). Says nothing about any
    /// agent.
    Dialer,
    /// The dial failed for a reason in this process: no free descriptor or port, shed load, or an
    /// error that the dialer has marked as a [`LocalError`](crate::LocalError). Says nothing about
    /// any agent: nobody was asked, and nothing was dialed again.
    Local,
    /// There was nothing to dial, and the resolver did not say what to dial.
    Resolver,
    /// The binding could not be read or written, and nothing was changed.
    Store,
    /// An order was sent to the store and no answer came: it may or may not have been carried out.
    OutcomeUnknown,
    /// The layer was closed.
    Closed,
}

impl ErrorKind {
    /// Returns the kind as a word in snake case, for logs and the labels of metrics. The words of
    /// 0.1 do not change.
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
            Self::NotBound => f.write_str("not bound to a workspace"),
            Self::WorkspaceMismatch { bound, asked } => {
                write!(f, "bound to workspace {bound}, not to {asked}")
            }
            Self::Retargeted => f.write_str("pointed at another workspace again and again"),
            Self::Starting { retry_after: Some(after) } => {
                write!(f, "the workspace is starting, retry in {after:?}")
            }
            Self::Starting { retry_after: None } => f.write_str("the workspace is starting"),
            Self::Stopped => f.write_str("the workspace is stopped"),
            Self::Gone => f.write_str("the workspace is gone"),
            Self::Unreachable { newer: None } => f.write_str("the agent is unreachable"),
            Self::Unreachable { newer: Some(newer) } => {
                write!(f, "no dial left to try agent {}, which became known too late", newer.agent)
            }
            Self::TimedOut { last } => write!(f, "the dial timed out ({last})"),
            Self::Dialer => f.write_str("the dial service failed"),
            Self::Local => f.write_str("the dial failed for a reason in this process"),
            Self::Resolver => f.write_str("the workspace's agent could not be resolved"),
            Self::Store => f.write_str("the binding could not be read or written"),
            Self::OutcomeUnknown => f.write_str("the binding may or may not have been written"),
            Self::Closed => f.write_str("closed"),
        }
    }
}

/// What the resolver had said last when a dial timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LastVerdict {
    /// Nothing, or its last answers were errors.
    Unknown,
    /// It named the target that was being dialed.
    Same,
    /// It had named another target than the bound one, which was then dialed.
    Superseded,
    /// The workspace is being built.
    Starting,
    /// Nothing runs in the workspace.
    Stopped,
    /// The workspace does not exist any more.
    Gone,
}

impl LastVerdict {
    /// Returns the verdict as a word in snake case, for logs and the labels of metrics. The words
    /// of 0.1 do not change.
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
            Self::Unknown => "no word from the resolver",
            Self::Same => "the resolver named this agent",
            Self::Superseded => "the bound agent was superseded",
            Self::Starting => "the workspace was starting",
            Self::Stopped => "the workspace was stopped",
            Self::Gone => "the workspace was gone",
        })
    }
}

/// Why a call or an order failed.
///
/// Prints as one line without its causes; [`source`](StdError::source) leads to them. A dial and
/// its validation may both have failed: [`dial_error`](Error::dial_error) and
/// [`validation_error`](Error::validation_error) give each.
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
pub struct Error(Box<Inner>); // one word, so that `Result<Bound<C>, Error>` stays small

struct Inner {
    kind: ErrorKind,
    /// `None` from `poll_ready`, which knows no session.
    session: Option<SessionId>,
    dial: Option<BoxError>,
    validation: Option<SharedError>,
    store: Option<SharedError>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, session: None, dial: None, validation: None, store: None }))
    }

    pub(crate) fn of(mut self, session: SessionId) -> Self {
        self.0.session = Some(session);
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

    /// The same causes under another kind.
    pub(crate) fn because(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What a program can match on.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Whose call it was; `None` for an error of `poll_ready`.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        self.0.session
    }

    /// What the dialer said last.
    #[must_use]
    pub fn dial_error(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.0.dial.as_deref()
    }

    /// What went wrong when the resolver was asked.
    #[must_use]
    pub fn validation_error(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.0.validation.as_deref()
    }

    /// What went wrong when the store was read or written.
    #[must_use]
    pub fn store_error(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.0.store.as_deref()
    }

    /// When to try again, if the workspace is starting and the resolver could tell.
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
            .field("dial", &self.0.dial)
            .field("validation", &self.0.validation)
            .field("store", &self.0.store)
            .finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.session {
            Some(session) => write!(f, "session {session}: {}", self.0.kind),
            None => self.0.kind.fmt(f),
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

/// Causes that this crate itself can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cause {
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    #[error("no answer yet")]
    NoAnswerYet,
    #[error("an earlier statement has no answer yet; nothing was sent within {0:?}")]
    Unanswered(Duration),
    #[error("the connections for the background were in use for {0:?}")]
    NoConnection(Duration),
    #[error("too many rows are to be written")]
    TooManyRepairs,
    #[error("too many statements have no answer")]
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
