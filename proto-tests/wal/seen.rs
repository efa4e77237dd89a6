//! What a scanner says of some WAL, in a form that tests can compare; and WAL with something of everything in it.

use walrecv::pg::record::Record;
use walrecv::pg::scan::{Invalid, ScanConfig, WalScanner};
use walrecv::pg::xact::{self, Note, Parameters, PgTime};
use walrecv::pg::{Lsn, MajorVersion, SegmentSize, TimelineId};

use crate::support::seed::Seed;
use crate::support::wal_maker::{Made, Outcome, WalMaker};

/// A record as the scanner gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub made: Made,
    pub crc: u32,
    pub body: Option<Vec<u8>>,
    pub note: Result<Note, String>,
}

/// Everything one scan says.
#[derive(Clone, Debug, PartialEq)]
pub struct Scan {
    pub seen: Vec<Seen>,
    pub checked: Lsn,
    pub pending: Option<Lsn>,
    pub result: Result<Option<Lsn>, Invalid>,
}

impl Scan {
    pub fn records(&self) -> Vec<Made> {
        self.seen.iter().map(|s| s.made).collect()
    }

    pub fn notes(&self) -> Vec<Note> {
        self.seen.iter().map(|s| s.note.clone().expect("a note")).collect()
    }

    /// The error, which must be there.
    pub fn invalid(&self) -> &Invalid {
        self.result.as_ref().expect_err("invalid WAL was accepted")
    }
}

pub fn seen(record: &Record<'_>, version: MajorVersion) -> Seen {
    let Record { start, end, written, prev, xid, rmid, info, total_len, crc, body } = *record;
    assert!(written == end || (written < end && matches!(xact::note(record, version), Ok(Note::Switch))), "{record:?}");
    let made = Made { start, end, prev, xid, rmid, info, total_len };
    Seen { made, crc, body: body.map(<[u8]>::to_vec), note: xact::note(record, version) }
}

/// Feeds the parts one after the other, with `feed_until_end` where `may_end`.
pub fn scan_parts<'a>(
    mut scanner: WalScanner,
    version: MajorVersion,
    parts: impl IntoIterator<Item = &'a [u8]>,
    may_end: bool,
) -> Scan {
    let mut all = Vec::new();
    let mut result = Ok(None);
    for part in parts {
        let mut sink = |record: &Record<'_>| all.push(seen(record, version));
        let fed = match may_end {
            true => scanner.feed_until_end(part, &mut sink),
            false => scanner.feed(part, &mut sink).map(|()| None),
        };
        assert!(scanner.checked() <= scanner.received() || fed.is_err());
        result = fed;
        if result.is_err() {
            break;
        }
    }
    Scan { seen: all, checked: scanner.checked(), pending: scanner.pending(), result }
}

/// In one piece, from `start`.
pub fn scan(config: ScanConfig, start: Lsn, bytes: &[u8]) -> Scan {
    scan_parts(WalScanner::new(config, start), config.version, [bytes], false)
}

pub fn scan_until_end(config: ScanConfig, start: Lsn, bytes: &[u8]) -> Scan {
    scan_parts(WalScanner::new(config, start), config.version, [bytes], true)
}

pub fn megabytes(n: u64) -> SegmentSize {
    SegmentSize::new(n << 20).expect("a segment size")
}

pub fn maker(version: MajorVersion) -> WalMaker {
    WalMaker::new(version, megabytes(1), TimelineId(1), Lsn(0x0300_0000))
}

pub const PARAMETERS: Parameters = Parameters {
    max_connections: 100,
    max_worker_processes: 8,
    max_wal_senders: 10,
    max_prepared_transactions: 2,
    max_locks_per_transaction: 64,
    wal_level: 1,
};

/// Adds `count` records of all kinds, in an order and of sizes that the seed gives.
pub fn add_mixed(wal: &mut WalMaker, count: u32, seed: &mut Seed) {
    for i in 0..count {
        let (xid, time) = (1000 + i, PgTime(seed.below(1 << 50) as i64));
        let subtransactions: Vec<u32> = (0..seed.below(40) as u32).collect();
        let outcome = Outcome {
            database: seed.below(2) == 0,
            subtransactions: &subtransactions,
            dropped_relations: seed.below(3) as u32,
            dropped_stats: seed.below(3) as u32,
            invalidations: seed.below(5) as u32,
            prepared: (seed.below(3) == 0).then_some((xid + 5000, "a name")),
            origin: (seed.below(4) == 0).then_some((7, Lsn(99), PgTime(98))),
        };
        match seed.below(12) {
            0 => wal.commit(xid, time),
            1 => wal.abort(xid, time),
            2 => wal.commit_with(xid, time, outcome),
            3 => wal.abort_with(xid, time, outcome),
            4 => wal.restore_point("point", time),
            5 => wal.checkpoint(seed.below(2) == 0),
            6 => wal.parameter_change(PARAMETERS),
            7 => wal.filler(xid, seed.between(285, 30_000) as u32),
            8 => wal.filler(xid, 24),
            _ => wal.filler(xid, seed.between(27, 281) as u32),
        };
    }
}

/// Pages with a record over several of them, a voided record, a fork and a switch: [`Voided`] says which bytes no check
/// covers.
pub fn everything(version: MajorVersion, seed: &mut Seed) -> (WalMaker, Voided) {
    let mut wal = maker(version);
    wal.checkpoint(false);
    add_mixed(&mut wal, 12, seed);
    wal.filler(5, 20_000);
    let start = wal.break_off(6, 30_000, 2);
    let end = wal.end();
    wal.overwrite_contrecord(PgTime(5));
    add_mixed(&mut wal, 6, seed);
    let mut wal = wal.fork(TimelineId(2));
    wal.end_of_recovery(PgTime(6));
    add_mixed(&mut wal, 6, seed);
    (wal, Voided { start, end })
}

/// Where a record lies that a crash cut off.
#[derive(Clone, Copy, Debug)]
pub struct Voided {
    pub start: Lsn,
    pub end: Lsn,
}
