//! The builder: every setting, its default, and its bounds.

use crate::{
    BoundAgentLayer, BoxError, BuildError, Observer, Redial, RepairMode, Resolution,
    ResolveWorkspace,
    cache::{RowCache, usage::Usage},
    gate::{Gate, Gates},
    hints::{ErasedHints, Hints},
    resolver::{Resolver, erase},
    settings::Settings,
    single_flight::Flights,
    state::Shared,
    store::{BindingStore, ErasedStore},
    tasks::Tasks,
    workspace::Workspaces,
};
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};
use tokio::runtime::Handle;
use tower_service::Service;

/// A builder of a [`BoundAgentLayer`]. [`BoundAgentLayer::builder`] creates it.
///
/// The defaults fit most applications, except for the [`validation_delay`](Self::validation_delay),
/// which depends on how long a healthy dial takes.
///
/// ```
/// use std::time::Duration;
/// use tower_bound_agent::{BoundAgentLayer, BuildError, Event, store::MemoryStore};
/// # use tower_bound_agent::{BoxError, Resolution, ResolveWorkspace};
///
/// # fn layer() -> Result<BoundAgentLayer, BuildError> {
/// # let resolver = tower::service_fn(async |_: ResolveWorkspace| Ok::<_, BoxError>(Resolution::Gone));
/// BoundAgentLayer::builder(MemoryStore::new(), resolver)
///     .validation_delay(Duration::from_millis(400))
///     .dial_timeout(Duration::from_secs(10))
///     .observer(|event: &Event<'_>| println!("{event:?}"))
///     .build()
/// # }
/// # assert!(layer().is_ok());
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct BoundAgentBuilder {
    store: Arc<dyn ErasedStore>,
    resolver: Resolver,
    settings: Settings,
    observer: Option<Box<dyn Observer>>,
    hints: Option<Box<dyn ErasedHints>>,
    runtime: Option<Handle>,
}

impl BoundAgentBuilder {
    pub(crate) fn new<St, R>(store: St, resolver: R) -> Self
    where
        St: BindingStore,
        R: Service<ResolveWorkspace, Response = Resolution> + Clone + Send + 'static,
        R::Error: Into<BoxError>,
        R::Future: Send,
    {
        let (store, resolver) = (Arc::new(store), erase(resolver));
        Self {
            store,
            resolver,
            settings: Settings::default(),
            observer: None,
            hints: None,
            runtime: None,
        }
    }

    /// Replaces all settings that are plain values, such as those that were read from a
    /// configuration file. Methods that are called after this one change single settings.
    ///
    /// ```
    /// # #[cfg(feature = "serde")]
    /// # fn example(builder: tower_bound_agent::BoundAgentBuilder) -> Result<(), tower_bound_agent::BoxError> {
    /// let settings = r#"{ "validation_delay": "400ms", "refresh_interval": "never" }"#;
    /// let layer = builder.settings(serde_json::from_str(settings)?).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Sets how long a dial may be pending before the binding is validated. Default: 250 ms. Zero
    /// validates every dial that is not ready at its first poll.
    ///
    /// Choose a delay longer than a healthy dial takes, because every slower dial costs a question
    /// to the resolver.
    pub fn validation_delay(mut self, delay: Duration) -> Self {
        self.settings.validation_delay = delay;
        self
    }

    /// Sets how long after a validation that confirmed the dialed agent the resolver is asked
    /// again, if the dial still hangs. Default: 2 s. Must not be zero.
    ///
    /// The interval doubles with each question, up to
    /// [`revalidate_at_most`](Self::revalidate_at_most).
    pub fn revalidate_every(mut self, interval: Duration) -> Self {
        self.settings.revalidate_every = interval;
        self
    }

    /// Sets the longest interval between two questions about a dial that hangs. Default: 15 s. Must
    /// not be zero.
    pub fn revalidate_at_most(mut self, interval: Duration) -> Self {
        self.settings.revalidate_at_most = interval;
        self
    }

