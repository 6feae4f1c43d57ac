//! The contract of a store, held against every store of this crate with the same tests.
//!
//! To hold a store of yours against it, copy this file, and put yours where `key_value` stands.

use futures_util::TryStreamExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tower_bound_agent::{
    AgentId, Binding, BuildId, Epoch, Generation, Previous, Revision, SessionId, Target,
    WorkspaceId,
    store::{BATCH, BindingStore, MemoryStore, NewBinding, Reset, StoreError, Swap},
};
use uuid::Uuid;

#[cfg(all(unix, feature = "postgres"))]
#[path = "support/own_server.rs"]
#[allow(dead_code)] // what kills
mod own_server;
#[cfg(all(unix, feature = "postgres"))]
#[path = "support/pgbouncer.rs"]
#[allow(dead_code)] // other ways
mod pgbouncer;
#[cfg(any(feature = "postgres", feature = "mysql"))]
#[path = "support/servers.rs"]
mod servers;

/// The store of the example, so that who copies it has one that keeps the contract.
#[path = "../examples/own_store/store.rs"]
mod own_store;

fn session(id: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(0x5e55_0000 + id))
}

fn workspace(id: u128) -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(0x3032_0000 + id))
}

fn agent(id: u128) -> AgentId {
    AgentId::new(Uuid::from_u128(0xa6e4_0000 + id))
}

/// A target of which everything is known, and everything follows from the number.
fn full(id: u128) -> Arc<Target> {
    let target = Target::new(agent(id)).with_build(BuildId::new(Uuid::from_u128(0xb1d_0000 + id)));
    Arc::new(target.with_generation(id as i64).with_address(format!("10.0.0.{id}:9000")))
}

/// A target of which only the agent is known.
fn bare(id: u128) -> Arc<Target> {
    Arc::new(Target::new(agent(id)))
}

fn before(id: u128) -> Option<Previous> {
    Some(Previous::new(agent(id), Some(Generation::new(id as i64))))
}

fn row(
    s: u128,
    w: u128,
    target: Option<Arc<Target>>,
    revision: i64,
    previous: Option<Previous>,
) -> Binding {
    Binding::new(session(s), workspace(w), target, Revision::new(revision)).with_previous(previous)
}

fn new(s: u128, w: u128, target: Option<Arc<Target>>) -> NewBinding {
    NewBinding::new(session(s), workspace(w), target)
}

const fn epoch(epoch: i64) -> Epoch {
    Epoch::new(epoch)
}

const fn at(revision: i64) -> Revision {
    Revision::new(revision)
}

/// The tests. Each begins with an empty store.
mod contract {
    use super::*;

    pub(super) async fn a_missing_row_is_none_everywhere<St: BindingStore>(store: St) {
        assert_eq!(store.load(session(1)).await.unwrap(), None);
        assert_eq!(store.unbind(session(1)).await.unwrap(), None);
        assert!(!store.forget(session(1), None).await.unwrap());
        assert!(!store.forget(session(1), Some(at(1))).await.unwrap());
        assert_eq!(store.reset_workspace(workspace(1)).await.unwrap().rows, 0);
        assert_eq!(
            store.compare_and_swap(at(0), new(1, 1, None)).await.unwrap(),
            Swap::Conflict(None)
        );
        assert_eq!(
            store.compare_and_swap(at(1), new(1, 1, Some(full(1)))).await.unwrap(),
            Swap::Conflict(None)
        );
        assert_eq!(store.inherit(session(1), session(2)).await.unwrap(), Swap::Conflict(None));
        assert_eq!(store.inherit(session(1), session(1)).await.unwrap(), Swap::Conflict(None));
        assert_eq!(store.load(session(1)).await.unwrap(), None, "none of these created a row");
    }

    pub(super) async fn what_is_created_is_loaded<St: BindingStore>(store: St) {
        for (s, target) in [(1, None), (2, Some(full(2))), (3, Some(bare(3)))] {
            let expected = row(s, 1, target.clone(), 1, None);
            assert_eq!(
                store.create(new(s, 1, target)).await.unwrap(),
                Swap::Applied(expected.clone())
            );
            assert_eq!(store.load(session(s)).await.unwrap(), Some(expected));
        }
    }

    pub(super) async fn every_value_survives<St: BindingStore>(store: St) {
        for (s, generation) in [i64::MIN, -1, 0, i64::MAX].into_iter().enumerate() {
            let target =
                Arc::new(Target::new(agent(1)).with_generation(generation).with_address(""));
            let expected = row(s as u128, 1, Some(target.clone()), 1, None);
            assert_eq!(
                store.create(new(s as u128, 1, Some(target))).await.unwrap(),
                Swap::Applied(expected.clone())
            );
            assert_eq!(store.load(session(s as u128)).await.unwrap(), Some(expected));
        }
        let target = Arc::new(Target::new(agent(1)).with_address("ünïx:/tmp/'a\"b`;-- \u{1f980}"));
        let ids = (SessionId::new(Uuid::nil()), WorkspaceId::new(Uuid::max()));
        let expected = Binding::new(ids.0, ids.1, Some(target.clone()), at(1));
        let applied = store.create(NewBinding::new(ids.0, ids.1, Some(target))).await.unwrap();
        assert_eq!(applied, Swap::Applied(expected.clone()));
        assert_eq!(store.load(ids.0).await.unwrap(), Some(expected));
    }

    pub(super) async fn a_second_creation_gets_the_first_row<St: BindingStore>(store: St) {
        let first = row(1, 1, Some(full(1)), 1, None);
        assert_eq!(
            store.create(new(1, 1, Some(full(1)))).await.unwrap(),
            Swap::Applied(first.clone())
        );
        for again in [new(1, 2, Some(full(2))), new(1, 1, Some(full(1))), new(1, 1, None)] {
            assert_eq!(store.create(again).await.unwrap(), Swap::Conflict(Some(first.clone())));
        }
        assert_eq!(store.load(session(1)).await.unwrap(), Some(first));
    }

    pub(super) async fn a_swap_at_the_read_revision_replaces_workspace_and_target<
        St: BindingStore,
    >(
        store: St,
    ) {
        let _ = store.create(new(1, 1, None)).await.unwrap();
        let steps = [
            // A first bind replaces no agent.
            (new(1, 1, Some(full(1))), row(1, 1, Some(full(1)), 2, None)),
            (new(1, 1, Some(full(2))), row(1, 1, Some(full(2)), 3, before(1))),
            // The same agent at another address, of another generation, in another workspace:
            // nobody was replaced.
            (new(1, 2, Some(bare(2))), row(1, 2, Some(bare(2)), 4, before(1))),
            (
                new(1, 2, Some(full(3))),
                row(1, 2, Some(full(3)), 5, Some(Previous::new(agent(2), None))),
            ),
            (new(1, 2, None), row(1, 2, None, 6, before(3))),
            // Nothing was there that could become the previous agent.
            (new(1, 3, None), row(1, 3, None, 7, before(3))),
            (new(1, 3, Some(full(3))), row(1, 3, Some(full(3)), 8, before(3))),
        ];
        for (revision, (write, expected)) in (1..).zip(steps) {
            let swap = store.compare_and_swap(at(revision), write).await.unwrap();
            assert_eq!(swap, Swap::Applied(expected.clone()));
            assert_eq!(store.load(session(1)).await.unwrap(), Some(expected));
        }
    }

