//! The recipe: the agent of a workspace is a pod. [`Pods::resolve`] is the resolver,
//! [`Pods::watch`] tells the layer of a replaced pod before a call meets it.
//!
//! The platform writes three things:
//!
//! * the label [`WORKSPACE`] of a pod: the id of the workspace;
//! * the annotation [`BUILD`] of a pod: the number of the build, which the platform counts for each
//!   workspace. A rollback is a new build, with a new number;
//! * a volume claim `home-ID`, which exists as long as the workspace. Without a pod, it is the
//!   difference between a stopped workspace and a deleted one.
//!
//! The id of the agent is the pod's uid, because Kubernetes never gives a uid twice. The name of a
//! pod of a StatefulSet, and the address of any pod, are given again.
//!
//! The build is the generation. What Kubernetes counts itself is not:
//!
//! * `metadata.resourceVersion` numbers writes. The next status of the old pod is a later write
//!   than the new pod, so the old pod would win. (Before Kubernetes 1.35, resource versions may be
//!   compared for equality only.)
//! * `metadata.generation` counts the changes of one object. Each pod begins at 1, and so does a
//!   Deployment that is deleted and made again. Its pods do not say which generation made them.

use futures_util::StreamExt;
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    pin::pin,
};
use tower_bound_agent::{
    AgentId, Bindings, BuildId, Resolution, ResolveWorkspace, Target, WorkspaceId,
};
use uuid::{Uuid, uuid};

pub(crate) const WORKSPACE: &str = "example.com/workspace";
pub(crate) const BUILD: &str = "example.com/build";
/// The name of the container's port on which the agent listens.
pub(crate) const PORT: &str = "agent";
/// The namespace of the ids of builds, whose names are `WORKSPACE/NUMBER`.
const BUILDS: Uuid = uuid!("7d0a4d0c-94a5-4a5b-8b0e-53b0e5a1c9b4");

#[derive(Clone)]
pub(crate) struct Pods {
    pods: Api<Pod>,
    homes: Api<PersistentVolumeClaim>,
}

impl Pods {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            pods: Api::default_namespaced(client.clone()),
            homes: Api::default_namespaced(client),
        }
    }

    /// The resolver. It asks the API server and not the watch: an answer must not be older than its
    /// question, and a watch may be behind. For the same reason the list has no `resourceVersion`,
    /// with which the API server may answer from an old cache.
    ///
    /// Every error, also a forbidden look-up, is an error of the resolver: it means "unknown".
    pub(crate) async fn resolve(self, ask: ResolveWorkspace) -> Result<Resolution, kube::Error> {
        let selector = ListParams::default().labels(&format!("{WORKSPACE}={}", ask.workspace));
        let pods = self.pods.list(&selector).await?.items;
        if let Some(newest) = pods.iter().filter_map(Agent::of).max() {
            return Ok(Resolution::Running(newest.target(ask.workspace)));
        }
        if pods.iter().any(is_starting) {
            return Ok(Resolution::Starting { retry_after: None });
        }
        let home = self.homes.get_metadata_opt(&format!("home-{}", ask.workspace)).await?;
        Ok(if home.is_some() { Resolution::Stopped } else { Resolution::Gone })
    }

    /// Tells the layer which pods serve, for as long as the process runs. It changes how soon a
    /// replaced pod is noticed, and nothing else: while the watch is lost, calls find out by
    /// themselves, with the resolver.
    ///
    /// After each error the watcher pauses and goes on from the last version that it has seen. If
    /// the API server has forgotten that version (`410 Gone`), the watcher lists all pods again.
    pub(crate) async fn watch(self, bindings: Bindings) {
        let labelled = watcher::Config::default().labels(WORKSPACE);
        let mut events = pin!(watcher(self.pods, labelled).default_backoff());
        let (mut seen, mut listed) = (Seen::default(), Seen::default());
        while let Some(event) = events.next().await {
            match event {
                // A list is compared when it is complete. Before that, the old pod may be in it
                // and the new one not yet.
                Ok(Event::Init) => listed = Seen::default(),
                Ok(Event::InitApply(pod)) => listed.insert(&pod),
                Ok(Event::InitDone) => {
                    let before = std::mem::replace(&mut seen, std::mem::take(&mut listed));
                    let workspaces: HashSet<_> = before.0.keys().chain(seen.0.keys()).collect();
                    for &workspace in workspaces {
                        tell(
                            &bindings,
                            workspace,
                            before.newest(workspace),
                            seen.newest(workspace),
                        );
                    }
                }
                Ok(Event::Apply(pod)) => seen.change(&pod, Agent::of(&pod), &bindings),
                Ok(Event::Delete(pod)) => seen.change(&pod, None, &bindings),
                Err(error) => tracing::warn!(%error, "the watch of the pods is interrupted"),
            }
        }
    }
}

