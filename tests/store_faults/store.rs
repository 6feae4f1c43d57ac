//! A store in memory that keeps the contract, except for at most one fault.

use crate::Fault;
use futures_util::{Stream, stream};
use std::sync::Arc;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tower_bound_agent::{
    Binding, Epoch, Generation, Previous, Revision, SessionId, Target, WorkspaceId,
    store::{BATCH, BindingStore, NewBinding, Purged, Reset, StoreError, Swap},
};

pub(crate) struct FaultyStore {
    fault: Option<Fault>,
    tables: Mutex<Tables>,
    /// The number of swaps that ended in a conflict.
    conflicts: AtomicU64,
}

#[derive(Default)]
struct Tables {
    rows: BTreeMap<SessionId, Row>,
    epochs: BTreeMap<WorkspaceId, i64>,
    /// The number of uses, which is the time of housekeeping.
    clock: u64,
    use_is_recorded: bool,
}

#[derive(Clone, Default)]
struct Row {
    live: Option<Live>,
    previous: Option<Previous>,
    revision: i64,
    last_used: Option<u64>,
    inherited: bool,
    /// The row before its last write.
    before: Option<Box<Row>>,
}

#[derive(Clone)]
struct Live {
    workspace: WorkspaceId,
    target: Option<Arc<Target>>,
    epoch: i64,
}

/// The verb that writes.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Content,
    Retarget,
    Unbind,
    Reset,
    Forget,
    Repair,
}

impl FaultyStore {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        Self { fault, tables: Mutex::default(), conflicts: AtomicU64::new(0) }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    fn epoch(&self, tables: &Tables, workspace: WorkspaceId) -> i64 {
        if self.has(Fault::OneEpochForAllWorkspaces) {
            return tables.epochs.values().sum();
        }
        tables.epochs.get(&workspace).copied().unwrap_or(0)
    }

    /// Returns the row as a caller reads it.
    fn binding(&self, tables: &Tables, session: SessionId, row: &Row) -> Option<Binding> {
        let live = row.live.as_ref()?;
        let epoch = self.epoch(tables, live.workspace);
        let counts = match self.fault {
            Some(Fault::TargetsOfEarlierEpochsCount) => live.epoch <= epoch,
            Some(Fault::TargetsOfLaterEpochsCount) => live.epoch >= epoch,
            _ => live.epoch == epoch,
        };
        let target = live.target.clone().filter(|_| counts);
        let row_epoch =
            if self.has(Fault::RowsSayTheEpochOfTheirTarget) { live.epoch } else { epoch };
        let revision = Revision::new(row.revision);
        let binding = Binding::new(session, live.workspace, target, revision);
        Some(binding.with_previous(row.previous).with_epoch(Epoch::new(row_epoch)))
    }

    fn read(&self, tables: &Tables, session: SessionId) -> Option<Binding> {
        self.binding(tables, session, tables.rows.get(&session)?)
    }

