//! Random orders of events, as a driver could send them at any time.

use super::*;
use crate::Generation;
use proptest::prelude::*;

/// An event that may happen next. [`Model::event`] skips events that are not possible at that
/// moment.
#[derive(Clone, Debug)]
enum Happens {
    /// The dial service becomes ready.
    Started,
    Connected,
    Failed,
    FailedLocally,
    WrongAgent,
    /// The target answers a dial that began later.
    Overtaken,
    /// Other calls begin or cease to wait for a slot.
    Awaited(bool),
    /// The target answers a dial that began earlier.
    AnsweredEarlier,
    DeniedInQueue,
    /// An answer whose read began this long ago, but after the last answer.
    Answered(Said, u64),
    /// Another call or a command supplies the target.
    Known(Said),
    Doubted(u64),
    /// The row names another target, and nothing orders the two.
    Contradicted(u64),
    RowNames(Said),
    RowUnchanged,
    RowUnreadable,
    Nothing,
}

/// A target relative to the dialed one.
#[derive(Clone, Copy, Debug)]
enum Said {
    Same,
    NewerAtTheSamePlace,
    Newer,
    Other,
    Older,
    /// The last target at whose address another agent has answered, in the present generation.
    Wrong,
    Denied(Denied),
    Unknown,
    Overtaken,
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        3 => Just(Said::Same),
        1 => Just(Said::NewerAtTheSamePlace),
        2 => Just(Said::Newer),
        3 => Just(Said::Other),
        1 => Just(Said::Older),
        1 => Just(Said::Wrong),
        1 => Just(Said::Denied(Denied::Stopped)),
        1 => Just(Said::Denied(Denied::Gone)),
        1 => Just(Said::Denied(Denied::Starting { retry_after: None })),
        2 => Just(Said::Unknown),
        1 => Just(Said::Overtaken),
    ]
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        2 => Just(Happens::Started),
        2 => Just(Happens::Connected),
        6 => Just(Happens::Failed),
        1 => Just(Happens::FailedLocally),
        2 => Just(Happens::WrongAgent),
        2 => Just(Happens::Overtaken),
        2 => any::<bool>().prop_map(Happens::Awaited),
        1 => Just(Happens::AnsweredEarlier),
        1 => Just(Happens::DeniedInQueue),
        6 => (said(), 0_u64..3_000).prop_map(|(said, age)| Happens::Answered(said, age)),
        2 => said().prop_map(Happens::Known),
        1 => (0_u64..1_000).prop_map(Happens::Doubted),
        2 => (0_u64..1_000).prop_map(Happens::Contradicted),
        1 => said().prop_map(Happens::RowNames),
        1 => Just(Happens::RowUnchanged),
        1 => Just(Happens::RowUnreadable),
        2 => Just(Happens::Nothing),
    ]
}

#[derive(Clone, Debug)]
struct Begins {
    numbered: bool,
    bound: bool,
    known: bool,
    doubt: Option<u64>,
    hold: bool,
    once: bool,
    busy: bool,
    started: u8,
    /// Whether a newer target is known when a dial connects, in turn.
    late_news: Vec<bool>,
}

fn begins() -> impl Strategy<Value = Begins> {
    let flags = any::<[bool; 6]>();
    let news = prop::collection::vec(prop::bool::weighted(0.3), 0..4);
    (flags, prop::option::of(0_u64..5_000), 0..=MOST_DIALS, news).prop_map(
        |([numbered, bound, known, hold, once, busy], doubt, started, late_news)| Begins {
            numbered,
            bound,
            known,
            doubt,
            hold: hold && doubt.is_some(),
            once,
            busy,
            started: started.saturating_sub(1),
            late_news,
        },
    )
}