/// Passes on that another pod serves the workspace.
fn tell(bindings: &Bindings, workspace: WorkspaceId, before: Option<&Agent>, now: Option<&Agent>) {
    match now {
        _ if before == now => {}
        // The event names the target, so nothing is left to ask.
        Some(agent) => _ = bindings.announce(workspace, agent.target(workspace)),
        // Whether the workspace starts, was stopped or is gone, only the resolver can say.
        None => bindings.revalidate_workspace(workspace),
    }
}

/// The pods that serve, as the watch has told.
#[derive(Default)]
struct Seen(HashMap<WorkspaceId, HashMap<AgentId, Agent>>);

impl Seen {
    fn newest(&self, workspace: WorkspaceId) -> Option<&Agent> {
        self.0.get(&workspace)?.values().max()
    }

    fn insert(&mut self, pod: &Pod) {
        if let Some((workspace, agent)) = workspace(pod).zip(Agent::of(pod)) {
            self.0.entry(workspace).or_default().insert(agent.id, agent);
        }
    }

    /// Replaces what is known of a pod, and tells the layer if another pod is the newest one now.
    fn change(&mut self, pod: &Pod, now: Option<Agent>, bindings: &Bindings) {
        let Some((workspace, id)) = workspace(pod).zip(agent(pod)) else { return };
        let before = self.newest(workspace).cloned();
        let of_workspace = self.0.entry(workspace).or_default();
        match now {
            Some(agent) => _ = of_workspace.insert(id, agent),
            None => _ = of_workspace.remove(&id),
        }
        if of_workspace.is_empty() {
            self.0.remove(&workspace);
        }
        tell(bindings, workspace, before.as_ref(), self.newest(workspace));
    }
}

/// A pod that serves. Pods of a workspace are ordered by build. Pods of one build, which there are
/// when a node is drained, are ordered by their creation. The greatest pod is the newest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Agent {
    build: i64,
    created: Time,
    id: AgentId,
    address: SocketAddr,
}

impl Agent {
    /// Returns `None` if the pod is not ready, is about to end, or is no agent of a workspace.
    fn of(pod: &Pod) -> Option<Self> {
        let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
        let is_ready =
            |condition: &PodCondition| condition.type_ == "Ready" && condition.status == "True";
        if pod.metadata.deletion_timestamp.is_some()
            || !status.conditions.iter().flatten().any(is_ready)
        {
            return None;
        }
        let mut ports =
            spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
        let port = ports.find(|port| port.name.as_deref() == Some(PORT))?.container_port;
        let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
        Some(Self {
            build: pod.annotations().get(BUILD)?.parse().ok()?,
            created: pod.creation_timestamp()?,
            id: agent(pod)?,
            address: SocketAddr::new(ip, port.try_into().ok()?),
        })
    }

    fn target(&self, workspace: WorkspaceId) -> Target {
        Target::new(self.id)
            .with_build(BuildId::from_name(&BUILDS, &format!("{workspace}/{}", self.build)))
            .with_generation(self.build)
            .with_address(self.address.to_string())
    }
}

fn workspace(pod: &Pod) -> Option<WorkspaceId> {
    pod.labels().get(WORKSPACE)?.parse().ok()
}

fn agent(pod: &Pod) -> Option<AgentId> {
    pod.metadata.uid.as_deref()?.parse().ok()
}

/// Returns `true` for a pod that will serve: it was not deleted, and its containers have not ended.
fn is_starting(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
}
