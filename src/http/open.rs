//! Opening a connection.

use super::{
    http1, http2,
    pool::types::{Conn, Lease, Reserved},
    request::HttpProtocol,
    settings::Settings,
    transport::Transport,
};
use crate::{BoundHandle, BoxError};
use http_body::Body;
use hyper::rt::{Read, Write};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Performs the HTTP handshake on a new connection, and leases it.
pub(super) async fn open<C, B>(
    io: C,
    handle: BoundHandle,
    reserved: Reserved<B>,
    settings: &Settings,
) -> Result<Lease<B>, hyper::Error>
where
    C: Read + Write + Unpin + Send + 'static,
    B: Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let agent = Arc::clone(reserved.agent());
    let (back, returned) = mpsc::unbounded_channel();
    let conn = Conn::new(handle, Arc::clone(&agent), back);
    let io = Transport::new(io, Arc::clone(&conn));
    let idle = settings.idle_timeout;
    let opened = match settings.protocol {
        HttpProtocol::Http1 => http1::open(io, &conn, returned, idle).await,
        HttpProtocol::Http2 => http2::open(io, &conn, returned, settings).await,
    };
    match opened {
        Ok(sender) => {
            if let Some(shared) = sender.share() {
                agent.add(&conn, shared);
            }
            reserved.connected(&conn);
            Ok(Lease::new(conn, sender, false))
        }
        Err(error) => {
            reserved.failed();
            Err(error)
        }
    }
}
