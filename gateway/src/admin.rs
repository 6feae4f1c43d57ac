//! The listener for operators: health, metrics, and commands.
//!
//! | route | |
//! |---|---|
//! | `GET /healthz` | 200: the process lives |
//! | `GET /readyz` | 200, or 503 while the store does not answer or the gateway shuts down |
//! | `GET /metrics` | the series, as Prometheus reads them |
//! | `GET /stats` | the gauges as JSON |
//!
//! Commands need the bearer token of the configuration; without one, they do not exist:
//!
//! | route | |
//! |---|---|
//! | `GET /sessions/{id}` | what the next request of the session would use |
//! | `PUT /sessions/{id}` | points the session at a workspace: `{"workspace": "…"}` |
//! | `DELETE /sessions/{id}` | forgets the session |
//! | `POST /workspaces/{id}/revalidate` | says that the workspace may have been rebuilt |
//! | `POST /workspaces/{id}/reset` | drops the targets of a workspace whose generations start again |

use crate::{
    authorize::{bearer, is_one_of},
    config::Secret,
    log::with_sources,
    proxy::id,
    store::Opened,
};
use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tower_bound_agent::{Bindings, Error, ErrorKind, SessionId, WorkspaceId};

pub(crate) struct Admin {
    pub(crate) bindings: Bindings,
    pub(crate) store: Opened,
    pub(crate) metrics: PrometheusHandle,
    /// Sets the gauges of the pool of connections to agents.
    pub(crate) record_pool: Box<dyn Fn() + Send + Sync>,
    pub(crate) ready_timeout: Duration,
    pub(crate) token: Option<Secret>,
    /// Whether the gateway shuts down.
    pub(crate) is_ending: AtomicBool,
}

pub(crate) fn router(admin: Arc<Admin>) -> Router {
    let mut router = Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .route("/stats", get(stats));
    if admin.token.is_some() {
        let commands = Router::new()
            .route("/sessions/{id}", get(show).put(retarget).delete(forget))
            .route("/workspaces/{id}/revalidate", post(revalidate))
            .route("/workspaces/{id}/reset", post(reset))
            .route_layer(middleware::from_fn_with_state(Arc::clone(&admin), check));
        router = router.merge(commands);
    }
    router.with_state(admin)
}

async fn ready(State(admin): State<Arc<Admin>>) -> (StatusCode, &'static str) {
    if admin.is_ending.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
    }
    match admin.store.answers(admin.ready_timeout).await {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the store does not answer\n"),
    }
}

async fn scrape(State(admin): State<Arc<Admin>>) -> Response {
    admin.bindings.stats().record();
    (admin.record_pool)();
    let text = admin.metrics.render();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, kind)], text).into_response()
}

async fn stats(State(admin): State<Arc<Admin>>) -> Json<impl serde::Serialize> {
    Json(admin.bindings.stats())
}

async fn check(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let known = admin.token.as_slice();
    match bearer(request.headers()) {
        Some(token) if is_one_of(token, known) => next.run(request).await,
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

/// A command that was not carried out.
enum Failed {
    Id,
    Command(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Command(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let (status, error, says) = match self {
            Self::Id => {
                (StatusCode::BAD_REQUEST, "bad_request", "the id is no hyphenated UUID".to_owned())
            }
            Self::Command(error) => {
                let status = match error.kind() {
                    ErrorKind::NotBound => StatusCode::NOT_FOUND,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                };
                (status, error.kind().as_str(), with_sources(&error))
            }
        };
        (status, Json(json!({ "error": error, "says": says }))).into_response()
    }
}

async fn show(
    State(admin): State<Arc<Admin>>,
    Path(session): Path<String>,
) -> Result<Json<Value>, Failed> {
    let current = admin.bindings.current(id(&session).ok_or(Failed::Id)?).await?;
    let target = current.target.as_ref();
    Ok(Json(json!({
        "workspace": current.workspace.to_string(),
        "status": current.status.as_str(),
        "agent": target.map(|target| target.agent.to_string()),
        "address": target.and_then(|target| target.address.as_deref()),
        "generation": target.and_then(|target| target.generation).map(|number| number.get()),
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retarget {
    workspace: WorkspaceId,
}

async fn retarget(
    State(admin): State<Arc<Admin>>,
    Path(session): Path<String>,
    Json(to): Json<Retarget>,
) -> Result<Json<Value>, Failed> {
    let session = id(&session).ok_or(Failed::Id)?;
    let binding = admin.bindings.retarget(session, to.workspace).await?;
    let (workspace, revision) = (binding.workspace.to_string(), binding.revision.get());
    Ok(Json(json!({ "workspace": workspace, "revision": revision })))
}

async fn forget(
    State(admin): State<Arc<Admin>>,
    Path(session): Path<String>,
) -> Result<StatusCode, Failed> {
    let session: SessionId = id(&session).ok_or(Failed::Id)?;
    match admin.bindings.forget(session).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Ok(StatusCode::NOT_FOUND),
    }
}

async fn revalidate(
    State(admin): State<Arc<Admin>>,
    Path(workspace): Path<String>,
) -> Result<StatusCode, Failed> {
    admin.bindings.revalidate_workspace(id(&workspace).ok_or(Failed::Id)?);
    Ok(StatusCode::NO_CONTENT)
}

async fn reset(
    State(admin): State<Arc<Admin>>,
    Path(workspace): Path<String>,
) -> Result<Json<Value>, Failed> {
    let rows = admin.bindings.reset_workspace(id(&workspace).ok_or(Failed::Id)?).await?;
    Ok(Json(json!({ "rows": rows })))
}
