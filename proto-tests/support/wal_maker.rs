//! Makes valid WAL without a server: pages and records of any version, segment size, position and timeline.
//!
//! Pure: what is asked for decides every byte. It comes with `mod support;`, or alone with
//! `#[path = "support/wal_maker.rs"] mod wal_maker;`.
//!
//! ```ignore
//! let mut wal = WalMaker::new(MajorVersion::V17, SegmentSize::new(1 << 20).unwrap(), TimelineId(1), Lsn(0x100000));
//! wal.checkpoint(false);
//! wal.filler(700, 5000);                      // a record of 5000 bytes by transaction 700
//! wal.commit(700, PgTime(1_000_000));
//! wal.restore_point("before", PgTime(2_000_000));
//! wal.switch();                               // zeros to the end of the segment
//! let mut branch = wal.fork(TimelineId(2));   // a copy whose later pages belong to timeline 2
//! branch.end_of_recovery(PgTime(3_000_000));
//! scanner.feed(branch.bytes(), &mut |record| …)?;
//! assert_eq!(scanner.checked(), branch.end());
//! ```
#![allow(dead_code)] // each test target uses another part of it

use walrecv::pg::scan::ScanConfig;
use walrecv::pg::xact::{Parameters, PgTime};
use walrecv::pg::{Lsn, MajorVersion, SegmentSize, SystemIdentifier, TimelineId};

/// The cluster that all made WAL belongs to, unless [`WalMaker::of_system`] says otherwise.
pub const SYSTEM: SystemIdentifier = SystemIdentifier(0x6A5B_4C3D_2E1F_0011);

const PAGE: u64 = 8192;
const CONTRECORD: u16 = 1;
const LONG: u16 = 2;
const OVERWRITE: u16 = 8;

/// One record as it was made: what a reader must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    pub start: Lsn,
    /// 8-aligned; for a switch the end of the segment.
    pub end: Lsn,
    pub prev: Lsn,
    pub xid: u32,
    pub rmid: u8,
    pub info: u8,
    pub total_len: u32,
}

/// What a commit or abort record carries beside its time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome<'a> {
    pub database: bool,
    pub subtransactions: &'a [u32],
    pub dropped_relations: u32,
    pub dropped_stats: u32,
    pub invalidations: u32,
    /// The transaction that was prepared, and its name: makes it a "prepared" record.
    pub prepared: Option<(u32, &'a str)>,
    pub origin: Option<(u16, Lsn, PgTime)>,
}

/// WAL in memory that grows at its end.
#[derive(Clone, Debug)]
pub struct WalMaker {
    version: MajorVersion,
    system: SystemIdentifier,
    size: SegmentSize,
    timeline: TimelineId,
    start: Lsn,
    bytes: Vec<u8>,
    prev: Lsn,
    records: Vec<Made>,
    /// Start of a record that was broken off.
    broken: Option<Lsn>,
}

impl WalMaker {
    /// Empty WAL from `start`, a page border.
    pub fn new(version: MajorVersion, size: SegmentSize, timeline: TimelineId, start: Lsn) -> WalMaker {
        assert_eq!(start.0 % PAGE, 0, "WAL is made from a page border");
        WalMaker {
            version,
            system: SYSTEM,
            size,
            timeline,
            start,
            bytes: Vec::new(),
            prev: Lsn(0),
            records: Vec::new(),
            broken: None,
        }
    }

    pub fn of_system(mut self, system: SystemIdentifier) -> WalMaker {
        self.system = system;
        self
    }

    /// Gives the first record this `xl_prev`.
    pub fn after(mut self, prev: Lsn) -> WalMaker {
        self.prev = prev;
        self
    }

    /// A copy that ends with the last whole record and whose later pages belong to `timeline`; the page that holds the
    /// fork keeps the old one, as on a promoted server.
    pub fn fork(&self, timeline: TimelineId) -> WalMaker {
        let mut copy = WalMaker { timeline, broken: None, ..self.clone() };
        let end = copy.records.last().map_or(copy.start, |last| last.end);
        copy.bytes.truncate(end.since(copy.start) as usize);
        copy
    }

    /// A copy of what was there when the WAL ended at `lsn`, or with the record before.
    pub fn until(&self, lsn: Lsn) -> WalMaker {
        let mut copy = WalMaker { broken: None, ..self.clone() };
        copy.records.retain(|record| record.end <= lsn);
        let (end, prev) = copy.records.last().map_or((copy.start, Lsn(0)), |last| (last.end, last.start));
        copy.bytes.truncate(end.since(copy.start) as usize);
        copy.prev = prev;
        copy
    }

