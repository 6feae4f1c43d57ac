//! What an operator sees: numbers of the present moment, lines of the log, and series.

use crate::{events::Log, start};
use support::*;
use tokio::time::sleep;
use tower_bound_agent::{DialSession, ErrorKind, Stats};

/// The numbers of a layer that has some rows of some workspaces, and does nothing.
fn idle(cached_rows: u64, workspaces: u64) -> Stats {
    let mut stats = Stats::default();
    (stats.cached_rows, stats.workspaces) = (cached_rows, workspaces);
    stats
}

#[tokio::test(start_paused = true)]
async fn stats_count_what_is_held_and_under_way() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.builder().max_pending_dials(2).build().unwrap();
    let (bindings, dial) = (layer.bindings(), world.dial(&layer));
    assert_eq!(bindings.stats(), Stats::default());
    let mut chats = Vec::new();
    for _ in 0..3 {
        chats.push(world.bind(&layer, ws).await);
    }
    let bound = call(&dial, chats[0]).await.unwrap();
    let in_use = bound.handle().in_use();
    let mut expected = idle(3, 1);
    expected.held_connections = 2; // the connection itself, and the guard
    assert_eq!(bindings.stats(), expected);
    drop((in_use, bound));
    assert_eq!(bindings.stats(), idle(3, 1));

    // Two dials are pending, one call waits for its turn, and the resolver is asked once.
    world.rebuild(ws, &old, Does::Hang);
    world.resolver_takes(ws, ms(1_000));
    let calls: Vec<_> = chats.iter().map(|chat| start(&dial, *chat)).collect();
    sleep(ms(500)).await;
    let mut expected = idle(3, 1);
    (expected.pending_dials, expected.queued_calls, expected.validations) = (2, 1, 1);
    assert_eq!(bindings.stats(), expected);

    // The repair of all three is refused and will be tried again.
    world.store.on_writes(Fault::Unavailable);
    for call in calls {
        drop(call.await.unwrap().unwrap());
    }
    sleep(ms(1)).await;
    let mut expected = idle(3, 1);
    expected.repairs_retrying = 1;
    assert_eq!(bindings.stats(), expected);
    world.store.on_writes(Fault::None);
    sleep(ms(1_000)).await;
    assert_eq!(bindings.stats(), idle(3, 1));

    // A read that hangs is overdue after the store timeout.
    world.store.on_reads(Fault::Hang);
    let reads = start(&dial, session());
    sleep(ms(1)).await;
    let mut expected = idle(3, 1);
    expected.reads = 1;
    assert_eq!(bindings.stats(), expected);
    sleep(ms(6_000)).await;
    expected.overdue_statements = 1;
    assert_eq!(bindings.stats(), expected);
    assert_eq!(reads.await.unwrap().unwrap_err().kind(), &ErrorKind::Store);
}

#[tokio::test(start_paused = true)]
async fn every_failure_is_an_event_with_its_cause() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let log = Log::default();
    let layer = log.layer(&world);
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    log.take();

    // The agent is dead, and the resolver names no other one.
    world.does(&old, Does::Fail(ms(0)));
    call(&dial, chat).await.unwrap_err();
    let events = log.take();
    assert_eq!(
        events.iter().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>(),
        ["failed", "validated", "failed", "call"]
    );
    assert!(events[3].starts_with("call failed, unreachable after 0ns: "), "{}", events[3]);

    // The store does not take the repair.
    world.store.on_writes(Fault::Unavailable);
    world.rebuild(ws, &old, Does::Fail(ms(0)));
    call(&dial, chat).await.unwrap();
    sleep(ms(1)).await;
    let refused = log.take().pop().unwrap();
    assert!(refused.starts_with("all repaired ") && refused.contains(": Retrying, "), "{refused}");
    assert!(refused.contains("down on purpose"), "{refused}");

    // Nor can a row be read. The call fails without a dial.
    world.store.on_reads(Fault::Unavailable);
    call(&dial, session()).await.unwrap_err();
    let events = log.take();
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events[0].starts_with("not read: ") && events[0].contains("down on purpose"));
    assert!(events[1].starts_with("call failed, store after 0ns: "), "{}", events[1]);

    // A call that is refused at once.
    world.store.on_all(Fault::None);
    layer.bindings().close(ms(10)).await;
    log.take();
    call(&dial, DialSession::new(chat)).await.unwrap_err();
    let events = log.take();
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(events[0].starts_with("call failed, closed after 0ns: "), "{}", events[0]);
}

