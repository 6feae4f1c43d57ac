//! One idea: the children of a chat (sub-agents, side threads) inherit its binding. No child asks
//! which agent serves the workspace, and after a rebuild one of them finds the new agent for all.
//!
//! `cargo run --example subagents`

use examples::common::{self, Agent, Authority, Dialer, Watch, expect};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_bound_agent::{
    BoundAgentLayer, BoxError, DialSession, OutcomeKind, Resolution, store::SqliteStore,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let watch = Watch::begin();
    let (old, new) = (Agent::start("old").await?, Agent::start("new").await?);
    let (chat, children) =
        (common::session(), [common::session(), common::session(), common::session()]);
    let workspace = common::workspace();
    let (authority, dialer) = (Authority::default(), Dialer::default());
    authority.set(workspace, Resolution::Running(old.target(1)));

    let directory = tempfile::tempdir()?;
    let store = SqliteStore::open(directory.path().join("bindings.db")).await?;
    let resolver = {
        let authority = authority.clone();
        service_fn(move |ask| authority.clone().resolve(ask))
    };
    let layer = BoundAgentLayer::builder(store, resolver).build()?;
    let bindings = layer.bindings();
    let dial = layer.layer(service_fn(move |ask| dialer.clone().dial(ask)));

    dial.clone().oneshot(DialSession::new(chat).in_workspace(workspace)).await?;
    bindings.flush().await;

    println!("The chat talks to the {} agent, and starts three children:", old.name);
    let (statements, asked) = (watch.statements(), authority.asked());
    for child in children {
        bindings.inherit(child, chat).await?;
    }
    let inherited = watch.statements() - statements;
    println!("  inherit, three times  {inherited} statements");
    for child in children {
        let bound = dial.clone().oneshot(child.into()).await?;
        expect(bound.target().agent == old.id, "a child talks to its parent's agent")?;
    }
    let (turns, questions) =
        (watch.statements() - statements - inherited, authority.asked() - asked);
    println!("  their first turns     {turns} statements, {questions} resolver calls");
    expect(
        (inherited, turns, questions) == (3, 0, 0),
        "each child costs one statement and nothing else",
    )?;

    old.become_black_hole();
    authority.set(workspace, Resolution::Running(new.target(2)));
    println!("\nThe workspace is rebuilt, and the old agent hangs:");
    let asked = authority.asked();
    let mut waited = Vec::new();
    for (session, name) in children
        .into_iter()
        .zip(["first child", "second child", "third child"])
        .chain([(chat, "chat")])
    {
        let began = Instant::now();
        let bound = dial.clone().oneshot(session.into()).await?;
        let took = began.elapsed();
        println!(
            "  {name:<14} dials: {}  {:>6.1} ms",
            bound.outcome().dials,
            took.as_secs_f64() * 1000.0
        );
        let switched = matches!(bound.outcome().kind, OutcomeKind::Switched { .. });
        expect(
            switched && bound.target().agent == new.id,
            "every session switches to the new agent",
        )?;
        waited.push((bound.outcome().dials, took.as_millis() >= 250));
    }
    expect(waited[0] == (2, true), "the first session waits for the validation delay")?;
    expect(
        waited[1..].iter().all(|waited| waited.0 == 1),
        "the other sessions dial the new agent at once",
    )?;
    expect(authority.asked() - asked == 1, "one resolver call serves all sessions")?;
    println!("\nOne session found the new agent, with one resolver call. The others did not wait.");
    Ok(())
}
