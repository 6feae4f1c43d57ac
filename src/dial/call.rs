//! A call that is in question: look up, race, settle, restart.

use crate::{
    BoundHandle, DialSession, Error, ErrorKind, Event, LastVerdict, Outcome, OutcomeKind,
    SessionId, Target, WorkspaceId,
    cache::CachedRow,
    dial::{
        dialer::{AnyDialer, FirstPoll, Status},
        future::Spent,
        race::{Race, Raced, Times, Won},
        timer::Timer,
    },
    error::SharedError,
    settings::RepairMode,
    spans,
    state::{
        Shared, Start,
        repairs::{Job, Repairs},
    },
    workspace::Choice,
};
use futures_util::future::BoxFuture;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::{Duration, Instant, error::Elapsed, timeout_at};

/// A call whose dial was not simply answered. It has no part of the dial service in it, and sees
/// the dialer for the time of a poll.
pub(crate) struct Call {
    shared: Arc<Shared>,
    session: SessionId,
    /// The workspace that the caller has named.
    workspace: Option<WorkspaceId>,
    /// The workspace that the session's row names, once there was a race.
    workspace_of_row: Option<WorkspaceId>,
    began: Instant,
    now: Instant,
    deadline: Instant,
    /// How far the dial was before there was a race.
    first: FirstPoll,
    /// The questions of all races count.
    validations: u8,
    /// The row of the last race, after which the call was restarted.
    left: Option<Arc<CachedRow>>,
    /// The targets at whose address another agent has answered.
    wrong: Vec<Arc<Target>>,
    moved: bool,
    /// When the call first had a reason to doubt the bound agent.
    doubted: Option<Instant>,
    phase: Phase,
}

#[expect(clippy::large_enum_variant, reason = "the call is in a box as a whole")]
enum Phase {
    /// With what is cached for the session, if that was looked at.
    Chooses(Option<Start>),
    LooksUp(BoxFuture<'static, Result<Start, Error>>),
    Races(Race),
    /// The connection is returned after its repair, which is under way.
    Repairs(Won, Start, Job, BoxFuture<'static, Attempted>),
}

/// How the repair's first attempt has ended, unless the deadline came first.
type Attempted = Result<Result<(), SharedError>, Elapsed>;

impl Call {
    /// Takes over a call that began at `began`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        ask: &DialSession,
        cached: Option<Start>,
        first: FirstPoll,
        began: Instant,
        now: Instant,
    ) -> Self {
        let deadline = began + shared.settings.dial_timeout;
        Self {
            shared,
            session: ask.session,
            workspace: ask.workspace,
            workspace_of_row: None,
            began,
            now,
            deadline,
            first,
            validations: 0,
            left: None,
            wrong: Vec::new(),
            moved: false,
            doubted: None,
            phase: Phase::Chooses(cached),
        }
    }

    /// Returns the handle of the connection, which the dialer has.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        dialer: &mut Pin<&mut dyn AnyDialer>,
        timer: &mut Pin<&mut Timer>,
    ) -> Poll<Result<BoundHandle, Error>> {
        let ended = ready!(self.advance(cx, dialer, timer));
        if let Err(error) = &ended {
            let took = self.began.elapsed();
            let workspace = self.workspace_of_row.or(self.workspace);
            tell_failed(&self.shared, self.session, workspace, error, took);
        }
        Poll::Ready(ended)
    }

