//! Decoding of rows.

#[cfg(feature = "postgres")]
use crate::store::Reset;
use crate::{
    AgentId, Binding, BoxError, BuildId, Epoch, Generation, Previous, Revision, SessionId, Target,
    WorkspaceId,
    store::{StoreError, housekeeping::Meta},
};
use sqlx::{ColumnIndex, Decode, Row, Type};
use std::sync::Arc;
use uuid::Uuid;

/// Returns the numbers of the first row; none if there is no row.
pub(in crate::store) fn numbers<R: Row>(rows: &[R]) -> Result<Vec<Option<i64>>, StoreError>
where
    for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
    usize: ColumnIndex<R>,
{
    let Some(row) = rows.first() else { return Ok(Vec::new()) };
    let numbers = (0..row.len()).map(|column| row.try_get(column)).collect::<Result<_, _>>();
    numbers.map_err(|error| StoreError::Corrupt(error.into()))
}

/// Decodes the row of the meta table.
pub(in crate::store) fn meta(numbers: &[Option<i64>]) -> Result<Meta, StoreError> {
    match *numbers {
        [Some(floor), floor_raised_at, recorded_since, recorded_until, gap] => {
            Ok(Meta { floor, floor_raised_at, recorded_since, recorded_until, gap })
        }
        _ => Err(missing_meta()),
    }
}

/// Decodes the number of rows and the new epoch of a reset.
#[cfg(feature = "postgres")]
pub(in crate::store) fn reset(numbers: &[Option<i64>]) -> Result<Reset, StoreError> {
    match *numbers {
        [Some(rows), Some(epoch)] => {
            Ok(Reset::new(u64::try_from(rows).unwrap_or(0), Epoch::new(epoch)))
        }
        _ => Err(no_epoch()),
    }
}

/// Returns the error of a reset that returned no epoch.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(in crate::store) fn no_epoch() -> StoreError {
    StoreError::Corrupt("the database returned no epoch for a reset".into())
}

/// Returns the error of a missing meta row.
pub(in crate::store) fn missing_meta() -> StoreError {
    StoreError::Corrupt("the meta table has no row".into())
}

/// Decodes a count and a maximum.
pub(in crate::store) fn count_and_greatest(numbers: &[Option<i64>]) -> (u64, i64) {
    let number = |column: usize| numbers.get(column).copied().flatten().unwrap_or(0);
    (u64::try_from(number(0)).unwrap_or(0), number(1))
}

/// Decodes rows. Values that no store of this crate writes are an error.
pub(in crate::store) fn bindings<R: Row>(rows: Vec<R>) -> Result<Vec<Binding>, StoreError>
where
    for<'r> Option<Uuid>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<String>: Decode<'r, R::Database> + Type<R::Database>,
    for<'i> &'i str: ColumnIndex<R>,
{
    rows.iter().map(binding).collect()
}

/// Decodes one row.
pub(in crate::store) fn binding<R: Row>(row: &R) -> Result<Binding, StoreError>
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
