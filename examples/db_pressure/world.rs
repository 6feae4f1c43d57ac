//! The application's tables and agents.

use std::{
    collections::HashSet,
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tower_bound_agent::{
    AgentId, BoxError, Resolution, ResolveWorkspace, SessionId, Target,
    sqlx::{self, AssertSqlSafe, PgPool, SqlSafeStr, SqlStr},
    store::PostgresStore,
};
use uuid::Uuid;

/// The contents of the table of bindings when the first turn begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Each chat has its workspace and no agent.
    Unbound,
    /// Each chat has the agent of the build before the last one.
    Stale,
    /// Each chat has the agent of the last build.
    Current,
}

/// Chats and workspaces in tables of their own. Every workspace was built twice.
pub struct World {
    pub store: PostgresStore,
    pub chats: Vec<Chat>,
    pub agents: Agents,
    sql: Sql,
}

#[derive(Clone, Copy)]
pub struct Chat {
    pub id: SessionId,
    /// The agent that should respond.
    pub agent: AgentId,
}

/// The statements of the ways, over the tables of this world.
struct Sql {
    workspace_of_chat: SqlStr,
    latest_build: SqlStr,
    agent_of_build: SqlStr,
    remembered_agent: SqlStr,
    latest_agent: SqlStr,
    rows_that_differ: SqlStr,
}

fn sql(text: String) -> SqlStr {
    // A statement in an `Arc` is cheap to clone.
    AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
}

/// Returns the name of a table of a world.
pub fn table(world: &str, name: &str) -> String {
    format!("{world}_{name}")
}

impl World {
    pub async fn create(
        pool: PgPool,
        name: &str,
        chats: usize,
        workspaces: usize,
        rows: Rows,
    ) -> Result<Self, BoxError> {
        let [chat_table, builds, agents, bindings] =
            ["chats", "builds", "agents", "bindings"].map(|table_name| table(name, table_name));
        let store = PostgresStore::new(pool.clone()).with_table(&bindings)?;
        store.set_up().await?;
        let tables = format!(
            "CREATE TABLE {chat_table} (id UUID PRIMARY KEY, workspace UUID NOT NULL);
             CREATE TABLE {builds} (workspace UUID, number BIGINT, id UUID NOT NULL, PRIMARY KEY (workspace, number));
             CREATE TABLE {agents} (build UUID PRIMARY KEY, id UUID NOT NULL)"
        );
        sqlx::raw_sql(AssertSqlSafe(tables)).execute(&pool).await?;

        let ids = |n: usize| -> Vec<Uuid> { (0..n).map(|_| Uuid::new_v4()).collect() };
        let (workspace_ids, chat_ids) = (ids(workspaces), ids(chats));
        let of_chat: Vec<usize> = (0..chats).map(|chat| chat % workspaces).collect();
        let [stale, current] = [ids(workspaces), ids(workspaces)];
        let fill_builds = sql(format!(
            "WITH built AS (
                 INSERT INTO {builds} SELECT workspace, $3, gen_random_uuid() FROM unnest($1) AS workspace
                 RETURNING workspace, id
             )
             INSERT INTO {agents} SELECT built.id, given.agent
             FROM built JOIN unnest($1, $2) AS given (workspace, agent) USING (workspace)"
        ));
        for (number, agents) in [(1_i64, &stale), (2, &current)] {
            sqlx::query(fill_builds.clone())
                .bind(&workspace_ids)
                .bind(agents)
                .bind(number)
                .execute(&pool)
                .await?;
        }
        let (generation, bound) = match rows {
            Rows::Unbound => (None, None),
            Rows::Stale => (Some(1_i64), Some(&stale)),
            Rows::Current => (Some(2), Some(&current)),
        };
        let workspace_of_chat: Vec<Uuid> = of_chat.iter().map(|at| workspace_ids[*at]).collect();
        let agent_of_chat: Vec<Option<Uuid>> =
            of_chat.iter().map(|at| bound.map(|agents| agents[*at])).collect();
        sqlx::query(sql(format!("INSERT INTO {chat_table} SELECT * FROM unnest($1, $2)")))
            .bind(&chat_ids)
            .bind(&workspace_of_chat)
            .execute(&pool)
            .await?;
        // The rows as an earlier process has left them.
        sqlx::query(sql(format!(
            "INSERT INTO {bindings} (session, workspace, agent, generation, revision)
             SELECT session, workspace, agent, $4, 1 FROM unnest($1, $2, $3) AS row (session, workspace, agent)"
        )))
        .bind(&chat_ids)
        .bind(&workspace_of_chat)
        .bind(&agent_of_chat)
        .bind(generation)
        .execute(&pool)
        .await?;
        for table in [&chat_table, &builds, &agents, &bindings] {
            sqlx::raw_sql(sql(format!("VACUUM ANALYZE {table}"))).execute(&pool).await?;
        }

