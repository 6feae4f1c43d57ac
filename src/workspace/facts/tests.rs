use super::*;
use crate::{
    Generation, Revision,
    binding::target,
    workspace::tests::{STOPPED, agent, ms, running, session},
};
use tokio::time::Duration;

const INTERVALS: Intervals =
    Intervals { first: Duration::from_secs(2), longest: Duration::from_secs(15) };

struct Scene {
    facts: Facts,
    zero: Instant,
}

impl Scene {
    fn new() -> Self {
        Self { facts: Facts::default(), zero: Instant::now() }
    }

    fn at(&self, millis: u64) -> Instant {
        self.zero + ms(millis)
    }

    /// An answer at once.
    fn answer(&mut self, answer: Answer, millis: u64) -> Judged {
        self.late_answer(answer, millis, millis)
    }

    fn late_answer(&mut self, answer: Answer, began: u64, landed: u64) -> Judged {
        let (began, landed) = (self.at(began), self.at(landed));
        self.facts.learn_answer(answer, began, landed, INTERVALS)
    }

    fn row(&mut self, name: &str, read: u64) -> bool {
        let read = self.at(read);
        self.facts.learn_row(&target(name), read)
    }

    fn hint(&mut self, now: u64) {
        let now = self.at(now);
        self.facts.doubts_mut().raise(DoubtReason::Hint, now);
    }

    fn doubt_agent(&mut self, name: &str, now: u64) {
        let now = self.at(now);
        self.facts.doubts_mut().raise_about(agent(name), DoubtReason::Unbound, now);
    }

    fn dropped(&mut self, name: &str, began: u64, now: u64) -> bool {
        let (began, now) = (self.at(began), self.at(now));
        self.facts.doubts_mut().dropped(agent(name), began, now)
    }

    fn report(&mut self, number: u128, name: &str, now: u64) -> bool {
        let now = self.at(now);
        self.facts.reported(session(number), &target(name), now)
    }

    fn choose(&mut self, row: Option<&str>, read: u64, now: u64) -> Choice {
        self.choose_for(1, row, read, now)
    }

    fn choose_for(&mut self, number: u128, row: Option<&str>, read: u64, now: u64) -> Choice {
        let row =
            Row { session: session(number), target: row.map(target), revision: Revision::new(1) };
        let (read, now) = (self.at(read), self.at(now));
        self.facts.choose(&row, read, now)
    }

    /// Returns the target to dial, and since when it is in doubt.
    fn dials(
        &mut self,
        row: Option<&str>,
        read: u64,
        now: u64,
    ) -> (Option<Arc<Target>>, Option<u64>) {
        let choice = self.choose(row, read, now);
        let doubt = choice.doubt().map(|since| (since - self.zero).as_millis() as u64);
        (choice.target().cloned(), doubt)
    }

    /// Returns since when the session of this row is in doubt.
    fn doubt(&mut self, row: &str, now: u64) -> Option<u64> {
        let (dialed, doubt) = self.dials(Some(row), 0, now);
        assert_eq!(dialed, Some(target(row)));
        doubt
    }
}

