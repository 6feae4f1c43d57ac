//! The application holds all connections of the pool.

use super::*;
use tokio::time::Instant;
use tower_bound_agent::{ErrorKind, store::StoreError};

async fn sessions_do_not_notice(
    acquire: Duration,
    store_timeout: Duration,
    command_fails: ErrorKind,
) {
    let Some(case) = Case::new().await else { return };
    let options = pool_options().max_connections(2).acquire_timeout(acquire);
    let store = Tap::over(store(options.connect_lazy_with(case.options())));
    let layer = case.builder(&store).store_timeout(store_timeout).build().unwrap();
    let bindings = layer.bindings();
    let (busy, rebuilt) = (case.workspace(&layer, 20).await, case.workspace(&layer, 20).await);
    let cold = case.cold_session(&busy).await;
    let rows = case.rows(&[&busy.sessions[..], &rebuilt.sessions].concat()).await;
    let groups = [busy.sessions[1..].to_vec(), rebuilt.sessions.clone()];
    let (before, load) = (case.world.counts(), Load::start(&case.world, &layer, &groups));
    load.go_on(&groups.concat(), 2).await;

    let pool = store.elsewhere().pool();
    let held = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    let (within, begin) = (acquire.min(store_timeout) + SLACK, Instant::now());
    let error = ends(call(&case.world.dial(&layer), cold)).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Store, "{error:?}");
    assert!(begin.elapsed() < within, "{:?}", begin.elapsed());
    let begin = Instant::now();
    let error = ends(bindings.retarget(busy.sessions[0], rebuilt.id)).await.unwrap_err();
    assert_eq!(error.kind(), &command_fails, "{error:?}");
    match command_fails {
        ErrorKind::Store => {
            assert!(matches!(store_error(&error), StoreError::Unavailable(_)), "{error:?}")
        }
        _ => assert!(matches!(store_error(&error), StoreError::Unknown(_)), "{error:?}"),
    }
    // Two calls: after a command with an unknown outcome, each call reads the row.
    assert!(begin.elapsed() < 2 * within, "{:?}", begin.elapsed());

    let new = case.rebuild(&rebuilt, Does::Fail(ms(1)));
    load.talks_to(&rebuilt.sessions, new.agent).await;
    load.is_retrying(&rebuilt.sessions).await;
    load.go_on(&groups.concat(), 20).await;
    assert!(layer.bindings().flush().await > 0);
    assert_eq!(case.rows(&[&busy.sessions[..], &rebuilt.sessions].concat()).await, rows);

    drop(held);
    until_true("all repairs are written", async || layer.bindings().flush().await == 0).await;
    case.each_was_written_once(&rows, &rebuilt, &new).await;
    // A command with an unknown outcome waits for a connection, and is executed once there is one.
    let carried_out = command_fails == ErrorKind::OutcomeUnknown;
    let commanded =
        if carried_out { (rebuilt.id, new.agent) } else { (busy.id, busy.target.agent) };
    let read = async || case.rows(&busy.sessions[..1]).await[&busy.sessions[0]].workspace;
    until_true("the command has ended", async || read().await == commanded.0).await;
    assert_eq!(
        case.rows(&busy.sessions[1..]).await,
        rows.clone()
            .into_iter()
            .filter(|(session, row)| row.workspace == busy.id && *session != busy.sessions[0])
            .collect()
    );
    assert_eq!(call(&case.world.dial(&layer), cold).await.unwrap().agent, busy.target.agent);
    assert_eq!(call(&case.world.dial(&layer), busy.sessions[0]).await.unwrap().agent, commanded.1);
    let (turns, longest) = load.end().await;
    let counts = case.world.counts() - before;
    assert_eq!((counts.d, counts.v), (turns + 1 + 2, 1), "the longest took {longest:?}");
    assert_eq!(layer.bindings().close(Duration::from_secs(5)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_continue_while_an_exhausted_pool_times_out_soon() {
    sessions_do_not_notice(ms(500), ms(5000), ErrorKind::Store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_continue_while_an_exhausted_pool_waits_longer_than_the_layer() {
    // The layer cannot see that nothing was sent.
    sessions_do_not_notice(ms(30_000), ms(500), ErrorKind::OutcomeUnknown).await;
}
