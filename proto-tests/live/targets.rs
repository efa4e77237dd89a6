//! Random targets on a history with three timelines and a clock that jumps: the server lands where the plan says, with exactly the rows of the ledger.

use std::collections::BTreeMap;
use std::fmt::Write;

use walrecv::error::Kind;
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, MajorVersion, TimelineId};
use walrecv::restore::{Options, Prepared, Target, stock};

use super::net::run;
use super::restore::{Copy, Story, versions};
use crate::support::{Client, Clock, Seed, Server, rounds, soaks};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3600 * SECOND;
/// Names of restore points: few, so that they repeat.
const NAMES: u64 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// This row.
    Commit(i64),
    Abort,
    Point(String),
}

/// What a client did on a server, in the order of WAL.
#[derive(Clone, Debug)]
struct Event {
    what: What,
    xid: u32,
    /// By the clock, microseconds since 1970.
    time: i64,
    /// Where WAL ended after it.
    after: Lsn,
}

impl Event {
    /// Whether it ends a transaction: nothing else stops a recovery at a time.
    fn ends(&self) -> bool {
        matches!(self.what, What::Commit(_) | What::Abort)
    }

    fn at(&self) -> PgTime {
        PgTime::from_unix_micros(self.time)
    }
}

/// One timeline: what was done on it, and how much of that its child has too.
#[derive(Default)]
struct Branch {
    events: Vec<Event>,
    shared: usize,
}

/// A backup: its timeline (counted from 0), how many events of it came before, and when its checkpoint began, in whole seconds as in WAL.
#[derive(Clone, Copy, Debug)]
struct Taken {
    branch: usize,
    before: usize,
    began: PgTime,
}

struct History {
    story: Story,
    clock: Clock,
    now: i64,
    next_row: i64,
    branches: [Branch; 3],
    /// By backup id.
    taken: BTreeMap<String, Taken>,
    seed: Seed,
}

/// A server of this history: nobody commits but the clients, and all of its WAL stays.
fn calm(builder: crate::support::server::Builder, clock: &Clock) -> Server {
    let builder = builder.clock(clock).setting("autovacuum", "off").setting("max_prepared_transactions", 5);
    builder.setting("wal_keep_size", "1GB").setting("max_wal_size", "1GB").start()
}

impl History {
    fn new(version: MajorVersion, seed: Seed) -> History {
        let now = jiff::Timestamp::now().as_microsecond() - 240 * HOUR;
        let clock = Clock::new(now);
        let story = Story::new(calm(Server::builder(version), &clock));
        let branches = Default::default();
        let mut history = History { story, clock, now, next_row: 1, branches, taken: BTreeMap::new(), seed };
        history.live();
        history
    }

    /// Two promotions; the first parent goes on for a while on its own.
    fn live(&mut self) {
        self.act(0, None, 12);
        self.backup(0, None);
        self.act(0, None, 25);
        self.backup(0, None);
        self.act(0, None, 12);
        let second = calm(self.story.server.standby(), &self.clock);
        let second = self.promote(0, None, second);
        self.act(0, None, 10);
        self.backup(0, None);
        self.act(0, None, 6);
        self.act(1, Some(&second), 15);
        self.backup(1, Some(&second));
        self.act(1, Some(&second), 15);
        let third = self.promote(1, Some(&second), calm(second.standby(), &self.clock));
        self.act(2, Some(&third), 20);
        self.store(&second, &third);
    }

    fn server<'a>(&'a self, server: Option<&'a Server>) -> &'a Server {
        server.unwrap_or(&self.story.server)
    }

    /// The standby has everything that its primary has done; from here on they go different ways.
    fn promote(&mut self, branch: usize, primary: Option<&Server>, standby: Server) -> Server {
        let end: Lsn = self.server(primary).sql("select pg_current_wal_flush_lsn()").parse().expect("a position");
        standby.wait_sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'"), "t");
        self.branches[branch].shared = self.branches[branch].events.len();
        standby.promote();
        standby
    }

    fn backup(&mut self, branch: usize, server: Option<&Server>) {
        self.story.backup_of(self.server(server));
        let all = run(stock::complete_backups(&self.story.shelf.archive)).expect("backups");
        let new = all.iter().map(|m| m.id.to_string()).find(|id| !self.taken.contains_key(id)).expect("a new backup");
        let (before, began) = (self.branches[branch].events.len(), self.now - self.now.rem_euclid(SECOND));
        self.taken.insert(new, Taken { branch, before, began: PgTime::from_unix_micros(began) });
    }

