//! Agents that are killed, hang or vanish.

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{
    future::Ready,
    io::ErrorKind as Io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};
use support::net::*;
use support::{agent, session, workspace};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tower::{Layer, ServiceExt};
use tower_bound_agent::{
    BoxError, DialAgent, DialSession, ErrorKind, Resolution, Target,
    http::{AgentClient, ClientError, watch_peer},
};

/// A validation delay that callers with a short timeout reach.
const LESS: Duration = Duration::from_millis(250);
const MOMENT: Duration = Duration::from_millis(300);

async fn after_the_end_of_a_killed_agents_connections_is_noticed_a_turn_goes_to_the_new_agent() {
    // The agents are on threads of their own, so that only the client has tasks here.
    let idle = Leftovers::none();
    for speaks in BOTH {
        let (net, mut old, new) =
            (Net::new(), Agent::on_its_own_thread(1), Agent::on_its_own_thread(2));
        let ws = net.workspace(&old);
        let chat = net.bind(ws).await;
        let client = net.client(speaks);
        turn(&client, "/", chat).await;
        old.kill().await;
        idle.still_none().await;
        net.runs(ws, &new);
        let before = net.counts();
        // The old agent's socket is closed, so its dial fails.
        assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
        assert_eq!(net.layer.bindings().flush().await, 0);
        assert_eq!(net.counts() - before, counts(2, 1, 0, 1), "{speaks:?}");
        assert_eq!(new.requests(), 1);
    }
}

/// A connection that hears nothing while it is deaf, until it has sent something. So the runtime
/// looks at what the system knows of the peer after the request was sent, which is a matter of
/// chance otherwise.
struct Deaf {
    stream: TcpStream,
    is_deaf: Arc<AtomicBool>,
}

