//! Hints through PostgreSQL that are lost for a while, or arrive in large numbers.

use super::{
    each_database::{Case, Workspace, pool},
    engine::*,
};
use crate::{proxy::Proxy, scene::*};
use sqlx::AssertSqlSafe;
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower_bound_agent::{BoundAgentLayer, hints::PostgresHints};

const LISTENERS: &str = "FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";

/// Two replicas that exchange news by hints alone: without a hint, no row is read in the
/// background. The hints of the first replica go through the proxy.
struct Replicas {
    case: Case,
    proxy: Proxy<Wire>,
    store: Tap<Store>,
    here: BoundAgentLayer,
    there: BoundAgentLayer,
}

impl Replicas {
    async fn new() -> Option<Self> {
        let case = Case::new().await?;
        let proxy = Proxy::start(case.server.folder(), socket);
        let [store, other] = [(); 2].map(|()| Tap::over(store(pool(&case.options()))));
        let hints = PostgresHints::new(pool(&options(proxy.folder())));
        let here = case.builder(&store).hints(hints).build().unwrap();
        let there =
            case.builder(&other).hints(PostgresHints::new(pool(&case.options()))).build().unwrap();
        Some(Self { case, proxy, store, here, there })
    }

    /// Returns a workspace with sessions that both replicas have cached.
    async fn workspace(&self, sessions: usize) -> Workspace {
        let workspace = self.case.workspace(&self.here, sessions).await;
        for session in &workspace.sessions {
            call(&self.case.world.dial(&self.there), *session).await.unwrap();
        }
        workspace
    }

    async fn listening(&self, replicas: i64) {
        until_true("the replicas listen", async || {
            let listeners = AssertSqlSafe(format!("SELECT count(*) {LISTENERS}"));
            sqlx::query_scalar::<_, i64>(listeners)
                .fetch_one(self.case.reader.pool())
                .await
                .unwrap()
                == replicas
        })
        .await;
    }

    async fn close(self) {
        for layer in [self.here, self.there] {
            assert_eq!(layer.bindings().close(Duration::from_secs(5)).await, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_a_replica_are_noticed_after_the_other_replica_reconnects() {
    let Some(mut replicas) = Replicas::new().await else { return };
    let (busy, rebuilt, other) =
        (replicas.workspace(20).await, replicas.workspace(20).await, replicas.workspace(1).await);
    replicas.listening(2).await;
    let groups = [busy.sessions.clone(), rebuilt.sessions.clone()];
    let load = Load::start(&replicas.case.world, &replicas.here, &groups);
    let bindings = replicas.there.bindings();
    load.go_on(&groups.concat(), 2).await;
    bindings.retarget(busy.sessions[0], other.id).await.unwrap();
    load.talks_to(&busy.sessions[..1], other.target.agent).await;

    // Both replicas lose their connection, and the first one cannot reconnect.
    replicas.proxy.go_away().await;
    let end = AssertSqlSafe(format!("SELECT pg_terminate_backend(pid) {LISTENERS}"));
    sqlx::query(end).execute(replicas.case.reader.pool()).await.unwrap();
    replicas.listening(1).await;
    bindings.retarget(busy.sessions[1], other.id).await.unwrap();
    // The old agent still answers, and only the other replica receives the command.
    let new = replicas.case.rebuild(&rebuilt, Does::Answer(ms(1)));
    bindings.revalidate_workspace(rebuilt.id);
    let dial = replicas.case.world.dial(&replicas.there);
    until_true("the other replica has switched", async || {
        call(&dial, rebuilt.sessions[0]).await.unwrap().agent == new.agent
    })
    .await;
    assert_eq!(bindings.flush().await, 0);
    load.go_on(&groups.concat(), 20).await;
    load.talks_to(&busy.sessions[1..], busy.target.agent).await;
    load.talks_to(&rebuilt.sessions, rebuilt.target.agent).await;

    let before = (replicas.store.writes(), Instant::now());
    replicas.proxy.come_back();
    load.talks_to(&busy.sessions[1..2], other.target.agent).await;
    load.talks_to(&rebuilt.sessions, new.agent).await;
    println!("noticed {:?} after the proxy came back", before.1.elapsed());
    load.talks_to(&busy.sessions[2..], busy.target.agent).await;
    assert_eq!(replicas.here.bindings().flush().await, 0);
    // The first bind of the retargeted session, and the group repair, which the replica does not
    // know to be written.
    assert!(replicas.store.writes() - before.0 <= 2);
    load.end().await;
    replicas.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_continue_during_a_storm_of_hints() {
    let Some(replicas) = Replicas::new().await else { return };
    let (busy, other) = (replicas.workspace(50).await, replicas.workspace(1).await);
    replicas.listening(2).await;
    let (before, began) = (replicas.case.world.counts(), Instant::now());
    let load =
        Load::start(&replicas.case.world, &replicas.here, std::slice::from_ref(&busy.sessions));
    load.go_on(&busy.sessions, 2).await;
    // Hints about unknown sessions, hints about sessions in use with revisions that never come, and
    // invalid hints.
    let known: Vec<_> = busy.sessions.iter().map(|session| session.into_uuid()).collect();
    let storm = "SELECT pg_notify('agent_bindings', CASE i % 3
            WHEN 0 THEN '1:s:000000000000feed:' || replace(gen_random_uuid()::text, '-', '') || ':' || i
            WHEN 1 THEN '1:s:000000000000feed:' || replace($1[1 + i % 50]::text, '-', '') || ':' || 1000 + i
            ELSE 'garbage ' || i END)
        FROM generate_series(1, 10000) AS i";
    for _ in 0..5 {
        sqlx::query(storm).bind(&known).execute(replicas.case.reader.pool()).await.unwrap();
    }
    replicas.there.bindings().retarget(busy.sessions[0], other.id).await.unwrap();
    load.talks_to(&busy.sessions[..1], other.target.agent).await;
    let noticed = began.elapsed();
    load.go_on(&busy.sessions, 20).await;
    // The unsuccessful reads stop after a while.
    let reads = until("nothing more is read", async || {
        let reads = replicas.store.reads();
        sleep(Duration::from_secs(2)).await;
        (replicas.store.reads() == reads).then_some(reads)
    })
    .await;
    let elapsed = began.elapsed();
    let (turns, longest) = load.end().await;
    let counts = replicas.case.world.counts() - before;
    println!(
        "{turns} turns, the longest took {longest:?}; the command was noticed {noticed:?} after the beginning; {} questions \
         and {reads} reads in {elapsed:?}",
        counts.v
    );
    // The doubt about all workspaces arises at most once per second.
    assert!(counts.v <= 2 * (elapsed.as_secs() + 2), "{} questions", counts.v);
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    replicas.close().await;
}
