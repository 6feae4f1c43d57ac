//! The background refresh: which rows it reads, in how many statements, and its treatment of
//! unreadable rows.

use super::*;

/// Retargets all of these sessions as another process.
async fn retargeted(world: &World, chats: &[SessionId]) -> (WorkspaceId, Target) {
    let (elsewhere, target) = world.workspace();
    for chat in chats {
        world.store.elsewhere().retarget(*chat, elsewhere).await.unwrap();
    }
    (elsewhere, target)
}

/// Returns how many of the sessions still point at the former workspace in this process's cache.
async fn left_behind(process: &Process, chats: &[SessionId], elsewhere: WorkspaceId) -> usize {
    let mut left = 0;
    for chat in chats {
        left += usize::from(
            process.bindings().get(*chat).await.unwrap().unwrap().workspace != elsewhere,
        );
    }
    left
}

#[tokio::test(start_paused = true)]
async fn one_unreadable_row_of_20_000_does_not_hide_other_rows() {
    let world = World::new();
    let process = Process::checking(&world);
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 20_000).await;
    let (elsewhere, _) = retargeted(&world, &chats).await;
    world.store.make_unreadable(chats[7_000]);
    let before = world.counts();
    sleep(ms(30_001)).await;
    let read = (world.counts() - before).r;
    // Ten statements, one of which is halved until the row is alone. 2,000 rows are halved ten or
    // eleven times.
    assert!((10 + 20..=10 + 22).contains(&read), "{read} statements");
    assert_eq!(left_behind(&process, &chats, elsewhere).await, 1);

    // Later checks read it alone, beside a part of the unused rows.
    let before = world.counts();
    sleep(ms(30_000)).await;
    assert_eq!((world.counts() - before).r, 2);
    world.store.make_readable(chats[7_000]);
    sleep(ms(30_000)).await;
    assert_eq!(left_behind(&process, &chats, elsewhere).await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_row_is_isolated_by_bisection() {
    let world = World::new();
    let process = Process::checking(&world);
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 1_024).await;
    let (elsewhere, _) = retargeted(&world, &chats).await;
    world.store.make_unreadable(chats[700]);
    let before = world.counts();
    sleep(ms(30_001)).await;
    assert_eq!((world.counts() - before).r, 1 + 2 * 10);
    assert_eq!(left_behind(&process, &chats, elsewhere).await, 1);
}

