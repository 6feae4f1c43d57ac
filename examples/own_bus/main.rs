//! One idea: replicas may tell each other what they have written over any message bus. Here it is a
//! broker that relays lines over TCP. The bus is in `bus.rs`; `hints_contract_tests!` in
//! `tests/hints_contract/own_bus.rs` holds it to the contract.
//!
//! `cargo run --example own_bus`

use examples::common::{self, Agent, Authority, Connection, expect};
use examples::own_bus::{broker::Broker, bus::BrokerHints};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    Binding, Bindings, Bound, BoundAgentLayer, BoxError, DialSession, Error, Outcome, Resolution,
    SessionId,
    store::{BindingStore, MemoryStore, StoreError, StoreWrapper},
};

/// How long the story waits for news.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (old, new, other) =
        (Agent::start("old").await?, Agent::start("new").await?, Agent::start("other").await?);
    let (workspace, elsewhere) = (common::workspace(), common::workspace());
    let authority = Authority::default();
    authority.set(workspace, Resolution::Running(old.target(1)));
    authority.set(elsewhere, Resolution::Running(other.target(1)));
    let (broker, store) = (Broker::start().await?, MemoryStore::new());
    let a = Replica::start(&broker, &store, &authority)?;
    let b = Replica::start(&broker, &store, &authority)?;

    let [here, there, moved] = [common::session(), common::session(), common::session()];
    a.turn(DialSession::new(here).in_workspace(workspace)).await?;
    let terminal = b.turn(DialSession::new(there).in_workspace(workspace)).await?;

    println!("A command at replica A, while replica B has a connection of the session.");
    let held = b.turn(DialSession::new(moved).in_workspace(workspace)).await?;
    a.bindings.retarget(moved, elsewhere).await?;
    let told = timeout(PATIENCE, held.handle().superseded()).await;
    expect(told.is_ok(), "replica B learns of the command")?;
    println!("  B has heard of it, and the connection is superseded");

    println!("The workspace is rebuilt, and the old agent hangs.");
    old.become_black_hole();
    authority.set(workspace, Resolution::Running(new.target(2)));
    let bound = a.turn(here.into()).await?;
    say("A finds the rebuild", &bound);
    expect(bound.target().agent == new.id, "replica A finds the new agent")?;
    let told = timeout(PATIENCE, terminal.handle().superseded()).await;
    expect(told.is_ok(), "replica B learns of the rebuild")?;

    println!("The next turn at replica B, which now reaches neither the store nor the resolver.");
    b.outage.begin();
    let bound = b.turn(there.into()).await?;
    b.outage.end();
    say("B has heard of it", &bound);
    expect(bound.target().agent == new.id, "replica B dials the new agent")?;
    let Outcome { dials, validations, .. } = bound.outcome();
    expect((*dials, *validations) == (1, 0), "replica B dials once and asks nothing")?;

    for replica in [a, b] {
        let unwritten = replica.bindings.close(PATIENCE).await;
        expect(unwritten == 0, "every repair was written")?;
    }
    Ok(())
}

/// The state of one process.
struct Replica {
    bindings: Bindings,
    dial: BoxCloneSyncService<DialSession, Bound<Connection>, Error>,
    outage: Outage,
}

impl Replica {
    fn start(
        broker: &Broker,
        store: &MemoryStore,
        authority: &Authority,
    ) -> Result<Self, BoxError> {
        let (authority, outage) = (authority.clone(), Outage::default());
        let store = Store { store: store.clone(), outage: outage.clone() };
        let resolver_outage = outage.clone();
        let resolver = service_fn(move |ask| {
            let (authority, outage) = (authority.clone(), resolver_outage.clone());
            async move {
                outage.check()?;
                authority.resolve(ask).await
            }
        });
        let layer = BoundAgentLayer::builder(store, resolver)
            .hints(BrokerHints::new(broker.address))
            .build()?;
        let dial = BoxCloneSyncService::new(layer.layer(service_fn(Connection::open)));
        Ok(Self { bindings: layer.bindings(), dial, outage })
    }

    /// One turn of a chat: a connection, a line to the agent, a line back.
    async fn turn(&self, ask: DialSession) -> Result<Bound<Connection>, BoxError> {
        let mut bound = self.dial.clone().oneshot(ask).await?;
        let responded = bound.ask("what is new?").await?;
        expect(responded == bound.target().agent, "the dialed agent responds")?;
        Ok(bound)
    }
}

fn say<C>(what: &str, bound: &Bound<C>) {
    let Outcome { dials, validations, .. } = bound.outcome();
    println!("  {what}: {dials} dials, {validations} questions to the resolver");
}

/// While it lasts, a replica reaches neither the store nor the resolver.
#[derive(Clone, Default)]
struct Outage(Arc<AtomicBool>);

impl Outage {
    fn begin(&self) {
        self.0.store(true, SeqCst);
    }

    fn end(&self) {
        self.0.store(false, SeqCst);
    }

    fn check(&self) -> Result<(), BoxError> {
        if self.0.load(SeqCst) { Err("out of reach".into()) } else { Ok(()) }
    }
}

/// The store as one replica reaches it.
struct Store {
    store: MemoryStore,
    outage: Outage,
}

impl StoreWrapper for Store {
    type Inner = MemoryStore;

    fn inner(&self) -> &MemoryStore {
        &self.store
    }

    async fn load(&self, session: SessionId) -> Result<Option<Binding>, StoreError> {
        self.outage.check().map_err(StoreError::Unavailable)?;
        self.store.load(session).await
    }

    async fn load_many(&self, sessions: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        self.outage.check().map_err(StoreError::Unavailable)?;
        self.store.load_many(sessions).await
    }
}
