//! The logical clock that orders the statements of this process.
//! [`Watches`](crate::cache::watch::Watches) advances it.

/// A point in the order of this process's statements. No clock: of two that fall into one instant,
/// one is earlier.
pub(crate) type Moment = u64;

/// How old an entry may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// By a read that began then.
    Read(Moment),
    /// In the answer to a write of this process, which came then.
    Written(Moment),
}

impl Seen {
    pub(crate) const fn moment(self) -> Moment {
        match self {
            Self::Read(moment) | Self::Written(moment) => moment,
        }
    }
}
