//! The server stops answering while its socket still accepts data, and resumes later.

use super::*;
use tokio::time::{Instant, sleep_until};
use tower_bound_agent::{Bindings, Error, ErrorKind, Revision, store::StoreError};

/// The timeouts of a pool and a layer.
#[derive(Clone, Copy)]
struct Waits {
    /// The pool tests each connection before it returns it, so no statement is sent to a frozen
    /// server.
    asks_first: bool,
    acquire: Duration,
    store: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_continue_while_the_server_is_frozen_and_statements_run_at_most_once() {
    let Some(mut case) = Case::new().await else { return };
    let cautious = Waits { asks_first: true, acquire: ms(1000), store: ms(2000) };
    let rash = Waits { asks_first: false, acquire: ms(5000), store: ms(1500) };
    let (cautious, rash) = (Side::new(&case, cautious).await, Side::new(&case, rash).await);
    let before = case.world.counts();

    case.server.freeze();
    let end = Instant::now() + Duration::from_secs(20);
    let (new_of_cautious, new_of_rash) =
        tokio::join!(cautious.while_frozen(&case, end), rash.while_frozen(&case, end));
    case.server.thaw();

    let sides = [(cautious, new_of_cautious), (rash, new_of_rash)];
    for (side, _) in &sides {
        until_true("all repairs are written", async || side.bindings().flush().await == 0).await;
    }
    // Waits until each sent statement has ended and its connection is closed or back in the pool.
    let pools = [
        case.reader.pool(),
        sides[0].0.store.elsewhere().pool(),
        sides[1].0.store.elsewhere().pool(),
    ];
    until_true("each connection is idle or closed", async || {
        let all = pools.iter().map(|pool| i64::from(pool.size())).sum::<i64>();
        let there = match CONNECTIONS {
            Some(count) => sqlx::query_scalar(count).fetch_one(case.reader.pool()).await.unwrap(),
            None => all,
        };
        there == all && pools.iter().all(|pool| pool.num_idle() == pool.size() as usize)
    })
    .await;
    for (side, new) in &sides {
        side.after_the_thaw(&case, new).await;
    }
    assert_eq!(
        (case.world.counts() - before).v,
        3,
        "of the two rebuilds, and of the agent that the late unbind has dropped"
    );
    for (side, new) in sides {
        let (turns, longest) = side.load.end().await;
        assert_eq!(side.layer.bindings().close(Duration::from_secs(5)).await, 0);
        case.each_was_written_once(&side.rebuilt_rows, &side.rebuilt, &new).await;
        println!("{KIND}: {turns} turns, the longest took {longest:?}");
    }
}

const CONNECTIONS_OF_A_SIDE: u32 = 12;

/// Prepares each statement on each connection, so that later messages contain the execution only.
async fn warm_up(store: &Store) {
    let (workspace, all) = (workspace(), [(); CONNECTIONS_OF_A_SIDE as usize].map(|()| session()));
    let new = |session| NewBinding::new(session, workspace, None);
    // Each batch runs concurrently, after all connections are back in the pool, so that each call
    // uses a connection of its own.
    let pool = store.pool();
    drop(join_all(all.map(|_| pool.acquire())).await);
    let back = async || {
        until_true("all connections are back in the pool", async || pool.num_idle() == all.len())
            .await
    };
    back().await;
    join_all(all.map(|session| store.retarget(session, workspace))).await;
    back().await;
    join_all(all.map(|session| store.load(session))).await;
    back().await;
    join_all(all.map(|session| store.compare_and_swap(Revision::new(0), new(session)))).await;
    back().await;
    join_all(all.map(|session| store.unbind(session))).await;
    back().await;
    join_all(all.map(|parent| store.inherit(session(), parent))).await;
    back().await;
    join_all(all.map(|session| store.forget(session, None))).await;
    back().await;
}

/// A process of its own, with its own sessions.
struct Side {
    waits: Waits,
    store: Tap<Store>,
    layer: BoundAgentLayer,
    load: Load,
    /// A workspace whose sessions make turns continuously.
    busy: Workspace,
    /// The same, and the workspace is rebuilt meanwhile.
    rebuilt: Workspace,
    rebuilt_rows: BTreeMap<SessionId, Binding>,
    /// A workspace whose sessions receive commands: retarget to the other workspace, unbind,
    /// forget; the child inherits.
    commanded: Workspace,
    other: Workspace,
    rows: BTreeMap<SessionId, Binding>,
    child: SessionId,
    /// A session whose row was never read.
    cold: SessionId,
}

impl Side {
    async fn new(case: &Case, waits: Waits) -> Self {
        let pool =
            pool_options().test_before_acquire(waits.asks_first).acquire_timeout(waits.acquire);
        let store = Tap::over(store(
            pool.max_connections(CONNECTIONS_OF_A_SIDE).connect_lazy_with(case.options()),
        ));
        warm_up(store.elsewhere()).await;
        let layer = case.builder(&store).store_timeout(waits.store).build().unwrap();
        let (busy, rebuilt) = (case.workspace(&layer, 50).await, case.workspace(&layer, 20).await);
        let (commanded, other) = (case.workspace(&layer, 4).await, case.workspace(&layer, 1).await);
        let (child, cold) = (session(), case.cold_session(&other).await);
        let groups = [busy.sessions.clone(), rebuilt.sessions.clone()];
        let (rebuilt_rows, rows) =
            (case.rows(&rebuilt.sessions).await, case.rows(&commanded.sessions).await);
        let load = Load::start(&case.world, &layer, &groups);
        load.go_on(&groups.concat(), 2).await;
        Self {
            waits,
            store,
            layer,
            load,
            busy,
            rebuilt,
            rebuilt_rows,
            commanded,
            other,
            rows,
            child,
            cold,
        }
    }

