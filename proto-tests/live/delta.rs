//! Restores over an older state of the same cluster: what is right stays, everything else becomes what the backup says.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use walrecv::error::Kind;
use walrecv::pg::MajorVersion;
use walrecv::restore::{Options, Prepared, Target};

use super::restore::{Story, numbers, verify};
use crate::support::user::give_to_postgres;
use crate::support::{Server, TempDir, install};

/// Every file, directory and link below `root`, with owner, mode and content; what differs between two restores by right is left out.
fn tree(root: &Path) -> BTreeMap<String, (u32, u32, Vec<u8>)> {
    let (mut out, mut waiting) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below").display().to_string();
            let meta = path.symlink_metadata().expect("there");
            let content = match (meta.is_symlink(), meta.is_dir()) {
                (true, _) => b"a link".to_vec(),
                (_, true) => Vec::new(),
                (..) => fs::read(&path).expect("a file"),
            };
            if meta.is_dir() && name != "pg_wal" {
                waiting.push(path);
            }
            let own = ["backup_manifest", "tablespace_map", "pg_wal"].contains(&name.as_str());
            if !own {
                out.insert(name, (meta.uid(), meta.mode(), content));
            }
        }
    }
    out
}

fn demand_same(ours: &Path, theirs: &Path) {
    let (ours, theirs) = (tree(ours), tree(theirs));
    let names = |tree: &BTreeMap<String, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for ((name, ours), theirs) in ours.iter().zip(theirs.values()) {
        assert_eq!((ours.0, ours.1), (theirs.0, theirs.1), "owner and mode of {name}");
        assert!(ours.2 == theirs.2, "content of {name}");
    }
}

fn file_of(server: &Server, relation: &str) -> PathBuf {
    server.data_dir().join(server.sql(&format!("select pg_relation_filepath('{relation}')")))
}

/// Damages and strangers of every kind. Returns a snapshot's name of a file, which must not change.
fn disturb(data: &Path, places: &TempDir, steady: &Path, removed: &Path) -> PathBuf {
    // A page that differs, and nothing that shows it.
    let file = fs::File::options().read(true).write(true).open(steady).expect("a table");
    let before = file.metadata().expect("times").modified().expect("a time");
    file.write_all_at(b"not what was there", 8192 * 3 + 100).expect("written");
    file.set_modified(before).expect("an old time");
    fs::remove_file(removed).expect("gone");
    let write = |path: PathBuf| {
        fs::write(&path, "a stranger").expect("a file");
        give_to_postgres(&path);
        path
    };
    write(data.join("base/stranger"));
    fs::create_dir_all(data.join("strange/folder")).expect("a folder");
    write(data.join("strange/folder/file"));
    write(data.join("recovery.signal"));
    write(data.join("pg_replslot/left"));
    // A file in place of a directory, and the other way round; what leads elsewhere.
    fs::remove_dir_all(data.join("pg_notify")).expect("gone");
    write(data.join("pg_notify"));
    fs::remove_file(data.join("PG_VERSION")).expect("gone");
    fs::create_dir_all(data.join("PG_VERSION/x")).expect("a folder");
    let outside = places.postgres_dir("outside");
    write(outside.join("file"));
    fs::remove_dir_all(data.join("pg_stat_tmp")).expect("gone");
    symlink(&outside, data.join("pg_stat_tmp")).expect("a link");
    fs::set_permissions(data.join("base"), fs::Permissions::from_mode(0o755)).expect("a mode");
    // A snapshot that shares its files by hard links.
    let snapshot = places.join("snapshot");
    fs::hard_link(data.join("postgresql.conf"), &snapshot).expect("a second name");
    let changed = fs::File::options().write(true).open(&snapshot);
    changed.and_then(|file| file.write_all_at(b"# changed", 0)).expect("changed");
    snapshot
}

#[test]
fn an_old_primary_becomes_what_the_backup_says_and_keeps_what_is_right() {
    install::story_versions(&[MajorVersion::V17]).into_iter().for_each(laid_over_an_old_primary);
}

