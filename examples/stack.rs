//! One idea: a limit, a timeout or a span outside the layer applies to whole turns; inside the
//! layer it applies to single dials.
//!
//! `cargo run --example stack`

use examples::common::{self, Agent, Authority, Connection, Dialer, Watch, expect};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tower::{
    ServiceBuilder, ServiceExt, service_fn, timeout::error::Elapsed, util::BoxCloneSyncService,
};
use tower_bound_agent::{
    Bound, BoundAgentLayer, BoxError, DialSession, OutcomeKind, Resolution, SessionId, WorkspaceId,
    store::{BindingStore, MemoryStore, NewBinding},
};
use tracing::{Instrument, info_span};

const SLOW: Duration = Duration::from_millis(600);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let watch = Watch::begin();
    limits().await?;
    timeouts_and_spans(&watch).await
}

/// Measures a turn of a bound chat while the first turn of another chat waits for a slow resolver,
/// with a limit of one inside the layer, then outside.
async fn limits() -> Result<(), BoxError> {
    println!(
        "A first turn waits for a resolver that takes {SLOW:?}. A turn of another chat takes:"
    );

    let (layer, known, unknown) = slow_world().await?;
    let inside = ServiceBuilder::new()
        .layer(layer)
        .concurrency_limit(1)
        .service(service_fn(Connection::open));
    let took =
        meanwhile(BoxCloneSyncService::new(inside.map_err(Into::into)), known, unknown).await?;
    println!("  limit of 1 inside the layer    {:>7.1} ms  only dials hold permits", ms(took));
    expect(took < SLOW / 2, "a limit inside the layer counts dials only")?;

    let (layer, known, unknown) = slow_world().await?;
    let outside = ServiceBuilder::new()
        .concurrency_limit(1)
        .layer(layer)
        .service(service_fn(Connection::open));
    let took =
        meanwhile(BoxCloneSyncService::new(outside.map_err(Into::into)), known, unknown).await?;
    println!(
        "  limit of 1 outside the layer   {:>7.1} ms  a turn holds its permit while it waits",
        ms(took)
    );
    expect(took >= SLOW / 2, "a limit outside the layer counts whole turns")
}

/// A caller that gives up before the validation delay (250 ms), an agent that hangs, and spans on
/// both sides of the layer.
async fn timeouts_and_spans(watch: &Watch) -> Result<(), BoxError> {
    let (old, new) = (Agent::start("old").await?, Agent::start("new").await?);
    let (chat, workspace, authority) =
        (common::session(), common::workspace(), Authority::default());
    authority.set(workspace, Resolution::Running(new.target(2)));
    let (dialer, resolver) = (Dialer::default(), authority.clone());
    let resolver = service_fn(move |ask| resolver.clone().resolve(ask));

    // The chat was bound before the rebuild. The old agent's address still accepts connections.
    let store = MemoryStore::new();
    let _ = store.create(NewBinding::new(chat, workspace, Some(Arc::new(old.target(1))))).await?;
    old.become_black_hole();

    let dial = ServiceBuilder::new()
        .map_future(|turn| Instrument::instrument(turn, info_span!("turn"))) // one span per turn
        .timeout(Duration::from_millis(150)) // ends a turn; its pending dial is dropped
        .layer(BoundAgentLayer::builder(store, resolver).build()?)
        .map_future(|dial| Instrument::instrument(dial, info_span!("connect"))) // one per dial
        .concurrency_limit(64) // at most 64 dials at once
        .service(service_fn(move |ask| dialer.clone().dial(ask)));

    println!(
        "\nThe agent hangs. The caller gives up after 150 ms, before the layer validates (250 ms):"
    );
    let began = Instant::now();
    let gave_up = dial.clone().oneshot(chat.into()).await;
    println!(
        "  the turn                       {:>7.1} ms  timed out, and left a doubt",
        ms(began.elapsed())
    );
    expect(gave_up.is_err_and(|error| error.is::<Elapsed>()), "the first turn times out")?;

    let began = Instant::now();
    let bound = dial.clone().oneshot(chat.into()).await?;
    let took = began.elapsed();
    println!(
        "  the next turn                  {:>7.1} ms  validated at once, switched to the new agent",
        ms(took)
    );
    expect(matches!(bound.outcome().kind, OutcomeKind::Switched { .. }), "the next turn switches")?;
    expect(bound.target().agent == new.id && authority.asked() == 1, "after one question")?;

    let (turns, dials) = (watch.spans("turn"), watch.spans("connect"));
    println!("  spans                          {turns} turns, {dials} dials");
    expect(
        (turns, dials) == (2, 3),
        "there is a span for each turn outside and for each dial inside",
    )
}

type Dial = BoxCloneSyncService<DialSession, Bound<Connection>, BoxError>;

async fn slow_world() -> Result<(BoundAgentLayer, WorkspaceId, WorkspaceId), BoxError> {
    let authority = Authority::slow(SLOW);
    let (known, unknown) = (common::workspace(), common::workspace());
    for workspace in [known, unknown] {
        authority.set(workspace, Resolution::Running(Agent::start("agent").await?.target(1)));
    }
    let resolver = service_fn(move |ask| authority.clone().resolve(ask));
    Ok((BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?, known, unknown))
}

/// Returns how long a turn of a bound chat takes while the first turn of another chat waits for the
/// resolver.
async fn meanwhile(
    dial: Dial,
    known: WorkspaceId,
    unknown: WorkspaceId,
) -> Result<Duration, BoxError> {
    let (chat, newcomer): (SessionId, SessionId) = (common::session(), common::session());
    dial.clone().oneshot(DialSession::new(chat).in_workspace(known)).await?;
    let first_turn =
        tokio::spawn(dial.clone().oneshot(DialSession::new(newcomer).in_workspace(unknown)));
    tokio::time::sleep(SLOW / 10).await;
    let began = Instant::now();
    dial.oneshot(chat.into()).await?;
    let took = began.elapsed();
    first_turn.await??;
    Ok(took)
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}
