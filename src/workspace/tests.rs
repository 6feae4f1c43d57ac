use super::*;
use crate::{Binding, Revision, binding::target, cache::CachedRow};
use proptest::prelude::*;
use std::{sync::atomic::AtomicI64, thread};
use uuid::Uuid;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn session(number: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(number))
}

fn workspace(number: u128) -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(number))
}

fn agent(text: &str) -> AgentId {
    target(text).agent
}

fn running(text: &str) -> Answer {
    Answer::Running(target(text))
}

const STOPPED: Answer = Answer::Denied(Denied::Stopped);

/// One workspace and its time.
struct Scene {
    workspaces: Workspaces,
    place: Arc<WorkspaceState>,
    zero: Instant,
}

impl Scene {
    fn new() -> Self {
        let workspaces = Workspaces::new(&Settings::default());
        let place = workspaces.place(workspace(1), Epoch::default());
        // Far from the clock's own zero.
        Self { workspaces, place, zero: Instant::now() + Duration::from_secs(3600) }
    }

    fn at(&self, millis: u64) -> Instant {
        self.zero + ms(millis)
    }

    /// An answer at once.
    fn answer(&self, answer: Answer, millis: u64) -> (Answer, Duration) {
        self.late_answer(answer, millis, millis)
    }

    /// What it is worth, and after how long to ask again.
    fn late_answer(&self, answer: Answer, began: u64, landed: u64) -> (Answer, Duration) {
        let (worth, again) = self.place.learn_answer(answer, self.at(began), self.at(landed));
        (worth, again - self.at(landed))
    }

    fn choose(&self, row: Option<&str>, read: u64, now: u64) -> Choice {
        self.choose_for(1, row, read, now)
    }

    fn choose_for(&self, number: u128, row: Option<&str>, read: u64, now: u64) -> Choice {
        let row =
            Row { session: session(number), target: row.map(target), revision: Revision::new(1) };
        let (choice, version) = self.place.choose(&row, self.at(read), self.at(now));
        assert_eq!(version, self.place.version());
        choice
    }

    /// What is dialed.
    fn dials(&self, row: Option<&str>, read: u64, now: u64) -> Option<Arc<Target>> {
        self.choose(row, read, now).target().cloned()
    }

    /// Since when the session of this row is in doubt, in milliseconds.
    fn doubt(&self, row: &str, now: u64) -> Option<u64> {
        let choice = self.choose(Some(row), 0, now);
        assert_eq!(choice.target(), Some(&target(row)));
        choice.doubt().map(|since| (since - self.zero).as_millis() as u64)
    }

    fn changes(&self, change: impl FnOnce(&WorkspaceState)) -> bool {
        let before = self.place.version();
        change(&self.place);
        self.place.version() != before
    }
}

mod lives {
    use super::*;

    fn places(workspaces: &Workspaces) -> usize {
        workspaces.places.stripes.iter().map(|stripe| lock(stripe).0.len()).sum()
    }

    #[test]
    fn a_place_lives_as_long_as_its_users() {
        let workspaces = Workspaces::new(&Settings::default());
        assert!(workspaces.find(workspace(1)).is_none());
        let place = workspaces.place(workspace(1), Epoch::default());
        let again = workspaces.place(workspace(1), Epoch::default());
        assert!(Arc::ptr_eq(&place, &again));
        assert!(workspaces.find(workspace(1)).is_some_and(|found| Arc::ptr_eq(&found, &place)));
        assert!(workspaces.find(workspace(2)).is_none());
        drop(place);
        assert_eq!(places(&workspaces), 1);
        drop(again);
        assert_eq!(places(&workspaces), 0);
    }

    #[test]
    fn a_row_and_nothing_else_keeps_what_is_known() {
        let workspaces = Workspaces::new(&Settings::default());
        let row = Binding::new(session(1), workspace(1), Some(target("a5")), Revision::new(1));
        let entry = CachedRow::new(
            row,
            workspaces.place(workspace(1), Epoch::default()),
            true,
            Instant::now(),
        );
        entry.workspace_state.learn_row(&target("a5"), Instant::now());
        let known = workspaces.place(workspace(1), Epoch::default()).newest_generation();
        assert_eq!(known, Some(Generation::new(5)));
        drop(entry);
        assert_eq!(workspaces.place(workspace(1), Epoch::default()).newest_generation(), None);
    }

    #[test]
    fn a_place_that_goes_leaves_its_successor_alone() {
        let workspaces = Workspaces::new(&Settings::default());
        let old = workspaces.place(workspace(1), Epoch::default());
        workspaces.reset(workspace(1), None);
        let new = workspaces.place(workspace(1), Epoch::default());
        assert!(!Arc::ptr_eq(&old, &new));
        drop(old);
        assert!(workspaces.find(workspace(1)).is_some_and(|found| Arc::ptr_eq(&found, &new)));
        // And the directory may go before its places.
        drop(workspaces);
        drop(new);
    }

