//! Transport of a connection that reports failures of the agent.

use super::{error::is_unreachable, pool::types::Conn};
use crate::LocalError;
use hyper::rt::{Read, ReadBufCursor, Write};
use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

/// Transport of a connection. Keeps the connection's state alive, and reports the agent as stale if
/// its machine is unreachable or if the connection fails after an upgrade, which only the transport
/// notices.
pub(super) struct Transport<C, B> {
    io: C,
    conn: Arc<Conn<B>>,
}

impl<C, B> Transport<C, B> {
    pub(super) fn new(io: C, conn: Arc<Conn<B>>) -> Self {
        Self { io, conn }
    }

    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled
            && (is_unreachable(error) || self.conn.upgraded.load(Ordering::Relaxed))
            && !LocalError::is_in(error)
        {
            self.conn.handle.report_stale();
        }
        polled
    }
}

impl<C: Read + Unpin, B> Read for Transport<C, B> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.conn.heard.fetch_add(1, Ordering::Relaxed);
        }
        self.noted(read)
    }
}

impl<C: Write + Unpin, B> Write for Transport<C, B> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.noted(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.noted(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
