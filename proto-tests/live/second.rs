//! Backups after the first one, of real servers that send everything: they store what changed, and each is whole.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use walrecv::backup::{BackupOptions, Outcome};
use walrecv::pg::MajorVersion;
use walrecv::seal::content::BackupId;
use walrecv::seal::content::event::{Outcome as EventOutcome, What};
use walrecv::seal::content::manifest::{Manifest, Transfer};
use walrecv::seal::content::plan::{Deletion, Plan, PlanId};
use walrecv::verify;

use super::backup::{Always, Fixture, check_against_server_manifest, fill};
use super::net::run;
use super::receive::disks::{Disk, FileSystem};
use crate::support::{Server, require_servers};

/// A backup with a `state_dir`, read back and compared with the server's own manifest. Says what it stored of files, before compression.
fn next_backup(fixture: &Fixture, server: &Server, version: MajorVersion) -> Outcome {
    let options = BackupOptions { state_dir: Some(fixture.places.join("state")), ..Default::default() };
    let outcome = fixture.take(server, &options, &Always).expect("a backup");
    let list = run(fixture.archive.list_backups()).expect("a list");
    assert_eq!(list.complete.last(), Some(&outcome.manifest));
    let files = fixture.files(&outcome.manifest);
    check_against_server_manifest(fixture, &outcome.manifest, &fixture.contents(&files), version);
    let sizes = &outcome.manifest.sizes;
    println!("PostgreSQL {version}: {sizes:?}, {} maps, {:?}", outcome.manifest.maps.len(), outcome.elapsed);
    outcome
}

#[test]
fn a_second_backup_stores_what_changed_and_is_whole() {
    require_servers!(MajorVersion::V13, MajorVersion::V17);
    for version in [MajorVersion::V13, MajorVersion::V17] {
        let server = Server::builder(version).setting("autovacuum", "off").start();
        let fixture = Fixture::new(&server);
        fill(&server, &fixture.places);
        server.sql("create table gone as select n from generate_series(1, 50000) n");
        server.sql("create table cut as select n from generate_series(1, 50000) n");
        server.sql("create table wide as select n, repeat(md5(n::text), 40) t from generate_series(1, 20000) n");
        server.sql("alter table wide set (fillfactor = 50)");
        for command in ["vacuum full wide", "vacuum freeze"] {
            server.sql(command);
        }
        let first = next_backup(&fixture, &server, version);
        assert_eq!((&first.manifest.parent, first.manifest.sizes.reused), (&None, 0));
        assert!(first.manifest.why_full.is_some());

        // About one page in a hundred, then what changes files as a whole.
        server.sql("update wide set n = -n where n % 200 = 0");
        let second = next_backup(&fixture, &server, version);
        let sizes = &second.manifest.sizes;
        assert_eq!(second.manifest.parent.as_ref(), Some(&first.manifest.id));
        let why = if version == MajorVersion::V13 { "no incremental transfers" } else { "summarize_wal is off" };
        assert!(second.manifest.why_full.as_ref().is_some_and(|said| said.contains(why)), "{second:?}");
        assert!(sizes.changed * 10 < sizes.reused, "{sizes:?}");
        assert_eq!(sizes.carried, first.manifest.sizes.changed + sizes.changed);
        server.sql("drop table gone; truncate cut; create table fresh as select n from generate_series(1, 9000) n");
        server.sql("delete from here where n > 10000");
        for command in ["vacuum here", "vacuum full there", "drop database \"ünicode\""] {
            server.sql(command);
        }
        let third = next_backup(&fixture, &server, version);
        assert_eq!(third.manifest.parent.as_ref(), Some(&second.manifest.id));

        // Without hashes everything is stored again; with hashes of an older backup, what changed since.
        let state = fixture.places.join("state");
        let aside = fixture.places.join("aside");
        std::fs::rename(&state, &aside).expect("move the state_dir away");
        let alone = next_backup(&fixture, &server, version);
        assert_eq!((&alone.manifest.parent, alone.manifest.sizes.reused), (&None, 0));
        std::fs::remove_dir_all(&state).and_then(|()| std::fs::rename(&aside, &state)).expect("bring it back");
        let last = next_backup(&fixture, &server, version);
        assert_eq!(last.manifest.parent.as_ref(), Some(&third.manifest.id));

        announce_deletion(&fixture, &last.manifest.id);
        let spared = next_backup(&fixture, &server, version);
        assert_eq!((&spared.manifest.parent, spared.manifest.sizes.reused), (&None, 0));
        assert!(spared.manifest.why_full.as_ref().is_some_and(|why| why.contains("may be deleting")), "{spared:?}");

        // They can be laid back at the end as well, each as its own server's manifest says.
        for outcome in [&first, &third] {
            let contents = fixture.contents(&fixture.files(&outcome.manifest));
            check_against_server_manifest(&fixture, &outcome.manifest, &contents, version);
        }
    }
}