    pub(super) async fn a_swap_at_any_other_revision_writes_nothing<St: BindingStore>(store: St) {
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        let _ = store.compare_and_swap(at(1), new(1, 1, Some(full(2)))).await.unwrap();
        let standing = row(1, 1, Some(full(2)), 2, before(1));
        for revision in [i64::MIN, -1, 0, 1, 3, i64::MAX] {
            let swap =
                store.compare_and_swap(at(revision), new(1, 1, Some(full(9)))).await.unwrap();
            assert_eq!(swap, Swap::Conflict(Some(standing.clone())));
        }
        assert_eq!(store.load(session(1)).await.unwrap(), Some(standing));
    }

    pub(super) async fn a_repair_sent_twice_leaves_the_row_as_after_once<St: BindingStore>(
        store: St,
    ) {
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        let written = row(1, 1, Some(full(2)), 2, before(1));
        let repair = new(1, 1, Some(full(2)));
        let once = store.compare_and_swap(at(1), repair.clone()).await.unwrap();
        assert_eq!(once, Swap::Applied(written.clone()));
        let twice = store.compare_and_swap(at(1), repair).await.unwrap();
        assert_eq!(
            twice,
            Swap::Conflict(Some(written.clone())),
            "the winner is what the first one wrote"
        );
        assert_eq!(store.load(session(1)).await.unwrap(), Some(written));
    }

    pub(super) async fn a_retarget_creates_keeps_or_clears<St: BindingStore>(store: St) {
        // No row: an unbound one.
        let created = row(1, 1, None, 1, None);
        assert_eq!(store.retarget(session(1), workspace(1)).await.unwrap(), created);
        assert_eq!(store.load(session(1)).await.unwrap(), Some(created));
        let _ = store.compare_and_swap(at(1), new(1, 1, Some(full(1)))).await.unwrap();
        // The same workspace: the target stays, the revision tells everybody that the order was
        // given.
        let kept = row(1, 1, Some(full(1)), 3, None);
        assert_eq!(store.retarget(session(1), workspace(1)).await.unwrap(), kept);
        // Another one: its agent is not known yet.
        let cleared = row(1, 2, None, 4, before(1));
        assert_eq!(store.retarget(session(1), workspace(2)).await.unwrap(), cleared);
        assert_eq!(store.load(session(1)).await.unwrap(), Some(cleared));
        // And back: the old target is not remembered.
        assert_eq!(
            store.retarget(session(1), workspace(1)).await.unwrap(),
            row(1, 1, None, 5, before(1))
        );
        // An agent without a generation leaves no generation of another one behind.
        let _ = store.compare_and_swap(at(5), new(1, 1, Some(bare(7)))).await.unwrap();
        let cleared = row(1, 2, None, 7, Some(Previous::new(agent(7), None)));
        assert_eq!(store.retarget(session(1), workspace(2)).await.unwrap(), cleared);
    }

    pub(super) async fn unbind_keeps_the_workspace<St: BindingStore>(store: St) {
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        let unbound = row(1, 1, None, 2, before(1));
        assert_eq!(store.unbind(session(1)).await.unwrap(), Some(unbound.clone()));
        assert_eq!(store.load(session(1)).await.unwrap(), Some(unbound));
        // Of a row without a target: still an order, so that a repair that read the row before it
        // is too late.
        assert_eq!(store.unbind(session(1)).await.unwrap(), Some(row(1, 1, None, 3, before(1))));
        let late = store.compare_and_swap(at(2), new(1, 1, Some(full(2)))).await.unwrap();
        assert_eq!(late, Swap::Conflict(Some(row(1, 1, None, 3, before(1)))));
    }

    pub(super) async fn delete_compares_only_if_asked_to<St: BindingStore>(store: St) {
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        let _ = store.create(new(2, 1, Some(full(1)))).await.unwrap();
        assert!(!store.forget(session(1), Some(at(0))).await.unwrap());
        assert!(!store.forget(session(1), Some(at(2))).await.unwrap());
        assert_eq!(store.load(session(1)).await.unwrap(), Some(row(1, 1, Some(full(1)), 1, None)));
        assert!(store.forget(session(1), Some(at(1))).await.unwrap());
        assert!(store.forget(session(2), None).await.unwrap());
        for s in [1, 2] {
            assert_eq!(store.load(session(s)).await.unwrap(), None);
            assert!(
                !store.forget(session(s), None).await.unwrap(),
                "there is nothing left to delete"
            );
            assert!(!store.forget(session(s), Some(at(2))).await.unwrap());
        }
    }

    pub(super) async fn a_late_repair_does_not_bring_a_deleted_row_back<St: BindingStore>(
        store: St,
    ) {
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        assert!(store.forget(session(1), None).await.unwrap());
        for revision in 0..4 {
            let late =
                store.compare_and_swap(at(revision), new(1, 1, Some(full(2)))).await.unwrap();
            assert_eq!(late, Swap::Conflict(None));
        }
        assert_eq!(store.unbind(session(1)).await.unwrap(), None);
        assert_eq!(store.reset_workspace(workspace(1)).await.unwrap().rows, 0);
        assert_eq!(store.load(session(1)).await.unwrap(), None);
        assert_eq!(
            store.inherit(session(2), session(1)).await.unwrap(),
            Swap::Conflict(None),
            "a parent no more"
        );
    }

    pub(super) async fn revisions_go_on_after_a_deletion<St: BindingStore>(store: St) {
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        assert!(store.forget(session(1), None).await.unwrap()); // revision 2
        let created = row(1, 2, Some(full(2)), 3, before(1));
        assert_eq!(
            store.create(new(1, 2, Some(full(2)))).await.unwrap(),
            Swap::Applied(created.clone())
        );
        // Whoever read the row in its first life can neither write nor delete it in its second.
        let late = store.compare_and_swap(at(1), new(1, 1, Some(full(9)))).await.unwrap();
        assert_eq!(late, Swap::Conflict(Some(created.clone())));
        assert!(!store.forget(session(1), Some(at(1))).await.unwrap());
        assert_eq!(store.load(session(1)).await.unwrap(), Some(created));

        assert!(store.forget(session(1), Some(at(3))).await.unwrap()); // 4
        assert_eq!(
            store.retarget(session(1), workspace(3)).await.unwrap(),
            row(1, 3, None, 5, before(2))
        );
        assert!(store.forget(session(1), None).await.unwrap()); // 6
        let _ = store.create(new(2, 4, Some(full(4)))).await.unwrap();
        let inherited = row(1, 4, Some(full(4)), 7, before(2));
        assert_eq!(store.inherit(session(1), session(2)).await.unwrap(), Swap::Applied(inherited));
    }

