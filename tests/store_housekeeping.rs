//! Housekeeping of every database with the same tests. SQL moves time by making recorded times
//! older. (The memory store has unit tests with its own times.)
#![cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]

use futures_util::{StreamExt, TryStreamExt};
use sqlx::{AssertSqlSafe, Row};
use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
#[cfg(all(unix, feature = "postgres"))]
use support::pgbouncer;
use support::rows::*;
#[cfg(any(feature = "postgres", feature = "mysql"))]
use support::servers;
use tower_bound_agent::{
    Binding, SessionId,
    store::{BATCH, BindingStore, Purged, StoreError, Swap, TransactionalStore},
};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn ms(milliseconds: i64) -> Duration {
    Duration::from_millis(milliseconds as u64)
}

/// A store over a table of its own, and SQL in which `T` is the table and `M` its meta table.
struct Case<St, Kept> {
    store: St,
    table: String,
    quote: char,
    _kept: Kept,
}

/// Operations that sqlx provides for every database.
trait Sql: TransactionalStore + Clone {
    fn run(&self, sql: String) -> impl Future<Output = u64> + Send;
    fn number(&self, sql: String) -> impl Future<Output = Option<i64>> + Send;
}

macro_rules! sql {
    ($($Store:ident)+) => { $(
        impl Sql for tower_bound_agent::store::$Store {
            async fn run(&self, sql: String) -> u64 {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(self.pool()).await.unwrap().rows_affected()
            }
            async fn number(&self, sql: String) -> Option<i64> {
                sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(self.pool()).await.unwrap().get(0)
            }
        }
    )+ };
}
#[cfg(feature = "sqlite")]
sql!(SqliteStore);
#[cfg(feature = "postgres")]
sql!(PostgresStore);
#[cfg(feature = "mysql")]
sql!(MySqlStore);

