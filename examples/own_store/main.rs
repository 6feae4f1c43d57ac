//! One idea: bindings may live anywhere. Here in a key-value service that compares versions; the
//! store is in `store.rs`. That it does what the layer expects is shown by the tests that
//! `store_contract_tests!` makes, in `tests/store_contract.rs`.
//!
//! `cargo run --example own_store`

use examples::common::{self, Agent, Authority, Connection, expect};
use examples::own_store::store::KeyValueStore;
use tower::{Layer, ServiceExt, service_fn};
use tower_bound_agent::{BoundAgentLayer, BoxError, DialSession, Resolution, Revision};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (old, new) = (Agent::start("old").await?, Agent::start("new").await?);
    let (chat, workspace, authority) =
        (common::session(), common::workspace(), Authority::default());
    let resolver = authority.clone();
    let resolver = service_fn(move |ask| resolver.clone().resolve(ask));

    let layer = BoundAgentLayer::builder(KeyValueStore::default(), resolver).build()?;
    let bindings = layer.bindings();
    let dial = layer.layer(service_fn(Connection::open));

    let mut revision = 0;
    for (agent, generation) in [(&old, 1), (&new, 2)] {
        authority.set(workspace, Resolution::Running(agent.target(generation)));
        let bound = dial.clone().oneshot(DialSession::new(chat).in_workspace(workspace)).await?;
        bindings.flush().await;
        let row = bindings.get(chat).await?.ok_or("no row")?;
        println!("the chat talks to the {} agent; the row has {:?}", agent.name, row.revision);
        expect(bound.target().agent == agent.id, "the agent that runs answers")?;
        expect(row.target.is_some_and(|target| target.agent == agent.id), "the row names it")?;
        expect(row.revision > Revision::new(revision), "the revision grows")?;
        revision = row.revision.get();
        old.become_black_hole();
    }
    Ok(())
}
