//! Incremental transfers of real servers: what walrecv restores of them is, byte for byte, what `pg_combinebackup` makes of the same server's own
//! incremental backups; and where a server cannot send one, the backup says why and is taken in full.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use walrecv::backup::{self, BackupOptions, Outcome, Progress, WalWatch};
use walrecv::error::{Error, Result};
use walrecv::pg::{Lsn, MajorVersion, SegmentSize, SystemIdentifier, TimelineId};
use walrecv::restore::server::Account;
use walrecv::restore::{self, Action, Options, Target, Wanted};
use walrecv::seal::content::BackupId;
use walrecv::seal::content::event::{Hole, What};
use walrecv::seal::content::manifest::{Manifest, Transfer};

use super::net::{conninfo, run};
use super::workload::Workload;
use crate::support::shelf::Shelf;
use crate::support::user::as_postgres;
use crate::support::{Seed, Server, Stop, TempDir, require_servers, rounds};

/// The archive has everything: its WAL is put there after each backup.
struct Always;

impl WalWatch for Always {
    fn durable_end(&self, _timeline: TimelineId, _from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        Box::pin(async { Ok(Some(Lsn(u64::MAX))) })
    }
}

/// A server, a repository for it, and places for what is restored.
pub(super) struct Scene {
    pub(super) server: Server,
    shelf: Shelf,
    places: TempDir,
    /// The first segment whose WAL is not stored yet.
    stored_to: Option<Lsn>,
}

impl Scene {
    pub(super) fn new(version: MajorVersion, settings: &[(&str, &str)]) -> Scene {
        let builder = Server::builder(version).initdb("--data-checksums").setting("autovacuum", "off");
        let builder = builder.setting("wal_keep_size", "2GB").setting("max_wal_size", "1GB");
        Scene::of(settings.iter().fold(builder, |builder, (name, value)| builder.setting(name, value)).start())
    }

    fn of(server: Server) -> Scene {
        let places = TempDir::for_postgres("incremental");
        let system = server.sql("select system_identifier from pg_control_system()").parse().expect("a number");
        let size = SegmentSize::from_show(&server.sql("show wal_segment_size")).expect("a size");
        let shelf = run(Shelf::new(&places.join("repository"), SystemIdentifier(system), size));
        Scene { server, shelf, places, stored_to: None }
    }

    pub(super) fn options(&self) -> BackupOptions {
        BackupOptions { state_dir: Some(self.places.join("state")), ..BackupOptions::default() }
    }

    pub(super) fn take(&self, options: &BackupOptions) -> Outcome {
        self.try_take(&self.server, options).expect("a backup")
    }

    fn try_take(&self, server: &Server, options: &BackupOptions) -> std::result::Result<Outcome, Error> {
        let info = conninfo(&server.conninfo("postgres"));
        run(backup::take_with(&self.shelf.archive, self.shelf.ring.clone(), &info, options, &Always))
    }

    /// With what this one knows of WAL.
    fn take_by(&self, options: &BackupOptions, watch: &dyn WalWatch) -> std::result::Result<Outcome, Error> {
        let info = conninfo(&self.server.conninfo("postgres"));
        run(backup::take_with(&self.shelf.archive, self.shelf.ring.clone(), &info, options, watch))
    }

    /// Stores the server's WAL up to the segment in which this backup ends.
    pub(super) fn store_wal(&mut self, manifest: &Manifest) {
        let size = self.shelf.archive.names.segment_size;
        let mut segment = self.shelf.segment(TimelineId(1), self.stored_to.unwrap_or(manifest.start));
        while segment.start() < manifest.stop {
            let path = self.server.data_dir().join("pg_wal").join(segment.to_string());
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            run(self.shelf.put_wal(segment, &bytes));
            segment.number = segment.number.next();
        }
        assert_eq!(segment.start().0 % size.bytes(), 0);
        self.stored_to = Some(segment.start());
    }