impl tokio::io::AsyncRead for Deaf {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.is_deaf.load(SeqCst) {
            return Poll::Pending; // the write wakes the task
        }
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Deaf {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = std::pin::Pin::new(&mut self.stream).poll_write(cx, buf);
        if self.is_deaf.swap(false, SeqCst) {
            cx.waker().wake_by_ref();
        }
        written
    }
    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// On one thread, so that the connection writes nothing but the request after it became deaf.
#[tokio::test]
async fn a_request_that_is_sent_before_the_end_of_its_connection_is_noticed_fails_and_raises_a_doubt()
 {
    for speaks in BOTH {
        let (net, mut old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let chat = net.bind(ws).await;
        let is_deaf = Arc::new(AtomicBool::new(false));
        let dialed = Arc::clone(&is_deaf);
        let dial = net.layer.layer(tower::service_fn(move |ask: DialAgent| {
            let is_deaf = Arc::clone(&dialed);
            async move {
                let stream = TcpStream::connect(ask.target.address.as_deref().unwrap()).await?;
                Ok::<_, std::io::Error>(TokioIo::new(Deaf { stream, is_deaf }))
            }
        }));
        let builder = AgentClient::builder().question_after(PATIENCE);
        let builder = if speaks == Speaks::Http1 { builder.http1() } else { builder.http2() };
        let client = builder.build(dial);
        text(soon(client.request(get_("/", chat))).await.unwrap()).await;
        is_deaf.store(true, SeqCst);
        old.kill().await;
        net.runs(ws, &new);
        let before = net.counts();
        // The agent may have received it, as far as the client can tell.
        let error = soon(client.request(get_("/", chat))).await.unwrap_err();
        assert!(matches!(error, ClientError::Send(_)) && !error.is_unsent(), "{error:?}");
        assert!(!is_deaf.load(SeqCst));
        assert_eq!(net.counts() - before, counts(0, 0, 0, 0), "{speaks:?}");
        let said = text(soon(client.request(get_("/", chat))).await.unwrap()).await;
        assert_eq!(said, new.target.agent.to_string());
        assert_eq!(net.layer.bindings().flush().await, 0);
        // The dials are made by the service above, which does not count them.
        assert_eq!(net.counts() - before, counts(0, 1, 0, 1), "{speaks:?}");
        assert_eq!((old.requests(), new.requests()), (1, 1), "{speaks:?}");
    }
}

/// What woke the test came before the end of the connection, in one look at both: so the request is
/// under way to a connection whose end is known to nobody yet.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_unsent_request_is_sent_once_on_a_new_connection() {
    for speaks in BOTH {
        let (net, old) = (Net::new(), Agent::on_its_own_thread(1));
        let ws = net.workspace(&old);
        let chat = net.bind(ws).await;
        let client = net.client(speaks);
        turn(&client, "/", chat).await;
        let before = net.counts();
        let (mut wakes, woken) = std::os::unix::net::UnixStream::pair().unwrap();
        woken.set_nonblocking(true).unwrap();
        let mut woken = tokio::net::UnixStream::from_std(woken).unwrap();
        assert!(futures_util::poll!(Box::pin(woken.read_u8())).is_pending());
        std::io::Write::write_all(&mut wakes, &[1]).unwrap();
        old.close_connections();
        while old.open() > 0 {
            std::thread::sleep(Duration::from_millis(5)); // and blocks the one thread of this runtime
        }
        woken.read_u8().await.unwrap();
        let said = text(send(&client, post_("/echo", chat, full("once"))).await.unwrap()).await;
        assert_eq!(said, "once");
        // HTTP/2 announces an orderly end, and this one was not announced.
        let validations = u64::from(speaks == Speaks::Http2);
        assert_eq!(net.counts() - before, counts(1, validations, 0, 0), "{speaks:?}");
        assert_eq!(old.requests(), 2, "{speaks:?}");
    }
}

/// A connection whose writes fail because this process has no buffers.
struct NoBuffers(TcpStream);

impl tokio::io::AsyncRead for NoBuffers {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for NoBuffers {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Err(Io::OutOfMemory.into()))
    }
    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn an_error_of_this_process_raises_no_doubt() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let ws = net.workspace(&agent);
    let chat = net.bind(ws).await;
    let dial = net.layer.layer(tower::service_fn(async |ask: DialAgent| {
        let address = ask.target.address.as_deref().ok_or("no address")?;
        Ok::<_, BoxError>(TokioIo::new(NoBuffers(TcpStream::connect(address).await?)))
    }));
    let client = AgentClient::builder().build(dial);
    let before = net.counts();
    assert!(matches!(client.oneshot(get_("/", chat)).await.unwrap_err(), ClientError::Send(_)));
    tokio::time::sleep(MOMENT).await;
    turn(&net.client(Speaks::Http1), "/", chat).await;
    let did = net.counts() - before;
    assert_eq!((did.v, did.w), (0, 0));
}

async fn an_agent_killed_before_its_response_fails_the_request_once_and_raises_a_doubt() {
    for speaks in BOTH {
        let (net, mut old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let chat = net.bind(ws).await;
        let client = net.client(speaks);
        turn(&client, "/", chat).await;
        let waiting = {
            let client = client.clone();
            tokio::spawn(async move { send(&client, post_("/hang", chat, full("once"))).await })
        };
        until("it has arrived", || old.requests() == 2).await;
        old.kill().await;
        let error = soon(waiting).await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Send(_)) && !error.is_unsent(), "{error:?}");
        net.runs(ws, &new);
        let before = net.counts();
        assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
        assert_eq!(net.layer.bindings().flush().await, 0);
        assert_eq!(net.counts() - before, counts(2, 1, 0, 1), "{speaks:?}");
        assert_eq!((old.requests(), new.requests()), (2, 1), "{speaks:?}");
    }
}

async fn an_agent_killed_in_the_middle_of_a_body_fails_the_body_and_raises_a_doubt() {
    for speaks in BOTH {
        // Another agent takes the same address: only a validation can distinguish it from the bound
        // one.
        let (net, mut old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let chat = net.bind(ws).await;
        let client = net.client(speaks);
        let mut body = send(&client, get_("/half", chat)).await.unwrap().into_body();
        assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "half");
        let squatter = old.replaced_in_place(1).await;
        soon(body.frame()).await.unwrap().unwrap_err();
        assert!(soon(body.frame()).await.is_none_or(|frame| frame.is_err()));
        net.runs(ws, &new);
        let before = net.counts();
        assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string(), "{speaks:?}");
        assert_eq!(net.counts().v - before.v, 1, "{speaks:?}");
        assert_eq!(squatter.requests(), 0, "{speaks:?}");
    }
}