    #[test]
    fn many_places_are_found_and_go_one_by_one() {
        let workspaces = Workspaces::new(&Settings::default());
        let mut used: Vec<_> = (0..20_000)
            .map(|number| Some(workspaces.place(workspace(number), Epoch::default())))
            .collect();
        let found = |number: usize| workspaces.find(workspace(number as u128));
        for first in [0, 1] {
            for number in (first..used.len()).step_by(2) {
                let place = used[number].take().expect("a place");
                assert!(found(number).is_some_and(|found| Arc::ptr_eq(&found, &place)));
                drop(place);
                assert!(found(number).is_none());
            }
            assert_eq!(places(&workspaces), used.iter().flatten().count());
        }
        let room =
            workspaces.places.stripes.iter().map(|stripe| lock(stripe).0.capacity()).sum::<usize>();
        assert!(room <= 3 * STRIPES, "{room}");
    }

    #[test]
    fn many_threads_see_one_place_at_a_time() {
        let workspaces = Workspaces::new(&Settings::default());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        let (one, other) = (
                            workspaces.place(workspace(1), Epoch::default()),
                            workspaces.place(workspace(1), Epoch::default()),
                        );
                        assert!(Arc::ptr_eq(&one, &other));
                    }
                });
            }
        });
        assert_eq!(places(&workspaces), 0);
    }

    #[test]
    fn a_reset_voids_what_its_users_hold_and_begins_anew() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        let row =
            Row { session: session(1), target: Some(target("a5")), revision: Revision::new(1) };
        let (before, _) = s.place.choose(&row, s.at(0), s.at(1));
        assert!(before.is_settled() && !before.is_reset());
        let changed = s.changes(|_| s.workspaces.reset(workspace(1), None));
        assert!(changed, "the memo of the hot path must not hide it");
        assert!(s.choose(Some("a5"), 0, 1).is_reset() && s.choose(None, 0, 1).is_reset());
        assert!(s.place.supersedes(&target("a9")), "no repair is written for what was reset");
        assert!(!s.place.doubt_reported(session(1), &target("a5"), s.at(2)));
        let new = s.workspaces.place(workspace(1), Epoch::default());
        assert_eq!(new.newest_generation(), None);
        let (worth, _) = new.learn_answer(running("b1"), s.at(3), s.at(3));
        assert_eq!(worth, running("b1"), "generations start again");
    }

    #[tokio::test]
    async fn no_change_is_missed() {
        let s = Scene::new();
        let changed = s.place.changed();
        s.place.doubt(s.at(0));
        changed.await;
        let changed = s.place.changed();
        s.workspaces.reset(workspace(1), None);
        changed.await;
    }

    #[test]
    fn the_first_one_to_wait_misses_no_change_on_another_thread() {
        let workspaces = Workspaces::new(&Settings::default());
        let now = Instant::now();
        for number in 0..20_000 {
            let place = workspaces.place(workspace(number), Epoch::default());
            let version = place.version();
            let begin = AtomicBool::new(false);
            thread::scope(|scope| {
                let changer = scope.spawn(|| {
                    while !begin.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                    place.doubt(now);
                });
                begin.store(true, Ordering::Relaxed);
                let mut changed = tokio_test::task::spawn(place.changed());
                let seen = place.version() != version || changed.poll().is_ready();
                changer.join().expect("no panic");
                assert!(seen || changed.is_woken(), "{number}");
            });
        }
    }
}

mod order {
    use super::*;