    pub(super) async fn a_child_begins_with_what_the_row_of_its_parent_has<St: BindingStore>(
        store: St,
    ) {
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        let _ = store.compare_and_swap(at(1), new(1, 1, Some(full(2)))).await.unwrap();
        // The parent's previous agent is not the child's: the child was never bound to it.
        let child = row(2, 1, Some(full(2)), 1, None);
        assert_eq!(
            store.inherit(session(2), session(1)).await.unwrap(),
            Swap::Applied(child.clone())
        );
        assert_eq!(store.load(session(2)).await.unwrap(), Some(child));
        let _ = store.retarget(session(1), workspace(7)).await.unwrap();
        let unbound = row(3, 7, None, 1, None);
        assert_eq!(store.inherit(session(3), session(1)).await.unwrap(), Swap::Applied(unbound));
        assert_eq!(
            store.load(session(1)).await.unwrap(),
            Some(row(1, 7, None, 3, before(2))),
            "the parent stays"
        );
    }

    pub(super) async fn a_child_that_exists_is_left_alone<St: BindingStore>(store: St) {
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        let child = row(2, 2, Some(full(2)), 1, None);
        let _ = store.create(new(2, 2, Some(full(2)))).await.unwrap();
        assert_eq!(
            store.inherit(session(2), session(1)).await.unwrap(),
            Swap::Conflict(Some(child.clone()))
        );
        // Also if the parent does not exist, and if it is its own parent.
        assert_eq!(
            store.inherit(session(2), session(9)).await.unwrap(),
            Swap::Conflict(Some(child.clone()))
        );
        assert_eq!(
            store.inherit(session(2), session(2)).await.unwrap(),
            Swap::Conflict(Some(child.clone()))
        );
        assert_eq!(store.load(session(2)).await.unwrap(), Some(child));
    }

    pub(super) async fn a_reset_drops_the_targets_of_one_workspace<St: BindingStore>(store: St) {
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        let _ = store.create(new(2, 1, Some(full(2)))).await.unwrap();
        let _ = store.create(new(3, 1, None)).await.unwrap();
        let _ = store.create(new(4, 2, Some(full(4)))).await.unwrap();
        let _ = store.create(new(5, 1, Some(full(5)))).await.unwrap();
        assert!(store.forget(session(5), None).await.unwrap());
        assert_eq!(store.reset_workspace(workspace(1)).await.unwrap(), Reset::new(3, epoch(1)));
        let after = |row: Binding| Some(row.with_epoch(epoch(1)));
        assert_eq!(store.load(session(1)).await.unwrap(), after(row(1, 1, None, 2, before(1))));
        assert_eq!(store.load(session(2)).await.unwrap(), after(row(2, 1, None, 2, before(2))));
        // It had no target, but a repair that read it before the order must not write after it.
        assert_eq!(store.load(session(3)).await.unwrap(), after(row(3, 1, None, 2, None)));
        assert_eq!(store.load(session(4)).await.unwrap(), Some(row(4, 2, Some(full(4)), 1, None)));
        assert_eq!(store.load(session(5)).await.unwrap(), None);
    }

    pub(super) async fn a_reset_begins_the_next_epoch_also_of_a_workspace_without_rows<
        St: BindingStore,
    >(
        store: St,
    ) {
        let _ = store.create(new(9, 1, Some(full(9)))).await.unwrap();
        assert!(store.forget(session(9), None).await.unwrap());
        assert_eq!(store.reset_workspace(workspace(1)).await.unwrap(), Reset::new(0, epoch(1)));
        // Whichever way a row comes in, it is in the workspace's epoch; and the epochs of
        // workspaces are their own.
        let created = store.create(new(1, 1, None)).await.unwrap();
        assert_eq!(created, Swap::Applied(row(1, 1, None, 1, None).with_epoch(epoch(1))));
        let ordered = store.retarget(session(2), workspace(1)).await.unwrap();
        assert_eq!(ordered, row(2, 1, None, 1, None).with_epoch(epoch(1)));
        let again = store.create(new(9, 1, None)).await.unwrap();
        assert_eq!(again, Swap::Applied(row(9, 1, None, 3, before(9)).with_epoch(epoch(1))));
        let _ = store.create(new(3, 2, Some(full(3)))).await.unwrap();
        assert_eq!(store.load(session(3)).await.unwrap(), Some(row(3, 2, Some(full(3)), 1, None)));
        let moved = store.retarget(session(3), workspace(1)).await.unwrap();
        assert_eq!(moved, row(3, 1, None, 2, before(3)).with_epoch(epoch(1)));
        let moved = store.retarget(session(2), workspace(2)).await.unwrap();
        assert_eq!(moved, row(2, 2, None, 2, None));
        let inherited = store.inherit(session(4), session(3)).await.unwrap();
        assert_eq!(inherited, Swap::Applied(row(4, 1, None, 1, None).with_epoch(epoch(1))));

        assert_eq!(store.reset_workspace(workspace(1)).await.unwrap(), Reset::new(4, epoch(2)));
        assert_eq!(store.reset_workspace(workspace(2)).await.unwrap(), Reset::new(1, epoch(1)));
        let mut rows = store.load_many(&[1, 2, 3, 4, 9].map(session)).await.unwrap();
        rows.sort_by_key(|row| row.session);
        let epochs: Vec<_> = rows.into_iter().map(|row| row.epoch.get()).collect();
        assert_eq!(epochs, [2, 1, 2, 2, 2]);
    }

    pub(super) async fn a_target_of_another_epoch_than_its_workspaces_does_not_count<
        St: BindingStore,
    >(
        store: St,
    ) {
        let of = |new: NewBinding, number| new.with_epoch(epoch(number));
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        store.reset_workspace(workspace(1)).await.unwrap();
        // Learned before the reset, and after it; and nobody but the store begins an epoch.
        for (number, counts) in [(0, false), (1, true), (2, false)] {
            let s = 10 + number as u128;
            let target = counts.then(|| full(7));
            let expected = row(s, 1, target.clone(), 1, None).with_epoch(epoch(1));
            let created = store.create(of(new(s, 1, Some(full(7))), number)).await.unwrap();
            assert_eq!(created, Swap::Applied(expected.clone()));
            assert_eq!(store.load(session(s)).await.unwrap(), Some(expected.clone()));
            assert_eq!(store.load_many(&[session(s)]).await.unwrap(), [expected]);

            let revision = store.load(session(1)).await.unwrap().unwrap().revision;
            let swapped = store
                .compare_and_swap(revision, of(new(1, 1, Some(full(7))), number))
                .await
                .unwrap();
            let Swap::Applied(swapped) = swapped else { panic!("{swapped:?}") };
            assert_eq!((swapped.target.clone(), swapped.epoch), (target.clone(), epoch(1)));
            assert_eq!(store.load(session(1)).await.unwrap(), Some(swapped));

            // It comes to life neither by an order that keeps what is there nor in a child.
            let kept = store.retarget(session(s), workspace(1)).await.unwrap();
            assert_eq!((kept.target, kept.epoch), (target.clone(), epoch(1)));
            let child = store.inherit(session(100 + s), session(s)).await.unwrap();
            let Swap::Applied(child) = child else { panic!("{child:?}") };
            assert_eq!((child.target, child.epoch), (target, epoch(1)));
        }
    }

