//! The board of one cluster: events and numbers in, its report out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::holes;
use super::report::{Behind, ClusterReport, Positions, Remark, ServerReport, SlotReport, State, Times, Work};
use super::trend::Trend;
use crate::archive::holes::Barrier;
use crate::error::Error;
use crate::pg::{Lsn, TimelineId};
use crate::receive::{Lags, ReceiveEvent, SlotHealth};
use crate::seal::content::rfc3339;
use crate::stats::{StreamStats, Timing};

/// More than this to fetch is more than a moment's work.
const CATCHING_UP: u64 = 16 << 20;
/// The server speaks about once a second. After so long without a word, what it said last says nothing of now.
const FRESH: Duration = Duration::from_secs(3);
/// A reconnect that lasts so long is no passing matter.
const PATIENCE: Duration = Duration::from_secs(10);
/// A commit that is not durable after this, and three flush intervals, needs attention.
const LATE: Duration = Duration::from_secs(30);

/// Shared by whoever tells and whoever asks.
pub struct Board {
    cluster: String,
    slot: Option<String>,
    flush_interval: Duration,
    stats: Arc<StreamStats>,
    known: Mutex<Known>,
}

struct Known {
    state: State,
    since: Timestamp,
    since_instant: Instant,
    /// It was asked to stop: whatever else happens on its way out, that is what it does.
    leaving: bool,
    server: Option<ServerReport>,
    timeline: Option<u32>,
    problem: Option<Problem>,
    /// The server is behind what is stored, and since when one that is was streamed.
    lags: Option<(Lags, Instant)>,
    /// What no restore gets past and no backup lies behind, and since when each is known here.
    barriers: Vec<(Barrier, Instant)>,
    /// While standing by: why what the other receiver does is of no use here.
    elsewhere: Option<String>,
    slot: Option<SlotHealth>,
    /// Whether the server lists this receiver; `None` while there is none that is asked.
    synchronous: Option<bool>,
    warning: Option<Remark>,
    trend: Trend,
}

struct Problem {
    text: String,
    hint: Option<String>,
    kind: Option<String>,
}

impl Known {
    fn hole(&self) -> Option<String> {
        let open: Vec<Barrier> = self.barriers.iter().map(|(barrier, _)| barrier.clone()).collect();
        holes::words(&open)
    }

    /// A stream began, of a server that lags or not. A change between two that do is none.
    fn lag(&mut self, lags: Option<&Lags>) {
        let since = self.lags.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        self.lags = lags.map(|lags| (lags.clone(), since));
    }

    /// What there is to say of that, when it has lasted.
    fn lags(&self, now: Instant) -> Option<String> {
        let (lags, _) = self.lags.as_ref().filter(|(_, since)| now.saturating_duration_since(*since) >= PATIENCE)?;
        let why =
            lags.instead_of.as_ref().map(|why| format!("; another host was of no use: {why}")).unwrap_or_default();
        let Lags { timeline, upto, .. } = lags;
        Some(match self.timeline {
            Some(own) if own < timeline.0 => {
                format!(
                    "the server is on timeline {own}, and timeline {timeline} is stored already, from a newer primary{why}"
                )
            }
            _ => format!(
                "the server is behind {upto}, which is stored already: nothing new is before it is past that{why}"
            ),
        })
    }

    fn enter(&mut self, state: State) {
        if matches!(state, State::Starting | State::AwaitingRepository | State::ServerAway | State::Failed) {
            self.synchronous = None;
        }
        if self.state != state && (!self.leaving || matches!(state, State::Stopped | State::Failed)) {
            (self.state, self.since, self.since_instant) = (state, Timestamp::now(), Instant::now());
        }
    }
}

