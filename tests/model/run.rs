//! Executes the operations of a scenario.

use crate::{
    CHATS, PROCESSES, WORKSPACES, chat,
    connections::Ended,
    dialer::CallId,
    ms, pinned,
    process::{Lagging, Process},
    scenario::{By, Op, Scenario},
    truth::{Call, Faults, Truth},
    workspace,
};
use std::future::Future;
use support::wire::Wire;
use tokio::{
    runtime::Builder,
    task::{JoinHandle, yield_now},
    time::{Duration, Instant, sleep, timeout},
};
use tower::ServiceExt;
use tower_bound_agent::{
    BoundHandle, DialSession, Error, ErrorKind, Generation, RepairMode, Revision, SessionId,
    hints::{About, Heard, Hint},
    store::BindingStore,
};

pub(crate) type Called = JoinHandle<Result<BoundHandle, Error>>;

pub(crate) struct Run {
    pub(crate) truth: Truth,
    pub(crate) repair: RepairMode,
    pub(crate) wire: Option<Wire>,
    /// An invented hint about a workspace was sent.
    pub(crate) rumoured: bool,
    pub(crate) processes: [Process; PROCESSES],
    /// The processes that were replaced.
    pub(crate) ended: Vec<Process>,
    pub(crate) calls: Vec<Called>,
    /// Commands and questions under way.
    pub(crate) others: Vec<JoinHandle<()>>,
    pub(crate) next_id: u64,
}

impl Run {
    pub(crate) async fn begin(scenario: &Scenario) -> Self {
        let truth = Truth::new(scenario.numbered);
        let repair =
            if scenario.before_return { RepairMode::BeforeReturn } else { RepairMode::Background };
        let wire = scenario.hints.clone().map(Wire::new);
        let processes = [0, 1].map(|_| Process::start(&truth, repair, wire.as_ref()));
        let (calls, others, ended) = (Vec::new(), Vec::new(), Vec::new());
        let mut run = Self {
            truth,
            repair,
            wire,
            rumoured: false,
            processes,
            ended,
            calls,
            others,
            next_id: 0,
        };
        for process in 0..PROCESSES {
            for ws in 0..WORKSPACES {
                run.spawn(process, pinned(ws), Some(ws), 0)
                    .await
                    .unwrap()
                    .expect("no fault is active");
            }
            // The last session has no record yet.
            for n in 0..CHATS - 1 {
                run.spawn(process, chat(n), Some(n / 2), 0)
                    .await
                    .unwrap()
                    .expect("no fault is active");
            }
            assert_eq!(run.processes[process].bindings.flush().await, 0);
        }
        // All later events have later times.
        sleep(ms(10)).await;
        run
    }

    pub(crate) fn spawn(
        &mut self,
        process: usize,
        session: SessionId,
        named: Option<usize>,
        lag: u64,
    ) -> Called {
        self.next_id += 1;
        let id = self.next_id;
        let mut ask = DialSession::new(session).with_extension(CallId(id));
        let named = named.map(workspace);
        if let Some(workspace) = named {
            ask = ask.in_workspace(workspace);
        }
        let Process { id: process, ref dial, .. } = self.processes[process];
        let (truth, dial) = (self.truth.clone(), dial.clone());
        let call = Call { process, session, named, lag, began: None, dials: Vec::new(), live: 0 };
        truth.state().calls.insert(id, call);
        tokio::spawn(async move {
            let began = Instant::now();
            let call = async {
                truth.begins(id);
                dial.oneshot(ask).await
            };
            let result = Lagging { future: call, pause: None, lag }.await;
            truth.returned(Ended {
                process,
                session,
                id,
                took: began.elapsed(),
                lag,
                result: &result,
            });
            result.map(|bound| {
                let handle = bound.handle().clone();
                truth.hold(bound);
                handle
            })
        })
    }

