//! What a drill came to, for people, for scripts, and for the repository.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use super::{Aim, Demands, Point, age};
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::restore::scratch::ScratchServer;
use crate::restore::{Plan, Prepared, replayed};
use crate::seal::content::event::{Drill, Measured};
use crate::seal::content::rfc3339;

/// How a check ended, with what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Passed(String),
    Failed(String),
    /// What is stored, or was on the server, is damaged.
    Corrupt(String),
    Skipped(String),
}

/// One check. The names of the fields are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: String,
    /// `passed`, `failed` or `skipped`.
    pub state: &'static str,
    pub detail: String,
    /// It failed because something is damaged.
    pub corrupt: bool,
    pub milliseconds: u64,
}

impl Check {
    pub fn failed(&self) -> bool {
        self.state == "failed"
    }
}

/// The report. The names of the fields are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Drilled {
    pub cluster: String,
    pub began: String,
    pub milliseconds: u64,
    pub passed: bool,
    /// Of a random time: what draws it again.
    pub seed: Option<u64>,
    /// As asked for, or as found.
    pub backup: Option<String>,
    pub plan: Option<Plan>,
    /// Everything that was committed by then is in the archive, as far as it can tell.
    pub covered_through: Option<String>,
    /// Seconds between that and the beginning of the drill: what a loss of the server would have cost.
    pub rpo_seconds: Option<f64>,
    /// Seconds from the first look at the archive until the restored server answered.
    pub rto_seconds: Option<f64>,
    pub rto_planning_seconds: Option<f64>,
    pub rto_laying_seconds: Option<f64>,
    pub rto_recovery_seconds: Option<f64>,
    /// Of the recovery, until the server began to replay WAL.
    pub rto_starting_seconds: Option<f64>,
    pub restored_bytes: Option<u64>,
    pub checks: Vec<Check>,
    pub remarks: Vec<String>,
    /// What is being done: it is named where it fails.
    #[serde(skip)]
    pub(super) stage: &'static str,
    #[serde(skip)]
    measured: Option<Measured>,
    /// Why it is not known how far the archive covers.
    #[serde(skip)]
    uncovered: Option<String>,
}

impl Drilled {
    pub(super) fn new(archive: &Archive, aim: &Aim) -> Drilled {
        Drilled {
            cluster: archive.names.cluster.clone(),
            began: rfc3339(Timestamp::now()),
            milliseconds: 0,
            passed: false,
            seed: match aim.point {
                Point::Random(seed) => Some(seed),
                Point::Target(_) => None,
            },
            backup: aim.backup.clone(),
            plan: None,
            covered_through: None,
            rpo_seconds: None,
            rto_seconds: None,
            rto_planning_seconds: None,
            rto_laying_seconds: None,
            rto_recovery_seconds: None,
            rto_starting_seconds: None,
            restored_bytes: None,
            checks: Vec::new(),
            remarks: Vec::new(),
            stage: "planning",
            measured: None,
            uncovered: None,
        }
    }

    /// How far the archive covers what the server has done: its newest commit, or a later moment through which it is known to be complete. Where it cannot be
    /// restored to its end, nothing tells. That is a failure, however well an earlier moment is restored, unless backup or timeline were `named`: they may be older.
    pub(super) async fn covered(
        &mut self,
        archive: &Archive,
        newest: Result<&Prepared, &Error>,
        named: bool,
    ) -> Result<()> {
        let newest = match newest {
            Ok(newest) => newest,
            Err(error) => {
                let text = format!("the archive cannot be restored to its end: {error}");
                match (named, error.kind()) {
                    (true, _) => self.remark(&text),
                    (false, Kind::Corrupt) => self.add("coverage", Instant::now(), Ok(State::Corrupt(text.clone()))),
                    (false, _) => self.add("coverage", Instant::now(), Ok(State::Failed(text.clone()))),
                }
                self.uncovered = Some(text);
                return Ok(());
            }
        };
        let commit = newest.choice.landing.last_commit.map(|commit| commit.time);
        let beat = archive.complete_through(newest.choice.path.target()).await?.map(|beat| beat.time);
        let through = commit.max(beat).and_then(|time| Timestamp::from_microsecond(time.to_unix_micros()).ok());
        self.covered_through = through.map(rfc3339);
        self.rpo_seconds = through.and_then(|time| age(time, Timestamp::now()));
        Ok(())
    }

    pub(super) fn planned(&mut self, prepared: &Prepared) {
        self.backup = Some(prepared.plan.backup.id.clone());
        self.plan = Some(prepared.plan.clone());
    }

