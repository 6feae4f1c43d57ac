//! What the story needs of a Kubernetes API server, on a real socket: lists and watches of pods,
//! and the volume claims of the workspaces.

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
};

#[derive(Clone)]
pub(crate) struct ApiServer {
    pub(crate) address: SocketAddr,
    cluster: Arc<Mutex<Cluster>>,
    /// The version of the cluster, for watches that wait.
    version: watch::Sender<u64>,
    /// Ends all connections.
    cut: Arc<Notify>,
}

#[derive(Default)]
struct Cluster {
    pods: BTreeMap<String, Value>,
    homes: BTreeSet<String>,
    /// What has happened to pods since `compacted`, with the version at which it happened.
    events: Vec<(u64, Value)>,
    compacted: u64,
    is_down: bool,
    counts: Counts,
}

/// The requests that were answered.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Lists of the pods of one workspace, and reads of its volume claim: those of the resolver.
    pub(crate) reads: u64,
    /// Lists of all pods: those of the watcher.
    pub(crate) lists: u64,
    pub(crate) watches: u64,
    /// Watches from a version that was forgotten.
    pub(crate) expired: u64,
}

impl Cluster {
    /// The next event for a watch. None while the server is down: its connection is about to end.
    fn next(&self, selector: &str, seen: u64) -> Option<(u64, Value)> {
        if self.is_down {
            return None;
        }
        let is_next =
            |(at, event): &&(u64, Value)| *at > seen && selects(selector, &event["object"]);
        self.events.iter().find(is_next).cloned()
    }
}

impl ApiServer {
    pub(crate) async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = Self {
            address: listener.local_addr()?,
            cluster: Arc::default(),
            version: watch::Sender::new(1),
            cut: Arc::default(),
        };
        tokio::spawn(server.clone().accept(listener));
        Ok(server)
    }

    async fn accept(self, listener: TcpListener) {
        let paths = Router::new()
            .route("/api/v1/namespaces/default/pods", get(pods))
            .route("/api/v1/namespaces/default/persistentvolumeclaims/{name}", get(home))
            .with_state(self.clone());
        while let Ok((stream, _)) = listener.accept().await {
            if self.cluster().is_down {
                continue;
            }
            let (service, cut) = (TowerToHyperService::new(paths.clone()), Arc::clone(&self.cut));
            tokio::spawn(async move {
                let serve = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::select! { biased; () = cut.notified() => {}, _ = serve => {} }
            });
        }
    }

    /// Creates a pod, or replaces the one with its name.
    pub(crate) fn apply(&self, pod: Value) {
        let name = name(&pod);
        let known = self.cluster().pods.contains_key(&name);
        self.happened(if known { "MODIFIED" } else { "ADDED" }, pod);
    }

    pub(crate) fn delete(&self, pod: Value) {
        self.happened("DELETED", pod);
    }

    fn happened(&self, what: &str, mut pod: Value) {
        let mut cluster = self.cluster();
        let version = *self.version.borrow() + 1;
        pod["metadata"]["resourceVersion"] = json!(version.to_string());
        match what {
            "DELETED" => _ = cluster.pods.remove(&name(&pod)),
            _ => _ = cluster.pods.insert(name(&pod), pod.clone()),
        }
        cluster.events.push((version, json!({ "type": what, "object": pod })));
        self.version.send_replace(version);
    }

    pub(crate) fn create_home(&self, name: &str) {
        self.cluster().homes.insert(name.to_owned());
    }

    pub(crate) fn delete_home(&self, name: &str) {
        self.cluster().homes.remove(name);
    }

    /// Ends all connections, and forgets what has happened until now.
    pub(crate) fn forget_history(&self) {
        let mut cluster = self.cluster();
        cluster.compacted = *self.version.borrow();
        cluster.events.clear();
        self.cut.notify_waiters();
    }

    /// Ends all connections, and while it is down, each new one at once.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.cluster().is_down = is_down;
        self.cut.notify_waiters();
    }

    pub(crate) fn counts(&self) -> Counts {
        self.cluster().counts
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// A list of pods, or with `watch` the changes since `resourceVersion`.
async fn pods(
    State(server): State<ApiServer>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let selector = query.get("labelSelector").cloned().unwrap_or_default();
    let mut cluster = server.cluster();
    if !query.contains_key("watch") {
        let of_one = selector.contains('=');
        *(if of_one { &mut cluster.counts.reads } else { &mut cluster.counts.lists }) += 1;
        let items: Vec<_> = cluster.pods.values().filter(|pod| selects(&selector, pod)).collect();
        let version = server.version.borrow().to_string();
        return Json(json!({
            "kind": "PodList", "apiVersion": "v1",
            "metadata": { "resourceVersion": version }, "items": items,
        }))
        .into_response();
    }
    cluster.counts.watches += 1;
    let since = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    if since < cluster.compacted {
        cluster.counts.expired += 1;
        // As an API server says it: the response is a watch, and its one event is the error.
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
            "code": 410, "reason": "Expired", "message": "too old resource version",
        });
        return line(&json!({ "type": "ERROR", "object": status })).into_response();
    }
    drop(cluster);
    let version = server.version.subscribe();
    Body::from_stream(stream::unfold(
        (server, version, since),
        move |(server, mut version, seen)| {
            let selector = selector.clone();
            async move {
                loop {
                    version.borrow_and_update();
                    let next = server.cluster().next(&selector, seen);
                    if let Some((at, event)) = next {
                        return Some((Ok::<_, Infallible>(line(&event)), (server, version, at)));
                    }
                    version.changed().await.ok()?;
                }
            }
        },
    ))
    .into_response()
}

async fn home(State(server): State<ApiServer>, Path(name): Path<String>) -> Response {
    let mut cluster = server.cluster();
    cluster.counts.reads += 1;
    if cluster.homes.contains(&name) {
        let metadata = json!({ "name": name, "namespace": "default" });
        let kind = "PersistentVolumeClaim";
        return Json(json!({ "kind": kind, "apiVersion": "v1", "metadata": metadata }))
            .into_response();
    }
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
        "code": 404, "reason": "NotFound", "message": format!("{name} not found"),
    });
    (StatusCode::NOT_FOUND, Json(status)).into_response()
}

fn line(event: &Value) -> Bytes {
    format!("{event}\n").into()
}

/// Whether a selector, `KEY` or `KEY=VALUE`, selects a pod.
fn selects(selector: &str, pod: &Value) -> bool {
    let (key, wanted) =
        selector.split_once('=').map_or((selector, None), |(key, value)| (key, Some(value)));
    let value = pod["metadata"]["labels"][key].as_str();
    value.is_some() && (wanted.is_none() || value == wanted)
}
