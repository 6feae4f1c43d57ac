//! The handle for explicit operations: looking at bindings, orders, housekeeping, the end.

mod housekeeping;
mod warm;
mod workspace;

pub use workspace::SessionInUse;

use crate::{
    Binding, Error, ErrorKind, Revision, SessionId, Target, WorkspaceId,
    answer::{Answer, Denied},
    cache::ReadToken,
    error::{Cause, SharedError},
    gate::Kind,
    hints::About,
    replicas::follow,
    state::Shared,
    state::repairs::Repairs,
    store::{StoreError, Swap, TransactionalStore},
};
use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// Looks at bindings and changes them by order. Cheap to clone; shares everything with the layer
/// that it is from.
///
/// An *order* is carried out whatever the row holds, unlike a repair. It is one statement, sent
/// once. If no answer comes the row is read: it shows what was ordered, or the order fails with
/// [`OutcomeUnknown`](ErrorKind::OutcomeUnknown), and for a while every call of the session reads
/// the row.
///
/// ```
/// use tower_bound_agent::{BoundAgentLayer, Error, SessionId, WorkspaceId};
///
/// async fn orders(layer: &BoundAgentLayer, chat: SessionId, child: SessionId, to: WorkspaceId) -> Result<(), Error> {
///     let bindings = layer.bindings();
///     bindings.retarget(chat, to).await?; // its next call, and those under way, go to the agent there
///     bindings.inherit(child, chat).await?;
///     if let Some(binding) = bindings.get(child).await? {
///         println!("{} points at {}", binding.session, binding.workspace);
///     }
///     Ok(())
/// }
/// ```
///
/// # Cancel safety
///
/// An order that was begun is carried out, also if its future is dropped: it runs in a task of its
/// own. What only reads ([`get`](Self::get), [`current`](Self::current)) may be dropped at any
/// time.
#[derive(Clone)]
pub struct Bindings {
    shared: Arc<Shared>,
}

/// What [`Bindings::current`] says about a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Current {
    /// Which session.
    pub session: SessionId,
    /// Where it points.
    pub workspace: WorkspaceId,
    /// What its next call would dial, if anything is known.
    pub target: Option<Arc<Target>>,
    /// What the resolver says about that.
    pub status: Status,
}

/// What the resolver says about a session's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It serves the workspace.
    Running,
    /// The workspace is being built.
    Starting {
        /// When to try again, if that can be told.
        retry_after: Option<Duration>,
    },
    /// Nothing runs in the workspace.
    Stopped,
    /// The workspace does not exist any more.
    Gone,
    /// The resolver failed or did not answer in time.
    Unknown,
}

impl Status {
    /// Returns the status as a word in snake case, for logs and the labels of metrics. The words of
    /// 0.1 do not change.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting { .. } => "starting",
            Self::Stopped => "stopped",
            Self::Gone => "gone",
            Self::Unknown => "unknown",
        }
    }
}

/// An order ends after so many store timeouts, whatever happens.
const MOST_TIMEOUTS_OF_AN_ORDER: u32 = 5;

/// A verdict that is at most so old is an answer for a page.
const FRESH: Duration = Duration::from_secs(5);

impl Bindings {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The binding of a session, cached or read.
    ///
    /// # Errors
    ///
    /// [`Store`](ErrorKind::Store) if it had to be read and could not be;
    /// [`Closed`](ErrorKind::Closed).
    pub async fn get(&self, session: SessionId) -> Result<Option<Binding>, Error> {
        self.open(session)?;
        follow::ensure_driven(&self.shared, Instant::now);
        let entry = match self.shared.cached(session, None) {
            Some(start) if start.entry.is_ahead() => {
                let read = self.shared.read_since(session, Instant::now()).await;
                read.map_err(|cause| {
                    Error::new(ErrorKind::Store).of(session).with_store(Some(cause))
                })?
            }
            Some(start) => Some(start.entry),
            None => match self.shared.look_up(session, None).await {
                Ok(start) => Some(start.entry),
                Err(error) if *error.kind() == ErrorKind::NotBound => None,
                Err(error) => return Err(error),
            },
        };
        Ok(entry.map(|entry| entry.binding()))
    }

