//! The four identities. Newtypes, so that arguments cannot be swapped.

use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)+) => {$(
        $(#[$doc])*
        ///
        /// Wraps a [`Uuid`]; with the `serde` feature it is serialized exactly as one.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a uuid.
            #[must_use]
            pub const fn new(id: Uuid) -> Self {
                Self(id)
            }

            /// Returns the id that stands for a name, for platforms whose ids are text
            /// (`thread_8f2…`): the version 5 uuid of the name within a namespace ([RFC 9562,
            /// section 5.5](https://www.rfc-editor.org/rfc/rfc9562#section-5.5)). The same
            /// namespace and name always give the same id.
            ///
            /// Draw one namespace at random for each kind of name and keep it in the source code:
            /// two kinds of names that may be equal need two namespaces.
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

            /// The uuid inside.
            #[must_use]
            pub const fn into_uuid(self) -> Uuid {
                self.0
            }

            /// The uuid inside, by reference.
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
    /// What sticks: a chat, a notebook, a job.
    SessionId
    /// What a session points at. It is rebuilt from time to time, and each build has a new agent.
    WorkspaceId
    /// One build of a workspace.
    BuildId
    /// The process in a workspace that answers; each build brings a new one.
    AgentId
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::uuid;

    #[test]
    fn a_name_stands_for_the_version_5_uuid_of_the_rfc() {
        // The example of RFC 9562, appendix A.4.
        let id = SessionId::from_name(&Uuid::NAMESPACE_DNS, "www.example.com");
        assert_eq!(id.into_uuid(), uuid!("2ed6657d-e927-568b-95e1-2665a8aea6a2"));
    }
}
