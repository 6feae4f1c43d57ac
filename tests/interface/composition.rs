//! Composition with Tower: `Send`, `Sync` and `Clone`, middleware around and inside the layer, and
//! the traits of a bound connection.

use std::{
    cell::Cell,
    io::IoSlice,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task::spawn};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt,
    buffer::Buffer,
    limit::ConcurrencyLimit,
    service_fn,
    timeout::{Timeout, error::Elapsed},
    util::BoxCloneSyncService,
};
use tower_bound_agent::{
    AgentId, Binding, Bindings, Bound, BoundAgent, BoundAgentBuilder, BoundAgentLayer, BoundHandle,
    BuildError, BuildId, Current, DialAgent, DialSession, Error, ErrorKind, Event, Generation,
    LastVerdict, Outcome, OutcomeKind, Previous, Redial, Repair, RepairMode, Resolution,
    ResolveWorkspace, ResponseFuture, Retargeted, Revision, SessionId, Status, Target, WorkspaceId,
    store::{MemoryStore, NewBinding, StoreError, Swap},
};

fn send<T: Send>() {}
fn sync<T: Sync>() {}
fn unpin<T: Unpin>() {}
fn clone<T: Clone>() {}

macro_rules! all {
    ($($name:ty),* $(,)?) => {$(
        send::<$name>();
        sync::<$name>();
        unpin::<$name>();
    )*};
}

macro_rules! all_and_clone {
    ($($name:ty),* $(,)?) => {$(
        all!($name);
        clone::<$name>();
    )*};
}

#[test]
fn public_types_are_send_and_sync() {
    all_and_clone!(
        SessionId,
        WorkspaceId,
        BuildId,
        AgentId,
        Generation,
        Revision,
        Target,
        Previous,
        Binding,
        DialSession,
        DialAgent,
        ResolveWorkspace,
        Resolution,
        Outcome,
        OutcomeKind,
        Repair,
        Redial,
        RepairMode,
        ErrorKind,
        LastVerdict,
        BuildError,
        Current,
        Status,
        Event<'static>,
        Bindings,
        BoundHandle,
        BoundAgentLayer,
        BoundAgent<StrictDialer>,
        MemoryStore,
        NewBinding,
        Swap,
    );
    all!(Error, StoreError, BoundAgentBuilder, Retargeted, Bound<TcpStream>);
    #[cfg(feature = "sqlite")]
    all_and_clone!(tower_bound_agent::store::SqliteStore);
    // A connection that is not `Sync` or not `Unpin` can be bound as well.
    send::<Bound<Cell<u8>>>();
    send::<ResponseFuture<tower_test::mock::Mock<DialAgent, Cell<u8>>>>();
    // Errors convert into `BoxError`.
    fn into_box<E: Into<BoxError>>() {}
    into_box::<Error>();
    into_box::<BuildError>();
    into_box::<StoreError>();
}

