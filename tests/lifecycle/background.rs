//! The share of the application's pool that background statements take.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};
#[cfg(feature = "postgres")]
use support::servers;
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower_bound_agent::{Event, Repair};

const WORKSPACES: usize = 2_000;

/// Rebuilds many workspaces at once, each with one cached session.
#[tokio::test(start_paused = true)]
async fn the_repairs_of_many_workspaces_share_two_connections() {
    let world = World::new();
    let retrying = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&retrying);
    let layer = world.builder().observer(move |event: &Event<'_>| {
        if let Event::WorkspaceRepaired { repair: Repair::Retrying, .. } = event {
            told.fetch_add(1, SeqCst);
        }
    });
    let layer = layer.build().unwrap();
    let dial = world.dial(&layer);
    let mut sessions = Vec::new();
    for _ in 0..WORKSPACES {
        let (ws, target) = world.workspace();
        sessions.push((world.bind(&layer, ws).await, ws, target));
    }
    let cold = world.bind(&world.layer(), sessions[0].1).await;
    world.store.on_writes(Fault::Slow(ms(1)));
    let before = world.store.most_writes();
    assert_eq!(before, 1);
    let agents: Vec<_> = sessions
        .iter()
        .map(|(_, ws, target)| world.rebuild(*ws, target, Does::Fail(ms(0))).agent)
        .collect();
    let begin = Instant::now();
    for ((session, ..), agent) in sessions.iter().zip(&agents) {
        assert_eq!(call(&dial, *session).await.unwrap().agent, *agent);
    }
    // A cold session is read at once, and the row of a session without one is created at once.
    let reading = Instant::now();
    call(&dial, cold).await.unwrap();
    assert_eq!(reading.elapsed(), ms(0));
    let (ws, _) = world.workspace();
    call(&dial, tower_bound_agent::DialSession::new(session()).in_workspace(ws)).await.unwrap();
    assert!(reading.elapsed() <= ms(1), "{:?}", reading.elapsed());
    // The waiting repairs run later.
    while layer.bindings().flush().await > 0 {}
    assert!(begin.elapsed() <= Duration::from_secs(1 + 1), "{:?}", begin.elapsed());
    assert_eq!(
        (world.store.most_writes(), retrying.load(SeqCst)),
        (3, 0),
        "two background statements, and the row that a call waits for"
    );
    for ((session, ..), agent) in sessions.iter().zip(agents) {
        assert_eq!(world.row_agent(*session), Some(agent));
    }
    assert_eq!(layer.bindings().close(Duration::from_secs(1)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn two_unanswered_statements_hold_back_all_background_statements() {
    let world = World::new();
    let layer = world.layer();
    let dial = world.dial(&layer);
    let mut sessions = Vec::new();
    for _ in 0..10 {
        let (ws, target) = world.workspace();
        sessions.push((world.bind(&layer, ws).await, ws, target));
    }
    world.store.on_writes(Fault::Held);
    let before = world.counts();
    for (session, ws, target) in &sessions {
        world.rebuild(*ws, target, Does::Fail(ms(0)));
        call(&dial, *session).await.unwrap();
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!(((world.counts() - before).w, world.store.running_writes()), (2, 2));
    let begin = Instant::now();
    assert_eq!(layer.bindings().flush().await, 10);
    assert!(begin.elapsed() <= Duration::from_secs(20), "{:?}", begin.elapsed());
    world.store.on_writes(Fault::None);
    world.store.release();
    sleep(Duration::from_secs(1)).await;
    assert_eq!((layer.bindings().flush().await, (world.counts() - before).w), (0, 10));
}

/// An unanswered repair holds the only background connection, so no row is refreshed and no use is
/// recorded until it is answered.
#[tokio::test(start_paused = true)]
async fn refreshes_and_records_of_use_wait_for_the_shared_connection() {
    let every = Some(Duration::from_secs(10));
    for (refresh, usage) in [(every, None), (None, every)] {
        let world = World::new();
        let layer = world
            .builder()
            .background_connections(1)
            .refresh_interval(refresh)
            .usage_interval(usage)
            .build()
            .unwrap();
        let dial = world.dial(&layer);
        let (ws, target) = world.workspace();
        let chat = world.bind(&layer, ws).await;
        let done = || {
            let store = &world.store;
            if refresh.is_some() { store.bulk_reads() } else { store.writes() }
        };
        // While the connection is free, rows are refreshed and use is recorded.
        let before = done();
        let _used = call(&dial, chat).await.unwrap();
        sleep(Duration::from_secs(11)).await;
        assert!(done() > before);
        world.store.on_writes(Fault::Held);
        world.rebuild(ws, &target, Does::Fail(ms(0)));
        let _held = call(&dial, chat).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(world.store.running_writes(), 1);
        let before = done();
        sleep(Duration::from_secs(60)).await;
        assert_eq!((done(), world.store.running_writes()), (before, 1));
        world.store.on_writes(Fault::None);
        world.store.release();
        sleep(Duration::from_secs(21)).await;
        assert!(done() > before);
    }
}

/// Measures how long the application waits for a connection while many workspaces are repaired.
#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement; best with --release"]
async fn measures_how_long_the_application_waits_for_a_connection() {
    use sqlx::postgres::PgPoolOptions;
    use tower_bound_agent::{
        BoundAgentLayer, DialSession,
        store::{BindingStore, NewBinding, PostgresStore},
    };
    let Some(url) = servers::url("TEST_POSTGRES_URL") else { return };
    let workspaces: usize =
        std::env::var("WORKSPACES").map_or(20_000, |number| number.parse().expect("a number"));
    let pool = PgPoolOptions::new().max_connections(10).connect(&url).await.unwrap();
    let store = PostgresStore::new(pool.clone()).with_table(servers::table()).unwrap();
    store.set_up().await.unwrap();
    let world = World::new();
    let (told, retrying) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (tells, retries) = (Arc::clone(&told), Arc::clone(&retrying));
    let builder = BoundAgentLayer::builder(store.clone(), world.resolver()).observer(
        move |event: &Event<'_>| {
            if let Event::WorkspaceRepaired { repair, .. } = event {
                let count = if *repair == Repair::Written { &tells } else { &retries };
                count.fetch_add(1, SeqCst);
            }
        },
    );
    let layer =
        builder.validation_delay(Duration::from_secs(5)).refresh_interval(None).build().unwrap();
    let dial = world.dial(&layer);
    let mut sessions = Vec::new();
    for _ in 0..workspaces {
        let (ws, target) = world.workspace();
        let chat = session();
        let new = NewBinding::new(chat, ws, Some(Arc::new(target.clone())));
        let _ = store.create(new).await.unwrap();
        sessions.push((chat, ws, target));
    }
    assert_eq!(layer.bindings().warm(workspaces as u64).await.unwrap(), workspaces as u64);
    // Sessions that no process has read.
    let mut cold = Vec::new();
    for _ in 0..200 {
        let (ws, target) = world.workspace();
        let chat = session();
        let _ = store.create(NewBinding::new(chat, ws, Some(Arc::new(target)))).await.unwrap();
        cold.push(chat);
    }
    for (_, ws, target) in &sessions {
        world.rebuild(*ws, target, Does::Fail(ms(0)));
    }
    let begin = Instant::now();
    let calls = sessions.chunks(workspaces / 8).map(|sessions| {
        let (dial, sessions) = (dial.clone(), sessions.to_vec());
        tokio::spawn(async move {
            for (chat, ..) in sessions {
                call(&dial, chat).await.unwrap();
            }
        })
    });
    let calls: Vec<_> = calls.collect();
    let (mut longest, mut longest_cold, mut asked) = (Duration::ZERO, Duration::ZERO, 0);
    while told.load(SeqCst) < workspaces as u64 {
        let now = Instant::now();
        sqlx::query("SELECT 1").execute(&pool).await.unwrap();
        longest = longest.max(now.elapsed());
        if let Some(chat) = cold.pop() {
            let now = Instant::now();
            call(&dial, DialSession::new(chat)).await.unwrap();
            longest_cold = longest_cold.max(now.elapsed());
        }
        asked += 1;
        sleep(ms(5)).await;
    }
    let repaired = begin.elapsed();
    for calls in calls {
        calls.await.unwrap();
    }
    assert_eq!(layer.bindings().flush().await, 0);
    println!(
        "{workspaces} workspaces were repaired within {repaired:?}; {asked} statements of the application waited for \
         {longest:?} at most, cold sessions for {longest_cold:?}; {} repairs were tried again",
        retrying.load(SeqCst)
    );
}
