//! Drives one [`Attempt`]: gathers events, reports them, carries out its commands.
//!
//! Knows neither how a row is found nor what happens after a connection was won:
//! [`call`](crate::dial::call) does. Nor does it know the dial service: it sees the dialer for the
//! time of a poll.

use crate::{
    BoxError, Error, ErrorKind, Event, LastVerdict, LocalError, Outcome, SessionId, Target,
    WrongAgentError,
    answer::Answer,
    cache::CachedRow,
    dial::{
        attempt::{Attempt, Command, Inputs, Limits, SHORTEST_LOSS},
        dialer::{AnyDialer, Dialed, FirstPoll, To},
        news::News,
        timer::Timer,
    },
    error::{Cause, SharedError},
    jitter,
    settings::Settings,
    single_flight::Missed,
    spans,
    state::{Shared, Start, Validated, standing::Standing},
    workspace::{Verdict, pending::Probe},
};
use futures_util::future::BoxFuture;
use std::{
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::{Duration, Instant};

/// How a race ends, unless with an error.
pub(crate) enum Raced {
    /// The dialer has the connection.
    Won(Won),
    /// The session's row must be looked up again: it points elsewhere by now, or may.
    Moved,
}

/// The instants that bound a race.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// When the race began, or the dial that is pending already.
    pub(crate) began: Instant,
    pub(crate) now: Instant,
    pub(crate) deadline: Instant,
}

/// How a connection was won.
pub(crate) struct Won {
    pub(crate) target: Arc<Target>,
    /// When the dial began that has connected.
    pub(crate) dial_began: Instant,
    /// As far as the race knows it.
    pub(crate) outcome: Outcome,
    /// The resolver's last verdict, for the error of a call whose row is not created in time.
    pub(crate) last: LastVerdict,
}

/// What can happen during a race.
enum RaceEvent {
    /// Something has become of the dial.
    Dialed(Dialed),
    /// What is known of the session's row or its workspace has changed.
    News,
    /// The resolver has answered, or there will be no answer.
    Answered(Result<Validated, Missed>),
    /// The row was read.
    Reread(RowRead),
    /// The instant has come until which the attempt waits.
    TimeIsUp,
}

/// Goes on, or ends the race.
type Step = ControlFlow<Result<Raced, Error>>;
type RowRead = Result<Option<Arc<CachedRow>>, SharedError>;

/// A race of the session's dial against doubts about it, until there is a connection to an agent
/// that is not known to be superseded, or a reason to stop.
///
/// [`next_event`](Self::next_event) waits, [`apply`](Self::apply) tells the attempt,
/// [`carry_out`](Self::carry_out) does what the attempt says.
pub(crate) struct Race {
    shared: Arc<Shared>,
    /// What the race goes by, kept up to date with what becomes known.
    pub(crate) start: Start,
    /// What has become of the dial before the race, until that was looked at.
    first: Option<FirstPoll>,
    attempt: Attempt,
    /// The attempt has nothing else to do, and the timer is set.
    waits: bool,
    /// When the last event was noticed.
    now: Instant,
    /// When the last dial began, and for how long it was pending.
    dial_began: Instant,
    dialed_in: Duration,
    news: Option<News>,
    question: Option<BoxFuture<'static, Result<Validated, Missed>>>,
    reading: Option<BoxFuture<'static, RowRead>>,
    /// Only that read can tell where the session points. Until it ends, the dial goes on and the
    /// rest of the news waits.
    unread: bool,
    /// The attempt keeps a dial that the row contradicts.
    contradicted: bool,
    /// When the call first had a reason to doubt the bound agent.
    pub(crate) doubted: Option<Instant>,
    /// The causes for an error of the call.
    dial_error: Option<BoxError>,
    validation_error: Option<SharedError>,
}

/// The dialer, for the time of a poll.
type AtDialer<'a, 'b> = &'a mut Pin<&'b mut dyn AnyDialer>;

/// How the candidate of the attempt compares with what is known.
enum Followed {
    /// It is what the session would dial.
    Good,
    /// The attempt was told of another target, and decides.
    Switched,
    /// A command came after the row was read, and the cache does not have the row: it must be read.
    Unread,
    /// The row must be looked up again.
    Moved,
}

