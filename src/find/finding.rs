//! What was found: one deed of one transaction.

use crate::pg::Lsn;
use crate::pg::record::RelationFile;
use crate::pg::xact::PgTime;

/// What a transaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// Relation files went, and none came in their place.
    Drop,
    /// Files went, and empty ones came: TRUNCATE, or a table that was dropped and made anew.
    Truncate,
    /// Files went, and others with content came: VACUUM FULL, CLUSTER, REINDEX, ALTER TABLE, REFRESH, or a drop beside something that was made.
    Rewrite,
    /// Many rows of one relation were deleted.
    Delete,
    /// Many rows of one relation were updated.
    Update,
    DropDatabase,
    CreateDatabase,
    /// `pg_create_restore_point()`.
    RestorePoint,
    /// None of these, but among the commits with the most WAL.
    Large,
}

/// A relation, by its file or by its object id, as WAL names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touched {
    pub database: u32,
    pub file: Option<RelationFile>,
    pub object: Option<u32>,
}

impl Touched {
    pub fn file(file: RelationFile) -> Touched {
        Touched { database: file.database, file: Some(file), object: None }
    }

    pub fn object(database: u32, object: u32) -> Touched {
        Touched { database, file: None, object: Some(object) }
    }
}

#[derive(Clone, Debug)]
pub struct Finding {
    pub deed: Deed,
    /// Of the commit, or of the restore point.
    pub time: PgTime,
    /// Start of the record that a recovery must not replay, so that the deed is not done.
    pub lsn: Lsn,
    pub xid: Option<u32>,
    /// Object id.
    pub database: Option<u32>,
    pub touched: Vec<Touched>,
    /// Objects (database, object id) that the transaction had locked against everybody: among them what it dropped or rewrote.
    pub locked: Vec<(u32, u32)>,
    /// Rows that were deleted, updated, or written at all.
    pub rows: u64,
    /// The transaction may have begun before the WAL that was read: rows and bytes are at least so many.
    pub at_least: bool,
    pub wal_bytes: u64,
    /// Of a restore point.
    pub name: Option<String>,
}
