//! The catalog beside a stream: what was noted along the way is what the repository says, and a catalog that cannot be written holds nothing up.

use std::path::PathBuf;
use std::time::Duration;

use walrecv::archive::Archive;
use walrecv::catalog::{Catalog, Dump, path_in};
use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::receive::{ReceiveEvent, ReceiveOptions};
use walrecv::repo::WalGroup;

use super::disks::{Disk, FileSystem};
use super::harness::{self, Receiving, Vault};
use super::kill::{Process, told};
use crate::support::{Seed, Server, Stop, require_servers, rounds, wait_for};

/// A server whose WAL is about to cross from one group of 4 GiB into the next.
fn server_before_a_border(version: MajorVersion) -> Server {
    let mut server = Server::builder(version).segment_size_mb(1).setting("max_wal_size", "2GB").start();
    server.stop(Stop::Fast);
    let mut reset = server.bin("pg_resetwal");
    let output = reset.args(["-l", "000000010000000000000FFC"]).arg(server.data_dir()).output().expect("run it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.start_again();
    harness::create_slot(&server);
    server
}

/// About two segments of WAL.
fn write(server: &Server) -> Lsn {
    for _ in 0..5 {
        server.sql(
            "select pg_logical_emit_message(true, 'x', string_agg(md5(i::text), '')) from generate_series(1, 12000) i",
        );
    }
    server.switch_wal()
}

fn noted(path: &std::path::Path, archive: &Archive) -> Option<Dump> {
    Catalog::read(path, &archive.identity()).ok().flatten().map(|catalog| catalog.dump().expect("a dump"))
}

fn said_by(archive: &Archive) -> (Dump, walrecv::archive::learn::Learned) {
    harness::runtime().block_on(async {
        let (fresh, learned) = archive.fresh_catalog(&|_| {}).await.expect("made from the repository");
        (fresh.with(|catalog| catalog.dump()).await.expect("a dump"), learned)
    })
}

fn options(server: &Server, catalog: PathBuf) -> ReceiveOptions {
    ReceiveOptions { catalog: Some(catalog), ..harness::options(server) }
}

#[test]
fn what_is_noted_along_the_way_is_what_the_repository_says() {
    require_servers!(MajorVersion::V17);
    let server = server_before_a_border(MajorVersion::V17);
    let vault = Vault::new();
    let archive = vault.archive(&server);
    let path = path_in(&vault.temp.join("state"), "main");
    let mut seed = Seed::of_run();
    for _ in 0..rounds(4, 20) {
        let catalog = [("VAULT_CATALOG", path.display().to_string())];
        let process = Process::start_with(&vault, &server, 100, &catalog);
        let before = told(&server);
        write(&server);
        wait_for("the next acknowledgement", || (told(&server) > before).then_some(()));
        std::thread::sleep(Duration::from_millis(seed.below(500)));
        process.kill();
    }
    let receiving = Receiving::start(options(&server, path.clone()), vault.place());
    let end = write(&server);
    harness::wait_acknowledged(&server, end);
    let group = WalGroup { timeline: TimelineId(1), first: Lsn(0) };
    assert!(end > Lsn(1 << 32), "over the border: {end}");
    wait_for("the group summary to be noted", || {
        noted(&path, &archive).filter(|dump| dump.groups == [(1, "0/0".to_owned())])
    });
    let warned = receiving.events().into_iter().find(|event| matches!(event, ReceiveEvent::Warning(_)));
    receiving.stop();
    let (repository, learned) = said_by(&archive);
    let along_the_way = noted(&path, &archive).expect("a catalog");
    assert_eq!(along_the_way.differences(&repository), Vec::<String>::new(), "{warned:?}");
    assert_eq!(along_the_way, repository);
    assert!(along_the_way.objects.len() >= 8 && along_the_way.objects.iter().any(|o| o.commits > 0));
    assert_eq!(learned.summaries, 1, "one read for the first group");
    let summary = harness::runtime().block_on(archive.group_summary(group)).expect("readable").expect("stored");
    let below = along_the_way.objects.iter().filter(|o| o.start.starts_with("0/")).count();
    assert_eq!((summary.segments.len(), summary.segments.last().map(|s| s.end)), (below, Some(Lsn(1 << 32))));
    assert_eq!(Catalog::read(&path, &archive.identity()).unwrap().unwrap().ranges(TimelineId(1)).unwrap().len(), 1);
}

/// Groups that earlier runs left without a summary are summed up by a later one, which has no catalog at all.
#[test]
fn groups_of_earlier_runs_are_summed_up_later() {
    require_servers!(MajorVersion::V14);
    let server = server_before_a_border(MajorVersion::V14);
    let vault = Vault::new();
    let archive = vault.archive(&server);
    let group = WalGroup { timeline: TimelineId(1), first: Lsn(0) };
    let name = archive.names.group_summary(group);
    let runtime = harness::runtime();
    let stored = || runtime.block_on(archive.repo.head(&name)).expect("a look").map(|_| ());
    let receiving = Receiving::start(harness::options(&server), vault.place());
    for _ in 0..3 {
        write(&server);
    }
    harness::wait_acknowledged(&server, server.switch_wal());
    wait_for("the group summary", stored);
    receiving.stop();
    runtime.block_on(archive.repo.delete(&name)).expect("deleted");
    let receiving = Receiving::start(harness::options(&server), vault.place());
    receiving.wait_streaming();
    wait_for("the group summary again", stored);
    receiving.stop();
}

#[test]
fn a_full_file_system_of_the_catalog_holds_nothing_up() {
    require_servers!(MajorVersion::V18);
    let Some(disk) = Disk::new(FileSystem::Tmpfs, 8) else { return };
    let server = Server::builder(MajorVersion::V18).segment_size_mb(1).setting("max_wal_size", "2GB").start();
    harness::create_slot(&server);
    let vault = Vault::new();
    let archive = vault.archive(&server);
    let path = path_in(&disk.path(), "main");
    let receiving = Receiving::start(options(&server, path.clone()), vault.place());
    harness::wait_acknowledged(&server, write(&server));
    wait_for("the first notes", || noted(&path, &archive).filter(|dump| dump.objects.len() > 1));
    disk.fill();
    for _ in 0..4 {
        harness::wait_acknowledged(&server, write(&server));
    }
    let warnings = |receiving: &Receiving| {
        let events = receiving.events().into_iter();
        let said = events.filter_map(|event| if let ReceiveEvent::Warning(text) = event { Some(text) } else { None });
        said.filter(|text| text.contains("catalog")).collect::<Vec<_>>()
    };
    wait_for("a warning", || (!warnings(&receiving).is_empty()).then_some(()));
    harness::wait_acknowledged(&server, write(&server));
    // Once each time that it begins to fail: a small note may still find room between two that do not.
    assert!(warnings(&receiving).len() <= 4, "not for every note: {:?}", warnings(&receiving));
    assert!(warnings(&receiving)[0].contains("the stream goes on"), "{:?}", warnings(&receiving));
    assert!(!receiving.saw(|event| matches!(event, ReceiveEvent::Reconnecting { .. } | ReceiveEvent::Stalled { .. })));
    let behind = noted(&path, &archive).expect("a catalog");
    assert!(behind != said_by(&archive).0, "nothing could be noted");
    disk.make_room();
    wait_for("the catalog to be up to date", || {
        let repository = said_by(&archive).0;
        noted(&path, &archive).filter(|dump| *dump == repository)
    });
    receiving.stop();
}

/// Damaged under a running receiver, and locked by somebody else: made anew, or done without.
#[test]
fn a_damaged_or_locked_catalog_holds_nothing_up() {
    require_servers!(MajorVersion::V18);
    let server = Server::builder(MajorVersion::V18).segment_size_mb(1).setting("max_wal_size", "2GB").start();
    harness::create_slot(&server);
    let vault = Vault::new();
    let archive = vault.archive(&server);
    let path = path_in(&vault.temp.join("state"), "main");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"this is no database, and never was one").unwrap();
    let receiving = Receiving::start(options(&server, path.clone()), vault.place());
    harness::wait_acknowledged(&server, write(&server));
    receiving.wait_event(
        "that it is made anew",
        |event| matches!(event, ReceiveEvent::Warning(text) if text.contains("is made anew")),
    );
    let same = || {
        let repository = said_by(&archive).0;
        noted(&path, &archive).filter(|dump| !dump.objects.is_empty() && *dump == repository).map(|_| ())
    };
    wait_for("the catalog to be up to date", same);
    receiving.stop();
    // Somebody else writes it.
    let held = Catalog::write(&path, &archive.identity()).unwrap().expect("nobody has it");
    let receiving = Receiving::start(options(&server, path.clone()), vault.place());
    harness::wait_acknowledged(&server, write(&server));
    receiving.wait_event(
        "that it goes on without",
        |event| matches!(event, ReceiveEvent::Warning(text) if text.contains("another process writes")),
    );
    drop(held);
    wait_for("the catalog to be up to date again", same);
    receiving.stop();
}
