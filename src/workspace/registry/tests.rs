use super::*;
use crate::{
    Binding, Generation, Revision,
    binding::target,
    cache::CachedRow,
    workspace::tests::{session, workspace},
};
use std::thread;

fn entries(workspaces: &Workspaces) -> usize {
    workspaces.index.stripes.iter().map(|stripe| lock(stripe).0.len()).sum()
}

fn state(workspaces: &Workspaces, number: u128) -> Arc<WorkspaceState> {
    workspaces.state(workspace(number), Epoch::default())
}

#[test]
fn a_state_lives_as_long_as_its_users() {
    let workspaces = Workspaces::new(&Settings::default());
    assert!(workspaces.find(workspace(1)).is_none());
    let one = state(&workspaces, 1);
    let again = state(&workspaces, 1);
    assert!(Arc::ptr_eq(&one, &again));
    assert!(workspaces.find(workspace(1)).is_some_and(|found| Arc::ptr_eq(&found, &one)));
    assert!(workspaces.find(workspace(2)).is_none());
    drop(one);
    assert_eq!(entries(&workspaces), 1);
    drop(again);
    assert_eq!(entries(&workspaces), 0);
}

#[test]
fn a_cached_row_is_enough_to_keep_what_is_known() {
    let workspaces = Workspaces::new(&Settings::default());
    let row = Binding::new(session(1), workspace(1), Some(target("a5")), Revision::new(1));
    let row = CachedRow::new(row, state(&workspaces, 1), true, Instant::now());
    row.workspace_state.learn_row(&target("a5"), Instant::now());
    assert_eq!(state(&workspaces, 1).newest_generation(), Some(Generation::new(5)));
    drop(row);
    assert_eq!(state(&workspaces, 1).newest_generation(), None);
}

#[test]
fn a_state_that_is_dropped_leaves_its_successor_alone() {
    let workspaces = Workspaces::new(&Settings::default());
    let old = state(&workspaces, 1);
    workspaces.reset(workspace(1), None);
    let new = state(&workspaces, 1);
    assert!(!Arc::ptr_eq(&old, &new));
    drop(old);
    assert!(workspaces.find(workspace(1)).is_some_and(|found| Arc::ptr_eq(&found, &new)));
    // The registry may be dropped before the states.
    drop(workspaces);
    drop(new);
}

#[test]
fn a_later_epoch_gets_a_new_state_and_an_earlier_one_does_not() {
    let workspaces = Workspaces::new(&Settings::default());
    let first = state(&workspaces, 1);
    let later = workspaces.state(workspace(1), Epoch::new(2));
    assert!(!Arc::ptr_eq(&first, &later));
    assert!(first.supersedes(&target("a5")), "its holders look their rows up again");
    assert!(!later.supersedes(&target("a5")));
    for epoch in [0, 1, 2] {
        assert!(Arc::ptr_eq(&workspaces.state(workspace(1), Epoch::new(epoch)), &later), "{epoch}");
        // A command to reset up to an epoch that is known already is no news.
        workspaces.reset(workspace(1), Some(Epoch::new(epoch)));
    }
    assert!(!later.supersedes(&target("a5")));
    workspaces.reset(workspace(1), Some(Epoch::new(3)));
    assert!(later.supersedes(&target("a5")) && workspaces.find(workspace(1)).is_none());
}

#[test]
fn many_states_are_found_and_dropped_one_by_one() {
    let workspaces = Workspaces::new(&Settings::default());
    let mut used: Vec<_> = (0..20_000).map(|number| Some(state(&workspaces, number))).collect();
    let found = |number: usize| workspaces.find(workspace(number as u128));
    for first in [0, 1] {
        for number in (first..used.len()).step_by(2) {
            let state = used[number].take().expect("a state");
            assert!(found(number).is_some_and(|found| Arc::ptr_eq(&found, &state)));
            drop(state);
            assert!(found(number).is_none());
        }
        assert_eq!(entries(&workspaces), used.iter().flatten().count());
    }
    let room =
        workspaces.index.stripes.iter().map(|stripe| lock(stripe).0.capacity()).sum::<usize>();
    assert!(room <= 3 * STRIPES, "{room}");
}

#[test]
fn many_threads_see_one_state_at_a_time() {
    let workspaces = Workspaces::new(&Settings::default());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    let (one, other) = (state(&workspaces, 1), state(&workspaces, 1));
                    assert!(Arc::ptr_eq(&one, &other));
                }
            });
        }
    });
    assert_eq!(entries(&workspaces), 0);
}
