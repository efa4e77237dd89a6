//! Durable files on a real disk: which calls are made in which order, and what happens when they fail. Faults are injected by `strace`
//! into a child, which is this test program again.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use walrecv::disk::durable;
use walrecv::disk::medium::{Disk, disk};
use walrecv::disk::tail_file::{PreparedTail, TailFile};
use walrecv::error::Kind;
use walrecv::pg::{DurableLsn, Lsn, SystemIdentifier, TimelineId};
use walrecv::repo::Repository;

use crate::common::{joined, no_env, object, put, runtime};
use crate::support::{Call, HookedDisk, TempDir};

const CLAIM: (SystemIdentifier, TimelineId, Lsn) = (SystemIdentifier(5), TimelineId(2), Lsn(0x1234));

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Small parts are written together, large ones by themselves: what stands in the file is all of them, one behind the other.
#[test]
fn parts_of_any_size_stand_in_their_order() {
    let dir = TempDir::new("disk");
    let kib = |n: usize, byte: u8| vec![byte; (n << 10) + usize::from(byte)];
    let many = (0..100).map(|n| kib(10, n)).collect::<Vec<_>>();
    let mixed = vec![kib(10, 1), kib(250, 2), kib(300, 3), Vec::new(), kib(5, 4), kib(256, 0), kib(256, 5), kib(1, 6)];
    for (name, parts) in [("many", many), ("mixed", mixed), ("large", vec![kib(900, 7)]), ("none", Vec::new())] {
        let path = dir.join(name);
        assert!(durable::create_once(&disk(), &path, &parts, 0o600).unwrap());
        assert!(fs::read(&path).unwrap() == parts.concat(), "{name}");
    }
}

#[test]
fn files_appear_whole_or_not_at_all() {
    let dir = TempDir::new("disk");
    let path = dir.join("a/b/file");
    durable::create_dirs(&Disk, path.parent().unwrap()).unwrap();
    durable::create_dirs(&Disk, path.parent().unwrap()).unwrap();
    durable::create_new(&path, b"one", 0o600).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(durable::create_new(&path, b"two", 0o600).unwrap_err().kind(), Kind::Usage);
    assert!(!durable::create_once(&disk(), &path, &[b"two"], 0o600).unwrap());
    assert_eq!(fs::read(&path).unwrap(), b"one");
    durable::replace(&path, b"three", 0o600).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"three");
    durable::sync_found(&Disk, &path, dir.path()).unwrap();
    assert_eq!(names(path.parent().unwrap()), BTreeSet::from(["file".to_owned()]), "no staging file stays");
    durable::remove(&Disk, &path).unwrap();
    durable::remove(&Disk, &path).unwrap();
    durable::remove(&Disk, &dir.join("no/such/folder")).unwrap();
    assert!(durable::create_dirs(&Disk, &dir.join("a/b/c")).is_ok());
    fs::write(dir.join("plain"), "").unwrap();
    assert!(!durable::create_dirs(&Disk, &dir.join("plain/x")).unwrap_err().is_transient());
}

#[test]
fn tail_files_are_zeroed_ahead_and_written_in_place() {
    let dir = TempDir::new("disk");
    let path = dir.join("tail/00000001/x/r1.open");
    let mut tail = TailFile::create(&disk(), &path, 1 << 20, b"preamble").unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
    assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 20, "the zeros are really there");
    tail.append(b"first").unwrap();
    tail.append(b"second").unwrap();
    let witness = tail.sync(CLAIM).unwrap();
    assert_eq!((witness.system(), witness.timeline(), witness.lsn()), CLAIM);
    assert_eq!((tail.written(), tail.room()), (19, (1 << 20) - 19));
    let content = fs::read(&path).unwrap();
    assert_eq!(&content[..19], b"preamblefirstsecond");
    assert!(content[19..].iter().all(|b| *b == 0));
    assert_eq!(content.len(), 1 << 20, "written in place");

    let error = TailFile::create(&disk(), &path, 1 << 20, b"other").unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    assert_eq!(&fs::read(&path).unwrap()[..8], b"preamble");
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);

    let more = vec![7u8; (1 << 20) + 5];
    tail.append(&more).unwrap();
    tail.sync(CLAIM).unwrap();
    let content = fs::read(&path).unwrap();
    assert!(content.len() == 19 + more.len() && content[19..] == more, "grown by what was written");
    tail.reserve(3 << 20).unwrap();
    tail.settle().unwrap();
    assert!(tail.room() >= 3 << 20);
    // What is written while zeros are being written behind it is not overwritten by them.
    for n in 0..40u8 {
        tail.append(&vec![n; 700_000]).unwrap();
        tail.reserve(1 << 20).unwrap();
    }
    tail.settle().unwrap();
    let content = fs::read(&path).unwrap();
    for n in 0..40u8 {
        let from = 19 + more.len() + usize::from(n) * 700_000;
        assert!(content[from..from + 700_000].iter().all(|b| *b == n), "{n}");
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), tail.written() + tail.room());
    assert_eq!(names(path.parent().unwrap()), BTreeSet::from(["r1.open".to_owned()]));
}

