use super::*;
use crate::{
    Binding, Revision, answer::Denied, binding::target, cache::CachedRow, settings::Settings,
};
use proptest::prelude::*;
use std::{sync::atomic::AtomicI64, thread};
use tokio::time::Duration;
use uuid::Uuid;

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn session(number: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(number))
}

pub(super) fn workspace(number: u128) -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(number))
}

pub(super) fn agent(text: &str) -> AgentId {
    target(text).agent
}

pub(super) fn running(text: &str) -> Answer {
    Answer::Running(target(text))
}

pub(super) const STOPPED: Answer = Answer::Denied(Denied::Stopped);

/// One workspace state and its time.
struct Scene {
    workspaces: Workspaces,
    state: Arc<WorkspaceState>,
    zero: Instant,
}

impl Scene {
    fn new() -> Self {
        let workspaces = Workspaces::new(&Settings::default());
        let state = workspaces.state(workspace(1), Epoch::default());
        // Later than the instant from which compact instants count.
        Self { workspaces, state, zero: Instant::now() + Duration::from_secs(3600) }
    }

    fn at(&self, millis: u64) -> Instant {
        self.zero + ms(millis)
    }

    /// Learns an answer that came at once. Returns after how long to ask again.
    fn answer(&self, answer: Answer, millis: u64) -> Duration {
        let (_, again) = self.state.learn_answer(answer, self.at(millis), self.at(millis));
        again - self.at(millis)
    }

    fn has_changed<T>(&self, change: impl FnOnce(&WorkspaceState) -> T) -> bool {
        let before = self.state.version();
        change(&self.state);
        self.state.version() != before
    }

    fn row(&self, name: Option<&str>, read: u64) -> Arc<CachedRow> {
        let row = Binding::new(session(1), workspace(1), name.map(target), Revision::new(1));
        CachedRow::new(row, Arc::clone(&self.state), true, self.at(read))
    }

    fn choose(&self, row: &CachedRow, now: u64) -> (Choice, u32) {
        self.state.choose(&row.row, row.read(), self.at(now))
    }
}

#[test]
fn the_version_changes_with_every_change_that_is_news() {
    type Change = fn(&Scene);
    #[rustfmt::skip]
    let changes: [(&str, bool, Change); 12] = [
        ("a row's first target",      true,  |s| { s.state.learn_row(&target("a5"), s.at(0)); }),
        ("the same target again",     false, |s| { s.state.learn_row(&target("a5"), s.at(1)); }),
        ("an answer confirms it",     false, |s| { s.answer(running("a5"), 2); }),
        ("an answer replaces it",     true,  |s| { s.answer(running("b6"), 3); }),
        ("a denial",                  false, |s| { s.answer(STOPPED, 4); }),
        ("a hint",                    true,  |s| s.state.doubt(DoubtReason::Hint, s.at(5))),
        ("a hint without news",       false, |s| { s.state.hear(Some(Generation::new(6)), s.at(6)); }),
        ("a hint of a generation",    true,  |s| { s.state.hear(Some(Generation::new(7)), s.at(7)); }),
        ("a doubt about an agent",    true,  |s| s.state.doubt_agent(agent("b"), DoubtReason::Unbound, s.at(8))),
        ("a dial dropped at once",    false, |s| { s.state.doubt_dropped(agent("c"), s.at(9), s.at(10)); }),
        ("a dial dropped later",      true,  |s| { s.state.doubt_dropped(agent("c"), s.at(9), s.at(30)); }),
        ("a reset",                   true,  |s| s.workspaces.reset(workspace(1), None)),
    ];
    let s = Scene::new();
    for (name, is_news, change) in changes {
        assert_eq!(s.has_changed(|_| change(&s)), is_news, "{name}");
    }
}

#[test]
fn a_reset_ends_the_state_and_the_next_one_knows_nothing() {
    let s = Scene::new();
    s.answer(running("a5"), 0);
    let (bound, unbound) = (s.row(Some("a5"), 0), s.row(None, 0));
    assert!(s.choose(&bound, 1).0.is_settled());
    let changed = s.has_changed(|_| s.workspaces.reset(workspace(1), None));
    assert!(changed, "the memo of the hot path must not hide it");
    assert!(s.choose(&bound, 1).0.is_reset() && s.choose(&unbound, 1).0.is_reset());
    assert!(s.state.supersedes(&target("a9")), "no repair is written for what was reset");
    assert!(!s.state.doubt_reported(session(1), &target("a5"), s.at(2)));
    let new = s.workspaces.state(workspace(1), Epoch::default());
    assert_eq!(new.newest_generation(), None);
    let (worth, _) = new.learn_answer(running("b1"), s.at(3), s.at(3));
    assert_eq!(worth, running("b1"), "generations start again");
}

#[test]
fn pauses_begin_anew_once_a_dial_was_answered() {
    for (asked, watched, anew) in [(true, false, true), (false, true, true), (false, false, false)]
    {
        let s = Scene::new();
        assert_eq!(s.answer(running("a5"), 0), ms(2_000));
        let waiting = watched.then(|| s.state.join(session(1), Waker::noop()));
        s.state.answered(agent("a"), asked, || s.at(100));
        if let Some(place) = waiting {
            s.state.leave(place);
        }
        let pause = if anew { 2_000 } else { 4_000 };
        let again = s.answer(running("a5"), 2_000);
        assert_eq!(again, ms(pause), "asked {asked}, watched {watched}");
    }
}

