//! The recipe: a connection is an authenticated SSH session to the agent.
//!
//! The address of a target is `HOST:PORT FINGERPRINT`: where the agent listens, and the fingerprint
//! of its host key (`SHA256:…`), which the build made and the control plane knows. So a dial proves
//! which agent it has reached before it offers a key, and the address alone proves nothing: after a
//! rebuild another agent may listen at it.

use russh::{
    ChannelMsg, Disconnect,
    client::{self, Config, Handle},
    keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate, ssh_key::Fingerprint},
};
use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tower_bound_agent::{BoxError, DialAgent, LocalError, WrongAgentError};

const KEEPALIVE: Duration = Duration::from_secs(15);

/// The client's key, which each caller adds to its request.
#[derive(Clone)]
pub(crate) struct ClientKey(pub(crate) Arc<PrivateKey>);

/// The dial service.
pub(crate) async fn dial(ask: DialAgent) -> Result<Session, BoxError> {
    let ClientKey(key) = ask
        .extensions
        .get()
        .cloned()
        .ok_or_else(|| LocalError::new("the request has no client key"))?;
    let (address, fingerprint) = ask
        .target
        .address
        .as_deref()
        .and_then(|address| address.split_once(' '))
        .ok_or("the target has no address with a host key")?;
    let expected = HostKey(fingerprint.parse()?);
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (owner, stream) = Owned::new(stream);
    // The session of an agent that vanishes ends after a minute, also if nobody uses it.
    let config = Config { keepalive_interval: Some(KEEPALIVE), ..Config::default() };
    let mut handle = client::connect_stream(Arc::new(config), stream, expected).await?;
    let key = PrivateKeyWithHashAlg::new(key, None);
    if !handle.authenticate_publickey("agent", key).await?.success() {
        // It is the right agent, so its answer says nothing against the binding, and another dial
        // with this key would be refused as well.
        return Err(LocalError::new("the agent refuses the client's key").into());
    }
    Ok(Session { handle, _owner: owner })
}

/// An authenticated session. Dropping it closes the TCP connection.
pub(crate) struct Session {
    handle: Handle<HostKey>,
    _owner: mpsc::Sender<Infallible>,
}

impl Session {
    /// Runs a command in a channel of its own and returns its output.
    pub(crate) async fn run(&self, command: &str) -> Result<String, BoxError> {
        let mut channel = self.handle.channel_open_session().await?;
        channel.exec(true, command).await?;
        let (mut output, mut status) = (Vec::new(), None);
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => output.extend_from_slice(&data),
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                _ => {}
            }
        }
        match status {
            Some(0) => Ok(String::from_utf8(output)?),
            Some(status) => Err(format!("the command ended with status {status}").into()),
            None => Err("the session ended before the command".into()),
        }
    }

    /// Tells the agent that the session ends, and waits until it has ended.
    pub(crate) async fn close(self) {
        let Self { handle, _owner } = self;
        let ending = async {
            _ = handle.disconnect(Disconnect::ByApplication, "", "").await;
            _ = handle.await; // how it ended changes nothing any more
        };
        _ = timeout(Duration::from_secs(1), ending).await;
    }
}

/// The fingerprint of the host key of the agent that is dialed.
pub(crate) struct HostKey(Fingerprint);

impl client::Handler for HostKey {
    type Error = BoxError;

    async fn check_server_key(&mut self, found: &PublicKeyOrCertificate) -> Result<bool, BoxError> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = found else {
            return Err("the agent has a certificate and no host key".into());
        };
        let found = key.fingerprint(self.0.algorithm());
        if found != self.0 {
            return Err(WrongAgentError::new(format!("its host key is {found}")).into());
        }
        Ok(true)
    }
}

/// A connection that ends when its owner is dropped.
///
/// russh drives each session in a task of its own. When a dial is dropped while its agent hangs in
/// the key exchange, that task would wait for the agent for ever, with the connection open.
struct Owned {
    stream: TcpStream,
    owner: mpsc::Receiver<Infallible>,
}

impl Owned {
    fn new(stream: TcpStream) -> (mpsc::Sender<Infallible>, Self) {
        let (owner, dropped) = mpsc::channel(1);
        (owner, Self { stream, owner: dropped })
    }

    fn has_owner(&mut self, cx: &mut Context<'_>) -> bool {
        self.owner.poll_recv(cx).is_pending()
    }
}

impl AsyncRead for Owned {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.has_owner(cx) {
            return Poll::Ready(Ok(())); // nothing was read: the end of the stream
        }
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Owned {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.has_owner(cx) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
