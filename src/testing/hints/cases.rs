//! One function for each promise. Each panics if the promise is broken, and quotes it.

use super::TestBus;
use crate::{
    Epoch, Generation, Revision, SessionId, WorkspaceId,
    hints::{About, Heard, Hint, Hints},
    testing::run::left_out,
};
use futures_util::{StreamExt, stream::BoxStream};
use std::{
    collections::HashSet,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

/// How long a case waits for an event that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A hint about a session of its own: a bus may leave out an older hint about the same session.
fn fresh(origin: u64) -> Hint {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = u128::from(NEXT.fetch_add(1, Ordering::Relaxed));
    let session = SessionId::new(Uuid::from_u128(0x5e55_0000_0000 + id));
    Hint::new(origin, About::Session { session, revision: Some(Revision::new(1)) })
}

/// An end that sends. It also listens and discards what it receives: a layer does both for its
/// whole life, and the bus may do its sending in the stream.
struct Sender<H> {
    end: H,
    listening: JoinHandle<()>,
}

impl<H: Hints> Sender<H> {
    fn new(end: H) -> Self {
        let listening = tokio::spawn(end.listen().for_each(|_| ready(())));
        Self { end, listening }
    }

    fn send(&self, hint: Hint) {
        self.end.send(hint);
    }
}

impl<H> Drop for Sender<H> {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

struct Listener(BoxStream<'static, Heard>);

impl Listener {
    /// Listens, and waits until a hint of `sender` arrives.
    async fn that_hears(end: &impl Hints, sender: &Sender<impl Hints>) -> Self {
        let mut listener = Self::of(end);
        listener.hears_again(sender).await;
        listener
    }

    fn of(end: &impl Hints) -> Self {
        Self(end.listen().boxed())
    }

    /// A bus need not be reliable, but it must carry some hints: of many, one arrives in time.
    async fn hears_again(&mut self, sender: &Sender<impl Hints>) {
        let (began, mut sent) = (Instant::now(), HashSet::new());
        loop {
            let probe = fresh(7);
            sent.insert(probe);
            sender.send(probe);
            let wait = Instant::now() + Duration::from_millis(200);
            while let Ok(heard) = tokio::time::timeout_at(wait, self.0.next()).await {
                match heard {
                    Some(Heard::Hint(hint)) if sent.contains(&hint) => return,
                    Some(_) => {}
                    None => panic!("the stream has ended while the bus is there"),
                }
            }
            assert!(began.elapsed() < PATIENCE, "none of {} hints was heard", sent.len());
        }
    }

    async fn next(&mut self, what: &str) -> Heard {
        match timeout(PATIENCE, self.0.next()).await {
            Ok(Some(heard)) => heard,
            Ok(None) => panic!("the stream has ended while the bus is there, before {what}"),
            Err(_) => panic!("nothing was heard for {PATIENCE:?}, and there should be {what}"),
        }
    }

    /// Waits for a hint, or for `Lagged` in its place. Returns `true` for the hint.
    async fn hears_or_lags(&mut self, hint: Hint) -> bool {
        loop {
            match self.next(&format!("{hint} or Lagged")).await {
                Heard::Hint(heard) if heard == hint => return true,
                Heard::Hint(_) => {}
                Heard::Lagged => return false,
            }
        }
    }

    async fn lags(&mut self, why: &str) {
        while self.next(&format!("Lagged, since {why}")).await != Heard::Lagged {}
    }
}

/// A hint of one process reaches the others, in each of their streams.
///
/// > A hint that is sent after this call is received, or `Heard::Lagged` is received after it was
/// > lost.
pub async fn a_hint_reaches_every_listener<B: TestBus>(bus: B) {
    let (sender, other, third) = (Sender::new(bus.end().await), bus.end().await, bus.end().await);
    let mut listeners = Vec::new();
    for end in [&other, &other, &third] {
        listeners.push(Listener::that_hears(end, &sender).await);
    }
    for _ in 0..20 {
        let hint = fresh(1);
        sender.send(hint);
        for listener in &mut listeners {
            listener.hears_or_lags(hint).await;
        }
    }
}

/// A hint arrives as it was sent: its kind, its ids, its numbers (also absent ones) and its origin,
/// by which a layer recognizes its own hints.
///
/// > The random number of the layer that sent the hint. A layer ignores its own hints.
pub async fn every_part_of_a_hint_survives<B: TestBus>(bus: B) {
    const TIMES: usize = 20;
    let (sender, other) = (Sender::new(bus.end().await), bus.end().await);
    let mut listener = Listener::that_hears(&other, &sender).await;
    let mut abouts = Vec::new();
    for (id, number) in
        [(Uuid::nil(), None), (Uuid::max(), Some(i64::MAX)), (Uuid::from_u128(5), Some(i64::MIN))]
    {
        let (session, workspace) = (SessionId::new(id), WorkspaceId::new(id));
        abouts.push(About::Session { session, revision: number.map(Revision::new) });
        for epoch in [None, Some(Epoch::new(0)), Some(Epoch::new(3))] {
            let generation = number.map(Generation::new);
            abouts.push(About::Workspace { workspace, generation, epoch });
            abouts.push(About::Reset { workspace, epoch });
        }
    }
    for (origin, about) in [0, 1, u64::MAX].into_iter().cycle().zip(abouts) {
        let hint = Hint::new(origin, about);
        let mut times = 0;
        loop {
            sender.send(hint);
            if listener.hears_or_lags(hint).await {
                break;
            }
            times += 1;
            assert!(times < TIMES, "{hint} was lost {TIMES} times");
        }
    }
}

/// No hint arrives that was not sent. Hints may arrive several times and in another order, and a
/// process may receive its own.
///
/// > A bus need not be reliable: it may lose, delay, double or reorder hints.
pub async fn a_hint_is_received_as_it_was_sent<B: TestBus>(bus: B) {
    let (one, two) = (Sender::new(bus.end().await), Sender::new(bus.end().await));
    let mut listener = Listener::that_hears(&two.end, &one).await;
    let mut sent = HashSet::new();
    for n in 0..100 {
        let hint = fresh(n % 2);
        sent.insert(hint);
        if n % 2 == 0 { one.send(hint) } else { two.send(hint) }
    }
    let last = fresh(0);
    sent.insert(last);
    one.send(last);
    loop {
        match listener.next("the last hint, or Lagged").await {
            Heard::Hint(hint) if hint == last => break,
            // Of the probe that began.
            Heard::Hint(hint) if hint.origin == 7 => {}
            Heard::Hint(hint) => assert!(sent.contains(&hint), "nobody has sent {hint}"),
            Heard::Lagged => break,
        }
    }
}

/// A hint that is sent right after `listen` has returned, and before the stream was polled,
/// arrives; or `Lagged` does, once the bus listens.
///
/// > A bus that is not listening yet when this returns must report `Lagged` when it is.
pub async fn listening_begins_when_listen_returns<B: TestBus>(bus: B) {
    let (sender, other) = (Sender::new(bus.end().await), bus.end().await);
    drop(Listener::that_hears(&other, &sender).await);
    for _ in 0..3 {
        let mut listener = Listener::of(&other);
        let hint = fresh(1);
        sender.send(hint);
        sleep(Duration::from_millis(20)).await;
        listener.hears_or_lags(hint).await;
    }
}

/// A stream that is not polled for long loses hints at some point, and reports it.
///
/// > A hint that is sent after this call is received, or `Heard::Lagged` is received after it was
/// > lost.
pub async fn a_listener_that_falls_behind_hears_that_something_was_lost<B: TestBus>(bus: B) {
    const HINTS: usize = 5_000;
    let (sender, other) = (Sender::new(bus.end().await), bus.end().await);
    let mut listener = Listener::that_hears(&other, &sender).await;
    let mut missing = HashSet::new();
    for _ in 0..HINTS {
        let hint = fresh(1);
        missing.insert(hint);
        sender.send(hint);
    }
    while !missing.is_empty() {
        match listener.next(&format!("Lagged, or {} more hints", missing.len())).await {
            Heard::Hint(hint) => drop(missing.remove(&hint)),
            Heard::Lagged => return,
        }
    }
}

/// Hints that are sent while the connection is broken are lost, and the listener cannot know which:
/// it receives `Lagged`, and hints again afterwards.
///
/// > A hint that cannot be carried is lost; if the bus notices, it reports `Heard::Lagged` to the
/// > other processes.
pub async fn a_connection_that_is_lost_is_heard_as_lagged<B: TestBus>(bus: B) {
    let (sender, other) = (Sender::new(bus.end().await), bus.end().await);
    let mut listener = Listener::that_hears(&other, &sender).await;
    for _ in 0..2 {
        if !bus.disconnect().await {
            let name = "a_connection_that_is_lost_is_heard_as_lagged";
            return left_out(name, "the bus has no connection that could break");
        }
        sender.send(fresh(1));
        listener.lags("the connection was lost").await;
        listener.hears_again(&sender).await;
    }
}

/// An unreadable input may have been a hint: `Lagged` stands for it, and the stream continues.
///
/// > reports `Heard::Lagged` in place of a text that it cannot parse.
pub async fn unreadable_input_is_heard_as_lagged<B: TestBus>(bus: B) {
    let (sender, other) = (Sender::new(bus.end().await), bus.end().await);
    let mut listener = Listener::that_hears(&other, &sender).await;
    for _ in 0..2 {
        if !bus.send_unreadable().await {
            let name = "unreadable_input_is_heard_as_lagged";
            return left_out(name, "the bus carries nothing but hints");
        }
        listener.lags("input was unreadable").await;
        listener.hears_again(&sender).await;
    }
}

/// Sending does not block its thread, neither if no end listens nor if another end has a stream
/// that is not polled.
///
/// > It never waits and never fails.
pub async fn sending_does_not_wait<B: TestBus>(bus: B) {
    const HINTS: u32 = 5_000;
    let (sender, other) = (Arc::new(bus.end().await), bus.end().await);
    for listens in [false, true] {
        let _listener = listens.then(|| Listener::of(&other));
        let sender = Arc::clone(&sender);
        let sends = spawn_blocking(move || (0..HINTS).for_each(|_| sender.send(fresh(1))));
        match timeout(Duration::from_secs(5), sends).await {
            Ok(sent) => assert!(sent.is_ok(), "send has panicked"),
            Err(_) => panic!("{HINTS} calls of send took longer than 5 s, listening: {listens}"),
        }
    }
}

/// Tasks that work for a stream end soon after it. The case counts the tasks of its own runtime.
///
/// > Dropping the stream ends the listening and all work for it.
pub async fn dropping_a_stream_ends_what_worked_for_it<B: TestBus>(bus: B) {
    let (sender, other) = (Sender::new(bus.end().await), bus.end().await);
    let alive = || Handle::current().metrics().num_alive_tasks();
    // Once, for what a bus starts at its first use and keeps.
    let kept = Listener::that_hears(&other, &sender).await;
    drop(Listener::that_hears(&other, &sender).await);
    let mut before = alive();
    for _ in 0..10 {
        sleep(Duration::from_millis(50)).await;
        before = before.min(alive());
    }
    for _ in 0..5 {
        drop(Listener::that_hears(&other, &sender).await);
    }
    let began = Instant::now();
    while alive() > before {
        let (now, waited) = (alive(), began.elapsed());
        assert!(waited < PATIENCE, "{now} tasks are alive {waited:?} later, {before} were before");
        sleep(Duration::from_millis(20)).await;
    }
    drop(kept);
}

/// The streams of one process are independent of each other.
///
/// > The stream ends only if no hint can ever be received again.
pub async fn dropping_a_stream_ends_no_other<B: TestBus>(bus: B) {
    let (sender, other) = (Sender::new(bus.end().await), bus.end().await);
    let first = Listener::that_hears(&other, &sender).await;
    let mut second = Listener::that_hears(&other, &sender).await;
    drop(first);
    second.hears_again(&sender).await;
    drop(Listener::that_hears(&other, &sender).await);
    second.hears_again(&sender).await;
}
