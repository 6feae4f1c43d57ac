//! The values that a builder collects, and the checks against contradictions.

use std::time::Duration;

#[cfg(feature = "serde")]
pub(crate) mod text;

/// The action when a dial has failed and the resolver names the same agent again, or does not
/// answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Redial {
    /// Dials the agent once more.
    #[default]
    Once,
    /// Fails the call with the dialer's error.
    Never,
}

/// The time at which a repair is written, relative to the connection that made it necessary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum RepairMode {
    /// Writes the repair in a task of its own. The connection does not wait for the store.
    #[default]
    Background,
    /// Returns the connection when the first attempt to write has ended, whether or not it
    /// succeeded.
    BeforeReturn,
}

/// How often cached rows are read again in the background; see
/// [`BoundAgentBuilder::refresh_interval`](crate::BoundAgentBuilder::refresh_interval).
///
/// With the feature `serde`, it is the text `automatic`, `never`, or a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RefreshInterval {
    /// Every 30 s if other processes may write the store
    /// ([`BindingStore::shared`](crate::store::BindingStore::shared)), and never otherwise.
    #[default]
    Automatic,
    /// At this interval, whatever the store is.
    Every(Duration),
    /// Never.
    Never,
}

impl RefreshInterval {
    /// Returns the interval at which rows are read, if they are read at all.
    pub(crate) fn every(self) -> Option<Duration> {
        match self {
            Self::Automatic => Some(Duration::from_secs(30)),
            Self::Every(interval) => Some(interval),
            Self::Never => None,
        }
    }
}

/// `None` means never.
impl From<Option<Duration>> for RefreshInterval {
    fn from(every: Option<Duration>) -> Self {
        every.map_or(Self::Never, Self::Every)
    }
}

/// The error of [`BoundAgentBuilder::build`](crate::BoundAgentBuilder::build) and
/// [`Settings::validate`]: two settings contradict each other, or one is invalid by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid settings: {why}")]
pub struct BuildError {
    first: &'static str,
    second: &'static str,
    why: String,
}

impl BuildError {
    /// Returns the names of the two settings.
    ///
    /// If a setting is invalid by itself, such as a timeout of zero, its name comes first, and a
    /// description of a valid value second.
    #[must_use]
    pub fn settings(&self) -> [&'static str; 2] {
        [self.first, self.second]
    }
}

/// The settings of a layer as plain values, for a configuration file.
/// [`BoundAgentBuilder::settings`](crate::BoundAgentBuilder::settings) applies them. Each field is
/// explained at the method of the same name of [`BoundAgentBuilder`](crate::BoundAgentBuilder).
///
/// With the feature `serde`, durations are text such as `250ms`, `30s` or `1h 30m`, and a missing
/// field has its default. An unknown field is an error. What a value may be is checked when the
/// layer is built, or by [`validate`](Self::validate).
///
/// ```
/// # use std::time::Duration;
/// # use tower_bound_agent::*;
/// # let resolver = tower::service_fn(async |_: ResolveWorkspace| Ok::<_, BoxError>(Resolution::Gone));
/// let mut settings = Settings::default();
/// settings.dial_timeout = Duration::from_secs(10);
/// let layer = BoundAgentLayer::builder(store::MemoryStore::new(), resolver)
///     .settings(settings)
///     .build()?;
/// # Ok::<_, BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Settings {
    /// How long a dial may be pending before the binding is validated.
    #[cfg_attr(feature = "serde", serde(with = "text::duration"))]
    pub validation_delay: Duration,
    /// How long after a validation the resolver is asked again, if the dial still hangs.
    #[cfg_attr(feature = "serde", serde(with = "text::duration"))]
    pub revalidate_every: Duration,
    /// The longest interval between two questions about a dial that hangs.
    #[cfg_attr(feature = "serde", serde(with = "text::duration"))]
    pub revalidate_at_most: Duration,
    /// The time limit of a whole call.
    #[cfg_attr(feature = "serde", serde(with = "text::duration"))]
    pub dial_timeout: Duration,
    /// How many calls of this process may have a pending dial to one target.
    pub max_pending_dials: usize,
    /// The time limit of one question to the resolver.
    #[cfg_attr(feature = "serde", serde(with = "text::duration"))]
    pub resolve_timeout: Duration,
    /// The time limit of one statement of the store.
    #[cfg_attr(feature = "serde", serde(with = "text::duration"))]
    pub store_timeout: Duration,
    /// How many bindings are kept in memory.
    pub cache_capacity: u64,
    /// How long an unused binding is kept in memory.
    #[cfg_attr(feature = "serde", serde(with = "text::duration"))]
    pub cache_time_to_idle: Duration,
    /// What a call does when its dial has failed and the resolver names no other agent.
    pub redial: Redial,
    /// When a repair is written.
    pub repair: RepairMode,
    /// Whether a session whose record cannot be read is served if the caller names its workspace.
    pub serve_without_store: bool,
    /// How often cached rows are read again in the background.
    pub refresh_interval: RefreshInterval,
    /// How often the use of sessions is recorded in the store; `None`, as text `never`: never.
    #[cfg_attr(feature = "serde", serde(with = "text::duration_or_never"))]
    pub usage_interval: Option<Duration>,
    /// How many connections of the application's pool the background statements share.
    pub background_connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            validation_delay: Duration::from_millis(250),
            revalidate_every: Duration::from_secs(2),
            revalidate_at_most: Duration::from_secs(15),
            dial_timeout: Duration::from_secs(30),
            max_pending_dials: 64,
            resolve_timeout: Duration::from_secs(5),
            store_timeout: Duration::from_secs(5),
            cache_capacity: 100_000,
            cache_time_to_idle: Duration::from_secs(3600),
            redial: Redial::Once,
            repair: RepairMode::Background,
            serve_without_store: false,
            refresh_interval: RefreshInterval::Automatic,
            usage_interval: None,
            background_connections: 2,
        }
    }
}

