//! Fetching ahead: what is handed over is what a direct fetch gives, whatever becomes of the prefetcher and its files.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use walrecv::archive::Archive;
use walrecv::disk::lock::LockFile;
use walrecv::error::{Kind, Result};
use walrecv::pg::{Lsn, TimelineId};
use walrecv::restore::ahead::{Piece, Ready};
use walrecv::restore::hand_over::{ASKED, LOCK, Launch, listed};
use walrecv::restore::prefetch;
use walrecv::restore::recovering::folder;

use crate::fetch::{Asker, Said, filled};
use crate::support::wait_for;
use crate::world::{MB, ONE, TWO, World, run};

const BUDGET: u64 = 3 * MB;
/// A call waits for this long, and a little less on its own clock, for a prefetcher that has begun with what it asks for.
const WAITED: Duration = Duration::from_millis(4900);

impl Asker<'_> {
    /// With a server that runs: this process. Prefetchers are not started by themselves.
    fn serving(mut self) -> Self {
        fs::write(self.pgdata.join("postmaster.pid"), format!("{}\n", std::process::id())).expect("a lock file");
        self.launch = Some(Launch { program: "/bin/true".into(), arguments: Vec::new() });
        self
    }

    /// Of the plan that binds, or of a standby; where it is, or would be.
    pub fn folder(&self) -> PathBuf {
        folder(&self.pgdata, self.mark)
    }

    fn ready(&self) -> Vec<Ready> {
        listed(&self.folder(), self.world.shelf.archive.names.segment_size)
    }

    fn numbers(&self) -> Vec<(u32, u64)> {
        self.ready().iter().map(|r| (r.piece.segment.timeline.0, r.piece.segment.number.0)).collect()
    }

    /// A prefetcher in this process, until it ends by itself.
    fn prefetcher(&self, budget: u64, idle: Duration) -> std::thread::JoinHandle<()> {
        let (pgdata, archive) = (self.pgdata.clone(), self.world.shelf.archive.clone());
        std::thread::spawn(move || {
            let open = move || -> futures::future::BoxFuture<'static, Result<Archive>> {
                let archive = archive.clone();
                Box::pin(async { Ok(archive) })
            };
            run(prefetch::run(&pgdata, budget, idle, &|_| None, &open)).expect("a prefetcher");
        })
    }

    fn wait_for(&self, expected: &[(u32, u64)]) {
        wait_for(&format!("{expected:?} to be ready"), || (self.numbers() == expected).then_some(()));
    }

    fn end(&self, prefetcher: std::thread::JoinHandle<()>) {
        for name in ["recovery.signal", "standby.signal"] {
            let _ = fs::remove_file(self.pgdata.join(name));
        }
        prefetcher.join().expect("a prefetcher that ends");
        assert!(!self.folder().exists(), "nothing is left");
    }

    /// Takes every object of the archive away: what is served then was fetched ahead.
    fn lose_archive(&self) {
        let root = self.world.shelf.archive.repo.local_root().expect("a folder");
        fs::rename(root, self.world.places.join("away")).expect("rename");
    }

    fn find_archive(&self) {
        let root = self.world.shelf.archive.repo.local_root().expect("a folder");
        fs::rename(self.world.places.join("away"), root).expect("rename");
    }
}

/// Through the fork and to the end of the plan, with a budget of three segments; each comes from the folder alone.
#[test]
fn a_planned_recovery_is_served_from_what_was_fetched_ahead() {
    let world = World::new();
    world.store_all();
    let end = world.two.last_before(Lsn(6 * MB + 700_000)).end;
    let asker = Asker::planned(&world, TWO, end).serving();
    let prefetcher = asker.prefetcher(BUDGET, Duration::from_secs(60));
    assert_eq!(asker.segment(ONE, 1), filled(world.bytes(ONE, 1)));
    let all = [(1, 2), (1, 3), (2, 4), (2, 5), (2, 6)];
    for (at, (timeline, number)) in all.into_iter().enumerate() {
        asker.wait_for(&all[at..all.len().min(at + 3)]);
        asker.lose_archive();
        let bytes = world.bytes(TimelineId(timeline), number);
        let expected = if number == 6 { &bytes[..end.since(Lsn(6 * MB)) as usize] } else { bytes };
        assert_eq!(asker.segment(TimelineId(timeline), number), filled(expected));
        asker.find_archive();
    }
    asker.wait_for(&[]);
    assert_eq!(asker.segment(TWO, 6), asker.segment(TWO, 6), "asked again, answered again");
    assert_eq!(asker.segment(TWO, 7), Said::Absent);
    asker.end(prefetcher);
}

