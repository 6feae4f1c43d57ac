use super::*;
use crate::workspace::tests::{agent, ms, session};

struct Scene {
    doubts: Doubts,
    zero: Instant,
}

impl Scene {
    fn new() -> Self {
        Self { doubts: Doubts::default(), zero: Instant::now() }
    }

    fn at(&self, millis: u64) -> Instant {
        self.zero + ms(millis)
    }

    fn millis(&self, at: Option<Instant>) -> Option<u64> {
        at.map(|at| (at - self.zero).as_millis() as u64)
    }

    fn dropped(&mut self, name: &str, began: u64, now: u64) -> bool {
        self.doubts.dropped(agent(name), self.at(began), self.at(now))
    }

    fn report(&mut self, number: u128, name: &str, now: u64) -> bool {
        self.doubts.reported(session(number), agent(name), self.at(now))
    }

    fn believe(&mut self, name: &str, began: u64) {
        self.doubts.believe(agent(name), self.at(began), None);
    }

    /// Since when an agent is in doubt.
    fn about(&self, name: &str) -> Option<u64> {
        self.millis(self.doubts.about(agent(name)))
    }
}

#[test]
fn a_dropped_dial_raises_a_doubt_unless_it_was_short() {
    // The dial began at 0. When it was dropped, and whether that raises a doubt.
    for (dropped, doubts) in [(0, false), (9, false), (10, true), (200, true)] {
        let mut s = Scene::new();
        assert_eq!(s.dropped("a", 0, dropped), doubts, "{dropped}");
        assert_eq!(s.about("a"), doubts.then_some(dropped));
    }
}

#[test]
fn a_dropped_dial_raises_no_doubt_if_the_agent_has_answered_since_it_began() {
    // The dial began at 100. When the agent answered another one, and whether a doubt is raised.
    for (answered, doubts) in [(99, true), (100, false), (150, false)] {
        let mut s = Scene::new();
        s.doubts.answered(agent("a"), s.at(answered));
        s.doubts.answered(agent("b"), s.at(190));
        assert_eq!(s.dropped("a", 100, 200), doubts, "{answered}");
    }
    // Another agent's answer says nothing about this one.
    let mut s = Scene::new();
    s.doubts.answered(agent("b"), s.at(150));
    assert!(s.dropped("a", 100, 200));
}

#[test]
fn a_dropped_dial_does_not_renew_a_doubt_and_raises_none_while_the_agent_is_trusted() {
    let mut s = Scene::new();
    assert!(s.dropped("a", 0, 100) && !s.dropped("a", 0, 200));
    assert_eq!(s.about("a"), Some(100));
    s.doubts.believe(agent("a"), s.at(100), Some(s.at(2_100)));
    assert!(!s.dropped("a", 500, 2_099));
    assert!(s.dropped("a", 500, 2_100));
}

#[test]
#[cfg(feature = "http")]
fn the_last_doubt_is_remembered_after_an_answer_has_removed_it() {
    let mut s = Scene::new();
    let last = |s: &Scene, name| s.millis(s.doubts.last_about(agent(name)));
    assert!(s.dropped("a", 0, 100));
    s.believe("a", 100);
    assert_eq!((s.about("a"), last(&s, "a"), last(&s, "b")), (None, Some(100), None));
    s.doubts.raise(DoubtReason::Hint, s.at(200));
    s.believe("a", 199);
    assert_eq!((s.about("a"), last(&s, "a"), last(&s, "b")), (Some(200), Some(200), Some(200)));
    s.believe("a", 200);
    assert_eq!((s.about("a"), last(&s, "a"), last(&s, "b")), (None, Some(200), Some(200)));
    // Two threads may read the clock in one order and raise their doubts in the other.
    s.doubts.raise(DoubtReason::Hint, s.at(150));
    assert_eq!((s.about("a"), last(&s, "a")), (Some(200), Some(200)));
}

