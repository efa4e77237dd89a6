//! A recovery is never ended early: at every request for WAL the repository is made to fail, one request and one failure at a time. The server stops, or
//! waits and goes on; it never opens short of the plan, and once all is well again it lands where the plan says.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use walrecv::pg::{Lsn, MajorVersion, SegmentName, SegmentNumber, TimelineId};
use walrecv::repo::{Found, Repository};
use walrecv::restore::{self, Options, Prepared, Target};

use super::net::run;
use super::restore::{Copy, Story, numbers};
use crate::support::proxy::Proxy;
use crate::support::{Moto, Seed, Server, install, moto, rounds, wait_for};

/// How long a failure lasts that is waited for.
const WHILE: Duration = Duration::from_millis(700);

/// What becomes of the repository, or of the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// Not there for a while, as a disk that is mounted again.
    Away,
    /// An empty folder in its place for a while, as a mount point.
    Empty,
    /// May not be read by the server's user.
    Denied,
    /// The object that was asked for: a bit changed, cut, gone, another one in its place.
    Flipped,
    Cut,
    Gone,
    Swapped,
    /// The plan has no private key, another one, or is no plan any more.
    KeyGone,
    KeyWrong,
    PlanBroken,
    PlanGone,
    /// The bucket refuses connections, or does not answer, for a while.
    Refused,
    Silent,
    /// It answers 403, or 503 for a while.
    Forbidden,
    Busy,
}

const LOCAL: [Harm; 11] = [
    Harm::Away,
    Harm::Empty,
    Harm::Denied,
    Harm::Flipped,
    Harm::Cut,
    Harm::Gone,
    Harm::Swapped,
    Harm::KeyGone,
    Harm::KeyWrong,
    Harm::PlanBroken,
    Harm::PlanGone,
];
/// How many of them are tried where time is short.
const FEW: usize = 6;

const BUCKET: [Harm; 4] = [Harm::Refused, Harm::Silent, Harm::Forbidden, Harm::Busy];

impl Harm {
    /// Whether it ends by itself.
    fn passes(self) -> bool {
        matches!(self, Harm::Away | Harm::Empty) || self.is_waited_for()
    }

    /// Whether the server only waits meanwhile.
    fn is_waited_for(self) -> bool {
        matches!(self, Harm::Refused | Harm::Silent | Harm::Busy)
    }
}

/// Two timelines over several segments, a plan to their end, and the same repository as a folder and in a bucket behind a proxy.
struct Scene {
    story: Story,
    prepared: Prepared,
    rows: i64,
    bucket: Option<Bucket>,
}

struct Bucket {
    url: String,
    proxy: Proxy,
    moto: &'static Moto,
}

impl Scene {
    fn new(version: MajorVersion) -> Scene {
        let mut story = Story::new(Server::start(version));
        story.backup();
        for _ in 0..4 {
            story.write(3);
            story.server.switch_wal();
        }
        story.write(2);
        story.archive_and_die();
        Scene::promote(&story);
        let prepared = story.prepare(Target::Latest).expect("a plan");
        assert_eq!(prepared.plan.timelines.len(), 2, "{:?}", prepared.plan.timelines);
        let bucket = moto::present().then(|| Bucket::filled(&story));
        Scene { story, prepared, rows: 20, bucket }
    }

    /// A restored server goes on for a while, and its WAL is stored as well.
    fn promote(story: &Story) {
        let prepared = story.prepare(Target::Latest).expect("a plan");
        let options = story.options("promoted");
        story.restore(&prepared, &options).expect("a restore");
        let copy = story.start(&prepared, &options).expect("a server");
        for rows in [15..=17, 18..=20] {
            let (from, to) = (rows.start(), rows.end());
            copy.value(&format!("insert into story select n, 'x' from generate_series({from}, {to}) n returning n"));
            copy.value("select pg_switch_wal()");
        }
        let end: Lsn = copy.value("select pg_current_wal_flush_lsn()").parse().expect("a position");
        let pg_wal = options.pgdata.join("pg_wal");
        let (two, history) = (TimelineId(2), fs::read(pg_wal.join("00000002.history")).expect("a history"));
        let text = String::from_utf8_lossy(&history).into_owned();
        let fork: Lsn = text.split('\t').nth(1).and_then(|at| at.parse().ok()).expect("a switch point");
        run(story.shelf.put_history(two, &history));
        run(story.shelf.put_files(&pg_wal, two, fork, end));
    }

    fn root(&self) -> PathBuf {
        self.story.places.join("repository")
    }

