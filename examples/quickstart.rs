//! One idea: what a turn costs, and what a restart, a rebuild and a stop change. Two chats of one
//! workspace, and three agents, one for each build.
//!
//! ```text
//! cargo run --example quickstart            # a table
//! cargo run --example quickstart -- --json  # the same as one JSON object
//! ```
//!
//! The agents listen on TCP and the bindings are in a SQLite file. All numbers are counted, and the
//! exit code is 1 if one of them is not the expected one.

use examples::common::{self, Agent, Authority, Connection, Dialer, Watch};
use serde_json::json;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use std::{ops::RangeInclusive, path::Path as File, process::ExitCode, time::Duration};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    AgentId, Bindings, Bound, BoundAgentLayer, BoxError, DialSession, Error, OutcomeKind,
    Resolution, SessionId, store::SqliteStore,
};
use uuid::Uuid;

#[tokio::main]
async fn main() -> ExitCode {
    let json = std::env::args().any(|argument| argument == "--json");
    match tell(json).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the story failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn tell(json: bool) -> Result<bool, BoxError> {
    let watch = Watch::begin();
    let (first, second, third) = (
        Agent::start("agent 1").await?,
        Agent::start("agent 2").await?,
        Agent::start("agent 3").await?,
    );
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("bindings.db");
    let (chat, other_chat, workspace) = (common::session(), common::session(), common::workspace());

    let authority = Authority::default();
    authority.set(workspace, Resolution::Running(first.target(1)));
    let agents = [&first, &second, &third];
    let mut story =
        Story::new(json, watch, authority.clone(), agents.map(|agent| (agent.id, agent.name)));

    // The first turn of a chat names its workspace; later turns need not.
    let process = Process::start(&file, &story).await?;
    let turn = process.turn(DialSession::new(chat).in_workspace(workspace));
    story
        .step("first turn of a chat", turn, Expected::new("first bind", "agent 1", [2, 1, 1]))
        .await;

    let turn = process.turn(DialSession::new(other_chat).in_workspace(workspace));
    story
        .step(
            "first turn of a second chat",
            turn,
            Expected::new("first bind", "agent 1", [2, 0, 1]),
        )
        .await;

    let turns = async {
        for _ in 0..9 {
            process.turn(chat.into()).await?;
        }
        process.turn(chat.into()).await
    };
    story
        .step(
            "ten more turns of the first chat",
            turns,
            Expected::new("reused", "agent 1", [0, 0, 10]),
        )
        .await;

    // A restart loses the cache. The file still has the bindings.
    process.end().await;
    let process = Process::start(&file, &story).await?;
    story
        .step(
            "process restarted; a turn",
            process.turn(chat.into()),
            Expected::new("reused", "agent 1", [1, 0, 1]),
        )
        .await;

    // A rebuild without a notification. The old agent's address still accepts connections.
    first.become_black_hole();
    authority.set(workspace, Resolution::Running(second.target(2)));
    let switched = Expected::new("switched", "agent 2", [1, 1, 2]).within(250..=1500);
    story.step("workspace rebuilt; old agent hangs", process.turn(chat.into()), switched).await;
    story.check("the SQLite file names agent 2", read_agent(&file, chat).await? == Some(second.id));

    // The rows of both chats were repaired together.
    let reused = Expected::new("reused", "agent 2", [1, 0, 1]);
    story.step("a turn of the second chat", process.turn(other_chat.into()), reused).await;

    second.stop();
    authority.set(workspace, Resolution::Stopped);
    let stopped = Expected::new("error: stopped", "-", [1, 1, 1]);
    story.step("workspace stopped", process.turn(chat.into()), stopped).await;

    authority.set(workspace, Resolution::Running(third.target(3)));
    let switched = Expected::new("switched", "agent 3", [1, 1, 2]);
    story.step("workspace started again", process.turn(chat.into()), switched).await;

    process.end().await;
    Ok(story.end())
}

/// The state of one process of an application.
struct Process {
    store: SqliteStore,
    bindings: Bindings,
    dial: BoxCloneSyncService<DialSession, Bound<Connection>, Error>,
}

impl Process {
    async fn start(file: &File, story: &Story) -> Result<Self, BoxError> {
        let store = SqliteStore::open(file).await?;
        let (authority, dialer) = (story.authority.clone(), story.dialer.clone());
        let resolver = service_fn(move |ask| authority.clone().resolve(ask));
        let layer = BoundAgentLayer::builder(store.clone(), resolver).build()?;
        let dial = layer.layer(service_fn(move |ask| dialer.clone().dial(ask)));
        Ok(Self { store, bindings: layer.bindings(), dial: BoxCloneSyncService::new(dial) })
    }

    /// One turn of a chat: a connection, a line to the agent, a line back.
    async fn turn(&self, ask: DialSession) -> Result<Turn, Error> {
        let mut bound = self.dial.clone().oneshot(ask).await?;
        let outcome = bound.outcome().kind.clone();
        let responded = bound.ask("what is new?").await.ok();
        // A repair is written in the background. Waiting here counts its statement for this turn.
        self.bindings.flush().await;
        Ok(Turn { outcome, responded })
    }

    async fn end(self) {
        self.bindings.close(Duration::from_secs(5)).await;
        self.store.pool().close().await;
    }
}

struct Turn {
    outcome: OutcomeKind,
    responded: Option<AgentId>,
}

/// Reads a session's agent from the file, over a connection of its own.
async fn read_agent(file: &File, session: SessionId) -> Result<Option<AgentId>, BoxError> {
    let mut connection =
        SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(file).read_only(true))
            .await?;
    let agent = sqlx::query_scalar("SELECT agent FROM agent_bindings WHERE session = ?")
        .bind(session.into_uuid());
    let agent: Option<Uuid> = agent.fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(agent.map(AgentId::new))
}