#[test]
fn the_doubt_about_one_agent_is_not_about_another() {
    let mut s = Scene::new();
    assert!(s.dropped("a", 0, 100));
    assert_eq!((s.about("a"), s.about("b")), (Some(100), None));
    s.doubts.raise_about(agent("b"), DoubtReason::Unbound, s.at(150));
    assert_eq!((s.about("a"), s.about("b")), (Some(100), Some(150)));
    assert_eq!(s.millis(s.doubts.latest()), Some(150));
    // A doubt about the workspace is about each of its agents.
    s.doubts.raise(DoubtReason::Hint, s.at(120));
    assert_eq!((s.about("a"), s.about("b"), s.about("c")), (Some(120), Some(150), Some(120)));
    s.doubts.retain(agent("a"));
    assert_eq!((s.about("a"), s.about("b")), (Some(120), Some(120)));
}

#[test]
fn an_answer_removes_the_doubts_that_were_raised_before_its_question_began() {
    #[rustfmt::skip]
    let table = [
        // doubts: workspace, a    the resolver names, question   left: workspace, a
        (Some(100), None,          ("a", 99),                     Some(100), Some(100)),
        (Some(100), None,          ("a", 100),                    None,      None),
        (None,      Some(100),     ("a", 99),                     None,      Some(100)),
        (None,      Some(100),     ("a", 100),                    None,      None),
        (Some(100), Some(200),     ("a", 150),                    None,      Some(200)),
        // The doubt about an agent stays until the resolver names that agent.
        (Some(100), Some(200),     ("b", 300),                    None,      Some(200)),
    ];
    for (workspace, doubt, (named, began), left, left_about) in table {
        let mut s = Scene::new();
        if let Some(raised) = workspace {
            s.doubts.raise(DoubtReason::Hint, s.at(raised));
        }
        if let Some(raised) = doubt {
            s.doubts.raise_about(agent("a"), DoubtReason::Unbound, s.at(raised));
        }
        s.believe(named, began);
        assert_eq!((s.about("c"), s.about("a")), (left, left_about), "{named} of {began}");
    }
}

#[test]
fn a_doubt_that_was_asked_about_in_vain_is_quiet_until_it_is_time_to_ask_again() {
    let mut s = Scene::new();
    s.doubts.asked_in_vain(s.at(100), s.at(2_100));
    for (doubt, now, is_quiet) in [
        (99, 200, true),
        (100, 200, true),
        (101, 200, false),
        (100, 2_099, true),
        (100, 2_100, false),
    ] {
        assert_eq!(s.doubts.is_quiet(s.at(doubt), s.at(now)), is_quiet, "{doubt} at {now}");
    }
}

#[test]
fn the_resolver_is_asked_about_a_doubt_at_once_or_after_the_quiet() {
    #[rustfmt::skip]
    let table = [
        // doubt    last answer  asked in vain         now     when to ask
        (None,      None,        None,                 200,    None),
        (Some(100), None,        None,                 200,    Some(200)),
        (Some(100), Some(99),    None,                 200,    Some(200)),
        (Some(100), Some(100),   None,                 200,    None),
        (Some(100), None,        Some((100, 2_100)),   200,    Some(2_100)),
        (Some(100), None,        Some((100, 2_100)),   2_500,  Some(2_500)),
        (Some(101), None,        Some((100, 2_100)),   200,    Some(200)),
    ];
    for (doubt, answered, vain, now, ask_at) in table {
        let mut s = Scene::new();
        // A doubt about one agent is for its calls to settle.
        s.doubts.raise_about(agent("a"), DoubtReason::Unbound, s.at(190));
        if let Some(doubt) = doubt {
            s.doubts.raise(DoubtReason::Hint, s.at(doubt));
        }
        if let Some((asked, until)) = vain {
            s.doubts.asked_in_vain(s.at(asked), s.at(until));
        }
        let answered = answered.map(|answered| s.at(answered));
        let found = s.millis(s.doubts.to_ask(answered, s.at(now)).map(|to_ask| to_ask.at));
        assert_eq!(found, ask_at, "{doubt:?}, {answered:?}, {vain:?}, at {now}");
    }
}