impl<St: Sql, Kept> Case<St, Kept> {
    fn sql(&self, text: &str) -> String {
        let name = |name: &str| format!("{0}{name}{0}", self.quote);
        let words = text.split(' ').map(|word| match word {
            "T" => name(&self.table),
            "M" => name(&format!("{}_meta", self.table)),
            word => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    async fn run(&self, text: &str) -> u64 {
        self.store.run(self.sql(text)).await
    }

    async fn number(&self, text: &str) -> Option<i64> {
        self.store.number(self.sql(text)).await
    }

    /// Returns a column of a session's row.
    async fn of(&self, s: u128, column: &str) -> Option<i64> {
        let revision = self.store.load(session(s)).await.unwrap().unwrap().revision;
        // The revision is unique in the tests that call this.
        self.number(&format!("SELECT {column} FROM T WHERE revision = {revision}")).await
    }

    /// Creates rows with targets, each with a unique revision: session `s` has `10 * s`.
    async fn rows(&self, sessions: impl IntoIterator<Item = u128>) {
        for s in sessions {
            let swap = self.store.create(new(s, s, Some(target(s as i64)))).await.unwrap();
            let Swap::Applied(row) = swap else { panic!("{swap:?}") };
            let revision = row.revision;
            assert_eq!(
                self.run(&format!(
                    "UPDATE T SET revision = {} WHERE revision = {revision}",
                    10 * s
                ))
                .await,
                1
            );
        }
    }

    async fn set(&self, s: u128, assignment: &str) {
        assert_eq!(
            self.run(&format!("UPDATE T SET {assignment} WHERE revision = {}", 10 * s)).await,
            1
        );
    }

    /// Sets the table as if use had been recorded for this long, and until now.
    async fn recorded_for(&self, how_long: i64) {
        self.store.touch(&[], ms(MINUTE)).await.unwrap();
        let since = now() - how_long;
        assert_eq!(self.run(&format!("UPDATE M SET use_recorded_since = {since}")).await, 1);
    }

    async fn recent(&self, limit: u64) -> Vec<SessionId> {
        let rows: Vec<Binding> = self.store.recent(limit).try_collect().await.unwrap();
        rows.into_iter().map(|row| row.session).collect()
    }

    /// Creates a row that was deleted this long ago. Its revision is `10 * s + 1`.
    async fn deleted(&self, s: u128, how_long_ago: i64) {
        self.rows([s]).await;
        assert!(self.store.forget(session(s), None).await.unwrap());
        let at = now() - how_long_ago;
        assert_eq!(
            self.run(&format!("UPDATE T SET deleted_at = {at} WHERE revision = {}", 10 * s + 1))
                .await,
            1
        );
    }

    async fn floor(&self) -> i64 {
        self.number("SELECT revision_floor FROM M").await.unwrap()
    }

    async fn an_hour_later(&self) {
        assert_eq!(
            self.run(&format!("UPDATE M SET floor_raised_at = floor_raised_at - {HOUR}")).await,
            1
        );
    }
}

mod contract {
    use super::*;

    pub(super) async fn use_is_recorded_since_the_last_gap<St: Sql, K>(case: Case<St, K>) {
        let store = &case.store;
        let since = async || case.number("SELECT use_recorded_since FROM M").await;
        let until = async || case.number("SELECT use_recorded_until FROM M").await;
        assert_eq!((since().await, until().await), (None, None));
        let began = now();
        store.touch(&[], ms(MINUTE)).await.unwrap();
        assert!((began..=now()).contains(&since().await.unwrap()));
        assert_eq!(since().await, until().await);

        // The interval, the time since the last call, and whether that is a gap: more than twice
        // the interval and a minute.
        let minutes = [
            (1, 2, false),
            (1, 4, true),
            (0, 2, true),
            (10, 20, false),
            (10, 22, true),
            (60, 120, false),
        ];
        for (interval, ago, gap) in minutes {
            let (long_ago, last) = (now() - 10 * DAY, now() - ago * MINUTE);
            let set = format!(
                "UPDATE M SET use_recorded_since = {long_ago}, use_recorded_until = {last}"
            );
            assert_eq!(case.run(&set).await, 1);
            let began = now();
            store.touch(&[], ms(interval * MINUTE)).await.unwrap();
            assert!((began..=now()).contains(&until().await.unwrap()));
            let expected = if gap { until().await } else { Some(long_ago) };
            assert_eq!(since().await, expected, "every {interval} min, {ago} min ago");
        }
        // Half a record, which no version writes, does not count.
        case.run("UPDATE M SET use_recorded_since = NULL").await;
        store.touch(&[], ms(MINUTE)).await.unwrap();
        assert_eq!(since().await, until().await);
        case.run("UPDATE M SET use_recorded_since = 1, use_recorded_until = NULL").await;
        store.touch(&[], ms(MINUTE)).await.unwrap();
        assert_eq!(since().await, until().await);
    }

    pub(super) async fn a_use_is_recorded_in_existing_rows_only<St: Sql, K>(case: Case<St, K>) {
        let store = &case.store;
        case.rows(1..=4).await;
        assert!(store.forget(session(3), None).await.unwrap());
        let before = store.load(session(1)).await.unwrap();
        let began = now();
        store.touch(&[1, 3, 99, 1, 4].map(session), ms(MINUTE)).await.unwrap();
        for (s, used) in [(1, true), (2, false), (4, true)] {
            let last_used = case.of(s, "last_used").await;
            assert_eq!(
                last_used.is_some_and(|at| (began..=now()).contains(&at)),
                used,
                "{s}: {last_used:?}"
            );
            assert_eq!(last_used.is_none(), !used);
        }
        assert_eq!(case.number("SELECT count(*) FROM T").await, Some(4), "no row was created");
        assert_eq!(store.load(session(3)).await.unwrap(), None);
        assert_eq!(
            store.load(session(1)).await.unwrap(),
            before,
            "no other column changes, and the revision stays"
        );

        // The time only moves forward, because another process's clock may be ahead.
        let (past, future) = (now() - HOUR, now() + HOUR);
        case.set(1, &format!("last_used = {past}")).await;
        case.set(4, &format!("last_used = {future}")).await;
        store.touch(&[4, 1].map(session), ms(MINUTE)).await.unwrap();
        assert!(case.of(1, "last_used").await.unwrap() >= began);
        assert_eq!(case.of(4, "last_used").await, Some(future));
    }

    pub(super) async fn at_most_two_thousand_uses_are_recorded_at_once<St: Sql, K>(
        case: Case<St, K>,
    ) {
        case.rows([1, 1999]).await;
        let sessions: Vec<_> = (0..=BATCH as u128).map(session).collect();
        let refused = case.store.touch(&sessions, ms(MINUTE)).await;
        assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
        assert_eq!(
            case.number("SELECT use_recorded_until FROM M").await,
            None,
            "nothing was recorded"
        );
        case.store.touch(&sessions[..BATCH], ms(MINUTE)).await.unwrap();
        assert_eq!(
            case.number("SELECT count(*) FROM T WHERE last_used IS NOT NULL").await,
            Some(2)
        );
    }

    pub(super) async fn recent_rows_come_first<St: Sql, K>(case: Case<St, K>) {
        assert_eq!(case.recent(10).await, []);
        case.rows(1..=6).await;
        for (s, last_used) in [(1, 30), (2, 10), (3, 20), (5, 40)] {
            case.set(s, &format!("last_used = {last_used}")).await;
        }
        assert!(case.store.forget(session(5), None).await.unwrap());
        assert_eq!(case.recent(3).await, [1, 3, 2].map(session));
        assert_eq!(case.recent(1).await, [session(1)]);
        assert_eq!(case.recent(0).await, []);
        // Sessions that were never used come last, in any order.
        let all = case.recent(u64::MAX).await;
        assert_eq!(all[..3], [1, 3, 2].map(session));
        assert_eq!(all[3..].iter().copied().collect::<BTreeSet<_>>(), [4, 6].map(session).into());
        let rows: Vec<Binding> = case.store.recent(1).try_collect().await.unwrap();
        assert_eq!(rows, [row(1, 1, Some(target(1)), 10, None)], "whole rows");
    }

    /// Runs over a pool of one connection.
    pub(super) async fn a_dropped_stream_returns_its_connection<St: Sql, K>(case: Case<St, K>) {
        case.rows(1..=100).await;
        for read in [0, 1, 3, 99, 100] {
            let rows: Vec<Binding> = case.store.recent(100).take(read).try_collect().await.unwrap();
            assert_eq!(rows.len(), read);
            let loaded = tokio::time::timeout(ms(10_000), case.store.load(session(1))).await;
            assert_eq!(
                loaded.expect("the connection is kept").unwrap(),
                Some(row(1, 1, Some(target(1)), 10, None))
            );
        }
    }

    pub(super) async fn idle_rows_stay_unless_use_was_recorded_for_that_long<St: Sql, K>(
        case: Case<St, K>,
    ) {
        case.rows(1..=2).await;
        case.set(1, "last_used = 7").await;
        let unmoved = async || {
            assert_eq!(
                case.number("SELECT count(*) FROM T WHERE workspace IS NOT NULL").await,
                Some(2)
            );
        };
        let since = async || match case.store.purge_idle(ms(HOUR), 10).await {
            Err(StoreError::UseNotRecorded { since }) => {
                since.map(|since| since.duration_since(UNIX_EPOCH).unwrap().as_millis() as i64)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(since().await, None, "never recorded");
        unmoved().await;
        let began = now();
        case.store.touch(&[session(2)], ms(MINUTE)).await.unwrap();
        assert!((began..=now()).contains(&since().await.unwrap()), "not recorded for that long");
        unmoved().await;
        case.recorded_for(HOUR - MINUTE).await;
        assert!(since().await.is_some(), "still not recorded for that long");
        unmoved().await;
        // Recorded for long enough, but not until now: three minutes are a gap.
        case.recorded_for(2 * HOUR).await;
        let last = now() - 4 * MINUTE;
        case.run(&format!("UPDATE M SET use_recorded_until = {last}")).await;
        assert_eq!(since().await, None, "no more recorded");
        unmoved().await;
        case.run("UPDATE M SET use_recorded_until = NULL").await;
        assert_eq!(since().await, None);
        case.recorded_for(2 * HOUR).await;
        case.run("UPDATE M SET use_recorded_gap = NULL").await;
        assert_eq!(since().await, None);
        unmoved().await;
        case.recorded_for(2 * HOUR).await;
        assert_eq!(case.store.purge_idle(ms(HOUR), 10).await.unwrap(), 1);
        case.run("DELETE FROM M").await;
        for lost in [
            case.store.purge_idle(ms(HOUR), 10).await.map(|_| ()),
            case.store.touch(&[], ms(1)).await,
        ] {
            assert!(matches!(lost, Err(StoreError::Corrupt(_))), "{lost:?}");
        }
    }

    pub(super) async fn idle_rows_are_deleted_like_forgotten_ones<St: Sql, K>(case: Case<St, K>) {
        let store = &case.store;
        case.rows(1..=4).await;
        case.recorded_for(3 * HOUR).await;
        for (s, ago) in [(1, 2 * HOUR), (2, HOUR - MINUTE), (4, 2 * HOUR)] {
            let at = now() - ago;
            case.set(s, &format!("last_used = {at}")).await;
        }
        assert!(store.forget(session(4), None).await.unwrap()); // 41
        let began = now();
        assert_eq!(store.purge_idle(ms(HOUR), 10).await.unwrap(), 1);
        assert_eq!(store.load(session(1)).await.unwrap(), None);
        assert_eq!(
            store.load(session(2)).await.unwrap(),
            Some(row(2, 2, Some(target(2)), 20, None)),
            "no row is that old"
        );
        assert_eq!(
            store.load(session(3)).await.unwrap(),
            Some(row(3, 3, Some(target(3)), 30, None)),
            "never used"
        );
        assert_eq!(
            case.number("SELECT count(*) FROM T WHERE revision = 41").await,
            Some(1),
            "deleted already"
        );
        let deleted_at = case.number("SELECT deleted_at FROM T WHERE revision = 11").await.unwrap();
        assert!((began..=now()).contains(&deleted_at));
        assert_eq!(store.purge_idle(ms(HOUR), 10).await.unwrap(), 0);

        // A row that is created again continues its revisions, and counts as never used, however
        // old its last use before the deletion is.
        for (s, revision) in [(1, 12), (4, 42)] {
            let created = store.create(new(s, 7, None)).await.unwrap();
            assert_eq!(created, Swap::Applied(row(s, 7, None, revision, previous(s as i64))));
            assert_eq!(case.of(s, "last_used").await, None);
        }
        assert_eq!(store.purge_idle(ms(HOUR), 10).await.unwrap(), 0);
    }

    /// The creation counts however the row was created, and again after each re-creation.
    pub(super) async fn rows_that_were_never_used_count_from_their_creation<St: Sql, K>(
        case: Case<St, K>,
    ) {
        let store = &case.store;
        case.rows(1..=7).await;
        case.recorded_for(3 * HOUR).await;
        let made = now();
        for (s, age) in [
            (1, 2 * HOUR),
            (2, HOUR - MINUTE),
            (3, 2 * HOUR),
            (4, 2 * HOUR),
            (6, 2 * HOUR),
            (7, 2 * HOUR),
        ] {
            case.set(s, &format!("created_at = {}", made - age)).await;
        }
        case.set(3, &format!("last_used = {}", made - MINUTE)).await; // is in use
        case.set(5, "created_at = NULL").await; // an unknown time
        assert!(store.forget(session(6), None).await.unwrap());
        // A command on an existing row is not a creation. A command that creates a row, or
        // re-creates it, is one.
        store.retarget(session(7), workspace(9)).await.unwrap();
        store.retarget(session(6), workspace(9)).await.unwrap();
        store.retarget(session(8), workspace(9)).await.unwrap();
        let Swap::Applied(_) = store.inherit(session(9), session(2)).await.unwrap() else {
            panic!("it is new")
        };
        assert!(store.forget(session(4), None).await.unwrap());
        let Swap::Applied(_) = store.create(new(4, 9, None)).await.unwrap() else {
            panic!("it was deleted")
        };

        assert_eq!(store.purge_idle(ms(HOUR), 10).await.unwrap(), 2);
        let mut left: Vec<_> = case.recent(10).await;
        left.sort();
        assert_eq!(left, [2, 3, 4, 5, 6, 8, 9].map(session));
        let made_since =
            format!("SELECT count(*) FROM T WHERE created_at BETWEEN {made} AND {}", now());
        assert_eq!(case.number(&made_since).await, Some(4));
        assert_eq!(store.purge_idle(ms(HOUR), 10).await.unwrap(), 0);
    }

    pub(super) async fn idle_rows_are_deleted_in_chunks_with_unused_ones<St: Sql, K>(
        case: Case<St, K>,
    ) {
        case.rows(1..=6).await;
        case.recorded_for(3 * HOUR).await;
        let at = now() - 2 * HOUR;
        case.run(&format!("UPDATE T SET last_used = {at} WHERE revision <= 30")).await;
        case.run(&format!("UPDATE T SET created_at = {at}")).await;
        for gone in [2, 2, 2, 0] {
            assert_eq!(case.store.purge_idle(ms(HOUR), 2).await.unwrap(), gone);
        }
    }

    pub(super) async fn only_idle_rows_are_deleted_in_chunks<St: Sql, K>(case: Case<St, K>) {
        case.rows(1..=6).await;
        case.recorded_for(3 * HOUR).await;
        let at = now() - 2 * HOUR;
        case.run(&format!("UPDATE T SET last_used = {at} WHERE revision <= 50")).await;
        assert_eq!(case.store.purge_idle(ms(HOUR), 0).await.unwrap(), 0);
        for gone in [2, 2, 1, 0] {
            assert_eq!(case.store.purge_idle(ms(HOUR), 2).await.unwrap(), gone);
        }
        assert_eq!(case.recent(10).await, [session(6)]);
    }

    pub(super) async fn tombstones_are_removed_in_two_runs<St: Sql, K>(case: Case<St, K>) {
        let store = &case.store;
        assert_eq!(store.purge_forgotten(10).await.unwrap(), Purged::new(0, 0));
        case.deleted(1, 8 * DAY).await; // 11
        case.deleted(2, 8 * DAY).await; // 21
        case.deleted(3, 6 * DAY).await; // 31, not yet
        case.rows([9]).await; // alive
        let purge = async || store.purge_forgotten(10).await.unwrap();
        let began = now();
        assert_eq!(purge().await, Purged::new(0, 2));
        assert_eq!(case.floor().await, 21);
        let raised_at = case.number("SELECT floor_raised_at FROM M").await.unwrap();
        assert!((began..=now()).contains(&raised_at));
        // A second run is too early: it removes no row and does not restart the hour.
        assert_eq!(purge().await, Purged::new(0, 2));
        assert_eq!(case.number("SELECT floor_raised_at FROM M").await, Some(raised_at));
        // One more row was deleted meanwhile, above the floor. The floor is not raised before the
        // rows below it were removed.
        case.deleted(4, 8 * DAY).await; // 41
        assert_eq!(purge().await, Purged::new(0, 3));
        assert_eq!(case.floor().await, 21);
        case.an_hour_later().await;
        assert_eq!(purge().await, Purged::new(2, 1));
        assert_eq!(case.floor().await, 41);
        assert_eq!(case.number("SELECT count(*) FROM T").await, Some(3));
        assert_eq!(purge().await, Purged::new(0, 1));
        case.an_hour_later().await;
        assert_eq!(purge().await, Purged::new(1, 0));
        assert_eq!(purge().await, Purged::new(0, 0));
        assert_eq!(case.number("SELECT count(*) FROM T WHERE revision IN (31, 90)").await, Some(2));
    }

    pub(super) async fn a_session_whose_row_was_removed_never_reuses_a_revision<St: Sql, K>(
        case: Case<St, K>,
    ) {
        let store = &case.store;
        let mut greatest = at(0);
        for life in 0..4_u128 {
            let row = match life % 3 {
                0 => store.retarget(session(1), workspace(life)).await.unwrap(),
                1 => match store.create(new(1, life, None)).await.unwrap() {
                    Swap::Applied(row) => row,
                    Swap::Conflict(row) => panic!("{row:?}"),
                },
                _ => {
                    let _ = store.create(new(2, life, None)).await.unwrap();
                    match store.inherit(session(1), session(2)).await.unwrap() {
                        Swap::Applied(row) => row,
                        Swap::Conflict(row) => panic!("{row:?}"),
                    }
                }
            };
            assert!(row.revision > greatest, "round {life}: {row:?}");
            for w in 0..5 {
                greatest = store.retarget(session(1), workspace(w)).await.unwrap().revision;
            }
            assert!(store.forget(session(1), None).await.unwrap());
            greatest = at(greatest.get() + 1);
            let old = now() - 8 * DAY;
            case.run(&format!("UPDATE T SET deleted_at = {old} WHERE deleted_at IS NOT NULL"))
                .await;
            assert_eq!(store.purge_forgotten(10).await.unwrap(), Purged::new(0, 1), "round {life}");
            case.an_hour_later().await;
            assert_eq!(store.purge_forgotten(10).await.unwrap(), Purged::new(1, 0), "round {life}");
        }
    }

    pub(super) async fn deleted_rows_are_removed_in_chunks_before_the_floor_is_raised_again<
        St: Sql,
        K,
    >(
        case: Case<St, K>,
    ) {
        for s in 1..=5 {
            case.deleted(s, 8 * DAY).await;
        }
        let purge = async |limit| case.store.purge_forgotten(limit).await.unwrap();
        assert_eq!(purge(0).await, Purged::new(0, 5));
        assert_eq!(case.floor().await, 0);
        assert_eq!(purge(2).await, Purged::new(0, 5));
        assert_eq!(case.floor().await, 51);
        case.deleted(6, 8 * DAY).await;
        case.an_hour_later().await;
        assert_eq!(purge(2).await, Purged::new(2, 4));
        assert_eq!(purge(2).await, Purged::new(2, 2));
        assert_eq!(
            case.floor().await,
            51,
            "otherwise the remaining rows would wait for another hour"
        );
        assert_eq!(purge(2).await, Purged::new(1, 1));
        assert_eq!(case.floor().await, 61);
        assert_eq!(purge(2).await, Purged::new(0, 1));
    }

    pub(super) async fn a_recreated_row_is_not_removed<St: Sql, K>(case: Case<St, K>) {
        let store = &case.store;
        case.deleted(1, 8 * DAY).await; // 11
        case.deleted(2, 8 * DAY).await; // 21
        assert_eq!(store.purge_forgotten(10).await.unwrap(), Purged::new(0, 2));
        case.an_hour_later().await;
        let back = store.retarget(session(1), workspace(1)).await.unwrap(); // 12
        // A row that was re-created and deleted once more: above the floor, and more recently.
        let _ = store.retarget(session(2), workspace(1)).await.unwrap(); // 22
        assert!(store.forget(session(2), None).await.unwrap()); // 23
        assert_eq!(store.purge_forgotten(10).await.unwrap(), Purged::new(0, 0));
        let old = now() - 8 * DAY;
        case.run(&format!("UPDATE T SET deleted_at = {old} WHERE revision = 23")).await;
        assert_eq!(store.purge_forgotten(10).await.unwrap(), Purged::new(0, 1));
        assert_eq!(case.floor().await, 23);
        assert_eq!(store.load(session(1)).await.unwrap(), Some(back));
    }

    /// The meta row was created manually or restored from a backup, at an unknown time.
    pub(super) async fn a_floor_of_unknown_age_removes_no_tombstones<St: Sql, K>(
        case: Case<St, K>,
    ) {
        case.deleted(1, 8 * DAY).await;
        case.run("UPDATE M SET revision_floor = 100").await;
        assert_eq!(case.store.purge_forgotten(10).await.unwrap(), Purged::new(0, 1));
        assert_eq!(case.floor().await, 100, "never lowered");
        case.run("UPDATE M SET revision_floor = 5").await;
        assert_eq!(case.store.purge_forgotten(10).await.unwrap(), Purged::new(0, 1));
        assert_eq!(case.floor().await, 11);
    }

    /// Rows are used, deleted, created and purged concurrently. The table itself refuses a deleted
    /// row with a last use.
    pub(super) async fn concurrent_uses_deletions_and_purges_keep_the_rules<St: Sql, K>(
        case: Case<St, K>,
    ) {
        const ROWS: u128 = 12;
        case.recorded_for(3 * HOUR).await;
        let store = Arc::new(case.store.clone());
        for s in 0..ROWS {
            let _ = store.create(new(s, 1, Some(target(1)))).await.unwrap();
        }
        let tasks: Vec<_> = (0..4_u128)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    let mut ended = 0;
                    for step in 0..25_u128 {
                        let s = (task * 5 + step * 7) % ROWS;
                        match task {
                            0 => {
                                let all: Vec<_> = (0..ROWS).rev().map(session).collect();
                                store.touch(&all, ms(MINUTE)).await.unwrap();
                            }
                            1 => ended += u64::from(store.forget(session(s), None).await.unwrap()),
                            2 => {
                                let _ = store.create(new(s, 1, Some(target(1)))).await.unwrap();
                            }
                            // Rows that were used before this moment.
                            _ => ended += store.purge_idle(Duration::ZERO, 3).await.unwrap(),
                        }
                    }
                    ended
                })
            })
            .collect();
        let mut ended = 0;
        for task in tasks {
            ended += task.await.unwrap();
        }
        // A creation and a deletion are two revisions. The last row may still exist.
        let alive =
            case.number("SELECT count(*) FROM T WHERE workspace IS NOT NULL").await.unwrap();
        // Not computed with `sum`, whose type differs between databases.
        let mut revisions = 0;
        for revision in 1..=100 {
            let rows = case
                .number(&format!("SELECT count(*) FROM T WHERE revision = {revision}"))
                .await
                .unwrap();
            revisions += revision * rows;
        }
        assert_eq!(revisions, 2 * ended as i64 + alive);
        assert!(ended > 0);
    }
}

macro_rules! contract {
    ($($store:ident: $made:ident($($isolation:literal)?);)+) => { $(
        mod $store {
            contract!(@tests super::$made(1, $($isolation)?);
                use_is_recorded_since_the_last_gap
                a_use_is_recorded_in_existing_rows_only
                at_most_two_thousand_uses_are_recorded_at_once
                recent_rows_come_first
                a_dropped_stream_returns_its_connection
                idle_rows_stay_unless_use_was_recorded_for_that_long
                idle_rows_are_deleted_like_forgotten_ones
                only_idle_rows_are_deleted_in_chunks
                rows_that_were_never_used_count_from_their_creation
                idle_rows_are_deleted_in_chunks_with_unused_ones
                tombstones_are_removed_in_two_runs
                a_session_whose_row_was_removed_never_reuses_a_revision
                deleted_rows_are_removed_in_chunks_before_the_floor_is_raised_again
                a_recreated_row_is_not_removed
                a_floor_of_unknown_age_removes_no_tombstones
            );
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn concurrent_uses_deletions_and_purges_keep_the_rules() {
                let Some(case) = super::$made(4, $($isolation)?).await else { return };
                super::contract::concurrent_uses_deletions_and_purges_keep_the_rules(case).await;
            }
        }
    )+ };
    (@tests $made:expr; $($test:ident)+) => { $(
        #[tokio::test]
        async fn $test() {
            // `None`: no server is available, which was printed.
            let Some(case) = $made.await else { return };
            super::contract::$test(case).await;
        }
    )+ };
}

#[cfg(feature = "sqlite")]
contract! {
    sqlite: sqlite();
}

#[cfg(feature = "postgres")]
contract! {
    postgres_read_committed: postgres("read committed");
    postgres_repeatable_read: postgres("repeatable read");
    postgres_serializable: postgres("serializable");
}

#[cfg(all(unix, feature = "postgres"))]
contract! {
    postgres_behind_pgbouncer: behind_pgbouncer();
}

#[cfg(feature = "mysql")]
contract! {
    mysql_repeatable_read: mysql("REPEATABLE READ");
    mysql_read_committed: mysql("READ COMMITTED");
    mysql_serializable: mysql("SERIALIZABLE");
}

#[cfg(feature = "sqlite")]
async fn sqlite(
    connections: u32,
) -> Option<Case<tower_bound_agent::store::SqliteStore, tempfile::TempDir>> {
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(directory.path().join("bindings.db"))
        .create_if_missing(true);
    let pool =
        SqlitePoolOptions::new().max_connections(connections).connect_with(options).await.unwrap();
    let store = tower_bound_agent::store::SqliteStore::new(pool);
    store.set_up().await.unwrap();
    Some(Case { store, table: "agent_bindings".to_owned(), quote: '"', _kept: directory })
}

#[cfg(feature = "postgres")]
async fn postgres(
    connections: u32,
    isolation: &str,
) -> Option<Case<tower_bound_agent::store::PostgresStore, ()>> {
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    let options: PgConnectOptions = servers::url("TEST_POSTGRES_URL")?.parse().unwrap();
    let options = options.options([("default_transaction_isolation", isolation)]);
    let pool =
        PgPoolOptions::new().max_connections(connections).connect_with(options).await.unwrap();
    let table = servers::table();
    let store = tower_bound_agent::store::PostgresStore::new(pool).with_table(&table).unwrap();
    store.set_up().await.unwrap();
    Some(Case { store, table, quote: '"', _kept: () })
}

/// Runs behind a PgBouncer in transaction mode.
#[cfg(all(unix, feature = "postgres"))]
async fn behind_pgbouncer(
    connections: u32,
) -> Option<Case<tower_bound_agent::store::PostgresStore, ()>> {
    let options = pgbouncer::ways().await?.in_transaction_mode.clone();
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(connections)
        .connect_with(options)
        .await
        .unwrap();
    let table = servers::table();
    let store = tower_bound_agent::store::PostgresStore::new(pool).with_table(&table).unwrap();
    let store = store.behind_transaction_pooler();
    store.set_up().await.unwrap();
    Some(Case { store, table, quote: '"', _kept: () })
}

#[cfg(feature = "mysql")]
async fn mysql(
    connections: u32,
    isolation: &'static str,
) -> Option<Case<tower_bound_agent::store::MySqlStore, ()>> {
    use sqlx::{
        Executor,
        mysql::{MySqlConnectOptions, MySqlPoolOptions},
    };
    let options: MySqlConnectOptions = servers::url("TEST_MYSQL_URL")?.parse().unwrap();
    let pool =
        MySqlPoolOptions::new().max_connections(connections).after_connect(move |connection, _| {
            Box::pin(async move {
                let sql =
                    AssertSqlSafe(format!("SET SESSION TRANSACTION ISOLATION LEVEL {isolation}"));
                connection.execute(sql).await.map(|_| ())
            })
        });
    let pool = pool.connect_with(options).await.unwrap();
    let table = servers::table();
    let store = tower_bound_agent::store::MySqlStore::new(pool).with_table(&table).unwrap();
    store.set_up().await.unwrap();
    Some(Case { store, table, quote: '`', _kept: () })
}
