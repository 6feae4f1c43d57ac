//! Answers whether a row that was looked up earlier is still right.
//!
//! Four kinds of callers need the answer. Each maps the [`Standing`] of the row that it holds:
//!
//! | asked by | `Unchanged` | `Changed` | `Moved` | `Unread` |
//! |---|---|---|---|---|
//! | a dial that was ready at once, or that nothing disturbed (`dial::future`) | returns the connection | races | races | races |
//! | a race (`News`, `Race::look`) | goes on | chooses anew | looks the row up | goes on if the row is known to be absent still, or is created next; else reads it beside the dial, or looks it up if there is a connection to return |
//! | a call that has waited for its repair ([`Shared::has_left`]) | returns the connection, unless its target is superseded | the same | looks the row up | looks the row up |
//! | a handle or a request that waits ([`Shared::superseded`]) | – | chooses anew | is superseded | reads the row |
//!
//! One question stays apart: `call::has_moved` compares two rows. It does not ask whether the first
//! of them is still right.

use crate::{
    Target,
    cache::{CachedRow, RowCache, State},
    state::Shared,
};
use std::sync::Arc;
use tokio::time::Instant;

/// The relation of a held row to the information that this process has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing<R = Arc<CachedRow>> {
    /// Nothing has changed since the target was chosen.
    Unchanged,
    /// The session points at the same workspace. The caller must choose its target again, from this
    /// row.
    Changed(R),
    /// The session points at another workspace, its workspace was reset, or its row was removed.
    Moved,
    /// The cache did not keep the row, and a command came after the read: only the store knows
    /// where the session points.
    Unread,
}

/// The row from which to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Held,
    Cached,
}

/// The row in the session's slot, compared with the held row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Empty,
    /// Of another workspace, or of a later epoch of the same.
    Elsewhere,
    /// Of a smaller revision.
    Older,
    /// Of the same revision or a greater one.
    NotOlder,
}

/// `is_commanded`: a command came after the held row was read. `is_same_version`: the version of
/// the workspace state is the one from which the target was chosen.
fn decide(state: State, slot: Slot, is_commanded: bool, is_same_version: bool) -> Standing<From> {
    let held = if is_same_version { Standing::Unchanged } else { Standing::Changed(From::Held) };
    match (state, slot) {
        (State::Current, _) => held,
        (_, Slot::Elsewhere) | (State::Removed, Slot::Empty) => Standing::Moved,
        (State::Removed, _) | (_, Slot::NotOlder) => Standing::Changed(From::Cached),
        // The row that the cache could not keep may be later than the row in the slot.
        (State::Replaced | State::Evicted, Slot::Older) => held,
        (State::Replaced | State::Evicted, Slot::Empty) if is_commanded => Standing::Unread,
        // A row that the cache did not keep is no news.
        (State::Replaced | State::Evicted, Slot::Empty) => held,
    }
}

/// Compares a row with the information that this process has now. `chosen_in` is the version of the
/// workspace state from which the target was chosen, or `None` if none was chosen.
///
/// In the usual case nothing has changed, which takes two atomic loads.
#[inline]
pub(crate) fn of(rows: &RowCache, held: &Arc<CachedRow>, chosen_in: Option<u32>) -> Standing {
    let state = held.state();
    let is_same_version = chosen_in == Some(held.workspace_state.version());
    if state == State::Current && is_same_version {
        return Standing::Unchanged;
    }
    compare(rows, held, state, is_same_version)
}

#[cold]
fn compare(
    rows: &RowCache,
    held: &Arc<CachedRow>,
    state: State,
    is_same_version: bool,
) -> Standing {
    let cached = if state == State::Current { None } else { rows.get(held.row.session) };
    let slot = match &cached {
        None => Slot::Empty,
        Some(cached) if !cached.points_where(held) => Slot::Elsewhere,
        Some(cached) if cached.row.revision < held.row.revision => Slot::Older,
        Some(_) => Slot::NotOlder,
    };
    // Read after the slot, so that a command whose row the cache could not keep is not missed.
    let is_commanded = cached.is_none() && held.may_be_commanded();
    match decide(state, slot, is_commanded, is_same_version) {
        Standing::Unchanged => Standing::Unchanged,
        Standing::Changed(from) => {
            let cached = cached.filter(|_| from == From::Cached);
            Standing::Changed(cached.unwrap_or_else(|| Arc::clone(held)))
        }
        Standing::Moved => Standing::Moved,
        Standing::Unread => Standing::Unread,
    }
}

