//! Hints through PostgreSQL, on the server of `tests/servers`. Each test has a channel and an
//! application name of its own.
#![cfg(all(feature = "postgres", unix))]

mod proxy;

use futures_util::{FutureExt, Stream, StreamExt, stream::BoxStream};
use proxy::{Mode, Proxy};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions as Options, PgListener, PgPoolOptions},
};
use std::{collections::HashSet, future::poll_fn, task::Poll};
use support::servers;
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, UnboundedReceiver},
    task::JoinHandle,
    time::{Duration, Instant, sleep, timeout},
};
use tower_bound_agent::{
    Generation, Revision, SessionId, WorkspaceId,
    hints::{About, Heard, Hint, Hints, PostgresHints},
};
use uuid::Uuid;

/// Long enough for a busy machine. Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(30);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn written(origin: u64, session: u128, revision: i64) -> Hint {
    let session = SessionId::new(Uuid::from_u128(session));
    Hint::new(origin, About::Session { session, revision: Some(Revision::new(revision)) })
}

fn repaired(origin: u64, workspace: u128, generation: impl Into<Option<i64>>) -> Hint {
    let workspace = WorkspaceId::new(Uuid::from_u128(workspace));
    Hint::new(
        origin,
        About::Workspace {
            workspace,
            generation: generation.into().map(Generation::new),
            epoch: None,
        },
    )
}

/// A channel, and a connection that inspects it.
struct Scene {
    /// The name of the channel and of the application.
    name: String,
    options: Options,
    admin: PgConnection,
}

impl Scene {
    async fn new() -> Option<Self> {
        let options: Options = servers::url("TEST_POSTGRES_URL")?.parse().unwrap();
        let (name, admin) = (servers::table(), PgConnection::connect_with(&options).await.unwrap());
        Some(Self { options: options.application_name(&name), name, admin })
    }

    fn pool(&self, options: Options) -> PgPool {
        // Without maintenance, which would be a task.
        PgPoolOptions::new().max_lifetime(None).idle_timeout(None).connect_lazy_with(options)
    }

    fn hints(&self) -> PostgresHints {
        self.hints_with(self.options.clone())
    }

    fn hints_with(&self, options: Options) -> PostgresHints {
        PostgresHints::new(self.pool(options)).with_channel(&self.name).unwrap()
    }

    async fn replica(&self) -> Replica {
        let mut replica = Replica::new(self.hints());
        assert_eq!(replica.next().await, Heard::Lagged);
        replica
    }

    /// Returns a listener that receives all notifications.
    async fn witness(&self) -> Witness {
        let pool = self.pool(self.options.clone().application_name("witness"));
        let mut listener = PgListener::connect_with(&pool).await.unwrap();
        listener.listen(&self.name).await.unwrap();
        Witness(listener)
    }

    async fn notify(&mut self, payload: &str) {
        let notify = sqlx::query("SELECT pg_notify($1, $2)").bind(&self.name).bind(payload);
        notify.execute(&mut self.admin).await.unwrap();
    }

    /// Returns the server's processes for this application whose last statement begins like this.
    async fn processes(&mut self, statement: &str) -> Vec<i32> {
        let look =
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND query LIKE $2 || '%'";
        let look = sqlx::query_scalar(look).bind(&self.name).bind(statement);
        look.fetch_all(&mut self.admin).await.unwrap()
    }

    /// Ends the only connection whose last statement begins like this.
    async fn kill(&mut self, statement: &str) {
        let mut processes = Vec::new();
        until(&format!("one process has run {statement}"), async || {
            processes = self.processes(statement).await;
            processes.len() == 1
        })
        .await;
        let kill = sqlx::query("SELECT pg_terminate_backend($1)").bind(processes[0]);
        kill.execute(&mut self.admin).await.unwrap();
        until("the connection has ended", async || {
            !self.processes("").await.contains(&processes[0])
        })
        .await;
    }
}

/// A stream that is polled continuously, as a layer does.
struct Replica {
    hints: PostgresHints,
    heard: UnboundedReceiver<Heard>,
    task: JoinHandle<()>,
}