    /// Sets the time limit of a whole call: its look-ups, waits for readiness, dials and restarts.
    /// Default: 30 s. Must not be zero.
    ///
    /// The limit must be longer than the [`validation_delay`](Self::validation_delay) and the
    /// [`resolve_timeout`](Self::resolve_timeout) together, and longer than the
    /// [`store_timeout`](Self::store_timeout). To lower it, lower these as well.
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.settings.dial_timeout = timeout;
        self
    }

    /// Sets how many calls of this process may have a pending dial to one target at the same time.
    /// Default: 64. Must not be zero.
    ///
    /// After a rebuild, all sessions of a workspace dial the new agent. If there are more
    /// connections than its accept queue holds, the surplus is dropped, or seems to be established
    /// and is never answered. Therefore, later calls wait in a queue, first in, first out, before
    /// they call the dial service. A queued call holds no readiness of the dial service, starts no
    /// validation delay and leaves no doubt; the [`dial_timeout`](Self::dial_timeout) bounds its
    /// wait. A call that leaves the queue dials the newest target that is known by then. A dial
    /// that is ready at its first poll bypasses the queue.
    ///
    /// Threads that start dials at the same instant can exceed the limit by one dial each.
    pub fn max_pending_dials(mut self, dials: usize) -> Self {
        self.settings.max_pending_dials = dials;
        self
    }

    /// Sets the time limit of one question to the resolver. Default: 5 s. Must not be zero.
    pub fn resolve_timeout(mut self, timeout: Duration) -> Self {
        self.settings.resolve_timeout = timeout;
        self
    }

    /// Sets the time limit of one statement of the store. Default: 5 s. Must not be zero.
    ///
    /// Set the acquire timeout of the pool below this limit, so that a statement that was never
    /// sent can be told from one without an answer. Set the lock timeout of the store below it too,
    /// so that the server ends a statement that the layer no longer waits for.
    pub fn store_timeout(mut self, timeout: Duration) -> Self {
        self.settings.store_timeout = timeout;
        self
    }

    /// Sets how many bindings are kept in memory. Default: 100,000, which take about 50 MB. Must
    /// not be zero.
    pub fn cache_capacity(mut self, bindings: u64) -> Self {
        self.settings.cache_capacity = bindings;
        self
    }

    /// Sets how long an unused binding is kept in memory. Default: one hour. Must be longer than
    /// the [`store_timeout`](Self::store_timeout).
    ///
    /// This setting bounds memory only. It does not affect how fresh a binding is.
    pub fn cache_time_to_idle(mut self, idle: Duration) -> Self {
        self.settings.cache_time_to_idle = idle;
        self
    }

    /// Sets what a call does when its dial has failed and the resolver names the same agent again,
    /// or does not answer. Default: [`Redial::Once`].
    pub fn redial(mut self, redial: Redial) -> Self {
        self.settings.redial = redial;
        self
    }

    /// Sets when a repair is written. Default: [`RepairMode::Background`].
    pub fn repair(mut self, mode: RepairMode) -> Self {
        self.settings.repair = mode;
        self
    }

    /// Sets whether a session whose record cannot be read or created is served if the caller names
    /// its workspace ([`DialSession::in_workspace`](crate::DialSession::in_workspace)). Default:
    /// `false`, and the call fails with [`ErrorKind::Store`](crate::ErrorKind::Store).
    ///
    /// A session that is served in this way may have been retargeted to another workspace.
    pub fn serve_without_store(mut self, serve: bool) -> Self {
        self.settings.serve_without_store = serve;
        self
    }

    /// Sets how often cached rows are read again in the background. `None`: never. Default: 30 s if
    /// other processes may write the store ([`BindingStore::shared`]), and never otherwise; an
    /// interval that is set here applies to both. Must not be zero.
    ///
    /// If another process retargets a session whose old agent still answers, this process would
    /// dial the old agent for ever. The refresh bounds that time, even if all
    /// [`hints`](Self::hints) are lost.
    ///
    /// A check reads the rows that were used since they were last read, and the rows whose handles
    /// wait in [`superseded`](crate::BoundHandle::superseded), in statements of 2,000 rows, one
    /// after the other. Then it reads a sixteenth of all other rows; a cache of up to 2,000 rows is
    /// read whole. So a command of another process is noticed within one interval for a session in
    /// use, and within sixteen intervals (8 minutes) for any other session. With a million cached
    /// rows of which 10,000 are in use, a check takes 37 statements.
    ///
    /// While checks fail, calls continue as before, and an observer receives
    /// [`Event::RefreshFailed`](crate::Event::RefreshFailed). The next check begins with the rows
    /// that were not read. A row that cannot be decoded does not keep other rows from being read.
    pub fn refresh_interval(mut self, every: impl Into<Option<Duration>>) -> Self {
        self.settings.refresh_interval = every.into().into();
        self
    }

    /// Sets the bus on which the processes over one store tell each other what they have written;
    /// see [`hints`](crate::hints). Default: none.
    ///
    /// Without hints, this process notices a command or a rebuild of another process when a dial is
    /// slow or fails, or by the [`refresh_interval`](Self::refresh_interval).
    pub fn hints(mut self, hints: impl Hints) -> Self {
        self.hints = Some(Box::new(hints));
        self
    }

    /// Sets how often the use of sessions is recorded in the store, for
    /// [`Bindings::warm`](crate::Bindings::warm) and
    /// [`Bindings::purge_idle`](crate::Bindings::purge_idle). `None`: never. Default: `None`. Must
    /// not be zero.
    ///
    /// At each interval, one background statement for each 2,000 sessions records the sessions that
    /// were used since the last interval or are [in use](crate::InUse) now. An observer receives
    /// [`Event::InUse`](crate::Event::InUse) for each session that holds a connection at that time.
    ///
    /// Set it in every process over the table. Otherwise, a session that is used only in a process
    /// that does not record looks idle.
    pub fn usage_interval(mut self, every: impl Into<Option<Duration>>) -> Self {
        self.settings.usage_interval = every.into();
        self
    }

    /// Sets how many connections of the application's pool the background statements share:
    /// repairs, the [`refresh_interval`](Self::refresh_interval), the record of use, and purges.
    /// Default: 2. Must not be zero.
    ///
    /// At most this many background statements are sent at once, and the others wait. A statement
    /// that a call or a command waits for is always sent at once. After a rebuild of many
    /// workspaces, repairs take as long as these connections allow; until then, calls use what this
    /// process knows in memory.
    pub fn background_connections(mut self, connections: usize) -> Self {
        self.settings.background_connections = connections;
        self
    }

    /// Sets the runtime of the layer's tasks: reads and validations that calls share, commands,
    /// repairs, and all background work. Default: the runtime of the call that begins the task.
    ///
    /// Set it if calls are made on runtimes that are not driven all the time, such as one runtime
    /// for each `block_on`. Without it, work on a runtime that is not driven is noticed after a
    /// timeout and begun again on another one. The runtime must have its timer enabled and must
    /// outlive the layer: after its shutdown, nothing can be read or written.
    ///
    /// ```
    /// # use tower_bound_agent::*;
    /// # let resolver = tower::service_fn(async |_: ResolveWorkspace| Ok::<_, BoxError>(Resolution::Gone));
    /// let background = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    /// let layer = BoundAgentLayer::builder(store::MemoryStore::new(), resolver)
    ///     .runtime(background.handle().clone())
    ///     .build()?;
    /// # Ok::<_, BoxError>(())
    /// ```
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Sets the [`Observer`], which receives every event. Default: none. A second call replaces the
    /// observer.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Checks the settings against each other and creates the layer. It uses neither the store nor
    /// the resolver.
    ///
    /// # Errors
    ///
    /// Returns a [`BuildError`] that names the two settings that contradict each other, or the
    /// setting that is invalid by itself. For example, the [`dial_timeout`](Self::dial_timeout)
    /// must leave time for the validation delay and a slow answer of the resolver.
    ///
    /// ```
    /// # use tower_bound_agent::*;
    /// # use std::time::Duration;
    /// # let resolver = tower::service_fn(async |_: ResolveWorkspace| Ok::<_, BoxError>(Resolution::Gone));
    /// let error = BoundAgentLayer::builder(store::MemoryStore::new(), resolver)
    ///     .validation_delay(Duration::from_secs(60))
    ///     .build()
    ///     .unwrap_err();
    /// assert_eq!(error.settings(), ["validation_delay", "dial_timeout"]);
    /// ```
    pub fn build(self) -> Result<BoundAgentLayer, BuildError> {
        self.settings.validate()?;
        Ok(BoundAgentLayer::new(Shared {
            rows: RowCache::new(&self.settings),
            usage: Usage::new(&self.settings),
            workspaces: Workspaces::new(&self.settings),
            loads: Flights::new(self.settings.store_timeout),
            validations: Flights::new(self.settings.resolve_timeout),
            background: Gate::new(
                self.settings.background_connections,
                self.settings.store_timeout,
            ),
            one_of_a_kind: Gates::new(1, self.settings.store_timeout),
            overdue: Default::default(),
            settings: self.settings,
            _used: self.store.used_by_layer(),
            store: self.store,
            resolver: self.resolver,
            observer: self.observer,
            #[cfg(feature = "tracing")]
            log: crate::log::Log::default(),
            #[cfg(feature = "metrics")]
            metrics: crate::metrics::Metrics::new(),
            repairs: Default::default(),
            tasks: Tasks::on(self.runtime),
            closed: Default::default(),
            hints: self.hints,
            // The standard library has no other source of randomness than the keys of its hasher.
            origin: RandomState::new().hash_one(0),
            following: Default::default(),
            ended: Default::default(),
        }))
    }
}

impl fmt::Debug for BoundAgentBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundAgentBuilder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
