//! A group repair: all rows of a workspace that are behind, in statements of a bounded size.

use super::{Repairs, Task};
use crate::{
    Repair,
    binding::Behind,
    hints::About,
    store::{BATCH, StoreError},
    workspace::GroupRepair,
};
use std::sync::Arc;

/// In one try. More rows than these are written by the next one; a store that never comes to an end
/// holds nobody up.
const MOST_STATEMENTS: usize = 1_000;

impl Task {
    /// One try. If not all could be written, what was written by then stays, and is not found
    /// again.
    pub(super) async fn write_group(&self, behind: Behind) -> Result<Repair, StoreError> {
        let Self { shared, entry, target, .. } = self;
        let workspace_state = &entry.workspace_state;
        // Never: a row without a target is not behind.
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
            if self.answer(statement).await? < BATCH as u64 {
                break began;
            }
        };
        let landed = shared.rows.tick();
        // Known before the list is looked at: who asks from here on finds it landed, who has asked
        // is on the list.
        workspace_state.repaired(GroupRepair { behind, target: Arc::clone(target), began, landed });
        for entry in shared.repairs.take_entries(&self.key) {
            // Takes over what was written; a row that the statements have missed gets a repair of
            // its own.
            Repairs::begin(shared, &entry, target, false);
        }
        let (workspace, epoch) = (workspace_state.workspace(), Some(workspace_state.epoch()));
        shared.tell(About::Workspace { workspace, generation: target.generation, epoch });
        Ok(Repair::Written)
    }
}
