//! A store in the process's memory.

use super::{
    BindingStore, NewBinding, Reset, StoreError, Swap, UsedByLayer,
    housekeeping::{Housekeeping, Meta, housekeeping_verbs, milliseconds_now},
    types::{at_most_a_batch, chunk},
};
use crate::{
    Binding, Epoch, Previous, Revision, SessionId, Target, WorkspaceId, binding::Behind, sync::lock,
};
use futures_util::{Stream, stream};
use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard},
};

/// A store in the process's memory, for tests and for applications whose sessions end with the
/// process.
///
/// Implements the whole contract of [`BindingStore`]. Clones share the rows; if several layers use
/// them, each layer refreshes its cached rows in the background. A deleted row leaves a tombstone
/// that prevents the reuse of its revisions, until
/// [`purge_forgotten`](BindingStore::purge_forgotten) removes it. Methods that take no sessions
/// scan all rows.
///
/// # Cancel safety
///
/// No method waits: a future does all of its work when it is first polled.
///
/// # Example
///
/// ```
/// use tower_bound_agent::{AgentId, Revision, SessionId, Target, WorkspaceId};
/// use tower_bound_agent::store::{BindingStore, MemoryStore, NewBinding, StoreError, Swap};
/// # use {std::sync::Arc, uuid::Uuid};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), StoreError> {
/// # let (session, workspace) = (SessionId::new(Uuid::from_u128(1)), WorkspaceId::new(Uuid::from_u128(2)));
/// # let target = Arc::new(Target::new(AgentId::new(Uuid::from_u128(3))));
/// let store = MemoryStore::new();
/// let unbound = store.retarget(session, workspace).await?;
/// assert_eq!(unbound.target, None);
///
/// let repaired = NewBinding::new(session, workspace, Some(target));
/// let swap = store.compare_and_swap(unbound.revision, repaired.clone()).await?;
/// assert!(matches!(swap, Swap::Applied(row) if row.revision == Revision::new(2)));
///
/// // The revision has grown, so a writer that read the row before does not overwrite it.
/// let late = store.compare_and_swap(unbound.revision, repaired).await?;
/// assert!(matches!(late, Swap::Conflict(Some(row)) if row.revision == Revision::new(2)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore {
    rows: Arc<Mutex<Rows>>,
    /// Counts the layers over these rows: one reference for each, and one for all clones of the
    /// store.
    layers: Arc<Layers>,
}

#[derive(Default)]
struct Layers(Arc<()>);

#[derive(Default)]
struct Rows {
    rows: HashMap<SessionId, Row>,
    /// Epochs of the workspaces that were reset; others are in epoch 0.
    epochs: HashMap<WorkspaceId, Epoch>,
    meta: Meta,
}

impl Rows {
    fn epoch(&self, workspace: WorkspaceId) -> Epoch {
        self.epochs.get(&workspace).copied().unwrap_or_default()
    }

    fn binding(&self, session: SessionId) -> Option<Binding> {
        let binding = self.rows.get(&session)?.binding(session)?;
        let epoch = self.epoch(binding.workspace);
        Some(binding.in_epoch(epoch))
    }

    /// Returns the content of a row, even if its target's epoch has ended.
    fn live(&self, session: SessionId) -> Option<&Live> {
        self.rows.get(&session)?.live.as_ref()
    }

    /// Writes a row and returns it.
    fn write(&mut self, session: SessionId, live: Live) -> Binding {
        let current = self.epoch(live.workspace);
        let Live { workspace, target, epoch } = live.clone();
        let row = self.row(session);
        row.write(Some(live));
        let binding = Binding::new(session, workspace, target, Revision::new(row.revision));
        binding.with_previous(row.previous).with_epoch(epoch).in_epoch(current)
    }

    /// Returns the row to write into; a new one starts at the floor.
    fn row(&mut self, session: SessionId) -> &mut Row {
        let floor = self.meta.floor;
        self.rows.entry(session).or_insert_with(|| Row { revision: floor, ..Row::default() })
    }
}

impl Deref for Rows {
    type Target = HashMap<SessionId, Row>;

    fn deref(&self) -> &Self::Target {
        &self.rows
    }
}

impl DerefMut for Rows {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.rows
    }
}

/// A row or tombstone.
#[derive(Default)]
struct Row {
    /// `None` in a tombstone, which keeps only its revision and the previous agent.
    live: Option<Live>,
    previous: Option<Previous>,
    revision: i64,
    created_at: i64,
    last_used: Option<i64>,
    /// Set in a tombstone.
    deleted_at: i64,
}