/// The server goes back, as from the checkpoint's record to the redo point.
#[test]
fn what_is_not_asked_for_any_more_goes() {
    let world = World::new();
    world.store_all();
    let asker = Asker::planned(&world, ONE, world.one.made.end()).serving();
    let prefetcher = asker.prefetcher(2 * MB, Duration::from_secs(60));
    asker.segment(ONE, 3);
    asker.wait_for(&[(1, 4), (1, 5)]);
    asker.segment(ONE, 1);
    asker.wait_for(&[(1, 2), (1, 3)]);
    asker.end(prefetcher);
}

#[test]
fn a_damaged_or_forged_file_is_never_served() {
    let world = World::new();
    world.store_all();
    let end = world.two.last_before(Lsn(6 * MB + 700_000)).end;
    let asker = Asker::planned(&world, TWO, end).serving();
    fs::create_dir_all(asker.folder()).expect("a folder");
    let whole = world.bytes(ONE, 2).to_vec();
    let crc = crc32c::crc32c(&whole);
    let ready = |bytes: u64, crc: u32| Ready { piece: Piece { segment: world.segment(ONE, 2), bytes }, crc };
    let mut flipped = whole.clone();
    flipped[500_000] ^= 4;
    let right = filled(&whole);
    for (name, content) in [
        (ready(MB, crc), &flipped[..]),
        (ready(MB, crc), &vec![0; MB as usize]),
        (ready(MB, crc), &whole[..1000]),
        (ready(MB, crc), b""),
        (ready(MB, crc ^ 1), &whole),
    ] {
        fs::write(asker.folder().join(name.to_string()), content).expect("a file");
        assert_eq!(asker.segment(ONE, 2), right);
        assert_eq!(asker.ready(), [], "damaged: removed");
    }
    // Half written, by one that was killed.
    fs::write(asker.folder().join(format!("{}.part", ready(MB, 0).piece.name())), &whole).expect("a file");
    let begun = Instant::now();
    assert_eq!(asker.segment(ONE, 2), right);
    assert!(begun.elapsed() < WAITED, "nobody is fetching: not waited for");

    // Whole, and past the end of the plan.
    let last = world.bytes(TWO, 6);
    let past = Ready { piece: Piece::whole(world.segment(TWO, 6)), crc: crc32c::crc32c(last) };
    fs::write(asker.folder().join(past.to_string()), last).expect("a file");
    assert_eq!(asker.segment(TWO, 6), filled(&last[..end.since(Lsn(6 * MB)) as usize]));
    let past = Ready { piece: Piece::whole(world.segment(TWO, 7)), crc: crc32c::crc32c(last) };
    fs::write(asker.folder().join(past.to_string()), last).expect("a file");
    assert_eq!(asker.segment(TWO, 7), Said::Absent);
    // A new prefetcher begins with nothing.
    asker.segment(ONE, 3);
    let prefetcher = asker.prefetcher(2 * MB, Duration::from_secs(60));
    asker.wait_for(&[(2, 4), (2, 5)]);
    asker.end(prefetcher);
}

/// A prefetcher that outlives its recovery may write into the directory of the next one.
#[test]
fn what_another_plan_fetched_is_never_served() {
    let world = World::new();
    world.store_all();
    let end = world.two.last_before(Lsn(6 * MB + 700_000)).end;
    let old = Asker::planned(&world, ONE, world.one.made.end());
    let asker = Asker::planned(&world, TWO, end).serving();
    assert_ne!(old.folder(), asker.folder());
    let forged = vec![7; MB as usize];
    let ready = Ready { piece: Piece::whole(world.segment(ONE, 2)), crc: crc32c::crc32c(&forged) };
    for folder in [old.folder(), folder(&asker.pgdata, None)] {
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(ready.to_string()), &forged).expect("a file");
    }
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
    // In its own it would be.
    fs::create_dir_all(asker.folder()).expect("a folder");
    fs::write(asker.folder().join(ready.to_string()), &forged).expect("a file");
    assert_eq!(asker.segment(ONE, 2), filled(&forged));
}