    pub(super) async fn a_group_repair_writes_rows_of_its_own_epoch<St: BindingStore>(store: St) {
        store.reset_workspace(workspace(1)).await.unwrap();
        let of = |new: NewBinding, number| new.with_epoch(epoch(number));
        for (s, target) in [(1, full(1)), (2, bare(1))] {
            let _ = store.create(of(new(s, 1, Some(target.clone())), 1)).await.unwrap();
            let _ = store.create(of(new(10 + s, 1, Some(target)), 0)).await.unwrap();
        }
        let _ = store.create(new(3, 1, None)).await.unwrap();
        for number in [0, 2] {
            let replaced = store
                .replace_agent(workspace(1), epoch(number), &full(1), &full(100), 100)
                .await
                .unwrap();
            let written = store.load(session(1)).await.unwrap().unwrap();
            assert_eq!(written.target, Some(full(1)), "{replaced} in epoch {number}");
        }
        assert_eq!(
            store.replace_agent(workspace(1), epoch(1), &full(1), &full(2), 100).await.unwrap(),
            1
        );
        assert_eq!(
            store.replace_agent(workspace(1), epoch(1), &bare(1), &bare(2), 100).await.unwrap(),
            1
        );
        for (s, target) in
            [(1, Some(full(2))), (2, Some(bare(2))), (3, None), (11, None), (12, None)]
        {
            assert_eq!(store.load(session(s)).await.unwrap().unwrap().target, target, "{s}");
        }
    }

    /// A group repair over rows that hold this, and are behind or not.
    async fn replaced<St: BindingStore>(
        store: &St,
        stale: &Target,
        current: &Arc<Target>,
        cases: &[(Option<Arc<Target>>, bool)],
    ) {
        for (s, (target, _)) in (1..).zip(cases) {
            let _ = store.create(new(s, 1, target.clone())).await.unwrap();
            // The same in another workspace, and deleted.
            let _ = store.create(new(100 + s, 2, target.clone())).await.unwrap();
            let _ = store.create(new(200 + s, 1, target.clone())).await.unwrap();
            assert!(store.forget(session(200 + s), None).await.unwrap());
        }
        let behind = cases.iter().filter(|(_, behind)| *behind).count() as u64;
        assert_eq!(
            store.replace_agent(workspace(1), epoch(0), stale, current, 100).await.unwrap(),
            behind
        );
        for times in 1..=2 {
            for (s, (target, behind)) in (1..).zip(cases) {
                let expected = if *behind {
                    let gone = target.as_ref().filter(|gone| gone.agent != current.agent);
                    let gone = gone.map(|gone| Previous::new(gone.agent, gone.generation));
                    row(s, 1, Some(current.clone()), 2, gone)
                } else {
                    row(s, 1, target.clone(), 1, None)
                };
                assert_eq!(store.load(session(s)).await.unwrap(), Some(expected), "{times} times");
                assert_eq!(
                    store.load(session(100 + s)).await.unwrap(),
                    Some(row(100 + s, 2, target.clone(), 1, None))
                );
                assert_eq!(store.load(session(200 + s)).await.unwrap(), None);
            }
            assert_eq!(
                store.replace_agent(workspace(1), epoch(0), stale, current, 100).await.unwrap(),
                0,
                "as after once"
            );
        }
    }

    fn at_address(id: u128, address: &str) -> Arc<Target> {
        Arc::new(Target::new(agent(id)).with_address(address))
    }

    fn of_generation(id: u128, generation: i64) -> Arc<Target> {
        Arc::new(Target::new(agent(id)).with_generation(generation))
    }

    pub(super) async fn a_group_repair_writes_what_is_of_an_earlier_generation<St: BindingStore>(
        store: St,
    ) {
        let cases = [
            (Some(full(2)), true),
            (Some(full(1)), true),             // two builds behind
            (Some(of_generation(9, 2)), true), // whatever the agent
            (Some(of_generation(3, 2)), true), // the same agent, known by an earlier number
            (Some(of_generation(2, -7)), true),
            (Some(full(3)), false),             // there already
            (Some(of_generation(2, 3)), false), // an equal number
            (Some(full(4)), false),             // ahead
            (Some(of_generation(2, i64::MAX)), false),
            (Some(bare(2)), false), // not to be compared
            (Some(bare(3)), false),
            (None, false), // unbound
        ];
        replaced(&store, &full(2), &full(3), &cases).await;
    }

    /// Then the rows of the stale agent are behind: where the stale target has no generation, or
    /// the current one.
    pub(super) async fn a_group_repair_without_generations_writes_what_names_the_stale_agent<
        St: BindingStore,
    >(
        store: St,
    ) {
        let cases = [
            (Some(bare(2)), true),
            (Some(at_address(2, "anywhere")), true),
            (
                Some(Arc::new(Target::new(agent(2)).with_build(BuildId::new(Uuid::from_u128(7))))),
                true,
            ),
            (Some(bare(1)), false), // another agent
            (Some(bare(3)), false), // there already
            (Some(full(2)), false), // a generation
            (Some(of_generation(2, -7)), false),
            (None, false),
        ];
        replaced(&store, &bare(2), &bare(3), &cases).await;
    }

    pub(super) async fn a_group_repair_from_no_generation_to_one<St: BindingStore>(store: St) {
        let cases = [
            (Some(bare(2)), true),
            (Some(full(1)), false),
            (Some(of_generation(2, 1)), false),
            (Some(bare(1)), false),
        ];
        replaced(&store, &bare(2), &full(3), &cases).await;
    }

    pub(super) async fn a_group_repair_from_a_generation_to_none<St: BindingStore>(store: St) {
        let cases = [
            (Some(bare(2)), true),
            (Some(full(1)), false),
            (Some(full(2)), false),
            (Some(bare(1)), false),
        ];
        replaced(&store, &full(2), &bare(3), &cases).await;
    }

    pub(super) async fn a_group_repair_to_another_address_of_the_same_agent<St: BindingStore>(
        store: St,
    ) {
        let cases = [
            (Some(at_address(2, "old")), true),
            (Some(at_address(2, "older")), true),
            (Some(bare(2)), true),
            (Some(at_address(2, "new")), false),
            (Some(at_address(3, "old")), false),
        ];
        replaced(&store, &at_address(2, "old"), &at_address(2, "new"), &cases).await;
    }

