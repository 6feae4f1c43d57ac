//! Concurrent verbs, each in a task of its own.

use crate::{
    Binding, Revision,
    store::{BindingStore, StoreError, Swap},
    testing::store::{
        checked::ok,
        rows::{Row, epoch, full, gone, new, previous, row, session, workspace},
    },
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::task::JoinHandle;

/// Returns the results of all tasks, in order. A panic of a task panics the case.
async fn all<T>(tasks: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    let mut results = Vec::new();
    for task in tasks.into_iter().collect::<Vec<_>>() {
        match task.await {
            Ok(result) => results.push(result),
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => panic!("a task of the case was cancelled: {cancelled}"),
            },
        }
    }
    results
}

fn applied(swap: Swap) -> Binding {
    match swap {
        Swap::Applied(row) => row,
        Swap::Conflict(winner) => panic!("a write without a rival has lost to {winner:?}"),
    }
}

async fn created(store: &impl BindingStore, s: u128, w: u128, target: u128) -> Binding {
    applied(ok("create", store.create(new(s, w, Some(full(target)))).await))
}

/// A command and a concurrent repair: the command survives, and the repair was either before it, or
/// is refused and gets the row of the command.
///
/// > **Commands** (`retarget`, `unbind`, `reset_workspace`) do not compare, and also write rows
/// > that already have the requested content: a repair that read the row before then fails its
/// > comparison.
pub async fn a_command_survives_concurrent_repairs<St: BindingStore>(store: St) {
    let store = Arc::new(store);
    for s in 0..50 {
        let read = created(&*store, s, 1, 1).await;
        let (repairer, commander) = (Arc::clone(&store), Arc::clone(&store));
        let repair = async move {
            let repair = new(s, 1, Some(full(2)));
            ok("compare_and_swap", repairer.compare_and_swap(read.revision, repair).await)
        };
        let command =
            async move { ok("retarget", commander.retarget(session(s), workspace(2)).await) };
        // Each of the two begins first in half of the rounds.
        let (repair, command) = if s % 2 == 0 {
            (tokio::spawn(repair), tokio::spawn(command))
        } else {
            let command = tokio::spawn(command);
            (tokio::spawn(repair), command)
        };
        let (repair, command) = (all([repair]).await.remove(0), all([command]).await.remove(0));
        let gone = match repair {
            Swap::Applied(repaired) => {
                assert_eq!(Row::of(&repaired), row(s, 1, Some(full(2)), previous(1)));
                assert!(read.revision < repaired.revision && repaired.revision < command.revision);
                2
            }
            Swap::Conflict(winner) => {
                assert_eq!(winner.as_ref(), Some(&command), "the conflicting row");
                assert!(read.revision < command.revision);
                1
            }
        };
        assert_eq!(Row::of(&command), row(s, 2, None, previous(gone)));
        assert_eq!(ok("load", store.load(session(s)).await), Some(command));
    }
}

/// Exactly one of many swaps at one revision is applied, and the others get its row.
///
/// > Replaces workspace and target of a row if its revision is `expected`; otherwise returns the
/// > row as the conflict.
pub async fn exactly_one_swap_at_a_revision_is_applied<St: BindingStore>(store: St) {
    let store = Arc::new(store);
    let mut read = created(&*store, 1, 1, 1).await.revision;
    for round in 1..=20 {
        let swaps = (0..16).map(|task| {
            let (store, target) = (Arc::clone(&store), full(round * 100 + task));
            tokio::spawn(async move {
                let new = new(1, 1, Some(target));
                ok("compare_and_swap", store.compare_and_swap(read, new).await)
            })
        });
        let winner = one_winner(all(swaps).await);
        assert!(winner.revision > read);
        assert_eq!(ok("load", store.load(session(1)).await), Some(winner.clone()));
        read = winner.revision;
    }
}

/// Exactly one of many creations of a session is applied, and the others get its row, even if some
/// of them inherit.
///
/// > Creates a row. If it exists already, returns it as the conflict.
pub async fn exactly_one_concurrent_creation_is_applied<St: BindingStore>(store: St) {
    let store = Arc::new(store);
    created(&*store, 1_000, 9, 9).await;
    for s in 1..=10 {
        let creations = (0..16).map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                match task % 4 {
                    0 if s > 5 => ok("inherit", store.inherit(session(s), session(1_000)).await),
                    _ => ok("create", store.create(new(s, task, Some(full(task)))).await),
                }
            })
        });
        let winner = one_winner(all(creations).await);
        assert_eq!(ok("load", store.load(session(s)).await), Some(winner));
    }
}

