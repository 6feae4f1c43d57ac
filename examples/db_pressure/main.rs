//! One idea: what the turns of chats cost the database, with this crate and without. 5,000 chats of
//! 10 turns each (1,000 in a debug build), in one workspace and in 500.
//!
//! ```text
//! cargo run --release --example db_pressure --features postgres                        # a table
//! cargo run --release --example db_pressure --features postgres -- --json              # one JSON object
//! cargo run --release --example db_pressure --features postgres -- --svg pressure.svg  # and a picture
//! ```
//!
//! PostgreSQL itself counts the statements (`pg_stat_statements`), in the database of
//! `DATABASE_URL` or in a server that is started for this run. The agents are in memory, so that
//! turns wait for nothing but the database; a replaced agent hangs. The exit code is 1 if a number
//! is out of its bounds.
#![allow(unreachable_pub)] // modules of an example have no outside

mod chart;
mod counter;
mod world;

use counter::{Calls, Counter};
use examples::common::database::Database;
use serde_json::{Value, json};
use std::{
    fs,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    Bindings, Bound, BoundAgentLayer, BoxError, DialAgent, DialSession, Error, SessionId,
};
use world::{Connection, Rows, World};

/// A debug build would take minutes for all of them.
const CHATS: usize = if cfg!(debug_assertions) { 1_000 } else { 5_000 };
const TURNS: usize = 10;
const WORKSPACES: [usize; 2] = [1, 500];
/// How many turns run at once, and how many connections they share.
const AT_ONCE: usize = 64;
const CONNECTIONS: u32 = 10;

/// How a turn finds its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// One query each for the chat's workspace, its latest build, and the agent of that build.
    Resolve,
    /// One query for the remembered agent. This way never learns of a rebuild, so there is none.
    Load,
    /// This crate; no chat has an agent yet.
    FirstBind,
    /// This crate; every chat is bound to an agent that was replaced just before the process
    /// started.
    Rebuilt,
    /// The same, with the cache filled before the first turn.
    Warmed,
}

impl Way {
    const ALL: [Self; 5] =
        [Self::Resolve, Self::Load, Self::FirstBind, Self::Rebuilt, Self::Warmed];

    fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve every turn",
            Self::Load => "load what was remembered every turn",
            Self::FirstBind => "this crate, nothing bound yet",
            Self::Rebuilt => "this crate, all agents just replaced",
            Self::Warmed => "the same, with a warmed cache",
        }
    }

    fn is_ours(self) -> bool {
        !matches!(self, Self::Resolve | Self::Load)
    }

    fn rows(self) -> Rows {
        match self {
            Self::Resolve | Self::Load => Rows::Current,
            Self::FirstBind => Rows::Unbound,
            Self::Rebuilt | Self::Warmed => Rows::Stale,
        }
    }

    /// Returns the least and the greatest number of statements that is right.
    fn bounds(self, workspaces: usize) -> [i64; 2] {
        let (chats, turns) = (CHATS as i64, (CHATS * TURNS) as i64);
        // A group repair writes 2,000 rows in a statement, and ends with one that finds fewer.
        let repairs = (workspaces * (CHATS / workspaces / 2_000 + 1)) as i64;
        match self {
            Self::Resolve => [3 * turns; 2],
            Self::Load => [turns; 2],
            // Every row is read once and written once.
            Self::FirstBind => [0, 2 * chats + 3],
            Self::Rebuilt => [0, chats + repairs],
            // A few statements read all rows.
            Self::Warmed => [0, 10 + repairs],
        }
    }
}

/// The numbers of one way.
struct Run {
    way: Way,
    workspaces: usize,
    /// With this crate, those on the table of bindings; without it, all.
    statements: i64,
    /// How many of them came after the first turn of every chat.
    later: i64,
    /// With this crate, the resolver's queries of the application's tables.
    resolver: i64,
    stale_dials: usize,
    took: Duration,
    detail: Calls,
    wrong: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match Database::run(measure).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the measurement failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(database: &Database) -> Result<bool, BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    let svg =
        arguments.iter().position(|argument| argument == "--svg").map(|at| arguments.get(at + 1));
    let svg = svg.map(|path| path.ok_or("--svg needs a path")).transpose()?;

