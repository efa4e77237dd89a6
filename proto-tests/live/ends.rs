//! Wherever the stored WAL ends, a restore of everything lands behind its last whole record: by the plan, by the server, and by `pg_waldump`.

use std::fs;
use std::path::PathBuf;

use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::restore::Target;

use super::net::run;
use super::restore::{self, Story};
use crate::support::user::as_postgres;
use crate::support::{Server, require_servers};

const ONE: TimelineId = TimelineId(1);
const PAGE: u64 = 8192;
/// Rows that the backup has.
const BEFORE: i64 = 2;

/// A record as `pg_waldump` prints it.
struct Record {
    lsn: Lsn,
    /// The transaction that it commits.
    commits: Option<u32>,
    /// The rest of its segment are zeros.
    switches: bool,
}

/// The dead server's WAL.
struct Dead {
    story: Story,
    pg_wal: PathBuf,
    /// Where the newest backup's WAL begins.
    start: Lsn,
}

impl Dead {
    /// What `pg_waldump` finds where the WAL ends at `end`.
    fn records(&self, end: Lsn) -> Vec<Record> {
        let folder = self.story.places.postgres_dir(&format!("cut at {:X}", end.0));
        let mut segment = self.story.shelf.segment(ONE, self.start);
        while segment.start() < end {
            let mut bytes = fs::read(self.pg_wal.join(segment.to_string())).expect("a segment");
            let have = end.since(segment.start()).min(segment.size.bytes()) as usize;
            bytes[have..].fill(0);
            fs::write(folder.join(segment.to_string()), bytes).expect("a cut segment");
            segment.number = segment.number.next();
        }
        let mut waldump = as_postgres(self.story.server.bin_dir().join("pg_waldump"));
        let output = waldump.arg("-p").arg(&folder).arg("-s").arg(self.start.to_string()).output().expect("pg_waldump");
        let text = String::from_utf8_lossy(&output.stdout);
        let after = |line: &str, marker: &str| {
            Some(line.split_once(marker)?.1.trim_start().split([',', ' ']).next()?.to_owned())
        };
        let records: Vec<_> = text.lines().filter(|line| line.starts_with("rmgr: ")).collect();
        let read = |line: &&str| Record {
            lsn: after(line, "lsn: ").expect("a position").parse().expect("a position"),
            commits: line
                .contains("desc: COMMIT")
                .then(|| after(line, "tx:").expect("a transaction").parse().expect("a number")),
            switches: line.contains("desc: SWITCH"),
        };
        records.iter().map(read).collect()
    }

    /// The archive ends at `end`, and held less of that segment before.
    fn store_up_to(&self, end: Lsn) {
        let segment = self.story.shelf.segment(ONE, Lsn(end.0 - 1));
        let bytes = fs::read(self.pg_wal.join(segment.to_string())).expect("a segment");
        let _ = fs::remove_file(self.story.shelf.file(&self.story.shelf.archive.names.partial(segment)));
        run(self.story.shelf.put_wal(segment, &bytes[..end.since(segment.start()) as usize]));
    }

    fn lands(&self, kind: &str, end: Lsn) {
        self.store_up_to(end);
        let (prepared, found) = self.story.land(kind, Target::Latest);
        let records = self.records(end);
        let committed: Vec<u32> = records.iter().filter_map(|record| record.commits).collect();
        let mut expected = restore::numbers(BEFORE);
        expected.extend(self.story.rows_of(&committed));
        assert_eq!(found, expected, "{kind}: the rows that pg_waldump sees committed before {end}");
        let replayed = prepared.choice.landing.replayed;
        let last = records.last().expect("a record");
        let latest = if last.switches { self.story.shelf.segment(ONE, last.lsn).end() } else { end };
        assert!(
            last.lsn < replayed && replayed <= latest,
            "{kind}: {} begins, {replayed} was replayed of {end}",
            last.lsn
        );
        println!("{kind}: the WAL ends at {end}, replayed up to {replayed}, {} rows", found.len());
        assert!(found.len() as i64 > BEFORE, "{kind}");
    }
}

/// Where the next record begins so few bytes before the end of a page that its header goes on behind that.
fn before_a_page(server: &Server) {
    let at = || server.sql("select pg_current_wal_insert_lsn()").parse::<Lsn>().expect("a position").0 % PAGE;
    let emit = |bytes: u64| {
        server.sql(&format!("select pg_logical_emit_message(false, 'm', repeat('x', {bytes}))"));
    };
    for _ in 0..50 {
        emit(8);
        let (before, room) = (at(), 400);
        emit(room);
        let around = at().wrapping_sub(before).wrapping_sub(room);
        // A page's beginning, or another process, came between.
        if around > 200 {
            continue;
        }
        let short = (PAGE - 16).saturating_sub(at() + around);
        if (8..7000).contains(&short) {
            emit(short);
        }
        if at() > PAGE - 24 {
            return;
        }
    }
    panic!("no record went over a page's end in its header");
}

#[test]
fn wherever_the_wal_ends_the_last_whole_record_is_the_end() {
    for version in [MajorVersion::V13, MajorVersion::V18] {
        require_servers!(version);
        let server = Server::builder(version).setting("autovacuum", "off").setting("checkpoint_timeout", "1h").start();
        let mut story = Story::new(server);
        story.write(BEFORE);
        story.backup();
        story.write(30);
        before_a_page(&story.server);
        let split: Lsn = story.server.sql("select pg_current_wal_insert_lsn()").parse().expect("a position");
        story.write(30);
        let border = story.server.switch_wal();
        let size = story.shelf.archive.names.segment_size.bytes();
        let border = Lsn(border.0.next_multiple_of(size));
        story.write(1);
        story.server.kill9();

        let start = story.start_of_backup();
        let pg_wal = story.server.data_dir().join("pg_wal");
        let dead = Dead { story, pg_wal, start };
        let last = dead.story.shelf.segment(ONE, Lsn(border.0 - 1)).start();
        assert!(last.0 <= split.0 && split.0 < border.0, "{version}: {split} is not in the segment before {border}");
        run(dead.story.shelf.put_files(&dead.pg_wal, ONE, start, last));
        let all = dead.records(border);
        // The records around the commits of this segment.
        let commits: Vec<usize> =
            (1..all.len() - 1).filter(|n| all[*n].commits.is_some() && all[*n].lsn > start.max(last)).collect();
        let (early, late) = (commits[commits.len() / 5], commits[commits.len() / 4]);
        let page = Lsn((all[late].lsn.0 + 1).next_multiple_of(PAGE));
        let switch = all.iter().rfind(|record| record.switches && record.lsn < border).expect("a WAL switch").lsn;
        let page_of = |lsn: Lsn| Lsn(lsn.0.next_multiple_of(PAGE));
        assert!(page_of(split).since(split) < 24, "{version}: {split}");
        let mut ends = vec![
            ("in a record", all[early].lsn + 30),
            ("in a header", all[early + 1].lsn + 12),
            ("behind a commit", all[late + 1].lsn),
            ("a page's end", page),
            ("in a header that goes over a page", page_of(split) + 26),
            ("in a page's header", page + 10),
            ("in the zeros behind a WAL switch", page_of(switch) + PAGE / 2),
        ];
        ends.sort_by_key(|(_, end)| *end);
        ends.push(("a segment's end", border));
        for (kind, end) in ends {
            dead.lands(kind, end);
        }
        println!("PostgreSQL {version}: every kind of end");
    }
}