impl Replica {
    fn new(hints: PostgresHints) -> Self {
        let mut stream = Box::pin(hints.listen());
        let (out, heard) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some(heard) = stream.next().await {
                let _ = out.send(heard);
            }
        });
        Self { hints, heard, task }
    }

    async fn next(&mut self) -> Heard {
        timeout(PATIENCE, self.heard.recv()).await.expect("something to hear").expect("no end")
    }

    /// Asserts that this hint arrives next, except for another one that is repeated because a
    /// connection was lost.
    async fn hears_after(&mut self, doubled: Hint, hint: Hint) {
        loop {
            match self.next().await {
                heard if heard == Heard::Hint(hint) => return,
                heard => assert_eq!(heard, Heard::Hint(doubled)),
            }
        }
    }

    /// Asserts that this hint arrives next.
    async fn hears(&mut self, hint: Hint) {
        assert_eq!(self.next().await, Heard::Hint(hint));
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Witness(PgListener);

impl Witness {
    /// Returns the payloads that the crate sends before this hint, without its probes.
    async fn payloads_before(&mut self, end: Hint) -> Vec<String> {
        let mut payloads = Vec::new();
        loop {
            let payload = timeout(PATIENCE, self.0.recv())
                .await
                .expect("a payload")
                .unwrap()
                .payload()
                .to_owned();
            assert!(payload.len() <= 4_000, "{} bytes", payload.len());
            if payload == end.to_string() {
                return payloads;
            }
            if payload != "probe" {
                payloads.push(payload);
            }
        }
    }
}

/// Checks until the condition is true.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(ms(5)).await;
    }
}

#[tokio::test]
async fn a_hint_goes_to_every_replica_and_keeps_its_origin() {
    let Some(scene) = Scene::new().await else { return };
    let (mut one, mut other) = (scene.replica().await, scene.replica().await);
    let reset = Hint::new(
        u64::MAX,
        About::Reset { workspace: WorkspaceId::new(Uuid::from_u128(3)), epoch: None },
    );
    for hint in [written(1, 1, 7), repaired(1, 2, 5), repaired(1, 2, None), reset] {
        one.hints.send(hint);
        one.hears(hint).await;
        other.hears(hint).await;
    }
    let hint = written(2, 1, 8);
    other.hints.send(hint);
    one.hears(hint).await;
    other.hears(hint).await;
}

#[tokio::test]
async fn the_longest_interval_there_is_means_no_second_probe() {
    let Some(scene) = Scene::new().await else { return };
    let mut replica = Replica::new(scene.hints().with_probe_interval(Duration::MAX));
    assert_eq!(replica.next().await, Heard::Lagged);
    let sender = scene.replica().await;
    sender.hints.send(written(1, 1, 1));
    replica.hears(written(1, 1, 1)).await;
}

#[tokio::test]
async fn another_channel_is_not_heard() {
    let (Some(scene), Some(elsewhere)) = (Scene::new().await, Scene::new().await) else { return };
    let hints = scene.hints();
    let mut other = Replica::new(hints.clone().with_channel(&elsewhere.name).unwrap());
    let mut one = Replica::new(hints);
    assert_eq!([one.next().await, other.next().await], [Heard::Lagged; 2]);
    for round in 0..8 {
        one.hints.send(written(1, 1, round));
        one.hears(written(1, 1, round)).await;
        other.hints.send(written(2, 1, round));
        other.hears(written(2, 1, round)).await;
    }
}

#[tokio::test]
async fn only_the_newest_hint_about_a_subject_is_sent() {
    let Some(scene) = Scene::new().await else { return };
    let (one, mut other, mut witness) =
        (scene.replica().await, scene.replica().await, scene.witness().await);
    for generation in (500..=1_000).chain(1..500) {
        one.hints.send(repaired(1, 1, generation));
    }
    other.hears(repaired(1, 1, 1_000)).await;
    one.hints.send(written(1, 1, 1));
    other.hears(written(1, 1, 1)).await;
    assert_eq!(
        witness.payloads_before(written(1, 1, 1)).await,
        [repaired(1, 1, 1_000).to_string()]
    );
}

