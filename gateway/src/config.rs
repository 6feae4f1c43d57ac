//! The configuration: a TOML file, and environment variables that override it.
//!
//! Every key has a default, except `store.url` and `resolver.url`. A key that does not exist is an
//! error, in the file (with its line) and in the environment (with the name of the variable).
//!
//! The variable of a key is `GATEWAY__`, followed by its path in upper case, joined by two
//! underscores: `GATEWAY__STORE__URL` is `store.url`. A value is parsed as TOML (`true`, `5`,
//! `["a", "b"]`), and is a string if it is not TOML of the right type.

mod types;

use http::{HeaderName, uri::Authority};
use serde::Deserialize;
use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};
use toml::{Table, Value};
use tower_bound_agent::Settings;
pub use types::{AgentName, HttpUrl, Secret, SessionFrom, StoreUrl, Template};
use types::{authorities, duration, header_names, maybe_header_name};

/// The prefix of the variables that override the file.
const PREFIX: &str = "GATEWAY__";

/// The configuration of a gateway. `gateway/deploy/gateway.toml` shows every key.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// The listener for clients.
    pub server: Server,
    /// The listener for operators.
    pub admin: Admin,
    /// How a request names its session.
    pub route: Route,
    /// Where bindings are stored.
    pub store: Store,
    /// Who knows which agent serves a workspace now.
    pub resolver: Resolver,
    /// How agents are dialed.
    pub agents: Agents,
    /// Who may send requests. The default is everybody.
    pub authorize: Option<Authorize>,
    /// The settings of the layer.
    pub settings: Settings,
    /// What a shutdown waits for.
    pub shutdown: Shutdown,
    /// Where lines of the log go, and which.
    pub log: Log,
}

/// The listener for clients.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Server {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The names of this gateway. A request in absolute form must name one of them, or the address
    /// that it listens on. The first one is the gateway's name in `Via`.
    #[serde(deserialize_with = "authorities")]
    pub names: Vec<Authority>,
    /// The maximum number of connections, tunnels included. Further ones wait to be accepted.
    pub max_connections: NonZeroU32,
    /// How long a TLS handshake may take, and the head of a request. An idle connection is closed
    /// after it.
    #[serde(deserialize_with = "duration")]
    pub header_timeout: Duration,
    /// How long the body of a request may pause.
    #[serde(deserialize_with = "duration")]
    pub body_timeout: Duration,
    /// The maximum length of the body of a request, in bytes.
    pub max_body: Option<usize>,
    /// Serves HTTPS instead of HTTP.
    pub tls: Option<ServerTls>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            names: Vec::new(),
            max_connections: const { NonZeroU32::new(10_000).unwrap() },
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            max_body: None,
            tls: None,
        }
    }
}

/// The certificate of the gateway. Files are read again when they change.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ServerTls {
    /// The certificate and its chain, in PEM.
    pub certificate: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
    /// The certificates of authorities, in PEM. Clients must present a certificate of one of them.
    pub client_ca: Option<PathBuf>,
}

/// The listener for operators: `/healthz`, `/readyz`, `/metrics`, and commands.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Admin {
    /// The address to listen on. It must not be reachable for clients.
    pub listen: SocketAddr,
    /// How long the store may take to answer `/readyz`.
    #[serde(deserialize_with = "duration")]
    pub ready_timeout: Duration,
    /// The bearer token of the commands. Without it, there are no commands.
    pub token: Option<Secret>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
            ready_timeout: Duration::from_secs(1),
            token: None,
        }
    }
}

/// How a request names its session.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Route {
    /// The part of the request that is the id of the session.
    pub session: SessionFrom,
    /// The header that names the workspace to which a session without a binding is bound. Without
    /// it, only commands and other processes bind sessions.
    ///
    /// A client that may name a workspace may use it, unless `authorize` refuses.
    #[serde(deserialize_with = "maybe_header_name")]
    pub workspace_header: Option<HeaderName>,
}

