//! Group repairs with concurrent writers of the same rows.

use super::*;
use std::future::Future;

const LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];

impl Case {
    /// Returns a store over the same table with connections of this isolation level.
    fn at(&self, isolation: &str, connections: u32) -> Store {
        let set = ISOLATION.replace("{}", isolation);
        let pool = PoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(20));
        let pool = pool.after_connect(move |connection, _| {
            let set = AssertSqlSafe(set.clone());
            Box::pin(async move { sqlx::raw_sql(set).execute(connection).await.map(|_| ()) })
        });
        self.over(pool.connect_lazy_with(self.options.clone()))
    }
}

/// Runs a chunk that must not wait for locks, which would block other transactions meanwhile.
/// Returns the number of written rows, and whether locked rows were skipped.
async fn at_once(chunk: impl Future<Output = Result<u64, StoreError>>) -> (u64, bool) {
    match tokio::time::timeout(Duration::from_secs(10), chunk)
        .await
        .expect("the chunk waits for a lock")
    {
        Ok(written) => (written, false),
        Err(StoreError::LockedRowsSkipped { written }) => (written, true),
        Err(error) => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn group_repair_skips_a_concurrent_retarget_and_does_not_undo_it() {
    for level in LEVELS {
        for commit in [false, true] {
            let Some(case) = Case::new(1).await else { return };
            let repairer = case.at(level, 1);
            for s in 1..=3 {
                let _ = case.store.create(new(s, 1, Some(target(1)))).await.unwrap();
            }
            let mut order = case.store.pool().begin().await.unwrap();
            let ordered =
                case.store.retarget_in(&mut order, session(2), workspace(2)).await.unwrap();
            let chunk = async || {
                at_once(repairer.replace_agent(workspace(1), epoch(0), &target(1), &target(2), 10))
                    .await
            };
            assert_eq!(chunk().await, (2, true), "{level}: all rows but the locked one");
            assert_eq!(chunk().await, (0, true), "{level}");
            if commit {
                order.commit().await.unwrap();
            } else {
                order.rollback().await.unwrap();
            }
            assert_eq!(chunk().await, (u64::from(!commit), false), "{level}");
            let repaired = |s| Some(row(s, 1, Some(target(2)), 2, previous(1)));
            assert_eq!(case.store.load(session(1)).await.unwrap(), repaired(1));
            let second = if commit { Some(ordered) } else { repaired(2) };
            assert_eq!(case.store.load(session(2)).await.unwrap(), second, "{level}");
            assert_eq!(case.store.load(session(3)).await.unwrap(), repaired(3));
        }
    }
}

/// The commands commit during repairs of the same rows, one generation after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_group_repair_undoes_no_concurrent_command() {
    const ROWS: u128 = 60;
    for level in LEVELS {
        let Some(case) = Case::new(1).await else { return };
        for s in 0..ROWS {
            let _ = case.store.create(new(s, 1, Some(target(1)))).await.unwrap();
        }
        let orders: Vec<_> = (0..2)
            .map(|task| {
                let store = case.neighbour(1);
                tokio::spawn(async move {
                    let mut ordered = Vec::new();
                    for s in (task..ROWS).step_by(2) {
                        ordered.push(
                            store.retarget(session(s * 7 % ROWS), workspace(2)).await.unwrap(),
                        );
                    }
                    ordered
                })
            })
            .collect();
        let repairs: Vec<_> = (0..2)
            .map(|_| {
                let store = case.at(level, 1);
                tokio::spawn(async move {
                    let mut written = 0;
                    for generation in 2.. {
                        let (stale, current) = (target(generation - 1), target(generation));
                        written += at_once(store.replace_agent(
                            workspace(1),
                            epoch(0),
                            &stale,
                            &current,
                            7,
                        ))
                        .await
                        .0;
                        let left = store
                            .load_many(&(0..ROWS).map(session).collect::<Vec<_>>())
                            .await
                            .unwrap();
                        if left.iter().all(|row| row.workspace == workspace(2)) {
                            break;
                        }
                    }
                    written
                })
            })
            .collect();
        let (mut ordered, mut written) = (Vec::new(), 0);
        for order in orders {
            ordered.append(&mut order.await.unwrap());
        }
        for repair in repairs {
            written += repair.await.unwrap();
        }
        for row in &ordered {
            assert_eq!((row.workspace, &row.target), (workspace(2), &None));
            assert_eq!(
                case.store.load(row.session).await.unwrap().as_ref(),
                Some(row),
                "{level}: the command was undone"
            );
        }
        let raised: i64 = ordered.iter().map(|row| row.revision.get() - 2).sum();
        assert_eq!(raised, written as i64, "{level}: the written rows equal the reported ones");
    }
}

fn is_deadlock(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("40001" | "40P01"))
}

/// Two repairs run beside a caller's transaction, which locks the rows in the opposite order and
/// restarts if it was chosen as the victim of a deadlock.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_equal_and_older_repairs_write_each_row_once() {
    const ROWS: u128 = 50;
    for level in LEVELS {
        for _ in 0..3 {
            let Some(case) = Case::new(1).await else { return };
            for s in 0..ROWS {
                let _ = case.store.create(new(s, 1, Some(target(1)))).await.unwrap();
            }
            // At this level the caller's transaction may lock rows that others have changed
            // meanwhile.
            let caller = case.at("READ COMMITTED", 1);
            let locks: Vec<_> = (0..ROWS)
                .rev()
                .map(|s| {
                    let id = session(s).into_uuid().simple().to_string();
                    case.sql(&format!(
                        "SELECT revision FROM T WHERE session = {} FOR UPDATE",
                        LITERAL.replace("{}", &id)
                    ))
                })
                .collect();
            let backwards = tokio::spawn(async move {
                'anew: loop {
                    let mut transaction = caller.pool().begin().await.unwrap();
                    for lock in &locks {
                        match sqlx::raw_sql(sqlx::AssertSqlSafe(&*lock.0))
                            .execute(&mut *transaction)
                            .await
                        {
                            Ok(_) => {}
                            // If InnoDB looks for deadlocks at that instant, it mistakes a lock
                            // that a repair skips for one that the repair waits for, and ends the
                            // transaction that has written least.
                            Err(error) if is_deadlock(&error) => continue 'anew,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    break transaction.commit().await.unwrap();
                }
            });
            let repairs: Vec<_> = (0..2)
                .map(|_| {
                    let store = case.at(level, 1);
                    tokio::spawn(async move {
                        let mut written = 0;
                        // Repeats until no row is left, locked rows included.
                        loop {
                            written += at_once(store.replace_agent(
                                workspace(1),
                                epoch(0),
                                &target(1),
                                &target(2),
                                9,
                            ))
                            .await
                            .0;
                            let rows = store
                                .load_many(&(0..ROWS).map(session).collect::<Vec<_>>())
                                .await
                                .unwrap();
                            if rows.iter().all(|row| row.target.as_deref() == Some(&*target(2))) {
                                return written;
                            }
                        }
                    })
                })
                .collect();
            backwards.await.unwrap();
            let mut written = 0;
            for repair in repairs {
                written += repair.await.unwrap();
            }
            assert_eq!(written, ROWS as u64);
            for s in 0..ROWS {
                let expected = row(s, 1, Some(target(2)), 2, previous(1));
                assert_eq!(
                    case.store.load(session(s)).await.unwrap(),
                    Some(expected),
                    "{level}: each row is written exactly once"
                );
            }
        }
    }
}
