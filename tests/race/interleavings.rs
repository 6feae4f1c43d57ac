//! Exact interleavings: the test makes every step of the dialer, of the resolver and of the call.

use crate::scene::settled;
use std::{
    error::Error as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};
use support::*;
use tokio::time::{Duration, Instant, advance, sleep};
use tokio_test::{
    assert_pending, assert_ready, assert_ready_err, assert_ready_ok,
    task::{self, Spawn},
};
use tower::{Layer, Service, ServiceExt};
use tower_bound_agent::{
    AgentId, Bound, BoundAgent, BoundAgentLayer, BoxError, DialAgent, DialSession, ErrorKind,
    OutcomeKind, Repair, Resolution, ResolveWorkspace, ResponseFuture, SessionId, Status, Target,
    WorkspaceId,
    store::{BindingStore, MemoryStore, NewBinding},
};
use tower_test::mock::{self, Handle, Mock, SendResponse};

/// A connection, whose reference count shows whether it was dropped.
type Line = Arc<AgentId>;

struct Bench {
    store: MemoryStore,
    layer: BoundAgentLayer,
    dial: BoundAgent<Mock<DialAgent, Line>>,
    dials: Handle<DialAgent, Line>,
    questions: Handle<ResolveWorkspace, Resolution>,
    chat: SessionId,
    ws: WorkspaceId,
    old: Target,
}

impl Bench {
    /// Creates a session whose row is cached, with no other known facts.
    async fn new(generation: Option<i64>) -> Self {
        let (dialer, dials) = mock::pair();
        let (resolver, questions) = mock::pair();
        let store = MemoryStore::new();
        let layer = BoundAgentLayer::builder(store.clone(), resolver).build().unwrap();
        let (chat, ws, old) = (session(), workspace(), target(generation));
        let _ = store.create(NewBinding::new(chat, ws, Some(Arc::new(old.clone())))).await.unwrap();
        layer.bindings().get(chat).await.unwrap().unwrap();
        let dial = layer.layer(dialer);
        Self { store, layer, dial, dials, questions, chat, ws, old }
    }

    fn call(&mut self) -> Spawn<ResponseFuture<Mock<DialAgent, Line>>> {
        let dial = &mut self.dial;
        assert_ready_ok!(task::spawn(()).enter(|cx, _| dial.poll_ready(cx)));
        task::spawn(dial.call(DialSession::new(self.chat)))
    }

    /// Returns the dial that was started, and its agent. There must be one.
    fn dialed(&mut self) -> (AgentId, SendResponse<Line>) {
        let (ask, answer) = assert_ready!(self.dials.poll_request()).expect("a dial");
        (ask.target.agent, answer)
    }

    /// Returns the question that was asked. There must be one.
    async fn asked(&mut self) -> SendResponse<Resolution> {
        settled().await;
        assert_ready!(self.questions.poll_request()).expect("a question").1
    }

    async fn nothing_more(&mut self) {
        settled().await;
        assert_pending!(self.dials.poll_request());
        assert_pending!(self.questions.poll_request());
    }
}

fn target(generation: Option<i64>) -> Target {
    let target = Target::new(agent());
    generation.map_or(target.clone(), |generation| target.with_generation(generation))
}

fn line(target: &Target) -> (Line, Line) {
    let line = Arc::new(target.agent);
    (Arc::clone(&line), line)
}

fn is_dropped(line: &Line) -> bool {
    Arc::strong_count(line) == 1
}

const BOTH: [Option<i64>; 2] = [Some(1), None];

fn later(generation: Option<i64>) -> Target {
    target(generation.map(|generation| generation + 1))
}

fn got(bound: &Bound<Line>, target: &Target) {
    assert_eq!((***bound, bound.target().agent), (target.agent, target.agent));
}

