//! A gRPC service with one method, which repeats a question word by word. The code that `protoc`
//! would generate is written by hand:
//!
//! ```proto
//! service Agent { rpc Answer(Question) returns (stream Word); }
//! message Question { string text = 1; }
//! message Word { string text = 1; string agent = 2; }
//! ```

use futures_util::{Stream, StreamExt, stream};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{convert::Infallible, io, time::Duration};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tonic::{
    Request, Response, Status, Streaming,
    client::{Grpc, GrpcService},
    codegen::{Body, Bytes, StdError, http, http::uri::PathAndQuery},
};
use tonic_prost::ProstCodec;
use tower::service_fn;
use tower_bound_agent::{AgentId, SessionId, Target};
use uuid::Uuid;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Question {
    #[prost(string, tag = "1")]
    pub text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Word {
    #[prost(string, tag = "1")]
    pub text: String,
    #[prost(string, tag = "2")]
    pub agent: String,
}

/// Asks over any transport of tonic's. The chat is in the extensions, where an `AgentClient` reads
/// it.
pub async fn ask<T>(transport: T, chat: SessionId, text: &str) -> Result<Streaming<Word>, Status>
where
    T: GrpcService<tonic::body::Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    let mut grpc = Grpc::new(transport);
    grpc.ready().await.map_err(|error| Status::unavailable(error.into().to_string()))?;
    let mut question = Request::new(Question { text: text.to_owned() });
    question.extensions_mut().insert(chat);
    let method = PathAndQuery::from_static("/example.Agent/Answer");
    let answer =
        grpc.server_streaming(question, method, ProstCodec::<Question, Word>::default()).await?;
    Ok(answer.into_inner())
}

/// An agent that listens on TCP. Dropping it ends it with all of its connections.
pub struct Agent {
    pub target: Target,
    /// Ends with this value.
    _server: JoinSet<()>,
}

impl Agent {
    pub async fn start(generation: i64) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let id = AgentId::new(Uuid::new_v4());
        let target = Target::new(id)
            .with_generation(generation)
            .with_address(listener.local_addr()?.to_string());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, id));
        Ok(Self { target, _server: server })
    }

    pub fn name(&self) -> String {
        self.target.agent.to_string()
    }
}

async fn serve(listener: TcpListener, id: AgentId) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let service = service_fn(move |request: http::Request<Incoming>| async move {
            let answer = service_fn(move |question| answer(id, question));
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Word, Question>::default());
            Ok::<_, Infallible>(grpc.server_streaming(answer, request).await)
        });
        connections.spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new()).http2_only();
            let _ = server
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .await;
        });
    }
}

type Words = std::pin::Pin<Box<dyn Stream<Item = Result<Word, Status>> + Send>>;

/// Repeats the words of the question, one every 20 ms.
async fn answer(id: AgentId, question: Request<Question>) -> Result<Response<Words>, Status> {
    let words: Vec<String> =
        question.into_inner().text.split_whitespace().map(str::to_owned).collect();
    let words = stream::iter(words).then(move |text| async move {
        sleep(Duration::from_millis(20)).await;
        Ok(Word { text, agent: id.to_string() })
    });
    Ok(Response::new(words.boxed()))
}
