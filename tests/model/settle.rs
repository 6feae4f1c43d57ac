//! The end of a scenario.

use crate::{
    CHATS, PROCESSES, WORKSPACES, chat, ms,
    run::Run,
    scenario::{Does, Status},
    truth::{Faults, Workspace},
    workspace,
};
use support::wire::Wire;
use tokio::{runtime::Handle, time::sleep};
use tower_bound_agent::ErrorKind;

impl Run {
    /// Removes all faults and checks that each session reaches the agent that serves its workspace,
    /// in its row and in both processes.
    pub(crate) async fn settle(mut self) -> Result<(), String> {
        {
            let mut state = self.truth.state();
            state.faults.fill(Faults::default());
            state.answers.clear();
            state.history.disturb();
            self.wire.iter().for_each(Wire::heal);
            // A process that caches a binding which another process has moved dials the old agent
            // for as long as it answers. While no workspace runs, each process reads its rows
            // again.
            for workspace in &mut state.workspaces {
                workspace.status = Status::Stopped;
            }
            for agent in state.agents.values_mut() {
                agent.does = Does::Hang;
            }
        }
        // A reset that was not executed is repeated.
        for ws in 0..WORKSPACES {
            let due = {
                let Workspace { renumbered, resets, .. } = self.truth.state().workspaces[ws];
                renumbered.saturating_sub(resets)
            };
            for _ in 0..due {
                self.truth.reset(workspace(ws)).unwrap();
            }
        }
        // Advances past every timeout and retry, past the time for which an uncertain row is read,
        // and past the time after which an unanswered statement is sent again.
        sleep(ms(150_000)).await;
        for called in std::mem::take(&mut self.calls) {
            match called.await {
                Ok(_) => {}
                Err(error) if error.is_cancelled() => {}
                Err(error) => return Err(format!("a call panicked: {error}")),
            }
        }
        for other in std::mem::take(&mut self.others) {
            other.await.map_err(|error| format!("a command panicked: {error}"))?;
        }
        for process in 0..PROCESSES {
            for n in 0..CHATS {
                let called = self.spawn(process, chat(n), None, 0).await.expect("no panic");
                match (called.map_err(|error| error.kind().clone()), self.truth.row(chat(n))) {
                    (Err(ErrorKind::NotBound), None) | (Err(ErrorKind::Stopped), Some(_)) => {}
                    (called, row) => return Err(format!("nothing runs, {row:?}: {called:?}")),
                }
            }
        }
        self.truth.state().history.disturb();
        for ws in 0..WORKSPACES {
            self.truth.state().workspaces[ws].status = Status::Running;
            self.truth.does(self.truth.current(ws).agent, Does::Answer(0));
        }
        // Questions about remaining doubts are repeated.
        sleep(ms(20_000)).await;
        // The resolver is asked four times before its answer below a hinted generation is accepted.
        let last = if self.rumoured { 6 } else { 2 };
        for turn in 0..=last {
            for process in 0..PROCESSES {
                for n in 0..CHATS {
                    let id = self.next_id + 1;
                    let written = self.writes(process);
                    let called = self.spawn(process, chat(n), None, 0).await.expect("no panic");
                    let left = self.processes[process].bindings.flush().await;
                    let (row, dials) =
                        (self.truth.row(chat(n)), self.truth.state().calls[&id].dials.len());
                    let what = format!("turn {turn}, process {process}, {row:?}");
                    match (called, &row) {
                        (Err(error), None) if *error.kind() == ErrorKind::NotBound => continue,
                        (Ok(handle), Some(row)) => {
                            let ws =
                                (0..WORKSPACES).find(|ws| workspace(*ws) == row.workspace).unwrap();
                            let current = self.truth.current(ws);
                            let cached =
                                self.processes[process].bindings.get(chat(n)).await.unwrap();
                            let unwritten = self.writes(process) == written;
                            let steady = turn < last
                                || (dials == 1 && handle.outcome().validations == 0 && unwritten);
                            let right = *handle.target() == current
                                && row.target.as_deref() == Some(&current)
                                && cached.as_ref() == Some(row);
                            if !right || !steady || left > 0 {
                                return Err(format!(
                                    "{what}: not on {current:?} but {handle:?}, cached {cached:?}"
                                ));
                            }
                        }
                        (called, _) => return Err(format!("{what}: {called:?}")),
                    }
                }
            }
            sleep(ms(1_000)).await;
        }
        self.truth.check_rows();

        // At the end, nothing is left.
        let Self { truth, processes, ended, .. } = self;
        let held = std::mem::take(&mut truth.state().held);
        drop(held);
        for process in processes.iter().chain(&ended) {
            let closed_before = truth.state().closing.contains(&process.id);
            let unwritten = process.bindings.close(ms(1_000)).await;
            if unwritten > 0 && !closed_before {
                return Err(format!("{unwritten} repairs did not land"));
            }
        }
        drop((processes, ended));
        let state = truth.state();
        let (tasks, live) = (Handle::current().metrics().num_alive_tasks(), state.live_connections);
        let dials: u32 = state.calls.values().map(|call| u32::from(call.live)).sum();
        if (tasks, live, dials) != (0, 0, 0) {
            return Err(format!("{tasks} tasks, {live} connections and {dials} dials are left"));
        }
        Ok(())
    }
}