/// Where bindings are stored.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Store {
    /// `sqlite:FILE`, `postgres://…` or `mysql://…`.
    pub url: Option<StoreUrl>,
    /// The name of the table.
    pub table: Option<String>,
    /// Creates missing tables. With `false`, they must exist.
    pub set_up: bool,
    /// The maximum number of connections to a server.
    pub max_connections: NonZeroU32,
    /// Tells the other gateways over a PostgreSQL what was written, by `NOTIFY`.
    pub hints: bool,
    /// Is set if there is a PgBouncer in transaction mode. Turns `hints` off.
    pub transaction_pooler: bool,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: None,
            table: None,
            set_up: true,
            max_connections: const { NonZeroU32::new(10).unwrap() },
            hints: true,
            transaction_pooler: false,
        }
    }
}

/// Who knows which agent serves a workspace now; see [`HttpResolver`](crate::HttpResolver).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Resolver {
    /// The URL that answers. `{workspace}` in its path or query stands for the workspace's id.
    pub url: Option<Template>,
    /// A bearer token for it.
    pub token: Option<Secret>,
    /// The certificates of authorities, in PEM, instead of those of the system.
    pub ca: Option<PathBuf>,
}

/// How agents are dialed.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Agents {
    /// The version of HTTP that agents speak.
    pub protocol: Protocol,
    /// Dials agents with TLS.
    pub tls: Option<AgentsTls>,
    /// The maximum number of connections to one agent.
    pub max_connections: NonZeroUsize,
    /// How long an agent may neither read from a request nor begin to answer it.
    #[serde(deserialize_with = "duration")]
    pub response_header_timeout: Duration,
    /// The same, until the resolver is asked whether the session has another agent.
    #[serde(deserialize_with = "duration")]
    pub question_after: Duration,
    /// How long a connection stays open without a request. Less than the agents' own timeout.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// How long the machine of an agent may be unreachable before its connections fail.
    #[serde(deserialize_with = "duration")]
    pub unreachable_after: Duration,
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            protocol: Protocol::Http1,
            tls: None,
            max_connections: const { NonZeroUsize::new(1024).unwrap() },
            response_header_timeout: Duration::from_secs(60),
            question_after: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(60),
            unreachable_after: Duration::from_secs(20),
        }
    }
}

/// The version of HTTP that agents speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge, or by ALPN with TLS.
    Http2,
}

/// TLS to agents. Files are read again when they change.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AgentsTls {
    /// The certificates of authorities, in PEM. Agents must present a certificate of one of them.
    pub ca: PathBuf,
    /// The DNS name in the certificate of an agent. `{agent}` stands for its id: an agent that
    /// presents the certificate of another one is refused.
    #[serde(default)]
    pub name: AgentName,
    /// The certificate of the gateway for agents, in PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub key: Option<PathBuf>,
}

/// Who may send requests: a service that is asked by HTTP, or the owners of tokens. One of `url`
/// and `tokens` must be set.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Authorize {
    /// The URL that decides; see [`ForwardAuth`](crate::authorize::ForwardAuth).
    pub url: Option<HttpUrl>,
    /// The certificates of authorities, in PEM, instead of those of the system.
    pub ca: Option<PathBuf>,
    /// How long the URL may take.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// Headers of the decision that are sent to the agent.
    #[serde(deserialize_with = "header_names")]
    pub headers: Vec<HeaderName>,
    /// Bearer tokens; each may use every session.
    pub tokens: Vec<Secret>,
    /// Sends the client's `Authorization` to the agent as well. An agent that is not trusted could
    /// act as the client.
    pub forward_credentials: bool,
    /// Cookies of the gateway and of its authorization service, which agents do not receive.
    pub own_cookies: Vec<String>,
}

impl Default for Authorize {
    fn default() -> Self {
        Self {
            url: None,
            ca: None,
            timeout: Duration::from_secs(5),
            headers: Vec::new(),
            tokens: Vec::new(),
            forward_credentials: false,
            own_cookies: Vec::new(),
        }
    }
}

