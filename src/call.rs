//! One call from the request to the connection: look up, race, settle, restart.

use crate::{
    Bound, BoundHandle, BoxError, DialAgent, DialSession, Error, ErrorKind, Event, LastVerdict, Outcome, Path,
    dialer::Dialer,
    race::{Raced, Won, race},
    repair::{self, Job, Repairs},
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
        Ok(connected) => Ok(settle(shared, connected, began, dialer.progress().started)),
        // What went wrong after closing had begun went wrong because of it.
        Err(error) if shared.is_closed() => Err(error.because_closed()),
        Err(error) => Err(error),
    }
}

/// A connection that may be returned.
struct Connected<C> {
    won: Won<C>,
    start: Start,
    /// What is being written so that the row names what answered, or was already, if the settings say so.
    repair: Option<Job>,
}

async fn connect<S>(
    shared: &Arc<Shared>,
    mut dialer: Pin<&mut Dialer<S>>,
    ask: &DialSession,
    began: Instant,
) -> Result<Connected<S::Response>, Error>
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
            Ok(Raced::Won(won)) => {
                let needed = repair::is_needed(start.entry.row.target.as_ref(), &won.target);
                let mut repair = needed.then(|| Repairs::begin(shared, &start.entry, &won.target));
                if let (Some(job), RepairMode::BeforeReturn) = (&mut repair, shared.settings.repair) {
                    // Boxed for the same reason. At the deadline there is a connection, so that is no failure.
                    let _ = Box::pin(timeout_at(deadline, job.attempted())).await;
                    // The second look: the repair may have lost to something newer, or an order may have come.
                    if shared.has_left(&start.entry, &won.target) {
                        drop(won);
                        restarted = true;
                        now = Instant::now();
                        continue;
                    }
                }
                return Ok(Connected { won, start, repair });
            }
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

/// Tells the observer, hands the connection out.
fn settle<C>(shared: Arc<Shared>, connected: Connected<C>, began: Instant, dials: u8) -> Bound<C> {
    let Connected { won, start, repair } = connected;
    let Won { connection, target, path, validations, dial_began, dialed_in } = won;
    let entry = start.entry;
    let outcome = Outcome {
        path,
        dials,
        validations,
        decided_in: dial_began.saturating_duration_since(began),
        dialed_in,
        repair: repair.map(|job| job.status),
    };
    let (session, workspace) = (entry.row.session, entry.row.workspace);
    if let Path::Switched { from } = &outcome.path {
        shared.emit(&Event::Switched { session, workspace, from, to: &target });
    }
    shared.emit(&Event::Used { session, workspace, target: &target, outcome: &outcome });
    Bound::new(connection, BoundHandle::new(shared, entry, target, outcome))
}
