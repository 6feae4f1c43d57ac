use super::*;
use crate::{AgentId, Binding, Epoch, WorkspaceId, workspace::Workspaces};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    thread,
};
use tokio::time::Duration;
use uuid::Uuid;

fn session(number: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(number))
}

fn workspace(number: u128) -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(number))
}

struct Scene {
    rows: RowCache,
    workspaces: Workspaces,
    zero: Instant,
}

impl Scene {
    fn new() -> Self {
        Self::with_capacity(1_000)
    }

    fn with_capacity(cache_capacity: u64) -> Self {
        let settings = Settings { cache_capacity, ..Settings::default() };
        let zero = Instant::now() + Duration::from_secs(3600);
        Self { rows: RowCache::new(&settings), workspaces: Workspaces::new(&settings), zero }
    }

    fn at(&self, millis: u64) -> Instant {
        self.zero + Duration::from_millis(millis)
    }

    fn row(&self, number: u128, revision: i64) -> Arc<CachedRow> {
        self.row_in(1, number, revision, 0)
    }

    fn row_in(&self, in_workspace: u128, number: u128, revision: i64, read: u64) -> Arc<CachedRow> {
        let target = Target::new(AgentId::new(Uuid::from_u128(in_workspace)));
        let row = Binding::new(
            session(number),
            workspace(in_workspace),
            Some(Arc::new(target)),
            Revision::new(revision),
        );
        CachedRow::new(
            row,
            self.workspaces.state(workspace(in_workspace), Epoch::default()),
            true,
            self.at(read),
        )
    }

    /// A read that begins and ends at once.
    fn learn(&self, entry: &Arc<CachedRow>) -> Arc<CachedRow> {
        let token = self.rows.read_token(entry.row.session);
        self.rows.learn(Arc::clone(entry), &token)
    }

    /// The revision in the slot.
    fn slot(&self, number: u128) -> Option<i64> {
        self.rows.get(session(number)).map(|entry| entry.row.revision.get())
    }
}

fn revision(entry: &CachedRow) -> i64 {
    entry.row.revision.get()
}

mod order {
    use super::*;

    #[test]
    fn a_slot_keeps_the_greatest_revision() {
        let s = Scene::new();
        // Learned, then in the slot.
        for (learned, slot) in
            [(5, 5), (4, 5), (7, 7), (7, 7), (6, 7), (i64::MAX, i64::MAX), (1, i64::MAX)]
        {
            let used = s.learn(&s.row(1, learned));
            assert_eq!((revision(&used), s.slot(1)), (slot, Some(slot)), "{learned}");
            assert_eq!(used.state(), State::Current);
        }
    }

    #[test]
    fn an_entry_keeps_the_first_reason_for_which_it_left_its_slot() {
        let s = Scene::new();
        let (first, second) = (s.learn(&s.row(1, 1)), s.learn(&s.row(1, 2)));
        assert_eq!((first.state(), second.state()), (State::Replaced, State::Current));
        s.rows.remove(session(1));
        // The first reason stays.
        assert_eq!((first.state(), second.state()), (State::Replaced, State::Removed));
        assert_eq!(s.slot(1), None);
    }

    #[test]
    fn the_same_row_read_twice_is_one_entry() {
        let s = Scene::new();
        let first = s.learn(&s.row(1, 1));
        let again = s.learn(&s.row(1, 1));
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(first.state(), State::Current);
    }

    #[test]
    fn a_removal_leaves_other_sessions_alone() {
        let s = Scene::new();
        for number in 0..500 {
            s.learn(&s.row(number, number as i64));
        }
        s.rows.remove(session(7));
        for number in 0..500 {
            assert_eq!(s.slot(number), (number != 7).then_some(number as i64));
        }
    }

    #[test]
    fn revisions_never_go_back_while_several_threads_learn() {
        const LAST: i64 = 4_000;
        let s = Scene::new();
        let next = AtomicI64::new(1);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    loop {
                        // Each thread learns the next revision, and an old one after it.
                        let revision = next.fetch_add(1, Ordering::Relaxed);
                        if revision > LAST {
                            return;
                        }
                        let used = s.learn(&s.row(1, revision));
                        assert!(used.row.revision.get() >= revision);
                        s.learn(&s.row(1, revision / 2));
                    }
                });
            }
            scope.spawn(|| {
                let mut seen = 0;
                while seen < LAST {
                    let now = s.slot(1).unwrap_or(0);
                    assert!(now >= seen, "{now} after {seen}");
                    seen = now;
                    thread::yield_now();
                }
            });
        });
        assert_eq!(s.slot(1), Some(LAST));
    }
}