impl Board {
    pub fn new(cluster: &str, slot: Option<&str>, flush_interval: Duration, stats: Arc<StreamStats>) -> Board {
        let known = Known {
            state: State::Starting,
            since: Timestamp::now(),
            since_instant: Instant::now(),
            leaving: false,
            server: None,
            timeline: None,
            problem: None,
            lags: None,
            barriers: Vec::new(),
            elsewhere: None,
            slot: None,
            synchronous: None,
            warning: None,
            trend: Trend::default(),
        };
        let (cluster, slot) = (cluster.to_owned(), slot.map(str::to_owned));
        Board { cluster, slot, flush_interval, stats, known: Mutex::new(known) }
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a run tells.
    pub fn see(&self, event: &ReceiveEvent) {
        let mut known = self.known();
        match event {
            ReceiveEvent::Connected { server, version, system, timeline } => {
                known.server = Some(ServerReport {
                    name: server.clone(),
                    version: version.number(),
                    system_identifier: system.to_string(),
                    ..ServerReport::default()
                });
                known.timeline = Some(timeline.0);
            }
            ReceiveEvent::Streaming { timeline, standby, lags, .. } => {
                known.lag(lags.as_ref());
                known.timeline = Some(timeline.0);
                known.synchronous = Some(false);
                known.problem = None;
                known.trend = Trend::default();
                known.enter(State::Streaming);
                if let Some(server) = &mut known.server {
                    server.standby = *standby;
                }
            }
            ReceiveEvent::StandingBy { synchronous, .. } => {
                known.enter(State::StandingBy);
                known.synchronous = *synchronous;
            }
            ReceiveEvent::TimelineSwitch { to, .. } => known.timeline = Some(to.0),
            ReceiveEvent::Synchronous(listed) => known.synchronous = Some(*listed),
            ReceiveEvent::Slot(slot) => known.slot = Some(slot.clone()),
            ReceiveEvent::ServerStopping => {
                known.problem = Some(Problem::of("the server is shutting down"));
                known.enter(State::ServerAway);
            }
            ReceiveEvent::Reconnecting { why, .. } => {
                known.problem = Some(Problem::of(why));
                // A standby-by that polls, or a failed attempt to get out of a stall, is still what it was.
                known.enter(State::ServerAway);
            }
            ReceiveEvent::Stalled { .. } => {
                known.problem =
                    Some(Problem::of("the repository takes nothing; the server is left alone until it does"));
                known.enter(State::Stalled);
            }
            ReceiveEvent::Hole(hole) => known.barriers.push((Barrier::Hole(hole.clone()), Instant::now())),
            ReceiveEvent::MinimalWal(alarm) => known.barriers.push((Barrier::Minimal(*alarm), Instant::now())),
            ReceiveEvent::CorruptWal { problem } => known.problem = Some(Problem::of(problem)),
            ReceiveEvent::Warning(text) => {
                known.warning = Some(Remark { at: rfc3339(Timestamp::now()), text: text.clone() });
            }
            // About once a second, whether anything moves or not.
            ReceiveEvent::Durable { timeline, server_end, .. } => {
                let now = Instant::now();
                known.lags.take_if(|(lags, _)| (lags.timeline, lags.upto) <= (*timeline, *server_end));
                let behind = self.behind(&known, now);
                known.trend.look(now, Some(behind).filter(|behind| self.needs_to_catch_up(behind)));
            }
            ReceiveEvent::Stopped { .. } => known.enter(State::Stopped),
            _ => {}
        }
    }

    /// Before a run: the repository cannot be opened yet.
    pub fn awaits_repository(&self, error: &Error) {
        let mut known = self.known();
        known.problem = Some(Problem::told_by(error));
        known.enter(State::AwaitingRepository);
    }

    /// It is open: a run begins.
    pub fn repository_is_open(&self) {
        let mut known = self.known();
        known.problem = None;
        known.enter(State::Starting);
    }

    /// The numbers that it shows.
    pub fn stats(&self) -> &Arc<StreamStats> {
        &self.stats
    }

    /// It was asked to stop.
    pub fn stopping(&self) {
        let mut known = self.known();
        known.leaving = true;
        known.enter(State::Stopped);
    }

    /// What the repository says: these are open. One that was told here after `asked` it may not have had yet.
    pub fn set_barriers(&self, open: Vec<Barrier>, asked: Instant) {
        let mut known = self.known();
        let newer = known.barriers.drain(..).filter(|(barrier, at)| *at >= asked && !open.contains(barrier));
        let newer: Vec<_> = newer.collect();
        known.barriers = open.into_iter().map(|barrier| (barrier, asked)).chain(newer).collect();
    }

    /// While standing by: the server's timeline, and where the slot stood when it was last seen.
    pub fn waits_at(&self) -> Option<(TimelineId, Lsn)> {
        let known = self.known();
        let slot = known.slot.as_ref().filter(|_| known.state == State::StandingBy)?;
        Some((TimelineId(known.timeline?), slot.restart_lsn?))
    }

    /// Whether the other receiver fills this archive; `None` where nothing speaks against it.
    pub fn set_elsewhere(&self, why: Option<String>) {
        self.known().elsewhere = why;
    }

    /// The timeline that is streamed, or was last; `None` before the first connection.
    pub fn timeline(&self) -> Option<TimelineId> {
        self.known().timeline.map(TimelineId)
    }

    /// What there is to say of them.
    pub fn hole(&self) -> Option<String> {
        self.known().hole()
    }

    /// The run ended with an error.
    pub fn failed(&self, error: &Error) {
        let mut known = self.known();
        known.problem = Some(Problem::told_by(error));
        known.enter(State::Failed);
    }

    /// How it is now.
    pub fn report(&self) -> ClusterReport {
        let (now, wall, known, stats) = (Instant::now(), Timestamp::now(), self.known(), &*self.stats);
        let behind = self.behind(&known, now);
        let far = known.state == State::Streaming && self.is_far(&behind);
        let state = if far { State::CatchingUp } else { known.state };
        let (heart, mut server) = (stats.heart(), known.server.clone());
        if let (Some(server), Some((_, at))) = (&mut server, heart.clock) {
            server.heard_seconds_ago = Some(seconds(now.saturating_duration_since(at)));
        }
        let mut report = ClusterReport {
            cluster: self.cluster.clone(),
            state,
            since: Some(rfc3339(known.since)),
            problem: known.problem.as_ref().map(|problem| problem.text.clone()),
            hint: known.problem.as_ref().and_then(|problem| problem.hint.clone()),
            kind: known.problem.as_ref().and_then(|problem| problem.kind.clone()),
            server,
            timeline: known.timeline,
            positions: self.positions(),
            complete_through: heart.complete.and_then(|(_, time)| moment(time)).map(rfc3339),
            clock_skew_seconds: heart.clock.and_then(|(time, at)| {
                let there = moment(time)?.as_microsecond() + now.saturating_duration_since(at).as_micros() as i64;
                Some((there - wall.as_microsecond()) as f64 / 1e6)
            }),
            time_to_durable: times(&stats.time_to_durable, now),
            flushes: work(stats.flushes.get(), stats.flushed_bytes.get(), &stats.flush_time, now),
            puts: work(stats.puts.get(), stats.put_bytes.get(), &stats.put_time, now),
            put_errors: stats.put_errors.get(),
            received_bytes: stats.bytes_received.get(),
            durable_bytes: stats.bytes_durable.get(),
            commits: stats.commits.get(),
            reconnects: stats.reconnects.get(),
            stalls: stats.stalls.get(),
            held_bytes: stats.held_bytes.get(),
            queued_bytes: stats.queued_bytes.get(),
            slot: self.slot(&known, now),
            synchronous: known.synchronous,
            warning: known.warning.clone(),
            behind,
            healthy: true,
            hole: known.hole(),
            last_run: None,
            last_verified: None,
        };
        let lasted = now.saturating_duration_since(known.since_instant);
        let problem = unhealthy(&report, lasted, known.trend.falls_behind(now), self.late());
        if let Some(problem) = problem.or_else(|| known.lags(now)) {
            report.healthy = false;
            report.problem.get_or_insert(problem);
        } else if let (State::StandingBy, Some(elsewhere)) = (known.state, &known.elsewhere) {
            // What kept it from its server before is past.
            (report.healthy, report.problem, report.hint, report.kind) = (false, Some(elsewhere.clone()), None, None);
        }
        report
    }

    /// A commit that waits for longer needs attention.
    fn late(&self) -> f64 {
        LATE.max(self.flush_interval * 3).as_secs_f64()
    }

    /// Whether there is more to fetch than a moment's work.
    fn is_far(&self, behind: &Behind) -> bool {
        behind.bytes.is_some_and(|bytes| bytes > CATCHING_UP)
            || behind.seconds.is_some_and(|seconds| seconds > self.late())
    }

    /// Whether it has to come nearer. A busy stream to a distant repository has many bytes on their way at all times; how old they are tells whether it keeps up.
    fn needs_to_catch_up(&self, behind: &Behind) -> bool {
        match behind.seconds {
            Some(seconds) => seconds > self.late(),
            None => self.is_far(behind),
        }
    }

    fn behind(&self, known: &Known, now: Instant) -> Behind {
        let (stats, heart) = (&*self.stats, self.stats.heart());
        // What has arrived the server has, whenever it said so last.
        let held = known.server.as_ref().map(|_| stats.server_end.get().max(stats.received.get()));
        let held = held.filter(|end| *end > 0);
        let bytes = held.map(|end| end.saturating_sub(stats.durable.get()));
        let seconds = match (heart.clock, heart.complete) {
            (Some((_, at)), Some(_)) if bytes == Some(0) && now.saturating_duration_since(at) < FRESH => Some(0.0),
            (Some((time, at)), Some((_, complete))) => {
                let there = now.saturating_duration_since(at).as_micros() as i64 + time;
                Some((there.saturating_sub(complete)).max(0) as f64 / 1e6)
            }
            _ => None,
        };
        let oldest_commit_seconds = stats.oldest_commit_age(now).map(self::seconds);
        Behind { bytes, seconds, oldest_commit_seconds }
    }

    fn positions(&self) -> Positions {
        let lsn = |number: &crate::stats::Number| Some(number.get()).filter(|n| *n > 0).map(|n| Lsn(n).to_string());
        let stats = &*self.stats;
        Positions {
            received: lsn(&stats.received),
            verified: lsn(&stats.verified),
            durable: lsn(&stats.durable),
            reported: lsn(&stats.reported),
            server: lsn(&stats.server_end),
        }
    }

    fn slot(&self, known: &Known, now: Instant) -> Option<SlotReport> {
        let name = self.slot.clone();
        match &known.slot {
            Some(slot) => Some(SlotReport {
                name,
                restart_lsn: slot.restart_lsn.map(|lsn| lsn.to_string()),
                retained_bytes: slot.retained_bytes,
                wal_status: slot.wal_status.clone(),
                safe_wal_size: slot.safe_wal_size,
                limit_bytes: slot.limit,
                full_in_seconds: slot.full_in_seconds,
                wal_bytes_per_second: slot.wal_bytes_per_second,
                asked_seconds_ago: seconds(now.saturating_duration_since(slot.polled_at)),
            }),
            None => name.map(|name| SlotReport { name: Some(name), ..SlotReport::default() }),
        }
    }
}

impl Problem {
    fn of(text: impl Into<String>) -> Problem {
        Problem { text: text.into(), hint: None, kind: None }
    }

