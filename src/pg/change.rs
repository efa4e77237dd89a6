//! What a record changes, as far as a search for lost data asks: rows, relation files, databases, and who locked what.

use super::MajorVersion;
use super::cursor::Cursor;
use super::record::{
    BlockReference, RM_DBASE, RM_HEAP, RM_HEAP2, RM_SMGR, RM_STANDBY, RM_XACT, RM_XLOG, Record, RelationFile, decode,
};
use super::xact::{kept, short};

/// `XLOG_HEAP_OPMASK`.
const HEAP_KIND: u8 = 0x70;
/// `XLOG_HEAP_INPLACE`.
const IN_PLACE: u8 = 0x70;
/// `XLOG_FPI`.
const FULL_PAGE: u8 = 0xB0;
/// `XLH_DELETE_IS_SUPER`: an insertion that was given up, never seen by anyone.
const DELETE_IS_SUPER: u8 = 1 << 3;
/// `XLH_DELETE_IS_PARTITION_MOVE`: the row goes on in another partition.
const DELETE_IS_MOVE: u8 = 1 << 4;
/// `MAIN_FORKNUM`.
const MAIN: u8 = 0;

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Rows that were inserted into the page.
    Inserted {
        relation: RelationFile,
        block: u32,
        rows: u32,
    },
    /// A row that was updated in place of its old version, or moved to another partition.
    Updated {
        relation: RelationFile,
    },
    Deleted {
        relation: RelationFile,
        row: Row,
    },
    /// A row of a catalog that all databases share was changed where it stands, at once and not only with the commit: a database's.
    InPlace {
        relation: RelationFile,
        row: Row,
        /// The database may not be used any more, since it is being dropped; not known where the record has the whole page.
        invalid: Option<bool>,
    },
    /// A page of a relation that was written as a whole, as a file that is made anew is.
    Written {
        relation: RelationFile,
        block: u32,
    },
    /// A table named in a TRUNCATE (written with `wal_level = logical` only).
    Truncated {
        database: u32,
        relation: u32,
    },
    /// The main file of a relation was made.
    Made {
        relation: RelationFile,
    },
    DatabaseMade {
        database: u32,
    },
    /// Its files in some tablespaces went, at once and not only with the commit.
    DatabaseFilesGone {
        database: u32,
    },
    /// A transaction holds an ACCESS EXCLUSIVE lock.
    Locked {
        xid: u32,
        database: u32,
        relation: u32,
    },
    /// The next transaction id that would have been given out when the record was written.
    NextXid(u32),
    /// The transaction of the record was prepared: it goes on without its session, and over a restart.
    Prepared,
    /// A subtransaction of the one that was prepared.
    PreparedPart {
        xid: u32,
    },
}

/// Where a row stands in its relation (`ItemPointerData`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub block: u32,
    pub offset: u16,
}

/// Whether [`read`] reads such a record: what a scanner has to [keep](super::scan::WalScanner::keeping).
pub fn wanted(rmid: u8, info: u8) -> bool {
    match rmid {
        RM_HEAP => matches!(info & HEAP_KIND, 0x00 | 0x10 | 0x20 | 0x30 | 0x40 | IN_PLACE),
        RM_HEAP2 => info & HEAP_KIND == 0x50,
        RM_SMGR => info & 0xF0 == 0x10,
        RM_DBASE => true,
        RM_STANDBY => matches!(info & 0xF0, 0x00 | 0x10),
        RM_XACT => info & 0x70 == 0x10,
        RM_XLOG => info & 0xF0 == FULL_PAGE,
        _ => false,
    }
}

/// Calls `see` for each change of a checked record. `Err` says what is impossible in a record of a known kind.
pub fn read(record: &Record<'_>, version: MajorVersion, see: &mut dyn FnMut(Change)) -> Result<(), String> {
    if !wanted(record.rmid, record.info) {
        return Ok(());
    }
    let body = kept(record)?;
    if record.rmid == RM_XACT {
        let main = decode(body, version, &mut |_| ())?.main;
        return prepared(Cursor::new(main), version, see).ok_or_else(|| short(record, main));
    }
    if record.rmid == RM_XLOG {
        let mut page = |block: &BlockReference| {
            if block.fork == MAIN {
                see(Change::Written { relation: block.relation, block: block.block });
            }
        };
        return decode(body, version, &mut page).map(|_| ());
    }
    let mut first = None;
    let main = decode(body, version, &mut |block| first = first.or(Some(*block)))?.main;
    let fields = Cursor::new(main);
    let done = match record.rmid {
        RM_HEAP if record.info & HEAP_KIND == 0x30 => truncate(fields, see),
        RM_HEAP | RM_HEAP2 => {
            let page = first.ok_or_else(|| format!("the record at {} changes a row of no page", record.start))?;
            match record.info & HEAP_KIND {
                IN_PLACE if record.rmid == RM_HEAP => in_place(&page, data(body, main, &page), version, fields, see),
                kind => rows(record.rmid, kind, &page, fields, see),
            }
        }
        RM_SMGR => made(fields, see),
        RM_DBASE => database(record.info & 0xF0, version, fields, see),
        _ => standby(record.info & 0xF0, fields, see),
    };
    done.ok_or_else(|| short(record, main))
}

