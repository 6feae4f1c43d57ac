//! A socket in front of the server's socket, which loses one statement or its answer, and closes
//! the connection.

use std::{
    io,
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    select,
    task::JoinSet,
};

/// The moment at which the connection ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cut {
    /// Before the server receives the statement.
    Statement,
    /// After the server has executed the statement, and before the client receives the answer.
    Answer,
}

/// A message of a client to a server, in the protocol of the database.
pub(crate) trait Wire: Default + Send + 'static {
    /// Returns the length of the first message, if it is complete, and the SQL that it makes the
    /// server run.
    fn message(&mut self, bytes: &[u8]) -> Option<(usize, Option<String>)>;
}

/// A running proxy. Dropping it ends all connections through it.
pub(crate) struct Proxy<W> {
    folder: TempDir,
    server: PathBuf,
    /// Returns the path of the socket in a folder.
    socket: fn(&Path) -> PathBuf,
    /// The fault that is applied to the next statement with this beginning.
    next: Arc<Mutex<Option<(Cut, &'static str)>>>,
    tasks: JoinSet<()>,
    wire: PhantomData<fn() -> W>,
}

impl<W: Wire> Proxy<W> {
    pub(crate) fn start(server: &Path, socket: fn(&Path) -> PathBuf) -> Self {
        let (folder, server) = (tempfile::tempdir().unwrap(), socket(server));
        let (next, tasks) = (Arc::default(), JoinSet::new());
        let mut proxy = Self { folder, server, socket, next, tasks, wire: PhantomData };
        proxy.come_back();
        proxy
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Applies the fault to the next statement with this beginning.
    pub(crate) fn cut(&self, cut: Cut, statement: &'static str) {
        *self.next.lock().unwrap() = Some((cut, statement));
    }

    /// Returns `true` if the fault was applied.
    pub(crate) fn has_cut(&self) -> bool {
        self.next.lock().unwrap().is_none()
    }

    /// Ends all connections and accepts no more.
    #[cfg(feature = "postgres")]
    pub(crate) async fn go_away(&mut self) {
        self.tasks.shutdown().await;
        std::fs::remove_file((self.socket)(self.folder.path())).unwrap();
    }

    /// Accepts connections again.
    pub(crate) fn come_back(&mut self) {
        let listener = UnixListener::bind((self.socket)(self.folder.path())).unwrap();
        let (server, next) = (self.server.clone(), Arc::clone(&self.next));
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(server) = UnixStream::connect(&server).await else { continue };
                let next = Arc::clone(&next);
                connections.spawn(async move {
                    // Both sockets are closed, whatever the result.
                    let _ = pass_on::<W>(client, server, &next).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
    }
}

async fn pass_on<W: Wire>(
    mut client: UnixStream,
    mut server: UnixStream,
    next: &Mutex<Option<(Cut, &'static str)>>,
) -> io::Result<()> {
    let (mut said, mut answered) = (Vec::new(), Vec::new());
    let (mut wire, mut loses_answer) = (W::default(), false);
    loop {
        select! {
            read = client.read_buf(&mut said) => {
                if read? == 0 {
                    return Ok(());
                }
                let mut whole = 0;
                while let Some((length, runs)) = wire.message(&said[whole..]) {
                    whole += length;
                    let Some(sql) = runs else { continue };
                    let cut = next.lock().unwrap().take_if(|(_, statement)| sql.trim_start().starts_with(*statement));
                    match cut {
                        Some((Cut::Statement, _)) => return Ok(()),
                        Some((Cut::Answer, _)) => loses_answer = true,
                        None => {}
                    }
                }
                server.write_all(&said[..whole]).await?;
                said.drain(..whole);
            }
            read = server.read_buf(&mut answered) => {
                // Both databases answer a statement only after its commit.
                if read? == 0 || loses_answer {
                    return Ok(());
                }
                client.write_all(&answered).await?;
                answered.clear();
            }
        }
    }
}
