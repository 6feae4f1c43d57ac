//! The page, its events, and its buttons.

use crate::{
    journal::Cursor,
    world::{Action, Place, World},
};
use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::Semaphore,
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tower_bound_agent::BoxError;

/// How often a page receives what is new.
const FRAMES: Duration = Duration::from_millis(200);
const MOST_PAGES: usize = 16;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone)]
struct Web {
    world: Arc<World>,
    pages: Arc<Semaphore>,
    ending: CancellationToken,
}

pub(crate) fn router(world: Arc<World>, ending: CancellationToken, address: SocketAddr) -> Router {
    let names: Arc<[String]> =
        Arc::new([address.to_string(), format!("localhost:{}", address.port())]);
    Router::new()
        .route("/", get(|| file("text/html", include_str!("page/index.html"))))
        .route("/style.css", get(|| file("text/css", include_str!("page/style.css"))))
        .route("/script.js", get(|| file("text/javascript", include_str!("page/script.js"))))
        .route("/events", get(events))
        .route("/state", get(async |State(web): State<Web>| Json(web.world.state())))
        .route("/turns/{id}", get(turn))
        .route("/workspaces/{place}/{action}", post(act))
        .route("/database/{state}", post(database))
        .route("/load/{state}", post(load))
        .route("/storm", post(async |State(web): State<Web>| said(Ok(web.world.storm()))))
        .layer(from_fn(headers))
        .layer(from_fn_with_state(names, only_this_page))
        .with_state(Web { world, pages: Arc::new(Semaphore::new(MOST_PAGES)), ending })
}

async fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, format!("{kind}; charset=utf-8"))], text)
}

async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Refuses requests of other sites: a name that was bound to this address, and a form or a script
/// of another origin. Both would otherwise press buttons.
async fn only_this_page(
    State(names): State<Arc<[String]>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_named = text(header::HOST).is_some_and(|host| names.iter().any(|name| name == host));
    let origin = text(header::ORIGIN).map(|origin| origin.trim_start_matches("http://"));
    let is_own = origin.is_none_or(|origin| names.iter().any(|name| name == origin));
    if is_named && is_own {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "this page is served to its own address only\n").into_response()
}

/// Sends what is new, several times a second. Each message is made when the page's connection takes
/// it, so a slow page receives fewer and larger messages, and nothing is queued for it.
async fn events(State(web): State<Web>) -> Response {
    let Ok(page) = web.pages.try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    };
    let mut ticks = interval(FRAMES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sent = (ticks, Cursor::default(), Value::Null, web.world, page);
    let frames = stream::unfold(sent, async |(mut ticks, mut cursor, last, world, page)| {
        let (event, state) = next_frame(&mut ticks, &mut cursor, &last, &world).await;
        Some((Ok::<_, Infallible>(event), (ticks, cursor, state, world, page)))
    });
    let ended = web.ending.cancelled_owned();
    Sse::new(frames.take_until(ended)).keep_alive(KeepAlive::default()).into_response()
}

async fn next_frame(
    ticks: &mut Interval,
    cursor: &mut Cursor,
    last: &Value,
    world: &World,
) -> (Event, Value) {
    loop {
        ticks.tick().await;
        // The state is read before the turns: a counter never runs ahead of what the page shows
        // by more than one frame.
        let state = world.state();
        let (turns, presses) = world.journal.news(cursor);
        let is_empty = |news: &Value| news.as_array().is_none_or(Vec::is_empty);
        if *last == state && is_empty(&turns) && is_empty(&presses) {
            continue;
        }
        let now = world.journal.epoch.elapsed().as_secs_f64() * 1000.0;
        let frame = json!({ "now": now, "state": state, "turns": turns, "presses": presses });
        return (Event::default().data(frame.to_string()), state);
    }
}

/// Returns `null` for a turn that is not kept any more.
async fn turn(State(web): State<Web>, Path(id): Path<u64>) -> Json<Option<Value>> {
    Json(web.world.journal.turn(id))
}

async fn act(State(web): State<Web>, Path((place, action)): Path<(String, String)>) -> Response {
    let workspaces = web.world.agents.workspaces().len();
    let place = match place.as_str() {
        "all" => Place::All,
        number => match number.parse() {
            Ok(n) if n < workspaces => Place::One(n),
            _ => return StatusCode::NOT_FOUND.into_response(),
        },
    };
    let action = match action.as_str() {
        "rebuild" => Action::Rebuild,
        "kill" => Action::Kill,
        "freeze" => Action::Freeze(true),
        "thaw" => Action::Freeze(false),
        "black-hole" => Action::Silence(true),
        "answer" => Action::Silence(false),
        "stop" => Action::Stop,
        "start" => Action::Start,
        "retarget" => Action::Retarget,
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    // A task of its own, so that a press that has begun is carried out if the page is closed.
    let done = tokio::spawn(async move { web.world.act(action, place).await }).await;
    said(done.unwrap_or_else(|error| Err(error.into()))).into_response()
}

async fn database(State(web): State<Web>, Path(state): Path<String>) -> Response {
    match state.as_str() {
        "down" | "up" => said(web.world.set_database_down(state == "down")).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn load(State(web): State<Web>, Path(state): Path<String>) -> Response {
    match state.as_str() {
        "run" | "pause" => said(Ok(web.world.set_running(state == "run"))).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// What became of a press, for the page's status line. A press that changes nothing is no error of
/// the page.
fn said(done: Result<String, BoxError>) -> Json<Value> {
    Json(match done {
        Ok(text) => json!({ "done": true, "text": text }),
        Err(error) => json!({ "done": false, "text": error.to_string() }),
    })
}
