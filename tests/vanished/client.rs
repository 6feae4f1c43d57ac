//! The client, and agents on machines that vanish at any moment.

use crate::machine::{Machine, alone, bounded};
use bytes::Bytes;
use futures_util::future::join_all;
use http::Response;
use http_body_util::{
    BodyExt,
    channel::{Channel, Sender},
};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use support::{
    gateway::signal,
    net::{BOTH, Client, Leftovers, Net, Sends, Speaks, counts, post_, text, turn, until, upgrade},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower_bound_agent::{
    SessionId, WorkspaceId,
    http::{AgentBody, AgentClientBuilder, ClientError, Fault},
};

/// Which mechanism detects a vanished machine, and how soon.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Notices {
    /// `watch_peer`.
    Socket,
    /// The pings of HTTP/2.
    Pings,
    /// `response_header_timeout`.
    Header,
}
use Notices::{Header, Pings, Socket};

/// The shortest allowed value of each.
const WATCHED: Duration = Duration::from_secs(4);
const PING: Duration = Duration::from_secs(1);
const HEADER: Duration = Duration::from_secs(3);
/// The validation delay of a dial without a doubt.
const DELAY: Duration = Duration::from_secs(1);
/// A system timer may be late by the interval of its probes, and the test machine is busy.
const SLACK: Duration = Duration::from_millis(3500);
/// The time since the last data, which the machine sent before it vanished.
const EARLY: Duration = Duration::from_millis(1200);

const PIECE: Bytes = Bytes::from_static(&[7; 16 * 1024]);

struct Scene {
    what: String,
    net: Net,
    client: Client,
    chat: SessionId,
    workspace: WorkspaceId,
    old: Machine,
    new: Machine,
    bound: Duration,
}

impl Scene {
    async fn new(speaks: Speaks, notices: Notices) -> Self {
        Self::with(speaks, notices, |builder| builder).await
    }

    async fn with(
        speaks: Speaks,
        notices: Notices,
        set: impl FnOnce(AgentClientBuilder) -> AgentClientBuilder,
    ) -> Self {
        let net = Net::new().with(|builder| builder.validation_delay(DELAY));
        let (old, new) = (Machine::start(1), Machine::start(2));
        if notices == Socket {
            net.watches(WATCHED);
        }
        let workspace = support::workspace();
        net.runs_target(workspace, &old.target);
        let chat = net.bind(workspace).await;
        let client = net.client_with(speaks, |builder| {
            let builder = if notices == Pings {
                builder.ping_interval(PING).ping_timeout(PING)
            } else {
                builder.ping_interval(None)
            };
            // Each mechanism is tested alone: no question is asked before it has detected the loss.
            let builder = builder.question_after(None);
            set(builder.response_header_timeout((notices == Header).then_some(HEADER)))
        });
        let bound = match notices {
            Socket => WATCHED,
            Pings => PING * 2,
            Header => HEADER,
        };
        Self {
            what: format!("{speaks:?}, {notices:?}"),
            net,
            client,
            chat,
            workspace,
            old,
            new,
            bound,
        }
    }

    /// Waits until the machine's disappearance is reported.
    async fn noticed<T>(&self, word: impl Future<Output = T>) -> T {
        self.old.line.cut();
        let begin = Instant::now();
        let word = timeout(Duration::from_secs(40), word)
            .await
            .unwrap_or_else(|_| panic!("{}: never", self.what));
        let took = begin.elapsed();
        let range = self.bound - EARLY..self.bound + SLACK;
        assert!(range.contains(&took), "{}: {took:?}, not {range:?}", self.what);
        word
    }