    /// The one place where a row changes.
    fn write(&self, tables: &mut Tables, session: SessionId, live: Option<Live>, by: By) {
        let unchanged = |row: &Row| match (&row.live, &live) {
            (Some(old), Some(new)) => (old.workspace, &old.target) == (new.workspace, &new.target),
            _ => false,
        };
        let row = tables.rows.entry(session).or_default();
        row.before = Some(Box::new(Row { before: None, ..row.clone() }));
        let skips = match self.fault {
            Some(Fault::ASwapThatChangesNothingIsNotWritten) => by == By::Content,
            Some(Fault::ARetargetThatChangesNothingIsNotWritten) => by == By::Retarget,
            Some(Fault::AnUnbindThatChangesNothingIsNotWritten) => by == By::Unbind,
            Some(Fault::AResetLeavesUnboundRows) => by == By::Reset,
            _ => false,
        };
        if skips && unchanged(row) {
            return;
        }
        let gone = row.live.as_ref().and_then(|live| live.target.clone());
        let next = live.as_ref().and_then(|live| live.target.as_ref());
        let keeps = match self.fault {
            Some(Fault::ASwapLeavesNoPrevious) => by == By::Content,
            Some(Fault::ARetargetLeavesNoPrevious) => by == By::Retarget,
            Some(Fault::AnUnbindLeavesNoPrevious) => by == By::Unbind,
            Some(Fault::AResetLeavesNoPrevious) => by == By::Reset,
            Some(Fault::AForgottenRowLeavesNoPrevious) => by == By::Forget,
            Some(Fault::AGroupRepairLeavesNoPrevious) => by == By::Repair,
            _ => false,
        };
        let same_agent = |gone: &Target| next.is_some_and(|next| next.agent == gone.agent);
        match gone {
            Some(gone)
                if !keeps && (!same_agent(&gone) || self.has(Fault::AnAgentIsItsOwnPrevious)) =>
            {
                let generation = match self.fault {
                    Some(Fault::PreviousHasNoGeneration) => None,
                    Some(Fault::PreviousKeepsAnEarlierGeneration) => {
                        let earlier = row.previous.and_then(|previous| previous.generation);
                        gone.generation.or(earlier)
                    }
                    _ => gone.generation,
                };
                row.previous = Some(Previous::new(gone.agent, generation));
            }
            Some(_) if !keeps => {}
            _ if self.has(Fault::PreviousIsClearedByTheNextWrite) => row.previous = None,
            _ => {}
        }
        row.live = live;
        row.revision += match self.fault {
            Some(Fault::AnUnbindLowersTheRevision) if by == By::Unbind => -1,
            Some(Fault::AGroupRepairKeepsTheRevision) if by == By::Repair => 0,
            _ => 1,
        };
    }

    fn written(&self, tables: &mut Tables, session: SessionId, live: Live, by: By) -> Binding {
        self.write(tables, session, Some(live), by);
        let mut row = self.read(tables, session).unwrap();
        if self.has(Fault::AWriteReturnsAnotherRevision) {
            row.revision = Revision::new(row.revision.get() + 1);
        }
        row
    }

    /// Returns the row as it is stored, without the data that a fault loses.
    fn kept(&self, tables: &Tables, new: NewBinding, swap: bool) -> Live {
        let target = new.target.map(|target| {
            let mut target = (*target).clone();
            match self.fault {
                Some(Fault::GenerationsHaveThirtyTwoBits) => {
                    let generation = target.generation.map(|generation| generation.get() as i32);
                    target.generation = generation.map(|number| Generation::new(number.into()));
                }
                Some(Fault::AnEmptyAddressIsNone) => {
                    target.address = target.address.filter(|address| !address.is_empty());
                }
                Some(Fault::AddressesAreAscii) => {
                    let ascii =
                        |text: &str| text.chars().filter(char::is_ascii).collect::<String>();
                    target.address = target.address.map(|address| ascii(&address).into());
                }
                Some(Fault::AddressesAreCut) => {
                    let cut = |text: &str| text.chars().take(64).collect::<String>();
                    target.address = target.address.map(|address| cut(&address).into());
                }
                Some(Fault::BuildsAreLost) => target.build = None,
                _ => {}
            }
            Arc::new(target)
        });
        let now = self.epoch(tables, new.workspace);
        let forgets =
            if swap { Fault::ASwapForgetsItsEpoch } else { Fault::ACreationForgetsItsEpoch };
        let epoch = if self.has(forgets) { now } else { new.epoch.get() };
        Live { workspace: new.workspace, target, epoch }
    }

    fn live(&self, tables: &Tables, session: SessionId) -> Option<Live> {
        tables.rows.get(&session)?.live.clone()
    }

