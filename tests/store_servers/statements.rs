//! How many statements a verb is, and how the database goes about it.

use super::*;
use crate::sent::{listen, sent, words};

#[tokio::test]
async fn a_verb_on_many_rows_is_few_statements() {
    let Some(case) = Case::new(1).await else { return };
    let store = &case.store;
    for s in 1..=3 {
        let _ = store.create(new(s, 1, Some(target(1)))).await.unwrap();
    }
    listen();
    assert_eq!(store.load_many(&[session(1), session(2), session(9)]).await.unwrap().len(), 2);
    assert_eq!(words(), ["SELECT"]);
    assert_eq!(store.load_many(&[]).await.unwrap(), []);
    assert_eq!(words(), [""; 0]);
    assert_eq!(store.replace_agent(workspace(1), &target(1), &target(2), 10).await.unwrap(), 3);
    assert_eq!(words(), SOME_ROWS);
    assert_eq!(store.replace_agent(workspace(1), &target(1), &target(2), 10).await.unwrap(), 0);
    assert_eq!(words(), NO_ROWS);
}

/// 30 workspaces of 500 rows.
async fn many_rows() -> Option<Case> {
    let case = Case::new(1).await?;
    for w in 0..30 {
        let _ = case.store.create(new(w, w, Some(target(1)))).await.unwrap();
    }
    case.run(&format!("INSERT INTO T (session, workspace, agent, generation, revision) {MANY_ROWS}")).await;
    case.run(ANALYZE).await;
    assert_eq!(case.number("SELECT count(*) FROM T").await, Some(15_000));
    Some(case)
}

/// Through the index of the workspaces and in its order, so that no other row is read, locked or sorted; and chosen once.
#[tokio::test]
async fn a_chunk_of_a_group_repair_reads_the_rows_of_its_workspace_only() {
    let Some(case) = many_rows().await else { return };
    listen();
    assert_eq!(case.store.replace_agent(workspace(3), &target(1), &target(2), 5).await.unwrap(), 5);
    check_plan_of_a_chunk(case.store.pool(), &case.table, sent()).await;
}
