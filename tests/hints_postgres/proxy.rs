//! A proxy between a client and the server, which can inject faults.

use sqlx::postgres::PgConnectOptions as Options;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Mode {
    Faithful,
    /// Like a pooler in transaction mode: no notification arrives, except one together with the
    /// answer to LISTEN.
    Deaf,
    /// Like a frozen server: accepts connections, and forwards nothing.
    Frozen,
}

pub(crate) struct Proxy {
    folder: TempDir,
    server: Options,
    mode: watch::Sender<Mode>,
    accepted: Arc<AtomicUsize>,
    running: Option<JoinHandle<()>>,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Proxy {
    /// Creates a proxy that accepts no connection before it is opened.
    pub(crate) fn new(server: Options) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            server,
            mode: watch::Sender::new(Mode::Faithful),
            accepted: Arc::default(),
            running: None,
        }
    }

    /// Returns the options of connections through the proxy.
    pub(crate) fn options(&self) -> Options {
        self.server.clone().socket(self.folder.path()).ssl_mode(sqlx::postgres::PgSslMode::Disable)
    }

    pub(crate) fn open(&mut self) {
        let listener =
            UnixListener::bind(socket(self.folder.path(), self.server.get_port())).unwrap();
        let (server, mode, accepted) =
            (self.server.clone(), self.mode.clone(), self.accepted.clone());
        self.running = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                accepted.fetch_add(1, SeqCst);
                connections.spawn(carry(client, server.clone(), mode.subscribe()));
            }
        }));
    }

    pub(crate) fn be(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Returns the number of accepted connections.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

fn socket(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!(".s.PGSQL.{port}"))
}

async fn carry(client: UnixStream, server: Options, mode: watch::Receiver<Mode>) {
    let server: Box<dyn Duplex> = match server.get_socket() {
        Some(folder) => {
            Box::new(UnixStream::connect(socket(folder, server.get_port())).await.unwrap())
        }
        None => Box::new(TcpStream::connect((server.get_host(), server.get_port())).await.unwrap()),
    };
    let ((from_client, to_client), (from_server, to_server)) = (split(client), split(server));
    // The end of one direction ends both.
    tokio::select! {
        _ = there(from_client, to_server, mode.clone()) => {}
        _ = back(from_server, to_client, mode) => {}
    }
}

async fn thawed(mode: &mut watch::Receiver<Mode>) -> Mode {
    *mode.wait_for(|mode| *mode != Mode::Frozen).await.unwrap()
}

async fn there(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut bytes = vec![0; 65536];
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        thawed(&mut mode).await;
        to.write_all(&bytes[..count]).await?;
    }
}

/// Forwards the server's messages one by one: a letter, and a length that includes itself.
async fn back(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
) -> io::Result<()> {
    loop {
        let kind = from.read_u8().await?;
        let length = from.read_u32().await?;
        let mut message = vec![0; length as usize - 4];
        from.read_exact(&mut message).await?;
        if thawed(&mut mode).await == Mode::Deaf {
            if kind == b'A' {
                continue;
            }
            if kind == b'C' && message == *b"LISTEN\0" {
                to.write_all(b"A\0\0\0\x10\0\0\0\x07c\0probe\0").await?;
            }
        }
        to.write_u8(kind).await?;
        to.write_u32(length).await?;
        to.write_all(&message).await?;
        to.flush().await?;
    }
}
