//! A connection of HTTP/1, driven to its end by a task of its own.

use super::{
    connection::{Back, Conn, Sender, Transport},
    outgoing::Outgoing,
    pool::Returning,
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

/// A sender on its way back.
pub(super) struct Returned<B> {
    pub(super) sender: http1::SendRequest<Outgoing<B>>,
    /// If it is about to be ready.
    pub(super) soon: Option<Returning<B>>,
    /// Its user has not seen the response to its end.
    pub(super) given_up: bool,
}

/// How long a connection that was given up may take to end in order. What the agent does not take
/// would hold it for ever.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) async fn open<C, B>(
    io: Transport<C, B>,
    conn: &Arc<Conn<B>>,
    back: mpsc::UnboundedReceiver<Back<B>>,
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
        drive(connection.with_upgrades(), &conn, back, idle).await;
        conn.ends();
    });
    Ok(Sender::Http1(sender))
}

/// Drives a connection to its end. Ends with it, and holds nothing else up. What an error of the
/// connection says about its agent, the request says that it has failed; if there is none, it says
/// nothing.
async fn drive<B>(
    connection: impl Future<Output = hyper::Result<()>>,
    conn: &Arc<Conn<B>>,
    mut back: mpsc::UnboundedReceiver<Back<B>>,
    idle: Duration,
) {
    let mut connection = pin!(connection);
    let mut left_behind = pin!(conn.handle.left_behind());
    let mut expiry = pin!(sleep_until(Instant::now() + idle));
    let mut returning: Option<Returned<B>> = None;
    loop {
        select! {
            biased;
            _ = connection.as_mut() => break,
            Some(returned) = back.recv(), if returning.is_none() => {
                let Back::Sender(returned) = returned else { continue };
                if returned.given_up {
                    expiry.as_mut().reset(Instant::now() + FAREWELL);
                }
                returning = Some(returned);
            }
            ready = ready(&mut returning) => {
                if let Some(Returned { sender, soon, .. }) = returning.take() {
                    if ready {
                        conn.agent().put(conn, Sender::Http1(sender));
                    }
                    // A request that waits for this one finds the connection in its place.
                    drop(soon);
                }
            }
            // What uses it still, goes on.
            () = left_behind.as_mut(), if !conn.has_left() => conn.agent().retire(conn),
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

/// Returns whether the connection is ready for the next request; pending for ever while it was not
/// given back.
async fn ready<B>(returning: &mut Option<Returned<B>>) -> bool {
    match returning {
        Some(returned) => returned.sender.ready().await.is_ok(),
        None => std::future::pending().await,
    }
}