    /// So many random events; the last one is a commit, which is flushed.
    fn act(&mut self, branch: usize, server: Option<&Server>, count: usize) {
        let mut client = self.server(server).connect("postgres").expect("a session");
        for left in (0..count).rev() {
            self.jump();
            let event = self.event(&mut client, left == 0);
            self.branches[branch].events.push(event);
        }
    }

    /// Mostly a little forwards, often not at all, sometimes far, sometimes back.
    fn jump(&mut self) {
        self.now += match self.seed.below(20) {
            0..=3 => 0,
            4..=5 => -(self.seed.below(2 * HOUR as u64) as i64),
            6 => self.seed.below(5 * HOUR as u64) as i64,
            7..=9 => 1,
            _ => self.seed.below(10 * SECOND as u64) as i64,
        };
        self.clock.set(self.now);
    }

    fn event(&mut self, client: &mut Client, commit: bool) -> Event {
        let row = self.next_row;
        self.next_row += 1;
        let insert =
            format!("insert into story values ({row}, repeat('x', {})) returning xmin", self.seed.below(30_000));
        let kind = if commit { 19 } else { self.seed.below(20) };
        let (what, xid) = match kind {
            0..=2 => {
                value(client, "begin");
                let xid = value(client, &insert);
                value(client, "rollback");
                (What::Abort, xid)
            }
            3..=4 => {
                value(client, "begin");
                let xid = value(client, &insert);
                value(client, "prepare transaction 'later'");
                self.jump();
                value(client, "commit prepared 'later'");
                (What::Commit(row), xid)
            }
            5..=6 => {
                let name = format!("point {}", self.seed.below(NAMES));
                value(client, &format!("select pg_create_restore_point('{name}')"));
                (What::Point(name), "0".to_owned())
            }
            7 => {
                value(client, "select pg_switch_wal()");
                (What::Commit(row), value(client, &insert))
            }
            8 => {
                value(client, "checkpoint");
                (What::Commit(row), value(client, &insert))
            }
            _ => (What::Commit(row), value(client, &insert)),
        };
        let after = value(client, "select pg_current_wal_insert_lsn()").parse().expect("a position");
        Event { what, xid: xid.parse().expect("a transaction"), time: self.now, after }
    }

    /// What the three servers have, as it stands in their pg_wal.
    fn store(&mut self, second: &Server, third: &Server) {
        let shelf = &self.story.shelf;
        let first: Lsn = run(stock::complete_backups(&shelf.archive)).expect("backups")[0].start;
        let mut from = first;
        for (number, server) in [(1, &self.story.server), (2, second), (3, third)] {
            let timeline = TimelineId(number);
            let pg_wal = server.data_dir().join("pg_wal");
            if number > 1 {
                let history = std::fs::read(pg_wal.join(timeline.history_name())).expect("a history");
                let line =
                    String::from_utf8_lossy(&history).lines().rfind(|line| line.contains('/')).map(str::to_owned);
                let line = line.expect("a fork");
                from = line.split('\t').nth(1).and_then(|at| at.parse().ok()).expect("a switch point");
                run(shelf.put_history(timeline, &history));
            }
            let end = server.sql("select pg_current_wal_flush_lsn()").parse().expect("a position");
            run(shelf.put_files(&pg_wal, timeline, from, end));
            // Of times after the last commit nothing but restore points speaks here.
            assert!(run(shelf.archive.heartbeats(timeline)).expect("heartbeats").is_empty());
        }
    }

    /// What a server that goes to the end of `timeline` sees.
    fn path(&self, timeline: u32) -> Vec<Event> {
        let mut path = Vec::new();
        for (index, branch) in self.branches.iter().enumerate().take(timeline as usize) {
            let last = index + 1 == timeline as usize;
            let count = if last { branch.events.len() } else { branch.shared };
            path.extend(branch.events[..count].iter().cloned());
        }
        path
    }

    /// How many events of a path lie before a backup on it.
    fn before(&self, taken: Taken) -> usize {
        let below: usize = self.branches.iter().take(taken.branch).map(|branch| branch.shared).sum();
        below + taken.before
    }

    /// A target near something that happened, and on which timeline.
    fn target(&mut self) -> (Target, Option<TimelineId>) {
        let timeline = self.seed.below(5);
        let on = if timeline < 2 { 3 } else { timeline as u32 - 1 };
        let path = self.path(on);
        let event = &path[self.seed.below(path.len() as u64) as usize];
        let inclusive = self.seed.below(2) == 0;
        let target = match self.seed.below(12) {
            0..=4 => {
                let near = [0, 0, 1, -1, 5 * SECOND, -5 * SECOND][self.seed.below(6) as usize];
                Target::Time { time: PgTime::from_unix_micros(event.time + near), inclusive }
            }
            5..=6 => Target::Lsn { lsn: event.after, inclusive },
            7..=8 => Target::Xid { xid: event.xid.max(3), inclusive },
            9 => Target::Name(format!("point {}", self.seed.below(NAMES + 1))),
            10 => Target::Immediate,
            _ => Target::Latest,
        };
        (target, (timeline >= 2).then_some(TimelineId(on)))
    }

