//! Restores of the real program that are killed, and the same command again, which goes on with what they left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use walrecv::pg::MajorVersion;

use crate::site::{Site, end, verify, wait_durable};
use crate::support::user::{as_postgres, give_to_postgres};
use crate::support::{Seed, Server, install, rounds, strace};

const MARK: &str = ".walrecv-restore";

/// Content of every file below `root` but what a restore writes anew each time.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut out, mut waiting) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below").to_path_buf();
            if path.is_dir() && !path.is_symlink() && name != Path::new("pg_wal") {
                waiting.push(path);
            } else if path.is_file() && !["tablespace_map", "backup_manifest"].contains(&&*name.to_string_lossy()) {
                out.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    out
}

struct Scene {
    server: Server,
    site: Site,
    space: PathBuf,
    seed: Seed,
    /// How long an undisturbed restore takes: the shortest that was seen, since one alone may have met a disk that stood still.
    takes: Duration,
    /// What it laid.
    truth: BTreeMap<PathBuf, Vec<u8>>,
    /// The same of the tablespace.
    space_truth: BTreeMap<PathBuf, Vec<u8>>,
}

impl Scene {
    fn new(version: MajorVersion) -> Scene {
        let seed = Seed::of_run();
        let server = Server::start(version);
        let site = Site::new(&server);
        let space = site.places.postgres_dir("space");
        server.sql(&format!("create tablespace extra location '{}'", space.display()));
        let rows = "as select n, md5(n::text) || md5(random()::text) as t from generate_series(1, 80000) n";
        server.sql(&format!("create table noise {rows}"));
        server.sql(&format!("create table there tablespace extra {rows}"));
        server.sql("checkpoint");
        let receiving = site.receive(&[]);
        site.backup();
        server.sql("update noise set t = t || 'x' where n < 30000");
        server.sql("create table later as select n from generate_series(1, 50000) n");
        wait_durable(&server, server.lsn());
        end(receiving);
        let (takes, truth, space_truth) = (Duration::ZERO, BTreeMap::new(), BTreeMap::new());
        let mut scene = Scene { server, site, space, seed, takes, truth, space_truth };
        let begun = Instant::now();
        scene.restore("fresh", "fresh space").run().expect_code(0);
        scene.takes = begun.elapsed();
        scene.truth = contents(&scene.site.data("fresh"));
        scene.space_truth = contents(&scene.site.data("fresh space"));
        scene
    }

    fn restore(&self, name: &str, space: &str) -> crate::support::Walrecv {
        let mapping = format!("{}={}", self.space.display(), self.site.data(space).display());
        let to = ["--latest", "--jobs", "2", "--output", "json", "--tablespace-mapping", &mapping];
        self.site.restore(&self.server, name, &to)
    }

    /// Kills a restore somewhere on its way; whether it had not ended before.
    fn kill(&mut self, name: &str, space: &str, more: &[&str]) -> bool {
        let after = self.seed.below(self.takes.as_micros() as u64 * 2 / 3);
        let mut running = self.restore(name, space).args(more).spawn();
        std::thread::sleep(Duration::from_micros(after));
        let ended = running.try_wait().is_some();
        if ended {
            self.takes = self.takes.min(Duration::from_micros(after));
        } else {
            running.kill();
        }
        !ended
    }

    /// No server comes up on what a killed restore left.
    fn demand_no_start(&self, data: &Path) {
        let mut command = as_postgres(self.server.bin_dir().join("postgres"));
        let output = command.arg("-D").arg(data).args(["-c", "listen_addresses="]).output().expect("run postgres");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
    }

    fn demand_right(&self, name: &str, space: &str) {
        let same = |found: BTreeMap<PathBuf, Vec<u8>>, truth: &BTreeMap<PathBuf, Vec<u8>>| {
            assert!(found.keys().eq(truth.keys()), "{:?}", found.keys());
            let differing: Vec<_> = found.iter().filter(|(name, content)| truth[*name] != **content).collect();
            let names: Vec<_> = differing.iter().map(|(name, _)| name).collect();
            assert!(names.is_empty(), "{names:?}");
        };
        same(contents(&self.site.data(name)), &self.truth);
        same(contents(&self.site.data(space)), &self.space_truth);
        verify(&self.server, &self.site.data(name));
    }
}

/// Whether something was laid there already: the first of these files has bytes that are not zero.
fn has_pages(folder: &Path) -> bool {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read(file.path()).ok()).any(|content| content.iter().any(|byte| *byte != 0))
}

/// Kills restores into the same place again and again, until one was killed half way at last, with something to keep. After each such one no server starts. One
/// that is complete is `begun_anew`.
fn kill_often(scene: &mut Scene, (name, space): (&str, &str), more: &[&str], begun_anew: &dyn Fn(&Scene)) {
    let data = scene.site.data(name);
    let (mut rounds, mut halves, mut whole) = (rounds(5, 60), 0, 0);
    while rounds > 0 || !data.join(MARK).exists() || !has_pages(&data.join("base/1")) {
        rounds = rounds.saturating_sub(1);
        if !scene.kill(name, space, more) {
            whole += 1;
            assert!(whole < 50, "none can be killed in time");
            begun_anew(scene);
            continue;
        }
        if !has_pages(&data.join("base/1")) {
            // Too early, perhaps on a machine that has become slower since.
            scene.takes += scene.takes / 8;
        }
        if data.join(MARK).exists() && !data.join("global/pg_control").exists() {
            halves += 1;
            if halves % 3 == 1 {
                scene.demand_no_start(&data);
            }
        }
    }
    println!("{halves} were killed half way, {whole} were complete; an undisturbed one takes {:?}", scene.takes);
}