mod tokens {
    use super::*;

    #[test]
    fn a_read_that_began_before_a_removal_is_not_cached() {
        let s = Scene::new();
        let early = s.rows.read_token(session(1));
        s.rows.remove(session(1));
        let late = s.rows.read_token(session(1));
        // The reader may use the row, which is not cached.
        let used = s.rows.learn(s.row(1, 3), &early);
        assert_eq!((revision(&used), used.state(), s.slot(1)), (3, State::Evicted, None));
        let used = s.rows.learn(s.row(1, 3), &late);
        assert_eq!((revision(&used), used.state(), s.slot(1)), (3, State::Current, Some(3)));
    }

    #[test]
    fn the_removal_of_a_cached_row_voids_earlier_tokens() {
        let s = Scene::new();
        s.learn(&s.row(1, 5));
        let early = s.rows.read_token(session(1));
        s.rows.remove(session(1));
        s.rows.learn(s.row(1, 4), &early);
        assert_eq!(s.slot(1), None);
        s.learn(&s.row(1, 6));
        assert_eq!(s.slot(1), Some(6));
    }

    #[test]
    fn a_greater_revision_replaces_a_cached_row_whenever_it_was_read() {
        let s = Scene::new();
        let early = s.rows.read_token(session(1));
        s.rows.remove(session(1));
        s.learn(&s.row(1, 5));
        let used = s.rows.learn(s.row(1, 4), &early);
        assert_eq!((revision(&used), s.slot(1)), (5, Some(5)));
        let used = s.rows.learn(s.row(1, 6), &early);
        assert_eq!((revision(&used), s.slot(1)), (6, Some(6)));
    }

    #[test]
    fn a_reset_voids_all_tokens() {
        let s = Scene::new();
        let early: Vec<ReadToken> =
            (0..50).map(|number| s.rows.read_token(session(number))).collect();
        s.learn(&s.row(60, 1));
        s.rows.invalidate_tokens();
        for (number, token) in early.into_iter().enumerate() {
            s.rows.learn(s.row(number as u128, 1), &token);
            assert_eq!(s.slot(number as u128), None);
        }
        assert_eq!(s.slot(60), Some(1), "a cached row is void by its workspace state");
    }

    #[test]
    fn a_read_that_began_before_an_eviction_is_not_cached() {
        let s = Scene::with_capacity(2);
        let held: Vec<(ReadToken, Arc<CachedRow>)> = (0..50)
            .map(|number| {
                let entry = s.learn(&s.row(number, 5));
                (s.rows.read_token(session(number)), entry)
            })
            .collect();
        s.rows.slots.run_pending_tasks();
        let mut evicted = 0;
        for (number, (token, entry)) in held.into_iter().enumerate() {
            let number = number as u128;
            if s.slot(number).is_some() {
                assert_eq!(entry.state(), State::Current);
                continue;
            }
            evicted += 1;
            assert_eq!(entry.state(), State::Evicted);
            // A read that began before the eviction may be older than the evicted row.
            let used = s.rows.learn(s.row(number, 4), &token);
            assert_eq!((revision(&used), used.state(), s.slot(number)), (4, State::Evicted, None));
        }
        assert_eq!(evicted, 48);
    }

    #[test]
    fn a_full_cache_accepts_rows_and_keeps_its_capacity() {
        let s = Scene::with_capacity(10);
        for number in 0..2_000 {
            let used = s.learn(&s.row(number, 1));
            assert_eq!(revision(&used), 1);
        }
        s.rows.slots.run_pending_tasks();
        assert_eq!(s.rows.slots.entry_count(), 10);
        // Each entry is either in its slot or says that it is not.
        let held: Vec<_> = (0..100).map(|number| (number, s.learn(&s.row(number, 2)))).collect();
        s.rows.slots.run_pending_tasks();
        for (number, entry) in held {
            assert_eq!(entry.state() == State::Current, s.slot(number) == Some(2), "{number}");
        }
    }

