//! The resolver's answer in the form that the rest of the crate uses.

use crate::{ErrorKind, LastVerdict, Resolution, Status, Target};
use std::sync::Arc;
use tokio::time::Duration;

/// The result of one validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Running(Arc<Target>),
    Denied(Denied),
    /// The resolver failed, did not answer in time, or gave an answer that was older than what was
    /// known when it was asked.
    Unknown,
    /// The answer is older than what has become known since the resolver was asked.
    Overtaken,
}

/// An answer that names no agent to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    Starting { retry_after: Option<Duration> },
    Stopped,
    Gone,
}

impl Denied {
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::Starting { retry_after } => ErrorKind::Starting { retry_after },
            Self::Stopped => ErrorKind::Stopped,
            Self::Gone => ErrorKind::Gone,
        }
    }

    pub(crate) fn verdict(self) -> LastVerdict {
        match self {
            Self::Starting { .. } => LastVerdict::Starting,
            Self::Stopped => LastVerdict::Stopped,
            Self::Gone => LastVerdict::Gone,
        }
    }
}

impl From<Resolution> for Answer {
    fn from(resolution: Resolution) -> Self {
        match resolution {
            Resolution::Running(target) => Self::Running(Arc::new(target)),
            Resolution::Starting { retry_after } => Self::Denied(Denied::Starting { retry_after }),
            Resolution::Stopped => Self::Denied(Denied::Stopped),
            Resolution::Gone => Self::Denied(Denied::Gone),
        }
    }
}

impl From<&Answer> for Status {
    fn from(answer: &Answer) -> Self {
        match *answer {
            Answer::Running(_) => Self::Running,
            Answer::Denied(Denied::Starting { retry_after }) => Self::Starting { retry_after },
            Answer::Denied(Denied::Stopped) => Self::Stopped,
            Answer::Denied(Denied::Gone) => Self::Gone,
            Answer::Unknown | Answer::Overtaken => Self::Unknown,
        }
    }
}