#[test]
fn a_killed_restore_is_gone_on_with_and_never_starts_before_it_is_whole() {
    install::story_versions(&[MajorVersion::V16]).into_iter().for_each(killed_and_gone_on_with);
}

fn killed_and_gone_on_with(version: MajorVersion) {
    let mut scene = Scene::new(version);
    let remove = |scene: &Scene| {
        for name in ["copy", "copy space"] {
            fs::remove_dir_all(scene.site.data(name)).expect("gone");
        }
    };
    kill_often(&mut scene, ("copy", "copy space"), &[], &remove);
    let data = scene.site.data("copy");
    let mark = fs::read(data.join(MARK)).expect("what a killed one left");
    let put_mark = |content: &[u8]| {
        fs::write(data.join(MARK), content).expect("a mark");
        give_to_postgres(&data.join(MARK));
    };
    let told = scene.restore("copy", "copy space").run().expect_code(0).json();
    assert!(told["restored"]["kept"].as_u64() > Some(0), "{told}");
    scene.demand_right("copy", "copy space");
    assert!(!data.join(MARK).exists() && !scene.site.data("copy space").join(MARK).exists());
    // Whole: somebody's.
    scene.restore("copy", "copy space").run().expect_code(2);
    if strace::possible() {
        demand_doubt(&scene);
    }

    // As a kill leaves it when only pg_control is missing: the tablespace says nothing of a restore any more.
    fs::remove_file(data.join("global/pg_control")).expect("gone");
    scene.restore("copy", "copy space").run().expect_code(2);
    put_mark(&mark);
    let told = scene.restore("copy", "copy space").run().expect_code(0).json()["restored"].clone();
    assert!(told["kept"].as_u64() > told["bytes"].as_u64().map(|all| all * 9 / 10), "{told}");
    scene.demand_right("copy", "copy space");
    // What another cluster's restore left, or nobody can read, is not touched.
    fs::remove_file(data.join("global/pg_control")).expect("gone");
    let text = String::from_utf8(mark).expect("text");
    let system = scene.server.sql("select system_identifier from pg_control_system()");
    put_mark(text.replace(&system, "4711").as_bytes());
    scene.restore("copy", "copy space").run().expect_code(13);
    put_mark(b"");
    scene.restore("copy", "copy space").run().expect_code(2);
    assert_eq!(fs::read(data.join(MARK)).expect("a mark"), b"");

    // The same over the old primary, whose server is dead.
    scene.server.kill9();
    let (old, space) = (scene.server.data_dir().display().to_string(), scene.space.display().to_string());
    scene.restore(&old, &space).run().expect_code(2);
    // It might run where it cannot be seen, and only a person knows better.
    let told = scene.restore(&old, &space).arg("--delta").run().expect_code(2);
    assert!(told.stderr.contains("postmaster.pid"), "{}", told.stderr);
    fs::remove_file(Path::new(&old).join("postmaster.pid")).expect("gone");
    kill_often(&mut scene, (&old, &space), &["--delta"], &|_| ());
    scene.restore(&old, &space).arg("--delta").run().expect_code(0);
    scene.demand_right(&old, &space);
    let copy =
        scene.site.land(&scene.server, "last", &["--latest", "--tablespace-mapping", &format!("{space}={space} 2")]);
    assert_eq!(copy.value("select count(*) from later"), "50000");
    drop(copy);
    let found = wake(&scene, &old);
    assert_eq!(found, "80000 80000 50000");
}

/// A sync that failed took pages from the disk that memory goes on showing: the next restore keeps none of them, even if one that ended otherwise lies between.
fn demand_doubt(scene: &Scene) {
    let (data, space) = ("doubted", "doubted space");
    let bad = scene.site.data(data).join("base/1/PG_VERSION");
    let interfered = |inject| {
        let command = scene.restore(data, space).interfered(inject, &bad);
        command.by_postgres().dir(&scene.site.etc()).run()
    };
    let told = interfered("fsync:error=EIO").expect_code(1);
    assert!(told.stderr.contains("cannot sync"), "{}", told.stderr);
    let root = scene.site.data(data);
    assert!(!root.join("global/pg_control").exists() && has_pages(&root.join("base/1")));
    let told = interfered("openat:error=EACCES").expect_code(1);
    assert!(told.stderr.contains("base/1/PG_VERSION"), "{}", told.stderr);
    let told = scene.restore(data, space).run().expect_code(0).json();
    assert_eq!(told["restored"]["kept"], 0, "{told}");
    scene.demand_right(data, space);
}

/// Starts the server on what was laid, and counts rows when it has recovered.
fn wake(scene: &Scene, data: &str) -> String {
    let server = Server::builder(scene.server.version()).on_data_dir(Path::new(data)).start();
    server.wait_sql("select pg_is_in_recovery()", "f");
    let counts = ["noise", "there", "later"].map(|table| server.sql(&format!("select count(*) from {table}")));
    counts.join(" ")
}
