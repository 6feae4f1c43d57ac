//! What the resolver may answer.

use crate::Target;
use std::time::Duration;

/// The resolver's answer. An *error* of the resolver means unknown, and unknown is never evidence.
///
/// Say [`Gone`](Resolution::Gone) only if the workspace is known not to exist any more; a look-up
/// that was forbidden or failed is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resolution {
    /// This target serves the workspace.
    Running(Target),
    /// A build is under way.
    Starting {
        /// When to try again, if that can be told.
        retry_after: Option<Duration>,
    },
    /// The workspace exists and nothing runs in it.
    Stopped,
    /// The workspace does not exist any more.
    Gone,
}
