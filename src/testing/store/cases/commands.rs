//! Writes that do not compare.

use crate::{
    store::BindingStore,
    testing::store::{
        checked::{Checked, Swapped},
        rows::{bare, full, gone, new, previous, row},
    },
};

/// A retarget creates an unbound row, keeps the target within the workspace, and drops it with the
/// workspace.
///
/// > points a session at a workspace unconditionally, and creates the row if there is none. Removes
/// > the target if the workspace changes, and keeps it otherwise.
pub async fn a_retarget_creates_keeps_or_clears<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    assert_eq!(store.retarget(1, 1).await, row(1, 1, None, None), "it creates");
    store.swap(1, 1, Some(full(1))).await;
    assert_eq!(store.retarget(1, 1).await, row(1, 1, Some(full(1)), None), "it keeps");
    let cleared = row(1, 2, None, previous(1));
    assert_eq!(store.retarget(1, 2).await, cleared, "it clears");
    assert_eq!(store.load(1).await, Some(cleared));
    let back = row(1, 1, None, previous(1));
    assert_eq!(store.retarget(1, 1).await, back, "the old target is not remembered");
    store.swap(1, 1, Some(bare(7))).await;
    assert_eq!(store.retarget(1, 2).await, row(1, 2, None, Some(gone(&bare(7)))));
}

/// An unbind drops the target and nothing else.
///
/// > removes a row's target and keeps its workspace. Returns `None` if there is no row. Also
/// > increments the revision of a row without a target.
pub async fn an_unbind_keeps_the_workspace<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.create(new(1, 1, Some(full(1)))).await;
    let unbound = row(1, 1, None, previous(1));
    assert_eq!(store.unbind(1).await, Some(unbound.clone()));
    assert_eq!(store.load(1).await, Some(unbound.clone()));
    assert_eq!(store.unbind(1).await, Some(unbound.clone()), "nothing was left to drop");
    assert_eq!(store.load(1).await, Some(unbound));
    assert_eq!(store.unbind(2).await, None);
    assert_eq!(store.load(2).await, None, "an unbind creates no row");
}

/// A repair that read the row before a command does not undo the command, even if the command
/// changed nothing.
///
/// > **Commands** (`retarget`, `unbind`, `reset_workspace`) do not compare, and also write rows
/// > that already have the requested content: a repair that read the row before then fails its
/// > comparison.
pub async fn a_command_makes_earlier_reads_too_late<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    let late = |s| new(s, 1, Some(full(9)));
    // With and without a target, and with a command that changes something or nothing.
    for (s, target) in [(1, Some(full(1))), (2, None), (3, Some(full(1))), (4, None)] {
        store.create(new(s, 1, target)).await;
    }
    for (s, w) in [(1, 1), (2, 1), (3, 2), (4, 2)] {
        let read = store.revision(s);
        let commanded = store.retarget(s, w).await;
        assert_eq!(store.swap_at(read, late(s)).await, Swapped::Conflict(Some(commanded)));
    }
    for s in [1, 2] {
        let read = store.revision(s);
        let commanded = store.unbind(s).await;
        assert_eq!(store.swap_at(read, late(s)).await, Swapped::Conflict(commanded));
    }
    store.swap(1, 1, Some(full(3))).await;
    let read = [1, 2].map(|s| store.revision(s));
    assert_eq!(store.reset(1).await, 2);
    for (s, read) in [1, 2].into_iter().zip(read) {
        let commanded = store.load(s).await;
        let late = late(s).with_epoch(store.epoch(1));
        assert_eq!(store.swap_at(read, late).await, Swapped::Conflict(commanded));
    }
}