    pub(crate) fn command(
        &mut self,
        process: usize,
        command: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        let (truth, began, id) = (self.truth.clone(), Instant::now(), self.processes[process].id);
        truth.state().history.commands += 1;
        self.others.push(tokio::spawn(async move {
            let result = command.await;
            {
                let history = &mut truth.state().history;
                history.commands -= 1;
                history.disturb();
            }
            // It waits for an earlier command, for its own answer, and for a read of the row.
            if began.elapsed() > ms(15_001) {
                truth
                    .state()
                    .broken
                    .push(format!("{process}: a command that took {:?}", began.elapsed()));
            }
            if let Err(error) = &result
                && let (ErrorKind::OutcomeUnknown, Some(session)) = (error.kind(), error.session())
            {
                truth.state().knows[id].unkept.insert(session, Instant::now() + ms(60_000));
            }
            let closing = truth.state().closing.contains(&id);
            if let Err(error) = result
                && !(closing && *error.kind() == ErrorKind::Closed)
                && !matches!(
                    error.kind(),
                    ErrorKind::OutcomeUnknown
                        | ErrorKind::Store
                        | ErrorKind::NotBound
                        | ErrorKind::WorkspaceMismatch { .. }
                )
            {
                truth
                    .state()
                    .broken
                    .push(format!("{process}: a command that failed with {error:?}"));
            }
        }));
    }

    pub(crate) async fn apply(&mut self, op: Op) {
        let store = self.truth.store.clone();
        self.truth.disturbed_by(&op);
        match op {
            Op::Rebuild { ws, old } => {
                self.truth.does(self.truth.current(ws).agent, old);
                self.truth.build(ws);
            }
            Op::Return { ws, old } => {
                self.truth.does(self.truth.current(ws).agent, old);
                self.truth.build_again(ws);
            }
            Op::Status { ws, status } => self.truth.state().workspaces[ws].status = status,
            Op::Agent { ws, does } => self.truth.does(self.truth.current(ws).agent, does),
            Op::Resolver { process, ws, answers } => {
                let process = self.processes[process].id;
                self.truth.state().answers.insert((process, workspace(ws)), answers);
            }
            Op::Store { process, reads, writes } => {
                let process = self.processes[process].id;
                self.truth.state().faults[process] = Faults { reads, writes };
            }
            Op::Restart { process } => {
                let next = Process::start(&self.truth, self.repair, self.wire.as_ref());
                for ws in 0..WORKSPACES {
                    next.bindings.get(pinned(ws)).await.expect("no fault is active");
                }
                self.ended.push(std::mem::replace(&mut self.processes[process], next));
                sleep(ms(1)).await;
            }
            Op::Close { process } => {
                let next = Process::start(&self.truth, self.repair, self.wire.as_ref());
                for ws in 0..WORKSPACES {
                    next.bindings.get(pinned(ws)).await.expect("no fault is active");
                }
                let closed = std::mem::replace(&mut self.processes[process], next);
                let (truth, id, bindings) =
                    (self.truth.clone(), closed.id, closed.bindings.clone());
                truth.state().closing.insert(id);
                self.ended.push(closed);
                self.others.push(tokio::spawn(async move {
                    bindings.close(ms(1_000)).await;
                    truth.state().closed.insert(id);
                }));
                sleep(ms(1)).await;
            }
            Op::Call { process, chat: n, named, lag } => {
                let called = self.spawn(process, chat(n), named, lag);
                self.calls.push(called);
            }
            Op::Drop { nth } => {
                if let Some(called) = self.calls.get(nth) {
                    called.abort();
                }
            }
            Op::Report { nth } => {
                let reported = {
                    let mut state = self.truth.state();
                    (nth < state.held.len()).then(|| state.held.remove(nth))
                };
                if let Some(bound) = reported {
                    bound.report_stale();
                }
            }
            Op::Doubt { process, ws } => {
                let Process { id, bindings, .. } = &self.processes[process];
                self.truth.state().history.doubt(*id);
                bindings.revalidate_workspace(workspace(ws));
            }
            Op::Retarget { by: By::Elsewhere, chat: n, ws } => {
                store.retarget(chat(n), workspace(ws)).await.unwrap();
            }
            Op::Unbind { by: By::Elsewhere, chat: n } => {
                store.unbind(chat(n)).await.unwrap();
            }
            Op::Forget { by: By::Elsewhere, chat: n } => {
                self.truth.forget(chat(n));
            }
            Op::Inherit { by: By::Elsewhere, child, parent } => {
                let _ = store.inherit(chat(child), chat(parent)).await.unwrap();
            }
            Op::Retarget { by: By::Process(process), chat: n, ws } => {
                let bindings = self.processes[process].bindings.clone();
                let command =
                    async move { bindings.retarget(chat(n), workspace(ws)).await.map(drop) };
                self.command(process, command);
            }
            Op::Unbind { by: By::Process(process), chat: n } => {
                let Process { id, ref bindings, .. } = self.processes[process];
                let (truth, bindings) = (self.truth.clone(), bindings.clone());
                self.command(process, async move {
                    // The process doubts the agent that it has removed.
                    let unbound = bindings.unbind(chat(n)).await?;
                    if unbound.is_some() {
                        truth.state().history.doubt(id);
                    }
                    Ok(())
                });
            }
            Op::Forget { by: By::Process(process), chat: n } => {
                let bindings = self.processes[process].bindings.clone();
                self.command(process, async move { bindings.forget(chat(n)).await.map(drop) });
            }
            Op::Inherit { by: By::Process(process), child, parent } => {
                let bindings = self.processes[process].bindings.clone();
                self.command(process, async move {
                    bindings.inherit(chat(child), chat(parent)).await.map(drop)
                });
            }
            Op::Reset { by, ws, old } => {
                self.truth.does(self.truth.current(ws).agent, old);
                self.truth.renumber(ws);
                self.truth.build(ws);
                match by {
                    By::Elsewhere => drop(self.truth.reset(workspace(ws)).unwrap()),
                    By::Process(process) => {
                        let bindings = self.processes[process].bindings.clone();
                        self.command(process, async move {
                            bindings.reset_workspace(workspace(ws)).await.map(drop)
                        });
                    }
                }
            }
            Op::Look { process, chat: n, current } => self.look(process, chat(n), current),
            Op::RumourOfChat { chat: n, revision } => {
                self.say(About::Session {
                    session: chat(n),
                    revision: revision.map(Revision::new),
                });
            }
            Op::RumourOfWorkspace { ws, generation } => {
                self.rumoured = true;
                self.say(About::Workspace {
                    workspace: workspace(ws),
                    generation: generation.map(Generation::new),
                    epoch: None,
                });
            }
            Op::Gap => {
                if let Some(wire) = &self.wire {
                    wire.say(Heard::Lagged);
                }
            }
            Op::Flush { process } => {
                self.processes[process].bindings.flush().await;
            }
            Op::Yield => yield_now().await,
            Op::Advance { ms: n } => sleep(ms(n)).await,
        }
    }

