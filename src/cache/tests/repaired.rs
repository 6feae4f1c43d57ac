//! Entries of rows that a group repair has written. Such a repair returns no rows.

use super::*;
use crate::Previous;

fn target(agent: u128) -> Arc<Target> {
    Arc::new(Target::new(AgentId::new(Uuid::from_u128(agent))))
}

/// Returns an entry, the one that a group repair has replaced it by, and when the repair landed.
fn repaired(s: &Scene, revision: i64) -> (Arc<CachedRow>, Arc<CachedRow>, Tick) {
    let entry = s.learn(&s.row(1, revision));
    let landed = s.rows.tick();
    s.rows.learn_group_repair(&entry, &target(9), landed);
    let repaired = s.rows.get(session(1)).expect("an entry");
    (entry, repaired, landed)
}

#[test]
fn a_group_repaired_row_names_the_new_target_at_the_old_revision() {
    let s = Scene::new();
    let (entry, repaired, _) = repaired(&s, 5);
    assert_eq!((entry.state(), entry.is_group_repaired()), (State::Replaced, false));
    assert_eq!(
        (repaired.state(), repaired.is_group_repaired(), repaired.stored),
        (State::Current, true, true)
    );
    assert_eq!((repaired.row.target.as_ref(), revision(&repaired)), (Some(&target(9)), 5));
    assert_eq!(repaired.previous(), Some(Previous::new(target(1).agent, None)));
    assert_eq!(
        (repaired.workspace(), repaired.read(), repaired.stamp()),
        (entry.workspace(), entry.read(), entry.stamp())
    );
    assert!(!repaired.may_be_commanded());
}

#[test]
fn a_new_address_leaves_the_previous_agent_unchanged() {
    let s = Scene::new();
    let mut row = s.row(1, 5).binding();
    row.previous = Some(Previous::new(target(7).agent, None));
    let entry = s.learn(&CachedRow::new(
        row,
        s.workspaces.state(workspace(1), Epoch::default()),
        true,
        s.at(0),
    ));
    let elsewhere = Arc::new((*target(1)).clone().with_address("elsewhere"));
    s.rows.learn_group_repair(&entry, &elsewhere, s.rows.tick());
    let repaired = s.rows.get(session(1)).expect("an entry");
    assert_eq!(repaired.row.target.as_ref(), Some(&elsewhere));
    assert_eq!(repaired.previous(), Some(Previous::new(target(7).agent, None)));
}

#[test]
fn a_second_group_repair_replaces_the_first() {
    let s = Scene::new();
    let (_, repaired, first) = repaired(&s, 5);
    let second = s.rows.tick();
    s.rows.learn_group_repair(&repaired, &target(10), second);
    let next = s.rows.get(session(1)).expect("an entry");
    assert_eq!((repaired.state(), next.state()), (State::Replaced, State::Current));
    assert_eq!((next.row.target.as_ref(), revision(&next)), (Some(&target(10)), 5));
    assert_eq!(next.previous(), Some(Previous::new(target(9).agent, None)));
    // A read between the two repairs knows less than the second one, a later read knows more.
    let keep = |began| {
        let (revision, epoch, stamp) = (next.row.revision, Epoch::default(), Stamp::read(began));
        winner(Some(next.as_current()), NewRow { revision, epoch, stamp, may_fill: true })
    };
    assert_eq!((keep(first + 1), keep(second + 1)), (Keep::Current, Keep::New));
}

#[test]
fn a_group_repair_leaves_a_slot_that_has_changed() {
    let s = Scene::new();
    // A later row.
    let old = s.learn(&s.row(1, 5));
    let later = s.learn(&s.row(1, 6));
    s.rows.learn_group_repair(&old, &target(9), s.rows.tick());
    assert!(Arc::ptr_eq(&s.rows.get(session(1)).expect("an entry"), &later));
    assert_eq!(later.state(), State::Current);
    // An empty slot: the row was removed.
    s.rows.remove(session(1));
    s.rows.learn_group_repair(&later, &target(9), s.rows.tick());
    assert_eq!(s.slot(1), None);
    // An entry that was never cached.
    let uncached = s.row(2, 5);
    s.rows.learn_group_repair(&uncached, &target(9), s.rows.tick());
    assert_eq!((s.slot(2), uncached.state()), (None, State::Evicted));
}

