//! The cost of a call of a cached session: allocations and statements.
//!
//! The allocator counts the allocations of the thread that makes the calls, and SQLite counts the
//! statements.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    future::poll_fn,
    mem::size_of,
    pin::Pin,
    task::{Context, Poll},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_bound_agent::{
    AgentId, Bound, BoundAgent, BoundAgentLayer, BoxError, DialAgent, DialSession, Error,
    OutcomeKind, Resolution, ResolveWorkspace, ResponseFuture, SessionId, Target, WorkspaceId,
    store::BindingStore, store::MemoryStore,
};
use uuid::Uuid;

struct Counting;

thread_local! {
    // Constant and without a destructor, because the allocator may be called at any time.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all arguments are passed unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller upholds the contract of the method.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller upholds the contract of the method.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller upholds the contract of the method.
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of the method.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A dial that allocates nothing and is ready after a given number of polls.
#[derive(Clone, Copy)]
struct Dialer {
    pending: u8,
}

struct Dial {
    pending: u8,
}

impl Future for Dial {
    type Output = Result<u64, BoxError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.pending == 0 {
            return Poll::Ready(Ok(7));
        }
        self.pending -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Service<DialAgent> for Dialer {
    type Response = u64;
    type Error = BoxError;
    type Future = Dial;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: DialAgent) -> Dial {
        Dial { pending: self.pending }
    }
}

const TURNS: usize = 1_000;

fn chat(n: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(n))
}

fn layer(store: impl BindingStore) -> BoundAgentLayer {
    let target = Target::new(AgentId::new(Uuid::from_u128(7)))
        .with_generation(1)
        .with_address("10.0.0.7:9000");
    let resolver = service_fn(move |_: ResolveWorkspace| {
        let target = target.clone();
        async move { Ok::<_, BoxError>(Resolution::Running(target)) }
    });
    BoundAgentLayer::builder(store, resolver).build().unwrap()
}

/// Binds these sessions and waits for the writes. The rows stay cached.
async fn bind(layer: &BoundAgentLayer, sessions: u128) {
    for n in 0..sessions {
        let ask = DialSession::new(chat(n)).in_workspace(WorkspaceId::new(Uuid::from_u128(1)));
        layer.layer(Dialer { pending: 0 }).oneshot(ask).await.unwrap();
    }
    assert_eq!(layer.bindings().flush().await, 0);
}

/// Returns the allocations of each call, from the request to the drop of the connection.
async fn measure(dial: &mut BoundAgent<Dialer>) -> Vec<usize> {
    let mut counts = Vec::with_capacity(TURNS);
    for turn in 0..TURNS {
        COUNT.set(0);
        poll_fn(|cx| dial.poll_ready(cx)).await.unwrap();
        let bound = dial.call(DialSession::new(chat(turn as u128 % 10))).await.unwrap();
        assert_eq!((*bound, &bound.outcome().kind), (7, &OutcomeKind::Reused));
        drop(bound);
        counts.push(COUNT.get());
    }
    counts
}

/// Asserts the number of allocations of a call.
fn check(what: &str, mut allocations: Vec<usize>, usual: usize) {
    let total: usize = allocations.iter().sum();
    allocations.sort_unstable();
    let [least, median] = [allocations[0], allocations[TURNS / 2]];
    let more = allocations.iter().filter(|found| **found > usual).count();
    println!(
        "{what}: {median} allocation(s); {total} in {TURNS} calls, {more} with more than usual"
    );
    assert_eq!((least, median), (usual, usual), "{what}");
    // The cache applies its log of reads after every 64 reads and every 300 ms, which may allocate.
    assert!(more <= TURNS / 50, "{what}: {more} calls with more than usual");
    assert!(total <= TURNS * usual + TURNS / 20, "{what}: {total}");
}

#[tokio::test]
async fn a_cached_call_allocates_nothing() {
    let layer = layer(MemoryStore::new());
    bind(&layer, 10).await;
    let mut ready = layer.layer(Dialer { pending: 0 });
    measure(&mut ready).await;
    check("ready at once", measure(&mut ready).await, 0);

    // The timer and the wake-ups of a pending dial are in the future.
    let mut pending = layer.layer(Dialer { pending: 1 });
    check("pending once", measure(&mut pending).await, 0);
    let mut pending = layer.layer(Dialer { pending: 5 });
    check("pending five times", measure(&mut pending).await, 0);
}