    pub(super) async fn a_group_repair_to_no_address_of_the_same_agent<St: BindingStore>(
        store: St,
    ) {
        // With a build, which does not make it another place.
        let built = Arc::new(Target::new(agent(2)).with_build(BuildId::new(Uuid::from_u128(7))));
        let cases = [
            (Some(at_address(2, "old")), true),
            (Some(at_address(2, "")), true),
            (Some(bare(2)), false),
        ];
        replaced(&store, &at_address(2, "old"), &built, &cases).await;
    }

    pub(super) async fn a_group_repair_is_done_in_chunks<St: BindingStore>(store: St) {
        for s in 0..5 {
            let _ = store.create(new(s, 1, Some(full(1)))).await.unwrap();
        }
        let _ = store.create(new(9, 1, None)).await.unwrap();
        assert_eq!(
            store.replace_agent(workspace(1), epoch(0), &full(1), &full(2), 0).await.unwrap(),
            0
        );
        for (written, repaired) in [(2, 2), (2, 4), (1, 5), (0, 5)] {
            assert_eq!(
                store.replace_agent(workspace(1), epoch(0), &full(1), &full(2), 2).await.unwrap(),
                written
            );
            for s in 0..5 {
                // In the order of their keys.
                let expected = match s < repaired {
                    true => row(s, 1, Some(full(2)), 2, before(1)),
                    false => row(s, 1, Some(full(1)), 1, None),
                };
                assert_eq!(store.load(session(s)).await.unwrap(), Some(expected));
            }
        }
        // What is more than anybody may ask for is no error.
        assert_eq!(
            store
                .replace_agent(workspace(1), epoch(0), &full(2), &full(3), u64::MAX)
                .await
                .unwrap(),
            5
        );
    }

    pub(super) async fn many_are_loaded_at_once<St: BindingStore>(store: St) {
        assert_eq!(store.load_many(&[]).await.unwrap(), []);
        let rows = [
            row(1, 1, Some(full(1)), 1, None),
            row(2, 1, None, 1, None),
            row(3, 2, Some(bare(3)), 1, None),
        ];
        for row in &rows {
            let new = NewBinding::new(row.session, row.workspace, row.target.clone());
            assert!(matches!(store.create(new).await.unwrap(), Swap::Applied(_)));
        }
        let _ = store.create(new(4, 1, None)).await.unwrap();
        assert!(store.forget(session(4), None).await.unwrap());
        let load = async |sessions: &[u128]| {
            let sessions: Vec<_> = sessions.iter().map(|s| session(*s)).collect();
            let mut rows = store.load_many(&sessions).await.unwrap();
            rows.sort_by_key(|row| row.session);
            rows
        };
        assert_eq!(load(&[1]).await, rows[..1]);
        assert_eq!(load(&[3, 2, 1]).await, rows);
        assert_eq!(load(&[2, 2, 1, 2, 1]).await, rows[..2], "each once");
        assert_eq!(load(&[4, 3, 99]).await, rows[2..], "neither a deleted nor a missing one");
        assert_eq!(load(&[4, 99]).await, []);
    }

    pub(super) async fn two_thousand_are_loaded_at_once_and_no_more<St: BindingStore>(store: St) {
        for s in [0, 1, 1234, 1999] {
            let _ = store.create(new(s, 1, None)).await.unwrap();
        }
        let sessions: Vec<_> = (0..=BATCH as u128).map(session).collect();
        let rows = store.load_many(&sessions[..BATCH]).await.unwrap();
        let found: BTreeSet<_> = rows.iter().map(|row| row.session).collect();
        assert_eq!((rows.len(), found), (4, [0, 1, 1234, 1999].map(session).into()));
        let refused = store.load_many(&sessions).await;
        assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    }

    pub(super) async fn a_repair_that_read_before_a_retarget_does_not_undo_it<St: BindingStore>(
        store: St,
    ) {
        let _ = store.create(new(1, 1, Some(full(1)))).await.unwrap();
        let ordered = store.retarget(session(1), workspace(2)).await.unwrap();
        let late = store.compare_and_swap(at(1), new(1, 1, Some(full(2)))).await.unwrap();
        assert_eq!(late, Swap::Conflict(Some(ordered.clone())));
        assert_eq!(store.load(session(1)).await.unwrap(), Some(ordered));
    }

    pub(super) async fn retargets_win_against_swaps_whatever_the_order<St: BindingStore>(
        store: St,
    ) {
        let store = Arc::new(store);
        for s in 0..50 {
            let _ = store.create(new(s, 1, Some(full(1)))).await.unwrap();
            let (repairer, orderer) = (store.clone(), store.clone());
            let repair = tokio::spawn(async move {
                repairer.compare_and_swap(at(1), new(s, 1, Some(full(2)))).await.unwrap()
            });
            let order =
                tokio::spawn(
                    async move { orderer.retarget(session(s), workspace(2)).await.unwrap() },
                );
            let (repair, order) = (repair.await.unwrap(), order.await.unwrap());
            let (repaired, ordered) = match repair {
                Swap::Applied(row) => (Some(row), row_after(s, 3, 2)),
                Swap::Conflict(winner) => {
                    assert_eq!(winner, Some(order.clone()));
                    (None, row_after(s, 2, 1))
                }
            };
            assert!(
                repaired.is_none_or(|repaired| repaired == row(s, 1, Some(full(2)), 2, before(1)))
            );
            assert_eq!(order, ordered);
            assert_eq!(store.load(session(s)).await.unwrap(), Some(ordered));
        }

        fn row_after(s: u128, revision: i64, replaced: u128) -> Binding {
            row(s, 2, None, revision, before(replaced))
        }
    }

    pub(super) async fn of_swaps_at_one_revision_exactly_one_wins<St: BindingStore>(store: St) {
        let store = Arc::new(store);
        for round in 1..=20 {
            let s = 1;
            if round == 1 {
                let _ = store.create(new(s, 1, None)).await.unwrap();
            }
            let swaps = (0..16).map(|task| {
                let (store, target) = (store.clone(), full(round as u128 * 100 + task));
                tokio::spawn(async move {
                    store.compare_and_swap(at(round), new(s, 1, Some(target))).await.unwrap()
                })
            });
            let (mut applied, mut winners) = (Vec::new(), Vec::new());
            for swap in swaps.collect::<Vec<_>>() {
                match swap.await.unwrap() {
                    Swap::Applied(row) => applied.push(row),
                    Swap::Conflict(winner) => winners.push(winner),
                }
            }
            assert_eq!(applied.len(), 1);
            let winner = applied.remove(0);
            assert_eq!(winner.revision, at(round + 1));
            assert_eq!(winners, vec![Some(winner.clone()); 15], "every loser gets the winner");
            assert_eq!(store.load(session(s)).await.unwrap(), Some(winner));
        }
    }

