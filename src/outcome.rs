//! The outcome of a call, and the state of its repair.

use crate::Target;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

/// The outcome of a call: how the connection was obtained, its cost, and the state of the repair.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The kind of outcome.
    pub kind: OutcomeKind,
    /// The number of dials that the call started, including the one that answered: 1 to 3. It is 0
    /// if a client reused a connection.
    pub dials: u8,
    /// The number of validations that the call started or joined.
    pub validations: u8,
    /// The time from the start of the call to the start of the dial that answered: look-ups,
    /// validations, the wait in the target's queue, and dials that were dropped or failed.
    pub decided_in: Duration,
    /// The time from the start of the dial that answered until it answered.
    pub dialed_in: Duration,
    pub(crate) repair: Option<RepairStatus>,
}

impl Outcome {
    /// Returns the outcome of a call whose only dial was ready at once.
    #[inline]
    pub(crate) fn reused() -> Self {
        let (decided_in, dialed_in) = (Duration::ZERO, Duration::ZERO);
        Self {
            kind: OutcomeKind::Reused,
            dials: 1,
            validations: 0,
            decided_in,
            dialed_in,
            repair: None,
        }
    }

    /// Returns the outcome of a call whose only dial was ready at once, with another kind and
    /// repair.
    #[cfg(feature = "testing")]
    pub(crate) fn with(kind: OutcomeKind, repair: Repair) -> Self {
        let status = RepairStatus::new();
        status.set(repair);
        Self { kind, repair: Some(status), ..Self::reused() }
    }

    /// Returns the outcome of a request that reuses the connection of an earlier call.
    #[cfg(feature = "http")]
    pub(crate) fn pooled() -> Self {
        Self { dials: 0, ..Self::reused() }
    }

    /// Returns the present state of the repair. A repair may continue in the background after the
    /// connection was returned, so the state may change.
    #[must_use]
    pub fn repair(&self) -> Repair {
        self.repair.as_ref().map_or(Repair::NotNeeded, RepairStatus::get)
    }
}

/// The kind of an [`Outcome`]: how the call reached the agent that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutcomeKind {
    /// The bound agent answered, and the resolver was not asked.
    Reused,
    /// The bound agent answered after a validation had confirmed it.
    Confirmed,
    /// The first dial failed, and a second one to the same agent was answered.
    Redialed,
    /// Another agent than the bound one answered.
    Switched {
        /// The target that was bound before.
        from: Arc<Target>,
    },
    /// The session was bound to no agent before.
    FirstBind,
}

impl OutcomeKind {
    /// Returns the kind as a word in snake case, for logs and the labels of metrics. The words do
    /// not change within 0.1.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Reused => "reused",
            Self::Confirmed => "confirmed",
            Self::Redialed => "redialed",
            Self::Switched { .. } => "switched",
            Self::FirstBind => "first_bind",
        }
    }
}

/// The state of a repair: the write of the answering target into the binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Repair {
    /// The row already names the target.
    NotNeeded,
    /// The write is under way.
    Pending,
    /// The store could not be written, and the repair is tried again in the background.
    Retrying,
    /// The row names the target. For a group repair: every row of the workspace that was behind
    /// names it, except rows that a concurrent command changed.
    Written,
    /// Another write won the compare-and-swap, and nothing was overwritten.
    Lost,
    /// The repair ended without a write: the store stayed out of reach, too many repairs were
    /// pending, or the layer was closed.
    Failed,
}

impl Repair {
    /// Returns the state as a word in snake case, for logs and the labels of metrics. The words do
    /// not change within 0.1.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NotNeeded => "not_needed",
            Self::Pending => "pending",
            Self::Retrying => "retrying",
            Self::Written => "written",
            Self::Lost => "lost",
            Self::Failed => "failed",
        }
    }
}

/// The state of a repair, shared by its task and all clones of the outcome.
#[derive(Clone)]
pub(crate) struct RepairStatus(Arc<AtomicU8>);

impl RepairStatus {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(Repair::Pending as u8)))
    }

    pub(crate) fn set(&self, repair: Repair) {
        self.0.store(repair as u8, Ordering::Release);
    }

    pub(crate) fn get(&self) -> Repair {
        const ALL: [Repair; 6] = [
            Repair::NotNeeded,
            Repair::Pending,
            Repair::Retrying,
            Repair::Written,
            Repair::Lost,
            Repair::Failed,
        ];
        let now = self.0.load(Ordering::Acquire);
        ALL.into_iter().find(|repair| *repair as u8 == now).unwrap_or(Repair::Pending)
    }
}

/// Formats the state as the [`Repair`] that it stands for.
impl fmt::Debug for RepairStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_read_as_it_was_set() {
        let status = RepairStatus::new();
        assert_eq!(status.get(), Repair::Pending);
        for repair in [
            Repair::NotNeeded,
            Repair::Retrying,
            Repair::Written,
            Repair::Lost,
            Repair::Failed,
            Repair::Pending,
        ] {
            status.set(repair);
            assert_eq!(status.get(), repair);
            assert_eq!(format!("{status:?}"), format!("{repair:?}"));
        }
    }
}