    /// Which agent a call of this session would talk to now: an answer for a page that shows it.
    ///
    /// Dials nothing and writes nothing. Asks the resolver, in a validation shared with everybody,
    /// unless its last word about the workspace is at most 5 s old.
    ///
    /// # Errors
    ///
    /// [`NotBound`](ErrorKind::NotBound), [`Store`](ErrorKind::Store),
    /// [`Closed`](ErrorKind::Closed). That a workspace is stopped, or that the resolver failed, is
    /// no error here but a [`Status`].
    pub async fn current(&self, session: SessionId) -> Result<Current, Error> {
        self.open(session)?;
        let shared = &self.shared;
        follow::ensure_driven(shared, Instant::now);
        let start = match shared.cached(session, None) {
            Some(start) => start,
            None => shared.look_up(session, None).await?,
        };
        let place = &start.entry.place;
        let fresh = place.verdict().filter(|verdict| verdict.landed.elapsed() <= FRESH);
        let answer = match fresh {
            Some(verdict) => verdict.answer,
            None => {
                let mut validated = shared.validated(place).await;
                if validated.as_ref().is_some_and(|validated| validated.is_overtaken(place)) {
                    validated = shared.validated(place).await;
                }
                validated.map_or(Answer::Unknown, |validated| validated.answer)
            }
        };
        let status = match answer {
            Answer::Running(_) => Status::Running,
            Answer::Denied(Denied::Starting { retry_after }) => Status::Starting { retry_after },
            Answer::Denied(Denied::Stopped) => Status::Stopped,
            Answer::Denied(Denied::Gone) => Status::Gone,
            Answer::Unknown | Answer::Overtaken => Status::Unknown,
        };
        let (choice, _) = shared.choose(&start.entry);
        let target = choice.target().or(start.entry.row.target.as_ref()).cloned();
        Ok(Current { session, workspace: start.entry.workspace(), target, status })
    }

    /// The order to point a session at a workspace; creates the record if there is none. The agent
    /// of the workspace is found by the next call. A session that points there already keeps its
    /// agent.
    ///
    /// Calls under way that dial an agent of another workspace move at once.
    ///
    /// # Errors
    ///
    /// [`Store`](ErrorKind::Store), [`OutcomeUnknown`](ErrorKind::OutcomeUnknown),
    /// [`Closed`](ErrorKind::Closed).
    pub async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, Error> {
        self.order(session, async move |shared: Arc<Shared>| {
            let token = shared.rows.read_token(session);
            let retarget = move |shared: Arc<Shared>| async move {
                let row = shared.answer(shared.store.retarget(session, workspace)).await?;
                Ok(learn(&shared, row, token))
            };
            match shared.send(Kind::Command(session), retarget).await {
                Ok(row) => Ok(row),
                Err(error) => {
                    let done =
                        |row: Option<&Binding>| row.is_some_and(|row| row.workspace == workspace);
                    let row = judge(&shared, session, error, done).await?;
                    row.ok_or_else(|| Error::new(ErrorKind::OutcomeUnknown).of(session))
                }
            }
        })
        .await
    }