async fn a_server_that_closes_idle_connections_raises_no_doubt() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let chat = net.bind(net.workspace(&agent)).await;
    let client = net.client(Speaks::Http1);
    let before = net.counts();
    for _ in 0..3 {
        let mut request = get_("/", chat);
        request.headers_mut().insert("connection", "close".parse().unwrap());
        text(send(&client, request).await.unwrap()).await;
        agent.has_open(0).await;
    }
    assert_eq!(net.counts() - before, counts(3, 0, 0, 0));
}

async fn a_silent_agent_ends_the_request_at_the_timeout_and_the_next_turn_validates() {
    for speaks in BOTH {
        let (net, old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
        let ws = net.workspace(&old);
        let chat = net.bind(ws).await;
        let client = net.client_with(speaks, |builder| builder.response_header_timeout(MOMENT));
        turn(&client, "/", chat).await;
        old.freeze();
        let begin = Instant::now();
        let error = send(&client, get_("/", chat)).await.unwrap_err();
        let took = begin.elapsed();
        assert!(
            matches!(error, ClientError::NoResponse { within: MOMENT }) && !error.is_unsent(),
            "{error:?}"
        );
        assert!(took >= MOMENT && took < MOMENT * 10, "{took:?}");
        net.runs(ws, &new);
        let before = net.counts();
        assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
        assert_eq!(net.layer.bindings().flush().await, 0);
        assert_eq!(net.counts() - before, counts(2, 1, 0, 1), "{speaks:?}");
        assert_eq!((old.requests(), new.requests()), (1, 1), "{speaks:?}");
    }
}

async fn pings_detect_a_lost_machine_in_the_middle_of_a_stream() {
    let (net, old, new) = (Net::new(), Agent::start(1).await, Agent::start(2).await);
    let ws = net.workspace(&old);
    let chat = net.bind(ws).await;
    let client = net.client_with(Speaks::Http2, |builder| {
        builder.ping_interval(MOMENT).ping_timeout(MOMENT).response_header_timeout(None)
    });
    let mut body = send(&client, get_("/half", chat)).await.unwrap().into_body();
    soon(body.frame()).await.unwrap().unwrap();
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { send(&client, get_("/hang", chat)).await })
    };
    until("it has arrived", || old.requests() == 2).await;
    // A silent agent that answers pings is no reason for a doubt.
    assert!(timeout(MOMENT * 4, body.frame()).await.is_err());
    old.freeze();
    let begin = Instant::now();
    soon(body.frame()).await.unwrap().unwrap_err();
    assert!(matches!(soon(waiting).await.unwrap().unwrap_err(), ClientError::Send(_)));
    assert!(begin.elapsed() < MOMENT * 10, "{:?}", begin.elapsed());
    net.runs(ws, &new);
    let before = net.counts();
    assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
    assert_eq!(net.layer.bindings().flush().await, 0);
    assert_eq!(net.counts() - before, counts(2, 1, 0, 1));
}

async fn callers_with_short_timeouts_move_away_from_a_silent_agent() {
    let net = Net::new().with(|builder| builder.validation_delay(LESS));
    let (old, new) = (Agent::start(1).await, Agent::start(2).await);
    let ws = net.workspace(&old);
    let chat = net.bind(ws).await;
    let client = net.client(Speaks::Http1);
    turn(&client, "/", chat).await;
    old.freeze();
    net.runs(ws, &new);
    assert!(timeout(MOMENT, client.clone().oneshot(get_("/", chat))).await.is_err());
    // The system of the old agent accepts connections. If its dial is faster than the concurrent
    // validation, the answer serves the next turn.
    let before = net.counts();
    let _ = timeout(MOMENT, client.clone().oneshot(get_("/", chat))).await;
    until("the verdict", || (net.counts() - before).v == 1).await;
    assert_eq!(turn(&client, "/", chat).await, new.target.agent.to_string());
    assert_eq!(((net.counts() - before).v, old.requests()), (1, 1));
}