/// The driver, the dialer and the known targets around an attempt, and the checks of its commands.
struct Model {
    zero: Instant,
    now: Instant,
    attempt: Attempt,
    progress: Progress,
    once: bool,
    busy: bool,
    late_news: Vec<bool>,
    /// The agents and generations that were used already.
    agents: u128,
    generation: Option<i64>,
    /// The target that is dialed or held, according to the last command.
    dial: Option<Arc<Target>>,
    connected: bool,
    asked: bool,
    last_answer: Instant,
    reading: bool,
    /// The greatest generation in the events that the attempt must respect.
    told: Option<Generation>,
    denials: u32,
    /// Dial commands for the present target, since it became the target. Lost dials that were
    /// started over count once.
    dials: u8,
    /// The targets at whose address another agent has answered.
    wrong: Vec<Arc<Target>>,
    /// The request to start the dial over was granted.
    probing: bool,
    ended: Option<Command>,
}

impl Model {
    fn new(begins: &Begins) -> Self {
        let zero = Instant::now() + Duration::from_secs(3600);
        let redial = if begins.once { Redial::Once } else { Redial::Never };
        let limits =
            Limits { delay: ms(DELAY), deadline: zero + ms(DEADLINE), redial, jitter: ms(0) };
        let mut model = Self {
            zero,
            now: zero,
            attempt: Attempt::new(limits, Inputs::default(), zero),
            progress: Progress { started: begins.started, ..Progress::default() },
            once: begins.once,
            busy: begins.busy,
            late_news: begins.late_news.clone(),
            agents: 0,
            generation: begins.numbered.then_some(0),
            dial: None,
            connected: false,
            asked: false,
            last_answer: zero - Duration::from_secs(60),
            reading: false,
            told: None,
            denials: 0,
            dials: 0,
            wrong: Vec::new(),
            probing: false,
            ended: None,
        };
        let bound = begins.bound.then(|| model.another());
        let target = if begins.known { Some(model.newer()) } else { bound.clone() };
        let doubt = begins.doubt.map(|age| zero - ms(age));
        model.told = target.as_ref().and_then(|target| target.generation);
        model.attempt = Attempt::new(
            limits,
            Inputs {
                bound: bound.as_ref(),
                target,
                doubt,
                hold: begins.hold,
                denied: None,
                dialing: false,
                wrong: Vec::new(),
            },
            zero,
        );
        model
    }

    /// Returns another agent, of the present generation if there are generations.
    fn another(&mut self) -> Arc<Target> {
        self.agents += 1;
        let mut target = Target::new(AgentId::new(Uuid::from_u128(self.agents)));
        target.generation = self.generation.map(Generation::new);
        Arc::new(target)
    }

    fn newer(&mut self) -> Arc<Target> {
        self.generation = self.generation.map(|generation| generation + 1);
        self.another()
    }

    fn target(&mut self, said: Said) -> Option<Arc<Target>> {
        let present = self.attempt.target().cloned();
        Some(match (said, present) {
            (Said::Denied(_) | Said::Unknown | Said::Overtaken, _) => return None,
            (Said::Wrong, _) if !self.wrong.is_empty() => {
                let mut target = (**self.wrong.last().expect("a target")).clone();
                target.generation = self.generation.map(Generation::new);
                Arc::new(target)
            }
            (_, None) | (Said::Other | Said::Wrong, _) => self.another(),
            (Said::Newer, _) => self.newer(),
            (Said::Same, Some(present)) => Arc::new((*present).clone()),
            (Said::NewerAtTheSamePlace, Some(present)) => {
                self.generation = self.generation.map(|generation| generation + 1);
                let mut target = (*present).clone();
                target.generation = self.generation.map(Generation::new);
                Arc::new(target)
            }
            (Said::Older, Some(present)) => {
                let mut target = (*self.another()).clone();
                target.generation =
                    present.generation.map(|generation| Generation::new(generation.get() - 1));
                Arc::new(target)
            }
        })
    }

