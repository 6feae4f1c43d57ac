//! Rebuilds under load: many concurrent chats, and old agents that are killed, frozen, silent or
//! still running.

use crate::clients::{say, socket};
use axum::body::Body;
use fastwebsockets::WebSocketError;
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};
use support::gateway::{Agent, Gateway, is_alive};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use uuid::Uuid;

/// Each workspace gets each kind of old agent once.
const REBUILDS: usize = 4 * WORKSPACES;
const WORKSPACES: usize = 4;
const CHATS: usize = 200;
/// Longer than the gateway's own timeouts.
const BOUND: Duration = Duration::from_secs(30);

struct Workspace {
    id: Uuid,
    /// The last generation whose rebuild was confirmed. No older agent may answer a later request.
    floor: AtomicI64,
}

/// State that all clients share.
struct Load {
    gateway: Gateway,
    workspaces: Vec<Workspace>,
    /// The agents whose rebuild was confirmed.
    generations: Mutex<HashMap<String, i64>>,
    agents: Mutex<Vec<Agent>>,
    client: Client<HttpConnector, Body>,
    /// Numbers of requests by outcome.
    ends: Mutex<BTreeMap<String, u64>>,
    /// The number of answered requests.
    keys: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Load {
    async fn rebuild(&self, index: usize, how: &str) {
        let workspace = &self.workspaces[index];
        let agent = self.gateway.rebuild(workspace.id, how).await;
        self.generations.lock().unwrap().insert(agent.id.clone(), agent.generation);
        workspace.floor.fetch_max(agent.generation, SeqCst);
        self.agents.lock().unwrap().push(agent);
    }

    fn ended(&self, how: String) {
        *self.ends.lock().unwrap().entry(how).or_default() += 1;
    }

    /// Asserts that the agent that answered is not older than the floor at the time of the request.
    fn check(&self, agent: &str, floor: i64, what: &str) {
        // An agent that is not listed yet is newer: it was used before its rebuild was confirmed.
        let generation = self.generations.lock().unwrap().get(agent).copied();
        let replaced = generation.is_some_and(|generation| generation < floor);
        assert!(!replaced, "{what} was answered by {agent}, replaced before it was sent");
    }

    fn check_failure(&self, status: u16, error: &str, what: &str) {
        let typed = match status {
            502 => ["unreachable", "broken off"].contains(&error),
            503 => ["starting", "stopped", "superseded", "not processed"].contains(&error),
            504 => ["timed out", "no response"].contains(&error),
            _ => false,
        };
        assert!(typed, "{what}: {status} {error}");
        self.ended(format!("{what}: {status} {error}"));
    }

    /// Sends a request that must not be executed twice. It takes some time, so that some agents
    /// begin a request and do not answer it. Returns `true` if it was answered.
    async fn request(&self, index: usize, chat: Uuid) -> bool {
        let (key, floor) = (Uuid::new_v4().to_string(), self.workspaces[index].floor.load(SeqCst));
        let pause = chat.as_u128() % 4 * 100;
        let request = axum::http::Request::post(
            self.gateway.url(&format!("/chats/{chat}/echo?pause_ms={pause}")),
        );
        let request =
            request.header("idempotency-key", &key).body(Body::from(key.clone())).unwrap();
        let response = timeout(BOUND, self.client.request(request))
            .await
            .expect("an answer")
            .expect("the gateway responds");
        let (head, body) = response.into_parts();
        let whole = timeout(BOUND, body.collect()).await.expect("an end");
        let signed = head.headers.get("x-agent").map(|agent| agent.to_str().unwrap().to_owned());
        match (signed, whole) {
            (Some(agent), Ok(body)) => {
                assert_eq!(head.status, 200);
                self.check(&agent, floor, "a request");
                assert_eq!(body.to_bytes(), format!("{agent}\n{key}"));
                self.ended("request: answered".into());
                self.keys.lock().unwrap().push(key);
                return true;
            }
            (Some(agent), Err(_)) => {
                self.check(&agent, floor, "half a request");
                self.ended("request: broke off in the middle".into());
            }
            (None, body) => {
                let said: serde_json::Value =
                    serde_json::from_slice(&body.unwrap().to_bytes()).unwrap();
                self.check_failure(
                    head.status.as_u16(),
                    said["error"].as_str().unwrap(),
                    "request",
                );
            }
        }
        false
    }

    /// Reads events until the stream ends or is silent for a while.
    async fn events(&self, index: usize, chat: Uuid) {
        let floor = self.workspaces[index].floor.load(SeqCst);
        let uri = self.gateway.url(&format!("/chats/{chat}/events?every_ms=200"));
        let request = axum::http::Request::get(uri).body(Body::empty()).unwrap();
        let response = timeout(BOUND, self.client.request(request))
            .await
            .expect("an answer")
            .expect("the gateway responds");
        let (head, mut body) = response.into_parts();
        let Some(agent) = head.headers.get("x-agent") else {
            let said: serde_json::Value =
                serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
            return self.check_failure(
                head.status.as_u16(),
                said["error"].as_str().unwrap(),
                "events",
            );
        };
        let agent = agent.to_str().unwrap().to_owned();
        self.check(&agent, floor, "events");
        let end = Instant::now() + Duration::from_secs(5);
        while !self.over.load(SeqCst) && Instant::now() < end {
            match timeout(Duration::from_secs(3), body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let event = String::from_utf8_lossy(frame.data_ref().unwrap()).into_owned();
                    assert!(event.starts_with(&format!("data: {agent} ")), "{event}");
                }
                Ok(_) => return self.ended("events: broke off".into()),
                Err(_) => return self.ended("events: fell silent".into()),
            }
        }
        self.ended("events: read".into());
    }

