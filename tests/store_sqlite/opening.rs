//! `open`, `new`, `set_up`, `check`: what they create, what they reject, and their errors.

use super::*;
use sqlx::{AssertSqlSafe, Row, sqlite::SqliteJournalMode};
use std::fs;
use tower_bound_agent::store::{BindingStore, StoreError, Swap};

#[tokio::test]
async fn open_creates_the_file_and_finds_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bindings.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.check().await.unwrap();
    let swap = store.create(new(1, 1, Some(target(1)))).await.unwrap();
    assert_eq!(swap, Swap::Applied(row(1, 1, Some(target(1)), 1, None)));
    store.pool().close().await;

    let again = SqliteStore::open(&path).await.unwrap();
    assert_eq!(again.load(session(1)).await.unwrap(), Some(row(1, 1, Some(target(1)), 1, None)));
    let mode: String =
        sqlx::query_scalar("PRAGMA journal_mode").fetch_one(again.pool()).await.unwrap();
    assert_eq!(mode, "wal");
    let synchronous: i64 =
        sqlx::query_scalar("PRAGMA synchronous").fetch_one(again.pool()).await.unwrap();
    assert_eq!(synchronous, 1, "NORMAL");
}

#[tokio::test]
async fn an_empty_file_becomes_a_database() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let store = SqliteStore::open(file.path()).await.unwrap();
    assert_eq!(store.load(session(1)).await.unwrap(), None);
}

#[tokio::test]
async fn a_path_that_cannot_be_a_file_is_an_open_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, why) in [
        (directory.path().join("missing").join("bindings.db"), "the parent directory: "),
        (directory.path().to_owned(), "the path is a directory"),
        (file.join("bindings.db"), "the parent of the path is a file"),
        (":memory:".into(), "belongs to one connection"),
        ("file:bindings.db?mode=memory".into(), "is a URL"),
        ("sqlite://bindings.db".into(), "is a URL"),
        ("".into(), "empty"),
    ] {
        let error = SqliteStore::open(&path).await.unwrap_err();
        let StoreError::Open { path: named, .. } = &error else { panic!("{path:?}: {error:?}") };
        assert_eq!(named, &path);
        assert!(words(&error).contains(why), "{}", words(&error));
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing was created");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_rejected_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    for content in ["Dear diary".to_owned(), "Dear diary, ".repeat(1000)] {
        fs::write(&path, &content).unwrap();
        let error = SqliteStore::open(&path).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::NotADatabase { path: named, .. } if *named == path),
            "{error:?}"
        );
        assert_eq!(error.to_string(), format!("{} is not a SQLite database", path.display()));
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
}

#[tokio::test]
async fn a_newer_schema_is_rejected_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bindings.db");
    let store = SqliteStore::open(&path).await.unwrap();
    sqlx::raw_sql(
        "UPDATE agent_bindings_meta SET schema_version = 7; ALTER TABLE agent_bindings_meta DROP COLUMN revision_floor",
    )
    .execute(store.pool())
    .await
    .unwrap();
    let before = everything_in(store.pool()).await;
    let opened = SqliteStore::open(&path).await.map(|_| ());
    for result in [opened, store.set_up().await, store.check().await] {
        let error = result.unwrap_err();
        // The version is reported, not the missing column, which a newer version may not need.
        let StoreError::SchemaTooNew { location, found: 7, supported: 1 } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*location, format!("{}, table agent_bindings", path.display()));
    }
    assert_eq!(everything_in(store.pool()).await, before);
}