    pub(super) async fn of_creations_exactly_one_wins<St: BindingStore>(store: St) {
        let store = Arc::new(store);
        let creations = (0..16).map(|task| {
            let store = store.clone();
            tokio::spawn(async move { store.create(new(1, task, Some(full(task)))).await.unwrap() })
        });
        let (mut applied, mut winners) = (Vec::new(), Vec::new());
        for creation in creations.collect::<Vec<_>>() {
            match creation.await.unwrap() {
                Swap::Applied(row) => applied.push(row),
                Swap::Conflict(winner) => winners.push(winner),
            }
        }
        assert_eq!(applied.len(), 1);
        assert_eq!(winners, vec![Some(applied.remove(0)); 15]);
    }

    /// 16 tasks write one row in every way there is, each as fast as it can. The history of the row
    /// is then complete: every write that was applied got a revision of its own, and none is
    /// missing.
    pub(super) async fn no_write_to_one_row_is_lost<St: BindingStore>(store: St) {
        let store = Arc::new(store);
        let tasks = (0..16_u128).map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut written = Vec::new();
                let mut read = None;
                for step in 0..40_u128 {
                    let target = full(1 + task * 1000 + step);
                    let w = step % 3;
                    let applied = match (task, step % 8) {
                        // Orders are rare, or the swaps would never win.
                        (0, 7) => Some(store.retarget(session(1), workspace(w)).await.unwrap()),
                        (1, 7) => store.unbind(session(1)).await.unwrap(),
                        _ => {
                            let swap = match &read {
                                None => store.create(new(1, w, Some(target))).await.unwrap(),
                                Some(Binding { revision, .. }) => store
                                    .compare_and_swap(*revision, new(1, w, Some(target)))
                                    .await
                                    .unwrap(),
                            };
                            match swap {
                                Swap::Applied(row) => Some(row),
                                Swap::Conflict(winner) => {
                                    read = winner;
                                    None
                                }
                            }
                        }
                    };
                    if let Some(row) = applied {
                        read = Some(row.clone());
                        written.push(row);
                    }
                }
                written
            })
        });
        let mut history = BTreeMap::new();
        let mut count = 0;
        for task in tasks.collect::<Vec<_>>() {
            let written = task.await.unwrap();
            assert!(
                written.is_sorted_by(|a, b| a.revision < b.revision),
                "revisions grow for each writer"
            );
            count += written.len();
            history.extend(written.into_iter().map(|row| (row.revision.get(), row)));
        }
        assert_eq!(history.len(), count, "no revision was given twice");
        assert_eq!(
            history.keys().copied().collect::<Vec<_>>(),
            (1..=count as i64).collect::<Vec<_>>()
        );
        let last = history.last_entry().unwrap().remove();
        assert_eq!(store.load(session(1)).await.unwrap(), Some(last));
        // And `previous` is always the agent that the history has right before, if that was another
        // one.
        let rows: Vec<_> = history.into_values().collect();
        for pair in rows.windows(2) {
            let (old, new) = (&pair[0], &pair[1]);
            let gone = old
                .target
                .as_ref()
                .filter(|gone| new.target.as_ref().is_none_or(|t| t.agent != gone.agent));
            let expected =
                gone.map_or(old.previous, |gone| Some(Previous::new(gone.agent, gone.generation)));
            assert_eq!(new.previous, expected, "{old:?} and then {new:?}");
        }
    }

    /// 16 tasks and 1,000 rows: each task reads and repairs all of them, in an order of its own.
    pub(super) async fn no_write_to_a_thousand_rows_is_lost<St: BindingStore>(store: St) {
        const ROWS: u128 = 1000;
        let store = Arc::new(store);
        let tasks = (0..16_u128).map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut written = Vec::new();
                for step in 0..ROWS {
                    // 7, 11, … are prime to 1,000: every row once, and tasks meet at changing rows.
                    let s = (step * [7, 11, 13, 17][task as usize % 4] + task / 4) % ROWS;
                    let target = Some(full(1 + task));
                    let swap = match store.load(session(s)).await.unwrap() {
                        None => store.create(new(s, 1, target)).await.unwrap(),
                        Some(read) => {
                            store.compare_and_swap(read.revision, new(s, 1, target)).await.unwrap()
                        }
                    };
                    match swap {
                        Swap::Applied(row) => written.push((s, row.revision.get())),
                        Swap::Conflict(winner) => assert!(winner.is_some()),
                    }
                }
                written
            })
        });
        let mut history: BTreeMap<u128, Vec<i64>> = BTreeMap::new();
        for task in tasks.collect::<Vec<_>>() {
            for (s, revision) in task.await.unwrap() {
                history.entry(s).or_default().push(revision);
            }
        }
        assert_eq!(history.len(), ROWS as usize);
        for (s, mut revisions) in history {
            revisions.sort_unstable();
            assert_eq!(
                revisions,
                (1..=revisions.len() as i64).collect::<Vec<_>>(),
                "every applied write has its own"
            );
            let last = store.load(session(s)).await.unwrap().unwrap();
            assert_eq!(last.revision, at(revisions.len() as i64));
        }
    }
}

/// A store of somebody else's, with what it must have and no more.
struct Foreign(MemoryStore);

impl BindingStore for Foreign {
    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        self.0.load(session).await
    }
    async fn create(&self, new: NewBinding) -> Result<Swap, StoreError> {
        self.0.create(new).await
    }
    async fn compare_and_swap(
        &self,
        expected: Revision,
        new: NewBinding,
    ) -> Result<Swap, StoreError> {
        self.0.compare_and_swap(expected, new).await
    }
    async fn retarget(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
    ) -> Result<Binding, StoreError> {
        self.0.retarget(session, workspace).await
    }
    async fn unbind(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        self.0.unbind(session).await
    }
    async fn forget(
        &self,
        session: SessionId,
        expected: Option<Revision>,
    ) -> Result<bool, StoreError> {
        self.0.forget(session, expected).await
    }
    async fn inherit(&self, child: SessionId, parent: SessionId) -> Result<Swap, StoreError> {
        self.0.inherit(child, parent).await
    }
    async fn reset_workspace(&self, workspace: WorkspaceId) -> Result<Reset, StoreError> {
        self.0.reset_workspace(workspace).await
    }
    async fn replace_agent(
        &self,
        workspace: WorkspaceId,
        epoch: Epoch,
        stale: &Target,
        current: &Arc<Target>,
        limit: u64,
    ) -> Result<u64, StoreError> {
        self.0.replace_agent(workspace, epoch, stale, current, limit).await
    }
    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        self.0.load_many(sessions).await
    }
}

#[tokio::test]
async fn a_store_that_lacks_housekeeping_says_so() {
    let store = Arc::new(Foreign(MemoryStore::new()));
    assert!(store.shared() && !MemoryStore::new().shared());
    let _ = store.create(new(1, 1, None)).await.unwrap();
    let said = [
        store.recent(10).try_collect::<Vec<_>>().await.map(|_| ()),
        store.touch(&[session(1)], Duration::from_secs(60)).await,
        store.purge_idle(Duration::ZERO, 10).await.map(|_| ()),
        store.purge_forgotten(10).await.map(|_| ()),
    ];
    for (said, expected) in
        said.into_iter().zip(["recent", "touch", "purge_idle", "purge_forgotten"])
    {
        let error = said.unwrap_err();
        assert!(matches!(error, StoreError::Unsupported { verb } if verb == expected), "{error:?}");
        assert_eq!(error.to_string(), format!("the store has no {expected}"));
    }
}