    pub(super) fn rto(&mut self, planning: Duration, prepared: &Prepared, server: &ScratchServer) {
        let (laying, recovery) = (server.laying, server.started.took);
        self.measured = Some(Measured {
            laid_bytes: server.restored.bytes,
            laying_milliseconds: laying.as_millis() as u64,
            wal_bytes: replayed(&prepared.choice),
            recovery_milliseconds: recovery.as_millis() as u64,
            starting_milliseconds: server.started.starting.as_millis() as u64,
        });
        self.rto_planning_seconds = Some(planning.as_secs_f64());
        self.rto_laying_seconds = Some(laying.as_secs_f64());
        self.rto_recovery_seconds = Some(recovery.as_secs_f64());
        self.rto_starting_seconds = Some(server.started.starting.as_secs_f64());
        self.rto_seconds = Some((planning + laying + recovery).as_secs_f64());
        self.restored_bytes = Some(server.restored.bytes);
        if server.restored.bad_pages > 0 {
            let pages = server.restored.bad_pages;
            self.remark(&format!(
                "{pages} pages had wrong checksums when they were read: damaged on the server, or being written"
            ));
        }
        server.restored.warnings.iter().for_each(|warning| self.remark(warning));
        if !server.libraries.is_empty() {
            self.remark(&format!("shared_preload_libraries were at work in the scratch server: {}", server.libraries));
        }
    }

    pub(super) fn remark(&mut self, text: &str) {
        self.remarks.push(text.to_owned());
    }

    pub(super) fn add(&mut self, name: &str, begun: Instant, state: Result<State>) {
        let corrupt = |error: &Error| error.kind() == Kind::Corrupt;
        let (state, detail, corrupt) = match state {
            Ok(State::Passed(detail)) => ("passed", detail, false),
            Ok(State::Failed(detail)) => ("failed", detail, false),
            Ok(State::Corrupt(detail)) => ("failed", detail, true),
            Ok(State::Skipped(detail)) => ("skipped", detail, false),
            Err(error) => ("failed", error.to_string(), corrupt(&error)),
        };
        let milliseconds = begun.elapsed().as_millis() as u64;
        self.checks.push(Check { name: name.to_owned(), state, detail, corrupt, milliseconds });
        self.passed = self.checks.iter().all(|check| !check.failed());
    }

    /// Compares what was measured with what is demanded.
    pub(super) fn measure(&mut self, demands: &Demands) {
        let limits = [("rpo", demands.rpo, self.rpo_seconds), ("rto", demands.rto, self.rto_seconds)];
        for (name, limit, measured) in limits {
            let Some(limit) = limit else { continue };
            let state = match measured {
                Some(seconds) if seconds <= limit.as_secs_f64() => {
                    State::Passed(format!("{seconds:.1} s, at most {:.1} s are allowed", limit.as_secs_f64()))
                }
                Some(seconds) => {
                    State::Failed(format!("{seconds:.1} s, at most {:.1} s are allowed", limit.as_secs_f64()))
                }
                None => State::Failed(match (name, &self.covered_through, &self.uncovered) {
                    ("rpo", _, Some(why)) => format!("it cannot be told: {why}"),
                    ("rpo", Some(through), None) => {
                        format!(
                            "it cannot be told: by the server's clock the archive reaches {through}, by this host's that is yet to come"
                        )
                    }
                    _ => "it cannot be told: nothing was committed since the backup".to_owned(),
                }),
            };
            self.add(name, Instant::now(), Ok(state));
        }
    }

    /// A drill that could not be gone through.
    pub(super) fn ended_early(&mut self, error: &Error) {
        let text = match error.advice() {
            Some(advice) => format!("{error} ({advice})"),
            None => error.to_string(),
        };
        self.add(self.stage, Instant::now(), Err(Error::new(error.kind(), text)));
    }

    /// What is noted in the repository: no word of anybody's SQL.
    pub fn event(&self, host: String, user: String) -> Drill {
        let failed = self.checks.iter().filter(|check| check.failed());
        let name = |check: &Check| check.name.split(':').next().unwrap_or_default().to_owned();
        Drill {
            backup: self.backup.clone(),
            target: self.plan.as_ref().map(|plan| plan.target.clone()),
            passed: self.passed,
            corrupt: self.checks.iter().any(|check| check.failed() && check.corrupt),
            failed: failed.map(name).collect(),
            rpo_milliseconds: self.rpo_seconds.map(|seconds| (seconds * 1000.0) as u64),
            rto_milliseconds: self.rto_seconds.map(|seconds| (seconds * 1000.0) as u64),
            milliseconds: self.milliseconds,
            host,
            user,
            measured: self.measured,
        }
    }
}
