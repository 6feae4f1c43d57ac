//! The world as it really is, and what each process may know of it.

use crate::{
    CHATS, WORKSPACES, chat,
    chronicle::{Chronicle, Moment},
    dialer::Conn,
    life::{Answers, Does, Fault, Status},
    sessions, workspace,
};
use futures_util::FutureExt;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::time::Instant;
use tower_bound_agent::{
    AgentId, Binding, Bound, Epoch, Previous, Revision, SessionId, Target, WorkspaceId,
    store::{BindingStore, MemoryStore, NewBinding, Reset, StoreError, Swap},
};
use uuid::Uuid;

/// The world as it really is, and what each process may know of it.
#[derive(Clone, Default)]
pub(crate) struct Plant {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) store: MemoryStore,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) workspaces: Vec<Workspace>,
    pub(crate) agents: HashMap<AgentId, Agent>,
    pub(crate) answers: HashMap<(usize, WorkspaceId), Answers>,
    pub(crate) faults: Vec<Faults>,
    pub(crate) knows: Vec<Knowledge>,
    pub(crate) validating: HashMap<(usize, WorkspaceId), usize>,
    /// The statements under way that repair a workspace: by whom, which, from what, to what.
    pub(crate) repairing: HashSet<(usize, WorkspaceId, Option<AgentId>, AgentId)>,
    /// Statements that write, of each process.
    pub(crate) writes: Vec<u64>,
    pub(crate) deleted: HashMap<SessionId, i64>,
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) live_connections: usize,
    /// Connections that their callers hold.
    pub(crate) held: Vec<Bound<Conn>>,
    pub(crate) chronicle: Chronicle,
    /// The processes whose layers are being closed or were, and those of which closing has
    /// returned.
    pub(crate) closing: HashSet<usize>,
    pub(crate) closed: HashSet<usize>,
    pub(crate) broken: Vec<String>,
}

impl State {
    pub(crate) fn workspace(&mut self, id: WorkspaceId) -> &mut Workspace {
        let ws = (0..WORKSPACES).find(|ws| workspace(*ws) == id).expect("a known workspace");
        &mut self.workspaces[ws]
    }

    /// After `close` has returned, nothing of the layer runs.
    pub(crate) fn not_after_closing(&mut self, process: usize, what: &str) {
        if self.closed.contains(&process) {
            self.broken.push(format!("{process}: {what} after it was closed"));
        }
    }
}

pub(crate) struct Workspace {
    pub(crate) builds: Vec<Target>,
    pub(crate) status: Status,
    pub(crate) numbered: bool,
    /// The first build of the present numbering.
    pub(crate) first: usize,
    /// How often builds were numbered anew, and how often the store was told.
    pub(crate) renumbered: usize,
    pub(crate) resets: usize,
}

impl Workspace {
    /// Whether builds were numbered anew: then numbers alone do not say which of two agents is the
    /// later one.
    pub(crate) fn was_renumbered(&self) -> bool {
        self.renumbered > 0
    }

    /// The store does not know of the present numbering yet.
    pub(crate) fn is_reset_due(&self) -> bool {
        self.resets < self.renumbered
    }

    /// Whether the agent is of an ended numbering, of which the store knows. Without numbers an
    /// agent may come back.
    pub(crate) fn is_of_ended_numbering(&self, agent: AgentId) -> bool {
        let mut ended = self.builds[..self.first].iter();
        self.numbered && !self.is_reset_due() && ended.any(|target| target.agent == agent)
    }
}

pub(crate) struct Agent {
    pub(crate) workspace: WorkspaceId,
    pub(crate) target: Target,
    pub(crate) does: Does,
}

#[derive(Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) reads: Fault,
    pub(crate) writes: Fault,
}

impl Default for Faults {
    fn default() -> Self {
        Self { reads: Fault::None, writes: Fault::None }
    }
}

pub(crate) struct Call {
    pub(crate) process: usize,
    pub(crate) session: SessionId,
    /// The workspace that the caller named.
    pub(crate) named: Option<WorkspaceId>,
    pub(crate) lag: u64,
    /// When it was polled first, how far the process had seen the row by then, and whether nothing
    /// was broken.
    pub(crate) began: Option<(Moment, Revision, bool)>,
    pub(crate) dials: Vec<Dial>,
    /// Those that were not dropped yet.
    pub(crate) live: u8,
}

pub(crate) struct Dial {
    pub(crate) workspace: WorkspaceId,
    pub(crate) target: Target,
    /// Whether there was a connection, once that is known.
    pub(crate) connected: Option<bool>,
}