#[tokio::test]
async fn an_unknown_schema_version_is_rejected() {
    let store = in_memory().await;
    sqlx::query("UPDATE agent_bindings_meta SET schema_version = 0")
        .execute(store.pool())
        .await
        .unwrap();
    let error = store.set_up().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Schema { problem, .. } if problem.contains("version 0")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_table_without_a_column_is_rejected_unchanged() {
    let bindings = "session,workspace,agent,build,generation,address,previous_agent,previous_generation,epoch,\
                    revision,deleted_at,created_at,last_used";
    let meta = "id,schema_version,revision_floor,floor_raised_at,use_recorded_since,use_recorded_until,use_recorded_gap";
    for (table, columns) in [
        ("agent_bindings", bindings),
        ("agent_bindings_meta", meta),
        ("agent_bindings_epochs", "workspace,epoch"),
    ] {
        for missing in columns.split(',') {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("bindings.db");
            let pool = foreign_pool(&path).await;
            let rest: Vec<_> = columns.split(',').filter(|column| *column != missing).collect();
            let sql = format!("CREATE TABLE {table} ({})", rest.join(","));
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
            let before = everything_in(&pool).await;

            let error = SqliteStore::open(&path).await.unwrap_err();
            let StoreError::Schema { location, problem } = &error else { panic!("{error:?}") };
            assert_eq!(*location, format!("{}, table agent_bindings", path.display()));
            assert_eq!(*problem, format!("table {table} has no column {missing}"));
            assert_eq!(everything_in(&pool).await, before);
            let mode: String =
                sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&pool).await.unwrap();
            assert_eq!(mode, "delete");
        }
    }
}

#[tokio::test]
async fn a_table_with_another_key_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pool = foreign_pool(&directory.path().join("bindings.db")).await;
    sqlx::raw_sql(AssertSqlSafe(
        SqliteStore::SCHEMA
            .replace("session BLOB NOT NULL PRIMARY KEY", "session BLOB")
            .replace("revision BIGINT NOT NULL", "revision BIGINT PRIMARY KEY NOT NULL"),
    ))
    .execute(&pool)
    .await
    .unwrap();
    let store = SqliteStore::new(pool);
    for result in [store.check().await, store.set_up().await] {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, StoreError::Schema { problem, .. } if problem.contains("ON CONFLICT")),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn new_does_not_access_the_database() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("application.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let pool = SqlitePoolOptions::new().connect_lazy_with(options);
    let store = SqliteStore::new(pool.clone()).with_table("sticky").unwrap();
    assert_eq!(pool.size(), 0, "no connection was opened");
    assert!(!path.exists());

    // Over an open database, `new` creates no table and no index, and keeps the journal mode.
    assert!(store.check().await.is_err());
    assert_eq!(everything_in(&pool).await, Vec::<String>::new());
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&pool).await.unwrap();
    assert_eq!(mode, "delete");
}

#[tokio::test]
async fn check_names_what_is_missing_and_creates_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("application.db");
    let pool = foreign_pool(&path).await;
    let store = SqliteStore::new(pool.clone());
    let what = |error: StoreError| match error {
        StoreError::Schema { location, problem } => {
            assert_eq!(location, format!("{}, table agent_bindings", path.display()));
            problem
        }
        error => panic!("{error:?}"),
    };
    assert_eq!(what(store.check().await.unwrap_err()), "table agent_bindings does not exist");
    assert_eq!(everything_in(&pool).await, Vec::<String>::new());
    store.set_up().await.unwrap();
    store.check().await.unwrap();
    sqlx::query("DELETE FROM agent_bindings_meta").execute(&pool).await.unwrap();
    assert_eq!(what(store.check().await.unwrap_err()), "table agent_bindings_meta has no row");
    sqlx::query("DROP TABLE agent_bindings_meta").execute(&pool).await.unwrap();
    assert_eq!(what(store.check().await.unwrap_err()), "table agent_bindings_meta does not exist");
    store.set_up().await.unwrap();
    store.check().await.unwrap();
}

