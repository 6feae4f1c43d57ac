//! Drives one [`Attempt`]: gathers events with `select!`, carries out its commands.
//!
//! Knows neither how a row is found nor what happens after a connection was won:
//! [`call`](crate::dial::call) does.

use crate::{
    BoxError, DialAgent, DialSession, Error, ErrorKind, Event, LocalError, Outcome, Target,
    answer::Answer,
    cache::CachedRow,
    dial::{
        attempt::{Attempt, Command, Inputs, Limits, SHORTEST_LOSS},
        dialer::{Dialed, Dialer, FirstPoll, To},
    },
    error::{Cause, SharedError},
    jitter,
    settings::Settings,
    single_flight::{Missed, Waiter},
    state::{Shared, Standing, Start, Validated},
    workspace::{Verdict, pending::Probe},
};
use futures_util::future::BoxFuture;
use std::{
    future::pending,
    pin::{Pin, pin},
    sync::Arc,
};
use tokio::{
    select,
    time::{Duration, Instant, sleep_until},
};
use tower_service::Service;

pub(crate) enum Raced<C> {
    Won(Won<C>),
    /// The session's row must be looked up again: it points elsewhere by now, or may. With the
    /// validations asked for.
    Moved(u8),
}

#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// When the race began, or the dial that is pending already.
    pub(crate) began: Instant,
    pub(crate) now: Instant,
    pub(crate) deadline: Instant,
}

pub(crate) struct Won<C> {
    pub(crate) connection: C,
    pub(crate) target: Arc<Target>,
    /// When the dial began that answered.
    pub(crate) dial_began: Instant,
    /// As far as the race knows it.
    pub(crate) outcome: Outcome,
}