/// At the end of the archive there is only a tail: it is neither fetched ahead nor looked at, since it would be again and again.
#[test]
fn a_standby_at_the_end_of_the_archive_has_no_tail_fetched_ahead() {
    let world = World::new();
    world.store(ONE, 1..=6);
    let archive = &world.shelf.archive;
    let complete = |number| run(archive.read_complete(world.segment(ONE, number)));
    assert_eq!(complete(5).expect("a segment").as_deref(), Some(world.bytes(ONE, 5)));
    let tail = world.shelf.file(&archive.names.partial(world.segment(ONE, 6)));
    let mut bytes = fs::read(&tail).expect("a tail");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&tail, bytes).expect("damage");
    assert!(run(archive.read_segment(world.segment(ONE, 6), None)).is_err(), "who looks at it is told");
    assert_eq!(complete(6).expect("nobody looks at it"), None);
    assert_eq!(complete(7).expect("nothing is there"), None);
}

/// A prefetcher that hangs while it fetches costs a moment.
#[test]
fn one_that_hangs_is_not_waited_for_long() {
    let world = World::new();
    world.store_all();
    let asker = Asker::planned(&world, ONE, world.one.made.end()).serving();
    let held = LockFile::take(&asker.folder().join(LOCK)).expect("a lock").expect("free");
    let part = asker.folder().join(format!("{}.part", Piece::whole(world.segment(ONE, 2)).name()));
    fs::write(&part, "").expect("a file");
    let begun = Instant::now();
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
    assert!((WAITED..prefetch::IDLE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    // What it was waiting for became ready.
    fs::write(&part, "").expect("a file");
    let bytes = world.bytes(ONE, 2).to_vec();
    let ready = Ready { piece: Piece::whole(world.segment(ONE, 2)), crc: crc32c::crc32c(&bytes) };
    let place = asker.folder().join(ready.to_string());
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        fs::write(&part, bytes).and_then(|()| fs::rename(&part, place)).expect("a file");
    });
    asker.lose_archive();
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
    late.join().expect("a file");
    drop(held);
}

#[test]
fn a_second_one_ends_at_once_and_an_idle_one_soon() {
    let world = World::new();
    world.store_all();
    let asker = Asker::planned(&world, ONE, world.one.made.end()).serving();
    asker.segment(ONE, 1);
    let first = asker.prefetcher(2 * MB, Duration::from_secs(60));
    asker.wait_for(&[(1, 2), (1, 3)]);
    asker.prefetcher(2 * MB, Duration::from_secs(60)).join().expect("it ends");
    assert_eq!(asker.numbers(), [(1, 2), (1, 3)], "the first one's files are untouched");
    // Its folder goes, as when recovery has ended: so does it, and it makes no new one.
    fs::remove_dir_all(asker.pgdata.join("pg_wal/walrecv")).expect("remove");
    first.join().expect("it ends");
    assert!(!asker.pgdata.join("pg_wal/walrecv").exists());

    let asker = Asker::planned(&world, ONE, world.one.made.end()).serving();
    asker.segment(ONE, 1);
    asker.prefetcher(2 * MB, Duration::from_millis(700)).join().expect("it ends");
    assert!(!asker.folder().exists() && asker.pgdata.join("pg_wal/walrecv/plan.json").exists());
    // Without a server nobody fetches ahead, and nothing is written.
    fs::remove_file(asker.pgdata.join("postmaster.pid")).expect("remove");
    asker.segment(ONE, 2);
    asker.prefetcher(2 * MB, Duration::from_secs(60)).join().expect("it ends");
    assert!(!asker.folder().exists());
}

/// A call that began before the recovery ended makes the folder of a prefetcher that is gone anew, and starts another one: nothing of that stays. What somebody
/// else still holds does.
#[test]
fn what_was_left_by_a_call_that_came_late_goes() {
    let world = World::new();
    world.store_all();
    let asker = Asker::planned(&world, ONE, world.one.made.end()).serving();
    fs::remove_file(asker.pgdata.join("postmaster.pid")).expect("remove");
    let other = folder(&asker.pgdata, Some(7));
    for folder in [asker.folder(), folder(&asker.pgdata, None), other.clone()] {
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(ASKED), "000000010000000000000002 77\n").expect("a file");
    }
    let held = LockFile::take(&other.join(LOCK)).expect("a lock").expect("free");
    asker.prefetcher(2 * MB, Duration::from_secs(60)).join().expect("it ends");
    let own = fs::read_dir(asker.pgdata.join("pg_wal/walrecv")).expect("a folder");
    let mut left: Vec<String> = own.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    left.sort();
    assert_eq!(left, ["ahead-00000007", "plan.json"]);
    drop(held);
    asker.prefetcher(2 * MB, Duration::from_secs(60)).join().expect("it ends");
    assert!(!other.exists() && asker.pgdata.join("pg_wal/walrecv/plan.json").exists());
}