    #[test]
    fn revisions_never_go_back_while_rows_are_evicted() {
        let s = Scene::with_capacity(1);
        let committed = AtomicI64::new(1);
        let seen = AtomicI64::new(0);
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                // Readers: a token, a read that takes a while, and its row.
                scope.spawn(|| {
                    while !end.load(Ordering::Relaxed) {
                        let token = s.rows.read_token(session(1));
                        let row = s.row(1, committed.load(Ordering::SeqCst));
                        thread::yield_now();
                        s.rows.learn(row, &token);
                    }
                });
            }
            // Rows of other sessions evict it.
            scope.spawn(|| {
                for number in 0.. {
                    s.learn(&s.row(2 + number % 3, 1));
                    s.rows.slots.run_pending_tasks();
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            // A writer that learns the rows that it writes.
            scope.spawn(|| {
                for _ in 0..1_000 {
                    let token = s.rows.read_token(session(1));
                    let revision = committed.fetch_add(1, Ordering::SeqCst) + 1;
                    s.rows.learn(s.row(1, revision), &token);
                    if s.slot(1) == Some(revision) {
                        seen.fetch_max(revision, Ordering::SeqCst);
                    }
                    thread::yield_now();
                }
                end.store(true, Ordering::Relaxed);
            });
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    // A revision that was seen in the slot is the least that is seen from then on.
                    let floor = seen.load(Ordering::SeqCst);
                    if let Some(now) = s.slot(1) {
                        assert!(now >= floor, "{now} after {floor}");
                        seen.fetch_max(now, Ordering::SeqCst);
                    }
                }
            });
        });
        assert!(seen.into_inner() > 10);
    }
}

mod uncertain {
    use super::*;

    #[test]
    fn an_uncertain_row_is_not_cached_until_its_revision_shows() {
        let s = Scene::new();
        let held = s.learn(&s.row(1, 4));
        assert!(!s.rows.must_read(session(1)));
        s.rows.mark_uncertain(session(1), Revision::new(5), s.at(0));
        assert_eq!((held.state(), s.slot(1)), (State::Removed, None));
        // A row that is read meanwhile is not cached: the transaction may end at any time.
        for _ in 0..3 {
            assert!(s.rows.must_read(session(1)) && !s.rows.must_read(session(2)));
            let used = s.learn(&s.row_in(1, 1, 4, 59_999));
            assert_eq!((revision(&used), used.state(), s.slot(1)), (4, State::Evicted, None));
        }
        s.learn(&s.row(2, 1));
        assert_eq!(s.slot(2), Some(1), "another session is not concerned");
        // The revision, or a later one, shows that the transaction has ended.
        s.learn(&s.row_in(1, 1, 5, 1_000));
        assert_eq!((s.slot(1), s.rows.must_read(session(1))), (Some(5), false));
    }

    #[test]
    fn a_session_is_uncertain_for_a_minute() {
        let s = Scene::new();
        s.rows.mark_uncertain(session(1), Revision::new(5), s.at(0));
        s.learn(&s.row_in(1, 1, 4, 59_999));
        assert_eq!(s.slot(1), None);
        s.learn(&s.row_in(1, 1, 4, 60_000));
        assert_eq!((s.slot(1), s.rows.must_read(session(1))), (Some(4), false));
    }

    #[test]
    fn a_read_that_began_before_the_mark_is_not_cached() {
        let s = Scene::new();
        let early = s.rows.read_token(session(1));
        s.rows.mark_uncertain(session(1), Revision::new(5), s.at(0));
        // Also if it shows the revision, which ends the uncertainty.
        s.rows.learn(s.row(1, 5), &early);
        assert_eq!((s.slot(1), s.rows.must_read(session(1))), (None, false));
        s.learn(&s.row(1, 5));
        assert_eq!(s.slot(1), Some(5));
    }

