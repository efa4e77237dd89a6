//! A server is lost on purpose and restored, and what was lost is counted. Run by `pg-test-env/demo`; uses walrecv only
//! as a user would, by its commands.

mod copy;
mod production;
mod screen;
#[path = "../../proto-tests/support/mod.rs"]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use copy::Copy;
use production::{Acknowledged, Load, Moment, Production, count_invoices, size_of};
use screen::{Screen, mib, seconds, share};
use support::ledger::Entry;
use support::walrecv::Running;
use support::{TempDir, Walrecv, install, temp};
use walrecv::pg::{Lsn, MajorVersion};

/// How long the load is measured before the accident.
const BEFORE: Duration = Duration::from_secs(10);
/// How long it goes on after the accident.
const AFTER: Duration = Duration::from_secs(4);
/// Rest around the target, so that every commit lies clearly on one side of it.
const REST: Duration = Duration::from_secs(1);
/// The unfinished segment is durable within the flush interval of one second; the rest is what a busy machine adds.
const RPO_LIMIT: Duration = Duration::from_secs(3);

/// All that the steps share. What runs ends with it, in this order.
pub struct Story {
    screen: Screen,
    receiver: Option<Running>,
    production: Production,
    config: String,
    repository: PathBuf,
    folder: PathBuf,
    _places: Option<TempDir>,
}

/// What is known when the server is gone.
struct Lost {
    /// What the ledger was told, before and after the target.
    before: Acknowledged,
    after: Acknowledged,
    target: Moment,
    killed: SystemTime,
    data_bytes: u64,
    wal_from: Lsn,
}

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_else(|| "17".to_string());
    let version = wanted.parse().ok().and_then(MajorVersion::from_number);
    let Some(version) = version.filter(|v| install::bin_dir(*v).join("postgres").exists()) else {
        eprintln!("PostgreSQL {wanted} is not installed: pg-test-env/install --only {wanted}");
        std::process::exit(2);
    };
    let screen = Screen::new("walrecv: a server is lost on purpose, and brought back");
    let told = catch_unwind(AssertUnwindSafe(|| tell(screen, version)));
    let held = told.unwrap_or_else(|_| {
        println!("\nFAIL    the server or the story could not be set up: see above");
        false
    });
    std::process::exit(i32::from(!held));
}

/// The whole story; whether all held.
fn tell(screen: Screen, version: MajorVersion) -> bool {
    let mut story = begin(screen, version);
    let broken = catch_unwind(AssertUnwindSafe(|| {
        let lost = lose(&mut story);
        let to_target = before_the_accident(&mut story, &lost);
        drop(to_target);
        let to_end = the_end_of_the_archive(&mut story, &lost);
        drop(to_end);
        sizes(&mut story, &lost);
    }));
    if let (Err(_), Some(receiver)) = (&broken, &story.receiver) {
        eprintln!("--- what walrecv receive said\n{}---", receiver.stderr());
    }
    // The panic has printed its own words.
    story.screen.verdict(broken.err().map(|_| "see above"))
}

impl Story {
    /// Runs a command of walrecv that has to succeed, and shows it.
    pub fn walrecv(&self, args: &[&str]) {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_string()).collect();
        self.screen.command(&args);
        let output = Walrecv::new(&args).dir(&self.folder).run();
        self.screen.printed(&output);
        assert_eq!(output.code(), 0, "exit code of walrecv {}", args[0]);
    }
}

fn begin(mut screen: Screen, version: MajorVersion) -> Story {
    screen.step("A PostgreSQL server, to be lost later");
    let production = Production::start(version);
    let server = &production.server;
    screen.figure("server", format!("PostgreSQL {}, 16 MiB segments", server.sql("show server_version")));
    screen.figure("data", mib(production.data_bytes()));
    screen.figure("table invoices", &production.invoices);
    // The script's own folder, which goes with the script; else one of its own.
    let places = std::env::var_os(temp::FOLDER).is_none().then(|| TempDir::new("demo"));
    let folder = places.as_ref().map_or_else(temp::base, |made| made.path().to_path_buf());
    Story {
        screen,
        receiver: None,
        production,
        config: folder.join("walrecv.toml").display().to_string(),
        repository: folder.join("repository"),
        folder,
        _places: places,
    }
}

