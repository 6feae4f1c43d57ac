//! The repairs under way, one for each thing that is written.

use crate::{
    Epoch, Repair, Revision, SessionId, Target, WorkspaceId,
    binding::Behind,
    cache::CachedRow,
    error::{Cause, SharedError},
    gate::Kind,
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

/// What a repair writes: one for each of these is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// With the revision that it writes over: what was written over an earlier one, before an
    /// order, is another repair.
    Own(SessionId, Arc<Target>, Revision),
    Group(WorkspaceId, Epoch, Behind, Arc<Target>),
}

impl Key {
    /// Whose statements are sent one after the other.
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
    /// The tasks that were ever begun for them.
    pub(crate) tasks: AtomicU64,
    /// The statements that were answered.
    pub(crate) answered: AtomicU64,
    /// No more waiting between attempts: the next one is the last.
    pub(crate) closing: CancellationToken,
    /// Repairs that failed for good after closing had begun.
    pub(crate) failed_closing: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct Running {
    /// The task that writes it, and when it was last seen to be driven.
    pub(crate) task: u64,
    pub(crate) seen: Instant,
    pub(crate) job: Job,
    /// What the call went by that began it.
    pub(crate) entry: Arc<CachedRow>,
    /// A call waits for it: it does not queue behind what nobody waits for.
    pub(crate) awaited: bool,
    /// The record was removed by order: no further attempt.
    pub(crate) forgotten: CancellationToken,
    /// What the calls went by that have asked for it.
    pub(crate) entries: HashMap<SessionId, Arc<CachedRow>>,
}

/// What others may see of a repair under way.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) status: RepairStatus,
    /// How the last attempt has ended, or that it still waits for longer than a statement may take.
    pub(crate) attempted: Arc<watch::Sender<Option<Attempted>>>,
}

/// The result of an attempt: the session's row as the store has answered with it, unless the
/// attempt was a group repair or found no row; or the reason why the store could not be written.
pub(crate) type Attempted = Result<Option<Arc<CachedRow>>, SharedError>;

impl Job {
    pub(crate) fn new(repair: Repair, attempted: Option<Attempted>) -> Self {
        let status = RepairStatus::new();
        status.set(repair);
        Self { status, attempted: Arc::new(watch::Sender::new(attempted)) }
    }

    /// Waits until the first attempt has ended. Bounded by the store timeout for each statement,
    /// and one more before the first of them.
    ///
    /// # Errors
    ///
    /// Why the store could not be written.
    pub(crate) async fn attempted(&self) -> Attempted {
        let mut attempted = self.attempted.subscribe();
        // No error: the sender is held here.
        let attempted =
            attempted.wait_for(Option::is_some).await.ok().and_then(|attempted| attempted.clone());
        attempted.unwrap_or_else(|| Err(Cause::TaskEnded.shared()))
    }

    /// Waits until the first attempt has ended, also if it waits for long.
    pub(crate) async fn tried(&self) {
        let mut attempted = self.attempted.subscribe();
        let _ = attempted
            .wait_for(|attempted| attempted.is_some() && self.status.get() != Repair::Pending)
            .await;
    }

    pub(crate) fn is_unwritten(&self) -> bool {
        matches!(self.status.get(), Repair::Pending | Repair::Retrying)
    }
}
