//! One idea: several processes serve the same chats and tell each other what they have written.
//! Here two gateways over one PostgreSQL stand for two processes: each has its own pool and cache.
//!
//! `cargo run --features postgres --example replicas` uses the database in `DATABASE_URL`, or
//! starts a server.

use examples::common::{self, Agent, Authority, Connection, Dialer, database::Database, expect};
use std::{fmt::Display, process::ExitCode, time::Duration};
use tokio::time::{Instant, timeout};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    Bindings, Bound, BoundAgentLayer, BoxError, DialSession, Error, Resolution,
    hints::PostgresHints, store::PostgresStore,
};

/// Far longer than the default, so that a turn that waits for it is recognizable.
const DELAY: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> ExitCode {
    match Database::run(tell).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn tell(database: &Database) -> Result<(), BoxError> {
    let (old, new, other) =
        (Agent::start("old").await?, Agent::start("new").await?, Agent::start("other").await?);
    let (workspace, elsewhere) = (common::workspace(), common::workspace());
    let authority = Authority::default();
    authority.set(workspace, Resolution::Running(old.target(1)));
    authority.set(elsewhere, Resolution::Running(other.target(1)));
    let first = Gateway::start(database, &authority).await?;
    let second = Gateway::start(database, &authority).await?;

    // One chat of the first gateway, one of the second, and one that both serve.
    let [here, there, both] = [common::session(), common::session(), common::session()];
    for (gateway, chats) in [(&first, [here, both]), (&second, [there, both])] {
        for chat in chats {
            let bound = gateway.turn(DialSession::new(chat).in_workspace(workspace)).await?;
            expect(bound.target().agent == old.id, "every chat begins with the old agent")?;
        }
    }

    println!(
        "A chat moves to another workspace, and back. The agent that it leaves still responds."
    );
    for (commands, follows, to, agent) in
        [(&first, &second, elsewhere, &other), (&second, &first, workspace, &old)]
    {
        let held = follows.turn(both.into()).await?;
        expect(
            held.target().agent != agent.id,
            "before the command the chat talks to the other agent",
        )?;
        let began = Instant::now();
        commands.bindings.retarget(both, to).await?;
        // An open terminal waits in the same way.
        let told = timeout(Duration::from_secs(5), held.handle().superseded()).await;
        expect(told.is_ok(), "the other gateway learns of the command")?;
        say("retargeted at one gateway, known at the other", began.elapsed());
        let bound = follows.turn(both.into()).await?;
        expect(
            bound.target().agent == agent.id,
            "the next turn at the other gateway goes to the new workspace",
        )?;
    }

    // A gateway that begins to listen may have missed hints, so it validates once. Wait for that.
    for (gateway, chat) in [(&first, here), (&second, there)] {
        gateway.bindings.current(chat).await?;
    }
    println!(
        "\nThe workspace is rebuilt, and the old agent hangs. The validation delay is {DELAY:?}."
    );
    old.become_black_hole();
    authority.set(workspace, Resolution::Running(new.target(2)));
    let (took, bound) = timed(first.turn(here.into())).await?;
    say("a turn at one gateway, which finds the rebuild", took);
    expect(
        bound.target().agent == new.id && took >= DELAY,
        "the first gateway waits for the validation delay",
    )?;
    let (took, bound) = timed(second.turn(there.into())).await?;
    say("a turn at the other, which has heard of it", took);
    expect(bound.target().agent == new.id, "the other gateway uses the new agent")?;
    expect(took < DELAY / 2, "the other gateway does not wait for the validation delay")?;

    for gateway in [first, second] {
        expect(
            gateway.bindings.close(Duration::from_secs(5)).await == 0,
            "every repair was written",
        )?;
    }
    Ok(())
}

/// The state of one process.
struct Gateway {
    bindings: Bindings,
    dial: BoxCloneSyncService<DialSession, Bound<Connection>, Error>,
}

impl Gateway {
    async fn start(database: &Database, authority: &Authority) -> Result<Self, BoxError> {
        let pool = database.pool(4).await?;
        // Hints use two connections of their own to the same database.
        let hints = PostgresHints::new(pool.clone()).with_channel(database.name.as_str())?;
        let store = PostgresStore::new(pool);
        store.set_up().await?;
        let (authority, dialer) = (authority.clone(), Dialer::default());
        let layer =
            BoundAgentLayer::builder(store, service_fn(move |ask| authority.clone().resolve(ask)))
                .hints(hints)
                .validation_delay(DELAY)
                .build()?;
        let dial = layer.layer(service_fn(move |ask| dialer.clone().dial(ask)));
        Ok(Self { bindings: layer.bindings(), dial: BoxCloneSyncService::new(dial) })
    }

    /// One turn of a chat: a connection, a line to the agent, a line back.
    async fn turn(&self, ask: DialSession) -> Result<Bound<Connection>, BoxError> {
        let mut bound = self.dial.clone().oneshot(ask).await?;
        let responded = bound.ask("what is new?").await?;
        expect(responded == bound.target().agent, "the dialed agent responds")?;
        Ok(bound)
    }
}

async fn timed<T>(
    work: impl Future<Output = Result<T, BoxError>>,
) -> Result<(Duration, T), BoxError> {
    let began = Instant::now();
    let done = work.await?;
    Ok((began.elapsed(), done))
}

fn say(what: impl Display, took: Duration) {
    println!("  {what:<48} {:>8.1} ms", took.as_secs_f64() * 1000.0);
}
