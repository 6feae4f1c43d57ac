//! What the stores in SQL databases have in common: names, columns, values, and when to try again.

pub(super) mod attempts;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) mod keeping;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(super) mod lent;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) mod one_statement;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(super) mod server;
#[cfg(test)]
pub(super) mod snapshot;

#[cfg(feature = "postgres")]
use super::Reset;
use super::{NewBinding, StoreError, housekeeping::Memory};
use crate::{
    AgentId, Binding, BoxError, BuildId, Epoch, Generation, Previous, Revision, SessionId, Target,
    WorkspaceId, jitter,
};
use sqlx::{
    AssertSqlSafe, ColumnIndex, Database, Decode, Encode, Row, SqlSafeStr, SqlStr, Type,
    query::Query,
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// The table of every `SCHEMA`, and the word in it that stands for any other one.
pub(super) const DEFAULT_TABLE: &str = "agent_bindings";

/// What this version of the crate writes and can work with.
const VERSION: i64 = 1;

/// Leaves room for `_workspace` in the 63 bytes that the strictest of the databases allows for a
/// name.
const LONGEST_NAME: usize = 48;

const COLUMNS: [&str; 13] = [
    "session",
    "workspace",
    "agent",
    "build",
    "generation",
    "address",
    "previous_agent",
    "previous_generation",
    "epoch",
    "revision",
    "deleted_at",
    "created_at",
    "last_used",
];
const META_COLUMNS: [&str; 7] = [
    "id",
    "schema_version",
    "revision_floor",
    "floor_raised_at",
    "use_recorded_since",
    "use_recorded_until",
    "use_recorded_gap",
];
const EPOCHS_COLUMNS: [&str; 2] = ["workspace", "epoch"];

/// What [`memory`] is read from.
pub(super) const MEMORY: &str =
    "revision_floor, floor_raised_at, use_recorded_since, use_recorded_until, use_recorded_gap";

/// What a row of a table is read from. Both names are quoted.
pub(super) fn read(table: &str, epochs: &str) -> String {
    format!(
        "session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT {epochs}.epoch FROM {epochs} WHERE {epochs}.workspace = {table}.workspace), 0)
             AS workspace_epoch"
    )
}

/// Refuses what could mean anything but one plain table.
pub(super) fn table_name(name: String) -> Result<String, StoreError> {
    if is_plain(&name) { Ok(name) } else { Err(StoreError::TableName { name }) }
}

/// Whether a name between quotes means nothing but itself, everywhere.
pub(crate) fn is_plain(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let begins_well = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    plain && begins_well && name.len() <= LONGEST_NAME
}

/// A schema for a table; the text itself for the default one.
pub(super) fn schema_for(schema: &'static str, table: &str) -> SqlStr {
    if table == DEFAULT_TABLE {
        schema.into_sql_str()
    } else {
        statement(schema.replace(DEFAULT_TABLE, table))
    }
}

/// Of the name of a table, which was checked, and text of this crate. In an `Arc`, so that each use
/// is a cheap clone.
pub(super) fn statement(text: String) -> SqlStr {
    AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
}

/// What was found in the database.
pub(super) enum Found {
    /// All that this version needs.
    Ready,
    /// Something does not exist yet; what does exist is right.
    Incomplete(String),
    /// Not to be touched.
    Wrong(StoreError),
}

/// A column: its name, and its type in the database's words.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: String,
}

/// The tables as they are; without columns they do not exist.
pub(super) struct Tables {
    pub(super) bindings: Vec<Column>,
    pub(super) meta: Vec<Column>,
    pub(super) epochs: Vec<Column>,
}

impl Tables {
    /// Whether the version can be read.
    pub(super) fn have_a_version(&self) -> bool {
        column_named(&self.meta, "schema_version").is_some()
    }

