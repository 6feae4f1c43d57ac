//! What a call costs, next to what its parts cost. Figures are per call; the calls of a sample run
//! inside one entry of the runtime, so that entering it is not measured.
//! `cargo bench --bench hot_path`; one run shows the ratios.

#![allow(clippy::disallowed_types)] // real time is what is measured here

use criterion::{Criterion, criterion_group, criterion_main};
use std::{
    future::{Ready, ready},
    hint::black_box,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt, service_fn, timeout::TimeoutLayer};
use tower_bound_agent::{
    AgentId, BoundAgentLayer, BoxError, DialSession, Resolution, ResolveWorkspace, SessionId,
    Target, WorkspaceId,
    sqlx::{self, Row},
    store::{BindingStore, MemoryStore, NewBinding, SqliteStore},
};
use uuid::Uuid;

/// A dial that is ready at its first poll, or at its second.
#[derive(Clone, Copy)]
struct Dialer {
    pending_once: bool,
}

struct Dial {
    pending: bool,
}

impl Future for Dial {
    type Output = Result<u8, BoxError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if std::mem::take(&mut self.pending) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(1))
    }
}

impl<Request> Service<Request> for Dialer {
    type Response = u8;
    type Error = BoxError;
    type Future = Dial;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: Request) -> Dial {
        Dial { pending: self.pending_once }
    }
}

fn target() -> Target {
    Target::new(AgentId::new(Uuid::from_u128(7))).with_generation(1).with_address("10.0.0.7:9000")
}

fn workspace() -> WorkspaceId {
    WorkspaceId::new(Uuid::from_u128(1))
}

fn layer(store: impl BindingStore) -> BoundAgentLayer {
    let resolver = service_fn(|_: ResolveWorkspace| -> Ready<Result<Resolution, BoxError>> {
        ready(Ok(Resolution::Running(target())))
    });
    BoundAgentLayer::builder(store, resolver)
        .cache_capacity(200_000)
        .build()
        .expect("the defaults do not contradict")
}

/// Binds sessions and leaves them cached.
async fn bind(layer: &BoundAgentLayer, sessions: &[SessionId]) {
    let mut dial = layer.layer(Dialer { pending_once: false });
    for session in sessions {
        let ask = DialSession::new(*session).in_workspace(workspace());
        dial.ready().await.expect("ready").call(ask).await.expect("bound");
    }
    assert_eq!(layer.bindings().flush().await, 0);
}

fn sessions(n: usize) -> Vec<SessionId> {
    (0..n).map(|_| SessionId::new(Uuid::new_v4())).collect()
}

/// Times `n` calls of a service, one after the other.
async fn calls<S, Request>(
    mut service: S,
    n: u64,
    mut request: impl FnMut(u64) -> Request,
) -> Duration
where
    S: Service<Request, Error: std::fmt::Debug>,
{
    let begin = Instant::now();
    for i in 0..n {
        let response =
            service.ready().await.expect("ready").call(request(i)).await.expect("a response");
        black_box(response);
    }
    begin.elapsed()
}

fn hot_path(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("hot_path");
    let at_once = Dialer { pending_once: false };
    let pending = Dialer { pending_once: true };
    let timeout = TimeoutLayer::new(Duration::from_secs(30));

    let one = sessions(1);
    let bound = layer(MemoryStore::new());
    runtime.block_on(bind(&bound, &one));
    let register = moka(&one);

    for (suffix, dialer) in [("", at_once), ("_pending_once", pending)] {
        let name = if suffix.is_empty() { "bare".to_owned() } else { format!("bare{suffix}") };
        group
            .bench_function(name, |b| b.iter_custom(|n| runtime.block_on(calls(dialer, n, |i| i))));
        let name =
            if suffix.is_empty() { "timeout_layer".to_owned() } else { format!("timeout{suffix}") };
        group.bench_function(name, |b| {
            b.iter_custom(|n| runtime.block_on(calls(timeout.layer(dialer), n, |i| i)))
        });
        if suffix.is_empty() {
            group.bench_function("moka_get", |b| b.iter(|| black_box(register.get(&one[0]))));
        }
        let name = if suffix.is_empty() {
            "cached_immediate".to_owned()
        } else {
            format!("cached{suffix}")
        };
        group.bench_function(name, |b| {
            b.iter_custom(|n| {
                runtime.block_on(calls(bound.layer(dialer), n, |_| DialSession::new(one[0])))
            })
        });
    }

    // Random uuids in the order in which they were drawn: a random order for every hash table.
    let many = sessions(100_000);
    let spread = layer(MemoryStore::new());
    runtime.block_on(bind(&spread, &many));
    let at = |i: u64| many[(i.wrapping_mul(48_271) % 100_000) as usize];
    group.bench_function("spread_100k", |b| {
        b.iter_custom(|n| {
            runtime.block_on(calls(spread.layer(at_once), n, |i| DialSession::new(at(i))))
        })
    });
    let register = moka(&many);
    group.bench_function("moka_get_100k", |b| {
        b.iter_custom(|n| {
            let begin = Instant::now();
            for i in 0..n {
                black_box(register.get(&at(i)));
            }
            begin.elapsed()
        })
    });
    group.finish();
    sqlite(criterion, &runtime);
}

