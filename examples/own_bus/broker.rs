//! The message broker that the application already has, such as NATS or Redis. Here it is a task of
//! this process that relays each line from one TCP connection to all of them.

use std::{io, net::SocketAddr};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    select,
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
    task::{JoinHandle, JoinSet},
};

/// The number of lines that wait for a slow client. The oldest are lost first.
const WAITING: usize = 1_000;

/// A broker that listens on the loopback interface.
#[derive(Debug)]
pub struct Broker {
    pub address: SocketAddr,
    lines: broadcast::Sender<String>,
    disconnects: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Broker {
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (lines, disconnects) = (broadcast::Sender::new(WAITING), watch::Sender::new(()));
        let accepting = tokio::spawn(accept(listener, lines.clone(), disconnects.clone()));
        Ok(Self { address, lines, disconnects, accepting })
    }

    /// Sends a line to every client.
    pub fn publish(&self, line: &str) {
        // The send fails if there are no clients.
        let _ = self.lines.send(line.to_owned());
    }

    /// Closes all connections. Clients may connect again at once.
    pub fn disconnect(&self) {
        self.disconnects.send_replace(());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    lines: broadcast::Sender<String>,
    disconnects: watch::Sender<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(serve(stream, lines.clone(), disconnects.subscribe()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(
    stream: TcpStream,
    lines: broadcast::Sender<String>,
    mut disconnects: watch::Receiver<()>,
) {
    let (reads, writes) = stream.into_split();
    let relayed = lines.subscribe();
    // Reading goes on while a write waits, so that a client that only writes stops nobody.
    select! {
        () = receive(reads, lines) => {}
        _ = relay(writes, relayed) => {}
        _ = disconnects.changed() => {}
    }
}

/// Passes on what a client sends, until it closes the connection.
async fn receive(reads: OwnedReadHalf, to: broadcast::Sender<String>) {
    let mut lines = BufReader::new(reads).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let _ = to.send(line);
    }
}

/// Sends a greeting as soon as the client is subscribed, and then what all clients send.
async fn relay(
    mut writes: OwnedWriteHalf,
    mut lines: broadcast::Receiver<String>,
) -> io::Result<()> {
    writes.write_all(b"subscribed\n").await?;
    loop {
        let line = match lines.recv().await {
            Ok(line) => line,
            Err(RecvError::Lagged(lost)) => format!("{lost} lines were lost"),
            Err(RecvError::Closed) => return Ok(()),
        };
        writes.write_all(format!("{line}\n").as_bytes()).await?;
    }
}