    /// Restores exactly this backup into a folder of that name, and does not start it.
    fn restore(&self, id: &BackupId, name: &str) -> PathBuf {
        let wanted = Wanted { target: Target::Immediate, timeline: None, backup: Some(id.to_string()) };
        let prepared = run(restore::prepare(&self.shelf.archive, &wanted)).expect("a plan");
        assert_eq!(prepared.choice.manifest.id, *id);
        let tablespaces = prepared.choice.manifest.tablespaces.iter();
        let mapping = tablespaces.map(|t| {
            let old = PathBuf::from(String::from_utf8(t.location.0.clone()).expect("a path"));
            (old, self.places.join(format!("{name}.{}", t.oid)))
        });
        let options = Options {
            pgdata: self.places.join(name),
            tablespaces: mapping.collect(),
            action: Action::Promote,
            jobs: 2,
            account: Account::choose(None).expect("the user postgres"),
            delta: false,
            keep_archiving: false,
            keep_subscriptions: false,
            upstream: Default::default(),
            scratch: None,
            program: crate::support::walrecv::path().to_path_buf(),
            fetch_arguments: Vec::new(),
        };
        run(restore::restore(&self.shelf.archive, self.shelf.access(), &prepared, &options, &|_, _| ()))
            .expect("a restore");
        options.pgdata
    }

    /// A backup by the server's own tool, incremental to the one in the folder `prior`.
    pub(super) fn pg_basebackup(&self, name: &str, prior: Option<&Path>) -> PathBuf {
        let target = self.places.join(name);
        let shown = target.display().to_string();
        let mut args = vec!["-D".to_owned(), shown, "-X".into(), "none".into(), "-c".into(), "fast".into()];
        args.extend(["--no-sync".to_owned()]);
        args.extend(
            self.space().map(|space| format!("--tablespace-mapping={}={}", space.display(), self.tool_space(name))),
        );
        args.extend(prior.map(|prior| format!("--incremental={}/backup_manifest", prior.display())));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.server.run("pg_basebackup", &args);
        target
    }

    fn combine(&self, chain: &[PathBuf], name: &str) -> PathBuf {
        let target = self.places.join(name);
        let mut command = self.server.bin("pg_combinebackup");
        command.args(chain).arg("-o").arg(&target).arg("--no-sync");
        if let Some(last) =
            chain.last().and_then(|l| l.file_name()).and_then(|n| n.to_str()).filter(|_| self.space().is_some())
        {
            command.arg(format!("--tablespace-mapping={}={}", self.tool_space(last), self.tool_space(name)));
        }
        must(&mut command);
        target
    }

    /// The tablespace of the workload, where it has one.
    fn space(&self) -> Option<PathBuf> {
        Some(self.places.join("space")).filter(|space| space.exists())
    }

    fn tool_space(&self, name: &str) -> String {
        self.places.join(format!("{name}.space")).display().to_string()
    }
}

pub(super) fn must(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

fn verify(server: &Server, pgdata: &Path) {
    must(as_postgres(server.bin_dir().join("pg_verifybackup")).arg("-n").arg(pgdata));
}

/// All files below a data directory, tablespaces under their links, but what differs from backup to backup or is written by a restore.
fn tree(root: &Path) -> BTreeMap<String, PathBuf> {
    const OTHER: [&str; 6] = [
        "backup_label",
        "backup_manifest",
        "global/pg_control",
        "postgresql.auto.conf",
        "recovery.signal",
        "tablespace_map",
    ];
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if !OTHER.contains(&name.as_str()) && !name.starts_with("pg_wal/") {
                found.insert(name, path);
            }
        }
    }
    found
}

/// The same files with the same bytes.
fn same(ours: &Path, theirs: &Path) -> usize {
    let (ours, theirs) = (tree(ours), tree(theirs));
    let names = |tree: &BTreeMap<String, PathBuf>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for ((name, ours), theirs) in ours.iter().zip(theirs.values()) {
        let read = |path: &Path| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (ours, theirs) = (read(ours), read(theirs));
        assert_eq!(ours.len(), theirs.len(), "length of {name}");
        let differs = ours.chunks(8192).zip(theirs.chunks(8192)).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first page of {name} that differs");
    }
    ours.len()
}

