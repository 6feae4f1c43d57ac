//! The real state of the world, and the information that each process has about it.

use crate::{
    CHATS, WORKSPACES, chat,
    dialer::Conn,
    history::{History, Moment},
    scenario::{Answers, Does, Fault, Status},
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

/// The real state of the world, and the information that each process has about it.
#[derive(Clone, Default)]
pub(crate) struct Truth {
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
    /// The group repairs under way: process, workspace, replaced agent, new agent.
    pub(crate) repairing: HashSet<(usize, WorkspaceId, Option<AgentId>, AgentId)>,
    /// The number of writing statements of each process.
    pub(crate) writes: Vec<u64>,
    pub(crate) deleted: HashMap<SessionId, i64>,
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) live_connections: usize,
    /// The connections that callers hold.
    pub(crate) held: Vec<Bound<Conn>>,
    pub(crate) history: History,
    /// The processes whose layers are being closed or are closed, and those whose `close` has
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

    /// Checks that nothing of the layer runs after `close` has returned.
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
    /// The first build of the current numbering.
    pub(crate) first: usize,
    /// How often the generations have started again, and how many resets the store has received.
    pub(crate) renumbered: usize,
    pub(crate) resets: usize,
}

impl Workspace {
    /// Returns `true` if the generations have started again. Generations alone do not order two
    /// agents then.
    pub(crate) fn was_renumbered(&self) -> bool {
        self.renumbered > 0
    }

    /// Returns `true` if the store has not received the reset for the current numbering.
    pub(crate) fn is_reset_due(&self) -> bool {
        self.resets < self.renumbered
    }

    /// Returns `true` if the agent belongs to an ended numbering and the store has received the
    /// reset. Without generations, an agent may serve again.
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
    /// When the call was first polled, the observations of the row at that moment, and whether no
    /// fault was active.
    pub(crate) began: Option<(Moment, Revision, bool)>,
    pub(crate) dials: Vec<Dial>,
    /// The dials that were not dropped yet.
    pub(crate) live: u8,
}

pub(crate) struct Dial {
    pub(crate) workspace: WorkspaceId,
    pub(crate) target: Target,
    /// Whether the dial connected, once that is known.
    pub(crate) connected: Option<bool>,
    /// Another agent has answered.
    pub(crate) is_wrong: bool,
    pub(crate) connected_at: Option<Instant>,
    /// The dial connected, and the process knew the session as unbound at that moment.
    pub(crate) first_bind: bool,
}

/// The information that a process has from its resolver and its store.
#[derive(Default)]
pub(crate) struct Knowledge {
    /// The latest row of each session and since when it is known. `Err`: since when its deletion is
    /// known.
    pub(crate) rows: HashMap<SessionId, Result<(Revision, WorkspaceId, Instant), Instant>>,
    /// Until when no row of a session is cached, because a command of this process had an unknown
    /// outcome.
    pub(crate) unkept: HashMap<SessionId, Instant>,
    /// Checks that revisions only grow.
    pub(crate) floors: HashMap<SessionId, Revision>,
    /// The greatest known generation of each workspace.
    pub(crate) generations: HashMap<WorkspaceId, i64>,
    /// Without generations: the agent in the answer to the latest question, when that question
    /// began, and the agents that it has replaced.
    pub(crate) newest: HashMap<WorkspaceId, (AgentId, Instant)>,
    pub(crate) replaced: HashMap<WorkspaceId, HashSet<AgentId>>,
    /// Agents that answered a dial of this process.
    pub(crate) connected: HashSet<AgentId>,
    /// The last observed row of each session, and whether it made a write conflict.
    pub(crate) last: HashMap<SessionId, (Binding, bool)>,
    /// The group repairs that have landed, in this process or according to hints: up to which
    /// generation or, without generations, from which agent to which.
    pub(crate) landed: HashMap<WorkspaceId, i64>,
    pub(crate) landed_from: HashSet<(AgentId, AgentId)>,
    /// The greatest epoch of each workspace, and since when it is known.
    pub(crate) epochs: HashMap<WorkspaceId, (Epoch, Instant)>,
}

impl Knowledge {
    /// Returns `true` if the session has no row, or one without a target.
    pub(crate) fn is_unbound(&self, session: SessionId) -> bool {
        let bound = self.last.get(&session).is_some_and(|(row, _)| row.target.is_some());
        !bound || matches!(self.rows.get(&session), Some(Err(_)))
    }