    /// As [`retarget`](Self::retarget), inside the caller's own transaction: `store` is the one
    /// that the layer was built with (or a clone), and `connection` the one that the transaction is
    /// open on.
    ///
    /// Nothing is known of it here until the transaction has ended: see [`Retargeted`]. In SQLite
    /// begin a transaction that reads first with `BEGIN IMMEDIATE`: one that has read and was
    /// overtaken by a writer can only be rolled back.
    ///
    /// # Errors
    ///
    /// [`Store`](ErrorKind::Store): the statement failed, and the transaction is the caller's to
    /// roll back. [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Unlike the other orders this one runs in the caller's future; a transaction that is dropped
    /// is rolled back.
    ///
    /// # Example
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # mod example {
    /// # use tower_bound_agent::{sqlx, Bindings, BoxError, SessionId, WorkspaceId, store::SqliteStore};
    /// # async fn example(
    /// #     pool: sqlx::SqlitePool, store: SqliteStore, bindings: Bindings, chat: SessionId, workspace: WorkspaceId,
    /// # ) -> Result<(), BoxError> {
    /// let mut transaction = pool.begin().await?;
    /// // … what else is to be written with it …
    /// let retargeted = bindings.retarget_in(&store, &mut transaction, chat, workspace).await?;
    /// transaction.commit().await?;
    /// retargeted.committed();
    /// # Ok(())
    /// # }
    /// # }
    /// ```
    pub async fn retarget_in<St: TransactionalStore>(
        &self,
        store: &St,
        connection: &mut St::Connection,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Retargeted, Error> {
        self.open(session)?;
        let token = self.shared.rows.read_token(session);
        let row = store.retarget_in(connection, session, workspace).await;
        let row = row.map_err(|error| {
            Error::new(ErrorKind::Store).of(session).with_store(Some(Arc::new(error)))
        })?;
        Ok(Retargeted { shared: Arc::clone(&self.shared), row, token, ended: false })
    }

    /// Binds a child session to what its parent's record holds, in one statement. A child that
    /// points at the same workspace already is a success and keeps what it has.
    ///
    /// # Errors
    ///
    /// [`NotBound`](ErrorKind::NotBound) if the parent has no record,
    /// [`WorkspaceMismatch`](ErrorKind::WorkspaceMismatch) if the child points at another workspace
    /// already, [`Store`](ErrorKind::Store), [`OutcomeUnknown`](ErrorKind::OutcomeUnknown),
    /// [`Closed`](ErrorKind::Closed).
    pub async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Binding, Error> {
        self.order(child, async move |shared: Arc<Shared>| {
            let token = shared.rows.read_token(child);
            let inherit = move |shared: Arc<Shared>| async move {
                let swap = shared.answer(shared.store.inherit(child, parent)).await?;
                match &swap {
                    Swap::Applied(row) => drop(learn(&shared, row.clone(), token)),
                    Swap::Conflict(Some(row)) => drop(shared.learn(row.clone(), token)),
                    Swap::Conflict(None) => shared.rows.remove(parent),
                }
                Ok(swap)
            };
            let row = match shared.send(Kind::Command(child), inherit).await {
                Ok(Swap::Applied(row)) => return Ok(row),
                Ok(Swap::Conflict(Some(row))) => row,
                Ok(Swap::Conflict(None)) => return Err(Error::new(ErrorKind::NotBound).of(parent)),
                Err(error) => match judge(&shared, child, error, |row| row.is_some()).await? {
                    Some(row) => row,
                    None => return Err(Error::new(ErrorKind::OutcomeUnknown).of(child)),
                },
            };
            let asked = match shared.read_since(parent, Instant::now()).await {
                Ok(Some(parents)) => parents.workspace(),
                Ok(None) => return Err(gone(&shared, parent)),
                Err(cause) => {
                    return Err(Error::new(ErrorKind::Store).of(child).with_store(Some(cause)));
                }
            };
            if asked == row.workspace {
                return Ok(row);
            }
            let mismatch = ErrorKind::WorkspaceMismatch { bound: row.workspace, asked };
            Err(Error::new(mismatch).of(child))
        })
        .await
    }

    /// The order to drop a session's target and to keep its workspace. `None` if the session has no
    /// record.
    ///
    /// The agent that was dropped is in doubt from then on: the session's next call asks the
    /// resolver before it dials, and the next call of each other session that is bound to that
    /// agent asks in parallel with its dial. Other processes hear of the doubt by
    /// [`hints`](crate::hints).
    ///
    /// # Errors
    ///
    /// [`Store`](ErrorKind::Store), [`OutcomeUnknown`](ErrorKind::OutcomeUnknown),
    /// [`Closed`](ErrorKind::Closed).
    pub async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, Error> {
        self.order(session, async move |shared: Arc<Shared>| {
            let token = shared.rows.read_token(session);
            let unbind = move |shared: Arc<Shared>| async move {
                let row = shared.answer(shared.store.unbind(session)).await?;
                match &row {
                    Some(row) => doubt_left(&shared, &learn(&shared, row.clone(), token)),
                    None => shared.rows.remove(session),
                }
                Ok(row)
            };
            match shared.send(Kind::Command(session), unbind).await {
                Ok(row) => Ok(row),
                Err(error) => {
                    let unbound =
                        |row: Option<&Binding>| row.is_none_or(|row| row.target.is_none());
                    let row = judge(&shared, session, error, unbound).await?;
                    row.iter().for_each(|row| doubt_left(&shared, row));
                    Ok(row)
                }
            }
        })
        .await
    }

    /// The order to remove a session's record. Says whether there was one. A later record of the
    /// same session continues above its last revision, so nothing that was begun before can change
    /// it.
    ///
    /// # Errors
    ///
    /// [`Store`](ErrorKind::Store), [`OutcomeUnknown`](ErrorKind::OutcomeUnknown),
    /// [`Closed`](ErrorKind::Closed).
    pub async fn forget(&self, session: SessionId) -> Result<bool, Error> {
        self.order(session, async move |shared: Arc<Shared>| {
            shared.repairs.forget(session);
            let learn = move |shared: &Shared| {
                shared.rows.remove(session);
                shared.tell(About::Session { session, revision: None });
            };
            let delete = move |shared: Arc<Shared>| async move {
                let forgotten = shared.answer(shared.store.forget(session, None)).await?;
                learn(&shared);
                Ok(forgotten)
            };
            match shared.send(Kind::Command(session), delete).await {
                Ok(forgotten) => Ok(forgotten),
                Err(error) => {
                    judge(&shared, session, error, |row| row.is_none()).await?;
                    learn(&shared);
                    Ok(true)
                }
            }
        })
        .await
    }

    /// The order to drop the targets of all sessions of a workspace: for a resolver whose
    /// generations start again, which would look like a lagging one for ever. Says how many records
    /// were changed.
    ///
    /// It begins the next [`Epoch`](crate::Epoch) of the workspace, which is stored. Another
    /// process learns of it with the first row of the workspace that it reads or fails to write,
    /// and with [`hints`](crate::hints) at once. Until then its cached rows still lead to the old
    /// agent, but nothing that it writes for the old epoch counts.
    ///
    /// # Errors
    ///
    /// [`Store`](ErrorKind::Store), [`OutcomeUnknown`](ErrorKind::OutcomeUnknown),
    /// [`Closed`](ErrorKind::Closed).
    pub async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<u64, Error> {
        self.order(None, async move |shared: Arc<Shared>| {
            let learn = move |shared: &Shared, epoch: Option<crate::Epoch>| {
                shared.reset(workspace, epoch);
                shared.tell(About::Reset { workspace, epoch });
            };
            let reset = move |shared: Arc<Shared>| async move {
                let reset = shared.answer(shared.store.reset_workspace(workspace)).await?;
                learn(&shared, Some(reset.epoch));
                Ok(reset)
            };
            let reset = shared.send(Kind::Reset(workspace), reset).await;
            if let Err(StoreError::Unknown(_)) = reset {
                learn(&shared, None);
            }
            reset.map(|reset| reset.rows).map_err(|error| {
                let unknown = matches!(error, StoreError::Unknown(_));
                let kind = if unknown { ErrorKind::OutcomeUnknown } else { ErrorKind::Store };
                Error::new(kind).about(workspace).with_store(Some(Arc::new(error)))
            })
        })
        .await
    }

    /// Loads the most recently used bindings into the cache, at most `limit` and what the cache
    /// holds, in one streamed query: for a process that starts, so that its first calls need no
    /// read each. Says how many came.
    ///
    /// Which were used last is known as far as it was recorded
    /// ([`usage_interval`](crate::BoundAgentBuilder::usage_interval)); the others follow in no
    /// order.
    ///
    /// # Errors
    ///
    /// [`Store`](ErrorKind::Store) if a row did not come within the store timeout;
    /// [`Closed`](ErrorKind::Closed). What was loaded by then stays.
    ///
    /// # Cancel safety
    ///
    /// Reads only. What was loaded when it is dropped stays.
    pub async fn warm(&self, limit: u64) -> Result<u64, Error> {
        self.open(None)?;
        follow::ensure_driven(&self.shared, Instant::now);
        let warmed = warm::warm(&self.shared, limit.min(self.shared.settings.cache_capacity)).await;
        let closed = self.shared.is_closed();
        warmed.map_err(|error| {
            let kind = if closed { ErrorKind::Closed } else { ErrorKind::Store };
            Error::new(kind).with_store(Some(Arc::new(error)))
        })
    }

    /// Waits until every repair that has begun was tried, as long as the store answers: not for
    /// more than a few times the store timeout without any answer. Returns how many could not be
    /// written yet; those are tried again in the background.
    ///
    /// # Cancel safety
    ///
    /// It only waits: the repairs go on without it.
    pub async fn flush(&self) -> usize {
        Repairs::flush(&self.shared).await
    }

    /// Ends the layer in order: new calls and orders fail with [`Closed`](ErrorKind::Closed),
    /// repairs get their last attempt, and what does not end within the given time is dropped.
    /// Returns how many repairs did not land; such a binding is repaired by the next process that
    /// dials it.
    ///
    /// Calls under way may still end with a connection; if they fail, it is with `Closed`. Once
    /// this has returned, nothing of the layer begins any more: the repair of a connection that
    /// comes later is [`Failed`](crate::Repair::Failed), and is in the number that another `close`
    /// returns. A statement that has no answer yet is waited for one store timeout.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the layer is closed all the same; nobody ends its last repairs
    /// then, which are bounded by the store timeout.
    pub async fn close(&self, within: Duration) -> usize {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.ended.cancel();
        Repairs::close(&self.shared);
        self.shared.tasks.close(within).await;
        self.shared.repairs.unwritten()
    }

    fn open(&self, session: impl Into<Option<SessionId>>) -> Result<(), Error> {
        if self.shared.is_closed() {
            Err(failure(ErrorKind::Closed, session.into()))
        } else {
            Ok(())
        }
    }

    /// Runs an order in a task of its own.
    async fn order<T, F>(
        &self,
        session: impl Into<Option<SessionId>>,
        order: impl FnOnce(Arc<Shared>) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let session = session.into();
        self.open(session)?;
        follow::ensure_driven(&self.shared, Instant::now);
        let Some(order) = self.shared.tasks.spawn(order(Arc::clone(&self.shared))) else {
            return Err(failure(ErrorKind::Closed, session));
        };
        // It waits for an earlier order, for its own answer, and for the row if that does not come.
        let at_most = self.shared.settings.store_timeout * MOST_TIMEOUTS_OF_AN_ORDER;
        match timeout(at_most, order).await {
            Ok(Ok(Some(done))) => done,
            // Closed in the middle, or the store panicked, or nobody drives the runtime of the
            // task.
            _ => {
                if let Some(session) = session {
                    self.shared.rows.distrust(session, Revision::new(i64::MAX), Instant::now());
                }
                let cause: SharedError = Cause::TaskEnded.shared();
                Err(failure(ErrorKind::OutcomeUnknown, session).with_store(Some(cause)))
            }
        }
    }
}

fn failure(kind: ErrorKind, session: Option<SessionId>) -> Error {
    match session {
        Some(session) => Error::new(kind).of(session),
        None => Error::new(kind),
    }
}

/// Whoever gave an order is told what it wrote, also if somebody else's later order is known here
/// already.
fn learn(shared: &Shared, row: Binding, token: ReadToken) -> Binding {
    shared.learn_written(row.clone(), token);
    tell_ordered(shared, &row);
    row
}

/// An order is known to have been carried out.
fn tell_ordered(shared: &Shared, row: &Binding) {
    shared.rows.commanded(row.session, row.revision);
    shared.tell(About::Session { session: row.session, revision: Some(row.revision) });
}

/// A session was unbound. Its agent is known here from the row that it was dropped from, so it
/// would be dialed again.
fn doubt_left(shared: &Shared, unbound: &Binding) {
    let Some(previous) = unbound.previous else { return };
    if let Some(place) = shared.workspaces.find(unbound.workspace) {
        place.doubt_agent(previous.agent, Instant::now());
    }
    shared.tell(About::Workspace { workspace: unbound.workspace, generation: None, epoch: None });
}

/// There is no record: what is cached of it was deleted by somebody else.
fn gone(shared: &Shared, session: SessionId) -> Error {
    shared.rows.remove(session);
    Error::new(ErrorKind::NotBound).of(session)
}

/// An order failed. If it may have been carried out all the same, the row tells: returns it if it
/// shows what was `ordered`. Else the session's row is not trusted for a while, because the
/// statement may still arrive.
async fn judge(
    shared: &Arc<Shared>,
    session: SessionId,
    error: StoreError,
    ordered: impl Fn(Option<&Binding>) -> bool,
) -> Result<Option<Binding>, Error> {
    // A row that cannot be read back was written all the same.
    let unknown = matches!(error, StoreError::Unknown(_) | StoreError::Corrupt(_));
    let cause: SharedError = Arc::new(error);
    if !unknown {
        return Err(Error::new(ErrorKind::Store).of(session).with_store(Some(cause)));
    }
    match shared
        .read_since(session, Instant::now())
        .await
        .map(|entry| entry.map(|entry| entry.binding()))
    {
        Ok(Some(row)) if ordered(Some(&row)) => {
            tell_ordered(shared, &row);
            Ok(Some(row))
        }
        Ok(None) if ordered(None) => {
            shared.rows.remove(session);
            Ok(None)
        }
        row => {
            let mut revision = Revision::new(i64::MAX);
            if let Ok(Some(row)) = row {
                revision = Revision::new(row.revision.get() + 1);
            }
            shared.rows.distrust(session, revision, Instant::now());
            Err(Error::new(ErrorKind::OutcomeUnknown).of(session).with_store(Some(cause)))
        }
    }
}

/// A retarget that waits for the end of its transaction.
///
/// Keep it until then. [`committed`](Self::committed) makes the new binding known here, so that
/// calls under way move at once; [`rolled_back`](Self::rolled_back) changes nothing. If it is
/// dropped instead, nobody knows how the transaction ended: for a minute, or until the row shows
/// it, each call of the session reads the row first.
#[must_use = "keep it until the transaction has ended, then say how: `committed` or `rolled_back`"]
pub struct Retargeted {
    shared: Arc<Shared>,
    row: Binding,
    token: ReadToken,
    ended: bool,
}

impl Retargeted {
    /// The binding as the transaction wrote it.
    pub fn binding(&self) -> &Binding {
        &self.row
    }

    /// The transaction was committed.
    pub fn committed(mut self) -> Binding {
        self.ended = true;
        learn(&self.shared, self.row.clone(), self.token.clone())
    }

    /// The transaction was rolled back.
    pub fn rolled_back(mut self) {
        self.ended = true;
    }
}

impl Drop for Retargeted {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.rows.distrust(self.row.session, self.row.revision, Instant::now());
        }
    }
}

impl fmt::Debug for Retargeted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retargeted").field("row", &self.row).finish_non_exhaustive()
    }
}

impl fmt::Debug for Bindings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bindings").finish_non_exhaustive()
    }
}