    /// Exchanges messages until the socket ends or is silent for a while.
    async fn talk(&self, index: usize, chat: Uuid) {
        let floor = self.workspaces[index].floor.load(SeqCst);
        let opened =
            timeout(BOUND, socket(&self.gateway.address, &format!("/chats/{chat}/socket"))).await;
        let mut socket = match opened.expect("an answer") {
            Ok(socket) => socket,
            Err(WebSocketError::InvalidStatusCode(status @ (502..=504))) => {
                return self.ended(format!("socket: {status}"));
            }
            Err(error) => panic!("{error:?}"),
        };
        let end = Instant::now() + Duration::from_secs(5);
        while !self.over.load(SeqCst) && Instant::now() < end {
            match timeout(Duration::from_secs(3), say(&mut socket, "hello")).await {
                Ok(Ok(answer)) => {
                    self.check(answer.strip_suffix(" hello").unwrap(), floor, "a socket")
                }
                Ok(Err(_)) => return self.ended("socket: broke off".into()),
                Err(_) => return self.ended("socket: fell silent".into()),
            }
            sleep(Duration::from_millis(200)).await;
        }
        self.ended("socket: talked".into());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_chats_survive_a_rebuild_every_second() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let gateway = Gateway::start(&["--patience", "10", "--journal", journal.to_str().unwrap()]);
    // Each kind of connection existed once before the counts begin.
    let (chat, workspace, _) = gateway.chat().await;
    gateway.get(&format!("/chats/{chat}/identity")).await;
    gateway.ask("POST", &format!("/workspaces/{workspace}/stop"), "").await;
    let held = gateway.held().await;

    let workspace = || Workspace { id: Uuid::new_v4(), floor: AtomicI64::new(0) };
    let load = Arc::new(Load {
        workspaces: (0..WORKSPACES).map(|_| workspace()).collect(),
        gateway,
        generations: Mutex::default(),
        agents: Mutex::default(),
        client: Client::builder(TokioExecutor::new()).build_http(),
        ends: Mutex::default(),
        keys: Mutex::default(),
        over: AtomicBool::new(false),
    });
    for index in 0..WORKSPACES {
        load.rebuild(index, "").await;
    }
    let mut clients = JoinSet::new();
    let mut chats = Vec::new();
    for number in 0..CHATS {
        let index = number % WORKSPACES;
        let chat = load.gateway.point(load.workspaces[index].id).await;
        chats.push((index, chat));
        let load = Arc::clone(&load);
        clients.spawn(async move {
            while !load.over.load(SeqCst) {
                match number / WORKSPACES % 5 {
                    0 => load.events(index, chat).await,
                    1 => load.talk(index, chat).await,
                    _ => drop(load.request(index, chat).await),
                }
                sleep(Duration::from_millis(100)).await;
            }
        });
    }
    let mut next = Instant::now();
    for rebuild in 0..REBUILDS {
        let old = ["kill", "freeze", "silence", "leave"][(rebuild + rebuild / WORKSPACES) % 4];
        load.rebuild(rebuild % WORKSPACES, &format!("?old={old}")).await;
        next += Duration::from_secs(1);
        sleep_until(next).await;
    }
    load.over.store(true, SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }

    // At the end, each chat reaches the current agent.
    let last: JoinSet<bool> = chats
        .into_iter()
        .map(|(index, chat)| {
            let load = Arc::clone(&load);
            async move { load.request(index, chat).await }
        })
        .collect();
    assert!(last.join_all().await.into_iter().all(|answered| answered), "{:?}", load.ends);
    let ends = load.ends.lock().unwrap().clone();
    println!("{ends:#?}");
    assert!(ends["request: answered"] > 500, "{ends:#?}");

    let mut carried_out = HashMap::<String, u64>::new();
    for line in std::fs::read_to_string(&journal).unwrap().lines() {
        *carried_out.entry(line.split_once(' ').unwrap().0.to_owned()).or_default() += 1;
    }
    assert!(carried_out.values().all(|times| *times == 1), "a request was carried out twice");
    let keys = load.keys.lock().unwrap().clone();
    assert!(keys.iter().all(|key| carried_out.contains_key(key)));

    for workspace in &load.workspaces {
        load.gateway.ask("POST", &format!("/workspaces/{}/stop", workspace.id), "").await;
    }
    let Some(Load { gateway, agents, client, .. }) = Arc::into_inner(load) else {
        panic!("a client goes on")
    };
    drop(client);
    gateway.holds_at_most(held).await;
    assert!(gateway.end().success());
    let alive: Vec<_> =
        agents.into_inner().unwrap().into_iter().filter(|agent| is_alive(agent.pid)).collect();
    assert!(alive.is_empty(), "{alive:?}");
}
