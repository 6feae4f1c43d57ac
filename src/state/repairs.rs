//! The repairs under way, one for each [`Key`].

use crate::{
    Epoch, Repair, Revision, SessionId, Target, WorkspaceId,
    binding::Behind,
    cache::CachedRow,
    error::{Cause, SharedError},
    gate::Kind,
    observer::WithSources,
    outcome::RepairStatus,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize},
    },
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// The rows and the target that a repair writes. At most one repair is under way for each key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// One row. A repair that compares with an earlier revision, from before a command, is another
    /// one.
    Own(SessionId, Arc<Target>, Revision),
    /// The rows of a workspace that are behind.
    Group(WorkspaceId, Epoch, Behind, Arc<Target>),
}

impl Key {
    /// Returns the kind of statement of which one is sent at a time.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Own(session, ..) => Kind::Repair(*session),
            Self::Group(workspace, ..) => Kind::GroupRepair(*workspace),
        }
    }

    pub(crate) fn target(&self) -> &Arc<Target> {
        let (Self::Own(_, target, _) | Self::Group(_, _, _, target)) = self;
        target
    }
}

/// The repairs under way.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    pub(crate) running: Mutex<HashMap<Key, Running>>,
    /// The number of tasks that were begun, from which each task gets its own number.
    pub(crate) tasks: AtomicU64,
    /// The number of statements that were answered.
    pub(crate) answered: AtomicU64,
    /// Closing has begun: there are no more pauses, and the next attempt is the last one.
    pub(crate) closing: CancellationToken,
    /// The number of repairs that failed for good after closing had begun.
    pub(crate) failed_closing: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct Running {
    /// The number of the task that writes it.
    pub(crate) task: u64,
    pub(crate) began: Instant,
    /// When the task was last seen to be driven.
    pub(crate) seen: Instant,
    pub(crate) job: Job,
    /// The row of the call that began it.
    pub(crate) entry: Arc<CachedRow>,
    /// A call waits for it, so it does not queue behind repairs that no call waits for.
    pub(crate) awaited: bool,
    /// A command has removed the row: there are no further attempts.
    pub(crate) forgotten: CancellationToken,
    /// The rows of the calls that have asked for it.
    pub(crate) entries: HashMap<SessionId, Arc<CachedRow>>,
}

/// A repair under way, as calls see it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) status: RepairStatus,
    /// The verb of the store that writes it.
    pub(crate) verb: &'static str,
    pub(crate) attempted: Arc<watch::Sender<Attempted>>,
}

/// The results of a repair's attempts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempted {
    /// The session's row as the store has answered with it last. `None` if there was none, and for
    /// a group repair.
    pub(crate) row: Option<Arc<CachedRow>>,
    /// How the last attempt has ended, or the error that it waits for longer than a statement may
    /// take. `None` before that.
    pub(crate) result: Option<Result<(), SharedError>>,
}

impl Job {
    pub(crate) fn new(verb: &'static str, repair: Repair, failed: Option<SharedError>) -> Self {
        let status = RepairStatus::new();
        status.set(repair);
        let attempted = Attempted { row: None, result: failed.map(Err) };
        Self { status, verb, attempted: Arc::new(watch::Sender::new(attempted)) }
    }

    /// Waits for the first attempt: for at most one store timeout before its first statement, and
    /// one for each statement.
    ///
    /// # Errors
    ///
    /// The reason why the store could not be written.
    pub(crate) async fn attempted(&self) -> Result<(), SharedError> {
        let mut attempted = self.attempted.subscribe();
        // This cannot fail, because the sender is held here.
        let attempted = attempted.wait_for(|attempted| attempted.result.is_some()).await;
        let result = attempted.ok().and_then(|attempted| attempted.result.clone());
        result.unwrap_or_else(|| Err(Cause::TaskEnded.shared()))
    }

    /// Returns the session's row as the store has answered with it last, even if an attempt failed
    /// after that.
    pub(crate) fn row(&self) -> Option<Arc<CachedRow>> {
        self.attempted.borrow().row.clone()
    }

    /// Waits until the first attempt has ended, however long that takes.
    pub(crate) async fn tried(&self) {
        let mut attempted = self.attempted.subscribe();
        let _ = attempted
            .wait_for(|attempted| {
                attempted.result.is_some() && self.status.get() != Repair::Pending
            })
            .await;
    }

    /// Returns the error of the last attempt and its sources, if it failed.
    pub(crate) fn last_error(&self) -> Option<String> {
        match &self.attempted.borrow().result {
            Some(Err(error)) => Some(WithSources(&**error).to_string()),
            Some(Ok(())) | None => None,
        }
    }

    pub(crate) fn is_unwritten(&self) -> bool {
        matches!(self.status.get(), Repair::Pending | Repair::Retrying)
    }
}
