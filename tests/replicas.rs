//! Two replicas over one PostgreSQL, with thousands of sessions, and rebuilds and commands at
//! random times: in the end, both replicas dial the right agents, with hints, without hints, and
//! with hints that are lost, doubled and reordered. The tests count the cost.
#![cfg(feature = "postgres")]

use futures_util::{Stream, future::join_all};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use support::{servers, *};
use tokio::{
    task::JoinSet,
    time::{Duration, Instant, sleep},
};
use tower_bound_agent::{
    BoundAgentBuilder, BoundAgentLayer, SessionId, Target, WorkspaceId,
    hints::{Heard, Hint, Hints, PostgresHints},
    store::{BATCH, BindingStore, NewBinding, PostgresStore, Swap},
};

const SESSIONS: usize = 2_000;
const WORKSPACES: usize = 8;
const REBUILDS: u64 = 50;

/// Returns the seed, which `SEED=…` sets.
fn seed() -> u64 {
    std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap())
}

/// SplitMix64: the same numbers in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Loses a third of the hints, doubles a third, and delays the others behind their successors.
struct Lossy<H> {
    hints: H,
    state: Mutex<(Dice, Option<Hint>)>,
}

impl<H> Lossy<H> {
    fn new(hints: H) -> Self {
        Self { hints, state: Mutex::new((Dice(0), None)) }
    }
}

impl<H: Hints> Hints for Lossy<H> {
    fn send(&self, hint: Hint) {
        let (dice, late) = &mut *self.state.lock().unwrap();
        match dice.below(3) {
            0 => {}
            1 => (0..2).for_each(|_| self.hints.send(hint)),
            _ => late.replace(hint).into_iter().for_each(|late| self.hints.send(late)),
        }
    }

    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static {
        self.hints.listen()
    }
}

async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !look().await {
        assert!(Instant::now() < end, "waited too long until {what}");
        sleep(ms(10)).await;
    }
}

/// A process: a pool and a layer of its own.
struct Replica {
    store: Tap<PostgresStore>,
    layer: BoundAgentLayer,
    dial: Dial,
}

impl Replica {
    /// Makes one call of each session. Returns the number of calls that did not reach the current
    /// agent of their workspace.
    async fn calls_each(&self, scene: &Scene) -> usize {
        let mut elsewhere = 0;
        for session in scene.sessions.keys() {
            let bound = call(&self.dial, *session).await.unwrap();
            elsewhere +=
                usize::from(!scene.is_current(*session, bound.workspace(), Some(bound.target())));
        }
        elsewhere
    }

    async fn everything_is_written(&self) {
        until("all repairs are written", async || self.layer.bindings().flush().await == 0).await;
    }

    /// Waits until all its rows were read in the background again.
    async fn reads_again(&self) {
        // One such read may be under way, and the rows of the last one may not be cached yet.
        let goal = self.store.bulk_reads() + 3 * SESSIONS.div_ceil(BATCH) as u64;
        until("the rows are read again", async || self.store.bulk_reads() >= goal).await;
    }

    /// Makes turns of random sessions, and asserts that no caller sees a workspace go back to an
    /// earlier agent.
    fn turns(
        &self,
        sessions: Vec<SessionId>,
        seed: u64,
        stop: Arc<AtomicBool>,
    ) -> impl Future<Output = u64> + Send + 'static {
        let (dial, mut dice) = (self.dial.clone(), Dice(seed));
        let mut seen = HashMap::new();
        async move {
            let mut turns = 0;
            while !stop.load(Ordering::Relaxed) {
                let bound = call(&dial, sessions[dice.below(sessions.len())]).await.unwrap();
                let seen = seen.entry(bound.workspace()).or_insert(bound.target().generation);
                assert!(
                    *seen <= bound.target().generation,
                    "back from {seen:?} to {:?}",
                    bound.target()
                );
                *seen = bound.target().generation;
                turns += 1;
                if turns % 20 == 0 {
                    sleep(ms(1)).await;
                }
            }
            turns
        }
    }
}

/// The expected bindings.
struct Scene {
    world: World,
    current: BTreeMap<WorkspaceId, Target>,
    sessions: BTreeMap<SessionId, WorkspaceId>,
    /// The retargeted sessions.
    commanded: BTreeSet<SessionId>,
}

impl Scene {
    fn is_current(
        &self,
        session: SessionId,
        workspace: WorkspaceId,
        target: Option<&Target>,
    ) -> bool {
        (workspace, target) == (self.sessions[&session], Some(&self.current[&workspace]))
    }
}

