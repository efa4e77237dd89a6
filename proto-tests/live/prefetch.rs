//! Real recoveries with WAL fetched ahead: they land where the plan says, whatever becomes of the prefetcher and its files.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walrecv::pg::{MajorVersion, SegmentSize};
use walrecv::restore::ahead::Ready;
use walrecv::restore::{Options, Prepared, Target, prefetch};

use super::restore::{Story, numbers, versions};
use crate::support::{Seed, Server, wait_for};

/// Where the plan stands, and what is fetched ahead.
const OWN: &str = "pg_wal/walrecv";

/// A cluster whose recovery goes over some sixty segments.
fn story(version: MajorVersion) -> (Story, Prepared) {
    let mut story = Story::new(Server::builder(version).setting("max_wal_size", "1GB").start());
    story.server.sql("create table bulk (n bigint, filler text)");
    story.backup();
    for _ in 0..12 {
        let filler = "select g, repeat(md5(g::text), 40) from generate_series(1, 3500) g";
        story.server.sql(&format!("insert into bulk {filler}"));
        story.write(1);
    }
    story.archive_and_die();
    let prepared = story.prepare(Target::Latest).expect("a plan");
    assert!(prepared.plan.wal_segments > 50, "{}", prepared.plan.wal_segments);
    (story, prepared)
}

fn options(story: &Story, name: &str, budget: &str) -> Options {
    Options { fetch_arguments: vec!["--prefetch".into(), budget.into()], ..story.options(name) }
}

/// The prefetcher that works in a data directory.
fn prefetchers(pgdata: &Path) -> Vec<Pid> {
    let Ok(pgdata) = fs::canonicalize(pgdata) else { return Vec::new() };
    let pids = fs::read_dir("/proc").expect("processes").filter_map(|e| e.ok()?.file_name().into_string().ok());
    let ours = |pid: &String| {
        let of = |name: &str| format!("/proc/{pid}/{name}");
        let line = fs::read(of("cmdline")).unwrap_or_default();
        line.windows(12).any(|word| word == b"wal-prefetch") && fs::read_link(of("cwd")).is_ok_and(|cwd| cwd == pgdata)
    };
    pids.filter(ours).filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// The folders of what is fetched ahead.
fn ahead(pgdata: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(pgdata.join(OWN)).into_iter().flatten();
    let paths = entries.filter_map(|e| Some(e.ok()?.path()));
    paths.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ahead"))).collect()
}

/// The files that stand ready.
fn ready(pgdata: &Path) -> Vec<PathBuf> {
    let size = SegmentSize::new(1 << 20).expect("a size");
    let folders = ahead(pgdata);
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let paths = entries.filter_map(|e| Some(e.ok()?.path()));
    let named = |path: &PathBuf| path.file_name().and_then(|n| Ready::parse(n.to_str()?, size)).is_some();
    paths.filter(named).collect()
}

/// Does something over and over while a server recovers; tells what it counted.
struct Beside {
    over: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Beside {
    fn start(mut act: impl FnMut() -> usize + Send + 'static) -> Beside {
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !told.load(Ordering::SeqCst) {
                count = act().max(count);
                std::thread::sleep(Duration::from_millis(5));
            }
            count
        });
        Beside { over, thread }
    }

    fn end(self) -> usize {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().expect("a thread")
    }
}

fn nothing_is_left(pgdata: &Path) {
    goes_soon(|| prefetchers(pgdata).is_empty() && !pgdata.join("pg_wal/walrecv").exists());
}

/// Not only because nobody has asked for a while.
fn goes_soon(gone: impl Fn() -> bool) {
    let begun = Instant::now();
    wait_for("the prefetcher and its files to go", || gone().then_some(()));
    assert!(begun.elapsed() < prefetch::IDLE / 2, "it went after {:?}", begun.elapsed());
}

#[test]
fn a_recovery_is_fed_from_what_was_fetched_ahead() {
    for version in versions() {
        let (story, prepared) = story(version);
        let options = options(&story, "ahead", "4MB");
        story.restore(&prepared, &options).expect("a restore");
        let pgdata = options.pgdata.clone();
        let mut several = (Vec::new(), Instant::now());
        let watch = Beside::start(move || {
            let there = prefetchers(&pgdata);
            if there.len() < 2 || there != several.0 {
                several = (there, Instant::now());
            }
            // One that finds another one at work ends at once.
            assert!(
                several.1.elapsed() < Duration::from_secs(3) || several.0.len() < 2,
                "two prefetchers for one data directory"
            );
            ready(&pgdata).len()
        });
        let copy = story.start(&prepared, &options).expect("a server");
        let most = watch.end();
        assert!((1..=4).contains(&most), "{most} files stood ready at once, at most 4 may");
        assert_eq!(copy.started.landed, Some(prepared.choice.landing.replayed));
        assert_eq!(copy.rows(), numbers(12));
        nothing_is_left(&options.pgdata);
        println!("PostgreSQL {version}: recovery took {:?}", copy.started.took);
    }
}

