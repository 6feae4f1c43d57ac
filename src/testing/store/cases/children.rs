//! Rows that begin with what another row has.

use crate::{
    store::BindingStore,
    testing::store::{
        checked::{Checked, Swapped},
        rows::{epoch, full, new, previous, row},
    },
};

/// A child begins with workspace and target of its parent's row; the parent stays as it is.
///
/// > Creates `child` with the workspace and target, but not the `previous`, of the *row* of
/// > `parent`, in one statement.
pub async fn a_child_begins_with_what_the_row_of_its_parent_has<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    store.swap(1, 1, Some(full(2))).await;
    let child = row(2, 1, Some(full(2)), None);
    assert_eq!(
        store.inherit(2, 1).await,
        Swapped::Applied(child.clone()),
        "the child was never bound to the agent before"
    );
    assert_eq!(store.load(2).await, Some(child));
    store.retarget(1, 7).await;
    assert_eq!(store.inherit(3, 1).await, Swapped::Applied(row(3, 7, None, None)), "unbound");
    store.audit("children").await;
    // A child that is deleted and inherits again has a past of its own.
    assert!(store.forget(2, None).await);
    assert_eq!(store.inherit(2, 1).await, Swapped::Applied(row(2, 7, None, previous(2))));
}

/// A child that has a row keeps it, whatever its parent has.
///
/// > The conflict is the row of `child` if it exists (even if `parent` has none); it is `None` if
/// > `parent` has no row.
pub async fn a_child_that_exists_is_left_alone<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    store.create(new(2, 2, Some(full(2)))).await;
    let child = row(2, 2, Some(full(2)), None);
    for (parent, which) in [(1, "another row"), (9, "no row"), (2, "the child's own")] {
        let swap = store.inherit(2, parent).await;
        assert_eq!(swap, Swapped::Conflict(Some(child.clone())), "the parent is {which}");
    }
    assert_eq!(store.load(2).await, Some(child));
}

/// Without a row of the parent nothing is created.
///
/// > The conflict is the row of `child` if it exists (even if `parent` has none); it is `None` if
/// > `parent` has no row.
pub async fn a_child_without_a_parent_is_not_created<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    assert_eq!(store.inherit(1, 2).await, Swapped::Conflict(None));
    assert_eq!(store.inherit(1, 1).await, Swapped::Conflict(None), "it is no parent of itself");
    store.create(new(2, 1, Some(full(1)))).await;
    assert!(store.forget(2, None).await);
    assert_eq!(store.inherit(1, 2).await, Swapped::Conflict(None), "the parent was deleted");
    assert_eq!(store.load(1).await, None);
}

/// A parent that reads as unbound has unbound children.
///
/// > A target of another epoch than its workspace's *does not count*: the row reads as unbound.
pub async fn a_child_of_a_target_of_an_ended_epoch_is_unbound<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.reset(1).await;
    // A write that was on its way during the reset.
    let unbound = row(1, 1, None, None);
    let late = new(1, 1, Some(full(1))).with_epoch(epoch(0));
    assert_eq!(store.create(late).await, Swapped::Applied(unbound));
    let child = row(2, 1, None, None);
    assert_eq!(store.inherit(2, 1).await, Swapped::Applied(child.clone()));
    assert_eq!(store.load(2).await, Some(child));
    // A target of the epoch that has begun is inherited, also by the child of a child.
    store.swap(1, 1, Some(full(2))).await;
    assert_eq!(store.inherit(3, 1).await, Swapped::Applied(row(3, 1, Some(full(2)), None)));
    assert_eq!(store.inherit(4, 3).await, Swapped::Applied(row(4, 1, Some(full(2)), None)));
}