/// Creates sessions in workspaces, each with a row that no replica has read.
async fn scene(reader: &PostgresStore) -> Scene {
    let world = World::new();
    let current: BTreeMap<_, _> = (0..WORKSPACES).map(|_| world.workspace()).collect();
    let sessions: BTreeMap<_, _> =
        (0..SESSIONS).map(|_| session()).zip(current.keys().copied().cycle()).collect();
    let all: Vec<_> = sessions.iter().collect();
    for some in all.chunks(20) {
        let created = some.iter().map(|(session, workspace)| {
            let target = Arc::new(current[workspace].clone());
            reader.create(NewBinding::new(**session, **workspace, Some(target)))
        });
        assert!(
            join_all(created).await.into_iter().all(|swap| matches!(swap, Ok(Swap::Applied(_))))
        );
    }
    Scene { world, current, sessions, commanded: BTreeSet::new() }
}

/// Rebuilds workspaces and gives commands. Returns the number of commands.
async fn rebuild_and_command(scene: &mut Scene, replicas: &[Replica], dice: &mut Dice) -> u64 {
    let workspaces: Vec<_> = scene.current.keys().copied().collect();
    let sessions: Vec<_> = scene.sessions.keys().copied().collect();
    let mut commands = 0;
    for n in 0..REBUILDS as usize {
        sleep(ms(1 + dice.below(30) as u64)).await;
        if dice.below(3) == 0 {
            for _ in 0..4 {
                let (session, to) =
                    (sessions[dice.below(SESSIONS)], workspaces[dice.below(WORKSPACES)]);
                let bindings = replicas[dice.below(replicas.len())].layer.bindings();
                bindings.retarget(session, to).await.unwrap();
                scene.sessions.insert(session, to);
                scene.commanded.insert(session);
                commands += 1;
            }
        }
        // Finally rebuilds each workspace once more, while the old agent still answers.
        let last = n.checked_sub(REBUILDS as usize - WORKSPACES);
        let workspace = workspaces[last.unwrap_or_else(|| dice.below(WORKSPACES))];
        let old = &scene.current[&workspace];
        let new = scene.world.agent(old.generation.map(|generation| generation.get() + 1));
        scene.world.runs(workspace, &new);
        if last.is_none() && dice.below(2) == 0 {
            scene.world.does(old, Does::Fail(Duration::ZERO));
        } else {
            // The old agent still accepts connections, so only a replica that gave the command or
            // received its hint knows of the change.
            replicas[dice.below(replicas.len())].layer.bindings().revalidate_workspace(workspace);
        }
        scene.current.insert(workspace, new);
    }
    commands
}

/// Returns the numbers of questions to the resolver, of read rows, of writing statements, and of
/// group repairs among them.
fn costs(scene: &Scene, replicas: &[Replica]) -> [u64; 4] {
    let sum = |count: fn(&Tap<PostgresStore>) -> u64| {
        replicas.iter().map(|replica| count(&replica.store)).sum()
    };
    [scene.world.counts().v, sum(Tap::rows_read), sum(Tap::writes), sum(Tap::group_writes)]
}