/// Asserts that the futures of all methods of `Bindings` are `Send`.
#[tokio::test]
async fn every_method_of_bindings_can_be_spawned() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let (bindings, child) = (layer.bindings(), session());
    tokio::spawn(async move {
        bindings.get(chat).await.unwrap();
        bindings.current(chat).await.unwrap();
        bindings.inherit(child, chat).await.unwrap();
        bindings.unbind(child).await.unwrap();
        bindings.retarget(child, ws).await.unwrap();
        bindings.forget(child).await.unwrap();
        bindings.reset_workspace(ws).await.unwrap();
        bindings.revalidate_workspace(ws);
        bindings.flush().await;
        bindings.close(ms(1_000)).await
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boxed_service_is_shared_between_threads() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let before = world.counts();
    // The service as an axum state holds it.
    let erased: BoxCloneSyncService<DialSession, Bound<Conn>, Error> =
        BoxCloneSyncService::new(world.dial(&layer));
    sync::<BoxCloneSyncService<DialSession, Bound<Conn>, Error>>();
    let tasks = (0..20).map(|_| {
        let erased = erased.clone();
        tokio::spawn(async move { erased.oneshot(chat.into()).await.unwrap().agent })
    });
    for task in tasks.collect::<Vec<_>>() {
        assert_eq!(task.await.unwrap(), target.agent);
    }
    assert_eq!(world.counts() - before, counts(20, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn every_service_of_a_layer_shares_its_state() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let before = world.counts();
    let services = [
        world.dial(&layer),
        layer.clone().layer(world.dialer()),
        Layer::layer(&layer, world.dialer()),
    ];
    for dial in services {
        call(&dial, chat).await.unwrap();
    }
    let built = ServiceBuilder::new()
        .map_response(|bound: Bound<Conn>| bound)
        .layer(layer)
        .service(world.dialer());
    call(&built, chat).await.unwrap();
    assert_eq!(world.counts() - before, counts(4, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_resolver_need_not_be_sync() {
    #[derive(Clone)]
    struct Counts(Cell<usize>, Target);
    impl Service<ResolveWorkspace> for Counts {
        type Response = Resolution;
        type Error = std::convert::Infallible;
        type Future = std::future::Ready<Result<Resolution, Self::Error>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            self.0.set(self.0.get() + 1);
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: ResolveWorkspace) -> Self::Future {
            assert_eq!(self.0.get(), 1, "asked for readiness once, as a fresh clone");
            std::future::ready(Ok(Resolution::Running(self.1.clone())))
        }
    }
    let world = World::new();
    let target = world.agent(None);
    let layer = BoundAgentLayer::builder(world.store.clone(), Counts(Cell::new(0), target.clone()))
        .build()
        .unwrap();
    let dial = world.dial(&layer);
    for _ in 0..2 {
        let bound =
            call(&dial, DialSession::new(session()).in_workspace(workspace())).await.unwrap();
        assert_eq!(bound.agent, target.agent);
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_works_behind_a_buffer_a_limit_and_a_timeout() {
    let world = World::new();
    let [(first, _), (second, _)] = [world.workspace(), world.workspace()];
    world.resolver_takes(first, ms(100));
    world.resolver_takes(second, ms(100));
    let resolver = ServiceBuilder::new()
        .buffer(8)
        .concurrency_limit(1)
        .timeout(ms(150))
        .service(world.resolver());
    let layer = BoundAgentLayer::builder(world.store.clone(), resolver).build().unwrap();
    let dial = world.dial(&layer);
    let begin = Instant::now();
    let (one, two) = tokio::join!(
        call(&dial, DialSession::new(session()).in_workspace(first)),
        call(&dial, DialSession::new(session()).in_workspace(second)),
    );
    one.unwrap();
    two.unwrap();
    assert_eq!(begin.elapsed(), ms(200), "the questions run in sequence");

    // The resolver's own timeout is an unknown answer with the timeout as its cause.
    let (third, _) = world.workspace();
    world.resolver_takes(third, ms(200));
    let begin = Instant::now();
    let error = call(&dial, DialSession::new(session()).in_workspace(third)).await.unwrap_err();
    assert_eq!((error.kind(), begin.elapsed()), (&ErrorKind::Resolver, ms(150)));
    assert!(error.validation_error().unwrap().is::<Elapsed>(), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outer_timeout_shorter_than_the_delay_still_gets_the_binding_repaired() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let dial = Timeout::new(world.dial(&layer), ms(100));
    // The resolver has just named the agent for the bind. During this interval, a dropped dial
    // causes no question.
    sleep(ms(2_000)).await;
    let new = world.rebuild(ws, &old, Does::Hang);

    let before = world.counts();
    let error = dial.clone().oneshot(chat.into()).await.unwrap_err();
    assert!(error.is::<Elapsed>());
    assert_eq!((world.counts() - before, world.live_dials()), (counts(1, 0, 0, 0), 0));

    let (before, begin) = (world.counts(), Instant::now());
    let bound = dial.clone().oneshot(chat.into()).await.unwrap();
    assert_eq!((bound.agent, begin.elapsed()), (new.agent, ms(0)));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));
    assert_eq!(world.row_agent(chat), Some(new.agent));
}

#[tokio::test(start_paused = true)]
async fn an_inner_timeout_is_a_failed_dial() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let dial = layer.layer(Timeout::new(world.dialer(), ms(100)));
    world.does(&old, Does::Hang);

    let (before, begin) = (world.counts(), Instant::now());
    let error = call(&dial, chat).await.unwrap_err();
    assert_eq!((error.kind(), begin.elapsed()), (&ErrorKind::Unreachable { newer: None }, ms(200)));
    assert!(error.dial_error().unwrap().is::<Elapsed>());
    assert_eq!(world.counts() - before, counts(2, 1, 0, 0));

    let new = world.rebuild(ws, &old, Does::Hang);
    let (before, begin) = (world.counts(), Instant::now());
    assert_eq!(call(&dial, chat).await.unwrap().agent, new.agent);
    assert_eq!(begin.elapsed(), ms(100));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_inner_limit_of_one_does_not_block_a_switch() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let dial = layer.layer(ConcurrencyLimit::new(world.dialer(), 1));
    let new = world.rebuild(ws, &old, Does::Hang);
    let begin = Instant::now();
    assert_eq!(call(&dial, chat).await.unwrap().agent, new.agent);
    assert_eq!(begin.elapsed(), ms(250));

    // An outer limit does not block it either.
    let newest = world.rebuild(ws, &new, Does::Hang);
    let dial = ConcurrencyLimit::new(dial, 1);
    let begin = Instant::now();
    let (one, two) = tokio::join!(call(&dial, chat), call(&dial, chat));
    assert_eq!((one.unwrap().agent, two.unwrap().agent), (newest.agent, newest.agent));
    assert_eq!(begin.elapsed(), ms(250), "the second call uses the known target");
}

#[tokio::test(start_paused = true)]
async fn a_slow_resolver_of_one_session_does_not_delay_another_dial() {
    let world = World::new();
    let [(quick, target), (slow, _)] = [world.workspace(), world.workspace()];
    let layer = world.layer();
    let chat = world.bind(&layer, quick).await;
    let dial = layer.layer(ConcurrencyLimit::new(world.dialer(), 1));
    world.resolver_takes(slow, ms(3_000));
    let (begin, first) = (Instant::now(), DialSession::new(session()).in_workspace(slow));
    let waiting = tokio::spawn({
        let dial = dial.clone();
        async move { call(&dial, first).await.map(drop) }
    });
    sleep(ms(10)).await;
    let before = world.counts();
    assert_eq!(call(&dial, chat).await.unwrap().agent, target.agent);
    assert_eq!((begin.elapsed(), world.counts() - before), (ms(10), counts(1, 0, 0, 0)));
    waiting.await.unwrap().unwrap();
    assert_eq!(begin.elapsed(), ms(3_000));
}

#[tokio::test(start_paused = true)]
async fn a_cold_session_holds_no_permit_while_its_row_is_read() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let [cached, cold] = [world.bind(&layer, ws).await, session()];
    layer.bindings().inherit(cold, cached).await.unwrap();
    let other = world.layer();
    call(&world.dial(&other), cached).await.unwrap();
    let dial = other.layer(ConcurrencyLimit::new(world.dialer(), 1));
    world.store.on_reads(Fault::Slow(ms(2_000)));
    let begin = Instant::now();
    let waiting = tokio::spawn({
        let dial = dial.clone();
        async move { call(&dial, cold).await.map(|bound| bound.agent) }
    });
    sleep(ms(10)).await;
    assert_eq!(call(&dial, cached).await.unwrap().agent, target.agent);
    assert_eq!(begin.elapsed(), ms(10));
    assert_eq!(waiting.await.unwrap().unwrap(), target.agent);
    assert_eq!(begin.elapsed(), ms(2_000));
}

#[tokio::test(start_paused = true)]
async fn a_dialer_that_is_not_clone_works_behind_a_buffer() {
    /// A strict dialer that is not `Clone`.
    struct Once(StrictDialer);
    impl Service<DialAgent> for Once {
        type Response = Conn;
        type Error = BoxError;
        type Future = Dialing;
        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            self.0.poll_ready(cx)
        }
        fn call(&mut self, ask: DialAgent) -> Dialing {
            self.0.call(ask)
        }
    }
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    // The limit is one, so a call that holds its permit during a question would block all other
    // calls.
    let dial = layer.layer(Buffer::new(Once(world.dialer()), 1));
    assert_eq!(call(&dial, chat).await.unwrap().agent, old.agent);
    let new = world.rebuild(ws, &old, Does::Hang);
    let begin = Instant::now();
    let (one, two) =
        tokio::join!(call(&dial, chat), call(&dial, DialSession::new(session()).in_workspace(ws)));
    assert_eq!((one.unwrap().agent, two.unwrap().agent), (new.agent, new.agent));
    assert!(begin.elapsed() <= ms(250), "{:?}", begin.elapsed());
    assert_eq!(world.live_dials(), 0);
}

#[tokio::test(start_paused = true)]
async fn readiness_is_that_of_the_wrapped_service() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let (mut dial, mut dialer) =
        tower_test::mock::spawn_layer::<DialAgent, &'static str, _>(&layer);
    dialer.allow(0);
    assert_pending!(dial.poll_ready());
    dialer.allow(1);
    assert_ready_ok!(dial.poll_ready());

    // The readied service itself is called: there is no second permit.
    let before = world.counts();
    let mut pending = spawn(dial.call(chat.into()));
    assert_pending!(pending.poll());
    let (ask, reply) = dialer.next_request().await.unwrap();
    assert_eq!((ask.session, ask.workspace, &*ask.target), (chat, ws, &old));
    reply.send_response("a connection");
    let bound = assert_ready_ok!(pending.poll());
    assert_eq!((*bound, &bound.outcome().kind), ("a connection", &OutcomeKind::Reused));
    assert_eq!(world.counts() - before, counts(0, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_switch_drops_the_stale_dial_before_it_waits_for_readiness() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Hang);
    let (mut dial, mut dialer) =
        tower_test::mock::spawn_layer::<DialAgent, &'static str, _>(&layer);
    dialer.allow(1);
    assert_ready_ok!(dial.poll_ready());
    let mut pending = spawn(dial.call(chat.into()));
    assert_pending!(pending.poll());
    let (ask, stale) = dialer.next_request().await.unwrap();
    assert_eq!(*ask.target, old);

    sleep(ms(251)).await;
    assert!(pending.is_woken());
    assert_pending!(pending.poll()); // asks
    sleep(ms(1)).await;
    assert!(pending.is_woken());
    assert_pending!(pending.poll()); // receives the answer, drops the stale dial, and waits for readiness
    assert_pending!(spawn(dialer.next_request()).poll());
    dialer.allow(1);
    assert!(pending.is_woken());
    assert_pending!(pending.poll());
    // A late connection of the stale dial is dropped.
    stale.send_response("stale");
    let (ask, reply) = dialer.next_request().await.unwrap();
    assert_eq!(*ask.target, new);
    reply.send_response("new");
    let bound = assert_ready_ok!(pending.poll());
    assert_eq!((*bound, bound.outcome().dials, bound.target()), ("new", 2, &new));
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.row_agent(chat), Some(new.agent));
}

#[tokio::test(start_paused = true)]
async fn a_readiness_error_is_an_error_of_the_dialer_and_no_evidence() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let before = world.counts();
    let (mut dial, mut dialer) = tower_test::mock::spawn_layer::<DialAgent, (), _>(&layer);
    dialer.send_error("the dialer is broken");
    let Poll::Ready(Err(error)) = dial.poll_ready() else { panic!("not an error") };
    assert_eq!((error.kind(), error.session()), (&ErrorKind::Dialer, None));
    assert_eq!(error.dial_error().unwrap().to_string(), "the dialer is broken");

    // Within a call, a cold session gives its readiness back, and then finds the dialer broken.
    let cold = world.layer();
    let (mut dial, mut dialer) = tower_test::mock::spawn_layer::<DialAgent, (), _>(&cold);
    dialer.allow(1);
    assert_ready_ok!(dial.poll_ready());
    let mut pending = spawn(dial.call(chat.into()));
    assert_pending!(pending.poll());
    dialer.send_error("broken again");
    sleep(ms(1)).await;
    let error = assert_ready!(pending.poll()).unwrap_err();
    assert_eq!((error.kind(), error.session()), (&ErrorKind::Dialer, Some(chat)));
    assert_eq!(error.dial_error().unwrap().to_string(), "broken again");
    assert_eq!(world.counts() - before, counts(0, 0, 1, 0));
}

/// A dialer of real sockets.
fn tcp() -> impl Service<DialAgent, Response = TcpStream, Error = std::io::Error, Future: Send>
+ Clone
+ Send
+ Sync {
    service_fn(|ask: DialAgent| async move {
        TcpStream::connect(ask.target.address.as_deref().unwrap()).await
    })
}

#[tokio::test]
async fn a_bound_socket_reads_and_writes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.unwrap();
        socket.write_all(&all).await.unwrap();
        all.len()
    });
    let world = World::new();
    let (ws, target) = world.workspace();
    world.runs(ws, &target.with_address(address.to_string()));
    let layer = world.layer();
    let mut bound =
        layer.layer(tcp()).oneshot(DialSession::new(session()).in_workspace(ws)).await.unwrap();
    assert_eq!(bound.peer_addr().unwrap(), address, "by `Deref`");
    bound.set_nodelay(true).unwrap();

    assert_eq!(bound.is_write_vectored(), bound.get_ref().is_write_vectored());
    assert!(bound.is_write_vectored());
    assert_eq!(
        bound.write_vectored(&[IoSlice::new(b"to "), IoSlice::new(b"the ")]).await.unwrap(),
        7
    );
    let (mut reading, mut writing) = tokio::io::split(bound);
    writing.write_all(b"agent").await.unwrap();
    writing.flush().await.unwrap();
    writing.shutdown().await.unwrap();
    let mut all = String::new();
    reading.read_to_string(&mut all).await.unwrap();
    assert_eq!((all.as_str(), server.await.unwrap()), ("to the agent", 12));

    // The bare connection.
    let bound = reading.unsplit(writing);
    let (socket, handle): (TcpStream, BoundHandle) = bound.into_parts();
    assert!(socket.local_addr().is_ok());
    assert_eq!(handle.target().address, Some(address.to_string().into()));
}

