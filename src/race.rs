//! Drives one [`Attempt`]: gathers events with `select!`, carries out its commands.
//!
//! Knows neither how a row is found nor what happens after a connection was won: [`call`](crate::call) does.

use crate::{
    BoxError, DialAgent, DialSession, Error, ErrorKind, Event, Path, Target,
    attempt::{Answer, Attempt, Command, Given, Limits},
    dialer::{Dialed, Dialer},
    error::{Cause, SharedError},
    flight::Seat,
    rows::{Entry, State},
    shared::{Look, Shared, Start, Validated},
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
    /// The session's row must be looked up again: it points elsewhere by now, or may.
    Moved,
}

pub(crate) struct Won<C> {
    pub(crate) connection: C,
    pub(crate) target: Arc<Target>,
    pub(crate) path: Path,
    pub(crate) validations: u8,
    /// When the dial began that answered.
    pub(crate) dial_began: Instant,
    /// How long it was pending; zero if it never was.
    pub(crate) dialed_in: Duration,
}

/// Races the session's dial against doubts about it, until there is a connection to an agent that is not known to be
/// superseded, or a reason to stop. The target that was chosen is in `start`, which follows what becomes known.
pub(crate) async fn race<S>(
    shared: &Arc<Shared>,
    dialer: Pin<&mut Dialer<S>>,
    ask: &DialSession,
    start: &mut Start,
    deadline: Instant,
    now: Instant,
) -> Result<Raced<S::Response>, Error>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    let limits = Limits { delay: shared.settings.validation_delay, deadline, redial: shared.settings.redial };
    let given = Given {
        bound: start.entry.row.target.clone(),
        target: start.choice.target.clone(),
        doubt: start.choice.doubt,
        hold: start.choice.hold,
    };
    let mut run = Run { shared, start, attempt: Attempt::new(limits, given, now), dialing: None };
    let raced = run.drive(dialer, ask, now).await;
    run.dialing = None;
    raced
}

/// A race under way. Dropped while its dial is pending, it leaves a doubt behind.
struct Run<'a> {
    shared: &'a Arc<Shared>,
    start: &'a mut Start,
    attempt: Attempt,
    /// When the dial began, while it is pending.
    dialing: Option<Instant>,
}

impl Drop for Run<'_> {
    /// Only marks: nothing may spawn, block or panic in a `Drop`.
    fn drop(&mut self) {
        let (Some(began), Some(target)) = (self.dialing, self.attempt.target()) else { return };
        if std::thread::panicking() {
            return;
        }
        let now = Instant::now();
        let Entry { row, place, .. } = &*self.start.entry;
        place.doubt_dropped(target.agent, began, now);
        let (session, workspace, pending) = (row.session, row.workspace, now.saturating_duration_since(began));
        self.shared.emit(&Event::DroppedInFlight { session, workspace, target, pending });
    }
}

type Reading = BoxFuture<'static, Result<Option<Arc<Entry>>, SharedError>>;

