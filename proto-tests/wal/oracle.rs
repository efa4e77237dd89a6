//! WAL of real servers: the scanner finds the records that pg_waldump of the same version finds, and the notes say the
//! same.

use std::fs;

use walrecv::pg::change::{self, Change};
use walrecv::pg::record::Record;
use walrecv::pg::scan::{ScanConfig, WalScanner};
use walrecv::pg::xact::{self, Note, Parameters, PgTime};
use walrecv::pg::{Lsn, MajorVersion, SegmentName, SegmentSize, SystemIdentifier, TimelineId};

use crate::changes::{self, Changes};
use crate::seen::megabytes;
use crate::support::{Seed, Server, Stop, require_servers};
use crate::waldump::{Line, RMGRS, dump};

/// A record as the scanner gave it, in the words of pg_waldump, with its note.
#[derive(Clone, Debug)]
struct Found {
    line: Line,
    note: Note,
    changes: Changes,
}

/// Segments of a timeline, as they lie in the stopped server's pg_wal, from `start` on.
fn wal_files(server: &Server, timeline: TimelineId, size: SegmentSize, start: Lsn) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut number = size.segment_of(start);
    loop {
        let name = SegmentName::new(timeline, number, size);
        match fs::read(server.data_dir().join("pg_wal").join(name.to_string())) {
            Ok(segment) => bytes.extend_from_slice(&segment),
            Err(_) => break,
        }
        number = number.next();
    }
    assert!(!bytes.is_empty(), "no segment of timeline {timeline} from {start}");
    bytes
}

fn config(server: &Server, timeline: u32, size: SegmentSize) -> ScanConfig {
    let output = server.bin("pg_controldata").arg("-D").arg(server.data_dir()).output().expect("run pg_controldata");
    let text = String::from_utf8_lossy(&output.stdout);
    let system = text.lines().find_map(|l| l.strip_prefix("Database system identifier:"));
    let system = system.and_then(|s| s.trim().parse().ok()).expect("a system identifier");
    ScanConfig {
        version: server.version(),
        system: SystemIdentifier(system),
        timeline: TimelineId(timeline),
        segment_size: size,
    }
}

/// Scans the stopped server's WAL from `start` in random pieces and compares with pg_waldump; what was found.
fn compare(server: &Server, timeline: u32, size: SegmentSize, start: Lsn, seed: &mut Seed) -> Vec<Found> {
    let version = server.version();
    let start = size.segment_of(start).start(size);
    let bytes = wal_files(server, TimelineId(timeline), size, start);
    let mut scanner = WalScanner::new(config(server, timeline, size), start).keeping(change::wanted);
    let mut found = Vec::new();
    let mut rest = bytes.as_slice();
    let mut end = None;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(seed.between(1, 200_000) as usize));
        rest = after;
        let mut sink = |record: &Record<'_>| found.push(describe(record, version));
        end = scanner.feed_until_end(piece, &mut sink).unwrap_or_else(|e| panic!("PostgreSQL {version}: {e}"));
    }
    let (expected, expected_end) = dump(server, timeline, start);
    assert!(expected.len() > 100, "only {} records", expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        let desc = expected.desc.clone();
        assert_eq!(Line { desc, ..found.line.clone() }, *expected, "PostgreSQL {version}");
        assert_eq!(found.note, note_of(expected, &found.note), "PostgreSQL {version}: {expected:?}");
        let changes = changes::as_told(found.changes.clone());
        assert_eq!(changes, changes::expected(expected), "PostgreSQL {version}: {expected:?}");
    }
    assert_eq!(found.len(), expected.len(), "PostgreSQL {version}: records");
    assert!(end.is_some() && (expected_end.is_none() || end == expected_end), "{end:?} is not {expected_end:?}");
    found
}

fn describe(record: &Record<'_>, version: MajorVersion) -> Found {
    let rmgr = RMGRS.get(record.rmid as usize).copied().unwrap_or("custom").to_string();
    let line = Line {
        rmgr,
        total_len: record.total_len,
        xid: record.xid,
        start: record.start,
        prev: record.prev,
        desc: String::new(),
    };
    let note = xact::note(record, version).unwrap_or_else(|e| panic!("PostgreSQL {version}: {e}"));
    Found { line, note, changes: changes::found(record, version) }
}

