//! Bindings: first binds, commands and their faults, repairs that lose the compare-and-swap,
//! handles and events.

mod commands;
mod events;
mod faults;
#[cfg(feature = "sqlite")]
mod files;
mod first_bind;
mod handles;
mod housekeeping;
mod inspect;
mod operating;
mod repairs;
mod superseded;
mod transactions;
mod unrelated;

use std::time::Duration;
use support::*;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tower::Service;
use tower_bound_agent::{Bound, DialSession, Error};

/// Starts a call in a task of its own.
fn start<S>(dial: &S, ask: impl Into<DialSession>) -> JoinHandle<Result<Bound<Conn>, Error>>
where
    S: Service<DialSession, Response = Bound<Conn>, Error = Error, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let (dial, ask) = (dial.clone(), ask.into());
    tokio::spawn(async move { call(&dial, ask).await })
}

/// Advances the paused clock to `after` since `begin`, and runs all work that is due by then.
async fn at(begin: Instant, after: Duration) {
    sleep_until(begin + after).await;
}

/// Runs all work that is ready, which advances the paused clock by a millisecond.
async fn settled() {
    tokio::time::sleep(ms(1)).await;
}