#[derive(Clone)]
struct Live {
    workspace: WorkspaceId,
    target: Option<Arc<Target>>,
    /// The epoch in which the target was learned.
    epoch: Epoch,
}

impl From<NewBinding> for Live {
    fn from(new: NewBinding) -> Self {
        Self { workspace: new.workspace, target: new.target, epoch: new.epoch }
    }
}

impl Row {
    fn binding(&self, session: SessionId) -> Option<Binding> {
        let live = self.live.as_ref()?;
        let revision = Revision::new(self.revision);
        let binding = Binding::new(session, live.workspace, live.target.clone(), revision);
        Some(binding.with_previous(self.previous).with_epoch(live.epoch))
    }

    /// The one place where a row changes: the revision grows, and an agent that has to go becomes
    /// the previous one.
    fn write(&mut self, live: Option<Live>) {
        let gone = self.live.take().and_then(|live| live.target);
        if let Some(gone) = gone {
            let next = live.as_ref().and_then(|live| live.target.as_ref());
            if next.is_none_or(|next| next.agent != gone.agent) {
                self.previous = Some(Previous::new(gone.agent, gone.generation));
            }
        }
        if self.live.is_none() && live.is_some() {
            self.created_at = milliseconds_now();
        }
        self.live = live;
        self.revision += 1;
    }

    /// [`write`](Self::write) for a row that goes.
    fn forget(&mut self, now: i64) {
        self.write(None);
        self.last_used = None;
        self.deleted_at = now;
    }
}

impl MemoryStore {
    /// Creates an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Locks the rows. Nothing under this lock waits or calls foreign code, and rows are changed by
    /// assignments only, so they are consistent even if the lock is poisoned.
    fn rows(&self) -> MutexGuard<'_, Rows> {
        lock(&self.rows)
    }
}

/// Shows the number of rows, but not their content.
impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("records", &self.rows().len()).finish()
    }
}

impl BindingStore for MemoryStore {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        Ok(self.rows().binding(session))
    }

    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        let mut rows = self.rows();
        Ok(match rows.binding(new.session) {
            Some(winner) => Swap::Conflict(Some(winner)),
            None => Swap::Applied(rows.write(new.session, new.into())),
        })
    }

    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        let mut rows = self.rows();
        Ok(match rows.binding(new.session) {
            Some(read) if read.revision == expected => {
                Swap::Applied(rows.write(new.session, new.into()))
            }
            winner => Swap::Conflict(winner),
        })
    }

    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let mut rows = self.rows();
        let there = rows.live(session).filter(|live| live.workspace == workspace).cloned();
        let live = there.unwrap_or_else(|| NewBinding::new(session, workspace, None).into());
        Ok(rows.write(session, live))
    }

    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let mut rows = self.rows();
        let Some(workspace) = rows.live(session).map(|live| live.workspace) else {
            return Ok(None);
        };
        Ok(Some(rows.write(session, NewBinding::new(session, workspace, None).into())))
    }

    async fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> Result<bool, StoreError> {
        let mut rows = self.rows();
        let row = rows.get_mut(&session).filter(|row| row.live.is_some());
        let row = row.filter(|row| expected.is_none_or(|expected| expected.get() == row.revision));
        Ok(row.map(|row| row.forget(milliseconds_now())).is_some())
    }

    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        let mut rows = self.rows();
        if let Some(winner) = rows.binding(child) {
            return Ok(Swap::Conflict(Some(winner)));
        }
        let Some(parent) = rows.live(parent).cloned() else { return Ok(Swap::Conflict(None)) };
        Ok(Swap::Applied(rows.write(child, parent)))
    }

    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        let mut rows = self.rows();
        let epoch = Epoch::new(rows.epoch(workspace).get() + 1);
        rows.epochs.insert(workspace, epoch);
        let mut changed = 0;
        for row in rows.values_mut() {
            if row.live.as_ref().is_some_and(|live| live.workspace == workspace) {
                row.write(Some(Live { workspace, target: None, epoch }));
                changed += 1;
            }
        }
        Ok(Reset::new(changed, epoch))
    }

    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        let behind = Behind::of(stale, current);
        let mut rows = self.rows();
        let mut chosen: Vec<_> = rows
            .iter_mut()
            .filter(|(_, row)| {
                let live = row
                    .live
                    .as_ref()
                    .filter(|live| live.workspace == workspace && live.epoch == epoch);
                live.and_then(|live| live.target.as_ref())
                    .is_some_and(|target| behind.includes(target, current))
            })
            .collect();
        chosen.sort_unstable_by_key(|(session, _)| **session);
        chosen.truncate(usize::try_from(chunk(limit)).unwrap_or(usize::MAX));
        let written = chosen.len() as u64;
        for (_, row) in chosen {
            row.write(Some(Live { workspace, target: Some(Arc::clone(current)), epoch }));
        }
        Ok(written)
    }

    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        at_most_a_batch(sessions)?;
        let sessions: HashSet<_> = sessions.iter().collect();
        let rows = self.rows();
        Ok(sessions.into_iter().filter_map(|session| rows.binding(*session)).collect())
    }

    /// Returns `true` if several layers use these rows.
    fn shared(&self) -> bool {
        Arc::strong_count(&self.layers.0) > 2
    }

    fn used_by_layer(&self) -> UsedByLayer {
        UsedByLayer { _counted: Some(Arc::clone(&self.layers.0)) }
    }

    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        let rows = self.rows();
        let live =
            rows.iter().filter_map(|(session, row)| Some((row.last_used, rows.binding(*session)?)));
        let mut live: Vec<_> = live.collect();
        live.sort_by_key(|(last_used, _)| Reverse(*last_used));
        live.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        stream::iter(live.into_iter().map(|(_, binding)| Ok(binding)))
    }

    housekeeping_verbs! {}
}

