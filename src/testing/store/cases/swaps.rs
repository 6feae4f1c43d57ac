//! Writes that compare, and rules for every write.

use crate::{
    store::BindingStore,
    testing::store::{
        checked::{Checked, Swapped},
        rows::{at, bare, full, gone, new, of_generation, previous, row},
    },
};

/// A swap at the revision of the row writes workspace and target.
///
/// > Replaces workspace and target of a row if its revision is `expected`; otherwise returns the
/// > row as the conflict.
pub async fn a_swap_at_the_read_revision_replaces_workspace_and_target<St: BindingStore>(
    store: St,
) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, None)).await;
    let steps = [
        row(1, 1, Some(full(1)), None),
        row(1, 2, Some(full(1)), None),
        row(1, 3, Some(full(2)), previous(1)),
        row(1, 3, None, previous(2)),
        row(1, 4, None, previous(2)),
        row(1, 4, Some(bare(3)), previous(2)),
    ];
    for (expected, w) in steps.into_iter().zip([1, 2, 3, 3, 4, 4]) {
        let swap = store.swap(1, w, expected.target.clone()).await;
        assert_eq!(swap, Swapped::Applied(expected.clone()));
        assert_eq!(store.load(1).await, Some(expected));
    }
}

/// A swap at a revision that the row does not have writes nothing, and returns the row.
///
/// > Replaces workspace and target of a row if its revision is `expected`; otherwise returns the
/// > row as the conflict.
pub async fn a_swap_at_any_other_revision_writes_nothing<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    let first = store.revision(1);
    store.swap(1, 1, Some(full(2))).await;
    let standing = row(1, 1, Some(full(2)), previous(1));
    let (now, next) = (store.revision(1), store.revision(1).get().saturating_add(1));
    for revision in [i64::MIN, -1, 0, first.get(), now.get() - 1, next, i64::MAX] {
        if revision != now.get() {
            let swap = store.swap_at(at(revision), new(1, 2, Some(full(9)))).await;
            assert_eq!(swap, Swapped::Conflict(Some(standing.clone())), "at {revision}");
        }
    }
    assert_eq!(store.load(1).await, Some(standing));
}

/// A repair whose outcome was unknown, and that is sent again, finds what it has written itself.
///
/// > After an unknown write, the layer reads the row and repeats a repair.
pub async fn a_swap_sent_twice_leaves_the_row_as_after_once<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    let (read, repair) = (store.revision(1), new(1, 1, Some(full(2))));
    let written = row(1, 1, Some(full(2)), previous(1));
    assert_eq!(store.swap_at(read, repair.clone()).await, Swapped::Applied(written.clone()));
    let twice = store.swap_at(read, repair).await;
    assert_eq!(twice, Swapped::Conflict(Some(written.clone())), "what the first one wrote");
    assert_eq!(store.load(1).await, Some(written));
}

/// The revision grows even if the content of the row is unchanged.
///
/// > **Revisions** grow with every write of a row, even one that changes nothing else, and are
/// > never reused for a session
pub async fn a_write_that_changes_nothing_raises_the_revision<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    let bound = row(1, 1, Some(full(1)), None);
    // `Checked` asserts that it grows at each write.
    assert_eq!(store.swap(1, 1, Some(full(1))).await, Swapped::Applied(bound.clone()));
    assert_eq!(store.retarget(1, 1).await, bound);
    let unbound = row(1, 1, None, previous(1));
    assert_eq!(store.unbind(1).await, Some(unbound.clone()));
    assert_eq!(store.unbind(1).await, Some(unbound.clone()));
    assert_eq!(store.retarget(1, 1).await, unbound);
    assert_eq!(store.swap(1, 1, None).await, Swapped::Applied(unbound.clone()));
    // One reset for the epoch, and one without a target to drop.
    assert_eq!(store.reset(1).await, 1);
    assert_eq!(store.reset(1).await, 1);
    assert_eq!(store.load(1).await, Some(unbound));
}

/// `previous` is the agent before the present one: never the same agent, never an earlier one, and
/// kept by every write that removes no agent.
///
/// > when a write removes a row's target or replaces it by one of another agent, the old agent
/// > becomes `previous`; otherwise `previous` stays.
pub async fn a_removed_agent_becomes_the_previous_one<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, None)).await;
    // Each target in turn, and the previous agent afterwards.
    let of_bare = |id| Some(gone(&bare(id)));
    let steps = [
        (Some(full(1)), None), // a first bind replaces no agent
        (Some(full(2)), previous(1)),
        (Some(of_generation(2, 77)), previous(1)), // the same agent of another build
        (Some(bare(2)), previous(1)),
        (Some(full(3)), of_bare(2)), // no generation is left over from an earlier one
        (None, previous(3)),
        (None, previous(3)), // no agent was removed
        (Some(full(3)), previous(3)),
        (Some(bare(4)), previous(3)),
        (None, of_bare(4)),
    ];
    for (target, previous) in steps {
        let expected = row(1, 1, target.clone(), previous);
        assert_eq!(store.swap(1, 1, target).await, Swapped::Applied(expected));
    }
    // The same for the rows of a group repair, a command and a reset.
    store.swap(1, 1, Some(full(5))).await;
    assert_eq!(store.replace(1, store.epoch(1), &full(5), &full(6), 10).await, 1);
    assert_eq!(store.load(1).await, Some(row(1, 1, Some(full(6)), previous(5))));
    assert_eq!(store.retarget(1, 1).await, row(1, 1, Some(full(6)), previous(5)));
    assert_eq!(store.retarget(1, 2).await, row(1, 2, None, previous(6)));
    store.swap(1, 2, Some(full(7))).await;
    assert_eq!(store.unbind(1).await, Some(row(1, 2, None, previous(7))));
    store.swap(1, 2, Some(full(8))).await;
    assert_eq!(store.reset(2).await, 1);
    assert_eq!(store.load(1).await, Some(row(1, 2, None, previous(8))));
}

/// A verb on one row changes no other row, in the same workspace or another one.
///
/// > **Every method is one atomic statement** on one row, unless it says otherwise.
pub async fn a_verb_on_one_row_leaves_all_others_alone<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    for (s, w) in [(1, 1), (2, 1), (3, 2), (4, 1), (7, 1)] {
        store.create(new(s, w, Some(full(1)))).await;
    }
    assert!(store.forget(4, None).await);
    store.audit("a forgotten row").await;
    store.unbind(7).await;
    store.audit("an unbind").await;
    store.swap(1, 1, Some(full(2))).await;
    store.audit("a swap").await;
    store.swap_at(at(-1), new(1, 2, Some(full(3)))).await;
    store.audit("a conflict").await;
    store.retarget(1, 1).await;
    store.audit("a retarget to where the row is").await;
    store.retarget(1, 2).await;
    store.audit("a retarget").await;
    store.inherit(5, 3).await;
    store.audit("a child").await;
    assert!(store.forget(5, None).await);
    store.audit("a forgotten child").await;
    store.retarget(6, 1).await;
    store.audit("a retarget that creates").await;
}