#[tokio::test]
async fn hints_of_a_short_interval_share_a_notification() {
    let Some(scene) = Scene::new().await else { return };
    let (mut one, mut witness) = (scene.replica().await, scene.witness().await);
    one.hints.send(written(1, 1, 1));
    one.hears(written(1, 1, 1)).await; // the first probe was sent
    one.hints.send(written(1, 2, 1));
    let began = Instant::now();
    tokio::task::yield_now().await; // the stream is polled
    one.hints.send(written(1, 2, 2));
    one.hears(written(1, 2, 2)).await;
    assert!(began.elapsed() >= ms(50), "{:?}", began.elapsed());
    one.hints.send(written(1, 3, 1));
    let payloads = witness.payloads_before(written(1, 3, 1)).await;
    assert_eq!(payloads, [written(1, 1, 1).to_string(), written(1, 2, 2).to_string()]);
}

#[tokio::test]
async fn hints_with_different_contents_are_all_sent() {
    let Some(scene) = Scene::new().await else { return };
    let (one, mut other) = (scene.replica().await, scene.replica().await);
    let removed = Hint::new(
        1,
        About::Session { session: SessionId::new(Uuid::from_u128(1)), revision: None },
    );
    let reset =
        Hint::new(1, About::Reset { workspace: WorkspaceId::new(Uuid::from_u128(1)), epoch: None });
    let different = HashSet::from([
        written(1, 1, 5),
        written(2, 1, 5),
        written(1, 2, 5),
        removed,
        repaired(1, 1, -5),
        repaired(1, 1, None),
        reset,
    ]);
    for hint in &different {
        one.hints.send(*hint);
        one.hints.send(*hint);
    }
    let mut heard = HashSet::new();
    for _ in 0..different.len() {
        let Heard::Hint(hint) = other.next().await else { panic!("a gap") };
        heard.insert(hint);
    }
    assert_eq!(heard, different);
}

#[tokio::test]
async fn many_hints_share_few_payloads() {
    let Some(scene) = Scene::new().await else { return };
    let (one, mut other, mut witness) =
        (scene.replica().await, scene.replica().await, scene.witness().await);
    for session in 0..10_000 {
        one.hints.send(written(1, session, 1));
    }
    let mut heard = HashSet::new();
    while heard.len() < 10_000 {
        let Heard::Hint(hint) = other.next().await else { panic!("a gap") };
        assert!(heard.insert(hint), "{hint:?} twice");
    }
    one.hints.send(written(1, 0, 2));
    other.hears(written(1, 0, 2)).await;
    // 55 bytes each, and one between two of them: 71 in 4,000.
    assert_eq!(witness.payloads_before(written(1, 0, 2)).await.len(), 10_000_usize.div_ceil(71));
}

#[tokio::test]
async fn hints_beyond_the_queue_limit_are_a_gap_for_every_replica() {
    let Some(scene) = Scene::new().await else { return };
    let (mut other, hints) = (scene.replica().await, scene.hints());
    for session in 0..12_000 {
        hints.send(written(1, session, 1));
        hints.send(written(1, session % 10_000, 2)); // replaces the hint about the same session
    }
    let mut one = Replica::new(hints);
    let mut heard = HashSet::new();
    let mut gaps = 0;
    while heard.len() < 10_000 || gaps == 0 {
        match other.next().await {
            Heard::Hint(hint) => assert!(heard.insert(hint), "{hint:?} twice"),
            _ => gaps += 1,
        }
    }
    assert_eq!(heard, (0..10_000).map(|session| written(1, session, 2)).collect());
    assert_eq!(one.next().await, Heard::Lagged); // listens
    one.hints.send(written(1, 1, 3));
    other.hears(written(1, 1, 3)).await; // no other gap
    assert_eq!(gaps, 1);
}

