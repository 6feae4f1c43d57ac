//! Resets, and the targets from before them.

use crate::{
    store::BindingStore,
    testing::store::{
        checked::{Checked, Swapped},
        rows::{at, epoch, full, new, previous, row},
    },
};

/// A reset unbinds the rows of its workspace, counts them, and leaves all others as they are.
///
/// > begins the next epoch of a workspace, even of one without rows, and removes the targets of all
/// > its rows. Also increments the revisions of rows without a target. Returns the number of rows.
pub async fn a_reset_drops_the_targets_of_one_workspace<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    for (s, w, target) in [
        (1, 1, Some(full(1))),
        (2, 1, Some(full(2))),
        (3, 1, None),
        (4, 2, Some(full(4))),
        (5, 1, Some(full(5))),
    ] {
        store.create(new(s, w, target)).await;
    }
    assert!(store.forget(5, None).await);
    assert_eq!(store.reset(1).await, 3, "all rows of the workspace, also the unbound one");
    assert_eq!(store.load(1).await, Some(row(1, 1, None, previous(1))));
    assert_eq!(store.load(2).await, Some(row(2, 1, None, previous(2))));
    assert_eq!(store.load(3).await, Some(row(3, 1, None, None)));
    assert_eq!(store.load(4).await, Some(row(4, 2, Some(full(4)), None)), "of another workspace");
    assert_eq!(store.load(5).await, None, "deleted before");
}

/// A workspace without rows is reset as well: later rows are in the new epoch.
///
/// > begins the next epoch of a workspace, even of one without rows, and removes the targets of all
/// > its rows.
pub async fn a_reset_begins_the_next_epoch_also_of_a_workspace_without_rows<St: BindingStore>(
    store: St,
) {
    let mut store = Checked::new(store);
    // `Checked` asserts at each step that the reset raises the epoch and that the rows carry it.
    assert_eq!(store.reset(1).await, 0);
    store.create(new(9, 2, Some(full(9)))).await;
    assert!(store.forget(9, None).await);
    assert_eq!(store.reset(2).await, 0, "its only row was deleted");
    for w in [1, 2] {
        let s = 10 + w;
        let late = store.create(new(s, w, Some(full(1))).with_epoch(epoch(0))).await;
        assert_eq!(late, Swapped::Applied(row(s, w, None, None)));
        let in_time = store.swap(s, w, Some(full(1))).await;
        assert_eq!(in_time, Swapped::Applied(row(s, w, Some(full(1)), None)));
        assert_eq!(store.reset(w).await, 1);
        assert_eq!(store.load(s).await, Some(row(s, w, None, previous(1))));
    }
}

/// A row carries the epoch of its workspace, whichever verb writes it, and the epochs of workspaces
/// are independent.
///
/// > Every returned row carries the epoch of its workspace.
pub async fn every_row_has_the_epoch_of_its_workspace<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(9, 1, Some(full(9)))).await;
    assert!(store.forget(9, None).await);
    store.reset(1).await;
    store.reset(1).await;
    store.reset(3).await;
    // `Checked` asserts the epoch of each row.
    store.create(store.new_binding(1, 1, None)).await;
    store.retarget(2, 1).await;
    store.create(store.new_binding(3, 2, Some(full(3)))).await;
    assert_eq!(store.retarget(3, 1).await, row(3, 1, None, previous(3)), "moved there");
    assert_eq!(store.retarget(2, 2).await, row(2, 2, None, None), "moved away");
    store.inherit(4, 3).await;
    store.create(store.new_binding(9, 1, None)).await;
    let moved = store.swap(1, 3, Some(full(1))).await;
    assert_eq!(moved, Swapped::Applied(row(1, 3, Some(full(1)), None)));
    store.unbind(1).await;
    let stale = store.swap_at(at(-1), new(1, 1, None)).await;
    assert!(matches!(stale, Swapped::Conflict(Some(_))), "{stale:?}");
    assert_eq!(store.reset(1).await, 3);
    assert_eq!(store.load_many(&[1, 2, 3, 4, 9]).await.len(), 5);
    store.audit("resets").await;
}

/// A write that was sent before a reset stores no target of the former epoch, and only the store
/// begins an epoch.
///
/// > So a write that races with a reset never restores a target of an earlier epoch, in whichever
/// > order the database executes them.
pub async fn a_target_of_another_epoch_does_not_count<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, None)).await;
    store.reset(1).await;
    let now = store.epoch(1);
    let others = [epoch(0), epoch(now.get() + 1), epoch(-1)];
    for (s, learned) in (10..).zip(others.into_iter().chain([now])) {
        let target = (learned == now).then(|| full(7));
        let late = |s| new(s, 1, Some(full(7))).with_epoch(learned);
        let expected = row(s, 1, target.clone(), None);
        assert_eq!(store.create(late(s)).await, Swapped::Applied(expected.clone()), "{learned}");
        assert_eq!(store.load(s).await, Some(expected.clone()));
        assert_eq!(store.load_many(&[s]).await, std::slice::from_ref(&expected));
        let again = store.create(new(s, 1, None)).await;
        assert_eq!(again, Swapped::Conflict(Some(expected)), "also as the row in the way");

        let swapped = store.swap_at(store.revision(1), late(1)).await;
        let Swapped::Applied(swapped) = swapped else { panic!("{swapped:?}") };
        assert_eq!(swapped.target, target, "a swap with a target of epoch {learned}");

        assert_eq!(store.retarget(s, 1).await.target, target, "a command keeps a valid target");
    }
    // When the later epoch begins, the target that was written with its number does not belong to
    // it.
    let ahead = new(20, 1, Some(full(7))).with_epoch(epoch(now.get() + 1));
    store.create(ahead).await;
    store.reset(1).await;
    assert_eq!(store.load(20).await.and_then(|row| row.target), None);
}
