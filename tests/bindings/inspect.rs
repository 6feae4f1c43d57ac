//! A look at what is known of a workspace and a session: what it shows, and that it changes
//! nothing.

use crate::start;
use futures_util::TryStreamExt;
use support::*;
use tokio::time::{Duration, sleep};
use tower_bound_agent::{
    Bindings, DoubtReason, Repair, SessionSnapshot, Status, TargetSource, WorkspaceId,
    WorkspaceSnapshot, hints::LocalHints, store::BindingStore,
};

fn look(bindings: &Bindings, workspace: WorkspaceId) -> WorkspaceSnapshot {
    bindings.inspect(workspace).expect("a workspace in use")
}

/// The agents that are in doubt, why, and for how many milliseconds.
fn doubts(snapshot: &WorkspaceSnapshot) -> Vec<(bool, DoubtReason, u128)> {
    let doubts = snapshot.doubts.iter();
    doubts
        .map(|doubt| (doubt.agent.is_some(), doubt.reason, doubt.raised_ago.as_millis()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn shows_what_is_cached_and_known() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.layer();
    let (bindings, dial) = (layer.bindings(), world.dial(&layer));
    assert_eq!(bindings.inspect(ws), None);
    let chats = [world.bind(&layer, ws).await, world.bind(&layer, ws).await];
    let (other, _) = world.workspace();
    world.bind(&layer, other).await;
    sleep(ms(40)).await;

    let held = call(&dial, chats[0]).await.unwrap();
    let known = look(&bindings, ws);
    assert_eq!((known.workspace, known.epoch.get()), (ws, 0));
    assert_eq!(known.target.as_deref(), Some(&old));
    assert_eq!(known.source, TargetSource::Resolver);
    assert_eq!((known.superseded.len(), known.doubts.len(), known.repairs.len()), (0, 0, 0));
    let verdict = known.verdict.unwrap();
    assert_eq!((verdict.status, verdict.answered_ago), (Status::Running, ms(40)));
    assert_eq!((known.cached_rows, known.held_connections), (2, 1));
    let session = bindings.inspect_session(chats[0]);
    assert_eq!(session.binding, world.row(chats[0]));
    assert_eq!(session.target.as_deref(), Some(&old));
    assert_eq!((session.read_ago, session.held_connections), (Some(ms(40)), 1));
    assert_eq!((session.doubt, session.reading_for, session.repairs.len()), (None, None, 0));
    assert_eq!(bindings.inspect_session(chats[1]).held_connections, 0);
    drop(held);

    // A session that nothing is known of.
    let stranger = bindings.inspect_session(support::session());
    assert_eq!((stranger.binding, stranger.target, stranger.read_ago), (None, None, None));
    assert!(!stranger.is_absent && !stranger.is_uncertain);

    // The control plane has announced a build.
    let new = world.rebuild(ws, &old, Does::Hang);
    assert!(bindings.announce(ws, new.clone()));
    let known = look(&bindings, ws);
    assert_eq!((known.target.as_deref(), known.source), (Some(&new), TargetSource::Announcement));
    assert_eq!(known.superseded.iter().map(|target| (**target).clone()).collect::<Vec<_>>(), [old]);
    let session = bindings.inspect_session(chats[0]);
    assert_eq!(session.target.as_deref(), Some(&new), "what the next call dials");
    assert_eq!(session.binding, world.row(chats[0]), "and not what its row names");
}

#[tokio::test(start_paused = true)]
async fn shows_what_is_under_way_and_since_when() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.builder().max_pending_dials(1).build().unwrap();
    let (bindings, dial) = (layer.bindings(), world.dial(&layer));
    let chats = [world.bind(&layer, ws).await, world.bind(&layer, ws).await];

    // A dial hangs, another call queues, and the resolver takes its time.
    let new = world.rebuild(ws, &old, Does::Hang);
    world.resolver_takes(ws, ms(1_000));
    let calls = chats.map(|chat| start(&dial, chat));
    sleep(ms(249)).await;
    let known = look(&bindings, ws);
    assert_eq!((known.pending_dials, known.queued_calls), (1, 1));
    assert_eq!(known.validating_for, None);
    sleep(ms(101)).await;
    assert_eq!(look(&bindings, ws).validating_for, Some(ms(100)));

    // It answers, and the store does not take the repair.
    world.store.on_writes(Fault::Unavailable);
    for call in calls {
        drop(call.await.unwrap().unwrap());
    }
    sleep(ms(60)).await;
    let known = look(&bindings, ws);
    assert_eq!((known.validating_for, known.asks_again_in.is_some()), (None, true));
    let [repair] = &known.repairs[..] else { panic!("{:?}", known.repairs) };
    assert_eq!((repair.session, repair.state), (None, Repair::Retrying));
    assert_eq!((&*repair.target, repair.began_ago), (&new, ms(60)));
    assert!(repair.error.as_deref().unwrap().contains("down on purpose"), "{repair:?}");
    // A group repair is one of each session that has asked for it.
    assert_eq!(bindings.inspect_session(chats[0]).repairs, known.repairs);
    assert_eq!(bindings.inspect_session(session()).repairs, []);

    // A session's own repair.
    world.store.on_all(Fault::None);
    sleep(ms(1_000)).await;
    assert_eq!(bindings.flush().await, 0);
    world.store.on_writes(Fault::Hang);
    world.replace(ws, &new, Does::Fail(ms(0)));
    world.resolver_takes(ws, ms(0));
    drop(call(&dial, chats[0]).await.unwrap());
    sleep(ms(5)).await;
    let repairs = bindings.inspect_session(chats[0]).repairs;
    assert_eq!((repairs[0].session, repairs[0].state), (Some(chats[0]), Repair::Pending));
    assert_eq!((repairs[0].began_ago, &repairs[0].error), (ms(5), &None));

    // A read.
    world.store.on_reads(Fault::Hang);
    let stranger = session();
    let reading = start(&dial, stranger);
    sleep(ms(7)).await;
    assert_eq!(bindings.inspect_session(stranger).reading_for, Some(ms(7)));
    reading.abort();

    // A session without a row.
    world.store.on_all(Fault::None);
    let stranger = session();
    call(&dial, stranger).await.unwrap_err();
    assert!(bindings.inspect_session(stranger).is_absent);
    sleep(ms(1_000)).await;
    assert!(!bindings.inspect_session(stranger).is_absent);
}

#[tokio::test(start_paused = true)]
async fn names_the_reason_of_each_doubt() {
    let world = World::new();
    let (ws, agent) = world.workspace();
    let hints = LocalHints::new();
    let layer = world.builder().hints(hints.clone()).build().unwrap();
    let (bindings, dial) = (layer.bindings(), world.dial(&layer));
    let chat = world.bind(&layer, ws).await;
    let other = world.bind(&layer, ws).await;
    let confirmed = async || {
        bindings.validate_workspace(ws).await.unwrap();
        assert_eq!(look(&bindings, ws).doubts, []);
    };
    confirmed().await;

    bindings.revalidate_workspace(ws);
    sleep(ms(3)).await;
    assert_eq!(doubts(&look(&bindings, ws)), [(false, DoubtReason::Requested, 3)]);
    let SessionSnapshot { doubt, target, .. } = bindings.inspect_session(chat);
    assert_eq!(doubt.unwrap().reason, DoubtReason::Requested);
    assert_eq!(target.as_deref(), Some(&agent), "dialed all the same");
    // The resolver does not answer: the doubt stays, and is quiet for a while.
    world.says(ws, Says::Fails);
    bindings.validate_workspace(ws).await.unwrap_err();
    let quiet = look(&bindings, ws).doubts[0].quiet_for;
    assert_eq!(quiet, Some(Duration::from_secs(2)));
    assert_eq!(bindings.inspect_session(chat).doubt.unwrap().quiet_for, quiet);
    world.runs(ws, &agent);
    confirmed().await;

    drop(bindings.unbind(other).await.unwrap());
    assert_eq!(doubts(&look(&bindings, ws)), [(true, DoubtReason::Unbound, 0)]);
    confirmed().await;

    call(&dial, chat).await.unwrap().handle().report_stale();
    assert_eq!(doubts(&look(&bindings, ws)), [(true, DoubtReason::ReportedStale, 0)]);
    confirmed().await;

    sleep(ms(10_000)).await;
    world.does(&agent, Does::Hang);
    let dropped = start(&dial, chat);
    sleep(ms(100)).await;
    dropped.abort();
    sleep(ms(1)).await;
    assert_eq!(doubts(&look(&bindings, ws)), [(true, DoubtReason::CallDropped, 1)]);
    world.does(&agent, Does::Answer(ms(0)));
    confirmed().await;

    // Another process has announced a build.
    let elsewhere = world.builder().hints(hints).build().unwrap();
    elsewhere.bindings().announce(ws, world.agent(Some(2)));
    sleep(ms(1)).await;
    assert_eq!(doubts(&look(&bindings, ws)), [(false, DoubtReason::Hint, 1)]);
}

#[tokio::test(start_paused = true)]
async fn is_no_statement_no_question_no_dial_and_no_use() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let minute = Duration::from_secs(60);
    let layer = world.builder().usage_interval(minute).build().unwrap();
    let (bindings, dial) = (layer.bindings(), world.dial(&layer));
    let used = world.bind(&layer, ws).await;
    sleep(minute).await;
    // Cached, and never used: its use was never recorded.
    let looked_at = session();
    world.store.elsewhere().retarget(looked_at, ws).await.unwrap();
    assert_eq!(bindings.warm(10).await.unwrap(), 2);
    let recent = async || {
        let rows: Vec<_> = world.store.elsewhere().recent(1).try_collect().await.unwrap();
        rows[0].session
    };
    assert_eq!(recent().await, used);

    // In doubt, with a repair that is not written.
    world.store.on_writes(Fault::Unavailable);
    world.rebuild(ws, &old, Does::Hang);
    let bound = call(&dial, used).await.unwrap();
    bindings.revalidate_workspace(ws);
    sleep(ms(1)).await;
    let (before, stats) = (world.counts(), bindings.stats());
    let shown = (look(&bindings, ws), bindings.inspect_session(looked_at));
    for _ in 0..100 {
        assert_eq!((look(&bindings, ws), bindings.inspect_session(looked_at)), shown);
        assert_eq!(bindings.inspect_session(session()).binding, None);
        assert_eq!(bindings.inspect(workspace()), None);
    }
    assert_eq!((world.counts(), bindings.stats()), (before, stats));
    sleep(ms(10)).await;
    let after = world.counts() - before;
    assert_eq!((after.d, after.r), (0, 0));
    drop(bound);

    // What was only looked at is not recorded as used.
    world.store.on_writes(Fault::None);
    sleep(ms(1_000)).await;
    assert_eq!(bindings.flush().await, 0);
    for _ in 0..3 {
        sleep(minute).await;
        assert!(bindings.inspect_session(looked_at).binding.is_some());
    }
    sleep(minute).await;
    assert_eq!(recent().await, used);
}

#[cfg(feature = "serde")]
#[tokio::test(start_paused = true)]
async fn is_written_as_text_that_people_read() {
    let world = World::new();
    let (ws, agent) = world.workspace();
    let layer = world.layer();
    let bindings = layer.bindings();
    let chat = world.bind(&layer, ws).await;
    sleep(ms(1_250)).await;
    bindings.revalidate_workspace(ws);
    sleep(ms(40)).await;
    let known = serde_json::to_value(look(&bindings, ws)).unwrap();
    assert_eq!(known["workspace"], ws.to_string());
    assert_eq!(known["target"]["agent"], agent.agent.to_string());
    assert_eq!(known["target"]["generation"], 1);
    assert_eq!(known["source"], "resolver");
    assert_eq!(known["doubts"][0]["reason"], "requested");
    assert_eq!(known["doubts"][0]["raised_ago"], "40ms");
    assert_eq!(known["doubts"][0]["agent"], serde_json::Value::Null);
    let session = serde_json::to_value(bindings.inspect_session(chat)).unwrap();
    assert_eq!(session["binding"]["session"], chat.to_string());
    assert_eq!(session["binding"]["revision"], 1);
    assert_eq!(session["read_ago"], "1s 290ms");
}
