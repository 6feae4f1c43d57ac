//! Sending one request over one connection, up to the head of the response.

use super::{
    body::AgentBody,
    error::{ClientError, is_evidence, is_unprocessed},
    outgoing::{Outgoing, Progress},
    pool::types::{Abandoned, Lease, ToDriver},
    question::{WaitEnded, Watch},
    sender::Sent,
};
use crate::{BoundHandle, Target};
use ::http::{Request, Response, StatusCode, Version};
use futures_util::future::BoxFuture;
use http_body::Body;
use hyper::client::conn::TrySendError;
use std::sync::{Arc, atomic::Ordering};
use tokio::{
    select,
    time::{Duration, timeout},
};

/// Outcome of a request that got no response.
pub(super) enum SendError<B> {
    /// The request was not sent, or the agent did not process it. `back` is the request, if the
    /// connection returned it; `again` is `true` if another connection may succeed.
    Unsent {
        back: Option<Box<Request<Outgoing<B>>>>,
        error: hyper::Error,
        again: bool,
    },
    /// The session has another target by now.
    Superseded(Option<Arc<Target>>),
    Failed(ClientError),
}

impl<B> Lease<B>
where
    B: Body + Unpin + Send + 'static,
{
    /// Sends the request and waits for the head of the response until `watch` ends the wait.
    /// `handle` is the handle of the call.
    pub(super) async fn send(
        mut self,
        request: Request<Outgoing<B>>,
        progress: &Arc<Progress>,
        handle: BoundHandle,
        watch: Watch<'_>,
    ) -> Result<Response<AgentBody>, SendError<B>> {
        let Some(sender) = &mut self.sender else {
            // Unreachable: the sender is present until the lease is dropped.
            return Err(SendError::Failed(ClientError::Busy { waited: Duration::ZERO }));
        };
        self.in_use = Some(handle.in_use());
        if !self.alone && !request.body().is_end_stream() {
            self.conn.uploads(progress);
        }
        let sending = sender.send(request);
        if !self.alone {
            // If the connection closed just as it took the request, hyper returns the request only
            // when the last sender of the connection is dropped.
            self.sender = None;
        }
        let conn = Arc::clone(&self.conn);
        conn.unanswered.fetch_add(1, Ordering::Relaxed);
        self.unanswered = true;
        let mut waiting = PendingResponse {
            lease: Some(self),
            sending: Some(sending),
            handle: &handle,
            progress,
            given_up: true,
        };
        let gone = conn.gone.cancelled();
        let mut sent = select! {
            biased;
            sent = waiting.sent() => Ok(sent),
            over = watch.over(&handle, progress, gone) => Err(over),
        };
        if let Err(WaitEnded::Connection) = sent {
            sent = waiting.given_back().await;
        }
        let lease = match &sent {
            Err(WaitEnded::Superseded(_)) => None,
            _ => waiting.take_lease(),
        };
        waiting.given_up = false;
        drop(waiting);
        let Some(mut lease) = lease else {
            return Err(SendError::Superseded(if let Err(WaitEnded::Superseded(target)) = sent {
                target
            } else {
                None
            }));
        };
        let mut response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(lease.failed(error)),
            Err(_) => return Err(SendError::Failed(lease.silent(progress, watch.within))),
        };
        watch.answered(progress);
        lease.answered();
        if response.version() == Version::HTTP_10 {
            // hyper would use HTTP/1.0 on this connection from now on and drop bodies of unknown
            // length. Retire it, so that the next request gets a new connection.
            lease.conn.agent.retire(&lease.conn);
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            lease.conn.upgraded.store(true, Ordering::Relaxed);
            if let Some(in_use) = lease.in_use.take() {
                // Never set before: a connection is upgraded once.
                let _ = lease.conn.tunnel.set(in_use);
            }
        }
        response.extensions_mut().insert(handle);
        Ok(response.map(|incoming| AgentBody::new(incoming, lease, Arc::clone(progress))))
    }

    fn failed(self, mut error: TrySendError<Request<Outgoing<B>>>) -> SendError<B> {
        if let Some(request) = error.take_message() {
            if !self.reused {
                self.conn.handle.report_stale();
            }
            let again = self.reused;
            return SendError::Unsent {
                back: Some(Box::new(request)),
                error: error.into_error(),
                again,
            };
        }
        let error = error.into_error();
        if is_unprocessed(&error) {
            return SendError::Unsent { back: None, error, again: true };
        }
        if is_evidence(&error) {
            self.broke_off(&error);
        }
        SendError::Failed(ClientError::Send(error))
    }

    /// Handles a timeout.
    fn silent(self, progress: &Progress, within: Option<Duration>) -> ClientError {
        let within = within.unwrap_or_default();
        let since = progress.silent_since().or_else(|| progress.queued_since());
        // An agent that answered another stream since then is not silent.
        if self.alone || !since.is_some_and(|since| self.conn.answered_since(since)) {
            self.conn.handle.report_stale();
            // Retire it now: there may be no later request that would do it.
            self.conn.agent.retire(&self.conn);
        }
        ClientError::NoResponse { within }
    }
}

/// A request that waits for its response. Dropping it leaves a doubt, as a dropped dial does
/// (HTTP/1), or passes the stream to the connection's driver (HTTP/2).
struct PendingResponse<'a, B> {
    lease: Option<Lease<B>>,
    sending: Option<BoxFuture<'static, Sent<B>>>,
    handle: &'a BoundHandle,
    progress: &'a Progress,
    /// The drop comes from the caller.
    given_up: bool,
}

impl<B> PendingResponse<'_, B> {
    async fn sent(&mut self) -> Sent<B> {
        match &mut self.sending {
            Some(sending) => sending.await,
            // Unreachable: it is present until `take_lease`.
            None => std::future::pending().await,
        }
    }

    /// Waits for hyper to return the request after the connection has ended: it does so when the
    /// last sender is dropped, if the request was not sent.
    async fn given_back(&mut self) -> Result<Sent<B>, WaitEnded> {
        if let Some(lease) = &mut self.lease {
            lease.sender = None;
        }
        timeout(Duration::from_secs(1), self.sent()).await.map_err(|_| WaitEnded::TimedOut)
    }

    fn take_lease(&mut self) -> Option<Lease<B>> {
        self.sending = None;
        self.lease.take()
    }
}

impl<B> Drop for PendingResponse<'_, B> {
    fn drop(&mut self) {
        let (Some(lease), Some(sending)) = (self.lease.take(), self.sending.take()) else { return };
        // On a shared connection, pings and other streams show whether the agent is alive.
        if !lease.alone {
            let to_driver = lease.conn.to_driver.clone();
            let _ = to_driver.send(ToDriver::Abandoned(Abandoned { sending, lease }));
            return;
        }
        drop(sending);
        if let Some(since) = self.progress.silent_since()
            && self.given_up
            && !std::thread::panicking()
        {
            // Otherwise callers with timeouts shorter than this client's would return to a dead
            // agent forever.
            self.handle.dropped_waiting_since(since);
        }
    }
}