/// The note that pg_waldump's description asks for. What it does not print (the time of a restore point) is taken from
/// `found`.
fn note_of(line: &Line, found: &Note) -> Note {
    let (kind, rest) = line.desc.split_once(' ').unwrap_or((&line.desc, ""));
    let number = |name: &str| {
        let rest = rest.split_once(name).unwrap_or_else(|| panic!("{name} in {line:?}")).1;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse::<u32>().unwrap_or_else(|_| panic!("a number after {name} in {line:?}"))
    };
    let lsn = |text: &str| text.parse::<Lsn>().unwrap_or_else(|_| panic!("an LSN in {line:?}"));
    match (line.rmgr.as_str(), kind) {
        ("Transaction", "COMMIT" | "COMMIT_PREPARED" | "ABORT" | "ABORT_PREPARED") => ended(line, kind, rest),
        ("XLOG", "RESTORE_POINT") => match found {
            Note::RestorePoint { time, .. } => Note::RestorePoint { name: rest.to_string(), time: *time },
            _ => panic!("{found:?} for {line:?}"),
        },
        ("XLOG", "CHECKPOINT_ONLINE" | "CHECKPOINT_SHUTDOWN") => Note::Checkpoint {
            redo: lsn(rest.trim_start_matches("redo ").split(';').next().unwrap_or_default()),
            timeline: TimelineId(number("; tli ")),
            previous_timeline: TimelineId(number("; prev tli ")),
            shutdown: kind == "CHECKPOINT_SHUTDOWN",
        },
        ("XLOG", "END_OF_RECOVERY") => Note::EndOfRecovery {
            timeline: TimelineId(number("tli ")),
            previous_timeline: TimelineId(number("; prev tli ")),
        },
        ("XLOG", "BACKUP_END") => Note::BackupEnd { start: lsn(rest) },
        ("XLOG", "SWITCH") => Note::Switch,
        ("XLOG", "PARAMETER_CHANGE") => {
            let level = rest.split_once("wal_level=").expect("wal_level").1.split(' ').next();
            let level = ["minimal", "replica", "logical"].iter().position(|name| Some(*name) == level);
            Note::ParameterChange(Parameters {
                max_connections: number("max_connections=") as i32,
                max_worker_processes: number("max_worker_processes=") as i32,
                max_wal_senders: number("max_wal_senders=") as i32,
                max_prepared_transactions: number("max_prepared_xacts=") as i32,
                max_locks_per_transaction: number("max_locks_per_xact=") as i32,
                wal_level: level.expect("a known wal_level") as i32,
            })
        }
        _ => Note::Other,
    }
}

/// `COMMIT 2026-01-02 03:04:05.678901 UTC; rels: base/5/16384; …`, `COMMIT_PREPARED 735: 2026-…`. The time is read back
/// by its own digits, so that printing it is not taken for granted.
fn ended(line: &Line, kind: &str, rest: &str) -> Note {
    let (xid, rest) = match kind.ends_with("PREPARED") {
        true => rest.split_once(": ").expect("the prepared transaction"),
        false => ("", rest),
    };
    let xid = if xid.is_empty() { line.xid } else { xid.parse().expect("a transaction") };
    let text = rest.split_once(" UTC").expect("a time").0;
    let time: jiff::civil::DateTime = text.parse().unwrap_or_else(|e| panic!("{text:?}: {e}"));
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).expect("a time of UTC").timestamp();
    let time = PgTime::from_unix_micros(time.as_microsecond());
    assert_eq!(time.to_string(), format!("{text}+00"));
    let dropped = rest.split_once("; rels:").map_or("", |(_, rest)| rest.split(';').next().unwrap_or_default());
    let dropped_relations = dropped.split_whitespace().count() as u32;
    if kind.starts_with("ABORT") { Note::Abort { xid, time } } else { Note::Commit { xid, time, dropped_relations } }
}