    fn is_behind(&self, target: &Target, stale: &Target, current: &Target) -> bool {
        let fault = |fault| self.has(fault);
        let address = |target: &Target| match fault(Fault::AGroupRepairTakesAnEmptyAddressForNone) {
            true => target.address.clone().filter(|address| !address.is_empty()),
            false => target.address.clone(),
        };
        let by_number = match (stale.generation, current.generation) {
            (Some(_), Some(newest)) => Some(newest),
            (None, Some(newest)) if fault(Fault::AGroupRepairComparesTheFirstNumber) => {
                Some(newest)
            }
            _ => None,
        };
        match by_number.filter(|_| !fault(Fault::AGroupRepairGoesByAgentsOnly)) {
            Some(newest) => match target.generation {
                None => fault(Fault::AGroupRepairWritesRowsWithoutANumber),
                Some(_) if fault(Fault::AGroupRepairKeepsOtherAgents) => {
                    target.agent == stale.agent && target.generation < Some(newest)
                }
                Some(number) if fault(Fault::AGroupRepairWritesEqualNumbers) => number <= newest,
                Some(number) if fault(Fault::AGroupRepairWritesRowsAhead) => number != newest,
                Some(number) => number < newest,
            },
            None => {
                let there = target.agent == current.agent
                    && (address(target) == address(current)
                        || fault(Fault::AGroupRepairIgnoresAddresses))
                    && (target.build == current.build || !fault(Fault::AGroupRepairComparesBuilds));
                let number = target.generation.is_some()
                    && !fault(Fault::AGroupRepairByAgentWritesNumberedRows)
                    && !(fault(Fault::AGroupRepairToNoNumberUnlearnsNumbers)
                        && current.generation.is_none()
                        && stale.generation.is_some());
                let agent =
                    target.agent == stale.agent || fault(Fault::AGroupRepairWritesAllAgents);
                agent && !number && !there
            }
        }
    }
}

/// Yields, so that other tasks write.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn forget(row: &mut Row) {
    *row = Row { revision: row.revision, previous: row.previous, ..Row::default() };
}