    pub(crate) fn learn_epoch(&mut self, workspace: WorkspaceId, epoch: Epoch) {
        let known = self.epochs.entry(workspace).or_insert((epoch, Instant::now()));
        if epoch > known.0 {
            *known = (epoch, Instant::now());
        }
    }
}

impl Truth {
    pub(crate) fn new(numbered: [bool; WORKSPACES]) -> Self {
        let truth = Self::default();
        for numbered in numbered {
            let builds = Vec::new();
            truth.state().workspaces.push(Workspace {
                builds,
                status: Status::Running,
                numbered,
                first: 0,
                renumbered: 0,
                resets: 0,
            });
        }
        for ws in 0..WORKSPACES {
            truth.build(ws);
        }
        truth
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn build(&self, ws: usize) {
        let mut state = self.state();
        let build = &mut state.workspaces[ws];
        let number = build.builds.len();
        let agent = AgentId::new(Uuid::from_u128((0xa0 + ws as u128) << 64 | number as u128));
        // Two addresses alternate, so that a new agent has the address of an earlier one.
        let mut target = Target::new(agent).with_address(format!("10.0.{ws}.{}:9000", number % 2));
        if build.numbered {
            target = target.with_generation((number - build.first) as i64 + 1);
        }
        build.builds.push(target.clone());
        let agent =
            Agent { workspace: workspace(ws), target: target.clone(), does: Does::Answer(0) };
        state.agents.insert(target.agent, agent);
    }

    /// Lets the previous agent serve again. With generations, that is a later build.
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

    /// Starts the generations again with the next build.
    pub(crate) fn renumber(&self, ws: usize) {
        let build = &mut self.state().workspaces[ws];
        build.first = build.builds.len();
        build.renumbered += 1;
    }

    /// Executes a reset.
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
        // A dropped connection locks the state.
        drop(state);
        drop(oldest);
    }

    /// Checks that the agent and the address of each row belong together.
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

    /// Records that the process has read or written this row, or that the row made its write
    /// conflict (`in_the_way`), with a statement that began at `began`.
    pub(crate) fn sees(&self, process: usize, row: &Binding, in_the_way: bool, began: Instant) {
        let mut state = self.state();
        state.history.sees(process, row, began);
        let knows = &mut state.knows[process];
        let floor = knows.floors.entry(row.session).or_insert(Revision::new(-1));
        if row.revision >= *floor {
            knows.last.insert(row.session, (row.clone(), in_the_way));
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

    /// Records that the process has found the row deleted, at this revision.
    pub(crate) fn misses(&self, process: usize, session: SessionId, at: Revision) {
        let mut state = self.state();
        state.history.misses(process, session, at);
        let knows = &mut state.knows[process];
        let floor = knows.floors.entry(session).or_insert(Revision::new(-1));
        if at > *floor {
            *floor = at;
            knows.rows.insert(session, Err(Instant::now()));
        }
    }

    /// Returns the revision at which a missing row was deleted.
    pub(crate) fn deleted_at(&self, session: SessionId) -> Revision {
        Revision::new(self.state().deleted.get(&session).copied().unwrap_or(0))
    }

    pub(crate) fn forget(&self, session: SessionId) -> bool {
        let Some(row) = self.row(session) else { return false };
        // A deletion has a revision too.
        self.state().deleted.insert(session, row.revision.get() + 1);
        self.store
            .forget(session, None)
            .now_or_never()
            .expect("the memory store never waits")
            .unwrap()
    }

    /// Executes a group repair and checks its effect on every row. It must not write a row of
    /// another workspace, an unbound row or a row that is not behind, and must write each other row
    /// once and completely. A repair of an ended epoch may write a target that does not count, so
    /// that the row stays unbound.
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
            if old.workspace == workspace
                && old.epoch != epoch
                && let Some(new) = new.as_ref().filter(|new| new.revision > old.revision)
            {
                changed += 1;
                expected.revision = Revision::new(old.revision.get() + 1);
                expected.previous = new.previous;
            }
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
            broken.push(format!("{changed} rows were repaired, {written} were reported"));
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
        state.history.hears_of(process, workspace, target, began);
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
