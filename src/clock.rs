//! The logical clock of this process, which orders its statements, losses, commands and resets.
//!
//! A *Lamport clock* with a single site: each event takes the next number. Instants cannot order
//! these events, because two of them may fall into the same instant.

use std::sync::atomic::{AtomicU64, Ordering};

/// A point in the order of this process's events. All of them are later than 0.
pub(crate) type Tick = u64;

#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    /// Returns a tick that is later than all that were returned before.
    pub(crate) fn tick(&self) -> Tick {
        self.0.fetch_add(1, Ordering::AcqRel) + 1
    }
}

/// When the statement ran that has brought a row.
///
/// A read may have seen the row at any time after it `began`. A write has left the row as it says
/// at some time before it was `answered`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    began: Tick,
    answered: Option<Tick>,
}

impl Stamp {
    /// The stamp of a read.
    pub(crate) const fn read(began: Tick) -> Self {
        Self { began, answered: None }
    }

    /// The stamp of a write. If its row was read again after the answer, that read is what counts.
    pub(crate) fn written(began: Tick, answered: Tick) -> Self {
        Self { began, answered: Some(answered).filter(|answered| *answered > began) }
    }

    pub(crate) const fn began(self) -> Tick {
        self.began
    }

    /// Returns when the write was answered, or `None` for a read.
    pub(crate) const fn answered(self) -> Option<Tick> {
        self.answered
    }

    /// Returns the latest tick that is known of the statement.
    pub(crate) fn latest(self) -> Tick {
        self.answered.unwrap_or(self.began)
    }
}