/// `xl_xact_prepare` (`access/xact.h`), the transaction's name, and its subtransactions (`ParsePrepareRecord`, `access/rmgrdesc/xactdesc.c`).
fn prepared(mut main: Cursor<'_>, version: MajorVersion, see: &mut dyn FnMut(Change)) -> Option<()> {
    let _magic_length_xid_database_time_owner = main.take(28)?;
    let count = main.u32()? as usize;
    let _files_to_drop = main.take(8)?;
    let _statistics_to_drop = main.take(if version >= MajorVersion::V15 { 8 } else { 0 })?;
    let _invalidations = main.take(6)?;
    let name = usize::from(main.u16()?);
    let _origin = main.take(16)?;
    let _name = main.take(name.next_multiple_of(8))?;
    see(Change::Prepared);
    let (xids, _) = main.take(count.checked_mul(4)?)?.as_chunks::<4>();
    xids.iter().for_each(|xid| see(Change::PreparedPart { xid: u32::from_le_bytes(*xid) }));
    Some(())
}

/// The data of the only page of a record.
fn data<'a>(body: &'a [u8], main: &[u8], page: &BlockReference) -> &'a [u8] {
    let end = body.len() - main.len();
    let begin = end.saturating_sub(usize::from(page.data_len));
    body.get(begin..end).unwrap_or_default()
}

/// `xl_heap_insert`, `xl_heap_delete`, `xl_heap_update`, `xl_heap_multi_insert` (`access/heapam_xlog.h`).
fn rows(rmid: u8, kind: u8, page: &BlockReference, mut main: Cursor<'_>, see: &mut dyn FnMut(Change)) -> Option<()> {
    let BlockReference { relation, block, .. } = *page;
    if rmid == RM_HEAP2 {
        let _flags = main.u16()?;
        let rows = u32::from(main.u16()?);
        see(Change::Inserted { relation, block, rows });
        return Some(());
    }
    match kind {
        0x00 => see(Change::Inserted { relation, block, rows: 1 }),
        0x10 => {
            let (_xmax, offset) = (main.u32()?, main.u16()?);
            let (_infobits, flags) = (main.u8()?, main.u8()?);
            match flags {
                _ if flags & DELETE_IS_SUPER != 0 => {}
                _ if flags & DELETE_IS_MOVE != 0 => see(Change::Updated { relation }),
                _ => see(Change::Deleted { relation, row: Row { block, offset } }),
            }
        }
        _ => see(Change::Updated { relation }),
    }
    Some(())
}

/// `xl_heap_inplace`; the page's data is the row from its first column on. Shared catalogs have no database of their own, and of them only `pg_database` is
/// changed so (`dropdb`: `datconnlimit` becomes `DATCONNLIMIT_INVALID_DB`).
fn in_place(
    page: &BlockReference,
    data: &[u8],
    version: MajorVersion,
    mut main: Cursor<'_>,
    see: &mut dyn FnMut(Change),
) -> Option<()> {
    let offset = main.u16()?;
    if page.relation.database == 0 {
        let limit_at = if version >= MajorVersion::V15 { 80 } else { 208 };
        let limit = data.get(limit_at..limit_at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_le_bytes);
        let row = Row { block: page.block, offset };
        see(Change::InPlace { relation: page.relation, row, invalid: limit.map(|limit| limit == -2) });
    }
    Some(())
}

/// `xl_heap_truncate`.
fn truncate(mut main: Cursor<'_>, see: &mut dyn FnMut(Change)) -> Option<()> {
    let (database, count) = (main.u32()?, main.u32()?);
    let _flags_and_padding = main.u32()?;
    for _ in 0..count {
        see(Change::Truncated { database, relation: main.u32()? });
    }
    Some(())
}

/// `xl_smgr_create` (`catalog/storage_xlog.h`). The shortening of a file (`XLOG_SMGR_TRUNCATE`) is VACUUM's, or of a file that the same
/// transaction made: nothing is lost by it.
fn made(mut main: Cursor<'_>, see: &mut dyn FnMut(Change)) -> Option<()> {
    let relation = RelationFile { tablespace: main.u32()?, database: main.u32()?, number: main.u32()? };
    if main.u32()? == u32::from(MAIN) {
        see(Change::Made { relation });
    }
    Some(())
}

/// `commands/dbcommands_xlog.h`: what 0x10 means changed with 15.
fn database(kind: u8, version: MajorVersion, mut main: Cursor<'_>, see: &mut dyn FnMut(Change)) -> Option<()> {
    let database = main.u32()?;
    let gone = if version >= MajorVersion::V15 { 0x20 } else { 0x10 };
    match kind {
        kind if kind == gone => see(Change::DatabaseFilesGone { database }),
        0x00 | 0x10 => see(Change::DatabaseMade { database }),
        _ => {}
    }
    Some(())
}

/// `xl_standby_locks` and `xl_running_xacts` (`storage/standbydefs.h`).
fn standby(kind: u8, mut main: Cursor<'_>, see: &mut dyn FnMut(Change)) -> Option<()> {
    let count = main.u32()?;
    if kind == 0x10 {
        let (_subtransactions, _overflowed) = (main.u32()?, main.u32()?);
        see(Change::NextXid(main.u32()?));
        return Some(());
    }
    for _ in 0..count {
        let (xid, database, relation) = (main.u32()?, main.u32()?, main.u32()?);
        see(Change::Locked { xid, database, relation });
    }
    Some(())
}
