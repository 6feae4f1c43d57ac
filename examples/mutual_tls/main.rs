//! One idea: an agent proves with its certificate which agent it is. A connection to an address
//! that another agent has by now is noticed before a byte is sent to the stranger, and the layer
//! does not dial it twice.
//!
//! `cargo run -p recipe-mutual-tls`

mod authority;

use authority::{Authority, name_of};
use examples::common::{self, expect};
use rustls::{
    AlertDescription::{BadCertificate, CertificateExpired, CertificateRequired, UnknownCA},
    CertificateError::{NotValidForName, NotValidForNameContext},
    ClientConfig,
};
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    AgentId, Bound, BoundAgentLayer, BoxError, DialAgent, DialSession, Error, LocalError, Repair,
    Resolution, Target, WrongAgentError, store::MemoryStore,
};
use uuid::Uuid;

type Connection = TlsStream<TcpStream>;
type Dial = BoxCloneSyncService<DialSession, Bound<Connection>, Error>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let authority = Authority::new()?;
    let mut story = Story::begin();
    let layer = {
        let (said, asked) = (Arc::clone(&story.resolver_says), Arc::clone(&story.asked));
        let resolver = service_fn(move |_| {
            asked.fetch_add(1, SeqCst);
            let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
            std::future::ready(said.ok_or("nothing was built"))
        });
        BoundAgentLayer::builder(MemoryStore::new(), resolver).build()?
    };
    let dialer = |tls: ClientConfig| -> Dial {
        let (tls, dials) = (TlsConnector::from(Arc::new(tls)), Arc::clone(&story.dials));
        let connect = move |ask| {
            dials.fetch_add(1, SeqCst);
            connect(tls.clone(), ask)
        };
        BoxCloneSyncService::new(layer.layer(service_fn(connect)))
    };
    let dial = dialer(authority.client(Some("gateway.example"))?);
    let anonymous = dialer(authority.client(None)?);

    let first = Agent::listen(&authority, "127.0.0.1:0").await?;
    story.built(&first, 1);
    story.turn("the first turn", &dial, ("first_bind", 1, 1)).await?;
    story.turn("the second turn", &dial, ("reused", 1, 0)).await?;

    println!("\nThe workspace is rebuilt. An agent of another workspace gets the old address:");
    let (heard, address) = first.stop().await;
    let stranger = Agent::listen(&authority, &address).await?;
    let second = Agent::listen(&authority, "127.0.0.1:0").await?;
    story.built(&second, 2);
    let switched = story.turn("a turn", &dial, ("switched", 2, 1)).await?;
    layer.bindings().flush().await;
    let is_repaired = switched.is_some_and(|bound| bound.outcome().repair() == Repair::Written);
    expect(is_repaired, "the binding names the new agent")?;
    story.turn("the next turn", &dial, ("reused", 1, 0)).await?;

    println!("\nThat agent loses its address as well, and the resolver does not know it yet:");
    let (heard_second, address) = second.stop().await;
    let another_stranger = Agent::listen(&authority, &address).await?;
    story.turn("a turn: no second dial", &dial, ("wrong_agent", 1, 1)).await?;
    let third = Agent::listen(&authority, "127.0.0.1:0").await?;
    story.built(&third, 3);
    story.turn("the resolver knows it: a turn", &dial, ("switched", 2, 1)).await?;

    println!(
        "\nA process without a certificate. The agent refuses it, and is not doubted for that:"
    );
    story.turn("a turn", &anonymous, ("local", 1, 0)).await?;
    story.turn("a turn with the certificate", &dial, ("reused", 1, 0)).await?;

    let heard = [heard, heard_second, third.stop().await.0];
    let strangers = [stranger.stop().await.0, another_stranger.stop().await.0];
    println!("\nThe agents have heard {heard:?} turns, the strangers {strangers:?}.");
    expect((heard, strangers) == ([2, 2, 2], [0, 0]), "no stranger hears a turn")
}

