//! Lease of a connection, and how it is returned to the pool.

use super::{
    error::is_io,
    outgoing::Progress,
    pool::types::{Conn, Lease, Returned, ToDriver},
    sender::Sender,
};
use std::sync::{Arc, atomic::Ordering};

impl<B> Lease<B> {
    pub(super) fn new(conn: Arc<Conn<B>>, sender: Sender<B>, reused: bool) -> Self {
        let alone = matches!(sender, Sender::Http1(_));
        Self {
            conn,
            sender: Some(sender),
            alone,
            reused,
            unanswered: false,
            ended: false,
            complete: false,
            in_use: None,
        }
    }

    pub(super) fn conn(&self) -> &Arc<Conn<B>> {
        &self.conn
    }

    /// Records a frame of the response.
    pub(super) fn answered(&self) {
        if !self.alone {
            self.conn.has_answered();
        }
    }

    /// Ends the lease after a complete response.
    pub(super) fn ended(mut self, progress: &Progress) {
        self.ended = true;
        self.complete = progress.is_sent();
    }

    /// Reports the agent as stale after a request or response failed with evidence against it. On a
    /// shared connection that requires a failure of the connection, not of one stream. The report
    /// is made here, since the caller may call again before the driver of the connection makes it.
    pub(super) fn broke_off(&self, error: &hyper::Error) {
        if self.alone || error.is_timeout() || is_io(error) {
            self.conn.handle.report_stale();
        }
    }
}

impl<B> Drop for Lease<B> {
    fn drop(&mut self) {
        if self.unanswered {
            self.conn.unanswered.fetch_sub(1, Ordering::Relaxed);
        }
        let agent = &self.conn.agent;
        match self.sender.take() {
            Some(Sender::Http1(sender)) if sender.is_ready() => {
                agent.put(&self.conn, Sender::Http1(sender))
            }
            Some(Sender::Http1(sender)) => {
                let soon = self.complete.then(|| agent.returning());
                // If the driver has ended, so has the connection.
                let returned = Returned { sender, soon, given_up: !self.ended };
                let _ = self.conn.to_driver.send(ToDriver::Sender(returned));
            }
            Some(Sender::Http2(_)) => agent.done(&self.conn),
            None if !self.alone => agent.done(&self.conn),
            None => {}
        }
    }
}