        let chats = of_chat.iter().zip(chat_ids);
        let chats =
            chats.map(|(at, id)| Chat { id: id.into(), agent: current[*at].into() }).collect();
        let live = Arc::new(current.into_iter().map(AgentId::new).collect());
        Ok(Self {
            store,
            chats,
            agents: Agents { live, ..Agents::default() },
            sql: Sql {
                workspace_of_chat: sql(format!("SELECT workspace FROM {chat_table} WHERE id = $1")),
                latest_build: sql(format!(
                    "SELECT id FROM {builds} WHERE workspace = $1 ORDER BY number DESC LIMIT 1"
                )),
                agent_of_build: sql(format!("SELECT id FROM {agents} WHERE build = $1")),
                remembered_agent: sql(format!("SELECT agent FROM {bindings} WHERE session = $1")),
                latest_agent: sql(format!(
                    "SELECT agents.id, builds.number FROM {builds} AS builds JOIN {agents} AS agents ON agents.build = builds.id
                     WHERE workspace = $1 ORDER BY number DESC LIMIT 1"
                )),
                rows_that_differ: sql(format!(
                    "SELECT count(*) FROM {bindings} AS bindings JOIN {builds} AS builds USING (workspace)
                         JOIN {agents} AS agents ON agents.build = builds.id
                     WHERE number = 2 AND (bindings.agent, bindings.generation) IS DISTINCT FROM (agents.id, number)"
                )),
            },
        })
    }

    fn pool(&self) -> &PgPool {
        self.store.pool()
    }

    async fn id(&self, sql: &SqlStr, of: Uuid) -> sqlx::Result<Uuid> {
        sqlx::query_scalar(sql.clone()).bind(of).fetch_one(self.pool()).await
    }

    /// Looks up the agent of the chat's workspace, as an application does before every turn.
    pub async fn resolve(&self, chat: SessionId) -> sqlx::Result<AgentId> {
        let workspace = self.id(&self.sql.workspace_of_chat, chat.into()).await?;
        let build = self.id(&self.sql.latest_build, workspace).await?;
        Ok(self.id(&self.sql.agent_of_build, build).await?.into())
    }

    /// Loads the remembered agent of the chat.
    pub async fn load(&self, chat: SessionId) -> sqlx::Result<AgentId> {
        Ok(self.id(&self.sql.remembered_agent, chat.into()).await?.into())
    }

    /// The resolver of the layer.
    pub async fn answer(self: Arc<Self>, ask: ResolveWorkspace) -> sqlx::Result<Resolution> {
        let latest = sqlx::query_as(self.sql.latest_agent.clone()).bind(ask.workspace.into_uuid());
        let (agent, number): (Uuid, i64) = latest.fetch_one(self.pool()).await?;
        Ok(Resolution::Running(Target::new(agent.into()).with_generation(number)))
    }

    pub async fn rows_that_differ(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar(self.sql.rows_that_differ.clone()).fetch_one(self.pool()).await
    }
}

/// Agents within this process. A dial of a replaced agent stays pending.
#[derive(Clone, Default)]
pub struct Agents {
    live: Arc<HashSet<AgentId>>,
    hung: Arc<AtomicUsize>,
    hanging: Arc<AtomicUsize>,
}

impl Agents {
    /// Returns how many dials of replaced agents were started.
    pub fn hung(&self) -> usize {
        self.hung.load(SeqCst)
    }

    /// Returns how many of those are still pending.
    pub fn hanging(&self) -> usize {
        self.hanging.load(SeqCst)
    }

    pub async fn dial(self, agent: AgentId) -> io::Result<Connection> {
        if !self.live.contains(&agent) {
            self.hung.fetch_add(1, SeqCst);
            let _until_dropped = Hanging::new(&self.hanging);
            return pending().await;
        }
        let (ours, mut its) = duplex(64);
        tokio::spawn(async move {
            while its.read_u8().await.is_ok()
                && its.write_all(agent.as_uuid().as_bytes()).await.is_ok()
            {}
        });
        Ok(Connection(ours))
    }
}

struct Hanging<'a>(&'a AtomicUsize);

impl<'a> Hanging<'a> {
    fn new(hanging: &'a AtomicUsize) -> Self {
        hanging.fetch_add(1, SeqCst);
        Self(hanging)
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

pub struct Connection(DuplexStream);

impl Connection {
    /// Sends a byte and returns the id of the agent that responds.
    pub async fn ask(&mut self) -> io::Result<AgentId> {
        self.0.write_u8(b'?').await?;
        let mut id = [0; 16];
        self.0.read_exact(&mut id).await?;
        Ok(Uuid::from_bytes(id).into())
    }
}
