//! The user guide: a glossary, and a page for each subject.
//!
//! # Glossary
//!
//! | term | meaning |
//! |---|---|
//! | [session](SessionId) | A chat, notebook or job: what a caller talks through. |
//! | [workspace](WorkspaceId) | What a session points at. It is rebuilt from time to time. |
//! | [build](BuildId) | One version of a workspace. Each build starts a new agent. |
//! | [agent](AgentId) | The process in a workspace that responds to its sessions. |
//! | [target](Target) | Where to dial: an agent and, if known, its build, generation and address. |
//! | [generation](Generation) | The number of the build. Of two targets of one workspace, the one with the greater generation is newer. |
//! | [binding](Binding) | The stored row that maps a session to its workspace and target. |
//! | [dialer] | The service inside the layer. It connects to a given target. |
//! | [resolver] | The service that answers which target serves a workspace now. |
//! | validation | One question to the resolver, asked because a bound target may be out of date. |
//! | [repair](Repair) | The write that makes a binding name the target that responded. |
//!
//! # Pages
//!
//! * To begin: the [resolver] and the [dialer], the two services that an application provides.
//! * To build on: [axum], [HTTP, WebSockets, gRPC and gateways](self::http),
//!   [long-lived connections](long_lived), [transactions], [several processes](replicas), [a store
//!   of your own](own_store), [testing].
//! * To operate: [recipes](operations), [slow turns](slow), [settings], [errors], [guarantees and
//!   limits](guarantees), [what turns cost the database](costs), [performance].

// The pages name these, and their links resolve in this module.
#[cfg(doc)]
use crate::{
    AgentId, Binding, Bindings, Bound, BoundAgent, BoundAgentBuilder, BoundAgentLayer, BoundHandle,
    BuildError, BuildId, Current, DialAgent, DialSession, Epoch, Error, ErrorKind, Event,
    Generation, InUse, LocalError, Observer, Outcome, OutcomeKind, Redial, RefreshInterval, Repair,
    RepairMode, Resolution, ResolveWorkspace, Retargeted, SessionId, SessionInUse, Settings, Stats,
    Status, Target, WorkspaceId, WrongAgentError,
    hints::{Heard, Hints, LocalHints, PostgresHints},
    http::{
        AgentClient, AgentClientBuilder, ClientError, Connector, Fault, Idempotent,
        proxy::{Exchange, Hop},
        watch_peer,
    },
    store::{
        BindingStore, MemoryStore, MySqlStore, PostgresStore, SqliteStore, StoreError,
        StoreWrapper, Swap, TransactionalStore,
    },
};

#[doc = include_str!("guide/resolver.md")]
pub mod resolver {}
#[doc = include_str!("guide/dialer.md")]
pub mod dialer {}
#[doc = include_str!("guide/axum.md")]
pub mod axum {}
#[doc = include_str!("guide/http.md")]
pub mod http {}
#[doc = include_str!("guide/long_lived.md")]
pub mod long_lived {}
#[doc = include_str!("guide/transactions.md")]
pub mod transactions {}
#[doc = include_str!("guide/replicas.md")]
pub mod replicas {}
#[doc = include_str!("guide/own_store.md")]
pub mod own_store {}
#[doc = include_str!("guide/testing.md")]
pub mod testing {}
#[doc = include_str!("guide/operations.md")]
pub mod operations {}
#[doc = include_str!("guide/slow.md")]
pub mod slow {}
#[doc = include_str!("guide/settings.md")]
pub mod settings {}
#[doc = include_str!("guide/errors.md")]
pub mod errors {}
#[doc = include_str!("guide/guarantees.md")]
pub mod guarantees {}
#[doc = include_str!("guide/costs.md")]
///
/// # The numbers of statements as bars
///
/// <div>
#[doc = include_str!("../docs/db_pressure.svg")]
/// </div>
pub mod costs {}
#[doc = include_str!("guide/performance.md")]
pub mod performance {}
