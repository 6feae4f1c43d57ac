//! Driver of an HTTP/1 connection.

use super::{
    pool::types::{Conn, Returned, ToDriver},
    sender::Sender,
    transport::Transport,
};
use crate::BoxError;
use http_body::Body;
use hyper::{
    client::conn::http1,
    rt::{Read, Write},
};
use std::{pin::pin, sync::Arc};
use tokio::{
    select,
    sync::mpsc,
    time::{Duration, Instant, sleep_until},
};

/// How long an abandoned connection may take to close. Without a limit, data that the agent does
/// not read would keep it open forever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) async fn open<C, B>(
    io: Transport<C, B>,
    conn: &Arc<Conn<B>>,
    messages: mpsc::UnboundedReceiver<ToDriver<B>>,
    idle: Duration,
) -> Result<Sender<B>, hyper::Error>
where
    C: Read + Write + Unpin + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (sender, connection) = http1::handshake(io).await?;
    let conn = Arc::clone(conn);
    tokio::spawn(async move {
        drive(connection.with_upgrades(), &conn, messages, idle).await;
        conn.ends();
    });
    Ok(Sender::Http1(sender))
}

/// Drives a connection until it closes. Errors of the connection are ignored here: a failed request
/// reports them, and without a request they are no evidence against the agent.
async fn drive<B>(
    connection: impl Future<Output = hyper::Result<()>>,
    conn: &Arc<Conn<B>>,
    mut messages: mpsc::UnboundedReceiver<ToDriver<B>>,
    idle: Duration,
) {
    let mut connection = pin!(connection);
    let mut outdated = pin!(conn.outdated());
    let mut expiry = pin!(sleep_until(Instant::now() + idle));
    let mut returning: Option<Returned<B>> = None;
    loop {
        select! {
            biased;
            _ = connection.as_mut() => break,
            Some(returned) = messages.recv(), if returning.is_none() => {
                let ToDriver::Sender(returned) = returned else { continue };
                if returned.given_up {
                    expiry.as_mut().reset(Instant::now() + CLOSE_TIMEOUT);
                }
                returning = Some(returned);
            }
            ready = ready(&mut returning) => {
                if let Some(Returned { sender, soon, .. }) = returning.take() {
                    if ready {
                        conn.agent().put(conn, Sender::Http1(sender));
                    }
                    // Dropped after `put`, so that a waiting request finds the connection in the
                    // pool.
                    drop(soon);
                }
            }
            // Requests on the connection continue.
            () = outdated.as_mut(), if !conn.has_left() => conn.agent().retire(conn),
            () = expiry.as_mut() => {
                if returning.as_ref().is_some_and(|returned| returned.given_up) {
                    break;
                }
                let next = conn.agent().expire(conn, idle);
                expiry.as_mut().reset(next);
            }
        }
    }
    conn.agent().retire(conn);
}

/// Waits until the returned sender is ready for the next request; pending while there is none.
/// Returns `false` if the connection has closed.
async fn ready<B>(returning: &mut Option<Returned<B>>) -> bool {
    match returning {
        Some(returned) => returned.sender.ready().await.is_ok(),
        None => std::future::pending().await,
    }
}