/// Races the session's dial against doubts about it, until there is a connection to an agent that
/// is not known to be superseded, or a reason to stop. `start` follows what becomes known.
pub(crate) async fn race<S>(
    shared: &Arc<Shared>,
    dialer: Pin<&mut Dialer<S>>,
    first: FirstPoll<S::Response>,
    ask: &DialSession,
    start: &mut Start,
    times: Times,
) -> Result<Raced<S::Response>, Error>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    let mut run = Run::new(shared, dialer, start, !matches!(first, FirstPoll::NotYet), times);
    let mut now = times.now;
    let mut question: Option<Waiter<Validated>> = None;
    let mut reading: Option<Reading> = None;
    let mut connected: Option<S::Response> = None;
    let mut dial_error: Option<BoxError> = None;
    let mut validation_error: Option<SharedError> = None;
    match first {
        FirstPoll::NotYet => {}
        // The delay may have passed as well: what has become known comes before a question.
        FirstPoll::Pending => {
            if let Followed::Moved = run.look() {
                return run.decided(Ok(Raced::Moved(run.attempt.validations())));
            }
        }
        FirstPoll::Connected(connection) => {
            run.ended(now, None);
            connected = Some(connection);
            run.attempt.on_connected();
        }
        FirstPoll::Failed(error) => {
            if let Followed::Moved = run.failed(now, &error) {
                return run.decided(Ok(Raced::Moved(run.attempt.validations())));
            }
            dial_error = Some(error);
        }
        FirstPoll::NotReady(error) => {
            return Err(Error::new(ErrorKind::Dialer).of(ask.session).with_dial(Some(error)));
        }
    }

    loop {
        let until = match run.attempt.next(now, run.dialer.progress(run.dial_began)) {
            Command::Dial(target) => {
                connected = None;
                run.dial_began = now;
                run.dialer.as_mut().start(ask.to(run.start.entry.workspace(), target));
                continue;
            }
            Command::Validate => {
                question = Some(shared.validate(&run.start.entry.workspace_state));
                continue;
            }
            Command::Revalidate => {
                match run.start.entry.workspace_state.paused_until(now) {
                    Some(until) => run.attempt.on_paused(until),
                    None => {
                        run.attempt.on_asking(now);
                        question = Some(shared.validate(&run.start.entry.workspace_state));
                    }
                }
                continue;
            }
            Command::Probe => {
                let Settings { revalidate_every: every, validation_delay: delay, .. } =
                    shared.settings;
                match run.dialer.probe(now, every, delay) {
                    Probe::Granted => run.attempt.on_probe(now),
                    // Not all of them at one instant.
                    Probe::Wait(until) => run.attempt.on_paused(until + jitter::up_to(delay / 2)),
                    Probe::InVain => run.attempt.on_probed_in_vain(),
                }
                continue;
            }
            Command::Reread => {
                let (shared, session, since) = (Arc::clone(shared), ask.session, now);
                reading = Some(Box::pin(async move { shared.read_since(session, since).await }));
                continue;
            }
            Command::Serve => {
                // What is known may have changed since the dial began: this is the one look. A
                // connection to something older is dropped.
                match run.look() {
                    Followed::Good => {}
                    Followed::Moved => {
                        return run.decided(Ok(Raced::Moved(run.attempt.validations())));
                    }
                    Followed::Elsewhere => continue,
                }
                let outcome = Outcome {
                    kind: run.attempt.outcome_kind(),
                    dials: 0,
                    validations: run.attempt.validations(),
                    decided_in: Duration::ZERO,
                    dialed_in: run.dialed_in,
                    repair: None,
                };
                let (Some(connection), Some(target)) =
                    (connected.take(), run.attempt.take_target())
                else {
                    // Never: only a connection that is there is to be served.
                    return Err(Error::new(ErrorKind::Dialer).of(ask.session));
                };
                return Ok(Raced::Won(Won {
                    connection,
                    target,
                    dial_began: run.dial_began,
                    outcome,
                }));
            }
            Command::Fail(kind) => {
                if validation_error.is_none() && question.is_some() {
                    validation_error = Some(Cause::NoAnswerYet.shared());
                }
                let error = Error::new(kind).of(ask.session);
                return run
                    .decided(Err(error.with_dial(dial_error).with_validation(validation_error)));
            }
            Command::Wait(until) => until,
        };

        // Each arm looks at state that outlives the loop, so losing a round loses nothing. Each is
        // an async fn or block, so that it costs nothing before its first poll: if the dial is
        // ready at once, the others are never polled. Handlers run after all arms were dropped, so
        // they may change that state.
        select! {
            biased;
            dialed = run.dialer.as_mut().finished(To { workspace_state: &run.start.entry.workspace_state, target: run.attempt.target() }) => match dialed {
                Dialed::Admitted => {
                    now = Instant::now();
                    if let Followed::Moved = run.admitted() {
                        return run.decided(Ok(Raced::Moved(run.attempt.validations())));
                    }
                }
                Dialed::Started => {
                    now = Instant::now();
                    run.dial_began = now;
                    run.attempt.on_dial_started(now);
                }
                Dialed::Connected(connection) => {
                    if run.dialer.was_pending() {
                        now = Instant::now();
                    }
                    run.ended(now, None);
                    connected = Some(connection);
                    run.attempt.on_connected();
                }
                Dialed::Failed(error) => {
                    now = Instant::now();
                    if let Followed::Moved = run.failed(now, &error) {
                        return run.decided(Ok(Raced::Moved(run.attempt.validations())));
                    }
                    dial_error = Some(error);
                }
                Dialed::NotReady(error) => {
                    return run.decided(Err(Error::new(ErrorKind::Dialer).of(ask.session).with_dial(Some(error))));
                }
            },
            () = news(shared, run.start) => {
                now = Instant::now();
                if let Followed::Moved = run.look() {
                    return run.decided(Ok(Raced::Moved(run.attempt.validations())));
                }
            }
            validated = landed(&mut question) => {
                question = None;
                now = Instant::now();
                let validated = match validated {
                    Ok(validated) => validated,
                    // It began on a runtime that nobody drives: another one begins here.
                    Err(Missed::Stopped) => {
                        question = Some(shared.validate(&run.start.entry.workspace_state));
                        continue;
                    }
                    Err(Missed::Late | Missed::Ended) => Validated::crashed(now, shared.settings.revalidate_every),
                };
                // This call may hear of it after others have learned of something later, which it
                // follows already.
                let workspace_state = &run.start.entry.workspace_state;
                let outdated = validated.is_overtaken(workspace_state)
                    || match &validated.answer {
                        Answer::Running(said) => workspace_state.supersedes(said),
                        Answer::Denied(_) => run.attempt.counts(validated.began) && workspace_state.runs_since(validated.began),
                        Answer::Unknown | Answer::Overtaken => false,
                    };
                let Validated { answer, cause, began, again, .. } = validated;
                let (answer, cause) =
                    if outdated { (Answer::Overtaken, Some(Cause::OldAnswer.shared())) } else { (answer, cause) };
                validation_error = cause;
                run.attempt.on_answer(answer, began, again, now);
            }
            looked = read(&mut reading) => {
                reading = None;
                now = Instant::now();
                if let Followed::Moved = run.on_row(looked, now) {
                    return run.decided(Ok(Raced::Moved(run.attempt.validations())));
                }
            }
            () = async { sleep_until(until).await } => now = Instant::now(),
        }
    }
}

/// A race under way. Dropped while its dial is pending, it leaves a doubt behind.
struct Run<'a, S: Service<DialAgent>> {
    shared: &'a Shared,
    dialer: Pin<&'a mut Dialer<S>>,
    start: &'a mut Start,
    attempt: Attempt,
    /// When the last dial began, and how long it was pending.
    dial_began: Instant,
    dialed_in: Duration,
}

