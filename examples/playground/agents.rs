//! The platform: starts and ends agent processes, writes the table of builds, and answers which
//! agent serves a workspace now.

use crate::{database::Database, lanes::Lane, trace::lock};
use futures_util::future::join_all;
use std::{
    io,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::timeout,
};
use tower_bound_agent::{AgentId, BoxError, Resolution, Target, WorkspaceId, sqlx};
use uuid::Uuid;

const NAMES: [&str; 8] = ["Amber", "Birch", "Cedar", "Dune", "Elder", "Fern", "Grove", "Heath"];
pub(crate) const MOST_WORKSPACES: usize = NAMES.len();

pub(crate) struct Agents {
    database: Arc<Database>,
    workspaces: Vec<Workspace>,
}

pub(crate) struct Workspace {
    pub(crate) id: WorkspaceId,
    pub(crate) name: &'static str,
    /// Locked while the agent is replaced, ended or signalled.
    processes: tokio::sync::Mutex<Processes>,
    shown: Mutex<Shown>,
    /// Questions about it, by lane.
    reads: [AtomicU64; 3],
}

/// What the page shows of a workspace.
#[derive(Clone, Copy)]
pub(crate) struct Shown {
    pub(crate) build: i64,
    pub(crate) condition: Condition,
}

/// What became of the agent of the latest build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Running,
    /// The process is suspended (SIGSTOP). Its system still accepts connections.
    Frozen,
    /// The process accepts nothing and answers nothing. Its system still accepts connections.
    Silent,
    /// The process was killed, and the table of builds does not know it.
    Killed,
    Stopped,
}

impl Condition {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Silent => "black hole",
            Self::Killed => "killed",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Default)]
struct Processes {
    current: Option<Process>,
    /// The agent of the build before, which is left frozen until the next rebuild.
    replaced: Option<Process>,
}

struct Process {
    child: Child,
    input: ChildStdin,
    agent: AgentId,
    address: String,
}

impl Agents {
    /// Starts an agent for each workspace.
    pub(crate) async fn start(
        database: Arc<Database>,
        workspaces: usize,
    ) -> Result<Self, BoxError> {
        let workspaces = NAMES.iter().take(workspaces).map(|name| Workspace {
            id: WorkspaceId::new(Uuid::new_v4()),
            name,
            processes: tokio::sync::Mutex::default(),
            shown: Mutex::new(Shown { build: 0, condition: Condition::Stopped }),
            reads: Default::default(),
        });
        let agents = Self { database, workspaces: workspaces.collect() };
        for started in join_all((0..agents.workspaces.len()).map(|n| agents.start_one(n))).await {
            started?;
        }
        Ok(agents)
    }

    pub(crate) fn workspaces(&self) -> &[Workspace] {
        &self.workspaces
    }

    /// Returns how many questions a lane has asked.
    pub(crate) fn reads(&self, lane: Lane) -> u64 {
        self.workspaces.iter().map(|workspace| workspace.reads(lane)).sum()
    }

    /// The resolver: one read of the table of builds, over a connection of the lane that asks.
    pub(crate) async fn resolve(
        &self,
        lane: Lane,
        workspace: usize,
    ) -> Result<Resolution, BoxError> {
        self.workspaces[workspace].reads[lane as usize].fetch_add(1, SeqCst);
        let _connection = self.database.connection(lane).await?;
        let sql = "SELECT number, agent, address, running FROM builds WHERE workspace = ?
                   ORDER BY number DESC LIMIT 1";
        let latest: Option<(i64, Uuid, String, bool)> = sqlx::query_as(sql)
            .bind(i64::try_from(workspace)?)
            .fetch_optional(self.database.pool())
            .await?;
        Ok(match latest {
            None => Resolution::Gone,
            Some((.., false)) => Resolution::Stopped,
            Some((number, agent, address, true)) => Resolution::Running(
                Target::new(agent.into()).with_generation(number).with_address(address),
            ),
        })
    }

    /// Replaces the agent without telling anybody: only the table of builds names the new one. The
    /// old one is left frozen.
    pub(crate) async fn rebuild(&self, n: usize) -> Result<String, BoxError> {
        let workspace = &self.workspaces[n];
        let mut processes = workspace.processes.lock().await;
        let build = workspace.shown().build + 1;
        self.build(n, build, &mut processes).await?;
        Ok(format!(
            "{} is rebuilt: build {build} serves it, and the old agent hangs",
            workspace.name
        ))
    }

    /// Starts an agent in a workspace that has none.
    pub(crate) async fn start_one(&self, n: usize) -> Result<String, BoxError> {
        let workspace = &self.workspaces[n];
        let mut processes = workspace.processes.lock().await;
        if processes.current.is_some() {
            return Err(format!("{} has an agent already", workspace.name).into());
        }
        let build = workspace.shown().build + 1;
        self.build(n, build, &mut processes).await?;
        Ok(format!("{} is started: build {build} serves it", workspace.name))
    }

    async fn build(&self, n: usize, build: i64, processes: &mut Processes) -> Result<(), BoxError> {
        let started = Process::spawn().await?;
        let row = sqlx::query("INSERT INTO builds VALUES (?, ?, ?, ?, TRUE)")
            .bind(i64::try_from(n)?)
            .bind(build)
            .bind(started.agent.into_uuid())
            .bind(&started.address);
        self.write(row).await?;
        self.workspaces[n].show(Shown { build, condition: Condition::Running });
        if let Some(old) = processes.current.replace(started) {
            old.signal("STOP").await?;
            processes.replaced = Some(old);
        }
        Ok(())
    }