    fn told_by(error: &Error) -> Problem {
        Problem {
            text: error.to_string(),
            hint: error.advice().map(str::to_owned),
            kind: Some(format!("{:?}", error.kind()).to_lowercase()),
        }
    }
}

/// What needs somebody's attention; `None` when all is well.
fn unhealthy(report: &ClusterReport, lasted: Duration, falls: Option<Duration>, late: f64) -> Option<String> {
    let text = match report.state {
        State::Stalled => "the repository takes nothing",
        State::Failed => "the stream has ended with an error",
        State::Stopped => "the receiver is stopping",
        State::NotRunning => "no receiver is running",
        State::ServerAway if lasted >= PATIENCE => "the server is away",
        State::Starting if lasted >= PATIENCE => "the server could not be reached yet",
        State::AwaitingRepository if lasted >= PATIENCE => "the repository cannot be opened",
        _ => "",
    };
    if !text.is_empty() {
        return Some(text.to_owned());
    }
    if let Some(hole) = &report.hole {
        return Some(hole.clone());
    }
    if let Some(status @ ("lost" | "unreserved")) = report.slot.as_ref().and_then(|slot| slot.wal_status.as_deref()) {
        return Some(format!("the slot's WAL is {status}: the server may remove WAL that is not stored"));
    }
    if let Some(falls) = falls.filter(|_| report.state == State::CatchingUp) {
        return Some(format!(
            "it does not catch up: for {} min it has come no nearer to the server's end",
            falls.as_secs() / 60
        ));
    }
    let age = report.behind.oldest_commit_seconds.filter(|age| *age > late)?;
    Some(format!("a commit has waited for {age:.0} s to become durable"))
}

fn times(timing: &Timing, now: Instant) -> Times {
    Times { recent: timing.recent(now).into(), total: timing.total().into() }
}

fn work(count: u64, bytes: u64, timing: &Timing, now: Instant) -> Work {
    Work { count, bytes, milliseconds: times(timing, now) }
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// From microseconds since 2000.
fn moment(time: i64) -> Option<Timestamp> {
    Timestamp::from_microsecond(crate::pg::xact::PgTime(time).to_unix_micros()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::pg::{MajorVersion, SystemIdentifier};

    fn board() -> Board {
        Board::new("main", Some("walrecv"), Duration::from_secs(1), Arc::default())
    }

    fn streaming(board: &Board) {
        let (system, timeline) = (SystemIdentifier(7), TimelineId(1));
        let server = "db1".to_owned();
        board.see(&ReceiveEvent::Connected { server, version: MajorVersion::V17, system, timeline });
        board.see(&ReceiveEvent::Streaming { timeline, from: Lsn(0), slot: None, standby: false, lags: None });
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_lags_needs_attention_until_it_has_caught_up() {
        let board = board();
        let lagging = |why: Option<&str>| {
            let timeline = TimelineId(1);
            let lags = Some(Lags { timeline, upto: Lsn(5000), instead_of: why.map(str::to_owned) });
            board.see(&ReceiveEvent::Streaming { timeline, from: Lsn(0), slot: None, standby: true, lags });
        };
        lagging(None);
        assert_eq!(state(&board), (State::Streaming, true), "a moment is no matter");
        tokio::time::advance(PATIENCE / 2).await;
        // To and fro between one that lags and one that is of no use.
        board.see(&ReceiveEvent::Reconnecting { why: "the slot is lost".to_owned(), wait_ms: 0 });
        lagging(Some("the slot is lost"));
        tokio::time::advance(PATIENCE / 2).await;
        assert_eq!(state(&board), (State::Streaming, false));
        let problem = board.report().problem.expect("what is wrong");
        assert!(problem.contains("behind 0/1388") && problem.contains("the slot is lost"), "{problem}");
        let durable = |server_end: u64| {
            let (timeline, server_end) = (TimelineId(1), Lsn(server_end));
            board.see(&ReceiveEvent::Durable { timeline, durable: Lsn(1), verified: Lsn(1), server_end });
            state(&board)
        };
        assert_eq!(durable(4999), (State::Streaming, false));
        assert_eq!(durable(5000), (State::Streaming, true));
        lagging(None);
        streaming(&board);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(state(&board), (State::Streaming, true));
    }

    /// However far it is on its own way.
    #[tokio::test(start_paused = true)]
    async fn a_server_on_an_older_timeline_than_is_stored_needs_attention() {
        let (board, timeline) = (board(), TimelineId(1));
        let lags = Some(Lags { timeline: TimelineId(2), upto: Lsn(5000), instead_of: Some("refused".to_owned()) });
        streaming(&board);
        board.see(&ReceiveEvent::Streaming { timeline, from: Lsn(0), slot: None, standby: false, lags });
        tokio::time::advance(PATIENCE).await;
        let durable = |timeline: u32| {
            let (timeline, server_end) = (TimelineId(timeline), Lsn(9000));
            board.see(&ReceiveEvent::Durable { timeline, durable: Lsn(1), verified: Lsn(1), server_end });
            state(&board)
        };
        assert_eq!(durable(1), (State::Streaming, false));
        let problem = board.report().problem.expect("what is wrong");
        assert!(
            problem.contains("on timeline 1, and timeline 2 is stored") && problem.contains("refused"),
            "{problem}"
        );
        assert_eq!(durable(2), (State::Streaming, true));
    }

    #[test]
    fn whether_commits_wait_is_said_only_while_a_server_can_be_asked() {
        let board = board();
        let known = || board.report().synchronous;
        assert_eq!(known(), None, "nobody was asked yet");
        let standing_by = |synchronous| {
            board.see(&ReceiveEvent::StandingBy { slot: "walrecv".to_owned(), holder: Some(7), synchronous });
            known()
        };
        assert_eq!(
            (standing_by(None), standing_by(Some(true)), standing_by(Some(false))),
            (None, Some(true), Some(false))
        );
        board.see(&ReceiveEvent::Synchronous(true));
        assert_eq!(known(), Some(true), "the list has changed");
        board.see(&ReceiveEvent::Reconnecting { why: "lost".to_owned(), wait_ms: 0 });
        assert_eq!(known(), None, "the server may be told otherwise meanwhile");
        streaming(&board);
        assert_eq!(known(), Some(false), "who is listed is told next");
        board.see(&ReceiveEvent::Synchronous(true));
        board.see(&ReceiveEvent::Stalled { behind: 1 });
        assert_eq!(known(), Some(true), "the server is watched");
        board.failed(&Error::new(Kind::Slot, "gone"));
        assert_eq!(known(), None);
    }

    fn state(board: &Board) -> (State, bool) {
        let report = board.report();
        (report.state, report.healthy)
    }

    #[test]
    fn states_follow_the_events() {
        let board = board();
        assert_eq!(state(&board), (State::Starting, true));
        streaming(&board);
        assert_eq!(state(&board), (State::Streaming, true));
        board.see(&ReceiveEvent::Reconnecting { why: "lost".to_owned(), wait_ms: 0 });
        assert_eq!(state(&board), (State::ServerAway, true), "a moment is no matter");
        board.known().since_instant -= PATIENCE;
        assert_eq!(state(&board), (State::ServerAway, false));
        board.see(&ReceiveEvent::StandingBy { slot: "walrecv".to_owned(), holder: None, synchronous: None });
        assert_eq!(state(&board), (State::StandingBy, true));
        assert_eq!(board.waits_at(), None, "where the slot stands is not known");
        board.see(&ReceiveEvent::Slot(SlotHealth::at(Lsn(77))));
        assert_eq!(board.waits_at(), Some((TimelineId(1), Lsn(77))));
        board.set_elsewhere(Some("it fills another archive".to_owned()));
        assert_eq!(state(&board), (State::StandingBy, false));
        assert!(board.report().problem.is_some_and(|problem| problem.contains("another archive")));
        board.set_elsewhere(None);
        assert_eq!(state(&board), (State::StandingBy, true));
        streaming(&board);
        board.see(&ReceiveEvent::Stalled { behind: 1 });
        assert_eq!(state(&board), (State::Stalled, false));
        board.failed(&Error::new(Kind::Slot, "gone").hint("make one"));
        let report = board.report();
        assert_eq!(
            (report.state, report.kind.as_deref(), report.hint.as_deref()),
            (State::Failed, Some("slot"), Some("make one"))
        );
        streaming(&board);
        assert_eq!((state(&board), board.report().problem), ((State::Streaming, true), None));
    }

    #[test]
    fn on_its_way_out_it_is_stopped_whatever_happens() {
        let board = board();
        streaming(&board);
        board.stopping();
        assert_eq!(state(&board), (State::Stopped, false));
        assert_eq!(board.report().problem.as_deref(), Some("the receiver is stopping"));
        board.see(&ReceiveEvent::Stalled { behind: 1 });
        board.see(&ReceiveEvent::Reconnecting { why: "lost".to_owned(), wait_ms: 0 });
        assert_eq!(state(&board), (State::Stopped, false));
        board.failed(&Error::new(Kind::Slot, "gone"));
        assert_eq!(state(&board), (State::Failed, false), "that is how it ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_repository_that_is_waited_for_needs_attention_after_a_while() {
        let board = board();
        let away = Error::new(Kind::Repository, "no route").transient().hint("mend the network");
        board.awaits_repository(&away);
        assert_eq!(state(&board), (State::AwaitingRepository, true), "a moment is no matter");
        tokio::time::advance(PATIENCE / 2).await;
        board.awaits_repository(&away);
        tokio::time::advance(PATIENCE / 2).await;
        assert_eq!(state(&board), (State::AwaitingRepository, false), "each attempt is not a new wait");
        let report = board.report();
        assert_eq!((report.problem.as_deref(), report.hint.as_deref()), (Some("no route"), Some("mend the network")));
        board.repository_is_open();
        assert_eq!((state(&board), board.report().problem), ((State::Starting, true), None));
    }

    #[test]
    fn lag_is_measured_on_the_servers_clock_and_an_idle_server_has_none() {
        let board = board();
        streaming(&board);
        let (now, stats) = (Instant::now(), board.stats.clone());
        assert_eq!(board.report().behind, Behind::default(), "nothing is known yet");
        stats.server_end.set(1000);
        stats.durable.set(1000);
        stats.set_heart(Some((1000, 5_000_000)), Some((8_000_000, now)));
        assert_eq!((board.report().behind.bytes, board.report().behind.seconds), (Some(0), Some(0.0)));
        stats.received.set(1500);
        assert_eq!(board.report().behind.bytes, Some(500), "what has arrived the server has");
        stats.server_end.set(2000);
        let behind = board.report().behind.seconds.unwrap();
        assert!((3.0..3.5).contains(&behind), "{behind}");
        // The server is silent: its clock goes on, and the lag with it.
        stats.durable.set(2000);
        stats.set_heart(None, Some((8_000_000, now.checked_sub(Duration::from_secs(10)).unwrap())));
        let behind = board.report().behind.seconds.unwrap();
        assert!((13.0..13.5).contains(&behind), "{behind}");
        stats.server_end.set(2000 + 2 * CATCHING_UP);
        assert_eq!(state(&board), (State::CatchingUp, true));
        stats.set_oldest_commit(Some(stats.started));
        board.known().slot = None;
        assert_eq!(state(&board), (State::CatchingUp, true), "a commit that has just arrived");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_does_not_catch_up_needs_attention() {
        let board = board();
        streaming(&board);
        let minute = |more: u64| {
            board.stats.server_end.add(more);
            let (durable, verified, server_end) = (Lsn(1), Lsn(1), Lsn(board.stats.server_end.get()));
            board.see(&ReceiveEvent::Durable { timeline: TimelineId(1), durable, verified, server_end });
        };
        let mut told = Vec::new();
        for _ in 0..8 {
            minute(2 * CATCHING_UP);
            told.push(state(&board));
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert_eq!(told[4], (State::CatchingUp, true), "a burst is no matter");
        assert_eq!(told[7], (State::CatchingUp, false));
        let problem = board.report().problem.expect("what is wrong");
        assert!(problem.contains("for 8 min it has come no nearer"), "{problem}");
        streaming(&board);
        assert_eq!(state(&board), (State::CatchingUp, true), "a new connection is given its time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_stream_with_much_on_its_way_is_healthy_for_hours() {
        let board = board();
        streaming(&board);
        for second in 0..7200_u64 {
            let (on_its_way, end) = ((24 + second * 7919 % 37) << 20, (100 + second) << 25);
            board.stats.server_end.set(end);
            board.stats.durable.set(end - on_its_way);
            let clock = 1_000_000 * i64::try_from(second).expect("a time");
            board.stats.set_heart(Some((end - on_its_way, clock - 1_500_000)), Some((clock, Instant::now())));
            let (durable, verified, server_end) = (Lsn(end - on_its_way), Lsn(end), Lsn(end));
            board.see(&ReceiveEvent::Durable { timeline: TimelineId(1), durable, verified, server_end });
            assert_eq!(state(&board), (State::CatchingUp, true), "after {second} s");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[test]
    fn a_lost_slot_needs_attention_while_everything_streams() {
        let board = board();
        streaming(&board);
        let health = |status: &str| SlotHealth {
            restart_lsn: None,
            retained_bytes: Some(1),
            wal_status: Some(status.to_owned()),
            safe_wal_size: None,
            limit: None,
            full_in_seconds: None,
            wal_bytes_per_second: None,
            polled_at: Instant::now(),
        };
        board.see(&ReceiveEvent::Slot(health("extended")));
        assert_eq!(state(&board), (State::Streaming, true));
        board.see(&ReceiveEvent::Slot(health("unreserved")));
        assert_eq!(state(&board), (State::Streaming, false));
    }
}
