//! How doubts, answers and choices go together.

use super::*;

#[test]
fn a_hint_casts_doubt_on_what_is_bound_until_a_later_question_is_answered() {
    let mut s = Scene::new();
    s.answer(running("a5"), 0);
    assert_eq!(s.doubt("a5", 1), None);
    s.hint(10);
    assert_eq!(s.doubt("a5", 11), Some(10));
    s.late_answer(running("a5"), 9, 20);
    assert_eq!(s.doubt("a5", 21), Some(10));
    s.late_answer(running("a5"), 10, 30);
    assert_eq!(s.doubt("a5", 31), None);
}

#[test]
fn an_unbound_session_asks_before_it_dials_what_is_in_doubt() {
    let mut s = Scene::new();
    s.answer(running("a5"), 0);
    s.hint(10);
    assert_eq!(s.dials(None, 0, 11), (None, Some(10)));
    s.answer(running("a5"), 20);
    assert_eq!(s.dials(None, 0, 21), (Some(target("a5")), None));
    s.doubt_agent("a", 30);
    assert_eq!(s.dials(None, 0, 31), (None, Some(30)));
    // If the resolver cannot tell, the target is better than nothing.
    s.answer(Answer::Unknown, 40);
    assert_eq!(s.dials(None, 0, 41), (Some(target("a5")), None));
}

#[test]
fn a_later_hint_outlives_the_discovery_of_a_newer_target() {
    let mut s = Scene::new();
    s.answer(running("a5"), 0);
    s.hint(10);
    s.late_answer(running("b6"), 5, 20);
    assert_eq!(s.doubt("b6", 21), Some(10));
}

#[test]
fn a_dropped_dial_is_silent_for_one_interval_after_the_same_answer() {
    let mut s = Scene::new();
    // Not after the first answer, which confirms nothing.
    s.answer(running("a5"), 0);
    assert!(s.dropped("a", 0, 10));
    s.late_answer(running("a5"), 10, 0);
    assert!(!s.dropped("a", 500, 1_999));
    assert!(s.dropped("a", 500, 2_000));
    // A doubt that is there is not renewed.
    assert!(!s.dropped("a", 500, 2_500));
    assert_eq!(s.doubt("a5", 2_500), Some(2_000));
    // The next confirmation makes it silent again, unless its question began before the doubt.
    s.late_answer(running("a5"), 1_999, 2_600);
    assert_eq!(s.doubt("a5", 2_600), Some(2_000));
    s.late_answer(running("a5"), 2_000, 2_700);
    assert_eq!(s.doubt("a5", 2_700), None);
    assert!(!s.dropped("a", 500, 4_699));
    assert!(s.dropped("a", 500, 4_700));
}

#[test]
fn a_doubt_about_a_replaced_agent_goes_with_it() {
    let mut s = Scene::new();
    s.answer(running("a5"), 0);
    s.doubt_agent("a", 100);
    s.late_answer(running("b6"), 50, 200);
    assert_eq!(s.dials(Some("a5"), 0, 200), (Some(target("b6")), None));
    assert_eq!(s.doubt("b6", 200), None);
    assert_eq!(s.facts.doubts().about(agent("a")), None);
}

#[test]
fn a_doubt_that_was_asked_about_in_vain_is_quiet_for_one_interval() {
    for vain in [Answer::Unknown, STOPPED] {
        let mut s = Scene::new();
        s.dropped("a", 0, 100);
        s.late_answer(vain.clone(), 100, 150);
        assert_eq!((s.doubt("a", 150), s.doubt("a", 2_149)), (None, None), "{vain:?}");
        assert!(!s.choose(Some("a"), 0, 200).is_settled(), "time alone ends it");
        assert_eq!(s.doubt("a", 2_150), Some(100));
    }
    // A question from before the doubt is not an attempt to settle it.
    let mut s = Scene::new();
    s.dropped("a", 0, 100);
    s.late_answer(Answer::Unknown, 99, 150);
    assert_eq!(s.doubt("a", 151), Some(100));
    // A hint is quiet like any other doubt.
    let mut s = Scene::new();
    s.hint(100);
    s.late_answer(Answer::Unknown, 100, 150);
    assert_eq!((s.doubt("a", 150), s.doubt("a", 2_149)), (None, None));
    assert_eq!(s.doubt("a", 2_150), Some(100));
}