#[tokio::test]
async fn an_invalid_payload_is_a_gap() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut one = scene.replica().await;
    let good = written(1, 1, 1);
    for strange in ["", "gap", "9:x:y", "what?", " ", "Probe", &"ä".repeat(3_900)] {
        scene.notify(strange).await;
        assert_eq!(one.next().await, Heard::Lagged, "{strange:?}");
    }
    scene.notify(&format!("2:new:kind {good}")).await;
    one.hears(good).await;
    assert_eq!(one.next().await, Heard::Lagged);
    // A notification without a payload.
    sqlx::raw_sql(AssertSqlSafe(format!("NOTIFY {}", scene.name)))
        .execute(&mut scene.admin)
        .await
        .unwrap();
    assert_eq!(one.next().await, Heard::Lagged);
    scene.notify("probe").await;
    scene.notify(&good.to_string()).await;
    one.hears(good).await;
}

/// A server without an encoding closes the connection of each client to which it would send invalid
/// UTF-8.
#[tokio::test]
async fn invalid_utf_8_is_a_gap_and_the_stream_continues() {
    let Some(mut scene) = Scene::new().await else { return };
    let create = format!(
        "CREATE DATABASE {} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
        scene.name
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut scene.admin).await.unwrap();
    let options = scene.options.clone().database(&scene.name);
    let mut one = Replica::new(scene.hints_with(options.clone()));
    assert_eq!(one.next().await, Heard::Lagged);
    let mut raw = PgConnection::connect_with(&options).await.unwrap();
    let notify = format!("SET client_encoding = 'SQL_ASCII'; NOTIFY {}, E'\\xff'", scene.name);
    sqlx::raw_sql(AssertSqlSafe(notify)).execute(&mut raw).await.unwrap();
    assert_eq!(one.next().await, Heard::Lagged);
    one.hints.send(written(1, 1, 1));
    one.hears(written(1, 1, 1)).await;
    let drop = format!("DROP DATABASE {} WITH (FORCE)", scene.name);
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut scene.admin).await.unwrap();
}

/// The listener is not polled meanwhile: unread payloads wait in the server, not in this process.
#[tokio::test]
async fn every_hint_among_many_invalid_payloads_is_received() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut heard: BoxStream<'_, _> = scene.hints().listen().boxed();
    assert_eq!(timeout(PATIENCE, heard.next()).await.unwrap(), Some(Heard::Lagged));
    let listening = scene.processes("LISTEN").await;
    let storm = "SELECT count(pg_notify($1, CASE n % 2 WHEN 0 THEN 'garbage ' || n || repeat('x', 50)
            ELSE '1:s:1:' || lpad(to_hex(n), 32, '0') || ':1' END)) FROM generate_series(1, 50000) n";
    sqlx::query(storm).bind(&scene.name).execute(&mut scene.admin).await.unwrap();
    for n in 1..=50_000 {
        let expected = if n % 2 == 0 { Heard::Lagged } else { Heard::Hint(written(1, n, 1)) };
        assert_eq!(timeout(PATIENCE, heard.next()).await.unwrap(), Some(expected));
    }
    assert_eq!(scene.processes("LISTEN").await, listening);
}

#[tokio::test]
async fn a_lost_listening_connection_is_one_gap() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut proxy = Proxy::new(scene.options.clone());
    proxy.open();
    let mut one = Replica::new(scene.hints_with(proxy.options()));
    assert_eq!(one.next().await, Heard::Lagged);
    let began = Instant::now();
    for round in 1..=8 {
        scene.kill("LISTEN").await;
        assert_eq!(one.next().await, Heard::Lagged);
        one.hints.send(written(1, 1, round));
        one.hears_after(written(1, 1, round - 1), written(1, 1, round)).await;
    }
    // Each reconnection follows the first and shortest pause, because eight doubling pauses would
    // take longer.
    assert!(began.elapsed() < ms(8_000), "{:?}", began.elapsed());
    assert_eq!(proxy.accepted(), 2 * 9);
}