    /// What is known, and from whom.
    enum Known {
        Nothing,
        /// Read in a row then.
        Row(&'static str, u64),
        /// The resolver's answer to a question that began then.
        Resolver(&'static str, u64),
        /// As `Row`, then the resolver has named it in a question that began then.
        Confirmed(&'static str, u64),
        /// The first was replaced by the second, in questions that began 50 ms before and then.
        Replaced(&'static str, &'static str, u64),
        /// As `Resolver`, then it was said to be stopped, in a question that began 20 ms later.
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
            // By generation, whoever said it and whenever.
            (Resolver("b6", 50),       (Some("a5"), 100),            Some("b6"), None),
            (Resolver("b6", 150),      (Some("a5"), 100),            Some("b6"), None),
            (Row("b6", 50),            (Some("a5"), 100),            Some("b6"), None),
            (Resolver("a5", 150),      (Some("b6"), 100),            Some("b6"), None),
            (Resolver("a5", 50),       (Some("b6"), 100),            Some("b6"), None),
            (Resolver("a", 150),       (Some("a5"), 100),            Some("a5"), None),
            // The same place.
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
            // Nothing binds an unbound session.
            (Resolver("a5", 50),       (None, 100),                  Some("a5"), None),
            (Row("a5", 50),            (None, 100),                  Some("a5"), None),
            (Stopped("a5", 50),        (None, 100),                  None,       None),
            // A row that was read after that contradicts nobody.
            (Stopped("b", 50),         (Some("a"), 100),             Some("a"),  None),
            // It was asked about in vain, so it is quiet for a while.
            (Stopped("b", 90),         (Some("a"), 100),             Some("a"),  None),
            (Stopped("b", 150),        (Some("a"), 100),             Some("b"),  None),
            (Stopped("b6", 50),        (Some("a5"), 100),            Some("b6"), None),
            (Stopped("a5", 50),        (Some("a5"), 100),            Some("a5"), None),
        ];
        for (number, (known, (row, read), dials, doubt)) in table.into_iter().enumerate() {
            let s = Scene::new();
            match known {
                Nothing => {}
                Row(known, read) => drop(s.place.learn_row(&target(known), s.at(read))),
                Confirmed(known, began) => {
                    s.place.learn_row(&target(known), s.at(0));
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
            let choice = s.choose(row, read, 200);
            let said = (choice.target().cloned(), choice.doubt());
            assert_eq!(said, (dials.map(target), doubt.map(|since| s.at(since))), "line {number}");
            assert!(!choice.is_reset() && !choice.is_held());
        }
    }

    #[test]
    fn what_was_replaced_and_came_back_is_not_behind() {
        let s = Scene::new();
        for (number, name) in ["a", "b", "a"].into_iter().enumerate() {
            s.answer(running(name), number as u64);
        }
        assert_eq!(s.dials(Some("a"), 100, 200), Some(target("a")));
        assert_eq!(s.dials(Some("b"), 100, 200), Some(target("a")));
        assert!(s.place.supersedes(&target("b")) && !s.place.supersedes(&target("a")));
    }

    #[test]
    fn the_last_eight_that_were_replaced_are_remembered() {
        let s = Scene::new();
        for (number, name) in "abcdefghij".chars().enumerate() {
            s.answer(running(&name.to_string()), number as u64);
        }
        for (name, remembered) in [("a", false), ("b", true), ("i", true)] {
            let choice = s.choose(Some(name), 100, 200);
            assert_eq!(choice.target() == Some(&target("j")), remembered, "{name}");
        }
    }

    #[test]
    fn a_row_teaches_a_later_generation_and_no_more() {
        let s = Scene::new();
        for (row, changes, known) in [
            ("a5", true, 5),
            ("a5", false, 5),
            ("b5", false, 5),
            ("b4", false, 5),
            ("b", false, 5),
            ("b6", true, 6),
        ] {
            assert_eq!(
                s.changes(|place| drop(place.learn_row(&target(row), s.at(0)))),
                changes,
                "{row}"
            );
            assert_eq!(s.place.newest_generation(), Some(Generation::new(known)), "{row}");
        }
    }

    #[test]
    fn what_an_answer_is_worth() {
        enum Worth {
            Itself,
            Unknown,
            Overtaken,
        }
        use Worth::{Itself, Overtaken, Unknown};
        #[rustfmt::skip]
        let table = [
            // known and when its question began    answer and when its question began   worth,
            // changes
            (Some(("a5", 100)),                      ("b6", 50),                          Itself,    true),
            (Some(("a5", 100)),                      ("a6", 50),                          Itself,    true),
            (Some(("a5", 100)),                      ("b4", 50),                          Overtaken, false),
            (Some(("a5", 100)),                      ("b4", 100),                         Unknown,   false),
            (Some(("a5", 100)),                      ("b4", 150),                         Unknown,   false),
            (Some(("a5", 100)),                      ("b", 50),                           Overtaken, false),
            (Some(("a5", 100)),                      ("b", 150),                          Unknown,   false),
            (Some(("a5", 100)),                      ("a", 150),                          Unknown,   false),
            (Some(("a5", 100)),                      ("a5", 50),                          Itself,    false),
            (Some(("a5", 100)),                      ("a5", 150),                         Itself,    false),
            (Some(("a5", 100)),                      ("b5", 50),                          Overtaken, false),
            (Some(("a5", 100)),                      ("b5", 150),                         Itself,    true),
            (Some(("a", 100)),                       ("a5", 50),                          Itself,    true),
            (Some(("a", 100)),                       ("b", 50),                           Overtaken, false),
            (Some(("a", 100)),                       ("b", 100),                          Itself,    true),
            (Some(("a", 100)),                       ("b", 150),                          Itself,    true),
            (None,                                   ("a", 50),                           Itself,    true),
        ];
        for (known, (said, began), expected, changes) in table {
            let s = Scene::new();
            if let Some((known, began)) = known {
                s.answer(running(known), began);
            }
            let mut worth = Answer::Unknown;
            let changed = s.changes(|_| worth = s.late_answer(running(said), began, 200).0);
            let expected = match expected {
                Itself => running(said),
                Unknown => Answer::Unknown,
                Overtaken => Answer::Overtaken,
            };
            assert_eq!((worth, changed), (expected, changes), "{known:?}, then {said} of {began}");
        }
        for answer in [STOPPED, Answer::Denied(Denied::Gone), Answer::Unknown] {
            let s = Scene::new();
            s.answer(running("a5"), 0);
            let mut worth = running("a5");
            let changed = s.changes(|_| worth = s.answer(answer.clone(), 1).0);
            assert_eq!((worth, changed), (answer, false));
        }
    }

    #[test]
    fn an_old_denial_does_not_deny_what_was_learned_later() {
        let s = Scene::new();
        s.answer(running("a5"), 100);
        s.late_answer(STOPPED, 99, 200);
        assert_eq!(s.dials(None, 0, 200), Some(target("a5")));
        s.late_answer(STOPPED, 100, 200);
        assert_eq!(s.dials(None, 0, 200), None);
        s.answer(running("a5"), 300);
        assert_eq!(s.dials(None, 0, 300), Some(target("a5")));
    }

    #[test]
    fn an_answer_is_not_overruled_by_a_row_that_was_read_meanwhile() {
        let s = Scene::new();
        // The question began at 0; at 50 a cold session reads a row that may be behind or ahead.
        s.place.learn_row(&target("a"), s.at(50));
        let (worth, _) = s.late_answer(running("b"), 0, 100);
        assert_eq!(worth, running("b"), "the resolver is the authority");
        assert_eq!(s.dials(None, 0, 100), Some(target("b")));
        // Nothing orders the two, so that session dials what its row names and asks at once.
        let choice = s.choose(Some("a"), 50, 100);
        assert_eq!((choice.target().cloned(), choice.doubt()), (Some(target("a")), Some(s.at(50))));
        // Its own question decides.
        s.answer(running("b"), 150);
        let choice = s.choose(Some("a"), 50, 200);
        assert_eq!((choice.target().cloned(), choice.doubt()), (Some(target("b")), None));
    }

    #[test]
    fn a_repair_is_behind_what_is_known() {
        let s = Scene::new();
        assert!(!s.place.supersedes(&target("a5")), "nothing is known");
        s.answer(running("a5"), 0);
        for (repair, behind) in
            [("a5", false), ("b6", false), ("b4", true), ("a4", true), ("b5", false), ("b", false)]
        {
            assert_eq!(s.place.supersedes(&target(repair)), behind, "{repair}");
        }
        let s = Scene::new();
        s.answer(running("a"), 0);
        s.answer(running("b"), 1);
        for (repair, behind) in [("a", true), ("b", false), ("c", false)] {
            assert_eq!(s.place.supersedes(&target(repair)), behind, "{repair}");
        }
        // A place that comes back in a later build is not what was replaced.
        let s = Scene::new();
        s.answer(running("a5"), 0);
        s.answer(running("b6"), 1);
        for (repair, behind) in [("a5", true), ("b6", false), ("a7", false)] {
            assert_eq!(s.place.supersedes(&target(repair)), behind, "{repair}");
        }
    }
}

mod intervals {
    use super::*;

    #[test]
    fn a_hanging_workspace_is_asked_again_at_growing_intervals() {
        let s = Scene::new();
        let mut now = 0;
        for (answer, pause) in [
            (running("a5"), 2),
            (running("a5"), 4),
            (Answer::Unknown, 8),
            (STOPPED, 15),
            (running("a5"), 15),
            // What changed is looked at as often as at first.
            (running("b6"), 2),
            (running("b6"), 4),
        ] {
            let (_, again) = s.answer(answer, now);
            assert_eq!(again, Duration::from_secs(pause), "at {now}");
            now += again.as_millis() as u64 + 20;
        }
    }

    #[test]
    fn they_begin_anew_once_somebody_was_answered() {
        for (asked, watched, anew) in
            [(true, false, true), (false, true, true), (false, false, false)]
        {
            let s = Scene::new();
            assert_eq!(s.answer(running("a5"), 0).1, ms(2_000));
            let waiting = watched.then(|| s.place.wait());
            s.place.answered(agent("a"), asked, || s.at(100));
            drop(waiting);
            let pause = if anew { 2_000 } else { 4_000 };
            assert_eq!(
                s.answer(running("a5"), 2_000).1,
                ms(pause),
                "asked {asked}, watched {watched}"
            );
        }
    }

    #[test]
    fn who_asks_during_a_pause_begins_it_anew_for_all() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        s.answer(running("a5"), 2_000);
        assert_eq!(s.place.paused_until(s.at(5_999)), Some(s.at(6_000)));
        assert_eq!(s.answer(running("a5"), 5_999).1, ms(4_000));
        assert_eq!(s.place.paused_until(s.at(6_000)), Some(s.at(9_999)));
        assert_eq!(s.place.paused_until(s.at(9_999)), None);
        assert_eq!(s.answer(running("a5"), 9_999).1, ms(8_000));
    }

    #[test]
    fn they_begin_anew_once_nothing_was_asked_for_long() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        assert_eq!(s.answer(running("a5"), 2_000).1, ms(4_000));
        assert_eq!(
            s.answer(running("a5"), 6_000 + 14_999).1,
            ms(8_000),
            "a slow resolver is no pause"
        );
        assert_eq!(s.answer(running("a5"), 600_000).1, ms(2_000));
    }
}

mod doubts {
    use super::*;