/// Recovers the copy from the source's WAL, and compares what is in both; indexes, tables and pages are checked by the server's own tools.
fn recovers(scene: &Scene, copy: &Path) {
    let version = scene.server.version();
    let wal = scene.server.data_dir().join("pg_wal");
    for entry in fs::read_dir(&wal).expect("WAL") {
        let path = entry.expect("a file").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if name.len() == 24 {
            fs::copy(&path, copy.join("pg_wal").join(&name)).expect("a copy of WAL");
            crate::support::user::give_to_postgres(&copy.join("pg_wal").join(&name));
        }
    }
    let _ = fs::remove_dir_all(copy.join("pg_wal/walrecv"));
    for file in ["recovery.signal", "postgresql.auto.conf"] {
        fs::write(copy.join(file), "").expect("a file");
    }
    fs::remove_file(copy.join("recovery.signal")).expect("no archive recovery");
    let mut restored = Server::builder(version).on_data_dir(copy).start();
    let dump = |server: &Server| server.run("pg_dumpall", &["--no-unlogged-table-data"]);
    let other = |line: &&str| line.contains("restrict ") || line.contains("LOCATION");
    let compared = |text: String| text.lines().filter(|line| !other(line)).map(str::to_owned).collect::<Vec<_>>();
    let (ours, theirs) = (compared(dump(&restored)), compared(dump(&scene.server)));
    let first = ours.iter().zip(&theirs).find(|(ours, theirs)| ours != theirs);
    assert!(ours == theirs, "the dumps of {} and {} lines differ, first in {first:?}", ours.len(), theirs.len());
    restored.run("pg_amcheck", &["--all", "--install-missing"]);
    restored.stop(Stop::Fast);
    must(as_postgres(scene.server.bin_dir().join("pg_checksums")).arg("--check").arg(copy));
}

/// What is restored of a backup is what `pg_combinebackup` makes of the server's own increments, of which one joins the `chain`; with `end` it is recovered, too.
pub(super) fn compare(scene: &mut Scene, chain: &mut Vec<PathBuf>, manifest: &Manifest, end: bool) {
    let round = chain.len();
    chain.push(scene.pg_basebackup(&format!("tool-{round}"), chain.last().map(PathBuf::as_path)));
    scene.store_wal(manifest);
    let ours = scene.restore(&manifest.id, "ours");
    let theirs = scene.combine(chain, "theirs");
    verify(&scene.server, &ours);
    let files = same(&ours, &theirs);
    let label = fs::read_to_string(ours.join("backup_label")).expect("a label");
    assert!(!label.contains("INCREMENTAL") && label.lines().count() == 7, "{label}");
    let (version, how) = (scene.server.version(), manifest.transfer);
    println!("PostgreSQL {version}, {round}: {files} files, {how:?}, {:?}", manifest.sizes);
    if end {
        recovers(scene, &ours);
    }
    for (place, space) in [(&ours, "ours"), (&theirs, "theirs")] {
        fs::remove_dir_all(place).expect("a restored backup");
        for entry in fs::read_dir(scene.places.path()).expect("places") {
            let path = entry.expect("an entry").path();
            if path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&format!("{space}."))) {
                fs::remove_dir_all(path).expect("a restored tablespace");
            }
        }
    }
}

pub(super) fn transfer(outcome: &Outcome) -> (Transfer, &str) {
    (outcome.manifest.transfer, outcome.manifest.why_full.as_deref().unwrap_or_default())
}

#[test]
fn restored_increments_are_what_pg_combinebackup_makes() {
    for version in [MajorVersion::V17, MajorVersion::V18] {
        require_servers!(version);
        let mut seed = Seed::of_run();
        let mut scene = Scene::new(version, &[("summarize_wal", "on")]);
        let mut workload = Workload::begin(&scene.server, &scene.places);
        let options = scene.options();
        let first = scene.take(&options);
        assert_eq!(first.manifest.transfer, Transfer::Full);
        scene.store_wal(&first.manifest);
        let mut chain = vec![scene.pg_basebackup("tool-0", None)];
        let length = rounds(if version == MajorVersion::V17 { 4 } else { 2 }, 20);
        let (mut increments, mut before) = (0, Transfer::Full);
        for round in 1..=length {
            workload.go_on(&mut seed, &scene.server);
            let outcome = scene.take(&options);
            // What is dropped and rewritten becomes dead space, for which everything is sent now and then.
            let (how, why) = transfer(&outcome);
            assert!(how == Transfer::Incremental && why.is_empty() || why.contains("is dead"), "round {round}: {why}");
            assert!(how == Transfer::Incremental || before == Transfer::Incremental, "two in a row: {why}");
            before = how;
            increments += u32::from(how == Transfer::Incremental);
            assert!(outcome.manifest.parent.is_some());
            compare(&mut scene, &mut chain, &outcome.manifest, round == length);
        }
        println!("PostgreSQL {version}: {increments} of {length} incremental");
        assert!(chain.len() as u32 == length + 1 && 2 * increments >= length, "{increments} of {length}");
    }
}