impl Run<'_> {
    async fn drive<S>(
        &mut self,
        mut dialer: Pin<&mut Dialer<S>>,
        ask: &DialSession,
        mut now: Instant,
    ) -> Result<Raced<S::Response>, Error>
    where
        S: Service<DialAgent> + Clone,
        S::Error: Into<BoxError>,
    {
        let mut question: Option<Seat<Validated>> = None;
        let mut reading: Option<Reading> = None;
        let mut connected: Option<(S::Response, Instant, Duration)> = None;
        let mut dial_error: Option<BoxError> = None;
        let mut validation_error: Option<SharedError> = None;

        loop {
            let until = match self.attempt.next(now, dialer.progress()) {
                Command::Dial(target) => {
                    connected = None;
                    self.dialing = Some(now);
                    dialer.as_mut().start(DialAgent {
                        session: ask.session,
                        workspace: self.start.entry.workspace(),
                        target,
                        extensions: ask.extensions.clone(),
                    });
                    continue;
                }
                Command::Validate => {
                    question = Some(self.shared.validate(&self.start.entry.place));
                    continue;
                }
                Command::Reread => {
                    let (shared, session, since) = (Arc::clone(self.shared), ask.session, now);
                    reading = Some(Box::pin(async move { shared.read_since(session, since).await }));
                    continue;
                }
                Command::Serve => {
                    // What is known may have changed since the dial began: this is the one look. A connection to
                    // something older is dropped.
                    match self.look() {
                        Landing::Good => {}
                        Landing::Moved => return Ok(Raced::Moved),
                        Landing::Elsewhere => continue,
                    }
                    let (Some((connection, dial_began, dialed_in)), Some(target)) =
                        (connected.take(), self.attempt.target())
                    else {
                        // Never: only a connection that is there is to be served.
                        return Err(Error::new(ErrorKind::Dialer).of(ask.session));
                    };
                    return Ok(Raced::Won(Won {
                        connection,
                        target: Arc::clone(target),
                        path: self.attempt.path(),
                        validations: self.attempt.validations(),
                        dial_began,
                        dialed_in,
                    }));
                }
                Command::Fail(kind) => {
                    if validation_error.is_none() && question.is_some() {
                        validation_error = Some(Cause::NoAnswerYet.shared());
                    }
                    let error = Error::new(kind).of(ask.session);
                    return Err(error.with_dial(dial_error).with_validation(validation_error));
                }
                Command::Wait(until) => until,
            };

            // Each arm looks at state that outlives the loop, so losing a round loses nothing. Each is an async fn or
            // block, so that it costs nothing before its first poll: if the dial is ready at once, the others are never
            // polled. Handlers run after all arms were dropped, so they may change that state.
            select! {
                biased;
                dialed = dialer.as_mut().finished() => match dialed {
                    Dialed::Started => {
                        now = Instant::now();
                        self.dialing = Some(now);
                        self.attempt.on_dial_started(now);
                    }
                    Dialed::Connected(connection) => {
                        let dial_began = self.dialing.unwrap_or(now);
                        if dialer.was_pending() {
                            now = Instant::now();
                        }
                        let dialed_in = self.ended(now, None);
                        connected = Some((connection, dial_began, dialed_in));
                        self.attempt.on_connected();
                    }
                    Dialed::Failed(error) => {
                        now = Instant::now();
                        self.ended(now, Some(&error));
                        dial_error = Some(error);
                        self.attempt.on_dial_failed(now);
                    }
                    Dialed::NotReady(error) => {
                        return Err(Error::new(ErrorKind::Dialer).of(ask.session).with_dial(Some(error)));
                    }
                },
                () = news(self.shared, self.start) => {
                    now = Instant::now();
                    if let Landing::Moved = self.look() {
                        return Ok(Raced::Moved);
                    }
                }
                validated = landed(&mut question) => {
                    question = None;
                    now = Instant::now();
                    let crashed = || Validated {
                        answer: Answer::Unknown,
                        cause: Some(Cause::TaskEnded.shared()),
                        began: now,
                        again: now + self.shared.settings.revalidate_every,
                    };
                    let Validated { answer, cause, began, again } = validated.unwrap_or_else(crashed);
                    validation_error = cause;
                    self.attempt.on_answer(answer, began, again, now);
                }
                looked = read(&mut reading) => {
                    reading = None;
                    now = Instant::now();
                    if let Landing::Moved = self.on_row(looked, now) {
                        return Ok(Raced::Moved);
                    }
                }
                () = async { sleep_until(until).await } => now = Instant::now(),
            }
        }
    }

    /// The dial has ended. Returns how long it was pending.
    fn ended(&mut self, now: Instant, error: Option<&BoxError>) -> Duration {
        let (Some(began), Some(target)) = (self.dialing.take(), self.attempt.target()) else { return Duration::ZERO };
        let Entry { row, place, .. } = &*self.start.entry;
        let took = now.saturating_duration_since(began);
        self.shared.emit(&Event::Dialed {
            session: row.session,
            workspace: row.workspace,
            target,
            took,
            error: error.map(|error| &**error as _),
        });
        if error.is_none() {
            place.answered(target.agent, self.attempt.validations() > 0, now);
        }
        took
    }

    /// Compares what is being dialed with what this process knows.
    fn look(&mut self) -> Landing {
        match self.shared.look(self.start) {
            Look::Still => Landing::Good,
            Look::Moved => Landing::Moved,
            Look::Anew => self.follow(Instant::now()),
        }
    }

    /// The row was read after a denial.
    fn on_row(&mut self, looked: Result<Option<Arc<Entry>>, SharedError>, now: Instant) -> Landing {
        match looked {
            Ok(Some(entry)) if entry.workspace() == self.start.entry.workspace() => {
                let choice = self.shared.choose(&entry, now);
                if choice.void {
                    return Landing::Moved;
                }
                *self.start = Start { entry, choice };
                let landing = self.follow(now);
                if let Landing::Good = landing {
                    self.attempt.on_row_unchanged();
                }
                landing
            }
            // The session points elsewhere, or nowhere.
            Ok(_) => Landing::Moved,
            Err(_) => {
                self.attempt.on_row_unreadable();
                Landing::Good
            }
        }
    }

    /// Tells the attempt of a choice that was made anew.
    fn follow(&mut self, now: Instant) -> Landing {
        let choice = &self.start.choice;
        match (&choice.target, choice.doubt) {
            (Some(target), doubt) if self.attempt.on_known(target, doubt, now) => return Landing::Elsewhere,
            (None, Some(doubt)) => self.attempt.on_doubt(doubt, now),
            _ => {}
        }
        Landing::Good
    }
}

/// How what is being dialed compares with what is known.
enum Landing {
    Good,
    /// The attempt was told of another target.
    Elsewhere,
    /// The row must be looked up again.
    Moved,
}

/// Ends when the row or what is known of its workspace has changed. Counts the call as waiting meanwhile.
async fn news(shared: &Shared, start: &Start) {
    let Entry { row, place, .. } = &*start.entry;
    let _waiting = place.wait();
    // Made before the look, so that a change between the look and the first poll is not missed.
    let mut row_changed = pin!(shared.rows.changed(row.session));
    let mut place_changed = pin!(place.changed());
    loop {
        if place.epoch() != start.choice.epoch || matches!(start.entry.state(), State::Replaced | State::Removed) {
            return;
        }
        select! {
            () = row_changed.as_mut() => {
                if start.entry.state() != State::Current {
                    return;
                }
                row_changed.set(shared.rows.changed(row.session));
            }
            () = place_changed.as_mut() => place_changed.set(place.changed()),
        }
    }
}

/// Pending for ever while nothing was asked.
async fn landed<T: Clone>(question: &mut Option<Seat<T>>) -> Option<T> {
    match question {
        Some(seat) => seat.landed().await,
        None => pending().await,
    }
}

/// Pending for ever while nothing is being read.
async fn read(reading: &mut Option<Reading>) -> Result<Option<Arc<Entry>>, SharedError> {
    match reading {
        Some(reading) => reading.await,
        None => pending().await,
    }
}
