//! Sessions in use: `in_use`, recorded use, and `drained`.

use super::*;
use futures_util::{FutureExt, TryStreamExt};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use tower_bound_agent::{Event, OutcomeKind, OwnedEvent, SessionInUse};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn listed(process: &Process, workspace: WorkspaceId) -> Vec<(SessionId, u32)> {
    process
        .bindings()
        .in_use(workspace)
        .into_iter()
        .map(|in_use| (in_use.session, in_use.connections))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_session_is_in_use_while_a_connection_is_held() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let ((ws, target), (other, _)) = (world.workspace(), world.workspace());
    let chat = world.bind(&process.layer, ws).await;
    assert_eq!(listed(&process, ws), []);
    sleep(secs(100)).await;
    let first = process.call(chat).await;
    let second = process.call(chat).await.map(|conn| (conn, "wrapped"));
    let in_use = process.bindings().in_use(ws);
    let [SessionInUse { session, target: to, connections, since, .. }] = &in_use[..] else {
        panic!("{in_use:?}")
    };
    assert_eq!((*session, &**to, *connections), (chat, &target, 2));
    assert!(since.elapsed() <= secs(1), "{:?}", since.elapsed());
    assert_eq!(listed(&process, other), []);
    drop(first);
    assert_eq!(listed(&process, ws), [(chat, 1)]);
    drop(second.into_inner());
    assert_eq!(listed(&process, ws), []);
}

#[tokio::test(start_paused = true)]
async fn a_guard_keeps_the_session_in_use_without_its_connection() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, _) = world.workspace();
    let chat = world.bind(&process.layer, ws).await;
    let (conn, handle) = process.call(chat).await.into_parts();
    assert_eq!(listed(&process, ws), [], "the lifetime of a bare connection is unknown");
    let guards = [handle.in_use(), handle.clone().in_use()];
    assert_eq!(listed(&process, ws), [(chat, 2)]);
    drop((conn, handle));
    assert_eq!(listed(&process, ws), [(chat, 2)]);
    assert_eq!(guards[0].handle().session(), chat);
    drop(guards);
    assert_eq!(listed(&process, ws), []);
}

#[tokio::test(start_paused = true)]
async fn connections_to_targets_other_than_the_one_of_the_row_are_listed() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = world.workspace();
    let chat = session();
    // A first bind and a switch, whose rows are written after the connections were returned.
    let first = process.call(DialSession::new(chat).in_workspace(ws)).await;
    assert_eq!(first.outcome().kind, OutcomeKind::FirstBind);
    assert_eq!(listed(&process, ws), [(chat, 1)]);
    process.bindings().flush().await;
    let new = world.rebuild(ws, &old, Does::Hang);
    let second = process.call(chat).await;
    process.bindings().flush().await;
    let third = process.call(chat).await;
    let mut agents: Vec<_> = process
        .bindings()
        .in_use(ws)
        .into_iter()
        .map(|held| (held.target.agent, held.connections))
        .collect();
    agents.sort_unstable_by_key(|(_, connections)| *connections);
    assert_eq!(agents, [(old.agent, 1), (new.agent, 2)]);
    drop((first, second, third));
    assert_eq!(listed(&process, ws), []);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_left_the_cache_is_still_in_use() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder.cache_capacity(1));
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 1).await;
    let bound = process.call(chats[0]).await;
    used(&world, &process, ws, &target, 50).await;
    assert_eq!(listed(&process, ws), [(chats[0], 1)]);
    drop(bound);
    assert_eq!(listed(&process, ws), []);
}

