//! A store of bindings over a service that has `get`, `put` at a version, and `scan`, such as etcd,
//! DynamoDB, or Redis with a script.
//!
//! `tests/store_contract.rs` holds it to the same contract as the stores of this crate.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tower_bound_agent::{
    Binding, Epoch, Previous, Revision, SessionId, Target, WorkspaceId,
    store::{BATCH, BindingStore, NewBinding, Reset, StoreError, Swap},
};

/// The value under the key of a session.
#[derive(Clone)]
struct Record {
    /// `None` once the session was deleted. The record stays, because its version must never be
    /// used again.
    live: Option<Live>,
    previous: Option<Previous>,
}

/// The values and their versions.
#[derive(Clone, Default)]
struct Keys {
    sessions: BTreeMap<SessionId, (i64, Record)>,
    /// The version of a workspace's key is its epoch. The key has no value.
    workspaces: BTreeMap<WorkspaceId, i64>,
}

#[derive(Clone)]
struct Live {
    workspace: WorkspaceId,
    target: Option<Arc<Target>>,
    /// The epoch in which the target was learned.
    epoch: Epoch,
}

/// The service, here within this process, so that it never fails. A real one returns
/// [`StoreError::Unavailable`] for a request that was never sent,
/// [`Rejected`](StoreError::Rejected) for one that was refused, and
/// [`Unknown`](StoreError::Unknown) for a write without an answer.
#[derive(Clone, Default)]
struct Service(Arc<Mutex<Keys>>);

impl Service {
    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the version of a workspace's key; 0 if it was never written.
    async fn epoch(&self, workspace: WorkspaceId) -> Result<Epoch, StoreError> {
        Ok(Epoch::new(self.keys().workspaces.get(&workspace).copied().unwrap_or(0)))
    }

    /// Raises the version of a workspace's key, whatever it is. Returns the new version.
    async fn raise(&self, workspace: WorkspaceId) -> Result<Epoch, StoreError> {
        let mut keys = self.keys();
        let epoch = keys.workspaces.entry(workspace).or_default();
        *epoch += 1;
        Ok(Epoch::new(*epoch))
    }

    async fn get(&self, key: SessionId) -> Result<Option<(i64, Record)>, StoreError> {
        Ok(self.keys().sessions.get(&key).cloned())
    }

    /// Writes the next version if the key is still at this one (0: it was never written).
    async fn put(&self, key: SessionId, version: i64, record: Record) -> Result<bool, StoreError> {
        let all = &mut self.keys().sessions;
        let is_there = all.get(&key).map_or(0, |(version, _)| *version) == version;
        if is_there {
            all.insert(key, (version + 1, record));
        }
        Ok(is_there)
    }

    /// The keys of a workspace in their order: an index, since this is asked at every rebuild.
    async fn scan(&self, workspace: WorkspaceId) -> Result<Vec<SessionId>, StoreError> {
        let all = &self.keys().sessions;
        let there =
            |record: &Record| record.live.as_ref().is_some_and(|live| live.workspace == workspace);
        Ok(all.iter().filter(|(_, (_, record))| there(record)).map(|(key, _)| *key).collect())
    }
}

/// How to change a row.
enum Change {
    Leave,
    Delete,
    Write(Live),
}

impl Change {
    /// Writes another target into a row, of the same workspace and epoch.
    fn target(row: &Binding, target: Option<Arc<Target>>) -> Self {
        Self::Write(Live { workspace: row.workspace, target, epoch: row.epoch })
    }

    fn write(new: &NewBinding) -> Self {
        Self::Write(Live { workspace: new.workspace, target: new.target.clone(), epoch: new.epoch })
    }
}

/// Bindings in a key-value service. The version of a key is the revision of its row.
#[derive(Clone, Default)]
pub struct KeyValueStore(Service);

impl KeyValueStore {
    /// Reads the row, decides on a change, and writes it if the version is still the same;
    /// otherwise starts over. So the decision still holds at the moment of the write.
    ///
    /// Returns the row as it is now, and whether it was written.
    async fn change(
        &self,
        session: SessionId,
        decide: impl Fn(Option<&Binding>) -> Change + Send,
    ) -> Result<(Option<Binding>, bool), StoreError> {
        loop {
            let found = self.0.get(session).await?;
            let version = found.as_ref().map_or(0, |(version, _)| *version);
            let row = found.as_ref().and_then(|(version, record)| row(session, *version, record));
            let live = match decide(row.as_ref()) {
                Change::Leave => return Ok((self.judged(row).await?, false)),
                Change::Delete => None,
                Change::Write(live) => Some(live),
            };
            // A replaced agent becomes the previous one. Otherwise the previous one stays, also in
            // the record of a deleted session.
            let next =
                live.as_ref().and_then(|live| live.target.as_ref()).map(|target| target.agent);
            let gone = row.and_then(|row| row.target).filter(|gone| Some(gone.agent) != next);
            let gone = gone.map(|gone| Previous::new(gone.agent, gone.generation));
            let record = Record { live, previous: gone.or_else(|| found?.1.previous) };
            let written = self::row(session, version + 1, &record);
            if self.0.put(session, version, record).await? {
                return Ok((self.judged(written).await?, true));
            }
        }
    }