#[test]
fn a_tail_prepared_ahead_has_no_name_until_it_is_wanted() {
    let dir = TempDir::new("disk");
    let repo = Repository::open(&format!("file://{}", dir.path().display()), &no_env).unwrap();
    let prepared = PreparedTail::prepare(&disk(), &dir.join("tail"), 1 << 20).unwrap();
    assert!(runtime().block_on(repo.list("")).unwrap().is_empty());
    assert_eq!(durable::clean_staging(&Disk, dir.path(), Duration::ZERO).unwrap(), 0, "somebody holds it");
    let path = dir.join("tail/1/s/r.open");
    let tail = prepared.adopt(&path, b"p").unwrap();
    assert_eq!(tail.path(), path);
    assert_eq!(names(&dir.join("tail")), BTreeSet::from(["1".to_owned()]));
    let dropped = PreparedTail::prepare(&disk(), &dir.join("tail"), 1 << 20).unwrap();
    assert_eq!(names(&dir.join("tail")).len(), 2);
    drop(dropped);
    assert_eq!(names(&dir.join("tail")), BTreeSet::from(["1".to_owned()]));
}

#[test]
fn leftovers_of_crashes_are_cleaned_and_never_listed() {
    let dir = TempDir::new("disk");
    fs::create_dir_all(dir.join("wal/x")).unwrap();
    for name in [".staging-1-2-3", "wal/x/.staging-9-9-9"] {
        fs::write(dir.join(name), "half").unwrap();
    }
    fs::write(dir.join("wal/x/object"), "whole").unwrap();
    let repo = Repository::open(&format!("file://{}", dir.path().display()), &no_env).unwrap();
    let listed = runtime().block_on(repo.list("")).unwrap();
    assert_eq!(listed.into_iter().map(|l| l.name).collect::<Vec<_>>(), ["wal/x/object"]);
    assert_eq!(runtime().block_on(repo.clean_staging()).unwrap(), 0, "too young");
    assert_eq!(durable::clean_staging(&Disk, dir.path(), Duration::ZERO).unwrap(), 2);
    assert_eq!(names(&dir.join("wal/x")), BTreeSet::from(["object".to_owned()]));
    assert_eq!(durable::clean_staging(&Disk, &dir.join("nowhere"), Duration::ZERO).unwrap(), 0);
}

/// Nobody can be asked there whether a file is still wanted; that must not end the job that cleans either.
#[test]
fn where_files_have_no_locks_nothing_is_taken_for_left_over() {
    let dir = TempDir::new("disk");
    let left = dir.join(".staging-1-2-3");
    fs::write(&left, "half").unwrap();
    let refuse = |code: i32| {
        HookedDisk::new(move |call| match call {
            Call::Lock(_) => Err(std::io::Error::from_raw_os_error(code)),
            _ => Ok(()),
        })
    };
    assert_eq!(durable::clean_staging(&refuse(95), dir.path(), Duration::ZERO).unwrap(), 0, "EOPNOTSUPP");
    assert!(left.exists());
    assert!(durable::clean_staging(&refuse(5), dir.path(), Duration::ZERO).is_err(), "EIO");
    assert_eq!(durable::clean_staging(&Disk, dir.path(), Duration::ZERO).unwrap(), 1);
}