/// Missing and damaged objects are nobody's business but of who asks for them.
#[test]
fn what_cannot_be_fetched_is_told_to_who_asks() {
    let world = World::new();
    world.store_all();
    let asker = Asker::planned(&world, ONE, world.one.made.end()).serving();
    world.forget(ONE, 3);
    let object = world.shelf.file(&world.shelf.archive.names.segment(world.segment(ONE, 4), None));
    let mut bytes = fs::read(&object).expect("an object");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&object, bytes).expect("damage");
    asker.segment(ONE, 1);
    let prefetcher = asker.prefetcher(8 * MB, Duration::from_secs(60));
    asker.wait_for(&[(1, 2), (1, 5), (1, 6)]);
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
    assert_eq!(asker.segment(ONE, 3), Said::Unknown(Kind::Gap));
    assert_eq!(asker.segment(ONE, 4), Said::Unknown(Kind::Corrupt));
    // It comes back: so does the prefetcher to it.
    world.store(ONE, 3..=3);
    asker.segment(ONE, 2);
    wait_for("the segment that came back", || asker.numbers().contains(&(1, 3)).then_some(()));
    asker.end(prefetcher);
}

/// A standby is given whole segments by the rules of now: a fork that it has learnt of since they were fetched cuts them.
#[test]
fn a_standby_is_served_by_the_rules_of_the_moment() {
    let world = World::new();
    world.store(ONE, 1..=6);
    let asker = Asker::new(&world, "standby").serving();
    asker.signal("standby.signal");
    assert_eq!(asker.segment(ONE, 1), filled(world.bytes(ONE, 1)));
    let prefetcher = asker.prefetcher(8 * MB, Duration::from_secs(60));
    // The sixth is not complete.
    asker.wait_for(&[(1, 2), (1, 3), (1, 4), (1, 5)]);
    let names = &world.shelf.archive.names;
    for number in [2, 3, 4] {
        world.forget(ONE, number);
    }
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)), "from what was fetched ahead");
    assert_eq!(asker.segment(ONE, 3), filled(world.bytes(ONE, 3)));
    world.store(TWO, 4..=7);
    world.store_history();
    fs::write(asker.pgdata.join("pg_wal/00000002.history"), "").expect("its own history");
    run(world.shelf.put_wal(world.segment(ONE, 4), world.bytes(ONE, 4)));
    assert!(world.shelf.file(&names.segment(world.segment(ONE, 4), None)).exists());
    let before_fork = &world.bytes(ONE, 4)[..world.fork.since(Lsn(4 * MB)) as usize];
    assert_eq!(asker.segment(ONE, 4), filled(before_fork), "nothing past the fork, whole as it stood ready");
    assert_eq!(asker.segment(ONE, 5), Said::Absent, "the dead branch");
    asker.end(prefetcher);
    assert!(!asker.pgdata.join("pg_wal/walrecv").exists());
}

/// Whatever the budget, no more than it is ever on the disk.
#[test]
fn the_budget_holds_at_every_moment() {
    let world = World::new();
    world.store_all();
    let asker = Asker::planned(&world, ONE, world.one.made.end()).serving();
    asker.segment(ONE, 1);
    let prefetcher = asker.prefetcher(2 * MB, Duration::from_secs(60));
    let mut most = 0;
    for number in 2..=6 {
        let mut look = || {
            let entries = fs::read_dir(asker.folder()).into_iter().flatten();
            let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
            most = most.max(names.filter(|name| !name.starts_with(LOCK) && !name.starts_with(ASKED)).count());
            (most >= 2).then_some(())
        };
        wait_for("as much as the budget allows", &mut look);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(150) {
            look();
        }
        asker.segment(ONE, number);
    }
    assert_eq!(most, 2);
    asker.end(prefetcher);
    let asker = Asker::planned(&world, ONE, world.one.made.end()).serving();
    asker.segment(ONE, 1);
    let none = asker.prefetcher(MB - 1, Duration::from_millis(500));
    none.join().expect("it ends");
    assert_eq!(asker.segment(ONE, 2), filled(world.bytes(ONE, 2)));
}