#[tokio::test(start_paused = true)]
async fn a_stale_dial_that_answers_between_the_verdict_and_the_switch_is_dropped() {
    for generation in BOTH {
        let mut b = Bench::new(generation).await;
        let new = later(generation);
        let mut call = b.call();
        assert_pending!(call.poll());
        let (whom, stale) = b.dialed();
        assert_eq!(whom, b.old.agent);

        advance(ms(250)).await;
        assert_pending!(call.poll());
        let question = b.asked().await;
        question.send_response(Resolution::Running(new.clone()));
        settled().await;
        // The verdict has been recorded, and the call was not polled since. Now the stale dial
        // answers.
        let (seen, connection) = line(&b.old);
        stale.send_response(connection);
        assert!(call.is_woken());
        assert_pending!(call.poll());
        assert!(is_dropped(&seen), "the stale connection is dropped before the next dial answers");

        let (whom, fresh) = b.dialed();
        assert_eq!(whom, new.agent);
        fresh.send_response(line(&new).1);
        let bound = assert_ready_ok!(call.poll());
        got(&bound, &new);
        assert!(
            matches!(&bound.outcome().kind, OutcomeKind::Switched { from } if from.agent == b.old.agent)
        );
        assert_eq!((bound.outcome().dials, bound.outcome().validations), (2, 1));
        assert_eq!(b.layer.bindings().flush().await, 0);
        assert_eq!(bound.outcome().repair(), Repair::Written);
        b.nothing_more().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_answers_before_the_verdict_has_landed_is_used() {
    for generation in BOTH {
        let mut b = Bench::new(generation).await;
        let new = later(generation);
        let mut call = b.call();
        assert_pending!(call.poll());
        let (_, dial) = b.dialed();
        advance(ms(250)).await;
        assert_pending!(call.poll());
        let question = b.asked().await;
        // The answer was sent, but not processed when the call is polled.
        question.send_response(Resolution::Running(new.clone()));
        dial.send_response(line(&b.old).1);
        let bound = assert_ready_ok!(call.poll());
        got(&bound, &b.old);
        let mut superseded = task::spawn(bound.handle().superseded());
        assert_pending!(superseded.poll());

        // The validation ends, and the next call dials the new agent.
        settled().await;
        assert!(superseded.is_woken());
        assert_ready!(superseded.poll());
        let mut next = b.call();
        assert_pending!(next.poll());
        let (whom, dial) = b.dialed();
        assert_eq!(whom, new.agent);
        dial.send_response(line(&new).1);
        got(&assert_ready_ok!(next.poll()), &new);
        b.nothing_more().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_another_workspace_is_dropped_if_the_command_was_first() {
    for generation in BOTH {
        let mut b = Bench::new(generation).await;
        let (other, there) = (workspace(), target(generation));
        let mut call = b.call();
        assert_pending!(call.poll());
        let (_, stale) = b.dialed();
        b.layer.bindings().retarget(b.chat, other).await.unwrap();
        let (seen, connection) = line(&b.old);
        stale.send_response(connection);
        assert_pending!(call.poll());
        assert!(is_dropped(&seen));

        b.asked().await.send_response(Resolution::Running(there.clone()));
        settled().await;
        assert_pending!(call.poll());
        let (whom, dial) = b.dialed();
        assert_eq!(whom, there.agent);
        dial.send_response(line(&there).1);
        let bound = assert_ready_ok!(call.poll());
        got(&bound, &there);
        assert_eq!((bound.workspace(), &bound.outcome().kind), (other, &OutcomeKind::FirstBind));
        b.nothing_more().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_stale_dial_after_the_switch_is_dropped() {
    let mut b = Bench::new(Some(1)).await;
    let new = later(Some(1));
    let mut call = b.call();
    assert_pending!(call.poll());
    let (_, stale) = b.dialed();
    advance(ms(250)).await;
    assert_pending!(call.poll());
    b.asked().await.send_response(Resolution::Running(new.clone()));
    settled().await;
    assert_pending!(call.poll());
    let (_, fresh) = b.dialed();
    let (seen, connection) = line(&b.old);
    stale.send_response(connection);
    assert!(is_dropped(&seen), "no call waits for it");
    assert_pending!(call.poll());
    fresh.send_response(line(&new).1);
    got(&assert_ready_ok!(call.poll()), &new);
}

#[tokio::test(start_paused = true)]
async fn the_switch_waits_for_readiness_without_the_stale_dial() {
    let mut b = Bench::new(Some(1)).await;
    let new = later(Some(1));
    b.dials.allow(1);
    let mut call = b.call();
    assert_pending!(call.poll());
    let (_, stale) = b.dialed();
    advance(ms(250)).await;
    assert_pending!(call.poll());
    b.asked().await.send_response(Resolution::Running(new.clone()));
    settled().await;
    assert_pending!(call.poll());
    // The dialer is not ready, so no new dial begins; the stale dial is dropped already.
    assert_pending!(b.dials.poll_request());
    let (seen, connection) = line(&b.old);
    stale.send_response(connection);
    assert!(is_dropped(&seen));
    advance(Duration::from_secs(1)).await;
    assert_pending!(call.poll());
    b.dials.allow(1);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    let (whom, fresh) = b.dialed();
    assert_eq!(whom, new.agent);
    fresh.send_response(line(&new).1);
    let bound = assert_ready_ok!(call.poll());
    got(&bound, &new);
    assert_eq!(bound.outcome().decided_in, ms(1_250));
}

#[tokio::test(start_paused = true)]
async fn the_error_of_the_second_dial_is_the_source() {
    for generation in BOTH {
        let mut b = Bench::new(generation).await;
        let mut call = b.call();
        assert_pending!(call.poll());
        b.dialed().1.send_error(BoxError::from("one"));
        assert_pending!(call.poll());
        b.asked().await.send_response(Resolution::Running(b.old.clone()));
        settled().await;
        assert_pending!(call.poll());
        let (whom, second) = b.dialed();
        assert_eq!(whom, b.old.agent);
        second.send_error(BoxError::from("two"));
        let error = assert_ready_err!(call.poll());
        assert_eq!(error.kind(), &ErrorKind::Unreachable { newer: None });
        assert_eq!(error.source().unwrap().to_string(), "two");
        b.nothing_more().await;
    }
}

#[tokio::test(start_paused = true)]
async fn both_causes_are_the_last_of_their_kind() {
    let mut b = Bench::new(Some(1)).await;
    let mut call = b.call();
    assert_pending!(call.poll());
    b.dialed().1.send_error(BoxError::from("one"));
    assert_pending!(call.poll());
    b.asked().await.send_error(BoxError::from("no answer"));
    settled().await;
    assert_pending!(call.poll());
    b.dialed().1.send_error(BoxError::from("two"));
    let error = assert_ready_err!(call.poll());
    assert_eq!(error.dial_error().unwrap().to_string(), "two");
    assert_eq!(error.validation_error().unwrap().to_string(), "no answer");
    b.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_fails_at_the_moment_of_its_verdict_is_switched() {
    for generation in BOTH {
        let mut b = Bench::new(generation).await;
        let new = later(generation);
        let mut call = b.call();
        assert_pending!(call.poll());
        let (_, stale) = b.dialed();
        advance(ms(250)).await;
        assert_pending!(call.poll());
        b.asked().await.send_response(Resolution::Running(new.clone()));
        settled().await;
        stale.send_error(BoxError::from("too late"));
        assert_pending!(call.poll());
        let (whom, fresh) = b.dialed();
        assert_eq!(whom, new.agent);
        fresh.send_response(line(&new).1);
        got(&assert_ready_ok!(call.poll()), &new);
    }
}

#[tokio::test(start_paused = true)]
async fn row_13_an_error_that_the_cancellation_caused_starts_nothing() {
    // The dial ends with an error because its caller goes away, and the call is dropped before it
    // is polled again.
    for generation in BOTH {
        let mut b = Bench::new(generation).await;
        let mut call = b.call();
        assert_pending!(call.poll());
        let (_, dial) = b.dialed();
        dial.send_error(BoxError::from("cancelled"));
        drop(call);
        sleep(Duration::from_secs(60)).await;
        b.nothing_more().await;
        // A drop after less than ten milliseconds leaves no doubt either.
        let mut next = b.call();
        assert_pending!(next.poll());
        let (whom, dial) = b.dialed();
        assert_eq!(whom, b.old.agent);
        dial.send_response(line(&b.old).1);
        got(&assert_ready_ok!(next.poll()), &b.old);
        b.nothing_more().await;
    }
}

#[tokio::test(start_paused = true)]
async fn row_13_a_connection_that_arrives_after_its_caller_was_dropped_is_dropped() {
    let mut b = Bench::new(Some(1)).await;
    let mut call = b.call();
    assert_pending!(call.poll());
    let (_, dial) = b.dialed();
    let (seen, connection) = line(&b.old);
    dial.send_response(connection);
    drop(call);
    assert!(is_dropped(&seen));
    b.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_another_process_replaced_is_found_by_the_re_read_only() {
    // This process learns of the other process's write only when a denial makes the call read the
    // row.
    let mut b = Bench::new(Some(1)).await;
    let new = later(Some(1));
    let row = b.store.load(b.chat).await.unwrap().unwrap();
    let mut call = b.call();
    assert_pending!(call.poll());
    let (_, stale) = b.dialed();
    let swapped = NewBinding::new(b.chat, b.ws, Some(Arc::new(new.clone())));
    let _ = b.store.compare_and_swap(row.revision, swapped).await.unwrap();
    advance(ms(250)).await;
    assert_pending!(call.poll());
    b.asked().await.send_response(Resolution::Stopped);
    settled().await;
    assert_pending!(call.poll());
    // The row has been read meanwhile, and the stale dial answers before the call is polled.
    settled().await;
    let (seen, connection) = line(&b.old);
    stale.send_response(connection);
    assert_pending!(call.poll());
    assert!(is_dropped(&seen));
    let (whom, fresh) = b.dialed();
    assert_eq!(whom, new.agent);
    fresh.send_response(line(&new).1);
    got(&assert_ready_ok!(call.poll()), &new);
    b.nothing_more().await;
}

/// Starts a call of an unbound session whose workspace is in doubt; the call has asked the
/// resolver. Another session is cached.
async fn nothing_to_dial(
    b: &mut Bench,
) -> (Spawn<ResponseFuture<Mock<DialAgent, Line>>>, SessionId) {
    let other = session();
    let row = NewBinding::new(other, b.ws, Some(Arc::new(b.old.clone())));
    let _ = b.store.create(row).await.unwrap();
    b.layer.bindings().get(other).await.unwrap().unwrap();
    b.layer.bindings().unbind(b.chat).await.unwrap();
    b.layer.bindings().revalidate_workspace(b.ws);
    advance(ms(1)).await;
    let mut call = b.call();
    assert_pending!(call.poll());
    (call, other)
}

/// Asserts that the call asks again, and then dials the target of the answer.
async fn asks_again_and_binds(
    mut b: Bench,
    mut call: Spawn<ResponseFuture<Mock<DialAgent, Line>>>,
    newest: &Target,
) {
    assert_pending!(call.poll());
    b.asked().await.send_response(Resolution::Running(newest.clone()));
    settled().await;
    assert_pending!(call.poll());
    let (whom, dial) = b.dialed();
    assert_eq!(whom, newest.agent);
    dial.send_response(line(newest).1);
    let bound = assert_ready_ok!(call.poll());
    got(&bound, newest);
    assert_eq!((bound.outcome().dials, bound.outcome().validations), (1, 2));
    assert_eq!(bound.outcome().kind, OutcomeKind::FirstBind);
    b.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn an_overtaken_answer_is_asked_for_again() {
    for generation in BOTH {
        let mut b = Bench::new(generation).await;
        let (call, other) = nothing_to_dial(&mut b).await;
        let (new, newer) = (later(generation), later(generation.map(|generation| generation + 1)));
        b.asked().await.send_response(Resolution::Running(new.clone()));
        settled().await;
        // The validation has ended. Before the call is polled again, another call learns of the
        // next build, which is put in doubt at once.
        advance(ms(1)).await;
        b.layer.bindings().revalidate_workspace(b.ws);
        let bindings = b.layer.bindings();
        let current = tokio::spawn(async move { bindings.current(other).await.unwrap() });
        b.asked().await.send_response(Resolution::Running(newer.clone()));
        assert_eq!(current.await.unwrap().target.unwrap().agent, newer.agent);
        advance(ms(1)).await;
        b.layer.bindings().revalidate_workspace(b.ws);
        advance(ms(1)).await;
        assert!(call.is_woken());
        asks_again_and_binds(b, call, &newer).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_overtaken_by_a_row_is_asked_for_again() {
    let mut b = Bench::new(Some(1)).await;
    let (mut call, _) = nothing_to_dial(&mut b).await;
    let question = b.asked().await;
    advance(ms(1)).await;
    // After this process asked, another process has bound a session to the next build.
    let (new, newer, cold) = (later(Some(1)), target(Some(3)), session());
    let row = NewBinding::new(cold, b.ws, Some(Arc::new(newer.clone())));
    let _ = b.store.create(row).await.unwrap();
    b.layer.bindings().get(cold).await.unwrap().unwrap();
    assert_pending!(call.poll());
    question.send_response(Resolution::Running(new));
    settled().await;
    asks_again_and_binds(b, call, &newer).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_older_than_the_known_target_at_its_begin_is_not_asked_for_again() {
    let mut b = Bench::new(Some(5)).await;
    let (mut call, _) = nothing_to_dial(&mut b).await;
    b.asked().await.send_response(Resolution::Running(target(Some(4))));
    settled().await;
    let error = assert_ready_err!(call.poll());
    assert_eq!(error.kind(), &ErrorKind::Resolver);
    assert!(error.validation_error().unwrap().to_string().contains("older than what is known"));
    b.nothing_more().await;
}

/// Lets another process bind a session to the target, and this process read the row.
async fn bound_elsewhere(b: &Bench, target: &Target) {
    let (cold, bound) = (session(), Some(Arc::new(target.clone())));
    let _ = b.store.create(NewBinding::new(cold, b.ws, bound)).await.unwrap();
    b.layer.bindings().get(cold).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_denial_overtaken_by_a_row_ends_no_dial_to_the_agent_of_the_row() {
    // The row is read before or after the denial is recorded, but before the call is polled.
    for landed in [false, true] {
        for denial in
            [Resolution::Starting { retry_after: None }, Resolution::Stopped, Resolution::Gone]
        {
            let mut b = Bench::new(Some(1)).await;
            let new = later(Some(1));
            let mut call = b.call();
            assert_pending!(call.poll());
            let _stale = b.dialed();
            advance(ms(250)).await;
            assert_pending!(call.poll());
            let question = b.asked().await;
            advance(ms(1)).await;
            if landed {
                question.send_response(denial);
                settled().await;
                bound_elsewhere(&b, &new).await;
                assert_pending!(call.poll());
            } else {
                bound_elsewhere(&b, &new).await;
                assert_pending!(call.poll());
                question.send_response(denial);
                settled().await;
            }
            let (whom, fresh) = b.dialed();
            assert_eq!(whom, new.agent);
            for _ in 0..3 {
                assert_pending!(call.poll());
                settled().await;
            }
            fresh.send_response(line(&new).1);
            got(&assert_ready_ok!(call.poll()), &new);
            b.nothing_more().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_overtaken_denial_older_than_the_doubt_is_asked_for_again_at_once() {
    let mut b = Bench::new(Some(1)).await;
    let (bindings, chat) = (b.layer.bindings(), b.chat);
    tokio::spawn(async move { bindings.current(chat).await });
    let question = b.asked().await;
    advance(ms(1)).await;
    // The next build of the same agent.
    let next = b.old.clone().with_generation(2);
    bound_elsewhere(&b, &next).await;
    let mut call = b.call();
    assert_pending!(call.poll());
    let (whom, dial) = b.dialed();
    assert_eq!(whom, b.old.agent);
    advance(ms(250)).await;
    assert_pending!(call.poll());
    b.nothing_more().await;
    question.send_response(Resolution::Stopped);
    settled().await;
    assert_pending!(call.poll());
    b.asked().await.send_response(Resolution::Running(next.clone()));
    settled().await;
    assert_pending!(call.poll());
    dial.send_response(line(&next).1);
    got(&assert_ready_ok!(call.poll()), &next);
    b.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_began_before_a_reset_is_dropped_although_the_row_is_cached_again() {
    let mut b = Bench::new(Some(5)).await;
    let (new, chat) = (target(Some(1)), b.chat);
    let mut call = b.call();
    assert_pending!(call.poll());
    let (_, stale) = b.dialed();
    assert_eq!(b.layer.bindings().reset_workspace(b.ws).await.unwrap(), 1);
    // Another call reads the row before this one is polled: it is unbound, in the next epoch.
    assert_eq!(b.layer.bindings().get(chat).await.unwrap().unwrap().target, None);
    stale.send_response(line(&target(Some(5))).1);
    assert_pending!(call.poll());
    settled().await;
    assert_pending!(call.poll());
    b.asked().await.send_response(Resolution::Running(new.clone()));
    settled().await;
    assert_pending!(call.poll());
    let (whom, dial) = b.dialed();
    assert_eq!(whom, new.agent);
    dial.send_response(line(&new).1);
    let bound = assert_ready_ok!(call.poll());
    got(&bound, &new);
    assert_eq!((bound.outcome().dials, bound.outcome().validations), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_question_under_way_during_a_reset_is_asked_again() {
    let mut b = Bench::new(Some(5)).await;
    let (new, chat) = (target(Some(1)), b.chat);
    let mut call = b.call();
    assert_pending!(call.poll());
    let _stale = b.dialed();
    advance(ms(250)).await;
    assert_pending!(call.poll());
    let question = b.asked().await;
    assert_eq!(b.layer.bindings().reset_workspace(b.ws).await.unwrap(), 1);
    let bindings = b.layer.bindings();
    let current = tokio::spawn(async move { bindings.current(chat).await.unwrap() });
    // The call reads the row and joins the question under way.
    assert_pending!(call.poll());
    settled().await;
    assert_pending!(call.poll());
    b.nothing_more().await;
    // The answer was compared with the state before the command.
    question.send_response(Resolution::Running(new.clone()));
    settled().await;
    assert_pending!(call.poll());
    b.asked().await.send_response(Resolution::Running(new.clone()));
    settled().await;
    assert_pending!(call.poll());
    let (whom, dial) = b.dialed();
    assert_eq!(whom, new.agent);
    dial.send_response(line(&new).1);
    got(&assert_ready_ok!(call.poll()), &new);
    let current = current.await.unwrap();
    assert_eq!((current.status, current.target.unwrap().agent), (Status::Running, new.agent));
    b.nothing_more().await;
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_is_polled_only_after_a_change() {
    let mut b = Bench::new(Some(1)).await;
    let begin = Instant::now();
    let mut call = b.call();
    assert_pending!(call.poll());
    let _dial = b.dialed();
    for _ in 0..249 {
        advance(ms(1)).await;
        assert!(!call.is_woken(), "woken at {:?}", begin.elapsed());
    }
    advance(ms(1)).await;
    assert!(call.is_woken());
    assert_pending!(call.poll());
    b.asked().await.send_response(Resolution::Running(b.old.clone()));
    settled().await;
    assert_pending!(call.poll());
    for _ in 0..19 {
        advance(ms(100)).await;
        assert!(!call.is_woken(), "woken at {:?}", begin.elapsed());
    }
    b.nothing_more().await;
}

/// A dialer whose dials count their polls and become ready on request.
#[derive(Clone, Default)]
struct Counted {
    polls: Arc<AtomicUsize>,
    ready: Arc<AtomicBool>,
}

impl Service<DialAgent> for Counted {
    type Response = ();
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: DialAgent) -> Self::Future {
        let Self { polls, ready } = self.clone();
        Box::pin(std::future::poll_fn(move |_| {
            polls.fetch_add(1, SeqCst);
            if ready.load(SeqCst) { Poll::Ready(Ok(())) } else { Poll::Pending }
        }))
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_is_polled_once_per_poll_of_its_call() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    let dialer = Counted::default();
    let mut dial = layer.layer(dialer.clone());
    let mut call = tokio_test::task::spawn(dial.ready().await.unwrap().call(chat.into()));
    assert_pending!(call.poll());
    assert_eq!(dialer.polls.load(SeqCst), 1);
    assert_pending!(call.poll());
    assert_eq!(dialer.polls.load(SeqCst), 2);
    dialer.ready.store(true, SeqCst);
    assert_eq!(assert_ready_ok!(call.poll()).outcome().kind, OutcomeKind::Reused);
    assert_eq!(dialer.polls.load(SeqCst), 3);
}

/// Exhausts the task's cooperative budget, then polls the future.
async fn at_the_end_of_its_budget<F: Future + Unpin>(mut future: F) -> F::Output {
    let mut spent = false;
    std::future::poll_fn(move |cx| {
        if !std::mem::replace(&mut spent, true) {
            while tokio::task::coop::has_budget_remaining() {
                let _ = std::pin::pin!(tokio::task::consume_budget()).poll(cx);
            }
        }
        Pin::new(&mut future).poll(cx)
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_ready_dial_is_used_at_once_after_the_task_has_spent_its_budget() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    // Behaves as a socket: pending at its first poll, if only because the budget is exhausted.
    let dialer = tower::service_fn(async |_: DialAgent| {
        tokio::task::consume_budget().await;
        tokio::task::yield_now().await;
        Ok::<_, BoxError>(())
    });
    let (before, began) = (world.counts(), Instant::now());
    let call = Box::pin(layer.layer(dialer).oneshot(chat.into()));
    let bound = tokio::spawn(at_the_end_of_its_budget(call)).await.unwrap().unwrap();
    assert_eq!((began.elapsed(), &bound.outcome().kind), (Duration::ZERO, &OutcomeKind::Reused));
    assert_eq!((world.counts() - before).v, 0);
}