    /// Asserts that the lost machine was detected: the new agent serves the next turn, and no
    /// connection to the old one is left.
    async fn doubted(self) {
        let Self { what, net, client, chat, workspace, old, new, .. } = self;
        until(&format!("{what}: its connections are closed"), || old.line.connections() == 0).await;
        net.runs_target(workspace, &new.target);
        let before = net.counts();
        let begin = Instant::now();
        assert_eq!(turn(&client, "/identity", chat).await, new.target.agent.to_string(), "{what}");
        // Because of the doubt, the resolver is asked at once.
        assert!(begin.elapsed() < DELAY, "{what}: {:?}", begin.elapsed());
        assert_eq!(net.layer.bindings().flush().await, 0);
        assert_eq!(net.counts() - before, counts(2, 1, 0, 1), "{what}");
        assert_eq!(turn(&client, "/identity", chat).await, new.target.agent.to_string(), "{what}");
        assert_eq!(net.counts() - before, counts(2, 1, 0, 1), "{what}");
        assert_eq!((old.line.connections(), new.line.connections()), (0, 1), "{what}");
        drop(client);
        until(&format!("{what}: all connections are closed"), || new.line.connections() == 0).await;
    }

    fn keyed(&self, path: &str, body: Sends) -> (String, http::Request<Sends>) {
        let key = uuid::Uuid::new_v4().to_string();
        let mut request = post_(path, self.chat, body);
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        (key, request)
    }

    /// Starts a request whose body has begun and that the agent is executing.
    async fn upload(&self) -> Upload {
        let (mut sender, body) = Channel::<Bytes>::new(1);
        let (key, request) = self.keyed("/take", Sends::new(body));
        let waiting = tokio::spawn(self.client.request(request));
        bounded(sender.send_data("some".into())).await.unwrap();
        until("the agent is executing it", || self.old.carried_out(&key) == 1).await;
        Upload { sender, key, waiting }
    }

    /// Asserts that the error is the one that the documentation names.
    fn is_typed(&self, error: &ClientError) {
        let of_header = matches!(error, ClientError::NoResponse { within: HEADER });
        let of_connection = matches!(error, ClientError::Send(_));
        assert!(
            if self.bound == HEADER { of_header } else { of_connection },
            "{}: {error:?}",
            self.what
        );
        assert!(!error.is_unsent(), "{}: {error:?}", self.what);
        let fault = if self.bound == WATCHED { Fault::Network } else { Fault::Agent };
        assert_eq!(error.fault(), fault, "{}: {error:?}", self.what);
    }

    /// Asserts that the request was executed once, by the agent to which it was sent.
    fn once(&self, key: &str) {
        assert_eq!((self.old.carried_out(key), self.new.carried_out(key)), (1, 0), "{}", self.what);
    }
}

struct Upload {
    sender: Sender<Bytes>,
    key: String,
    waiting: JoinHandle<Result<Response<AgentBody>, ClientError>>,
}

/// Runs all cases concurrently, and asserts that they leave nothing behind.
async fn all<C>(cases: impl IntoIterator<Item = C>, case: impl AsyncFn(C)) {
    let leftovers = Leftovers::none();
    join_all(cases.into_iter().map(|one| case(one))).await;
    leftovers.still_none().await;
}

async fn each(of: impl IntoIterator<Item = (Speaks, Notices)>, case: impl AsyncFn(Scene)) {
    all(of, async |(speaks, notices)| case(Scene::new(speaks, notices).await).await).await;
}

const EVERY_WAY: [(Speaks, Notices); 5] = [
    (Speaks::Http1, Socket),
    (Speaks::Http1, Header),
    (Speaks::Http2, Socket),
    (Speaks::Http2, Header),
    (Speaks::Http2, Pings),
];
const WHILE_IT_LASTS: [(Speaks, Notices); 3] =
    [(Speaks::Http1, Socket), (Speaks::Http2, Socket), (Speaks::Http2, Pings)];

#[test]
fn an_idle_connection_to_a_vanished_machine_leaves_the_pool_and_a_doubt() {
    alone(|| async {
        each(BOTH.map(|speaks| (speaks, Socket)), async |scene| {
            turn(&scene.client, "/identity", scene.chat).await;
            assert_eq!(scene.old.line.connections(), 1);
            scene
                .noticed(until("the connection is closed", || scene.old.line.connections() == 0))
                .await;
            scene.doubted().await;
        })
        .await;
    });
}