/// The register's cache alone.
fn moka(sessions: &[SessionId]) -> moka::sync::Cache<SessionId, Arc<u8>> {
    let cache = moka::sync::Cache::builder()
        .max_capacity(200_000)
        .time_to_idle(Duration::from_secs(3600))
        .build();
    for session in sessions {
        cache.insert(*session, Arc::new(1));
    }
    cache
}

fn sqlite(criterion: &mut Criterion, runtime: &Runtime) {
    const ROWS: usize = 10_000;
    let mut group = criterion.benchmark_group("hot_path");
    group.sample_size(20);
    let folder = tempfile::tempdir().expect("a folder");
    let store =
        runtime.block_on(SqliteStore::open(folder.path().join("bindings.db"))).expect("a store");
    let chats = sessions(ROWS);
    runtime.block_on(async {
        for chat in &chats {
            let new = NewBinding::new(*chat, workspace(), Some(Arc::new(target())));
            let _ = store.create(new).await.expect("a row");
        }
        today(&store, &chats).await.expect("tables of an application");
    });

    // The first turn of each session in a process that has just started: one read.
    group.bench_function("cold_sqlite", |b| {
        b.iter_custom(|n| {
            let mut took = Duration::ZERO;
            let mut left = n;
            while left > 0 {
                let round = left.min(ROWS as u64);
                let service = layer(store.clone()).layer(Dialer { pending_once: false });
                took += runtime
                    .block_on(calls(service, round, |i| DialSession::new(chats[i as usize])));
                left -= round;
            }
            took
        })
    });

    // What people do today: which workspace, which build is its latest, which agent came with that?
    // Then dial.
    let resolving = service_fn(|chat: SessionId| {
        let pool = store.pool().clone();
        async move {
            let chat =
                sqlx::query("SELECT workspace FROM chats WHERE id = ?").bind(chat.into_uuid());
            let workspace: Uuid = chat.fetch_one(&pool).await?.try_get(0)?;
            let build = sqlx::query(
                "SELECT id FROM builds WHERE workspace = ? ORDER BY number DESC LIMIT 1",
            );
            let build: Uuid = build.bind(workspace).fetch_one(&pool).await?.try_get(0)?;
            let agent = sqlx::query("SELECT id FROM agents WHERE build = ?").bind(build);
            let agent: Uuid = agent.fetch_one(&pool).await?.try_get(0)?;
            Dialer { pending_once: false }.call(agent).await
        }
    });
    group.bench_function("resolve_every_turn_sqlite", |b| {
        b.iter_custom(|n| runtime.block_on(calls(resolving, n, |i| chats[i as usize % ROWS])))
    });
    group.finish();
}

/// An application's own tables, which the resolver of such an application reads.
async fn today(store: &SqliteStore, chats: &[SessionId]) -> Result<(), BoxError> {
    let mut tx = store.pool().begin().await?;
    for table in [
        "CREATE TABLE chats (id BLOB PRIMARY KEY, workspace BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE builds (id BLOB PRIMARY KEY, workspace BLOB NOT NULL, number INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE INDEX builds_of ON builds (workspace, number)",
        "CREATE TABLE agents (id BLOB PRIMARY KEY, build BLOB NOT NULL) WITHOUT ROWID",
        "CREATE INDEX agents_of ON agents (build)",
    ] {
        sqlx::query(table).execute(&mut *tx).await?;
    }
    for number in 1..=10_i64 {
        let build = Uuid::new_v4();
        let row = sqlx::query("INSERT INTO builds VALUES (?, ?, ?)")
            .bind(build)
            .bind(workspace().into_uuid());
        row.bind(number).execute(&mut *tx).await?;
        let row = sqlx::query("INSERT INTO agents VALUES (?, ?)").bind(Uuid::new_v4()).bind(build);
        row.execute(&mut *tx).await?;
    }
    for chat in chats {
        let row = sqlx::query("INSERT INTO chats VALUES (?, ?)").bind(chat.into_uuid());
        row.bind(workspace().into_uuid()).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
