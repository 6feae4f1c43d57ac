//! The store as one process sees it. It injects faults and checks each write.

use crate::{
    chat,
    history::{Kind, UnderWay},
    ms,
    scenario::Fault,
    truth::{Knowledge, State, Truth, Workspace},
};
use std::{future::Future, sync::Arc};
use tokio::time::{Instant, sleep};
use tower_bound_agent::{
    AgentId, Binding, Epoch, Revision, SessionId, Target, WorkspaceId,
    store::{BindingStore, NewBinding, Reset, StoreError, Swap},
};

/// A statement that has an answer.
pub(crate) struct Executed {
    began: Instant,
    /// The revision at which a missing row was deleted.
    deleted_at: Revision,
}

/// The store of one process.
#[derive(Clone)]
pub(crate) struct Probe {
    pub(crate) process: usize,
    pub(crate) truth: Truth,
}

impl Probe {
    pub(crate) async fn statement<T: Send + 'static>(
        &self,
        write: bool,
        session: SessionId,
        statement: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        learn: impl FnOnce(&T, Executed) + Send,
    ) -> Result<T, StoreError> {
        let (truth, began) = (self.truth.clone(), Instant::now());
        // The revision at which a missing row was deleted, read at the same moment.
        let statement = async move { Ok((statement.await?, truth.deleted_at(session))) };
        let lost = || StoreError::Unknown("lost on purpose".into());
        let faults = {
            let mut state = self.truth.state();
            state.writes[self.process] += u64::from(write);
            state.not_after_closing(self.process, "a statement");
            state.faults[self.process]
        };
        let done = match if write { faults.writes } else { faults.reads } {
            Fault::None | Fault::Skips(_) => statement.await,
            Fault::Unavailable => Err(StoreError::Unavailable("down on purpose".into())),
            Fault::LostRequest => Err(lost()),
            Fault::LostAnswer => statement.await.and(Err(lost())),
            Fault::Hang => std::future::pending().await,
            Fault::Slow(after) => {
                sleep(ms(after)).await;
                statement.await
            }
            Fault::Late(after) => {
                let done = statement.await;
                sleep(ms(after)).await;
                done
            }
            Fault::Overdue(after) => {
                self.truth.state().history.overdue += 1;
                let truth = self.truth.clone();
                tokio::spawn(async move {
                    sleep(ms(after)).await;
                    let _ = statement.await;
                    let history = &mut truth.state().history;
                    history.overdue -= 1;
                    history.disturb();
                });
                std::future::pending().await
            }
        };
        let (done, deleted_at) = done?;
        learn(&done, Executed { began, deleted_at });
        Ok(done)
    }

    pub(crate) fn learn_swap(&self, session: SessionId) -> impl Fn(&Swap, Executed) + Send {
        move |swap, at| match swap {
            Swap::Applied(row) => self.truth.sees(self.process, row, false, at.began),
            Swap::Conflict(Some(row)) => self.truth.sees(self.process, row, true, at.began),
            Swap::Conflict(None) => self.truth.misses(self.process, session, at.deleted_at),
        }
    }

    pub(crate) fn learn_row(
        &self,
        session: SessionId,
    ) -> impl Fn(&Option<Binding>, Executed) + Send {
        move |row, at| match row {
            Some(row) => self.truth.sees(self.process, row, false, at.began),
            None => self.truth.misses(self.process, session, at.deleted_at),
        }
    }

    /// Checks that a row that was behind is repaired by the group repair of its workspace, and by
    /// an own repair only if the group repair has missed it.
    pub(crate) fn check_own(&self, expected: Revision, new: &NewBinding) {
        let mut state = self.truth.state();
        let State { knows, broken, workspaces, calls, .. } = &mut *state;
        let Knowledge { last, landed, landed_from, .. } = &knows[self.process];
        let Some((seen, false)) = last.get(&new.session) else { return };
        let (Some(named), Some(target)) = (&seen.target, &new.target) else { return };
        if seen.revision != expected
            || seen.workspace != new.workspace
            || workspaces.iter().any(Workspace::was_renumbered)
        {
            return;
        }
        // The repair of a call that knew the row as unbound, and has waited for an earlier repair.
        let mut dials = calls
            .values()
            .filter(|call| (call.process, call.session) == (self.process, new.session))
            .flat_map(|call| &call.dials);
        if dials.any(|dial| dial.first_bind && dial.target == **target) {
            return;
        }
        let group_landed = match target.generation {
            Some(generation) => {
                landed.get(&new.workspace).is_some_and(|landed| *landed >= generation.get())
            }
            None => landed_from.contains(&(named.agent, target.agent)),
        };
        if !group_landed {
            broken.push(format!("a repair of its own for {seen:?}: {new:?}"));
        }
    }

    /// Checks a group repair at the moment at which it is sent.
    pub(crate) fn check_group(&self, workspace: WorkspaceId, stale: &Target, current: &Target) {
        let mut state = self.truth.state();
        let renumbered = state.workspace(workspace).was_renumbered();
        let State { knows, agents, broken, .. } = &mut *state;
        let knows = &knows[self.process];
        let what = format!("{stale:?} replaced by {current:?} in {workspace}");
        for target in [stale, current] {
            let agent = &agents[&target.agent];
            if agent.workspace != workspace || agent.target != *target {
                broken.push(format!("{what}: an agent at an address that it never had"));
            }
        }
        if !knows.connected.contains(&current.agent) {
            broken.push(format!("{what}: the agent has not answered"));
        }
        let later = |generation: i64| {
            knows.generations.get(&workspace).is_some_and(|known| *known > generation)
        };
        let replaced = knows.replaced.get(&workspace);
        if !renumbered
            && (current.generation.is_some_and(|generation| later(generation.get()))
                || replaced.is_some_and(|replaced| replaced.contains(&current.agent)))
        {
            broken.push(format!("{what}: a later agent is known"));
        }
        if current.generation.is_some() && stale.generation >= current.generation
            || stale == current
        {
            broken.push(format!("{what}: is not behind"));
        }
    }

    /// Checks a write that is not part of a command, at the moment of the write.
    pub(crate) fn check_repair(
        truth: &Truth,
        process: usize,
        new: &NewBinding,
        old: Option<&Binding>,
        swap: &Swap,
    ) {
        let (Swap::Applied(row), Some(target)) = (swap, &new.target) else { return };
        let mut state = truth.state();
        let mut broken = Vec::new();
        // A target of an ended epoch is discarded.
        let kept = new.target.clone().filter(|_| row.epoch == new.epoch);
        if row.workspace != new.workspace || row.target != kept {
            broken.push(format!("wrote {new:?}, became {row:?}"));
        }
        if !state.knows[process].connected.contains(&target.agent) {
            broken.push(format!("bound to an agent that has not answered: {new:?}"));
        }
        if let Some(old) = old {
            if old.workspace != new.workspace {
                broken.push(format!("a repair that undoes a command: {old:?}, {new:?}"));
            }
            let generations =
                old.target.as_ref().map(|target| target.generation).zip(Some(target.generation));
            if let Some((Some(old), Some(new))) = generations
                && new <= old
                && !state.workspace(row.workspace).was_renumbered()
            {
                broken.push(format!("a repair from generation {old} to {new}"));
            }
            if old.target.as_ref() == Some(target) {
                broken.push(format!("a repair that changes nothing: {old:?}"));
            }
        }
        state.broken.append(&mut broken);
    }
}

