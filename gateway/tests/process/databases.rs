//! Gateways over database servers.

use crate::scene::{Gateway, Platform, name};
use support::{net::Agent, servers};

/// Two gateways share the bindings of one database, and a third one finds them there. They exchange
/// no hints, whose arrival would decide who asks.
async fn gateways_share_their_bindings(url: &str) {
    let (platform, new) = (Platform::start().await, Agent::start(2).await);
    let mut old = Agent::start(1).await;
    let table = servers::table();
    let store = format!("store.url = {url:?}\nstore.table = {table:?}\nstore.hints = false");
    let (one, mut other) =
        (Gateway::start(&platform, &store).await, Gateway::start(&platform, &store).await);
    let workspace = platform.workspace(&old);
    let session = one.session(workspace).await;
    for gateway in [&one, &other] {
        assert_eq!(gateway.operate("GET", "/readyz", "").await.said(), (200, "ready\n"));
    }
    assert_eq!(one.get(session, "/").await.said(), (200, &*name(&old)));
    // The agent is written in the background.
    one.measures("bound_agent_repairs_total{scope=\"session\",result=\"written\"}", 1.0).await;
    assert_eq!(other.get(session, "/").await.said(), (200, &*name(&old)));
    assert_eq!(platform.asked(), 1, "the other gateway reads the agent in the row");

    platform.runs(workspace, &new.target);
    old.kill().await;
    for gateway in [&one, &other] {
        gateway.has_no_connection_to(&old).await;
    }
    for gateway in [&one, &other] {
        assert_eq!(gateway.get(session, "/").await.said(), (200, &*name(&new)));
    }
    assert_eq!(platform.asked(), 3, "each gateway has asked once about the rebuild");

    other.signal("TERM");
    assert_eq!(other.ended().await.code(), Some(0), "{:#?}", other.log());
    assert_eq!(other.line("ended").await["unwritten"], 0);
    let third = Gateway::start(&platform, &store).await;
    assert_eq!(third.get(session, "/").await.said(), (200, &*name(&new)));
    assert_eq!(platform.asked(), 3, "the repaired row names the agent");
}

#[tokio::test]
async fn gateways_over_postgres_share_their_bindings() {
    let Some(url) = servers::url("TEST_POSTGRES_URL") else { return };
    gateways_share_their_bindings(&url).await;
}

#[tokio::test]
async fn gateways_over_mysql_share_their_bindings() {
    let Some(url) = servers::url("TEST_MYSQL_URL") else { return };
    gateways_share_their_bindings(&url).await;
}
