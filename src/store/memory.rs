//! A store in this process's memory.

use super::{BindingStore, NewBinding, StoreError, Swap, at_most_a_batch, chunk};
use crate::{Binding, Previous, Revision, SessionId, Target, WorkspaceId, binding::Behind};
use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A store in this process's memory, for tests and for programs whose sessions end with the process.
///
/// It keeps the whole contract of [`BindingStore`]. Clones share their rows. A deleted row leaves a small record behind
/// that keeps its revision from being used again, so memory grows with the number of sessions ever seen.
/// [`reset_workspace`](BindingStore::reset_workspace) and [`replace_agent`](BindingStore::replace_agent) look at every
/// row.
///
/// # Cancel safety
///
/// No verb ever waits: a future that was polled once has done all of its work, one that was not has done nothing.
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
/// // The revision moved on: whoever read the row before does not overwrite it.
/// let late = store.compare_and_swap(unbound.revision, repaired).await?;
/// assert!(matches!(late, Swap::Conflict(Some(row)) if row.revision == Revision::new(2)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore {
    rows: Arc<Mutex<HashMap<SessionId, Row>>>,
}

/// What is kept of a session.
#[derive(Default)]
struct Row {
    /// `None` once the row was deleted: only its revision, and the agent it held last, are left.
    live: Option<Live>,
    previous: Option<Previous>,
    revision: i64,
}

struct Live {
    workspace: WorkspaceId,
    target: Option<Arc<Target>>,
}

impl Row {
    fn binding(&self, session: SessionId) -> Option<Binding> {
        let live = self.live.as_ref()?;
        let revision = Revision::new(self.revision);
        Some(Binding::new(session, live.workspace, live.target.clone(), revision).with_previous(self.previous))
    }

    /// The one place where a row changes: the revision grows, and an agent that has to go becomes the previous one.
    fn write(&mut self, live: Option<Live>) {
        let gone = self.live.take().and_then(|live| live.target);
        if let Some(gone) = gone {
            let next = live.as_ref().and_then(|live| live.target.as_ref());
            if next.is_none_or(|next| next.agent != gone.agent) {
                self.previous = Some(Previous::new(gone.agent, gone.generation));
            }
        }
        self.live = live;
        self.revision += 1;
    }

    /// [`write`](Self::write) for a row that stays; says what it is now.
    fn replace(&mut self, session: SessionId, workspace: WorkspaceId, target: Option<Arc<Target>>) -> Binding {
        self.write(Some(Live { workspace, target: target.clone() }));
        Binding::new(session, workspace, target, Revision::new(self.revision)).with_previous(self.previous)
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing under this lock waits or calls foreign code. If something panics all the same, every row is whole, since
    /// it is changed by plain assignments only: a poisoned lock is no reason to refuse service.
    fn rows(&self) -> MutexGuard<'_, HashMap<SessionId, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows how many records there are, not what is in them.
impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("records", &self.rows().len()).finish()
    }
}

impl BindingStore for MemoryStore {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        Ok(self.rows().get(&session).and_then(|row| row.binding(session)))
    }

    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        let mut rows = self.rows();
        let row = rows.entry(new.session).or_default();
        Ok(match row.binding(new.session) {
            Some(winner) => Swap::Conflict(Some(winner)),
            None => Swap::Applied(row.replace(new.session, new.workspace, new.target)),
        })
    }

    async fn compare_and_swap(&self, expected: Revision, new: NewBinding) -> Result<Swap, StoreError> {
        let mut rows = self.rows();
        let Entry::Occupied(mut row) = rows.entry(new.session) else { return Ok(Swap::Conflict(None)) };
        let row = row.get_mut();
        Ok(match row.binding(new.session) {
            Some(read) if read.revision == expected => {
                Swap::Applied(row.replace(new.session, new.workspace, new.target))
            }
            winner => Swap::Conflict(winner),
        })
    }

    async fn retarget(&self, session: SessionId, workspace: WorkspaceId) -> Result<Binding, StoreError> {
        let mut rows = self.rows();
        let row = rows.entry(session).or_default();
        let kept = row.live.as_ref().filter(|live| live.workspace == workspace).and_then(|live| live.target.clone());
        Ok(row.replace(session, workspace, kept))
    }

    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let mut rows = self.rows();
        let Some(row) = rows.get_mut(&session) else { return Ok(None) };
        let Some(workspace) = row.live.as_ref().map(|live| live.workspace) else { return Ok(None) };
        Ok(Some(row.replace(session, workspace, None)))
    }

    async fn delete(&self, session: SessionId, expected: Option<Revision>) -> Result<bool, StoreError> {
        let mut rows = self.rows();
        let row = rows.get_mut(&session).filter(|row| row.live.is_some());
        let row = row.filter(|row| expected.is_none_or(|expected| expected.get() == row.revision));
        Ok(row.map(|row| row.write(None)).is_some())
    }

    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        let mut rows = self.rows();
        if let Some(winner) = rows.get(&child).and_then(|row| row.binding(child)) {
            return Ok(Swap::Conflict(Some(winner)));
        }
        let Some(parent) = rows.get(&parent).and_then(|row| row.binding(parent)) else {
            return Ok(Swap::Conflict(None));
        };
        Ok(Swap::Applied(rows.entry(child).or_default().replace(child, parent.workspace, parent.target)))
    }

    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<u64, StoreError> {
        let mut changed = 0;
        for row in self.rows().values_mut() {
            if row.live.as_ref().is_some_and(|live| live.workspace == workspace) {
                row.write(Some(Live { workspace, target: None }));
                changed += 1;
            }
        }
        Ok(changed)
    }

    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        let behind = Behind::of(stale, current);
        let mut rows = self.rows();
        let mut chosen: Vec<_> = rows
            .iter_mut()
            .filter(|(_, row)| {
                let live = row.live.as_ref().filter(|live| live.workspace == workspace);
                live.and_then(|live| live.target.as_ref()).is_some_and(|target| behind.includes(target, current))
            })
            .collect();
        chosen.sort_unstable_by_key(|(session, _)| **session);
        chosen.truncate(usize::try_from(chunk(limit)).unwrap_or(usize::MAX));
        let written = chosen.len() as u64;
        for (_, row) in chosen {
            row.write(Some(Live { workspace, target: Some(Arc::clone(current)) }));
        }
        Ok(written)
    }

    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        at_most_a_batch(sessions)?;
        let sessions: HashSet<_> = sessions.iter().collect();
        let rows = self.rows();
        Ok(sessions.into_iter().filter_map(|session| rows.get(session)?.binding(*session)).collect())
    }

    fn shared(&self) -> bool {
        false
    }
}