#[cfg(feature = "tracing")]
mod log {
    use super::*;
    use support::log::{collect, lines};

    #[tokio::test(start_paused = true)]
    async fn a_line_tells_the_whole_story_of_a_switch_and_a_flood_is_one_line_a_second() {
        collect();
        let world = World::new();
        let (ws, old) = world.workspace();
        let layer = world.layer();
        let dial = world.dial(&layer);
        let mut chats = Vec::new();
        for _ in 0..3 {
            chats.push(world.bind(&layer, ws).await);
        }
        for chat in &chats {
            call(&dial, *chat).await.unwrap();
        }
        assert_eq!(lines(), [""; 0], "quiet while all is well");

        let new = world.rebuild(ws, &old, Does::Hang);
        call(&dial, chats[0]).await.unwrap();
        let (chat, from, to) = (chats[0], old.agent, new.agent);
        assert_eq!(
            lines(),
            [format!(
                "INFO switched to another agent session={chat} workspace={ws} from={from} to={to} \
                 dials=2 validations=1 decided_in=250ms dialed_in=0ns repair=\"pending\""
            )]
        );
        // Two more in the same second are left out, and the next line counts them.
        call(&dial, chats[1]).await.unwrap();
        call(&dial, chats[2]).await.unwrap();
        assert_eq!(lines(), [""; 0]);
        sleep(ms(1_000)).await;
        let newest = world.rebuild(ws, &new, Does::Hang);
        call(&dial, chats[0]).await.unwrap();
        let told = lines();
        assert_eq!(told.len(), 1);
        assert!(told[0].contains(" left_out=2 "), "{told:?}");

        // Not replaced, and slow.
        assert_eq!(layer.bindings().flush().await, 0);
        world.does(&newest, Does::Answer(ms(300)));
        call(&dial, chats[0]).await.unwrap();
        let agent = newest.agent;
        assert_eq!(
            lines(),
            [format!(
                "INFO slow call session={chat} workspace={ws} agent={agent} kind=\"confirmed\" \
                 dials=1 validations=1 decided_in=0ns dialed_in=300ms repair=\"not_needed\""
            )]
        );

        // Dead.
        world.does(&newest, Does::Fail(ms(0)));
        call(&dial, chats[0]).await.unwrap_err();
        let told = lines();
        assert_eq!(told.len(), 1);
        let line =
            format!("WARN call failed session={chat} workspace={ws} kind=\"unreachable\" took=0ns");
        assert!(told[0].starts_with(&line), "{told:?}");
        assert!(told[0].contains(" error="), "{told:?}");
    }
}

#[cfg(feature = "tracing")]
mod spans {
    use super::*;
    use support::log::{collect, spans};
    use tower_bound_agent::RepairMode;

