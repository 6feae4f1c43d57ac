//! One idea: tonic works over the layer in two ways, which differ when an agent is replaced.
//!
//! * A `Channel` over the [`Connector`] dials through the layer when it has no connection. It keeps
//!   a connection until that breaks, even if the agent was replaced.
//! * The [`AgentClient`] as tonic's transport sends each call to the agent that is bound now.
//!
//! `cargo run --features http --example grpc`; it needs no `protoc`.

use examples::common::{self, Authority, expect};
use examples::grpc::answers::{Agent, Word, ask};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::{net::TcpStream, time::sleep};
use tonic::transport::Endpoint;
use tower::{Layer, ServiceExt, service_fn};
use tower_bound_agent::{
    BoundAgentLayer, BoxError, DialAgent, DialSession, Resolution,
    http::{AgentClient, Connector},
    store::MemoryStore,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (chat, workspace, authority) =
        (common::session(), common::workspace(), Authority::default());
    let resolver = authority.clone();
    let resolver = service_fn(move |ask| resolver.clone().resolve(ask));
    let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?;
    let dial = layer.layer(service_fn(async |ask: DialAgent| {
        let address = ask.target.address.as_deref().ok_or("no address")?;
        Ok::<_, BoxError>(TokioIo::new(TcpStream::connect(address).await?))
    }));

    let first = Agent::start(1).await?;
    authority.set(workspace, Resolution::Running(first.target.clone()));
    drop(dial.clone().oneshot(DialSession::new(chat).in_workspace(workspace)).await?);

    let address = format!("http://{}", Connector::authority(chat));
    let channel =
        Endpoint::from_shared(address)?.connect_with_connector_lazy(Connector::new(dial.clone()));
    let client = AgentClient::builder().http2().build(dial);

    println!("A chat asks the first agent, which streams its response:");
    let mut answer = ask(channel.clone(), chat, "a stream of words").await?;
    let mut words = Vec::new();
    while let Some(word) = answer.message().await? {
        expect(word.agent == first.name(), "the first agent responds")?;
        words.push(word.text);
    }
    println!("  channel: {} messages of the first agent: {words:?}", words.len());

    println!("\nThe first agent dies, and a second one starts:");
    drop(first);
    let second = Agent::start(2).await?;
    authority.set(workspace, Resolution::Running(second.target.clone()));
    // The first calls may still use the broken connection. Only the caller knows whether it may
    // repeat a call; this one may be repeated.
    let mut answer = ask(channel.clone(), chat, "hello").await;
    let mut failed = 0;
    while answer.is_err() && failed < 10 {
        failed += 1;
        sleep(Duration::from_millis(20)).await;
        answer = ask(channel.clone(), chat, "hello").await;
    }
    expect(agent_of(answer?).await? == second.name(), "the channel dials the second agent")?;
    println!("  channel: {failed} calls failed, then it dialed the second agent");

    println!("\nA third agent replaces the second, which still responds:");
    let third = Agent::start(3).await?;
    authority.set(workspace, Resolution::Running(third.target.clone()));
    layer.bindings().revalidate_workspace(workspace);
    layer.bindings().current(chat).await?;
    let answered = agent_of(ask(channel, chat, "hello").await?).await?;
    expect(answered == second.name(), "the channel keeps its connection")?;
    println!("  channel: the second agent responds, over the connection that it has");
    let answered = agent_of(ask(client, chat, "hello").await?).await?;
    expect(answered == third.name(), "the client moves to the third agent")?;
    println!("  client:  the third agent responds");
    Ok(())
}

async fn agent_of(mut answer: tonic::Streaming<Word>) -> Result<String, BoxError> {
    Ok(answer.message().await?.ok_or("the stream is empty")?.agent)
}
