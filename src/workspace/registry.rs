//! The workspace states in use, found by workspace.

use super::{
    WorkspaceState,
    pace::{FRESH_DENIAL, Intervals},
};
use crate::{DoubtReason, Epoch, WorkspaceId, settings::Settings, sync::lock};
use moka::sync::Cache;
use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, Weak},
};
use tokio::time::Instant;

/// The number of locks. The more there are, the fewer entries move to make room for another one.
const STRIPES: usize = 1024;
/// How many denied workspaces are remembered although nothing here uses them.
const MOST_DENIED: u64 = 1_000;
/// How many announced workspaces are remembered although nothing here uses them.
const MOST_ANNOUNCED: usize = 10_000;

/// The workspaces in use.
#[derive(Debug)]
pub(crate) struct Workspaces {
    index: Arc<Index>,
    /// The workspaces that were denied a moment ago. Calls that fail hold no workspace state, so
    /// without this the reason would be forgotten.
    denied: Cache<WorkspaceId, Arc<WorkspaceState>>,
    /// The workspaces that were announced last.
    announced: Mutex<VecDeque<Arc<WorkspaceState>>>,
}

/// Finds workspace states, and holds what all of them have in common. Each of them holds the index,
/// and removes itself from it when it is dropped.
#[derive(Debug)]
pub(super) struct Index {
    stripes: Box<[Mutex<Stripe>]>,
    hasher: RandomState,
    pub(super) intervals: Intervals,
    pub(super) max_pending_dials: usize,
}

/// Some of the workspace states. They are sorted: a hash map would take twice the memory.
#[derive(Debug, Default)]
struct Stripe(Vec<(WorkspaceId, Weak<WorkspaceState>)>);

impl Index {
    fn stripe(&self, workspace: WorkspaceId) -> MutexGuard<'_, Stripe> {
        lock(&self.stripes[self.hasher.hash_one(workspace) as usize % STRIPES])
    }

    /// Removes the entry of a workspace state that is being dropped. Another one may have taken its
    /// place meanwhile.
    pub(super) fn remove_dropped(&self, workspace: WorkspaceId) {
        self.stripe(workspace).remove_if(workspace, |state| state.strong_count() == 0);
    }
}

impl Stripe {
    fn position(&self, workspace: WorkspaceId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&workspace, |(of, _)| *of)
    }

    fn get(&self, workspace: WorkspaceId) -> Option<Arc<WorkspaceState>> {
        self.position(workspace).ok().and_then(|index| self.0[index].1.upgrade())
    }

    fn insert(&mut self, workspace: WorkspaceId, state: Weak<WorkspaceState>) {
        match self.position(workspace) {
            Ok(index) => self.0[index].1 = state,
            Err(index) => {
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(self.0.len() / 8 + 1);
                }
                self.0.insert(index, (workspace, state));
            }
        }
    }

    fn remove_if(
        &mut self,
        workspace: WorkspaceId,
        condition: impl FnOnce(&Weak<WorkspaceState>) -> bool,
    ) {
        if let Ok(index) = self.position(workspace)
            && condition(&self.0[index].1)
        {
            self.0.remove(index);
            if self.0.len() < self.0.capacity() / 4 {
                self.0.shrink_to_fit();
            }
        }
    }
}

impl Workspaces {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            index: Arc::new(Index {
                stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
                hasher: RandomState::new(),
                intervals: Intervals {
                    first: settings.revalidate_every,
                    longest: settings.revalidate_at_most,
                },
                max_pending_dials: settings.max_pending_dials,
            }),
            // moka's clock only bounds the memory; how old a denial may be is decided with tokio's.
            denied: Cache::builder().max_capacity(MOST_DENIED).time_to_live(FRESH_DENIAL).build(),
            announced: Mutex::default(),
        }
    }

    /// Returns the state of a workspace that a row names in this epoch, or its state in a later
    /// epoch. The first row of an epoch ends the state of the one before: its users must look their
    /// rows up again.
    pub(crate) fn state(&self, workspace: WorkspaceId, epoch: Epoch) -> Arc<WorkspaceState> {
        let mut stripe = self.index.stripe(workspace);
        let ended = match stripe.get(workspace) {
            Some(state) if state.epoch() >= epoch => return state,
            ended => ended,
        };
        let state = Arc::new(WorkspaceState::new(workspace, epoch, Arc::clone(&self.index)));
        stripe.insert(workspace, Arc::downgrade(&state));
        // Dropping the ended state takes this lock.
        drop(stripe);
        if let Some(ended) = ended {
            ended.reset();
            // The ended epoch is evidence that the agent may have changed.
            state.doubt(DoubtReason::Reset, Instant::now());
        }
        state
    }

    /// Returns the state of a workspace that is in use.
    pub(crate) fn find(&self, workspace: WorkspaceId) -> Option<Arc<WorkspaceState>> {
        self.index.stripe(workspace).get(workspace)
    }

    /// Visits the workspaces in use.
    pub(crate) fn visit(&self, mut visit: impl FnMut(&WorkspaceState)) {
        for stripe in &self.index.stripes {
            // Dropping a state takes this lock, so the states are held until it is released.
            let states: Vec<_> =
                lock(stripe).0.iter().filter_map(|(_, state)| state.upgrade()).collect();
            states.iter().for_each(|state| visit(state));
        }
    }

    /// Keeps the state of a workspace that the resolver has denied for a moment, although nothing
    /// may use it.
    pub(crate) fn remember_denial(&self, state: Arc<WorkspaceState>) {
        self.denied.insert(state.workspace(), state);
    }

    /// Returns the state of a workspace that is announced, and keeps it for a while, although
    /// nothing may use it.
    pub(crate) fn remember_announced(&self, workspace: WorkspaceId) -> Arc<WorkspaceState> {
        let state = self.state(workspace, Epoch::default());
        let mut announced = lock(&self.announced);
        if !announced.iter().any(|other| Arc::ptr_eq(other, &state)) {
            if announced.len() == MOST_ANNOUNCED {
                let oldest = announced.pop_front();
                // Dropping a state takes the lock of a stripe.
                drop((announced, oldest));
                announced = lock(&self.announced);
            }
            announced.push_back(Arc::clone(&state));
        }
        drop(announced);
        state
    }

    /// Ends the state of a workspace, unless it is of this epoch already: its users must look their
    /// rows up again. The rows say which epoch it is; `None` stands for any later one.
    pub(crate) fn reset(&self, workspace: WorkspaceId, epoch: Option<Epoch>) {
        let Some(state) = self.find(workspace) else { return };
        if epoch.is_some_and(|epoch| state.epoch() >= epoch) {
            return;
        }
        let is_this = |other: &Weak<WorkspaceState>| std::ptr::eq(other.as_ptr(), &*state);
        self.index.stripe(workspace).remove_if(workspace, is_this);
        state.reset();
    }
}

#[cfg(test)]
mod tests;