#[test]
fn an_agent_is_reported_at_most_once_a_second() {
    let mut s = Scene::new();
    assert!(s.report(1, "a", 0));
    assert!(!s.report(2, "a", 999));
    assert!(s.report(2, "a", 1_000));
    assert!(s.report(1, "b", 1_001), "another agent is another matter");
    let is_reported = |number, name| s.doubts.is_reported_by(session(number), agent(name));
    assert!(is_reported(1, "a") && is_reported(2, "a") && is_reported(1, "b"));
    assert!(!is_reported(2, "b") && !is_reported(3, "a"));
}

#[test]
fn the_pause_between_reports_doubles_up_to_a_minute_while_the_resolver_names_the_agent() {
    let mut s = Scene::new();
    let mut now = 0;
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        // At the end of the pause, not before.
        if now > 0 {
            assert!(!s.report(1, "a", now - 1));
        }
        assert!(s.report(1, "a", now), "at {now}");
        assert!(s.doubts.is_reported_by(session(1), agent("a")));
        s.believe("a", now + 1);
        assert!(!s.doubts.is_reported_by(session(1), agent("a")));
        // An answer after which nothing was reported changes nothing.
        s.believe("a", now + 2);
        let next = if pause < 60 { (pause * 2).min(60) } else { 60 };
        now += next * 1_000;
    }
}

#[test]
fn an_answer_to_an_earlier_question_does_not_settle_a_report() {
    let mut s = Scene::new();
    assert!(s.report(1, "a", 100));
    s.believe("a", 99);
    assert!(s.doubts.is_reported_by(session(1), agent("a")));
    assert!(s.report(1, "a", 1_100), "nor does the pause double");
}

#[test]
fn the_list_of_reporters_is_bounded() {
    let mut s = Scene::new();
    for number in 0..200 {
        assert!(s.report(number, "a", number as u64 * 1_000));
    }
    let reports = s.doubts.agents.get(agent("a")).and_then(|agent| agent.reports.as_ref());
    assert_eq!(reports.map(|reports| reports.sessions.len()), Some(MOST_REPORTERS));
}

#[test]
fn a_doubt_takes_sixteen_bytes() {
    assert_eq!(size_of::<Doubt>(), 16);
}

#[test]
fn doubts_are_listed_with_their_reasons_until_they_are_removed() {
    let mut s = Scene::new();
    s.doubts.raise(DoubtReason::Requested, s.at(10));
    s.doubts.raise_about(agent("a"), DoubtReason::Unbound, s.at(20));
    s.report(1, "b", 30);
    let listed = |s: &Scene, now: u64| {
        let doubts = s.doubts.list(s.at(now)).into_iter();
        doubts
            .map(|doubt| (doubt.agent, doubt.reason.as_str(), doubt.raised_ago, doubt.quiet_for))
            .collect::<Vec<_>>()
    };
    let (a, b) = (Some(agent("a")), Some(agent("b")));
    let all = [
        (None, "requested", ms(30), None),
        (a, "unbound", ms(20), None),
        (b, "reported_stale", ms(10), None),
    ];
    assert_eq!(listed(&s, 40), all);
    s.doubts.asked_in_vain(s.at(25), s.at(100));
    assert_eq!(
        listed(&s, 40),
        [
            (None, "requested", ms(30), Some(ms(60))),
            (a, "unbound", ms(20), Some(ms(60))),
            (b, "reported_stale", ms(10), None),
        ]
    );
    s.believe("a", 50);
    assert_eq!(listed(&s, 60), [(b, "reported_stale", ms(30), None)]);
    // A later reason takes the place of an earlier one.
    s.dropped("a", 0, 70);
    s.doubts.raise_about(agent("a"), DoubtReason::RepairLost, s.at(80));
    assert_eq!(listed(&s, 80)[0], (a, "repair_lost", ms(0), None));
}