fn laid_over_an_old_primary(version: MajorVersion) {
    let server = Server::builder(version).initdb("--data-checksums").setting("wal_keep_size", "1GB").start();
    let mut story = Story::new(server);
    let space = story.places.postgres_dir("a space");
    story.server.sql(&format!("create tablespace extra location '{}'", space.display()));
    story.server.sql("create table there tablespace extra as select generate_series(1, 5000) as n");
    for (name, rows) in [("steady", 40000), ("changed", 10000), ("removed", 4000), ("dropped", 4000)] {
        let rows = format!("select n, md5(n::text) || repeat('x', 200) as t from generate_series(1, {rows}) n");
        story.server.sql(&format!("create table {name} as {rows}"));
        story.server.sql(&format!("vacuum freeze {name}"));
    }
    story.server.sql("create unlogged table unlogged as select generate_series(1, 5000) as n");
    story.write(5);
    story.backup();
    story.write(5);
    story.server.sql("update changed set t = 'y' where n < 5000");
    story.server.sql("drop table dropped");
    story.server.sql("create table later as select generate_series(1, 50000) as n");
    story.server.sql("create database another");
    story.server.sql("checkpoint");
    let (steady, removed) = (file_of(&story.server, "steady"), file_of(&story.server, "removed"));
    let data = story.server.data_dir().to_path_buf();
    story.archive_and_die();
    let prepared = story.prepare(Target::Latest).expect("a plan");
    fs::remove_file(data.join("postmaster.pid")).expect("gone");
    let over = |delta| Options { pgdata: data.clone(), delta, ..story.options("over") };

    refusals(&story, &prepared, &over(true), &space);
    let fresh =
        Options { tablespaces: vec![(space.clone(), story.places.join("elsewhere"))], ..story.options("fresh") };
    story.restore(&prepared, &fresh).expect("a fresh restore");
    let beside = space.join("PG_12_201909212");
    fs::create_dir(&beside).expect("another version's folder");
    let snapshot = disturb(&data, &story.places, &steady, &removed);
    let before = fs::read(&snapshot).expect("a snapshot");
    let wal = fs::read_dir(data.join("pg_wal")).expect("WAL").count();
    let options = Options { scratch: fresh.scratch.clone(), ..over(true) };
    let restored = story.restore(&prepared, &options).expect("a restore");
    println!("{restored:?}");
    assert!(restored.kept * 10 > restored.bytes * 7, "most of it was right");
    assert!(restored.fetched * 3 < restored.bytes, "little was fetched");
    let aside = restored.aside.expect("old WAL");
    assert!(aside.starts_with(data.join("pg_wal")) && fs::read_dir(&aside).expect("WAL").count() + 2 >= wal);
    demand_same(&data, &fresh.pgdata);
    assert_eq!(fs::read(&snapshot).expect("a snapshot"), before, "what has another name is not written to");
    assert!(beside.exists() && story.places.join("outside/file").exists());
    verify(&story.server, &data);
    let copy = story.start(&prepared, &options).expect("a server");
    assert_eq!((copy.rows(), copy.value("select count(*) from there").as_str()), (numbers(10), "5000"));
    assert_eq!(copy.value("select count(*) from later"), "50000");
    assert_eq!(copy.value("select count(*) from unlogged"), "0");
    let refused = story.restore(&prepared, &options).expect_err("it runs");
    assert!(refused.kind() == Kind::Usage && refused.to_string().contains("a server is running"), "{refused}");
}

/// What may not be overwritten: an occupied directory, one that is no data directory or another cluster's, a tablespace that is not this data directory's.
fn refusals(story: &Story, prepared: &Prepared, over: &Options, space: &Path) {
    let unasked = Options { delta: false, ..over.clone() };
    let refused = story.restore(prepared, &unasked).expect_err("occupied");
    assert!(refused.kind() == Kind::Usage && refused.advice().is_some_and(|a| a.contains("--delta")), "{refused}");
    let stranger = story.places.postgres_dir("stranger");
    fs::write(stranger.join("precious"), "x").expect("a file");
    let strange = Options { pgdata: stranger.clone(), ..over.clone() };
    assert_eq!(story.restore(prepared, &strange).expect_err("no data directory").kind(), Kind::Diverged);
    let other = Server::builder(story.server.version()).own_identity().start();
    let theirs = Options { pgdata: other.data_dir().to_path_buf(), ..over.clone() };
    let refused = story.restore(prepared, &theirs).expect_err("another cluster");
    assert!(refused.kind() == Kind::Diverged && refused.to_string().contains("belongs to system"), "{refused}");
    let foreign = story.places.postgres_dir("foreign space");
    fs::write(foreign.join("precious"), "x").expect("a file");
    let sent = Options { tablespaces: vec![(space.to_path_buf(), foreign.clone())], ..over.clone() };
    assert_eq!(story.restore(prepared, &sent).expect_err("no tablespace of it").kind(), Kind::Usage);
    for kept in [&stranger, &foreign] {
        assert_eq!(fs::read_dir(kept).expect("a folder").count(), 1, "{}", kept.display());
    }
    assert!(over.pgdata.join("global/pg_control").exists() && !over.pgdata.join(".walrecv-restore").exists());
}
