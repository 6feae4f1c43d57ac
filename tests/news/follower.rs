//! The follower: streams that never pause, generations that are never reached, gaps, and hints
//! beside a check.

use super::{scripted_bus::ScriptedBus, *};
use futures_util::{Stream, stream};
use tower_bound_agent::{
    Revision,
    hints::{About, Heard, Hint, Hints},
};

/// A bus whose stream is always ready.
struct Chatter;

impl Hints for Chatter {
    fn send(&self, _: Hint) {}

    fn listen(&self) -> impl Stream<Item = Heard> + Send + 'static {
        let about = About::Session { session: session(), revision: None };
        stream::repeat(Heard::Hint(Hint::new(1, about)))
    }
}

#[test]
fn a_stream_that_is_always_ready_yields_its_thread() {
    let (done, waits) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let process =
                Process::new(&world, |builder| builder.hints(Chatter).usage_interval(ms(20)));
            let (ws, _) = world.workspace();
            let chat = world.bind(&process.layer, ws).await;
            let before = world.counts();
            sleep(ms(100)).await;
            process.call(chat).await;
            let cost = world.counts() - before;
            done.send((cost.d, cost.w >= 2)).unwrap();
        });
    });
    let recorded = waits.recv_timeout(Duration::from_secs(20)).expect("the runtime is not frozen");
    assert_eq!(recorded, (1, true), "use is recorded at its interval");
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_is_never_reached_keeps_no_row_from_being_written() {
    let world = World::new();
    let bus = ScriptedBus::default();
    let process = Process::new(&world, |builder| builder.hints(bus.clone()));
    let (ws, mut old) = world.workspace();
    let chats = used(&world, &process, ws, &old, 100).await;
    for generation in [i64::MAX, 2, 3] {
        bus.says_rebuilt(ws, generation);
        settle().await;
        // Questions with answers below the generation are repeated four times. Then the answer is
        // accepted.
        for after in [0, 50, 200, 1_000, 0] {
            sleep(ms(after)).await;
            process.call(chats[0]).await;
            settle().await;
        }
        let before = world.counts();
        process.call(chats[0]).await;
        assert_eq!(world.counts() - before, counts(1, 0, 0, 0));

        let new = world.rebuild(ws, &old, Does::Hang);
        for chat in &chats {
            assert_eq!(process.call(*chat).await.agent, new.agent);
        }
        assert_eq!(process.bindings().flush().await, 0);
        let unwritten =
            chats.iter().filter(|chat| world.row_agent(**chat) != Some(new.agent)).count();
        assert_eq!(
            (unwritten, (world.counts() - before).w),
            (0, 1),
            "one group repair after a hint of {generation}"
        );
        old = new;
    }
}

#[tokio::test(start_paused = true)]
async fn a_gap_raises_four_doubts_at_a_time_beginning_with_held_connections() {
    let world = World::new();
    let bus = ScriptedBus::default();
    let process = Process::new(&world, |builder| builder.hints(bus.clone()));
    let mut workspaces = Vec::new();
    for _ in 0..20 {
        let (ws, target) = world.workspace();
        let chats = used(&world, &process, ws, &target, 1).await;
        workspaces.push((ws, chats[0]));
    }
    let held: Vec<_> =
        [process.call(workspaces[17].1).await, process.call(workspaces[18].1).await].into();
    // Only these two sessions are in use: the scan has found the others idle.
    let _ = process.bindings().in_use(workspaces[0].0);
    settle().await;
    let (before, began) = (world.counts(), Instant::now());
    bus.says(Heard::Lagged);
    sleep(Duration::from_secs(60)).await;
    assert_eq!((world.counts() - before).v, 2, "only workspaces with held connections ask");
    assert!(world.asked().iter().rev().take(2).all(|(at, _)| *at - began < ms(500)));
    drop(held);
    for (_, chat) in &workspaces {
        process.call(*chat).await;
    }
    settle().await;

    // Calls of all sessions ask one question for each doubt, and not all at once.
    bus.says(Heard::Lagged);
    let began = Instant::now();
    let before = world.counts();
    let mut most_at_once = 0;
    let mut last = 0;
    while began.elapsed() < Duration::from_secs(5) {
        for (_, chat) in &workspaces {
            process.call(*chat).await;
        }
        settle().await;
        let asked = (world.counts() - before).v;
        most_at_once = most_at_once.max(asked - last);
        last = asked;
        sleep(ms(10)).await;
    }
    assert_eq!((last, most_at_once), (20, 4));
    let asked: Vec<Duration> =
        world.asked().iter().rev().take(20).map(|(at, _)| *at - began).collect();
    let took = asked.iter().max().unwrap();
    assert!((ms(200)..=ms(700)).contains(took), "in {took:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_every_row_is_read_at_most_once_per_interval() {
    let world = World::new();
    let bus = ScriptedBus::default();
    let process = Process::new(&world, |builder| {
        builder.hints(bus.clone()).refresh_interval(Duration::from_secs(30))
    });
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 9_000).await;
    sleep(ms(30_001)).await;
    let (elsewhere, _) = world.workspace();
    for chat in &chats {
        world.store.elsewhere().retarget(*chat, elsewhere).await.unwrap();
    }
    let before = world.counts();
    bus.says(Heard::Lagged);
    sleep(ms(1)).await;
    assert_eq!((world.counts() - before).r, 5);
    for chat in &chats {
        assert_eq!(process.bindings().get(*chat).await.unwrap().unwrap().workspace, elsewhere);
    }
    // A bus that breaks every second costs the read of a part of the rows each time, and of all
    // rows every half minute.
    let before = world.counts();
    for _ in 0..29 {
        bus.says(Heard::Lagged);
        sleep(ms(1_000)).await;
    }
    let read = (world.counts() - before).r;
    assert!((28..=30).contains(&read), "{read} statements");
    sleep(ms(35_000)).await;
    let read = (world.counts() - before).r - read;
    assert!((5..=8).contains(&read), "{read} statements");
}

#[tokio::test(start_paused = true)]
async fn a_hint_does_not_wait_for_the_statements_of_a_check() {
    let world = World::new();
    let bus = ScriptedBus::default();
    let process = Process::new(&world, |builder| {
        builder.hints(bus.clone()).refresh_interval(Duration::from_secs(30))
    });
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 10_000).await;
    sleep(ms(29_999)).await;
    world.store.on_reads(Fault::Slow(ms(1_000)));
    // The check is under way, and takes five seconds.
    sleep(ms(500)).await;
    let (elsewhere, target) = world.workspace();
    let row = world.store.elsewhere().retarget(chats[9_999], elsewhere).await.unwrap();
    let about =
        About::Session { session: row.session, revision: Some(Revision::new(row.revision.get())) };
    bus.says(Heard::Hint(Hint::new(1, about)));
    sleep(ms(1_001)).await;
    assert_eq!(process.call(chats[9_999]).await.agent, target.agent);
}