#[tokio::test]
async fn a_lost_sending_connection_loses_no_hint() {
    let Some(mut scene) = Scene::new().await else { return };
    let (one, mut other) = (scene.replica().await, scene.replica().await);
    one.hints.send(written(1, 1, 1));
    other.hears(written(1, 1, 1)).await;
    scene.kill(&format!("NOTIFY \"{}\", '1:", scene.name)).await;
    one.hints.send(written(1, 1, 2));
    other.hears_after(written(1, 1, 1), written(1, 1, 2)).await;
}

/// The listening connection stays open.
#[tokio::test]
async fn a_lost_sending_connection_is_no_gap() {
    let Some(mut scene) = Scene::new().await else { return };
    let (mut one, mut other) = (scene.replica().await, scene.replica().await);
    one.hints.send(written(1, 1, 1));
    one.hears(written(1, 1, 1)).await;
    other.hears(written(1, 1, 1)).await;
    scene.kill(&format!("NOTIFY \"{}\", '1:", scene.name)).await;
    other.hints.send(written(2, 2, 1));
    one.hears(written(2, 2, 1)).await;
    one.hints.send(written(1, 1, 2));
    other.hears_after(written(2, 2, 1), written(1, 1, 2)).await;
    one.hears_after(written(1, 1, 1), written(1, 1, 2)).await;
}

#[tokio::test]
async fn an_idle_session_timeout_of_the_server_ends_neither_connection() {
    let Some(mut scene) = Scene::new().await else { return };
    let options = scene.options.clone().options([("idle_session_timeout", "1000")]);
    for interval in [ms(300), Duration::from_secs(30)] {
        let mut one = Replica::new(scene.hints_with(options.clone()).with_probe_interval(interval));
        assert_eq!(one.next().await, Heard::Lagged);
        let processes = scene.processes("").await;
        assert_eq!(processes.len(), 2);
        sleep(ms(4_000)).await;
        one.hints.send(written(1, 1, 1));
        one.hears(written(1, 1, 1)).await;
        assert_eq!(scene.processes("").await, processes, "{interval:?}");
        drop(one);
        until("the connections are closed", async || scene.processes("").await.is_empty()).await;
    }
}

#[tokio::test]
async fn replicas_that_lose_their_connections_together_report_gaps_at_different_times() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut replicas = Vec::new();
    for _ in 0..12 {
        replicas.push(scene.replica().await);
    }
    let kill =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1";
    sqlx::query(kill).bind(&scene.name).execute(&mut scene.admin).await.unwrap();
    let gaps = futures_util::future::join_all(replicas.iter_mut().map(async |replica| {
        assert_eq!(replica.next().await, Heard::Lagged);
        Instant::now()
    }));
    let gaps = gaps.await;
    let spread = *gaps.iter().max().unwrap() - *gaps.iter().min().unwrap();
    assert!(spread > ms(100), "{spread:?}");
}

#[tokio::test]
async fn clones_send_for_each_other() {
    let Some(scene) = Scene::new().await else { return };
    let (one, mut other) = (scene.replica().await, scene.replica().await);
    let clone = one.hints.clone();
    let mut second = Replica::new(clone.clone());
    assert_eq!(second.next().await, Heard::Lagged);
    for round in 0..10 {
        clone.send(written(1, 1, round));
        second.hears(written(1, 1, round)).await;
        other.hears(written(1, 1, round)).await;
    }
    drop((one, second));
    clone.send(written(1, 1, 10)); // no stream listens
    let mut third = Replica::new(clone);
    other.hears(written(1, 1, 10)).await;
    assert_eq!(third.next().await, Heard::Lagged);
}

#[tokio::test]
async fn another_stream_sends_the_pending_hints_of_a_dropped_stream() {
    let Some(scene) = Scene::new().await else { return };
    let mut other = scene.replica().await;
    // The streams may alternate.
    for (first, turns) in [(true, 1), (true, 2), (false, 1), (false, 2)] {
        let hints = scene.hints().with_probe_interval(Duration::from_secs(3600)); // longer than the test, because a probe sends pending hints as well
        let (mut one, mut second) = (Replica::new(hints.clone()), Replica::new(hints.clone()));
        assert_eq!([one.next().await, second.next().await], [Heard::Lagged; 2]);
        for turn in 0..turns {
            hints.send(written(1, 0, turn));
            one.hears(written(1, 0, turn)).await;
            second.hears(written(1, 0, turn)).await; // both have sent their probes
            other.hears(written(1, 0, turn)).await;
        }

        hints.send(written(1, 1, 1));
        sleep(ms(20)).await; // one of them collects the hint
        let (gone, left) = if first { (one, second) } else { (second, one) };
        drop(gone);
        other.hears(written(1, 1, 1)).await;
        // The hint may have been sent before the stream was dropped.
        hints.send(written(1, 2, 2));
        while other.next().await != Heard::Hint(written(1, 2, 2)) {}
        drop(left);
    }
}