/// Takes one backup more, which must be a full transfer for this reason, compared with nothing.
fn full_because(scene: &Scene, options: &BackupOptions, why: &str) -> Manifest {
    let outcome = scene.take(options);
    let (how, said) = transfer(&outcome);
    assert!(how == Transfer::Full && said.contains(why), "{how:?}: {said:?}, expected {why:?}");
    assert_eq!((&outcome.manifest.parent, outcome.manifest.sizes.reused), (&None, 0));
    outcome.manifest
}

/// The same, but for this: the page hashes of the newest backup are here and sound, so only what changed is stored.
fn compared_because(scene: &Scene, why: &str) -> Manifest {
    let newest = run(scene.shelf.archive.list_backups()).expect("a list").complete.pop().expect("a backup");
    let outcome = scene.take(&scene.options());
    let (how, said) = transfer(&outcome);
    assert!(
        how == Transfer::Full && said.contains(why) && !said.contains("stored"),
        "{how:?}: {said:?}, expected {why:?}"
    );
    let sizes = &outcome.manifest.sizes;
    assert_eq!(outcome.manifest.parent, Some(newest.id));
    assert!(sizes.read > sizes.total / 2 && sizes.changed * 4 < sizes.reused, "{sizes:?}");
    outcome.manifest
}

fn incremental(scene: &Scene) -> Manifest {
    let outcome = scene.take(&scene.options());
    assert_eq!(transfer(&outcome), (Transfer::Incremental, ""));
    outcome.manifest
}

#[test]
fn what_the_server_cannot_do_leads_to_a_full_transfer_that_says_why() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let mut scene = Scene::new(version, &[]);
    scene.server.sql("create table t as select generate_series(1, 1000) n");
    let options = scene.options();
    full_because(&scene, &options, "no earlier backup");
    compared_because(&scene, "summarize_wal is off");
    scene.server.sql("alter system set summarize_wal = on");
    scene.server.sql("select pg_reload_conf()");
    scene.server.wait_sql("show summarize_wal", "on");
    // What was written before it was on is summarised from the WAL that the server still has.
    let late = incremental(&scene);
    scene.server.sql("insert into t select 1");
    let small = incremental(&scene);
    assert_eq!(small.parent, Some(late.id));
    // Files that are sent whole, such as free space maps, are not stored again.
    assert!(small.sizes.changed * 4 < small.sizes.read, "{:?}", small.sizes);
    full_because(&scene, &BackupOptions { full: true, ..scene.options() }, "a full transfer was asked for");

    // Removed, as wal_summary_keep_time does it.
    scene.server.sql("insert into t select 2");
    let parent = incremental(&scene);
    let summaries = scene.server.data_dir().join("pg_wal/summaries");
    scene.server.sql("checkpoint");
    let redo = scene.server.sql("select redo_lsn from pg_control_checkpoint()");
    scene.server.wait_sql(&format!("select summarized_lsn >= '{redo}' from pg_get_wal_summarizer_state()"), "t");
    for entry in fs::read_dir(&summaries).expect("summaries") {
        fs::remove_file(entry.expect("a summary").path()).expect("a summary is removed");
    }
    let whole = compared_because(&scene, "WAL summaries are required on timeline 1");
    assert_eq!(incremental(&scene).parent, Some(whole.id));

    // The parent's manifest is damaged, or gone.
    let newest = incremental(&scene);
    let object = scene.shelf.file(&scene.shelf.archive.names.server_manifest(newest.id.as_str(), 0));
    let mut bytes = fs::read(&object).expect("a manifest");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&object, &bytes).expect("a damaged manifest");
    compared_because(&scene, "cannot be read");
    let newest = incremental(&scene);
    fs::remove_file(scene.shelf.file(&scene.shelf.archive.names.server_manifest(newest.id.as_str(), 0))).expect("gone");
    let last = compared_because(&scene, "is missing");
    assert!(parent.id < last.id);

    // A map of the parent is gone.
    let newest = incremental(&scene);
    fs::remove_file(scene.shelf.file(&scene.shelf.archive.names.map(newest.id.as_str(), 0))).expect("gone");
    full_because(&scene, &options, "cannot be built on");

    // Every page is rewritten beside the server, or not, and no WAL tells of it.
    scene.server.stop(Stop::Fast);
    let data = scene.server.data_dir().display().to_string();
    must(as_postgres(scene.server.bin_dir().join("pg_checksums")).args(["--disable", "-D", &data]));
    scene.server.start_again();
    full_because(&scene, &options, "data_checksums is off");
    incremental(&scene);
    let list = run(scene.shelf.archive.list_backups()).expect("a list");
    assert!(list.given_up.is_empty() && list.unreadable.is_empty(), "{list:?}");
    println!("{} backups", list.complete.len());
}