    #[test]
    fn a_second_mark_replaces_the_first_and_expired_marks_are_removed() {
        let s = Scene::new();
        s.rows.mark_uncertain(session(1), Revision::new(5), s.at(0));
        s.rows.mark_uncertain(session(1), Revision::new(7), s.at(30_000));
        s.learn(&s.row_in(1, 1, 6, 60_001));
        assert_eq!(s.slot(1), None);
        s.rows.mark_uncertain(session(2), Revision::new(1), s.at(90_000));
        assert!(!s.rows.must_read(session(1)) && s.rows.must_read(session(2)));
        assert_eq!(s.rows.uncertain.lock().len(), 1);
    }

    #[test]
    fn without_uncertain_sessions_no_lock_is_taken() {
        let s = Scene::new();
        let _locked = s.rows.uncertain.lock();
        s.learn(&s.row(1, 1));
        assert!(!s.rows.must_read(session(1)));
    }
}

mod news {
    use super::*;
    use crate::waiters::Place;
    use std::{future::poll_fn, task::Poll};
    use tokio_test::{assert_pending, assert_ready, task::spawn};

    #[tokio::test]
    async fn a_change_of_the_slot_wakes_the_waiters() {
        let s = Scene::new();
        type Change = fn(&Scene);
        let changes: [(&str, bool, Change); 6] = [
            ("filled", true, |s| drop(s.learn(&s.row(1, 2)))),
            ("replaced", true, |s| drop(s.learn(&s.row(1, 3)))),
            ("older", false, |s| drop(s.learn(&s.row(1, 1)))),
            ("removed", true, |s| s.rows.remove(session(1))),
            ("uncertain", true, |s| s.rows.mark_uncertain(session(1), Revision::new(9), s.at(0))),
            ("commanded", true, |s| s.rows.record_command(session(1))),
        ];
        for (name, wakes, change) in changes {
            let mut changed = spawn(s.rows.changed(session(1)));
            assert_pending!(changed.poll());
            change(&s);
            assert_eq!((changed.is_woken(), changed.poll().is_ready()), (wakes, wakes), "{name}");
        }
    }

    #[test]
    fn a_row_that_leaves_its_slot_wakes_the_calls_that_wait_with_it_and_no_others() {
        type Change = fn(&Scene);
        let changes: [(&str, bool, Change); 5] = [
            ("replaced", true, |s| drop(s.learn(&s.row(1, 3)))),
            ("removed", true, |s| s.rows.remove(session(1))),
            ("evicted", true, |s| s.rows.slots.invalidate(&session(1))),
            ("read again", false, |s| drop(s.learn(&s.row(1, 2)))),
            ("of another session", false, |s| s.rows.remove(session(2))),
        ];
        for (name, wakes, change) in changes {
            let s = Scene::new();
            let (entry, _other) = (s.learn(&s.row(1, 2)), s.learn(&s.row(2, 2)));
            let state = &entry.workspace_state;
            let mut call =
                spawn(poll_fn(|cx| Poll::<Place>::Ready(state.join(session(1), cx.waker()))));
            let place = assert_ready!(call.poll());
            change(&s);
            assert_eq!((call.is_woken(), !entry.is_current()), (wakes, wakes), "{name}");
            state.leave(place);
        }
    }

    #[test]
    fn a_row_that_leaves_its_slot_beside_the_first_call_that_waits_is_noticed() {
        for number in 0..500 {
            let s = Scene::new();
            let entry = s.learn(&s.row(1, 2));
            let begin = AtomicBool::new(false);
            thread::scope(|scope| {
                let remover = scope.spawn(|| {
                    while !begin.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                    s.rows.remove(session(1));
                });
                begin.store(true, Ordering::Relaxed);
                let state = &entry.workspace_state;
                let mut call =
                    spawn(poll_fn(|cx| Poll::<Place>::Ready(state.join(session(1), cx.waker()))));
                let place = assert_ready!(call.poll());
                let seen = !entry.is_current();
                remover.join().expect("no panic");
                assert!(seen || call.is_woken(), "{number}");
                state.leave(place);
            });
        }
    }

    #[tokio::test]
    async fn a_change_before_the_first_poll_is_not_missed() {
        let s = Scene::new();
        let mut changed = spawn(s.rows.changed(session(1)));
        s.learn(&s.row(1, 2));
        assert_ready!(changed.poll());
    }