#[tokio::test]
async fn without_a_working_listen_each_interval_reports_a_gap() {
    let Some(scene) = Scene::new().await else { return };
    let mut proxy = Proxy::new(scene.options.clone());
    proxy.open();
    proxy.be(Mode::Deaf);
    warnings::collect();
    let mut other = scene.replica().await;
    let mut deaf = Replica::new(scene.hints_with(proxy.options()).with_probe_interval(ms(300)));
    assert_eq!(deaf.next().await, Heard::Lagged);
    let began = Instant::now();
    for round in 1..=4 {
        assert_eq!(deaf.next().await, Heard::Lagged);
        assert!(began.elapsed() >= ms(290) * round, "{:?}", began.elapsed());
    }
    assert!(proxy.accepted() <= 2 * 6, "{}", proxy.accepted());
    // The sending connection works nevertheless.
    deaf.hints.send(written(1, 1, 1));
    other.hears(written(1, 1, 1)).await;

    proxy.be(Mode::Faithful);
    until("a hint is heard", async || {
        other.hints.send(written(2, 1, 1));
        timeout(ms(100), async { while deaf.next().await != Heard::Hint(written(2, 1, 1)) {} })
            .await
            .is_ok()
    })
    .await;
    // No gap follows during several intervals.
    for round in 2..=10 {
        sleep(ms(100)).await;
        other.hints.send(written(3, 1, round));
    }
    loop {
        match deaf.next().await {
            Heard::Hint(hint) if hint == written(3, 1, 10) => break,
            heard => assert!(matches!(heard, Heard::Hint(_)), "{heard:?}"),
        }
    }
    warnings::assert_count("LISTEN has no effect", 1);
    warnings::assert_count("", 1);
}

#[tokio::test]
async fn without_hints_no_gap_is_reported() {
    let Some(scene) = Scene::new().await else { return };
    warnings::collect();
    let mut proxy = Proxy::new(scene.options.clone());
    proxy.open();
    let mut witness = scene.witness().await;
    let mut quiet = Replica::new(scene.hints_with(proxy.options()).with_probe_interval(ms(200)));
    assert_eq!(quiet.next().await, Heard::Lagged);
    for _ in 0..8 {
        let probe = timeout(PATIENCE, witness.0.recv()).await.expect("a probe").unwrap();
        assert_eq!(probe.payload(), "probe");
    }
    assert_eq!(quiet.heard.recv().now_or_never(), None);
    assert_eq!(proxy.accepted(), 2);
    warnings::assert_count("", 0);
}

#[tokio::test]
async fn a_listening_connection_that_receives_nothing_is_replaced() {
    let Some(scene) = Scene::new().await else { return };
    let mut proxy = Proxy::new(scene.options.clone());
    proxy.open();
    warnings::collect();
    let mut one = Replica::new(scene.hints_with(proxy.options()).with_probe_interval(ms(300)));
    assert_eq!(one.next().await, Heard::Lagged);
    one.hints.send(written(1, 1, 1));
    one.hears(written(1, 1, 1)).await;
    assert_eq!(proxy.accepted(), 2);

    proxy.be(Mode::Deaf);
    until("new connections are tried", async || proxy.accepted() > 2).await;
    proxy.be(Mode::Faithful);
    assert_eq!(one.next().await, Heard::Lagged);
    one.hints.send(written(1, 1, 2));
    one.hears(written(1, 1, 2)).await;
    warnings::assert_count("", 0); // at once, before the working connection is known
}