    /// Returns what the call has spent by now.
    pub(crate) fn spent(&self, dialer: &Status) -> Spent {
        Spent {
            workspace: self.workspace_of_row.or(self.workspace),
            dials: dialer.started(),
            validations: self.validations,
            waited: self.began.elapsed(),
        }
    }

    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        dialer: &mut Pin<&mut dyn AnyDialer>,
        timer: &mut Pin<&mut Timer>,
    ) -> Poll<Result<BoundHandle, Error>> {
        loop {
            match &mut self.phase {
                Phase::Chooses(cached) => {
                    let cached = cached.take();
                    match cached.or_else(|| self.shared.cached(self.session, self.workspace)) {
                        Some(start) => {
                            // Dialed at once: this is what the caller has waited for readiness for.
                            if start.choice.target().is_none() {
                                dialer.as_mut().give_back();
                            }
                            self.race(start);
                        }
                        None => {
                            dialer.as_mut().give_back();
                            let shared = Arc::clone(&self.shared);
                            let (session, workspace) = (self.session, self.workspace);
                            let deadline = self.deadline;
                            self.phase = Phase::LooksUp(Box::pin(async move {
                                look_up(&shared, session, workspace, deadline).await
                            }));
                        }
                    }
                }
                Phase::LooksUp(looking) => {
                    let start = ready!(looking.as_mut().poll(cx))?;
                    self.now = Instant::now();
                    self.race(start);
                }
                Phase::Races(race) => {
                    let raced = ready!(race.poll(cx, dialer, timer));
                    if let Some(handle) = self.raced(raced, dialer)? {
                        return Poll::Ready(Ok(handle));
                    }
                }
                Phase::Repairs(.., attempted) => {
                    let attempted = ready!(attempted.as_mut().poll(cx));
                    if let Some(handle) = self.repaired(attempted, dialer)? {
                        return Poll::Ready(Ok(handle));
                    }
                }
            }
        }
    }

    /// Begins a race, unless the workspace was reset after the row was read.
    fn race(&mut self, mut start: Start) {
        self.phase = Phase::Chooses(None);
        if start.choice.is_reset() {
            self.left = Some(start.entry);
            return;
        }
        if let Some(left) = self.left.take() {
            self.moved |= has_moved(&left, &start.entry);
            // An earlier denial answers a call that begins, not one that has been restarted.
            if let Choice::AskFirst { denied, .. } = &mut start.choice {
                *denied = None;
            }
        }
        let first = std::mem::replace(&mut self.first, FirstPoll::NotBegun);
        let began = if let FirstPoll::NotBegun = first { self.now } else { self.began };
        let times = Times { began, now: self.now, deadline: self.deadline };
        self.workspace_of_row = Some(start.entry.workspace());
        let wrong = std::mem::take(&mut self.wrong);
        self.phase = Phase::Races(Race::new(&self.shared, start, first, times, wrong));
    }

    /// The session's row is to be looked up again.
    fn restart(&mut self, left: Arc<CachedRow>, validations: u8) {
        self.validations = self.validations.saturating_add(validations);
        self.left = Some(left);
        self.now = Instant::now();
    }

    fn raced(
        &mut self,
        raced: Result<Raced, Error>,
        dialer: &Pin<&mut dyn AnyDialer>,
    ) -> Result<Option<BoundHandle>, Error> {
        let phase = std::mem::replace(&mut self.phase, Phase::Chooses(None));
        let Phase::Races(mut race) = phase else { return Ok(None) };
        self.wrong = race.take_wrong();
        let validations = race.validations();
        self.doubted = self.doubted.or(race.doubted);
        let start = race.start;
        let mut won = match raced {
            Ok(Raced::Won(won)) => won,
            Err(error) => {
                self.validations = self.validations.saturating_add(validations);
                return Err(because(&self.shared, error, self.moved));
            }
            Ok(Raced::Moved) => {
                self.restart(start.entry, validations);
                return Ok(None);
            }
        };
        // While nothing says which of the row and the target is right, nothing is written. An
        // answer to a question that began at the instant of the doubt counts as the later one.
        let is_contradicted = start.choice.contradicts()
            && start.choice.target().is_some_and(|row| !row.same_endpoint(&won.target))
            && start.entry.workspace_state.named_at(&won.target) < start.choice.doubt();
        if !is_contradicted
            && let Some(job) = Repairs::begin(&self.shared, &start.entry, &won.target, start.absent)
        {
            won.outcome.repair = Some(job.status.clone());
            if start.absent || self.shared.settings.repair == RepairMode::BeforeReturn {
                // At the deadline there is a connection, so that is no failure.
                let deadline = self.deadline;
                let begun = job.clone();
                let verb = job.verb;
                let wait = async move { timeout_at(deadline, begun.attempted()).await };
                let attempted = Box::pin(spans::store(verb, wait));
                self.phase = Phase::Repairs(won, start, job, attempted);
                return Ok(None);
            }
        }
        Ok(Some(self.won(won, start, dialer)))
    }

    fn repaired(
        &mut self,
        attempted: Attempted,
        dialer: &mut Pin<&mut dyn AnyDialer>,
    ) -> Result<Option<BoundHandle>, Error> {
        let phase = std::mem::replace(&mut self.phase, Phase::Chooses(None));
        let Phase::Repairs(won, start, job, _) = phase else { return Ok(None) };
        // The row that the store answered with decides, since a hint may have emptied the slot in
        // the meantime. Without one there may be no row.
        let created = match start.absent {
            true => created(&self.shared, &start.entry, &job, attempted, won.last)?,
            false => None,
        };
        let is_elsewhere = start.absent
            && match &created {
                Some(row) => !row.points_where(&start.entry),
                None => !self.shared.settings.serve_without_store,
            };
        // The second look: the repair may have lost to something newer, or a command may have come.
        if is_elsewhere || self.shared.has_left(&start.entry, &won.target) {
            dialer.as_mut().stop();
            // A command has come before the creation, unless that was left to the newer target, or
            // may have removed the row since. Neither can be said of the row that did not exist.
            self.moved |= is_elsewhere && !start.entry.workspace_state.supersedes(&won.target);
            let created = created.filter(|row| row.points_where(&start.entry));
            self.restart(created.unwrap_or(start.entry), won.outcome.validations);
            return Ok(None);
        }
        Ok(Some(self.won(won, start, dialer)))
    }

    fn won(&mut self, won: Won, mut start: Start, dialer: &Pin<&mut dyn AnyDialer>) -> BoundHandle {
        if start.absent
            && let Some(entry) = self.shared.rows.get(self.session)
            && entry.points_where(&start.entry)
        {
            // The session has a row by now: its use is recorded.
            start.entry = entry;
        }
        let Won { target, dial_began, mut outcome, .. } = won;
        #[cfg(feature = "metrics")]
        if let (OutcomeKind::Switched { .. }, Some(doubted)) = (&outcome.kind, self.doubted) {
            self.shared.metrics.switched_after(doubted.elapsed());
        }
        outcome.dials = dialer.status().started();
        outcome.validations = outcome.validations.saturating_add(self.validations);
        outcome.decided_in = dial_began.saturating_duration_since(self.began);
        handed_out(Arc::clone(&self.shared), target, outcome, start.entry)
    }

    /// The call is dropped while its dial is pending.
    pub(crate) fn dropped(self) {
        if let Phase::Races(race) = self.phase {
            race.dropped();
        }
    }
}