impl Race {
    /// Begins a race with the dial as far as it is.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        start: Start,
        first: FirstPoll,
        Times { began, now, deadline }: Times,
        wrong: Vec<Arc<Target>>,
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
            dialing: !matches!(first, FirstPoll::NotBegun),
            wrong,
        };
        let doubted = inputs.doubt.map(|_| now);
        let attempt = Attempt::new(limits, inputs, began);
        Self {
            shared: Arc::clone(shared),
            start,
            first: Some(first),
            attempt,
            waits: false,
            now,
            dial_began: began,
            dialed_in: Duration::ZERO,
            news: None,
            question: None,
            reading: None,
            unread: false,
            contradicted: false,
            doubted,
            dial_error: None,
            validation_error: None,
        }
    }

    fn begin(&mut self, first: FirstPoll, dialer: AtDialer<'_, '_>) -> Step {
        match first {
            FirstPoll::NotBegun => ControlFlow::Continue(()),
            // The delay may have passed as well: what has become known comes before a question.
            FirstPoll::Pending => self.follow_news(dialer),
            FirstPoll::Ended(dialed) => self.on_dialed(dialed, dialer),
        }
    }

    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        dialer: AtDialer<'_, '_>,
        timer: &mut Pin<&mut Timer>,
    ) -> Poll<Result<Raced, Error>> {
        if let Some(first) = self.first.take()
            && let ControlFlow::Break(end) = self.begin(first, dialer)
        {
            return Poll::Ready(end);
        }
        loop {
            while !self.waits {
                let progress = dialer.status().progress(self.dial_began);
                match self.attempt.next(self.now, progress) {
                    Command::Wait(until) => {
                        timer.as_mut().set(until);
                        self.waits = true;
                    }
                    command => {
                        if let ControlFlow::Break(end) = self.carry_out(command, dialer) {
                            return Poll::Ready(end);
                        }
                    }
                }
            }
            let event = ready!(self.poll_event(cx, dialer, timer));
            (self.waits, self.news) = (false, None);
            if let ControlFlow::Break(end) = self.apply(event, dialer) {
                return Poll::Ready(end);
            }
        }
    }

    /// The call is dropped: a dial that is pending leaves a doubt behind.
    pub(crate) fn dropped(mut self) {
        self.news = None;
        if let Some(target) = self.attempt.target() {
            dropped_in_flight(&self.shared, &self.start.entry, target, self.dial_began);
        }
    }

    /// Waits for the next event. If several are there, the first in this order is returned: dial,
    /// news, answer, row, timer.
    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        dialer: AtDialer<'_, '_>,
        timer: &mut Pin<&mut Timer>,
    ) -> Poll<RaceEvent> {
        let workspace_state = &self.start.entry.workspace_state;
        let to = To { workspace_state, target: self.attempt.target() };
        if let Poll::Ready(dialed) = dialer.as_mut().poll(cx, to) {
            return Poll::Ready(RaceEvent::Dialed(dialed));
        }
        if !self.unread {
            let news = self.news.get_or_insert_with(|| News::since(&self.shared, &self.start));
            if Pin::new(news).poll(cx).is_ready() {
                return Poll::Ready(RaceEvent::News);
            }
        }
        if let Some(question) = &mut self.question
            && let Poll::Ready(validated) = question.as_mut().poll(cx)
        {
            return Poll::Ready(RaceEvent::Answered(validated));
        }
        if let Some(reading) = &mut self.reading
            && let Poll::Ready(row) = reading.as_mut().poll(cx)
        {
            return Poll::Ready(RaceEvent::Reread(row));
        }
        timer.as_mut().poll(cx).map(|()| RaceEvent::TimeIsUp)
    }

    /// Reports an event to the attempt.
    fn apply(&mut self, event: RaceEvent, dialer: AtDialer<'_, '_>) -> Step {
        match event {
            RaceEvent::Dialed(dialed) => return self.on_dialed(dialed, dialer),
            RaceEvent::News => {
                self.now = Instant::now();
                return self.follow_news(dialer);
            }
            RaceEvent::Answered(validated) => {
                let followed = self.on_answer(validated);
                return self.goes_on(followed, dialer);
            }
            RaceEvent::Reread(row) => {
                self.now = Instant::now();
                self.reading = None;
                let followed = match std::mem::take(&mut self.unread) {
                    true => self.on_unread_row(row),
                    false => self.on_row(row),
                };
                return self.goes_on(followed, dialer);
            }
            RaceEvent::TimeIsUp => self.now = Instant::now(),
        }
        ControlFlow::Continue(())
    }

    /// Does what the attempt says.
    fn carry_out(&mut self, command: Command, dialer: AtDialer<'_, '_>) -> Step {
        match command {
            Command::Dial(target) => {
                self.dial_began = self.now;
                dialer.as_mut().start(&target);
            }
            Command::Stop => {
                dialer.as_mut().stop();
                // The dial may have waited for it.
                dialer.as_mut().give_back();
            }
            Command::Validate => self.validate(self.attempt.doubt().unwrap_or(self.now)),
            Command::Revalidate => match self.start.entry.workspace_state.paused_until(self.now) {
                Some(until) => self.attempt.on_paused(until),
                None => {
                    self.attempt.on_asking(self.now);
                    self.validate(self.now);
                }
            },
            Command::Probe => self.probe(dialer),
            Command::Reread => self.read(),
            Command::Serve => return self.serve(dialer),
            Command::Fail(kind) => return self.fail(kind, dialer),
            // The next event is waited for.
            Command::Wait(_) => {}
        }
        ControlFlow::Continue(())
    }

    /// Reads the row, in a read that begins now.
    fn read(&mut self) {
        let (shared, session, since) = (Arc::clone(&self.shared), self.session(), self.now);
        self.reading = Some(Box::pin(async move { shared.read_since(session, since).await }));
    }

    /// Asks the resolver, because of a doubt that was raised at `since`.
    fn validate(&mut self, since: Instant) {
        self.doubted.get_or_insert(self.now);
        let mut question = self.shared.validate(&self.start.entry.workspace_state, since);
        let wait = async move { question.result(None).await };
        self.question = Some(Box::pin(spans::validate(wait)));
    }

    fn probe(&mut self, dialer: AtDialer<'_, '_>) {
        let Settings { revalidate_every: every, validation_delay: delay, .. } =
            self.shared.settings;
        match dialer.status().probe(self.now, every, delay) {
            Probe::Granted => self.attempt.on_probe(self.now),
            // With jitter, so that the calls that wait do not look at one instant.
            Probe::Wait(until) => self.attempt.on_paused(until + jitter::up_to(delay / 2)),
            Probe::InVain => self.attempt.on_probed_in_vain(),
        }
    }

    /// Ends the race with the connection, if it is still one to what the session would dial: what
    /// is known may have changed since the dial began. A connection to something older is dropped.
    fn serve(&mut self, dialer: AtDialer<'_, '_>) -> Step {
        let followed = match self.look() {
            // The row is created next, and the store's answer says where the session points.
            Followed::Unread if self.start.absent => {
                self.go_by(Arc::clone(&self.start.entry), true, Instant::now())
            }
            followed => followed,
        };
        match followed {
            Followed::Good => {}
            Followed::Switched => return ControlFlow::Continue(()),
            Followed::Unread | Followed::Moved => return self.moved(dialer),
        }
        let outcome = Outcome {
            kind: self.attempt.outcome_kind(),
            dials: 0,
            validations: self.attempt.validations(),
            decided_in: Duration::ZERO,
            dialed_in: self.dialed_in,
            repair: None,
        };
        let Some(target) = self.attempt.take_target() else {
            // Never: the attempt serves only what has connected.
            let error = Error::new(ErrorKind::Dialer).of(self.session());
            return end(Err(error), dialer);
        };
        let (dial_began, last) = (self.dial_began, self.attempt.last_verdict());
        ControlFlow::Break(Ok(Raced::Won(Won { target, dial_began, outcome, last })))
    }

    fn fail(&mut self, kind: ErrorKind, dialer: AtDialer<'_, '_>) -> Step {
        if self.validation_error.is_none() && self.question.is_some() {
            self.validation_error = Some(Cause::NoAnswerYet.shared());
        }
        let error = Error::new(kind)
            .of(self.session())
            .with_dial(self.dial_error.take())
            .with_validation(self.validation_error.take());
        end(Err(error), dialer)
    }

    fn moved(&mut self, dialer: AtDialer<'_, '_>) -> Step {
        end(Ok(Raced::Moved), dialer)
    }

    /// Moves out the targets at whose address another agent has answered.
    pub(crate) fn take_wrong(&mut self) -> Vec<Arc<Target>> {
        self.attempt.take_wrong()
    }

    /// Returns for how many validations the race has asked.
    pub(crate) fn validations(&self) -> u8 {
        self.attempt.validations()
    }

    fn session(&self) -> SessionId {
        self.start.entry.row.session
    }

    /// A switch needs no step of its own: the attempt was told, and says what to do.
    fn goes_on(&mut self, followed: Followed, dialer: AtDialer<'_, '_>) -> Step {
        match followed {
            Followed::Good | Followed::Switched => ControlFlow::Continue(()),
            Followed::Unread | Followed::Moved => self.moved(dialer),
        }
    }

    fn follow_news(&mut self, dialer: AtDialer<'_, '_>) -> Step {
        match self.look() {
            // Neither a pending dial nor what the attempt has found out is given up for a hint that
            // may say nothing new.
            Followed::Unread => {
                self.unread = true;
                self.read();
                ControlFlow::Continue(())
            }
            followed => self.goes_on(followed, dialer),
        }
    }

    fn on_dialed(&mut self, dialed: Dialed, dialer: AtDialer<'_, '_>) -> Step {
        match dialed {
            Dialed::Admitted => {
                self.now = Instant::now();
                let followed = self.admitted();
                return self.goes_on(followed, dialer);
            }
            Dialed::Started => {
                self.now = Instant::now();
                self.dial_began = self.now;
                self.attempt.on_dial_started(self.now);
            }
            Dialed::Connected(()) => {
                if dialer.status().was_pending() {
                    self.now = Instant::now();
                }
                self.ended(None);
                self.attempt.on_connected();
            }
            Dialed::Failed(error) => {
                self.now = Instant::now();
                let followed = self.failed(&error);
                self.dial_error = Some(error);
                return self.goes_on(followed, dialer);
            }
            Dialed::NotReady(error) => {
                let failed = Error::new(ErrorKind::Dialer).of(self.session());
                return end(Err(failed.with_dial(Some(error))), dialer);
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
        tell_dialed(&self.shared, entry, target, self.dialed_in, error);
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
        if WrongAgentError::is_in(&**error) {
            self.attempt.on_wrong_agent(self.now);
        } else {
            self.attempt.on_dial_failed(self.now);
        }
        match self.look() {
            // There is no other dial to keep, so the row is followed.
            Followed::Good if self.contradicted => {
                self.go_by(Arc::clone(&self.start.entry), self.start.absent, self.now)
            }
            followed => followed,
        }
    }

    fn on_answer(&mut self, validated: Result<Validated, Missed>) -> Followed {
        self.now = Instant::now();
        self.question = None;
        // No answer counts in an epoch that has ended, so the question would be asked without end:
        // the news of the reset may have to wait until a row was read.
        if self.start.entry.workspace_state.is_reset() {
            return Followed::Moved;
        }
        let validated = match validated {
            Ok(validated) => validated,
            // Nobody drives the runtime of that question: another one begins here.
            Err(Missed::Stopped) => {
                self.validate(self.now);
                return Followed::Good;
            }
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
        Followed::Good
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
        let Start { entry, version, absent, .. } = &self.start;
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
        self.start = start;
        self.contradicted = false;
        let Start { entry, choice, .. } = &self.start;
        let dialed = self.attempt.target().filter(|_| choice.contradicts());
        let named_at = dialed.and_then(|dialed| entry.workspace_state.named_at(dialed));
        let keeps_dial = named_at.is_some() && self.attempt.keeps_its_dial();
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
            (Some(_), Some(doubt)) if keeps_dial && named_at < Some(doubt) => {
                self.contradicted = true;
                self.doubted.get_or_insert(now);
                self.attempt.on_contradicted(doubt, now);
                return Followed::Switched;
            }
            // An answer to a question of that instant counts as the later one.
            (Some(_), Some(_)) if keeps_dial => {}
            (Some(target), doubt) if self.attempt.on_known(target, doubt, now) => {
                self.doubted.get_or_insert(now);
                return Followed::Switched;
            }
            (None, Some(doubt)) => self.attempt.on_doubt(doubt, now),
            _ => {}
        }
        Followed::Good
    }
}

/// The race ends by its own decision: a dial that is still pending ends here, and is no evidence
/// against its agent.
fn end(end: Result<Raced, Error>, dialer: AtDialer<'_, '_>) -> Step {
    dialer.as_mut().stop();
    ControlFlow::Break(end)
}

/// Tells the observer that a dial has ended.
#[inline]
pub(crate) fn tell_dialed(
    shared: &Shared,
    entry: &CachedRow,
    target: &Target,
    took: Duration,
    error: Option<&BoxError>,
) {
    if shared.is_observed() {
        let (session, workspace) = (entry.row.session, entry.workspace());
        let error = error.map(|error| &**error as _);
        shared.emit(&Event::Dialed { session, workspace, target, took, error });
    }
}

/// Notes that a dial has succeeded. `times` returns when it began, and now.
#[inline]
pub(crate) fn note_answered(
    entry: &CachedRow,
    target: &Target,
    validated: bool,
    times: impl Fn() -> (Instant, Instant),
) {
    entry.workspace_state.answered_dial(target, &times);
    entry.workspace_state.answered(target.agent, validated, || times().1);
}

pub(crate) fn dropped_in_flight(
    shared: &Shared,
    entry: &CachedRow,
    target: &Target,
    began: Instant,
) {
    let now = Instant::now();
    let CachedRow { row, workspace_state, .. } = entry;
    workspace_state.doubt_dropped(target.agent, began, now);
    let (session, workspace, pending) =
        (row.session, workspace_state.workspace(), now.saturating_duration_since(began));
    shared.emit(&Event::DroppedInFlight { session, workspace, target, pending });
}
