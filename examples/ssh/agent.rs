//! An SSH server as the agent of a workspace.

use russh::{
    Channel, ChannelId,
    keys::{Algorithm, HashAlg, PrivateKey, PublicKey, key::safe_rng},
    server::{self, Auth, ChannelOpenHandle, Config, Msg, Session, VerifiedPublicKey},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower_bound_agent::{AgentId, BoxError, Target};
use uuid::Uuid;

pub(crate) struct Agent {
    pub(crate) name: &'static str,
    pub(crate) id: AgentId,
    pub(crate) address: SocketAddr,
    fingerprint: String,
    counts: Arc<Counts>,
    listening: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    is_silent: AtomicBool,
    connections: AtomicU64,
    sessions: AtomicU64,
}

pub(crate) fn new_key() -> Result<PrivateKey, BoxError> {
    Ok(PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519)?)
}

impl Agent {
    /// Starts an agent with a new host key, which admits one client key.
    pub(crate) async fn start(
        name: &'static str,
        address: SocketAddr,
        client: &PublicKey,
    ) -> Result<Self, BoxError> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let key = new_key()?;
        let fingerprint = key.public_key().fingerprint(HashAlg::Sha256).to_string();
        let keys = vec![key];
        let config = Config { keys, auth_rejection_time: Duration::ZERO, ..Config::default() };
        let counts = Arc::new(Counts::default());
        let serving = Serving { name, client: client.clone(), counts: Arc::clone(&counts) };
        let listening = tokio::spawn(listen(listener, Arc::new(config), serving));
        let id = AgentId::new(Uuid::new_v4());
        Ok(Self { name, id, address, fingerprint, counts, listening })
    }

    pub(crate) fn target(&self, generation: i64) -> Target {
        let address = format!("{} {}", self.address, self.fingerprint);
        Target::new(self.id).with_generation(generation).with_address(address)
    }

    /// From now on new connections hang in the key exchange. Open sessions go on.
    pub(crate) fn become_silent(&self) {
        self.counts.is_silent.store(true, SeqCst);
    }

    /// Stops to listen. The address is free.
    pub(crate) async fn stop(&mut self) {
        self.listening.abort();
        _ = (&mut self.listening).await;
    }

    /// The connections that are open.
    pub(crate) fn connections(&self) -> u64 {
        self.counts.connections.load(SeqCst)
    }

    /// The sessions that were authenticated until now.
    pub(crate) fn sessions(&self) -> u64 {
        self.counts.sessions.load(SeqCst)
    }
}

async fn listen(listener: TcpListener, config: Arc<Config>, serving: Serving) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, Arc::clone(&config), serving.clone()));
    }
}

async fn serve(mut stream: TcpStream, config: Arc<Config>, serving: Serving) {
    let counts = Arc::clone(&serving.counts);
    counts.connections.fetch_add(1, SeqCst);
    if counts.is_silent.load(SeqCst) {
        _ = stream.write_all(b"SSH-2.0-silent\r\n").await;
        let mut unread = [0; 1024];
        while stream.read(&mut unread).await.is_ok_and(|read| read > 0) {}
    } else if let Ok(session) = server::run_stream(config, stream, serving).await {
        _ = session.await;
    }
    counts.connections.fetch_sub(1, SeqCst);
}

#[derive(Clone)]
struct Serving {
    name: &'static str,
    client: PublicKey,
    counts: Arc<Counts>,
}

impl server::Handler for Serving {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        let is_known = key.public_key.key_data() == self.client.key_data();
        Ok(if is_known { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), russh::Error> {
        self.counts.sessions.fetch_add(1, SeqCst);
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    /// Runs a command: says who was asked what.
    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let output = format!("{}: {}", self.name, String::from_utf8_lossy(command));
        session.channel_success(channel)?;
        session.data(channel, output.into_bytes())?;
        session.exit_status_request(channel, 0)?;
        session.eof(channel)?;
        session.close(channel)
    }
}