/// What a shutdown waits for.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Shutdown {
    /// How long connections are still accepted while `/readyz` says no.
    #[serde(deserialize_with = "duration")]
    pub delay: Duration,
    /// How long requests and tunnels may go on afterwards.
    #[serde(deserialize_with = "duration")]
    pub grace: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { delay: Duration::ZERO, grace: Duration::from_secs(30) }
    }
}

/// Which lines of the log are written to standard error, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Log {
    /// A level, or levels by target: `warn,tower_bound_agent=debug`.
    pub filter: String,
    /// Text or JSON.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// The form of a line of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object on each line.
    Json,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of a wrong type.
    #[error("{}:{line}: {message}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The line of the key or the value; 1 for the first one.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A variable names an unknown key or has a value of a wrong type.
    #[error("environment variable {variable}: {message}")]
    Variable {
        /// The name of the variable.
        variable: String,
        /// What is wrong.
        message: String,
    },
    /// A key is missing, or contradicts another one.
    #[error("{key}: {why}")]
    Key {
        /// The path of the key.
        key: &'static str,
        /// What is wrong.
        why: &'static str,
    },
}

impl Config {
    /// Reads the file, if there is one, and applies the environment variables.
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`], which names the place of the mistake.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut table = match file {
            Some(file) => read(file)?,
            None => Table::new(),
        };
        for (variable, value) in variables {
            if let Some(path) = variable.strip_prefix(PREFIX) {
                let path = path.to_ascii_lowercase();
                set(&mut table, &path, &value)
                    .map_err(|message| ConfigError::Variable { variable, message })?;
            }
        }
        // The file and each variable were checked alone, so this fails only if they contradict.
        let config = Self::deserialize(Value::Table(table)).map_err(|error| {
            let (variable, message) = (format!("{PREFIX}…"), error.message().to_owned());
            ConfigError::Variable { variable, message }
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, why| Err(ConfigError::Key { key, why });
        if self.store.url.is_none() {
            return refuse("store.url", "is missing");
        }
        if self.resolver.url.is_none() {
            return refuse("resolver.url", "is missing");
        }
        if let Some(tls) = &self.agents.tls
            && tls.certificate.is_some() != tls.key.is_some()
        {
            return refuse("agents.tls", "certificate and key are set together");
        }
        if let Some(authorize) = &self.authorize
            && authorize.url.is_some() != authorize.tokens.is_empty()
        {
            return refuse("authorize", "one of url and tokens must be set");
        }
        if self.server.header_timeout.is_zero() || self.server.body_timeout.is_zero() {
            return refuse("server", "a timeout must not be zero");
        }
        if crate::log::filter(&self.log.filter).is_none() {
            return refuse("log.filter", "is no list of levels");
        }
        Ok(())
    }
}

fn read(file: &Path) -> Result<Table, ConfigError> {
    let text = fs::read_to_string(file)
        .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    let wrong = |error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        ConfigError::File { file: file.to_owned(), line, message: error.message().to_owned() }
    };
    let _: Config = toml::from_str(&text).map_err(wrong)?;
    text.parse().map_err(wrong)
}

/// Sets the key of a variable. The text is a TOML value, or else a string.
fn set(table: &mut Table, path: &str, text: &str) -> Result<(), String> {
    let parsed = format!("v = {text}").parse::<Table>().ok().and_then(|mut v| v.remove("v"));
    let string = Value::String(text.to_owned());
    let mut wrong = String::new();
    for value in parsed.into_iter().chain([string]) {
        // Alone first, so that the error is this variable's.
        let mut alone = Table::new();
        insert(&mut alone, path, value.clone())?;
        match Config::deserialize(Value::Table(alone)) {
            Ok(_) => return insert(table, path, value),
            Err(error) => wrong = error.message().to_owned(),
        }
    }
    Err(wrong)
}

fn insert(table: &mut Table, path: &str, value: Value) -> Result<(), String> {
    let Some((first, rest)) = path.split_once("__") else {
        table.insert(path.to_owned(), value);
        return Ok(());
    };
    let entry = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
    match entry {
        Value::Table(table) => insert(table, rest, value),
        _ => Err(format!("{first} is no table")),
    }
}