#[test]
fn an_answered_dial_is_only_noted_while_a_call_may_leave_a_doubt() {
    let s = Scene::new();
    s.state.answered(agent("a"), false, || panic!("the hot path reads no clock"));
    s.state.leave(s.state.join(session(1), Waker::noop()));
    s.state.answered(agent("a"), false, || panic!("the hot path reads no clock"));
    assert!(s.state.doubt_dropped(agent("a"), s.at(100), s.at(200)));
    let s = Scene::new();
    let _place = s.state.join(session(1), Waker::noop());
    s.state.answered(agent("a"), false, || s.at(150));
    assert!(!s.state.doubt_dropped(agent("a"), s.at(100), s.at(200)));
}

#[tokio::test]
async fn a_waiter_misses_no_change() {
    let s = Scene::new();
    let changed = s.state.changed();
    s.state.doubt(DoubtReason::Hint, s.at(0));
    changed.await;
    let changed = s.state.changed();
    s.workspaces.reset(workspace(1), None);
    changed.await;
}

#[test]
fn the_first_waiter_misses_no_change_on_another_thread() {
    let workspaces = Workspaces::new(&Settings::default());
    let now = Instant::now();
    for number in 0..20_000 {
        let state = workspaces.state(workspace(number), Epoch::default());
        let version = state.version();
        let begin = AtomicBool::new(false);
        thread::scope(|scope| {
            let changer = scope.spawn(|| {
                while !begin.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                state.doubt(DoubtReason::Hint, now);
            });
            begin.store(true, Ordering::Relaxed);
            let mut changed = tokio_test::task::spawn(state.changed());
            let seen = state.version() != version || changed.poll().is_ready();
            changer.join().expect("no panic");
            assert!(seen || changed.is_woken(), "{number}");
        });
    }
}

/// The memo of the hot path, as `Shared::choose` uses it.
mod memo {
    use super::*;

    #[test]
    fn an_answer_that_settles_which_of_two_rows_is_right_is_news() {
        let s = Scene::new();
        s.state.learn_row(&target("b"), s.at(0));
        let row = s.row(Some("a"), 10);
        let (choice, version) = s.choose(&row, 20);
        assert!(choice.is_settled(), "two rows are no evidence against each other");
        row.set_settled_in(version);
        // For the next call, for calls under way and for connections that were returned.
        assert!(s.has_changed(|_| s.answer(running("b"), 30)));
        assert!(!row.is_settled_in(s.state.version()));
        assert_eq!(s.choose(&row, 40).0.target(), Some(&target("b")));
        assert!(!s.has_changed(|_| s.answer(running("b"), 50)), "once");
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// One of three callers chooses…
        Choose(usize),
        /// …and notes its choice, perhaps much later.
        Note(usize),
        Answer(&'static str),
        Unknown,
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
            1 => Just(Step::Unknown),
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

        /// Whatever comes between a choice and its note: while the note holds, a new choice is the
        /// same.
        #[test]
        fn a_note_never_hides_a_change(
            first in prop::sample::select(vec![None, Some("b"), Some("b5")]),
            row in prop::sample::select(vec![Some("a5"), Some("a"), Some("b6"), None]),
            read in prop::sample::select(vec![0, 3_000]),
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let s = Scene::new();
            let state = &s.state;
            if let Some(first) = first {
                state.learn_row(&target(first), s.at(0));
            }
            let row = s.row(row, read);
            let mut now = 0;
            let mut chosen: [Option<(Choice, u32)>; 3] = Default::default();
            for step in steps {
                match step {
                    Step::Choose(caller) => chosen[caller] = Some(s.choose(&row, now)),
                    Step::Note(caller) => {
                        if let Some((choice, version)) = chosen[caller].take() && choice.is_settled() {
                            row.set_settled_in(version);
                        }
                    }
                    Step::Answer(name) => drop(s.answer(running(name), now)),
                    Step::Unknown => drop(s.answer(Answer::Unknown, now)),
                    Step::Denied => drop(s.answer(STOPPED, now)),
                    Step::Row(name) => drop(state.learn_row(&target(name), s.at(now))),
                    Step::Hint => state.doubt(DoubtReason::Hint, s.at(now)),
                    Step::Dropped(name) => {
                        state.doubt_dropped(agent(name), s.at(now.saturating_sub(500)), s.at(now));
                    }
                    Step::Report => drop(state.doubt_reported(session(1), &target("a5"), s.at(now))),
                    Step::Lost(name) => state.doubt_agent(agent(name), DoubtReason::Unbound, s.at(now)),
                    Step::Answered => state.answered(agent("a"), true, || s.at(now)),
                    Step::Reset => s.workspaces.reset(workspace(1), None),
                    Step::Later(seconds) => now += seconds * 1_000,
                }
                if row.is_settled_in(state.version()) {
                    let (choice, _) = s.choose(&row, now);
                    prop_assert!(choice.is_settled());
                    prop_assert_eq!(choice.target(), row.row.target.as_ref());
                }
            }
        }
    }

    #[test]
    fn a_choice_sees_what_was_learned_before_it_on_every_thread() {
        const LAST: i64 = 5_000;
        let s = Scene::new();
        let row = s.row(Some("a1"), 0);
        let learned = AtomicI64::new(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                for generation in 2..=LAST {
                    s.state.learn_row(&target(&format!("b{generation}")), s.at(0));
                    learned.store(generation, Ordering::Release);
                    // Changes that leave the choice as it is, so that notes are taken.
                    s.state.doubt(DoubtReason::Hint, s.at(0));
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let floor = learned.load(Ordering::Acquire);
                        let version = s.state.version();
                        let generation = if row.is_settled_in(version) {
                            row.row.target.as_ref().and_then(|target| target.generation)
                        } else {
                            let (choice, version) = s.choose(&row, 0);
                            if choice.is_settled() {
                                row.set_settled_in(version);
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
