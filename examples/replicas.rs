//! One idea: several processes serve the same chats, and tell each other what they have written.
//! Two gateways over one PostgreSQL, each with its own pool, cache and connections to the agents;
//! in an application they are two processes.
//!
//! `cargo run --example replicas --features postgres`, with `DATABASE_URL` or a server that is
//! started for the purpose.

use examples::common::{self, Agent, Authority, Connection, Dialer, database::Database, expect};
use std::{fmt::Display, process::ExitCode, time::Duration};
use tokio::time::{Instant, timeout};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    Bindings, Bound, BoundAgentLayer, BoxError, DialSession, Error, Resolution,
    hints::PostgresHints, store::PostgresStore,
};

/// Longer than anybody would choose, so that whoever waited for it stands out.
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

    // A chat that only the first gateway serves, one that only the second serves, and one that
    // moves about.
    let [here, there, both] = [common::session(), common::session(), common::session()];
    for (gateway, chats) in [(&first, [here, both]), (&second, [there, both])] {
        for chat in chats {
            let bound = gateway.turn(DialSession::new(chat).in_workspace(workspace)).await?;
            expect(bound.target().agent == old.id, "the chats begin with the old agent")?;
        }
    }

    println!(
        "A chat is pointed at another workspace, and back. The agent that it leaves lives on each time."
    );
    for (orders, follows, to, agent) in
        [(&first, &second, elsewhere, &other), (&second, &first, workspace, &old)]
    {
        let held = follows.turn(both.into()).await?;
        expect(
            held.target().agent != agent.id,
            "before the order the chat talks to the other agent",
        )?;
        let ordered = Instant::now();
        orders.bindings.retarget(both, to).await?;
        // As a terminal would that is open there.
        let told = timeout(Duration::from_secs(5), held.handle().superseded()).await;
        expect(told.is_ok(), "the other gateway is told")?;
        say("ordered at one gateway, known at the other", ordered.elapsed());
        let bound = follows.turn(both.into()).await?;
        expect(
            bound.target().agent == agent.id,
            "the next turn at the other gateway follows the order",
        )?;
    }

    // Whoever begins to listen may have missed something, and asks. That is over now.
    for (gateway, chat) in [(&first, here), (&second, there)] {
        gateway.bindings.current(chat).await?;
    }
    println!(
        "The workspace is rebuilt. The old agent hangs; a dial is questioned after {DELAY:?}."
    );
    old.become_black_hole();
    authority.set(workspace, Resolution::Running(new.target(2)));
    let (took, bound) = timed(first.turn(here.into())).await?;
    say("one gateway finds out", took);
    expect(bound.target().agent == new.id && took >= DELAY, "one gateway has to find out")?;
    let (took, bound) = timed(second.turn(there.into())).await?;
    say("the next turn at the other, which is told", took);
    expect(bound.target().agent == new.id, "the other gateway uses what was found")?;
    expect(took < DELAY / 2, "the other gateway does not have to find out")?;

    for gateway in [first, second] {
        expect(
            gateway.bindings.close(Duration::from_secs(5)).await == 0,
            "every repair was written",
        )?;
    }
    Ok(())
}

/// What one process has.
struct Gateway {
    bindings: Bindings,
    dial: BoxCloneSyncService<DialSession, Bound<Connection>, Error>,
}

impl Gateway {
    async fn start(database: &Database, authority: &Authority) -> Result<Self, BoxError> {
        let pool = database.pool(4).await?;
        // Two connections of its own to the same database, one that listens and one that sends.
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

    /// A connection, one question, one answer.
    async fn turn(&self, ask: DialSession) -> Result<Bound<Connection>, BoxError> {
        let mut bound = self.dial.clone().oneshot(ask).await?;
        let answered = bound.ask("what is new?").await?;
        expect(answered == bound.target().agent, "the agent that was dialed answers")?;
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
    println!("  {what:<40} {:>8.1} ms", took.as_secs_f64() * 1000.0);
}