/// Something of everything: small transactions, aborts, subtransactions, two-phase commits, drops, images under this
/// `wal_compression`, records over several segments, restore points, switches, checkpoints.
fn work(server: &Server, compressions: &[&str]) {
    server.pgbench(&["-i", "-q", "-s", "1"]);
    for compression in compressions {
        server.sql(&format!("alter system set wal_compression = '{compression}'"));
        server.sql("select pg_reload_conf()");
        server.sql("checkpoint");
        server.pgbench(&["-n", "-c", "4", "-t", "100"]);
    }
    let mut session = server.connect("postgres").expect("connect");
    let mut run = |sql: &str| drop(session.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}")));
    run("create table t (id int primary key, payload text)");
    run("select pg_create_restore_point('first point')");
    for end in ["rollback", "commit"] {
        run("begin");
        run("insert into t select g, repeat('x', 100) from generate_series(1, 300) g");
        run("savepoint a");
        run("update t set payload = 'y' where id < 50");
        run("rollback to a");
        run("savepoint b");
        run("delete from t where id > 290");
        run(end);
    }
    run("do $$ begin for i in 1..150 loop \
         begin insert into t values (1000 + i, 'sub'); exception when others then null; end; end loop; end $$");
    for (name, end) in [("one", "rollback prepared 'one'"), ("two", "commit prepared 'two'")] {
        run("begin");
        run("create table drop_me (i int); drop table if exists drop_me_too; create table drop_me_too (i int)");
        run("savepoint s; insert into drop_me values (1); release s");
        run(&format!("prepare transaction '{name}'"));
        run(end);
    }
    run("drop table drop_me, drop_me_too");
    run("select pg_logical_emit_message(false, 'long', repeat('0123456789', 350000))");
    run("select pg_switch_wal()");
    run("begin; insert into t values (5000, 'switch'); \
         select pg_logical_emit_message(true, 'long', repeat('z', 1200000)); commit");
    run("truncate t");
    run("copy t (id) from program 'seq 1 500'");
    run(
        "create table halves (id int) partition by list (id); create table half partition of halves for values in (1); \
         create table other_half partition of halves for values in (2); insert into halves values (1)",
    );
    run("update halves set id = 2");
    run("create database short_lived");
    // Its row is written, so that the next change of it goes without the whole page.
    run("alter database short_lived connection limit 5");
    run("drop database short_lived");
    run("vacuum full pgbench_branches");
    run("select pg_create_restore_point('Ende gut: äöü')");
    run("checkpoint");
}

fn settings(version: MajorVersion, size_mb: u32) -> Server {
    let level = if version.number().is_multiple_of(2) { "logical" } else { "replica" };
    Server::builder(version)
        .segment_size_mb(size_mb)
        .setting("wal_level", level)
        .setting("max_prepared_transactions", 5)
        .setting("wal_keep_size", "2GB")
        .setting("max_wal_size", "2GB")
        .setting("autovacuum", "off")
        .start()
}

/// Which notes must be there at least, so that the comparison compared something.
fn assert_rich(found: &[Found]) {
    let prepared = found.iter().filter(|f| match f.note {
        Note::Commit { xid, .. } | Note::Abort { xid, .. } => xid != f.line.xid,
        _ => false,
    });
    assert_eq!(prepared.count(), 2, "a commit and an abort of prepared transactions");
    let count = |what: &str, is: &dyn Fn(&Note) -> bool| {
        let n = found.iter().filter(|f| is(&f.note)).count();
        assert!(n > 0, "no {what} among {} records", found.len());
        n
    };
    assert!(count("commit", &|n| matches!(n, Note::Commit { .. })) > 400);
    count("commit with dropped files", &|n| matches!(n, Note::Commit { dropped_relations: 1.., .. }));
    count("abort", &|n| matches!(n, Note::Abort { .. }));
    assert_eq!(count("restore point", &|n| matches!(n, Note::RestorePoint { .. })), 2);
    count("switch", &|n| matches!(n, Note::Switch));
    count("checkpoint", &|n| matches!(n, Note::Checkpoint { shutdown: false, .. }));
    count("shutdown", &|n| matches!(n, Note::Checkpoint { shutdown: true, .. }));
    let changed = |what: &str, is: &dyn Fn(&Change) -> bool| {
        assert!(found.iter().any(|f| f.changes.changes.iter().any(is)), "no {what} among {} records", found.len());
    };
    changed("rows of a copy", &|c| matches!(c, Change::Inserted { rows: 2.., .. }));
    changed("delete", &|c| matches!(c, Change::Deleted { .. }));
    changed("update", &|c| matches!(c, Change::Updated { .. }));
    changed("file", &|c| matches!(c, Change::Made { .. }));
    changed("page of a file made anew", &|c| matches!(c, Change::Written { .. }));
    changed("lock", &|c| matches!(c, Change::Locked { .. }));
    changed("database made", &|c| matches!(c, Change::DatabaseMade { .. }));
    changed("database gone", &|c| matches!(c, Change::DatabaseFilesGone { .. }));
    changed("database that may not be used any more", &|c| matches!(c, Change::InPlace { invalid: Some(true), .. }));
    changed("running transactions", &|c| matches!(c, Change::NextXid(_)));
    changed("prepared transaction", &|c| matches!(c, Change::Prepared));
    changed("prepared subtransaction", &|c| matches!(c, Change::PreparedPart { .. }));
    assert!(found.iter().any(|f| f.changes.subtransactions.len() > 100), "no commit of many subtransactions");
    count("parameter change", &|n| matches!(n, Note::ParameterChange(_)));
    let longest = found.iter().map(|f| f.line.total_len).max();
    assert!(longest > Some(3_400_000), "the longest record has {longest:?} bytes");
}

