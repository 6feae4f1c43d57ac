//! Creations and reads.

use crate::{
    Binding, SessionId, Target, WorkspaceId,
    store::{BATCH, BindingStore, NewBinding, Swap},
    testing::store::{
        checked::{Checked, Swapped, ok},
        rows::{agent, at, bare, full, new, row, session},
    },
};
use std::{collections::BTreeSet, sync::Arc};
use uuid::Uuid;

/// No verb finds or creates a row if there is none.
///
/// > Returns `None` if there is none or it was deleted.
///
/// > Returns `true` if a row was deleted.
pub async fn a_missing_row_is_none_everywhere<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    assert_eq!(store.load(1).await, None);
    assert_eq!(store.unbind(1).await, None);
    assert!(!store.forget(1, None).await);
    assert!(!store.forget(1, Some(at(1))).await);
    assert_eq!(store.reset(1).await, 0);
    for revision in [0, 1] {
        let swap = store.swap_at(at(revision), new(1, 1, Some(full(1)))).await;
        assert_eq!(swap, Swapped::Conflict(None));
    }
    assert_eq!(store.replace(1, store.epoch(1), &full(1), &full(2), 10).await, 0);
    assert_eq!(store.load_many(&[1]).await, []);
    store.audit("verbs without a row").await;
}

/// A created row is returned, and read afterwards, with and without a target.
///
/// > Creates a row. If it exists already, returns it as the conflict.
pub async fn a_created_row_is_loaded<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    for (s, target) in [(1, None), (2, Some(full(2))), (3, Some(bare(3)))] {
        let expected = row(s, 1, target.clone(), None);
        assert_eq!(store.create(new(s, 1, target)).await, Swapped::Applied(expected.clone()));
        assert_eq!(store.load(s).await, Some(expected));
    }
    store.audit("creations").await;
}

/// Every generation in the range of `i64`, every address and every id is read as it was written,
/// and an empty address is not a missing one.
///
/// > Returns `None` if there is none or it was deleted.
pub async fn every_value_survives<St: BindingStore>(store: St) {
    let of = |generation, address| {
        Target::new(agent(1)).with_generation(generation).with_address(address)
    };
    let mut targets: Vec<_> =
        [i64::MIN, -1, 0, i64::MAX].map(|generation| of(generation, "")).into();
    targets.push(Target::new(agent(1)).with_address("ünïx:/tmp/'a\"b`;-- \\ \u{1f980}"));
    targets.push(Target::new(agent(1)).with_address("a".repeat(200)));
    targets.push((*full(7)).clone());
    for (s, target) in (1..).zip(targets) {
        written_and_read(&store, new(s, 1, Some(Arc::new(target)))).await;
    }
    for id in [Uuid::nil(), Uuid::max()] {
        let (session, workspace) = (SessionId::new(id), WorkspaceId::new(id));
        let target = Target::new(id.into()).with_build(id.into());
        written_and_read(&store, NewBinding::new(session, workspace, Some(Arc::new(target)))).await;
    }
}

async fn written_and_read(store: &impl BindingStore, new: NewBinding) {
    let created = ok("create", store.create(new.clone()).await);
    let Swap::Applied(row) = created else { panic!("create({new:?}): {created:?}") };
    let expected = Binding::new(new.session, new.workspace, new.target, row.revision);
    assert_eq!(row, expected, "create returns what it was given");
    assert_eq!(ok("load", store.load(new.session).await), Some(expected));
}

/// A session has one row, which the first creation makes.
///
/// > Creates a row. If it exists already, returns it as the conflict.
pub async fn a_second_creation_gets_the_first_row<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    let first = row(1, 1, Some(full(1)), None);
    assert_eq!(store.create(new(1, 1, Some(full(1)))).await, Swapped::Applied(first.clone()));
    for again in [new(1, 2, Some(full(2))), new(1, 1, Some(full(1))), new(1, 1, None)] {
        assert_eq!(store.create(again).await, Swapped::Conflict(Some(first.clone())));
    }
    assert_eq!(store.load(1).await, Some(first));
}

/// Each existing row is found exactly once, and no other.
///
/// > Reads the rows of up to `BATCH` sessions in one statement. Returns those that exist, each
/// > once, in any order.
pub async fn many_are_loaded_at_once<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    let rows =
        [row(1, 1, Some(full(1)), None), row(2, 1, None, None), row(3, 2, Some(bare(3)), None)];
    for (s, row) in (1..).zip(&rows) {
        let new = NewBinding::new(session(s), row.workspace, row.target.clone());
        assert_eq!(store.create(new).await, Swapped::Applied(row.clone()));
    }
    store.create(new(4, 1, Some(full(4)))).await;
    assert!(store.forget(4, None).await);
    assert_eq!(store.load_many(&[1]).await, rows[..1]);
    assert_eq!(store.load_many(&[3, 2, 1]).await, rows);
    assert_eq!(store.load_many(&[2, 2, 1, 2, 1]).await, rows[..2], "each once");
    assert_eq!(
        store.load_many(&[4, 3, 99]).await,
        rows[2..],
        "neither a deleted nor a missing one"
    );
    assert_eq!(store.load_many(&[4, 99]).await, []);
    assert_eq!(store.load_many(&[]).await, [], "no session names no row");
}

/// [`BATCH`] sessions may be named in one call.
///
/// > Reads the rows of up to `BATCH` sessions in one statement. Returns those that exist, each
/// > once, in any order.
pub async fn a_batch_is_loaded_at_once<St: BindingStore>(store: St) {
    let there = [0, 1, 1234, BATCH as u128 - 1];
    for s in there {
        let _ = ok("create", store.create(new(s, 1, None)).await);
    }
    let sessions: Vec<_> = (0..BATCH as u128).map(session).collect();
    let rows = ok("load_many", store.load_many(&sessions).await);
    let found: BTreeSet<_> = rows.iter().map(|row| row.session).collect();
    assert_eq!((rows.len(), found), (there.len(), there.map(session).into()));
}
