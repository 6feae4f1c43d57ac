//! The one state that every service of a layer shares, and the questions that are asked of it.

pub(crate) mod following;
pub(crate) mod repairs;
pub(crate) mod statement;

use crate::{
    Binding, Epoch, Error, ErrorKind, Event, Observer, Resolution, ResolveWorkspace, SessionId,
    Target, WorkspaceId,
    answer::Answer,
    cache::{CachedRow, ReadToken, RowCache, State, absent::Absent, usage::Usage},
    clock::Tick,
    error::{Cause, SharedError},
    gate::{Gate, Gates, Kind},
    hints::{About, ErasedHints, Hint},
    resolver::Resolver,
    settings::Settings,
    single_flight::{Flights, Missed, Waiter},
    state::repairs::Repairs,
    state::{following::Following, statement::no_answer},
    store::{ErasedStore, UsedByLayer},
    tasks::Tasks,
    workspace::{Choice, WorkspaceState, Workspaces},
};
use futures_util::FutureExt;
use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};
use tokio::time::{Duration, Instant, timeout};
use tokio_util::sync::CancellationToken;

/// What became of reading or creating a row.
type LoadResult = Result<Option<Arc<CachedRow>>, SharedError>;

/// What a validation found.
#[derive(Clone, Debug)]
pub(crate) struct Validated {
    /// By what is known of which it was judged: of one workspace there are two if it was reset
    /// meanwhile.
    workspace_state: Option<Arc<WorkspaceState>>,
    pub(crate) answer: Answer,
    pub(crate) cause: Option<SharedError>,
    pub(crate) began: Instant,
    /// When to ask again if the dial still hangs.
    pub(crate) again: Instant,
}

impl Validated {
    /// The task that asked has ended without an answer.
    pub(crate) fn crashed(now: Instant, again_in: Duration) -> Self {
        let cause = Some(Cause::TaskEnded.shared());
        Self {
            workspace_state: None,
            answer: Answer::Unknown,
            cause,
            began: now,
            again: now + again_in,
        }
    }

    /// Whether something has become known since the question began, so that it is to be asked
    /// again.
    pub(crate) fn is_overtaken(&self, workspace_state: &Arc<WorkspaceState>) -> bool {
        let reset = self
            .workspace_state
            .as_ref()
            .is_some_and(|judged| !Arc::ptr_eq(judged, workspace_state));
        reset || self.answer == Answer::Overtaken
    }
}

/// What a call goes by: a row, and what it says to dial.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) entry: Arc<CachedRow>,
    pub(crate) choice: Choice,
    /// The version of the workspace state that this was chosen from.
    pub(crate) version: u32,
    /// The session has no row, and the caller named the workspace: the row is created before a
    /// connection is returned.
    pub(crate) absent: bool,
}

impl Start {
    /// Whether nothing has become known since.
    pub(crate) fn is_still(&self) -> bool {
        let Self { entry, choice, version, .. } = self;
        entry.is_current() && entry.workspace_state.version() == *version && !choice.is_reset()
    }
}

/// What is known of a session whose request may use a connection that is there.
#[cfg(feature = "http")]
pub(crate) enum Known {
    Start(Start),
    /// Its row must be looked up first.
    Cold,
    /// Only a dial will do.
    Dial,
}

/// What a second look at the registers says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing has changed.
    Still,
    /// The workspace is the same; the choice was made anew.
    Anew,
    /// The row must be looked up again.
    Moved,
}

pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) store: Arc<dyn ErasedStore>,
    /// The row check was asked for, whoever else writes the store.
    pub(crate) checks_in_any_case: bool,
    pub(crate) _used: UsedByLayer,
    pub(crate) resolver: Resolver,
    pub(crate) rows: RowCache,
    pub(crate) usage: Usage,
    pub(crate) workspaces: Workspaces,
    pub(crate) loads: Flights<SessionId, LoadResult>,
    pub(crate) absent: Absent,
    pub(crate) validations: Flights<WorkspaceId, Validated>,
    pub(crate) repairs: Repairs,
    /// The connections that all statements share that no call waits for.
    pub(crate) background: Arc<Gate>,
    /// Of each kind of statement one is sent at a time.
    pub(crate) one_of_a_kind: Gates<Kind>,
    /// The statements whose answer is overdue.
    pub(crate) overdue: AtomicUsize,
    pub(crate) tasks: Tasks,
    pub(crate) closed: AtomicBool,
    pub(crate) observer: Option<Box<dyn Observer>>,
    pub(crate) hints: Option<Box<dyn ErasedHints>>,
    /// By which this layer knows its own hints.
    pub(crate) origin: u64,
    /// There is a task that follows what other processes write.
    pub(crate) following: Following,
    /// The layer was closed, or nobody holds it any more.
    pub(crate) ended: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Shared {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        #[cfg(feature = "tracing")]
        crate::observer::trace(event);
        if let Some(observer) = &self.observer {
            observer.observe(event);
        }
    }

    /// Whether cached rows are read again from time to time.
    pub(crate) fn checks_rows(&self) -> bool {
        self.settings.refresh_interval.is_some() && (self.checks_in_any_case || self.store.shared())
    }

    /// Tells the other processes what was written here.
    pub(crate) fn tell(&self, about: About) {
        if let Some(hints) = &self.hints {
            hints.send(Hint::new(self.origin, about));
        }
    }

    /// The order to reset a workspace was given, here or elsewhere. `None`: it may have been.
    pub(crate) fn reset(&self, workspace: WorkspaceId, epoch: Option<Epoch>) {
        // Tickets first: a row that was read before the order must not come back.
        self.rows.void_tokens();
        self.workspaces.reset(workspace, epoch);
    }

    /// A row that was read or written by somebody who took the ticket before that. It may know of a
    /// later build, or of a later epoch.
    pub(crate) fn entry(&self, row: Binding, stored: bool, token: &ReadToken) -> Arc<CachedRow> {
        let workspace_state = self.workspaces.state(row.workspace, row.epoch);
        // Read before others have read of a later epoch: as the store says, its target does not
        // count.
        let mut row = row.in_epoch(workspace_state.epoch());
        if let Some(target) = &mut row.target {
            *target = workspace_state.learn_row(target, token.at);
        }
        CachedRow::new(row, workspace_state, stored, token.at)
    }

    /// A row that was read or written by somebody who took the ticket before that.
    pub(crate) fn learn(&self, row: Binding, token: ReadToken) -> Arc<CachedRow> {
        self.absent.hear(row.session);
        let entry = self.rows.learn(self.entry(row, true, &token), &token);
        self.usage.adopt(&entry);
        entry
    }

    /// A group repair that has landed at that moment has written the row, if it still was as in
    /// this entry.
    pub(crate) fn repaired(&self, entry: &Arc<CachedRow>, target: &Arc<Target>, landed: Tick) {
        if let Some(repaired) = self.rows.repaired(entry, target, landed) {
            self.usage.adopt(&repaired);
        }
    }

    /// A row as a write of this process has left it.
    pub(crate) fn learn_written(&self, row: Binding, token: ReadToken) -> Arc<CachedRow> {
        self.learn(row, self.rows.written(token))
    }

    /// Chooses what a session with this row is to dial. Returns the version of the workspace state
    /// that this was chosen from, too. On the hot path: two atomic loads.
    pub(crate) fn choose(&self, entry: &CachedRow) -> (Choice, u32) {
        let version = entry.workspace_state.version();
        if entry.is_settled_in(version)
            && let Some(target) = &entry.row.target
        {
            return (Choice::Settled(Arc::clone(target)), version);
        }
        let (choice, version) =
            entry.workspace_state.choose(&entry.row, entry.read(), Instant::now());
        if choice.is_settled() {
            entry.set_settled_in(version);
        }
        (choice, version)
    }

    /// What a call with this row goes by.
    pub(crate) fn start(&self, entry: Arc<CachedRow>, absent: bool) -> Start {
        let (choice, version) = self.choose(&entry);
        Start { entry, choice, version, absent }
    }

    /// What is cached for the session, if it can be used without asking anybody.
    pub(crate) fn cached(
        &self,
        session: SessionId,
        workspace: Option<WorkspaceId>,
    ) -> Option<Start> {
        let entry = self.rows.get(session)?;
        if workspace.is_some_and(|asked| asked != entry.workspace()) {
            return None;
        }
        Some(self.start(entry, false)).filter(|start| !start.choice.is_reset())
    }

    /// What the session's next call would dial at once, in doubt or not, if a connection that is
    /// there is as good as a dial.
    #[cfg(feature = "http")]
    pub(crate) fn known(&self, session: SessionId, workspace: Option<WorkspaceId>) -> Known {
        if self.is_closed() {
            return Known::Dial;
        }
        match self.cached(session, workspace) {
            Some(start) if self.is_served(&start) => Known::Start(start),
            Some(_) => Known::Dial,
            None => Known::Cold,
        }
    }

    /// Whether a connection that is there is as good as a dial: not so if there is nothing to dial
    /// yet, or if a call may end only after its repair.
    #[cfg(feature = "http")]
    pub(crate) fn is_served(&self, start: &Start) -> bool {
        let in_background = self.settings.repair == crate::RepairMode::Background;
        let Some(target) = start.choice.target() else { return false };
        !start.absent
            && (in_background || start.entry.row.target.as_ref().is_some_and(|row| row.is(target)))
    }

    /// What the session would dial now, as far as it is cached.
    #[cfg(feature = "http")]
    pub(crate) fn target_of(&self, session: SessionId) -> Option<Arc<Target>> {
        self.cached(session, None)?.choice.target().cloned()
    }

    /// The one look: whether what a call goes by is still what this process knows.
    pub(crate) fn standing(&self, start: &mut Start) -> Standing {
        if start.is_still() {
            return Standing::Still;
        }
        let state = start.entry.state();
        if state != State::Current {
            match (state, self.rows.get(start.entry.row.session)) {
                (_, Some(entry)) if !entry.points_where(&start.entry) => {
                    return Standing::Moved;
                }
                // What could not be kept may be later than what is.
                (State::Evicted, Some(entry)) if entry.row.revision < start.entry.row.revision => {}
                (_, Some(entry)) => {
                    // It exists, so there is none to create.
                    start.absent = false;
                    start.entry = entry;
                }
                // The read that found no row again has said so to everybody; nothing else has been
                // heard since.
                (State::Evicted, None) if start.absent && self.is_still_absent(&start.entry) => {}
                // Read before a command of which the register shows nothing: what was read may be
                // what it has ended.
                (state, None) if state == State::Removed || start.entry.is_commanded() => {
                    return Standing::Moved;
                }
                // The cache did not keep the row, which is no news.
                (_, None) => {}
            }
        }
        (start.choice, start.version) = self.choose(&start.entry);
        if start.choice.is_reset() { Standing::Moved } else { Standing::Anew }
    }

    fn is_still_absent(&self, entry: &CachedRow) -> bool {
        let session = entry.row.session;
        // Taken before the look, so that what is heard after that shows.
        let token = self.rows.read_token(session);
        let absent = self.absent.contains(session, Instant::now());
        if absent {
            entry.read_at(&token);
        }
        absent
    }

    /// Whether the session of this row would dial something else than this by now. `None` if only
    /// its row can tell.
    pub(crate) fn names_another(&self, entry: &Arc<CachedRow>, target: &Target) -> Option<bool> {
        let session = entry.row.session;
        let current = match self.rows.get(session) {
            Some(current) if !current.points_where(entry) => return Some(true),
            Some(current) => current,
            None if entry.state() == State::Removed => return Some(true),
            None if entry.is_commanded() => return self.rows.must_read(session).then_some(true),
            None => Arc::clone(entry),
        };
        let (choice, _) = self.choose(&current);
        let is_another = choice.target().is_some_and(|chosen| !chosen.same_place(target));
        Some(is_another || choice.is_reset())
    }

    /// Whether what is known by now forbids to return a connection to this: the session was pointed
    /// elsewhere or forgotten, or its workspace has a later agent.
    pub(crate) fn has_left(&self, entry: &CachedRow, target: &Target) -> bool {
        let moved = match self.rows.get(entry.row.session) {
            Some(current) => !current.points_where(entry),
            None => entry.state() == State::Removed || entry.is_commanded(),
        };
        moved || entry.workspace_state.supersedes(target)
    }

    /// Finds the row of a session that is not cached. If there is none and the caller names a
    /// workspace, the call goes by an unbound row that does not exist yet: the resolver says first
    /// whether there is such a workspace, so that strangers create nothing.
    pub(crate) async fn look_up(
        self: &Arc<Self>,
        session: SessionId,
        workspace: Option<WorkspaceId>,
    ) -> Result<Start, Error> {
        let now = Instant::now();
        let looked = match self.rows.get(session) {
            // A cached row that cannot be used: it names another workspace than the caller, or all
            // rows of its workspace were dropped by order. What was read before now is no better.
            Some(entry) => {
                let start = self.start(entry, false);
                if start.choice.is_reset() {
                    self.rows.remove(session);
                } else if workspace.is_none_or(|asked| asked == start.entry.workspace()) {
                    return Ok(start);
                }
                self.read_since(session, now).await
            }
            None if self.rows.must_read(session) => self.read_since(session, now).await,
            None if self.absent.contains(session, now) => Ok(None),
            None => self.read(session).await,
        };
        let entry = match (looked, workspace) {
            (Ok(Some(entry)), Some(asked)) if entry.workspace() != asked => {
                let bound = entry.workspace();
                return Err(Error::new(ErrorKind::WorkspaceMismatch { bound, asked }).of(session));
            }
            (Ok(Some(entry)), _) => entry,
            (Ok(None), Some(workspace)) => return Ok(self.without_row(session, workspace, true)),
            (Ok(None), None) => return Err(Error::new(ErrorKind::NotBound).of(session)),
            (Err(_), Some(workspace)) if self.settings.serve_without_store => {
                return Ok(self.without_row(session, workspace, false));
            }
            (Err(cause), _) => {
                return Err(Error::new(ErrorKind::Store).of(session).with_store(Some(cause)));
            }
        };
        Ok(self.start(entry, false))
    }

    /// What a call goes by that has a workspace and no row.
    fn without_row(&self, session: SessionId, workspace: WorkspaceId, absent: bool) -> Start {
        let token = self.rows.read_token(session);
        let row = Binding::new(session, workspace, None, crate::Revision::new(0));
        let entry = self.entry(row, false, &token);
        entry.stray(&token);
        self.start(entry, absent)
    }

    /// Reads the row; joins a read that is under way.
    pub(crate) async fn read(self: &Arc<Self>, session: SessionId) -> LoadResult {
        let looked = self.answered(&self.loads, None, session, || self.load(session)).await;
        match &looked {
            // A command has come since that read began, perhaps before this caller: then a deleted
            // row is no answer.
            Ok(Some(entry)) if entry.state() == State::Removed || entry.is_commanded() => {
                self.read_since(session, Instant::now()).await
            }
            _ => looked,
        }
    }

    /// Reads the row in a read that began then or later.
    pub(crate) async fn read_since(
        self: &Arc<Self>,
        session: SessionId,
        since: Instant,
    ) -> LoadResult {
        self.answered(&self.loads, Some(since), session, || self.load(session)).await
    }

    /// Waits a store timeout for what all who look for the session's row share.
    async fn answered<F>(
        &self,
        flights: &Flights<SessionId, LoadResult>,
        since: Option<Instant>,
        session: SessionId,
        work: impl Fn() -> F,
    ) -> LoadResult
    where
        F: Future<Output = LoadResult> + Send + 'static,
    {
        let within = self.settings.store_timeout;
        match flights.answer(since, Some(within), session, &self.tasks, work).await {
            Ok(looked) => looked,
            Err(Missed::Late) => Err(Arc::new(no_answer(within))),
            Err(Missed::Ended | Missed::Stopped) => Err(Cause::TaskEnded.shared()),
        }
    }

    fn load(
        self: &Arc<Self>,
        session: SessionId,
    ) -> impl Future<Output = LoadResult> + Send + 'static {
        let shared = Arc::clone(self);
        async move {
            let (token, before) =
                (shared.rows.read_token(session), shared.absent.before_read(session));
            let row = shared.answer(shared.store.load(session)).await;
            match row.map_err(|error| Arc::new(error) as SharedError)? {
                Some(row) => Ok(Some(shared.learn(row, token))),
                None => {
                    // What is cached was deleted by somebody else.
                    shared.rows.not_found(session, &token);
                    shared.absent.note(session, before);
                    Ok(None)
                }
            }
        }
    }

    /// Joins the validation of a workspace, or starts it. It goes on whoever stops waiting for it.
    pub(crate) fn validate(
        self: &Arc<Self>,
        workspace_state: &Arc<WorkspaceState>,
    ) -> Waiter<Validated> {
        self.validations.join(workspace_state.workspace(), &self.tasks, || {
            let (shared, workspace_state) = (Arc::clone(self), Arc::clone(workspace_state));
            async move { shared.ask(workspace_state).await }
        })
    }

    /// The answer of a validation that began then or later. `None` if its task has ended without
    /// one.
    pub(crate) async fn validate_since(
        self: &Arc<Self>,
        workspace_state: &Arc<WorkspaceState>,
        since: Instant,
    ) -> Option<Validated> {
        self.answer_of_resolver(workspace_state, Some(since)).await
    }

    /// The answer of the validation of a workspace. `None` if it crashed, or if the layer was
    /// closed.
    pub(crate) async fn validated(
        self: &Arc<Self>,
        workspace_state: &Arc<WorkspaceState>,
    ) -> Option<Validated> {
        self.answer_of_resolver(workspace_state, None).await
    }

    async fn answer_of_resolver(
        self: &Arc<Self>,
        workspace_state: &Arc<WorkspaceState>,
        since: Option<Instant>,
    ) -> Option<Validated> {
        let ask = || {
            let (shared, workspace_state) = (Arc::clone(self), Arc::clone(workspace_state));
            async move { shared.ask(workspace_state).await }
        };
        self.validations
            .answer(since, None, workspace_state.workspace(), &self.tasks, ask)
            .await
            .ok()
    }

    async fn ask(&self, workspace_state: Arc<WorkspaceState>) -> Validated {
        let began = Instant::now();
        let ask = ResolveWorkspace {
            workspace: workspace_state.workspace(),
            newer_than: workspace_state.newest_generation(),
        };
        let within = self.settings.resolve_timeout;
        // The resolver is called inside, so that a panic of its `clone` or `call` is caught as
        // well.
        let resolving =
            AssertUnwindSafe(async { timeout(within, self.resolver.resolve(ask)).await });
        let resolved: Result<Resolution, SharedError> = match resolving.catch_unwind().await {
            Ok(Ok(Ok(resolution))) => Ok(resolution),
            Ok(Ok(Err(error))) => Err(error.into()),
            Ok(Err(_)) => Err(Cause::NoAnswer(within).shared()),
            Err(_) => Err(Cause::ResolverPanicked.shared()),
        };
        let now = Instant::now();
        self.emit(&Event::Validated {
            workspace: workspace_state.workspace(),
            took: now - began,
            answer: resolved.as_ref().map_err(|cause| &**cause),
        });
        let (said, cause) = match resolved {
            Ok(resolution) => (Answer::from(resolution), None),
            Err(cause) => (Answer::Unknown, Some(cause)),
        };
        let (answer, again) = workspace_state.learn_answer(said.clone(), began, now);
        if let Answer::Denied(_) = answer {
            self.workspaces.remember_denial(Arc::clone(&workspace_state));
        }
        let cause = if answer == said { cause } else { Some(Cause::OldAnswer.shared()) };
        Validated { workspace_state: Some(workspace_state), answer, cause, began, again }
    }
}
