//! Deleted rows.

use crate::{
    store::BindingStore,
    testing::store::{
        checked::{Checked, Swapped},
        rows::{at, full, new, previous, row},
    },
};

/// A deletion at a revision deletes that revision only. A deletion without a revision does not
/// compare.
///
/// > Deletes a row; if `expected` is given, only at that revision. Returns `true` if a row was
/// > deleted.
pub async fn a_forget_compares_only_if_asked_to<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    let first = store.revision(1);
    store.swap(1, 1, Some(full(2))).await;
    store.create(new(2, 1, Some(full(1)))).await;
    for other in [first, at(store.revision(1).get() + 1), at(-1)] {
        assert!(!store.forget(1, Some(other)).await, "at another revision, {other}");
    }
    assert_eq!(store.load(1).await, Some(row(1, 1, Some(full(2)), previous(1))));
    assert!(store.forget(1, Some(store.revision(1))).await, "at its revision");
    assert!(store.forget(2, None).await, "at any revision");
    for s in [1, 2] {
        assert_eq!(store.load(s).await, None);
        assert!(!store.forget(s, None).await, "there is nothing left to delete");
        assert!(!store.forget(s, Some(store.revision(s))).await);
        let after = at(store.revision(s).get() + 1);
        assert!(!store.forget(s, Some(after)).await, "not at the revision of the deletion either");
    }
}

/// A write that read the row before its deletion creates no row.
///
/// > Returns `None` if there is none or it was deleted.
pub async fn a_late_write_does_not_bring_a_forgotten_row_back<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    let last = store.revision(1).get();
    assert!(store.forget(1, None).await);
    for revision in [0, last, last + 1, last + 2] {
        let late = store.swap_at(at(revision), new(1, 1, Some(full(2)))).await;
        assert_eq!(late, Swapped::Conflict(None), "at revision {revision}");
    }
    assert_eq!(store.unbind(1).await, None);
    assert_eq!(store.replace(1, store.epoch(1), &full(1), &full(2), 10).await, 0);
    assert_eq!(store.reset(1).await, 0, "it is no row of the workspace any more");
    assert_eq!(store.inherit(2, 1).await, Swapped::Conflict(None), "it is no parent any more");
    assert_eq!(store.load_many(&[1, 2]).await, []);
}

/// A row that is created again continues above the revisions of the deleted one, whichever verb
/// creates it, so that no write that read the first row hits the second.
///
/// > a row that is deleted and created again continues above its last revision.
pub async fn revisions_go_on_after_a_row_was_forgotten<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(2, 4, Some(full(4)))).await;
    store.create(new(1, 1, Some(full(1)))).await;
    let first_life = store.revision(1);
    assert!(store.forget(1, None).await);
    // `Checked` asserts at each creation that the revision has grown.
    let created = row(1, 2, Some(full(2)), previous(1));
    assert_eq!(store.create(new(1, 2, Some(full(2)))).await, Swapped::Applied(created.clone()));
    let late = store.swap_at(first_life, new(1, 1, Some(full(9)))).await;
    assert_eq!(late, Swapped::Conflict(Some(created.clone())));
    assert!(!store.forget(1, Some(first_life)).await);
    assert_eq!(store.load(1).await, Some(created));

    assert!(store.forget(1, Some(store.revision(1))).await);
    assert_eq!(store.retarget(1, 3).await, row(1, 3, None, previous(2)));
    assert!(store.forget(1, None).await);
    let inherited = row(1, 4, Some(full(4)), previous(2));
    assert_eq!(store.inherit(1, 2).await, Swapped::Applied(inherited));
}

/// A deletion drops a target as any write does, and the next row of the session has its agent as
/// `previous`.
///
/// > A deletion is such a write, and a later creation finds its `previous`.
pub async fn the_agent_of_a_forgotten_row_is_the_next_ones_previous<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    assert!(store.forget(1, None).await);
    let again = row(1, 2, Some(full(2)), previous(1));
    assert_eq!(store.create(new(1, 2, Some(full(2)))).await, Swapped::Applied(again));
    assert!(store.forget(1, None).await);
    assert_eq!(store.retarget(1, 1).await, row(1, 1, None, previous(2)));
    // A row without a target passes on its own previous agent.
    assert!(store.forget(1, None).await);
    let again = row(1, 1, None, previous(2));
    assert_eq!(store.create(new(1, 1, None)).await, Swapped::Applied(again));
    // A row that never had an agent passes on none.
    store.create(new(2, 1, None)).await;
    assert!(store.forget(2, None).await);
    assert_eq!(store.retarget(2, 1).await, row(2, 1, None, None));
}