async fn a_dropped_stream_of_a_shared_connection_is_no_evidence_about_the_agent() {
    for (speaks, dials, validations) in [(Speaks::Http1, 1, 1), (Speaks::Http2, 0, 0)] {
        let net = Net::new().with(|builder| builder.validation_delay(LESS));
        let agent = Agent::start(1).await;
        let chat = net.bind(net.workspace(&agent)).await;
        let client = net.client(speaks);
        turn(&client, "/", chat).await;
        let before = net.counts();
        assert!(timeout(MOMENT, client.clone().oneshot(get_("/hang", chat))).await.is_err());
        turn(&client, "/", chat).await;
        until("the verdict", || (net.counts() - before).v == validations).await;
        assert_eq!(net.counts() - before, counts(dials, validations, 0, 0), "{speaks:?}");
    }
}

async fn the_response_timeout_does_not_run_while_the_caller_has_nothing_to_send() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        let client = net.client_with(speaks, |builder| builder.response_header_timeout(MOMENT));
        let (mut sender, body) = http_body_util::channel::Channel::<bytes::Bytes>::new(1);
        let waiting = {
            let client = client.clone();
            tokio::spawn(async move { send(&client, post_("/take", chat, Sends::new(body))).await })
        };
        until("it has arrived", || agent.requests() == 1).await;
        tokio::time::sleep(MOMENT * 3).await;
        assert!(!waiting.is_finished(), "{speaks:?}");
        sender.send_data("late".into()).await.unwrap();
        drop(sender);
        assert_eq!(text(soon(waiting).await.unwrap().unwrap()).await, "4 ", "{speaks:?}");
    }
}

async fn a_server_that_does_not_speak_http_fails_the_request() {
    let (net, agent) = (Net::new(), Agent::start(1).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ws = net.workspace(&agent);
    net.says(ws, Resolution::Running(Target::new(agent.target.agent).with_address(address)));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut some = [0; 16];
            let _ = stream.read(&mut some).await;
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
        }
    });
    let chat = net.bind(ws).await;
    for speaks in BOTH {
        let client = net.client(speaks);
        let before = net.counts();
        let error = send(&client, get_("/", chat)).await.unwrap_err();
        // With HTTP/2 the server may have written before the request was sent.
        assert!(matches!(error, ClientError::Send(_) | ClientError::Unsent(_)), "{error:?}");
        assert_eq!(
            net.counts() - before,
            counts(1, u64::from(speaks == Speaks::Http2), 0, 0),
            "{speaks:?}"
        );
    }
}

async fn the_layers_error_is_distinguishable_from_all_others() {
    let idle = Leftovers::none();
    for speaks in BOTH {
        let (net, mut agent) = (Net::new(), Agent::on_its_own_thread(1));
        let ws = net.workspace(&agent);
        let chat = net.bind(ws).await;
        let client = net.client(speaks);
        turn(&client, "/", chat).await;
        agent.kill().await;
        idle.still_none().await;
        let kind = async || match send(&client, get_("/", chat)).await.unwrap_err() {
            ClientError::Dial(error) => error.kind().clone(),
            error => panic!("{error:?}"),
        };
        assert_eq!(kind().await, ErrorKind::Unreachable { newer: None });
        net.says(ws, Resolution::Stopped);
        assert_eq!(kind().await, ErrorKind::Stopped);
        net.layer.bindings().close(Duration::ZERO).await;
        assert_eq!(kind().await, ErrorKind::Closed);
    }
}

async fn a_closed_layer_refuses_requests_although_a_connection_is_idle() {
    for speaks in BOTH {
        let (net, agent) = (Net::new(), Agent::start(1).await);
        let chat = net.bind(net.workspace(&agent)).await;
        let client = net.client(speaks);
        turn(&client, "/", chat).await;
        net.layer.bindings().close(Duration::ZERO).await;
        let error = send(&client, get_("/", chat)).await.unwrap_err();
        assert!(
            matches!(&error, ClientError::Dial(error) if *error.kind() == ErrorKind::Closed),
            "{error:?}"
        );
    }
}