    fn options(&self, name: &str, shim: &Path, ahead: bool) -> Options {
        let budget = if ahead { "3MB" } else { "0" };
        let fetch_arguments = vec!["--prefetch".to_owned(), budget.to_owned()];
        Options { program: shim.to_path_buf(), fetch_arguments, ..self.story.options(name) }
    }

    /// Restores into `name` with a shim that asks before each request, and lets `at` be what happens before the request of that number.
    fn recover(&self, name: &str, at: Option<(u32, Harm)>, ahead: bool) -> Vec<String> {
        let gate = Gate::new(self, name);
        let in_bucket = at.is_some_and(|(_, harm)| BUCKET.contains(&harm));
        let options = self.options(name, &gate.shim, ahead);
        let mut access = self.story.shelf.access();
        if let (true, Some(bucket)) = (in_bucket, &self.bucket) {
            access.url = bucket.url.clone();
        }
        let archive = &self.story.shelf.archive;
        run(restore::restore(archive, access, &self.prepared, &options, &|_, _| ())).expect("a restore");
        let plan = options.pgdata.join("pg_wal/walrecv/plan.json");
        let kept = fs::read(&plan).expect("a plan");
        let mut asked = Vec::new();
        let first = std::thread::scope(|scope| {
            let served = scope.spawn(|| gate.serve(self, at, &plan));
            let outcome = self.story.start(&self.prepared, &options);
            gate.over.store(true, Ordering::SeqCst);
            asked = served.join().expect("a thread");
            outcome
        });
        match (first, at) {
            (Ok(copy), at) => {
                self.landed(&copy);
                // An object that is asked for later than it was damaged would have stopped it: so it was served before, or not needed.
                println!("  {at:?}: went on");
            }
            (Err(error), None) => panic!("nothing was done to it: {error}"),
            (Err(error), Some((_, harm))) => {
                assert!(!harm.is_waited_for(), "{harm:?} passed, and it was not waited for: {error}");
                println!("  {at:?}: stopped");
                // As a person would after mending it.
                if !plan.exists() && options.pgdata.join("recovery.signal").exists() {
                    // A prefetcher that ends takes the folder away that it leaves empty.
                    let folder = plan.parent().expect("a folder");
                    wait_for("the plan to be back", || {
                        fs::create_dir_all(folder).and_then(|()| fs::write(&plan, &kept)).ok()
                    });
                    crate::support::user::give_to_postgres(folder);
                    crate::support::user::give_to_postgres(&plan);
                } else if plan.exists() {
                    fs::write(&plan, &kept).expect("put the plan back");
                }
                gate.free();
                let copy = self.story.start(&self.prepared, &options).unwrap_or_else(|e| panic!("{at:?}, mended: {e}"));
                self.landed(&copy);
            }
        }
        fs::remove_dir_all(&options.pgdata).expect("remove the copy");
        asked
    }

    fn landed(&self, copy: &Copy) {
        let landed = copy.started.landed;
        assert!(landed.is_none_or(|landed| landed == self.prepared.choice.landing.replayed), "landed at {landed:?}");
        assert_eq!(copy.rows(), numbers(self.rows), "it was opened early");
    }

    /// Does it, and returns what undoes it.
    fn harm(&self, harm: Harm, name: &str, plan: &Path) -> Box<dyn FnOnce() + Send> {
        let (root, aside) = (self.root(), self.story.places.join("aside"));
        let rename = |from: &Path, to: &Path| fs::rename(from, to).expect("rename");
        match harm {
            Harm::Away => {
                rename(&root, &aside);
                Box::new(move || fs::rename(aside, root).expect("rename"))
            }
            Harm::Empty => {
                rename(&root, &aside);
                fs::create_dir(&root).expect("a folder");
                fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("a mode");
                Box::new(move || {
                    fs::remove_dir(&root).expect("an empty folder");
                    fs::rename(aside, root).expect("rename");
                })
            }
            Harm::Denied => {
                let before = fs::metadata(&root).expect("a folder").permissions();
                fs::set_permissions(&root, fs::Permissions::from_mode(0o000)).expect("a mode");
                Box::new(move || fs::set_permissions(root, before).expect("a mode"))
            }
            Harm::Flipped | Harm::Cut | Harm::Gone | Harm::Swapped => self.harm_object(harm, name),
            Harm::KeyGone | Harm::KeyWrong | Harm::PlanBroken | Harm::PlanGone => {
                harm_plan(harm, plan);
                Box::new(|| ())
            }
            Harm::Refused | Harm::Silent | Harm::Forbidden | Harm::Busy => self.harm_bucket(harm),
        }
    }