#[test]
fn a_new_doubt_ends_the_quiet() {
    type Reason = fn(&mut Scene);
    let reasons: [(&str, Reason); 3] = [
        ("a hint", |s| s.hint(300)),
        ("a report", |s| assert!(s.report(1, "a", 300))),
        ("a lost repair", |s| s.doubt_agent("a", 300)),
    ];
    for (name, reason) in reasons {
        let mut s = Scene::new();
        s.dropped("a", 0, 100);
        s.answer(Answer::Unknown, 150);
        assert_eq!(s.doubt("a", 200), None);
        reason(&mut s);
        assert_eq!(s.doubt("a", 301), Some(300), "{name}");
    }
}

#[test]
fn a_verdict_stands_until_a_doubt_is_younger() {
    let said = |s: &Scene| s.facts.verdict().map(|verdict| verdict.answer.clone());
    let mut s = Scene::new();
    assert_eq!(said(&s), None);
    s.late_answer(running("a5"), 10, 20);
    let verdict = s.facts.verdict().expect("a verdict");
    let times = (verdict.began, verdict.landed);
    assert_eq!((&verdict.answer, times), (&running("a5"), (s.at(10), s.at(20))));
    s.late_answer(STOPPED, 30, 40);
    assert_eq!(said(&s), Some(STOPPED));
    s.hint(31);
    assert_eq!(said(&s), None);
    s.late_answer(running("a5"), 31, 50);
    assert_eq!(said(&s), Some(running("a5")));
    s.doubt_agent("a", 60);
    assert_eq!(said(&s), None);
}

#[test]
fn an_inconclusive_answer_is_no_verdict() {
    let mut s = Scene::new();
    s.answer(running("a5"), 0);
    s.answer(Answer::Unknown, 10);
    s.answer(running("b4"), 20);
    let verdict = s.facts.verdict().expect("a verdict");
    assert_eq!((&verdict.answer, verdict.landed), (&running("a5"), s.at(0)));
}

#[test]
fn the_next_call_of_the_reporting_session_holds_its_connection() {
    let mut s = Scene::new();
    s.answer(running("a5"), 0);
    assert!(s.report(1, "a5", 10));
    let mine = s.choose_for(1, Some("a5"), 0, 20);
    let others = s.choose_for(2, Some("a5"), 0, 20);
    assert_eq!((mine.is_held(), mine.doubt()), (true, Some(s.at(10))));
    assert_eq!((others.is_held(), others.doubt()), (false, Some(s.at(10))));
    s.answer(running("a5"), 30);
    let mine = s.choose_for(1, Some("a5"), 0, 40);
    assert_eq!((mine.is_held(), mine.doubt()), (false, None));
}

#[test]
fn nothing_is_held_while_the_doubt_is_quiet() {
    let mut s = Scene::new();
    assert!(s.report(1, "a5", 10));
    s.answer(Answer::Unknown, 20);
    assert!(!s.choose_for(1, Some("a5"), 0, 30).is_held());
}

#[test]
fn the_pause_between_reports_doubles_while_the_answer_is_the_same() {
    let mut s = Scene::new();
    let mut now = 0;
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert!(s.report(1, "a5", now), "at {now}");
        assert!(s.choose(Some("a5"), 0, now).is_held());
        s.answer(running("a5"), now + 1);
        s.answer(running("a5"), now + 2);
        now += if pause < 60 { (pause * 2).min(60) } else { 60 } * 1_000;
    }
    // After inconclusive answers it stays.
    let mut s = Scene::new();
    assert!(s.report(1, "a5", 0));
    s.answer(Answer::Unknown, 1);
    assert!(s.report(1, "a5", 1_000));
    s.answer(STOPPED, 1_001);
    assert!(s.report(1, "a5", 2_000));
}

#[test]
fn a_report_about_a_target_that_was_replaced_is_no_news() {
    for (old, new) in [("a5", "b6"), ("a", "b"), ("a5", "b5")] {
        let mut s = Scene::new();
        s.answer(running(old), 0);
        s.answer(running(new), 1);
        assert!(!s.report(1, old, 10), "{old}");
        assert_eq!(s.facts.doubts().latest(), None);
        assert!(s.report(1, new, 10), "{new}");
    }
    // Even if it was never known here.
    let mut s = Scene::new();
    s.answer(running("b6"), 0);
    assert!(!s.report(1, "a5", 10) && s.report(1, "c7", 10));
}

#[test]
fn a_newer_target_forgets_the_reports() {
    let mut s = Scene::new();
    s.answer(running("a5"), 0);
    assert!(s.report(1, "a5", 10));
    s.answer(running("b6"), 20);
    assert_eq!(s.dials(Some("a5"), 0, 30), (Some(target("b6")), None));
    assert!(!s.choose(Some("a5"), 0, 30).is_held());
}
