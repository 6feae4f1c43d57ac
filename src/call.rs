//! One call from the request to the connection: look up, race, settle, restart.

use crate::{
    Bound, BoundHandle, BoxError, DialAgent, DialSession, Error, ErrorKind, Event, LastVerdict, Path,
    dialer::Dialer,
    race::{Raced, Won, race},
    repair::{self, Repairs},
    rows::Entry,
    settings::RepairMode,
    shared::{Shared, Start},
};
use std::{pin::pin, sync::Arc};
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

pub(crate) async fn call<S>(shared: Arc<Shared>, readied: S, ask: DialSession) -> Result<Bound<S::Response>, Error>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    if shared.is_closed() {
        return Err(Error::new(ErrorKind::Closed).of(ask.session));
    }
    let mut dialer = pin!(Dialer::new(readied));
    let began = Instant::now();
    let deadline = began + shared.settings.dial_timeout;
    let mut now = began;
    // Also those of the races before the last one count.
    let (mut restarted, mut validations) = (false, 0_u8);
    loop {
        let mut start = match shared.cached(ask.session, ask.workspace, now) {
            // Dialed at once: the only use of the readiness that the caller waited for.
            Some(start) if start.choice.target.is_some() => start,
            Some(start) => {
                dialer.as_mut().give_back();
                start
            }
            None => {
                dialer.as_mut().give_back();
                // Boxed, so that the cached call does not carry the room for it.
                let start = Box::pin(look_up(&shared, &ask, deadline)).await?;
                now = Instant::now();
                start
            }
        };
        match race(&shared, dialer.as_mut(), &ask, &mut start, deadline, now).await {
            Ok(Raced::Won(mut won)) => {
                if repair::is_needed(start.entry.row.target.as_ref(), &won.target) {
                    let job = Repairs::begin(&shared, &start.entry, &won.target);
                    won.outcome.repair = Some(job.status.clone());
                    if shared.settings.repair == RepairMode::BeforeReturn {
                        // Boxed for the same reason. At the deadline there is a connection, so that is no failure.
                        let _ = Box::pin(timeout_at(deadline, job.attempted())).await;
                        // The second look: the repair may have lost to something newer, or an order may have come.
                        if shared.has_left(&start.entry, &won.target) {
                            validations = validations.saturating_add(won.outcome.validations);
                            drop(won);
                            restarted = true;
                            now = Instant::now();
                            continue;
                        }
                    }
                }
                let Won { dial_began, outcome, .. } = &mut won;
                outcome.dials = dialer.progress().started;
                outcome.validations = outcome.validations.saturating_add(validations);
                // Equal on the hot path, which is worth not computing.
                if *dial_began != began {
                    outcome.decided_in = dial_began.saturating_duration_since(began);
                }
                return Ok(hand_out(shared, won, start.entry));
            }
            Ok(Raced::Moved(asked)) => {
                validations = validations.saturating_add(asked);
                restarted = true;
                now = Instant::now();
            }
            Err(error) => return Err(because(&shared, error, restarted)),
        }
    }
}

async fn look_up(shared: &Arc<Shared>, ask: &DialSession, deadline: Instant) -> Result<Start, Error> {
    let looked = timeout_at(deadline, shared.look_up(ask.session, ask.workspace)).await;
    let timed_out = |_| Err(Error::new(ErrorKind::TimedOut { last: LastVerdict::Unknown }).of(ask.session));
    looked.unwrap_or_else(timed_out).map_err(|error| because(shared, error, false))
}

/// What an error is called depends on what else has happened.
fn because(shared: &Shared, error: Error, restarted: bool) -> Error {
    match error.kind() {
        // What went wrong after closing had begun went wrong because of it.
        _ if shared.is_closed() => error.because(ErrorKind::Closed),
        ErrorKind::Unreachable { newer: Some(_) } if restarted => error.because(ErrorKind::Retargeted),
        _ => error,
    }
}

/// Tells the observer, wraps the connection.
fn hand_out<C>(shared: Arc<Shared>, won: Won<C>, entry: Arc<Entry>) -> Bound<C> {
    let Won { connection, target, outcome, .. } = won;
    let (session, workspace) = (entry.row.session, entry.row.workspace);
    if let Path::Switched { from } = &outcome.path {
        shared.emit(&Event::Switched { session, workspace, from, to: &target });
    }
    shared.emit(&Event::Used { session, workspace, target: &target, outcome: &outcome });
    Bound::new(connection, BoundHandle::new(shared, entry, target, outcome))
}
