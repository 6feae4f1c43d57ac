//! Drives one [`Attempt`]: gathers events with `select!`, reports them, carries out its commands.
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
    state::{Shared, Start, Validated, standing::Standing},
    workspace::{Verdict, pending::Probe},
};
use futures_util::future::BoxFuture;
use std::{
    future::pending,
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::Arc,
};
use tokio::{
    select,
    time::{Duration, Instant, sleep_until},
};
use tower_service::Service;

/// How a race ends, unless with an error.
pub(crate) enum Raced<C> {
    Won(Won<C>),
    /// The session's row must be looked up again: it points elsewhere by now, or may. With the
    /// number of validations that the race has asked for.
    Moved(u8),
}

/// The instants that bound a race.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// When the race began, or the dial that is pending already.
    pub(crate) began: Instant,
    pub(crate) now: Instant,
    pub(crate) deadline: Instant,
}

/// A connection, and how it was won.
pub(crate) struct Won<C> {
    pub(crate) connection: C,
    pub(crate) target: Arc<Target>,
    /// When the dial began that has connected.
    pub(crate) dial_began: Instant,
    /// As far as the race knows it.
    pub(crate) outcome: Outcome,
}

/// Races the session's dial against doubts about it, until there is a connection to an agent that
/// is not known to be superseded, or a reason to stop. Keeps `start` up to date with what becomes
/// known.
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
    let is_dialing = !matches!(first, FirstPoll::NotBegun);
    let mut run = Run::new(shared, dialer, ask, start, is_dialing, times);
    if let ControlFlow::Break(end) = run.begin(first) {
        return end;
    }
    loop {
        // No command is held while the race waits: every call would carry the room for it.
        let until = match run.attempt.next(run.now, run.dialer.progress(run.dial_began)) {
            Command::Wait(until) => until,
            command => match run.carry_out(command) {
                ControlFlow::Continue(()) => continue,
                ControlFlow::Break(end) => return end,
            },
        };
        let event = run.next_event(until).await;
        if let ControlFlow::Break(end) = run.apply(event) {
            return end;
        }
    }
}

/// The events of a race.
enum RaceEvent<C> {
    /// Something has become of the dial.
    Dialed(Dialed<C>),
    /// The session's row or the facts about its workspace have changed.
    News,
    /// The resolver has answered, or there will be no answer.
    Answered(Result<Validated, Missed>),
    /// The row was read.
    Reread(RowRead),
    /// The instant has come until which the attempt waits.
    TimeIsUp,
}

/// Goes on, or ends the race.
type Step<C> = ControlFlow<Result<Raced<C>, Error>>;
type RowRead = Result<Option<Arc<CachedRow>>, SharedError>;

/// A race under way: [`next_event`](Self::next_event) waits, [`apply`](Self::apply) tells the
/// attempt, [`carry_out`](Self::carry_out) does what the attempt says.
///
/// Dropped while its dial is pending, it leaves a doubt behind.
struct Run<'a, S: Service<DialAgent>> {
    shared: &'a Arc<Shared>,
    dialer: Pin<&'a mut Dialer<S>>,
    ask: &'a DialSession,
    start: &'a mut Start,
    attempt: Attempt,
    /// When the last event was noticed.
    now: Instant,
    /// When the last dial began, and for how long it was pending.
    dial_began: Instant,
    dialed_in: Duration,
    connected: Option<S::Response>,
    question: Option<Waiter<Validated>>,
    reading: Option<BoxFuture<'static, RowRead>>,
    /// Only that read can tell where the session points. Until it ends, the dial goes on and the
    /// rest of the news waits.
    unread: bool,
    /// The causes for an error of the call.
    dial_error: Option<BoxError>,
    validation_error: Option<SharedError>,
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

/// How the candidate of the attempt compares with what is known.
enum Followed {
    /// It is what the session would dial.
    Good,
    /// The attempt was told of another target.
    Switched,
    /// A command came after the row was read, and the cache does not have the row: it must be read.
    Unread,
    /// The row must be looked up again.
    Moved,
}

