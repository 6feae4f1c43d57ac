//! A session's own repair: a compare-and-swap on the revision that its call has read, and what it
//! means to lose it.

use crate::{
    Binding, DoubtReason, Repair, Revision, Target,
    cache::CachedRow,
    hints::About,
    repair::task::Task,
    store::{NewBinding, StoreError, Swap},
};
use std::sync::Arc;
use tokio::time::Instant;

/// The number of compare-and-swaps in one attempt. A row that is known to be behind is written
/// over, but each time another process may be faster.
const MOST_SWAPS: u8 = 4;

/// The meaning of a lost compare-and-swap for the repair that lost it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// The row names the target already.
    Done,
    /// The row stays as it is.
    Drop,
    /// The row stays as it is. Its target is not ordered against the one that answered here, so it
    /// is to be validated.
    Doubt,
    /// The row is known to be behind, and is written over at this revision.
    Again(Revision),
}

fn lost(entry: &CachedRow, target: &Target, winner: Option<&Binding>) -> Lost {
    let Some(winner) = winner.filter(|winner| winner.workspace == entry.workspace()) else {
        return Lost::Drop;
    };
    if winner.epoch != entry.workspace_state.epoch() {
        // The target that answered belongs to an epoch that has ended.
        return Lost::Drop;
    }
    let Some(named) = &winner.target else {
        // A command has unbound it. But a repair that knew of no row may bind an unbound one.
        return if entry.stored { Lost::Drop } else { Lost::Again(winner.revision) };
    };
    if entry.is_group_repaired() && entry.row.target.as_ref().is_some_and(|target| named.is(target))
    {
        // The row is as the call knew it. Only its revision was not known, because a group repair
        // returns none.
        return Lost::Again(winner.revision);
    }
    match (named.generation, target.generation) {
        (Some(theirs), Some(mine)) if theirs < mine => Lost::Again(winner.revision),
        (Some(theirs), Some(mine)) if theirs > mine => Lost::Drop,
        // Even if only one of the two has a generation: an agent that has just answered is in no
        // doubt.
        _ if named.same_endpoint(target) => Lost::Done,
        (Some(_), Some(_)) => Lost::Drop,
        _ => Lost::Doubt,
    }
}

impl Task {
    /// Returns `true` if this process has written the row itself, and the row names a target that
    /// the repair's target has replaced.
    fn has_replaced(&self, written: &CachedRow) -> bool {
        written.stamp().answered().is_some()
            && written.workspace() == self.entry.workspace()
            && written.row.revision > self.entry.row.revision
            // A repair from before a command is too late.
            && !self.entry.may_be_commanded()
            && written.row.target.as_ref().is_some_and(|named| self.entry.workspace_state.supersedes(named))
    }

    /// Makes one attempt, beginning with the revision that the call has read.
    pub(super) async fn write_own(&self) -> Result<Repair, StoreError> {
        let Self { shared, entry, .. } = self;
        let target = self.target();
        let session = entry.row.session;
        let epoch = entry.workspace_state.epoch();
        let new =
            NewBinding::new(session, entry.workspace(), Some(Arc::clone(target))).with_epoch(epoch);
        let mut expected = entry.stored.then_some(entry.row.revision);
        // This repair may have waited for an earlier one of the session, which has written the row.
        if let Some(current) = shared.rows.get(session).filter(|current| self.has_replaced(current))
        {
            expected = Some(current.row.revision);
        }
        for _ in 0..MOST_SWAPS {
            let token = shared.rows.read_token(session);
            let swap = match expected {
                Some(revision) => {
                    let statement = shared.store.compare_and_swap(revision, new.clone());
                    self.answer("compare_and_swap", statement).await
                }
                None => self.answer("create", shared.store.create(new.clone())).await,
            };
            let winner = match swap? {
                // The epoch has ended in the meantime, so the row is unbound.
                Swap::Applied(row) if row.epoch != epoch => {
                    self.found(Some(shared.learn_written(row, token)));
                    return Ok(Repair::Lost);
                }
                Swap::Applied(row) => {
                    // Other processes cannot have cached an older target for a first bind.
                    if entry.row.target.is_some() {
                        shared.tell(About::Session { session, revision: Some(row.revision) });
                    }
                    let written = shared.learn_written(row, token);
                    shared.usage.hand_over(entry, &written);
                    self.found(Some(written));
                    return Ok(Repair::Written);
                }
                Swap::Conflict(winner) => winner,
            };
            let verdict = lost(entry, target, winner.as_ref());
            self.found(match winner {
                Some(winner) => {
                    if let (Lost::Doubt, Some(named)) = (verdict, &winner.target) {
                        let reason = DoubtReason::RepairLost;
                        entry.workspace_state.doubt_agent(named.agent, reason, Instant::now());
                    }
                    Some(shared.learn(winner, token))
                }
                // The row was deleted, which the next call finds out.
                None => {
                    shared.rows.remove(session);
                    None
                }
            });
            match verdict {
                Lost::Done => return Ok(Repair::Written),
                Lost::Drop | Lost::Doubt => return Ok(Repair::Lost),
                Lost::Again(revision) => expected = Some(revision),
            }
        }
        Ok(Repair::Lost)
    }
}

#[cfg(test)]
mod tests;
