//! One idea: see what a rebuild costs, in a browser. Chats take turns over real sockets to real
//! agent processes, and three lanes serve the same chats in three ways: with this crate, by asking
//! the resolver before every turn, and by remembering without a question.
//!
//! ```text
//! cargo run --example playground                    # prints the address of a page
//! cargo run --example playground -- --port 8080     # the same, at this port of 127.0.0.1
//! cargo run --example playground -- --story         # a rebuild without a page, as a table
//! ```
//!
//! `--chats N`, `--workspaces N` and `--turns N` (in a second and lane) change the load, and
//! `--delay N` the validation delay of this crate (in milliseconds). The page has no build step and
//! loads nothing from elsewhere. The agents are this program again; they end with it, however it
//! ends.
#![allow(unreachable_pub)] // modules of an example have no outside

mod agent;
mod agents;
mod database;
mod journal;
mod lanes;
mod story;
mod trace;
mod web;
mod world;

use agents::MOST_WORKSPACES;
use std::{
    io::{ErrorKind, Write},
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, select, time::timeout};
use tokio_util::sync::CancellationToken;
use tower_bound_agent::BoxError;
use world::World;

struct Arguments {
    port: u16,
    chats: usize,
    workspaces: usize,
    turns: u32,
    delay: Duration,
    story: bool,
}

fn main() -> ExitCode {
    let done = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        let done = runtime.block_on(run());
        // A pending read of standard input would block an orderly shutdown.
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<bool, BoxError> {
    let mut arguments = std::env::args().skip(1);
    if let Some("agent") = std::env::args().nth(1).as_deref() {
        agent::run(arguments.nth(1).ok_or("which agent?")?).await?;
        return Ok(true);
    }
    let arguments = Arguments::parse(arguments)?;
    let folder = tempfile::tempdir()?;
    if arguments.story {
        return story::tell(folder.path()).await;
    }
    serve(&arguments, folder.path()).await?;
    Ok(true)
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, BoxError> {
        let mut parsed = Self {
            port: 0,
            chats: 300,
            workspaces: 4,
            turns: 50,
            delay: Duration::from_millis(250),
            story: false,
        };
        while let Some(argument) = arguments.next() {
            let mut number = |least: usize, most: usize| {
                let value = arguments.next().and_then(|value| value.parse::<usize>().ok());
                let value = value.filter(|value| (least..=most).contains(value));
                value.ok_or_else(|| format!("{argument} needs a number from {least} to {most}"))
            };
            match &*argument {
                "--port" => parsed.port = u16::try_from(number(0, 65_535)?)?,
                "--chats" => parsed.chats = number(1, 2_000)?,
                "--workspaces" => parsed.workspaces = number(1, MOST_WORKSPACES)?,
                "--turns" => parsed.turns = u32::try_from(number(1, 500)?)?,
                "--delay" => parsed.delay = Duration::from_millis(number(1, 10_000)? as u64),
                "--story" => parsed.story = true,
                _ => {
                    return Err(format!(
                        "unknown argument {argument}. There are --port, --chats, --workspaces, --turns, --delay and --story"
                    )
                    .into());
                }
            }
        }
        Ok(parsed)
    }
}

/// Serves the page until the program is interrupted.
async fn serve(arguments: &Arguments, folder: &std::path::Path) -> Result<(), BoxError> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port));
    let listener = TcpListener::bind(wanted).await.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => format!(
            "port {} of 127.0.0.1 is in use. Choose another one with --port, or leave it out for a free one",
            arguments.port
        ),
        _ => format!("cannot listen at {wanted}: {error}"),
    })?;
    let address = listener.local_addr()?;
    let interrupted = interrupted()?;
    let world =
        World::create(folder, arguments.chats, arguments.workspaces, arguments.delay).await?;
    let ending = CancellationToken::new();
    let app = web::router(Arc::clone(&world), ending.clone(), address);
    let serving =
        axum::serve(listener, app).with_graceful_shutdown(ending.clone().cancelled_owned());
    let mut serving = tokio::spawn(serving.into_future());
    world.set_running(true);
    let load = tokio::spawn(Arc::clone(&world).load(arguments.turns));
    let chats = world.chats();
    let workspaces = arguments.workspaces;
    let said = format!(
        "The playground is at http://{address}/\n{chats} chats, {workspaces} workspaces. Ctrl-C ends it.\n"
    );
    // Nobody may be reading.
    let _ = std::io::stdout().write_all(said.as_bytes());
    let ended = select! {
        ended = &mut serving => ended?.map_err(BoxError::from),
        () = interrupted => Ok(()),
    };
    load.abort();
    ending.cancel();
    // A page that takes nothing must not keep the program alive.
    let _ = timeout(Duration::from_secs(2), serving).await;
    world.close().await;
    ended
}

/// Resolves when the program should end. The signals are caught from the call on.
fn interrupted() -> Result<impl Future<Output = ()>, BoxError> {
    #[cfg(unix)]
    let mut signals = {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>()?
    };
    Ok(async move {
        #[cfg(unix)]
        futures_util::future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv())))
            .await;
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    })
}