impl<'a, S> Run<'a, S>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    fn new(
        shared: &'a Arc<Shared>,
        dialer: Pin<&'a mut Dialer<S>>,
        ask: &'a DialSession,
        start: &'a mut Start,
        dialing: bool,
        Times { began, now, deadline }: Times,
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
        Self {
            shared,
            dialer,
            ask,
            start,
            attempt,
            now,
            dial_began: began,
            dialed_in: Duration::ZERO,
            connected: None,
            question: None,
            reading: None,
            unread: false,
            dial_error: None,
            validation_error: None,
        }
    }

    fn begin(&mut self, first: FirstPoll<S::Response>) -> Step<S::Response> {
        match first {
            FirstPoll::NotBegun => ControlFlow::Continue(()),
            // The delay may have passed as well: what has become known comes before a question.
            FirstPoll::Pending => self.follow_news(),
            FirstPoll::Ended(dialed) => self.on_dialed(dialed),
        }
    }

    /// Waits for the next event. Cancel safe.
    ///
    /// If several are there, the first in this order is returned: dial, news, answer, row, timer.
    async fn next_event(&mut self, until: Instant) -> RaceEvent<S::Response> {
        let Self { shared, dialer, start, attempt, question, reading, unread, .. } = self;
        let to = To { workspace_state: &start.entry.workspace_state, target: attempt.target() };
        // Each arm looks at state that outlives it, so an arm that is dropped loses nothing. Each
        // is an async fn or block, so that it costs nothing before its first poll: if the dial is
        // ready at once, the others are never polled.
        select! {
            biased;
            dialed = dialer.as_mut().finished(to) => RaceEvent::Dialed(dialed),
            () = news(shared, start), if !*unread => RaceEvent::News,
            validated = answered(question) => RaceEvent::Answered(validated),
            row = read(reading) => RaceEvent::Reread(row),
            () = async { sleep_until(until).await } => RaceEvent::TimeIsUp,
        }
    }

    /// Reports an event to the attempt.
    fn apply(&mut self, event: RaceEvent<S::Response>) -> Step<S::Response> {
        match event {
            RaceEvent::Dialed(dialed) => return self.on_dialed(dialed),
            RaceEvent::News => {
                self.now = Instant::now();
                return self.follow_news();
            }
            RaceEvent::Answered(validated) => self.on_answer(validated),
            RaceEvent::Reread(row) => {
                self.now = Instant::now();
                self.reading = None;
                let followed = match std::mem::take(&mut self.unread) {
                    true => self.on_unread_row(row),
                    false => self.on_row(row),
                };
                return self.goes_on(followed);
            }
            RaceEvent::TimeIsUp => self.now = Instant::now(),
        }
        ControlFlow::Continue(())
    }

    /// Does what the attempt says.
    fn carry_out(&mut self, command: Command) -> Step<S::Response> {
        match command {
            Command::Dial(target) => {
                self.connected = None;
                self.dial_began = self.now;
                self.dialer.as_mut().start(self.ask.to(self.start.entry.workspace(), target));
            }
            Command::Validate => self.validate(),
            Command::Revalidate => match self.start.entry.workspace_state.paused_until(self.now) {
                Some(until) => self.attempt.on_paused(until),
                None => {
                    self.attempt.on_asking(self.now);
                    self.validate();
                }
            },
            Command::Probe => self.probe(),
            Command::Reread => self.read(),
            Command::Serve => return self.serve(),
            Command::Fail(kind) => return self.fail(kind),
            // The next event is waited for.
            Command::Wait(_) => {}
        }
        ControlFlow::Continue(())
    }

    /// Reads the row, in a read that begins now.
    fn read(&mut self) {
        let (shared, session, since) = (Arc::clone(self.shared), self.ask.session, self.now);
        self.reading = Some(Box::pin(async move { shared.read_since(session, since).await }));
    }

    fn validate(&mut self) {
        self.question = Some(self.shared.validate(&self.start.entry.workspace_state));
    }

    fn probe(&mut self) {
        let Settings { revalidate_every: every, validation_delay: delay, .. } =
            self.shared.settings;
        match self.dialer.probe(self.now, every, delay) {
            Probe::Granted => self.attempt.on_probe(self.now),
            // With jitter, so that the calls that wait do not look at one instant.
            Probe::Wait(until) => self.attempt.on_paused(until + jitter::up_to(delay / 2)),
            Probe::InVain => self.attempt.on_probed_in_vain(),
        }
    }

    /// Ends the race with the connection, if it is still one to what the session would dial: what
    /// is known may have changed since the dial began. A connection to something older is dropped.
    fn serve(&mut self) -> Step<S::Response> {
        match self.look() {
            Followed::Good => {}
            Followed::Switched => return ControlFlow::Continue(()),
            Followed::Unread | Followed::Moved => return self.moved(),
        }
        let outcome = Outcome {
            kind: self.attempt.outcome_kind(),
            dials: 0,
            validations: self.attempt.validations(),
            decided_in: Duration::ZERO,
            dialed_in: self.dialed_in,
            repair: None,
        };
        let (Some(connection), Some(target)) = (self.connected.take(), self.attempt.take_target())
        else {
            // Never: the attempt serves only what has connected.
            return self.end(Err(Error::new(ErrorKind::Dialer).of(self.ask.session)));
        };
        let dial_began = self.dial_began;
        ControlFlow::Break(Ok(Raced::Won(Won { connection, target, dial_began, outcome })))
    }

    fn fail(&mut self, kind: ErrorKind) -> Step<S::Response> {
        if self.validation_error.is_none() && self.question.is_some() {
            self.validation_error = Some(Cause::NoAnswerYet.shared());
        }
        let error = Error::new(kind)
            .of(self.ask.session)
            .with_dial(self.dial_error.take())
            .with_validation(self.validation_error.take());
        self.end(Err(error))
    }

    fn moved(&mut self) -> Step<S::Response> {
        self.end(Ok(Raced::Moved(self.attempt.validations())))
    }

    /// The race ends by its own decision: a dial that is still pending ends here, and is no
    /// evidence against its agent.
    fn end(&mut self, end: Result<Raced<S::Response>, Error>) -> Step<S::Response> {
        self.dialer.as_mut().stop();
        ControlFlow::Break(end)
    }

    /// A switch needs no step of its own: the attempt was told, and says what to do.
    fn goes_on(&mut self, followed: Followed) -> Step<S::Response> {
        match followed {
            Followed::Good | Followed::Switched => ControlFlow::Continue(()),
            Followed::Unread | Followed::Moved => self.moved(),
        }
    }

    fn follow_news(&mut self) -> Step<S::Response> {
        match self.look() {
            // Neither a pending dial nor what the attempt has found out is given up for a hint that
            // may say nothing new.
            Followed::Unread => {
                self.unread = true;
                self.read();
                ControlFlow::Continue(())
            }
            followed => self.goes_on(followed),
        }
    }

    fn on_dialed(&mut self, dialed: Dialed<S::Response>) -> Step<S::Response> {
        match dialed {
            Dialed::Admitted => {
                self.now = Instant::now();
                let followed = self.admitted();
                return self.goes_on(followed);
            }
            Dialed::Started => {
                self.now = Instant::now();
                self.dial_began = self.now;
                self.attempt.on_dial_started(self.now);
            }
            Dialed::Connected(connection) => {
                if self.dialer.was_pending() {
                    self.now = Instant::now();
                }
                self.ended(None);
                self.connected = Some(connection);
                self.attempt.on_connected();
            }
            Dialed::Failed(error) => {
                self.now = Instant::now();
                let followed = self.failed(&error);
                self.dial_error = Some(error);
                return self.goes_on(followed);
            }
            Dialed::NotReady(error) => {
                let failed = Error::new(ErrorKind::Dialer).of(self.ask.session);
                return self.end(Err(failed.with_dial(Some(error))));
            }
        }
        ControlFlow::Continue(())
    }

    /// The dial has ended.
    fn ended(&mut self, error: Option<&BoxError>) {
        // Equal if the dial never was pending, which is worth not computing.
        let (began, now) = (self.dial_began, self.now);
        self.dialed_in =
            if now == began { Duration::ZERO } else { now.saturating_duration_since(began) };
        let Some(target) = self.attempt.target() else { return };
        let entry = &*self.start.entry;
        tell_dialed(self.shared, entry, target, self.dialed_in, error);
        if error.is_none() {
            note_answered(entry, target, self.attempt.validations() > 0, || (began, now));
        }
    }

    /// The call leaves the queue: what has become known meanwhile decides whether it dials, and
    /// which target.
    fn admitted(&mut self) -> Followed {
        let followed = self.look();
        if let Followed::Good = followed
            && let Some(Verdict { answer: Answer::Denied(denied), began, .. }) =
                self.start.entry.workspace_state.verdict()
            && began >= self.dial_began
        {
            self.attempt.on_denied_in_queue(denied);
        }
        followed
    }

    /// The dial has failed. What has become known while it was pending may make a question
    /// needless.
    fn failed(&mut self, error: &BoxError) -> Followed {
        self.ended(Some(error));
        if LocalError::is_in(&**error) {
            self.attempt.on_dial_failed_locally();
            return Followed::Good;
        }
        self.attempt.on_dial_failed(self.now);
        self.look()
    }

    fn on_answer(&mut self, validated: Result<Validated, Missed>) {
        self.now = Instant::now();
        self.question = None;
        let validated = match validated {
            Ok(validated) => validated,
            // Nobody drives the runtime of that question: another one begins here.
            Err(Missed::Stopped) => return self.validate(),
            Err(Missed::Late | Missed::Ended) => {
                Validated::crashed(self.now, self.shared.settings.revalidate_every)
            }
        };
        let outdated = self.is_outdated(&validated);
        let Validated { answer, cause, began, again, .. } = validated;
        let (answer, cause) = if outdated {
            (Answer::Overtaken, Some(Cause::OldAnswer.shared()))
        } else {
            (answer, cause)
        };
        self.validation_error = cause;
        self.attempt.on_answer(answer, began, again, self.now);
    }

    /// Whether the workspace has learned of something later than this answer, before the answer has
    /// reached this call, which follows the later one already.
    fn is_outdated(&self, validated: &Validated) -> bool {
        let workspace_state = &self.start.entry.workspace_state;
        validated.is_overtaken(workspace_state)
            || match &validated.answer {
                Answer::Running(said) => workspace_state.supersedes(said),
                Answer::Denied(_) => {
                    self.attempt.counts(validated.began)
                        && workspace_state.runs_since(validated.began)
                }
                Answer::Unknown | Answer::Overtaken => false,
            }
    }

    /// The row was read because only the store could tell where the session points.
    fn on_unread_row(&mut self, row: RowRead) -> Followed {
        match row {
            // The call cannot go by a row of which it knows that it may be old.
            Err(_) => Followed::Moved,
            Ok(None) if self.start.absent && !self.shared.is_still_absent(&self.start.entry) => {
                Followed::Moved
            }
            row => self.on_row(row),
        }
    }

    /// The row was read after a denial.
    fn on_row(&mut self, row: RowRead) -> Followed {
        match row {
            Ok(Some(entry)) if entry.points_where(&self.start.entry) => {
                let followed = self.go_by(entry, false, self.now);
                if let Followed::Good = followed {
                    self.attempt.on_row_unchanged();
                }
                followed
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

    /// Compares what the race goes by with what this process knows, and tells the attempt of it.
    fn look(&mut self) -> Followed {
        let Start { entry, version, absent, .. } = &*self.start;
        let absent = *absent;
        let entry = match self.shared.standing(entry, Some(*version)) {
            Standing::Unchanged => return Followed::Good,
            Standing::Changed(entry) => entry,
            // The read that has found no row again has reported to all waiters that the row is
            // gone, and nothing else has been heard since.
            Standing::Unread if absent && self.shared.is_still_absent(entry) => Arc::clone(entry),
            Standing::Unread => return Followed::Unread,
            Standing::Moved => return Followed::Moved,
        };
        // A row that exists is not to be created any more.
        let absent = absent && !entry.stored;
        self.go_by(entry, absent, Instant::now())
    }

    /// Chooses anew, from this row, and tells the attempt of it.
    fn go_by(&mut self, entry: Arc<CachedRow>, absent: bool, now: Instant) -> Followed {
        let start = self.shared.start(entry, absent);
        if start.choice.is_reset() {
            return Followed::Moved;
        }
        *self.start = start;
        let Start { entry, choice, .. } = &*self.start;
        match (choice.target(), choice.doubt()) {
            // The row is unbound by now, and the candidate is known to be replaced: there is
            // nothing to dial before the resolver was asked.
            (None, _)
                if self
                    .attempt
                    .target()
                    .is_some_and(|dialed| entry.workspace_state.supersedes(dialed)) =>
            {
                return Followed::Moved;
            }
            (Some(target), doubt) if self.attempt.on_known(target, doubt, now) => {
                return Followed::Switched;
            }
            (None, Some(doubt)) => self.attempt.on_doubt(doubt, now),
            _ => {}
        }
        Followed::Good
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

/// Notes that a dial has succeeded. `times` returns when it began, and now.
pub(crate) fn note_answered(
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

/// Waits for a pending dial that nothing disturbs: until the dial ends, something becomes known, or
/// the validation delay has passed. Nearly all dials over a network end here, and there is nothing
/// to race.
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

/// Waits until what is known of the row or its workspace has changed since `start` was chosen.
/// Counts the call as waiting meanwhile.
pub(crate) async fn news(shared: &Shared, start: &Start) {
    let CachedRow { row, workspace_state, .. } = &*start.entry;
    let _waiting = workspace_state.wait();
    // Made before the look, so that a change between the look and the first poll is not missed.
    let mut row_changed = pin!(shared.rows.changed(row.session));
    let mut workspace_changed = pin!(workspace_state.changed());
    while let Standing::Unchanged = shared.standing(&start.entry, Some(start.version)) {
        select! {
            () = row_changed.as_mut() => row_changed.set(shared.rows.changed(row.session)),
            () = workspace_changed.as_mut() => workspace_changed.set(workspace_state.changed()),
        }
    }
}

/// Returns the answer to the question; pending for ever while nothing is being asked.
async fn answered<T: Clone>(question: &mut Option<Waiter<T>>) -> Result<T, Missed> {
    match question {
        // Boxed, so that a call without a question does not reserve room for it.
        Some(waiter) => Box::pin(waiter.result(None)).await,
        None => pending().await,
    }
}

/// Returns what the row says; pending for ever while it is not being read.
async fn read(reading: &mut Option<BoxFuture<'static, RowRead>>) -> RowRead {
    match reading {
        Some(reading) => reading.await,
        None => pending().await,
    }
}