    #[test]
    fn a_hint_casts_doubt_on_whatever_is_bound() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        assert_eq!(s.doubt("a5", 1), None);
        assert!(s.changes(|place| place.doubt(s.at(10))));
        assert_eq!(s.doubt("a5", 11), Some(10));
        // An answer from before is none to it.
        s.late_answer(running("a5"), 9, 20);
        assert_eq!(s.doubt("a5", 21), Some(10));
        s.late_answer(running("a5"), 10, 30);
        assert_eq!(s.doubt("a5", 31), None);
    }

    #[test]
    fn a_hint_also_reaches_who_is_not_bound() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        s.place.doubt(s.at(10));
        let choice = s.choose(None, 0, 11);
        assert_eq!((choice.target().cloned(), choice.doubt()), (None, Some(s.at(10))));
        s.answer(running("a5"), 20);
        let choice = s.choose(None, 0, 21);
        assert_eq!((choice.target().cloned(), choice.doubt()), (Some(target("a5")), None));
    }

    #[test]
    fn a_later_hint_outlives_the_discovery_of_a_newer_target() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        s.place.doubt(s.at(10));
        s.late_answer(running("b6"), 5, 20);
        assert_eq!(s.doubt("b6", 21), Some(10));
    }

    #[test]
    fn a_dropped_dial_leaves_a_doubt() {
        // Began at 0; dropped then; expected.
        for (dropped, doubts) in [(0, false), (9, false), (10, true), (200, true)] {
            let s = Scene::new();
            let changed = s.changes(|place| {
                assert_eq!(
                    place.doubt_dropped(agent("a"), s.at(0), s.at(dropped)),
                    doubts,
                    "{dropped}"
                );
            });
            assert_eq!((changed, s.doubt("a5", 300)), (doubts, doubts.then_some(dropped)));
        }
    }

    #[test]
    fn a_dropped_dial_is_no_doubt_if_the_agent_has_answered_since() {
        // It answered then, while the dropped dial was pending or before it began.
        for (answered, doubts) in [(99, true), (100, false), (150, false)] {
            let s = Scene::new();
            let _waiting = s.place.wait();
            s.place.answered(agent("a"), false, || s.at(answered));
            s.place.answered(agent("b"), false, || s.at(190));
            assert_eq!(
                s.place.doubt_dropped(agent("a"), s.at(100), s.at(200)),
                doubts,
                "{answered}"
            );
        }
        // Somebody else's answer is no news of this agent.
        let s = Scene::new();
        let _waiting = s.place.wait();
        s.place.answered(agent("b"), false, || s.at(150));
        assert!(s.place.doubt_dropped(agent("a"), s.at(100), s.at(200)));
    }

    #[test]
    fn an_answer_is_only_noted_while_somebody_may_leave_a_doubt() {
        let s = Scene::new();
        s.place.answered(agent("a"), false, || s.at(150));
        assert!(lock(&s.place.facts).agents.0.is_empty(), "the hot path writes nothing");
        drop(s.place.wait());
        s.place.answered(agent("a"), false, || s.at(150));
        assert!(lock(&s.place.facts).agents.0.is_empty());
    }

    #[test]
    fn a_dropped_dial_is_silent_for_one_interval_after_the_same() {
        let s = Scene::new();
        // Not after the first answer, which is no "same".
        s.answer(running("a5"), 0);
        assert!(s.place.doubt_dropped(agent("a"), s.at(0), s.at(10)));
        s.late_answer(running("a5"), 10, 0);
        assert!(!s.place.doubt_dropped(agent("a"), s.at(500), s.at(1_999)));
        assert!(s.place.doubt_dropped(agent("a"), s.at(500), s.at(2_000)));
        // One that is there is not renewed.
        assert!(!s.place.doubt_dropped(agent("a"), s.at(500), s.at(2_500)));
        assert_eq!(s.doubt("a5", 2_500), Some(2_000));
        // The next "same" makes it silent again; one whose question began before the doubt does
        // not.
        s.late_answer(running("a5"), 1_999, 2_600);
        assert_eq!(s.doubt("a5", 2_600), Some(2_000));
        s.late_answer(running("a5"), 2_000, 2_700);
        assert_eq!(s.doubt("a5", 2_700), None);
        assert!(!s.place.doubt_dropped(agent("a"), s.at(500), s.at(4_699)));
        assert!(s.place.doubt_dropped(agent("a"), s.at(500), s.at(4_700)));
    }

    #[test]
    fn one_agents_doubt_is_not_anothers() {
        let s = Scene::new();
        assert!(s.place.doubt_dropped(agent("a"), s.at(0), s.at(100)));
        assert_eq!((s.doubt("a", 200), s.doubt("b", 200)), (Some(100), None));
        s.place.doubt_agent(agent("b"), s.at(150));
        assert_eq!((s.doubt("a", 200), s.doubt("b", 200)), (Some(100), Some(150)));
    }

    #[test]
    fn a_doubt_about_what_was_replaced_goes_with_it() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        s.place.doubt_agent(agent("a"), s.at(100));
        s.late_answer(running("b6"), 50, 200);
        assert_eq!(s.dials(Some("a5"), 0, 200), Some(target("b6")));
        assert_eq!(s.doubt("b6", 200), None);
        assert!(lock(&s.place.facts).agents.get(agent("a")).is_none());
    }

    #[test]
    fn a_doubt_that_was_asked_about_in_vain_is_quiet_for_one_interval() {
        for vain in [Answer::Unknown, STOPPED] {
            let s = Scene::new();
            s.place.doubt_dropped(agent("a"), s.at(0), s.at(100));
            s.late_answer(vain.clone(), 100, 150);
            assert_eq!((s.doubt("a", 150), s.doubt("a", 2_149)), (None, None), "{vain:?}");
            assert!(!s.choose(Some("a"), 0, 200).is_settled(), "time alone ends it");
            assert_eq!(s.doubt("a", 2_150), Some(100));
        }
        // A question from before the doubt is not an attempt to settle it.
        let s = Scene::new();
        s.place.doubt_dropped(agent("a"), s.at(0), s.at(100));
        s.late_answer(Answer::Unknown, 99, 150);
        assert_eq!(s.doubt("a", 151), Some(100));
    }

    #[test]
    fn a_hint_that_was_asked_about_in_vain_is_quiet_too() {
        let s = Scene::new();
        s.place.doubt(s.at(100));
        s.late_answer(Answer::Unknown, 100, 150);
        assert_eq!(
            (s.doubt("a", 150), s.doubt("a", 2_149), s.doubt("a", 2_150)),
            (None, None, Some(100))
        );
    }

    #[test]
    fn a_new_reason_ends_the_quiet() {
        type Reason = fn(&Scene);
        let reasons: [(&str, Reason); 3] = [
            ("a hint", |s| s.place.doubt(s.at(300))),
            ("a report", |s| assert!(s.place.doubt_reported(session(1), &target("a"), s.at(300)))),
            ("a lost repair", |s| s.place.doubt_agent(agent("a"), s.at(300))),
        ];
        for (name, reason) in reasons {
            let s = Scene::new();
            s.place.doubt_dropped(agent("a"), s.at(0), s.at(100));
            s.answer(Answer::Unknown, 150);
            assert_eq!(s.doubt("a", 200), None);
            reason(&s);
            assert_eq!(s.doubt("a", 301), Some(300), "{name}");
        }
    }

    #[test]
    fn an_unbound_session_asks_before_it_dials_what_is_in_doubt() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        s.place.doubt_agent(agent("a"), s.at(10));
        assert_eq!(s.dials(None, 0, 11), None);
        // But if nobody can say, it is better than nothing.
        s.answer(Answer::Unknown, 20);
        assert_eq!(s.dials(None, 0, 21), Some(target("a5")));
    }
}

