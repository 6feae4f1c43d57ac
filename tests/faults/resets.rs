//! A workspace is reset while other processes know greater generations, and while a transaction
//! moves its sessions.

use super::*;
use support::resets::*;
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_knows_greater_generations_does_not_undo_a_reset() {
    let Some(case) = Case::new().await else { return };
    greater_generations_are_not_written_back(|| case.reader.clone()).await;
}

/// One session enters the workspace and one leaves it, in a transaction that ends while the reset
/// is under way or after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retarget_that_commits_after_a_reset_keeps_its_workspace() {
    for commit in [true, false] {
        let Some(case) = Case::new().await else { return };
        let (world, store) = (World::new(), || case.reader.clone());
        let (a, b) = (Process::new(&world, store()), Process::new(&world, store()));
        let (ws, other) = (workspace(), workspace());
        let (_, elsewhere) = (runs(&world, ws, 100), runs(&world, other, 500));
        let (stays, leaves, enters) = (a.bind(ws).await, a.bind(ws).await, a.bind(other).await);
        for chat in [stays, leaves, enters] {
            b.call(chat).await;
        }
        let restarted = runs(&world, ws, 1);
        let mut transaction = case.reader.pool().begin().await.unwrap();
        let bindings = a.layer.bindings();
        let guards = [
            bindings.retarget_in(&case.reader, &mut transaction, leaves, other).await.unwrap(),
            bindings.retarget_in(&case.reader, &mut transaction, enters, ws).await.unwrap(),
        ];
        let ends = async {
            // By then, the reset waits for the rows of the transaction or has ended.
            sleep(ms(500)).await;
            if commit {
                transaction.commit().await.unwrap();
                guards.into_iter().for_each(|guard| drop(guard.committed()));
            } else {
                transaction.rollback().await.unwrap();
                guards.into_iter().for_each(|guard| guard.rolled_back());
            }
        };
        let reset = b.layer.bindings();
        let (reset, ()) = tokio::join!(reset.reset_workspace(ws), ends);
        let rows = reset.unwrap();
        assert!(if commit { (1..=2).contains(&rows) } else { rows == 2 }, "{rows}, {commit}");
        // The first row that the other process reads again reveals the reset. Until then the
        // process serves its cached rows.
        let first = a.bind(ws).await;
        let (here, there) = if commit { (enters, leaves) } else { (leaves, enters) };
        all_reach(&world, store, [&a, &b], &[stays, first], &restarted).await;
        // The other process serves its cached row of a moved session until it reads the row again,
        // which this test does not check.
        let unaware = if commit { &Process::new(&world, store()) } else { &b };
        all_reach(&world, store, [&a, unaware], &[here], &restarted).await;
        all_reach(&world, store, [&a, unaware], &[there], &elsewhere).await;
    }
}