/// The list of tests, once; a store is a module.
macro_rules! contract {
    ($($store:ident: $made:expr;)+) => { $(
        mod $store {
            contract!(@tests $made;
                a_missing_row_is_none_everywhere
                what_is_created_is_loaded
                every_value_survives
                a_second_creation_gets_the_first_row
                a_swap_at_the_read_revision_replaces_workspace_and_target
                a_swap_at_any_other_revision_writes_nothing
                a_repair_sent_twice_leaves_the_row_as_after_once
                a_retarget_creates_keeps_or_clears
                unbind_keeps_the_workspace
                delete_compares_only_if_asked_to
                a_late_repair_does_not_bring_a_deleted_row_back
                revisions_go_on_after_a_deletion
                a_child_begins_with_what_the_row_of_its_parent_has
                a_child_that_exists_is_left_alone
                a_reset_drops_the_targets_of_one_workspace
                a_reset_begins_the_next_epoch_also_of_a_workspace_without_rows
                a_target_of_another_epoch_than_its_workspaces_does_not_count
                a_group_repair_writes_rows_of_its_own_epoch
                a_group_repair_writes_what_is_of_an_earlier_generation
                a_group_repair_without_generations_writes_what_names_the_stale_agent
                a_group_repair_from_no_generation_to_one
                a_group_repair_from_a_generation_to_none
                a_group_repair_to_another_address_of_the_same_agent
                a_group_repair_to_no_address_of_the_same_agent
                a_group_repair_is_done_in_chunks
                many_are_loaded_at_once
                two_thousand_are_loaded_at_once_and_no_more
                a_repair_that_read_before_a_retarget_does_not_undo_it
                retargets_win_against_swaps_whatever_the_order
                of_swaps_at_one_revision_exactly_one_wins
                of_creations_exactly_one_wins
                no_write_to_one_row_is_lost
                no_write_to_a_thousand_rows_is_lost
            );
        }
    )+ };
    (@tests $made:expr; $($test:ident)+) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $test() {
            // `None`: a server that is not there, which was said.
            let Some((store, _kept)) = $made.await else { return };
            super::contract::$test(store).await;
        }
    )+ };
}

contract! {
    memory: super::in_memory();
    behind_an_arc: super::behind_an_arc();
    key_value: super::key_value();
}

#[cfg(feature = "sqlite")]
contract! {
    sqlite_in_memory: super::sqlite::in_memory();
    sqlite_file: super::sqlite::file();
    sqlite_rollback_journal: super::sqlite::rollback_journal();
}

#[cfg(feature = "postgres")]
contract! {
    // As a pool of the application's may be.
    postgres_read_committed: super::postgres::over("read committed");
    postgres_repeatable_read: super::postgres::over("repeatable read");
    postgres_serializable: super::postgres::over("serializable");
}

#[cfg(all(unix, feature = "postgres"))]
contract! {
    postgres_behind_pgbouncer: super::postgres::behind_pgbouncer("postgres");
    postgres_serializable_behind_pgbouncer: super::postgres::behind_pgbouncer(super::pgbouncer::SERIALIZABLE);
}

#[cfg(feature = "mysql")]
contract! {
    mysql_repeatable_read: super::mysql::over("REPEATABLE READ");
    mysql_read_committed: super::mysql::over("READ COMMITTED");
    mysql_serializable: super::mysql::over("SERIALIZABLE");
}

async fn in_memory() -> Option<(MemoryStore, ())> {
    Some((MemoryStore::new(), ()))
}

async fn behind_an_arc() -> Option<(Arc<MemoryStore>, ())> {
    Some((Arc::new(MemoryStore::new()), ()))
}

async fn key_value() -> Option<(own_store::KeyValueStore, ())> {
    Some((own_store::KeyValueStore::default(), ()))
}

/// Whatever is done in whatever order: every store gives the same answers as the one in memory.
/// What one of them gets wrong, and no test above thought of, shows here.
mod alike {
    use super::*;
    use proptest::{prelude::*, test_runner::TestRunner};

    #[derive(Clone, Debug)]
    enum Verb {
        Load(u128),
        Create(NewBinding),
        /// With how far the expected revision is behind the real one; 0 wins.
        Swap(i64, NewBinding),
        Retarget(u128, u128),
        Unbind(u128),
        Delete(u128, Option<i64>),
        Inherit(u128, u128),
        Reset(u128),
        Replace(u128, Arc<Target>, Arc<Target>, u64),
        LoadMany(Vec<u128>),
    }

    fn target() -> impl Strategy<Value = Arc<Target>> {
        prop_oneof![(1..4_u128).prop_map(full), (1..4_u128).prop_map(bare)]
    }

    fn content() -> impl Strategy<Value = NewBinding> {
        (0..3_u128, 0..2_u128, prop_oneof![1 => Just(None), 2 => target().prop_map(Some)])
            .prop_map(|(s, w, target)| new(s, w, target))
    }

    fn verb() -> impl Strategy<Value = Verb> {
        prop_oneof![
            1 => (0..3_u128).prop_map(Verb::Load),
            2 => content().prop_map(Verb::Create),
            4 => (prop_oneof![4 => Just(0), 1 => -1..3_i64], content()).prop_map(|(by, new)| Verb::Swap(by, new)),
            2 => (0..3_u128, 0..2_u128).prop_map(|(s, w)| Verb::Retarget(s, w)),
            1 => (0..3_u128).prop_map(Verb::Unbind),
            1 => (0..3_u128, prop::option::of(-1..3_i64)).prop_map(|(s, behind)| Verb::Delete(s, behind)),
            2 => (0..3_u128, 0..3_u128).prop_map(|(child, parent)| Verb::Inherit(child, parent)),
            1 => (0..2_u128).prop_map(Verb::Reset),
            3 => (0..2_u128, target(), target(), 0..3_u64).prop_map(|(w, stale, new, n)| Verb::Replace(w, stale, new, n)),
            1 => prop::collection::vec(0..4_u128, 0..6).prop_map(Verb::LoadMany),
        ]
    }