mod reports {
    use super::*;

    fn report(s: &Scene, number: u128, text: &str, now: u64) -> bool {
        s.place.doubt_reported(session(number), &target(text), s.at(now))
    }

    #[test]
    fn the_next_call_of_the_reporting_session_holds_its_connection() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        assert!(report(&s, 1, "a5", 10));
        let (mine, others) =
            (s.choose_for(1, Some("a5"), 0, 20), s.choose_for(2, Some("a5"), 0, 20));
        assert_eq!((mine.is_held(), mine.doubt()), (true, Some(s.at(10))));
        assert_eq!((others.is_held(), others.doubt()), (false, Some(s.at(10))));
        s.answer(running("a5"), 30);
        let mine = s.choose_for(1, Some("a5"), 0, 40);
        assert_eq!((mine.is_held(), mine.doubt()), (false, None));
    }

    #[test]
    fn nothing_is_held_while_the_doubt_is_quiet() {
        let s = Scene::new();
        assert!(report(&s, 1, "a5", 10));
        s.answer(Answer::Unknown, 20);
        assert!(!s.choose_for(1, Some("a5"), 0, 30).is_held());
    }

    #[test]
    fn an_agent_is_reported_at_most_once_a_second() {
        let s = Scene::new();
        assert!(report(&s, 1, "a5", 0));
        assert!(!report(&s, 2, "a5", 999));
        assert!(report(&s, 2, "a5", 1_000));
        assert!(report(&s, 1, "b5", 1_001), "another agent is another matter");
    }

    #[test]
    fn the_pause_doubles_up_to_a_minute_while_the_answer_is_the_same() {
        let s = Scene::new();
        let mut now = 0;
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            // At the end of the pause, not before.
            if now > 0 {
                assert!(!report(&s, 1, "a5", now - 1));
            }
            assert!(report(&s, 1, "a5", now), "at {now}");
            assert!(s.choose(Some("a5"), 0, now).is_held());
            s.answer(running("a5"), now + 1);
            // One that nobody reported changes nothing.
            s.answer(running("a5"), now + 2);
            let next = if pause < 60 { (pause * 2).min(60) } else { 60 };
            now += next * 1_000;
        }
    }

    #[test]
    fn in_vain_the_pause_stays() {
        let s = Scene::new();
        assert!(report(&s, 1, "a5", 0));
        s.answer(Answer::Unknown, 1);
        assert!(report(&s, 1, "a5", 1_000));
        s.answer(STOPPED, 1_001);
        assert!(report(&s, 1, "a5", 2_000));
    }

    #[test]
    fn a_target_that_is_not_current_any_more_is_not_reported() {
        for (old, new) in [("a5", "b6"), ("a", "b"), ("a5", "b5")] {
            let s = Scene::new();
            s.answer(running(old), 0);
            s.answer(running(new), 1);
            let changed = s.changes(|_| assert!(!report(&s, 1, old, 10), "{old}"));
            assert!(!changed);
            assert!(report(&s, 1, new, 10), "{new}");
        }
        // Also if it was never known here.
        let s = Scene::new();
        s.answer(running("b6"), 0);
        assert!(!report(&s, 1, "a5", 10) && report(&s, 1, "c7", 10));
    }

    #[test]
    fn a_newer_target_forgets_the_reports() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        assert!(report(&s, 1, "a5", 10));
        s.answer(running("b6"), 20);
        let choice = s.choose(Some("a5"), 0, 30);
        assert_eq!(
            (choice.target().cloned(), choice.is_held(), choice.doubt()),
            (Some(target("b6")), false, None)
        );
    }

    #[test]
    fn the_list_of_reporters_is_bounded() {
        let s = Scene::new();
        for number in 0..200 {
            assert!(report(&s, number, "a5", number as u64 * 1_000));
        }
        let mut facts = lock(&s.place.facts);
        let reports = facts.agents.of(agent("a")).reports.as_ref();
        assert_eq!(reports.map(|reports| reports.sessions.len()), Some(MOST_REPORTERS));
    }
}

