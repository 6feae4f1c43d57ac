//! One idea: a chat moves to another workspace in one transaction. The application's row and the
//! binding change together or not at all, and the calls of this process follow at the commit.
//!
//! `cargo run --example retarget_in_transaction`

use examples::common::{self, Agent, Authority, Dialer, expect};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_bound_agent::{
    BoundAgentLayer, BoxError, DialSession, Resolution, SessionId, WorkspaceId, store::SqliteStore,
};
use uuid::Uuid;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (blue, green) = (Agent::start("blue").await?, Agent::start("green").await?);
    let (chat, blue_workspace, green_workspace) =
        (common::session(), common::workspace(), common::workspace());
    let (authority, dialer) = (Authority::default(), Dialer::default());
    authority.set(blue_workspace, Resolution::Running(blue.target(1)));
    authority.set(green_workspace, Resolution::Running(green.target(1)));

    // The application's own database and table. The store works over the same pool.
    let directory = tempfile::tempdir()?;
    let file = SqliteConnectOptions::new()
        .filename(directory.path().join("app.db"))
        .create_if_missing(true);
    let pool = SqlitePool::connect_with(file.journal_mode(SqliteJournalMode::Wal)).await?;
    sqlx::query("CREATE TABLE chats (id BLOB PRIMARY KEY, workspace BLOB NOT NULL)")
        .execute(&pool)
        .await?;
    sqlx::query("INSERT INTO chats VALUES (?, ?)")
        .bind(chat.into_uuid())
        .bind(blue_workspace.into_uuid())
        .execute(&pool)
        .await?;
    let store = SqliteStore::new(pool.clone());
    store.set_up().await?;

    let layer = BoundAgentLayer::builder(
        store.clone(),
        service_fn(move |ask| authority.clone().resolve(ask)),
    )
    .build()?;
    let bindings = layer.bindings();
    let dial = layer.layer(service_fn(move |ask| dialer.clone().dial(ask)));

    let bound = dial.clone().oneshot(DialSession::new(chat).in_workspace(blue_workspace)).await?;
    bindings.flush().await;
    println!(
        "The chat begins in the blue workspace and talks to the {} agent.\n",
        name(&[&blue, &green], bound.target().agent)
    );
    expect(bound.target().agent == blue.id, "the chat begins in the blue workspace")?;

    for commit in [false, true] {
        let mut transaction = pool.begin().await?;
        move_chat(&mut transaction, chat, green_workspace).await?;
        let retargeted =
            bindings.retarget_in(&store, &mut transaction, chat, green_workspace).await?;
        if commit {
            transaction.commit().await?;
            retargeted.committed(); // from here on, this process dials the other workspace
        } else {
            transaction.rollback().await?;
            retargeted.rolled_back();
        }

        let bound = dial.clone().oneshot(chat.into()).await?;
        bindings.flush().await;
        let (apps, ours) = read(&pool, chat).await?;
        println!(
            "{:<12} row of the chat: {:<6} binding: {:<6} next turn: the {} agent",
            if commit { "committed" } else { "rolled back" },
            if apps == green_workspace { "green" } else { "blue" },
            if ours == green_workspace { "green" } else { "blue" },
            name(&[&blue, &green], bound.target().agent),
        );
        let (workspace, agent) =
            if commit { (green_workspace, &green) } else { (blue_workspace, &blue) };
        expect((apps, ours) == (workspace, workspace), "both rows change together, or neither")?;
        expect(
            bound.target().agent == agent.id,
            "the next turn goes to the agent of that workspace",
        )?;
    }
    Ok(())
}

/// Updates the application's own row.
async fn move_chat(
    connection: &mut sqlx::SqliteConnection,
    chat: SessionId,
    to: WorkspaceId,
) -> sqlx::Result<()> {
    let update = sqlx::query("UPDATE chats SET workspace = ? WHERE id = ?");
    update.bind(to.into_uuid()).bind(chat.into_uuid()).execute(connection).await?;
    Ok(())
}

/// Returns the chat's workspace according to the application's table, and according to its binding.
async fn read(pool: &SqlitePool, chat: SessionId) -> sqlx::Result<(WorkspaceId, WorkspaceId)> {
    let both = "SELECT chats.workspace, agent_bindings.workspace
                FROM chats JOIN agent_bindings ON session = id WHERE id = ?";
    let (apps, ours): (Uuid, Uuid) =
        sqlx::query_as(both).bind(chat.into_uuid()).fetch_one(pool).await?;
    Ok((apps.into(), ours.into()))
}

fn name(agents: &[&Agent], id: tower_bound_agent::AgentId) -> &'static str {
    agents.iter().find(|agent| agent.id == id).map_or("nobody", |agent| agent.name)
}
