//! Settings as text, for serde: durations that people write and read.

use super::RefreshInterval;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Unexpected, Visitor},
};
use std::{fmt, marker::PhantomData, time::Duration};

const NEVER: &str = "never";
const AUTOMATIC: &str = "automatic";

/// A value that is written as text.
trait Text: Sized {
    const EXPECTED: &'static str;

    fn parse(text: &str) -> Option<Self>;
}

impl Text for Duration {
    const EXPECTED: &'static str = "a duration such as \"250ms\", \"30s\" or \"1h 30m\"";

    fn parse(text: &str) -> Option<Self> {
        humantime::parse_duration(text).ok()
    }
}

impl Text for Option<Duration> {
    const EXPECTED: &'static str = "\"never\", or a duration such as \"30s\" or \"5m\"";

    fn parse(text: &str) -> Option<Self> {
        if text == NEVER { Some(None) } else { Duration::parse(text).map(Some) }
    }
}

impl Text for RefreshInterval {
    const EXPECTED: &'static str =
        "\"automatic\", \"never\", or a duration such as \"30s\" or \"5m\"";

    fn parse(text: &str) -> Option<Self> {
        if text == AUTOMATIC {
            return Some(Self::Automatic);
        }
        Option::<Duration>::parse(text).map(Self::from)
    }
}

struct Parse<T>(PhantomData<T>);

impl<T: Text> Visitor<'_> for Parse<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

fn parse<'de, T: Text, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_str(Parse(PhantomData))
}

/// For `serde(with)`: a duration.
pub(crate) mod duration {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        parse(from)
    }
}

/// For `serde(with)`: a duration, or `never` for `None`.
pub(crate) mod duration_or_never {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => duration::serialize(value, to),
            None => to.serialize_str(NEVER),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        parse(from)
    }
}

impl Serialize for RefreshInterval {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Automatic => to.serialize_str(AUTOMATIC),
            Self::Every(every) => duration::serialize(every, to),
            Self::Never => to.serialize_str(NEVER),
        }
    }
}

impl<'de> Deserialize<'de> for RefreshInterval {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parse(from)
    }
}