/// Emptied tail folders go, other folders stay.
#[test]
fn tail_folders_do_not_pile_up() {
    let dir = TempDir::new("disk");
    let repo = Repository::open(&format!("file://{}", dir.path().display()), &no_env).unwrap();
    runtime().block_on(async {
        for name in ["c/tail/1/s/a.open", "c/tail/1/s/b.open", "c/wal/1/g/s"] {
            put(&repo, name, 1, 1, Duration::ZERO).await.unwrap();
        }
        repo.delete("c/tail/1/s/a.open").await.unwrap();
        assert!(dir.join("c/tail/1/s").exists());
        repo.delete("c/tail/1/s/b.open").await.unwrap();
        assert!(!dir.join("c/tail/1/s").exists() && dir.join("c/tail/1").exists());
        repo.delete("c/wal/1/g/s").await.unwrap();
        assert!(dir.join("c/wal/1/g").exists());
    });
}

// What follows runs in children under strace.

const ROLE: &str = "WALRECV_TEST_ROLE";
const PLACE: &str = "WALRECV_TEST_PLACE";

/// The child: does what its role says and prints one line that begins with `OUTCOME`.
#[test]
fn child() {
    let (Ok(role), Some(place)) = (std::env::var(ROLE), std::env::var_os(PLACE).map(PathBuf::from)) else { return };
    let outcome = match role.as_str() {
        "put" => child_put(&place),
        "tail" => child_tail(&place),
        other => panic!("no role {other}"),
    };
    println!("\nOUTCOME {outcome}");
}

fn child_put(place: &Path) -> String {
    let repo = Repository::open(&format!("file://{}", place.display()), &no_env).unwrap();
    // One thread for file work: strace counts the calls of each thread by itself.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    match runtime.block_on(put(&repo, "a/b/object", 1, 1, Duration::from_millis(300))) {
        Ok(put) => format!("{put:?}"),
        Err(error) => format!("error transient={} {error}", error.is_transient()),
    }
}

/// Writes and syncs twice; after a failure tries the same file again, and then a new one with everything not yet durable.
fn child_tail(place: &Path) -> String {
    let mut tail = TailFile::create(&disk(), &place.join("one.open"), 1 << 20, b"preamble").unwrap();
    let flush = |tail: &mut TailFile, bytes: &[u8]| -> walrecv::error::Result<DurableLsn> {
        tail.append(bytes)?;
        tail.sync(CLAIM)
    };
    let mut outcome = Vec::new();
    for bytes in [b"first", b"again"] {
        match flush(&mut tail, bytes) {
            Ok(_) => outcome.push("durable".to_owned()),
            Err(error) => {
                outcome.push(format!("failed transient={}", error.is_transient()));
                let still = [tail.sync(CLAIM).is_err(), tail.append(b"x").is_err(), tail.reserve(9 << 20).is_err()];
                outcome.push(format!("dead={}", still.iter().all(|s| *s)));
                let mut next = TailFile::create(&disk(), &place.join("two.open"), 1 << 20, b"preamble").unwrap();
                outcome.push(format!("new={}", flush(&mut next, bytes).is_ok()));
                break;
            }
        }
    }
    outcome.join(" ")
}

/// Runs a child under strace; returns its outcome (empty when it was killed) and the trace.
fn traced(role: &str, place: &Path, calls: &str, inject: &[&str]) -> (String, String) {
    let trace = TempDir::new("trace");
    let log = trace.join("log");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-qq", "-e", &format!("trace={calls}"), "-o"]).arg(&log);
    for fault in inject {
        command.args(["-e", &format!("inject={fault}")]);
    }
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "disk::child", "--nocapture", "--test-threads=1"]);
    let Output { stdout, stderr, .. } = command
        .env(ROLE, role)
        .env(PLACE, place)
        .output()
        .expect("strace is needed for this test (apt-get install strace)");
    let text = String::from_utf8_lossy(&stdout).to_string() + &String::from_utf8_lossy(&stderr);
    let outcome = text.lines().find_map(|l| l.strip_prefix("OUTCOME ")).unwrap_or_default().to_owned();
    (outcome, fs::read_to_string(&log).unwrap())
}

/// Lines of a trace that are this call on this path, as positions.
fn calls(trace: &str, call: &str, path: &Path) -> Vec<usize> {
    let wanted = format!("<{}>", path.display());
    let hit = |(at, line): (usize, &str)| (line.contains(&format!("{call}(")) && line.contains(&wanted)).then_some(at);
    trace.lines().enumerate().filter_map(hit).collect()
}

