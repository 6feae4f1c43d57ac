//! The object-safe form of the contract.

use super::{
    binding_store::{BindingStore, UsedByLayer},
    error::StoreError,
    types::{NewBinding, Purged, Reset, Swap},
};
use crate::{Binding, Epoch, Revision, SessionId, Target, WorkspaceId};
use futures_util::{future::BoxFuture, stream::BoxStream};
use std::{sync::Arc, time::Duration};

/// The object-safe twin of [`BindingStore`], so that the layer has no type parameter.
pub(crate) trait ErasedStore: Send + Sync + 'static {
    fn load(&self, session: SessionId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    fn create(&self, new: NewBinding) -> BoxFuture<'_, Result<Swap, StoreError>>;
    fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> BoxFuture<'_, Result<Swap, StoreError>>;
    fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> BoxFuture<'_, Result<Binding, StoreError>>;
    fn unbind(&self, session: SessionId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>>;
    fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;
    fn inherit(
        &self,
        child: SessionId,
        parent: SessionId,
    ) -> BoxFuture<'_, Result<Swap, StoreError>>;
    fn reset_workspace(&self, workspace: WorkspaceId) -> BoxFuture<'_, Result<Reset, StoreError>>;
    fn replace_agent<'a>(
        &'a self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &'a Target,
        current: &'a Arc<Target>,
        limit: u64,
    ) -> BoxFuture<'a, Result<u64, StoreError>>;
    fn load_many<'a>(
        &'a self,
        sessions: &'a [SessionId],
    ) -> BoxFuture<'a, Result<Vec<Binding>, StoreError>>;
    fn shared(&self) -> bool;
    fn used_by_layer(&self) -> UsedByLayer;
    fn recent(&self, limit: u64) -> BoxStream<'_, Result<Binding, StoreError>>;
    fn touch<'a>(
        &'a self,
        used: &'a [SessionId],
        interval: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
    fn purge_idle(&self, idle: Duration, limit: u64) -> BoxFuture<'_, Result<u64, StoreError>>;
    fn purge_forgotten(&self, limit: u64) -> BoxFuture<'_, Result<Purged, StoreError>>;
}

impl<St: BindingStore> ErasedStore for St {
    fn load(&self, session: SessionId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(BindingStore::load(self, session))
    }
    fn create(&self, new: NewBinding) -> BoxFuture<'_, Result<Swap, StoreError>> {
        Box::pin(BindingStore::create(self, new))
    }
    fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> BoxFuture<'_, Result<Swap, StoreError>> {
        Box::pin(BindingStore::compare_and_swap(self, expected, new))
    }
    fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> BoxFuture<'_, Result<Binding, StoreError>> {
        Box::pin(BindingStore::retarget(self, session, workspace))
    }
    fn unbind(&self, session: SessionId) -> BoxFuture<'_, Result<Option<Binding>, StoreError>> {
        Box::pin(BindingStore::unbind(self, session))
    }
    fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(BindingStore::forget(self, session, expected))
    }
    fn inherit(
        &self,
        child: SessionId,
        parent: SessionId,
    ) -> BoxFuture<'_, Result<Swap, StoreError>> {
        Box::pin(BindingStore::inherit(self, child, parent))
    }
    fn reset_workspace(&self, workspace: WorkspaceId) -> BoxFuture<'_, Result<Reset, StoreError>> {
        Box::pin(BindingStore::reset_workspace(self, workspace))
    }
    fn replace_agent<'a>(
        &'a self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &'a Target,
        current: &'a Arc<Target>,
        limit: u64,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(BindingStore::replace_agent(self, workspace, epoch, stale, current, limit))
    }
    fn load_many<'a>(
        &'a self,
        sessions: &'a [SessionId],
    ) -> BoxFuture<'a, Result<Vec<Binding>, StoreError>> {
        Box::pin(BindingStore::load_many(self, sessions))
    }
    fn shared(&self) -> bool {
        BindingStore::shared(self)
    }
    fn used_by_layer(&self) -> UsedByLayer {
        BindingStore::used_by_layer(self)
    }
    fn recent(&self, limit: u64) -> BoxStream<'_, Result<Binding, StoreError>> {
        Box::pin(BindingStore::recent(self, limit))
    }
    fn touch<'a>(
        &'a self,
        used: &'a [SessionId],
        interval: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(BindingStore::touch(self, used, interval))
    }
    fn purge_idle(&self, idle: Duration, limit: u64) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(BindingStore::purge_idle(self, idle, limit))
    }
    fn purge_forgotten(&self, limit: u64) -> BoxFuture<'_, Result<Purged, StoreError>> {
        Box::pin(BindingStore::purge_forgotten(self, limit))
    }
}
