//! The state that all services of a layer share, and the questions that they ask of it.

pub(crate) mod following;
pub(crate) mod repairs;
pub(crate) mod standing;
pub(crate) mod statement;

use crate::{
    Binding, Epoch, Error, ErrorKind, Event, Observer, RefreshInterval, Resolution,
    ResolveWorkspace, SessionId, Target, WorkspaceId,
    answer::Answer,
    cache::{CachedRow, ReadToken, RowCache, State, usage::Usage},
    clock::Tick,
    error::{Cause, SharedError},
    gate::{Gate, Gates, Kind},
    hints::{About, ErasedHints, Hint},
    resolver::Resolver,
    settings::Settings,
    single_flight::{Flights, Missed, Waiter},
    spans,
    state::repairs::Repairs,
    state::{following::Following, standing::Standing, statement::no_answer},
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

/// The row of a session; `None` if there is none.
pub(crate) type LoadResult = Result<Option<Arc<CachedRow>>, SharedError>;

/// The effect of a read.
#[derive(Clone, Debug)]
pub(crate) enum Loaded {
    Row(Arc<CachedRow>),
    /// There is no row.
    Nothing,
    /// There was no row, and one was seen since the read began.
    NothingYet,
}

impl Loaded {
    fn row(self) -> Option<Arc<CachedRow>> {
        match self {
            Self::Row(entry) => Some(entry),
            Self::Nothing | Self::NothingYet => None,
        }
    }
}

/// The result of a validation.
#[derive(Clone, Debug)]
pub(crate) struct Validated {
    /// The workspace state that has judged the answer: a workspace that was reset in the meantime
    /// has another one.
    workspace_state: Option<Arc<WorkspaceState>>,
    pub(crate) answer: Answer,
    pub(crate) cause: Option<SharedError>,
    pub(crate) began: Instant,
    /// When to ask again if the dial still hangs.
    pub(crate) again: Instant,
}

impl Validated {
    /// Returns the workspace's last answer, if its question began after `since` and nothing is in
    /// doubt since. Of one instant, the doubt may be the later one. A denial ends no doubt, so it
    /// may be older than the call.
    fn landed(workspace_state: &Arc<WorkspaceState>, since: Instant) -> Option<Self> {
        let verdict = workspace_state.verdict().filter(|verdict| {
            verdict.began > since && matches!(verdict.answer, Answer::Running(_))
        })?;
        let now = Instant::now();
        Some(Self {
            workspace_state: Some(Arc::clone(workspace_state)),
            answer: verdict.answer,
            cause: None,
            began: verdict.began,
            again: workspace_state.paused_until(now).unwrap_or(now),
        })
    }

    /// Stands for the answer of a task that has ended without one.
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

    /// Returns whether something has become known since the question began that makes the answer
    /// worthless, so that the question is to be asked again.
    pub(crate) fn is_overtaken(&self, workspace_state: &Arc<WorkspaceState>) -> bool {
        let reset = self
            .workspace_state
            .as_ref()
            .is_some_and(|judged| !Arc::ptr_eq(judged, workspace_state));
        reset || self.answer == Answer::Overtaken
    }
}

/// The starting point of a call: a row, and the target to dial.
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

/// The state of a session whose request may use an existing connection.
#[cfg(feature = "http")]
pub(crate) enum Known {
    Start(Start),
    /// Its row must be looked up first.
    Cold,
    /// Only a dial will do.
    Dial,
}

pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) store: Arc<dyn ErasedStore>,
    pub(crate) _used: UsedByLayer,
    pub(crate) resolver: Resolver,
    pub(crate) rows: RowCache,
    pub(crate) usage: Usage,
    pub(crate) workspaces: Workspaces,
    pub(crate) loads: Flights<SessionId, Result<Loaded, SharedError>>,
    pub(crate) validations: Flights<WorkspaceId, Validated>,
    pub(crate) repairs: Repairs,
    /// The connections for statements that no call waits for.
    pub(crate) background: Arc<Gate>,
    /// One statement of each kind is sent at a time.
    pub(crate) one_of_a_kind: Gates<Kind>,
    /// How many statements have an overdue answer.
    pub(crate) overdue: AtomicUsize,
    pub(crate) tasks: Tasks,
    pub(crate) closed: AtomicBool,
    pub(crate) observer: Option<Box<dyn Observer>>,
    #[cfg(feature = "tracing")]
    pub(crate) log: crate::log::Log,
    #[cfg(feature = "metrics")]
    pub(crate) metrics: crate::metrics::Metrics,
    pub(crate) hints: Option<Box<dyn ErasedHints>>,
    /// Tells this layer its own hints from others.
    pub(crate) origin: u64,
    /// The task that follows what other processes write.
    pub(crate) following: Following,
    /// Cancelled when the layer is closed or dropped.
    pub(crate) ended: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Shared {
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Returns whether anybody may be interested in events.
    #[inline]
    pub(crate) fn is_observed(&self) -> bool {
        #[cfg(feature = "tracing")]
        if crate::log::is_on() {
            return true;
        }
        cfg!(feature = "metrics") || self.observer.is_some()
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        #[cfg(feature = "tracing")]
        self.log.write(event, self.settings.validation_delay);
        #[cfg(feature = "metrics")]
        self.metrics.record(event);
        if let Some(observer) = &self.observer {
            observer.observe(event);
        }
    }

    /// Returns whether cached rows are read again from time to time.
    #[inline]
    pub(crate) fn checks_rows(&self) -> bool {
        match self.settings.refresh_interval {
            RefreshInterval::Automatic => self.store.shared(),
            RefreshInterval::Every(_) => true,
            RefreshInterval::Never => false,
        }
    }

    /// Sends the other processes a hint about what was written here.
    pub(crate) fn tell(&self, about: About) {
        if let Some(hints) = &self.hints {
            #[cfg(feature = "metrics")]
            self.metrics.hint_sent(about.as_str());
            hints.send(Hint::new(self.origin, about));
        }
    }

    /// Applies the command to reset a workspace, given here or in another process. `None`: it may
    /// have been given.
    pub(crate) fn reset(&self, workspace: WorkspaceId, epoch: Option<Epoch>) {
        // The tokens first: a row that was read before the command must not come back.
        self.rows.invalidate_tokens();
        self.workspaces.reset(workspace, epoch);
    }

    /// Returns the entry of a row that was read or written after the token was taken. The workspace
    /// learns from the row, which may know of a later build or a later epoch.
    pub(crate) fn entry(&self, row: Binding, stored: bool, token: &ReadToken) -> Arc<CachedRow> {
        let workspace_state = self.workspaces.state(row.workspace, row.epoch);
        // The workspace may be in a later epoch already: then the row's target does not count.
        let mut row = row.in_epoch(workspace_state.epoch());
        if let Some(target) = &mut row.target {
            *target = workspace_state.learn_row(target, token.at);
        }
        CachedRow::new(row, workspace_state, stored, token.at)
    }

    /// Learns a row that was read or written after the token was taken. Returns the row to go by,
    /// which is another one if the cache holds a later row.
    pub(crate) fn learn(&self, row: Binding, token: ReadToken) -> Arc<CachedRow> {
        let entry = self.rows.learn(self.entry(row, true, &token), &token);
        self.usage.adopt(&entry);
        entry
    }

    /// Learns that a group repair, which landed at that tick, has written the row, if the row still
    /// was as in this entry.
    pub(crate) fn repaired(&self, entry: &Arc<CachedRow>, target: &Arc<Target>, landed: Tick) {
        if let Some(repaired) = self.rows.learn_group_repair(entry, target, landed) {
            self.usage.adopt(&repaired);
        }
    }

    /// Learns a row as a write of this process has left it.
    pub(crate) fn learn_written(&self, row: Binding, token: ReadToken) -> Arc<CachedRow> {
        self.learn(row, self.rows.written(token))
    }

    /// Chooses what a session with this row is to dial. Returns the version of the workspace state
    /// that this was chosen from, too. On the hot path: two atomic loads.
    #[inline]
    pub(crate) fn choose(&self, entry: &CachedRow) -> (Choice, u32) {
        let version = entry.workspace_state.version();
        if entry.is_settled_in(version)
            && let Some(target) = &entry.row.target
        {
            return (Choice::Settled(Arc::clone(target)), version);
        }
        self.choose_anew(entry)
    }

    fn choose_anew(&self, entry: &CachedRow) -> (Choice, u32) {
        let (choice, version) =
            entry.workspace_state.choose(&entry.row, entry.read(), Instant::now());
        if choice.is_settled() {
            entry.set_settled_in(version);
        }
        (choice, version)
    }

    /// Returns what a call with this row goes by.
    #[inline]
    pub(crate) fn start(&self, entry: Arc<CachedRow>, absent: bool) -> Start {
        let (choice, version) = self.choose(&entry);
        Start { entry, choice, version, absent }
    }

    /// Returns what is cached for the session, if that can be used without a read or a question.
    #[inline]
    pub(crate) fn cached(
        &self,
        session: SessionId,
        workspace: Option<WorkspaceId>,
    ) -> Option<Start> {
        let entry = self.rows.get(session)?;
        if workspace.is_some_and(|asked| asked != entry.workspace()) {
            return None;
        }
        let start = self.start(entry, false);
        if start.choice.is_reset() { None } else { Some(start) }
    }

    /// Returns what the session's next call would dial at once, in doubt or not, if an existing
    /// connection can take the place of that dial.
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

    /// Returns whether an existing connection can take the place of a dial: not if there is nothing
    /// to dial yet, and not if a call may end only after its repair.
    #[cfg(feature = "http")]
    pub(crate) fn is_served(&self, start: &Start) -> bool {
        let in_background = self.settings.repair == crate::RepairMode::Background;
        let Some(target) = start.choice.target() else { return false };
        !start.absent
            && (in_background || start.entry.row.target.as_ref().is_some_and(|row| row.is(target)))
    }

    /// Returns what the session would dial now, as far as that is cached.
    #[cfg(feature = "http")]
    pub(crate) fn target_of(&self, session: SessionId) -> Option<Arc<Target>> {
        self.cached(session, None)?.choice.target().cloned()
    }

    /// Returns whether nothing has become known since what to dial was chosen from this version.
    #[inline]
    pub(crate) fn is_unchanged(&self, entry: &Arc<CachedRow>, chosen_in: u32) -> bool {
        matches!(self.standing(entry, Some(chosen_in)), Standing::Unchanged)
    }

    /// Returns whether the session of a row that does not exist is known to have none still.
    pub(crate) fn is_still_absent(&self, entry: &CachedRow) -> bool {
        let session = entry.row.session;
        // Taken before the comparison, so that what is heard after it is noticed.
        let token = self.rows.read_token(session);
        let absent = self.rows.is_absent(session, Instant::now());
        if absent {
            entry.read_again(&token);
        }
        absent
    }

    /// Finds the row of a session that is not cached. If there is none and the caller names a
    /// workspace, the call goes by an unbound row that does not exist yet. The resolver has to say
    /// first that the workspace exists, so that an unknown id creates no row.
    pub(crate) async fn look_up(
        self: &Arc<Self>,
        session: SessionId,
        workspace: Option<WorkspaceId>,
    ) -> Result<Start, Error> {
        let now = Instant::now();
        let looked = match self.rows.get(session) {
            // A cached row that cannot be used: it names another workspace than the caller, or its
            // workspace was reset. A read that began before now is no better.
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
            None if self.rows.is_absent(session, now) => Ok(None),
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

    /// Returns what a call goes by that has a workspace and no row.
    fn without_row(&self, session: SessionId, workspace: WorkspaceId, absent: bool) -> Start {
        let token = self.rows.read_token(session);
        let row = Binding::new(session, workspace, None, crate::Revision::new(0));
        let entry = self.entry(row, false, &token);
        entry.leave_uncached(&token);
        self.start(entry, absent)
    }

    /// Reads the row, or joins a read that is under way.
    pub(crate) async fn read(self: &Arc<Self>, session: SessionId) -> LoadResult {
        self.read_anew(session, None).await
    }

    /// Reads the row, in a read that began at `since` or later.
    pub(crate) async fn read_since(
        self: &Arc<Self>,
        session: SessionId,
        since: Instant,
    ) -> LoadResult {
        self.read_anew(session, Some(since)).await
    }

    async fn read_anew(self: &Arc<Self>, session: SessionId, since: Option<Instant>) -> LoadResult {
        let loaded = self.loaded(session, since).await?;
        // Something has come since that read began, perhaps before this call: then what was there
        // before is no answer.
        let is_outdated = match &loaded {
            Loaded::Row(entry) => entry.state() == State::Removed || entry.may_be_commanded(),
            Loaded::Nothing => false,
            Loaded::NothingYet => true,
        };
        if is_outdated {
            return Ok(self.loaded(session, Some(Instant::now())).await?.row());
        }
        Ok(loaded.row())
    }

    /// Waits a store timeout for the read that all callers share that look for the session's row.
    async fn loaded(
        self: &Arc<Self>,
        session: SessionId,
        since: Option<Instant>,
    ) -> Result<Loaded, SharedError> {
        let within = self.settings.store_timeout;
        // Another thread's read may have landed since the caller looked.
        let landed = || match since {
            None => self.rows.get(session).map(|entry| Ok(Loaded::Row(entry))),
            Some(_) => None,
        };
        let load = || self.load(session);
        let answer = self.loads.answer(since, Some(within), session, &self.tasks, landed, load);
        match spans::store("load", answer).await {
            Ok(looked) => looked,
            Err(Missed::Late) => Err(Arc::new(no_answer(within))),
            Err(Missed::Ended | Missed::Stopped) => Err(Cause::TaskEnded.shared()),
        }
    }

    fn load(
        self: &Arc<Self>,
        session: SessionId,
    ) -> impl Future<Output = Result<Loaded, SharedError>> + Send + 'static {
        let shared = Arc::clone(self);
        async move {
            let token = shared.rows.read_token(session);
            let row =
                shared.answer("load", shared.store.load(session)).await.inspect_err(|error| {
                    shared.emit(&Event::LookUpFailed { session, error });
                });
            match row.map_err(|error| Arc::new(error) as SharedError)? {
                Some(row) => Ok(Loaded::Row(shared.learn(row, token))),
                None => {
                    let may_exist = token.may_have_row();
                    // The row that is cached was removed by another process.
                    shared.rows.not_found(session, &token);
                    shared.rows.note_absent(session, &token);
                    Ok(if may_exist { Loaded::NothingYet } else { Loaded::Nothing })
                }
            }
        }
    }

    /// Joins the validation of a workspace, or starts it. The validation goes on when its callers
    /// are dropped.
    ///
    /// An answer that has landed is taken as well, if its question began after `since`, which is
    /// when the doubt was raised: another thread may have asked about the same doubt, and have its
    /// answer, since the caller looked.
    pub(crate) fn validate(
        self: &Arc<Self>,
        workspace_state: &Arc<WorkspaceState>,
        since: Instant,
    ) -> Waiter<Validated> {
        self.validations.join(
            workspace_state.workspace(),
            &self.tasks,
            || Validated::landed(workspace_state, since),
            || Arc::clone(self).ask(Arc::clone(workspace_state)),
        )
    }

    /// Returns the answer of a validation that began at `since` or later; `None` if its task has
    /// ended without one.
    pub(crate) async fn validate_since(
        self: &Arc<Self>,
        workspace_state: &Arc<WorkspaceState>,
        since: Instant,
    ) -> Option<Validated> {
        self.answer_of_resolver(workspace_state, Some(since), since).await
    }

    /// Returns the answer that [`validate`](Self::validate) leads to; `None` if the validation has
    /// crashed or the layer was closed.
    pub(crate) async fn validated(
        self: &Arc<Self>,
        workspace_state: &Arc<WorkspaceState>,
        since: Instant,
    ) -> Option<Validated> {
        self.answer_of_resolver(workspace_state, None, since).await
    }

    async fn answer_of_resolver(
        self: &Arc<Self>,
        workspace_state: &Arc<WorkspaceState>,
        begun_since: Option<Instant>,
        landed_since: Instant,
    ) -> Option<Validated> {
        self.validations
            .answer(
                begun_since,
                None,
                workspace_state.workspace(),
                &self.tasks,
                || Validated::landed(workspace_state, landed_since),
                || Arc::clone(self).ask(Arc::clone(workspace_state)),
            )
            .await
            .ok()
    }

    async fn ask(self: Arc<Self>, workspace_state: Arc<WorkspaceState>) -> Validated {
        let began = Instant::now();
        let ask = ResolveWorkspace {
            workspace: workspace_state.workspace(),
            newer_than: workspace_state.newest_generation(),
        };
        let within = self.settings.resolve_timeout;
        // Called inside, so that a panic of the resolver's `clone` or `call` is caught as well.
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
