//! What the gateway shows without arguments: a chat, its workspace, a rebuild that leaves a frozen
//! agent behind, and a stop.

use super::{BoxError, PATIENCE, agent_host::AgentHost, serve};
use axum::{body::Body, http::Request};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::{net::TcpListener, sync::oneshot, time::Instant};
use uuid::Uuid;

pub(crate) async fn tell() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let gateway = format!("http://{}", listener.local_addr()?);
    let (end, ended) = oneshot::channel::<()>();
    let host = AgentHost::new(Vec::new());
    let serving =
        tokio::spawn(serve(listener, Vec::new(), PATIENCE, host, async { drop(ended.await) }));
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut story = Story { client, gateway, agents: Vec::new() };
    let told = story.tell().await;
    drop((story, end));
    serving.await??;
    told
}

/// A client of the gateway that prints each response and compares it with what is expected.
struct Story {
    client: Client<HttpConnector, Body>,
    gateway: String,
    /// The ids of the agents, in the order in which they were started.
    agents: Vec<String>,
}

struct Reply {
    status: u16,
    /// The agent that responded; `None` if the gateway responded itself.
    agent: Option<String>,
    text: String,
    ms: f64,
}

impl Story {
    async fn tell(&mut self) -> Result<(), BoxError> {
        let (chat, workspace) = (Uuid::new_v4(), Uuid::new_v4());
        let (chat, workspace_url) = (format!("/chats/{chat}"), format!("/workspaces/{workspace}"));
        let echo = &format!("{chat}/echo");

        println!("A gateway, and agents in processes of their own. Each line is a request.\n");
        println!("{:<36} {:>6} {:>8}  response of", "request", "status", "ms");
        self.step(
            "a turn of a chat without a binding",
            "POST",
            echo,
            "hello",
            "gateway: not bound",
        )
        .await?;
        self.start("build a workspace", &format!("{workspace_url}/rebuild")).await?;
        let point = format!("{chat}/workspace");
        self.step("point the chat at it", "PUT", &point, &workspace.to_string(), "gateway").await?;
        self.step("its first turn", "POST", echo, "hello", "agent 1").await?;
        self.step("its second turn", "POST", echo, "hello", "agent 1").await?;
        self.step("what did that cost?", "GET", &chat, "", "gateway: reused, 0 dials").await?;

        let rebuild = format!("{workspace_url}/rebuild?old=freeze");
        self.start("rebuild it, freeze the old agent", &rebuild).await?;
        self.step("a turn", "POST", echo, "hello", "agent 2").await?;

        self.step("stop it", "POST", &format!("{workspace_url}/stop"), "", "gateway").await?;
        self.step("a turn", "POST", echo, "hello", "gateway: stopped").await?;
        self.start("start it", &format!("{workspace_url}/start")).await?;
        self.step("a turn", "POST", echo, "hello", "agent 3").await?;
        println!("\nEvery turn that could reach an agent reached the latest one.");
        Ok(())
    }

    /// Starts an agent, and remembers its id.
    async fn start(&mut self, what: &str, path: &str) -> Result<(), BoxError> {
        let reply = self.step(what, "POST", path, "", "gateway").await?;
        let built: Value = serde_json::from_str(&reply.text)?;
        self.agents.push(built["agent"].as_str().ok_or("the build names no agent")?.to_owned());
        Ok(())
    }

    async fn step(
        &self,
        what: &str,
        method: &str,
        path: &str,
        body: &str,
        expected: &str,
    ) -> Result<Reply, BoxError> {
        let reply = self.send(method, path, body).await?;
        let responded = self.describe(&reply);
        println!("{what:<36} {:>6} {:>8.1}  {responded}", reply.status, reply.ms);
        if responded == expected {
            Ok(reply)
        } else {
            Err(format!("the story did not happen: {what}: expected {expected}, got {responded}")
                .into())
        }
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> Result<Reply, BoxError> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.gateway));
        let began = Instant::now();
        let response = self.client.request(request.body(Body::from(body.to_owned()))?).await?;
        let (status, headers) = (response.status().as_u16(), response.headers());
        let agent = headers.get("x-agent").and_then(|agent| agent.to_str().ok()).map(str::to_owned);
        let text = String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?;
        Ok(Reply { status, agent, text, ms: began.elapsed().as_secs_f64() * 1000.0 })
    }

    /// Returns who responded and, if it was the gateway, what it said.
    fn describe(&self, reply: &Reply) -> String {
        if let Some(agent) = &reply.agent {
            let number = self.agents.iter().position(|known| known == agent);
            let echoed = reply.text == format!("{agent}\nhello");
            return match number {
                Some(index) if echoed => format!("agent {}", index + 1),
                _ => format!("{agent}: {}", reply.text),
            };
        }
        let said: Value = serde_json::from_str(&reply.text).unwrap_or_default();
        match (&said["error"], &said["last"]) {
            (Value::String(error), _) => format!("gateway: {error}"),
            (_, Value::Object(last)) => format!(
                "gateway: {}, {} dials",
                last["outcome"].as_str().unwrap_or("no outcome"),
                last["dials"]
            ),
            _ if reply.status < 300 => "gateway".to_owned(),
            _ => format!("gateway: {}", reply.text),
        }
    }
}