    #[tokio::test]
    async fn a_change_wakes_every_waiter() {
        let s = Scene::new();
        let mut waiting: Vec<_> = (0..10).map(|_| spawn(s.rows.changed(session(1)))).collect();
        for changed in &mut waiting {
            assert_pending!(changed.poll());
        }
        s.learn(&s.row(1, 2));
        for changed in &mut waiting {
            assert_ready!(changed.poll());
        }
    }

    #[test]
    fn no_change_is_missed_between_a_look_and_the_wait() {
        const LAST: i64 = 3_000;
        let s = Scene::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                for revision in 1..=LAST {
                    s.learn(&s.row(1, revision));
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_time()
                        .build()
                        .expect("a runtime");
                    runtime.block_on(async {
                        loop {
                            let changed = s.rows.changed(session(1));
                            if s.slot(1) == Some(LAST) {
                                return;
                            }
                            tokio::time::timeout(Duration::from_secs(20), changed)
                                .await
                                .expect("a wake-up was lost");
                        }
                    });
                });
            }
        });
    }
}

mod commands {
    use super::*;

    /// Commands are compared with when a statement began, so the safe side costs one look-up more.
    #[test]
    fn an_evicted_row_of_an_own_command_may_be_commanded() {
        let s = Scene::new();
        let token = s.rows.read_token(session(1));
        let written = s.rows.learn(s.row(1, 2), &token);
        s.rows.record_command(session(1));
        assert_eq!((written.state(), written.may_be_commanded()), (State::Current, false));
        s.rows.slots.invalidate(&session(1));
        // No other command has come.
        assert_eq!((written.state(), written.may_be_commanded()), (State::Evicted, true));

        // A row whose read began after the answer is told apart.
        let read = s.learn(&s.row(1, 2));
        s.rows.slots.invalidate(&session(1));
        assert_eq!((read.state(), read.may_be_commanded()), (State::Evicted, false));
    }

    #[test]
    fn a_held_row_may_be_commanded_after_a_command_or_a_removal() {
        type Change = fn(&Scene);
        // Whether the row may be commanded, and whether its session was moved.
        let changes: [(&str, bool, bool, Change); 8] = [
            ("a later row of the same workspace", false, false, |s| drop(s.learn(&s.row(1, 3)))),
            ("a row of another workspace", true, true, |s| drop(s.learn(&s.row_in(2, 1, 3, 0)))),
            ("a removal", true, true, |s| s.rows.remove(session(1))),
            ("a command to the same workspace", true, false, |s| {
                s.learn(&s.row(1, 3));
                s.rows.record_command(session(1));
            }),
            ("a hint", true, false, |s| {
                s.rows.slots.invalidate(&session(1));
                s.rows.ask_to_read(session(1));
            }),
            // The workspace state tells the sessions of that workspace.
            ("the command to reset some workspace", false, false, |s| s.rows.invalidate_tokens()),
            ("a command for another session", false, false, |s| s.rows.record_command(session(2))),
            ("the removal of another session", false, false, |s| s.rows.remove(session(2))),
        ];
        for (name, expected, moved, change) in changes {
            let s = Scene::new();
            let held = s.learn(&s.row(1, 2));
            assert!(!held.may_be_commanded());
            change(&s);
            assert_eq!((held.may_be_commanded(), held.is_moved()), (expected, moved), "{name}");
            // A row that is read from here on is not concerned.
            let read = s.learn(&s.row(1, 9));
            assert!(name.contains("another workspace") || !read.may_be_commanded(), "{name}");
        }
    }

    #[test]
    fn a_row_that_has_replaced_a_row_elsewhere_is_not_moved() {
        let s = Scene::new();
        let left = s.learn(&s.row(1, 1));
        let held = s.learn(&s.row_in(2, 1, 2, 0));
        s.learn(&s.row_in(2, 1, 3, 0));
        assert_eq!((left.is_moved(), held.is_moved()), (true, false));
    }
}