/// Packs were deleted, or cut, beside walrecv: the next backup needs none of that one, and says why.
#[test]
fn a_parent_whose_packs_are_gone_is_not_built_on() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::builder(version).setting("autovacuum", "off").setting("summarize_wal", "on").start();
    let fixture = Fixture::new(&server);
    fill(&server, &fixture.places);
    let hurt = |manifest: &Manifest, cut: bool| {
        let name = fixture.archive.names.pack(manifest.id.as_str(), 0);
        let path = fixture.places.join("repository").join(name);
        let bytes = std::fs::read(&path).expect("a pack");
        std::fs::remove_file(&path).expect("remove a pack");
        if cut {
            std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("cut a pack");
        }
    };
    let mut parent = next_backup(&fixture, &server, version).manifest;
    for (cut, why) in [(false, "is missing"), (true, "bytes, expected")] {
        let options = BackupOptions { state_dir: Some(fixture.places.join("state")), ..Default::default() };
        let good = fixture.take(&server, &options, &Always).expect("a backup").manifest;
        assert_eq!((good.transfer, good.parent), (Transfer::Incremental, Some(parent.id.clone())));
        hurt(&parent, cut);
        let alone = next_backup(&fixture, &server, version).manifest;
        let said = alone.why_full.as_deref().unwrap_or_default();
        assert!(said.contains(why) && said.contains(parent.id.as_str()), "{said}");
        assert_eq!((&alone.parent, alone.sizes.reused, alone.transfer), (&None, 0, Transfer::Full), "{said}");
        parent = alone;
    }
}

/// A bit of a pack rots, and a check of one backup alone finds it. Others need that pack too, whatever they were built on, and whatever of that is left: nothing
/// is built on them any more.
#[test]
fn what_a_check_found_damaged_is_needed_by_no_new_backup() {
    let version = MajorVersion::V17;
    require_servers!(version);
    let server = Server::builder(version).setting("autovacuum", "off").setting("summarize_wal", "on").start();
    let fixture = Fixture::new(&server);
    fill(&server, &fixture.places);
    let archive = &fixture.archive;
    let file = |name: &str| fixture.places.join("repository").join(name);
    let rot = |of: &Manifest| {
        let path = file(&archive.names.pack(of.id.as_str(), 0));
        let mut bytes = std::fs::read(&path).expect("a pack");
        let at = bytes.len() - 50;
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).expect("a rotten pack");
    };
    let check = |only: &Manifest| {
        let options = verify::Options { deep: true, only: Some(only.id.clone()), ..Default::default() };
        let report = run(verify::verify(archive, &options)).expect("a report");
        assert_eq!(report.outcome, EventOutcome::Corrupt, "{:?}", report.problems);
        let keys = fixture.ring.fresh().expect("a key");
        run(archive.put_event(&keys, What::Verified(report.event()), Duration::from_secs(30))).expect("an event");
    };
    let delete = |gone: &Manifest| std::fs::remove_file(file(&archive.names.backup(gone.id.as_str()))).expect("delete");
    let take = || {
        let options = BackupOptions { state_dir: Some(fixture.places.join("state")), ..Default::default() };
        fixture.take(&server, &options, &Always).expect("a backup").manifest
    };
    let on = |parent: &Manifest| {
        let made = take();
        assert_eq!(made.parent.as_ref(), Some(&parent.id), "{:?}", made.why_full);
        made
    };
    let alone = |of: &Manifest| {
        let made = take();
        let said = made.why_full.as_deref().unwrap_or_default();
        assert!(said.contains(&format!("pack 0 of backup {} hurt", of.id)), "{said}");
        assert_eq!((&made.parent, made.sizes.reused), (&None, 0), "{said}");
        made
    };
    // Two built on the one that was checked; the one between is deleted.
    let checked = take();
    let between = on(&checked);
    on(&between);
    rot(&checked);
    check(&checked);
    delete(&between);
    let root = alone(&checked);
    // The one that was checked was built on another one, and is deleted.
    let checked = on(&root);
    rot(&root);
    check(&checked);
    delete(&checked);
    let last = alone(&root);
    on(&last);
}