    /// Compares them with what this version needs. `kinds` says of which type a column must be, if
    /// that matters.
    pub(super) fn judged(
        &self,
        place: &(impl ToString + ?Sized),
        table: &str,
        version: Option<i64>,
        kinds: fn(&str) -> Option<&'static str>,
    ) -> Found {
        let wrong =
            |what: String| Found::Wrong(StoreError::Schema { place: place.to_string(), what });
        // The version first: a newer schema may well lack a column of this one.
        match version {
            Some(found) if found > VERSION => {
                let place = place.to_string();
                return Found::Wrong(StoreError::SchemaTooNew { place, found, supported: VERSION });
            }
            Some(found) if found < VERSION => {
                return wrong(format!(
                    "schema version {found} was never released, {VERSION} is needed"
                ));
            }
            _ => {}
        }
        let (meta, epochs) = (format!("{table}_meta"), format!("{table}_epochs"));
        let all = [
            (table, &self.bindings, &COLUMNS[..]),
            (&*meta, &self.meta, &META_COLUMNS[..]),
            (&*epochs, &self.epochs, &EPOCHS_COLUMNS[..]),
        ];
        for (table, there, needed) in all.into_iter().filter(|(_, there, _)| !there.is_empty()) {
            for needed in needed {
                let Some(column) = column_named(there, needed) else {
                    return wrong(format!("table {table} has no column {needed}"));
                };
                if let Some(kind) = kinds(needed).filter(|kind| *kind != column.kind) {
                    return wrong(format!(
                        "column {needed} of table {table} is {}, not {kind}",
                        column.kind
                    ));
                }
            }
        }
        if let Some((table, ..)) = all.iter().find(|(_, there, _)| there.is_empty()) {
            return Found::Incomplete(format!("table {table} does not exist"));
        }
        if version.is_none() {
            return Found::Incomplete(format!("table {meta} has no row"));
        }
        Found::Ready
    }
}

fn column_named<'c>(columns: &'c [Column], name: &str) -> Option<&'c Column> {
    columns.iter().find(|column| column.name.eq_ignore_ascii_case(name))
}

/// What a statement is given.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Id(Option<Uuid>),
    Number(Option<i64>),
    Text(Option<&'a str>),
}

impl From<SessionId> for Value<'_> {
    fn from(session: SessionId) -> Self {
        Self::Id(Some(session.into_uuid()))
    }
}

impl From<WorkspaceId> for Value<'_> {
    fn from(workspace: WorkspaceId) -> Self {
        Self::Id(Some(workspace.into_uuid()))
    }
}

impl From<Epoch> for Value<'_> {
    fn from(epoch: Epoch) -> Self {
        Self::Number(Some(epoch.get()))
    }
}

impl From<Revision> for Value<'_> {
    fn from(revision: Revision) -> Self {
        Self::Number(Some(revision.get()))
    }
}

/// Workspace, agent, build, generation, address.
pub(super) fn content(new: &NewBinding) -> [Value<'_>; 5] {
    let target = new.target.as_deref();
    [
        new.workspace.into(),
        Value::Id(target.map(|target| target.agent.into_uuid())),
        Value::Id(target.and_then(|target| target.build).map(BuildId::into_uuid)),
        Value::Number(target.and_then(|target| target.generation).map(Generation::get)),
        Value::Text(target.and_then(|target| target.address.as_deref())),
    ]
}

/// Agent, build, generation, address.
pub(super) fn place_to_dial(target: &Target) -> [Value<'_>; 4] {
    [
        Value::Id(Some(target.agent.into_uuid())),
        Value::Id(target.build.map(BuildId::into_uuid)),
        Value::Number(target.generation.map(Generation::get)),
        Value::Text(target.address.as_deref()),
    ]
}

pub(super) fn number<'a>(number: u64) -> Value<'a> {
    Value::Number(Some(i64::try_from(number).unwrap_or(i64::MAX)))
}

