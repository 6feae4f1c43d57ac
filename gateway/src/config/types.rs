//! Values of the configuration that are more than a number or a string, each checked when it is
//! read, so that an error has a line.

use http::{HeaderName, Uri, uri::Authority};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{fmt, path::PathBuf, str::FromStr, time::Duration};
use tower_bound_agent::{AgentId, WorkspaceId};
use uuid::Uuid;

/// A string that is not shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns the string.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The URL of a store. It may have a password, so it is not shown.
#[derive(Clone)]
#[non_exhaustive]
pub enum StoreUrl {
    /// `sqlite:FILE`.
    Sqlite(PathBuf),
    /// `postgres://…` or `postgresql://…`.
    Postgres(Secret),
    /// `mysql://…` or `mariadb://…`.
    MySql(Secret),
}

impl StoreUrl {
    /// Returns the kind of store as a word.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgres",
            Self::MySql(_) => "mysql",
        }
    }
}

impl FromStr for StoreUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let secret = || Secret(text.to_owned());
        match text.split_once(':') {
            Some(("sqlite", file)) => {
                let file = file.strip_prefix("//").unwrap_or(file);
                if file.is_empty() || file.contains('?') || file == ":memory:" {
                    return Err("sqlite: needs the path of a file");
                }
                Ok(Self::Sqlite(file.into()))
            }
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(secret())),
            Some(("mysql" | "mariadb", _)) => Ok(Self::MySql(secret())),
            _ => Err("a URL of a store begins with sqlite:, postgres: or mysql:"),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => f.debug_tuple("Sqlite").field(file).finish(),
            other => write!(f, "{}(…)", other.as_str()),
        }
    }
}

/// A URL with a place for the id of a workspace.
#[derive(Clone, Debug)]
pub struct Template(String);

impl Template {
    const PLACE: &str = "{workspace}";

    /// Returns the URL of a workspace.
    ///
    /// # Errors
    ///
    /// Returns no error for a template that was parsed.
    pub fn of(&self, workspace: WorkspaceId) -> Result<Uri, http::uri::InvalidUri> {
        self.0.replace(Self::PLACE, &workspace.to_string()).parse()
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains(Self::PLACE) {
            return Err(format!("the URL has no {}", Self::PLACE));
        }
        let template = Self(text.to_owned());
        let uri = template.of(WorkspaceId::new(Uuid::nil())).map_err(|error| error.to_string())?;
        HttpUrl::check(&uri)?;
        if uri.authority().is_some_and(|host| host.as_str().contains(&Uuid::nil().to_string())) {
            return Err(format!("{} belongs into the path or the query", Self::PLACE));
        }
        Ok(template)
    }
}

/// A URL with `http` or `https`.
#[derive(Clone, Debug)]
pub struct HttpUrl(Uri);

impl HttpUrl {
    /// Returns the URL.
    #[must_use]
    pub const fn uri(&self) -> &Uri {
        &self.0
    }

    fn check(uri: &Uri) -> Result<(), String> {
        match uri.scheme_str() {
            Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(()),
            _ => Err("the URL must begin with http:// or https:// and name a host".to_owned()),
        }
    }
}

impl FromStr for HttpUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
        Self::check(&uri)?;
        Ok(Self(uri))
    }
}

/// The DNS name of an agent, with a place for its id.
#[derive(Clone, Debug)]
pub struct AgentName(String);

impl AgentName {
    const PLACE: &str = "{agent}";

    /// Returns the name of an agent.
    ///
    /// # Errors
    ///
    /// Returns no error for a name that was parsed.
    pub fn of(
        &self,
        agent: AgentId,
    ) -> Result<ServerName<'static>, rustls::pki_types::InvalidDnsNameError> {
        self.0.replace(Self::PLACE, &agent.to_string()).try_into()
    }
}

impl Default for AgentName {
    fn default() -> Self {
        Self("{agent}.agents.internal".to_owned())
    }
}

impl FromStr for AgentName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = Self(text.to_owned());
        if !text.contains(Self::PLACE) {
            return Err(format!("the name has no {}: every agent would be right", Self::PLACE));
        }
        match name.of(AgentId::new(Uuid::nil())) {
            Ok(ServerName::DnsName(_)) => Ok(name),
            _ => Err("is no DNS name".to_owned()),
        }
    }
}

/// The part of a request that is the id of its session, a hyphenated UUID.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SessionFrom {
    /// The segment after this prefix of the path. The agent receives the rest of the path.
    #[serde(deserialize_with = "prefix")]
    Path(String),
    /// This header, which the agent does not receive.
    #[serde(deserialize_with = "header_name")]
    Header(HeaderName),
    /// The first label of the host, followed by this suffix.
    #[serde(deserialize_with = "suffix")]
    Host(String),
}

impl Default for SessionFrom {
    fn default() -> Self {
        Self::Path("/sessions/".to_owned())
    }
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.starts_with('/') && text.ends_with('/') {
        Ok(text)
    } else {
        Err(D::Error::custom("the prefix of a path begins and ends with a slash"))
    }
}

fn suffix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.len() > 1 && text.starts_with('.') {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(D::Error::custom("the suffix of a host begins with a dot"))
    }
}

pub(super) fn header_name<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<HeaderName, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom(format!("{text:?} is no name of a header")))
}

pub(super) fn maybe_header_name<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<HeaderName>, D::Error> {
    header_name(deserializer).map(Some)
}

pub(super) fn header_names<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<HeaderName>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?.into_iter().map(|name| {
        name.parse().map_err(|_| D::Error::custom(format!("{name:?} is no name of a header")))
    });
    names.collect()
}

pub(super) fn authorities<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Authority>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?.into_iter().map(|name| {
        name.parse().map_err(|_| D::Error::custom(format!("{name:?} is no name of a host")))
    });
    names.collect()
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| {
        D::Error::custom(format!(
            "{text:?} is no duration such as \"250ms\" or \"1m 30s\": {error}"
        ))
    })
}

macro_rules! deserialize_from_str {
    ($($kind:ty),+) => {
        $(impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        })+
    };
}
deserialize_from_str!(StoreUrl, Template, HttpUrl, AgentName);