    fn harm_object(&self, harm: Harm, name: &str) -> Box<dyn FnOnce() + Send> {
        let names = &self.story.shelf.archive.names;
        let segment = SegmentName::parse(name, names.segment_size);
        let stored = match (segment, TimelineId::from_history_name(name)) {
            (Some(segment), _) => vec![names.segment(segment, None), names.partial(segment)],
            (_, Some(timeline)) => vec![names.history(timeline)],
            _ => Vec::new(),
        };
        let found = stored.iter().map(|name| self.story.shelf.file(name)).find(|file| file.exists());
        let Some(file) = found else { return Box::new(|| ()) };
        let whole = fs::read(&file).expect("an object");
        match harm {
            Harm::Gone => fs::remove_file(&file).expect("remove"),
            Harm::Cut => fs::write(&file, &whole[..whole.len() / 2]).expect("write"),
            Harm::Swapped => {
                // A history has none of its kind beside it.
                let other = self.segments().find(|path| *path != file).expect("another object");
                fs::write(&file, fs::read(other).expect("an object")).expect("write");
            }
            _ => {
                let mut bytes = whole.clone();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 8;
                fs::write(&file, bytes).expect("write");
            }
        }
        Box::new(move || fs::write(file, whole).expect("write"))
    }

    /// The stored segments of the first timeline.
    fn segments(&self) -> impl Iterator<Item = PathBuf> {
        let names = &self.story.shelf.archive.names;
        let segment = |number| SegmentName::new(TimelineId(1), SegmentNumber(number), names.segment_size);
        let files = (0..32).map(move |number| self.story.shelf.file(&names.segment(segment(number), None)));
        files.filter(|file| file.exists())
    }

    fn harm_bucket(&self, harm: Harm) -> Box<dyn FnOnce() + Send + 'static> {
        let bucket = self.bucket.as_ref().expect("a bucket");
        match harm {
            Harm::Refused => bucket.proxy.refuse(true),
            Harm::Silent => bucket.proxy.stall(true),
            Harm::Forbidden => bucket.proxy.lead_to(answering("403 Forbidden", "AccessDenied")),
            _ => bucket.proxy.lead_to(answering("503 Slow Down", "SlowDown")),
        }
        Box::new(|| ())
    }

    /// The way to the bucket as it was.
    fn clear_way(&self) {
        if let Some(bucket) = &self.bucket {
            bucket.proxy.refuse(false);
            bucket.proxy.stall(false);
            bucket.proxy.lead_to(bucket.moto.port());
        }
    }
}

fn harm_plan(harm: Harm, plan: &Path) {
    let read = || fs::read_to_string(plan).expect("a plan");
    let put = |text: String| fs::write(plan, text).expect("write a plan");
    // Gone with the recovery that it was for.
    if !plan.exists() {
        return;
    }
    let with_identity = |value: serde_json::Value| {
        let mut json: serde_json::Value = serde_json::from_str(&read()).expect("JSON");
        json["identity"] = value;
        put(json.to_string());
    };
    match harm {
        Harm::KeyGone => with_identity(serde_json::Value::Null),
        Harm::KeyWrong => with_identity(walrecv::keys::setup::generate().identity.to_string().into()),
        Harm::PlanBroken => put(read()[..100].to_owned()),
        _ => fs::remove_file(plan).expect("remove a plan"),
    }
}

impl Bucket {
    fn filled(story: &Story) -> Bucket {
        let moto = Moto::shared();
        let url = moto.bucket("requests");
        let env = moto.env();
        let get = |key: &str| env.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
        let (from, to) = (&story.shelf.archive.repo, Repository::open(&url, &get).expect("a bucket"));
        for listed in run(from.list("")).expect("a listing") {
            let bytes = run(from.get(&listed.name)).expect("a read").expect("an object");
            run(to.put_once(&listed.name, &[bytes], &|_| Found::Different, Duration::from_secs(20))).expect("a put");
        }
        // No object of a backup, and no name that `list` gives.
        let marker = fs::read(story.shelf.file("walrecv.json")).expect("a repository");
        let put = run(to.put_once("walrecv.json", &[marker.into()], &|_| Found::Equal, Duration::from_secs(20)));
        put.expect("a put");
        Bucket { url, proxy: Proxy::start(moto.port()), moto }
    }

    fn exports(&self) -> String {
        let mut env = self.moto.env();
        let through = format!("http://127.0.0.1:{}", self.proxy.port);
        env.iter_mut().filter(|(name, _)| name.starts_with("AWS_ENDPOINT")).for_each(|(_, url)| *url = through.clone());
        env.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect()
    }
}

/// A server that gives every request this answer.
fn answering(status: &str, code: &str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let port = listener.local_addr().expect("an address").port();
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\n");
    let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = client.read(&mut [0; 16 << 10]);
            let _ = client.write_all(answer.as_bytes());
        }
    });
    port
}