#[tokio::test(start_paused = true)]
async fn each_fourth_statement_that_fails_delays_its_rows_by_one_check() {
    let world = World::new();
    let process = Process::checking(&world);
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 20_000).await;
    let (elsewhere, _) = retargeted(&world, &chats).await;
    world.store.fail_bulk_reads_at(4);
    let before = world.counts();
    sleep(ms(30_001)).await;
    assert_eq!((world.counts() - before).r, 10);
    assert_eq!(left_behind(&process, &chats, elsewhere).await, 4_000);
    // The rows of the two failed statements, and a part of the others: the twelfth statement
    // overall fails.
    sleep(ms(30_000)).await;
    assert_eq!((world.counts() - before).r, 13);
    assert_eq!(left_behind(&process, &chats, elsewhere).await, 2_000);
    sleep(ms(30_000)).await;
    assert_eq!(left_behind(&process, &chats, elsewhere).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_check_of_a_store_out_of_reach_ends_after_three_statements() {
    let world = World::new();
    let process = Process::checking(&world);
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 20_000).await;
    let (elsewhere, _) = retargeted(&world, &chats).await;
    world.store.on_reads(Fault::Unavailable);
    let before = world.counts();
    sleep(ms(30_001)).await;
    assert_eq!((world.counts() - before).r, 3);
    world.store.on_reads(Fault::None);
    sleep(ms(30_000)).await;
    assert_eq!((world.counts() - before).r, 3 + 10, "all rows are still to be read");
    assert_eq!(left_behind(&process, &chats, elsewhere).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_check_costs_what_was_used() {
    let world = World::new();
    let process = Process::checking(&world);
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 20_000).await;
    sleep(ms(30_001)).await;
    let (before, rows) = (world.counts(), world.store.rows_read());
    for chat in &chats[..500] {
        process.call(*chat).await;
    }
    sleep(ms(30_000)).await;
    assert_eq!((world.counts() - before).r, 2, "the used rows, and a part of the others");
    let read = world.store.rows_read() - rows;
    assert!((500..500 + 2_000).contains(&read), "{read} rows");
}

#[tokio::test(start_paused = true)]
async fn unused_rows_are_read_within_sixteen_checks() {
    let world = World::new();
    let process = Process::checking(&world);
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 20_000).await;
    sleep(ms(30_001)).await;
    let (elsewhere, _) = retargeted(&world, &chats).await;
    let (before, rows) = (world.counts(), world.store.rows_read());
    sleep(ms(16 * 30_000)).await;
    assert_eq!((world.counts() - before).r, 16);
    assert_eq!(world.store.rows_read() - rows, 20_000, "each row is read once");
    assert_eq!(left_behind(&process, &chats, elsewhere).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_handle_is_woken_although_its_row_was_evicted() {
    let world = World::new();
    let process = Process::new(&world, |builder| {
        builder.refresh_interval(Duration::from_secs(30)).cache_capacity(1)
    });
    let (ws, target) = world.workspace();
    let chats = used(&world, &process, ws, &target, 1).await;
    let superseded = watch(process.call(chats[0]).await.handle());
    used(&world, &process, ws, &target, 50).await;
    let (elsewhere, began) = (world.workspace().0, Instant::now());
    world.store.elsewhere().retarget(chats[0], elsewhere).await.unwrap();
    assert!(superseded.await.unwrap() - began <= Duration::from_secs(31));
}

mod events {
    use super::*;
    use tower_bound_agent::{Event, OwnedEvent};

    type Failed = Arc<Mutex<Vec<(u64, String)>>>;

    fn with_observer(world: &World) -> (Process, Failed) {
        let failed = Failed::default();
        let log = Arc::clone(&failed);
        let process = Process::new(world, |builder| {
            builder.refresh_interval(Duration::from_secs(30)).observer(move |event: &Event<'_>| {
                if let OwnedEvent::RefreshFailed { rows, error, .. } = event.into() {
                    log.lock().unwrap().push((rows, error));
                }
            })
        });
        (process, failed)
    }

    fn taken(failed: &Failed) -> Vec<(u64, String)> {
        std::mem::take(&mut *failed.lock().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreadable_row_is_reported_at_every_check() {
        let world = World::new();
        let (process, failed) = with_observer(&world);
        let (ws, target) = world.workspace();
        let chats = used(&world, &process, ws, &target, 100).await;
        world.store.make_unreadable(chats[7]);
        for _ in 0..3 {
            sleep(ms(30_001)).await;
            assert_eq!(taken(&failed), [(1, "the row cannot be read: not a uuid".to_owned())]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failed_statements_are_reported_once_per_check() {
        let world = World::new();
        let (process, failed) = with_observer(&world);
        let (ws, target) = world.workspace();
        used(&world, &process, ws, &target, 9_000).await;
        world.store.fail_bulk_reads_at(2);
        sleep(ms(30_001)).await;
        assert_eq!(
            taken(&failed),
            [(4_000, "the store is unavailable: down on purpose".to_owned())]
        );
        world.store.fail_bulk_reads_at(0);
        sleep(ms(30_001)).await;
        assert_eq!(taken(&failed), []);
    }

    #[cfg(feature = "tracing")]
    #[tokio::test(start_paused = true)]
    async fn a_failure_is_a_warning_with_its_cause() {
        support::log::collect();
        let world = World::new();
        let process = Process::checking(&world);
        let (ws, target) = world.workspace();
        used(&world, &process, ws, &target, 1).await;
        world.store.on_reads(Fault::Unavailable);
        sleep(ms(30_001)).await;
        let told = support::log::lines();
        assert_eq!(told.len(), 1, "{told:?}");
        let line = &told[0];
        assert!(line.starts_with("WARN ") && line.contains(" rows=1 "), "{line}");
        assert!(line.contains("down on purpose"), "{line}");
    }
}

/// Measures how long a check blocks its thread, as seen by a task that only yields.
#[test]
#[ignore = "a measurement; best with --release"]
fn measures_how_long_a_check_blocks_its_thread() {
    for rows in [100_000, 1_000_000] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let process =
                Process::new(&world, |builder| builder.refresh_interval(Duration::from_secs(5)).cache_capacity(rows));
            let (ws, target) = world.workspace();
            let mut chats = Vec::new();
            for _ in 0..rows {
                let chat = session();
                chats.push(chat);
                let new = NewBinding::new(chat, ws, Some(Arc::new(target.clone())));
                let _ = world.store.elsewhere().create(new).await.unwrap();
            }
            process.bindings().warm(rows).await.unwrap();
            for used in [0, rows as usize / 100] {
                for chat in &chats[..used] {
                    process.call(*chat).await;
                }
                let (began, before) = (Instant::now(), world.store.rows_read());
                let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
                while began.elapsed() < Duration::from_secs(12) {
                    yield_now().await;
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                let read = world.store.rows_read() - before;
                println!("{rows} rows, {used} used: longest {longest:?}, {read} rows read in two or three checks");
            }
        });
    }
}