impl Housekeeping for MemoryStore {
    async fn meta(&self) -> Result<Meta, StoreError> {
        Ok(self.rows().meta)
    }

    async fn mark_used(&self, sessions: &[SessionId], now: i64) -> Result<(), StoreError> {
        let mut rows = self.rows();
        for session in sessions {
            if let Some(row) = rows.get_mut(session).filter(|row| row.live.is_some()) {
                row.last_used = row.last_used.max(Some(now));
            }
        }
        Ok(())
    }

    async fn mark_recorded(&self, now: i64, continuous: i64, gap: i64) -> Result<(), StoreError> {
        let meta = &mut self.rows().meta;
        let goes_on = meta.recorded_until.is_some_and(|until| until >= continuous);
        meta.recorded_since = meta.recorded_since.filter(|_| goes_on).or(Some(now));
        (meta.recorded_until, meta.gap) = (Some(now), Some(gap));
        Ok(())
    }

    async fn delete_idle(&self, before: i64, now: i64, limit: u64) -> Result<u64, StoreError> {
        let mut rows = self.rows();
        let idle = rows
            .values_mut()
            .filter(|row| row.last_used.is_some_and(|last_used| last_used < before));
        let chunk = idle.take(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(chunk.map(|row| row.forget(now)).count() as u64)
    }

    async fn delete_unused(&self, before: i64, now: i64, limit: u64) -> Result<u64, StoreError> {
        let mut rows = self.rows();
        let unused = rows.values_mut().filter(|row| row.live.is_some() && row.last_used.is_none());
        let unused = unused.filter(|row| row.created_at < before);
        let chunk = unused.take(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(chunk.map(|row| row.forget(now)).count() as u64)
    }

    async fn remove_deleted(&self, before: i64, floor: i64, limit: u64) -> Result<u64, StoreError> {
        let mut rows = self.rows();
        let mut gone = 0;
        rows.retain(|_, row| {
            let goes = gone < limit
                && row.live.is_none()
                && row.deleted_at < before
                && row.revision <= floor;
            gone += u64::from(goes);
            !goes
        });
        Ok(gone)
    }

    async fn deleted_before(&self, before: i64) -> Result<(u64, i64), StoreError> {
        let rows = self.rows();
        let deleted = rows.values().filter(|row| row.live.is_none() && row.deleted_at < before);
        Ok(deleted.fold((0, 0), |(count, greatest), row| (count + 1, row.revision.max(greatest))))
    }

    async fn raise_floor(&self, to: i64, now: i64, settled: i64) -> Result<(), StoreError> {
        let meta = &mut self.rows().meta;
        if meta.floor < to && meta.floor_raised_at.is_none_or(|raised_at| raised_at <= settled) {
            (meta.floor, meta.floor_raised_at) = (to, Some(now));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