    #[tokio::test(start_paused = true)]
    async fn a_call_has_a_span_with_its_whole_story_and_spans_of_what_it_waited_for() {
        collect();
        let world = World::new();
        let (ws, old) = world.workspace();
        let layer = world.builder().repair(RepairMode::BeforeReturn).build().unwrap();
        let dial = world.dial(&layer);

        // A first bind: read, question, dial, write.
        world.resolver_takes(ws, ms(30));
        let chat = world.bind(&layer, ws).await;
        let told = |outcome: &str, agent: &str, spent: &str, took: &str| {
            format!(
                "bound_agent session={chat} workspace={ws} agent={agent} outcome=\"{outcome}\" \
                 {spent} took={took}"
            )
        };
        let agent = old.agent.to_string();
        assert_eq!(
            spans(),
            [
                "bound_agent/store verb=\"load\" took=0ns".to_owned(),
                format!("bound_agent/dial agent={agent} took=0ns"),
                "bound_agent/validate took=30ms".to_owned(),
                "bound_agent/store verb=\"create\" took=0ns".to_owned(),
                told("first_bind", &agent, "dials=1 validations=1 waited=30ms", "30ms"),
            ]
        );

        // The usual call.
        call(&dial, chat).await.unwrap();
        assert_eq!(
            spans(),
            [
                format!("bound_agent/dial agent={agent} took=0ns"),
                told("reused", &agent, "dials=1 validations=0 waited=0ns", "0ns"),
            ]
        );

        // A slow turn: 250 ms until the question, 30 ms until its answer, 40 ms for the new agent,
        // 100 ms for the store.
        let new = world.rebuild(ws, &old, Does::Hang);
        world.does(&new, Does::Answer(ms(40)));
        world.store.on_writes(Fault::Slow(ms(100)));
        call(&dial, chat).await.unwrap();
        let agent = new.agent.to_string();
        assert_eq!(
            spans(),
            [
                format!("bound_agent/dial agent={} took=280ms", old.agent),
                "bound_agent/validate took=30ms".to_owned(),
                format!("bound_agent/dial agent={agent} took=40ms"),
                "bound_agent/store verb=\"replace_agent\" took=100ms".to_owned(),
                told("switched", &agent, "dials=2 validations=1 waited=320ms", "420ms"),
            ]
        );

        // A call that fails.
        world.does(&new, Does::Fail(ms(5)));
        call(&dial, chat).await.unwrap_err();
        let dialed = format!("bound_agent/dial agent={agent} error=connection refused took=5ms");
        assert_eq!(
            spans(),
            [
                dialed.clone(),
                "bound_agent/validate took=30ms".to_owned(),
                dialed,
                format!(
                    "bound_agent session={chat} workspace={ws} error=\"unreachable\" dials=2 \
                     validations=1 waited=40ms took=40ms"
                ),
            ]
        );

        // A call that is dropped, and one that is refused.
        world.does(&new, Does::Hang);
        assert!(tokio::time::timeout(ms(100), call(&dial, chat)).await.is_err());
        assert_eq!(
            spans(),
            [
                format!("bound_agent/dial agent={agent} took=100ms"),
                format!("bound_agent session={chat} took=100ms"),
            ]
        );
        layer.bindings().close(ms(10)).await;
        let ask = DialSession::new(chat).in_workspace(ws);
        call(&dial, ask).await.unwrap_err();
        assert_eq!(
            spans(),
            [format!(
                "bound_agent session={chat} workspace={ws} error=\"closed\" dials=0 validations=0 \
                 waited=0ns took=0ns"
            )]
        );
    }
}

#[cfg(feature = "metrics")]
mod metrics {
    use super::*;
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    use std::collections::BTreeMap;

    /// The series that are not zero, without the histograms' values: their number counts.
    fn series(recorder: &metrics_util::debugging::Snapshotter) -> BTreeMap<String, u64> {
        let all = recorder.snapshot().into_vec().into_iter();
        let named = all.map(|(key, _, _, value)| {
            let key = key.key();
            let labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let value = match value {
                DebugValue::Counter(count) => count,
                DebugValue::Gauge(value) => value.0 as u64,
                DebugValue::Histogram(values) => values.len() as u64,
            };
            (format!("{}{{{}}}", key.name(), labels.join(",")), value)
        });
        named.filter(|(_, value)| *value > 0).collect()
    }

    fn expected<const N: usize>(series: [(&str, u64); N]) -> BTreeMap<String, u64> {
        series.map(|(name, value)| (format!("bound_agent.{name}"), value)).into()
    }

