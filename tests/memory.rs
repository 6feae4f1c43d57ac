//! The memory of a cached binding, counted by the allocator.
//!
//! For a million bindings: `cargo test --release --test memory -- --ignored --nocapture`.

use futures_util::{Stream, stream};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicIsize, Ordering},
    },
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_bound_agent::{
    AgentId, Binding, BoundAgentLayer, BoxError, DialAgent, DialSession, Epoch, OutcomeKind,
    Resolution, ResolveWorkspace, Revision, SessionId, Target, WorkspaceId,
    store::{BindingStore, NewBinding, Reset, StoreError, Swap},
};
use uuid::Uuid;

struct Counting;

/// Bytes that are allocated and not freed.
static HELD: AtomicIsize = AtomicIsize::new(0);

// SAFETY: all arguments are passed unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of the method.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of the method.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.fetch_add(size as isize - layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of the method.
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of the method.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A store with a given number of rows. Each read decodes a new row, as a read from a database
/// does.
struct Rows {
    rows: u128,
    sessions_a_workspace: u128,
}

fn id(n: u128) -> Uuid {
    // Spreads the ids, as random ids are spread.
    Uuid::from_u128(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn target(workspace: WorkspaceId) -> Target {
    Target::new(AgentId::new(workspace.into_uuid()))
        .with_generation(1)
        .with_address("10.0.0.7:9000")
}

impl Rows {
    fn row(&self, n: u128) -> Binding {
        let workspace = WorkspaceId::new(id(n / self.sessions_a_workspace + (1 << 64)));
        Binding::new(
            SessionId::new(id(n)),
            workspace,
            Some(Arc::new(target(workspace))),
            Revision::new(1),
        )
    }
}

const READS_ONLY: StoreError = StoreError::Unsupported { verb: "a write" };

impl BindingStore for Rows {
    async fn load(&self, _: SessionId) -> Result<Option<Binding>, StoreError> {
        Ok(None)
    }
    async fn create(&self, _: NewBinding) -> Result<Swap, StoreError> {
        Err(READS_ONLY)
    }
    async fn compare_and_swap(&self, _: Revision, _: NewBinding) -> Result<Swap, StoreError> {
        Err(READS_ONLY)
    }
    async fn retarget(&self, _: SessionId, _: WorkspaceId) -> Result<Binding, StoreError> {
        Err(READS_ONLY)
    }
    async fn unbind(&self, _: SessionId) -> Result<Option<Binding>, StoreError> {
        Err(READS_ONLY)
    }
    async fn forget(&self, _: SessionId, _: Option<Revision>) -> Result<bool, StoreError> {
        Err(READS_ONLY)
    }
    async fn inherit(&self, _: SessionId, _: SessionId) -> Result<Swap, StoreError> {
        Err(READS_ONLY)
    }
    async fn reset_workspace(&self, _: WorkspaceId) -> Result<Reset, StoreError> {
        Err(READS_ONLY)
    }
    async fn replace_agent(
        &self,
        _: WorkspaceId,
        _: Epoch,
        _: &Target,
        _: &Arc<Target>,
        _: u64,
    ) -> Result<u64, StoreError> {
        Err(READS_ONLY)
    }
    async fn load_many(&self, _: &[SessionId]) -> Result<Vec<Binding>, StoreError> {
        Ok(Vec::new())
    }
    fn shared(&self) -> bool {
        false
    }
    fn recent(&self, limit: u64) -> impl Stream<Item = Result<Binding, StoreError>> + Send {
        stream::iter((0..self.rows.min(limit.into())).map(|n| Ok(self.row(n))))
    }
}

/// Returns the bytes per binding after the read, and after a call of its session and a validation
/// of its workspace.
async fn bytes_a_binding(rows: u128, sessions_a_workspace: u128) -> (isize, isize) {
    let resolver = service_fn(|ask: ResolveWorkspace| async move {
        Ok::<_, BoxError>(Resolution::Running(target(ask.workspace)))
    });
    let store = Rows { rows, sessions_a_workspace };
    let layer =
        BoundAgentLayer::builder(store, resolver).cache_capacity(rows as u64 * 2).build().unwrap();
    let mut dial = layer.layer(service_fn(|_: DialAgent| async { Ok::<_, BoxError>(()) }));
    let before = HELD.load(Ordering::Relaxed);
    let held = || (HELD.load(Ordering::Relaxed) - before) / rows as isize;
    assert_eq!(layer.bindings().warm(u64::MAX).await.unwrap(), rows as u64);
    let read = held();
    for n in 0..rows {
        let session = SessionId::new(id(n));
        let bound = dial.ready().await.unwrap().call(DialSession::new(session)).await.unwrap();
        assert_eq!(bound.outcome().kind, OutcomeKind::Reused);
        if n % sessions_a_workspace == 0 {
            layer.bindings().current(session).await.unwrap();
        }
    }
    (read, held())
}

#[tokio::test]
async fn a_binding_takes_little_memory() {
    // The cache itself takes nearly half of the memory.
    for (sessions_a_workspace, most_read, most_used) in [(1, 600, 955), (10, 390, 460)] {
        // The cache frees what it drops later, so a count may include what is no longer in it. The
        // least of three counts does not.
        let (mut read, mut used) = bytes_a_binding(20_000, sessions_a_workspace).await;
        for _ in 0..2 {
            let again = bytes_a_binding(20_000, sessions_a_workspace).await;
            (read, used) = (read.min(again.0), used.min(again.1));
        }
        println!(
            "{sessions_a_workspace} a workspace: {read} bytes a binding, {used} once called and validated"
        );
        assert!(
            read <= most_read && used <= most_used,
            "{sessions_a_workspace} a workspace: {read} and {used} bytes"
        );
    }
}

#[tokio::test]
#[ignore = "takes a while, and 2 GB"]
async fn measures_the_memory_of_a_million_bindings() {
    for sessions_a_workspace in [1, 10] {
        let (read, used) = bytes_a_binding(1_000_000, sessions_a_workspace).await;
        println!(
            "{sessions_a_workspace} a workspace: {read} bytes a binding, {used} once called and validated"
        );
    }
}