/// The longest valid duration. A longer one is a mistake, and its sum with an instant may overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

impl Settings {
    /// Checks each setting and all of them against each other, as
    /// [`BoundAgentBuilder::build`](crate::BoundAgentBuilder::build) does.
    ///
    /// # Errors
    ///
    /// Returns the error of `build`, which names the settings.
    pub fn validate(&self) -> Result<(), BuildError> {
        let refuse = |first, second, why: String| -> Result<(), BuildError> {
            Err(BuildError { first, second, why })
        };
        let or_any = |duration: Option<Duration>| duration.unwrap_or(Duration::from_secs(1));
        let durations = [
            ("refresh_interval", or_any(self.refresh_interval.every())),
            ("usage_interval", or_any(self.usage_interval)),
            ("dial_timeout", self.dial_timeout),
            ("resolve_timeout", self.resolve_timeout),
            ("store_timeout", self.store_timeout),
            ("revalidate_every", self.revalidate_every),
            ("revalidate_at_most", self.revalidate_at_most),
            ("cache_time_to_idle", self.cache_time_to_idle),
        ];
        for (name, duration) in durations {
            if duration.is_zero() {
                return refuse(name, "a wait", format!("`{name}` must not be zero"));
            }
        }
        for (name, duration) in
            durations.into_iter().chain([("validation_delay", self.validation_delay)])
        {
            if duration > LONGEST {
                let why = format!("`{name}` is {duration:?} and must be at most 30 days");
                return refuse(name, "a bounded wait", why);
            }
        }
        if self.validation_delay >= self.dial_timeout {
            let why = format!(
                "`validation_delay` ({:?}) must be less than `dial_timeout` ({:?}), or no dial is \
                 ever validated",
                self.validation_delay, self.dial_timeout
            );
            return refuse("validation_delay", "dial_timeout", why);
        }
        if self.validation_delay + self.resolve_timeout >= self.dial_timeout {
            let why = format!(
                "`validation_delay` ({:?}) plus `resolve_timeout` ({:?}) must be less than \
                 `dial_timeout` ({:?}), or no time is left after a slow answer",
                self.validation_delay, self.resolve_timeout, self.dial_timeout
            );
            return refuse("resolve_timeout", "dial_timeout", why);
        }
        if self.store_timeout >= self.dial_timeout {
            let why = format!(
                "`store_timeout` ({:?}) must be less than `dial_timeout` ({:?}), or no time is \
                 left after a slow read",
                self.store_timeout, self.dial_timeout
            );
            return refuse("store_timeout", "dial_timeout", why);
        }
        if self.revalidate_every > self.revalidate_at_most {
            let why = format!(
                "`revalidate_every` ({:?}) must not exceed `revalidate_at_most` ({:?})",
                self.revalidate_every, self.revalidate_at_most
            );
            return refuse("revalidate_every", "revalidate_at_most", why);
        }
        if self.cache_time_to_idle <= self.store_timeout {
            let why = format!(
                "`cache_time_to_idle` ({:?}) must be greater than `store_timeout` ({:?}), or a \
                 binding may leave the cache during a read of it",
                self.cache_time_to_idle, self.store_timeout
            );
            return refuse("cache_time_to_idle", "store_timeout", why);
        }
        let counts = [
            ("background_connections", "a number of connections", self.background_connections == 0),
            ("max_pending_dials", "a limit", self.max_pending_dials == 0),
            ("cache_capacity", "a cache", self.cache_capacity == 0),
        ];
        for (name, valid, is_zero) in counts {
            if is_zero {
                return refuse(name, valid, format!("`{name}` must not be zero"));
            }
        }
        Ok(())
    }
}
