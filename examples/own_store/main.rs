//! One idea: bindings may be kept anywhere. Here they are in a key-value service that compares
//! versions. The store is in `store.rs`; `store_contract_tests!` in `tests/store_contract.rs` holds
//! it to the contract.
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
        println!(
            "{:<12} the {} agent responds, and the row has revision {}",
            bound.outcome().kind.as_str().replace('_', " "),
            agent.name,
            row.revision.get()
        );
        expect(bound.target().agent == agent.id, "the agent of the latest build responds")?;
        expect(
            row.target.is_some_and(|target| target.agent == agent.id),
            "the row names that agent",
        )?;
        expect(row.revision > Revision::new(revision), "the revision grows")?;
        revision = row.revision.get();
        old.become_black_hole();
    }
    Ok(())
}