#[tokio::test(start_paused = true)]
async fn a_bound_service_is_a_service_and_keeps_its_handle_when_it_is_mapped() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let bound = call(&world.dial(&layer), chat).await.unwrap();
    assert_eq!((bound.session(), bound.workspace(), bound.target()), (chat, ws, &target));

    let asked = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&asked);
    let mut client = bound.map(|conn| {
        service_fn(move |n: usize| {
            counting.fetch_add(n, SeqCst);
            // The closure owns the whole connection.
            let conn: &Conn = &conn;
            let agent = conn.agent;
            async move { Ok::<_, BoxError>(agent) }
        })
    });
    assert_eq!(client.ready().await.unwrap().call(3).await.unwrap(), target.agent);
    assert_eq!((asked.load(SeqCst), client.session(), client.target()), (3, chat, &target));
    assert_eq!(world.live_connections(), 1);

    // The handle outlives the connection, and its report counts once for all its clones.
    let (client, handle) = client.into_parts();
    drop(client);
    assert_eq!(world.live_connections(), 0);
    handle.clone().report_stale();
    handle.report_stale();
    let before = world.counts();
    call(&world.dial(&layer), chat).await.unwrap();
    assert_eq!(world.counts() - before, counts(1, 1, 0, 0));

    let bare: Conn = call(&world.dial(&layer), chat).await.unwrap().into_inner();
    assert_eq!(bare.agent, target.agent);
}