    /// Reports the event if it is possible now.
    fn event(&mut self, happens: &Happens) {
        let pending = self.dial.is_some() && !self.connected;
        let before = self.attempt.target().cloned();
        match happens {
            Happens::Started if pending && self.progress.waiting => {
                self.progress.waiting = false;
                self.start();
                self.attempt.on_dial_started(self.now);
            }
            Happens::Connected if pending && !self.progress.waiting => {
                self.connected = true;
                self.attempt.on_connected();
            }
            Happens::Failed if pending && !self.progress.waiting => {
                self.dial = None;
                self.attempt.on_dial_failed(self.now);
            }
            Happens::WrongAgent if pending && !self.progress.waiting => {
                self.dial = None;
                // A newer generation that became known while the dial was pending, perhaps.
                self.wrong.extend(before.clone());
                self.attempt.on_wrong_agent(self.now);
            }
            Happens::FailedLocally if pending && !self.progress.waiting => {
                self.dial = None;
                self.attempt.on_dial_failed_locally();
            }
            Happens::Overtaken if pending && !self.progress.waiting => {
                self.progress.answers = Answers::Later
            }
            Happens::Awaited(awaited) => self.progress.awaited = *awaited,
            Happens::AnsweredEarlier if pending && self.progress.answers == Answers::None => {
                self.progress.answers = Answers::Earlier;
            }
            Happens::DeniedInQueue if pending && self.progress.waiting => {
                self.denials += 1;
                self.attempt.on_denied_in_queue(Denied::Stopped);
            }
            Happens::Answered(said, age) if self.asked => {
                // A flight begins after the previous one has ended.
                let began = self.last_answer.max(self.now - ms(*age));
                self.last_answer = self.now;
                self.asked = false;
                let answer = match said {
                    Said::Denied(denied) => Answer::Denied(*denied),
                    Said::Unknown => Answer::Unknown,
                    Said::Overtaken => Answer::Overtaken,
                    said => self.target(*said).map_or(Answer::Unknown, Answer::Running),
                };
                if let Answer::Running(target) = &answer {
                    self.told = self.told.max(target.generation);
                }
                self.denials += u32::from(matches!(answer, Answer::Denied(_)));
                let unknown = matches!(answer, Answer::Unknown | Answer::Overtaken);
                self.attempt.on_answer(answer, began, self.now + ms(AGAIN), self.now);
                if unknown {
                    assert_eq!(
                        self.attempt.target(),
                        before.as_ref(),
                        "unknown is no reason to switch"
                    );
                }
            }
            Happens::Known(said) => self.known(*said),
            Happens::Doubted(age) => self.attempt.on_doubt(self.now - ms(*age), self.now),
            Happens::Contradicted(age) if self.attempt.target().is_some() => {
                if self.attempt.keeps_its_dial() {
                    self.attempt.on_contradicted(self.now - ms(*age), self.now);
                    assert!(self.progress.started >= MOST_DIALS - 1 && self.dial.is_some());
                    assert_eq!(self.attempt.target(), before.as_ref());
                } else {
                    self.known(Said::Other);
                }
            }
            Happens::RowNames(said) if self.reading => {
                self.reading = false;
                let place = self.attempt.target().cloned();
                self.known(*said);
                if same_endpoint(place.as_ref(), self.attempt.target()) {
                    self.attempt.on_row_unchanged();
                }
            }
            Happens::RowUnchanged if self.reading => {
                self.reading = false;
                self.attempt.on_row_unchanged();
            }
            Happens::RowUnreadable if self.reading => {
                self.reading = false;
                self.attempt.on_row_unreadable();
            }
            _ => return,
        }
        if !same_endpoint(before.as_ref(), self.attempt.target()) {
            self.dials = 0;
        }
    }

    /// Records a known target. Known targets never become older.
    fn known(&mut self, said: Said) {
        let said = if matches!(said, Said::Older) { Said::Same } else { said };
        let Some(target) = self.target(said) else { return };
        let doubt = self.agents.is_multiple_of(3).then_some(self.now - ms(10));
        let elsewhere = !same_endpoint(self.attempt.target(), Some(&target));
        self.told = self.told.max(target.generation);
        assert_eq!(self.attempt.on_known(&target, doubt, self.now), elsewhere);
        assert_eq!(self.attempt.target(), Some(&target));
        self.dials = if elsewhere { 0 } else { self.dials };
    }