/// What a process has been told, by its resolver and its store.
#[derive(Default)]
pub(crate) struct Knowledge {
    /// Of each session the latest row, and since when that is known; `Err` since when it is known
    /// to be deleted.
    pub(crate) rows: HashMap<SessionId, Result<(Revision, WorkspaceId, Instant), Instant>>,
    /// Until when no row of a session is kept: an order of this process had an unknown outcome.
    pub(crate) unkept: HashMap<SessionId, Instant>,
    /// Revisions only grow.
    pub(crate) floors: HashMap<SessionId, Revision>,
    /// The greatest generation of each workspace.
    pub(crate) generations: HashMap<WorkspaceId, i64>,
    /// Without generations: the agent that the latest question was answered with, when that
    /// question began, and the agents that it has replaced.
    pub(crate) newest: HashMap<WorkspaceId, (AgentId, Instant)>,
    pub(crate) replaced: HashMap<WorkspaceId, HashSet<AgentId>>,
    /// Agents that answered a dial of this process.
    pub(crate) connected: HashSet<AgentId>,
    /// Of each session the row that was seen last, whether a write found it in its way, and when.
    pub(crate) last: HashMap<SessionId, (Binding, bool, Instant)>,
    /// The repairs of a workspace that have landed, here or by what was heard: up to which
    /// generation or, without, from which agent to which.
    pub(crate) landed: HashMap<WorkspaceId, i64>,
    pub(crate) landed_from: HashSet<(AgentId, AgentId)>,
    /// The greatest epoch of each workspace, and since when that is known.
    pub(crate) epochs: HashMap<WorkspaceId, (Epoch, Instant)>,
}

impl Knowledge {
    pub(crate) fn learn_epoch(&mut self, workspace: WorkspaceId, epoch: Epoch) {
        let known = self.epochs.entry(workspace).or_insert((epoch, Instant::now()));
        if epoch > known.0 {
            *known = (epoch, Instant::now());
        }
    }
}

