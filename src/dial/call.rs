//! One call from the request to the connection: look up, race, settle, restart.

use crate::{
    Bound, BoundHandle, BoxError, DialAgent, DialSession, Error, ErrorKind, Event, LastVerdict,
    Outcome, OutcomeKind, Target,
    cache::{CachedRow, State},
    dial::{
        dialer::{Dialed, Dialer, FirstPoll, To},
        race::{Raced, Times, Won, note_answered, race, tell_dialed, undisturbed},
    },
    error::SharedError,
    replicas::follow,
    settings::RepairMode,
    state::{
        Shared, Start,
        repairs::{Job, Repairs},
    },
    workspace::Choice,
};
use std::{
    pin::{Pin, pin},
    sync::Arc,
};
use tokio::time::{Duration, Instant, error::Elapsed, timeout_at};
use tower_service::Service;

pub(crate) async fn call<S>(
    shared: Arc<Shared>,
    readied: S,
    ask: DialSession,
) -> Result<Bound<S::Response>, Error>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    if shared.is_closed() {
        return Err(Error::new(ErrorKind::Closed).of(ask.session));
    }
    // Even if all is cached: the runtime of the follower may have ended.
    follow::ensure(&shared);
    let mut dialer = pin!(Dialer::new(readied));
    let mut cached = shared.cached(ask.session, ask.workspace);
    let mut first = match fast_path(&shared, dialer.as_mut(), &ask, &mut cached).await {
        FastPath::Connected(connection, target, entry) => {
            return Ok(Bound::new(
                connection,
                handed_out(shared, target, Outcome::reused(), entry),
                None,
            ));
        }
        FastPath::Undecided(first) => first,
    };
    // From here on the call may wait.
    let began = Instant::now();
    follow::ensure_driven(&shared, || began);
    let deadline = began + shared.settings.dial_timeout;
    let mut now = began;
    if let (FirstPoll::Pending, Some(start)) = (&first, &cached)
        && let Some(target) = start.choice.target().filter(|_| dialer.is_dialing())
    {
        first = undisturbed(&shared, dialer.as_mut(), start, target, began).await;
        now = Instant::now();
        if shared.is_unchanged(start)
            && let FirstPoll::Ended(Dialed::Connected(connection)) = first
        {
            let dialed_in = now.saturating_duration_since(began);
            tell_dialed(&shared, &start.entry, target, dialed_in, None);
            note_answered(&start.entry, target, false, || (began, now));
            let outcome = Outcome { dialed_in, ..Outcome::reused() };
            let (target, entry) = (Arc::clone(target), Arc::clone(&start.entry));
            return Ok(Bound::new(
                connection,
                handed_out(shared, target, outcome, entry),
                Some(now),
            ));
        }
    }
    // The questions of all races count.
    let (mut moved, mut validations) = (false, 0_u8);
    let mut left: Option<Arc<CachedRow>> = None;
    loop {
        let mut start = match cached.take().or_else(|| shared.cached(ask.session, ask.workspace)) {
            // Dialed at once: this is what the caller has waited for readiness for.
            Some(start) if start.choice.target().is_some() => start,
            Some(start) => {
                dialer.as_mut().give_back();
                start
            }
            None => {
                dialer.as_mut().give_back();
                // Boxed, so that a cached call does not carry the room for it.
                let start = Box::pin(look_up(&shared, &ask, deadline)).await?;
                now = Instant::now();
                start
            }
        };
        if start.choice.is_reset() {
            // The workspace was reset after the row was read.
            left = Some(start.entry);
            continue;
        }
        if let Some(left) = left.take() {
            moved |= has_moved(&left, &start.entry);
            // An earlier denial answers a call that begins, not one that has been restarted.
            if let Choice::AskFirst { denied, .. } = &mut start.choice {
                *denied = None;
            }
        }
        let first = std::mem::replace(&mut first, FirstPoll::NotBegun);
        let times = Times {
            began: if let FirstPoll::NotBegun = first { now } else { began },
            now,
            deadline,
        };
        match race(&shared, dialer.as_mut(), first, &ask, &mut start, times).await {
            Ok(Raced::Won(mut won)) => {
                if let Some(job) = Repairs::begin(&shared, &start.entry, &won.target, start.absent)
                {
                    won.outcome.repair = Some(job.status.clone());
                    if start.absent || shared.settings.repair == RepairMode::BeforeReturn {
                        // Boxed for the same reason. At the deadline there is a connection, so that
                        // is no failure.
                        let attempted = Box::pin(timeout_at(deadline, job.attempted())).await;
                        // The row that the store answered with decides, since a hint may have
                        // emptied the slot in the meantime. Without one there may be no row.
                        let is_elsewhere = start.absent
                            && match created(&shared, &start.entry, &job, attempted)? {
                                Some(row) => !row.points_where(&start.entry),
                                None => !shared.settings.serve_without_store,
                            };
                        // The second look: the repair may have lost to something newer, or a
                        // command may have come.
                        if is_elsewhere || shared.has_left(&start.entry, &won.target) {
                            validations = validations.saturating_add(won.outcome.validations);
                            drop(won);
                            left = Some(start.entry);
                            now = Instant::now();
                            continue;
                        }
                    }
                }
                if start.absent
                    && let Some(entry) = shared.rows.get(ask.session)
                    && entry.points_where(&start.entry)
                {
                    // The session has a row by now: its use is recorded.
                    start.entry = entry;
                }
                let Won { connection, target, dial_began, mut outcome } = won;
                outcome.dials = dialer.started();
                outcome.validations = outcome.validations.saturating_add(validations);
                outcome.decided_in = dial_began.saturating_duration_since(began);
                let handle = handed_out(shared, target, outcome, start.entry);
                return Ok(Bound::new(connection, handle, Some(Instant::now())));
            }
            Ok(Raced::Moved(asked)) => {
                validations = validations.saturating_add(asked);
                left = Some(start.entry);
                now = Instant::now();
            }
            Err(error) => return Err(because(&shared, error, moved)),
        }
    }
}

