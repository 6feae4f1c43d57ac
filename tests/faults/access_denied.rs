//! The server is running, and access to the table was revoked or the table was dropped.

use super::*;
use tower_bound_agent::{Error, ErrorKind, store::StoreError};

/// Runs SQL as the superuser.
async fn run(case: &Case, sql: &'static [&'static str]) {
    for sql in sql {
        sqlx::raw_sql(*sql).execute(case.reader.pool()).await.unwrap();
    }
}

struct Denied {
    case: Case,
    layer: BoundAgentLayer,
    busy: Workspace,
    rebuilt: Workspace,
    new: Target,
    rows: BTreeMap<SessionId, Binding>,
    cold: SessionId,
    turns: u64,
    before: Counts,
}

/// Removes access to the table while sessions make turns, and rebuilds a workspace.
async fn without_the_table(
    take_away: &'static [&'static str],
    expected: fn(&StoreError) -> bool,
) -> Option<Denied> {
    let case = Case::new().await?;
    run(&case, LET_GUEST_IN).await;
    let store = Tap::over(store(pool(&case.options().username("guest"))));
    let layer = case.builder(&store).build().unwrap();
    let (busy, rebuilt) = (case.workspace(&layer, 20).await, case.workspace(&layer, 20).await);
    let cold = case.cold_session(&busy).await;
    let rows = case.rows(&rebuilt.sessions).await;
    let groups = [busy.sessions.clone(), rebuilt.sessions.clone()];
    let (before, load) = (case.world.counts(), Load::start(&case.world, &layer, &groups));
    load.go_on(&groups.concat(), 2).await;

    run(&case, take_away).await;
    let check = |error: Error| {
        assert_eq!(error.kind(), &ErrorKind::Store, "{error:?}");
        assert!(expected(store_error(&error)), "{error:?}");
    };
    check(call(&case.world.dial(&layer), cold).await.unwrap_err());
    check(
        call(
            &case.world.dial(&layer),
            tower_bound_agent::DialSession::new(session()).in_workspace(busy.id),
        )
        .await
        .unwrap_err(),
    );
    let (reads, writes) = (store.reads(), store.writes());
    check(layer.bindings().retarget(busy.sessions[0], rebuilt.id).await.unwrap_err());
    check(layer.bindings().unbind(busy.sessions[0]).await.unwrap_err());
    check(layer.bindings().forget(busy.sessions[0]).await.unwrap_err());
    check(layer.bindings().inherit(session(), busy.sessions[0]).await.unwrap_err());
    check(layer.bindings().reset_workspace(busy.id).await.unwrap_err());
    assert_eq!((store.reads(), store.writes()), (reads, writes + 5), "no outcome is unknown");

    let new = case.rebuild(&rebuilt, Does::Fail(ms(1)));
    load.talks_to(&rebuilt.sessions, new.agent).await;
    load.is_retrying(&rebuilt.sessions).await;
    load.go_on(&groups.concat(), 20).await;
    assert!(layer.bindings().flush().await > 0);
    let (turns, longest) = load.end().await;
    let counts = case.world.counts() - before;
    assert_eq!((counts.d, counts.v), (turns + 1, 1), "the longest took {longest:?}");
    Some(Denied { case, layer, busy, rebuilt, new, rows, cold, turns, before })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_continue_while_access_is_revoked_and_repairs_wait_for_it() {
    let denied =
        without_the_table(REVOKE, |error| matches!(error, StoreError::Denied { .. })).await;
    let Some(Denied { case, layer, busy, rebuilt, new, rows, cold, turns, before }) = denied else {
        return;
    };
    run(&case, GRANT).await;
    until_true("all repairs are written", async || layer.bindings().flush().await == 0).await;
    case.each_was_written_once(&rows, &rebuilt, &new).await;
    let dial = case.world.dial(&layer);
    for session in [cold, busy.sessions[0]] {
        assert_eq!(call(&dial, session).await.unwrap().agent, busy.target.agent);
    }
    assert_eq!(call(&dial, rebuilt.sessions[0]).await.unwrap().agent, new.agent);
    let counts = case.world.counts() - before;
    assert_eq!((counts.d, counts.v), (turns + 1 + 3, 1));
    assert_eq!(layer.bindings().close(Duration::from_secs(5)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_continue_while_the_table_is_dropped_and_commands_work_in_a_new_one() {
    let denied = without_the_table(DROP, |error| matches!(error, StoreError::Schema { .. })).await;
    let Some(Denied { case, layer, busy, rebuilt, new, cold, .. }) = denied else { return };
    case.reader.set_up().await.unwrap();
    run(&case, GRANT).await;
    until_true("no repair is left", async || layer.bindings().flush().await == 0).await;
    // The new table has no rows to repair, and the repair creates none.
    assert_eq!(case.rows(&[&busy.sessions[..], &rebuilt.sessions].concat()).await, BTreeMap::new());
    let dial = case.world.dial(&layer);
    assert_eq!(call(&dial, cold).await.unwrap_err().kind(), &ErrorKind::NotBound);
    assert_eq!(call(&dial, busy.sessions[0]).await.unwrap().agent, busy.target.agent, "cached");
    for (workspace, agent) in [(&busy, busy.target.agent), (&rebuilt, new.agent)] {
        let session = workspace.sessions[0];
        let row = layer.bindings().retarget(session, workspace.id).await.unwrap();
        assert_eq!(Some(&row), case.rows(&[session]).await.get(&session));
        assert_eq!(call(&dial, session).await.unwrap().agent, agent);
    }
    assert_eq!(layer.bindings().close(Duration::from_secs(5)).await, 0);
}
