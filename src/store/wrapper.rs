//! Stores that wrap another store.

use super::{BindingStore, NewBinding, Purged, Reset, StoreError, Swap, UsedByLayer};
use crate::{Binding, Epoch, Revision, SessionId, Target, WorkspaceId};
use futures_util::Stream;
use std::{sync::Arc, time::Duration};

/// A store that wraps another one and forwards every method that it does not override.
///
/// Every implementor is a [`BindingStore`]. A wrapper that implements [`BindingStore`] directly
/// must forward every method, including those with a default: without
/// [`shared`](BindingStore::shared), the layer refreshes rows that no other process writes; without
/// the methods of housekeeping, they are unsupported.
///
/// # Example
///
/// A store that counts reads.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use tower_bound_agent::{
///     Binding, SessionId,
///     store::{BindingStore, MemoryStore, StoreError, StoreWrapper},
/// };
///
/// struct Counted<St> {
///     store: St,
///     reads: AtomicU64,
/// }
///
/// impl<St: BindingStore> StoreWrapper for Counted<St> {
///     type Inner = St;
///
///     fn inner(&self) -> &St {
///         &self.store
///     }
///
///     async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
///         self.reads.fetch_add(1, Ordering::Relaxed);
///         self.store.load(session).await
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), StoreError> {
/// # let session = SessionId::new(uuid::Uuid::from_u128(1));
/// let store = Counted { store: MemoryStore::new(), reads: AtomicU64::new(0) };
/// assert_eq!(BindingStore::load(&store, session).await?, None);
/// assert_eq!(BindingStore::unbind(&store, session).await?, None);
/// assert_eq!(store.reads.load(Ordering::Relaxed), 1);
/// assert!(!BindingStore::shared(&store), "as the store within");
/// # Ok(())
/// # }
/// ```
pub trait StoreWrapper: Send + Sync + 'static {
    /// The type of the inner store.
    type Inner: BindingStore;

    /// Returns the inner store.
    fn inner(&self) -> &Self::Inner;

    /// [`BindingStore::load`].
    fn load(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Option<Binding>, StoreError>> + Send {
        self.inner().load(session)
    }

    /// [`BindingStore::create`].
    fn create(&self, new: NewBinding) -> impl Future<Output = Result<Swap, StoreError>> + Send {
        self.inner().create(new)
    }

    /// [`BindingStore::compare_and_swap`].
    fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send {
        self.inner().compare_and_swap(expected, new)
    }

    /// [`BindingStore::retarget`].
    fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Binding, StoreError>> + Send {
        self.inner().retarget(session, workspace)
    }

    /// [`BindingStore::unbind`].
    fn unbind(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Option<Binding>, StoreError>> + Send {
        self.inner().unbind(session)
    }

    /// [`BindingStore::forget`].
    fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        self.inner().forget(session, expected)
    }

    /// [`BindingStore::inherit`].
    fn inherit(
        &self,
        child: SessionId,
        parent: SessionId,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send {
        self.inner().inherit(child, parent)
    }

    /// [`BindingStore::reset_workspace`].
    fn reset_workspace(
        &self,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Reset, StoreError>> + Send {
        self.inner().reset_workspace(workspace)
    }

    /// [`BindingStore::replace_agent`].
    fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send {
        self.inner().replace_agent(workspace, epoch, stale, current, limit)
    }

    /// [`BindingStore::load_many`].
    fn load_many(
        &self,
        sessions: &[SessionId],
    ) -> impl Future<Output = Result<Vec<Binding>, StoreError>> + Send {
        self.inner().load_many(sessions)
    }

    /// [`BindingStore::shared`].
    fn shared(&self) -> bool {
        self.inner().shared()
    }

    /// [`BindingStore::recent`].
    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        self.inner().recent(limit)
    }

    /// [`BindingStore::touch`].
    fn touch(
        &self,
        used: &[SessionId],
        interval: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        self.inner().touch(used, interval)
    }

    /// [`BindingStore::purge_idle`].
    fn purge_idle(
        &self,
        idle: Duration,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send {
        self.inner().purge_idle(idle, limit)
    }

    /// [`BindingStore::purge_forgotten`].
    fn purge_forgotten(
        &self,
        limit: u64,
    ) -> impl Future<Output = Result<Purged, StoreError>> + Send {
        self.inner().purge_forgotten(limit)
    }
}

impl<W: StoreWrapper> BindingStore for W {
    fn load(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Option<Binding>, StoreError>> + Send {
        StoreWrapper::load(self, session)
    }
    fn create(&self, new: NewBinding) -> impl Future<Output = Result<Swap, StoreError>> + Send {
        StoreWrapper::create(self, new)
    }
    fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send {
        StoreWrapper::compare_and_swap(self, expected, new)
    }
    fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Binding, StoreError>> + Send {
        StoreWrapper::retarget(self, session, workspace)
    }
    fn unbind(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Option<Binding>, StoreError>> + Send {
        StoreWrapper::unbind(self, session)
    }
    fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        StoreWrapper::forget(self, session, expected)
    }
    fn inherit(
        &self,
        child: SessionId,
        parent: SessionId,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send {
        StoreWrapper::inherit(self, child, parent)
    }
    fn reset_workspace(
        &self,
        workspace: WorkspaceId,
    ) -> impl Future<Output = Result<Reset, StoreError>> + Send {
        StoreWrapper::reset_workspace(self, workspace)
    }
    fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send {
        StoreWrapper::replace_agent(self, workspace, epoch, stale, current, limit)
    }
    fn load_many(
        &self,
        sessions: &[SessionId],
    ) -> impl Future<Output = Result<Vec<Binding>, StoreError>> + Send {
        StoreWrapper::load_many(self, sessions)
    }
    fn shared(&self) -> bool {
        StoreWrapper::shared(self)
    }
    fn used_by_layer(&self) -> UsedByLayer {
        self.inner().used_by_layer()
    }
    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        StoreWrapper::recent(self, limit)
    }
    fn touch(
        &self,
        used: &[SessionId],
        interval: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        StoreWrapper::touch(self, used, interval)
    }
    fn purge_idle(
        &self,
        idle: Duration,
        limit: u64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send {
        StoreWrapper::purge_idle(self, idle, limit)
    }
    fn purge_forgotten(
        &self,
        limit: u64,
    ) -> impl Future<Output = Result<Purged, StoreError>> + Send {
        StoreWrapper::purge_forgotten(self, limit)
    }
}
