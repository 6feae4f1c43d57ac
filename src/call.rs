//! One call from the request to the connection: look up, race, settle, restart.

use crate::{
    Bound, BoundHandle, BoxError, DialAgent, DialSession, Error, ErrorKind, Event, LastVerdict, Outcome, Path,
    dialer::Dialer,
    race::{Raced, Won, race},
    repair::{self, Repairs},
    settings::RepairMode,
    shared::{Shared, Start},
};
use std::{
    pin::{Pin, pin},
    sync::Arc,
};
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
    let began = Instant::now();
    let mut dialer = pin!(Dialer::new(readied));
    match connect(&shared, dialer.as_mut(), &ask, began).await {
        Ok((won, start)) => {
            let dials = dialer.progress().started;
            Ok(settle(shared, won, start, began, dials).await)
        }
        // What went wrong after closing had begun went wrong because of it.
        Err(error) if shared.is_closed() => Err(error.because_closed()),
        Err(error) => Err(error),
    }
}

async fn connect<S>(
    shared: &Arc<Shared>,
    mut dialer: Pin<&mut Dialer<S>>,
    ask: &DialSession,
    began: Instant,
) -> Result<(Won<S::Response>, Start), Error>
where
    S: Service<DialAgent> + Clone,
    S::Error: Into<BoxError>,
{
    let deadline = began + shared.settings.dial_timeout;
    let mut now = began;
    let mut restarted = false;
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
                let looked = timeout_at(deadline, Box::pin(shared.look_up(ask.session, ask.workspace))).await;
                now = Instant::now();
                looked.map_err(|_| Error::new(ErrorKind::TimedOut { last: LastVerdict::Unknown }).of(ask.session))??
            }
        };
        match race(shared, dialer.as_mut(), ask, &mut start, deadline, now).await {
            Ok(Raced::Won(won)) => return Ok((won, start)),
            Ok(Raced::Moved) => {
                dialer.as_mut().stop();
                restarted = true;
                now = Instant::now();
            }
            Err(error) if restarted && matches!(error.kind(), ErrorKind::Unreachable { newer: Some(_) }) => {
                return Err(Error::new(ErrorKind::Retargeted).of(ask.session));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Begins the repair, tells the observer, hands the connection out. A finished dial never waits for a database, unless
/// the settings say so.
async fn settle<C>(shared: Arc<Shared>, won: Won<C>, start: Start, began: Instant, dials: u8) -> Bound<C> {
    let Won { connection, target, path, validations, dial_began, dialed_in } = won;
    let entry = start.entry;
    let mut outcome = Outcome {
        path,
        dials,
        validations,
        decided_in: dial_began.saturating_duration_since(began),
        dialed_in,
        repair: None,
    };
    if repair::is_needed(entry.row.target.as_ref(), &target) {
        let mut job = Repairs::begin(&shared, &entry, &target);
        if shared.settings.repair == RepairMode::BeforeReturn {
            Box::pin(job.attempted()).await;
        }
        outcome.repair = Some(job.status);
    }
    let (session, workspace) = (entry.row.session, entry.row.workspace);
    if let Path::Switched { from } = &outcome.path {
        shared.emit(&Event::Switched { session, workspace, from, to: &target });
    }
    shared.emit(&Event::Used { session, workspace, target: &target, outcome: &outcome });
    Bound::new(connection, BoundHandle::new(shared, entry, target, outcome))
}
