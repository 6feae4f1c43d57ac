//! A bus of hints over the broker. Every line that is no hint means that hints may have been lost:
//! the broker's greeting after each connection, its report of a slow client, and whatever else the
//! application sends.
//!
//! `tests/hints_contract/own_bus.rs` holds the bus to the same contract as the buses of this crate.

use futures_util::{Stream, stream};
use std::{
    fmt, io, mem,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    select,
    sync::Notify,
    time::sleep,
};
use tower_bound_agent::hints::{Heard, Hint, Hints};

/// The number of bytes that wait to be sent. Beyond it, `LOST` replaces all of them.
const WAITING: usize = 64 * 1024;

/// The line that makes the other processes report [`Heard::Lagged`]. Any line that is no hint does.
const LOST: &str = "lost";

/// The pause before the next attempt to connect. A client of a real broker increases it, adds
/// jitter, and sends heartbeats, by which it notices a broker that vanished without a word.
const PAUSE: Duration = Duration::from_millis(200);

/// Hints through a [`Broker`](super::broker::Broker). Each layer has one value of its own.
///
/// The stream of [`listen`](Hints::listen) holds the connection and also sends on it. So there is
/// no task that could outlive the layer, and hints wait until the stream is polled.
#[derive(Clone, Debug)]
pub struct BrokerHints {
    broker: SocketAddr,
    queue: Arc<Queue>,
}

impl BrokerHints {
    pub fn new(broker: SocketAddr) -> Self {
        Self { broker, queue: Arc::default() }
    }
}

impl Hints for BrokerHints {
    fn send(&self, hint: Hint) {
        self.queue.push(hint);
    }

    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static {
        let (broker, queue) = (self.broker, Arc::clone(&self.queue));
        let listening = Listening { broker, queue, connection: None };
        stream::unfold(listening, async |mut listening| {
            let heard = listening.next().await;
            Some((heard, listening))
        })
    }
}

/// The lines that wait to be sent.
#[derive(Debug, Default)]
struct Queue {
    lines: Mutex<String>,
    filled: Notify,
}

impl Queue {
    fn lines(&self) -> MutexGuard<'_, String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never waits: of too many lines, it is only remembered that there were some.
    fn push(&self, line: impl fmt::Display) {
        let mut lines = self.lines();
        if lines.len() > WAITING {
            *lines = format!("{LOST}\n");
        }
        lines.push_str(&format!("{line}\n"));
        self.filled.notify_one();
    }

    async fn take(&self) -> String {
        loop {
            let lines = mem::take(&mut *self.lines());
            if !lines.is_empty() {
                return lines;
            }
            self.filled.notified().await;
        }
    }
}

/// The state of one stream.
struct Listening {
    broker: SocketAddr,
    queue: Arc<Queue>,
    /// `None` before the first connection, and between two.
    connection: Option<Connection>,
}

struct Connection {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writes: OwnedWriteHalf,
}

impl Connection {
    async fn open(broker: SocketAddr) -> io::Result<Self> {
        let (reads, writes) = TcpStream::connect(broker).await?.into_split();
        Ok(Self { lines: BufReader::new(reads).lines(), writes })
    }

    /// Sends what waits, until a line arrives.
    async fn next(&mut self, queue: &Queue) -> io::Result<Heard> {
        loop {
            select! {
                line = self.lines.next_line() => {
                    let line = line?.ok_or(io::ErrorKind::UnexpectedEof)?;
                    return Ok(line.parse().map_or(Heard::Lagged, Heard::Hint));
                }
                lines = queue.take() => self.writes.write_all(lines.as_bytes()).await?,
            }
        }
    }
}

impl Listening {
    /// Waits for the next line, over as many connections as that takes.
    async fn next(&mut self) -> Heard {
        loop {
            if let Some(connection) = &mut self.connection {
                if let Ok(heard) = connection.next(&self.queue).await {
                    return heard;
                }
                // What was sent last may not have reached the broker. What was received in the
                // meantime is lost as well: the greeting of the next connection reports it.
                self.connection = None;
                self.queue.push(LOST);
            }
            match Connection::open(self.broker).await {
                Ok(connection) => self.connection = Some(connection),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}