mod verdicts {
    use super::*;

    fn said(s: &Scene) -> Option<Answer> {
        s.place.verdict().map(|verdict| verdict.answer)
    }

    #[test]
    fn the_last_word_stands_until_a_doubt_is_younger() {
        let s = Scene::new();
        assert_eq!(said(&s), None);
        s.late_answer(running("a5"), 10, 20);
        let verdict = s.place.verdict().expect("a verdict");
        assert_eq!(
            (verdict.answer, verdict.began, verdict.landed),
            (running("a5"), s.at(10), s.at(20))
        );
        s.late_answer(STOPPED, 30, 40);
        assert_eq!(said(&s), Some(STOPPED));
        s.place.doubt(s.at(31));
        assert_eq!(said(&s), None);
        s.late_answer(running("a5"), 31, 50);
        assert_eq!(said(&s), Some(running("a5")));
        s.place.doubt_agent(agent("a"), s.at(60));
        assert_eq!(said(&s), None);
    }

    #[test]
    fn unknown_is_no_word() {
        let s = Scene::new();
        s.answer(running("a5"), 0);
        s.answer(Answer::Unknown, 10);
        s.answer(running("b4"), 20);
        let verdict = s.place.verdict().expect("a verdict");
        assert_eq!((verdict.answer, verdict.landed), (running("a5"), s.at(0)));
    }
}

