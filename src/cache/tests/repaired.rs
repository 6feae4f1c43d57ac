//! Entries of rows that a group repair has written, which returns none of them.

use super::*;

fn target(agent: u128) -> Arc<Target> {
    Arc::new(Target::new(AgentId::new(Uuid::from_u128(agent))))
}

/// An entry in its slot, and what a group repair that lands now makes of it.
fn carried(s: &Scene, revision: i64) -> (Arc<CachedRow>, Arc<CachedRow>, Tick) {
    let entry = s.learn(&s.row(1, revision));
    let landed = s.rows.tick();
    s.rows.repaired(&entry, &target(9), landed);
    let ahead = s.rows.get(session(1)).expect("an entry");
    (entry, ahead, landed)
}

#[test]
fn the_row_names_the_target_at_a_revision_that_is_not_known() {
    let s = Scene::new();
    let (entry, ahead, _) = carried(&s, 5);
    assert_eq!((entry.state(), entry.is_ahead()), (State::Replaced, false));
    assert_eq!((ahead.state(), ahead.is_ahead(), ahead.stored), (State::Current, true, true));
    assert_eq!((ahead.row.target.as_ref(), revision(&ahead)), (Some(&target(9)), 5));
    assert_eq!(ahead.previous(), Some(Previous::new(target(1).agent, None)));
    assert_eq!(
        (ahead.workspace(), ahead.read(), ahead.stamp()),
        (entry.workspace(), entry.read(), entry.stamp())
    );
    assert!(!ahead.is_commanded());
}

#[test]
fn the_agent_before_stays_if_only_its_place_is_another_one() {
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
    s.rows.repaired(&entry, &elsewhere, s.rows.tick());
    let ahead = s.rows.get(session(1)).expect("an entry");
    assert_eq!(ahead.row.target.as_ref(), Some(&elsewhere));
    assert_eq!(ahead.previous(), Some(Previous::new(target(7).agent, None)));
}

#[test]
fn it_is_carried_on_by_the_next_one() {
    let s = Scene::new();
    let (_, ahead, first) = carried(&s, 5);
    let second = s.rows.tick();
    s.rows.repaired(&ahead, &target(10), second);
    let next = s.rows.get(session(1)).expect("an entry");
    assert_eq!((ahead.state(), next.state()), (State::Replaced, State::Current));
    assert_eq!((next.row.target.as_ref(), revision(&next)), (Some(&target(10)), 5));
    assert_eq!(next.previous(), Some(Previous::new(target(9).agent, None)));
    // Of a read in between, the later one of the two knows more.
    assert!(!next.is_behind(Stamp::read(first + 1)) && next.is_behind(Stamp::read(second + 1)));
}

#[test]
fn what_the_slot_holds_by_now_stays() {
    let s = Scene::new();
    // A later row.
    let old = s.learn(&s.row(1, 5));
    let later = s.learn(&s.row(1, 6));
    s.rows.repaired(&old, &target(9), s.rows.tick());
    assert!(Arc::ptr_eq(&s.rows.get(session(1)).expect("an entry"), &later));
    assert_eq!(later.state(), State::Current);
    // Nothing, since an order has taken it away.
    s.rows.remove(session(1));
    s.rows.repaired(&later, &target(9), s.rows.tick());
    assert_eq!(s.slot(1), None);
    // One that was never kept.
    let stray = s.row(2, 5);
    s.rows.repaired(&stray, &target(9), s.rows.tick());
    assert_eq!((s.slot(2), stray.state()), (None, State::Evicted));
}

#[test]
fn a_later_revision_replaces_it_and_an_earlier_one_does_not() {
    let s = Scene::new();
    let (_, ahead, _) = carried(&s, 5);
    for earlier in [1, 4] {
        assert!(Arc::ptr_eq(&s.learn(&s.row(1, earlier)), &ahead));
    }
    let later = s.learn(&s.row(1, 6));
    assert_eq!((ahead.state(), later.is_ahead(), s.slot(1)), (State::Replaced, false, Some(6)));
}

#[test]
fn the_same_revision_read_later_shows_that_the_row_was_missed() {
    let s = Scene::new();
    let early = s.rows.read_token(session(1));
    let (_, ahead, landed) = carried(&s, 5);
    // What was read before says nothing.
    assert!(Arc::ptr_eq(&s.rows.learn(s.row(1, 5), &early), &ahead));
    assert_eq!(ahead.state(), State::Current);
    let missed = s.learn(&s.row(1, 5));
    assert_eq!(
        (ahead.state(), missed.state(), missed.is_ahead()),
        (State::Replaced, State::Current, false)
    );
    assert_eq!(missed.row.target, Some(target(1)));
    assert!(missed.stamp().answered().is_none() && missed.stamp().began() > landed);
}

#[test]
fn the_same_revision_read_again_makes_an_entry_younger() {
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
fn how_old_an_entry_may_be_is_what_its_ticket_says() {
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
fn who_waits_for_the_slot_is_told() {
    use tokio_test::{assert_pending, assert_ready, task::spawn};
    let s = Scene::new();
    let entry = s.learn(&s.row(1, 5));
    let mut waiting = spawn(s.rows.changed(session(1)));
    assert_pending!(waiting.poll());
    s.rows.repaired(&entry, &target(9), s.rows.tick());
    assert_ready!(waiting.poll());
}

#[test]
fn a_panic_on_the_way_of_a_row_leaves_a_written_one_usable() {
    let s = Scene::new();
    let (_, ahead, _) = carried(&s, 5);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        s.rows
            .cache
            .entry(session(1))
            .and_compute_with(|_| -> Op<Option<Arc<CachedRow>>> { panic!("on purpose") })
    }));
    assert!(panicked.is_err());
    assert_eq!(ahead.state(), State::Current);
    assert_eq!(revision(&s.learn(&s.row(1, 6))), 6);
}