/// Returns the row of the only applied write, which all others must have received.
fn one_winner(swaps: Vec<Swap>) -> Binding {
    let (mut applied, mut winners) = (Vec::new(), Vec::new());
    for swap in swaps {
        match swap {
            Swap::Applied(row) => applied.push(row),
            Swap::Conflict(winner) => winners.push(winner),
        }
    }
    assert_eq!(applied.len(), 1, "one is applied: {applied:?}");
    let winner = applied.remove(0);
    for lost in winners {
        assert_eq!(lost.as_ref(), Some(&winner), "the others get the row of the winner");
    }
    winner
}

/// A write that a task made.
struct Write {
    row: Binding,
    /// The revision that it replaced. `None` for a creation, and for a command, which does not
    /// compare.
    replaces: Option<Revision>,
}

/// Sixteen tasks write one row with every verb, as fast as they can. The applied writes are the
/// whole history of the row: each has a unique revision, each swap directly follows the revision
/// that it read, and `previous` is the former agent in the history.
///
/// > **Every method is one atomic statement** on one row, unless it says otherwise.
pub async fn no_write_to_one_row_is_lost<St: BindingStore>(store: St) {
    let store = Arc::new(store);
    let tasks = (0..16_u128).map(|task| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut written: Vec<Write> = Vec::new();
            let mut read = None;
            for step in 0..40_u128 {
                let new = new(1, step % 3, Some(full(1 + task * 1000 + step)));
                let (swap, replaces) = match (task, step % 8, &read) {
                    // Commands are rare, because otherwise no swap would be applied.
                    (0, 7, _) => {
                        let row = store.retarget(session(1), workspace(step % 3)).await;
                        (Swap::Applied(ok("retarget", row)), None)
                    }
                    (1, 7, _) => match ok("unbind", store.unbind(session(1)).await) {
                        Some(row) => (Swap::Applied(row), None),
                        None => (Swap::Conflict(None), None),
                    },
                    (_, _, None) => (ok("create", store.create(new).await), None),
                    (_, _, Some(Binding { revision, .. })) => {
                        let swap = store.compare_and_swap(*revision, new).await;
                        (ok("compare_and_swap", swap), Some(*revision))
                    }
                };
                read = match swap {
                    Swap::Applied(row) => {
                        written.push(Write { row: row.clone(), replaces });
                        Some(row)
                    }
                    Swap::Conflict(winner) => winner,
                };
            }
            written
        })
    });
    let mut history = BTreeMap::new();
    for written in all(tasks).await {
        let grows = written.is_sorted_by(|a, b| a.row.revision < b.row.revision);
        assert!(grows, "revisions grow for each writer");
        for write in written {
            let twice = history.insert(write.row.revision, write);
            assert!(twice.is_none(), "two writes got one revision: {:?}", twice.map(|w| w.row));
        }
    }
    let last = history.last_key_value().map(|(_, write)| write.row.clone());
    assert_eq!(ok("load", store.load(session(1)).await), last, "the last write stands");
    let history: Vec<_> = history.into_values().collect();
    for pair in history.windows(2) {
        let (old, new) = (&pair[0].row, &pair[1].row);
        if let Some(replaces) = pair[1].replaces {
            assert_eq!(replaces, old.revision, "a write was lost between {old:?} and {new:?}");
        }
        let replaced = old
            .target
            .as_ref()
            .filter(|old| new.target.as_ref().is_none_or(|new| new.agent != old.agent));
        let previous = replaced.map_or(old.previous, |old| Some(gone(old)));
        assert_eq!(new.previous, previous, "{old:?} and then {new:?}");
    }
}

/// Sixteen tasks and 250 rows: each task reads and writes all of them, in an order of its own.
/// Every applied write has a unique revision, and the last one remains.
///
/// > **Every method is one atomic statement** on one row, unless it says otherwise.
pub async fn no_write_to_many_rows_is_lost<St: BindingStore>(store: St) {
    const ROWS: u128 = 100;
    let store = Arc::new(store);
    let tasks = (0..16_u128).map(|task| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut written = Vec::new();
            for step in 0..ROWS {
                // 7, 11, … are prime to 100: every row once. Four tasks go the same way and meet at
                // each row, the others meet at changing rows.
                let s = (step * [7, 11, 13, 17][task as usize % 4]) % ROWS;
                let new = new(s, 1, Some(full(1 + task)));
                let read = ok("load", store.load(session(s)).await).map(|row| row.revision);
                tokio::task::yield_now().await;
                let swap = match read {
                    None => store.create(new).await,
                    Some(read) => store.compare_and_swap(read, new).await,
                };
                match ok("a write", swap) {
                    Swap::Applied(row) => written.push((s, row.revision, read)),
                    Swap::Conflict(winner) => {
                        assert!(winner.is_some_and(|winner| Some(winner.revision) > read));
                    }
                }
            }
            written
        })
    });
    let mut history: BTreeMap<u128, Vec<_>> = BTreeMap::new();
    for (s, revision, replaces) in all(tasks).await.into_iter().flatten() {
        history.entry(s).or_default().push((revision, replaces));
    }
    assert_eq!(history.len(), ROWS as usize);
    for (s, mut writes) in history {
        writes.sort_unstable();
        let mut before = None;
        for (revision, replaces) in writes {
            assert_eq!(replaces, before, "session {s}: a write was lost before {revision}");
            before = Some(revision);
        }
        let last = ok("load", store.load(session(s)).await).map(|row| row.revision);
        assert_eq!(last, before, "session {s}: the last write stands");
    }
}

