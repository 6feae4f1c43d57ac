//! How a connection was obtained.

use crate::Target;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

/// How a connection was obtained, what it took, and what became of the repair.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Which way the call took.
    pub kind: OutcomeKind,
    /// Dials started, the one that answered included: 1 to 3; 0 if a client had a connection
    /// already.
    pub dials: u8,
    /// Validations that this call asked for or joined.
    pub validations: u8,
    /// From the start of the call to the start of the dial that answered: look-ups, verdicts, the
    /// wait in the target's queue and dials given up.
    pub decided_in: Duration,
    /// From the start of the dial that answered until it did.
    pub dialed_in: Duration,
    pub(crate) repair: Option<RepairStatus>,
}

impl Outcome {
    /// One dial that was ready at once.
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

    /// A connection of an earlier call.
    #[cfg(feature = "http")]
    pub(crate) fn pooled() -> Self {
        Self { dials: 0, ..Self::reused() }
    }

    /// What has become of the repair by now. In the background a repair may go on after the
    /// connection was returned.
    #[must_use]
    pub fn repair(&self) -> Repair {
        self.repair.as_ref().map_or(Repair::NotNeeded, RepairStatus::get)
    }
}

/// Which way a call took to its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutcomeKind {
    /// The bound agent answered, nobody was asked.
    Reused,
    /// The bound agent answered after a validation had named it.
    Confirmed,
    /// The first dial failed, a second one to the same agent answered.
    Redialed,
    /// Another agent than the bound one answered.
    Switched {
        /// What was bound.
        from: Arc<Target>,
    },
    /// The session had no agent before.
    FirstBind,
}

impl OutcomeKind {
    /// Returns the kind as a word in snake case, for logs and the labels of metrics. The words of
    /// 0.1 do not change.
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

/// What became of writing the answering target into the binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// The row names the target already.
    NotNeeded,
    /// The write is under way.
    Pending,
    /// The store could not be written; it is tried again in the background.
    Retrying,
    /// The row names the target. After a group repair: every row of the workspace that was behind
    /// does, and one that an order has changed meanwhile is as it was ordered.
    Written,
    /// Somebody else's write won; nothing was overwritten.
    Lost,
    /// It was given up: the store stayed out of reach, or the layer was closed.
    Failed,
}

impl Repair {
    /// Returns the state as a word in snake case, for logs and the labels of metrics. The words of
    /// 0.1 do not change.
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

/// Shared between the task that writes and everybody who may ask.
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

/// What a user sees in the [`Outcome`]: the word, not the number.
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
