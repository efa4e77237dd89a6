//! A bad network between the receiver and its bucket, and a store that comes and goes: nothing is acknowledged that the store does not have.

use std::time::Duration;

use walrecv::archive::Archive;
use walrecv::error::Kind;
use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::receive::{Place, ReceiveEvent, ReceiveOptions};

use super::harness::{self, Receiving, Vault};
use super::kill::{nothing_is_missing, told};
use crate::support::proxy::{Proxy, Way};
use crate::support::{Ledger, Moto, Seed, Server, require_moto, require_servers, rounds, wait_for};

struct Scene {
    server: Server,
    vault: Vault,
    proxy: Proxy,
    url: String,
    direct: String,
    from: Lsn,
}

impl Scene {
    fn new(version: MajorVersion, moto: &Moto, bucket: &str) -> Scene {
        let server = Server::builder(version).setting("wal_keep_size", "2GB").setting("max_wal_size", "2GB").start();
        harness::create_slot(&server);
        let from = harness::acknowledged(&server);
        let proxy = Proxy::start(moto.port());
        Scene { server, vault: Vault::new(), proxy, url: moto.bucket(bucket), direct: moto.endpoint(), from }
    }

    fn options(&self) -> ReceiveOptions {
        let mut options = harness::options(&self.server);
        options.flush_interval = Duration::from_millis(100);
        options.stall_timeout = Duration::from_secs(2);
        options.shutdown_grace = Duration::from_secs(2);
        options
    }

    fn receive(&self, options: ReceiveOptions) -> Receiving {
        let repo = harness::open_bucket(&self.url, &format!("http://127.0.0.1:{}", self.proxy.port));
        let receiving = Receiving::start(options, Place { repo, ..self.vault.place() });
        receiving.wait_streaming();
        receiving
    }

    /// Past the proxy.
    fn archive(&self) -> Archive {
        self.vault.archive_in(harness::open_bucket(&self.url, &self.direct), &self.server)
    }

    fn nothing_is_missing(&self, upto: Lsn) {
        nothing_is_missing(&self.archive(), &self.server, self.from, upto);
    }

    /// All arrives, and no segment is missing.
    fn end(&self, receiving: Receiving) {
        let end = self.server.switch_wal();
        harness::wait_acknowledged(&self.server, end);
        self.nothing_is_missing(end);
        let (report, _) = receiving.stop();
        assert_eq!(report.behind, 0);
        let inventory = harness::runtime().block_on(self.archive().inventory()).expect("list");
        let complete = &inventory.timelines[&TimelineId(1)].complete;
        let (first, last) = (complete.first().expect("segments").0, complete.last().expect("segments").0);
        assert_eq!(complete.len() as u64, last - first + 1, "no hole: {complete:?}");
    }
}

#[test]
fn a_put_whose_answer_is_lost_is_recognised_as_ours() {
    require_servers!(MajorVersion::V18);
    require_moto!();
    let scene = Scene::new(MajorVersion::V18, Moto::shared(), "lost-answers");
    let receiving = scene.receive(scene.options());
    let ledger = Ledger::builder().padding(3000).start(&scene.server);
    for marker in ["/tail/", "/wal/"] {
        scene.proxy.lose_answers(marker, 3);
        wait_for("three answers to be lost", || {
            if marker == "/wal/" {
                scene.server.switch_wal();
            }
            (scene.proxy.unlost() == 0).then_some(())
        });
        let end = scene.server.lsn();
        harness::wait_acknowledged(&scene.server, end);
        scene.nothing_is_missing(end);
    }
    ledger.stop();
    scene.end(receiving);
}

#[test]
fn a_bad_line_to_the_bucket_delays_and_loses_nothing() {
    require_servers!(MajorVersion::V17);
    require_moto!();
    let scene = Scene::new(MajorVersion::V17, Moto::shared(), "bad-line");
    let receiving = scene.receive(scene.options());
    let mut seed = Seed::of_run();
    let ledger = Ledger::builder().writers(2).padding(1000).pause(Duration::from_millis(5)).start(&scene.server);
    for round in 0..rounds(8, 80) {
        match round % 8 {
            0 => scene.proxy.cut(),
            1 => scene.proxy.reset(),
            2 => scene.proxy.stall_those_there(),
            3 => scene.proxy.trickle(100_000),
            4 => {
                scene.proxy.refuse(true);
                scene.proxy.reset();
            }
            5 => scene.proxy.half_close(Way::There),
            6 => scene.proxy.half_close(Way::Back),
            _ => scene.proxy.stall(true),
        }
        let held = if round % 8 == 7 { 2500 } else { 0 };
        std::thread::sleep(Duration::from_millis(held + seed.below(1500)));
        scene.nothing_is_missing(told(&scene.server));
        scene.proxy.trickle(0);
        scene.proxy.refuse(false);
        scene.proxy.stall(false);
        harness::wait_acknowledged(&scene.server, scene.server.lsn());
    }
    ledger.stop();
    scene.end(receiving);
}

#[test]
fn a_store_that_hangs_for_longer_than_the_limit_is_waited_for_without_the_server() {
    require_servers!(MajorVersion::V18);
    require_moto!();
    // One of its own, since it is stopped.
    let moto = Moto::start();
    let scene = Scene::new(MajorVersion::V18, &moto, "hangs");
    let receiving = scene.receive(scene.options());
    scene.server.sql("create table t (id int)");
    harness::wait_acknowledged(&scene.server, scene.server.lsn());
    moto.pause();
    scene.server.sql("insert into t values (1)");
    let commit = scene.server.lsn();
    receiving.wait_event("a stall", |e| matches!(e, ReceiveEvent::Stalled { .. }));
    let sql = "select count(*) from pg_stat_replication where state = 'streaming'";
    scene.server.wait_sql(sql, "0");
    assert!(told(&scene.server) < commit);
    moto.resume();
    harness::wait_acknowledged(&scene.server, commit);
    scene.server.wait_sql(sql, "1");
    scene.end(receiving);
}

/// Another store answers at the same address, with nothing in it: what was acknowledged is gone, and nothing may be acknowledged any more.
#[test]
fn a_store_that_forgot_everything_is_an_error_and_no_new_repository() {
    require_servers!(MajorVersion::V18);
    require_moto!();
    let moto = Moto::start();
    let scene = Scene::new(MajorVersion::V18, &moto, "forgets");
    let receiving = scene.receive(scene.options());
    scene.server.sql("create table t (id int)");
    harness::wait_acknowledged(&scene.server, scene.server.lsn());
    scene.proxy.refuse(true);
    scene.proxy.reset();
    scene.server.sql("insert into t values (1)");
    let commit = scene.server.lsn();
    std::thread::sleep(Duration::from_millis(300));
    // As after a restart: without its bucket at first, which may be a mistake that somebody corrects.
    assert_eq!(moto.request("POST", "/moto-api/reset").expect("forget").0, 200);
    scene.proxy.refuse(false);
    receiving.wait_event(
        "the missing bucket to be told",
        |e| matches!(e, ReceiveEvent::Warning(text) if text.contains("no such bucket")),
    );
    assert!(told(&scene.server) < commit, "acknowledged without a bucket");
    moto.bucket("forgets");
    let error = receiving.end().expect_err("a refusal");
    assert_eq!(error.kind(), Kind::Repository, "{error}");
    assert!(error.to_string().contains("cluster.json is gone"), "{error}");
    assert!(harness::acknowledged(&scene.server) < commit, "acknowledged into an empty store");
}