/// The known target and its origin.
enum Known {
    Nothing,
    /// Read in a row then.
    Row(&'static str, u64),
    /// The resolver's answer to a question that began then.
    Resolver(&'static str, u64),
    /// As `Row`, then named by the resolver in answer to a question that began then.
    Confirmed(&'static str, u64),
    /// The first was replaced by the second, in answer to questions that began 50 ms before and
    /// then.
    Replaced(&'static str, &'static str, u64),
    /// As `Resolver`, then stopped, in answer to a question that began 20 ms later.
    Stopped(&'static str, u64),
}

#[test]
fn a_session_dials_the_newer_of_its_row_and_what_is_known() {
    use Known::{Confirmed, Nothing, Replaced, Resolver, Row, Stopped};
    #[rustfmt::skip]
    let table = [
        // known                   row and when it was read      what is dialed, in doubt since
        (Nothing,                  (Some("a5"), 100),            Some("a5"), None),
        (Nothing,                  (None, 100),                  None,       None),
        // By generation, from whomever and whenever.
        (Resolver("b6", 50),       (Some("a5"), 100),            Some("b6"), None),
        (Resolver("b6", 150),      (Some("a5"), 100),            Some("b6"), None),
        (Row("b6", 50),            (Some("a5"), 100),            Some("b6"), None),
        (Resolver("a5", 150),      (Some("b6"), 100),            Some("b6"), None),
        (Resolver("a5", 50),       (Some("b6"), 100),            Some("b6"), None),
        (Resolver("a", 150),       (Some("a5"), 100),            Some("a5"), None),
        // The same agent and address.
        (Resolver("a5", 150),      (Some("a5"), 100),            Some("a5"), None),
        (Resolver("a6", 150),      (Some("a5"), 100),            Some("a6"), None),
        (Resolver("a", 150),       (Some("a"), 100),             Some("a"),  None),
        (Resolver("a5", 150),      (Some("a"), 100),             Some("a"),  None),
        // Not ordered by generation: by when the question began, and when the row was read.
        (Resolver("b", 150),       (Some("a"), 100),             Some("b"),  None),
        (Resolver("b", 50),        (Some("a"), 100),             Some("a"),  Some(100)),
        (Resolver("b", 100),       (Some("a"), 100),             Some("a"),  Some(100)),
        (Resolver("b5", 50),       (Some("a5"), 100),            Some("a5"), Some(100)),
        (Resolver("b5", 50),       (Some("a"), 100),             Some("a"),  Some(100)),
        (Resolver("a@y", 50),      (Some("a@x"), 100),           Some("a@x"), Some(100)),
        (Resolver("a@y", 150),     (Some("a@x"), 100),           Some("a@y"), None),
        // Two rows that contradict each other are no evidence.
        (Row("b", 50),             (Some("a"), 100),             Some("a"),  None),
        (Confirmed("b", 50),       (Some("a"), 100),             Some("a"),  Some(100)),
        (Confirmed("b", 150),      (Some("a"), 100),             Some("b"),  None),
        // A row that names what was superseded is behind, whenever it was read.
        (Replaced("a", "b", 50),   (Some("a"), 100),             Some("b"),  None),
        (Replaced("a", "b", 50),   (Some("c"), 100),             Some("c"),  Some(100)),
        (Replaced("a@x", "b", 50), (Some("a@y"), 100),           Some("a@y"), Some(100)),
        // An unbound session dials what is known.
        (Resolver("a5", 50),       (None, 100),                  Some("a5"), None),
        (Row("a5", 50),            (None, 100),                  Some("a5"), None),
        (Stopped("a5", 50),        (None, 100),                  None,       None),
        // A row that was read after a denial contradicts nothing.
        (Stopped("b", 50),         (Some("a"), 100),             Some("a"),  None),
        // The resolver was asked about the contradiction in vain, so that is quiet for a while.
        (Stopped("b", 90),         (Some("a"), 100),             Some("a"),  None),
        (Stopped("b", 150),        (Some("a"), 100),             Some("b"),  None),
        (Stopped("b6", 50),        (Some("a5"), 100),            Some("b6"), None),
        (Stopped("a5", 50),        (Some("a5"), 100),            Some("a5"), None),
    ];
    for (number, (known, (row, read), dials, doubt)) in table.into_iter().enumerate() {
        let mut s = Scene::new();
        match known {
            Nothing => {}
            Row(known, read) => drop(s.row(known, read)),
            Confirmed(known, began) => {
                s.row(known, 0);
                s.answer(running(known), began);
            }
            Resolver(known, began) => drop(s.answer(running(known), began)),
            Replaced(old, known, began) => {
                s.answer(running(old), began - 50);
                s.answer(running(known), began);
            }
            Stopped(known, began) => {
                s.answer(running(known), began);
                s.answer(STOPPED, began + 20);
            }
        }
        assert_eq!(s.dials(row, read, 200), (dials.map(target), doubt), "line {number}");
        let choice = s.choose(row, read, 200);
        assert!(!choice.is_reset() && !choice.is_held());
    }
}

#[test]
fn the_worth_of_an_answer() {
    enum Worth {
        Itself,
        Unknown,
        Overtaken,
    }
    use Worth::{Itself, Overtaken, Unknown};
    #[rustfmt::skip]
    let table = [
        // known and when its question began   answer and when its question began    worth, news
        (Some(("a5", 100)),                    ("b6", 50),                           Itself,    true),
        (Some(("a5", 100)),                    ("a6", 50),                           Itself,    true),
        (Some(("a5", 100)),                    ("b4", 50),                           Overtaken, false),
        (Some(("a5", 100)),                    ("b4", 100),                          Unknown,   false),
        (Some(("a5", 100)),                    ("b4", 150),                          Unknown,   false),
        (Some(("a5", 100)),                    ("b", 50),                            Overtaken, false),
        (Some(("a5", 100)),                    ("b", 150),                           Unknown,   false),
        (Some(("a5", 100)),                    ("a", 150),                           Unknown,   false),
        (Some(("a5", 100)),                    ("a5", 50),                           Itself,    false),
        (Some(("a5", 100)),                    ("a5", 150),                          Itself,    false),
        (Some(("a5", 100)),                    ("b5", 50),                           Overtaken, false),
        (Some(("a5", 100)),                    ("b5", 150),                          Itself,    true),
        (Some(("a", 100)),                     ("a5", 50),                           Itself,    true),
        (Some(("a", 100)),                     ("b", 50),                            Overtaken, false),
        (Some(("a", 100)),                     ("b", 100),                           Itself,    true),
        (Some(("a", 100)),                     ("b", 150),                           Itself,    true),
        (None,                                 ("a", 50),                            Itself,    true),
    ];
    for (known, (said, began), worth, is_news) in table {
        let mut s = Scene::new();
        if let Some((known, began)) = known {
            s.answer(running(known), began);
        }
        let judged = s.late_answer(running(said), began, 200);
        let worth = match worth {
            Itself => running(said),
            Unknown => Answer::Unknown,
            Overtaken => Answer::Overtaken,
        };
        let found = (judged.answer, judged.is_news);
        assert_eq!(found, (worth, is_news), "{known:?}, then {said} of {began}");
    }
    for answer in [STOPPED, Answer::Denied(Denied::Gone), Answer::Unknown] {
        let mut s = Scene::new();
        s.answer(running("a5"), 0);
        let judged = s.answer(answer.clone(), 1);
        assert_eq!((judged.answer, judged.is_news), (answer, false));
    }
}

#[test]
fn an_answer_is_not_overruled_by_a_row_that_was_read_meanwhile() {
    let mut s = Scene::new();
    // The question began at 0; at 50 a cold session reads a row that may be behind or ahead.
    s.row("a", 50);
    let judged = s.late_answer(running("b"), 0, 100);
    assert_eq!(judged.answer, running("b"), "the resolver is the authority");
    assert_eq!(s.dials(None, 0, 100), (Some(target("b")), None));
    // Nothing orders the two, so that session dials what its row names and asks at once.
    assert_eq!(s.dials(Some("a"), 50, 100), (Some(target("a")), Some(50)));
    // The answer to its own question decides.
    s.answer(running("b"), 150);
    assert_eq!(s.dials(Some("a"), 50, 200), (Some(target("b")), None));
}

#[test]
fn a_connection_is_held_back_if_its_row_contradicts_an_announcement() {
    for announced in [true, false] {
        let mut s = Scene::new();
        let named = target("b");
        s.answer(Answer::Running(Arc::clone(&named)), 0);
        if announced {
            s.facts.known.note_announced(&named);
        }
        assert_eq!(s.choose(Some("a"), 10, 20).is_held(), announced);
        // Not while the doubt is quiet.
        s.answer(Answer::Unknown, 30);
        assert!(!s.choose(Some("a"), 10, 40).is_held());
    }
}

#[test]
fn a_hanging_workspace_is_asked_again_at_growing_intervals() {
    let mut s = Scene::new();
    let mut now = 0;
    for (answer, pause) in [
        (running("a5"), 2),
        (running("a5"), 4),
        (Answer::Unknown, 8),
        (STOPPED, 15),
        (running("a5"), 15),
        // A new target is asked about as often as the first one.
        (running("b6"), 2),
        (running("b6"), 4),
    ] {
        let again = s.answer(answer, now).again - s.at(now);
        assert_eq!(again, Duration::from_secs(pause), "at {now}");
        now += again.as_millis() as u64 + 20;
    }
}

#[test]
fn a_row_of_a_later_build_ends_the_pause_and_the_doubts_about_the_agent_before() {
    let mut s = Scene::new();
    s.answer(running("a5"), 0);
    s.doubt_agent("a", 10);
    assert!(!s.row("a5", 20) && s.facts.pace().paused_until(s.at(21)).is_some());
    assert!(s.row("b6", 30));
    assert_eq!(s.facts.pace().paused_until(s.at(31)), None);
    assert_eq!(s.facts.doubts().about(agent("a")), None);
}

#[test]
fn an_answer_below_the_generation_of_a_hint_is_used_and_stays_in_doubt() {
    let mut s = Scene::new();
    s.answer(running("a5"), 0);
    let hinted = |s: &mut Scene, generation, now| {
        let now = s.at(now);
        s.facts.hear(Some(Generation::new(generation)), now)
    };
    assert!(!hinted(&mut s, 5, 5), "known already");
    assert!(hinted(&mut s, 6, 10));
    assert_eq!(s.doubt("a5", 11), Some(10));
    let judged = s.answer(running("a5"), 20);
    assert_eq!((judged.answer, judged.is_news), (running("a5"), false));
    // Quiet for the first of three short pauses; it is no verdict.
    assert_eq!((s.doubt("a5", 69), s.doubt("a5", 70)), (None, Some(10)));
    assert!(s.facts.verdict().is_none());
    s.answer(running("a5"), 70);
    s.answer(running("a5"), 270);
    assert_eq!((s.doubt("a5", 1_269), s.doubt("a5", 1_270)), (None, Some(10)));
    // In the end the resolver is believed.
    s.answer(running("a5"), 1_270);
    assert_eq!(s.doubt("a5", 1_271), None);
    assert!(s.facts.verdict().is_some());
}

mod doubts;
