//! The contracts of stores.

use super::{
    error::StoreError,
    types::{NewBinding, Purged, Reset, Swap},
};
use crate::{Binding, Epoch, Revision, SessionId, Target, WorkspaceId};
use futures_util::{Stream, stream};
use std::{future::ready, sync::Arc, time::Duration};

/// A store of bindings, one row for each session.
///
/// Implement the methods with `async fn`; a store that wraps another one implements
/// [`StoreWrapper`](super::StoreWrapper) instead. Ten methods are required. Those of housekeeping
/// (`recent`, `touch`, `purge_idle`, `purge_forgotten`) are optional; nothing else in this crate
/// needs them. In this crate's repository `examples/own_store` is a store over a service that
/// compares versions. The macro `store_contract_tests!` (feature `testing`) runs this contract as
/// tests over a store of yours.
///
/// * **Every method is one atomic statement** on one row, unless it says otherwise.
/// * **Revisions** grow with every write of a row, even one that changes nothing else, and are
///   never reused for a session: a row that is deleted and created again continues above its last
///   revision.
/// * **`previous`** is maintained by the store: when a write removes a row's target or replaces it
///   by one of another agent, the old agent becomes `previous`; otherwise `previous` stays. A
///   deletion is such a write, and a later creation finds its `previous`.
/// * **Epochs** are maintained by the store, one number for each workspace: 0 until the first
///   `reset_workspace`, which increments it. A row stores the epoch in which its target was
///   learned. A target of another epoch than its workspace's *does not count*: the row reads as
///   unbound. So a write that races with a reset never restores a target of an earlier epoch, in
///   whichever order the database executes them. Every returned row carries the epoch of its
///   workspace.
/// * **Commands** (`retarget`, `unbind`, `reset_workspace`) do not compare, and also write rows
///   that already have the requested content: a repair that read the row before then fails its
///   comparison.
///
/// # Errors
///
/// Return a [`StoreError`] that distinguishes "nothing was written" from "unknown". After an
/// unknown write, the layer reads the row and repeats a repair. The layer drops a call after its
/// [`store_timeout`](crate::BoundAgentBuilder::store_timeout), which counts as unknown too.
///
/// # Cancel safety
///
/// Dropping a future leaves the row unchanged or fully written, never in between.
pub trait BindingStore: Send + Sync + 'static {
    /// Reads a row. Returns `None` if there is none or it was deleted. Sees every write that
    /// completed before the call.
    fn load(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Option<Binding>, StoreError>> + Send;

    /// Creates a row. If it exists already, returns it as the conflict. If the target's epoch has
    /// ended, the returned row is unbound.
    fn create(&self, new: NewBinding) -> impl Future<Output = Result<Swap, StoreError>> + Send;

    /// Replaces workspace and target of a row if its revision is `expected`; otherwise returns the
    /// row as the conflict. If the target's epoch has ended, the returned row is unbound.
    fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send;

    /// Command: points a session at a workspace unconditionally, and creates the row if there is
    /// none. Removes the target if the workspace changes, and keeps it otherwise.
    fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Binding, StoreError>> + Send;

    /// Command: removes a row's target and keeps its workspace. Returns `None` if there is no row.
    /// Also increments the revision of a row without a target.
    fn unbind(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Option<Binding>, StoreError>> + Send;

    /// Deletes a row; if `expected` is given, only at that revision. Returns `true` if a row was
    /// deleted.
    fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Creates `child` with the workspace and target, but not the `previous`, of the *row* of
    /// `parent`, in one statement. The conflict is the row of `child` if it exists (even if
    /// `parent` has none); it is `None` if `parent` has no row.
    fn inherit(
        &self,
        child: SessionId,
        parent: SessionId,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send;

    /// Command: begins the next epoch of a workspace, even of one without rows, and removes the
    /// targets of all its rows. Also increments the revisions of rows without a target. Returns the
    /// number of rows.
    fn reset_workspace(
        &self,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Reset, StoreError>> + Send;

    /// Performs one chunk of a group repair: writes `current`, which was learned in `epoch`, into
    /// rows of the workspace that are *behind* it. Returns the number of written rows; repeat it
    /// until that is 0.
    ///
    /// If `stale` and `current` both have a generation, every row with a smaller generation than
    /// `current` is behind. Otherwise every row without a generation is behind that names the agent
    /// of `stale`, unless it has the agent and address of `current` already. Rows whose target is
    /// of another epoch, rows without a target, and deleted rows are never behind. If `epoch` has
    /// ended, a late write may have left a target of it in a row: that row may be written or not,
    /// and reads as unbound in either case.
    ///
    /// The whole condition must hold on each row at the moment it is written: a row that was
    /// retargeted meanwhile stays as it is. Each written row gets a new revision and a `previous`,
    /// as from [`compare_and_swap`](Self::compare_and_swap). The call does not wait for rows that
    /// other transactions have locked; it skips them. Rows are selected and locked in the order of
    /// their sessions.
    ///
    /// `limit` is the maximum number of rows, and at most [`BATCH`](super::BATCH). A call whose
    /// outcome is unknown may be repeated.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::LockedRowsSkipped`] if locked rows were skipped and fewer rows than
    /// the limit were written. The layer then repeats the call later.
    fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Reads the rows of up to [`BATCH`](super::BATCH) sessions in one statement. Returns those
    /// that exist, each once, in any order.
    ///
    /// # Errors
    ///
    /// The stores of this crate reject more sessions with [`StoreError::Rejected`].
    fn load_many(
        &self,
        sessions: &[SessionId],
    ) -> impl Future<Output = Result<Vec<Binding>, StoreError>> + Send;

    /// Returns `true` if writers other than the calling layer may change the rows. Otherwise the
    /// layer does not refresh cached rows in the background. It calls this method repeatedly.
    ///
    /// A store that wraps another one returns the inner store's answer; see
    /// [`StoreWrapper`](super::StoreWrapper).
    fn shared(&self) -> bool {
        true
    }

    /// Returns a value that the layer holds as long as it uses the store. For stores that count
    /// their layers.
    #[doc(hidden)]
    fn used_by_layer(&self) -> UsedByLayer {
        UsedByLayer::default()
    }

    /// Housekeeping: streams up to `limit` rows, the most recently used first. Rows whose use was
    /// never recorded come last. Uses one query, and yields the rows as they arrive.
    ///
    /// # Errors
    ///
    /// Yields an error for each row that cannot be decoded; any other error ends the stream. Like
    /// the other methods of housekeeping, returns [`StoreError::Unsupported`] by default.
    ///
    /// # Cancel safety
    ///
    /// Only reads. The stream holds a connection until it ends or is dropped.
    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        let _ = limit;
        stream::once(ready(Err(unsupported("recent"))))
    }

    /// Housekeeping: records that up to [`BATCH`](super::BATCH) sessions are in use now, and that
    /// use is recorded every `interval`. Call it with an empty list if no session is in use.
    ///
    /// Does not change revisions. The last use of a row never decreases, deleted rows are ignored,
    /// and locked rows are skipped. If there is no call for more than twice the interval plus one
    /// minute, the record has a gap, and [`purge_idle`](Self::purge_idle) starts to count anew.
    ///
    /// Times come from the process's wall clock. Only housekeeping reads them.
    fn touch(
        &self,
        used: &[SessionId],
        interval: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = (used, interval);
        ready(Err(unsupported("touch")))
    }

    /// Housekeeping: deletes, as [`forget`](Self::forget) does, up to `limit` rows (at most
    /// [`BATCH`](super::BATCH)) that were last used longer than `idle` ago. Returns their number;
    /// repeat it while that is `limit`.
    ///
    /// A row whose use was never recorded counts from its creation; a row without a creation time
    /// is kept. Choose `idle` much longer than the interval at which use is recorded, since a use
    /// that is not recorded yet does not count.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::UseNotRecorded`], and writes nothing, unless use has been recorded
    /// without a gap for at least `idle`.
    fn purge_idle(
        &self,
        idle: Duration,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send {
        let _ = (idle, limit);
        ready(Err(unsupported("purge_idle")))
    }

    /// Housekeeping: removes up to `limit` tombstones (at most [`BATCH`](super::BATCH)) of sessions
    /// that were deleted at least seven days ago. Repeat it while `gone` is `limit`, and run it
    /// regularly.
    ///
    /// A tombstone prevents the reuse of its revisions, so removal takes two runs. The first raises
    /// the floor, above which the revisions of new rows start, to the revisions of the waiting
    /// tombstones. A later run removes the tombstones up to the floor, at least one hour after it
    /// was raised, since a write that began earlier may still use the old floor. So transactions
    /// that are open for longer than an hour must not create rows at an isolation level that shows
    /// them old data.
    fn purge_forgotten(
        &self,
        limit: u64,
    ) -> impl Future<Output = Result<Purged, StoreError>> + Send {
        let _ = limit;
        ready(Err(unsupported("purge_forgotten")))
    }
}

/// Proof that a layer uses a store.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct UsedByLayer {
    pub(super) _counted: Option<Arc<()>>,
}

const fn unsupported(verb: &'static str) -> StoreError {
    StoreError::Unsupported { verb }
}

/// A store whose commands can be part of the caller's own transaction.
///
/// Applications call [`Bindings::retarget_in`](crate::Bindings::retarget_in), which has an example.
pub trait TransactionalStore: BindingStore {
    /// The connection that a transaction of this database runs on; `&mut tx` and `&mut pooled`
    /// coerce to it.
    type Connection: Send;

    /// Performs [`BindingStore::retarget`] on the caller's connection, as part of its open
    /// transaction. The layer is not notified.
    ///
    /// # Errors
    ///
    /// Returns a [`StoreError`]. The caller rolls its transaction back.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, roll the transaction back.
    fn retarget_in(
        &self,
        connection: &mut Self::Connection,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Binding, StoreError>> + Send;
}

impl<St: BindingStore> BindingStore for Arc<St> {
    fn load(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Option<Binding>, StoreError>> + Send {
        (**self).load(session)
    }
    fn create(&self, new: NewBinding) -> impl Future<Output = Result<Swap, StoreError>> + Send {
        (**self).create(new)
    }
    fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send {
        (**self).compare_and_swap(expected, new)
    }
    fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Binding, StoreError>> + Send {
        (**self).retarget(session, workspace)
    }
    fn unbind(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Option<Binding>, StoreError>> + Send {
        (**self).unbind(session)
    }
    fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        (**self).forget(session, expected)
    }
    fn inherit(
        &self,
        child: SessionId,
        parent: SessionId,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send {
        (**self).inherit(child, parent)
    }
    fn reset_workspace(
        &self,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Reset, StoreError>> + Send {
        (**self).reset_workspace(workspace)
    }
    fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send {
        (**self).replace_agent(workspace, epoch, stale, current, limit)
    }
    fn load_many(
        &self,
        sessions: &[SessionId],
    ) -> impl Future<Output = Result<Vec<Binding>, StoreError>> + Send {
        (**self).load_many(sessions)
    }
    fn shared(&self) -> bool {
        (**self).shared()
    }
    fn used_by_layer(&self) -> UsedByLayer {
        (**self).used_by_layer()
    }
    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        (**self).recent(limit)
    }
    fn touch(
        &self,
        used: &[SessionId],
        interval: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        (**self).touch(used, interval)
    }
    fn purge_idle(
        &self,
        idle: Duration,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send {
        (**self).purge_idle(idle, limit)
    }
    fn purge_forgotten(
        &self,
        limit: u64,
    ) -> impl Future<Output = Result<Purged, StoreError>> + Send {
        (**self).purge_forgotten(limit)
    }
}
