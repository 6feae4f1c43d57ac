//! Behaviour that only MySQL and MariaDB have.

use super::engine::*;
use sqlx::{AssertSqlSafe, Executor};
use support::{rows::*, servers};
use tower_bound_agent::{
    Target,
    store::{BindingStore, NewBinding, StoreError, Swap},
};

/// A store whose connections begin with a statement.
async fn store_after(statement: &'static str) -> Option<Store> {
    let pool = PoolOptions::new().max_connections(2).after_connect(move |connection, _| {
        Box::pin(async move { connection.execute(statement).await.map(|_| ()) })
    });
    let store =
        Store::new(pool.connect_lazy_with(options()?)).with_table(servers::table()).unwrap();
    Some(store)
}

/// The server silently ignores transactions on such a table.
#[tokio::test]
async fn a_table_of_an_engine_without_transactions_is_refused() {
    for (number, table) in [(1, ""), (2, "_meta")] {
        let store = store_after("SELECT 1").await;
        let Some(store) = store else { return };
        let name = servers::table();
        let store = store.with_table(&name).unwrap();
        let text = Store::SCHEMA.replace("agent_bindings", &name);
        let mut parts: Vec<_> = text.split("ENGINE = InnoDB").map(str::to_owned).collect();
        parts[number] = format!("ENGINE = MyISAM{}", parts[number]);
        parts[3 - number] = format!("ENGINE = InnoDB{}", parts[3 - number]);
        sqlx::raw_sql(AssertSqlSafe(parts.concat())).execute(store.pool()).await.unwrap();
        let expected = format!("the engine of table {name}{table} is MyISAM, not InnoDB");
        for result in [store.check().await, store.set_up().await] {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, StoreError::Schema { problem, .. } if *problem == expected),
                "{error:?}"
            );
        }
    }
}

/// Without strict mode, what is too long for its column is cut without an error. Here nothing is
/// too long.
#[tokio::test]
async fn a_long_address_is_not_truncated_without_strict_mode() {
    let Some(store) = store_after("SET SESSION sql_mode = ''").await else { return };
    store.set_up().await.unwrap();
    let target = Target::new(target(1).agent).with_address("ä".repeat(100_000));
    let swap =
        store.create(NewBinding::new(session(1), workspace(1), Some(target.into()))).await.unwrap();
    let Swap::Applied(row) = swap else { panic!("{swap:?}") };
    assert_eq!(row.target.as_ref().unwrap().address.as_ref().unwrap().len(), 200_000);
    assert_eq!(store.load(session(1)).await.unwrap(), Some(row));
}

/// In MariaDB a SET clause may also mean what it means elsewhere; the statements must not care.
#[tokio::test]
async fn the_order_of_assignments_does_not_matter() {
    let mode = "SET SESSION sql_mode = CONCAT(@@sql_mode, IF(VERSION() LIKE '%MariaDB%', ',SIMULTANEOUS_ASSIGNMENT', ''))";
    for statement in [mode, "SELECT 1"] {
        let Some(store) = store_after(statement).await else { return };
        store.set_up().await.unwrap();
        let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
        let swap = store.compare_and_swap(at(1), new(1, 1, Some(target(2)))).await.unwrap();
        assert_eq!(swap, Swap::Applied(row(1, 1, Some(target(2)), 2, previous(1))));
        assert_eq!(
            store.retarget(session(1), workspace(1)).await.unwrap(),
            row(1, 1, Some(target(2)), 3, previous(1))
        );
        assert_eq!(
            store.retarget(session(1), workspace(2)).await.unwrap(),
            row(1, 2, None, 4, previous(2))
        );
        let swap = store.compare_and_swap(at(4), new(1, 2, Some(target(3)))).await.unwrap();
        assert_eq!(swap, Swap::Applied(row(1, 2, Some(target(3)), 5, previous(2))));
        assert_eq!(store.unbind(session(1)).await.unwrap(), Some(row(1, 2, None, 6, previous(3))));
    }
}