    /// Where on the path, behind so many events, the server stops: how many events count. `None`: nothing stops it.
    fn stops_after(path: &[Event], from: usize, target: &Target) -> Option<usize> {
        let find = |wanted: &dyn Fn(&Event) -> bool| path.iter().skip(from).position(wanted).map(|at| from + at);
        match target {
            Target::Time { time, inclusive } => find(&|event| {
                let at = PgTime::from_unix_micros(event.time);
                event.ends() && (at > *time || (!inclusive && at == *time))
            }),
            Target::Xid { xid, inclusive } => {
                find(&|event| event.ends() && event.xid == *xid).map(|at| at + usize::from(*inclusive))
            }
            Target::Name(name) => find(&|event| event.what == What::Point(name.clone())).map(|at| at + 1),
            // The first record at or behind it is never the one that ends something.
            Target::Lsn { lsn, .. } => find(&|event| event.after > *lsn),
            Target::Immediate => Some(from),
            Target::Latest => Some(path.len()),
        }
    }

    /// The newest backup that leads to a time, by how many events lie before it. `None`: the time is to be refused.
    fn time_reached(&self, path: &[Event], bases: &[Taken], target: &Target) -> Option<usize> {
        let Target::Time { time, .. } = target else { panic!("no time") };
        // Nobody can say what else was committed by then.
        let mut open = None;
        for taken in bases.iter().rev() {
            let from = self.before(*taken);
            let after = &path[from..];
            let stops = Self::stops_after(path, from, target).is_some_and(|at| open.is_none_or(|open| at < open));
            if !stops && (open.is_some() || Self::complete_through(after).is_none_or(|through| through <= *time)) {
                if after.iter().any(|event| matches!(event.what, What::Commit(_))) {
                    open = open.or(Some(from));
                }
                continue;
            }
            // It may hold commits later than the time, unless something after it is known to be no later, or the whole second in which it began.
            let by_wal = after.iter().find(|event| event.ends()).is_some_and(|first| first.at() <= *time);
            if by_wal || taken.began.0 + SECOND <= time.0 {
                // Behind a newer one something was committed up to the time: only who names the older one is led there.
                return Some(from).filter(|_| open.is_none());
            }
        }
        None
    }

    /// The server's clock when it wrote a restore point: nothing earlier is still to come, where nothing behind it says otherwise.
    fn complete_through(events: &[Event]) -> Option<PgTime> {
        events.iter().fold(None, |through, event| match event.what {
            What::Point(_) => through.max(Some(event.at())),
            _ => through.filter(|through| *through < event.at()),
        })
    }

    /// What a backup holds that is later than the time is told, as far back as WAL is stored.
    fn held(&self, prepared: &Prepared, target: &Target, before: &[Event]) {
        let Target::Time { time, inclusive } = target else { return };
        let stored = self.story.shelf.archive.names.segment_size;
        let first = run(stock::complete_backups(&self.story.shelf.archive)).expect("backups")[0].start;
        let first = stored.segment_of(first).start(stored);
        let later = |event: &&Event| {
            event.ends() && event.after > first && (event.at() > *time || !inclusive && event.at() == *time)
        };
        let latest = before.iter().filter(later).map(Event::at).max();
        assert_eq!(prepared.choice.held.as_ref().map(|held| held.latest), latest, "later than the target");
    }