    #[tokio::test(start_paused = true)]
    async fn every_event_of_a_story_is_counted_once() {
        let recorder = DebuggingRecorder::new();
        let seen = recorder.snapshotter();
        let _scope = ::metrics::set_default_local_recorder(&recorder);
        let world = World::new();
        let (ws, old) = world.workspace();
        let layer = world.layer();
        let dial = world.dial(&layer);
        let chat = world.bind(&layer, ws).await;
        layer.bindings().flush().await;
        assert_eq!(
            series(&seen),
            expected([
                ("calls{outcome=first_bind}", 1),
                ("call.duration{}", 1),
                ("dials{result=answered}", 1),
                ("dial.duration{}", 1),
                ("validations{verdict=running}", 1),
                ("validation.duration{}", 1),
                ("repairs{scope=session,result=written}", 1),
                ("statement.duration{verb=load}", 1),
                ("statement.duration{verb=create}", 1),
            ])
        );

        call(&dial, chat).await.unwrap();
        assert_eq!(
            series(&seen),
            expected([
                ("calls{outcome=reused}", 1),
                ("call.duration{}", 1),
                ("dials{result=answered}", 1),
                ("dial.duration{}", 1),
            ])
        );
        let new = world.rebuild(ws, &old, Does::Hang);
        call(&dial, chat).await.unwrap();
        layer.bindings().flush().await;
        assert_eq!(
            series(&seen),
            expected([
                ("calls{outcome=switched}", 1),
                ("call.duration{}", 1),
                ("dials{result=answered}", 1),
                ("dial.duration{}", 1),
                ("validations{verdict=running}", 1),
                ("validation.duration{}", 1),
                ("switches{}", 1),
                ("switch.delay{}", 1),
                ("repairs{scope=workspace,result=written}", 1),
                ("statement.duration{verb=replace_agent}", 1),
            ])
        );
        world.does(&new, Does::Fail(ms(0)));
        call(&dial, chat).await.unwrap_err();
        assert_eq!(
            series(&seen),
            expected([
                ("calls.failed{error=unreachable}", 1),
                ("call.duration{}", 1),
                ("dials{result=failed}", 2),
                ("dial.duration{}", 2),
                ("validations{verdict=running}", 1),
                ("validation.duration{}", 1),
            ])
        );
        layer.bindings().stats().record();
        assert_eq!(series(&seen), expected([("rows.cached{}", 1), ("workspaces{}", 1)]));
    }

    #[tokio::test(start_paused = true)]
    async fn statements_hints_and_the_delay_of_a_switch_are_counted_once() {
        let recorder = DebuggingRecorder::new();
        let seen = recorder.snapshotter();
        let _scope = ::metrics::set_default_local_recorder(&recorder);
        let world = World::new();
        let (ws, old) = world.workspace();
        let (other, _) = world.workspace();
        let hints = tower_bound_agent::hints::LocalHints::new();
        let builder = || world.builder().refresh_interval(None).hints(hints.clone());
        let layer = builder().build().unwrap();
        let (bindings, dial) = (layer.bindings(), world.dial(&layer));
        let chat = world.bind(&layer, ws).await;
        sleep(ms(1)).await;
        drop(series(&seen));

        bindings.retarget(chat, other).await.unwrap();
        bindings.retarget(chat, ws).await.unwrap();
        bindings.unbind(chat).await.unwrap();
        sleep(ms(1)).await;
        assert_eq!(
            series(&seen),
            expected([
                ("statement.duration{verb=retarget}", 2),
                ("statement.duration{verb=unbind}", 1),
                ("hints.sent{about=session}", 3),
                ("hints.sent{about=workspace}", 1),
            ])
        );
        call(&dial, chat).await.unwrap();
        assert_eq!(bindings.flush().await, 0);
        drop(series(&seen));

        // The 280 ms of a slow turn are 30 ms of doubt: the dial was in none before.
        world.rebuild(ws, &old, Does::Hang);
        world.resolver_takes(ws, ms(30));
        call(&dial, chat).await.unwrap();
        let delays: Vec<f64> = seen
            .snapshot()
            .into_vec()
            .into_iter()
            .filter(|(key, ..)| key.key().name() == "bound_agent.switch.delay")
            .flat_map(|(.., value)| match value {
                DebugValue::Histogram(values) => values.into_iter().map(|v| v.0).collect(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(delays, [0.03]);
        assert_eq!(bindings.flush().await, 0);
        drop(series(&seen));

        // Another process: the first one hears of its announcement, and of nothing else.
        let elsewhere = builder().build().unwrap();
        elsewhere.bindings().announce(ws, world.agent(Some(9)));
        sleep(ms(1)).await;
        assert_eq!(
            series(&seen),
            expected([("hints.sent{about=workspace}", 1), ("hints.received{about=workspace}", 1)])
        );
    }
}