/// Returns the row that the session has after the attempt to create one: the created row, or the
/// row that was there first. `None` if nothing was sent, since a command came that may have removed
/// the row, or if nothing could be written and calls are served without the store.
///
/// # Errors
///
/// The session has no row as far as this process knows.
fn created(
    shared: &Shared,
    entry: &CachedRow,
    job: &Job,
    attempted: Attempted,
    last: LastVerdict,
) -> Result<Option<Arc<CachedRow>>, Error> {
    let session = entry.row.session;
    let error = match attempted {
        Ok(Ok(())) => return Ok(job.row()),
        Ok(Err(cause)) => Error::new(ErrorKind::Store).with_store(Some(cause)),
        Err(_) => Error::new(ErrorKind::TimedOut { last }),
    };
    // A write into an existing row is a repair like any other.
    if let Some(row) = job.row().or_else(|| shared.rows.get(session)) {
        return Ok(Some(row));
    }
    if shared.settings.serve_without_store {
        return Ok(None);
    }
    Err(because(shared, error.of(session), false))
}

async fn look_up(
    shared: &Arc<Shared>,
    session: SessionId,
    workspace: Option<WorkspaceId>,
    deadline: Instant,
) -> Result<Start, Error> {
    let looked = timeout_at(deadline, shared.look_up(session, workspace)).await;
    let timed_out =
        |_| Err(Error::new(ErrorKind::TimedOut { last: LastVerdict::Unknown }).of(session));
    looked.unwrap_or_else(timed_out).map_err(|error| because(shared, error, false))
}