/// Sessions as the values of a list in a statement, where a parameter cannot be an array. The last
/// one is repeated up to a power of two, so that lists of every length need few texts, which
/// connections keep prepared.
#[cfg(any(feature = "sqlite", feature = "mysql"))]
pub(super) fn listed<'a>(sessions: &[SessionId]) -> Vec<Value<'a>> {
    let mut values: Vec<Value<'a>> = sessions.iter().map(|session| Value::from(*session)).collect();
    if let Some(last) = values.last().copied() {
        values.resize(values.len().next_power_of_two(), last);
    }
    values
}

/// A statement and its values, in the order of the parameters.
pub(super) fn query<'q, DB>(sql: &SqlStr, values: &[Value<'_>]) -> Query<'q, DB, DB::Arguments>
where
    DB: Database,
    DB::Arguments: sqlx::IntoArguments<DB>,
    Option<Uuid>: for<'v> Encode<'v, DB> + Type<DB>,
    Option<i64>: for<'v> Encode<'v, DB> + Type<DB>,
    for<'v> Option<&'v str>: Encode<'v, DB> + Type<DB>,
{
    values.iter().fold(sqlx::query(sql.clone()), |query, value| match *value {
        Value::Id(id) => query.bind(id),
        Value::Number(number) => query.bind(number),
        Value::Text(text) => query.bind(text),
    })
}

/// Numbers of one row; none if there is no row.
pub(super) fn numbers<R: Row>(rows: &[R]) -> Result<Vec<Option<i64>>, StoreError>
where
    for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
    usize: ColumnIndex<R>,
{
    let Some(row) = rows.first() else { return Ok(Vec::new()) };
    let numbers = (0..row.len()).map(|column| row.try_get(column)).collect::<Result<_, _>>();
    numbers.map_err(|error| StoreError::Corrupt(error.into()))
}

/// What the meta table says.
pub(super) fn memory(numbers: &[Option<i64>]) -> Result<Memory, StoreError> {
    match *numbers {
        [Some(floor), floor_raised_at, recorded_since, recorded_until, gap] => {
            Ok(Memory { floor, floor_raised_at, recorded_since, recorded_until, gap })
        }
        _ => Err(lost_memory()),
    }
}

/// A reset's count of rows, and the epoch that it has begun.
#[cfg(feature = "postgres")]
pub(super) fn reset(numbers: &[Option<i64>]) -> Result<Reset, StoreError> {
    match *numbers {
        [Some(rows), Some(epoch)] => {
            Ok(Reset::new(u64::try_from(rows).unwrap_or(0), Epoch::new(epoch)))
        }
        _ => Err(no_epoch()),
    }
}

/// A reset returned nothing.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) fn no_epoch() -> StoreError {
    StoreError::Corrupt("the database returned no epoch for a reset".into())
}

/// The row of the meta table is gone.
pub(super) fn lost_memory() -> StoreError {
    StoreError::Corrupt("the meta table has no row".into())
}

/// How many rows there are, and the greatest of their numbers.
pub(super) fn count_and_greatest(numbers: &[Option<i64>]) -> (u64, i64) {
    let number = |column: usize| numbers.get(column).copied().flatten().unwrap_or(0);
    (u64::try_from(number(0)).unwrap_or(0), number(1))
}

/// Reads rows; anything that no store of this crate writes is an error rather than half a target.
pub(super) fn bindings<R: Row>(rows: Vec<R>) -> Result<Vec<Binding>, StoreError>
where
    for<'r> Option<Uuid>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<String>: Decode<'r, R::Database> + Type<R::Database>,
    for<'i> &'i str: ColumnIndex<R>,
{
    rows.iter().map(binding).collect()
}

/// Reads one row.
pub(super) fn binding<R: Row>(row: &R) -> Result<Binding, StoreError>
where
    for<'r> Option<Uuid>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<String>: Decode<'r, R::Database> + Type<R::Database>,
    for<'i> &'i str: ColumnIndex<R>,
{
    whole(row).map_err(StoreError::Corrupt)
}

