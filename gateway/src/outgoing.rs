//! Requests of the gateway's own: to the resolver and to the authorization service.

use crate::tls::{TlsError, authorities};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{path::Path, time::Duration};

/// The maximum length of a response.
const MOST: usize = 64 * 1024;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A client for one service, with its own connections.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing(legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

impl Outgoing {
    /// Creates a client that trusts the authorities of the file, or those of the system if the
    /// service has a `https` URL.
    pub(crate) fn new(scheme: Option<&str>, ca: Option<&Path>) -> Result<Self, TlsError> {
        let tls = authorities(ca, scheme == Some("https"))?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        connector.enforce_http(false);
        let connector = HttpsConnector::from((connector, tls));
        Ok(Self(legacy::Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// Sends a request without a body. The response's body ends with an error if it is long.
    pub(crate) async fn send(
        &self,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Limited<Incoming>>, legacy::Error> {
        let response = self.0.request(request).await?;
        Ok(response.map(|body| Limited::new(body, MOST)))
    }
}
