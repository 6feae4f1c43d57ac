//! The dialer: TCP to the address of a target, and TLS that proves which agent listens there.

use crate::{
    config::{AgentName, Agents},
    tls::{self, Reload, Reloading, TlsError},
};
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig};
use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use tower::Service;
use tower_bound_agent::{BoxError, DialAgent, WrongAgentError, http::watch_peer};

/// A connection to an agent.
pub(crate) type AgentStream = TokioIo<Either<TcpStream, TlsStream<TcpStream>>>;

/// Why an agent could not be dialed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The target has no address.
    #[error("the target has no address")]
    NoAddress,
    /// There is no connection.
    #[error("no connection to {address}")]
    Connect {
        /// The address of the target.
        address: Arc<str>,
        /// The cause.
        source: io::Error,
    },
    /// There is no TLS.
    #[error("no TLS with the agent")]
    Tls(#[source] io::Error),
}

/// Dials agents. Clones share the certificates.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    tls: Option<(Arc<Reloading<ClientConfig>>, AgentName)>,
    unreachable_after: Duration,
}

impl Dialer {
    pub(crate) fn new(config: &Agents) -> Result<Self, TlsError> {
        let tls = match &config.tls {
            Some(tls) => Some((Arc::new(tls::agents(tls, config.protocol)?), tls.name.clone())),
            None => None,
        };
        Ok(Self { tls, unreachable_after: config.unreachable_after })
    }

    /// Returns the certificates to load again.
    pub(crate) fn certificates(&self) -> Option<Arc<dyn Reload>> {
        self.tls.as_ref().map(|(tls, _)| Arc::clone(tls) as Arc<dyn Reload>)
    }

    async fn dial(self, ask: DialAgent) -> Result<AgentStream, BoxError> {
        let address = ask.target.address.clone().ok_or(DialError::NoAddress)?;
        let connect = async {
            let stream = TcpStream::connect(&*address).await?;
            stream.set_nodelay(true)?;
            watch_peer(&stream, self.unreachable_after)?;
            Ok(stream)
        };
        let stream = connect.await.map_err(|source| DialError::Connect { address, source })?;
        let Some((tls, name)) = self.tls else { return Ok(TokioIo::new(Either::Left(stream))) };
        let agent = ask.target.agent;
        let connector = TlsConnector::from(tls.now());
        let stream = connector.connect(name.of(agent)?, stream).await;
        let stream = stream.map_err(|error| match other_names(&error) {
            Some(names) => BoxError::from(WrongAgentError::new(format!(
                "its certificate names {names:?}, not {agent}"
            ))),
            None => DialError::Tls(error).into(),
        })?;
        Ok(TokioIo::new(Either::Right(stream)))
    }
}

/// Returns the names in a certificate that is valid, but not for the dialed agent.
fn other_names(error: &io::Error) -> Option<Vec<String>> {
    let rustls::Error::InvalidCertificate(wrong) = error.get_ref()?.downcast_ref()? else {
        return None;
    };
    match wrong {
        CertificateError::NotValidForName => Some(Vec::new()),
        CertificateError::NotValidForNameContext { presented, .. } => Some(presented.clone()),
        _ => None,
    }
}

impl Service<DialAgent> for Dialer {
    type Response = AgentStream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<AgentStream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: DialAgent) -> Self::Future {
        Box::pin(self.clone().dial(ask))
    }
}