#[test]
fn a_new_object_is_synced_up_to_the_root_before_it_counts() {
    let dir = TempDir::new("disk");
    let (outcome, trace) = traced("put", dir.path(), "fsync,fdatasync,link,linkat", &[]);
    assert_eq!(outcome, "Created");
    let lines: Vec<&str> = trace.lines().collect();
    let link = lines.iter().position(|l| l.contains("link")).expect("a link");
    let before = lines[..link].iter().any(|l| l.contains("fsync(") && l.contains("/a/b/.staging-"));
    assert!(before, "the file is synced before it gets its name:\n{trace}");
    for folder in ["", "a", "a/b"] {
        let path = if folder.is_empty() { dir.path().to_owned() } else { dir.join(folder) };
        assert!(calls(&trace, "fsync", &path).iter().any(|at| *at > link), "{folder:?} is synced after it:\n{trace}");
    }
}

/// For each further object that would be a flush of the disk for each of them. Folders that somebody else has made are not known to be on the disk.
#[test]
fn folders_are_synced_once_and_again_where_they_are_others() {
    let dir = TempDir::new("disk");
    let (synced, bad) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Mutex::new(None)));
    let (noted, failing) = (synced.clone(), bad.clone());
    let medium = HookedDisk::new(move |call| match call {
        Call::Sync(path) if failing.lock().unwrap().as_ref() == Some(&path) => {
            Err(std::io::Error::from_raw_os_error(5))
        }
        Call::Sync(path) if !durable::is_staging(path.file_name().unwrap().to_str().unwrap()) => {
            noted.lock().unwrap().insert(path);
            Ok(())
        }
        _ => Ok(()),
    });
    let repo = Repository::in_directory(dir.path().to_owned(), Arc::new(medium));
    let stored = |name: &str| {
        runtime().block_on(put(&repo, name, 1, 1, Duration::ZERO)).map(|_| {
            let below = |path: PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
            std::mem::take(&mut *synced.lock().unwrap()).into_iter().map(below).collect::<Vec<_>>()
        })
    };
    assert_eq!(stored("c/wal/1/g/a").unwrap(), ["", "c", "c/wal", "c/wal/1", "c/wal/1/g"]);
    assert_eq!(stored("c/wal/1/g/b").unwrap(), ["c/wal/1/g"]);
    assert_eq!(stored("c/packs/x/0").unwrap(), ["c", "c/packs", "c/packs/x"]);
    fs::remove_dir_all(dir.join("c/wal/1")).unwrap();
    fs::create_dir_all(dir.join("c/wal/1/g")).unwrap();
    assert_eq!(stored("c/wal/1/g/a").unwrap(), ["c/wal", "c/wal/1", "c/wal/1/g"], "another one of that name");
    fs::create_dir_all(dir.join("c/wal/2/g")).unwrap();
    *bad.lock().unwrap() = Some(dir.join("c/wal"));
    assert!(stored("c/wal/2/g/a").is_err());
    *bad.lock().unwrap() = None;
    synced.lock().unwrap().clear();
    assert_eq!(stored("c/wal/2/g/b").unwrap(), ["c/wal", "c/wal/2", "c/wal/2/g"], "what failed does not count");
}

/// A writer was killed between giving the name and syncing the directory: the next one finds the name, and syncs before he believes it.
#[test]
fn a_name_that_is_found_is_synced_before_it_counts() {
    let dir = TempDir::new("disk");
    let (outcome, trace) = traced("put", dir.path(), "unlink,unlinkat", &["unlink,unlinkat:signal=KILL:when=1"]);
    assert_eq!(outcome, "", "killed:\n{trace}");
    let path = dir.join("a/b/object");
    assert_eq!(fs::read(&path).unwrap(), joined(&object(1, 1, 100)), "the name is there");
    let (outcome, trace) = traced("put", dir.path(), "fsync", &[]);
    assert_eq!(outcome, "Ours");
    for found in [&path, &dir.join("a/b"), &dir.join("a"), &dir.path().to_owned()] {
        assert!(!calls(&trace, "fsync", found).is_empty(), "{} is not synced:\n{trace}", found.display());
    }
    let left = names(&dir.join("a/b")).into_iter().filter(|n| durable::is_staging(n)).count();
    assert_eq!(
        (left, durable::clean_staging(&Disk, dir.path(), Duration::ZERO).unwrap()),
        (1, 1),
        "what the dead one left"
    );
    assert!(path.exists());
}