/// The answer to a session that holds a connection: whether it would now be connected elsewhere.
pub(crate) enum Superseded {
    No,
    Yes,
    /// The row was read just now: the caller uses this row and asks again.
    Reread(Arc<CachedRow>),
}

impl Shared {
    /// Compares a row with the information that this process has now; see [`of`].
    #[inline]
    pub(crate) fn standing(&self, held: &Arc<CachedRow>, chosen_in: Option<u32>) -> Standing {
        of(&self.rows, held, chosen_in)
    }

    /// Returns `true` if a connection to this target must not be returned: the session was
    /// retargeted or forgotten, or its workspace has a later agent.
    ///
    /// The target in the row is ignored: after a repair that has lost to another agent without a
    /// generation, the row names that agent in doubt, and the connection is returned all the same.
    /// Test: `a_repair_that_loses_without_generations_before_the_return_keeps_its_connection`.
    pub(crate) fn has_left(&self, held: &Arc<CachedRow>, target: &Target) -> bool {
        match self.standing(held, None) {
            Standing::Unchanged | Standing::Changed(_) => held.workspace_state.supersedes(target),
            Standing::Moved | Standing::Unread => true,
        }
    }

    /// Returns whether a session that goes by this row and is connected to this target would be
    /// connected elsewhere by now. Reads the row if only the store can tell.
    pub(crate) async fn superseded(
        self: &Arc<Self>,
        held: &Arc<CachedRow>,
        target: &Target,
    ) -> Superseded {
        let session = held.row.session;
        let is_superseded = match self.standing(held, None) {
            Standing::Unchanged => false,
            Standing::Changed(row) => {
                let (choice, _) = self.choose(&row);
                let is_another =
                    choice.target().is_some_and(|chosen| !chosen.same_endpoint(target));
                is_another || choice.is_reset()
            }
            Standing::Moved => true,
            // A transaction whose end was not reported may have changed the row.
            Standing::Unread if self.rows.must_read(session) => true,
            // The command may have been another session's.
            Standing::Unread => match self.read_since(session, Instant::now()).await {
                Ok(Some(row)) if row.points_where(held) => {
                    return Superseded::Reread(row);
                }
                Ok(_) => true,
                // No evidence; the next change is a reason to read again.
                Err(_) => false,
            },
        };
        if is_superseded { Superseded::Yes } else { Superseded::No }
    }
}

#[cfg(test)]
mod tests {
    use super::{From::*, Slot::*, Standing::*, *};
    use State::*;

    #[test]
    fn a_held_row_stands_as_its_state_the_slot_and_the_version_say() {
        // The states of the held row, the slots, whether a command came; then the standing if the
        // version is the same, and if it is another one.
        type Row = (&'static [State], &'static [Slot], &'static [bool], [Standing<From>; 2]);
        const ANY_SLOT: &[Slot] = &[Empty, Elsewhere, Older, NotOlder];
        const ANY: &[bool] = &[false, true];
        let table: [Row; 8] = [
            (&[Current], ANY_SLOT, ANY, [Unchanged, Changed(Held)]),
            (&[Replaced, Evicted, Removed], &[Elsewhere], ANY, [Moved, Moved]),
            (&[Replaced, Evicted], &[NotOlder], ANY, [Changed(Cached), Changed(Cached)]),
            (&[Replaced, Evicted], &[Older], ANY, [Unchanged, Changed(Held)]),
            (&[Replaced, Evicted], &[Empty], &[false], [Unchanged, Changed(Held)]),
            (&[Replaced, Evicted], &[Empty], &[true], [Unread, Unread]),
            (&[Removed], &[Older, NotOlder], ANY, [Changed(Cached), Changed(Cached)]),
            (&[Removed], &[Empty], ANY, [Moved, Moved]),
        ];
        let mut cases = 0;
        for (states, slots, commands, [same, other]) in table {
            for (state, slot) in states.iter().flat_map(|s| slots.iter().map(move |l| (*s, *l))) {
                for is_commanded in commands {
                    let of = |is_same| decide(state, slot, *is_commanded, is_same);
                    let case = format!("{state:?}, {slot:?}, commanded: {is_commanded}");
                    assert_eq!((of(true), of(false)), (same.clone(), other.clone()), "{case}");
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 4 * 4 * 2, "a case is missing");
    }
}