/// The hot path's memo, as `Shared::choose` uses it.
mod memo {
    use super::*;

    fn entry(s: &Scene, name: Option<&str>, read: u64) -> Arc<CachedRow> {
        let row = Binding::new(session(1), workspace(1), name.map(target), Revision::new(1));
        CachedRow::new(row, Arc::clone(&s.place), true, s.at(read))
    }

    #[test]
    fn an_answer_that_settles_which_of_two_rows_is_right_is_news() {
        let s = Scene::new();
        s.place.learn_row(&target("b"), s.at(0));
        let entry = entry(&s, Some("a"), 10);
        let (choice, version) = fresh(&s, &entry, 20);
        assert!(choice.is_settled(), "two rows are no evidence against each other");
        entry.set_settled_in(version);
        // For the next call, for calls under way and for connections that were handed out.
        assert!(s.changes(|_| drop(s.answer(running("b"), 30))));
        assert!(!entry.is_settled_in(s.place.version()));
        assert_eq!(fresh(&s, &entry, 40).0.target(), Some(&target("b")));
        assert!(!s.changes(|_| drop(s.answer(running("b"), 50))), "once");
    }

    fn fresh(s: &Scene, entry: &CachedRow, now: u64) -> (Choice, u32) {
        entry.workspace_state.choose(&entry.row, entry.read(), s.at(now))
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// One of three callers chooses…
        Choose(usize),
        /// …and notes what it has chosen, perhaps much later.
        Note(usize),
        Answer(&'static str),
        Vain,
        Denied,
        Row(&'static str),
        Hint,
        Dropped(&'static str),
        Report,
        Lost(&'static str),
        Answered,
        Reset,
        /// Seconds pass.
        Later(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let name = || prop::sample::select(vec!["a5", "a", "b5", "b6", "c7", "a6"]);
        prop_oneof![
            6 => (0_usize..3).prop_map(Step::Choose),
            6 => (0_usize..3).prop_map(Step::Note),
            3 => name().prop_map(Step::Answer),
            1 => Just(Step::Vain),
            1 => Just(Step::Denied),
            1 => name().prop_map(Step::Row),
            1 => Just(Step::Hint),
            1 => name().prop_map(Step::Dropped),
            1 => Just(Step::Report),
            1 => name().prop_map(Step::Lost),
            1 => Just(Step::Answered),
            1 => Just(Step::Reset),
            2 => (1_u64..5).prop_map(Step::Later),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever comes between a choice and its note: while the note holds, a fresh look would
        /// say the same.
        #[test]
        fn a_note_never_hides_a_change(
            first in prop::sample::select(vec![None, Some("b"), Some("b5")]),
            row in prop::sample::select(vec![Some("a5"), Some("a"), Some("b6"), None]),
            read in prop::sample::select(vec![0, 3_000]),
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let s = Scene::new();
            if let Some(first) = first {
                s.place.learn_row(&target(first), s.at(0));
            }
            let entry = entry(&s, row, read);
            let mut now = 0;
            let mut chosen: [Option<(Choice, u32)>; 3] = Default::default();
            for step in steps {
                match step {
                    Step::Choose(caller) => chosen[caller] = Some(fresh(&s, &entry, now)),
                    Step::Note(caller) => {
                        if let Some((choice, version)) = chosen[caller].take() && choice.is_settled() {
                            entry.set_settled_in(version);
                        }
                    }
                    Step::Answer(name) => drop(s.answer(running(name), now)),
                    Step::Vain => drop(s.answer(Answer::Unknown, now)),
                    Step::Denied => drop(s.answer(STOPPED, now)),
                    Step::Row(name) => drop(s.place.learn_row(&target(name), s.at(now))),
                    Step::Hint => s.place.doubt(s.at(now)),
                    Step::Dropped(name) => {
                        s.place.doubt_dropped(agent(name), s.at(now.saturating_sub(500)), s.at(now));
                    }
                    Step::Report => drop(s.place.doubt_reported(session(1), &target("a5"), s.at(now))),
                    Step::Lost(name) => s.place.doubt_agent(agent(name), s.at(now)),
                    Step::Answered => s.place.answered(agent("a"), true, || s.at(now)),
                    Step::Reset => s.workspaces.reset(workspace(1), None),
                    Step::Later(seconds) => now += seconds * 1_000,
                }
                if entry.is_settled_in(s.place.version()) {
                    let (choice, _) = fresh(&s, &entry, now);
                    prop_assert!(choice.is_settled());
                    prop_assert_eq!(choice.target().cloned(), entry.row.target.clone());
                }
            }
        }
    }

    #[test]
    fn what_was_learned_before_a_choice_is_seen_by_it_on_every_thread() {
        const LAST: i64 = 5_000;
        let s = Scene::new();
        let entry = entry(&s, Some("a1"), 0);
        let learned = AtomicI64::new(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                for generation in 2..=LAST {
                    s.place.learn_row(&target(&format!("b{generation}")), s.at(0));
                    learned.store(generation, Ordering::Release);
                    // Changes that leave the choice as it is, so that notes are taken.
                    s.place.doubt(s.at(0));
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let floor = learned.load(Ordering::Acquire);
                        let version = s.place.version();
                        let generation = if entry.is_settled_in(version) {
                            entry.row.target.as_ref().and_then(|target| target.generation)
                        } else {
                            let (choice, version) = fresh(&s, &entry, 0);
                            if choice.is_settled() {
                                entry.set_settled_in(version);
                            }
                            choice.target().and_then(|target| target.generation)
                        };
                        assert!(
                            generation >= Some(Generation::new(floor)),
                            "{generation:?} after {floor}"
                        );
                        if floor == LAST {
                            return;
                        }
                    }
                });
            }
        });
    }
}

mod repairs;