/// The prefetcher is killed, and its files are damaged, cut, removed and put in one another's place, at random moments.
#[test]
fn whatever_happens_to_the_prefetcher_only_costs_time() {
    let version = *versions().last().expect("a server");
    let (story, prepared) = story(version);
    let mut seed = Seed::of_run();
    for round in 0..crate::support::rounds(1, 20) {
        let options = options(&story, &format!("vandal{round}"), "6MB");
        story.restore(&prepared, &options).expect("a restore");
        let pgdata = options.pgdata.clone();
        let mut chance = Seed::from(seed.next());
        let mut struck = 0;
        let vandal = Beside::start(move || {
            let files = ready(&pgdata);
            let file = (!files.is_empty()).then(|| files[chance.below(files.len() as u64) as usize].clone());
            match (chance.below(20), file) {
                (0, _) => prefetchers(&pgdata).into_iter().for_each(|pid| {
                    struck += 1;
                    let _ = kill_process(pid, Signal::KILL);
                }),
                (1, Some(file)) => {
                    if let Ok(file) = fs::File::options().write(true).open(file) {
                        struck += 1;
                        let _ = file.write_all_at(&[chance.below(256) as u8; 100], chance.below(1 << 20));
                    }
                }
                (2, Some(file)) => {
                    if let Ok(file) = fs::File::options().write(true).open(file) {
                        struck += 1;
                        let _ = file.set_len(chance.below(1 << 20));
                    }
                }
                (3, Some(file)) => drop(fs::remove_file(file)),
                (4, Some(file)) => drop(fs::rename(file, &files[0])),
                _ => {}
            }
            struck
        });
        let copy = story.start(&prepared, &options);
        let struck = vandal.end();
        let copy = copy.unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(copy.started.landed, Some(prepared.choice.landing.replayed));
        assert_eq!((copy.rows(), copy.value("select count(*) from bulk")), (numbers(12), "42000".to_owned()));
        nothing_is_left(&options.pgdata);
        println!("PostgreSQL {version}: struck {struck} times, recovery took {:?}", copy.started.took);
        assert!(struck > 0);
    }
}

/// The server is killed in the middle of its recovery: the prefetcher ends by itself, and the next start goes on.
#[test]
fn a_prefetcher_does_not_outlive_its_server() {
    let version = *versions().first().expect("a server");
    let (story, prepared) = story(version);
    // Slow as long as this file is there, so that the recovery does not end before it is ended.
    let (slow, shim) = (story.places.join("slow"), story.places.join("shim"));
    let program = crate::support::walrecv::path().display();
    let script = format!("#!/bin/sh\n[ -e {} ] && sleep 0.3\nexec {program} \"$@\"\n", slow.display());
    fs::write(&slow, "").and_then(|()| fs::write(&shim, script)).expect("a script");
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).expect("a mode");
    let options = Options { program: shim, ..options(&story, "killed", "8MB") };
    story.restore(&prepared, &options).expect("a restore");
    let pgdata = options.pgdata.clone();
    let killer = std::thread::spawn(move || {
        wait_for("files that stand ready", || (ready(&pgdata).len() >= 2).then_some(()));
        let lock = fs::read_to_string(pgdata.join("postmaster.pid")).expect("a server");
        let pid = lock.lines().next().and_then(|l| l.parse().ok()).and_then(Pid::from_raw).expect("a process");
        kill_process(pid, Signal::KILL).expect("a process of ours");
        fs::remove_file(slow).expect("as fast as ever");
        pgdata
    });
    let error = story.start(&prepared, &options).err().expect("it was killed");
    let pgdata = killer.join().expect("a thread");
    // A call that was under way when the server was killed may come later than the prefetcher's end, and leaves nothing either.
    eprintln!("{error}");
    goes_soon(|| prefetchers(&pgdata).is_empty() && ahead(&pgdata).is_empty());
    assert!(pgdata.join("pg_wal/walrecv/plan.json").exists());
    let copy = story.start(&prepared, &options).expect("it goes on");
    assert_eq!(copy.rows(), numbers(12));
    nothing_is_left(&pgdata);
}