#[tokio::test]
async fn a_migration_with_the_public_schema_equals_set_up() {
    let directory = tempfile::tempdir().unwrap();
    let migrated = foreign_pool(&directory.path().join("migrated.db")).await;
    let mut migration = migrated.begin().await.unwrap();
    sqlx::raw_sql(SqliteStore::SCHEMA).execute(&mut *migration).await.unwrap();
    migration.commit().await.unwrap();
    let store = SqliteStore::new(migrated.clone());
    store.check().await.unwrap();

    let opened = SqliteStore::open(directory.path().join("opened.db")).await.unwrap();
    assert_eq!(everything_in(&migrated).await, everything_in(opened.pool()).await);

    // A second set-up changes neither the schema nor the rows.
    let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
    sqlx::query("UPDATE agent_bindings_meta SET revision_floor = 5")
        .execute(&migrated)
        .await
        .unwrap();
    sqlx::raw_sql(SqliteStore::SCHEMA).execute(&migrated).await.unwrap();
    store.set_up().await.unwrap();
    assert_eq!(store.load(session(1)).await.unwrap(), Some(row(1, 1, Some(target(1)), 1, None)));
    let floor: i64 = sqlx::query_scalar("SELECT revision_floor FROM agent_bindings_meta")
        .fetch_one(&migrated)
        .await
        .unwrap();
    assert_eq!(floor, 5);
}

#[tokio::test]
async fn two_tables_of_one_database_are_independent() {
    let store = in_memory().await;
    // An SQL keyword is a valid name.
    let other = store.clone().with_table("Select").unwrap();
    other.set_up().await.unwrap();
    other.check().await.unwrap();
    let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
    assert_eq!(other.load(session(1)).await.unwrap(), None);
    assert_eq!(other.retarget(session(1), workspace(2)).await.unwrap(), row(1, 2, None, 1, None));
    assert_eq!(store.load(session(1)).await.unwrap(), Some(row(1, 1, Some(target(1)), 1, None)));
}

#[tokio::test]
async fn a_table_name_with_a_quote_never_reaches_the_database() {
    let store = in_memory().await;
    let before = everything_in(store.pool()).await;
    for name in ["x\"; DROP TABLE agent_bindings; --", "x'", "", "sqlite_x", "täble", "a.b"] {
        let error = store.clone().with_table(name).unwrap_err();
        assert!(
            matches!(&error, StoreError::TableName { name: named } if named == name),
            "{error:?}"
        );
    }
    assert_eq!(everything_in(store.pool()).await, before);
}

#[tokio::test]
async fn a_read_only_database_cannot_be_set_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("application.db");
    let pool = foreign_pool(&path).await;
    sqlx::raw_sql("CREATE TABLE notes (text TEXT)").execute(&pool).await.unwrap();
    pool.close().await;

    let file = SqliteConnectOptions::new().filename(&path);
    for options in [file.clone().read_only(true), file.read_only(true).immutable(true)] {
        let store = SqliteStore::new(SqlitePool::connect_with(options).await.unwrap());
        let error = store.set_up().await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Open { path: named, .. } if *named == path),
            "{error:?}"
        );
        store.pool().close().await;
    }
}