#[test]
fn another_history_and_a_quiet_standby_lead_to_a_full_transfer() {
    let version = MajorVersion::V18;
    require_servers!(version);
    let mut scene = Scene::new(version, &[("summarize_wal", "on")]);
    scene.server.sql("create table t as select generate_series(1, 1000) n");
    let standby = scene.server.standby().setting("hot_standby", "on").setting("summarize_wal", "on").start();
    standby.wait_sql("select count(*) from t", "1000");
    scene.server.sql("checkpoint");
    let options = scene.options();
    let of_standby = |scene: &Scene| scene.try_take(&standby, &options).expect("a backup");
    let first = of_standby(&scene);
    assert_eq!(first.manifest.transfer, Transfer::Full);
    let quiet = of_standby(&scene);
    assert!(transfer(&quiet).1.contains("manifest requires WAL from final timeline 1"), "{:?}", transfer(&quiet));
    // Activity makes a new restart point.
    scene.server.sql("insert into t select 1");
    scene.server.sql("checkpoint");
    let end = scene.server.lsn().to_string();
    standby.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'"), "t");
    standby.sql("checkpoint");
    let moved = of_standby(&scene);
    assert_eq!(transfer(&moved), (Transfer::Incremental, ""));
    assert!(moved.manifest.from_standby);

    standby.promote();
    standby.sql("insert into t select 2");
    standby.sql("checkpoint");
    let promoted = of_standby(&scene);
    assert_eq!(transfer(&promoted), (Transfer::Incremental, ""), "over the parent's timeline, an ancestor");
    assert_eq!(promoted.manifest.timeline, TimelineId(2));
    // The old primary never went there: it goes on from the backup before.
    scene.server.sql("insert into t select 3");
    let stayed = scene.take(&options);
    assert_eq!(transfer(&stayed), (Transfer::Incremental, ""));
    assert_eq!((&stayed.manifest.parent, stayed.manifest.timeline), (&Some(moved.manifest.id), TimelineId(1)));
    scene.server.stop(Stop::Fast);
}

#[test]
fn older_servers_are_not_asked_and_a_shutdown_is_no_reason_for_a_full_transfer() {
    require_servers!(MajorVersion::V16, MajorVersion::V17);
    let scene = Scene::of(Server::start(MajorVersion::V16));
    full_because(&scene, &scene.options(), "PostgreSQL 16 has no incremental transfers");

    let scene = Scene::new(MajorVersion::V17, &[("summarize_wal", "on"), ("checkpoint_completion_target", "0.9")]);
    scene.take(&scene.options());
    scene.server.sql("create table t as select n, repeat('x', 1000) from generate_series(1, 20000) n");
    // A checkpoint that is spread over minutes, and a walsender that is ended meanwhile.
    let spread = BackupOptions { fast_checkpoint: false, ..scene.options() };
    let error = std::thread::scope(|scope| {
        let backup = scope.spawn(|| scene.try_take(&scene.server, &spread));
        let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                     where backend_type = 'walsender' and query like 'BASE_BACKUP%INCREMENTAL%'";
        scene.server.wait_sql(ended, "1");
        backup.join().expect("a thread").expect_err("no backup")
    });
    assert!(error.to_string().contains("57P01") && error.is_transient(), "{error}");
    assert_eq!(run(scene.shelf.archive.list_backups()).expect("a list").complete.len(), 1);
}