/// From the first command to the loss of the server.
fn lose(story: &mut Story) -> Lost {
    let wal_from = stream(story);
    story.screen.step("A base backup, while pgbench and the ledger write");
    let load = story.production.load(1);
    load.ledger.wait_for_more(10);
    let config = story.config.clone();
    story.walrecv(&["backup", "--config", &config]);
    let (before, target) = measured_load(story, load);

    story.screen.step("The accident: DROP TABLE invoices, noticed late");
    story.production.server.sql("drop table invoices");
    let next = before.keys().last().map_or(1, |id| id + 1);
    let load = story.production.load(next);
    load.ledger.wait_for_more(10);
    std::thread::sleep(AFTER);
    let data_bytes = story.production.data_bytes();

    let killed = story.production.destroy();
    // A commit that was under way is told to nobody, so the ledger is done with the server by now.
    let entries = load.end();
    // The time of the last commit could not be asked for any more: it is not earlier than that of the one before it.
    let mut latest = target.us;
    let time = |entry: &Entry| {
        latest = entry.committed_us.unwrap_or(latest);
        (entry.id, latest)
    };
    let after: Acknowledged = entries.iter().map(time).collect();
    story.screen.figure("commits acknowledged", format!("{} more after it", after.len()));
    story.screen.step("The disaster: SIGKILL to the whole server under load, its data directory deleted");
    story.screen.check(!story.production.server.data_dir().exists(), "the data directory is gone");
    Lost { before, after, target, killed, data_bytes, wal_from }
}

/// `walrecv init` and `walrecv receive`: where streaming began.
fn stream(story: &mut Story) -> Lsn {
    story.screen.step("A repository, encrypted, and a replication slot");
    let repo = format!("file://{}", story.repository.display());
    let dsn = story.production.server.conninfo("walrecv");
    let config = story.config.clone();
    let slot = ["--slot", "walrecv_main", "--create-slot"];
    let init = ["init", "--config", &config, "--repo", &repo, "--dsn", &dsn];
    story.walrecv(&[&init[..], &slot].concat());

    story.screen.step("Streaming, from now on in the background");
    let args = ["receive", "--config", &config].map(str::to_string);
    story.screen.command(&args);
    let begun = Instant::now();
    let mut receiver = Walrecv::new(&args).dir(&story.folder).spawn();
    receiver.wait_logged("streaming timeline");
    for line in receiver.stderr().lines() {
        println!("   | {line}");
    }
    let from = streaming_from(&receiver.stderr()).expect("where streaming begins");
    story.receiver = Some(receiver);
    let waiting = story.production.wait_streamed().since(from);
    let rate = streaming_rate(waiting, begun.elapsed());
    story.screen.figure("waiting on the slot", format!("{rate}, until durable"));
    from
}

fn streaming_rate(bytes: u64, time: Duration) -> String {
    let per_second = bytes as f64 / time.as_secs_f64();
    format!("{} in {}: {}/s", mib(bytes), seconds(time), mib(per_second as u64))
}

/// Lets the load run, then rest: what was acknowledged, and a moment after all of it.
fn measured_load(story: &mut Story, load: Load) -> (Acknowledged, Moment) {
    story.screen.step("The load goes on, and rests before the accident");
    let production = &story.production;
    let from = production.wait_streamed();
    let (begun, commits) = (Instant::now(), load.ledger.count());
    std::thread::sleep(BEFORE);
    let through = production.streamed().expect("a receiver");
    let (took, end) = (begun.elapsed(), production.server.lsn());
    let rate = (load.ledger.count() - commits) as f64 / took.as_secs_f64();
    let before = production.pause(load);
    production.wait_streamed();
    std::thread::sleep(REST);
    let target = production.now();
    std::thread::sleep(REST);

    let screen = &story.screen;
    screen.figure("ledger", format!("{} commits acknowledged, {rate:.0} a second beside pgbench", before.len()));
    let behind = mib(end.0.saturating_sub(through.0));
    screen.figure("streamed", format!("{}, as the load writes it", streaming_rate(through.since(from), took)));
    screen.figure("not yet durable", format!("{behind} of it at the end, still under load"));
    screen.figure("target time", &target.text);
    let newest = before.values().max().copied().unwrap_or_default();
    screen.figure("last commit before it", format!("{} earlier", seconds(between(newest, target.us))));
    (before, target)
}

fn before_the_accident(story: &mut Story, lost: &Lost) -> Copy {
    story.screen.step("Restore to the moment before the accident");
    let copy = Copy::restore(story, "before-the-accident", &["--target-time", &lost.target.text]);
    let (found, screen) = (copy.ledger(), &mut story.screen);
    screen.figure("first answer after", seconds(copy.took));

    let invoices = copy.ask(count_invoices());
    screen.check(invoices == story.production.invoices, format!("the table is back: {invoices}"));
    let missing = lost.before.keys().filter(|id| !found.contains_key(id)).count();
    let all = lost.before.len();
    screen.check(missing == 0, format!("{} of {all} commits acknowledged up to the target are there", all - missing));
    let later = found.iter().filter(|(id, at)| **at > lost.target.us || lost.after.contains_key(id)).count();
    let none = lost.after.len();
    screen.check(later == 0, format!("{later} of {none} later commits are there"));
    let same = found.iter().filter(|(id, at)| lost.before.get(id) == Some(at)).count();
    screen.check(same == found.len(), format!("{same} of {} commit times are those the client saw", found.len()));
    screen.check(copy.balanced(), "pgbench's balances agree with its history");
    copy
}

