//! An agent process: it names itself to everyone who connects, and responds to each line.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    select,
    time::{Duration, sleep},
};
use tower_bound_agent::BoxError;

/// Serves until standard input is closed, so that the agent never outlives the playground. The
/// lines `silent` and `responsive` on standard input switch between the two.
pub(crate) async fn run(id: String) -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let silent = Arc::new(AtomicBool::new(false));
    select! {
        never = serve(listener, id.into(), Arc::clone(&silent)) => never,
        () = commands(&silent) => Ok(()),
    }
}

async fn commands(silent: &AtomicBool) {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        silent.store(line == "silent", SeqCst);
    }
}

async fn serve(
    listener: TcpListener,
    id: Arc<str>,
    silent: Arc<AtomicBool>,
) -> Result<(), BoxError> {
    loop {
        // While the agent is silent, its system accepts connections and nothing answers them.
        while silent.load(SeqCst) {
            sleep(Duration::from_millis(20)).await;
        }
        let (stream, _) = listener.accept().await?;
        let (id, silent) = (Arc::clone(&id), Arc::clone(&silent));
        tokio::spawn(async move {
            // An error means that the client is gone.
            let _ = respond(stream, &id, &silent).await;
        });
    }
}

async fn respond(mut stream: TcpStream, id: &str, silent: &AtomicBool) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (reads, mut writes) = stream.split();
    let mut lines = BufReader::new(reads).lines();
    loop {
        while silent.load(SeqCst) {
            sleep(Duration::from_millis(20)).await;
        }
        writes.write_all(format!("{id}\n").as_bytes()).await?;
        if lines.next_line().await?.is_none() {
            return Ok(());
        }
    }
}