impl Plant {
    pub(crate) fn new(numbered: [bool; WORKSPACES]) -> Self {
        let plant = Self::default();
        for numbered in numbered {
            let builds = Vec::new();
            plant.state().workspaces.push(Workspace {
                builds,
                status: Status::Running,
                numbered,
                first: 0,
                renumbered: 0,
                resets: 0,
            });
        }
        for ws in 0..WORKSPACES {
            plant.build(ws);
        }
        plant
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn build(&self, ws: usize) {
        let mut state = self.state();
        let build = &mut state.workspaces[ws];
        let number = build.builds.len();
        let agent = AgentId::new(Uuid::from_u128((0xa0 + ws as u128) << 64 | number as u128));
        // Two addresses take turns, so that a new agent is found at an address of an earlier one.
        let mut target = Target::new(agent).with_address(format!("10.0.{ws}.{}:9000", number % 2));
        if build.numbered {
            target = target.with_generation((number - build.first) as i64 + 1);
        }
        build.builds.push(target.clone());
        let agent =
            Agent { workspace: workspace(ws), target: target.clone(), does: Does::Answer(0) };
        state.agents.insert(target.agent, agent);
    }

    /// The agent before the present one serves again, unless builds are numbered: then it is a
    /// later build.
    pub(crate) fn build_again(&self, ws: usize) {
        let before = {
            let state = self.state();
            let Workspace { builds, numbered, .. } = &state.workspaces[ws];
            builds.iter().rev().nth(1).filter(|_| !numbered).cloned()
        };
        let Some(before) = before else { return self.build(ws) };
        self.state().workspaces[ws].builds.push(before.clone());
        self.does(before.agent, Does::Answer(0));
    }

    /// Builds are numbered anew from the next one on.
    pub(crate) fn renumber(&self, ws: usize) {
        let build = &mut self.state().workspaces[ws];
        build.first = build.builds.len();
        build.renumbered += 1;
    }

    /// Carries out a reset.
    pub(crate) fn reset(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        self.state().workspace(workspace).resets += 1;
        let reset = self.store.reset_workspace(workspace).now_or_never();
        reset.expect("the memory store never waits")
    }

    pub(crate) fn current(&self, ws: usize) -> Target {
        self.state().workspaces[ws].builds.last().unwrap().clone()
    }

    pub(crate) fn does(&self, agent: AgentId, does: Does) {
        self.state().agents.get_mut(&agent).unwrap().does = does;
    }

    pub(crate) fn row(&self, session: SessionId) -> Option<Binding> {
        self.store.load(session).now_or_never().expect("the memory store never waits").unwrap()
    }

    pub(crate) fn hold(&self, bound: Bound<Conn>) {
        let mut state = self.state();
        state.held.push(bound);
        let oldest = (state.held.len() > 8).then(|| state.held.remove(0));
        // A connection looks at the state when it goes.
        drop(state);
        drop(oldest);
    }

    /// A row is a pair that belongs together.
    pub(crate) fn check_rows(&self) {
        for session in sessions() {
            let Some(row) = self.row(session) else { continue };
            let mut state = self.state();
            if let Some(target) = &row.target
                && state
                    .agents
                    .get(&target.agent)
                    .is_none_or(|a| a.workspace != row.workspace || a.target != **target)
            {
                state.broken.push(format!("a torn row: {row:?}"));
            }
            if let Some(target) = &row.target
                && state.workspace(row.workspace).is_of_ended_numbering(target.agent)
            {
                state.broken.push(format!("a target of an ended numbering came back: {row:?}"));
            }
        }
    }

    /// Process `process` has read or written this row, or found it `in_the_way` of what it wanted
    /// to write.
    pub(crate) fn sees(&self, process: usize, row: &Binding, in_the_way: bool) {
        let mut state = self.state();
        state.chronicle.sees(process, row);
        let knows = &mut state.knows[process];
        let floor = knows.floors.entry(row.session).or_insert(Revision::new(-1));
        if row.revision >= *floor {
            knows.last.insert(row.session, (row.clone(), in_the_way, Instant::now()));
        }
        if row.revision > *floor {
            *floor = row.revision;
            knows.rows.insert(row.session, Ok((row.revision, row.workspace, Instant::now())));
        }
        knows.learn_epoch(row.workspace, row.epoch);
        if let Some(generation) = row.target.as_ref().and_then(|target| target.generation) {
            let known = knows.generations.entry(row.workspace).or_default();
            *known = generation.get().max(*known);
        }
    }

    /// Process `process` has found the row deleted, at this revision.
    pub(crate) fn misses(&self, process: usize, session: SessionId, at: Revision) {
        let mut state = self.state();
        state.chronicle.misses(process, session, at);
        let knows = &mut state.knows[process];
        let floor = knows.floors.entry(session).or_insert(Revision::new(-1));
        if at > *floor {
            *floor = at;
            knows.rows.insert(session, Err(Instant::now()));
        }
    }

    /// At which revision a row that is not there was deleted.
    pub(crate) fn deleted_at(&self, session: SessionId) -> Revision {
        Revision::new(self.state().deleted.get(&session).copied().unwrap_or(0))
    }

    pub(crate) fn forget(&self, session: SessionId) -> bool {
        let Some(row) = self.row(session) else { return false };
        // A deletion is a revision too.
        self.state().deleted.insert(session, row.revision.get() + 1);
        self.store
            .forget(session, None)
            .now_or_never()
            .expect("the memory store never waits")
            .unwrap()
    }

    /// Carries out a statement that repairs a workspace, and checks what it has done to every row.
    /// Nothing of another workspace is touched, nothing unbound, nothing that is not behind; what
    /// is written is written once and whole.
    pub(crate) fn replace(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        skipped: u8,
        limit: u64,
    ) -> u64 {
        let behind = |row: &Binding| {
            let row = Some(row).filter(|row| row.workspace == workspace && row.epoch == epoch)?;
            let target = row.target.as_deref()?;
            let behind = match (current.generation, target.generation) {
                (Some(current), generation) => generation? < current,
                (None, generation) => generation.is_none() && target.agent == stale.agent,
            };
            behind.then_some(())
        };
        let skipped = |session| (0..CHATS).any(|n| skipped & 1 << n != 0 && chat(n) == session);
        let before: Vec<_> = sessions().filter_map(|session| self.row(session)).collect();
        let left_out = before.iter().any(|row| behind(row).is_some() && skipped(row.session));
        let written = if left_out {
            let chosen = before.iter().filter(|row| behind(row).is_some() && !skipped(row.session));
            let writes = chosen.map(|row| {
                let new = NewBinding::new(row.session, workspace, Some(Arc::clone(current)))
                    .with_epoch(epoch);
                let swap = self.store.compare_and_swap(row.revision, new).now_or_never();
                assert!(matches!(swap, Some(Ok(Swap::Applied(_)))));
            });
            writes.count() as u64
        } else {
            let written =
                self.store.replace_agent(workspace, epoch, stale, current, limit).now_or_never();
            written.expect("the memory store never waits").unwrap()
        };
        let mut broken = Vec::new();
        let mut changed = 0;
        for old in before {
            let new = self.row(old.session);
            let mut expected = old.clone();
            if behind(&old).is_some() && !skipped(old.session) {
                changed += 1;
                expected.revision = Revision::new(old.revision.get() + 1);
                expected.previous =
                    old.target.as_ref().map(|left| Previous::new(left.agent, left.generation));
                expected.target = Some(Arc::clone(current));
            }
            if new.as_ref() != Some(&expected) {
                broken.push(format!(
                    "{stale:?} replaced by {current:?} in {workspace}: {old:?} became {new:?}"
                ));
            }
        }
        if written != changed {
            broken.push(format!("{changed} rows were repaired, told {written}"));
        }
        self.state().broken.append(&mut broken);
        written
    }

    pub(crate) fn answered(
        &self,
        process: usize,
        workspace: WorkspaceId,
        target: &Target,
        began: Instant,
    ) {
        let mut state = self.state();
        state.chronicle.hears_of(process, workspace, target);
        let knows = &mut state.knows[process];
        if let Some(generation) = target.generation {
            let known = knows.generations.entry(workspace).or_default();
            *known = generation.get().max(*known);
            return;
        }
        let replaced = knows.replaced.entry(workspace).or_default();
        match knows.newest.get_mut(&workspace) {
            Some((agent, since)) if *agent == target.agent => *since = began.max(*since),
            Some((_, since)) if began < *since => {}
            newest => {
                replaced.extend(newest.map(|newest| newest.0));
                replaced.remove(&target.agent);
                knows.newest.insert(workspace, (target.agent, began));
            }
        }
    }
}
