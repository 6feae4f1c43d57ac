use super::*;
use crate::{
    binding::target,
    workspace::tests::{STOPPED, ms, running},
};

const INTERVALS: Intervals =
    Intervals { first: Duration::from_secs(2), longest: Duration::from_secs(15) };

struct Scene {
    pace: Pace,
    zero: Instant,
}

impl Scene {
    fn new() -> Self {
        Self { pace: Pace::default(), zero: Instant::now() }
    }

    fn at(&self, millis: u64) -> Instant {
        self.zero + ms(millis)
    }

    /// An answer comes. Returns after how long to ask again.
    fn pause(&mut self, is_news: bool, now: u64) -> Duration {
        let now = self.at(now);
        self.pace.pause(is_news, now, INTERVALS) - now
    }

    fn verdict(&mut self, answer: Answer, began: u64, landed: u64) {
        let (began, landed) = (self.at(began), self.at(landed));
        self.pace.note(Verdict { answer, began, landed });
    }
}

#[test]
fn the_pauses_grow_until_an_answer_is_news() {
    let mut s = Scene::new();
    let mut now = 0;
    for (is_news, pause) in
        [(true, 2), (false, 4), (false, 8), (false, 15), (false, 15), (true, 2), (false, 4)]
    {
        let again = s.pause(is_news, now);
        assert_eq!(again, Duration::from_secs(pause), "at {now}");
        now += again.as_millis() as u64 + 20;
    }
}

#[test]
fn an_answer_during_a_pause_begins_the_same_pause_anew() {
    let mut s = Scene::new();
    s.pause(true, 0);
    s.pause(false, 2_000);
    assert_eq!(s.pace.paused_until(s.at(5_999)), Some(s.at(6_000)));
    assert_eq!(s.pause(false, 5_999), ms(4_000));
    assert_eq!(s.pace.paused_until(s.at(6_000)), Some(s.at(9_999)));
    assert_eq!(s.pace.paused_until(s.at(9_999)), None);
    assert_eq!(s.pause(false, 9_999), ms(8_000));
}

#[test]
fn the_pauses_begin_anew_after_a_long_silence() {
    let mut s = Scene::new();
    s.pause(true, 0);
    assert_eq!(s.pause(false, 2_000), ms(4_000));
    assert_eq!(s.pause(false, 6_000 + 14_999), ms(8_000), "a slow resolver is no silence");
    assert_eq!(s.pause(false, 600_000), ms(2_000));
}

#[test]
fn the_pauses_begin_anew_after_an_answered_dial() {
    // At once, or after the present pause.
    let mut s = Scene::new();
    s.pause(true, 0);
    s.pace.end_pause();
    assert_eq!(s.pace.paused_until(s.at(1)), None);
    assert_eq!(s.pause(false, 1), ms(2_000));
    let mut s = Scene::new();
    s.pause(true, 0);
    s.pause(false, 2_000);
    s.pace.restart_pauses();
    assert_eq!(s.pace.paused_until(s.at(2_001)), Some(s.at(6_000)));
    assert_eq!(s.pause(false, 6_000), ms(2_000));
}

#[test]
fn a_verdict_stands_until_a_doubt_is_younger_than_its_question() {
    let mut s = Scene::new();
    assert!(s.pace.verdict(None).is_none());
    s.verdict(running("a5"), 10, 20);
    for (doubt, stands) in [(None, true), (Some(9), true), (Some(10), true), (Some(11), false)] {
        let doubt_at = doubt.map(|doubt| s.at(doubt));
        assert_eq!(s.pace.verdict(doubt_at).is_some(), stands, "{doubt:?}");
    }
}

#[test]
fn a_denial_is_fresh_for_a_second_and_while_no_doubt_is_younger() {
    #[rustfmt::skip]
    let table = [
        // answer         doubt    now     denied
        (STOPPED,         None,    20,     true),
        (STOPPED,         None,    1_020,  true),
        (STOPPED,         None,    1_021,  false),
        (STOPPED,         Some(10), 20,    true),
        (STOPPED,         Some(11), 20,    false),
        (running("a5"),   None,    20,     false),
    ];
    for (answer, doubt, now, denied) in table {
        let mut s = Scene::new();
        s.verdict(answer.clone(), 10, 20);
        let found = s.pace.fresh_denial(doubt.map(|doubt| s.at(doubt)), s.at(now));
        assert_eq!(found, denied.then_some(Denied::Stopped), "{answer:?}, {doubt:?}, at {now}");
    }
}

#[test]
fn an_answer_below_the_floor_is_asked_for_again_three_times_then_it_is_believed() {
    let mut s = Scene::new();
    assert_eq!(s.pace.again_below_floor(&target("a5")), None, "there is no floor");
    s.pace.raise_floor(Generation::new(6));
    assert_eq!(s.pace.again_below_floor(&target("b6")), None);
    assert_eq!(s.pace.again_below_floor(&target("b7")), None);
    for again in AGAIN_AFTER {
        assert_eq!(s.pace.again_below_floor(&target("a5")), Some(again));
    }
    assert_eq!(s.pace.again_below_floor(&target("a5")), None);
    assert_eq!(s.pace.again_below_floor(&target("a5")), None, "the floor is gone");
    // An answer without a generation is below every floor.
    s.pace.raise_floor(Generation::new(6));
    assert_eq!(s.pace.again_below_floor(&target("a")), Some(AGAIN_AFTER[0]));
    // Only a later generation raises the floor.
    s.pace.raise_floor(Generation::new(5));
    assert_eq!(s.pace.again_below_floor(&target("a5")), Some(AGAIN_AFTER[1]));
    s.pace.raise_floor(Generation::new(7));
    assert_eq!(s.pace.again_below_floor(&target("b6")), Some(AGAIN_AFTER[0]));
}