#[tokio::test]
async fn a_clone_for_each_call_costs_no_more() {
    let layer = layer(MemoryStore::new());
    bind(&layer, 10).await;
    let dial = layer.layer(Dialer { pending: 0 });
    dial.clone().oneshot(chat(0).into()).await.unwrap();
    let mut most = Vec::new();
    for _ in 0..100 {
        let before = COUNT.get();
        let bound = dial.clone().oneshot(chat(0).into()).await.unwrap();
        most.push(COUNT.get() - before);
        drop(bound);
    }
    most.sort_unstable();
    assert_eq!((most[0], most[50]), (0, 0));
}

#[test]
fn public_types_are_small() {
    assert_eq!(size_of::<Error>(), 8);
    // The usual call is all in there. Grown without being noticed, it would be copied for every
    // call.
    let size = size_of::<ResponseFuture<Dialer>>();
    println!("ResponseFuture<Dialer>: {size} bytes");
    assert!(size <= 512, "{size} bytes");
    println!(
        "Bound<u64>: {} bytes, Result of it: {}",
        size_of::<Bound<u64>>(),
        size_of::<Result<Bound<u64>, Error>>()
    );
    assert!(size_of::<Bound<u64>>() <= 128);
    assert_eq!(size_of::<Result<Bound<u64>, Error>>(), size_of::<Bound<u64>>());
}

#[cfg(feature = "sqlite")]
mod statements {
    use super::*;
    use libsqlite3_sys::{SQLITE_OK, SQLITE_TRACE_STMT, sqlite3_trace_v2};
    use std::{
        ffi::{c_int, c_uint, c_void},
        ptr::null_mut,
        sync::atomic::{AtomicU64, Ordering::SeqCst},
    };
    use tower_bound_agent::{
        sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions},
        store::SqliteStore,
    };

    static BEGUN: AtomicU64 = AtomicU64::new(0);

    unsafe extern "C" fn begun(_: c_uint, _: *mut c_void, _: *mut c_void, _: *mut c_void) -> c_int {
        BEGUN.fetch_add(1, SeqCst);
        0
    }

    /// Creates a store over a file that counts all statements of every connection.
    async fn watched(file: &std::path::Path) -> SqliteStore {
        let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
        let pool = SqlitePoolOptions::new().max_connections(4).after_connect(|connection, _| {
            Box::pin(async move {
                let mut handle = connection.lock_handle().await?;
                let database = handle.as_raw_handle().as_ptr();
                // SAFETY: the handle is locked, and the callback needs no context.
                let code = unsafe {
                    sqlite3_trace_v2(database, SQLITE_TRACE_STMT as c_uint, Some(begun), null_mut())
                };
                assert_eq!(code, SQLITE_OK);
                Ok(())
            })
        });
        let store = SqliteStore::new(pool.connect_with(options).await.unwrap());
        store.set_up().await.unwrap();
        store
    }

    #[tokio::test]
    async fn a_cached_turn_sends_no_statement() {
        let folder = tempfile::tempdir().unwrap();
        let store = watched(&folder.path().join("bindings.db")).await;
        let before = BEGUN.load(SeqCst);
        let first = layer(store.clone());
        bind(&first, 10).await;
        assert!(BEGUN.load(SeqCst) - before >= 20, "a read and a first bind each");

        // Another process sends one read by primary key for each session, and no other statement.
        let second = layer(store.clone());
        let dial = second.layer(Dialer { pending: 1 });
        let before = BEGUN.load(SeqCst);
        for n in 0..10 {
            dial.clone().oneshot(chat(n).into()).await.unwrap();
        }
        assert_eq!(BEGUN.load(SeqCst) - before, 10);
        let before = BEGUN.load(SeqCst);
        for turn in 0..TURNS {
            let bound = dial.clone().oneshot(chat(turn as u128 % 10).into()).await.unwrap();
            assert_eq!(bound.outcome().kind, OutcomeKind::Reused);
        }
        assert_eq!(second.bindings().flush().await, 0);
        assert_eq!(BEGUN.load(SeqCst) - before, 0);

        second.bindings().retarget(chat(0), WorkspaceId::new(Uuid::from_u128(2))).await.unwrap();
        assert_eq!(BEGUN.load(SeqCst) - before, 1, "a command is one statement");
        assert_eq!(first.bindings().close(std::time::Duration::from_secs(5)).await, 0);
        assert_eq!(second.bindings().close(std::time::Duration::from_secs(5)).await, 0);
        store.pool().close().await;
    }
}