    fn bindings(&self) -> Bindings {
        self.layer.bindings()
    }

    /// Returns the target of the rebuild.
    async fn while_frozen(&self, case: &Case, end: Instant) -> Target {
        let (bindings, reads) = (self.bindings(), self.store.reads());
        let [to_retarget, to_unbind, to_forget, parent] = self.commanded.sessions[..] else {
            panic!("four of them")
        };
        tokio::join!(
            self.fails(bindings.retarget(to_retarget, self.other.id)),
            self.fails(bindings.unbind(to_unbind)),
            self.fails(bindings.forget(to_forget)),
            self.fails(bindings.inherit(self.child, parent)),
        );
        // The layer with the short timeout has read the rows to see whether the commands were
        // executed, and two of them for the child.
        assert_eq!(self.store.reads() - reads, if self.waits.asks_first { 0 } else { 5 });

        let begin = Instant::now();
        let error = ends(call(&case.world.dial(&self.layer), self.cold)).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Store, "{error:?}");
        assert!(
            begin.elapsed() < self.waits.acquire.min(self.waits.store) + SLACK,
            "{:?}",
            begin.elapsed()
        );

        let new = case.rebuild(&self.rebuilt, Does::Fail(ms(1)));
        self.load.talks_to(&self.rebuilt.sessions, new.agent).await;
        self.load.is_retrying(&self.rebuilt.sessions).await;
        let reads = self.store.reads();
        self.load.go_on(&self.busy.sessions, 10).await;
        sleep_until(end).await;
        assert_eq!(self.store.reads(), reads);
        new
    }

    /// Asserts that a command ends in time, and that its error states whether the outcome is known.
    async fn fails<T: std::fmt::Debug>(&self, command: impl Future<Output = Result<T, Error>>) {
        let begin = Instant::now();
        let error = ends(command).await.unwrap_err();
        let (expected, within) = if self.waits.asks_first {
            assert!(matches!(store_error(&error), StoreError::Unavailable(_)), "{error:?}");
            (ErrorKind::Store, self.waits.acquire)
        } else {
            assert!(matches!(store_error(&error), StoreError::Unknown(_)), "{error:?}");
            (ErrorKind::OutcomeUnknown, 2 * self.waits.store)
        };
        assert_eq!(error.kind(), &expected, "{error:?}");
        assert!(begin.elapsed() < within + SLACK, "{:?}", begin.elapsed());
    }

    async fn after_the_thaw(&self, case: &Case, new: &Target) {
        case.each_was_written_once(&self.rebuilt_rows, &self.rebuilt, new).await;
        let [to_retarget, to_unbind, to_forget, parent] = self.commanded.sessions[..] else {
            panic!("four of them")
        };
        let mut rows = case.rows(&self.commanded.sessions).await;
        assert_eq!(rows[&parent], self.rows[&parent]);
        let child = case.reader.load(self.child).await.unwrap();
        let mut happened = Vec::new();

        let dial = case.world.dial(&self.layer);
        let (own, other) = (self.commanded.target.agent, self.other.target.agent);
        let before = self.store.reads();
        for (session, command) in
            [(to_retarget, "retarget"), (to_unbind, "unbind"), (to_forget, "forget")]
        {
            let (was, is) = (&self.rows[&session], rows.remove(&session));
            let said = call(&dial, session).await;
            if is.as_ref() == Some(was) {
                assert_eq!(said.unwrap().agent, own, "{command} was not executed");
                continue;
            }
            happened.push(command);
            if command == "forget" {
                assert_eq!((is, said.unwrap_err().kind()), (None, &ErrorKind::NotBound));
                continue;
            }
            let is = is.unwrap();
            let (workspace, agent) = if command == "retarget" {
                (self.other.id, other)
            } else {
                (self.commanded.id, own)
            };
            assert_eq!((is.workspace, is.target), (workspace, None), "{command}");
            assert_eq!(is.revision.get(), was.revision.get() + 1, "{command}, once");
            assert_eq!(said.unwrap().agent, agent, "{command}");
        }
        // After a command with an unknown outcome, the row is read from the store, not from the
        // cache.
        assert_eq!(self.store.reads() - before, if self.waits.asks_first { 0 } else { 3 });
        match (child, call(&dial, self.child).await) {
            (Some(child), said) => {
                happened.push("inherit");
                assert_eq!(
                    (child.workspace, &child.target),
                    (self.commanded.id, &rows[&parent].target)
                );
                assert_eq!(said.unwrap().agent, own);
            }
            (None, said) => assert_eq!(said.unwrap_err().kind(), &ErrorKind::NotBound),
        }
        // Sent statements are completed, and so are their transactions, even if the caller has
        // stopped waiting.
        let expected: &[&str] =
            if self.waits.asks_first { &[] } else { &["retarget", "unbind", "forget", "inherit"] };
        assert_eq!(happened, expected);
        assert_eq!(call(&dial, self.cold).await.unwrap().agent, other);
    }
}