    /// Returns the row without its target if the target is of another epoch than the workspace. The
    /// epoch is read after the row, so that a reset in between is noticed.
    async fn judged(&self, row: Option<Binding>) -> Result<Option<Binding>, StoreError> {
        let Some(mut row) = row else { return Ok(None) };
        let epoch = self.0.epoch(row.workspace).await?;
        row.target = row.target.filter(|_| row.epoch == epoch);
        Ok(Some(row.with_epoch(epoch)))
    }
}

/// Returns the row of a record, with the epoch of its target.
fn row(session: SessionId, version: i64, record: &Record) -> Option<Binding> {
    let Live { workspace, target, epoch } = record.live.clone()?;
    let row = Binding::new(session, workspace, target, Revision::new(version));
    Some(row.with_previous(record.previous).with_epoch(epoch))
}

fn swap((row, written): (Option<Binding>, bool)) -> Swap {
    match row {
        Some(row) if written => Swap::Applied(row),
        row => Swap::Conflict(row),
    }
}

impl BindingStore for KeyValueStore {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        let found = self.0.get(session).await?;
        self.judged(found.and_then(|(version, record)| row(session, version, &record))).await
    }

    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        let decide = |row: Option<&Binding>| match row {
            Some(_) => Change::Leave,
            None => Change::write(&new),
        };
        self.change(new.session, decide).await.map(swap)
    }

    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        let decide = |row: Option<&Binding>| match row {
            Some(row) if row.revision == expected => Change::write(&new),
            _ => Change::Leave,
        };
        self.change(new.session, decide).await.map(swap)
    }

    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        let decide = |row: Option<&Binding>| match row {
            Some(row) if row.workspace == workspace => Change::target(row, row.target.clone()),
            _ => Change::write(&NewBinding::new(session, workspace, None)),
        };
        let (row, _) = self.change(session, decide).await?;
        row.ok_or_else(|| StoreError::Corrupt("a written row is missing".into()))
    }

    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        // A row without a target is written as well, because the revision must grow.
        let decide =
            |row: Option<&Binding>| row.map_or(Change::Leave, |row| Change::target(row, None));
        Ok(self.change(session, decide).await?.0)
    }

    async fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> Result<bool, StoreError> {
        let decide = |row: Option<&Binding>| match row {
            Some(row) if expected.is_none_or(|expected| expected == row.revision) => Change::Delete,
            _ => Change::Leave,
        };
        Ok(self.change(session, decide).await?.1)
    }

    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        // The service writes one key at a time, so the child gets what the parent held when read.
        let parent =
            self.0.get(parent).await?.and_then(|(version, record)| row(parent, version, &record));
        let decide = |row: Option<&Binding>| match (row, &parent) {
            (None, Some(parent)) => Change::target(parent, parent.target.clone()),
            _ => Change::Leave,
        };
        self.change(child, decide).await.map(swap)
    }

    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        // From here on no target of the workspace counts. The rows are written as well, so that
        // their revisions grow.
        let epoch = self.0.raise(workspace).await?;
        let decide = |row: Option<&Binding>| match row {
            Some(row) if row.workspace == workspace => Change::target(row, None),
            _ => Change::Leave,
        };
        let mut changed = 0;
        for session in self.0.scan(workspace).await? {
            changed += u64::from(self.change(session, decide).await?.1);
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
        let is_behind = |target: &Target| match (stale.generation, current.generation) {
            (Some(_), Some(newest)) => {
                target.generation.is_some_and(|generation| generation < newest)
            }
            _ => {
                let there = target.agent == current.agent && target.address == current.address;
                target.agent == stale.agent && target.generation.is_none() && !there
            }
        };
        let decide = |row: Option<&Binding>| match row {
            Some(row) if (row.workspace, row.epoch) == (workspace, epoch) => match row
                .target
                .as_deref()
            {
                Some(target) if is_behind(target) => Change::target(row, Some(Arc::clone(current))),
                _ => Change::Leave,
            },
            _ => Change::Leave,
        };
        let (limit, mut changed) = (limit.min(BATCH as u64), 0);
        for session in self.0.scan(workspace).await? {
            if changed == limit {
                break;
            }
            changed += u64::from(self.change(session, decide).await?.1);
        }
        Ok(changed)
    }

    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        if sessions.len() > BATCH {
            return Err(StoreError::Rejected(
                format!("{} sessions at once", sessions.len()).into(),
            ));
        }
        // A session that is named twice is returned once.
        let mut rows = Vec::new();
        for session in sessions.iter().collect::<BTreeSet<_>>() {
            rows.extend(self.load(*session).await?);
        }
        Ok(rows)
    }
}
