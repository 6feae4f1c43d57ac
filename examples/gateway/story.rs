//! The story that the gateway tells without arguments: a chat, its workspace, a rebuild that leaves
//! a frozen agent behind.

use super::{BoxError, PATIENCE, serve, yard::Yard};
use axum::{body::Body, http::Request};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{net::TcpListener, sync::oneshot, time::Instant};
use uuid::Uuid;

/// Sends requests through the gateway's own port.
struct Teller {
    client: Client<HttpConnector, Body>,
    gateway: String,
}

struct Said {
    status: u16,
    agent: Option<String>,
    text: String,
    ms: f64,
}

pub(crate) async fn tell() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let gateway = format!("http://{}", listener.local_addr()?);
    let (end, ended) = oneshot::channel::<()>();
    let serving =
        tokio::spawn(serve(listener, Vec::new(), PATIENCE, Yard::new(Vec::new()), async {
            drop(ended.await)
        }));
    let teller = Teller { client: Client::builder(TokioExecutor::new()).build_http(), gateway };
    let told = teller.tell().await;
    drop((teller, end));
    serving.await??;
    told
}

impl Teller {
    async fn tell(&self) -> Result<(), BoxError> {
        let (chat, workspace) = (Uuid::new_v4(), Uuid::new_v4());
        let chats = format!("/chats/{chat}");
        let echo = format!("{chats}/echo");

        let said = self.ask("POST", &echo, "hello").await?;
        said.tell("a chat that points nowhere", 404, |said| said.text.contains("not bound"))?;
        let first = self
            .ask("POST", &format!("/workspaces/{workspace}/rebuild"), "")
            .await?
            .agent_of_json()?;
        let said = self.ask("PUT", &format!("{chats}/workspace"), &workspace.to_string()).await?;
        said.tell("it is pointed at a workspace", 200, |_| true)?;
        let answers = |agent: String| {
            move |said: &Said| {
                said.agent.as_ref() == Some(&agent) && said.text == format!("{agent}\nhello")
            }
        };
        let said = self.ask("POST", &echo, "hello").await?;
        said.tell("its first turn", 200, answers(first.clone()))?;
        let said = self.ask("POST", &echo, "hello").await?;
        said.tell("its second turn", 200, answers(first.clone()))?;
        let said = self.ask("GET", &chats, "").await?;
        said.tell("  └ how it found its agent", 200, |said| {
            said.text.contains("\"path\":\"Reused\"")
        })?;

        let second =
            self.ask("POST", &format!("/workspaces/{workspace}/rebuild?old=freeze"), "").await?;
        let second = second.agent_of_json()?;
        let said = self.ask("POST", &echo, "hello").await?;
        said.tell("rebuilt; the old agent is frozen", 200, answers(second.clone()))?;
        expect(first != second, "the second build has another agent")?;

        let said = self.ask("POST", &format!("/workspaces/{workspace}/stop"), "").await?;
        said.tell("the workspace is stopped", 204, |_| true)?;
        let said = self.ask("POST", &echo, "hello").await?;
        said.tell("a turn", 503, |said| said.text.contains("\"stopped\""))?;
        let third = self
            .ask("POST", &format!("/workspaces/{workspace}/start"), "")
            .await?
            .agent_of_json()?;
        let said = self.ask("POST", &echo, "hello").await?;
        said.tell("started again", 200, answers(third))
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Result<Said, BoxError> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.gateway));
        let began = Instant::now();
        let response = self.client.request(request.body(Body::from(body.to_owned()))?).await?;
        let (status, headers) = (response.status().as_u16(), response.headers());
        let agent = headers.get("x-agent").and_then(|agent| agent.to_str().ok()).map(str::to_owned);
        let text = String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?;
        Ok(Said { status, agent, text, ms: began.elapsed().as_secs_f64() * 1000.0 })
    }
}

impl Said {
    fn tell(
        &self,
        what: &str,
        status: u16,
        as_expected: impl Fn(&Self) -> bool,
    ) -> Result<(), BoxError> {
        let text = self.text.replace('\n', " ");
        println!("{what:<34} {} {:>7.1} ms  {text}", self.status, self.ms);
        expect(self.status == status && as_expected(self), what)
    }

    fn agent_of_json(&self) -> Result<String, BoxError> {
        let said: serde_json::Value = serde_json::from_str(&self.text)?;
        Ok(said["agent"].as_str().ok_or_else(|| format!("no agent: {}", self.text))?.to_owned())
    }
}

fn expect(happened: bool, what: &str) -> Result<(), BoxError> {
    if happened { Ok(()) } else { Err(format!("the story did not happen: {what}").into()) }
}