#[test]
fn a_request_on_an_idle_connection_fails_in_time() {
    alone(|| async {
        each(EVERY_WAY, async |scene| {
            turn(&scene.client, "/identity", scene.chat).await;
            let (key, request) = scene.keyed("/echo", Sends::from("once"));
            let error = scene.noticed(scene.client.request(request)).await.unwrap_err();
            scene.is_typed(&error);
            assert_eq!((scene.old.carried_out(&key), scene.new.carried_out(&key)), (0, 0));
            scene.doubted().await;
        })
        .await;
    });
}

#[test]
fn a_request_in_progress_fails_in_time_and_is_not_repeated() {
    alone(|| async {
        each(EVERY_WAY, async |scene| {
            let (key, request) = scene.keyed("/echo?pause_ms=600000", Sends::from("once"));
            let waiting = tokio::spawn(scene.client.request(request));
            until("the agent is executing it", || scene.old.carried_out(&key) == 1).await;
            let error = scene.noticed(waiting).await.unwrap().unwrap_err();
            scene.is_typed(&error);
            scene.once(&key);
            scene.doubted().await;
        })
        .await;
    });
}

#[test]
fn a_response_from_a_vanished_machine_fails_in_time() {
    alone(|| async {
        each(WHILE_IT_LASTS, async |scene| {
            let (key, request) = scene.keyed("/events?every_ms=50", Sends::empty());
            let mut events = bounded(scene.client.request(request)).await.unwrap().into_body();
            for _ in 0..3 {
                bounded(events.frame()).await.unwrap().unwrap();
            }
            let error = scene.noticed(async {
                loop {
                    match events.frame().await.expect("no orderly end") {
                        Ok(_) => {}
                        Err(error) => break error,
                    }
                }
            });
            let error = error.await;
            assert!(error.is_timeout() || std::error::Error::source(&error).is_some(), "{error:?}");
            assert!(bounded(events.frame()).await.is_none_or(|frame| frame.is_err()));
            drop(events);
            scene.once(&key);
            scene.doubted().await;
        })
        .await;
    });
}

#[test]
fn an_upload_that_fills_the_send_buffer_fails_in_time() {
    alone(|| async {
        // When an HTTP/2 connection's send buffer is full, the end of a stream can only be sent
        // after the buffer drains, so the connection must end itself.
        let ways = EVERY_WAY.into_iter().filter(|way| *way != (Speaks::Http2, Header));
        each(ways, async |scene| {
            let (mut sender, body) = Channel::<Bytes>::new(1);
            let (key, request) = scene.keyed("/take", Sends::new(body));
            let waiting = tokio::spawn(scene.client.request(request));
            for _ in 0..64 {
                bounded(sender.send_data(PIECE)).await.unwrap();
            }
            let sending = tokio::spawn(async move {
                let mut sent = 0_u64;
                while sender.send_data(PIECE).await.is_ok() {
                    sent += 1;
                    // Not faster than the connection that is cut.
                    sleep(Duration::from_micros(100)).await;
                }
                sent
            });
            let error = scene.noticed(waiting).await.unwrap().unwrap_err();
            scene.is_typed(&error);
            bounded(sending).await.unwrap();
            scene.once(&key);
            scene.doubted().await;
        })
        .await;
    });
}

#[test]
fn an_idle_upload_to_a_vanished_machine_fails_in_time() {
    alone(|| async {
        each(WHILE_IT_LASTS, async |scene| {
            let Upload { sender: _sender, key, waiting } = scene.upload().await;
            let error = scene.noticed(waiting).await.unwrap().unwrap_err();
            scene.is_typed(&error);
            scene.once(&key);
            scene.doubted().await;
        })
        .await;
    });
}

#[test]
fn a_web_socket_to_a_vanished_machine_fails_in_time_and_leaves_a_doubt() {
    alone(|| async {
        all([false, true], async |talks| {
            let scene = Scene::new(Speaks::Http1, Socket).await;
            let mut request = upgrade(scene.chat);
            *request.uri_mut() = "/socket".parse().unwrap();
            let response = bounded(scene.client.request(request)).await.unwrap();
            assert_eq!(response.status(), 101);
            let mut socket = TokioIo::new(bounded(hyper::upgrade::on(response)).await.unwrap());
            // A masked frame: "hello".
            let word = b"\x81\x85\0\0\0\0hello";
            socket.write_all(word).await.unwrap();
            let mut said = [0; 2 + 36 + 1 + 5];
            bounded(socket.read_exact(&mut said)).await.unwrap();
            assert!(said.ends_with(b" hello"));
            scene
                .noticed(async {
                    if talks {
                        socket.write_all(word).await.unwrap();
                    }
                    socket.read_u8().await.unwrap_err()
                })
                .await;
            drop(socket);
            scene.doubted().await;
        })
        .await;
    });
}

