//! Arguments and results of a store's methods.

use super::error::StoreError;
use crate::{Binding, Epoch, SessionId, Target, WorkspaceId};
use std::sync::Arc;

/// A row to write: where a session points.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewBinding {
    /// The session.
    pub session: SessionId,
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// Its target; `None` for an unbound row.
    pub target: Option<Arc<Target>>,
    /// The epoch of the workspace in which the target was learned.
    pub epoch: Epoch,
}

impl NewBinding {
    /// Creates a row in epoch 0.
    #[must_use]
    pub const fn new(
        session: SessionId,
        workspace: WorkspaceId,
        target: Option<Arc<Target>>,
    ) -> Self {
        Self { session, workspace, target, epoch: Epoch::new(0) }
    }

    /// Sets the epoch in which the target was learned.
    #[must_use]
    pub const fn with_epoch(mut self, epoch: Epoch) -> Self {
        self.epoch = epoch;
        self
    }
}

/// Result of [`reset_workspace`](super::BindingStore::reset_workspace).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reset {
    /// Number of rows of the workspace.
    pub rows: u64,
    /// The new epoch.
    pub epoch: Epoch,
}

impl Reset {
    /// Creates a result. For implementors of stores.
    #[must_use]
    pub const fn new(rows: u64, epoch: Epoch) -> Self {
        Self { rows, epoch }
    }
}

/// Result of a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Swap {
    /// The row was written; this is its new state.
    Applied(Binding),
    /// Nothing was written. The conflicting row, or `None` if there is no row.
    Conflict(Option<Binding>),
}

/// Maximum number of sessions in one call, and of rows that one call of a chunked method writes.
pub const BATCH: usize = 2_000;

/// Limits a chunk to [`BATCH`] rows.
pub(super) fn chunk(limit: u64) -> u64 {
    limit.min(BATCH as u64)
}

/// Rejects more than [`BATCH`] sessions.
pub(super) fn at_most_a_batch(sessions: &[SessionId]) -> Result<(), StoreError> {
    match sessions.len() {
        ..=BATCH => Ok(()),
        more => Err(StoreError::Rejected(
            format!("{more} sessions in one call, which takes at most {BATCH}").into(),
        )),
    }
}

/// Result of [`purge_forgotten`](super::BindingStore::purge_forgotten).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Purged {
    /// Number of rows that were removed.
    pub gone: u64,
    /// Number of rows that are old enough and wait for a later run.
    pub waiting: u64,
}

impl Purged {
    /// For implementors of stores.
    #[must_use]
    pub const fn new(gone: u64, waiting: u64) -> Self {
        Self { gone, waiting }
    }
}