#[tokio::test(start_paused = true)]
async fn held_connections_are_recorded_and_reported_once_per_interval() {
    let world = World::new();
    let told = Arc::<Mutex<Vec<SessionId>>>::default();
    let log = Arc::clone(&told);
    let process = Process::new(&world, |builder| {
        builder.usage_interval(secs(60)).observer(move |event: &Event<'_>| {
            if let OwnedEvent::InUse { session, .. } = event.into() {
                log.lock().unwrap().push(session);
            }
        })
    });
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 3).await;
    let held = [process.call(chats[0]).await, process.call(chats[0]).await];
    sleep(ms(60_001)).await;
    told.lock().unwrap().clear();
    let before = world.counts();
    for _ in 0..10 {
        sleep(secs(60)).await;
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [chats[0]]);
    }
    assert_eq!((world.counts() - before), counts(0, 0, 0, 10));
    let last: Vec<_> = world.store.elsewhere().recent(1).try_collect().await.unwrap();
    assert_eq!(last[0].session, chats[0], "the session that was used last");
    drop(held);
    sleep(secs(60)).await;
    assert_eq!(told.lock().unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn use_that_cannot_be_recorded_is_reported_and_recorded_at_the_next_interval() {
    let world = World::new();
    let failed = Arc::new(AtomicU64::new(0));
    let log = Arc::clone(&failed);
    let process = Process::new(&world, |builder| {
        builder.usage_interval(secs(60)).observer(move |event: &Event<'_>| {
            if let OwnedEvent::UseNotRecorded { sessions, error, .. } = event.into() {
                assert_eq!(error, "the store is unavailable: down on purpose");
                log.fetch_add(sessions, SeqCst);
            }
        })
    });
    let (ws, target) = world.workspace();
    used(&world, &process, ws, &target, 5_000).await;
    let before = world.counts();
    world.store.on_writes(Fault::Unavailable);
    sleep(ms(60_001)).await;
    assert_eq!((world.counts() - before).w, 1, "the first statement that fails is the last one");
    assert!(failed.load(SeqCst) >= 2_000);
    world.store.on_writes(Fault::None);
    sleep(secs(60)).await;
    assert_eq!((world.counts() - before).w, 1 + 3);
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_drained_when_its_last_connection_is_gone() {
    let world = World::new();
    let process = Process::new(&world, |builder| builder);
    let (ws, old) = world.workspace();
    let chats = used(&world, &process, ws, &old, 100).await;
    let mut held = Vec::new();
    for chat in &chats {
        held.push(process.call(*chat).await);
    }
    held.push(process.call(chats[0]).await);
    let new = world.agent(Some(2));
    assert!(process.bindings().announce(ws, new.clone()));
    let on_new = process.call(chats[0]).await;
    assert_eq!(on_new.agent, new.agent);

    let bindings = process.bindings();
    let drained = tokio::spawn(bindings.drained(ws, old.agent));
    let dropped = tokio::spawn(bindings.drained(ws, old.agent));
    settle().await;
    dropped.abort();
    while let Some(bound) = held.pop() {
        settle().await;
        assert!(!drained.is_finished());
        drop(bound);
    }
    drained.await.unwrap();
    assert!(bindings.drained(ws, new.agent).now_or_never().is_none());
    assert_eq!(bindings.drained(ws, agent()).now_or_never(), Some(()), "it has no connections");
    assert_eq!(bindings.drained(workspace(), new.agent).now_or_never(), Some(()));
    drop(on_new);
    assert_eq!(bindings.drained(ws, new.agent).now_or_never(), Some(()));
}

#[test]
fn no_hold_is_lost_between_threads_that_hold_and_release() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new();
        let process = Arc::new(Process::new(&world, |builder| builder.usage_interval(ms(1))));
        let (ws, target) = world.workspace();
        let chats = used(&world, &process, ws, &target, 4).await;
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let (process, chat) = (Arc::clone(&process), chats[n % 4]);
                tokio::spawn(async move {
                    for _ in 0..2_000 {
                        let bound = process.call(chat).await;
                        let in_use = process.bindings().in_use(bound.workspace());
                        assert!(
                            in_use.iter().any(|held| held.session == chat && held.connections > 0)
                        );
                    }
                })
            })
            .collect();
        let drained = async {
            for _ in 0..200 {
                process.bindings().drained(ws, target.agent).await;
                yield_now().await;
            }
        };
        let _ = tokio::time::timeout(secs(1), drained).await;
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(listed(&process, ws), []);
        process.bindings().drained(ws, target.agent).await;
    });
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_session_that_holds_a_connection_is_not_purged() {
    use std::time::{SystemTime, UNIX_EPOCH};
    use tower_bound_agent::{sqlx, store::SqliteStore};

    const DAY: i64 = 24 * 60 * 60 * 1000;
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("bindings.db")).await.unwrap();
    let world = World::new();
    let (ws, _) = world.workspace();
    let [here, there] = [0, 1].map(|_| {
        let builder = BoundAgentLayer::builder(store.clone(), world.resolver());
        builder.refresh_interval(None).usage_interval(ms(20)).build().unwrap()
    });
    let (held, idle) = (world.bind(&here, ws).await, world.bind(&here, ws).await);
    let bound = call(&world.dial(&here), held).await.unwrap();
    sleep(ms(200)).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    // Both sessions were last used eight days ago, and use has been recorded since.
    let table = sqlx::query("UPDATE agent_bindings SET last_used = ?1")
        .bind(now - 8 * DAY)
        .execute(store.pool());
    assert_eq!(table.await.unwrap().rows_affected(), 2);
    let since =
        sqlx::query("UPDATE agent_bindings_meta SET use_recorded_since = ?1").bind(now - 9 * DAY);
    assert_eq!(since.execute(store.pool()).await.unwrap().rows_affected(), 1);
    sleep(ms(500)).await;
    assert_eq!(
        there.bindings().purge_idle(Duration::from_secs(7 * 24 * 60 * 60)).await.unwrap(),
        1
    );
    assert!(store.load(held).await.unwrap().is_some());
    assert!(store.load(idle).await.unwrap().is_none());
    drop(bound);
    for layer in [here, there] {
        layer.bindings().close(Duration::from_secs(5)).await;
    }
}