    /// The plan against the ledger; `None` where it refuses, as it must.
    fn planned(&self, target: &Target, timeline: Option<TimelineId>) -> Option<(Prepared, Vec<Event>)> {
        let path = self.path(timeline.map_or(3, |t| t.0));
        let last = timeline.map_or(3, |t| t.0 as usize);
        let on = |taken: &Taken| {
            let shared = taken.before <= self.branches[taken.branch].shared;
            taken.branch < last && (taken.branch + 1 == last || shared)
        };
        let mut bases: Vec<Taken> = self.taken.values().copied().filter(on).collect();
        bases.sort_by_key(|taken| self.before(*taken));
        let reached = matches!(target, Target::Time { .. }).then(|| self.time_reached(&path, &bases, target));
        match self.story.prepare_on(target.clone(), timeline) {
            Ok(prepared) => {
                let taken = self.taken[prepared.choice.manifest.id.as_str()];
                assert!(on(&taken), "a backup that is not on the way");
                let from = self.before(taken);
                if let Some(reached) = reached {
                    assert_eq!(reached, Some(from), "the backup that leads to the time");
                }
                // Without a record that stops the server it goes to the end, where the plan cuts.
                let count = Self::stops_after(&path, from, target).unwrap_or(path.len());
                let shown = path[from..count].iter().rfind(|event| matches!(event.what, What::Commit(_)));
                let last = prepared.choice.landing.last_commit.map(|c| (c.xid, c.time));
                assert_eq!(last, shown.map(|e| (e.xid, PgTime::from_unix_micros(e.time))), "the last commit");
                self.missed(&prepared, target, &path[count..]);
                self.held(&prepared, target, &path[..from]);
                Some((prepared, path[..count].to_vec()))
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::Target, "{error}");
                // From every backup the server would stop too early, or not at all.
                let too_late = |from: usize| match target {
                    Target::Lsn { lsn, .. } => path[..from].last().is_some_and(|event| event.after >= *lsn),
                    _ => false,
                };
                let reaches = |from: usize| Self::stops_after(&path, from, target).is_some() && !too_late(from);
                let can = match reached {
                    Some(reached) => reached.is_some(),
                    None => bases.iter().any(|taken| reaches(self.before(*taken))),
                };
                assert!(!can, "it can be reached: {error}");
                None
            }
        }
    }

    /// Commits by the target time that the stop leaves out are all told, up to a number.
    fn missed(&self, prepared: &Prepared, target: &Target, rest: &[Event]) {
        let Target::Time { time, inclusive } = target else { return };
        let wanted = |event: &&Event| {
            let at = PgTime::from_unix_micros(event.time);
            matches!(event.what, What::Commit(_)) && (at < *time || (*inclusive && at == *time))
        };
        let told = &prepared.choice.landing.missed;
        let missed: Vec<u32> = rest.iter().filter(wanted).map(|event| event.xid).collect();
        assert_eq!(told.iter().map(|c| c.xid).collect::<Vec<_>>(), missed[..missed.len().min(20)]);
    }
}

fn value(client: &mut Client, sql: &str) -> String {
    let rows = client.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default()
}

/// Row, transaction and commit time of everything that is there.
fn found(copy: &Copy) -> String {
    let at = "(extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint";
    copy.value(&format!("select string_agg(format('%s %s %s', n, xmin, {at}), E'\\n' order by n) from story"))
}

fn expected(events: &[Event]) -> String {
    let mut rows: Vec<(i64, String)> = Vec::new();
    for event in events {
        if let What::Commit(row) = event.what {
            rows.push((row, format!("{row} {} {}", event.xid, event.time)));
        }
    }
    rows.sort();
    rows.into_iter().map(|(_, line)| line).collect::<Vec<_>>().join("\n")
}

#[test]
fn random_targets_land_where_the_plan_says_with_the_rows_of_the_ledger() {
    let mut seed = Seed::of_run();
    for version in versions().into_iter().rev().take(if soaks() { 6 } else { 1 }) {
        let mut history = History::new(version, Seed::from(seed.next()));
        // Many more are planned than are restored: a time that can be reached is not refused.
        let (mut times, mut refused_times) = (0, 0);
        for _ in 0..rounds(200, 2000) {
            let (target, timeline) = history.target();
            let planned = history.planned(&target, timeline).is_some();
            if matches!(target, Target::Time { .. }) {
                times += 1;
                refused_times += u32::from(!planned);
            }
        }
        println!("PostgreSQL {version}: {times} times planned, {refused_times} of them refused");
        let (mut landed, mut refused, mut kinds) = (0, 0, BTreeMap::new());
        while landed < rounds(8, 200) {
            let (target, timeline) = history.target();
            let mut shown = target.describe();
            write!(shown, " on {timeline:?}").expect("text");
            println!("{shown}");
            let Some((prepared, events)) = history.planned(&target, timeline) else {
                refused += 1;
                continue;
            };
            let options: Options = history.story.options(&format!("target{landed}"));
            history.story.restore(&prepared, &options).unwrap_or_else(|e| panic!("{shown}: {e}"));
            let started = history.story.start(&prepared, &options);
            let copy = started.unwrap_or_else(|e| panic!("{shown}: {e}, {:?}", e.advice()));
            assert_eq!(copy.started.landed, Some(prepared.choice.landing.replayed), "{shown}");
            assert_eq!(found(&copy), expected(&events), "{shown}");
            drop(copy);
            std::fs::remove_dir_all(&options.pgdata).expect("remove the copy");
            landed += 1;
            *kinds.entry(shown.split(' ').next().unwrap_or_default().to_owned()).or_insert(0) += 1;
        }
        println!("PostgreSQL {version}: {landed} landed, {refused} refused, {kinds:?}");
    }
}
