//! Events as an observer receives them. [`Event::to_owned`] makes an
//! [`OwnedEvent`](crate::OwnedEvent) of each.
//!
//! ```
//! use tower_bound_agent::{Event, Observer, testing::event};
//! # use std::sync::atomic::{AtomicU64, Ordering};
//! # use tower_bound_agent::{AgentId, SessionId, Target, WorkspaceId};
//! # use uuid::Uuid;
//!
//! /// An observer of the application.
//! #[derive(Default)]
//! struct Switches(AtomicU64);
//!
//! impl Observer for Switches {
//!     fn observe(&self, event: &Event<'_>) {
//!         if let Event::Switched { .. } = event {
//!             self.0.fetch_add(1, Ordering::Relaxed);
//!         }
//!     }
//! }
//!
//! # let (session, workspace) = (SessionId::new(Uuid::from_u128(1)), WorkspaceId::new(Uuid::from_u128(2)));
//! # let [old, new] = [3, 4].map(|id| Target::new(AgentId::new(Uuid::from_u128(id))));
//! let switches = Switches::default();
//! switches.observe(&event::switched(session, workspace, &old, &new));
//! switches.observe(&event::reported_stale(session, workspace, &new));
//! assert_eq!(switches.0.into_inner(), 1);
//! ```

use crate::{Error, Event, Outcome, Repair, Resolution, SessionId, Target, WorkspaceId};
use std::{error::Error as StdError, time::Duration};
use tokio::time::Instant;

/// An error that an event shows.
type Shown<'a> = &'a (dyn StdError + Send + Sync + 'static);

macro_rules! events {
    ($($name:ident $Variant:ident { $($field:ident: $of:ty),* })+) => { $(
        #[doc = concat!("Returns an [`Event::", stringify!($Variant), "`].")]
        #[must_use]
        pub fn $name<'a>($($field: $of),*) -> Event<'a> {
            Event::$Variant { $($field),* }
        }
    )+

    /// Does not compile if a kind of event has no function here.
    const _: fn(&Event<'_>) = |event| match event {
        $(Event::$Variant { .. } => {})+
    }; };
}

events! {
    dialed Dialed {
        session: SessionId,
        workspace: WorkspaceId,
        target: &'a Target,
        took: Duration,
        error: Option<Shown<'a>>
    }
    validated Validated {
        workspace: WorkspaceId,
        took: Duration,
        answer: Result<&'a Resolution, Shown<'a>>
    }
    switched Switched {
        session: SessionId,
        workspace: WorkspaceId,
        from: &'a Target,
        to: &'a Target
    }
    repaired Repaired {
        session: SessionId,
        workspace: WorkspaceId,
        target: &'a Target,
        repair: Repair,
        error: Option<Shown<'a>>
    }
    workspace_repaired WorkspaceRepaired {
        workspace: WorkspaceId,
        target: &'a Target,
        repair: Repair,
        error: Option<Shown<'a>>
    }
    used Used {
        session: SessionId,
        workspace: WorkspaceId,
        target: &'a Target,
        outcome: &'a Outcome
    }
    failed Failed {
        session: SessionId,
        workspace: Option<WorkspaceId>,
        error: &'a Error,
        took: Duration
    }
    look_up_failed LookUpFailed { session: SessionId, error: Shown<'a> }
    hints_lost HintsLost {}
    in_use InUse {
        session: SessionId,
        workspace: WorkspaceId,
        target: &'a Target,
        since: Instant
    }
    refresh_failed RefreshFailed { rows: u64, error: Shown<'a> }
    use_not_recorded UseNotRecorded { sessions: u64, error: Shown<'a> }
    reported_stale ReportedStale {
        session: SessionId,
        workspace: WorkspaceId,
        target: &'a Target
    }
    dropped_in_flight DroppedInFlight {
        session: SessionId,
        workspace: WorkspaceId,
        target: &'a Target,
        pending: Duration
    }
}
