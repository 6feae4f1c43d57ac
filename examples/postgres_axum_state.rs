//! One idea: an axum application keeps its own table and the bindings in one PostgreSQL. Moving a
//! chat to another workspace changes both rows in one transaction, or neither.
//!
//! `cargo run --features postgres,serde --example postgres_axum_state` uses the database in
//! `DATABASE_URL`, or starts a server. The program is its own client:
//!
//! | route | body | effect |
//! |---|---|---|
//! | `POST /chats` | `{"workspace": "…"}` | creates a chat in a workspace |
//! | `PUT /chats/{id}/workspace` | `{"workspace": "…"}` | moves the chat |
//! | `GET /chats/{id}` | | returns the chat's workspace according to both tables |
//! | `POST /chats/{id}/turns` | | returns the agent that responds |

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
    serve,
};
use examples::common::{self, Agent, Authority, Connection, Dialer, database::Database, expect};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{net::SocketAddr, process::ExitCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_bound_agent::{
    Bindings, Bound, BoundAgentLayer, BoxError, DialSession, Error, ErrorKind, Resolution,
    SessionId, WorkspaceId,
    sqlx::{self, PgPool},
    store::PostgresStore,
};

/// The state of the application: made once, cheap to clone.
#[derive(Clone)]
struct App {
    pool: PgPool,
    store: PostgresStore,
    bindings: Bindings,
    dial: BoxCloneSyncService<DialSession, Bound<Connection>, Error>,
}

fn routes(app: App) -> Router {
    Router::new()
        .route("/chats", post(create))
        .route("/chats/{id}", get(show))
        .route("/chats/{id}/workspace", put(move_chat))
        .route("/chats/{id}/turns", post(turn))
        .with_state(app)
}

#[derive(Deserialize)]
struct In {
    workspace: WorkspaceId,
}

async fn create(
    State(app): State<App>,
    Json(asked): Json<In>,
) -> Result<impl IntoResponse, Failure> {
    let chat = common::session();
    app.write("INSERT INTO chats (id, workspace) VALUES ($1, $2)", chat, asked.workspace).await?;
    Ok((StatusCode::CREATED, Json(json!({ "id": chat }))))
}

async fn move_chat(
    State(app): State<App>,
    Path(chat): Path<SessionId>,
    Json(asked): Json<In>,
) -> Result<StatusCode, Failure> {
    app.write("UPDATE chats SET workspace = $2 WHERE id = $1", chat, asked.workspace).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn show(State(app): State<App>, Path(chat): Path<SessionId>) -> Result<Json<Value>, Failure> {
    let both = "SELECT chats.workspace, agent_bindings.workspace
                FROM chats JOIN agent_bindings ON session = id WHERE id = $1";
    let found: Option<(uuid::Uuid, uuid::Uuid)> =
        sqlx::query_as(both).bind(chat.into_uuid()).fetch_optional(&app.pool).await?;
    let (chats, bindings) =
        found.ok_or(Failure(StatusCode::NOT_FOUND, "there is no such chat".into()))?;
    Ok(Json(json!({ "chats": chats, "agent_bindings": bindings })))
}

async fn turn(State(app): State<App>, Path(chat): Path<SessionId>) -> Result<Json<Value>, Failure> {
    let mut agent = app.dial.oneshot(chat.into()).await?;
    Ok(Json(json!({ "agent": agent.ask("what is new?").await? })))
}

impl App {
    /// Writes the application's row of a chat and its binding in one transaction.
    async fn write(
        &self,
        sql: &'static str,
        chat: SessionId,
        workspace: WorkspaceId,
    ) -> Result<(), Failure> {
        let mut transaction = self.pool.begin().await?;
        // A return before `committed` or `rolled_back` drops the guard. Then the next calls of the
        // chat read its row first, which is right however the transaction has ended.
        let retargeted =
            self.bindings.retarget_in(&self.store, &mut transaction, chat, workspace).await?;
        let written = sqlx::query(sql).bind(chat.into_uuid()).bind(workspace.into_uuid());
        let refused = match written.execute(&mut *transaction).await {
            Ok(written) if written.rows_affected() == 1 => {
                transaction.commit().await?;
                retargeted.committed(); // from here on, this process dials the new workspace
                return Ok(());
            }
            Ok(_) => Failure(StatusCode::NOT_FOUND, "there is no such chat".into()),
            Err(error) => error.into(),
        };
        transaction.rollback().await?;
        retargeted.rolled_back();
        Err(refused)
    }
}

/// The response to a request that failed.
struct Failure(StatusCode, BoxError);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1.to_string() }))).into_response()
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let refused =
            error.as_database_error().is_some_and(|error| error.is_foreign_key_violation());
        let status = if refused {
            StatusCode::UNPROCESSABLE_ENTITY
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Self(status, error.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::NotBound => StatusCode::NOT_FOUND,
            ErrorKind::Starting { .. } | ErrorKind::Stopped => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self(status, error.into())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(StatusCode::BAD_GATEWAY, error.into())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match Database::run(tell).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn tell(database: &Database) -> Result<(), BoxError> {
    let (blue, green) = (Agent::start("blue").await?, Agent::start("green").await?);
    let (in_blue, in_green, nowhere) =
        (common::workspace(), common::workspace(), common::workspace());
    let authority = Authority::default();
    authority.set(in_blue, Resolution::Running(blue.target(1)));
    authority.set(in_green, Resolution::Running(green.target(1)));

    let pool = database.pool(4).await?;
    let tables = "CREATE TABLE workspaces (id UUID PRIMARY KEY);
         CREATE TABLE chats (id UUID PRIMARY KEY, workspace UUID NOT NULL REFERENCES workspaces)";
    sqlx::raw_sql(tables).execute(&pool).await?;
    for workspace in [in_blue, in_green] {
        sqlx::query("INSERT INTO workspaces VALUES ($1)")
            .bind(workspace.into_uuid())
            .execute(&pool)
            .await?;
    }
    let store = PostgresStore::new(pool.clone());
    store.set_up().await?;
    let layer = BoundAgentLayer::builder(
        store.clone(),
        service_fn(move |ask| authority.clone().resolve(ask)),
    )
    .build()?;
    let (bindings, dialer) = (layer.bindings(), Dialer::default());
    let dial = layer.layer(service_fn(move |ask| dialer.clone().dial(ask)));
    let app = App { pool, store, bindings, dial: BoxCloneSyncService::new(dial) };

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = Client(listener.local_addr()?);
    let serving = tokio::spawn(async move { serve(listener, routes(app)).await });
    let told = client.tell([(in_blue, &blue), (in_green, &green)], nowhere).await;
    serving.abort();
    told
}

/// A client that prints and checks the responses.
struct Client(SocketAddr);

impl Client {
    async fn tell(
        &self,
        [(in_blue, blue), (in_green, green)]: [(WorkspaceId, &Agent); 2],
        nowhere: WorkspaceId,
    ) -> Result<(), BoxError> {
        println!("A chat begins in the blue workspace.");
        let (status, created) = self.ask("POST", "/chats", json!({ "workspace": in_blue })).await?;
        let chat = created["id"].as_str().unwrap_or_default().to_owned();
        expect(status == 201 && !chat.is_empty(), "a chat is created")?;
        self.expect(&chat, in_blue, blue).await?;

        println!(
            "It cannot move to an unknown workspace. The transaction fails, and nothing changes."
        );
        let path = format!("/chats/{chat}/workspace");
        let (status, _) = self.ask("PUT", &path, json!({ "workspace": nowhere })).await?;
        expect(status == 422, "the application's table refuses an unknown workspace")?;
        self.expect(&chat, in_blue, blue).await?;

        println!("It moves to the green workspace.");
        let (status, _) = self.ask("PUT", &path, json!({ "workspace": in_green })).await?;
        expect(status == 204, "the chat moves")?;
        self.expect(&chat, in_green, green).await?;

        println!("A chat that does not exist cannot move, and gets no binding.");
        let stranger = common::session();
        let (status, _) = self
            .ask("PUT", &format!("/chats/{stranger}/workspace"), json!({ "workspace": in_green }))
            .await?;
        expect(status == 404, "a chat that does not exist does not move")?;
        let (status, _) =
            self.ask("POST", &format!("/chats/{stranger}/turns"), Value::Null).await?;
        expect(status == 404, "it gets no binding")
    }

    /// Checks that both tables name the workspace, and that its agent responds.
    async fn expect(
        &self,
        chat: &str,
        workspace: WorkspaceId,
        agent: &Agent,
    ) -> Result<(), BoxError> {
        let (_, rows) = self.ask("GET", &format!("/chats/{chat}"), Value::Null).await?;
        expect(
            rows == json!({ "chats": workspace, "agent_bindings": workspace }),
            "both rows name the workspace",
        )?;
        let (_, turn) = self.ask("POST", &format!("/chats/{chat}/turns"), Value::Null).await?;
        println!("    both tables: the {0} workspace; the {0} agent responds", agent.name);
        expect(turn == json!({ "agent": agent.id }), "the agent of the workspace responds")
    }

    /// Sends one request, on a connection of its own.
    async fn ask(&self, method: &str, path: &str, body: Value) -> Result<(u16, Value), BoxError> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: example\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(self.0).await?;
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        let (head, body) = response.split_once("\r\n\r\n").ok_or("no HTTP response")?;
        let status = head.split(' ').nth(1).ok_or("no status")?.parse()?;
        let short = match path.split('/').nth(2) {
            Some(id) => path.replace(id, "{id}"),
            None => path.to_owned(),
        };
        println!("  {status} {method:<4} {short}");
        Ok((status, if body.is_empty() { Value::Null } else { serde_json::from_str(body)? }))
    }
}