/// An archive that holds everything but what leads on from one backup, after so many questions for that.
struct Holed {
    parent: Lsn,
    good: AtomicU32,
}

impl WalWatch for Holed {
    fn durable_end(&self, _timeline: TimelineId, from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        let asked = from < self.parent && from + 1 >= self.parent;
        let holed =
            asked && self.good.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err();
        Box::pin(async move { Ok(Some(if holed { self.parent } else { Lsn(u64::MAX) })) })
    }
}

/// A hole between the parent and the server hides whether they have one past: all pages are asked for, at once where the hole is recorded, and in a backup of
/// its own where it shows only when the increment is here already.
#[test]
fn a_hole_behind_the_parent_hides_what_the_server_does_not_send() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let scene = Scene::new(version, &[("summarize_wal", "on")]);
    scene.server.sql("create table t as select generate_series(1, 1000) n");
    let full_after = |parent: &Manifest, good: u32, given_up: usize| {
        scene.server.sql("insert into t select 1");
        let watch = Holed { parent: parent.stop, good: good.into() };
        let outcome = scene.take_by(&scene.options(), &watch).expect("a backup");
        let (how, why) = transfer(&outcome);
        assert!(how == Transfer::Full && why.contains("not all WAL from backup"), "{how:?}: {why}");
        assert_eq!(outcome.manifest.parent.as_ref(), Some(&parent.id), "compared all the same");
        let list = run(scene.shelf.archive.list_backups()).expect("a list");
        assert_eq!(list.given_up.len(), given_up);
        outcome.manifest
    };
    let first = scene.take(&scene.options()).manifest;
    let second = full_after(&first, 1, 1);
    // The archive ends where the parent does: what follows may be on its way.
    let third = full_after(&second, 0, 2);
    let hole = Hole {
        from_timeline: TimelineId(1),
        from: third.stop,
        to_timeline: TimelineId(1),
        to: third.stop + 1,
        reason: "test".to_owned(),
    };
    let keys = scene.shelf.ring.fresh().expect("keys");
    run(scene.shelf.archive.put_event(&keys, What::Hole(hole), Duration::from_secs(10))).expect("an event");
    full_after(&third, 0, 2);
}

/// An archive that ends where the parent does until the server has been asked for what has changed.
struct Behind {
    parent: Lsn,
    asked: Arc<AtomicBool>,
}

impl WalWatch for Behind {
    fn durable_end(&self, _timeline: TimelineId, from: Lsn) -> BoxFuture<'_, Result<Option<Lsn>>> {
        let asked = self.asked.load(Ordering::SeqCst);
        let end = if asked { Some(Lsn(u64::MAX)) } else { Some(self.parent).filter(|end| *end > from) };
        Box::pin(async move { Ok(end) })
    }
}

#[test]
fn wal_that_is_on_its_way_is_waited_for_beside_the_transfer() {
    let version = MajorVersion::V18;
    require_servers!(version);
    let scene = Scene::new(version, &[("summarize_wal", "on")]);
    let parent = scene.take(&scene.options()).manifest;
    scene.server.sql("create table t as select generate_series(1, 1000) n");
    let asked = Arc::<AtomicBool>::default();
    let watch = Behind { parent: parent.stop, asked: asked.clone() };
    let tell = move |progress| {
        if matches!(progress, Progress::Copying { .. }) {
            asked.store(true, Ordering::SeqCst);
        }
    };
    let patience = Duration::from_secs(5);
    let options = BackupOptions { progress: Some(Arc::new(tell)), follow_within: patience, ..scene.options() };
    let outcome = scene.take_by(&options, &watch).expect("a backup");
    assert_eq!(transfer(&outcome), (Transfer::Incremental, ""));
    assert_eq!(outcome.manifest.parent, Some(parent.id));
}