/// Every read that begins after a write was answered sees the write, in any task.
///
/// > Sees every write that completed before the call.
pub async fn a_load_sees_every_write_that_ended_before_it<St: BindingStore>(store: St) {
    let store = Arc::new(store);
    let mut written = created(&*store, 1, 1, 1).await;
    for round in 2..50 {
        let new = new(1, 1, Some(full(round)));
        let swap = store.compare_and_swap(written.revision, new).await;
        written = applied(ok("compare_and_swap", swap));
        let reads = (0..8).map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                match task % 2 {
                    0 => ok("load", store.load(session(1)).await),
                    _ => ok("load_many", store.load_many(&[session(1)]).await).pop(),
                }
            })
        });
        for read in all(reads).await {
            assert_eq!(read.as_ref(), Some(&written), "a read that began after the write");
        }
    }
}

/// Rows of a workspace are retargeted while a group repair writes them: the commands survive.
///
/// > The whole condition must hold on each row at the moment it is written: a row that was
/// > retargeted meanwhile stays as it is.
pub async fn a_concurrent_group_repair_undoes_no_command<St: BindingStore>(store: St) {
    const ROWS: u128 = 20;
    let store = Arc::new(store);
    for round in 0..20_u128 {
        let (w, first) = (100 + round, round * ROWS);
        for s in first..first + ROWS {
            created(&*store, s, w, 1).await;
        }
        let repairer = Arc::clone(&store);
        let repair = tokio::spawn(async move {
            let (stale, current) = (full(1), full(2));
            loop {
                let chunk = repairer.replace_agent(workspace(w), epoch(0), &stale, &current, 5);
                match chunk.await {
                    Ok(0) => return,
                    // The concurrent commands lock rows.
                    Ok(_) | Err(StoreError::LockedRowsSkipped { .. }) => {
                        tokio::task::yield_now().await
                    }
                    Err(error) => return ok("replace_agent", Err(error)),
                }
            }
        });
        // In the order of the repair, so that the two meet.
        let commander = Arc::clone(&store);
        let commands = tokio::spawn(async move {
            let mut commanded = Vec::new();
            for s in (first..first + ROWS).step_by(2) {
                let row = match s % 4 {
                    0 => Some(ok("retarget", commander.retarget(session(s), workspace(1)).await)),
                    _ => ok("unbind", commander.unbind(session(s)).await),
                };
                commanded.push((s, row));
            }
            commanded
        });
        let commanded = all([commands]).await.remove(0);
        all([repair]).await;
        for (s, row) in commanded {
            let read = ok("load", store.load(session(s)).await);
            assert_eq!(read, row, "the row of the command");
            let previous = read.and_then(|row| row.previous);
            assert!(previous == self::previous(1) || previous == self::previous(2), "{previous:?}");
        }
        for s in (first + 1..first + ROWS).step_by(2) {
            let read = ok("load", store.load(session(s)).await);
            let repaired = row(s, w, Some(full(2)), previous(1));
            assert_eq!(read.as_ref().map(Row::of), Some(repaired), "a row without a command");
        }
    }
}

/// Writes of an epoch that are concurrent with the reset that ends it leave no target.
///
/// > So a write that races with a reset never restores a target of an earlier epoch, in whichever
/// > order the database executes them.
pub async fn no_target_outlives_a_concurrent_reset<St: BindingStore>(store: St) {
    let store = Arc::new(store);
    for round in 0..30_u128 {
        let (w, first) = (100 + round, round * 10);
        let read = created(&*store, first, w, 1).await.revision;
        let reset = {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                ok("reset_workspace", store.reset_workspace(workspace(w)).await).epoch
            })
        };
        let writes = (0..4).map(|task| {
            let store = Arc::clone(&store);
            let s = first + task;
            tokio::spawn(async move {
                let new = new(s, w, Some(full(2)));
                match task {
                    0 => drop(ok("compare_and_swap", store.compare_and_swap(read, new).await)),
                    1 => drop(ok("inherit", store.inherit(session(s), session(first)).await)),
                    _ => drop(ok("create", store.create(new).await)),
                }
            })
        });
        let writes = all(writes.collect::<Vec<_>>()).await.len();
        let begun = all([reset]).await.remove(0);
        for s in first..first + writes as u128 {
            let read = ok("load", store.load(session(s)).await);
            let read = read.unwrap_or_else(|| panic!("no row of {:?}", session(s)));
            assert_eq!((read.target, read.epoch), (None, begun), "after the reset");
        }
    }
}
