use super::*;
use crate::{binding::target, workspace::tests::ms};

struct Scene {
    known: Known,
    zero: Instant,
}

impl Scene {
    fn new() -> Self {
        Self { known: Known::default(), zero: Instant::now() }
    }

    fn at(&self, millis: u64) -> Instant {
        self.zero + ms(millis)
    }

    fn row(&mut self, name: &str, read: u64) -> bool {
        self.known.learn_row(&target(name), self.at(read))
    }

    fn answer(&mut self, name: &str, began: u64) -> Learned {
        self.known.learn_answer(target(name), self.at(began))
    }

    fn denial(&mut self, began: u64) {
        self.known.learn_denial(self.at(began));
    }

    fn newer(&mut self, row: Option<&str>, read: u64) -> Option<Arc<Target>> {
        self.known.newer(row.map(target).as_ref(), self.at(read)).map(|newer| newer.target)
    }
}

#[test]
fn a_row_contradicts_an_answer_that_is_not_ordered_against_it() {
    enum From {
        Row,
        Answer,
        Announcement,
    }
    use From::{Announcement, Answer, Row};
    #[rustfmt::skip]
    let table = [
        // known, from whom and when      denied     row, read       dialed  since, of an announcement
        ((Answer, "b", 50),               None,      ("a", 100),     "a",    Some((100, false))),
        ((Announcement, "b", 50),         None,      ("a", 100),     "a",    Some((100, true))),
        ((Row, "b", 50),                  None,      ("a", 100),     "a",    None),
        // Read before the question began: the row is behind.
        ((Answer, "b", 150),              None,      ("a", 100),     "b",    None),
        ((Announcement, "b", 150),        None,      ("a", 100),     "b",    None),
        // Denied before the row was read: nothing stands against the row.
        ((Answer, "b", 50),               Some(70),  ("a", 100),     "a",    None),
        ((Answer, "b", 50),               Some(100), ("a", 100),     "a",    None),
        ((Answer, "b", 50),               Some(101), ("a", 100),     "a",    Some((100, false))),
        // Ordered by generation, or the same place.
        ((Announcement, "b6", 50),        None,      ("a5", 100),    "b6",   None),
        ((Announcement, "b5", 50),        None,      ("a6", 100),    "a6",   None),
        ((Announcement, "a", 50),         None,      ("a", 100),     "a",    None),
    ];
    for (number, ((from, known, began), denied, (row, read), dialed, contradiction)) in
        table.into_iter().enumerate()
    {
        let mut s = Scene::new();
        let known = target(known);
        match from {
            Row => drop(s.known.learn_row(&known, s.at(began))),
            Answer | Announcement => drop(s.known.learn_answer(Arc::clone(&known), s.at(began))),
        }
        if let Announcement = from {
            s.known.note_announced(&known);
        }
        if let Some(began) = denied {
            s.denial(began);
        }
        let newer = s.known.newer(Some(&target(row)), s.at(read));
        let contradiction = contradiction
            .map(|(since, of_announcement)| Contradiction { since: s.at(since), of_announcement });
        let expected = Newer { target: target(dialed), contradiction };
        assert_eq!(newer, Some(expected), "line {number}");
    }
}

#[test]
fn how_an_answer_compares_with_what_was_known() {
    use Learned::{Behind, Confirmed, Overtaken, Replaced, Settled};
    #[rustfmt::skip]
    let table = [
        // known, from a row, when      answer, began    learned
        (None,                          ("a", 50),       Replaced),
        (Some(("a5", false, 100)),      ("b6", 50),      Replaced),
        (Some(("a5", false, 100)),      ("a6", 50),      Replaced),
        (Some(("a5", false, 100)),      ("b4", 50),      Overtaken),
        (Some(("a5", false, 100)),      ("b4", 100),     Behind),
        (Some(("a5", false, 100)),      ("a", 150),      Behind),
        (Some(("a5", false, 100)),      ("b", 50),       Overtaken),
        (Some(("a5", false, 100)),      ("a5", 50),      Confirmed),
        (Some(("a5", false, 100)),      ("b5", 50),      Overtaken),
        (Some(("a5", false, 100)),      ("b5", 100),     Replaced),
        (Some(("a", false, 100)),       ("a5", 50),      Settled),
        (Some(("a", false, 100)),       ("b", 50),       Overtaken),
        (Some(("a", false, 100)),       ("b", 100),      Replaced),
        // An answer outranks a row, whenever the row was read, unless the generations say more.
        (Some(("a", true, 100)),        ("b", 50),       Replaced),
        (Some(("a5", true, 100)),       ("b5", 50),      Replaced),
        (Some(("a5", true, 100)),       ("b4", 50),      Overtaken),
        (Some(("a5", true, 100)),       ("b4", 100),     Behind),
        (Some(("a5", true, 100)),       ("a5", 50),      Confirmed),
    ];
    for (known, (answer, began), learned) in table {
        let mut s = Scene::new();
        match known {
            Some((known, true, read)) => drop(s.row(known, read)),
            Some((known, false, began)) => drop(s.answer(known, began)),
            None => {}
        }
        assert_eq!(s.answer(answer, began), learned, "{known:?}, then {answer} of {began}");
    }
    // A session dials what its row names until the answer settles which of two rows is right.
    let mut s = Scene::new();
    s.row("b", 0);
    assert_eq!(s.newer(Some("a"), 10), Some(target("a")));
    assert_eq!(s.answer("b", 20), Settled);
    assert_eq!(s.answer("b", 30), Confirmed);
    // The known target gets its generation.
    let mut s = Scene::new();
    s.answer("a", 0);
    assert_eq!((s.answer("a5", 10), s.known.generation()), (Settled, Some(Generation::new(5))));
}

