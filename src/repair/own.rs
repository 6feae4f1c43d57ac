//! A session's own repair: compares with what its call has read, and what it means to lose.

use super::{Task, Written};
use crate::{
    Binding, Repair, Revision, Target,
    cache::CachedRow,
    hints::About,
    store::{NewBinding, StoreError, Swap},
};
use std::sync::Arc;
use tokio::time::Instant;

/// Rows that are known to be behind are written over; each time somebody else may be faster.
const MOST_SWAPS: u8 = 4;

/// What a lost compare-and-swap means for the one who lost it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// The row names the target already.
    Done,
    /// The row stays as it is.
    Drop,
    /// The row stays as it is, and what it names is not ordered against what answered here: it is
    /// to be validated.
    Doubt,
    /// The row is known to be behind: once more, from this revision.
    Again(Revision),
}

fn lost(entry: &CachedRow, target: &Target, winner: Option<&Binding>) -> Lost {
    let Some(winner) = winner.filter(|winner| winner.workspace == entry.workspace()) else {
        return Lost::Drop;
    };
    if winner.epoch != entry.workspace_state.epoch() {
        // What answered is of an epoch that has ended.
        return Lost::Drop;
    }
    let Some(named) = &winner.target else {
        // Unbound by somebody's order. But where no row was known at all, an unbound one is just
        // the place to write to.
        return if entry.stored { Lost::Drop } else { Lost::Again(winner.revision) };
    };
    if entry.is_ahead() && entry.row.target.as_ref().is_some_and(|target| named.is(target)) {
        // As it was gone by. Only its revision was not known, since a group repair returns none.
        return Lost::Again(winner.revision);
    }
    match (named.generation, target.generation) {
        (Some(theirs), Some(mine)) if theirs < mine => Lost::Again(winner.revision),
        (Some(theirs), Some(mine)) if theirs > mine => Lost::Drop,
        // Also if only one of the two has a number: there is no doubt about a place that has just
        // answered.
        _ if named.same_place(target) => Lost::Done,
        (Some(_), Some(_)) => Lost::Drop,
        _ => Lost::Doubt,
    }
}

impl Task {
    /// Whether a row that this process has written itself names what the repair's target has
    /// replaced.
    fn has_replaced(&self, written: &CachedRow) -> bool {
        written.stamp().answered().is_some()
            && written.workspace() == self.entry.workspace()
            && written.row.revision > self.entry.row.revision
            // A repair from before a command is too late.
            && !self.entry.is_commanded()
            && written.row.target.as_ref().is_some_and(|named| self.entry.workspace_state.supersedes(named))
    }

    /// One try, from the revision that the call went by.
    pub(super) async fn write_own(&self) -> Result<Written, StoreError> {
        let Self { shared, entry, target, .. } = self;
        let session = entry.row.session;
        let epoch = entry.workspace_state.epoch();
        let new =
            NewBinding::new(session, entry.workspace(), Some(Arc::clone(target))).with_epoch(epoch);
        let mut expected = entry.stored.then_some(entry.row.revision);
        // An earlier repair of the session, for which this one has waited, may have written the row
        // since.
        if let Some(current) = shared.rows.get(session).filter(|current| self.has_replaced(current))
        {
            expected = Some(current.row.revision);
        }
        let mut found = None;
        for _ in 0..MOST_SWAPS {
            let token = shared.rows.read_token(session);
            let swap = match expected {
                Some(revision) => {
                    self.answer(shared.store.compare_and_swap(revision, new.clone())).await
                }
                None => self.answer(shared.store.create(new.clone())).await,
            };
            let winner = match swap? {
                // The epoch has ended in the meantime: the row is unbound.
                Swap::Applied(row) if row.epoch != epoch => {
                    return Ok((Repair::Lost, Some(shared.learn_written(row, token))));
                }
                Swap::Applied(row) => {
                    // Of a first bind the others have nothing to unlearn.
                    if entry.row.target.is_some() {
                        shared.tell(About::Session { session, revision: Some(row.revision) });
                    }
                    let written = shared.learn_written(row, token);
                    shared.usage.hand_over(entry, &written);
                    return Ok((Repair::Written, Some(written)));
                }
                Swap::Conflict(winner) => winner,
            };
            let verdict = lost(entry, target, winner.as_ref());
            found = match winner {
                Some(winner) => {
                    if let (Lost::Doubt, Some(named)) = (verdict, &winner.target) {
                        entry.workspace_state.doubt_agent(named.agent, Instant::now());
                    }
                    Some(shared.learn(winner, token))
                }
                // Deleted: the next call finds that out.
                None => {
                    shared.rows.remove(session);
                    None
                }
            };
            match verdict {
                Lost::Done => return Ok((Repair::Written, found)),
                Lost::Drop | Lost::Doubt => return Ok((Repair::Lost, found)),
                Lost::Again(revision) => expected = Some(revision),
            }
        }
        Ok((Repair::Lost, found))
    }
}

#[cfg(test)]
mod tests;
