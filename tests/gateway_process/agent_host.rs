//! Starts and ends agent processes, and knows which one serves a workspace now. In an application
//! this is the service that starts containers, and a table of builds.

use serde::Deserialize;
use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    select,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_bound_agent::{AgentId, BoxError, Resolution, Target, WorkspaceId};
use uuid::Uuid;

/// How long a replaced agent that was not killed keeps running.
const OLD_AGENT_RUNS_FOR: Duration = Duration::from_secs(5);

/// The treatment of the old agent at a rebuild.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OldAgent {
    /// The process is killed: new connections to it are refused.
    #[default]
    Kill,
    /// The process is suspended (SIGSTOP). Its system still accepts connections.
    Freeze,
    /// The process accepts connections and never responds.
    Silence,
    /// The process continues to respond, as if it had not been replaced.
    Leave,
}

/// The agent processes of all workspaces. Clones share them.
#[derive(Clone)]
pub(crate) struct AgentHost(Arc<Inner>);

struct Inner {
    workspaces: Mutex<HashMap<WorkspaceId, Arc<Workspace>>>,
    /// Passed to every agent process.
    arguments: Vec<OsString>,
    old_agents: TaskTracker,
    ending: CancellationToken,
}

struct Workspace {
    now: Mutex<Resolution>,
    /// Locked while the workspace is built or stopped.
    process: tokio::sync::Mutex<Option<Process>>,
}

struct Process {
    child: Child,
    address: String,
}

impl AgentHost {
    pub(crate) fn new(arguments: Vec<OsString>) -> Self {
        let (old_agents, ending) = (TaskTracker::new(), CancellationToken::new());
        Self(Arc::new(Inner { workspaces: Mutex::default(), arguments, old_agents, ending }))
    }

    /// Returns which agent serves a workspace now. A workspace that was never built is gone.
    pub(crate) fn resolve(&self, id: WorkspaceId) -> Resolution {
        lock(&self.0.workspaces)
            .get(&id)
            .map_or(Resolution::Gone, |workspace| lock(&workspace.now).clone())
    }

    /// Replaces the agent of a workspace, or starts the first one. Without `rebuild`, starts an
    /// agent only in a workspace that exists and is stopped, and returns `None` otherwise.
    ///
    /// Returns the new target and the id of its process.
    pub(crate) async fn build(
        &self,
        id: WorkspaceId,
        rebuild: Option<(OldAgent, Duration)>,
    ) -> Result<Option<(Target, Option<u32>)>, BoxError> {
        let workspace = {
            let mut workspaces = lock(&self.0.workspaces);
            match rebuild {
                Some(_) => {
                    Arc::clone(workspaces.entry(id).or_insert_with(|| Arc::new(Workspace::new())))
                }
                None => match workspaces.get(&id) {
                    Some(workspace) => Arc::clone(workspace),
                    None => return Ok(None),
                },
            }
        };
        let mut process = workspace.process.lock().await;
        if process.is_some() && rebuild.is_none() {
            return Ok(None);
        }
        *lock(&workspace.now) = Resolution::Starting { retry_after: Some(Duration::from_secs(1)) };
        match self.replace(process.take(), rebuild.unwrap_or_default()).await {
            Ok((target, started)) => {
                *lock(&workspace.now) = Resolution::Running(target.clone());
                let pid = started.child.id();
                *process = Some(started);
                Ok(Some((target, pid)))
            }
            Err(error) => {
                *lock(&workspace.now) = Resolution::Stopped;
                Err(error)
            }
        }
    }

    async fn replace(
        &self,
        replaced: Option<Process>,
        (old, takes): (OldAgent, Duration),
    ) -> Result<(Target, Process), BoxError> {
        if let Some(replaced) = replaced {
            self.end(replaced, old).await?;
        }
        sleep(takes).await;
        let agent = AgentId::new(Uuid::new_v4());
        let started = self.spawn(agent).await?;
        let target =
            Target::new(agent).with_generation(next_build()?).with_address(&*started.address);
        Ok((target, started))
    }

    /// Stops the agent of a workspace. Returns `false` if there is no such workspace.
    pub(crate) async fn stop(&self, id: WorkspaceId) -> Result<bool, BoxError> {
        let Some(workspace) = lock(&self.0.workspaces).get(&id).cloned() else { return Ok(false) };
        let mut process = workspace.process.lock().await;
        *lock(&workspace.now) = Resolution::Stopped;
        if let Some(process) = process.take() {
            self.end(process, OldAgent::Kill).await?;
        }
        Ok(true)
    }

    /// Kills all agents and waits until they have exited.
    pub(crate) async fn close(&self) {
        self.0.ending.cancel();
        let workspaces: Vec<_> = lock(&self.0.workspaces).keys().copied().collect();
        for workspace in workspaces {
            let _ = self.stop(workspace).await;
        }
        self.0.old_agents.close();
        self.0.old_agents.wait().await;
    }

    /// Starts this program as an agent, which exits when its standard input is closed.
    ///
    /// The agent has a process group of its own: if this process is killed while the agent is
    /// frozen, the system sends the orphaned group SIGHUP and SIGCONT, and the agent ends.
    async fn spawn(&self, agent: AgentId) -> Result<Process, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("agent").args(["--id", &agent.to_string()]).args(&self.0.arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("no standard output")?;
        let mut address = String::new();
        timeout(Duration::from_secs(20), BufReader::new(output).read_line(&mut address)).await??;
        Ok(Process { child, address: address.trim_end().to_owned() })
    }

    async fn end(&self, mut process: Process, how: OldAgent) -> Result<(), BoxError> {
        match how {
            OldAgent::Kill => return Ok(process.child.kill().await?),
            OldAgent::Freeze => {
                let pid = process.child.id().ok_or("the agent has ended")?;
                spawn_blocking(move || support::gateway::signal(pid.into(), "STOP")).await?;
            }
            OldAgent::Silence => {
                head(&mut TcpStream::connect(&process.address).await?, "/silence").await?;
            }
            OldAgent::Leave => {}
        }
        let ending = self.0.ending.clone();
        self.0.old_agents.spawn(async move {
            select! { () = sleep(OLD_AGENT_RUNS_FOR) => {}, () = ending.cancelled() => {} }
            let _ = process.child.kill().await;
        });
        Ok(())
    }
}

impl Workspace {
    fn new() -> Self {
        Self { now: Mutex::new(Resolution::Stopped), process: tokio::sync::Mutex::default() }
    }
}

/// Returns the number of a new build. Bindings outlive a restart of the gateway, so the numbers
/// must keep growing. An application counts builds in a table; this example uses the time.
fn next_build() -> Result<i64, BoxError> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

/// Sends a `HEAD` request on a connection that is used again afterwards. Returns the head of the
/// response.
pub(crate) async fn head(stream: &mut TcpStream, path: &str) -> io::Result<String> {
    stream.write_all(format!("HEAD {path} HTTP/1.1\r\nhost: agent\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 4096 || stream.read_buf(&mut head).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no agent"));
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
