//! The events that an observer receives.

use std::sync::{Arc, Mutex};
use support::*;
use tokio::time::{sleep, timeout};
use tower_bound_agent::{
    BoundAgentLayer, Event, OwnedEvent, Repair, Resolution, store::BindingStore,
};

/// Every event so far.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<OwnedEvent>>>);

impl Log {
    pub(crate) fn layer(&self, world: &World) -> BoundAgentLayer {
        let log = self.clone();
        world
            .builder()
            .observer(move |event: &Event<'_>| log.0.lock().unwrap().push(event.to_owned()))
            .build()
            .unwrap()
    }

    /// Returns the events since the last call, one line each.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap()).iter().map(line).collect()
    }

    pub(crate) fn reports(&self) -> usize {
        self.take().iter().filter(|line| line.starts_with("reported")).count()
    }
}

fn line(event: &OwnedEvent) -> String {
    match event {
        OwnedEvent::Dialed { target, took, error: None, .. } => {
            format!("dialed {} in {took:?}", target.agent)
        }
        OwnedEvent::Dialed { target, took, error: Some(error), .. } => {
            format!("failed {} in {took:?}: {error}", target.agent)
        }
        OwnedEvent::Validated { took, answer: Ok(Resolution::Running(target)), .. } => {
            format!("validated {} in {took:?}", target.agent)
        }
        OwnedEvent::Validated { took, answer: Ok(other), .. } => {
            format!("validated {other:?} in {took:?}")
        }
        OwnedEvent::Validated { took, answer: Err(error), .. } => {
            format!("no answer in {took:?}: {error}")
        }
        OwnedEvent::Switched { from, to, .. } => {
            format!("switched from {} to {}", from.agent, to.agent)
        }
        OwnedEvent::Repaired { target, repair, error, .. } => {
            let because = error.as_ref().map(|error| format!(", {error}")).unwrap_or_default();
            format!("repaired {}: {repair:?}{because}", target.agent)
        }
        OwnedEvent::WorkspaceRepaired { target, repair, error, .. } => {
            let because = error.as_ref().map(|error| format!(", {error}")).unwrap_or_default();
            format!("all repaired {}: {repair:?}{because}", target.agent)
        }
        OwnedEvent::Failed { kind, error, took, .. } => {
            format!("call failed, {} after {took:?}: {error}", kind.as_str())
        }
        OwnedEvent::LookUpFailed { error, .. } => format!("not read: {error}"),
        OwnedEvent::Used { target, dials, .. } => format!("used {}, {dials} dials", target.agent),
        OwnedEvent::ReportedStale { target, .. } => format!("reported {}", target.agent),
        OwnedEvent::DroppedInFlight { target, pending, .. } => {
            format!("dropped {} after {pending:?}", target.agent)
        }
        other => panic!("an event that this test does not know: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_sees_a_switch_in_order() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let log = Log::default();
    let layer = log.layer(&world);
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Hang);
    world.resolver_takes(ws, ms(20));
    world.does(&new, Does::Answer(ms(30)));
    log.take();
    call(&world.dial(&layer), chat).await.unwrap();
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(
        log.take(),
        [
            format!("validated {} in 20ms", new.agent),
            format!("dialed {} in 30ms", new.agent),
            format!("switched from {} to {}", old.agent, new.agent),
            format!("used {}, 2 dials", new.agent),
            format!("all repaired {}: Written", new.agent),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn an_observer_sees_every_kind_of_event() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let log = Log::default();
    let layer = log.layer(&world);
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    let agent = target.agent;
    assert_eq!(
        log.take(),
        [
            format!("validated {agent} in 0ns"),
            format!("dialed {agent} in 0ns"),
            format!("repaired {agent}: Written"),
            format!("used {agent}, 1 dials"),
        ]
    );

    // The use of a cached binding is an event too.
    let bound = call(&dial, chat).await.unwrap();
    assert_eq!(log.take(), [format!("dialed {agent} in 0ns"), format!("used {agent}, 1 dials")]);

    bound.report_stale();
    assert_eq!(log.take(), [format!("reported {agent}")]);

    world.does(&target, Does::Hang);
    world.says(ws, Says::Fails);
    let dropped = timeout(ms(40), call(&dial, chat)).await;
    assert!(dropped.is_err());
    let lines = log.take();
    assert_eq!(
        lines,
        [
            "no answer in 0ns: the resolver is broken".to_owned(),
            format!("dropped {agent} after 40ms")
        ]
    );

    world.does(&target, Does::Fail(ms(5)));
    world.says(ws, Says::Is(Resolution::Stopped));
    call(&dial, chat).await.unwrap_err();
    let lines = log.take();
    assert!(lines.contains(&format!("failed {agent} in 5ms: connection refused")), "{lines:?}");
    assert!(lines.contains(&"validated Stopped in 0ns".to_owned()), "{lines:?}");

    // Another address of the same build: the session's own row is written.
    let moved = world.agent(Some(1));
    world.runs(ws, &moved);
    world.does(&target, Does::Fail(ms(0)));
    world.store.on_writes(Fault::Unavailable);
    call(&dial, chat).await.unwrap();
    assert_eq!(layer.bindings().flush().await, 1);
    let lines = log.take();
    let refused =
        format!("repaired {}: Retrying, the store is unavailable: down on purpose", moved.agent);
    assert!(lines.contains(&refused), "{lines:?}");
    assert!(lines.contains(&format!("switched from {agent} to {}", moved.agent)), "{lines:?}");
    world.store.on_writes(Fault::None);
    world.store.elsewhere().forget(chat, None).await.unwrap();
    sleep(ms(200)).await;
    assert_eq!(log.take(), [format!("repaired {}: Lost", moved.agent)]);

    // Another build: all rows of the workspace are written.
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &moved, Does::Fail(ms(0)));
    world.store.on_writes(Fault::Unavailable);
    call(&dial, chat).await.unwrap();
    assert_eq!(layer.bindings().flush().await, 1);
    let lines = log.take();
    let refused =
        format!("all repaired {}: Retrying, the store is unavailable: down on purpose", new.agent);
    assert!(lines.contains(&refused), "{lines:?}");
    assert!(
        lines.contains(&format!("switched from {} to {}", moved.agent, new.agent)),
        "{lines:?}"
    );
    world.store.on_writes(Fault::None);
    sleep(ms(200)).await;
    assert_eq!(log.take(), [format!("all repaired {}: Written", new.agent)]);

    // The last event is the repair that failed when the layer was closed.
    let (second, there) = world.workspace();
    let other = world.bind(&layer, second).await;
    let there_too = world.agent(Some(1));
    world.runs(second, &there_too);
    world.does(&there, Does::Fail(ms(0)));
    world.rebuild(ws, &new, Does::Fail(ms(0)));
    world.store.on_writes(Fault::Unavailable);
    let (one, all) = (call(&dial, other).await.unwrap(), call(&dial, chat).await.unwrap());
    assert_eq!(layer.bindings().close(ms(1_000)).await, 2);
    assert_eq!((one.outcome().repair(), all.outcome().repair()), (Repair::Failed, Repair::Failed));
    let lines = log.take();
    for (scope, agent) in [("", there_too.agent), ("all ", all.target().agent)] {
        let failed =
            format!("{scope}repaired {agent}: Failed, the store is unavailable: down on purpose");
        assert!(lines.contains(&failed), "{lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_owned_event_equals_its_event() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let log = Log::default();
    let layer = log.layer(&world);
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Hang);
    log.take();
    call(&world.dial(&layer), chat).await.unwrap();
    assert_eq!(layer.bindings().flush().await, 0);
    let events = std::mem::take(&mut *log.0.lock().unwrap());
    let OwnedEvent::Used {
        session,
        workspace,
        target,
        kind: path,
        dials,
        validations,
        decided_in,
        dialed_in,
        repair,
        ..
    } = &events[3]
    else {
        panic!("{events:?}");
    };
    assert_eq!((*session, *workspace, target), (chat, ws, &new));
    assert_eq!(*path, tower_bound_agent::OutcomeKind::Switched { from: Arc::new(old) });
    assert_eq!((*dials, *validations, *decided_in, *dialed_in), (2, 1, ms(250), ms(0)));
    assert_eq!(*repair, Repair::Pending);
    assert!(
        matches!(&events[0], OwnedEvent::Validated { answer: Ok(Resolution::Running(said)), .. } if *said == new)
    );
}