/// Dials an agent, and proves that it is that agent.
async fn connect(tls: TlsConnector, ask: DialAgent) -> Result<Connection, BoxError> {
    let address = ask.target.address.as_deref().ok_or("the target has no address")?;
    let stream = TcpStream::connect(address).await?;
    let mut stream = tls.connect(name_of(ask.target.agent)?, stream).await.map_err(judged)?;
    // The greeting. With TLS 1.3 a client learns only from its first read that it was refused.
    stream.read_u8().await.map_err(judged)?;
    Ok(stream)
}

/// Says of an error of TLS whether it is evidence about the agent, and which.
fn judged(error: io::Error) -> BoxError {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(
            NotValidForName | NotValidForNameContext { .. },
        )) => WrongAgentError::new(error).into(),
        // The right agent is there, and refuses the certificate of this process.
        Some(rustls::Error::AlertReceived(
            CertificateRequired | BadCertificate | CertificateExpired | UnknownCA,
        )) => LocalError::new(error).into(),
        _ => error.into(),
    }
}

/// An agent that answers each line of a client with a certificate.
struct Agent {
    id: AgentId,
    address: String,
    heard: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Agent {
    async fn listen(authority: &Authority, address: &str) -> Result<Self, BoxError> {
        let id = AgentId::new(Uuid::new_v4());
        let tls = TlsAcceptor::from(Arc::new(authority.server(id)?));
        let listener = TcpListener::bind(address).await?;
        let (address, heard) = (listener.local_addr()?.to_string(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, heard) = (tls.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    let mut stream = BufReader::new(tls.accept(stream).await?);
                    stream.write_all(b"!").await?;
                    let mut line = String::new();
                    while stream.read_line(&mut line).await? > 0 {
                        heard.fetch_add(1, SeqCst);
                        stream.write_all(format!("agent {id}\n").as_bytes()).await?;
                    }
                    io::Result::Ok(())
                });
            }
        });
        Ok(Self { id, address, heard, task })
    }

    /// Frees the address. Returns how many lines were heard, and the address.
    async fn stop(self) -> (u64, String) {
        self.task.abort();
        let _ = self.task.await;
        (self.heard.load(SeqCst), self.address)
    }
}

/// One chat, and what its turns cost.
struct Story {
    chat: DialSession,
    resolver_says: Arc<Mutex<Option<Resolution>>>,
    dials: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
}

impl Story {
    fn begin() -> Self {
        println!("turn                             dials  questions  outcome");
        let chat = DialSession::new(common::session()).in_workspace(common::workspace());
        let (resolver_says, dials, asked) = Default::default();
        Self { chat, resolver_says, dials, asked }
    }

    fn built(&self, agent: &Agent, build: i64) {
        let target = Target::new(agent.id).with_generation(build).with_address(&*agent.address);
        *self.resolver_says.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Resolution::Running(target));
    }

    /// Makes a turn, prints it, and compares its outcome, dials and questions.
    async fn turn(
        &mut self,
        step: &str,
        dial: &Dial,
        expected: (&str, u64, u64),
    ) -> Result<Option<Bound<Connection>>, BoxError> {
        self.dials.store(0, SeqCst);
        self.asked.store(0, SeqCst);
        let mut called = dial.clone().oneshot(self.chat.clone()).await;
        let outcome = match &mut called {
            Ok(bound) => {
                let mut said = String::new();
                bound.write_all(b"hello\n").await?;
                BufReader::new(&mut *bound).read_line(&mut said).await?;
                expect(said == format!("agent {}\n", bound.target().agent), "the agent answers")?;
                bound.outcome().kind.as_str()
            }
            Err(error) => error.kind().as_str(),
        };
        let (dials, questions) = (self.dials.load(SeqCst), self.asked.load(SeqCst));
        println!("{step:<32} {dials:>5}  {questions:>9}  {outcome}");
        if let Err(error) = &called {
            let first = std::error::Error::source(error);
            for cause in std::iter::successors(first, |&error| error.source()) {
                println!("  └ {cause}");
            }
        }
        expect((outcome, dials, questions) == expected, &format!("{step}: {expected:?}"))?;
        Ok(called.ok())
    }
}
