//! The four identifiers, as newtypes, so that a caller cannot swap arguments.

use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)+) => {$(
        $(#[$doc])*
        ///
        /// Wraps a [`Uuid`]. With the feature `serde`, the id is serialized exactly as its uuid.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
        pub struct $name(Uuid);

        impl $name {
            /// Creates an id from a uuid.
            #[must_use]
            pub const fn new(id: Uuid) -> Self {
                Self(id)
            }

            /// Derives an id from a name, for platforms whose ids are text (`thread_8f2…`). The id
            /// is the version 5 uuid of the name within a namespace ([RFC 9562, section
            /// 5.5](https://www.rfc-editor.org/rfc/rfc9562#section-5.5)). The same namespace and
            /// name always give the same id.
            ///
            /// Generate a random namespace for each kind of name, and keep it in the source code.
            /// Two kinds of names need two namespaces, because equal names in one namespace give
            /// equal ids.
            ///
            /// ```
            #[doc = concat!("use tower_bound_agent::", stringify!($name), ";")]
            /// use uuid::{Uuid, uuid};
            ///
            /// const NAMESPACE: Uuid = uuid!("3a51b2f0-5c6e-4d0a-9d4f-6f2b8a7c1e90");
            #[doc = concat!("let id = ", stringify!($name), "::from_name(&NAMESPACE, \"thread_8f2\");")]
            #[doc = concat!("assert_eq!(id, ", stringify!($name), "::from_name(&NAMESPACE, \"thread_8f2\"));")]
            /// ```
            #[must_use]
            pub fn from_name(namespace: &Uuid, name: &str) -> Self {
                Self(Uuid::new_v5(namespace, name.as_bytes()))
            }

            /// Returns the uuid.
            #[must_use]
            pub const fn into_uuid(self) -> Uuid {
                self.0
            }

            /// Returns a reference to the uuid.
            #[must_use]
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    )+};
}

ids! {
    /// The identifier of a session: a chat, a notebook, a job.
    SessionId
    /// The identifier of a workspace, which a session points at. A workspace is rebuilt from time
    /// to time, and each build has a new agent.
    WorkspaceId
    /// The identifier of one build of a workspace.
    BuildId
    /// The identifier of an agent: the process in a workspace that answers. Each build creates a
    /// new one.
    AgentId
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::uuid;

    #[test]
    fn derives_the_version_5_uuid_of_a_name() {
        // The example of RFC 9562, appendix A.4.
        let id = SessionId::from_name(&Uuid::NAMESPACE_DNS, "www.example.com");
        assert_eq!(id.into_uuid(), uuid!("2ed6657d-e927-568b-95e1-2665a8aea6a2"));
    }
}
