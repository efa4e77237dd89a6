//! Restores of real servers: where the plan says they land is where they land, with exactly those rows.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use walrecv::backup::{self, BackupOptions, WalWatch};
use walrecv::error::{Kind, Result};
use walrecv::pg::manifest::{Checksum, ManifestItem, ManifestReader};
use walrecv::pg::{Lsn, MajorVersion, SegmentSize, SystemIdentifier, TimelineId};
use walrecv::restore::recovery::Scratch;
use walrecv::restore::server::{Account, Programs};
use walrecv::restore::start::{Start, Started};
use walrecv::restore::{self, Action, Options, Prepared, Restored, Target, Wanted};
use walrecv::seal::header::ObjectKind;
use walrecv::seal::opener::open_index;

use super::net::{conninfo, run};
use crate::support::guard::Guard;
use crate::support::shelf::Shelf;
use crate::support::user::as_postgres;
use crate::support::{Client, Server, TempDir, install};

/// The archive has everything: it is filled after the backup.
struct Always;

impl WalWatch for Always {
    fn durable_end(&self, _timeline: TimelineId, _from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        Box::pin(async { Ok(Some(Lsn(u64::MAX))) })
    }
}

/// A commit of the test: the row, its time and where its transaction ended.
#[derive(Clone, Debug)]
pub struct Row {
    pub time: String,
    xid: u32,
}

pub struct Story {
    pub server: Server,
    pub shelf: Shelf,
    pub places: TempDir,
    pub rows: Vec<Row>,
}

impl Story {
    pub fn new(server: Server) -> Story {
        let places = TempDir::for_postgres("restore");
        let system = server.sql("select system_identifier from pg_control_system()").parse().expect("a number");
        let size = SegmentSize::from_show(&server.sql("show wal_segment_size")).expect("a size");
        let shelf = run(Shelf::new(&places.join("repository"), SystemIdentifier(system), size));
        server.sql("create table story (n bigint primary key, filler text)");
        Story { server, shelf, places, rows: Vec::new() }
    }

    pub fn backup(&self) {
        self.backup_of(&self.server);
    }

    /// Of the story's server, or one that came from it.
    pub fn backup_of(&self, server: &Server) {
        let options = BackupOptions { label: "before the story".into(), ..Default::default() };
        let info = conninfo(&server.conninfo("postgres"));
        run(backup::take_with(&self.shelf.archive, self.shelf.ring.clone(), &info, &options, &Always))
            .expect("a backup");
    }

    /// One row per transaction, some larger than a segment's page.
    pub fn write(&mut self, count: i64) {
        for _ in 0..count {
            let n = self.rows.len() as i64 + 1;
            let sql = format!("insert into story values ({n}, repeat('{n}', 3000)) returning xmin");
            let xid: u32 = self.server.sql(&sql).parse().expect("a transaction");
            let time = self.server.sql(&format!("select pg_xact_commit_timestamp('{xid}')"));
            self.rows.push(Row { time, xid });
        }
    }

    /// Ends the server and stores its WAL, from the backup on, up to the last byte it had flushed.
    pub fn archive_and_die(&mut self) -> Lsn {
        let end: Lsn = self.server.sql("select pg_current_wal_flush_lsn()").parse().expect("a position");
        self.server.kill9();
        let start = self.start_of_backup();
        let pg_wal = self.server.data_dir().join("pg_wal");
        run(self.shelf.put_files(&pg_wal, TimelineId(1), start, end));
        end
    }

    fn manifests(&self) -> Vec<Lsn> {
        run(restore::stock::complete_backups(&self.shelf.archive)).expect("a list").iter().map(|m| m.start).collect()
    }

    /// Where the oldest backup's WAL begins.
    pub fn start_of_backup(&self) -> Lsn {
        self.manifests()[0]
    }

    /// The rows that these transactions wrote.
    pub fn rows_of(&self, xids: &[u32]) -> Vec<i64> {
        (1..).zip(&self.rows).filter(|(_, row)| xids.contains(&row.xid)).map(|(n, _)| n).collect()
    }

    pub fn prepare(&self, target: Target) -> Result<Prepared> {
        self.prepare_on(target, None)
    }

    pub fn prepare_on(&self, target: Target, timeline: Option<TimelineId>) -> Result<Prepared> {
        run(restore::prepare(&self.shelf.archive, &Wanted { target, timeline, backup: None }))
    }