/// Asserts that both replicas dial the right agents in the end. If `checks` is set, rows are read
/// again in the background. Otherwise, only hints report changes.
async fn both_replicas_converge(
    name: &str,
    checks: bool,
    set: impl Fn(BoundAgentBuilder, PgPool, &str) -> BoundAgentBuilder,
) {
    let Some(url) = servers::url("TEST_POSTGRES_URL") else { return };
    let options: PgConnectOptions = url.parse().unwrap();
    let pool = || PgPoolOptions::new().max_connections(10).connect_lazy_with(options.clone());
    let table = servers::table();
    let reader = PostgresStore::new(pool()).with_table(&table).unwrap();
    reader.set_up().await.unwrap();
    let mut scene = scene(&reader).await;
    let replicas = [(); 2].map(|()| {
        let store = Tap::over(PostgresStore::new(pool()).with_table(&table).unwrap());
        let builder = BoundAgentLayer::builder(store.clone(), scene.world.resolver());
        // A long delay, so that a busy machine is not mistaken for a slow agent.
        let builder = builder
            .validation_delay(Duration::from_secs(1))
            .refresh_interval(checks.then_some(ms(500)));
        let layer = set(builder, pool(), &table).build().unwrap();
        Replica { store, dial: scene.world.dial(&layer), layer }
    });
    for replica in &replicas {
        assert_eq!(replica.calls_each(&scene).await, 0);
    }
    // One gap for each replica: it cannot know the hints from before it listened, so it reads all
    // rows once.
    let listeners = if name == "no hints" { 0 } else { 2 };
    until("the replicas listen", async || {
        let listen =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' || $1 || '%'";
        let there: i64 =
            sqlx::query_scalar(listen).bind(&table).fetch_one(reader.pool()).await.unwrap();
        there == listeners
    })
    .await;
    for replica in &replicas {
        assert_eq!(replica.calls_each(&scene).await, 0);
    }

    let (before, all) = (costs(&scene, &replicas), Instant::now());
    let (stop, mut load) = (Arc::<AtomicBool>::default(), JoinSet::new());
    for (replica, seed) in replicas.iter().chain(&replicas).zip(1..) {
        load.spawn(replica.turns(
            scene.sessions.keys().copied().collect(),
            seed,
            Arc::clone(&stop),
        ));
    }
    let commands = rebuild_and_command(&mut scene, &replicas, &mut Dice(seed())).await;
    stop.store(true, Ordering::Relaxed);
    let turns: u64 = load.join_all().await.into_iter().sum();

    // A replica that received a hint of a rebuild and has not dialed since validates now.
    for replica in &replicas {
        replica.calls_each(&scene).await;
    }
    for replica in &replicas {
        replica.everything_is_written().await;
    }
    let began = Instant::now();
    for replica in &replicas {
        if checks {
            replica.reads_again().await;
        } else {
            // Hints take an unknown time to arrive.
            until("the hints have arrived", async || replica.calls_each(&scene).await == 0).await;
        }
    }
    for replica in &replicas {
        assert_eq!(replica.calls_each(&scene).await, 0);
        replica.everything_is_written().await;
    }

    let after = costs(&scene, &replicas);
    let [asked, rows_read, written, group_writes] = std::array::from_fn(|n| after[n] - before[n]);
    let noticed = began.elapsed();
    println!(
        "{name}: {turns} turns, {REBUILDS} rebuilds, {commands} commands: {asked} questions, {rows_read} rows read, {written} \
         statements written ({group_writes} of groups), all was noticed {noticed:?} after the end"
    );
    let processes = replicas.len() as u64;
    assert!(
        asked <= processes * 2 * REBUILDS,
        "a process that discovers a rebuild asks twice at most"
    );
    let statements = (SESSIONS / WORKSPACES / BATCH) as u64 + 1;
    // Rows that are locked by a command or by the repair of the other process are skipped, and
    // written by a second statement.
    assert!(
        group_writes <= processes * REBUILDS * (statements + 1),
        "and writes its rows in as few statements as it takes"
    );
    // Each command costs the command itself and a first bind by each process. Sometimes a row is
    // bound while a group repair runs.
    assert!(written - group_writes <= 4 * commands);
    match name {
        // All rows are in use, so each check reads each row at most once. A call reads a row that a
        // check has removed.
        "no hints" => {
            let checks = 1 + u64::try_from(all.elapsed().as_millis()).unwrap() / 500;
            let most = processes * checks * SESSIONS as u64 + 8 * commands;
            assert!((SESSIONS as u64..=most).contains(&rows_read), "{rows_read} of {most}");
        }
        // The read of all rows may have come late.
        "hints" => assert!(rows_read <= 8 * commands + processes * SESSIONS as u64),
        _ => {}
    }

    let sessions: Vec<_> = scene.sessions.keys().copied().collect();
    let mut rows = Vec::new();
    for sessions in sessions.chunks(BATCH) {
        rows.extend(reader.load_many(sessions).await.unwrap());
    }
    assert_eq!(rows.len(), SESSIONS);
    for row in &rows {
        assert!(scene.is_current(row.session, row.workspace, row.target.as_deref()), "{row:?}");
        // Rows are created with revision 1, and each rebuild adds one, so no rebuild has written a
        // row twice.
        let generation = scene.current[&row.workspace].generation.unwrap().get();
        assert!(
            row.revision.get() <= generation || scene.commanded.contains(&row.session),
            "{row:?}"
        );
    }
    for replica in &replicas {
        for session in &sessions {
            let row = replica.layer.bindings().get(*session).await.unwrap().unwrap();
            assert!(scene.is_current(*session, row.workspace, row.target.as_deref()), "{row:?}");
        }
        assert_eq!(replica.layer.bindings().close(Duration::from_secs(5)).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_agree_without_hints() {
    both_replicas_converge("no hints", true, |builder, _, _| builder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_agree_with_hints_alone() {
    both_replicas_converge("hints", false, |builder, pool, channel| {
        builder.hints(PostgresHints::new(pool).with_channel(channel).unwrap())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_agree_with_lost_doubled_and_reordered_hints() {
    both_replicas_converge("bad hints", true, |builder, pool, channel| {
        builder.hints(Lossy::new(PostgresHints::new(pool).with_channel(channel).unwrap()))
    })
    .await;
}