/// Takes about five seconds, the time limit of a statement.
#[tokio::test]
async fn a_frozen_server_blocks_no_task() {
    let Some(scene) = Scene::new().await else { return };
    let mut proxy = Proxy::new(scene.options.clone());
    proxy.open();
    let mut other = scene.replica().await;
    let mut one = Replica::new(scene.hints_with(proxy.options()));
    assert_eq!(one.next().await, Heard::Lagged);
    one.hints.send(written(1, 1, 1));
    one.hears(written(1, 1, 1)).await;
    other.hears(written(1, 1, 1)).await;

    proxy.be(Mode::Frozen);
    one.hints.send(written(1, 1, 2));
    until("new connections are tried", async || proxy.accepted() > 2).await;
    one.hints.send(written(1, 2, 1));
    assert_eq!(other.heard.recv().now_or_never(), None);
    assert_eq!(proxy.accepted(), 3); // no busy loop
    proxy.be(Mode::Faithful);
    // The first hint was sent but not confirmed, so it is sent again. The listening connection has
    // missed no hint.
    let mut left = HashSet::from([written(1, 1, 2), written(1, 2, 1)]);
    while !left.is_empty() {
        let Heard::Hint(hint) = other.next().await else { panic!("a gap") };
        left.remove(&hint);
    }
    one.hints.send(written(1, 3, 1));
    loop {
        match one.next().await {
            Heard::Hint(hint) if hint == written(1, 3, 1) => break,
            heard => assert!(matches!(heard, Heard::Hint(_)), "{heard:?}"),
        }
    }
}

#[tokio::test]
async fn a_failed_login_is_retried_with_the_pools_current_options() {
    let Some(scene) = Scene::new().await else { return };
    let mut proxy = Proxy::new(scene.options.clone());
    proxy.open();
    let pool = scene.pool(proxy.options().password("wrong"));
    warnings::collect();
    let mut one = Replica::new(PostgresHints::new(pool.clone()).with_channel(&scene.name).unwrap());
    let began = Instant::now();
    until("the login was attempted several times", async || proxy.accepted() >= 5).await;
    // Four doubling pauses: the first is 300 ms, and each takes at least half of its length.
    assert!(began.elapsed() >= ms(2_250), "{:?}", began.elapsed());
    assert_eq!(one.heard.recv().now_or_never(), None);
    warnings::assert_count("password authentication failed", 1);
    warnings::assert_count("", 1);
    pool.set_connect_options(proxy.options());
    assert_eq!(one.next().await, Heard::Lagged);
    one.hints.send(written(1, 1, 1));
    one.hears(written(1, 1, 1)).await;
}

#[tokio::test]
async fn an_unreachable_server_is_retried() {
    let Some(scene) = Scene::new().await else { return };
    let mut proxy = Proxy::new(scene.options.clone());
    warnings::collect();
    let mut one = Replica::new(scene.hints_with(proxy.options()));
    one.hints.send(written(1, 1, 1));
    sleep(ms(1_000)).await; // some attempts
    warnings::assert_count("", 1);
    assert_eq!(one.heard.recv().now_or_never(), None);
    proxy.open();
    assert_eq!(one.next().await, Heard::Lagged);
    one.hears(written(1, 1, 1)).await;
}

#[tokio::test]
async fn a_closed_pool_does_not_affect_the_hints() {
    let Some(scene) = Scene::new().await else { return };
    let pool = scene.pool(scene.options.clone());
    let mut one = Replica::new(PostgresHints::new(pool.clone()).with_channel(&scene.name).unwrap());
    assert_eq!(one.next().await, Heard::Lagged);
    timeout(PATIENCE, pool.close()).await.unwrap();
    one.hints.send(written(1, 1, 1));
    one.hears(written(1, 1, 1)).await;
}