    fn start(&mut self) {
        self.progress.started += 1;
        assert!(self.progress.started <= MOST_DIALS, "a fourth dial");
    }

    /// Executes all commands up to the next wait.
    fn drain(&mut self, happened: &Happens) -> Option<Instant> {
        for _ in 0..8 {
            let command = self.attempt.next(self.now, self.progress);
            match &command {
                Command::Dial(target) => {
                    assert_eq!(self.attempt.target(), Some(target));
                    assert!(!self.is_wrong(target), "dialed although another agent is there");
                    assert!(self.now < self.zero + ms(DEADLINE), "dialed at the deadline");
                    let hangs = !self.connected && same_endpoint(self.dial.as_ref(), Some(target));
                    let starts_over = hangs
                        && (self.progress.answers == Answers::Later
                            || std::mem::take(&mut self.probing));
                    self.progress.answers = Answers::None;
                    // There is one slot for a dial: the former dial is dropped.
                    self.dial = Some(Arc::clone(target));
                    self.connected = false;
                    self.progress.waiting = self.busy;
                    self.dials += u8::from(!starts_over);
                    assert!(
                        self.dials <= 1 + u8::from(self.once),
                        "a target has {} dials",
                        self.dials
                    );
                    if !self.busy {
                        self.start();
                    }
                }
                Command::Stop => {
                    assert!(self.asked, "there is nothing to wait for");
                    self.dial = None;
                    self.connected = false;
                    self.progress.waiting = false;
                }
                Command::Validate => {
                    assert!(!self.asked, "two questions");
                    self.asked = true;
                }
                Command::Revalidate => {
                    assert!(!self.asked, "two questions");
                    if matches!(happened, Happens::Nothing) {
                        // As if another call had asked meanwhile.
                        self.attempt.on_paused(self.now + ms(5_000));
                    } else {
                        self.attempt.on_asking(self.now);
                        self.asked = true;
                    }
                }
                Command::Probe => {
                    assert!(
                        (self.progress.awaited || self.progress.answers != Answers::None)
                            && !self.asked
                    );
                    assert!(self.progress.started < MOST_DIALS);
                    match happened {
                        Happens::Nothing => self.attempt.on_paused(self.now + ms(250)),
                        Happens::Awaited(_) => self.attempt.on_probed_in_vain(),
                        _ => {
                            self.probing = true;
                            self.attempt.on_probe(self.now);
                        }
                    }
                }
                Command::Reread => {
                    assert!(self.denials > 0);
                    self.reading = true;
                }
                Command::Wait(until) => {
                    assert!(*until > self.now, "it waits for what has passed");
                    assert!(*until <= self.zero + ms(DEADLINE), "it waits beyond the deadline");
                    assert!(
                        self.dial.is_none()
                            || same_endpoint(self.dial.as_ref(), self.attempt.target()),
                        "the dial of a former candidate goes on"
                    );
                    assert!(
                        self.dial.is_some() || self.asked || self.reading,
                        "it waits for nothing"
                    );
                    return Some(*until);
                }
                Command::Serve => {
                    if self.late_news.pop() == Some(true) {
                        // The last comparison has revealed a newer target.
                        self.known(Said::Newer);
                        continue;
                    }
                    let dialed = self.dial.as_ref().expect("a dial");
                    assert!(self.connected, "nothing is connected");
                    assert!(same_endpoint(Some(dialed), self.attempt.target()));
                    let serves = self.attempt.target().and_then(|target| target.generation);
                    assert!(serves >= self.told, "{serves:?} is older than {:?}", self.told);
                    self.end(command);
                    return None;
                }
                Command::Fail(kind) => {
                    self.check_failure(kind, happened);
                    self.end(command);
                    return None;
                }
            }
        }
        panic!("it spins");
    }

    fn is_wrong(&self, target: &Target) -> bool {
        self.wrong
            .iter()
            .any(|wrong| wrong.same_endpoint(target) && wrong.generation == target.generation)
    }

