//! The number of statements of each verb, counted by SQLite itself.

use super::*;
use libsqlite3_sys::{SQLITE_TRACE_STMT, sqlite3_trace_v2};
use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    sync::{Arc, Mutex},
};
use tower_bound_agent::{
    Target,
    store::{BindingStore, Swap},
};

/// A target without a generation.
fn bare(generation: i64) -> Arc<Target> {
    Arc::new(Target::new(target(generation).agent))
}

/// The statements that SQLite has begun on the one connection of the store.
struct Trace {
    store: SqliteStore,
    begun: &'static Mutex<Vec<String>>,
}

unsafe extern "C" fn statement(
    _: c_uint,
    begun: *mut c_void,
    _: *mut c_void,
    text: *mut c_void,
) -> c_int {
    // SAFETY: the context is the leaked list, the text is SQLite's and ends with a nul.
    let (begun, text) =
        unsafe { (&*begun.cast::<Mutex<Vec<String>>>(), CStr::from_ptr(text.cast::<c_char>())) };
    begun.lock().unwrap().push(text.to_string_lossy().into_owned());
    0
}

impl Trace {
    async fn new() -> Self {
        let store = in_memory().await;
        let begun: &'static Mutex<Vec<String>> = Box::leak(Box::default());
        let mut connection = store.pool().acquire().await.unwrap();
        let mut handle = connection.lock_handle().await.unwrap();
        let context = std::ptr::from_ref(begun).cast_mut().cast::<c_void>();
        // SAFETY: the handle is locked, and the context lives for ever.
        let code = unsafe {
            sqlite3_trace_v2(
                handle.as_raw_handle().as_ptr(),
                SQLITE_TRACE_STMT as c_uint,
                Some(statement),
                context,
            )
        };
        assert_eq!(code, 0);
        drop(handle);
        drop(connection);
        Self { store, begun }
    }

    /// Returns the first words of the statements that began since the last call, without the nested
    /// statements of SQLite, which are marked.
    fn begun(&self) -> Vec<String> {
        let begun = std::mem::take(&mut *self.begun.lock().unwrap());
        let outer = begun.into_iter().filter(|text| !text.starts_with("--"));
        outer.map(|text| text.split_whitespace().next().unwrap_or_default().to_owned()).collect()
    }
}

