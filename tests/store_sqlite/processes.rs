//! Several processes, and processes that are killed.

use super::*;
use std::{collections::HashMap, env, path::PathBuf};
use support::child::{Child, say, start_together, wait_for_start};
use tower_bound_agent::store::{BindingStore, Swap};

const FILE: &str = "STORE_SQLITE_CHILD_FILE";
const ROWS: u128 = 8;

fn child(test: &str, path: &Path) -> Child {
    Child::start(&format!("processes::{test}"), FILE, path)
}

/// The file to work on, if this process is a child.
fn asked() -> Option<PathBuf> {
    env::var_os(FILE).map(PathBuf::from)
}

#[test]
#[ignore = "a child of eight_processes_open_the_same_new_file_at_once"]
fn opens() {
    let Some(path) = asked() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let number = wait_for_start();
    runtime.block_on(async {
        let store = SqliteStore::open(path).await.unwrap();
        // A row of its own, and one that all of them write.
        assert!(matches!(
            store.create(new(number, 1, Some(target(1)))).await.unwrap(),
            Swap::Applied(_)
        ));
        let common = store.create(new(100, number, Some(target(number as i64)))).await.unwrap();
        say(if matches!(common, Swap::Applied(_)) { "won" } else { "lost" });
    });
}

#[test]
fn eight_processes_open_the_same_new_file_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..6 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bindings.db");
        let mut children: Vec<_> = (0..8).map(|_| child("opens", &path)).collect();
        for child in &mut children {
            assert_eq!(child.hear().as_deref(), Some("ready"));
        }
        assert!(!path.exists());
        let said = start_together(children);
        assert_eq!(said.iter().filter(|word| *word == "won").count(), 1, "{said:?}");
        assert_eq!(said.iter().filter(|word| *word == "lost").count(), 7, "{said:?}");
        runtime.block_on(async {
            let store = SqliteStore::open(&path).await.unwrap();
            for number in 0..8 {
                let expected = row(number, 1, Some(target(1)), 1, None);
                assert_eq!(store.load(session(number)).await.unwrap(), Some(expected));
            }
        });
    }
}

#[test]
#[ignore = "a child of a_process_that_is_killed_leaves_every_row_old_or_new"]
fn repairs() {
    let Some(path) = asked() else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(path).await.unwrap();
        let tasks: Vec<_> = (0..4)
            .map(|task| {
                let store = store.clone();
                // Two rows each, so that a write is always under way.
                tokio::spawn(async move {
                    for s in (task..ROWS).step_by(4).collect::<Vec<_>>().into_iter().cycle() {
                        let swap = match store.load(session(s)).await.unwrap() {
                            None => store.create(new(s, 1, Some(target(1)))).await.unwrap(),
                            Some(read) => {
                                let generation = read.revision.get() + 1;
                                store
                                    .compare_and_swap(
                                        read.revision,
                                        new(s, 1, Some(target(generation))),
                                    )
                                    .await
                                    .unwrap()
                            }
                        };
                        let Swap::Applied(row) = swap else {
                            panic!("this row has no other writer: {swap:?}")
                        };
                        say(format_args!("{s} {}", row.revision));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn a_process_that_is_killed_leaves_every_row_old_or_new() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bindings.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut revisions: HashMap<u128, i64> = HashMap::new();
    let (mut writes, mut unheard) = (0, 0);
    for round in 0..50_u64 {
        let mut child = child("repairs", &path);
        // Odd rounds are killed while they start, open the file, recover the state of the last one,
        // …
        let mut said: Vec<String> = Vec::new();
        if round % 2 == 0 {
            said.extend(child.hear()); // … even ones while they repair.
        }
        said.extend(child.kill_after(Duration::from_micros(round * 7919 % 13_000)));

        // A write that a process saw succeed persists when the process is killed.
        for word in &said {
            // The last line may have been cut.
            let Some((s, revision)) = word.split_once(' ') else { continue };
            let (Ok(s), Ok(revision)) = (s.parse::<u128>(), revision.parse::<i64>()) else {
                continue;
            };
            let known = revisions.entry(s).or_default();
            *known = revision.max(*known);
            writes += 1;
        }
        runtime.block_on(async {
            let store = SqliteStore::open(&path).await.unwrap();
            for s in 0..ROWS {
                let known = revisions.get(&s).copied().unwrap_or(0);
                let Some(read) = store.load(session(s)).await.unwrap() else {
                    assert_eq!(known, 0, "the row was there before");
                    continue;
                };
                let revision = read.revision.get();
                // Each revision is one generation: agent, build, address and previous agent belong
                // together.
                let expected = row(
                    s,
                    1,
                    Some(target(revision)),
                    revision,
                    previous(revision - 1).filter(|_| revision > 1),
                );
                assert_eq!(read, expected);
                assert!(
                    revision == known || revision == known + 1,
                    "revision {known} was confirmed, the file has {revision}"
                );
                unheard += i32::from(revision > known);
                revisions.insert(s, revision);
            }
            let sound: String =
                sqlx::query_scalar("PRAGMA integrity_check").fetch_one(store.pool()).await.unwrap();
            assert_eq!(sound, "ok");
            store.pool().close().await;
        });
    }
    assert_eq!(revisions.len(), ROWS as usize);
    assert!(writes > 100, "the children wrote too little to be killed in a write: {writes}");
    println!("{writes} writes confirmed, {unheard} applied and not confirmed");
}

#[test]
fn a_process_killed_while_it_creates_the_file_blocks_no_other() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut stages = HashMap::new();
    for round in 0..25_u64 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bindings.db");
        let child = child("repairs", &path);
        let _ = child.kill_after(Duration::from_micros(2_000 + round * 7919 % 10_000));
        let stage = match path.metadata().map(|file| file.len()) {
            Err(_) => "no file",
            Ok(0) => "an empty file",
            Ok(_) => "a database",
        };
        *stages.entry(stage).or_insert(0) += 1;
        runtime.block_on(async {
            let store = SqliteStore::open(&path).await.unwrap();
            store.check().await.unwrap();
            assert_eq!(
                store.retarget(session(99), workspace(1)).await.unwrap(),
                row(99, 1, None, 1, None)
            );
        });
    }
    println!("found after the kill: {stages:?}");
}
