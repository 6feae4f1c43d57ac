//! tonic's client over the layer, and a gRPC server behind it.

use examples::grpc::answers::{Agent, Word, ask};
use hyper_util::rt::TokioIo;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tonic::{Streaming, transport::Endpoint};
use tower::{Layer, service_fn};
use tower_bound_agent::{
    BoundAgentLayer, BoxError, DialAgent, Resolution, ResolveWorkspace, SessionId, WorkspaceId,
    http::{AgentClient, Connector},
    store::MemoryStore,
};
use uuid::Uuid;

async fn agents(mut answer: Streaming<Word>) -> Vec<String> {
    let mut agents = Vec::new();
    let bound = Duration::from_secs(20);
    while let Some(word) = timeout(bound, answer.message()).await.expect("in time").unwrap() {
        agents.push(word.agent);
    }
    agents
}

#[tokio::test]
async fn tonic_streams_from_the_bound_agent() {
    let (chat, workspace) = (SessionId::new(Uuid::new_v4()), WorkspaceId::new(Uuid::new_v4()));
    let (first, second) = (Agent::start(1).await.unwrap(), Agent::start(2).await.unwrap());
    let running = Arc::new(Mutex::new(first.target.clone()));
    let dials = Arc::new(AtomicU64::new(0));
    let resolver = service_fn({
        let running = Arc::clone(&running);
        move |_: ResolveWorkspace| {
            std::future::ready(Ok::<_, BoxError>(Resolution::Running(
                running.lock().unwrap().clone(),
            )))
        }
    });
    let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build().unwrap();
    let dial = layer.layer(service_fn({
        let dials = Arc::clone(&dials);
        move |ask: DialAgent| {
            dials.fetch_add(1, SeqCst);
            async move {
                TcpStream::connect(ask.target.address.as_deref().unwrap()).await.map(TokioIo::new)
            }
        }
    }));
    layer.bindings().retarget(chat, workspace).await.unwrap();
    let client = AgentClient::builder().http2().build(dial.clone());
    let address = format!("http://{}", Connector::authority(chat));
    let channel =
        Endpoint::from_shared(address).unwrap().connect_with_connector_lazy(Connector::new(dial));

    let long = "one two three four five six seven eight nine ten";
    let over_channel = agents(ask(channel.clone(), chat, long).await.unwrap()).await;
    assert_eq!((over_channel, dials.load(SeqCst)), (vec![first.name(); 10], 1));
    let over_client = ask(client.clone(), chat, long).await.unwrap();
    let again = agents(ask(client.clone(), chat, "once").await.unwrap()).await;
    assert_eq!((again, dials.load(SeqCst)), (vec![first.name()], 2), "one connection, two streams");

    *running.lock().unwrap() = second.target.clone();
    layer.bindings().revalidate_workspace(workspace);
    layer.bindings().current(chat).await.unwrap();
    let moved = agents(ask(client.clone(), chat, long).await.unwrap()).await;
    assert_eq!((moved, dials.load(SeqCst)), (vec![second.name(); 10], 3));
    // Streams in progress end on the agent on which they began.
    assert_eq!(agents(over_client).await, vec![first.name(); 10]);

    // A channel finds the new one when its connection ends.
    drop(first);
    // One call may still meet the old connection.
    let answer = match ask(channel.clone(), chat, "once").await {
        Ok(answer) => answer,
        Err(_) => ask(channel, chat, "once").await.unwrap(),
    };
    assert_eq!((agents(answer).await, dials.load(SeqCst)), (vec![second.name()], 4));
}