#[test]
fn a_panic_while_the_slot_is_locked_leaves_it_usable() {
    let s = Scene::new();
    s.learn(&s.row(1, 1));
    // As if the allocator or a hasher panicked: the key must not stay locked.
    let crashed = catch_unwind(AssertUnwindSafe(|| {
        s.rows
            .slots
            .entry(session(1))
            .and_compute_with(|_| -> Op<Option<Arc<CachedRow>>> { panic!("on purpose") })
    }));
    assert!(crashed.is_err());
    assert_eq!((s.slot(1), revision(&s.learn(&s.row(1, 2)))), (Some(1), 2));
    s.rows.remove(session(1));
    assert_eq!(s.slot(1), None);
}

#[test]
fn a_panic_while_the_marks_are_locked_leaves_them_readable() {
    let s = Scene::new();
    s.rows.mark_uncertain(session(1), Revision::new(5), s.at(0));
    let crashed = catch_unwind(AssertUnwindSafe(|| {
        let _locked = s.rows.uncertain.lock();
        panic!("on purpose");
    }));
    assert!(crashed.is_err());
    assert!(s.rows.must_read(session(1)));
}

mod repaired;

mod stale {
    use super::*;

    #[test]
    fn a_read_from_before_a_command_was_answered_fills_nothing() {
        let s = Scene::new();
        let command = s.rows.read_token(session(1));
        s.rows.record_hint(session(1), Some(Revision::new(2)));
        // Begins before the command is carried out, and ends after it was answered.
        let read = s.rows.read_token(session(1));
        let written = s.rows.written(command);
        s.rows.learn(s.row(1, 2), &written);
        s.rows.record_command(session(1));
        s.rows.learn(s.row(1, 1), &read);
        assert_ne!(s.slot(1), Some(1));
    }

    #[test]
    fn an_older_row_is_not_cached_after_a_newer_one_was_seen() {
        let s = Scene::new();
        let early = s.rows.read_token(session(1));
        s.rows.remove(session(1));
        let read = s.rows.read_token(session(1));
        s.rows.learn(s.row(1, 2), &early);
        s.rows.learn(s.row(1, 1), &read);
        assert_ne!(s.slot(1), Some(1));
        assert_eq!(
            (revision(&s.learn(&s.row(1, 2))), s.slot(1)),
            (2, Some(2)),
            "the next read is kept"
        );
    }

    #[test]
    fn an_older_row_is_not_cached_while_a_newer_one_is_learned_with_a_void_token() {
        let s = Scene::with_capacity(100_000);
        for number in 0..20_000 {
            let early = s.rows.read_token(session(number));
            s.rows.remove(session(number));
            let late = s.rows.read_token(session(number));
            let (newer, older) = (s.row(number, 2), s.row(number, 1));
            thread::scope(|scope| {
                scope.spawn(|| s.rows.learn(newer, &early));
                s.rows.learn(older, &late);
            });
            assert_ne!(s.slot(number), Some(1), "session {number}");
        }
    }

    #[test]
    fn a_hint_finds_or_prevents_the_stale_row_of_a_concurrent_read() {
        let s = Scene::with_capacity(100_000);
        for number in 0..20_000 {
            let read = s.rows.read_token(session(number));
            let row = s.row(number, 1);
            let noticed = thread::scope(|scope| {
                let hears =
                    scope.spawn(|| s.rows.record_hint(session(number), Some(Revision::new(2))));
                s.rows.learn(row, &read);
                hears.join().expect("no panic")
            });
            assert!(noticed || s.slot(number).is_none(), "session {number}");
        }
    }
}

mod held {
    use super::*;
    use crate::state::standing::{self, Standing};
    use tokio_test::{assert_pending, task::spawn};

    /// Returns `true` if the cache or the workspace state has newer information than the entry.
    fn is_overtaken(rows: &RowCache, held: &Arc<CachedRow>) -> bool {
        let version = held.workspace_state.version();
        !matches!(standing::of(rows, held, Some(version)), Standing::Unchanged)
    }