/// A folder of another file system under a second name, until this goes.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, to: PathBuf) -> Bound {
        let mounted = Command::new("mount").arg("--bind").args([from, &to]).status().expect("run mount");
        assert!(mounted.success());
        Bound(to)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The disk of the page hashes is full: the backup is complete without them, leaves none that are cut, and the next one is compared with those of the one before.
#[test]
fn page_hashes_that_cannot_be_written_cost_no_backup() {
    let version = MajorVersion::V16;
    require_servers!(version);
    let Some(disk) = Disk::new(FileSystem::Tmpfs, 1) else { return };
    let server = Server::builder(version).setting("autovacuum", "off").start();
    let fixture = Fixture::new(&server);
    server.sql("create table t as select n, repeat(md5(n::text), 10) from generate_series(1, 20000) n");
    server.sql("vacuum freeze");
    let folder = fixture.places.join("state").join(format!("pages-main-{}", "07".repeat(16)));
    std::fs::create_dir_all(&folder).expect("a folder");
    let _bound = Bound::new(&disk.path(), folder.clone());
    let held = || {
        let names = std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        let names = names.filter_map(|name| name.into_string().ok()).filter(|name| name != "ballast");
        names.map(|name| name.split('.').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let of = |outcome: &Outcome| vec![outcome.manifest.id.to_string(); 2];
    let first = next_backup(&fixture, &server, version);
    assert_eq!(held(), of(&first));
    disk.fill();
    for _ in 0..2 {
        server.sql("insert into t select 1, 'x'");
        let unkept = next_backup(&fixture, &server, version);
        let sizes = &unkept.manifest.sizes;
        assert_eq!(unkept.manifest.parent.as_ref(), Some(&first.manifest.id));
        assert!(sizes.changed * 10 < sizes.reused, "{sizes:?}");
        assert_eq!(held(), of(&first));
    }
    disk.make_room();
    let kept = next_backup(&fixture, &server, version);
    assert_eq!(kept.manifest.parent.as_ref(), Some(&first.manifest.id));
    assert_eq!(held(), of(&kept));
}

/// An expiry is going to delete this backup.
fn announce_deletion(fixture: &Fixture, id: &BackupId) {
    let keys = fixture.ring.fresh().expect("a key");
    let deletion = Deletion { backup: id.clone(), maps: Vec::new(), forced: false };
    let created_at = jiff::Timestamp::now();
    let plan = Plan {
        version: Plan::VERSION,
        id: PlanId::new(created_at, [7; 8]),
        cluster: "main".into(),
        system: fixture.archive.names.system,
        created_at,
        delete: vec![deletion],
        sweep: Vec::new(),
        made_by: "a test".into(),
        host: String::new(),
        user: String::new(),
    };
    run(fixture.archive.put_plan(&keys, &plan, Duration::from_secs(10))).expect("a plan");
}