async fn a_watched_socket_is_probed_and_fails_at_its_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    watch_peer(&stream, Duration::from_secs(20)).unwrap();
    let socket = socket2::SockRef::from(&stream);
    assert!(socket.keepalive().unwrap());
    #[cfg(target_os = "linux")]
    {
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(5));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(20)));
    }
    watch_peer(&stream, Duration::ZERO).unwrap();
    assert_ne!(stream.peer_addr().map_err(|error| error.kind()), Err(Io::NotConnected));
}

/// A dial service that is never ready.
#[derive(Clone)]
struct NeverReady;

impl tower::Service<DialAgent> for NeverReady {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Ready<Result<TokioIo<TcpStream>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Pending
    }
    fn call(&mut self, _: DialAgent) -> Self::Future {
        unreachable!("it is not ready")
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_service_that_is_never_ready_fails_the_request_at_the_dial_timeout() {
    let (net, ws, chat) = (Net::new(), workspace(), session());
    net.says(ws, Resolution::Running(Target::new(agent())));
    let client = AgentClient::<_, Sends>::new(net.layer.layer(NeverReady));
    for begun in ["cold", "cached"] {
        let mut request = get_("/", chat);
        request.extensions_mut().insert(DialSession::new(chat).in_workspace(ws));
        let began = Instant::now();
        match timeout(Duration::from_secs(60), client.request(request))
            .await
            .expect("in time")
            .unwrap_err()
        {
            ClientError::Dial(error) => {
                assert!(matches!(error.kind(), ErrorKind::TimedOut { .. }), "{begun}: {error:?}");
                assert_eq!(error.session(), Some(chat));
            }
            error => panic!("{error:?}"),
        }
        assert_eq!(began.elapsed(), Duration::from_secs(30), "{begun}");
    }
}

/// A server that closes each connection right after a few responses, while the next request may
/// arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_on_a_connection_that_closes_concurrently_is_always_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let mut some = [0; 4096];
                for _ in 0..3 {
                    if stream.read(&mut some).await.is_ok_and(|read| read > 0) {
                        let _ =
                            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                    }
                }
            });
        }
    });
    let (net, ws) = (Net::new(), workspace());
    net.says(
        ws,
        Resolution::Running(Target::new(agent()).with_generation(1).with_address(address)),
    );
    let chat = net.bind(ws).await;
    let client = net.client_with(Speaks::Http1, |builder| builder.question_after(None));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = client.clone();
        callers.spawn(async move {
            for _ in 0..250 {
                match timeout(Duration::from_secs(10), client.request(get_("/", chat)))
                    .await
                    .expect("an answer")
                {
                    Ok(response) => drop(text(response).await),
                    Err(error) => assert!(matches!(error, ClientError::Send(_)), "{error:?}"),
                }
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.unwrap();
    }
}

on_both_runtimes! {
    after_the_end_of_a_killed_agents_connections_is_noticed_a_turn_goes_to_the_new_agent,
    an_error_of_this_process_raises_no_doubt,
    an_agent_killed_before_its_response_fails_the_request_once_and_raises_a_doubt,
    an_agent_killed_in_the_middle_of_a_body_fails_the_body_and_raises_a_doubt,
    a_server_that_closes_idle_connections_raises_no_doubt,
    a_silent_agent_ends_the_request_at_the_timeout_and_the_next_turn_validates,
    pings_detect_a_lost_machine_in_the_middle_of_a_stream,
    callers_with_short_timeouts_move_away_from_a_silent_agent,
    a_dropped_stream_of_a_shared_connection_is_no_evidence_about_the_agent,
    the_response_timeout_does_not_run_while_the_caller_has_nothing_to_send,
    a_server_that_does_not_speak_http_fails_the_request,
    the_layers_error_is_distinguishable_from_all_others,
    a_closed_layer_refuses_requests_although_a_connection_is_idle,
    a_watched_socket_is_probed_and_fails_at_its_timeout,
}
