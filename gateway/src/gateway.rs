//! A gateway from its start to its end.

use crate::{
    HttpResolver,
    admin::{self, Admin},
    agents::Dialer,
    authorize::{self, Authorize},
    config::{Config, Protocol, Shutdown},
    metrics::describe,
    proxy::Proxy,
    server::Clients,
    store::{self, OpenError},
    tls::{self, Reload, TlsError, reload_all},
};
use futures_util::FutureExt;
use metrics_exporter_prometheus::PrometheusHandle;
use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpListener,
    select,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Layer, service_fn};
use tower_bound_agent::{Bindings, BuildError, ResolveWorkspace, http::AgentClient};

/// How often the files of certificates are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(5);

/// How often the histograms are compacted between two scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// How long repairs may take at the end.
const CLOSE: Duration = Duration::from_secs(5);

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// `store.url` or `resolver.url` is not set.
    #[error("the configuration has no {0}")]
    Missing(&'static str),
    /// A file of certificates cannot be used.
    #[error("TLS")]
    Tls(#[from] TlsError),
    /// The store cannot be opened.
    #[error("the store")]
    Store(#[from] OpenError),
    /// The settings of the layer contradict each other.
    #[error("the settings")]
    Settings(#[from] BuildError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
}

/// A running gateway. Dropping it ends nothing: [`shut_down`](Self::shut_down) does.
pub struct Gateway {
    address: SocketAddr,
    admin_address: SocketAddr,
    admin: Arc<Admin>,
    certificates: Vec<Arc<dyn Reload>>,
    shutdown: Shutdown,
    ending: CancellationToken,
    cut: CancellationToken,
    /// Connections and tunnels of clients.
    tasks: TaskTracker,
    accepting: JoinHandle<()>,
    /// The listener for operators, and what happens at intervals.
    serving: [JoinHandle<()>; 2],
}

/// Loads every file that the configuration names, and connects to nothing.
///
/// # Errors
///
/// Returns a [`TlsError`] if a file cannot be used.
pub fn check_files(config: &Config) -> Result<(), TlsError> {
    if let Some(tls) = &config.server.tls {
        tls::server(tls)?;
    }
    Dialer::new(&config.agents)?;
    if let Some(url) = &config.resolver.url {
        HttpResolver::new(url.clone(), &config.resolver)?;
    }
    authorize::configured(config.authorize.as_ref())?;
    Ok(())
}

impl Gateway {
    /// Opens the store, listens, and serves until it is [shut down](Self::shut_down). `metrics` is
    /// the handle of the installed [`recorder`](crate::recorder). Without `authorize`, that of the
    /// configuration decides.
    ///
    /// # Errors
    ///
    /// Returns a [`StartError`]. Nothing is served then.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the store may have its tables, and nothing is served.
    pub async fn start(
        config: Config,
        metrics: PrometheusHandle,
        authorize: Option<Box<dyn Authorize>>,
    ) -> Result<Self, StartError> {
        describe();
        let url = config.resolver.url.clone().ok_or(StartError::Missing("resolver.url"))?;
        let resolver = HttpResolver::new(url, &config.resolver)?;
        let resolver = service_fn(move |ask: ResolveWorkspace| {
            let resolver = resolver.clone();
            async move { resolver.resolve(ask).await }.boxed()
        });
        let tls = config.server.tls.as_ref().map(tls::server).transpose()?.map(Arc::new);
        let dialer = Dialer::new(&config.agents)?;
        let authorize = match authorize {
            Some(authorize) => authorize,
            None => authorize::configured(config.authorize.as_ref())?,
        };
        let mut certificates: Vec<Arc<dyn Reload>> = Vec::new();
        certificates.extend(tls.clone().map(|tls| tls as Arc<dyn Reload>));
        certificates.extend(dialer.certificates());

        let url = config.store.url.as_ref().ok_or(StartError::Missing("store.url"))?;
        let (builder, store) = store::open(&config.store, url, resolver).await?;
        let layer = builder.settings(config.settings).build()?;
        let bindings = layer.bindings();

        let (listener, address) = listen(config.server.listen).await?;
        let (operators, admin_address) = listen(config.admin.listen).await?;
        let agents = &config.agents;
        let client = AgentClient::builder()
            .max_connections(agents.max_connections)
            .response_header_timeout(agents.response_header_timeout)
            .question_after(agents.question_after)
            .idle_timeout(agents.idle_timeout);
        let client = match agents.protocol {
            Protocol::Http1 => client.http1(),
            Protocol::Http2 => client.http2(),
        };
        let client = client.build(layer.layer(dialer));
        let pool = client.clone();
        let admin = Arc::new(Admin {
            bindings,
            store,
            metrics: metrics.clone(),
            record_pool: Box::new(move || pool.stats().record()),
            ready_timeout: config.admin.ready_timeout,
            token: config.admin.token.clone(),
            is_ending: AtomicBool::new(false),
        });

        let mut names = config.server.names.clone();
        names.extend(address.to_string().parse());
        let (ending, cut) = (CancellationToken::new(), CancellationToken::new());
        let tasks = TaskTracker::new();
        let proxy = Proxy {
            client,
            hop: Proxy::hop(&config),
            authorize,
            session: config.route.session.clone(),
            workspace: config.route.workspace_header.clone(),
            names,
            max_body: config.server.max_body,
            body_timeout: config.server.body_timeout,
            tasks: tasks.clone(),
            cut: cut.clone(),
        };
        let clients = Arc::new(Clients {
            proxy,
            tls,
            header_timeout: config.server.header_timeout,
            permits: Clients::permits(&config.server),
            ending: ending.clone(),
        });
        let accepting = tokio::spawn(clients.accept(listener));
        let router = admin::router(Arc::clone(&admin));
        // It ends with the process: whoever scrapes sees the last numbers.
        let scraped = tokio::spawn(async move { drop(axum::serve(operators, router).await) });
        let at_intervals = tokio::spawn(at_intervals(certificates.clone(), metrics));
        tracing::info!(%address, %admin_address, store = url.as_str(), "serving");
        Ok(Self {
            address,
            admin_address,
            admin,
            certificates,
            shutdown: config.shutdown,
            ending,
            cut,
            tasks,
            accepting,
            serving: [scraped, at_intervals],
        })
    }

    /// Returns the address for clients.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address for operators.
    #[must_use]
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Returns the handle for commands and queries.
    #[must_use]
    pub fn bindings(&self) -> Bindings {
        self.admin.bindings.clone()
    }

    /// Loads the certificates again, also if their files have not changed. Certificates that cannot
    /// be used are a warning in the log, and the old ones stay.
    pub fn reload(&self) {
        reload_all(&self.certificates, true);
    }

    /// Shuts down gracefully: `/readyz` says no; after `shutdown.delay` no connection is accepted;
    /// requests and tunnels may go on for `shutdown.grace`, or until `hurry` resolves; then repairs
    /// are written.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the gateway goes on with what it has reached. Call it to the end.
    pub async fn shut_down(self, hurry: impl Future<Output = ()>) {
        self.admin.is_ending.store(true, Ordering::Release);
        let open = self.tasks.len();
        tracing::info!(open, "shutting down");
        let drain = async {
            sleep(self.shutdown.delay).await;
            self.ending.cancel();
            // Its end closes the listener.
            let _ = self.accepting.await;
            self.tasks.close();
            timeout(self.shutdown.grace, self.tasks.wait()).await.is_ok()
        };
        let is_drained = select! { is_drained = drain => is_drained, () = hurry => false };
        let cut = self.tasks.len();
        if !is_drained {
            tracing::warn!(cut, "connections are cut");
        }
        self.ending.cancel();
        self.cut.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let unwritten = self.admin.bindings.close(CLOSE).await;
        for task in self.serving {
            task.abort();
        }
        tracing::info!(unwritten, "ended");
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("address", &self.address)
            .field("admin_address", &self.admin_address)
            .finish_non_exhaustive()
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let wrong = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(wrong)?;
    let address = listener.local_addr().map_err(wrong)?;
    Ok((listener, address))
}

async fn at_intervals(certificates: Vec<Arc<dyn Reload>>, metrics: PrometheusHandle) {
    let (mut look, mut upkeep) = (interval(LOOK_AT_FILES), interval(UPKEEP));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            _ = look.tick() => reload_all(&certificates, false),
            _ = upkeep.tick() => metrics.run_upkeep(),
        }
    }
}