#[tokio::test]
async fn a_verb_is_one_statement_and_a_conflict_one_more() {
    let trace = Trace::new().await;
    let store = &trace.store;
    assert_eq!(trace.begun(), Vec::<String>::new());

    let _ = store.load(session(1)).await.unwrap();
    assert_eq!(trace.begun(), ["SELECT"]);
    assert!(matches!(store.create(new(1, 1, Some(target(1)))).await.unwrap(), Swap::Applied(_)));
    assert_eq!(trace.begun(), ["INSERT"]);
    assert!(matches!(store.create(new(1, 1, None)).await.unwrap(), Swap::Conflict(Some(_))));
    assert_eq!(trace.begun(), ["INSERT", "SELECT"]);

    let swap = store.compare_and_swap(at(1), new(1, 1, Some(target(2)))).await.unwrap();
    assert!(matches!(swap, Swap::Applied(_)));
    assert_eq!(trace.begun(), ["UPDATE"]);
    let swap = store.compare_and_swap(at(1), new(1, 1, Some(target(2)))).await.unwrap();
    assert!(matches!(swap, Swap::Conflict(Some(_))));
    assert_eq!(trace.begun(), ["UPDATE", "SELECT"]);
    assert_eq!(store.compare_and_swap(at(1), new(9, 1, None)).await.unwrap(), Swap::Conflict(None));
    assert_eq!(trace.begun(), ["UPDATE", "SELECT"]);

    let _ = store.retarget(session(1), workspace(1)).await.unwrap();
    assert_eq!(trace.begun(), ["INSERT"]);
    let _ = store.retarget(session(2), workspace(2)).await.unwrap();
    assert_eq!(trace.begun(), ["INSERT"]);

    assert!(matches!(store.inherit(session(3), session(1)).await.unwrap(), Swap::Applied(_)));
    assert_eq!(trace.begun(), ["INSERT"]);
    assert!(matches!(
        store.inherit(session(3), session(1)).await.unwrap(),
        Swap::Conflict(Some(_))
    ));
    assert_eq!(trace.begun(), ["INSERT", "SELECT"]);
    assert_eq!(store.inherit(session(8), session(9)).await.unwrap(), Swap::Conflict(None));
    assert_eq!(trace.begun(), ["INSERT", "SELECT"]);

    assert!(store.unbind(session(1)).await.unwrap().is_some());
    assert_eq!(trace.begun(), ["UPDATE"]);
    assert!(store.unbind(session(9)).await.unwrap().is_none());
    assert_eq!(trace.begun(), ["UPDATE"]);
    assert_eq!(store.reset_workspace(workspace(1)).await.unwrap().rows, 2);
    assert_eq!(trace.begun(), ["BEGIN", "INSERT", "UPDATE", "COMMIT"]);
    for (target, current, chunk) in
        [(target(1), target(2), "of a generation"), (bare(1), bare(2), "of an agent")]
    {
        let _ = store.replace_agent(workspace(1), epoch(0), &target, &current, 5).await.unwrap();
        assert_eq!(trace.begun(), ["UPDATE"], "{chunk}");
    }
    assert_eq!(store.load_many(&[session(1), session(3), session(9)]).await.unwrap().len(), 2);
    assert_eq!(trace.begun(), ["SELECT"]);
    assert_eq!(store.load_many(&[]).await.unwrap(), []);
    assert_eq!(trace.begun(), [""; 0]);
    assert!(!store.forget(session(1), Some(at(1))).await.unwrap());
    assert_eq!(trace.begun(), ["UPDATE"]);
    assert!(store.forget(session(1), None).await.unwrap());
    assert_eq!(trace.begun(), ["UPDATE"]);
    assert!(
        matches!(store.create(new(1, 1, None)).await.unwrap(), Swap::Applied(_)),
        "over the deleted row"
    );
    assert_eq!(trace.begun(), ["INSERT"]);
}

#[tokio::test]
async fn a_set_up_of_existing_tables_writes_nothing() {
    let trace = Trace::new().await;
    trace.store.set_up().await.unwrap();
    trace.store.check().await.unwrap();
    let begun = trace.begun();
    assert!(begun.iter().all(|word| word == "SELECT"), "{begun:?}");
}

#[tokio::test]
async fn the_primary_key_and_the_index_are_used() {
    let store = in_memory().await;
    let plan = async |sql: &'static str| {
        let steps: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(sql).fetch_all(store.pool()).await.unwrap();
        steps.into_iter().map(|step| step.3).collect::<Vec<_>>().join("; ")
    };
    let load = plan(
        "EXPLAIN QUERY PLAN SELECT revision FROM agent_bindings WHERE session = ?1 AND workspace IS NOT NULL",
    );
    assert_eq!(load.await, "SEARCH agent_bindings USING PRIMARY KEY (session=?)");
    let reset =
        plan("EXPLAIN QUERY PLAN UPDATE agent_bindings SET agent = NULL WHERE workspace = ?1");
    assert_eq!(
        reset.await,
        "SEARCH agent_bindings USING INDEX agent_bindings_workspace (workspace=?)"
    );
    // The index ends in the key, so nothing needs to be sorted.
    let chunk = plan(
        "EXPLAIN QUERY PLAN SELECT session FROM agent_bindings WHERE workspace = ?1 AND generation < ?2
         ORDER BY session LIMIT ?3",
    );
    assert_eq!(
        chunk.await,
        "SEARCH agent_bindings USING INDEX agent_bindings_workspace (workspace=?)"
    );
}
