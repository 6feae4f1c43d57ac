//! The group repairs of a workspace that have landed, and what they mean for a row that is behind.

use super::REMEMBERED;
use crate::{
    Target,
    binding::Behind,
    clock::{Stamp, Tick},
};
use std::sync::Arc;

/// The group repairs that have landed, newest last.
#[derive(Debug, Default)]
pub(super) struct LandedRepairs(Vec<GroupRepair>);

/// A group repair that has landed.
#[derive(Clone, Debug)]
pub(crate) struct GroupRepair {
    pub(crate) behind: Behind,
    pub(crate) target: Arc<Target>,
    /// When its last statement began, the one that found no more rows than it wrote.
    pub(crate) began: Tick,
    pub(crate) landed: Tick,
}

/// The effect of the group repairs on a row that names another target than the one that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repaired {
    /// No group repair to this target has landed.
    NotYet,
    /// A group repair, which landed at this tick, has written the row or has found it changed.
    Already(Tick),
    /// A group repair has landed, and the row was found behind after that.
    Missed,
}

impl LandedRepairs {
    pub(super) fn land(&mut self, repair: GroupRepair) {
        self.0.retain(|old| !repair.ends(old));
        if self.0.len() == REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(repair);
    }

    /// Returns what the repairs to `target` have made of a row with this stamp that is behind it.
    pub(super) fn of_row(&self, stamp: Stamp, behind: Behind, target: &Target) -> Repaired {
        let Some(repair) = self.0.iter().rev().find(|repair| repair.includes(behind, target))
        else {
            return Repaired::NotYet;
        };
        let is_from_before = match stamp.answered() {
            // A read that began while the statement ran may have brought what was there before.
            None => stamp.began() < repair.landed,
            // The statement may have missed a row that was written while it ran.
            Some(answered) => answered < repair.began,
        };
        if is_from_before { Repaired::Already(repair.landed) } else { Repaired::Missed }
    }
}

impl GroupRepair {
    /// Returns `true` if this repair has written all rows that another one would write.
    fn includes(&self, behind: Behind, target: &Target) -> bool {
        match (self.behind, behind) {
            // A repair up to a later generation writes more rows.
            (Behind::Generation(reached), Behind::Generation(wanted)) => reached >= wanted,
            (repaired, wanted) => repaired == wanted && self.target.same_endpoint(target),
        }
    }

    /// Returns `true` if an earlier repair says nothing any more once this one has landed.
    fn ends(&self, old: &Self) -> bool {
        match (old.behind, self.behind) {
            // This one says all that the old one says, and of later reads.
            (Behind::Generation(old), Behind::Generation(reached)) => old <= reached,
            (Behind::Agent(replaced_by_old), Behind::Agent(replaced)) => {
                // The rows that the old one has written do not name its target any more.
                let is_rewritten = old.target.agent == replaced;
                // Rows name again what the old one has replaced.
                let is_restored = self.target.agent == replaced_by_old;
                is_rewritten || is_restored
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