/// Returns `true` if the session was retargeted, its row removed or its workspace reset between
/// these two rows of one call. If not, the call was restarted because its workspace has another
/// agent.
///
/// This is no [`Standing`](crate::state::standing::Standing): it compares two rows, where a
/// standing compares one row with what is cached, and it still counts a command that has pointed
/// the session back to its workspace by now.
fn has_moved(left: &CachedRow, entry: &CachedRow) -> bool {
    // A workspace that was reset has another state, also if its epoch is not known.
    left.is_moved() || !Arc::ptr_eq(&left.workspace_state, &entry.workspace_state)
}

/// Tells the observer that a call ends with an error.
pub(crate) fn tell_failed(
    shared: &Shared,
    session: SessionId,
    workspace: Option<WorkspaceId>,
    error: &Error,
    took: Duration,
) {
    shared.emit(&Event::Failed { session, workspace, error, took });
}

/// Names an error after what else has happened.
fn because(shared: &Shared, error: Error, moved: bool) -> Error {
    match error.kind() {
        // An error after closing has begun is taken to come from closing.
        _ if shared.is_closed() => error.because(ErrorKind::Closed),
        ErrorKind::Unreachable { newer: Some(_) } if moved => error.because(ErrorKind::Retargeted),
        _ => error,
    }
}

/// Looks the row of a session up for a client, which may have a connection to its target already.
#[cfg(feature = "http")]
pub(crate) async fn look_up_first(shared: &Arc<Shared>, ask: &DialSession) -> Result<Start, Error> {
    crate::replicas::follow::ensure(shared);
    let (session, workspace, began) = (ask.session, ask.workspace, Instant::now());
    let deadline = began + shared.settings.dial_timeout;
    look_up(shared, session, workspace, deadline).await.inspect_err(|error| {
        tell_failed(shared, session, workspace, error, began.elapsed());
    })
}

/// Does what is due after a dial, for a client that had a connection to the target already.
#[cfg(feature = "http")]
pub(crate) fn dialed_before(shared: Arc<Shared>, start: Start, target: Arc<Target>) -> BoundHandle {
    let mut outcome = Outcome::pooled();
    match &start.entry.row.target {
        None => outcome.kind = OutcomeKind::FirstBind,
        Some(from) if !from.same_endpoint(&target) => {
            outcome.kind = OutcomeKind::Switched { from: Arc::clone(from) }
        }
        Some(_) => {}
    }
    outcome.repair = Repairs::begin(&shared, &start.entry, &target, false).map(|job| job.status);
    // The connection is held by the call that has dialed it.
    shared.usage.note(&start.entry);
    handed_out(shared, target, outcome, start.entry)
}

/// Tells the observer, returns the handle.
#[inline]
pub(crate) fn handed_out(
    shared: Arc<Shared>,
    target: Arc<Target>,
    outcome: Outcome,
    entry: Arc<CachedRow>,
) -> BoundHandle {
    if shared.is_observed() {
        tell_used(&shared, &target, &outcome, &entry);
    }
    BoundHandle::new(shared, entry, target, outcome)
}

#[inline(never)]
fn tell_used(shared: &Shared, target: &Arc<Target>, outcome: &Outcome, entry: &CachedRow) {
    let (session, workspace) = (entry.row.session, entry.workspace());
    if let OutcomeKind::Switched { from } = &outcome.kind {
        shared.emit(&Event::Switched { session, workspace, from, to: target });
    }
    shared.emit(&Event::Used { session, workspace, target, outcome });
}
