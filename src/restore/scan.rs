//! Reads the WAL of a path from the archive, segment by segment, as the server will: checked records in, one walk per backup out.

use super::path::{Beyond, Path};
use super::plan::{Seen, Walk};
use crate::archive::Archive;
use crate::archive::inventory::Inventory;
use crate::error::{Context, Error, Kind, Result};
use crate::pg::record::{RM_XACT, Record};
use crate::pg::scan::{ScanConfig, WalScanner};
use crate::pg::xact::{self, Note, Parameters};
use crate::pg::{Lsn, MajorVersion, SegmentName};

/// After the stop, so much more WAL is looked through for commits that the stop leaves out.
const LOOK_PAST: u64 = 64 << 20;

/// Which WAL, as it stands in the archive.
pub struct Route<'a> {
    pub archive: &'a Archive,
    pub inventory: &'a Inventory,
    pub path: &'a Path,
    pub version: MajorVersion,
}

/// A segment that is missing, or of which only the beginning is stored, although WAL went on behind that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    pub segment: SegmentName,
    pub shown_by: Beyond,
}

impl std::fmt::Display for Hole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "segment {} is missing or incomplete, and {}", self.segment, self.shown_by)
    }
}

/// What the reading came to.
#[derive(Debug)]
pub struct Read {
    pub walk: Walk,
    /// End of the last whole record that was read.
    pub end: Lsn,
    /// Reading could not go on, and this is not the end of WAL.
    pub hole: Option<Hole>,
    /// Reading could not go on, and no record met the target by then: what is stored next is damaged (`Kind::Corrupt`), or cannot be had.
    pub damage: Option<Error>,
    /// Segments that were read, by the names under which they are stored.
    pub segments: u64,
    /// The highest settings that the replayed WAL announces.
    pub parameters: Option<Parameters>,
}

impl Route<'_> {
    /// Feeds `walk` from `from` on, until it has stopped and a little further, or `until`, or WAL ends or is damaged.
    pub async fn read(&self, walk: Walk, from: Lsn, until: Option<Lsn>) -> Result<Read> {
        let size = self.archive.names.segment_size;
        let config = ScanConfig {
            version: self.version,
            system: self.archive.names.system,
            timeline: self.path.target(),
            segment_size: size,
        };
        let mut scanner = WalScanner::new(config, from);
        let mut read = Read { walk, end: from, hole: None, damage: None, segments: 0, parameters: None };
        let mut stopped_at = None;
        let mut number = size.segment_of(from);
        loop {
            let skip = size.offset_of(scanner.received());
            let (name, bytes) = match self.archive.read_along(self.path, number, self.inventory).await {
                Err(error) => return Ok(cut_short(read, error)),
                Ok(segment) => segment,
            };
            let whole = bytes.len() as u64 == size.bytes();
            if let Some(new) = bytes.get(skip as usize..).filter(|new| !new.is_empty()) {
                read.segments += 1;
                let fed = self.feed(&mut scanner, new, &mut read).context(name);
                read.end = scanner.checked();
                if let Err(error) = fed {
                    return Ok(cut_short(read, error));
                }
            }
            if !whole {
                let beyond = self.path.beyond(self.inventory, number, name.start() + bytes.len() as u64, size);
                read.hole = beyond.map(|shown_by| Hole { segment: name, shown_by });
                return Ok(read);
            }
            if read.walk.stopped() {
                let stop = *stopped_at.get_or_insert(read.end);
                if read.end.since(stop) >= LOOK_PAST {
                    return Ok(read);
                }
            } else if until.is_some_and(|until| read.end >= until) {
                return Ok(read);
            }
            number = number.next();
        }
    }

    fn feed(&self, scanner: &mut WalScanner, bytes: &[u8], read: &mut Read) -> Result<()> {
        let mut problem = None;
        let mut sink = |record: &Record<'_>| {
            if problem.is_some() {
                return;
            }
            match xact::note(record, self.version) {
                Ok(note) => {
                    if let (Note::ParameterChange(new), false) = (&note, read.walk.stopped()) {
                        read.parameters = Some(read.parameters.map_or(*new, |old| highest(old, *new)));
                    }
                    let transaction = record.rmid == RM_XACT;
                    if let Ok(Some(ending)) = xact::ending(record, self.version) {
                        ending.subtransactions().for_each(|part| read.walk.see_part(part, ending.xid));
                    }
                    let checkpoint = xact::checkpoint_time(record, self.version);
                    let Record { start, end, written, .. } = *record;
                    read.walk.see(&Seen { start, end, written, transaction, checkpoint, note });
                }
                Err(what) => problem = Some(what),
            }
        };
        let fed = scanner.feed(bytes, &mut sink).map_err(|e| e.to_string());
        match fed.err().or(problem) {
            Some(what) => Err(Error::new(Kind::Corrupt, what)),
            None => Ok(()),
        }
    }
}

/// Past the stop only commits that it leaves out are looked for: what cannot be read there makes that list shorter, and no target unreachable. Before it, it
/// is told, since targets before it can be reached.
fn cut_short(mut read: Read, error: Error) -> Read {
    if read.walk.stopped() {
        tracing::warn!("WAL after the target was not looked through: {error}");
    } else {
        read.damage = Some(error);
    }
    read
}

/// The higher of each value.
pub fn highest(a: Parameters, b: Parameters) -> Parameters {
    Parameters {
        max_connections: a.max_connections.max(b.max_connections),
        max_worker_processes: a.max_worker_processes.max(b.max_worker_processes),
        max_wal_senders: a.max_wal_senders.max(b.max_wal_senders),
        max_prepared_transactions: a.max_prepared_transactions.max(b.max_prepared_transactions),
        max_locks_per_transaction: a.max_locks_per_transaction.max(b.max_locks_per_transaction),
        wal_level: a.wal_level.max(b.wal_level),
    }
}