impl BindingStore for FaultyStore {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let tables = self.tables();
        let Some(row) = tables.rows.get(&session) else { return Ok(None) };
        let row = match &row.before {
            Some(before) if self.has(Fault::ALoadLagsBehind) => before,
            Some(before) if self.has(Fault::ALoadFindsDeletedRows) && row.live.is_none() => before,
            _ => row,
        };
        Ok(self.binding(&tables, session, row))
    }

    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        let (session, by) = (new.session, By::Content);
        if self.has(Fault::ACreationLooksBeforeItWrites) {
            let there = self.read(&self.tables(), session);
            a_moment().await;
            if let Some(there) = there {
                return Ok(Swap::Conflict(Some(there)));
            }
            let tables = &mut *self.tables();
            let live = self.kept(tables, new, false);
            return Ok(Swap::Applied(self.written(tables, session, live, by)));
        }
        let tables = &mut *self.tables();
        let live = self.kept(tables, new, false);
        match self.read(tables, session) {
            Some(there)
                if self.has(Fault::ACreationOverwritesItsWorkspace)
                    && there.workspace == live.workspace => {}
            Some(_) if self.has(Fault::ACreationOverwrites) => {}
            Some(_) if self.has(Fault::ACreationHidesTheRowInTheWay) => {
                return Ok(Swap::Conflict(None));
            }
            Some(there) => return Ok(Swap::Conflict(Some(there))),
            None => {}
        }
        let unbound = live.target.is_none();
        let row = self.written(tables, session, live, by);
        if self.has(Fault::ACreationIsNotKept)
            || (unbound && self.has(Fault::AnUnboundCreationIsNotKept))
        {
            tables.rows.remove(&session);
        }
        Ok(Swap::Applied(row))
    }

    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        let (session, by) = (new.session, By::Content);
        let matches = |row: &Binding| match self.fault {
            Some(Fault::ASwapIgnoresTheRevision) => true,
            Some(Fault::ASwapTakesOlderRevisions) => expected <= row.revision,
            Some(Fault::ASwapTakesNewerRevisions) => expected >= row.revision,
            _ => expected == row.revision,
        };
        if self.has(Fault::ASwapLooksBeforeItWrites) {
            let there = self.read(&self.tables(), session);
            a_moment().await;
            let tables = &mut *self.tables();
            return Ok(match there {
                Some(row) if matches(&row) => {
                    let live = self.kept(tables, new, true);
                    Swap::Applied(self.written(tables, session, live, by))
                }
                there => Swap::Conflict(there),
            });
        }
        if self.has(Fault::ASwapIsWrittenInTwoSteps) {
            let there = self.read(&self.tables(), session);
            if there.as_ref().is_some_and(&matches) {
                if let Some(live) = self.tables().rows.get_mut(&session).unwrap().live.as_mut() {
                    live.workspace = new.workspace;
                }
                a_moment().await;
            }
        }
        let tables = &mut *self.tables();
        let mut live = self.kept(tables, new, true);
        let read = self.read(tables, session);
        let Some(there) = read else {
            let revision = tables.rows.get(&session).map(|row| row.revision);
            let revives =
                self.has(Fault::ASwapRevivesADeletedRow) && revision == Some(expected.get());
            if revives || self.has(Fault::ASwapCreates) {
                return Ok(Swap::Applied(self.written(tables, session, live, by)));
            }
            return Ok(Swap::Conflict(None));
        };
        if !matches(&there) {
            let many = self.conflicts.fetch_add(1, Ordering::Relaxed) % 50 == 49;
            let same = (there.workspace, &there.target) == (live.workspace, &live.target);
            if self.has(Fault::AConflictIsAppliedNowAndThen) && many {
                return Ok(Swap::Applied(self.written(tables, session, live, by)));
            }
            if self.has(Fault::AConflictIsWritten) {
                self.write(tables, session, Some(live), by);
            } else if self.has(Fault::ASwapThatIsThereIsNoConflict) && same {
                return Ok(Swap::Applied(there));
            } else if self.has(Fault::ASwapHidesTheRowInTheWay) {
                return Ok(Swap::Conflict(None));
            }
            return Ok(Swap::Conflict(Some(there)));
        }
        if self.has(Fault::ASwapKeepsTheWorkspace) {
            live.workspace = there.workspace;
        }
        if self.has(Fault::ASwapNeverUnbinds) && live.target.is_none() {
            live.target = there.target.clone();
        }
        let before = tables.rows[&session].clone();
        let written = self.written(tables, session, live, by);
        if self.has(Fault::AWriteIsLostNowAndThen) && written.revision.get() % 50 == 0 {
            tables.rows.insert(session, before);
        }
        Ok(Swap::Applied(if self.has(Fault::ASwapReturnsTheRowBefore) { there } else { written }))
    }

    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        if self.has(Fault::ARetargetLooksBeforeItWrites) {
            let there = self.tables().rows.get(&session).cloned();
            a_moment().await;
            if let Some(there) = there {
                self.tables().rows.insert(session, there);
            }
        }
        let tables = &mut *self.tables();
        if self.has(Fault::ARetargetStartsAgain) {
            tables.rows.retain(|of, row| *of != session || row.live.is_some());
        }
        let there = self.live(tables, session);
        let unbound = Live { workspace, target: None, epoch: 0 };
        let live = match there {
            Some(live) if live.workspace == workspace => match self.fault {
                Some(Fault::ARetargetDropsTheTarget) => unbound,
                _ => live,
            },
            Some(live) if self.has(Fault::ARetargetKeepsTheTarget) => {
                Live { workspace, epoch: self.epoch(tables, workspace), ..live }
            }
            None if self.has(Fault::ARetargetDoesNotCreate) => {
                let row = self.written(tables, session, unbound, By::Retarget);
                tables.rows.remove(&session);
                return Ok(row);
            }
            _ => unbound,
        };
        Ok(self.written(tables, session, live, By::Retarget))
    }

    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let tables = &mut *self.tables();
        let Some(live) = self.live(tables, session) else {
            if self.has(Fault::AnUnbindCreates) {
                let live = Live { workspace: session.into_uuid().into(), target: None, epoch: 0 };
                return Ok(Some(self.written(tables, session, live, By::Unbind)));
            }
            return Ok(None);
        };
        if self.has(Fault::AnUnbindUnbindsTheWholeWorkspace) {
            for row in tables.rows.values_mut() {
                if let Some(other) = row.live.as_mut().filter(|l| l.workspace == live.workspace) {
                    other.target = None;
                }
            }
        }
        let row = self.written(tables, session, Live { target: None, ..live }, By::Unbind);
        if self.has(Fault::AnUnbindDeletes) {
            self.write(tables, session, None, By::Forget);
        }
        Ok(Some(row).filter(|_| !self.has(Fault::AnUnbindReturnsNoRow)))
    }

    async fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> Result<bool, StoreError> {
        let tables = &mut *self.tables();
        let Some(row) = tables.rows.get_mut(&session) else {
            return Ok(self.has(Fault::NothingIsForgottenAsWell));
        };
        if row.live.is_none() {
            return Ok(self.has(Fault::ARowIsForgottenTwice));
        }
        let revision = row.revision;
        let matches = match (self.fault, expected) {
            (Some(Fault::AForgetIgnoresTheRevision), _) => true,
            (Some(Fault::AForgetTakesOlderRevisions), Some(expected)) => expected.get() <= revision,
            (Some(Fault::AForgetAlwaysCompares), None) => false,
            (_, expected) => expected.is_none_or(|expected| expected.get() == revision),
        };
        if !matches {
            return Ok(false);
        }
        if self.has(Fault::AForgottenRowIsUnbound) {
            let live = row.live.clone().map(|live| Live { target: None, ..live });
            self.write(tables, session, live, By::Unbind);
            return Ok(true);
        }
        if self.has(Fault::AForgottenRowLeavesNoRevision) {
            let previous = row.live.take().and_then(|live| live.target);
            let previous = previous.map(|gone| Previous::new(gone.agent, gone.generation));
            *row = Row { previous: previous.or(row.previous), ..Row::default() };
            return Ok(true);
        }
        self.write(tables, session, None, By::Forget);
        Ok(true)
    }

    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        let tables = &mut *self.tables();
        let parents = tables.rows.get(&parent).cloned().unwrap_or_default();
        if self.has(Fault::AChildStartsAgain) {
            tables.rows.retain(|of, row| *of != child || row.live.is_some());
        }
        match self.read(tables, child) {
            Some(_) if self.has(Fault::AChildIsOverwritten) && parents.live.is_some() => {}
            Some(_) if self.has(Fault::AChildWithoutAParentIsHidden) && parents.live.is_none() => {
                return Ok(Swap::Conflict(None));
            }
            Some(there) => return Ok(Swap::Conflict(Some(there))),
            None => {}
        }
        let mut live = match parents.live {
            Some(live) => live,
            None if self.has(Fault::AChildWithoutAParentIsCreated) => {
                Live { workspace: parent.into_uuid().into(), target: None, epoch: 0 }
            }
            None => match parents.before.and_then(|before| before.live) {
                Some(live) if self.has(Fault::AChildInheritsFromADeletedRow) => live,
                _ => return Ok(Swap::Conflict(None)),
            },
        };
        if self.has(Fault::AChildForgetsTheEpoch) {
            live.epoch = self.epoch(tables, live.workspace);
        }
        if self.has(Fault::AChildIsUnbound) {
            live.target = None;
        }
        if self.has(Fault::AChildTakesTheTargetAway) {
            let unbound = Live { target: None, ..live.clone() };
            self.write(tables, parent, Some(unbound), By::Unbind);
        }
        self.write(tables, child, Some(live), By::Content);
        let row = tables.rows.get_mut(&child).unwrap();
        row.inherited = true;
        if self.has(Fault::AChildInheritsThePrevious) {
            row.previous = parents.previous;
        }
        Ok(Swap::Applied(self.read(tables, child).unwrap()))
    }

    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        let tables = &mut *self.tables();
        let of = |row: &Row| row.live.as_ref().is_some_and(|live| live.workspace == workspace);
        let all = self.has(Fault::AResetDropsTheTargetsOfAllWorkspaces);
        let sessions: Vec<_> = tables
            .rows
            .iter()
            .filter(|(_, row)| of(row) || (all && row.live.is_some()))
            .map(|(session, _)| *session)
            .collect();
        let begins = match self.fault {
            Some(Fault::AResetBeginsNoEpoch) => false,
            Some(Fault::AResetOfNoRowsBeginsNoEpoch) => !sessions.is_empty(),
            _ => true,
        };
        let epoch = self.epoch(tables, workspace) + i64::from(begins);
        if begins {
            *tables.epochs.entry(workspace).or_default() += 1;
        }
        let mut rows = 0;
        for session in sessions {
            let live = self.live(tables, session).unwrap();
            let counts = live.target.is_some() || !self.has(Fault::AResetCountsBoundRowsOnly);
            rows += u64::from(counts);
            if !self.has(Fault::AResetWritesNoRows) {
                let epoch = if live.workspace == workspace { epoch } else { live.epoch };
                let live = Live { target: None, epoch, ..live };
                self.write(tables, session, Some(live), By::Reset);
            }
        }
        if self.has(Fault::AResetCountsDeletedRows) {
            rows += tables.rows.values().filter(|row| row.live.is_none()).count() as u64;
        }
        Ok(Reset::new(rows, Epoch::new(epoch)))
    }

    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        let fault = |fault| self.has(fault);
        if limit > BATCH as u64 && fault(Fault::ALimitAboveTheBatchIsRefused) {
            return Err(StoreError::Rejected("too many rows".into()));
        }
        let most = match limit {
            0 if fault(Fault::ALimitOfZeroIsNone) => u64::MAX,
            _ if fault(Fault::AGroupRepairIgnoresItsLimit) => u64::MAX,
            limit if fault(Fault::ALimitAboveTheBatchIsTaken) => limit,
            limit => limit.min(BATCH as u64),
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let choose = |tables: &Tables| {
            let of = |row: &Row| match &row.live {
                Some(live) => {
                    (live.workspace == workspace || fault(Fault::AGroupRepairIgnoresTheWorkspace))
                        && (live.epoch == epoch.get() || fault(Fault::AGroupRepairIgnoresTheEpoch))
                        && !(row.inherited && fault(Fault::AGroupRepairLeavesChildrenOut))
                }
                None => fault(Fault::AGroupRepairWritesDeletedRows),
            };
            let behind = |row: &Row| match row.live.as_ref().map(|live| &live.target) {
                Some(Some(target)) => self.is_behind(target, stale, current),
                Some(None) => fault(Fault::AGroupRepairBindsUnboundRows),
                None => true,
            };
            let rows = tables.rows.iter().filter(|(_, row)| of(row));
            let mut chosen: Vec<_> = if fault(Fault::ALimitCountsRowsThatAreNotBehind) {
                let chunk = rows.take(most).filter(|(_, row)| behind(row));
                chunk.map(|(session, _)| *session).collect()
            } else {
                rows.filter(|(_, row)| behind(row)).map(|(session, _)| *session).collect()
            };
            if fault(Fault::AGroupRepairBeginsWithTheLastRow) {
                chosen.reverse();
            }
            chosen
        };
        let mut chosen = None;
        if fault(Fault::AGroupRepairLooksBeforeItWrites) {
            chosen = Some(choose(&self.tables()));
            a_moment().await;
        }
        let tables = &mut *self.tables();
        // Under one lock with the writes, unless the fault has chosen before it.
        let chosen = chosen.unwrap_or_else(|| choose(tables));
        let matched = chosen.len() as u64;
        let mut written = 0;
        for session in chosen.into_iter().take(most) {
            let live = self.live(tables, session);
            let epoch = live.as_ref().map_or(0, |live| live.epoch);
            let target = Some(Arc::clone(current));
            let workspace = match live {
                Some(live) if !fault(Fault::AGroupRepairLooksBeforeItWrites) => live.workspace,
                _ => workspace,
            };
            let live = Live { workspace, target, epoch };
            self.write(tables, session, Some(live), By::Repair);
            written += 1;
        }
        Ok(if fault(Fault::AGroupRepairSaysHowManyAreBehind) { matched } else { written })
    }

    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        let tables = self.tables();
        let each: Vec<_> = if self.has(Fault::ManyAreLoadedAsOftenAsNamed) {
            sessions.to_vec()
        } else if sessions.is_empty() && self.has(Fault::NoSessionsMeansAll) {
            tables.rows.keys().copied().collect()
        } else {
            sessions.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
        };
        let most = if self.has(Fault::AThousandAreLoadedAtMost) { 1_000 } else { usize::MAX };
        let read = |session: SessionId| {
            let row = tables.rows.get(&session)?;
            match &row.before {
                Some(before) if row.live.is_none() && self.has(Fault::ManyIncludeDeletedRows) => {
                    self.binding(&tables, session, before)
                }
                _ => {
                    let mut read = self.binding(&tables, session, row)?;
                    if self.has(Fault::ManyIncludeTargetsOfOtherEpochs) {
                        read.target = row.live.as_ref()?.target.clone();
                    }
                    Some(read)
                }
            }
        };
        Ok(each.into_iter().take(most).filter_map(read).collect())
    }

    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        let tables = self.tables();
        let mut rows: Vec<_> = tables
            .rows
            .iter()
            .filter(|(_, row)| row.live.is_some() || self.has(Fault::RecentIncludesDeletedRows))
            .filter_map(|(session, row)| {
                let before = row.before.as_deref().unwrap_or(row);
                let row = if row.live.is_some() { row } else { before };
                Some((row.last_used, self.binding(&tables, *session, row)?))
            })
            .collect();
        match self.fault {
            Some(Fault::RecentBeginsWithTheOldest) => rows.sort_by_key(|(used, _)| *used),
            Some(Fault::RecentBeginsWithTheUnused) => {
                rows.sort_by_key(|(used, _)| Reverse(used.unwrap_or(u64::MAX)));
            }
            _ => rows.sort_by_key(|(used, _)| Reverse(*used)),
        }
        let most = if self.has(Fault::RecentIgnoresItsLimit) { u64::MAX } else { limit };
        rows.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        stream::iter(rows.into_iter().map(|(_, row)| Ok(row)))
    }

    async fn touch(&self, used: &[SessionId], _: Duration) -> Result<(), StoreError> {
        if self.has(Fault::AVerbThatIsLackingNamesAnother) {
            return Err(StoreError::Unsupported { verb: "recent" });
        }
        let tables = &mut *self.tables();
        tables.clock += 1;
        tables.use_is_recorded = true;
        for session in used {
            if let Some(row) = tables.rows.get_mut(session).filter(|row| row.live.is_some()) {
                row.last_used = Some(tables.clock);
                row.revision += i64::from(self.has(Fault::AUseIsAWrite));
            } else if self.has(Fault::AUseCreates) {
                let live = Live { workspace: session.into_uuid().into(), target: None, epoch: 0 };
                self.write(tables, *session, Some(live), By::Content);
            }
        }
        Ok(())
    }

    async fn purge_idle(&self, idle: Duration, limit: u64) -> Result<u64, StoreError> {
        let tables = &mut *self.tables();
        let is_recorded = tables.use_is_recorded && idle.is_zero();
        if !is_recorded && !self.has(Fault::IdleRowsArePurgedWithoutARecord) {
            return Err(StoreError::UseNotRecorded { since: None });
        }
        let most = if self.has(Fault::APurgeIgnoresItsLimit) { u64::MAX } else { limit };
        let mut purged = 0;
        for row in tables.rows.values_mut().filter(|row| row.live.is_some()) {
            let unused = row.last_used.is_none() && self.has(Fault::APurgeKeepsUnusedRows);
            if purged < most && !unused {
                let gone = row.live.as_ref().and_then(|live| live.target.clone());
                let gone = gone.map(|gone| Previous::new(gone.agent, gone.generation));
                if !self.has(Fault::APurgedRowLeavesNoPrevious) {
                    row.previous = gone.or(row.previous);
                }
                row.revision += 1;
                forget(row);
                if self.has(Fault::APurgedRowLeavesNoRevision) {
                    row.revision = 0;
                }
                purged += 1;
            }
        }
        Ok(purged)
    }

    async fn purge_forgotten(&self, _: u64) -> Result<Purged, StoreError> {
        let tables = &mut *self.tables();
        let deleted = tables.rows.values().filter(|row| row.live.is_none()).count() as u64;
        if self.has(Fault::ForgottenRowsArePurgedAtOnce) {
            tables.rows.retain(|_, row| row.live.is_some());
            return Ok(Purged::new(deleted, 0));
        }
        if self.has(Fault::ForgottenRowsArePurgedInSilence) {
            tables.rows.retain(|_, row| row.live.is_some());
        }
        Ok(Purged::new(0, deleted))
    }
}