#[test]
fn a_dial_to_a_vanished_machine_is_validated_after_the_delay() {
    alone(|| async {
        all(BOTH, async |speaks| {
            let scene = Scene::new(speaks, Socket).await;
            scene.old.line.cut();
            scene.net.runs_target(scene.workspace, &scene.new.target);
            let before = scene.net.counts();
            let (key, request) = scene.keyed("/echo", Sends::from("once"));
            let begin = Instant::now();
            let said = text(bounded(scene.client.request(request)).await.unwrap()).await;
            let took = begin.elapsed();
            assert_eq!(said, format!("{}\nonce", scene.new.target.agent));
            assert!(took >= DELAY && took < DELAY + SLACK, "{took:?}");
            assert_eq!(scene.net.layer.bindings().flush().await, 0);
            assert_eq!(scene.net.counts() - before, counts(2, 1, 0, 1));
            assert_eq!((scene.old.carried_out(&key), scene.new.carried_out(&key)), (0, 1));
            assert_eq!((scene.old.line.connections(), scene.new.line.connections()), (0, 1));
        })
        .await;
    });
}

/// A cut that only the system detects, and a caller that drops its request.
#[test]
fn a_dropped_upload_leaves_nothing_behind() {
    alone(|| async {
        // With HTTP/1 the connection is closed at that moment; with HTTP/2 when the socket fails.
        let bounds =
            [(Speaks::Http1, Header, Duration::from_secs(1)), (Speaks::Http2, Socket, WATCHED)];
        all(bounds, async |(speaks, notices, bound)| {
            let scene =
                Scene::with(speaks, notices, |builder| builder.response_header_timeout(None)).await;
            let Upload { mut sender, key, waiting } = scene.upload().await;
            scene.old.line.cut();
            let sending =
                tokio::spawn(async move { while sender.send_data(PIECE).await.is_ok() {} });
            sleep(Duration::from_secs(1)).await;
            assert!(!sending.is_finished() && scene.old.line.connections() == 1, "{}", scene.what);
            waiting.abort();
            let begin = Instant::now();
            bounded(sending).await.unwrap();
            until(&format!("{}: it is closed", scene.what), || scene.old.line.connections() == 0)
                .await;
            assert!(begin.elapsed() < bound + SLACK, "{}: {:?}", scene.what, begin.elapsed());
            scene.once(&key);
        })
        .await;
    });
}

/// The system cannot distinguish a lost machine from one that reads nothing. It can distinguish it
/// from one that sends nothing.
#[test]
fn a_hanging_process_is_detected_by_its_socket_only_when_its_receive_buffer_is_full() {
    alone(|| async {
        all([false, true], async |is_full| {
            let scene = Scene::new(Speaks::Http1, Socket).await;
            let Upload { mut sender, key, mut waiting } = scene.upload().await;
            signal(scene.old.line.pid, "STOP");
            let begin = Instant::now();
            if is_full {
                let sending =
                    tokio::spawn(async move { while sender.send_data(PIECE).await.is_ok() {} });
                let error = bounded(waiting).await.unwrap().unwrap_err();
                scene.is_typed(&error);
                let range = scene.bound - EARLY..scene.bound + SLACK;
                assert!(range.contains(&begin.elapsed()), "{:?}", begin.elapsed());
                bounded(sending).await.unwrap();
            } else {
                assert!(timeout(scene.bound * 2, &mut waiting).await.is_err());
                signal(scene.old.line.pid, "CONT");
                drop(sender);
                assert_eq!(text(bounded(waiting).await.unwrap().unwrap()).await, "4\n");
            }
            scene.once(&key);
        })
        .await;
    });
}
