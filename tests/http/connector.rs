//! The dial service as a connector of hyper-util's legacy client.

use http_body_util::BodyExt;
use hyper_util::{client::legacy::Client as Legacy, rt::TokioExecutor};
use std::error::Error as _;
use support::net::*;
use support::session;
use tower_bound_agent::{
    BoundHandle, DialSession, Error, ErrorKind, OutcomeKind, Resolution,
    http::{Connector, NoSession},
};

type Hyper = Legacy<Connector<tower_bound_agent::BoundAgent<Dialer>>, Sends>;

fn unpooled(net: &Net) -> Hyper {
    Legacy::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(Connector::new(net.dial()))
}

async fn get_from(
    client: &Hyper,
    authority: &str,
) -> Result<(String, BoundHandle), hyper_util::client::legacy::Error> {
    let request = ::http::Request::get(format!("http://{authority}/")).body(empty()).unwrap();
    let response = soon(client.request(request)).await?;
    let handle = response.extensions().get::<BoundHandle>().unwrap().clone();
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    Ok((String::from_utf8(bytes.to_vec()).unwrap(), handle))
}

#[tokio::test]
async fn each_connection_leads_to_the_currently_bound_agent() {
    let (net, old) = (Net::new(), Agent::start(1).await);
    let ws = net.workspace(&old);
    let chat = net.bind(ws).await;
    let client = unpooled(&net);
    let authority = Connector::authority(chat).to_string();
    let (before, accepted) = (net.counts(), old.accepted());
    for _ in 0..3 {
        let (said, handle) = get_from(&client, &authority).await.unwrap();
        assert_eq!(said, old.target.agent.to_string());
        assert_eq!((handle.session(), &handle.outcome().kind), (chat, &OutcomeKind::Reused));
    }
    assert_eq!((net.counts() - before, old.accepted() - accepted), (counts(3, 0, 0, 0), 3));
    // The old agent is alive; another session discovered the new one.
    let new = Agent::start(2).await;
    net.runs(ws, &new);
    net.learn(ws).await;
    let (said, _) = get_from(&client, &authority).await.unwrap();
    assert_eq!((said, new.requests()), (new.target.agent.to_string(), 1));
    old.has_open(0).await;
}

/// This test shows the trap that the documentation describes, not a desired behaviour.
#[tokio::test]
async fn the_legacy_clients_pool_keeps_using_the_old_agent() {
    let (net, old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
    let ws = net.workspace(&old);
    let chat = net.bind(ws).await;
    let client: Hyper = Legacy::builder(TokioExecutor::new()).build(Connector::new(net.dial()));
    let authority = Connector::authority(chat).to_string();
    get_from(&client, &authority).await.unwrap();
    net.runs(ws, &new);
    net.learn(ws).await;
    assert_eq!(get_from(&client, &authority).await.unwrap().0, old.target.agent.to_string());
    assert_eq!(new.requests(), 0);
}

#[tokio::test]
async fn an_authority_without_a_session_is_rejected_without_a_dial() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let client = unpooled(&net);
    let (before, accepted) = (net.counts(), agent.accepted());
    let address = agent.target.address.clone().unwrap();
    let braced = chat.into_uuid().simple().to_string();
    for authority in [
        &*address,
        "localhost",
        "agent",
        &format!("x.{chat}"),
        &braced,
        &format!("{chat}x.agent"),
        "[::1]",
    ] {
        let error = get_from(&client, authority).await.unwrap_err();
        assert!(error.is_connect(), "{authority}: {error:?}");
        let refused = error.source().and_then(|error| error.downcast_ref::<NoSession>());
        assert_eq!(refused.unwrap().uri().authority().unwrap().as_str(), authority);
    }
    assert_eq!((net.counts() - before, agent.accepted()), (counts(0, 0, 0, 0), accepted));
    // Other parts of the authority are ignored.
    for authority in [chat.to_string(), format!("{chat}.any.name:81"), format!("me@{chat}")] {
        get_from(&client, &authority).await.unwrap();
    }
    assert_eq!(net.counts() - before, counts(3, 0, 0, 0));
}

#[tokio::test]
async fn the_layers_error_is_the_source_of_hypers_error() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let ws = net.workspace(&agent);
    let client = unpooled(&net);
    let kind = async |chat| {
        let error = get_from(&client, Connector::authority(chat).as_str()).await.unwrap_err();
        error.source().and_then(|error| error.downcast_ref::<Error>()).unwrap().kind().clone()
    };
    assert_eq!(kind(session()).await, ErrorKind::NotBound);
    let chat = net.bind(ws).await;
    net.layer.bindings().unbind(chat).await.unwrap();
    net.says(ws, Resolution::Stopped);
    net.layer.bindings().revalidate_workspace(ws);
    assert_eq!(kind(chat).await, ErrorKind::Stopped);
}

#[tokio::test]
async fn an_application_reads_its_own_addresses() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let ws = net.workspace(&agent);
    let chat = session();
    let connector = Connector::new(net.dial()).session_from(move |uri| {
        (uri.host()? == "my-chat").then(|| DialSession::new(chat).in_workspace(ws))
    });
    let client: Hyper =
        Legacy::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let (_, handle) = get_from(&client, "my-chat").await.unwrap();
    assert_eq!((handle.session(), &handle.outcome().kind), (chat, &OutcomeKind::FirstBind));
    assert!(get_from(&client, Connector::authority(chat).as_str()).await.unwrap_err().is_connect());
}
