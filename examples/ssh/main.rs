//! One idea: a connection to an agent is an SSH session, and the agent proves with its host key
//! that it is the one that was dialed. The recipe is in `dialer.rs`; `agent.rs` has the SSH server.
//!
//! `cargo run -p recipe-ssh` prints what each turn costs, and fails if that is not the expected
//! cost.

mod agent;
mod dialer;

use agent::{Agent, new_key};
use dialer::{ClientKey, Session};
use examples::common::{self, Authority, expect, until};
use russh::keys::PrivateKey;
use std::{fmt::Display, net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    Bindings, Bound, BoundAgentLayer, BoxError, DialSession, Error, ErrorKind, Outcome, Resolution,
    SessionId, WorkspaceId,
    store::{BindingStore, MemoryStore},
};

/// Far longer than the default, so that a turn that waits for it is recognizable.
const DELAY: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let key = Arc::new(new_key()?);
    let (client, any) = (&key.public_key().clone(), SocketAddr::from(([127, 0, 0, 1], 0)));
    let workspace = common::workspace();
    let authority = Authority::default();
    let first = Agent::start("agent 1", any, client).await?;
    authority.set(workspace, Resolution::Running(first.target(1)));
    let resolving = authority.clone();
    let resolver = service_fn(move |ask| resolving.clone().resolve(ask));
    let store = MemoryStore::new();
    let layer =
        BoundAgentLayer::builder(store.clone(), resolver).validation_delay(DELAY).build()?;
    let dial = BoxCloneSyncService::new(layer.layer(service_fn(dialer::dial)));
    let story = Story { bindings: layer.bindings(), dial, store, workspace, key };

    row("step", "outcome", "agent", ["dials", "questions", "ms"]);
    let (chat, terminal) = (common::session(), common::session());
    story.turn("first turn of a chat", chat, "first bind", &first, [1, 1]).await?;
    story.turn("the next turn", chat, "reused", &first, [1, 0]).await?;
    let held = story.turn("a terminal opens", terminal, "first bind", &first, [1, 0]).await?;

    println!("The workspace is rebuilt. The old agent hangs in the key exchange of new sessions.");
    let mut second = Agent::start("agent 2", any, client).await?;
    authority.set(workspace, Resolution::Running(second.target(2)));
    first.become_silent();
    story.turn("a turn, after the delay", chat, "switched", &second, [2, 1]).await?;
    story.expect_bound(chat, &second).await?;
    until("the stale dial is closed", PATIENCE, || first.connections() == 1).await?;

    println!(
        "The terminal is told. Its session is its own: it goes on until the terminal ends it."
    );
    let told = timeout(PATIENCE, held.handle().superseded()).await;
    expect(told.is_ok(), "the terminal's connection is superseded")?;
    let output = held.run("the command under way").await?;
    expect(output == "agent 1: the command under way", "the superseded session still runs")?;
    held.into_inner().close().await;
    until("no connection to the old agent is left", PATIENCE, || first.connections() == 0).await?;
    story.turn("a turn of the terminal", terminal, "switched", &second, [1, 0]).await?;

    println!("It is rebuilt again. The new agent has the old one's address and another host key.");
    second.stop().await;
    let third = Agent::start("agent 3", second.address, client).await?;
    authority.set(workspace, Resolution::Running(third.target(3)));
    story.turn("a turn, without delay", chat, "switched", &third, [2, 1]).await?;
    story.expect_bound(chat, &third).await?;
    expect(third.sessions() == 1, "the refused dial has offered no key")?;

    println!("A caller with another key: the right agent refuses it, which is no doubt about it.");
    let stranger = DialSession::new(chat).with_extension(ClientKey(Arc::new(new_key()?)));
    let refused = story.dial.clone().oneshot(stranger).await.err().ok_or("the key is accepted")?;
    row("a turn", refused.kind().as_str(), "-", ["1", "0", ""]);
    expect(*refused.kind() == ErrorKind::Local, "the error is the caller's own")?;
    expect(third.sessions() == 1 && authority.asked() == 3, "nothing was asked")?;

    expect(story.bindings.close(PATIENCE).await == 0, "every repair was written")
}

struct Story {
    bindings: Bindings,
    dial: BoxCloneSyncService<DialSession, Bound<Session>, Error>,
    store: MemoryStore,
    workspace: WorkspaceId,
    key: Arc<PrivateKey>,
}

impl Story {
    /// One turn: a session, a command, its output. `costs`: dials, and questions to the resolver.
    async fn turn(
        &self,
        step: &str,
        session: SessionId,
        outcome: &str,
        agent: &Agent,
        costs: [u8; 2],
    ) -> Result<Bound<Session>, BoxError> {
        let began = Instant::now();
        let ask = DialSession::new(session).in_workspace(self.workspace);
        let ask = ask.with_extension(ClientKey(Arc::clone(&self.key)));
        let bound = self.dial.clone().oneshot(ask).await?;
        let took = began.elapsed();
        let output = bound.run("what is new?").await?;
        let Outcome { kind, dials, validations, .. } = bound.outcome();
        let kind = kind.as_str().replace('_', " ");
        let numbers = [dials.to_string(), validations.to_string(), took.as_millis().to_string()];
        row(step, &kind, agent.name, numbers);
        expect(output == format!("{}: what is new?", agent.name), "the current agent responds")?;
        expect(
            (&*kind, [*dials, *validations]) == (outcome, costs),
            &format!("{outcome}, {costs:?}"),
        )?;
        self.bindings.flush().await; // the repair is written in the background
        Ok(bound)
    }

    async fn expect_bound(&self, session: SessionId, agent: &Agent) -> Result<(), BoxError> {
        let target = self.store.load(session).await?.and_then(|binding| binding.target);
        expect(target.is_some_and(|target| target.agent == agent.id), "the binding is repaired")
    }
}

fn row(step: &str, outcome: &str, agent: &str, [dials, questions, ms]: [impl Display; 3]) {
    println!("{step:<24} {outcome:<12} {agent:<8} {dials:>5} {questions:>9} {ms:>6}");
}