#[test]
fn only_a_later_revision_replaces_a_group_repaired_row() {
    let s = Scene::new();
    let (_, repaired, _) = repaired(&s, 5);
    for earlier in [1, 4] {
        assert!(Arc::ptr_eq(&s.learn(&s.row(1, earlier)), &repaired));
    }
    let later = s.learn(&s.row(1, 6));
    assert_eq!(
        (repaired.state(), later.is_group_repaired(), s.slot(1)),
        (State::Replaced, false, Some(6))
    );
}

#[test]
fn the_same_revision_read_after_the_repair_shows_that_it_missed_the_row() {
    let s = Scene::new();
    let early = s.rows.read_token(session(1));
    let (_, repaired, landed) = repaired(&s, 5);
    // A read that began before the repair proves nothing.
    assert!(Arc::ptr_eq(&s.rows.learn(s.row(1, 5), &early), &repaired));
    assert_eq!(repaired.state(), State::Current);
    let missed = s.learn(&s.row(1, 5));
    assert_eq!(
        (repaired.state(), missed.state(), missed.is_group_repaired()),
        (State::Replaced, State::Current, false)
    );
    assert_eq!(missed.row.target, Some(target(1)));
    assert!(missed.stamp().answered().is_none() && missed.stamp().began() > landed);
}

#[test]
fn reading_the_same_revision_again_moves_the_stamp_forward() {
    let s = Scene::new();
    let early = s.rows.read_token(session(1));
    let entry = s.learn(&s.row(1, 5));
    let first = entry.stamp();
    assert!(Arc::ptr_eq(&s.rows.learn(s.row(1, 5), &early), &entry));
    assert_eq!(entry.stamp(), first, "an older read");
    let later = s.rows.read_token(session(1));
    assert!(Arc::ptr_eq(&s.rows.learn(s.row(1, 5), &later), &entry));
    assert_eq!(entry.stamp(), later.stamp);
    // Neither an earlier nor a later revision says anything about this one.
    s.learn(&s.row(1, 4));
    assert_eq!(entry.stamp(), later.stamp);
}

#[test]
fn an_entry_has_the_stamp_of_its_token() {
    let s = Scene::new();
    let token = s.rows.read_token(session(1));
    let written = s.rows.written(token.clone());
    assert_eq!(token.stamp.answered(), None);
    let answered = written.stamp.answered().expect("a write");
    assert!(token.stamp.began() < answered && answered < s.rows.tick());
    assert_eq!(s.rows.learn(s.row(1, 5), &token).stamp(), token.stamp);
    assert_eq!(s.rows.learn(s.row(1, 6), &written).stamp(), written.stamp);
}

#[test]
fn a_group_repair_wakes_the_waiters() {
    use tokio_test::{assert_pending, assert_ready, task::spawn};
    let s = Scene::new();
    let entry = s.learn(&s.row(1, 5));
    let mut waiting = spawn(s.rows.changed(session(1)));
    assert_pending!(waiting.poll());
    s.rows.learn_group_repair(&entry, &target(9), s.rows.tick());
    assert_ready!(waiting.poll());
}

#[test]
fn a_panic_while_the_slot_is_locked_leaves_a_group_repaired_row_usable() {
    let s = Scene::new();
    let (_, repaired, _) = repaired(&s, 5);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        s.rows
            .slots
            .entry(session(1))
            .and_compute_with(|_| -> Op<Option<Arc<CachedRow>>> { panic!("on purpose") })
    }));
    assert!(panicked.is_err());
    assert_eq!(repaired.state(), State::Current);
    assert_eq!(revision(&s.learn(&s.row(1, 6))), 6);
}