fn the_end_of_the_archive(story: &mut Story, lost: &Lost) -> Copy {
    story.screen.step("Restore to the end of the archive: what did the disaster cost?");
    let copy = Copy::restore(story, "latest", &["--latest"]);
    let (found, screen) = (copy.ledger(), &mut story.screen);

    let all: Acknowledged = lost.before.iter().chain(&lost.after).map(|(id, at)| (*id, *at)).collect();
    let missing: Vec<(u64, i64)> =
        all.iter().filter(|(id, _)| !found.contains_key(id)).map(|(i, a)| (*i, *a)).collect();
    let rpo = missing.first().map_or(Duration::ZERO, |(_, at)| between(*at, us(lost.killed)));
    screen.figure("acknowledged commits", all.len().to_string());
    screen.figure(
        "missing of them",
        if missing.is_empty() { "0: nothing lost".into() } else { missing.len().to_string() },
    );
    let meaning =
        if missing.is_empty() { "no commit is missing" } else { "age of the oldest missing commit at the kill" };
    screen.figure("RPO, measured", format!("{} ({meaning})", seconds(rpo)));
    screen.figure("RTO, measured", format!("{} (start of the restore to the first answer)", seconds(copy.took)));

    let table = copy.ask("select to_regclass('invoices') is null");
    screen.check(table == "t", "the table is dropped here: this is the end, with the accident in it");
    screen.check(rpo <= RPO_LIMIT, format!("RPO is within {}", seconds(RPO_LIMIT)));
    let first_missing = missing.first().map_or(u64::MAX, |(id, _)| *id);
    let holes = found.keys().filter(|id| **id > first_missing).count();
    screen.check(holes == 0, "what is missing is the end only: no commit is there after a missing one");
    // One commit may have been on its way when the server died, so that nobody was told.
    let untold = found.keys().filter(|id| !all.contains_key(id)).count();
    screen.check(untold <= 1, format!("{untold} commits whose answer was cut off by the kill (at most 1)"));
    screen.check(copy.balanced(), "pgbench's balances agree with its history");
    copy
}

/// Ends the receiver and weighs the repository.
fn sizes(story: &mut Story, lost: &Lost) {
    story.screen.step("The receiver ends, the repository is weighed");
    let receiver = story.receiver.take().expect("a receiver");
    let begun = Instant::now();
    let output = receiver.terminate();
    story.screen.check(output.code() == 0, format!("SIGTERM ends the receiver in {}", seconds(begun.elapsed())));

    let cluster = walrecv_folder(story);
    let wal = size_of(&cluster.join("wal")) + size_of(&cluster.join("tail"));
    let backup: u64 = ["packs", "maps", "backups"].iter().map(|name| size_of(&cluster.join(name))).sum();
    let screen = &story.screen;
    let raw = durable_end(&output.stderr).map_or(0, |end| end.since(lost.wal_from));
    screen.figure("WAL", share(wal, raw));
    screen.figure("base backup", format!("{} for {} of data at the end", mib(backup), mib(lost.data_bytes)));
    screen.figure("whole repository", mib(size_of(&story.repository)));
}

/// The folder of the one cluster of the repository.
fn walrecv_folder(story: &Story) -> PathBuf {
    let main = story.repository.join("clusters/main");
    let mut entries = std::fs::read_dir(&main).expect("the cluster's folder").flatten();
    entries.next().expect("the cluster's incarnation").path()
}

/// From what the receiver said: `… streaming timeline N from X/Y, …`.
fn streaming_from(said: &str) -> Option<Lsn> {
    let (_, rest) = said.split_once("streaming timeline ")?;
    rest.split_once(" from ")?.1.split([',', '\n']).next()?.trim().parse().ok()
}

/// From what the receiver said last: `… durable through X/Y, …`.
fn durable_end(said: &str) -> Option<Lsn> {
    let (_, rest) = said.rsplit_once("durable through ")?;
    rest.split(',').next()?.trim().parse().ok()
}

fn us(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

/// Both in microseconds since 1970; zero if `to` is earlier.
fn between(from: i64, to: i64) -> Duration {
    Duration::from_micros(u64::try_from(to - from).unwrap_or(0))
}
