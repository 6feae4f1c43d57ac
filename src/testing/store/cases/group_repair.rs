//! `replace_agent`.

use crate::{
    Target,
    store::{BATCH, BindingStore, Swap},
    testing::store::{
        checked::{Checked, ok},
        rows::{
            agent, at_address, bare, build, epoch, full, gone, new, of_generation, previous, row,
            session, workspace,
        },
    },
};
use std::sync::Arc;

/// Rows whose target is of another epoch are not written, and a repair of another epoch writes no
/// row.
///
/// > Rows whose target is of another epoch, rows without a target, and deleted rows are never
/// > behind.
pub async fn a_group_repair_writes_rows_of_its_own_epoch<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    store.reset(1).await;
    let now = store.epoch(1);
    for (s, target) in [(1, full(1)), (2, bare(1))] {
        store.create(new(s, 1, Some(target.clone())).with_epoch(now)).await;
        store.create(new(10 + s, 1, Some(target)).with_epoch(epoch(0))).await;
    }
    store.create(new(3, 1, None).with_epoch(now)).await;
    for other in [epoch(0), epoch(now.get() + 1)] {
        // Rows whose invalid target is of that epoch may be written: they still read as unbound.
        let replaced = store.replace(1, other, &full(1), &full(100), 100).await;
        let counts = store.load(1).await.and_then(|row| row.target);
        assert_eq!(counts, Some(full(1)), "{replaced} rows were written in epoch {other}");
    }
    assert_eq!(store.replace(1, now, &full(1), &full(2), 100).await, 1);
    assert_eq!(store.replace(1, now, &bare(1), &bare(2), 100).await, 1);
    let targets = [(1, Some(full(2))), (2, Some(bare(2))), (3, None), (11, None), (12, None)];
    for (s, target) in targets {
        assert_eq!(store.load(s).await.and_then(|row| row.target), target, "session {s}");
    }
}

/// Runs a group repair over rows of these targets, some of which are behind. Rows of another
/// workspace and deleted rows with the same targets are not.
async fn replaced<St: BindingStore>(
    store: St,
    stale: &Target,
    current: &Arc<Target>,
    targets: &[(Option<Arc<Target>>, bool)],
) {
    let mut store = Checked::new(store);
    for (s, (target, _)) in (1..).zip(targets) {
        store.create(new(s, 1, target.clone())).await;
        store.create(new(100 + s, 2, target.clone())).await;
        store.create(new(200 + s, 1, target.clone())).await;
        assert!(store.forget(200 + s, None).await);
    }
    let behind = targets.iter().filter(|(_, behind)| *behind).count() as u64;
    // `Checked` asserts the number of changed rows, and that their revisions have grown.
    assert_eq!(store.replace(1, epoch(0), stale, current, 100).await, behind, "rows are behind");
    for (s, (target, behind)) in (1..).zip(targets) {
        let expected = if *behind {
            let replaced = target.as_ref().filter(|target| target.agent != current.agent);
            row(s, 1, Some(current.clone()), replaced.map(|target| gone(target)))
        } else {
            row(s, 1, target.clone(), None)
        };
        assert_eq!(store.load(s).await, Some(expected), "behind: {behind}");
        assert_eq!(store.load(100 + s).await, Some(row(100 + s, 2, target.clone(), None)));
        assert_eq!(store.load(200 + s).await, None);
    }
    assert_eq!(store.replace(1, epoch(0), stale, current, 100).await, 0, "no row is behind now");
}

/// Between two generations the number decides, whichever agent a row names.
///
/// > If `stale` and `current` both have a generation, every row with a smaller generation than
/// > `current` is behind.
pub async fn a_group_repair_writes_rows_of_earlier_generations<St: BindingStore>(store: St) {
    let targets = [
        (Some(full(2)), true),
        (Some(full(1)), true),             // two builds behind
        (Some(of_generation(9, 2)), true), // another agent
        (Some(of_generation(3, 2)), true), // the current agent, known by an earlier number
        (Some(of_generation(2, -7)), true),
        (Some(full(3)), false),             // up to date already
        (Some(of_generation(2, 3)), false), // an equal number
        (Some(full(4)), false),             // ahead
        (Some(of_generation(2, i64::MAX)), false),
        (Some(bare(2)), false), // without a generation, rows do not compare
        (Some(bare(3)), false),
        (None, false), // unbound
    ];
    replaced(store, &full(2), &full(3), &targets).await;
}

/// Without generations the rows of the stale agent are behind.
///
/// > Otherwise every row without a generation is behind that names the agent of `stale`, unless it
/// > has the agent and address of `current` already. Rows whose target is of another epoch, rows
/// > without a target, and deleted rows are never behind.
pub async fn a_group_repair_without_generations_writes_rows_of_the_stale_agent<St: BindingStore>(
    store: St,
) {
    let targets = [
        (Some(bare(2)), true),
        (Some(at_address(2, "anywhere")), true),
        (Some(Arc::new(Target::new(agent(2)).with_build(build(7)))), true),
        (Some(bare(1)), false), // another agent
        (Some(bare(3)), false), // up to date already
        (Some(full(2)), false), // a generation
        (Some(of_generation(2, -7)), false),
        (None, false),
    ];
    replaced(store, &bare(2), &bare(3), &targets).await;
}

