//! A group repair: all rows of a workspace that are behind, in statements of a bounded size.

use crate::{
    Repair,
    binding::Behind,
    hints::About,
    repair::task::Task,
    state::repairs::Repairs,
    store::{BATCH, StoreError},
    workspace::GroupRepair,
};
use std::sync::Arc;

/// The number of statements in one attempt, so that a store that never comes to an end holds
/// nothing up. The next attempt writes the rest.
const MOST_STATEMENTS: usize = 1_000;

impl Task {
    /// Makes one attempt. If it fails midway, the rows that were written stay written, and the next
    /// attempt does not find them.
    pub(super) async fn write_group(&self, behind: Behind) -> Result<Repair, StoreError> {
        let Self { shared, entry, .. } = self;
        let target = self.target();
        let workspace_state = &entry.workspace_state;
        // Unreachable, because a row without a target is not behind.
        let Some(stale) = entry.row.target.as_deref() else { return Ok(Repair::Lost) };
        let mut statements = 0;
        let began = loop {
            if statements == MOST_STATEMENTS {
                return Ok(Repair::Retrying);
            }
            statements += 1;
            if workspace_state.supersedes(target) {
                return Ok(Repair::Lost);
            }
            let began = shared.rows.tick();
            let statement = shared.store.replace_agent(
                workspace_state.workspace(),
                workspace_state.epoch(),
                stale,
                target,
                BATCH as u64,
            );
            if self.answer("replace_agent", statement).await? < BATCH as u64 {
                break began;
            }
        };
        let landed = shared.rows.tick();
        // Recorded before the list is read: a call that asks from here on finds the repair landed,
        // and a call that has asked is on the list.
        workspace_state.repaired(GroupRepair { behind, target: Arc::clone(target), began, landed });
        for entry in shared.repairs.take_entries(&self.key) {
            // The cached row takes over what was written. A row that the statements have missed
            // gets its own repair.
            Repairs::begin(shared, &entry, target, false);
        }
        let (workspace, epoch) = (workspace_state.workspace(), Some(workspace_state.epoch()));
        shared.tell(About::Workspace { workspace, generation: target.generation, epoch });
        Ok(Repair::Written)
    }
}
