//! A gateway in this process, and agents that answer with raw bytes.
#![allow(unreachable_pub)]

use axum::body::Body;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use support::net::{Client, soon};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower_bound_agent::{
    AgentId, SessionId, Target,
    http::proxy::{Hop, Peer},
};
use uuid::Uuid;

/// One received request.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The number of the connection.
    pub connection: usize,
    /// The request line and the headers.
    pub head: String,
    /// The body as it was sent, including its chunk framing.
    pub body: String,
}

impl Heard {
    /// All values of a header, in lower case names.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }
}

/// An agent that reads HTTP/1 requests and answers each with raw bytes from the test.
pub struct RawAgent {
    pub target: Target,
    heard: Arc<Mutex<Vec<Heard>>>,
    server: JoinHandle<()>,
}

impl RawAgent {
    pub async fn start(answer: impl Fn(&Heard) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::new(AgentId::new(Uuid::new_v4())).with_generation(1);
        let target = target.with_address(listener.local_addr().unwrap().to_string());
        let (heard, answer) = (Arc::<Mutex<Vec<Heard>>>::default(), Arc::new(answer));
        let hears = Arc::clone(&heard);
        let server = tokio::spawn(async move {
            for connection in 1.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (hears, answer) = (Arc::clone(&hears), Arc::clone(&answer));
                tokio::spawn(async move {
                    while let Some((head, body)) = read_request(&mut stream).await {
                        let request = Heard { connection, head, body };
                        let answer = answer(&request);
                        hears.lock().unwrap().push(request);
                        if stream.write_all(&answer).await.is_err() {
                            return;
                        }
                        if answer.starts_with(b"HTTP/1.1 101") {
                            echo(stream).await;
                            return;
                        }
                    }
                });
            }
        });
        Self { target, heard, server }
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for RawAgent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn echo(stream: impl AsyncRead + AsyncWrite) {
    let (mut reads, mut writes) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut reads, &mut writes).await;
    let _ = writes.shutdown().await;
}

/// Reads a head and its body. Returns `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream) -> Option<(String, String)> {
    let head = read_until(stream, |read| read.ends_with(b"\r\n\r\n")).await?;
    let value = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
            .next()
    };
    let body = match (value("transfer-encoding"), value("content-length")) {
        (Some(_), _) => read_until(stream, |read| read.ends_with(b"0\r\n\r\n")).await?,
        (None, Some(length)) => {
            let length: usize = length.parse().unwrap();
            read_until(stream, |read| read.len() >= length).await?
        }
        (None, None) => String::new(),
    };
    Some((head, body))
}

async fn read_until(stream: &mut TcpStream, is_whole: impl Fn(&[u8]) -> bool) -> Option<String> {
    let mut read = Vec::new();
    while !is_whole(&read) {
        read.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&read).into_owned())
}

/// A gateway that sends everything to the agent of one session.
pub struct Front {
    pub address: SocketAddr,
    server: JoinHandle<()>,
}

impl Front {
    pub async fn start(client: Client, hop: Hop, chat: SessionId) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                tokio::spawn(serve(TokioIo::new(stream), peer, client.clone(), hop.clone(), chat));
            }
        });
        Self { address, server }
    }

    /// Sends raw bytes and returns everything received until the gateway closes the connection.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        self.exchange(bytes, false).await
    }

    /// The same for a tunnel, whose client side is shut down after the bytes.
    pub async fn tunnel(&self, bytes: impl AsRef<[u8]>) -> String {
        self.exchange(bytes, true).await
    }

    async fn exchange(&self, bytes: impl AsRef<[u8]>, ends: bool) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        if ends {
            stream.shutdown().await.unwrap();
        }
        let mut said = Vec::new();
        let _ = soon(stream.read_to_end(&mut said)).await;
        String::from_utf8_lossy(&said).into_owned()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Serves one connection of a client, in HTTP/1 or HTTP/2, with extended CONNECT.
pub async fn serve<Io>(io: Io, peer: SocketAddr, client: Client, hop: Hop, chat: SessionId)
where
    Io: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (client, hop) = (client.clone(), hop.clone());
        async move { Ok::<_, Infallible>(pass_on(request, peer, client, hop, chat).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http2().enable_connect_protocol();
    let _ = server.serve_connection_with_upgrades(io, service).await;
}

async fn pass_on(
    mut request: ::http::Request<Incoming>,
    peer: SocketAddr,
    client: Client,
    hop: Hop,
    chat: SessionId,
) -> ::http::Response<Body> {
    let answer = |status: u16, says: String| {
        ::http::Response::builder()
            .status(status)
            .body(Body::new(Full::new(Bytes::from(says))))
            .unwrap()
    };
    let exchange = match hop.request(&mut request, &Peer::new(peer.ip())) {
        Ok(exchange) => exchange,
        Err(refusal) => return answer(refusal.status().as_u16(), refusal.to_string()),
    };
    request.extensions_mut().insert(chat);
    let mut response = match client.request(request.map(Body::new)).await {
        Ok(response) => response,
        Err(error) => {
            return answer(502, format!("{error}: {:?}", std::error::Error::source(&error)));
        }
    };
    match exchange.response(&mut response) {
        Ok(Some(tunnel)) => {
            tokio::spawn(async move {
                let Ok((client, agent)) = tunnel.open().await else { return };
                let _ =
                    copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(agent)).await;
            });
        }
        Ok(None) => {}
        Err(bad) => return answer(502, bad.to_string()),
    }
    response.map(Body::new)
}
