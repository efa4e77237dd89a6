//! How a receiver is, as `walrecv status` shows it: the document that travels over the socket. `docs/reference/status.md` explains every key.

use serde::{Deserialize, Serialize};

use crate::stats::Quantiles;

/// Version of the document. New keys do not change it.
pub const VERSION: u32 = 1;

/// What one process says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Document {
    pub version: u32,
    /// `receive` or `run`.
    pub command: String,
    pub program: String,
    pub pid: u32,
    pub started_at: String,
    /// When this was written.
    pub at: String,
    pub clusters: Vec<ClusterReport>,
}

/// What a cluster's stream is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not connected yet.
    #[default]
    Starting,
    /// The repository cannot be opened, which it has to be before anything else.
    AwaitingRepository,
    Streaming,
    /// Streaming, with more to fetch than a moment's work.
    CatchingUp,
    /// Another receiver has the slot.
    StandingBy,
    /// The repository takes nothing.
    Stalled,
    /// No connection.
    ServerAway,
    /// Ended by an error that will not pass by itself; tried again from time to time.
    Failed,
    Stopped,
    /// Nobody streams this cluster here: told from the repository.
    NotRunning,
}

/// One cluster. Times are RFC 3339 in UTC, positions as PostgreSQL prints them, durations in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterReport {
    pub cluster: String,
    pub state: State,
    /// When the state began.
    pub since: Option<String>,
    pub healthy: bool,
    /// What is wrong, or was the last thing that was.
    pub problem: Option<String>,
    pub hint: Option<String>,
    /// Kind of the error that ended it.
    pub kind: Option<String>,
    pub server: Option<ServerReport>,
    pub timeline: Option<u32>,
    pub positions: Positions,
    pub behind: Behind,
    /// Everything that the server had by then is durable.
    pub complete_through: Option<String>,
    /// The server's clock minus this host's, as far as messages tell.
    pub clock_skew_seconds: Option<f64>,
    pub time_to_durable: Times,
    pub flushes: Work,
    pub puts: Work,
    pub put_errors: u64,
    pub received_bytes: u64,
    pub durable_bytes: u64,
    pub commits: u64,
    pub reconnects: u64,
    pub stalls: u64,
    /// In memory and not handed on; handed on and not durable.
    pub held_bytes: u64,
    pub queued_bytes: u64,
    pub slot: Option<SlotReport>,
    /// Listed in `synchronous_standby_names`: commits wait for the repository. `None`: it is not known, since no server is asked now.
    pub synchronous: Option<bool>,
    pub warning: Option<Remark>,
    /// WAL that is gone for good, or was written under `wal_level = minimal`, behind which there is no backup yet.
    pub hole: Option<String>,
    /// Where none runs: what the last one on this host left behind in its catalog.
    pub last_run: Option<LastRun>,
    /// The newest `walrecv verify` of this archive.
    pub last_verified: Option<Check>,
}

/// How the last run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It never said: killed, or its host went down.
    #[default]
    Unknown,
    /// As it was asked to.
    Stopped,
    /// By an error.
    Failed,
}

/// The last run on this host, as its catalog tells it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastRun {
    pub began: Option<String>,
    pub ended: Option<String>,
    pub ending: Ending,
    pub problem: Option<String>,
    /// When the rest was noted.
    pub at: Option<String>,
    pub timeline: Option<u32>,
    /// Durable in the repository, and acknowledged.
    pub durable: Option<String>,
    /// How far the server then had WAL.
    pub server: Option<String>,
    pub behind_bytes: Option<u64>,
    pub complete_through: Option<String>,
}

/// What a `walrecv verify` found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    pub at: String,
    /// Every byte was read back.
    pub deep: bool,
    /// When every byte of everything was read back last.
    pub deep_at: Option<String>,
    /// The only backup that it looked at.
    pub only: Option<String>,
    /// `ok`, or what was wrong.
    pub outcome: String,
    pub problems: u64,
    /// Backups that could not be restored as they were.
    pub hurt: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerReport {
    pub name: String,
    pub version: u32,
    pub system_identifier: String,
    /// In recovery: all numbers are as of the standby.
    pub standby: bool,
    /// Its last word came so long ago.
    pub heard_seconds_ago: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Positions {
    pub received: Option<String>,
    /// Every record before it was checked.
    pub verified: Option<String>,
    pub durable: Option<String>,
    /// Flush position that the server was told.
    pub reported: Option<String>,
    pub server: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Behind {
    pub bytes: Option<u64>,
    /// By the server's clock; 0 when all that it had at its last word is durable.
    pub seconds: Option<f64>,
    /// Age of the oldest commit that arrived and is not durable.
    pub oldest_commit_seconds: Option<f64>,
}

/// Milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spread {
    pub count: u64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// Over the last minutes.
    pub recent: Spread,
    /// Since start.
    pub total: Spread,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Work {
    pub count: u64,
    pub bytes: u64,
    pub milliseconds: Times,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotReport {
    pub name: Option<String>,
    pub restart_lsn: Option<String>,
    pub retained_bytes: Option<u64>,
    pub wal_status: Option<String>,
    pub safe_wal_size: Option<i64>,
    pub limit_bytes: Option<u64>,
    /// At the server's present pace, if nothing advances the slot: until the limit is reached. 0: the WAL may be removed by now.
    pub full_in_seconds: Option<u64>,
    /// That pace, once it was looked twice.
    pub wal_bytes_per_second: Option<u64>,
    pub asked_seconds_ago: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remark {
    pub at: String,
    pub text: String,
}

impl From<Quantiles> for Spread {
    fn from(of: Quantiles) -> Spread {
        let millis = |micros: u64| micros as f64 / 1000.0;
        Spread { count: of.count, p50: millis(of.p50), p99: millis(of.p99), p999: millis(of.p999), max: millis(of.max) }
    }
}

impl State {
    /// In plain words.
    pub fn words(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::AwaitingRepository => "waiting for the repository",
            State::Streaming => "streaming",
            State::CatchingUp => "catching up",
            State::StandingBy => "standing by",
            State::Stalled => "stalled",
            State::ServerAway => "server away",
            State::Failed => "failed",
            State::Stopped => "stopped",
            State::NotRunning => "not running",
        }
    }
}
