//! What the resolver said, as the rest of the crate uses it.

use crate::{ErrorKind, LastVerdict, Resolution, Target};
use std::sync::Arc;
use tokio::time::Duration;

/// What the resolver said, as far as the race cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Running(Arc<Target>),
    Denied(Denied),
    /// It failed, did not answer in time, or said less than what was known when it was asked.
    Unknown,
    /// It said less than what has become known since it was asked.
    Overtaken,
}

/// The workspace has no agent to dial.
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