    let mut counter = Counter::open(database).await?;
    if !json {
        println!(
            "{CHATS} chats of {TURNS} turns each, {AT_ONCE} at once over {CONNECTIONS} connections.\n"
        );
        println!(
            "{}",
            row([
                "workspaces",
                "way",
                "statements",
                "after turn 1",
                "resolver",
                "seconds",
                "turns/s"
            ])
        );
        println!("{}", row(WIDTHS.map(|width| "─".repeat(width)).each_ref().map(String::as_str)));
    }
    let mut runs = Vec::new();
    for workspaces in WORKSPACES {
        for way in Way::ALL {
            let name = format!("{}_{:02}", database.name, runs.len());
            let run = Run::measure(way, workspaces, &name, database, &mut counter).await?;
            if !json {
                println!("{}", run.row());
            }
            runs.push(run);
        }
    }
    let ok = runs.iter().all(|run| run.wrong.is_empty());
    if json {
        let runs: Vec<Value> = runs.iter().map(Run::json).collect();
        let numbers = json!({
            "chats": CHATS, "turns_each": TURNS, "at_once": AT_ONCE, "connections": CONNECTIONS, "runs": runs, "ok": ok,
        });
        println!("{numbers}");
    }
    for run in &runs {
        for wrong in &run.wrong {
            eprintln!(
                "NOT AS EXPECTED  {}, workspaces: {}: {wrong}",
                run.way.name(),
                run.workspaces
            );
        }
    }
    if let Some(path) = svg {
        fs::write(path, chart::draw(&runs))?;
    }
    Ok(ok)
}

impl Run {
    async fn measure(
        way: Way,
        workspaces: usize,
        name: &str,
        database: &Database,
        counter: &mut Counter,
    ) -> Result<Self, BoxError> {
        let pool = database.pool(CONNECTIONS).await?;
        let world =
            Arc::new(World::create(pool.clone(), name, CHATS, workspaces, way.rows()).await?);
        let before = counter.calls(name).await?;
        let began = Instant::now();
        let gateway = way.is_ours().then(|| Gateway::start(&world)).transpose()?;
        let mut wrong = Vec::new();

        if let (Some(gateway), Way::Warmed) = (&gateway, way) {
            let warmed = gateway.bindings.warm(CHATS as u64).await?;
            if warmed != CHATS as u64 {
                wrong.push(format!("{warmed} rows were loaded before the first turn"));
            }
        }
        wrong.extend(turns(&world, way, gateway.as_ref()).await);
        if let Some(gateway) = &gateway {
            // The repairs of the first turns count for the first turns.
            gateway.bindings.flush().await;
        }
        let between = counter.calls(name).await?;
        for _ in 1..TURNS {
            wrong.extend(turns(&world, way, gateway.as_ref()).await);
        }
        let took = began.elapsed();
        if let Some(gateway) = &gateway {
            gateway.bindings.close(Duration::from_secs(5)).await;
        }
        let after = counter.calls(name).await?;

        let bindings = world::table(name, "bindings");
        let counts = |sql: &str| !way.is_ours() || sql.contains(&bindings);
        let sum = |calls: &Calls| {
            calls.iter().filter(|(sql, _)| counts(sql)).map(|(_, calls)| calls).sum::<i64>()
        };
        let detail = counter::between(&before, &after);
        let run = Self {
            way,
            workspaces,
            statements: sum(&detail),
            later: sum(&counter::between(&between, &after)),
            resolver: detail.values().sum::<i64>() - sum(&detail),
            stale_dials: world.agents.hung(),
            took,
            detail: detail.into_iter().map(|(sql, calls)| (plain(&sql, name), calls)).collect(),
            wrong,
        };
        let run = run.judged(&world).await?;
        pool.close().await;
        Ok(run)
    }

