//! A store of bindings over a service that knows `get`, `put` at a version, and `scan`: etcd, DynamoDB, Redis with a script.
//!
//! `tests/store_contract.rs` holds it to the contract, as it does with the stores of this crate.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};
use tower_bound_agent::{
    Binding, Previous, Revision, SessionId, Target, WorkspaceId,
    store::{BATCH, BindingStore, NewBinding, StoreError, Swap},
};

/// What stands under the key of a session.
#[derive(Clone)]
struct Record {
    /// `None` once the session was deleted. The record stays, since its version must never be used again.
    live: Option<(WorkspaceId, Option<Arc<Target>>)>,
    previous: Option<Previous>,
}

/// The service, here within this process. Nothing in it fails. Where it can: what was never sent is
/// [`StoreError::Unavailable`], what it refused is [`Rejected`](StoreError::Rejected), and a write without an answer is
/// [`Unknown`](StoreError::Unknown).
#[derive(Clone, Default)]
struct Service(Arc<Mutex<BTreeMap<SessionId, (i64, Record)>>>);

impl Service {
    async fn get(&self, key: SessionId) -> Result<Option<(i64, Record)>, StoreError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned())
    }

    /// Writes if the key is still at this version (0: was never written), which is one more then.
    async fn put(&self, key: SessionId, version: i64, record: Record) -> Result<bool, StoreError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = all.get(&key).map_or(0, |(version, _)| *version) == version;
        if is_there {
            all.insert(key, (version + 1, record));
        }
        Ok(is_there)
    }

    /// The keys of a workspace in their order: an index, since this is asked at every rebuild.
    async fn scan(&self, workspace: WorkspaceId) -> Result<Vec<SessionId>, StoreError> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let there = |record: &Record| record.live.as_ref().is_some_and(|(there, _)| *there == workspace);
        Ok(all.iter().filter(|(_, (_, record))| there(record)).map(|(key, _)| *key).collect())
    }
}

/// What is to become of a row.
enum Change {
    Leave,
    Delete,
    Write(WorkspaceId, Option<Arc<Target>>),
}

/// Bindings in a key-value service. The version of a key is the revision of its row.
#[derive(Clone, Default)]
pub(crate) struct KeyValueStore(Service);

impl KeyValueStore {
    /// The one way in which a row changes: it is read, a change is decided on, and that is written if nobody else has
    /// written in between; else all begins again. So what was decided on holds at the moment of the write.
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
                Change::Leave => return Ok((row, false)),
                Change::Delete => None,
                Change::Write(workspace, target) => Some((workspace, target)),
            };
            // An agent that has to go becomes the previous one; otherwise that stays, also in a record that is deleted.
            let next = live.as_ref().and_then(|(_, target)| target.as_ref()).map(|target| target.agent);
            let gone = row.and_then(|row| row.target).filter(|gone| Some(gone.agent) != next);
            let gone = gone.map(|gone| Previous::new(gone.agent, gone.generation));
            let record = Record { live, previous: gone.or_else(|| found?.1.previous) };
            let written = self::row(session, version + 1, &record);
            if self.0.put(session, version, record).await? {
                return Ok((written, true));
            }
        }
    }
}

fn row(session: SessionId, version: i64, record: &Record) -> Option<Binding> {
    let (workspace, target) = record.live.clone()?;
    Some(Binding::new(session, workspace, target, Revision::new(version)).with_previous(record.previous))
}

fn swap((row, written): (Option<Binding>, bool)) -> Swap {
    match row {
        Some(row) if written => Swap::Applied(row),
        row => Swap::Conflict(row),
    }
}

impl BindingStore for KeyValueStore {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        Ok(self.0.get(session).await?.and_then(|(version, record)| row(session, version, &record)))
    }

    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        let decide = |row: Option<&Binding>| match row {
            Some(_) => Change::Leave,
            None => Change::Write(new.workspace, new.target.clone()),
        };
        self.change(new.session, decide).await.map(swap)
    }

    async fn compare_and_swap(&self, expected: Revision, new: NewBinding) -> Result<Swap, StoreError> {
        let decide = |row: Option<&Binding>| match row {
            Some(row) if row.revision == expected => Change::Write(new.workspace, new.target.clone()),
            _ => Change::Leave,
        };
        self.change(new.session, decide).await.map(swap)
    }

    async fn retarget(&self, session: SessionId, workspace: WorkspaceId) -> Result<Binding, StoreError> {
        let kept = |row: &Binding| row.target.clone().filter(|_| row.workspace == workspace);
        let decide = |row: Option<&Binding>| Change::Write(workspace, row.and_then(kept));
        let (row, _) = self.change(session, decide).await?;
        row.ok_or_else(|| StoreError::Corrupt("a row that was written is none".into()))
    }

    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        // Also of a row without a target: the revision must grow.
        let decide = |row: Option<&Binding>| row.map_or(Change::Leave, |row| Change::Write(row.workspace, None));
        Ok(self.change(session, decide).await?.0)
    }

    async fn delete(&self, session: SessionId, expected: Option<Revision>) -> Result<bool, StoreError> {
        let decide = |row: Option<&Binding>| match row {
            Some(row) if expected.is_none_or(|expected| expected == row.revision) => Change::Delete,
            _ => Change::Leave,
        };
        Ok(self.change(session, decide).await?.1)
    }

    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        // Two keys, and this service writes one at a time: what the parent held when it was read.
        let parent = self.load(parent).await?;
        let decide = |row: Option<&Binding>| match (row, &parent) {
            (None, Some(parent)) => Change::Write(parent.workspace, parent.target.clone()),
            _ => Change::Leave,
        };
        self.change(child, decide).await.map(swap)
    }

    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<u64, StoreError> {
        let decide = |row: Option<&Binding>| match row {
            Some(row) if row.workspace == workspace => Change::Write(workspace, None),
            _ => Change::Leave,
        };
        let mut changed = 0;
        for session in self.0.scan(workspace).await? {
            changed += u64::from(self.change(session, decide).await?.1);
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
        let is_behind = |target: &Target| match (stale.generation, current.generation) {
            (Some(_), Some(newest)) => target.generation.is_some_and(|generation| generation < newest),
            _ => {
                let there = target.agent == current.agent && target.address == current.address;
                target.agent == stale.agent && target.generation.is_none() && !there
            }
        };
        let decide = |row: Option<&Binding>| match row {
            Some(row) if row.workspace == workspace && row.target.as_deref().is_some_and(is_behind) => {
                Change::Write(workspace, Some(Arc::clone(current)))
            }
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
            return Err(StoreError::Rejected(format!("{} sessions at once", sessions.len()).into()));
        }
        // Each once, also if it was named twice.
        let mut rows = Vec::new();
        for session in sessions.iter().collect::<BTreeSet<_>>() {
            rows.extend(self.load(*session).await?);
        }
        Ok(rows)
    }
}