    pub(crate) fn say(&self, about: About) {
        if let Some(wire) = &self.wire {
            wire.say(Heard::Hint(Hint::new(0, about)));
        }
    }

    /// Queries a binding and checks that its revision never goes back.
    pub(crate) fn look(&mut self, process: usize, session: SessionId, current: bool) {
        let Process { id: process, ref bindings, .. } = self.processes[process];
        let (truth, bindings) = (self.truth.clone(), bindings.clone());
        self.others.push(tokio::spawn(async move {
            if current {
                if bindings.current(session).await.is_ok_and(|current| current.session != session) {
                    truth.state().broken.push("the agent of another workspace is returned".into());
                }
                return;
            }
            let seen = truth.state().knows[process].floors.get(&session).copied();
            let Ok(Some(row)) = bindings.get(session).await else { return };
            // An observed deletion has a revision too.
            if seen.is_some_and(|seen| row.revision < seen) {
                truth
                    .state()
                    .broken
                    .push(format!("{process}: {row:?} was returned after {seen:?}"));
            }
        }));
    }

    pub(crate) fn writes(&self, process: usize) -> u64 {
        self.truth.state().writes[self.processes[process].id]
    }
}

pub(crate) async fn live(scenario: Scenario) -> Result<(), String> {
    let mut run = Run::begin(&scenario).await;
    let truth = run.truth.clone();
    let unbroken = |when: &dyn std::fmt::Debug| {
        let broken = std::mem::take(&mut truth.state().broken);
        if broken.is_empty() { Ok(()) } else { Err(format!("{when:?}: {}", broken.join("\n"))) }
    };
    for op in scenario.ops {
        run.apply(op.clone()).await;
        run.truth.check_rows();
        unbroken(&op)?;
    }
    let settled = run.settle().await;
    unbroken(&"in the end")?;
    settled
}

pub(crate) fn play(scenario: Scenario) -> Result<(), String> {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        timeout(Duration::from_secs(86_400), live(scenario))
            .await
            .expect("the scenario ends within a day")
    })
}
