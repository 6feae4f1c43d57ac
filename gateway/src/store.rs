//! The store that the configuration names.

use crate::{
    config::{Store, StoreUrl},
    log::with_sources,
};
use sqlx::{mysql::MySqlPoolOptions, postgres::PgPoolOptions};
use std::time::Duration;
use tokio::time::timeout;
use tower::Service;
use tower_bound_agent::{
    BoundAgentBuilder, BoundAgentLayer, BoxError, Resolution, ResolveWorkspace,
    hints::PostgresHints,
    store::{MySqlStore, PostgresStore, SqliteStore, StoreError},
};

/// How long the pool of a server may take to give a connection.
const ACQUIRE: Duration = Duration::from_secs(5);

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The URL of the database is malformed, or its server cannot be reached.
    #[error("the database cannot be reached")]
    Connect(#[from] sqlx::Error),
    /// The tables could not be created or do not fit.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
}

/// A store that can be asked whether it answers.
#[derive(Clone, Debug)]
pub(crate) enum Opened {
    Sqlite(SqliteStore),
    Postgres(PostgresStore),
    MySql(MySqlStore),
}

/// Opens the store, and begins to build the layer over it.
pub(crate) async fn open<R>(
    config: &Store,
    url: &StoreUrl,
    resolver: R,
) -> Result<(BoundAgentBuilder, Opened), OpenError>
where
    R: Service<ResolveWorkspace, Response = Resolution> + Clone + Send + 'static,
    R::Error: Into<BoxError>,
    R::Future: Send,
{
    /// Each store has the same three methods.
    macro_rules! ready {
        ($store:expr) => {{
            let mut store = $store;
            if let Some(table) = &config.table {
                store = store.with_table(table.clone())?;
            }
            if config.set_up {
                store.set_up().await?
            } else {
                store.check().await?
            }
            store
        }};
    }
    let most = config.max_connections.get();
    Ok(match url {
        StoreUrl::Sqlite(file) => {
            let store = ready!(SqliteStore::open(file).await?);
            (BoundAgentLayer::builder(store.clone(), resolver), Opened::Sqlite(store))
        }
        StoreUrl::Postgres(url) => {
            let options = PgPoolOptions::new().max_connections(most).acquire_timeout(ACQUIRE);
            let pool = options.connect(url.expose()).await?;
            let mut store = PostgresStore::new(pool.clone());
            if config.transaction_pooler {
                store = store.behind_transaction_pooler();
            }
            let store = ready!(store);
            let mut builder = BoundAgentLayer::builder(store.clone(), resolver);
            if config.hints && !config.transaction_pooler {
                builder = builder.hints(PostgresHints::new(pool));
            }
            (builder, Opened::Postgres(store))
        }
        StoreUrl::MySql(url) => {
            let options = MySqlPoolOptions::new().max_connections(most).acquire_timeout(ACQUIRE);
            let store = ready!(MySqlStore::new(options.connect(url.expose()).await?));
            (BoundAgentLayer::builder(store.clone(), resolver), Opened::MySql(store))
        }
    })
}

impl Opened {
    /// Returns `true` if the database answers in time and has its tables.
    pub(crate) async fn answers(&self, within: Duration) -> bool {
        let check = async {
            match self {
                Self::Sqlite(store) => store.check().await,
                Self::Postgres(store) => store.check().await,
                Self::MySql(store) => store.check().await,
            }
        };
        match timeout(within, check).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(error = with_sources(&error), "the store is not ready");
                false
            }
            Err(_) => {
                tracing::debug!(?within, "the store did not answer in time");
                false
            }
        }
    }
}
