//! Tails in object storage: thousands of flushes of one segment leave few pieces, which are whole at every moment, and which the next run goes on from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use walrecv::pg::MajorVersion;
use walrecv::receive::Place;

use super::harness::{self, Receiving, Vault};
use super::kill::{nothing_is_missing, told};
use super::store::Store;
use crate::support::{Server, require_servers, rounds, wait_for};

/// Pieces that stand at most: merged ones, those that wait to be, and those that are being deleted.
const MOST: usize = 130;

fn tails(store: &Store) -> usize {
    store.names().iter().filter(|name| name.contains("/tail/")).count()
}

/// Commits one after the other, each waiting for walrecv.
fn commits(server: &Server, count: u32) {
    server.sql(&format!("do $$ begin for i in 1..{count} loop insert into t values (i); commit; end loop; end $$"));
}

#[test]
fn thousands_of_flushes_leave_few_pieces() {
    require_servers!(MajorVersion::V17);
    let server = Server::builder(MajorVersion::V17).segment_size_mb(16).start();
    harness::create_slot(&server);
    server.sql("create table t (i int)");
    server.switch_wal();
    let (vault, store) = (Vault::new(), Store::default());
    let from = harness::acknowledged(&server);
    let mut options = harness::options(&server);
    options.flush_interval = Duration::ZERO;
    let place = || Place { repo: store.repository(), ..vault.place() };
    let receiving = Receiving::start(options.clone(), place());
    receiving.wait_streaming();
    server.sql("alter system set synchronous_standby_names = 'walrecv'");
    server.sql("select pg_reload_conf()");
    let archive = vault.archive_in(store.repository(), &server);
    let (done, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let watching = std::thread::spawn({
        let (store, done, most) = (store.clone(), done.clone(), most.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(tails(&store), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    for _ in 0..rounds(5, 50) {
        commits(&server, 500);
        nothing_is_missing(&archive, &server, from, told(&server));
    }
    done.store(true, Ordering::Relaxed);
    watching.join().expect("the watcher");
    let (most, made) = (most.load(Ordering::Relaxed), store.created());
    println!("{made} objects were made, at most {most} pieces stood");
    assert!(made > 2_000 && most <= MOST, "{made} objects were made, {most} pieces stood");

    // Another run compares with what is left of them, and goes on.
    receiving.stop();
    let earlier: Vec<String> = store.names().into_iter().filter(|name| name.contains("/tail/")).collect();
    assert!(earlier.len() > 5, "{earlier:?}");
    let receiving = Receiving::start(options, place());
    commits(&server, 100);
    // The new run's pieces hold all that the earlier ones did.
    wait_for("the earlier run's pieces to go", || {
        let names = store.names();
        (!earlier.iter().any(|name| names.contains(name))).then_some(())
    });
    nothing_is_missing(&archive, &server, from, told(&server));
    let end = server.switch_wal();
    commits(&server, 1);
    harness::wait_acknowledged(&server, end);
    nothing_is_missing(&archive, &server, from, end);
    wait_for("the tails to go with their segment", || (tails(&store) < 10).then_some(()));
    receiving.stop();
}
