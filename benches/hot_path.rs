//! Measures a call, and the parts that a call consists of. Figures are per call; the calls of a
//! sample run inside one entry of the runtime, so that entering it is not measured.
//! `cargo bench --bench hot_path`; one run shows the ratios.

use benches::{Dialer, bind, calls, gets, layer, moka, sessions, target, workspace};
use criterion::{Criterion, criterion_group, criterion_main};
use std::{hint::black_box, sync::Arc, time::Duration};
use tokio::runtime::Runtime;
use tower::{Layer, Service, service_fn, timeout::TimeoutLayer};
use tower_bound_agent::{
    BoxError, DialSession, SessionId,
    sqlx::{self, Row},
    store::{BindingStore, MemoryStore, NewBinding, SqliteStore},
};
use uuid::Uuid;

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
    group.bench_function("moka_get_100k", |b| b.iter_custom(|n| gets(&register, n, at)));
    group.finish();
    sqlite(criterion, &runtime);
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

    // A turn without this crate: queries for the workspace, its latest build and that build's
    // agent, then a dial.
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
