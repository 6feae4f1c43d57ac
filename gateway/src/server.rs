//! The listener for clients: a bounded number of connections, TLS, HTTP/1 and HTTP/2.

use crate::{
    config::Server,
    metrics::{CONNECTIONS, HANDSHAKES_FAILED},
    proxy::Proxy,
    tls::Reloading,
};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use metrics::{Gauge, counter, gauge};
use rustls::ServerConfig;
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_bound_agent::http::watch_peer;

/// How long the machine of a client may be unreachable before its connection fails.
const UNREACHABLE_AFTER: Duration = Duration::from_secs(60);

/// A connection of a client. It counts until it is dropped, with the tunnels that it has become.
pub(crate) struct Connection {
    pub(crate) peer: SocketAddr,
    pub(crate) is_tls: bool,
    /// Whether a request has arrived.
    is_used: AtomicBool,
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.gauge.decrement(1);
    }
}

/// The listener, and what its connections share.
pub(crate) struct Clients {
    pub(crate) proxy: Proxy,
    pub(crate) tls: Option<Arc<Reloading<ServerConfig>>>,
    pub(crate) header_timeout: Duration,
    pub(crate) permits: Arc<Semaphore>,
    /// Accepts no connection any more, and lets those that are open finish their requests.
    pub(crate) ending: CancellationToken,
}

impl Clients {
    pub(crate) fn permits(config: &Server) -> Arc<Semaphore> {
        let most = usize::try_from(config.max_connections.get()).unwrap_or(usize::MAX);
        Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)))
    }

    /// Accepts connections until the end. The listener is closed then.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener) {
        let accepting = async {
            loop {
                // An error means that the semaphore is closed, which it never is.
                let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        let clients = Arc::clone(&self);
                        self.proxy.tasks.spawn(clients.serve(stream, peer, permit));
                    }
                    // A client that is gone already says nothing about the next one.
                    Err(error) if is_of_one_client(&error) => {}
                    Err(error) => {
                        tracing::warn!(%error, "no connection can be accepted");
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        select! { () = accepting => {}, () = self.ending.cancelled() => {} }
    }

    async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) {
        let gauge = gauge!(CONNECTIONS);
        gauge.increment(1);
        let (is_used, is_tls) = (AtomicBool::new(false), self.tls.is_some());
        let connection = Connection { peer, is_tls, is_used, gauge, _permit: permit };
        // An error means that the client is gone.
        let _ = stream.set_nodelay(true);
        let _ = watch_peer(&stream, UNREACHABLE_AFTER);
        let Some(tls) = &self.tls else {
            return self.speak_http(stream, connection).await;
        };
        let handshake = TlsAcceptor::from(tls.now()).accept(stream);
        let shaken = select! {
            shaken = timeout(self.header_timeout, handshake) => shaken,
            () = self.ending.cancelled() => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.speak_http(stream, connection).await,
            Ok(Err(error)) => {
                counter!(HANDSHAKES_FAILED).increment(1);
                tracing::debug!(%peer, %error, "TLS handshake failed");
            }
            Err(_) => {
                counter!(HANDSHAKES_FAILED).increment(1);
                tracing::debug!(%peer, "TLS handshake took too long");
            }
        }
    }

    async fn speak_http<S>(self: Arc<Self>, stream: S, connection: Connection)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.header_timeout);
        builder.http2().timer(TokioTimer::new()).enable_connect_protocol();
        let connection = Arc::new(connection);
        let service = service_fn({
            let (clients, connection) = (Arc::clone(&self), Arc::clone(&connection));
            move |request| {
                connection.is_used.store(true, Ordering::Relaxed);
                let (clients, connection) = (Arc::clone(&clients), Arc::clone(&connection));
                async move { Ok::<_, Infallible>(clients.proxy.handle(connection, request).await) }
            }
        });
        let mut serving =
            pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        // hyper's timeout begins when it knows the version, which the first bytes decide, and
        // HTTP/2 has none.
        let mut unused = pin!(sleep(self.header_timeout));
        let (mut is_waited_for, mut is_ending) = (true, false);
        loop {
            select! {
                // An error is the client's: it has gone, or it does not speak HTTP.
                _ = serving.as_mut() => return,
                () = &mut unused, if is_waited_for => {
                    is_waited_for = false;
                    if !connection.is_used.load(Ordering::Relaxed) {
                        return;
                    }
                }
                () = self.ending.cancelled(), if !is_ending => {
                    is_ending = true;
                    serving.as_mut().graceful_shutdown();
                }
                () = self.proxy.cut.cancelled() => return,
            }
        }
    }
}

fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
