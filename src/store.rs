//! Stores of bindings: the contract [`BindingStore`], and the stores of this crate.

mod binding_store;
mod erased;
mod error;
mod housekeeping;
mod memory;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub(crate) mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod types;
mod wrapper;

pub use binding_store::{BindingStore, TransactionalStore, UsedByLayer};
pub(crate) use erased::ErasedStore;
pub use error::StoreError;
pub use memory::MemoryStore;
#[cfg(feature = "mysql")]
#[cfg_attr(docsrs, doc(cfg(feature = "mysql")))]
pub use mysql::MySqlStore;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use postgres::PostgresStore;
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use sqlite::SqliteStore;
pub use types::{BATCH, NewBinding, Purged, Reset, Swap};
pub use wrapper::StoreWrapper;
