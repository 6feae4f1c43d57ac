//! The values that a builder collects, and the checks against contradictions.

use std::time::Duration;

/// The action when a dial has failed and the resolver names the same agent again, or does not
/// answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
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
#[non_exhaustive]
pub enum RepairMode {
    /// Writes the repair in a task of its own. The connection does not wait for the store.
    #[default]
    Background,
    /// Returns the connection when the first attempt to write has ended, whether or not it
    /// succeeded.
    BeforeReturn,
}

/// The error of [`BoundAgentBuilder::build`](crate::BoundAgentBuilder::build): two settings
/// contradict each other, or one is invalid by itself.
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

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) validation_delay: Duration,
    pub(crate) revalidate_every: Duration,
    pub(crate) revalidate_at_most: Duration,
    pub(crate) dial_timeout: Duration,
    pub(crate) max_pending_dials: usize,
    pub(crate) resolve_timeout: Duration,
    pub(crate) store_timeout: Duration,
    pub(crate) cache_capacity: u64,
    pub(crate) cache_time_to_idle: Duration,
    pub(crate) redial: Redial,
    pub(crate) repair: RepairMode,
    pub(crate) serve_without_store: bool,
    pub(crate) refresh_interval: Option<Duration>,
    pub(crate) usage_interval: Option<Duration>,
    pub(crate) background_connections: usize,
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
            refresh_interval: Some(Duration::from_secs(30)),
            usage_interval: None,
            background_connections: 2,
        }
    }
}

/// The longest valid duration. A longer one is a mistake, and its sum with an instant may overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

impl Settings {
    pub(crate) fn validate(&self) -> Result<(), BuildError> {
        let refuse = |first, second, why: String| -> Result<(), BuildError> {
            Err(BuildError { first, second, why })
        };
        let or_any = |duration: Option<Duration>| duration.unwrap_or(Duration::from_secs(1));
        let durations = [
            ("refresh_interval", or_any(self.refresh_interval)),
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
