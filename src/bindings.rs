//! The handle for commands and queries: bindings, housekeeping, and shutdown.

pub use {stats::Stats, workspace::SessionInUse};

use crate::{
    Binding, DoubtReason, Error, ErrorKind, Revision, SessionId, Status, Target, WorkspaceId,
    answer::Answer,
    cache::ReadToken,
    error::{Cause, SharedError},
    gate::Kind,
    hints::About,
    replicas::follow,
    state::repairs::Repairs,
    state::{LoadResult, Shared, statement::no_answer},
    store::{StoreError, Swap, TransactionalStore},
};
use futures_util::future::try_join;
#[cfg(feature = "testing")]
use std::sync::OnceLock;
use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// A handle for commands and queries on the bindings of a layer.
/// [`BoundAgentLayer::bindings`](crate::BoundAgentLayer::bindings) creates it.
///
/// A clone is cheap, and shares all state with the layer.
///
/// # Commands
///
/// [`retarget`](Self::retarget), [`inherit`](Self::inherit), [`unbind`](Self::unbind),
/// [`forget`](Self::forget) and [`reset_workspace`](Self::reset_workspace) are *commands*. A
/// command is carried out whatever the record holds, unlike a repair. It is one statement, which is
/// sent once. If the store does not answer, the layer reads the record: if the record shows the
/// command's effect, the command has succeeded. Otherwise, it fails with
/// [`OutcomeUnknown`](ErrorKind::OutcomeUnknown), and each call of the session reads the record
/// first, for up to 60 s.
///
/// A command waits for at most three
/// [store timeouts](crate::BoundAgentBuilder::store_timeout): for an earlier command about the same
/// session or workspace, for its own answer, and for the record.
///
/// ```
/// use tower_bound_agent::{BoundAgentLayer, Error, SessionId, WorkspaceId};
///
/// async fn commands(layer: &BoundAgentLayer, chat: SessionId, child: SessionId, to: WorkspaceId) -> Result<(), Error> {
///     let bindings = layer.bindings();
///     bindings.retarget(chat, to).await?; // its next call, and calls under way, dial the agent there
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
/// A command runs in a task of its own, and is carried out even if its future is dropped. The
/// future of a query ([`get`](Self::get), [`current`](Self::current)) may be dropped at any time.
#[derive(Clone)]
pub struct Bindings {
    shared: Arc<Shared>,
}

/// The state of a session, as [`Bindings::current`] returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Current {
    /// The session.
    pub session: SessionId,
    /// The workspace that the session points at.
    pub workspace: WorkspaceId,
    /// The target that the next call would dial, if one is known.
    pub target: Option<Arc<Target>>,
    /// The resolver's verdict on the workspace.
    pub status: Status,
}

/// The time limit of a command, in store timeouts. It waits for an earlier command, for its own
/// answer, and for a read of the row. If it takes longer, nobody drives the runtime of its task.
const COMMAND_TIMEOUTS: u32 = 4;

/// The greatest age of a verdict that [`Bindings::current`] returns without a validation.
const FRESH: Duration = Duration::from_secs(5);