#[tokio::test]
async fn existing_tables_can_be_opened_read_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("application.db");
    let pool = foreign_pool(&path).await;
    let store = SqliteStore::new(pool);
    store.set_up().await.unwrap();
    let _ = store.create(new(1, 1, None)).await.unwrap();

    let reader =
        SqlitePool::connect_with(SqliteConnectOptions::new().filename(&path).read_only(true))
            .await
            .unwrap();
    let reader = SqliteStore::new(reader);
    reader.check().await.unwrap();
    reader.set_up().await.unwrap(); // nothing to do
    assert_eq!(reader.load(session(1)).await.unwrap(), Some(row(1, 1, None, 1, None)));
    let error = reader.retarget(session(1), workspace(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::Rejected(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_open_the_same_new_file_at_the_same_moment() {
    for _ in 0..10 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bindings.db");
        let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(SqliteStore::open(path.clone()))).collect();
        for task in tasks {
            task.await.unwrap().unwrap().check().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_that_do_not_wait_for_locks_set_up_at_the_same_moment() {
    for mode in [SqliteJournalMode::Delete, SqliteJournalMode::Wal] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("application.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let first = SqlitePool::connect_with(options.clone().journal_mode(mode)).await.unwrap();
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let pool =
                    SqlitePool::connect_lazy_with(options.clone().busy_timeout(Duration::ZERO));
                tokio::spawn(async move { SqliteStore::new(pool).set_up().await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        SqliteStore::new(first).check().await.unwrap();
    }
}

#[tokio::test]
async fn a_removed_file_is_not_replaced_by_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bindings.db");
    let store = SqliteStore::open(&path).await.unwrap();
    // The connection that `open` used returns to the pool a moment later. It holds the removed
    // file, so `load` must not use it.
    while store.pool().num_idle() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let _used = store.pool().acquire().await.unwrap();
    assert_eq!(store.pool().size(), 1);
    for file in fs::read_dir(directory.path()).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let error = store.load(session(1)).await.unwrap_err(); // on a new connection
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(!path.exists());
}

#[tokio::test]
async fn an_open_file_is_found_from_another_directory() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(directory.path().join("bindings.db")).await.unwrap();
    assert!(store.pool().connect_options().get_filename().is_absolute());
}

#[tokio::test]
async fn debug_shows_the_location_and_no_secret() {
    let options = SqliteConnectOptions::new().filename("/tmp/secret.db").pragma("key", "'xyzzy'");
    let store = SqliteStore::new(SqlitePoolOptions::new().connect_lazy_with(options));
    assert_eq!(
        format!("{store:?}"),
        r#"SqliteStore { file: "/tmp/secret.db", table: "agent_bindings", .. }"#
    );
}

/// Columns that housekeeping and other programs read.
#[tokio::test]
async fn a_tombstone_keeps_its_revision_and_deletion_time() {
    let store = in_memory().await;
    let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
    let now = || {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
            as i64
    };
    let before = now();
    assert!(store.forget(session(1), None).await.unwrap());
    let after = now();
    let sql = "SELECT *, coalesce(workspace, agent, build, generation, address) AS gone FROM agent_bindings";
    let left = sqlx::query(sql).fetch_one(store.pool()).await.unwrap();
    assert_eq!(left.get::<Uuid, _>("session"), session(1).into_uuid());
    assert_eq!(left.get::<i64, _>("revision"), 2);
    assert_eq!(left.get::<Option<Vec<u8>>, _>("gone"), None);
    assert!((before..=after).contains(&left.get::<i64, _>("deleted_at")));
    assert_eq!(
        store.retarget(session(1), workspace(1)).await.unwrap(),
        row(1, 1, None, 3, previous(1))
    );
    let deleted_at: Option<i64> = sqlx::query_scalar("SELECT deleted_at FROM agent_bindings")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(deleted_at, None);
}

#[tokio::test]
async fn new_rows_start_above_the_floor_and_existing_ones_continue() {
    let store = in_memory().await;
    let _ = store.create(new(1, 1, Some(target(1)))).await.unwrap();
    let _ = store.create(new(2, 1, None)).await.unwrap();
    assert!(store.forget(session(2), None).await.unwrap());
    sqlx::query("UPDATE agent_bindings_meta SET revision_floor = 100")
        .execute(store.pool())
        .await
        .unwrap();
    assert_eq!(
        store.create(new(3, 1, None)).await.unwrap(),
        Swap::Applied(row(3, 1, None, 101, None))
    );
    assert_eq!(store.retarget(session(4), workspace(1)).await.unwrap(), row(4, 1, None, 101, None));
    let inherited = Swap::Applied(row(5, 1, Some(target(1)), 101, None));
    assert_eq!(store.inherit(session(5), session(1)).await.unwrap(), inherited);
    assert_eq!(
        store.create(new(2, 1, None)).await.unwrap(),
        Swap::Applied(row(2, 1, None, 3, None))
    );
    assert_eq!(
        store.retarget(session(1), workspace(1)).await.unwrap(),
        row(1, 1, Some(target(1)), 2, None)
    );

    // Without the floor, no row is created, since its revision might have been used before.
    sqlx::query("DELETE FROM agent_bindings_meta").execute(store.pool()).await.unwrap();
    assert!(matches!(store.create(new(6, 1, None)).await, Err(StoreError::Rejected(_))));
    assert_eq!(store.load(session(6)).await.unwrap(), None);
}
