//! The values that a builder collects, and what contradicts what.

use std::time::Duration;

/// What to do when a dial has failed and the resolver names the same agent again, or cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Redial {
    /// Dial it once more.
    #[default]
    Once,
    /// Let the call fail with the dialer's error.
    Never,
}

/// When a repair is written, relative to the connection that made it necessary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RepairMode {
    /// In a task of its own; the connection never waits for the database.
    #[default]
    Background,
    /// The connection is returned once the first attempt to write has ended, whatever became of it.
    BeforeReturn,
}

/// Two settings that cannot both hold, or one that cannot hold by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{first}` contradicts `{second}`: {why}")]
pub struct BuildError {
    first: &'static str,
    second: &'static str,
    why: String,
}

impl BuildError {
    /// The names of the two settings; of one that cannot hold by itself (a timeout of zero, say)
    /// its name comes first, and what it would have to be second.
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

/// Longer is surely a mistake, and adding it to an instant may overflow.
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
                return refuse(name, "a wait", "it is zero".into());
            }
        }
        for (name, duration) in
            durations.into_iter().chain([("validation_delay", self.validation_delay)])
        {
            if duration > LONGEST {
                return refuse(
                    name,
                    "a bounded wait",
                    format!("{duration:?} is longer than {LONGEST:?}"),
                );
            }
        }
        if self.validation_delay >= self.dial_timeout {
            let why = format!(
                "no validation begins after {:?} if the dial ends after {:?}",
                self.validation_delay, self.dial_timeout
            );
            return refuse("validation_delay", "dial_timeout", why);
        }
        if self.validation_delay + self.resolve_timeout >= self.dial_timeout {
            let why = format!(
                "the delay ({:?}) and a slow answer ({:?}) leave nothing of the dial timeout ({:?})",
                self.validation_delay, self.resolve_timeout, self.dial_timeout
            );
            return refuse("resolve_timeout", "dial_timeout", why);
        }
        if self.store_timeout >= self.dial_timeout {
            let why = format!(
                "a slow store ({:?}) leaves nothing of the dial timeout ({:?})",
                self.store_timeout, self.dial_timeout
            );
            return refuse("store_timeout", "dial_timeout", why);
        }
        if self.revalidate_every > self.revalidate_at_most {
            let why = format!(
                "the interval begins at {:?} and never exceeds {:?}",
                self.revalidate_every, self.revalidate_at_most
            );
            return refuse("revalidate_every", "revalidate_at_most", why);
        }
        if self.cache_time_to_idle <= self.store_timeout {
            let why = format!(
                "a binding could leave the cache ({:?}) and be read again while an earlier read of it ({:?}) goes on",
                self.cache_time_to_idle, self.store_timeout
            );
            return refuse("cache_time_to_idle", "store_timeout", why);
        }
        if self.background_connections == 0 {
            return refuse(
                "background_connections",
                "a number of connections",
                "it is zero".into(),
            );
        }
        if self.max_pending_dials == 0 {
            return refuse("max_pending_dials", "a limit", "it is zero".into());
        }
        if self.cache_capacity == 0 {
            return refuse("cache_capacity", "a cache", "it is zero".into());
        }
        Ok(())
    }
}