fn compressions(version: MajorVersion) -> &'static [&'static str] {
    match version {
        MajorVersion::V13 | MajorVersion::V14 => &["off", "on"],
        MajorVersion::V15 => &["off", "pglz", "lz4"],
        _ => &["off", "pglz", "lz4", "zstd"],
    }
}

fn all_that_a_server_writes(version: MajorVersion, size_mb: u32) {
    let mut seed = Seed::of_run();
    let mut server = settings(version, size_mb);
    let start = server.lsn();
    work(&server, compressions(version));
    server.stop(Stop::Fast);
    let found = compare(&server, 1, megabytes(size_mb as u64), start, &mut seed);
    assert_rich(&found);
}

macro_rules! for_versions {
    ($($name:ident $version:ident),+) => {$(
        mod $name {
            use super::*;

            #[test]
            fn all_that_a_server_writes() {
                require_servers!(MajorVersion::$version);
                super::all_that_a_server_writes(MajorVersion::$version, 1);
            }

            #[test]
            fn a_promoted_standby() {
                require_servers!(MajorVersion::$version);
                super::a_promoted_standby(MajorVersion::$version);
            }

            #[test]
            fn a_record_that_a_crash_cut_off() {
                require_servers!(MajorVersion::$version);
                super::a_record_that_a_crash_cut_off(MajorVersion::$version);
            }
        }
    )+};
}
for_versions!(v13 V13, v14 V14, v15 V15, v16 V16, v17 V17, v18 V18);

#[test]
fn segments_of_sixteen_megabytes() {
    require_servers!(MajorVersion::V17);
    all_that_a_server_writes(MajorVersion::V17, 16);
}

/// The segment of the fork holds pages of both timelines.
fn a_promoted_standby(version: MajorVersion) {
    let mut seed = Seed::of_run();
    let mut primary = settings(version, 1);
    let start = primary.lsn();
    primary.pgbench(&["-i", "-q", "-s", "1"]);
    let mut standby = primary.standby().start();
    primary.pgbench(&["-n", "-t", "50"]);
    let reached = primary.lsn();
    standby.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{reached}'"), "t");
    standby.promote();
    let fork = standby.lsn();
    standby.pgbench(&["-n", "-t", "50"]);
    standby.stop(Stop::Fast);
    let found = compare(&standby, 2, megabytes(1), reached, &mut seed);
    let end = Note::EndOfRecovery { timeline: TimelineId(2), previous_timeline: TimelineId(1) };
    let promoted = found.iter().find(|f| f.note == end).expect("a record of the end of recovery");
    assert!(promoted.line.start >= reached && promoted.line.start <= fork);
    // The base backup that made the standby ended with a record in the primary's WAL.
    primary.stop(Stop::Fast);
    let found = compare(&primary, 1, megabytes(1), start, &mut seed);
    assert!(found.iter().any(|f| matches!(f.note, Note::BackupEnd { .. })), "no end of a base backup");
}

/// The last record of a killed server lies only in part on its disk; after the restart it is voided.
fn a_record_that_a_crash_cut_off(version: MajorVersion) {
    let mut seed = Seed::of_run();
    let mut server = settings(version, 1);
    let start = server.lsn();
    server.sql("alter system set wal_writer_delay = '10s'");
    server.sql("alter system set wal_buffers = '64kB'");
    server.stop(Stop::Fast);
    server.start_again();
    server.pgbench(&["-i", "-q", "-s", "1"]);
    let mut session = server.connect("postgres").expect("connect");
    let long = "begin; select pg_logical_emit_message(false, 'cut off', repeat('0123456789', 100000))";
    session.query(long).expect("write a long record");
    server.kill9();
    server.start_again();
    server.pgbench(&["-n", "-t", "20"]);
    server.stop(Stop::Fast);
    let found = compare(&server, 1, megabytes(1), start, &mut seed);
    let desc = |f: &Found| f.line.rmgr == "XLOG" && f.line.total_len == 42;
    assert!(found.iter().any(desc), "no record voids the one that was cut off");
}
