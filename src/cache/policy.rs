//! The decisions of the cache, as pure functions: no lock, no atomic, no moka.
//!
//! Two orders meet here. *Revisions* order two rows that are both at hand. *Ticks* of the logical
//! clock order a read against what happened to its session while the read was under way, when there
//! is no second row to compare it with.

use crate::{
    Epoch, Revision, WorkspaceId,
    clock::{Stamp, Tick},
};

/// The events of one session since a task began to [watch](super::watch::Watch) it.
#[derive(Debug, Default)]
pub(super) struct History {
    /// When the session's slot was last emptied, or a hint about the session arrived.
    pub(super) lost_at: Tick,
    /// When the row was last found to be changed by a command, or removed, or was to be read again
    /// because of a hint.
    pub(super) commanded_at: Tick,
    /// When the row was last removed, or was no longer to be used.
    pub(super) removed_at: Tick,
    /// When a row was last read, written or held.
    pub(super) seen_at: Tick,
    /// The newest row that was seen. Ticks do not tell it from a row that was read later by a read
    /// that ended earlier; and of two workspaces the newer row's is the one that counts.
    pub(super) newest: Option<(Revision, WorkspaceId)>,
    /// The greatest revision of the rows that were seen in another workspace than the newest row.
    pub(super) elsewhere: Option<Revision>,
}

impl History {
    /// Records a row that was seen. Returns `true` if it points at another workspace than the
    /// newest row before it.
    pub(super) fn see(&mut self, revision: Revision, workspace: WorkspaceId) -> bool {
        let Some((newest, seen_in)) = self.newest else {
            self.newest = Some((revision, workspace));
            return false;
        };
        let is_elsewhere = workspace != seen_in;
        if is_elsewhere {
            // Of the two the earlier one is elsewhere from here on.
            self.elsewhere = self.elsewhere.max(Some(revision.min(newest)));
        }
        if revision > newest {
            self.newest = Some((revision, workspace));
        }
        is_elsewhere
    }
}

/// Returns `true` if a read that began at this tick cannot be older than the events that were seen,
/// so that its row may fill an empty slot.
pub(super) fn may_fill(history: &History, reset_at: Tick, revision: Revision, began: Tick) -> bool {
    history.lost_at.max(reset_at) < began
        && history.newest.is_none_or(|(newest, _)| newest <= revision)
}

/// Returns `true` if a command may have superseded the row of a read or write that began at this
/// tick.
pub(super) fn may_be_commanded(history: &History, began: Tick) -> bool {
    history.commanded_at > began
}

/// Returns `true` if the row of a read or write that began at this tick was removed since, or if a
/// later row was seen in another workspace. The row of the statement that finds an earlier row
/// elsewhere is not moved: revisions tell them apart, and ticks do not.
pub(super) fn is_moved(
    history: &History,
    (revision, workspace): (Revision, WorkspaceId),
    began: Tick,
) -> bool {
    let elsewhere = match history.newest {
        Some((newest, seen_in)) if seen_in != workspace => Some(newest),
        _ => history.elsewhere,
    };
    history.removed_at > began || elsewhere > Some(revision)
}

/// Returns `true` if a read that began at this tick and has found no row may be older than a row
/// that was seen.
pub(super) fn may_have_row(history: &History, began: Tick) -> bool {
    history.seen_at > began
}

/// Returns `true` if targets were reset after a read or write began.
pub(super) fn is_invalidated(reset_at: Tick, began: Tick) -> bool {
    reset_at > began
}

/// The attributes of the row in a slot that the comparison uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct CurrentRow {
    pub(super) revision: Revision,
    pub(super) epoch: Epoch,
    /// When the group repair landed that has written the row without telling its new revision.
    pub(super) repaired_at: Option<Tick>,
    /// The entry is not on its way into the slot or out of it.
    pub(super) confirmed: bool,
}

/// The attributes of a row that was read or written that the comparison uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewRow {
    pub(super) revision: Revision,
    pub(super) epoch: Epoch,
    pub(super) stamp: Stamp,
    /// The result of [`may_fill`].
    pub(super) may_fill: bool,
}

/// The row that the slot holds from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// The row in the slot, which is at least as new.
    Current,
    /// The row that was read or written.
    New,
    /// The row in the slot, if any. The caller uses the new row, which is not cached.
    Neither,
}

/// Decides between the row in the slot and a row that was read or written.
pub(super) fn winner(current: Option<CurrentRow>, new: NewRow) -> Keep {
    let Some(current) = current else {
        // There is no revision to compare with.
        return if new.may_fill { Keep::New } else { Keep::Neither };
    };
    if new.revision < current.revision || is_known(current, new) {
        return Keep::Current;
    }
    // An unconfirmed entry may be stale itself, so that being newer than it proves nothing.
    if current.confirmed || new.may_fill { Keep::New } else { Keep::Neither }
}

/// Returns `true` if the slot holds the same revision, and the new row adds nothing.
fn is_known(current: CurrentRow, new: NewRow) -> bool {
    new.revision == current.revision
        && new.epoch <= current.epoch
        && !current.repaired_at.is_some_and(|landed| was_missed(landed, new.stamp))
}

