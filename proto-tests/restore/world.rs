//! A cluster with one backup, a fork, and a repository that holds as much of its WAL as a test wants.

use jiff::Timestamp;
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, MajorVersion, SegmentName, SegmentSize, TimelineId};
use walrecv::seal::content::BackupId;
use walrecv::seal::content::manifest::{ControlFacts, Manifest, MapRef, Raw, Sizes, Transfer};

use crate::support::TempDir;
use crate::support::shelf::Shelf;
use crate::support::wal_maker::{SYSTEM, WalMaker};

pub const MB: u64 = 1 << 20;
pub const ONE: TimelineId = TimelineId(1);
pub const TWO: TimelineId = TimelineId(2);

pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// A commit that was made: its number is also its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub xid: u32,
    pub start: Lsn,
    pub end: Lsn,
}

/// WAL with the commits in it.
#[derive(Clone, Debug)]
pub struct Wal {
    pub made: WalMaker,
    pub commits: Vec<Commit>,
}

impl Wal {
    /// Commits with this transaction number as time, every 20 kB, until the WAL passes `until`.
    pub fn grow(&mut self, until: u64, first_xid: u32) {
        let mut xid = first_xid;
        while self.made.end() < Lsn(until) {
            self.made.filler(xid, 20_000);
            let made = self.made.commit(xid, PgTime(i64::from(xid)));
            self.commits.push(Commit { xid, start: made.start, end: made.end });
            xid += 1;
        }
    }

    /// The last commit that ends at or before `lsn`.
    pub fn last_before(&self, lsn: Lsn) -> Commit {
        *self.commits.iter().rfind(|c| c.end <= lsn).expect("a commit")
    }
}

pub struct World {
    pub places: TempDir,
    pub shelf: Shelf,
    /// Timeline 1, from segment 1; goes on past the fork, as the old primary did.
    pub one: Wal,
    /// Timeline 2, left timeline 1 at `fork`.
    pub two: Wal,
    pub fork: Lsn,
    pub redo: Lsn,
    pub stop: Lsn,
}

impl World {
    /// Timeline 1 ends in segment 6, timeline 2 forks in segment 4 and ends in segment 7. Nothing is stored.
    pub fn new() -> World {
        let places = TempDir::new("world");
        let size = SegmentSize::new(MB).expect("a size");
        let shelf = run(Shelf::new(&places.join("repository"), SYSTEM, size));
        let mut one = Wal { made: WalMaker::new(MajorVersion::V15, size, ONE, Lsn(MB)), commits: Vec::new() };
        let redo = one.made.checkpoint(false).start;
        one.grow(MB + 100_000, 10);
        let stop = one.made.backup_end(redo).end;
        let next = one.commits.last().expect("a commit").xid + 1;
        one.grow(4 * MB + 500_000, next);
        let mut two = Wal { made: one.made.fork(TWO), commits: one.commits.clone() };
        let fork = two.made.end();
        let next = one.commits.last().expect("a commit").xid + 1;
        two.made.end_of_recovery(PgTime(i64::from(next)));
        // Both branches go on from the same transaction, at other times.
        one.grow(6 * MB + 300_000, next);
        two.grow(7 * MB + 300_000, next + 10_000);
        World { places, shelf, one, two, fork, redo, stop }
    }

    pub fn segment(&self, timeline: TimelineId, number: u64) -> SegmentName {
        self.shelf.segment(timeline, Lsn(number * MB))
    }

    /// The bytes of a segment as far as its timeline has them.
    pub fn bytes(&self, timeline: TimelineId, number: u64) -> &[u8] {
        let made = if timeline == ONE { &self.one.made } else { &self.two.made };
        made.slice(Lsn(number * MB), Lsn(made.end().0.min((number + 1) * MB)))
    }

    /// Stores whole segments, and the beginning of the last one.
    pub fn store(&self, timeline: TimelineId, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            run(self.shelf.put_wal(self.segment(timeline, number), self.bytes(timeline, number)));
        }
    }

    pub fn store_history(&self) {
        run(self.shelf.put_history(TWO, format!("1\t{}\tno recovery target specified\n", self.fork).as_bytes()));
    }

    /// Both branches, whole.
    pub fn store_all(&self) {
        self.store(ONE, 1..=6);
        self.store(TWO, 4..=7);
        self.store_history();
    }

    pub fn forget(&self, timeline: TimelineId, number: u64) {
        let name = self.shelf.archive.names.segment(self.segment(timeline, number), None);
        std::fs::remove_file(self.shelf.file(&name)).expect("a stored segment");
    }

    pub fn manifest(&self) -> Manifest {
        manifest(self.redo, self.stop)
    }
}

/// A backup that ran from `start` to `stop` on timeline 1. Its files are nowhere.
pub fn manifest(start: Lsn, stop: Lsn) -> Manifest {
    let time = Timestamp::from_second(1_769_824_800).expect("a time");
    let id = BackupId::new(time, ONE, start, start.0 as u16);
    Manifest {
        version: Manifest::VERSION,
        id: id.clone(),
        label: "made".into(),
        cluster: "main".into(),
        system: SYSTEM,
        segment_size: SegmentSize::new(MB).expect("a size"),
        version_num: 150018,
        from_standby: false,
        timeline: ONE,
        start,
        stop,
        stop_timeline: ONE,
        checkpoint: start,
        started_at: time,
        stopped_at: time,
        parent: None,
        transfer: Transfer::Full,
        why_full: None,
        survivors_at: time,
        maps: vec![MapRef { backup: id, parts: 1, bytes: 100 }],
        tablespaces: Vec::new(),
        backup_label: Raw(Vec::new()),
        tablespace_map: None,
        server_manifest: None,
        sizes: Sizes::default(),
        control: ControlFacts {
            control_version: 1300,
            catalog_version: 0,
            data_checksum_version: 0,
            relation_segment_pages: 131_072,
            wal_level: 1,
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
            min_recovery_point: Lsn(0),
            track_commit_timestamp: true,
        },
        bad_pages: Vec::new(),
        bad_page_count: 0,
        torn_pages: Vec::new(),
        absent_tablespaces: Vec::new(),
        identity: None,
        made_by: "a test".into(),
        host: "here".into(),
    }
}