#[test]
fn a_target_that_was_replaced_and_came_back_is_not_behind() {
    let mut s = Scene::new();
    for (number, name) in ["a", "b", "a"].into_iter().enumerate() {
        s.answer(name, number as u64);
    }
    assert_eq!(s.newer(Some("a"), 100), Some(target("a")));
    assert_eq!(s.newer(Some("b"), 100), Some(target("a")));
    assert!(s.known.supersedes(&target("b")) && !s.known.supersedes(&target("a")));
}

#[test]
fn the_last_eight_replaced_targets_are_remembered() {
    let mut s = Scene::new();
    for (number, name) in "abcdefghij".chars().enumerate() {
        s.answer(&name.to_string(), number as u64);
    }
    for (name, remembered) in [("a", false), ("b", true), ("i", true)] {
        assert_eq!(s.newer(Some(name), 100) == Some(target("j")), remembered, "{name}");
        assert_eq!(s.known.has_replaced(&target(name)), remembered, "{name}");
    }
}

#[test]
fn a_row_teaches_a_later_generation_and_no_more() {
    let mut s = Scene::new();
    for (row, changes, known) in [
        ("a5", true, 5),
        ("a5", false, 5),
        ("b5", false, 5),
        ("b4", false, 5),
        ("b", false, 5),
        ("b6", true, 6),
    ] {
        assert_eq!(s.row(row, 0), changes, "{row}");
        assert_eq!(s.known.generation(), Some(Generation::new(known)), "{row}");
    }
}

#[test]
fn targets_that_are_equal_share_one_allocation() {
    let mut s = Scene::new();
    let (first, equal) = (target("a5"), target("a5"));
    s.known.learn_row(&first, s.at(0));
    assert!(Arc::ptr_eq(&s.known.intern(&equal), &first));
    let other = target("a6");
    assert!(Arc::ptr_eq(&s.known.intern(&other), &other));
}

#[test]
fn a_denial_counts_if_its_question_began_after_the_known_target_was_learned() {
    let mut s = Scene::new();
    s.answer("a5", 100);
    s.denial(99);
    assert_eq!(s.newer(None, 0), Some(target("a5")));
    assert!(s.known.is_named_since(s.at(99)) && !s.known.is_named_since(s.at(100)));
    s.denial(100);
    assert_eq!(s.newer(None, 0), None);
    assert!(!s.known.is_named_since(s.at(99)));
    s.answer("a5", 300);
    assert_eq!(s.newer(None, 0), Some(target("a5")));
    assert!(s.known.is_named_since(s.at(299)));
}

#[test]
fn a_repair_to_a_target_that_was_replaced_is_not_written() {
    let mut s = Scene::new();
    assert!(!s.known.supersedes(&target("a5")), "nothing is known");
    s.answer("a5", 0);
    for (repair, behind) in
        [("a5", false), ("b6", false), ("b4", true), ("a4", true), ("b5", false), ("b", false)]
    {
        assert_eq!(s.known.supersedes(&target(repair)), behind, "{repair}");
    }
    let mut s = Scene::new();
    s.answer("a", 0);
    s.answer("b", 1);
    for (repair, behind) in [("a", true), ("b", false), ("c", false)] {
        assert_eq!(s.known.supersedes(&target(repair)), behind, "{repair}");
    }
    // An agent that comes back in a later build is not the one that was replaced.
    let mut s = Scene::new();
    s.answer("a5", 0);
    s.answer("b6", 1);
    for (repair, behind) in [("a5", true), ("b6", false), ("a7", false)] {
        assert_eq!(s.known.supersedes(&target(repair)), behind, "{repair}");
    }
}