impl<S: Service<DialAgent>> Drop for Run<'_, S> {
    /// Only marks: nothing may spawn, block or panic in a `Drop`.
    fn drop(&mut self) {
        let Some(target) = self.attempt.target() else { return };
        if !self.dialer.is_dialing() || std::thread::panicking() {
            return;
        }
        dropped_in_flight(self.shared, &self.start.entry, target, self.dial_began);
    }
}

/// Tells the observer that a dial has ended.
pub(crate) fn tell_dialed(
    shared: &Shared,
    entry: &CachedRow,
    target: &Target,
    took: Duration,
    error: Option<&BoxError>,
) {
    let (session, workspace) = (entry.row.session, entry.workspace());
    let error = error.map(|error| &**error as _);
    shared.emit(&Event::Dialed { session, workspace, target, took, error });
}

/// Notes that a dial has succeeded. `times`: when it began, and now.
pub(crate) fn answered(
    entry: &CachedRow,
    target: &Target,
    validated: bool,
    times: impl Fn() -> (Instant, Instant),
) {
    entry.workspace_state.answered_dial(target, &times);
    entry.workspace_state.answered(target.agent, validated, || times().1);
}

fn dropped_in_flight(shared: &Shared, entry: &CachedRow, target: &Target, began: Instant) {
    let now = Instant::now();
    let CachedRow { row, workspace_state, .. } = entry;
    workspace_state.doubt_dropped(target.agent, began, now);
    let (session, workspace, pending) =
        (row.session, workspace_state.workspace(), now.saturating_duration_since(began));
    shared.emit(&Event::DroppedInFlight { session, workspace, target, pending });
}

/// Waits for a pending dial that nothing disturbs: until it ends, something becomes known, or the
/// validation delay has passed. Nearly all dials over a network end here, and there is nothing to
/// race.
pub(crate) async fn undisturbed<S>(
    shared: &Shared,
    mut dialer: Pin<&mut Dialer<S>>,
    start: &Start,
    target: &Arc<Target>,
    began: Instant,
) -> FirstPoll<S::Response>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    let mut in_flight = InFlight { shared, entry: &start.entry, target, began, ended: false };
    let to = To { workspace_state: &start.entry.workspace_state, target: Some(target) };
    let first = select! {
        biased;
        dialed = dialer.as_mut().finished(to) => dialed.into(),
        () = news(shared, start) => FirstPoll::Pending,
        () = async { sleep_until(began + shared.settings.validation_delay).await } => FirstPoll::Pending,
    };
    in_flight.ended = true;
    first
}

/// A dial that leaves a doubt behind if it is dropped.
struct InFlight<'a> {
    shared: &'a Shared,
    entry: &'a CachedRow,
    target: &'a Target,
    began: Instant,
    ended: bool,
}

impl Drop for InFlight<'_> {
    /// Only marks: nothing may spawn, block or panic in a `Drop`.
    fn drop(&mut self) {
        if !self.ended && !std::thread::panicking() {
            dropped_in_flight(self.shared, self.entry, self.target, self.began);
        }
    }
}

type Reading = BoxFuture<'static, Result<Option<Arc<CachedRow>>, SharedError>>;

