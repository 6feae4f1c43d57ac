//! The resolver's answer.

use crate::Target;
use std::{fmt, time::Duration};

/// The resolver's answer: the state of a workspace.
///
/// An *error* of the resolver means that the state is unknown, and is never evidence. Return
/// [`Gone`](Resolution::Gone) only if the workspace is known not to exist; a look-up that was
/// forbidden or failed is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resolution {
    /// The workspace is served by this target.
    Running(Target),
    /// A build of the workspace is under way.
    Starting {
        /// The time after which to try again, if the resolver knows it.
        retry_after: Option<Duration>,
    },
    /// The workspace exists, and no agent runs in it.
    Stopped,
    /// The workspace does not exist any more.
    Gone,
}

impl Resolution {
    /// Returns the kind of answer as a word in snake case, for logs and the labels of metrics. The
    /// words do not change within 0.1.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Running(..) => "running",
            Self::Starting { .. } => "starting",
            Self::Stopped => "stopped",
            Self::Gone => "gone",
        }
    }
}

impl fmt::Display for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running(target) => write!(f, "running, agent {target}"),
            Self::Starting { retry_after: Some(after) } => {
                write!(f, "starting, try again after {after:?}")
            }
            Self::Starting { retry_after: None } => f.write_str("starting"),
            Self::Stopped => f.write_str("stopped"),
            Self::Gone => f.write_str("gone"),
        }
    }
}

/// The resolver's verdict on the workspace of a session.
///
/// With the feature `serde`, a status is its word ([`as_str`](Self::as_str)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// A target serves the workspace.
    Running,
    /// A build of the workspace is under way.
    Starting {
        /// The time after which to try again, if the resolver knows it.
        retry_after: Option<Duration>,
    },
    /// The workspace exists, and no agent runs in it.
    Stopped,
    /// The workspace no longer exists.
    Gone,
    /// The resolver failed or did not answer in time.
    Unknown,
}

impl Status {
    /// Returns the status as a word in snake case, for logs and the labels of metrics. The words do
    /// not change within 0.1.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting { .. } => "starting",
            Self::Stopped => "stopped",
            Self::Gone => "gone",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}
