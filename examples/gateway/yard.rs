//! The yard: builds workspaces, that is, starts and ends agent processes, and knows which one
//! serves a workspace now. In an application this is what starts containers, and a table of builds.

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
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_bound_agent::{AgentId, BoxError, Resolution, Target, WorkspaceId};
use uuid::Uuid;

/// How long an agent that was not killed at once is left as it is.
const REMAINS_FOR: Duration = Duration::from_secs(5);

/// What becomes of the agent of the former build.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Old {
    /// The process is killed: new connections to it are refused.
    #[default]
    Kill,
    /// The process is stopped where it is: its system still accepts connections.
    Freeze,
    /// The process plays dead.
    Silence,
    /// It goes on and answers: nobody has told it that it was replaced.
    Leave,
}

/// The agent processes. Clones share them.
#[derive(Clone)]
pub(crate) struct Yard(Arc<Inner>);

struct Inner {
    workspaces: Mutex<HashMap<WorkspaceId, Arc<Workspace>>>,
    /// Given to every agent.
    arguments: Vec<OsString>,
    remains: TaskTracker,
    ending: CancellationToken,
}

struct Workspace {
    now: Mutex<Resolution>,
    /// Held while it is built or stopped.
    process: tokio::sync::Mutex<Option<Process>>,
}

struct Process {
    child: Child,
    address: String,
}

impl Yard {
    pub(crate) fn new(arguments: Vec<OsString>) -> Self {
        let (remains, ending) = (TaskTracker::new(), CancellationToken::new());
        Self(Arc::new(Inner { workspaces: Mutex::default(), arguments, remains, ending }))
    }

    /// Which agent serves a workspace now? What was never built here does not exist.
    pub(crate) fn resolve(&self, id: WorkspaceId) -> Resolution {
        lock(&self.0.workspaces)
            .get(&id)
            .map_or(Resolution::Gone, |workspace| lock(&workspace.now).clone())
    }

    /// Ends the agent, if there is one, and starts another one. `None` if that is to be in a
    /// workspace that exists and is stopped, and it is not. Returns the new target and its process.
    pub(crate) async fn build(
        &self,
        id: WorkspaceId,
        rebuild: Option<(Old, Duration)>,
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
        former: Option<Process>,
        (old, takes): (Old, Duration),
    ) -> Result<(Target, Process), BoxError> {
        if let Some(former) = former {
            self.end(former, old).await?;
        }
        sleep(takes).await;
        let agent = AgentId::new(Uuid::new_v4());
        let started = self.spawn(agent).await?;
        let target =
            Target::new(agent).with_generation(next_build()?).with_address(&*started.address);
        Ok((target, started))
    }

    /// `false` if there is no such workspace.
    pub(crate) async fn stop(&self, id: WorkspaceId) -> Result<bool, BoxError> {
        let Some(workspace) = lock(&self.0.workspaces).get(&id).cloned() else { return Ok(false) };
        let mut process = workspace.process.lock().await;
        *lock(&workspace.now) = Resolution::Stopped;
        if let Some(process) = process.take() {
            self.end(process, Old::Kill).await?;
        }
        Ok(true)
    }

    /// Ends all agents, and waits until they have ended.
    pub(crate) async fn close(&self) {
        self.0.ending.cancel();
        let workspaces: Vec<_> = lock(&self.0.workspaces).keys().copied().collect();
        for workspace in workspaces {
            let _ = self.stop(workspace).await;
        }
        self.0.remains.close();
        self.0.remains.wait().await;
    }

    /// This program itself, as an agent: one binary is enough. It ends when its standard input is
    /// closed. The process group of its own is for one that is frozen: if this process is killed,
    /// the system sends it a hang-up and wakes it.
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

    async fn end(&self, mut process: Process, how: Old) -> Result<(), BoxError> {
        match how {
            Old::Kill => return Ok(process.child.kill().await?),
            Old::Freeze => signal(&process.child, "STOP").await?,
            Old::Silence => {
                head(&mut TcpStream::connect(&process.address).await?, "/silence").await?;
            }
            Old::Leave => {}
        }
        let ending = self.0.ending.clone();
        self.0.remains.spawn(async move {
            select! { () = sleep(REMAINS_FOR) => {}, () = ending.cancelled() => {} }
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

/// Build numbers must go on after a restart of the gateway, since bindings do. A table of builds
/// would count; the yard has none, and takes the time.
fn next_build() -> Result<i64, BoxError> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

async fn signal(child: &Child, signal: &str) -> io::Result<()> {
    let pid = child.id().ok_or(io::ErrorKind::NotFound)?;
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().await?;
    if sent.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("kill -{signal} {pid}: {sent}")))
    }
}

/// Asks an agent for a head only, on a connection that can be used afterwards.
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