    /// What a scanner of this WAL must be told.
    pub fn config(&self) -> ScanConfig {
        ScanConfig { version: self.version, system: self.system, timeline: self.timeline, segment_size: self.size }
    }

    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    pub fn start(&self) -> Lsn {
        self.start
    }

    /// End of everything that was made; always the end of a record, 8-aligned, unless one was broken off.
    pub fn end(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    /// The bytes from [`WalMaker::start`] to [`WalMaker::end`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes between two positions.
    pub fn slice(&self, from: Lsn, to: Lsn) -> &[u8] {
        &self.bytes[from.since(self.start) as usize..to.since(self.start) as usize]
    }

    /// The segment that begins at `start`, filled up with zeros as a server's file is.
    pub fn segment(&self, start: Lsn) -> Vec<u8> {
        let end = Lsn(self.end().0.min(start.0 + self.size.bytes()));
        let mut bytes = self.slice(start, end).to_vec();
        bytes.resize(self.size.bytes() as usize, 0);
        bytes
    }

    pub fn records(&self) -> &[Made] {
        &self.records
    }

    /// A record with these bytes after its header, as they stand.
    pub fn raw(&mut self, xid: u32, rmid: u8, info: u8, body: &[u8]) -> Made {
        self.enter_page(0);
        let start = self.end();
        let bytes = self.assemble(xid, rmid, info, body);
        self.lay(&bytes, bytes.len());
        self.finish_record(Made {
            start,
            end: self.end(),
            prev: self.prev,
            xid,
            rmid,
            info,
            total_len: bytes.len() as u32,
        })
    }

    /// A record without block references, with this main data.
    pub fn record(&mut self, xid: u32, rmid: u8, info: u8, main: &[u8]) -> Made {
        let body = with_length(main);
        self.raw(xid, rmid, info, &body)
    }

    /// A heap record that locks a row and changes none, of exactly `total_len` bytes; possible lengths are 24, 27 to 281, and 285 upwards.
    pub fn filler(&mut self, xid: u32, total_len: u32) -> Made {
        let main = match total_len {
            24 => return self.raw(xid, 10, 0x60, &[]),
            27..=281 => total_len - 26,
            285.. => total_len - 29,
            _ => panic!("no record has {total_len} bytes"),
        };
        let main: Vec<u8> = (0..main).map(|i| (i * 7 + xid) as u8).collect();
        self.record(xid, 10, 0x60, &main)
    }

    /// Short records until [`WalMaker::end`] is `lsn`: 8-aligned, outside page headers, at least 24 bytes away.
    pub fn fill_to(&mut self, lsn: Lsn) {
        loop {
            let borders = (self.end().align_up(PAGE).0..lsn.0).step_by(PAGE as usize);
            let headers: u64 = borders.map(|b| self.header_len(Lsn(b))).sum();
            match lsn.since(self.end()) - headers {
                room @ 0..=2048 => {
                    self.filler(3, room as u32);
                    break;
                }
                _ => self.filler(3, 512),
            };
        }
        assert_eq!(self.end(), lsn);
    }

    pub fn commit(&mut self, xid: u32, time: PgTime) -> Made {
        self.commit_with(xid, time, Outcome::default())
    }

    pub fn commit_with(&mut self, xid: u32, time: PgTime, outcome: Outcome<'_>) -> Made {
        self.outcome(xid, time, outcome, false)
    }

    pub fn abort(&mut self, xid: u32, time: PgTime) -> Made {
        self.abort_with(xid, time, Outcome::default())
    }

    pub fn abort_with(&mut self, xid: u32, time: PgTime, outcome: Outcome<'_>) -> Made {
        self.outcome(xid, time, outcome, true)
    }

    pub fn restore_point(&mut self, name: &str, time: PgTime) -> Made {
        let mut main = time.0.to_le_bytes().to_vec();
        main.extend_from_slice(name.as_bytes());
        main.resize(72, 0);
        self.record(0, 0, 0x70, &main)
    }

    /// A checkpoint of this timeline whose redo point is the start of the last record (its own when `shutdown`).
    pub fn checkpoint(&mut self, shutdown: bool) -> Made {
        self.enter_page(0);
        let redo = if shutdown || self.prev.0 == 0 { self.end() } else { self.prev };
        self.checkpoint_with(redo, self.timeline, shutdown)
    }

    pub fn checkpoint_with(&mut self, redo: Lsn, previous: TimelineId, shutdown: bool) -> Made {
        let mut main = [0u8; 88];
        main[0..8].copy_from_slice(&redo.0.to_le_bytes());
        main[8..12].copy_from_slice(&self.timeline.0.to_le_bytes());
        main[12..16].copy_from_slice(&previous.0.to_le_bytes());
        main[16] = 1;
        self.record(0, 0, if shutdown { 0x00 } else { 0x10 }, &main)
    }

    /// The record with which a promoted server begins its timeline; made right after [`WalMaker::fork`] of timeline −
    /// 1.
    pub fn end_of_recovery(&mut self, time: PgTime) -> Made {
        let mut main = time.0.to_le_bytes().to_vec();
        main.extend_from_slice(&self.timeline.0.to_le_bytes());
        main.extend_from_slice(&(self.timeline.0 - 1).to_le_bytes());
        if self.version >= MajorVersion::V17 {
            main.resize(24, 0);
        }
        self.record(0, 0, 0x90, &main)
    }

    pub fn backup_end(&mut self, backup_start: Lsn) -> Made {
        self.record(0, 0, 0x50, &backup_start.0.to_le_bytes())
    }

    pub fn parameter_change(&mut self, p: Parameters) -> Made {
        let fields = [
            p.max_connections,
            p.max_worker_processes,
            p.max_wal_senders,
            p.max_prepared_transactions,
            p.max_locks_per_transaction,
            p.wal_level,
        ];
        let mut main: Vec<u8> = fields.into_iter().flat_map(i32::to_le_bytes).collect();
        main.resize(28, 0);
        self.record(0, 0, 0x60, &main)
    }

    /// A WAL switch: the record, and zeros, page headers included, to the end of the segment.
    pub fn switch(&mut self) -> Made {
        let mut made = self.raw(0, 0, 0x40, &[]);
        let end = self.end().align_up(self.size.bytes());
        self.bytes.resize(end.since(self.start) as usize, 0);
        made.end = end;
        if let Some(last) = self.records.last_mut() {
            last.end = end;
        }
        made
    }

    /// Begins a record of `total_len` bytes that must not fit its page, and stops at the `pages`-th page border: as a
    /// server that crashed there. What follows is [`WalMaker::overwrite_contrecord`], or nothing.
    pub fn break_off(&mut self, xid: u32, total_len: u32, pages: u64) -> Lsn {
        self.enter_page(0);
        let start = self.end();
        let bytes = self.assemble(xid, 10, 0, &vec![0x5A; total_len as usize - 24]);
        let stop = start.align_down(PAGE) + pages * PAGE;
        let mut laid = 0;
        while self.end() < stop {
            let room = PAGE - self.end().0 % PAGE;
            let part = bytes.len().min(laid + room as usize);
            assert!(part < bytes.len(), "the record ends before the page border");
            self.lay_from(&bytes, laid, part);
            laid = part;
            if self.end() < stop {
                self.enter_page((bytes.len() - laid) as u32);
            }
        }
        self.broken = Some(start);
        start
    }

    /// The page after a record that was broken off: its flag, and the record that voids it.
    pub fn overwrite_contrecord(&mut self, time: PgTime) -> Made {
        let broken = self.broken.take().expect("a record was broken off");
        self.page_header(OVERWRITE, 0);
        let mut main = broken.0.to_le_bytes().to_vec();
        main.extend_from_slice(&time.0.to_le_bytes());
        self.record(0, 0, 0xD0, &main)
    }

    fn outcome(&mut self, xid: u32, time: PgTime, o: Outcome<'_>, abort: bool) -> Made {
        let mut xinfo = 0u32;
        let mut parts: Vec<u8> = Vec::new();
        let count = |bit: u32, n: u32, item: usize, parts: &mut Vec<u8>| {
            parts.extend_from_slice(&n.to_le_bytes());
            parts.extend(std::iter::repeat_n(0xA7u8, item * n as usize));
            bit
        };
        if o.database {
            xinfo |= 1;
            parts.extend_from_slice(&[5, 0, 0, 0, 0x7F, 6, 0, 0]);
        }
        if !o.subtransactions.is_empty() {
            xinfo |= 2;
            parts.extend_from_slice(&(o.subtransactions.len() as u32).to_le_bytes());
            o.subtransactions.iter().for_each(|x| parts.extend_from_slice(&x.to_le_bytes()));
        }
        if o.dropped_relations > 0 {
            xinfo |= count(4, o.dropped_relations, 12, &mut parts);
        }
        if o.dropped_stats > 0 && self.version >= MajorVersion::V15 {
            let item = if self.version >= MajorVersion::V18 { 16 } else { 12 };
            xinfo |= count(0x100, o.dropped_stats, item, &mut parts);
        }
        if o.invalidations > 0 && !abort {
            xinfo |= count(8, o.invalidations, 16, &mut parts);
        }
        if let Some((prepared, name)) = o.prepared {
            xinfo |= 0x10 | 0x80;
            parts.extend_from_slice(&prepared.to_le_bytes());
            parts.extend_from_slice(name.as_bytes());
            parts.push(0);
        }
        if let Some((_, lsn, time)) = o.origin {
            xinfo |= 0x20;
            parts.extend_from_slice(&lsn.0.to_le_bytes());
            parts.extend_from_slice(&time.0.to_le_bytes());
        }
        let mut main = time.0.to_le_bytes().to_vec();
        if xinfo != 0 {
            main.extend_from_slice(&xinfo.to_le_bytes());
            main.extend_from_slice(&parts);
        }
        let kind = match (abort, o.prepared.is_some()) {
            (false, false) => 0x00,
            (false, true) => 0x30,
            (true, false) => 0x20,
            (true, true) => 0x40,
        };
        let mut body = Vec::new();
        if let Some((node, ..)) = o.origin {
            body.push(253);
            body.extend_from_slice(&node.to_le_bytes());
        }
        body.extend_from_slice(&with_length(&main));
        self.raw(xid, 1, kind | if xinfo != 0 { 0x80 } else { 0 }, &body)
    }

    fn header_len(&self, page: Lsn) -> u64 {
        if self.size.offset_of(page) == 0 { 40 } else { 24 }
    }

    /// Writes the page header where the end stands on a page border.
    fn enter_page(&mut self, rem_len: u32) {
        if self.end().0.is_multiple_of(PAGE) {
            self.page_header(if rem_len > 0 { CONTRECORD } else { 0 }, rem_len);
        }
    }

    fn page_header(&mut self, flags: u16, rem_len: u32) {
        let page = self.end();
        let long = self.size.offset_of(page) == 0;
        self.bytes.extend_from_slice(&self.version.wal_magic().to_le_bytes());
        self.bytes.extend_from_slice(&(flags | if long { LONG } else { 0 }).to_le_bytes());
        self.bytes.extend_from_slice(&self.timeline.0.to_le_bytes());
        self.bytes.extend_from_slice(&page.0.to_le_bytes());
        self.bytes.extend_from_slice(&rem_len.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            self.bytes.extend_from_slice(&self.system.0.to_le_bytes());
            self.bytes.extend_from_slice(&(self.size.bytes() as u32).to_le_bytes());
            self.bytes.extend_from_slice(&(PAGE as u32).to_le_bytes());
        }
    }

    fn assemble(&self, xid: u32, rmid: u8, info: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24 + body.len());
        bytes.extend_from_slice(&(24 + body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&xid.to_le_bytes());
        bytes.extend_from_slice(&self.prev.0.to_le_bytes());
        bytes.extend_from_slice(&[info, rmid, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    /// Lays `bytes` over as many pages as they need.
    fn lay(&mut self, bytes: &[u8], total: usize) {
        let mut laid = 0;
        while laid < total {
            self.enter_page((total - laid) as u32);
            let room = (PAGE - self.end().0 % PAGE) as usize;
            let part = total.min(laid + room);
            self.lay_from(bytes, laid, part);
            laid = part;
        }
    }

    fn lay_from(&mut self, bytes: &[u8], from: usize, to: usize) {
        self.bytes.extend_from_slice(&bytes[from..to]);
    }

    fn finish_record(&mut self, mut made: Made) -> Made {
        let end = self.end().align_up(8);
        self.bytes.resize(end.since(self.start) as usize, 0);
        made.end = end;
        self.prev = made.start;
        self.records.push(made);
        made
    }
}

/// Main data behind its fragment header.
fn with_length(main: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(main.len() + 5);
    match main.len() {
        0 => {}
        1..=255 => body.extend_from_slice(&[255, main.len() as u8]),
        _ => {
            body.push(254);
            body.extend_from_slice(&(main.len() as u32).to_le_bytes());
        }
    }
    body.extend_from_slice(main);
    body
}
