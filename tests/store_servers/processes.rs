//! Several processes that set up the same tables at once.

use super::*;
use std::env;
use support::child::{Child, say, start_together, wait_for_start};

const TABLE: &str = "STORE_SERVERS_CHILD_TABLE";
const PROCESSES: u128 = 8;

fn child(table: &str) -> Child {
    let (_, module) = module_path!().split_once("::").unwrap();
    Child::start(&format!("{module}::sets_up"), TABLE, table)
}

#[tokio::test]
#[ignore = "a child of eight_processes_set_up_at_the_same_moment"]
async fn sets_up() {
    let Ok(table) = env::var(TABLE) else { return };
    let store = Store::new(pool(&options().unwrap(), 1)).with_table(table).unwrap();
    drop(store.pool().acquire().await.unwrap());
    let number = wait_for_start();
    store.set_up().await.unwrap();
    // A row of its own, and one that all of them write.
    assert!(matches!(
        store.create(new(number, 1, Some(target(1)))).await.unwrap(),
        Swap::Applied(_)
    ));
    let common = store.create(new(100, number, Some(target(number as i64)))).await.unwrap();
    say(if matches!(common, Swap::Applied(_)) { "won" } else { "lost" });
}

#[tokio::test]
async fn eight_processes_set_up_at_the_same_moment() {
    for _ in 0..3 {
        let Some(case) = Case::bare(1).await else { return };
        let mut children: Vec<_> = (0..PROCESSES).map(|_| child(&case.table)).collect();
        for child in &mut children {
            assert_eq!(child.hear().as_deref(), Some("ready"));
        }
        assert_eq!(case.everything().await, [""; 0]);
        let said = start_together(children);
        assert_eq!(said.iter().filter(|word| *word == "won").count(), 1, "{said:?}");
        assert_eq!(said.iter().filter(|word| *word == "lost").count(), 7, "{said:?}");
        case.store.check().await.unwrap();
        assert_eq!(case.number("SELECT count(*) FROM M").await, Some(1));
        let sessions: Vec<_> = (0..PROCESSES).map(session).collect();
        let mut rows = case.store.load_many(&sessions).await.unwrap();
        rows.sort_by_key(|row| row.session);
        let expected: Vec<_> =
            (0..PROCESSES).map(|s| row(s, 1, Some(target(1)), 1, None)).collect();
        assert_eq!(rows, expected);
    }
}