impl Bindings {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Returns the binding of a session, from the cache or the store. `None`: the session has no
    /// record.
    ///
    /// # Errors
    ///
    /// * [`Store`](ErrorKind::Store): the record is not cached and could not be read.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time. A read that has begun fills the cache.
    pub async fn get(&self, session: SessionId) -> Result<Option<Binding>, Error> {
        self.open(session)?;
        follow::ensure_driven(&self.shared, Instant::now);
        let entry = match self.shared.cached(session, None) {
            Some(start) if start.entry.is_group_repaired() => {
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

    /// Returns the target that a call of this session would dial now, and the resolver's verdict on
    /// it. It is meant for a page that shows the state of a session.
    ///
    /// This dials nothing and writes nothing. It asks the resolver, in a validation that is shared
    /// with calls, unless the last verdict on the workspace is at most 5 s old.
    ///
    /// # Errors
    ///
    /// * [`NotBound`](ErrorKind::NotBound): the session has no record.
    /// * [`Store`](ErrorKind::Store): the record is not cached and could not be read.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// A stopped workspace, or a resolver that failed, is no error but a [`Status`].
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time. A read or a validation that has begun continues.
    pub async fn current(&self, session: SessionId) -> Result<Current, Error> {
        self.open(session)?;
        let shared = &self.shared;
        follow::ensure_driven(shared, Instant::now);
        let start = match shared.cached(session, None) {
            Some(start) => start,
            None => shared.look_up(session, None).await?,
        };
        let workspace_state = &start.entry.workspace_state;
        let fresh = workspace_state.verdict().filter(|verdict| verdict.landed.elapsed() <= FRESH);
        let answer = match fresh {
            Some(verdict) => verdict.answer,
            None => {
                let now = Instant::now();
                let mut validated = shared.validated(workspace_state, now).await;
                if validated
                    .as_ref()
                    .is_some_and(|validated| validated.is_overtaken(workspace_state))
                {
                    validated = shared.validated(workspace_state, now).await;
                }
                validated.map_or(Answer::Unknown, |validated| validated.answer)
            }
        };
        let status = Status::from(&answer);
        let (choice, _) = shared.choose(&start.entry);
        let target = choice.target().or(start.entry.row.target.as_ref()).cloned();
        Ok(Current { session, workspace: start.entry.workspace(), target, status })
    }

    /// Points a session at a workspace, and creates the record if there is none. Returns the record
    /// as it was written.
    ///
    /// The session's next call finds the agent of the workspace. Calls under way that dial an agent
    /// of another workspace move at once. A session that already points at the workspace keeps its
    /// agent.
    ///
    /// # Errors
    ///
    /// * [`Store`](ErrorKind::Store): the store failed, and nothing was changed.
    /// * [`OutcomeUnknown`](ErrorKind::OutcomeUnknown): the store did not answer, and the record
    ///   does not show the command's effect.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// # Cancel safety
    ///
    /// The command is carried out even if the future is dropped.
    pub async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, Error> {
        self.command(session, async move |shared: Arc<Shared>| {
            let token = shared.rows.read_token(session);
            let retarget = move |shared: Arc<Shared>| async move {
                let row =
                    shared.answer("retarget", shared.store.retarget(session, workspace)).await?;
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

    /// Points a session at a workspace, as [`retarget`](Self::retarget) does, inside the caller's
    /// own transaction.
    ///
    /// `store` is the store that the layer was built with, or a clone of it. `connection` is the
    /// connection on which the transaction is open. The layer does not know of the command until
    /// the transaction has ended; see [`Retargeted`].
    ///
    /// In SQLite, begin the transaction with `BEGIN IMMEDIATE` if it reads before this call. A
    /// deferred transaction that has read, and is then overtaken by another writer, can only be
    /// rolled back.
    ///
    /// # Errors
    ///
    /// * [`Store`](ErrorKind::Store): the statement failed. The caller should roll the transaction
    ///   back.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// # Cancel safety
    ///
    /// Unlike other commands, this one runs in the caller's future. If the future was dropped, drop
    /// the transaction or roll it back.
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
    /// // … other statements of the transaction …
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
        Ok(Retargeted::new(Arc::clone(&self.shared), row, token))
    }

    /// Binds a child session to the workspace and target in its parent's record, in one statement.
    /// Returns the child's record.
    ///
    /// If the child already points at the parent's workspace, the command succeeds and changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// * [`NotBound`](ErrorKind::NotBound): the parent has no record.
    /// * [`WorkspaceMismatch`](ErrorKind::WorkspaceMismatch): the child points at another
    ///   workspace.
    /// * [`Store`](ErrorKind::Store): the store failed.
    /// * [`OutcomeUnknown`](ErrorKind::OutcomeUnknown): the store did not answer, and the child's
    ///   record does not show the command's effect.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// # Cancel safety
    ///
    /// The command is carried out even if the future is dropped.
    pub async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Binding, Error> {
        self.command(child, async move |shared: Arc<Shared>| {
            let token = shared.rows.read_token(child);
            let inherit = move |shared: Arc<Shared>| async move {
                let swap = shared.answer("inherit", shared.store.inherit(child, parent)).await?;
                match &swap {
                    Swap::Applied(row) => drop(learn(&shared, row.clone(), token)),
                    Swap::Conflict(Some(row)) => drop(shared.learn(row.clone(), token)),
                    Swap::Conflict(None) => shared.rows.remove(parent),
                }
                Ok(swap)
            };
            let sent = shared.send(Kind::Command(child), inherit).await;
            let (row, parents) = match sent {
                Ok(Swap::Applied(row)) => return Ok(row),
                Ok(Swap::Conflict(Some(row))) => (row, read_now(&shared, parent).await),
                Ok(Swap::Conflict(None)) => return Err(Error::new(ErrorKind::NotBound).of(parent)),
                Err(error) => {
                    // Both rows at once, so that the command takes no longer than others.
                    let childs = judge(&shared, child, error, |row| row.is_some());
                    let parents = async { Ok(read_now(&shared, parent).await) };
                    match try_join(childs, parents).await? {
                        (Some(row), parents) => (row, parents),
                        (None, _) => return Err(Error::new(ErrorKind::OutcomeUnknown).of(child)),
                    }
                }
            };
            let asked = match parents {
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

    /// Removes the target from a session's record and keeps the workspace. Returns the record, or
    /// `None` if the session has none.
    ///
    /// The removed agent is in doubt from then on. The session's next call asks the resolver before
    /// it dials. The next call of each other session that is bound to that agent asks the resolver
    /// while it dials. Other processes learn of the doubt by [`hints`](crate::hints).
    ///
    /// # Errors
    ///
    /// * [`Store`](ErrorKind::Store): the store failed, and nothing was changed.
    /// * [`OutcomeUnknown`](ErrorKind::OutcomeUnknown): the store did not answer, and the record
    ///   does not show the command's effect.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// # Cancel safety
    ///
    /// The command is carried out even if the future is dropped.
    pub async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, Error> {
        self.command(session, async move |shared: Arc<Shared>| {
            let token = shared.rows.read_token(session);
            let unbind = move |shared: Arc<Shared>| async move {
                let row = shared.answer("unbind", shared.store.unbind(session)).await?;
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

    /// Removes a session's record. Returns `true` if there was one.
    ///
    /// A later record of the same session continues above the last revision, so no write that began
    /// before this command can change it.
    ///
    /// # Errors
    ///
    /// * [`Store`](ErrorKind::Store): the store failed, and nothing was changed.
    /// * [`OutcomeUnknown`](ErrorKind::OutcomeUnknown): the store did not answer, and the session
    ///   still has a record.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// # Cancel safety
    ///
    /// The command is carried out even if the future is dropped.
    pub async fn forget(&self, session: SessionId) -> Result<bool, Error> {
        self.command(session, async move |shared: Arc<Shared>| {
            shared.repairs.forget(session);
            let learn = move |shared: &Shared| {
                shared.rows.remove(session);
                shared.tell(About::Session { session, revision: None });
            };
            let delete = move |shared: Arc<Shared>| async move {
                let forgotten = shared.answer("forget", shared.store.forget(session, None)).await?;
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

    /// Removes the targets of all sessions of a workspace. Returns how many records were changed.
    ///
    /// This is the command for a resolver whose generations start again, because its smaller
    /// generations would be taken for the answers of a lagging replica for ever. The command begins
    /// the next [`Epoch`](crate::Epoch) of the workspace, which the store keeps.
    ///
    /// Another process learns of the epoch by [`hints`](crate::hints) at once, or else with the
    /// first row of the workspace that it reads or fails to write. Until then, its cached rows lead
    /// to the old agent, but nothing that it writes for the old epoch counts.
    ///
    /// # Errors
    ///
    /// * [`Store`](ErrorKind::Store): the store failed, and nothing was changed.
    /// * [`OutcomeUnknown`](ErrorKind::OutcomeUnknown): the store did not answer.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// # Cancel safety
    ///
    /// The command is carried out even if the future is dropped.
    pub async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<u64, Error> {
        self.command(None, async move |shared: Arc<Shared>| {
            let learn = move |shared: &Shared, epoch: Option<crate::Epoch>| {
                shared.reset(workspace, epoch);
                shared.tell(About::Reset { workspace, epoch });
            };
            let reset = move |shared: Arc<Shared>| async move {
                let reset = shared
                    .answer("reset_workspace", shared.store.reset_workspace(workspace))
                    .await?;
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

    /// Loads the most recently used bindings into the cache, in one streamed query. Returns how
    /// many were loaded.
    ///
    /// It loads at most `limit` bindings, and at most the
    /// [`cache_capacity`](crate::BoundAgentBuilder::cache_capacity). A process that starts can so
    /// spare its first calls a read each. The order of use is known as far as it was recorded
    /// ([`usage_interval`](crate::BoundAgentBuilder::usage_interval)); other bindings follow in no
    /// particular order.
    ///
    /// # Errors
    ///
    /// * [`Store`](ErrorKind::Store): a row did not arrive within the
    ///   [`store_timeout`](crate::BoundAgentBuilder::store_timeout), or the store does not support
    ///   it.
    /// * [`Closed`](ErrorKind::Closed): the layer was closed.
    ///
    /// Bindings that were loaded before an error stay in the cache.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time. Bindings that were loaded stay in the cache.
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

    /// Waits until every repair that has begun was attempted. Returns how many repairs are not
    /// written yet; those are tried again in the background.
    ///
    /// The wait ends after a few store timeouts if the store does not answer.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time. The repairs continue.
    pub async fn flush(&self) -> usize {
        Repairs::flush(&self.shared).await
    }

    /// Shuts the layer down gracefully. Returns how many repairs were not written; the next process
    /// that dials such a session repairs its binding.
    ///
    /// New calls and commands fail with [`Closed`](ErrorKind::Closed). Repairs get a last attempt,
    /// and every task that does not end within `within` is dropped. A call under way may still end
    /// with a connection; if it fails, it fails with `Closed`.
    ///
    /// After this has returned, the layer begins nothing. The repair of a connection that is
    /// returned later is [`Failed`](crate::Repair::Failed), and counts in the result of the next
    /// `close`. A statement that has no answer yet is waited for during one store timeout.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the layer is closed all the same, but its last repairs are not
    /// dropped after `within`; each is bounded by the store timeout.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_bound_agent::Bindings;
    /// # async fn shut_down(bindings: Bindings) {
    /// let unwritten = bindings.close(Duration::from_secs(5)).await;
    /// if unwritten > 0 {
    ///     eprintln!("{unwritten} bindings are repaired by the next process");
    /// }
    /// # }
    /// ```
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

    /// Runs a command in a task of its own.
    async fn command<T, F>(
        &self,
        session: impl Into<Option<SessionId>>,
        command: impl FnOnce(Arc<Shared>) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let session = session.into();
        self.open(session)?;
        follow::ensure_driven(&self.shared, Instant::now);
        let Some(task) = self.shared.tasks.spawn(command(Arc::clone(&self.shared))) else {
            return Err(failure(ErrorKind::Closed, session));
        };
        let at_most = self.shared.settings.store_timeout * COMMAND_TIMEOUTS;
        match timeout(at_most, task).await {
            Ok(Ok(Some(done))) => done,
            // The layer was closed meanwhile, the store panicked, or the runtime of the task is not
            // driven.
            _ => {
                if let Some(session) = session {
                    self.shared.rows.mark_uncertain(
                        session,
                        Revision::new(i64::MAX),
                        Instant::now(),
                    );
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

/// Learns the row that a command wrote. Returns it to the caller of the command, even if a later
/// command of another caller is already known.
fn learn(shared: &Shared, row: Binding, token: ReadToken) -> Binding {
    shared.learn_written(row.clone(), token);
    announce_command(shared, &row);
    row
}

/// Wakes calls and handles of the session, and sends a hint: the command was carried out.
fn announce_command(shared: &Shared, row: &Binding) {
    shared.rows.record_command(row.session);
    shared.tell(About::Session { session: row.session, revision: Some(row.revision) });
}

/// Doubts the agent that a command removed from a row. The workspace state still knows that agent,
/// so it would be dialed again.
fn doubt_left(shared: &Shared, unbound: &Binding) {
    let Some(previous) = unbound.previous else { return };
    if let Some(workspace_state) = shared.workspaces.find(unbound.workspace) {
        let reason = DoubtReason::Unbound;
        workspace_state.doubt_agent(previous.agent, reason, Instant::now());
    }
    shared.tell(About::Workspace { workspace: unbound.workspace, generation: None, epoch: None });
}

/// Removes the cached row of a session that has no record any more.
fn gone(shared: &Shared, session: SessionId) -> Error {
    shared.rows.remove(session);
    Error::new(ErrorKind::NotBound).of(session)
}

/// Reads the row for a command, in a read that begins now. If the rest of an earlier read has to be
/// waited for, that counts as well.
async fn read_now(shared: &Arc<Shared>, session: SessionId) -> LoadResult {
    let within = shared.settings.store_timeout;
    let read = timeout(within, shared.read_since(session, Instant::now())).await;
    read.unwrap_or_else(|_| Err(Arc::new(no_answer(within))))
}

/// Decides the outcome of a command that failed. If it may have been carried out, reads the row,
/// and returns the row if `done` finds the command's effect in it. Otherwise, distrusts the cached
/// row for a while, because the statement may still arrive.
async fn judge(
    shared: &Arc<Shared>,
    session: SessionId,
    error: StoreError,
    done: impl Fn(Option<&Binding>) -> bool,
) -> Result<Option<Binding>, Error> {
    // A statement whose returned row cannot be decoded was carried out.
    let unknown = matches!(error, StoreError::Unknown(_) | StoreError::Corrupt(_));
    let cause: SharedError = Arc::new(error);
    if !unknown {
        return Err(Error::new(ErrorKind::Store).of(session).with_store(Some(cause)));
    }
    match read_now(shared, session).await.map(|entry| entry.map(|entry| entry.binding())) {
        Ok(Some(row)) if done(Some(&row)) => {
            announce_command(shared, &row);
            Ok(Some(row))
        }
        Ok(None) if done(None) => {
            shared.rows.remove(session);
            Ok(None)
        }
        row => {
            let mut revision = Revision::new(i64::MAX);
            if let Ok(Some(row)) = row {
                revision = Revision::new(row.revision.get() + 1);
            }
            shared.rows.mark_uncertain(session, revision, Instant::now());
            Err(Error::new(ErrorKind::OutcomeUnknown).of(session).with_store(Some(cause)))
        }
    }
}

/// A retarget inside the caller's transaction. [`Bindings::retarget_in`] returns it.
///
/// Keep it until the transaction has ended, then call [`committed`](Self::committed) or
/// [`rolled_back`](Self::rolled_back). If it is dropped instead, the layer does not know how the
/// transaction ended: for 60 s, or until the record shows the new binding, each call of the session
/// reads the record first.
#[must_use = "call `committed` or `rolled_back` when the transaction has ended"]
pub struct Retargeted {
    shared: Arc<Shared>,
    row: Binding,
    token: ReadToken,
    ended: bool,
    /// How the transaction ended, for [`RetargetedControl`](crate::testing::RetargetedControl).
    #[cfg(feature = "testing")]
    committed: Arc<OnceLock<bool>>,
}

impl Retargeted {
    fn new(shared: Arc<Shared>, row: Binding, token: ReadToken) -> Self {
        Self {
            shared,
            row,
            token,
            ended: false,
            #[cfg(feature = "testing")]
            committed: Arc::default(),
        }
    }

    /// Returns a value of a layer, and the place where it records how the transaction ended: `true`
    /// if it was committed.
    #[cfg(feature = "testing")]
    pub(crate) fn observed(shared: &Arc<Shared>, row: Binding) -> (Self, Arc<OnceLock<bool>>) {
        let token = shared.rows.read_token(row.session);
        let retargeted = Self::new(Arc::clone(shared), row, token);
        let committed = Arc::clone(&retargeted.committed);
        (retargeted, committed)
    }

    fn end(&mut self, committed: bool) {
        self.ended = true;
        #[cfg(feature = "testing")]
        let _ = self.committed.set(committed);
        #[cfg(not(feature = "testing"))]
        let _ = committed;
    }

    /// Returns the binding as the transaction wrote it.
    pub fn binding(&self) -> &Binding {
        &self.row
    }

    /// Applies the binding after the transaction was committed, and returns it. Calls under way
    /// move at once, and a hint is sent.
    pub fn committed(mut self) -> Binding {
        self.end(true);
        learn(&self.shared, self.row.clone(), self.token.clone())
    }

    /// Discards the binding after the transaction was rolled back.
    pub fn rolled_back(mut self) {
        self.end(false);
    }
}

impl Drop for Retargeted {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.rows.mark_uncertain(self.row.session, self.row.revision, Instant::now());
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

// After the methods above, because rustdoc lists methods in the order of the source.
mod workspace;

mod housekeeping;
mod inspect;
mod stats;
mod warm;