#[cfg(feature = "http")]
mod http {
    use super::*;
    use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
    use std::{io, pin::Pin};

    /// A connection that echoes its input.
    #[derive(Default)]
    struct Echo {
        said: Vec<u8>,
        flushed: bool,
        shut: bool,
    }

    impl Read for Echo {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            mut buffer: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            let n = buffer.remaining().min(self.said.len());
            let said: Vec<u8> = self.said.drain(..n).collect();
            buffer.put_slice(&said);
            Poll::Ready(Ok(()))
        }
    }

    impl Write for Echo {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            text: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.said.extend(text);
            Poll::Ready(Ok(text.len()))
        }
        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushed = true;
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut = true;
            Poll::Ready(Ok(()))
        }
        fn is_write_vectored(&self) -> bool {
            true
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            texts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            texts.iter().for_each(|text| self.said.extend(&**text));
            Poll::Ready(Ok(texts.iter().map(|text| text.len()).sum()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bound_forwards_reads_and_writes_of_hyper() {
        let world = World::new();
        let (ws, _) = world.workspace();
        let layer = world.layer();
        let chat = world.bind(&layer, ws).await;
        let mut io = call(&world.dial(&layer), chat).await.unwrap().map(|_| Echo::default());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let written = Pin::new(&mut io).poll_write(&mut cx, b"hello ");
        assert!(matches!(written, Poll::Ready(Ok(6))));
        assert!(io.is_write_vectored());
        let written = Pin::new(&mut io)
            .poll_write_vectored(&mut cx, &[IoSlice::new(b"agent"), IoSlice::new(b"!")]);
        assert!(matches!(written, Poll::Ready(Ok(6))));
        assert!(Pin::new(&mut io).poll_flush(&mut cx).is_ready());
        assert!(Pin::new(&mut io).poll_shutdown(&mut cx).is_ready());
        assert!(io.flushed && io.shut);
        let mut memory = [0; 64];
        let mut buffer = ReadBuf::new(&mut memory);
        assert!(Pin::new(&mut io).poll_read(&mut cx, buffer.unfilled()).is_ready());
        assert_eq!(buffer.filled(), b"hello agent!");
    }
}

#[cfg(feature = "serde")]
#[test]
fn an_id_is_serialized_as_its_uuid() {
    let uuid = uuid::Uuid::new_v4();
    let text = format!("\"{uuid}\"");
    assert_eq!(serde_json::to_string(&SessionId::new(uuid)).unwrap(), text);
    assert_eq!(serde_json::to_string(&AgentId::new(uuid)).unwrap(), text);
    assert_eq!(serde_json::from_str::<SessionId>(&text).unwrap(), SessionId::new(uuid));
    assert_eq!(serde_json::from_str::<WorkspaceId>(&text).unwrap(), WorkspaceId::new(uuid));
    assert_eq!(serde_json::from_str::<BuildId>(&text).unwrap(), BuildId::new(uuid));
    assert!(serde_json::from_str::<SessionId>("\"chat-7\"").is_err());
    // An id works as a key of a map as well.
    let map = std::collections::BTreeMap::from([(SessionId::new(uuid), 1)]);
    assert_eq!(serde_json::to_string(&map).unwrap(), format!("{{{text}:1}}"));
}

#[test]
fn an_id_is_parsed_and_formatted_as_its_uuid() {
    let uuid = uuid::Uuid::new_v4();
    let id: SessionId = uuid.to_string().parse().unwrap();
    assert_eq!(
        (id, id.to_string(), uuid::Uuid::from(id)),
        (SessionId::from(uuid), uuid.to_string(), uuid)
    );
    assert!("chat-7".parse::<SessionId>().is_err());
    assert_eq!(format!("{:?}", AgentId::new(uuid)), format!("AgentId({uuid})"));
}
