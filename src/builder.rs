//! The builder: every setting, its default, and what it bounds.

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

/// Collects settings; see [`BoundAgentLayer::builder`].
///
/// Every setting has a default that is meant to be left alone, but for the
/// [`validation_delay`](Self::validation_delay), which depends on how long a healthy dial takes.
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
    checks_in_any_case: bool,
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
            checks_in_any_case: false,
            observer: None,
            hints: None,
            runtime: None,
        }
    }

    /// How long a dial may be pending before the binding is questioned. Default 250 ms.
    ///
    /// Choose it above what a healthy dial takes: until it passes, nobody is asked. Zero validates
    /// every dial that is not ready at once.
    pub fn validation_delay(mut self, delay: Duration) -> Self {
        self.settings.validation_delay = delay;
        self
    }

    /// How long after a validation that named the dialed agent the resolver is asked again, if the
    /// dial still hangs; doubles up to [`revalidate_at_most`](Self::revalidate_at_most). Default 2
    /// s.
    pub fn revalidate_every(mut self, interval: Duration) -> Self {
        self.settings.revalidate_every = interval;
        self
    }

    /// The longest such interval. Default 15 s.
    pub fn revalidate_at_most(mut self, interval: Duration) -> Self {
        self.settings.revalidate_at_most = interval;
        self
    }

    /// The bound of a whole call: look-ups, readiness, all its dials and restarts. Default 30 s.
    ///
    /// Must be longer than the [`validation_delay`](Self::validation_delay) and the
    /// [`resolve_timeout`](Self::resolve_timeout) together, and than the
    /// [`store_timeout`](Self::store_timeout): for less patience lower these as well.
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.settings.dial_timeout = timeout;
        self
    }

    /// How many calls of this process may have a pending dial to one target at the same time.
    /// Default 64.
    ///
    /// After a rebuild, all sessions of a workspace dial the new agent. More connections than its
    /// accept queue holds are dropped, or seem to be established and are never answered. Therefore,
    /// later calls wait in a queue, first in, first out, before they call the dial service. A
    /// queued call holds no readiness of the dial service, starts no validation delay and leaves no
    /// doubt; the [`dial_timeout`](Self::dial_timeout) bounds it. A call that leaves the queue
    /// dials the newest target that is known by then. A dial that is ready at its first poll needs
    /// no place.
    ///
    /// Threads that start dials at the same instant can exceed the limit by one dial each. Must not
    /// be zero.
    pub fn max_pending_dials(mut self, dials: usize) -> Self {
        self.settings.max_pending_dials = dials;
        self
    }

    /// The bound of one question to the resolver. Default 5 s.
    pub fn resolve_timeout(mut self, timeout: Duration) -> Self {
        self.settings.resolve_timeout = timeout;
        self
    }

    /// The bound of one statement of the store. Default 5 s. Set the pool's acquire timeout below
    /// it, so that a statement that was never sent is told from one without an answer; and the lock
    /// timeout of the store, so that the server ends what is not waited for any more.
    pub fn store_timeout(mut self, timeout: Duration) -> Self {
        self.settings.store_timeout = timeout;
        self
    }

    /// How many bindings are kept in memory. Default 100,000 (some 50 MB).
    pub fn cache_capacity(mut self, bindings: u64) -> Self {
        self.settings.cache_capacity = bindings;
        self
    }

    /// How long a binding that is not used is kept in memory. Default one hour. Bounds memory only:
    /// it has nothing to do with how fresh a binding is. Must be longer than the
    /// [`store_timeout`](Self::store_timeout).
    pub fn cache_time_to_idle(mut self, idle: Duration) -> Self {
        self.settings.cache_time_to_idle = idle;
        self
    }

    /// What to do when a dial has failed and the resolver names the same agent, or cannot say.
    /// Default [`Redial::Once`].
    pub fn redial(mut self, redial: Redial) -> Self {
        self.settings.redial = redial;
        self
    }

    /// When a repair is written. Default [`RepairMode::Background`].
    pub fn repair(mut self, mode: RepairMode) -> Self {
        self.settings.repair = mode;
        self
    }

    /// Whether a session whose row cannot be read or created is served all the same, if the caller
    /// names its workspace ([`DialSession::in_workspace`](crate::DialSession::in_workspace)).
    /// Default `false`: a typed error.
    ///
    /// Such a call cannot know that the session points at another workspace by now.
    pub fn serve_without_store(mut self, serve: bool) -> Self {
        self.settings.serve_without_store = serve;
        self
    }

    /// How often cached rows are read again in the background; `None` for never. Default 30 s, and
    /// never while nobody else writes the store ([`BindingStore::shared`]).
    ///
    /// After another process has pointed a session elsewhere, an old agent that still answers would
    /// be dialed for ever; this is what bounds that, whatever became of the [`hints`](Self::hints).
    ///
    /// A check reads the rows that were used since they were read last, and those whose handles
    /// wait to be [`superseded`](crate::BoundHandle::superseded), in statements of 2,000 rows, one
    /// after the other; then a sixteenth of all others (a cache of up to 2,000 rows is read whole).
    /// So an order of another process is noticed within one interval for a session in use, and
    /// within sixteen (8 minutes) for one that is not. With a million cached rows of which 10,000
    /// are in use that is 37 statements each 30 s.
    ///
    /// While a check fails, calls go on as before, an observer receives
    /// [`Event::RefreshFailed`](crate::Event), and the rows are the first ones of the next check. A
    /// row that cannot be decoded hides no other one.
    pub fn refresh_interval(mut self, every: impl Into<Option<Duration>>) -> Self {
        self.settings.refresh_interval = every.into();
        self.checks_in_any_case = true;
        self
    }

    /// How this process and the others over the same store tell each other what they have written;
    /// see [`hints`](crate::hints). Default: not at all, so that an order or a rebuild is noticed
    /// when a dial hesitates or by the [`refresh_interval`](Self::refresh_interval).
    pub fn hints(mut self, hints: impl Hints) -> Self {
        self.hints = Some(Box::new(hints));
        self
    }

    /// How often it is written down which sessions were used since the last time or are [in
    /// use](crate::InUse) now, for [`Bindings::warm`](crate::Bindings::warm) and
    /// [`Bindings::purge_idle`](crate::Bindings::purge_idle); `None`, the default, for never. One
    /// statement for each 2,000 sessions, in the background. An observer receives
    /// [`Event::InUse`](crate::Event) for each session that holds a connection then.
    ///
    /// Every process that works over the table must record, or what is used in one of them looks
    /// idle.
    pub fn usage_interval(mut self, every: impl Into<Option<Duration>>) -> Self {
        self.settings.usage_interval = every.into();
        self
    }

    /// How many connections of the application's pool the statements share that no call waits for:
    /// repairs, the [`refresh_interval`](Self::refresh_interval), the record of use, purges.
    /// Default 2, at least 1.
    ///
    /// So many of them are sent at once; the others wait. What a call or an order waits for is sent
    /// at once, however many of them there are. After a rebuild of many workspaces their rows are
    /// written as fast as so many connections allow; until then the calls go by what is known in
    /// memory.
    pub fn background_connections(mut self, connections: usize) -> Self {
        self.settings.background_connections = connections;
        self
    }

    /// Where the tasks of the layer run: what calls share (reads, validations), orders, repairs,
    /// and whatever goes on in the background. Default: on the runtime of the call that begins it.
    ///
    /// Name one if calls are made on runtimes that are not driven all the time, such as one for
    /// each `block_on`. What runs on a runtime that nobody drives is noticed after a timeout, and
    /// begun anew elsewhere. The runtime must have its timer enabled and outlive the layer: if it
    /// was shut down, nothing can be read or written any more.
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

    /// Is told of every event; see [`Observer`].
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Checks the settings against each other and makes the layer. Touches neither store nor
    /// resolver.
    ///
    /// # Errors
    ///
    /// A [`BuildError`] names the two settings that contradict each other: the validation delay and
    /// one slow answer of the resolver must fit into the dial timeout, a slow statement of the
    /// store too, and so on.
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
            checks_in_any_case: self.checks_in_any_case,
            _used: self.store.used_by_layer(),
            store: self.store,
            resolver: self.resolver,
            observer: self.observer,
            absent: Default::default(),
            repairs: Default::default(),
            tasks: Tasks::on(self.runtime),
            closed: Default::default(),
            hints: self.hints,
            // The hasher's keys are the randomness that std has.
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