#[test]
fn an_object_whose_sync_fails_is_not_stored() {
    // Every sync fails: the file, again and again.
    let dir = TempDir::new("disk");
    fs::create_dir_all(dir.join("a/b")).unwrap();
    let (outcome, _) = traced("put", dir.path(), "fsync", &["fsync:error=EIO"]);
    assert!(outcome.starts_with("error transient=true"), "{outcome}");
    assert!(!dir.join("a/b/object").exists());
    assert!(names(&dir.join("a/b")).is_empty());
    // The first file's sync fails: a new file is written.
    let (outcome, trace) = traced("put", dir.path(), "fsync,link,linkat", &["fsync:error=EIO:when=1"]);
    assert_eq!(outcome, "Created", "{trace}");
    let staged: BTreeSet<&str> = trace
        .lines()
        .filter_map(|l| Some(l.split_once("fsync(")?.1.split_once(".staging-")?.1.split_once('>')?.0))
        .collect();
    assert_eq!(staged.len(), 2, "never the same file again:\n{trace}");
    // The directory's sync fails: nobody can say whether the name will be there.
    for when in 2..=4 {
        let dir = TempDir::new("disk");
        fs::create_dir_all(dir.join("a/b")).unwrap();
        let (outcome, trace) = traced("put", dir.path(), "fsync", &[&format!("fsync:error=EIO:when={when}")]);
        assert!(
            outcome.starts_with("error transient=false cannot store a/b/object: cannot sync directory"),
            "{outcome}\n{trace}"
        );
    }
    // Found, but its directory cannot be synced: it does not count.
    let (outcome, _) = traced("put", dir.path(), "fsync", &["fsync:error=EIO:when=2+"]);
    assert!(outcome.starts_with("error transient=false cannot sync"), "{outcome}");
}

#[test]
fn a_full_disk_is_told_and_may_pass() {
    let dir = TempDir::new("disk");
    let (outcome, _) = traced("put", dir.path(), "fsync", &["fsync:error=ENOSPC:when=3+"]);
    assert!(outcome.starts_with("error transient=true") && outcome.contains("No space left"), "{outcome}");
    assert!(!dir.join("a/b/object").exists());
}

/// Without room for zeros there is room for what is written.
#[test]
fn a_tail_file_grows_where_zeros_find_no_room() {
    let dir = TempDir::new("disk");
    for (n, fault) in ["pwrite64:error=ENOSPC:when=3", "fsync:error=ENOSPC:when=1"].iter().enumerate() {
        let place = dir.join(n.to_string());
        fs::create_dir_all(&place).unwrap();
        let (outcome, trace) = traced("tail", &place, "fsync,fdatasync,pwrite64", &[fault]);
        assert!(trace.contains("INJECTED"), "{trace}");
        assert_eq!(outcome, "durable durable", "{fault}\n{trace}");
        assert_eq!(fs::read(place.join("one.open")).unwrap(), b"preamblefirstagain", "no zeros behind it");
        assert_eq!(names(&place), BTreeSet::from(["one.open".to_owned()]), "the half of the zeros is gone");
    }
    let (outcome, _) = traced("tail", &dir.join("bad"), "pwrite64", &["pwrite64:error=EIO:when=3"]);
    assert_eq!(outcome, "", "another error is no lack of room");
}

#[test]
fn a_tail_file_is_dead_after_a_failed_sync() {
    let dir = TempDir::new("disk");
    let (outcome, _) = traced("tail", &dir.join("ok"), "fdatasync", &[]);
    assert_eq!(outcome, "durable durable");
    // The first sync is that of the preamble. Only one fails: the kernel would say yes to the next.
    let faults = ["fdatasync:error=EIO:when=3", "pwrite64:error=ENOSPC:when=7", "pwrite64:error=EIO:when=7"];
    for (n, fault) in faults.iter().enumerate() {
        let place = dir.join(n.to_string());
        let (outcome, trace) = traced("tail", &place, "fdatasync,pwrite64", &[fault]);
        assert_eq!(outcome, "durable failed transient=true dead=true new=true", "{fault}\n{trace}");
        // Its descriptor is still called by the name that it had first.
        let dead = trace.lines().position(|l| l.contains("INJECTED")).expect("a fault");
        let name = trace.lines().nth(dead).and_then(|l| Some(l.split_once(".staging-")?.1.split_once('>')?.0)).unwrap();
        assert!(
            !trace.lines().skip(dead + 1).any(|l| l.contains(name)),
            "the dead file is never touched again:\n{trace}"
        );
        assert!(fs::read(place.join("two.open")).unwrap().starts_with(b"preambleagain"));
    }
}
