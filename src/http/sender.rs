//! The senders of both versions of HTTP.

use super::outgoing::Outgoing;
use ::http::{Request, Response};
use futures_util::future::BoxFuture;
use http_body::Body;
use hyper::{body::Incoming, client::conn::TrySendError};

/// A hyper sender of either version.
pub(super) enum Sender<B> {
    Http1(hyper::client::conn::http1::SendRequest<Outgoing<B>>),
    Http2(hyper::client::conn::http2::SendRequest<Outgoing<B>>),
}

pub(super) type Sent<B> = Result<Response<Incoming>, TrySendError<Request<Outgoing<B>>>>;

impl<B> Sender<B> {
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2(sender) => sender.is_ready(),
        }
    }

    /// Returns another sender of the same connection, if it carries concurrent requests.
    pub(super) fn share(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    pub(super) fn send(&mut self, request: Request<Outgoing<B>>) -> BoxFuture<'static, Sent<B>>
    where
        B: Body + Unpin + Send + 'static,
    {
        match self {
            Self::Http1(sender) => Box::pin(sender.try_send_request(request)),
            Self::Http2(sender) => Box::pin(sender.try_send_request(request)),
        }
    }
}