    #[test]
    fn an_evicted_entry_notices_commands_for_its_session_only() {
        type Command = fn(&Scene);
        let commands: [(&str, bool, Command); 6] = [
            ("removed", true, |s| s.rows.remove(session(1))),
            ("not found", true, |s| s.rows.not_found(session(1), &s.rows.read_token(session(1)))),
            ("pointed elsewhere", true, |s| {
                s.learn(&s.row_in(2, 1, 6, 0));
                s.rows.record_command(session(1));
            }),
            ("pointed elsewhere by another process", true, |s| {
                drop(s.learn(&s.row_in(2, 1, 6, 0)))
            }),
            ("repaired", false, |s| drop(s.learn(&s.row(1, 6)))),
            ("read again", false, |s| drop(s.learn(&s.row(1, 5)))),
        ];
        for (name, expected, command) in commands {
            let s = Scene::with_capacity(1);
            let held = s.learn(&s.row(1, 5));
            for number in 10..200 {
                s.learn(&s.row(number, 1));
                s.rows.record_command(session(number));
                s.rows.remove(session(number + 1_000));
                s.rows.slots.run_pending_tasks();
            }
            s.rows.slots.invalidate(&session(1));
            assert_eq!((held.state(), s.slot(1)), (State::Evicted, None));
            assert!(!held.may_be_commanded() && !is_overtaken(&s.rows, &held), "{name}");
            command(&s);
            // Also while no row of the session is cached.
            for number in 10..200 {
                s.learn(&s.row(number, 2));
                s.rows.slots.run_pending_tasks();
            }
            s.rows.slots.invalidate(&session(1));
            assert_eq!(s.slot(1), None);
            assert_eq!(
                (held.may_be_commanded(), is_overtaken(&s.rows, &held)),
                (expected, expected),
                "{name}"
            );
        }
    }

    #[test]
    fn watches_and_waiters_end_with_what_holds_them() {
        let s = Scene::with_capacity(10);
        for number in 0..1_000 {
            s.learn(&s.row(number, 1));
            s.rows.remove(session(number + 5_000));
            s.rows.record_hint(session(number), None);
            drop(spawn(s.rows.changed(session(number))));
        }
        let held: Vec<_> = (0..50).map(|number| s.learn(&s.row(number, 2))).collect();
        let mut waiting: Vec<_> =
            (0..20).map(|number| spawn(s.rows.changed(session(number)))).collect();
        waiting.iter_mut().for_each(|changed| {
            assert_pending!(changed.poll());
        });
        let tokens: Vec<_> =
            (2_000..2_030).map(|number| s.rows.read_token(session(number))).collect();
        s.rows.slots.invalidate_all();
        // moka frees evicted rows with a delay, which the other tests of the process prolong: the
        // last one may still be alive.
        let free_all_but = |most: usize| {
            for _ in 0..1_000 {
                s.rows.slots.run_pending_tasks();
                s.learn(&s.row(9_999, 1));
                s.rows.remove(session(9_999));
                if s.rows.watches.len().0 <= most {
                    break;
                }
                std::thread::yield_now();
            }
        };
        free_all_but(81);
        let (watches, waiters) = s.rows.watches.len();
        assert!((80..=81).contains(&watches) && waiters == 20, "{watches}, {waiters}");
        drop((held, waiting, tokens));
        free_all_but(1);
        let (watches, waiters) = s.rows.watches.len();
        assert!(watches <= 1 && waiters == 0, "{watches}, {waiters}");
    }

    #[tokio::test]
    async fn a_change_wakes_no_waiter_of_another_session() {
        let s = Scene::new();
        let mut waiting: Vec<_> =
            (0..5_000).map(|number| spawn(s.rows.changed(session(number)))).collect();
        waiting.iter_mut().for_each(|changed| {
            assert_pending!(changed.poll());
        });
        for number in 10_000..12_000 {
            s.learn(&s.row(number, 1));
            s.rows.remove(session(number));
        }
        assert!(waiting.iter().all(|changed| !changed.is_woken()));
        s.learn(&s.row(7, 1));
        let woken: Vec<usize> = (0..5_000).filter(|number| waiting[*number].is_woken()).collect();
        assert_eq!(woken, [7]);
    }

    #[test]
    fn a_removal_during_an_eviction_reaches_the_evicted_entry() {
        let s = Scene::with_capacity(1);
        for number in 0..5_000 {
            let held = s.learn(&s.row(number, 1));
            thread::scope(|scope| {
                scope.spawn(|| s.rows.slots.invalidate(&session(number)));
                s.rows.remove(session(number));
            });
            assert!(
                held.state() == State::Removed || held.may_be_commanded(),
                "session {number}: {:?}",
                held.state()
            );
        }
    }
}