    /// The answer as text. `known` is the last revision of each session, also of one that is
    /// deleted now.
    async fn answer<St: BindingStore>(
        store: &St,
        verb: Verb,
        known: &BTreeMap<SessionId, i64>,
    ) -> String {
        let behind = |s: SessionId, behind: i64| at(known.get(&s).copied().unwrap_or(0) - behind);
        match verb {
            Verb::Load(s) => format!("{:?}", store.load(session(s)).await.unwrap()),
            Verb::Create(new) => format!("{:?}", store.create(new).await.unwrap()),
            Verb::Swap(by, new) => {
                format!("{:?}", store.compare_and_swap(behind(new.session, by), new).await.unwrap())
            }
            Verb::Retarget(s, w) => {
                format!("{:?}", store.retarget(session(s), workspace(w)).await.unwrap())
            }
            Verb::Unbind(s) => format!("{:?}", store.unbind(session(s)).await.unwrap()),
            Verb::Delete(s, by) => {
                let expected = by.map(|by| behind(session(s), by));
                format!("{:?}", store.forget(session(s), expected).await.unwrap())
            }
            Verb::Inherit(child, parent) => {
                format!("{:?}", store.inherit(session(child), session(parent)).await.unwrap())
            }
            Verb::Reset(w) => format!("{:?}", store.reset_workspace(workspace(w)).await.unwrap()),
            Verb::Replace(w, stale, current, limit) => {
                format!(
                    "{:?}",
                    store
                        .replace_agent(workspace(w), epoch(0), &stale, &current, limit)
                        .await
                        .unwrap()
                )
            }
            Verb::LoadMany(sessions) => {
                let sessions: Vec<_> = sessions.into_iter().map(session).collect();
                let mut rows = store.load_many(&sessions).await.unwrap();
                rows.sort_by_key(|row| row.session);
                format!("{rows:?}")
            }
        }
    }

    /// `made` makes an empty store; a server that is not there makes none.
    fn same_answers_as_memory<St: BindingStore, Kept>(
        cases: u32,
        made: impl AsyncFn() -> Option<(St, Kept)>,
    ) {
        let config =
            ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        if runtime.block_on(made()).is_none() {
            return;
        }
        let result = TestRunner::new(config).run(&prop::collection::vec(verb(), 1..60), |verbs| {
            runtime.block_on(async {
                let (store, _kept) = made().await.expect("it was there before");
                let (memory, mut known) = (MemoryStore::new(), BTreeMap::new());
                for verb in verbs {
                    let text = format!("{verb:?}");
                    let answers = (
                        answer(&memory, verb.clone(), &known).await,
                        answer(&store, verb, &known).await,
                    );
                    prop_assert_eq!(answers.0, answers.1, "{}", text);
                    for s in 0..3 {
                        let rows = (
                            memory.load(session(s)).await.unwrap(),
                            store.load(session(s)).await.unwrap(),
                        );
                        prop_assert_eq!(&rows.0, &rows.1, "after {}", text);
                        if let Some(row) = rows.0 {
                            let before = known.insert(row.session, row.revision.get());
                            prop_assert!(
                                before.is_none_or(|before| before <= row.revision.get()),
                                "after {}",
                                text
                            );
                        }
                    }
                }
                Ok(())
            })
        });
        result.unwrap();
    }

    #[test]
    fn memory_and_the_store_of_the_example_give_the_same_answers() {
        same_answers_as_memory(100, super::key_value);
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn memory_and_sqlite_give_the_same_answers() {
        same_answers_as_memory(100, super::sqlite::in_memory);
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn memory_and_postgres_give_the_same_answers() {
        same_answers_as_memory(40, async || super::postgres::over("read committed").await);
    }

    #[cfg(feature = "mysql")]
    #[test]
    fn memory_and_mysql_give_the_same_answers() {
        same_answers_as_memory(40, async || super::mysql::over("REPEATABLE READ").await);
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use sqlx::sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
    };
    use tempfile::TempDir;
    use tower_bound_agent::store::SqliteStore;

    pub(super) async fn in_memory() -> Option<(SqliteStore, ())> {
        let one = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let store = SqliteStore::new(
            one.test_before_acquire(false).connect("sqlite::memory:").await.unwrap(),
        );
        store.set_up().await.unwrap();
        Some((store, ()))
    }

    pub(super) async fn file() -> Option<(SqliteStore, TempDir)> {
        let directory = tempfile::tempdir().unwrap();
        Some((SqliteStore::open(directory.path().join("bindings.db")).await.unwrap(), directory))
    }

    /// As a pool of the application's may be: no WAL, more connections, another table.
    pub(super) async fn rollback_journal() -> Option<(SqliteStore, TempDir)> {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(directory.path().join("application.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Truncate)
            // Only a loss of power could tell the difference, and this is not what the tests are
            // about.
            .synchronous(SqliteSynchronous::Off)
            .busy_timeout(std::time::Duration::from_secs(30));
        let pool = SqlitePoolOptions::new().max_connections(8).connect_with(options).await.unwrap();
        let store = SqliteStore::new(pool).with_table("order").unwrap();
        store.set_up().await.unwrap();
        Some((store, directory))
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use crate::servers;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use tower_bound_agent::store::PostgresStore;

    /// On a table of its own.
    pub(super) async fn over(isolation: &str) -> Option<(PostgresStore, ())> {
        let options: PgConnectOptions = servers::url("TEST_POSTGRES_URL")?.parse().unwrap();
        let options = options.options([("default_transaction_isolation", isolation)]);
        let pool = PgPoolOptions::new().max_connections(8).connect_with(options).await.unwrap();
        let store = PostgresStore::new(pool).with_table(servers::table()).unwrap();
        store.set_up().await.unwrap();
        Some((store, ()))
    }

    /// In transaction mode, which has fewer connections to the server.
    #[cfg(unix)]
    pub(super) async fn behind_pgbouncer(database: &str) -> Option<(PostgresStore, ())> {
        let options =
            crate::pgbouncer::ways().await?.in_transaction_mode.clone().database(database);
        let pool = PgPoolOptions::new().max_connections(8).connect_with(options).await.unwrap();
        let store = PostgresStore::new(pool)
            .with_table(servers::table())
            .unwrap()
            .behind_transaction_pooler();
        store.set_up().await.unwrap();
        Some((store, ()))
    }
}

#[cfg(feature = "mysql")]
mod mysql {
    use crate::servers;
    use sqlx::{
        AssertSqlSafe, Executor,
        mysql::{MySqlConnectOptions, MySqlPoolOptions},
    };
    use tower_bound_agent::store::MySqlStore;

    /// On a table of its own.
    pub(super) async fn over(isolation: &'static str) -> Option<(MySqlStore, ())> {
        let options: MySqlConnectOptions = servers::url("TEST_MYSQL_URL")?.parse().unwrap();
        let pool =
            MySqlPoolOptions::new().max_connections(8).after_connect(move |connection, _| {
                Box::pin(async move {
                    let sql = AssertSqlSafe(format!(
                        "SET SESSION TRANSACTION ISOLATION LEVEL {isolation}"
                    ));
                    connection.execute(sql).await.map(|_| ())
                })
            });
        let store = MySqlStore::new(pool.connect_with(options).await.unwrap())
            .with_table(servers::table())
            .unwrap();
        store.set_up().await.unwrap();
        Some((store, ()))
    }
}