impl<'a, S> Run<'a, S>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    fn new(
        shared: &'a Shared,
        dialer: Pin<&'a mut Dialer<S>>,
        start: &'a mut Start,
        dialing: bool,
        Times { began, deadline, .. }: Times,
    ) -> Self {
        let Settings { validation_delay: delay, redial, .. } = shared.settings;
        let limits =
            Limits { delay, deadline, redial, jitter: jitter::up_to(delay.max(SHORTEST_LOSS) / 2) };
        let inputs = Inputs {
            bound: start.entry.row.target.as_ref(),
            target: start.choice.target().cloned(),
            doubt: start.choice.doubt(),
            hold: start.choice.is_held(),
            denied: start.choice.denied(),
            dialing,
        };
        let attempt = Attempt::new(limits, inputs, began);
        Self { shared, dialer, start, attempt, dial_began: began, dialed_in: Duration::ZERO }
    }

    /// The race ends by its own decision: a dial that is still pending ends here, and is no
    /// evidence.
    fn decided<T>(&mut self, end: T) -> T {
        self.dialer.as_mut().stop();
        end
    }

    /// The dial has ended.
    fn ended(&mut self, now: Instant, error: Option<&BoxError>) {
        // Equal if it never was pending, which is worth not computing.
        let began = self.dial_began;
        self.dialed_in =
            if now == began { Duration::ZERO } else { now.saturating_duration_since(began) };
        let Some(target) = self.attempt.target() else { return };
        let entry = &*self.start.entry;
        tell_dialed(self.shared, entry, target, self.dialed_in, error);
        if error.is_none() {
            answered(entry, target, self.attempt.validations() > 0, || (began, now));
        }
    }

    /// The call leaves the queue: what has become known meanwhile decides whether and what it
    /// dials.
    fn admitted(&mut self) -> Followed {
        let landing = self.look();
        if let Followed::Good = landing
            && let Some(Verdict { answer: Answer::Denied(denied), began, .. }) =
                self.start.entry.workspace_state.verdict()
            && began >= self.dial_began
        {
            self.attempt.on_denied_in_queue(denied);
        }
        landing
    }

    /// The dial has failed. What has become known while it was pending may make a question
    /// needless.
    fn failed(&mut self, now: Instant, error: &BoxError) -> Followed {
        self.ended(now, Some(error));
        if LocalError::is_in(&**error) {
            self.attempt.on_dial_failed_locally();
            return Followed::Good;
        }
        self.attempt.on_dial_failed(now);
        self.look()
    }

    /// Compares what is being dialed with what this process knows.
    fn look(&mut self) -> Followed {
        match self.shared.standing(self.start) {
            Standing::Still => Followed::Good,
            Standing::Moved => Followed::Moved,
            Standing::Anew => self.follow(Instant::now()),
        }
    }

    /// The row was read after a denial.
    fn on_row(
        &mut self,
        looked: Result<Option<Arc<CachedRow>>, SharedError>,
        now: Instant,
    ) -> Followed {
        match looked {
            Ok(Some(entry)) if entry.points_where(&self.start.entry) => {
                let start = self.shared.start(entry, false);
                if start.choice.is_reset() {
                    return Followed::Moved;
                }
                *self.start = start;
                let landing = self.follow(now);
                if let Followed::Good = landing {
                    self.attempt.on_row_unchanged();
                }
                landing
            }
            // There is no row, as before.
            Ok(None) if self.start.absent => {
                self.attempt.on_row_unchanged();
                Followed::Good
            }
            // The session points elsewhere, or nowhere.
            Ok(_) => Followed::Moved,
            Err(_) => {
                self.attempt.on_row_unreadable();
                Followed::Good
            }
        }
    }

    /// Tells the attempt of a choice that was made anew.
    fn follow(&mut self, now: Instant) -> Followed {
        let Start { entry, choice, .. } = &*self.start;
        match (choice.target(), choice.doubt()) {
            // The row is unbound by now, and what is being dialed is known to be replaced: there is
            // nothing to be dialed before the resolver was asked.
            (None, _)
                if self
                    .attempt
                    .target()
                    .is_some_and(|dialed| entry.workspace_state.supersedes(dialed)) =>
            {
                return Followed::Moved;
            }
            (Some(target), doubt) if self.attempt.on_known(target, doubt, now) => {
                return Followed::Elsewhere;
            }
            (None, Some(doubt)) => self.attempt.on_doubt(doubt, now),
            _ => {}
        }
        Followed::Good
    }
}

/// How what is being dialed compares with what is known.
enum Followed {
    Good,
    /// The attempt was told of another target.
    Elsewhere,
    /// The row must be looked up again.
    Moved,
}

/// Ends when the row or what is known of its workspace has changed. Counts the call as waiting
/// meanwhile.
pub(crate) async fn news(shared: &Shared, start: &Start) {
    let CachedRow { row, workspace_state, .. } = &*start.entry;
    let _waiting = workspace_state.wait();
    // Made before the look, so that a change between the look and the first poll is not missed.
    let mut row_changed = pin!(shared.rows.changed(row.session));
    let mut workspace_changed = pin!(workspace_state.changed());
    loop {
        if workspace_state.version() != start.version || shared.rows.is_overtaken(&start.entry) {
            return;
        }
        select! {
            () = row_changed.as_mut() => row_changed.set(shared.rows.changed(row.session)),
            () = workspace_changed.as_mut() => workspace_changed.set(workspace_state.changed()),
        }
    }
}

/// Pending for ever while nothing was asked.
async fn landed<T: Clone>(question: &mut Option<Waiter<T>>) -> Result<T, Missed> {
    match question {
        // Boxed, so that a call that asks nobody does not carry the room for it.
        Some(waiter) => Box::pin(waiter.result(None)).await,
        None => pending().await,
    }
}

/// Pending for ever while nothing is being read.
async fn read(reading: &mut Option<Reading>) -> Result<Option<Arc<CachedRow>>, SharedError> {
    match reading {
        Some(reading) => reading.await,
        None => pending().await,
    }
}