    /// Kills the agent. Nobody is told.
    pub(crate) async fn kill(&self, n: usize) -> Result<String, BoxError> {
        let workspace = &self.workspaces[n];
        let mut processes = workspace.processes.lock().await;
        let Some(mut process) = processes.current.take() else {
            return Err(format!("{} has no agent", workspace.name).into());
        };
        process.child.kill().await?;
        workspace.condition(Condition::Killed);
        Ok(format!(
            "The agent of {} is killed, and its address refuses connections",
            workspace.name
        ))
    }

    /// Suspends the agent, or resumes it.
    pub(crate) async fn freeze(&self, n: usize, freeze: bool) -> Result<String, BoxError> {
        let workspace = &self.workspaces[n];
        let mut processes = workspace.processes.lock().await;
        let (from, to, signal, done) = match freeze {
            true => (Condition::Running, Condition::Frozen, "STOP", "frozen"),
            false => (Condition::Frozen, Condition::Running, "CONT", "running again"),
        };
        let process = processes.current.as_mut().filter(|_| workspace.shown().condition == from);
        let process = process.ok_or_else(|| workspace.not(from))?;
        process.signal(signal).await?;
        workspace.condition(to);
        Ok(format!("The agent of {} is {done}", workspace.name))
    }

    /// Makes the agent silent, or responsive again.
    pub(crate) async fn silence(&self, n: usize, silence: bool) -> Result<String, BoxError> {
        let workspace = &self.workspaces[n];
        let mut processes = workspace.processes.lock().await;
        let (from, to, line, done) = match silence {
            true => (
                Condition::Running,
                Condition::Silent,
                "silent\n",
                "accepts nothing and answers nothing",
            ),
            false => (Condition::Silent, Condition::Running, "responsive\n", "answers again"),
        };
        let process = processes.current.as_mut().filter(|_| workspace.shown().condition == from);
        let process = process.ok_or_else(|| workspace.not(from))?;
        process.input.write_all(line.as_bytes()).await?;
        workspace.condition(to);
        Ok(format!("The agent of {} {done}", workspace.name))
    }

    /// Stops the workspace: its agent is killed, and the table of builds says so.
    pub(crate) async fn stop(&self, n: usize) -> Result<String, BoxError> {
        let workspace = &self.workspaces[n];
        let mut processes = workspace.processes.lock().await;
        let stopped = sqlx::query("UPDATE builds SET running = FALSE WHERE workspace = ?")
            .bind(i64::try_from(n)?);
        self.write(stopped).await?;
        for mut process in processes.current.take().into_iter().chain(processes.replaced.take()) {
            process.child.kill().await?;
        }
        workspace.condition(Condition::Stopped);
        Ok(format!("{} is stopped", workspace.name))
    }

    async fn write(
        &self,
        sql: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    ) -> Result<(), BoxError> {
        if self.database.is_down() {
            return Err(
                "the database is down: the platform cannot write the table of builds".into()
            );
        }
        sql.execute(self.database.pool()).await?;
        Ok(())
    }

    /// Kills all agents and waits until they have exited.
    pub(crate) async fn close(&self) {
        for workspace in &self.workspaces {
            let mut processes = workspace.processes.lock().await;
            for mut process in processes.current.take().into_iter().chain(processes.replaced.take())
            {
                // An agent that has exited already cannot be killed.
                let _ = process.child.kill().await;
            }
        }
    }
}

impl Workspace {
    pub(crate) fn shown(&self) -> Shown {
        *lock(&self.shown)
    }

    /// Returns how many questions about it a lane has asked.
    pub(crate) fn reads(&self, lane: Lane) -> u64 {
        self.reads[lane as usize].load(SeqCst)
    }

    fn show(&self, shown: Shown) {
        *lock(&self.shown) = shown;
    }

    fn condition(&self, condition: Condition) {
        lock(&self.shown).condition = condition;
    }

    fn not(&self, wanted: Condition) -> BoxError {
        let now = self.shown().condition.as_str();
        format!("{} is {now}, not {}", self.name, wanted.as_str()).into()
    }
}

impl Process {
    /// Starts this program as an agent, which exits when its standard input is closed.
    ///
    /// The agent has a process group of its own: an interrupt from the terminal does not reach it,
    /// and if the playground is killed while the agent is frozen, the system sends the orphaned
    /// group SIGHUP and SIGCONT, and the agent ends.
    async fn spawn() -> Result<Self, BoxError> {
        let agent = AgentId::new(Uuid::new_v4());
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["agent", &agent.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn()?;
        let input = child.stdin.take().ok_or("no standard input")?;
        let output = child.stdout.take().ok_or("no standard output")?;
        let mut address = String::new();
        timeout(Duration::from_secs(20), BufReader::new(output).read_line(&mut address)).await??;
        Ok(Self { child, input, agent, address: address.trim_end().to_owned() })
    }

    /// Sends a signal. After STOP, waits until each thread has stopped: on a busy machine the agent
    /// serves connections in between. (Without `/proc` there is nothing to wait for.)
    async fn signal(&self, signal: &str) -> io::Result<()> {
        let pid = self.child.id().ok_or(io::ErrorKind::NotFound)?;
        let mut kill = format!("kill -{signal} {pid}");
        if signal == "STOP" {
            let runs = format!("cat /proc/{pid}/task/*/stat 2>/dev/null | grep -qv ') [TZ] '");
            kill += &format!(" && for i in $(seq 500); do {runs} || exit 0; sleep 0.01; done");
        }
        let sent = Command::new("sh").args(["-c", &kill]).status().await?;
        if sent.success() { Ok(()) } else { Err(io::Error::other(format!("{kill}: {sent}"))) }
    }
}