/// Runs the steps, counts what they cost, compares and prints.
struct Story {
    json: bool,
    watch: Watch,
    authority: Authority,
    dialer: Dialer,
    names: [(AgentId, &'static str); 3],
    steps: Vec<serde_json::Value>,
    differences: Vec<String>,
}

struct Expected {
    outcome: &'static str,
    agent: &'static str,
    /// SQL statements, resolver calls, dials.
    counts: [u64; 3],
    milliseconds: RangeInclusive<u64>,
}

impl Expected {
    fn new(outcome: &'static str, agent: &'static str, counts: [u64; 3]) -> Self {
        // A busy machine must not fail the story.
        Self { outcome, agent, counts, milliseconds: 0..=1000 }
    }

    fn within(self, milliseconds: RangeInclusive<u64>) -> Self {
        Self { milliseconds, ..self }
    }
}

impl Story {
    fn new(
        json: bool,
        watch: Watch,
        authority: Authority,
        names: [(AgentId, &'static str); 3],
    ) -> Self {
        let story = Self {
            json,
            watch,
            authority,
            dialer: Dialer::default(),
            names,
            steps: Vec::new(),
            differences: Vec::new(),
        };
        story.say("Two chats of one workspace, and three agents, one for each build.\n");
        story.say(&row(
            ["step", "outcome", "agent", "SQL", "resolver", "dials", "ms"].map(String::from)
        ));
        story.say(&row([34, 14, 7, 4, 8, 5, 6].map(|width| "─".repeat(width))));
        story
    }

    async fn step(
        &mut self,
        name: &str,
        turn: impl Future<Output = Result<Turn, Error>>,
        expected: Expected,
    ) {
        let before = self.counts();
        let began = Instant::now();
        let turn = turn.await;
        let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
        let after = self.counts();
        let counts: [u64; 3] = std::array::from_fn(|i| after[i] - before[i]);

        let (outcome, agent) = match turn {
            Ok(turn) => (turn.outcome.as_str().replace('_', " "), self.agent(turn.responded)),
            Err(error) => (format!("error: {}", error.kind().as_str()), "-"),
        };
        let [sql, resolver, dials] = counts;
        let numbers = [
            sql.to_string(),
            resolver.to_string(),
            dials.to_string(),
            format!("{milliseconds:.1}"),
        ];
        let [a, b, c, d] = numbers;
        self.say(&row([name.into(), outcome.clone(), agent.into(), a, b, c, d]));

        let names = ["SQL statements", "resolver calls", "dials"];
        for ((what, found), wanted) in names.into_iter().zip(counts).zip(expected.counts) {
            self.compare(name, what, found, wanted);
        }
        self.compare(name, "outcome", outcome.as_str(), expected.outcome);
        self.compare(name, "agent", agent, expected.agent);
        if !expected.milliseconds.contains(&(milliseconds as u64)) {
            self.differences.push(format!(
                "{name}: {milliseconds:.1} ms, expected {:?}",
                expected.milliseconds
            ));
        }
        self.steps.push(json!({
            "name": name, "outcome": outcome, "agent": agent, "sql_statements": sql, "resolver_calls": resolver,
            "dials": dials, "milliseconds": (milliseconds * 10.0).round() / 10.0,
        }));
    }

    fn compare<T: PartialEq + std::fmt::Display>(
        &mut self,
        step: &str,
        what: &str,
        found: T,
        wanted: T,
    ) {
        if found != wanted {
            self.differences.push(format!("{step}: {what}: {found}, expected {wanted}"));
        }
    }

    fn check(&mut self, what: &str, holds: bool) {
        self.say(&format!("  └ {what}{}", if holds { "" } else { ": NO" }));
        if !holds {
            self.differences.push(format!("not true: {what}"));
        }
    }

    fn end(self) -> bool {
        let ok = self.differences.is_empty();
        self.say("");
        self.say("Later turns: no statement and no resolver call.");
        self.say("The rebuild: one slow turn of one chat, none of the other.");
        if self.json {
            println!("{}", json!({ "steps": self.steps, "ok": ok }));
        }
        for difference in &self.differences {
            eprintln!("NOT AS EXPECTED  {difference}");
        }
        ok
    }

    fn counts(&self) -> [u64; 3] {
        [self.watch.statements(), self.authority.asked(), self.dialer.begun()]
    }

    fn agent(&self, id: Option<AgentId>) -> &'static str {
        self.names.iter().find(|(known, _)| Some(*known) == id).map_or("nobody", |(_, name)| name)
    }

    fn say(&self, line: &str) {
        if !self.json {
            println!("{line}");
        }
    }
}

fn row([step, outcome, agent, sql, resolver, dials, ms]: [String; 7]) -> String {
    format!("{step:<34} {outcome:<14} {agent:<7} {sql:>4} {resolver:>8} {dials:>5} {ms:>6}")
}