/// The first generation of a workspace compares with none: the stale agent decides.
///
/// > Otherwise every row without a generation is behind that names the agent of `stale`, unless it
/// > has the agent and address of `current` already.
pub async fn a_group_repair_from_no_generation_to_one<St: BindingStore>(store: St) {
    let targets = [
        (Some(bare(2)), true),
        (Some(full(1)), false),
        (Some(of_generation(2, 1)), false),
        (Some(bare(1)), false),
    ];
    replaced(store, &bare(2), &full(3), &targets).await;
}

/// A target without a generation replaces none that has one.
///
/// > Otherwise every row without a generation is behind that names the agent of `stale`, unless it
/// > has the agent and address of `current` already.
pub async fn a_group_repair_from_a_generation_to_none<St: BindingStore>(store: St) {
    let targets = [
        (Some(bare(2)), true),
        (Some(full(1)), false),
        (Some(full(2)), false),
        (Some(bare(1)), false),
    ];
    replaced(store, &full(2), &bare(3), &targets).await;
}

/// Rows of an agent that has moved are behind until they name the new address. The agent does not
/// become its own previous agent.
///
/// > Otherwise every row without a generation is behind that names the agent of `stale`, unless it
/// > has the agent and address of `current` already.
pub async fn a_group_repair_to_another_address_of_the_same_agent<St: BindingStore>(store: St) {
    let targets = [
        (Some(at_address(2, "old")), true),
        (Some(at_address(2, "older")), true),
        (Some(bare(2)), true),
        (Some(at_address(2, "new")), false),
        (Some(at_address(3, "old")), false),
    ];
    replaced(store, &at_address(2, "old"), &at_address(2, "new"), &targets).await;
}

/// A missing address compares as well and differs from an empty one. A build does not compare.
///
/// > Otherwise every row without a generation is behind that names the agent of `stale`, unless it
/// > has the agent and address of `current` already.
pub async fn a_group_repair_to_no_address_of_the_same_agent<St: BindingStore>(store: St) {
    let built = Arc::new(Target::new(agent(2)).with_build(build(7)));
    let targets = [
        (Some(at_address(2, "old")), true),
        (Some(at_address(2, "")), true),
        (Some(bare(2)), false),
    ];
    replaced(store, &at_address(2, "old"), &built, &targets).await;
}

/// A chunk writes at most `limit` rows, those of the smallest sessions, until none is left.
///
/// > `limit` is the maximum number of rows
///
/// > Rows are selected and locked in the order of their sessions.
pub async fn a_group_repair_writes_no_more_than_its_limit<St: BindingStore>(store: St) {
    let mut store = Checked::new(store);
    // The rows are not created in the order of their sessions, and an unbound row does not count
    // towards the limit.
    store.create(new(0, 1, None)).await;
    for s in [3, 5, 1, 4, 2] {
        store.create(new(s, 1, Some(full(1)))).await;
    }
    assert_eq!(store.replace(1, epoch(0), &full(1), &full(2), 0).await, 0);
    for (written, repaired) in [(2, 2), (2, 4), (1, 5), (0, 5)] {
        assert_eq!(store.replace(1, epoch(0), &full(1), &full(2), 2).await, written);
        for s in 1..=5 {
            let expected = match s <= repaired {
                true => row(s, 1, Some(full(2)), previous(1)),
                false => row(s, 1, Some(full(1)), None),
            };
            assert_eq!(store.load(s).await, Some(expected), "after {repaired} rows");
        }
    }
}

/// A limit above [`BATCH`] is no error, and writes [`BATCH`] rows.
///
/// > `limit` is the maximum number of rows, and at most `BATCH`.
pub async fn a_limit_above_the_batch_means_the_batch<St: BindingStore>(store: St) {
    const ROWS: u128 = BATCH as u128 + 5;
    let store = Arc::new(store);
    // Several creations run concurrently, for stores that are slow.
    let tasks = (0..16).map(|task| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for s in (task..ROWS).step_by(16) {
                let swap = ok("create", store.create(new(s, 1, Some(full(1)))).await);
                assert!(matches!(swap, Swap::Applied(_)), "{swap:?}");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("rows to repair");
    }
    for expected in [BATCH as u64, 5, 0] {
        let replaced =
            store.replace_agent(workspace(1), epoch(0), &full(1), &full(2), u64::MAX).await;
        assert_eq!(ok("replace_agent", replaced), expected);
    }
    for s in [0, ROWS / 2, ROWS - 1] {
        let read = ok("load", store.load(session(s)).await);
        assert_eq!(read.and_then(|row| row.target), Some(full(2)));
    }
}