    fn check_failure(&self, kind: &ErrorKind, happened: &Happens) {
        let unknown = matches!(happened, Happens::Answered(Said::Unknown, _));
        let overtaken = matches!(happened, Happens::Answered(Said::Overtaken, _));
        match kind {
            ErrorKind::TimedOut { .. } => {
                assert!(self.now >= self.zero + ms(DEADLINE), "timed out early")
            }
            ErrorKind::Unreachable { newer: None } => {
                let had_all = self.dials == 1 + u8::from(self.once);
                assert!(
                    had_all || self.progress.started == MOST_DIALS,
                    "given up after {} dials",
                    self.dials
                );
            }
            ErrorKind::Unreachable { newer: Some(newer) } => {
                assert_eq!(
                    (self.progress.started, self.attempt.target()),
                    (MOST_DIALS, Some(newer))
                );
            }
            ErrorKind::Starting { .. } | ErrorKind::Stopped | ErrorKind::Gone => {
                assert!(
                    self.denials > 0 && !unknown && !overtaken && !self.reading,
                    "no denial, or no row was read"
                );
            }
            ErrorKind::WrongAgent => {
                let target = self.attempt.target().expect("a target");
                assert!(self.is_wrong(target) && !self.asked, "another target may be named");
            }
            ErrorKind::Local => assert!(matches!(happened, Happens::FailedLocally)),
            ErrorKind::Resolver => {
                assert!(self.dial.is_none() && self.attempt.target().is_none() && !overtaken);
            }
            kind => panic!("it knows nothing of {kind:?}"),
        }
    }

    fn end(&mut self, command: Command) {
        assert!(self.ended.is_none());
        assert!(self.now <= self.zero + ms(DEADLINE));
        // The final command stays the same, however often and whenever it is asked for.
        assert_eq!(self.attempt.next(self.now, self.progress), command);
        self.ended = Some(command);
    }
}

fn same_endpoint(one: Option<&Arc<Target>>, other: Option<&Arc<Target>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.same_endpoint(other),
        (None, None) => true,
        _ => false,
    }
}

/// Plays the events, then advances the time to the deadline. Returns the final command.
fn play(begins: &Begins, events: &[(u64, Happens)]) -> Command {
    let mut model = Model::new(begins);
    let mut wait = model.drain(&Happens::Nothing);
    let mut events = events.iter();
    // Without further events, the attempt asks, repeats the dial or ends within a few steps.
    for _ in 0..200 {
        let Some(until) = wait else { return model.ended.expect("an end") };
        let (step, happens) = events.next().cloned().unwrap_or((DEADLINE, Happens::Nothing));
        let early = model.now + ms(step) < until;
        model.now = until.min(model.now + ms(step));
        let happens = if early || step % 2 == 0 { happens } else { Happens::Nothing };
        model.event(&happens);
        wait = model.drain(&happens);
    }
    panic!("no end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_order_of_events_keeps_the_bounds(
        begins in begins(),
        events in prop::collection::vec((0_u64..1_500, happens()), 0..40),
    ) {
        play(&begins, &events);
    }
}

/// The model reaches what it is to check; else it would prove nothing.
#[test]
fn random_orders_end_in_every_way() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut ends = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..1024 {
        let begins = begins().new_tree(&mut runner).expect("a value").current();
        let events = prop::collection::vec((0_u64..1_500, happens()), 0..40);
        let events = events.new_tree(&mut runner).expect("a value").current();
        let end = match play(&begins, &events) {
            Command::Fail(ErrorKind::Unreachable { newer }) => {
                format!("unreachable {}", newer.is_some())
            }
            Command::Fail(kind) => failure(&kind),
            command => format!("{command:?}"),
        };
        *ends.entry(end).or_default() += 1;
    }
    for end in [
        "Serve",
        "unreachable false",
        "unreachable true",
        "resolver",
        "local",
        "wrongagent",
        "stopped",
        "gone",
        "starting 0",
        "timed out unknown",
        "timed out same",
        "timed out superseded",
    ] {
        assert!(ends.get(end).is_some_and(|times| *times >= 5), "{end}: {ends:?}");
    }
}
