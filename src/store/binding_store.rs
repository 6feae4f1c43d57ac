//! The contract of a store.

use super::{
    error::StoreError,
    types::{NewBinding, Purged, Reset, Swap},
};
use crate::{Binding, Epoch, Revision, SessionId, Target, WorkspaceId};
use futures_util::{Stream, stream};
use std::{future::ready, sync::Arc, time::Duration};

/// The contract of a store.
///
/// Implementors write `async fn`, and those of a store around another one implement
/// [`StoreWrapper`](super::StoreWrapper). Ten verbs are needed. Those of housekeeping (`recent`, `touch`, `purge_idle`,
/// `purge_forgotten`) are what a store may lack; nothing else of this crate needs them. In this
/// crate's repository `examples/own_store` is a store over a service that compares versions. The macro
/// `store_contract_tests!` (feature `testing`) runs this contract as tests over a store of yours.
///
/// * **Every verb is one atomic statement** on one row, but those that say otherwise.
/// * **Revisions** grow with every write of a row, also with one that leaves it as it was, and are
///   never reused for a session: a row that was deleted and is created again continues above its
///   last revision.
/// * **`previous`** is kept by the store: when a write replaces a row's target by one of another
///   agent, or removes it, the agent that was there becomes `previous`; otherwise `previous` stays.
///   A deletion is such a write, and what it leaves behind is found there by the next creation.
/// * **Epochs** are kept by the store, one number a workspace: 0 until the first `reset_workspace`,
///   which raises it. A row keeps the epoch in which its target was learned, and a target of
///   another epoch than its workspace's *does not count*: whoever reads the row gets an unbound
///   one. So a write that was on its way during a reset, whichever of the two the database puts
///   first, brings back no target of the epoch before. Every row that is returned says the epoch of
///   its workspace.
/// * **Orders** (`retarget`, `unbind`, `reset_workspace`) do not compare, and write a row that
///   holds already what they ask for: a repair that read it before is then too late.
///
/// # Errors
///
/// A [`StoreError`], above all with the difference between "nothing was written" and "unknown".
/// After an unknown write the row is read, and a repair is sent again. The layer drops a call after
/// its [`store_timeout`](crate::BoundAgentBuilder::store_timeout); that counts as unknown too.
///
/// # Cancel safety
///
/// A future that is dropped leaves a row as it was or as it was to be, never in between.
pub trait BindingStore: Send + Sync + 'static {
    /// Reads a row; `None` if there is none or it was deleted. Sees every write that ended before
    /// it began.
    fn load(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Option<Binding>, StoreError>> + Send;

    /// Writes a row that must not exist yet; else the conflict holds the row that does. As the rule
    /// about epochs says, the row is unbound if the target is of an epoch that has ended.
    fn create(&self, new: NewBinding) -> impl Future<Output = Result<Swap, StoreError>> + Send;

    /// Replaces workspace and target of a row whose revision must be `expected`; else the conflict
    /// holds the row as it is. As the rule about epochs says, the row is unbound if the target is
    /// of an epoch that has ended.
    fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send;

    /// The order to point a session at a workspace, whatever was there; creates the row if there is
    /// none. The target is dropped if the workspace changes and kept if it does not.
    fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Binding, StoreError>> + Send;

    /// The order to drop a row's target and keep its workspace; `None` if there is no row. The
    /// revision of a row without a target grows as well.
    fn unbind(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Option<Binding>, StoreError>> + Send;

    /// Deletes a row, if `expected` is given only at that revision. Says whether there was one to
    /// delete.
    fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Creates `child` with the workspace and target of the *row* of `parent`, in one statement;
    /// not with its `previous`. The conflict holds the row of `child` if there is one (also if
    /// `parent` has none), else `None`: there is no row of `parent`.
    fn inherit(
        &self,
        child: SessionId,
        parent: SessionId,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send;

    /// The order to begin the next epoch of a workspace, also of one without rows, and to drop the
    /// targets of all of its rows. Says how many rows there are: the revision of one without a
    /// target grows as well.
    fn reset_workspace(
        &self,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Reset, StoreError>> + Send;

    /// One chunk of a group repair: writes `current`, which was learned in `epoch`, into rows of
    /// the workspace that are *behind* it, and says into how many. To be repeated until it says 0.
    ///
    /// A row whose target is of another epoch is never behind. If `stale` and `current` both have a
    /// generation, every row of a smaller generation than `current`'s is behind. Else it is every
    /// row without a generation that names the agent of `stale`, and not already the agent and
    /// address of `current`. A row without a target is never behind, nor one that was deleted.
    ///
    /// The whole condition holds on the row that is written, at the moment it is written: a row
    /// that was retargeted meanwhile stays as it was ordered. Each row that is written gets a
    /// revision and a `previous` as from [`compare_and_swap`](Self::compare_and_swap). Nothing that
    /// somebody else is writing is waited for: where rows can be locked, a locked one is left out.
    /// Rows are chosen, and locked, in the order of their sessions.
    ///
    /// `limit` is the most rows to write; above [`BATCH`](super::BATCH) it means [`BATCH`](super::BATCH). Repeating a call
    /// whose outcome is unknown does no harm.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeftOut`] if fewer rows than the limit were written because others are locked:
    /// the layer tries again later, until none is left.
    fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Reads those of at most [`BATCH`](super::BATCH) rows that exist, in any order, each once, also if it is
    /// named twice. In one statement.
    ///
    /// # Errors
    ///
    /// The stores of this crate refuse more sessions ([`StoreError::Rejected`]).
    fn load_many(
        &self,
        sessions: &[SessionId],
    ) -> impl Future<Output = Result<Vec<Binding>, StoreError>> + Send;

    /// Whether anybody but the layer that asks may write the rows. A layer over a store that nobody
    /// else writes does not read rows again in the background. It asks again from time to time.
    ///
    /// A store around another one says what that says: see [`StoreWrapper`](super::StoreWrapper).
    fn shared(&self) -> bool {
        true
    }

    /// A layer works over this store for as long as it holds the value. For stores that count their
    /// layers.
    #[doc(hidden)]
    fn used_by_layer(&self) -> UsedByLayer {
        UsedByLayer::default()
    }

    /// Househousekeeping: the rows that were used last, at most `limit` of them, the latest first. Rows
    /// whose use was never recorded come last. One query, and the rows are handed on as they
    /// arrive.
    ///
    /// # Errors
    ///
    /// A row that cannot be read is an item of its own; anything else ends the stream. As the other
    /// verbs of housekeeping: [`StoreError::Unsupported`] from a store that does not have it.
    ///
    /// # Cancel safety
    ///
    /// Reads only. A stream holds a connection until it is read to its end or dropped.
    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        let _ = limit;
        stream::once(ready(Err(unsupported("recent"))))
    }

    /// Househousekeeping: records that these sessions, at most [`BATCH`](super::BATCH), are in use now, and that use
    /// is recorded every `interval`, also if there are none.
    ///
    /// The revision stays. The last use of a row never moves back, a deleted row is not touched,
    /// and a row that somebody else is writing at this moment is left out rather than waited for.
    /// Where no call comes for more than twice the interval and a minute, the record has a gap, and
    /// [`purge_idle`](Self::purge_idle) starts to count anew.
    ///
    /// The times are those of the process's wall clock. Nothing but housekeeping reads them.
    fn touch(
        &self,
        used: &[SessionId],
        interval: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = (used, interval);
        ready(Err(unsupported("touch")))
    }

    /// Househousekeeping: deletes, as [`forget`](Self::forget) does, at most `limit` rows (above
    /// [`BATCH`](super::BATCH) it means [`BATCH`](super::BATCH)) whose recorded last use is longer ago than `idle`. Says how
    /// many; to be repeated while it says `limit`.
    ///
    /// A row whose use was never recorded counts from its creation. One that has no time of
    /// creation is kept. `idle` should be far longer than the interval at which use is recorded: a
    /// use that is not recorded yet does not count.
    ///
    /// # Errors
    ///
    /// [`StoreError::UseNotRecorded`], without a statement that writes, unless use has been
    /// recorded for at least `idle`, without a gap, up to now.
    fn purge_idle(
        &self,
        idle: Duration,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send {
        let _ = (idle, limit);
        ready(Err(unsupported("purge_idle")))
    }

    /// Househousekeeping: removes what is left of rows that were deleted at least seven days ago, at
    /// most `limit` of them (above [`BATCH`](super::BATCH) it means [`BATCH`](super::BATCH)). To be repeated while `gone` is
    /// `limit`, and to be run again some day.
    ///
    /// Such a row keeps its revisions from being used again, so it goes in two runs. One raises the
    /// floor above which new rows start to the revisions of the rows that wait. The next removes
    /// the rows that are not above the floor, if that was raised at least an hour ago: a write that
    /// began before may still use the old one. A transaction that has read for longer than that
    /// must not create rows at an isolation level that shows it old data.
    fn purge_forgotten(
        &self,
        limit: u64,
    ) -> impl Future<Output = Result<Purged, StoreError>> + Send {
        let _ = limit;
        ready(Err(unsupported("purge_forgotten")))
    }
}

/// What a layer holds of its store.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct UsedByLayer {
    pub(super) _counted: Option<Arc<()>>,
}

const fn unsupported(verb: &'static str) -> StoreError {
    StoreError::Unsupported { verb }
}

/// A store whose orders can be part of the caller's own transaction.
///
/// An application calls [`Bindings::retarget_in`](crate::Bindings::retarget_in), which has an
/// example.
pub trait TransactionalStore: BindingStore {
    /// The connection that a transaction of this database runs on; `&mut tx` and `&mut pooled`
    /// coerce to it.
    type Connection: Send;

    /// [`BindingStore::retarget`] on the caller's connection, as part of whatever transaction is
    /// open on it. The layer does not hear of it.
    ///
    /// # Errors
    ///
    /// A [`StoreError`]; the transaction is the caller's to roll back.
    ///
    /// # Cancel safety
    ///
    /// As of any statement in a transaction: if the future is dropped, roll back.
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