    pub fn options(&self, name: &str) -> Options {
        Options {
            pgdata: self.places.join(name),
            tablespaces: Vec::new(),
            action: Action::Promote,
            jobs: 2,
            account: Account::choose(None).expect("the user postgres"),
            delta: false,
            keep_archiving: false,
            keep_subscriptions: false,
            upstream: Default::default(),
            scratch: Some(Scratch { directory: self.places.join(format!("{name}.run")), port: port() }),
            program: fetch_program(&self.places),
            fetch_arguments: Vec::new(),
        }
    }

    pub fn restore(&self, prepared: &Prepared, options: &Options) -> Result<Restored> {
        run(restore::restore(&self.shelf.archive, self.shelf.access(), prepared, options, &|_, _| ()))
    }

    pub fn start(&self, prepared: &Prepared, options: &Options) -> Result<Copy> {
        let start = Start {
            pgdata: options.pgdata.clone(),
            programs: Programs::find(self.server.version(), Some(&self.server.bin_dir()), None)?,
            account: options.account.clone(),
            action: options.action,
            patience: Some(Duration::from_secs(60)),
        };
        let size = self.shelf.archive.names.segment_size;
        start.probe(
            &options.program,
            &options.fetch_arguments,
            restore::report::first_segment(&prepared.choice, size),
        )?;
        let mut guard = Guard::of_data(&options.pgdata);
        match run(start.run(&prepared.choice.landing, &prepared.target, &|_| ())) {
            Ok(started) => {
                let directory = options.scratch.as_ref().expect("a scratch server").directory.clone();
                Ok(Copy { start, started, directory, guard })
            }
            // It may run all the same.
            Err(error) => {
                guard.keep();
                Err(error)
            }
        }
    }

    /// What the server sent as its own manifest of this backup.
    fn server_manifest(&self, prepared: &Prepared) -> Vec<u8> {
        let (manifest, archive) = (&prepared.choice.manifest, &self.shelf.archive);
        let part = |part: u32| {
            let name = archive.names.server_manifest(manifest.id.as_str(), part);
            let object = std::fs::read(self.shelf.file(&name)).expect("a part");
            let claims = archive.claims(ObjectKind::ServerManifest, TimelineId(0), Lsn(part.into()));
            open_index(&object, &claims, archive.keys.as_ref()).expect("an authentic part")
        };
        (0..manifest.server_manifest.as_ref().expect("one").parts).flat_map(part).collect()
    }

    /// Restores to `target`, starts, and returns the rows that are there.
    pub fn land(&self, name: &str, target: Target) -> (Prepared, Vec<i64>) {
        let shown = target.describe();
        let prepared = self.prepare(target).unwrap_or_else(|e| panic!("{shown}: {e}"));
        let options = self.options(name);
        self.restore(&prepared, &options).unwrap_or_else(|e| panic!("{shown}: {e}"));
        let copy = self.start(&prepared, &options).unwrap_or_else(|e| panic!("{shown}: {e}, advice {:?}", e.advice()));
        assert_eq!(copy.started.landed, Some(prepared.choice.landing.replayed), "{shown}");
        let rows = copy.rows();
        (prepared, rows)
    }

    fn last_commit(prepared: &Prepared) -> Option<u32> {
        prepared.choice.landing.last_commit.map(|c| c.xid)
    }
}

/// A restored server that runs; stopped when it goes.
pub struct Copy {
    start: Start,
    pub started: Started,
    directory: PathBuf,
    pub guard: Guard,
}

impl Copy {
    pub fn client(&self) -> Client {
        let port = self.started.port.expect("a port");
        Client::connect(&self.directory, port, "postgres", "postgres").expect("a session")
    }

    pub fn value(&self, sql: &str) -> String {
        let rows = self.client().query(sql).expect("an answer");
        rows[0][0].clone().unwrap_or_default()
    }

    pub fn rows(&self) -> Vec<i64> {
        let rows = self.client().query("select n from story order by n").expect("rows");
        rows.into_iter().map(|row| row[0].as_deref().expect("a number").parse().expect("a number")).collect()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let mut command = as_postgres(self.start.programs.path("pg_ctl"));
        command.arg("-D").arg(&self.start.pgdata).args(["-m", "immediate", "stop"]);
        let _ = command.output();
    }
}

fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(7000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The program, under a path that a shell and PostgreSQL would both misread if it were not quoted.
fn fetch_program(places: &TempDir) -> PathBuf {
    let link = places.join("it's 100% \\walrecv");
    if !link.is_symlink() {
        std::os::unix::fs::symlink(crate::support::walrecv::path(), &link).expect("a link");
    }
    link
}

pub fn numbers(to: i64) -> Vec<i64> {
    (1..=to).collect()
}

pub fn time(text: &str, inclusive: bool) -> Target {
    Target::Time { time: restore::target::parse_time(text).expect("a time"), inclusive }
}

pub fn verify(server: &Server, pgdata: &Path) {
    let mut command = as_postgres(server.bin_dir().join("pg_verifybackup"));
    let output = command.arg("-n").arg(pgdata).output().expect("pg_verifybackup");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn manifest_of(pgdata: &Path) -> Vec<u8> {
    std::fs::read(pgdata.join("backup_manifest")).expect("a manifest")
}

/// Size and checksum of each file of a manifest.
fn listed(manifest: &[u8]) -> BTreeMap<String, (u64, Checksum)> {
    let (mut reader, mut files) = (ManifestReader::new(), BTreeMap::new());
    let mut take = |item| {
        if let ManifestItem::File { path, size, checksum } = item {
            assert!(files.insert(String::from_utf8_lossy(&path).into_owned(), (size, checksum)).is_none());
        }
        Ok(())
    };
    reader.push(manifest, &mut take).expect("a manifest");
    reader.finish().expect("a whole manifest");
    files
}

/// Every kind of target lands where the plan says, by the server's own account, with exactly those rows.
#[test]
fn every_target_lands_where_the_plan_says() {
    for version in versions() {
        let mut story = Story::new(Server::start(version));
        story.write(5);
        story.backup();
        story.write(5);
        story.server.sql("select pg_create_restore_point('here')");
        story.write(5);
        let at: Lsn = story.server.lsn();
        story.write(1);
        story.server.switch_wal();
        story.write(300);
        let end = story.archive_and_die();
        let rows = story.rows.clone();
        let row = |n: usize| &rows[n - 1];

        let (prepared, found) = story.land("latest", Target::Latest);
        assert_eq!(found, numbers(316));
        assert!(prepared.choice.landing.replayed <= end);

        let (prepared, found) = story.land("inclusive", time(&row(12).time, true));
        assert_eq!(found, numbers(12));
        assert_eq!(Story::last_commit(&prepared), Some(row(12).xid));
        let (_, found) = story.land("exclusive", time(&row(12).time, false));
        assert_eq!(found, numbers(11));
        let (_, found) = story.land("lsn", Target::Lsn { lsn: at, inclusive: false });
        assert_eq!(found, numbers(15));
        let (_, found) = story.land("name", Target::Name("here".into()));
        assert_eq!(found, numbers(10));
        let (_, found) = story.land("xid", Target::Xid { xid: row(200).xid, inclusive: true });
        assert_eq!(found, numbers(200));
        let (_, found) = story.land("immediate", Target::Immediate);
        assert_eq!(found, numbers(5));
        refusals(&story);
        println!("PostgreSQL {version}: every target landed");
    }
}

fn refusals(story: &Story) {
    let last = story.rows.last().expect("a row");
    let kind = |target| story.prepare(target).expect_err("not reachable").kind();
    assert_eq!(kind(time("2099-01-01 00:00:00+00", true)), Kind::Target);
    assert_eq!(kind(Target::Name("nowhere".into())), Kind::Target);
    let before = time(&story.rows[1].time, true);
    let error = story.prepare(before).expect_err("before the backup");
    assert_eq!(error.kind(), Kind::Target);
    assert!(error.advice().is_some_and(|a| a.contains("earliest")), "{error}: {:?}", error.advice());
    assert_eq!(kind(time(&last.time, true)), Kind::Target, "nothing after it is stored, so the server would not stop");
    let prepared = story.prepare(time(&last.time, false)).expect("before the last one");
    let occupied = Options { pgdata: story.places.path().to_path_buf(), ..story.options("x") };
    assert_eq!(story.restore(&prepared, &occupied).expect_err("occupied").kind(), Kind::Usage);
}

/// PostgreSQL's own tool finds every file as the server listed it; modes are those of a data directory; tablespaces go where they are sent.
#[test]
fn what_is_laid_is_what_the_server_listed() {
    for version in versions() {
        let server = Server::builder(version).setting("synchronous_standby_names", "").start();
        let mut story = Story::new(server);
        let space = story.places.postgres_dir("a space");
        story.server.sql(&format!("create tablespace extra location '{}'", space.display()));
        story.server.sql("create table there tablespace extra as select generate_series(1, 5000) as n");
        story.backup();
        story.write(3);
        story.archive_and_die();
        let prepared = story.prepare(Target::Latest).expect("a plan");

        let refused = story.restore(&prepared, &story.options("unmapped")).expect_err("production's tablespace");
        assert_eq!(refused.kind(), Kind::Usage, "{refused}");
        let elsewhere = story.places.join("another space");
        let mut options = story.options("data");
        options.tablespaces = vec![("/no/such".into(), "/tmp/x".into())];
        assert_eq!(story.restore(&prepared, &options).expect_err("unknown").kind(), Kind::Usage);
        assert!(!options.pgdata.exists());
        options.tablespaces = vec![(space.clone(), elsewhere.clone())];
        let restored = story.restore(&prepared, &options).expect("a restore");
        assert_eq!(restored.files, prepared.choice.manifest.sizes.files);
        verify(&story.server, &options.pgdata);
        let (sent, laid) = (story.server_manifest(&prepared), manifest_of(&options.pgdata));
        let (theirs, ours) = (listed(&sent), listed(&laid));
        let paths: BTreeSet<_> = theirs.keys().chain(ours.keys()).collect();
        let differing: Vec<_> = paths.into_iter().filter(|path| theirs.get(*path) != ours.get(*path)).collect();
        assert_eq!(differing, ["postgresql.auto.conf", "tablespace_map"], "all others are as the server listed them");

        // Where nothing moves, the manifest is the server's own.
        std::fs::remove_dir_all(&space).expect("the dead server's tablespace goes");
        let unmoved = story.options("unmoved");
        story.restore(&prepared, &unmoved).expect("a restore");
        assert!(manifest_of(&unmoved.pgdata) == sent);
        verify(&story.server, &unmoved.pgdata);
        let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
        assert_eq!([mode(&options.pgdata), mode(&options.pgdata.join("pg_wal/walrecv"))], [0o700, 0o700]);
        assert_eq!(mode(&options.pgdata.join("pg_wal/walrecv/plan.json")), 0o600);

        let copy = story.start(&prepared, &options).expect("a server");
        assert_eq!(copy.rows(), numbers(3));
        assert_eq!(copy.value("select count(*) from there"), "5000");
        let location = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'extra'";
        assert_eq!(copy.value(location), elsewhere.display().to_string());
        assert!(!options.pgdata.join("pg_wal/walrecv").exists(), "the keys go when recovery ends");
        assert!(story.restore(&prepared, &options).is_err(), "a running server's directory is left alone");
    }
}

/// A map of an older state of the same files, whole and authentic, and a configuration that lies elsewhere: the first is refused by what the server said
/// of each file, the second is part of what is listed.
#[test]
fn every_file_is_compared_with_what_the_server_said_and_what_is_added_is_listed() {
    let version = *versions().first().expect("a server");
    let builder = Server::builder(version).setting("synchronous_standby_names", "").setting("wal_keep_size", "64MB");
    let mut story = Story::new(builder.start());
    story.write(2);
    story.backup();
    story.server.sql("update story set filler = 'x'; checkpoint");
    // As on Debian; the server has read them.
    for name in ["pg_hba.conf", "pg_ident.conf"] {
        std::fs::remove_file(story.server.data_dir().join(name)).expect("a file to remove");
    }
    std::thread::sleep(Duration::from_millis(1100));
    story.backup();
    story.archive_and_die();
    let prepared = story.prepare(Target::Latest).expect("a plan");
    let options = story.options("data");
    let restored = story.restore(&prepared, &options).expect("a restore");
    assert_eq!(restored.written, ["pg_hba.conf", "pg_ident.conf"]);
    verify(&story.server, &options.pgdata);

    let archive = &story.shelf.archive;
    let all = run(restore::stock::complete_backups(archive)).expect("two backups");
    let (older, mut newer) = (all[0].clone(), prepared.choice.manifest.clone());
    assert!(all.len() == 2 && older.id < newer.id && newer.server_manifest.is_some());
    newer.maps = older.maps;
    let name = archive.names.backup(newer.id.as_str());
    run(archive.repo.delete(&name)).expect("a deletion");
    let claims = archive.claims(ObjectKind::Manifest, TimelineId(0), Lsn(0));
    let keys = story.shelf.ring.fresh().expect("keys");
    run(archive.put_index(&keys, &name, claims, &newer.encode(), Duration::from_secs(5))).expect("a manifest");
    let refused = story.restore(&story.prepare(Target::Latest).expect("a plan"), &story.options("wrong"));
    let refused = refused.expect_err("another backup's files");
    assert!(refused.kind() == Kind::Corrupt && refused.to_string().contains("PostgreSQL's manifest"), "{refused}");
}

/// A restored server neither waits for production's standbys nor archives for production; it says so.
#[test]
fn a_copy_does_not_act_on_production() {
    let version = *versions().last().expect("a server");
    let taken = TempDir::for_postgres("taken");
    let server = Server::builder(version)
        .setting("archive_mode", "on")
        .setting("archive_command", format!("cp %p {}/%f", taken.path().display()))
        .setting("synchronous_standby_names", "walrecv")
        .setting("synchronous_commit", "local")
        .start();
    let mut story = Story::new(server);
    story.backup();
    story.write(3);
    story.archive_and_die();
    let before = std::fs::read_dir(taken.path()).expect("a folder").count();
    let prepared = story.prepare(Target::Latest).expect("a plan");
    let options = story.options("copy");
    let restored = story.restore(&prepared, &options).expect("a restore");
    let told: Vec<_> = restored.neutralised.iter().map(|n| n.setting.as_str()).collect();
    assert!(told.contains(&"synchronous_standby_names") && told.contains(&"archive_mode"), "{told:?}");
    let copy = story.start(&prepared, &options).expect("a server");
    copy.client().query("set synchronous_commit = on; insert into story values (99, '')").expect("not waiting");
    copy.client().query("select pg_switch_wal()").expect("a switch");
    assert_eq!(copy.value("show archive_mode"), "off");
    assert_eq!(std::fs::read_dir(taken.path()).expect("a folder").count(), before);
}

/// Production notes down who logs in, which nobody can while the server is in recovery.
#[test]
fn a_login_trigger_does_not_hide_that_a_server_has_paused() {
    let version = *versions().last().expect("a server");
    if version < MajorVersion::V17 {
        return;
    }
    let mut story = Story::new(Server::start(version));
    // In each database that is asked for.
    for database in ["template1", "postgres"] {
        let mut client = story.server.connect(database).expect("a connection");
        for sql in [
            "create table came (who name)",
            "create function note() returns event_trigger language plpgsql as 'begin insert into came values (session_user); end'",
            "create event trigger noted on login execute function note()",
        ] {
            client.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
    }
    story.backup();
    story.write(4);
    assert_ne!(story.server.sql("select count(*) from came"), "0", "it fires");
    story.archive_and_die();
    let prepared = story.prepare(Target::Latest).expect("a plan");
    let options = Options { action: Action::Pause, ..story.options("noted") };
    story.restore(&prepared, &options).expect("a restore");
    // As in a server that is no scratch server.
    let auto = options.pgdata.join("postgresql.auto.conf");
    let mut text = std::fs::read_to_string(&auto).expect("settings");
    text.push_str("event_triggers = on\n");
    std::fs::write(&auto, text).expect("settings");
    let copy = story.start(&prepared, &options).expect("a server");
    assert_eq!(copy.started.landed, Some(prepared.choice.landing.replayed));
}

/// A damaged or missing segment stops the server; it is never opened early.
#[test]
fn what_the_plan_needs_and_cannot_be_read_stops_the_server() {
    let version = *versions().first().expect("a server");
    let mut story = Story::new(Server::start(version));
    story.backup();
    for _ in 0..3 {
        story.write(20);
        story.server.switch_wal();
    }
    story.write(2);
    let end = story.archive_and_die();
    let prepared = story.prepare(Target::Latest).expect("a plan");
    let victim = story.shelf.segment(TimelineId(1), Lsn(end.0 - (1 << 20)));
    let object = story.shelf.file(&story.shelf.archive.names.segment(victim, None));
    let whole = std::fs::read(&object).expect("an object");

    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&object, damaged).expect("a damaged object");
    let options = story.options("damaged");
    story.restore(&prepared, &options).expect("a restore");
    let error = story.start(&prepared, &options).err().expect("must not open");
    assert!(error.to_string().contains("FATAL"), "{error}");
    assert!(options.pgdata.join("recovery.signal").exists(), "not promoted");

    std::fs::remove_file(&object).expect("gone");
    let error = story.prepare(Target::Latest).expect_err("a hole");
    assert_eq!(error.kind(), Kind::Gap, "{error}");
    let error = story.start(&prepared, &options).err().expect("must not open");
    assert!(error.to_string().contains("FATAL"), "{error}");

    std::fs::write(&object, whole).expect("put back");
    let copy = story.start(&prepared, &options).expect("goes on where it was");
    assert_eq!(copy.rows(), numbers(62));
}

/// The ends; all that are installed in a soak, or where they were asked for.
pub fn versions() -> Vec<MajorVersion> {
    install::story_versions(&[MajorVersion::V13, MajorVersion::V18])
}
