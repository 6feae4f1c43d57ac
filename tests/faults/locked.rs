//! The application holds the row of a session in a transaction.

use super::*;
use tokio::time::{Instant, sleep, timeout};
use tower_bound_agent::{
    DialSession,
    store::{StoreError, TransactionalStore},
};

/// As many as the application is to have at any time.
async fn are_free(pool: &Pool, connections: u32) {
    let mut held = Vec::new();
    for number in 0..connections {
        let connection = timeout(Duration::from_secs(2), pool.acquire()).await;
        held.push(connection.unwrap_or_else(|_| panic!("no connection {number} for the application")).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_the_application_holds_for_long_does_not_drain_its_pool() {
    let Some(case) = Case::new().await else { return };
    let options = pool_options().max_connections(8).acquire_timeout(Duration::from_secs(5));
    let store = Tap::over(store(options.connect_lazy_with(case.options())));
    let layer = case.builder(&store).build().unwrap();
    let workspace = case.workspace(&layer, 3).await;
    let (held, inserted) = (workspace.sessions[0], session());
    // A row without a target: its repair is its own, and waits. That of a group leaves out what is locked.
    layer.bindings().unbind(held).await.unwrap();
    let mut transaction = case.reader.pool().begin().await.unwrap();
    case.reader.retarget_in(&mut transaction, held, workspace.id).await.unwrap();
    case.reader.retarget_in(&mut transaction, inserted, workspace.id).await.unwrap();

    let new = case.rebuild(&workspace, Does::Fail(ms(1)));
    let load = Load::start(&case.world, &layer, std::slice::from_ref(&workspace.sessions));
    load.talks_to(&workspace.sessions, new.agent).await;
    let (dial, begin) = (case.world.dial(&layer), Instant::now());
    while begin.elapsed() < Duration::from_secs(20) {
        // Nobody can create the row that is being inserted: the turn fails, and says so.
        let turn = call(&dial, DialSession::new(inserted).in_workspace(workspace.id));
        if let Ok(Err(error)) = timeout(ms(100), turn).await {
            assert!(matches!(store_error(&error), StoreError::Unavailable(_) | StoreError::Unknown(_)), "{error:?}");
        }
        sleep(ms(400)).await;
        are_free(store.elsewhere().pool(), 5).await;
    }
    load.go_on(&workspace.sessions, 10).await;
    transaction.rollback().await.unwrap();
    until_true("everything is written", async || layer.bindings().flush().await == 0).await;
    load.end().await;
    let rows = case.rows(&workspace.sessions).await;
    for session in &workspace.sessions {
        assert_eq!(rows[session].target.as_deref(), Some(&new));
    }
    are_free(store.elsewhere().pool(), 8).await;
    assert_eq!(layer.bindings().close(Duration::from_secs(5)).await, 0);
}