impl BindingStore for Probe {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let store = self.truth.store.clone();
        let reading = UnderWay::begin(&self.truth, self.process, session, Kind::Load);
        let statement = async move { store.load(session).await };
        let row = self.statement(false, session, statement, self.learn_row(session)).await;
        reading.ended(row.as_ref().map(Option::as_ref));
        row
    }
    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        let (truth, process, session) = (self.truth.clone(), self.process, new.session);
        let statement = async move {
            let swap = truth.store.create(new.clone()).await?;
            Self::check_repair(&truth, process, &new, None, &swap);
            Ok(swap)
        };
        let reading = UnderWay::begin(&self.truth, self.process, session, Kind::Create);
        let swap = self.statement(true, session, statement, self.learn_swap(session)).await;
        reading.ended(swap.as_ref().map(|swap| match swap {
            Swap::Applied(row) => Some(row),
            Swap::Conflict(row) => row.as_ref(),
        }));
        swap
    }
    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        let _under_way = UnderWay::begin(&self.truth, self.process, new.session, Kind::Swap);
        self.check_own(expected, &new);
        let (truth, process, session) = (self.truth.clone(), self.process, new.session);
        let statement = async move {
            let old = truth.row(new.session);
            let swap = truth.store.compare_and_swap(expected, new.clone()).await?;
            Self::check_repair(&truth, process, &new, old.as_ref(), &swap);
            Ok(swap)
        };
        self.statement(true, session, statement, self.learn_swap(session)).await
    }
    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let store = self.truth.store.clone();
        let statement = async move { store.retarget(session, workspace).await };
        let learn = |row: &Binding, at: Executed| {
            self.truth.sees(self.process, row, false, at.began);
        };
        self.statement(true, session, statement, learn).await
    }
    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let store = self.truth.store.clone();
        self.statement(
            true,
            session,
            async move { store.unbind(session).await },
            self.learn_row(session),
        )
        .await
    }
    async fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> Result<bool, StoreError> {
        assert_eq!(expected, None, "a layer deletes a row only by command");
        let truth = self.truth.clone();
        let learn = |_: &bool, at: Executed| {
            self.truth.misses(self.process, session, at.deleted_at);
        };
        self.statement(true, session, async move { Ok(truth.forget(session)) }, learn).await
    }
    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        let store = self.truth.store.clone();
        let statement = async move { store.inherit(child, parent).await };
        // If no row is returned, the parent's row is missing.
        self.statement(true, parent, statement, self.learn_swap(parent)).await
    }
    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        let truth = self.truth.clone();
        let statement = async move { truth.reset(workspace) };
        let learn = |reset: &Reset, _| {
            self.truth.state().knows[self.process].learn_epoch(workspace, reset.epoch);
        };
        self.statement(true, chat(0), statement, learn).await
    }
    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        self.check_group(workspace, stale, current);
        let _repairing = Repairing::begin(self, workspace, stale, current);
        let skipped = match self.truth.state().faults[self.process].writes {
            Fault::Skips(chats) => chats,
            _ => 0,
        };
        let (truth, from, to) = (self.truth.clone(), stale.clone(), Arc::clone(current));
        let statement =
            async move { Ok(truth.replace(workspace, epoch, &from, &to, skipped, limit)) };
        let landed = |_: &u64, _| {
            let knows = &mut self.truth.state().knows[self.process];
            match current.generation {
                Some(generation) => {
                    let landed = knows.landed.entry(workspace).or_default();
                    *landed = generation.get().max(*landed);
                }
                None => drop(knows.landed_from.insert((stale.agent, current.agent))),
            }
        };
        self.statement(true, chat(0), statement, landed).await
    }
    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        let (truth, sessions) = (self.truth.clone(), sessions.to_vec());
        let statement = async move {
            // An observed deletion has a revision too, read at the same moment.
            let missing = sessions.iter().filter(|session| truth.row(**session).is_none());
            let missing: Vec<_> =
                missing.map(|session| (*session, truth.deleted_at(*session))).collect();
            Ok((truth.store.load_many(&sessions).await?, missing))
        };
        let learn = |(rows, missing): &(Vec<Binding>, Vec<(SessionId, Revision)>), at: Executed| {
            rows.iter().for_each(|row| self.truth.sees(self.process, row, false, at.began));
            missing.iter().for_each(|(session, at)| self.truth.misses(self.process, *session, *at));
        };
        Ok(self.statement(false, chat(0), statement, learn).await?.0)
    }
}

/// A group repair under way. At most one runs for each target.
pub(crate) struct Repairing(pub(crate) Truth, (usize, WorkspaceId, Option<AgentId>, AgentId));

impl Repairing {
    pub(crate) fn begin(
        probe: &Probe,
        workspace: WorkspaceId,
        stale: &Target,
        current: &Target,
    ) -> Self {
        let from = current.generation.is_none().then_some(stale.agent);
        let repair = (probe.process, workspace, from, current.agent);
        let mut state = probe.truth.state();
        if !state.repairing.insert(repair) {
            state.broken.push(format!("{repair:?} is under way twice"));
        }
        Self(probe.truth.clone(), repair)
    }
}

impl Drop for Repairing {
    fn drop(&mut self) {
        self.0.state().repairing.remove(&self.1);
    }
}