    /// Compares the numbers with their bounds.
    async fn judged(mut self, world: &World) -> Result<Self, BoxError> {
        let (rows, dials) = (self.way.rows(), self.stale_dials);
        let [least, most] = self.way.bounds(self.workspaces);
        // One validation finds the rebuild, and a doubt may have begun another one meanwhile.
        let questions = if self.way.is_ours() { 2 * self.workspaces as i64 } else { 0 };
        let differ = world.rows_that_differ().await?;
        let hanging = world.agents.hanging();
        let expected = [
            (
                (least..=most).contains(&self.statements),
                format!("{} statements, not {least} to {most}", self.statements),
            ),
            (
                !self.way.is_ours() || self.later == 0,
                format!("{} statements after the first turn, not none", self.later),
            ),
            (
                self.resolver <= questions,
                format!("{} resolver reads, not at most {questions}", self.resolver),
            ),
            (differ == 0, format!("{differ} rows do not name the agent of the latest build")),
            ((dials > 0) == (rows == Rows::Stale), format!("{dials} dials of replaced agents")),
            (hanging == 0, format!("{hanging} dials of replaced agents were not cancelled")),
        ];
        self.wrong.extend(expected.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what));
        Ok(self)
    }

    fn rate(&self) -> f64 {
        (CHATS * TURNS) as f64 / self.took.as_secs_f64()
    }

    fn row(&self) -> String {
        let numbers = [
            self.workspaces as i64,
            self.statements,
            self.later,
            self.resolver,
            self.rate() as i64,
        ];
        let [workspaces, statements, later, resolver, rate] = numbers.map(grouped);
        let seconds = format!("{:.1}", self.took.as_secs_f64());
        row([&workspaces, self.way.name(), &statements, &later, &resolver, &seconds, &rate])
    }

    fn json(&self) -> Value {
        let [least, most] = self.way.bounds(self.workspaces);
        json!({
            "way": self.way.name(), "workspaces": self.workspaces,
            "statements": self.statements, "expected_at_least": least, "expected_at_most": most,
            "statements_after_first_turns": self.later, "resolver_reads": self.resolver, "stale_dials": self.stale_dials,
            "seconds": (self.took.as_secs_f64() * 1000.0).round() / 1000.0, "turns_per_second": self.rate().round(),
            "calls_by_statement": self.detail, "ok": self.wrong.is_empty(),
        })
    }
}

/// What a process of the application has of this crate.
#[derive(Clone)]
struct Gateway {
    bindings: Bindings,
    dial: BoxCloneSyncService<DialSession, Bound<Connection>, Error>,
}

impl Gateway {
    fn start(world: &Arc<World>) -> Result<Self, BoxError> {
        let (resolver, agents) = (Arc::clone(world), world.agents.clone());
        let resolver = service_fn(move |ask| Arc::clone(&resolver).answer(ask));
        let layer = BoundAgentLayer::builder(world.store.clone(), resolver).build()?;
        let dial =
            layer.layer(service_fn(move |ask: DialAgent| agents.clone().dial(ask.target.agent)));
        Ok(Self { bindings: layer.bindings(), dial: BoxCloneSyncService::new(dial) })
    }
}

/// Runs one turn of every chat. Returns up to three errors.
async fn turns(world: &Arc<World>, way: Way, gateway: Option<&Gateway>) -> Vec<String> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (world, gateway, next) = (Arc::clone(world), gateway.cloned(), Arc::clone(&next));
        tasks.spawn(async move {
            while let Some(chat) = world.chats.get(next.fetch_add(1, SeqCst)) {
                let answered = connect(&world, way, gateway.as_ref(), chat.id).await?.ask().await?;
                if answered != chat.agent {
                    return Err(format!(
                        "agent {answered} responded to chat {} in place of {}",
                        chat.id, chat.agent
                    )
                    .into());
                }
            }
            Ok::<_, BoxError>(())
        });
    }
    tasks
        .join_all()
        .await
        .into_iter()
        .filter_map(Result::err)
        .map(|error| error.to_string())
        .take(3)
        .collect()
}

async fn connect(
    world: &World,
    way: Way,
    gateway: Option<&Gateway>,
    chat: SessionId,
) -> Result<Connection, BoxError> {
    let agent = match (gateway, way) {
        (Some(gateway), _) => {
            return Ok(gateway.dial.clone().oneshot(chat.into()).await?.into_inner());
        }
        (None, Way::Resolve) => world.resolve(chat).await?,
        (None, _) => world.load(chat).await?,
    };
    Ok(world.agents.clone().dial(agent).await?)
}

/// Returns the statement without the prefix that its tables have in this run.
fn plain(sql: &str, name: &str) -> String {
    sql.replace(&format!("{name}_"), "").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Formats 1234567 as 1,234,567.
fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| str::from_utf8(group).unwrap_or(""))
        .collect();
    groups.join(",")
}

const WIDTHS: [usize; 7] = [10, 36, 10, 12, 8, 7, 9];

fn row(cells: [&str; 7]) -> String {
    let [workspaces, way, numbers @ ..] = cells;
    let mut row = format!("{workspaces:>0$} {way:<1$}", WIDTHS[0], WIDTHS[1]);
    for (cell, width) in numbers.into_iter().zip(&WIDTHS[2..]) {
        row.push_str(&format!(" {cell:>width$}"));
    }
    row
}