fn whole<R: Row>(row: &R) -> Result<Binding, BoxError>
where
    for<'r> Option<Uuid>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<String>: Decode<'r, R::Database> + Type<R::Database>,
    for<'i> &'i str: ColumnIndex<R>,
{
    let id = |column: &str| row.try_get::<Option<Uuid>, _>(column);
    let number = |column: &str| row.try_get::<Option<i64>, _>(column);
    let there = |column: &str| format!("{column} is NULL");

    let session = SessionId::new(id("session")?.ok_or_else(|| there("session"))?);
    let build = id("build")?;
    let generation = number("generation")?;
    let address = row.try_get::<Option<String>, _>("address")?;
    let target = match id("agent")? {
        Some(agent) => {
            let mut target = Target::new(AgentId::new(agent));
            target.build = build.map(BuildId::new);
            target.generation = generation.map(Generation::new);
            target.address = address.map(Arc::from);
            Some(Arc::new(target))
        }
        None if build.is_none() && generation.is_none() && address.is_none() => None,
        None => return Err(format!("session {session} has a target without an agent").into()),
    };
    let previous_generation = number("previous_generation")?.map(Generation::new);
    let previous =
        id("previous_agent")?.map(|agent| Previous::new(AgentId::new(agent), previous_generation));
    let workspace = WorkspaceId::new(id("workspace")?.ok_or_else(|| there("workspace"))?);
    let revision = Revision::new(number("revision")?.ok_or_else(|| there("revision"))?);
    let binding = Binding::new(session, workspace, target, revision).with_previous(previous);
    let epoch =
        |column: &str| Ok::<_, BoxError>(Epoch::new(number(column)?.ok_or_else(|| there(column))?));
    Ok(binding.with_epoch(epoch("epoch")?).in_epoch(epoch("workspace_epoch")?))
}

/// How long to go on with what failed because others were at the same work.
pub(super) struct Backoff {
    until: Instant,
    pause: Duration,
    longest: Duration,
}

impl Backoff {
    /// A set-up while other processes set up the same tables.
    pub(super) fn of_a_set_up() -> Self {
        Self::new(Duration::from_secs(10), Duration::from_millis(100))
    }

    /// A statement that the database undid. Below the layer's default for one statement, 5 s; but
    /// PostgreSQL takes a second to find a deadlock, and more than one may have to be waited for.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(super) fn of_a_verb() -> Self {
        Self::new(Duration::from_secs(4), Duration::from_millis(50))
    }

    /// A statement whose connection led to the wrong server. Each wait costs the server a login.
    pub(super) fn of_a_stale_connection() -> Self {
        Self::new(Duration::from_secs(4), Duration::from_millis(500))
    }

    fn new(within: Duration, longest: Duration) -> Self {
        Self { until: Instant::now() + within, pause: Duration::from_millis(2), longest }
    }

    /// Waits a little, unless it has been too long.
    pub(super) async fn wait(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        sleep(jitter::around(self.pause)).await;
        self.pause = (self.pause * 2).min(self.longest);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_become_part_of_a_statement() {
        for good in ["agent_bindings", "Agent_Bindings", "_x", "order", "t2", &"x".repeat(48)] {
            assert_eq!(table_name(good.to_owned()).ok().as_deref(), Some(good));
        }
        let long = "x".repeat(49);
        for bad in
            ["", "2t", "a b", "a\"b", "a'b", "a`b", "a;b", "a.b", "a-b", "täble", "a\0b", &long]
        {
            assert!(
                matches!(table_name(bad.to_owned()), Err(StoreError::TableName { name }) if name == bad),
                "{bad:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let began = Instant::now();
        let mut patience = Backoff::of_a_set_up();
        let mut times = 0;
        while patience.wait().await {
            times += 1;
        }
        assert!((50..300).contains(&times), "{times}");
        assert!((10_000..10_200).contains(&began.elapsed().as_millis()));
    }
}
