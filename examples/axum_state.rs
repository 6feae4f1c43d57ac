//! One idea: in an axum application the client is the state, and a handler passes its request on to
//! the agent of the chat.
//!
//! `cargo run --features http,serde --example axum_state`

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Path, Request, State},
    http::StatusCode,
    response::Response,
    routing::any,
};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    AgentId, BoundAgentLayer, BoxError, DialAgent, DialSession, Resolution, ResolveWorkspace,
    SessionId, Target, WorkspaceId,
    http::{AgentBody, AgentClient, ClientError},
    store::MemoryStore,
};
use uuid::Uuid;

const WORKSPACE: WorkspaceId = WorkspaceId::new(Uuid::from_u128(1)); // an application looks it up

type Agents = BoxCloneSyncService<Request, Response<AgentBody>, ClientError>;

async fn turn(
    State(agents): State<Agents>,
    Path(chat): Path<SessionId>,
    mut request: Request,
) -> Result<Response, StatusCode> {
    request.extensions_mut().insert(DialSession::new(chat).in_workspace(WORKSPACE));
    let response = agents.oneshot(request).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(response.map(Body::new))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let agent =
        Target::new(AgentId::new(Uuid::new_v4())).with_address(listener.local_addr()?.to_string());
    tokio::spawn(
        axum::serve(listener, any(async || "hello from the agent").into_make_service())
            .into_future(),
    );

    let running = Resolution::Running(agent);
    let resolver = service_fn(move |_: ResolveWorkspace| {
        std::future::ready(Ok::<_, BoxError>(running.clone()))
    });
    let dialer = service_fn(async |ask: DialAgent| {
        let address = ask.target.address.as_deref().ok_or("no address")?;
        Ok::<_, BoxError>(TokioIo::new(TcpStream::connect(address).await?))
    });
    let layer = BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?;
    let agents = Agents::new(AgentClient::new(layer.layer(dialer)));

    let app = Router::new().route("/chats/{chat}", any(turn)).with_state(agents);
    let path = format!("/chats/{}", Uuid::new_v4());
    let response = app.oneshot(Request::get(path).body(Body::empty())?).await?;
    let status = response.status();
    let body = String::from_utf8(to_bytes(response.into_body(), 1024).await?.to_vec())?;
    println!("GET /chats/{{chat}}: {status}, {body}");
    if status == StatusCode::OK && body == "hello from the agent" {
        Ok(())
    } else {
        Err("the story did not happen: the agent responds through the application".into())
    }
}