/// How the fast path has left a call.
enum FastPath<C> {
    /// The dial was ready, and what is cached is still right.
    Connected(C, Arc<Target>, Arc<CachedRow>),
    /// The dial is this far; the race decides.
    Undecided(FirstPoll<C>),
}

/// Nearly every call is this: the cached row is in no doubt, and its dial is ready at the first
/// poll. That takes no clock, no timer and no decision.
async fn fast_path<S>(
    shared: &Shared,
    mut dialer: Pin<&mut Dialer<S>>,
    ask: &DialSession,
    cached: &mut Option<Start>,
) -> FastPath<S::Response>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    let Some(start @ Start { entry, choice: Choice::Settled(target), .. }) = &*cached else {
        return FastPath::Undecided(FirstPoll::NotBegun);
    };
    let target = Arc::clone(target);
    dialer.as_mut().start(ask.to(entry.workspace(), Arc::clone(&target)));
    let to = To { workspace_state: &entry.workspace_state, target: Some(&target) };
    let connection = match dialer.first_poll(to).await {
        FirstPoll::Ended(Dialed::Connected(connection)) => connection,
        first => return FastPath::Undecided(first),
    };
    tell_dialed(shared, entry, &target, Duration::ZERO, None);
    note_answered(entry, &target, false, || {
        let now = Instant::now();
        (now, now)
    });
    if shared.is_unchanged(start) {
        let entry = Arc::clone(entry);
        return FastPath::Connected(connection, target, entry);
    }
    // Something has become known during that poll: the connection is dropped, and what is cached by
    // now is looked at anew.
    *cached = None;
    FastPath::Undecided(FirstPoll::NotBegun)
}

/// Returns the row that the session has after the attempt to create one: the created row, or the
/// row that was there first. `None` if nothing was sent, since a command came that may have removed
/// the row, or if nothing could be written and calls are served without the store.
///
/// # Errors
///
/// The session has no row as far as this process knows. The creation is not tried again.
fn created(
    shared: &Shared,
    entry: &CachedRow,
    job: &Job,
    attempted: Result<Result<(), SharedError>, Elapsed>,
) -> Result<Option<Arc<CachedRow>>, Error> {
    let session = entry.row.session;
    let error = match attempted {
        Ok(Ok(())) => return Ok(job.row()),
        Ok(Err(cause)) => Error::new(ErrorKind::Store).with_store(Some(cause)),
        Err(_) => Error::new(ErrorKind::TimedOut { last: LastVerdict::Same }),
    };
    // A write into an existing row is a repair like any other.
    if let Some(row) = job.row().or_else(|| shared.rows.get(session)) {
        return Ok(Some(row));
    }
    if shared.settings.serve_without_store {
        return Ok(None);
    }
    shared.repairs.forget(session);
    Err(because(shared, error.of(session), false))
}

async fn look_up(
    shared: &Arc<Shared>,
    ask: &DialSession,
    deadline: Instant,
) -> Result<Start, Error> {
    let looked = timeout_at(deadline, shared.look_up(ask.session, ask.workspace)).await;
    let timed_out =
        |_| Err(Error::new(ErrorKind::TimedOut { last: LastVerdict::Unknown }).of(ask.session));
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
    let is_commanded = match left.state() {
        State::Removed => true,
        State::Evicted | State::Replaced => left.may_be_commanded(),
        State::Current => false,
    };
    is_commanded || !left.points_where(entry)
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
    follow::ensure(shared);
    look_up(shared, ask, Instant::now() + shared.settings.dial_timeout).await
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
    handed_out(shared, target, outcome, start.entry)
}

/// Tells the observer, notes the use, returns the handle.
fn handed_out(
    shared: Arc<Shared>,
    target: Arc<Target>,
    outcome: Outcome,
    entry: Arc<CachedRow>,
) -> BoundHandle {
    let (session, workspace) = (entry.row.session, entry.workspace());
    if let OutcomeKind::Switched { from } = &outcome.kind {
        shared.emit(&Event::Switched { session, workspace, from, to: &target });
    }
    shared.emit(&Event::Used { session, workspace, target: &target, outcome: &outcome });
    shared.usage.note(&entry);
    BoundHandle::new(shared, entry, target, outcome)
}