/// Returns `true` if the row was read with its old revision after the group repair had landed: the
/// repair has not written it. It may have been locked.
fn was_missed(landed: Tick, stamp: Stamp) -> bool {
    stamp.answered().is_none() && stamp.began() > landed
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const REVISION: Revision = Revision::new(5);
    const EPOCH: Epoch = Epoch::new(1);

    fn current(repaired_at: Option<Tick>, confirmed: bool) -> Option<CurrentRow> {
        Some(CurrentRow { revision: REVISION, epoch: EPOCH, repaired_at, confirmed })
    }

    #[test]
    fn the_winner_of_each_pair_of_rows() {
        let (read, written) = (Stamp::read(20), Stamp::written(20, 30));
        let epoch = |number| Epoch::new(number);
        let (confirmed, unconfirmed) = (current(None, true), current(None, false));
        let (may, may_not) = (true, false);
        #[rustfmt::skip]
        let table = [
            // slot                     new row               may fill  winner
            // An empty slot.
            (None,                      5, epoch(1), read,     may,      Keep::New),
            (None,                      5, epoch(1), read,     may_not,  Keep::Neither),
            // An earlier revision.
            (confirmed,                 4, epoch(1), read,     may,      Keep::Current),
            (confirmed,                 4, epoch(2), written,  may,      Keep::Current),
            (unconfirmed,               4, epoch(1), read,     may_not,  Keep::Current),
            // The same revision.
            (confirmed,                 5, epoch(1), read,     may,      Keep::Current),
            (confirmed,                 5, epoch(0), read,     may,      Keep::Current),
            (unconfirmed,               5, epoch(1), read,     may_not,  Keep::Current),
            // The same revision, read in a later epoch.
            (confirmed,                 5, epoch(2), read,     may_not,  Keep::New),
            (unconfirmed,               5, epoch(2), read,     may_not,  Keep::Neither),
            // The same revision, read or written before and after a group repair landed.
            (current(Some(25), true),   5, epoch(1), read,     may,      Keep::Current),
            (current(Some(15), true),   5, epoch(1), read,     may_not,  Keep::New),
            (current(Some(15), true),   5, epoch(1), written,  may,      Keep::Current),
            (current(Some(15), false),  5, epoch(1), read,     may_not,  Keep::Neither),
            // A later revision.
            (confirmed,                 6, epoch(1), read,     may_not,  Keep::New),
            (confirmed,                 6, epoch(0), read,     may_not,  Keep::New),
            (unconfirmed,               6, epoch(1), read,     may,      Keep::New),
            (unconfirmed,               6, epoch(1), read,     may_not,  Keep::Neither),
        ];
        for (current, revision, epoch, stamp, may_fill, expected) in table {
            let new = NewRow { revision: Revision::new(revision), epoch, stamp, may_fill };
            assert_eq!(winner(current, new), expected, "{current:?}, {new:?}");
        }
    }

    #[test]
    fn the_reads_that_may_fill_an_empty_slot() {
        let workspace = WorkspaceId::new(Uuid::from_u128(1));
        let seen = Some((REVISION, workspace));
        #[rustfmt::skip]
        let table = [
            // lost   reset   newest   revision   began   may it fill
            (0,       0,      None,    1,         1,      true),
            (10,      0,      None,    1,         9,      false),
            (10,      0,      None,    1,         11,     true),
            (0,       10,     None,    1,         9,      false),
            (0,       10,     None,    1,         11,     true),
            (0,       0,      seen,    4,         11,     false),
            (0,       0,      seen,    5,         11,     true),
            (0,       0,      seen,    6,         11,     true),
            (10,      0,      seen,    6,         9,      false),
        ];
        for (lost_at, reset_at, newest, revision, began, expected) in table {
            let history = History { lost_at, newest, ..History::default() };
            let may_fill = may_fill(&history, reset_at, Revision::new(revision), began);
            assert_eq!(may_fill, expected, "{history:?}, {reset_at}, {revision}, {began}");
        }
    }

    #[test]
    fn a_command_and_a_reset_count_for_what_began_before_them() {
        let history =
            History { commanded_at: 10, removed_at: 10, seen_at: 10, ..History::default() };
        let row = (REVISION, WorkspaceId::new(Uuid::from_u128(1)));
        for (began, expected) in [(9, true), (10, false), (11, false)] {
            assert_eq!(may_be_commanded(&history, began), expected, "{began}");
            assert_eq!(is_moved(&history, row, began), expected, "{began}");
            assert_eq!(may_have_row(&history, began), expected, "{began}");
            assert_eq!(is_invalidated(10, began), expected, "{began}");
        }
    }

    #[test]
    fn a_row_is_moved_by_later_rows_elsewhere() {
        #[rustfmt::skip]
        let table: [(&[(i64, u128)], _); 6] = [
            // Revisions and workspaces in the order in which they were seen, and those that moved.
            (&[(1, 1)],                         [false, false, false]),
            (&[(1, 1), (2, 1), (3, 1)],         [false, false, false]),
            (&[(1, 1), (2, 2)],                 [true,  false, false]),
            (&[(2, 2), (1, 1)],                 [true,  false, false]),
            // Away and back.
            (&[(1, 1), (2, 2), (3, 1)],         [true,  true,  false]),
            (&[(3, 1), (1, 1), (2, 2)],         [true,  true,  false]),
        ];
        let workspace = |number| WorkspaceId::new(Uuid::from_u128(number));
        for (seen, expected) in table {
            let mut history = History::default();
            for (revision, number) in seen {
                history.see(Revision::new(*revision), workspace(*number));
            }
            for (revision, number) in seen {
                let row = (Revision::new(*revision), workspace(*number));
                let expected = expected[usize::try_from(*revision).unwrap() - 1];
                assert_eq!(is_moved(&history, row, 0), expected, "{seen:?}, {revision}");
            }
        }
    }
}
