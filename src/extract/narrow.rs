//! Which database an extract needs, as the backup's catalogs tell: all others are left out of the restore.

use std::collections::BTreeSet;

use super::names::Name;
use crate::archive::Archive;
use crate::archive::shelf::Shelf;
use crate::error::Result;
use crate::find::{Names, Relation};
use crate::pg::heap::{DatabaseRow, PG_DATABASE};
use crate::restore::Prepared;

/// The restore of that database alone, and, where the tables decide which one it is, of those in which tables like them may have been made since; `None`: which
/// one it is cannot be told, or there is no other.
pub async fn narrow(
    archive: &Archive,
    prepared: &Prepared,
    database: Option<&str>,
    tables: &[Name],
) -> Result<Option<Prepared>> {
    let manifest = &prepared.choice.manifest;
    let narrowed = match database {
        // One that was made after the backup comes with the WAL, and nothing that the backup has is needed.
        Some(name) => {
            let of_name = |there: &[&DatabaseRow]| Ok(ids(there.iter().copied().filter(|row| row.name == name)));
            prepared.clone().only(archive, &of_name).await?
        }
        None => {
            let (_, rows) =
                Shelf::of(archive, manifest, &["global".to_owned()], &[PG_DATABASE]).await?.databases().await?;
            let all = ids(rows.iter());
            let names = Names::read(archive, manifest, &all).await?;
            let has = |oid: &u32| tables.iter().all(|table| names.of_database(*oid).any(|known| is(table, known)));
            let with: BTreeSet<u32> = all.into_iter().filter(has).collect();
            if with.len() != 1 {
                return Ok(None);
            }
            prepared.clone().only_and_changed(archive, &|_| Ok(with.clone()), &names.classes).await?
        }
    };
    Ok(Some(narrowed).filter(|one| one.only.as_ref().is_some_and(|only| !only.left_out.is_empty())))
}

fn ids<'r>(rows: impl Iterator<Item = &'r DatabaseRow>) -> BTreeSet<u32> {
    rows.map(|row| row.oid).collect()
}

fn is(name: &Name, known: &Relation) -> bool {
    name.table == known.name && name.schema.as_ref().is_none_or(|schema| *schema == known.schema)
}