#[tokio::test]
async fn a_dropped_stream_leaves_no_connection_and_no_task() {
    let Some(mut scene) = Scene::new().await else { return };
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    // Waits until the stream listens and its probe was received. On a busy machine more answers are
    // there at each poll, so there are fewer polls, and the state with one connection may be
    // skipped.
    let all = polls_and_drop(&mut scene, usize::MAX).await.0;
    let mut were_there = HashSet::new();
    for round in 0..20 {
        for polls in 0..=all {
            were_there.insert(polls_and_drop(&mut scene, polls).await.1);
        }
        if were_there == HashSet::from([0, 1, 2]) {
            return;
        }
        println!("round {round}, {all} polls: {were_there:?} connections");
    }
    panic!("the stream was not dropped with each number of connections: {were_there:?}");
}

/// Returns the number of polls until the stream was idle, `most` at most, and the number of
/// connections when it was dropped.
async fn polls_and_drop(scene: &mut Scene, most: usize) -> (usize, usize) {
    let hints = scene.hints();
    hints.send(written(1, 1, 1)); // is sent with the probe
    let mut stream = Box::pin(hints.listen());
    let mut polls = 0;
    let polled = poll_fn(|cx| {
        if polls == most {
            return Poll::Ready(());
        }
        polls += 1;
        match stream.as_mut().poll_next(cx) {
            Poll::Ready(Some(Heard::Hint(_))) => return Poll::Ready(()),
            Poll::Ready(_) => cx.waker().wake_by_ref(),
            Poll::Pending => {}
        }
        Poll::Pending
    });
    timeout(PATIENCE, polled).await.unwrap();
    let connections = scene.processes("").await.len();
    drop(stream);
    until("nothing is left", async || {
        scene.processes("").await.is_empty() && Handle::current().metrics().num_alive_tasks() == 0
    })
    .await;
    (polls, connections)
}

#[test]
fn a_stream_may_outlive_its_runtime() {
    for runtime_first in [false, true] {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let stream = runtime.block_on(async {
            let scene = Scene::new().await?;
            let mut stream = scene.hints().listen().boxed();
            assert_eq!(timeout(PATIENCE, stream.next()).await.unwrap(), Some(Heard::Lagged));
            Some((stream, scene.hints().listen().boxed(), scene))
        });
        let Some((stream, never_polled, mut scene)) = stream else { return };
        if runtime_first {
            drop(runtime);
            drop((stream, never_polled));
        } else {
            drop((stream, never_polled));
            runtime
                .block_on(until("nothing is left", async || scene.processes("").await.is_empty()));
        }
    }
}

#[tokio::test]
async fn only_plain_names_are_channels() {
    let pool = PgPoolOptions::new().connect_lazy_with(Options::new_without_pgpass());
    let hints = PostgresHints::new(pool);
    for bad in ["", "a b", "a\"b", "a'b", "1a", "ä", &"x".repeat(49)] {
        let error = hints.clone().with_channel(bad).unwrap_err();
        assert_eq!(error.name, bad);
    }
    hints.with_channel("Chat_2").unwrap();
}

#[test]
fn hints_are_send_sync_and_clone_and_debug_shows_no_password() {
    fn goes<T: Send + Sync + Clone + 'static>(_: &T) {}
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    let options = Options::new_without_pgpass().password("secret");
    let hints = PostgresHints::new(PgPoolOptions::new().connect_lazy_with(options));
    goes(&hints);
    fn stream(_: impl Stream<Item = Heard> + Send + 'static) {}
    stream(hints.listen());
    let shown = format!("{hints:?}");
    assert_eq!(shown, "PostgresHints { channel: \"agent_bindings\", probe_interval: 30s, .. }");
}

/// The warnings that this crate has logged on this test's thread.
#[cfg(feature = "tracing")]
mod warnings {
    pub(crate) use support::log::collect;

    pub(crate) fn assert_count(part: &str, count: usize) {
        let mut here = support::log::all();
        here.retain(|line| line.starts_with("WARN ") && line.contains(part));
        assert_eq!(here.len(), count, "{part}: {here:?}");
    }
}

#[cfg(not(feature = "tracing"))]
mod warnings {
    pub(crate) fn collect() {}
    pub(crate) fn assert_count(_: &str, _: usize) {}
}
