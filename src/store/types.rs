//! Values that the verbs of a store take and return.

use super::error::StoreError;
use crate::{Binding, Epoch, SessionId, Target, WorkspaceId};
use std::sync::Arc;

/// Where a session is to point.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewBinding {
    /// Whose record.
    pub session: SessionId,
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// Its target; `None` for an unbound record.
    pub target: Option<Arc<Target>>,
    /// The epoch of the workspace in which the target was learned.
    pub epoch: Epoch,
}

impl NewBinding {
    /// A record to be written.
    #[must_use]
    pub const fn new(
        session: SessionId,
        workspace: WorkspaceId,
        target: Option<Arc<Target>>,
    ) -> Self {
        Self { session, workspace, target, epoch: Epoch::new(0) }
    }

    /// Sets the epoch in which the target was learned, which is 0 otherwise.
    #[must_use]
    pub const fn with_epoch(mut self, epoch: Epoch) -> Self {
        self.epoch = epoch;
        self
    }
}

/// What [`reset_workspace`](BindingStore::reset_workspace) has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reset {
    /// How many rows the workspace has.
    pub rows: u64,
    /// The epoch that has begun.
    pub epoch: Epoch,
}

impl Reset {
    /// For implementors of stores.
    #[must_use]
    pub const fn new(rows: u64, epoch: Epoch) -> Self {
        Self { rows, epoch }
    }
}

/// What became of a write that compares.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Swap {
    /// Written; the row as it is now.
    Applied(Binding),
    /// Not written. The row that stands in the way, or `None` if there is no row.
    Conflict(Option<Binding>),
}

/// The most sessions that one call names, and the most rows that one call of a verb in chunks
/// writes.
pub const BATCH: usize = 2_000;

/// What a chunk may write at most.
pub(super) fn chunk(limit: u64) -> u64 {
    limit.min(BATCH as u64)
}

/// Refuses more sessions than one statement takes.
pub(super) fn at_most_a_batch(sessions: &[SessionId]) -> Result<(), StoreError> {
    match sessions.len() {
        ..=BATCH => Ok(()),
        more => Err(StoreError::Rejected(
            format!("{more} sessions, and {BATCH} are the most at once").into(),
        )),
    }
}

/// What became of [`purge_forgotten`](super::BindingStore::purge_forgotten).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Purged {
    /// How many rows are gone.
    pub gone: u64,
    /// How many were deleted long enough ago, and wait for a later run.
    pub waiting: u64,
}

impl Purged {
    /// For implementors of stores.
    #[must_use]
    pub const fn new(gone: u64, waiting: u64) -> Self {
        Self { gone, waiting }
    }
}