/// Stands between the server and `wal-fetch`: every request is announced, and goes on when it is let.
struct Gate {
    folder: PathBuf,
    shim: PathBuf,
    over: Arc<AtomicBool>,
}

impl Gate {
    fn new(scene: &Scene, name: &str) -> Gate {
        let folder = scene.story.places.postgres_dir(&format!("{name}.gate"));
        let shim = folder.join("shim");
        let exports = scene.bucket.as_ref().map(Bucket::exports).unwrap_or_default();
        let (dir, program) = (folder.display(), crate::support::walrecv::path().display());
        // Nobody lets it go on where the tests have been killed.
        let tests = std::process::id();
        // One request at a time: the server asks for the next one when it has this one. A prefetcher asks nobody.
        let text = format!(
            "#!/bin/sh\n{exports}n=$(($(ls {dir} | grep -c '^asked') + 1))\neval name=\\${{$(($# - 1))}}\necho \"$name\" > {dir}/new.$n\n\
             mv {dir}/new.$n {dir}/asked.$n\nwhile [ ! -e {dir}/go.$n ] && [ ! -e {dir}/free ]; do\n\
             [ -e /proc/{tests} ] || exit 200\nsleep 0.01; done\nexec {program} \"$@\"\n"
        );
        fs::write(&shim, text).expect("write a script");
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).expect("a mode");
        Gate { folder, shim, over: Arc::default() }
    }

    /// Lets every request go on, the chosen one after harm was done. Ends what ends by itself; everything is as it was when this returns. The names.
    fn serve(&self, scene: &Scene, at: Option<(u32, Harm)>, plan: &Path) -> Vec<String> {
        let (mut asked, mut undo) = (Vec::new(), None);
        while !self.over.load(Ordering::SeqCst) {
            let number = asked.len() as u32 + 1;
            let Ok(name) = fs::read_to_string(self.folder.join(format!("asked.{number}"))) else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            asked.push(name.trim().to_owned());
            let harm = at.filter(|(at, _)| *at == number).map(|(_, harm)| harm);
            let undone = harm.map(|harm| (harm, scene.harm(harm, name.trim(), plan)));
            fs::write(self.folder.join(format!("go.{number}")), "").expect("let it go on");
            if let Some((harm, undone)) = undone {
                if harm.passes() {
                    std::thread::sleep(WHILE);
                    undone();
                    scene.clear_way();
                } else {
                    undo = Some(undone);
                }
            }
        }
        undo.into_iter().for_each(|undo| undo());
        scene.clear_way();
        asked
    }

    fn free(&self) {
        fs::write(self.folder.join("free"), "").expect("let all go on");
    }
}

#[test]
fn at_no_request_can_a_failing_repository_end_a_recovery() {
    let mut seed = Seed::of_run();
    for version in install::story_versions(&[MajorVersion::V17]) {
        println!("PostgreSQL {version}");
        fail_at_requests(version, &mut seed);
    }
}

fn fail_at_requests(version: MajorVersion, seed: &mut Seed) {
    let scene = Scene::new(version);
    let asked = scene.recover("whole", None, false);
    let different: BTreeSet<&String> = asked.iter().collect();
    println!("{asked:?}");
    assert!(different.len() >= 8 && asked.iter().any(|name| name == "00000002.history"), "{asked:?}");
    let requests = asked.len() as u32;
    let harms: Vec<Harm> = LOCAL.iter().chain(BUCKET.iter().filter(|_| scene.bucket.is_some())).copied().collect();
    let all = harms.iter().flat_map(|harm| (1..=requests).map(|at| (at, *harm)));
    // Every failure at every request in a night; otherwise a few failures, each at some request.
    let mut cases: Vec<(u32, Harm)> = all.collect();
    if rounds(0, 1) == 0 {
        let mut left = harms.clone();
        cases.clear();
        for _ in 0..FEW {
            let harm = left.swap_remove(seed.below(left.len() as u64) as usize);
            cases.push((2 + seed.below(u64::from(requests) - 1) as u32, harm));
        }
    }
    // In no order, so that a night that is cut short has seen some of everything.
    for place in (1..cases.len()).rev() {
        cases.swap(place, seed.below(place as u64 + 1) as usize);
    }
    for (number, (at, harm)) in cases.into_iter().enumerate() {
        let ahead = seed.below(4) == 0;
        println!("{harm:?} at request {at} ({}), ahead {ahead}", asked[at as usize - 1]);
        scene.recover(&format!("case{number}"), Some((at, harm)), ahead);
    }
}
