//! Starts the restored server and follows its recovery to the end, then compares where it landed with the plan.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::plan::Landing;
use super::plan_file;
use super::pulse::Pulse;
use super::recovery::shell_word;
use super::server::{self, Account, Programs};
use super::stopped;
use super::target::{Action, Target};
use crate::disk::durable;
use crate::disk::medium::Disk;
use crate::error::{Error, Kind, Result};
use crate::pg::control::ControlFile;
use crate::pg::{Lsn, MajorVersion, SegmentName, TimelineHistory, TimelineId};

const POLL: Duration = Duration::from_millis(100);
/// A server whose process is not seen for so long has ended.
const GONE: Duration = Duration::from_secs(2);
/// How long a server may take connections and let nobody in who would ask whether it has paused.
const SHUT_OUT: Duration = Duration::from_secs(15);
/// `DBState` (`catalog/pg_control.h`).
const DB_SHUTDOWNED_IN_RECOVERY: u32 = 2;
const DB_IN_PRODUCTION: u32 = 6;
const LOG: &str = "walrecv-start.log";
/// What the server says goes to [`LOG`], in English, whatever production's configuration has: where it ends at the target, nothing but its words tells that. It
/// holds for this run of the server only.
const PLAIN_LOG: &str =
    " -c lc_messages=C -c log_destination=stderr -c logging_collector=off -c log_min_messages=warning";

/// A restored data directory, and how its server is run.
#[derive(Clone, Debug)]
pub struct Start {
    pub pgdata: PathBuf,
    pub programs: Programs,
    pub account: Option<Account>,
    pub action: Action,
    /// Give up when recovery has not gone on for so long; the server is left as it is.
    pub patience: Option<Duration>,
}

/// Where the server is, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Started {
    /// Of the postmaster; `None` where it has shut down at the target, as asked.
    pub pid: Option<u32>,
    pub port: Option<u16>,
    pub socket_directory: Option<PathBuf>,
    pub log: PathBuf,
    /// The timeline that the server opened; `None` where it has not been promoted.
    pub new_timeline: Option<u32>,
    /// End of the last record that was replayed, where the server says it, or what it leaves after a shutdown at the target.
    #[serde(serialize_with = "super::report::as_text")]
    pub landed: Option<Lsn>,
    #[serde(rename = "took_seconds", serialize_with = "super::report::as_seconds")]
    pub took: Duration,
    /// Of that, until the server began to replay WAL: it takes as long for any target.
    #[serde(skip)]
    pub starting: Duration,
}

/// `postmaster.pid`, as far as it has been written (`CreateDataDirLockFile`, `AddToDataDirLockFile`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LockFile {
    pub(super) pid: Option<u32>,
    port: Option<u16>,
    socket_directory: Option<PathBuf>,
    status: String,
}

impl LockFile {
    pub(super) fn parse(text: &str) -> LockFile {
        let lines: Vec<&str> = text.lines().collect();
        let line = |number: usize| lines.get(number).map(|l| l.trim()).filter(|l| !l.is_empty());
        LockFile {
            pid: line(0).and_then(|l| l.parse().ok()),
            port: line(3).and_then(|l| l.parse().ok()),
            socket_directory: line(4).map(PathBuf::from),
            status: line(7).unwrap_or_default().to_owned(),
        }
    }
}

impl Start {
    /// Asks for the first segment of the recovery exactly as the server will, as its user, so that a missing right shows before the start.
    pub fn probe(&self, program: &Path, arguments: &[String], segment: SegmentName) -> Result<()> {
        let place = self.pgdata.join(plan_file::DIRECTORY).join("probe");
        let mut command = server::command(self.account.as_ref(), program);
        command.current_dir(&self.pgdata).arg("wal-fetch").args(arguments).arg(segment.to_string());
        command.arg(format!("{}/probe", plan_file::DIRECTORY));
        let ran = server::run(command, "wal-fetch as the server's user");
        let size = std::fs::metadata(&place).map(|m| m.len()).unwrap_or_default();
        durable::remove(&Disk, &place)?;
        let hint = "the server's user must be able to run walrecv and to read the repository";
        ran.map_err(|e| e.hint(hint))?;
        if size != segment.size.bytes() {
            let expected = segment.size.bytes();
            return Err(Error::new(
                Kind::Failed,
                format!("wal-fetch gave {size} bytes of {segment}, expected {expected}"),
            ));
        }
        Ok(())
    }

    /// Starts the server and waits until recovery has ended as asked. `progress` is given the last line of the log that is new.
    pub async fn run(&self, landing: &Landing, target: &Target, progress: &dyn Fn(&str)) -> Result<Started> {
        let begun = Instant::now();
        let log = self.pgdata.join(LOG);
        let mut command = server::command(self.account.as_ref(), &self.programs.path("pg_ctl"));
        let (data, own_log) = in_double_quotes(&self.pgdata, &log);
        command.current_dir(&self.pgdata).arg("-D").arg(data).arg("-l").arg(own_log);
        let mut settings = own_directory(&self.pgdata)?;
        if self.action == Action::Shutdown {
            settings.push_str(PLAIN_LOG);
        }
        command.args(["-W", "-o", &settings, "start"]);
        let control = self.control();
        let said_before = std::fs::metadata(&log).map_or(0, |log| log.len());
        server::run(command, "pg_ctl start").map_err(|e| self.with_log(e))?;
        let mut pulse = Pulse::begin();
        let (mut seen, mut heard) = (Instant::now(), Instant::now());
        let mut last_line = String::new();
        let mut starting = None;
        let lock = loop {
            tokio::time::sleep(POLL).await;
            // The first thing that is written there says that recovery begins, whichever it is (`StartupXLOG`).
            if starting.is_none() && self.control() != control {
                starting = Some(begun.elapsed());
            }
            if let Some(line) = last_log_line(&log).filter(|line| *line != last_line) {
                progress(&line);
                last_line = line;
            }
            let lock = self.lock_file();
            if lock.pid.is_some_and(alive) {
                seen = Instant::now();
                if self.arrived(&lock, &mut heard)? {
                    break lock;
                }
            } else if seen.elapsed() >= GONE {
                if self.action == Action::Shutdown && self.shut_down_at_target(said_before) {
                    break LockFile::default();
                }
                return Err(self.with_log(Error::new(Kind::Failed, "the server ended during recovery")));
            }
            self.demand_pulse(&mut pulse, lock.pid, &last_line)?;
        };
        let (new_timeline, landed) = match self.action {
            Action::Promote => self.promoted(landing.timeline).map_or((None, None), |(t, l)| (Some(t), Some(l))),
            Action::Pause => {
                (None, self.ask(&lock, "select pg_catalog.pg_last_wal_replay_lsn()").and_then(|l| l.parse().ok()))
            }
            Action::Shutdown => (None, Some(self.shut_down_where(said_before, landing, target)?)),
            Action::Follow => (None, None),
        };
        let LockFile { pid, port, socket_directory, .. } = lock;
        let took = begun.elapsed();
        let starting = starting.unwrap_or(took);
        let started = Started { pid, port, socket_directory, log, new_timeline, landed, took, starting };
        check_landing(&started, landing).map(|()| started)
    }

    fn lock_file(&self) -> LockFile {
        let text = std::fs::read_to_string(self.pgdata.join("postmaster.pid")).unwrap_or_default();
        LockFile::parse(&text)
    }

    /// A hot standby is "ready" too, so pg_control has to say that recovery has ended. `heard`: when the server last answered, or could not yet.
    fn arrived(&self, lock: &LockFile, heard: &mut Instant) -> Result<bool> {
        let ready = lock.status == "ready";
        match self.action {
            // Without hot_standby it never becomes "ready".
            Action::Follow => return Ok(ready || lock.status == "standby"),
            Action::Promote => return Ok(ready && self.in_production()),
            // Where nobody can look at it yet when it gets to its target, it does not stop there (`recoveryPausesHere`).
            Action::Pause | Action::Shutdown if ready && self.in_production() => {
                let message =
                    format!("the server did not {} at its target: it has opened the database", self.action.setting());
                return Err(
                    Error::new(Kind::Failed, message).hint(format!("its log says why: {}", self.log().display()))
                );
            }
            Action::Shutdown => return Ok(false),
            Action::Pause => {}
        }
        let answer = if ready { self.ask(lock, "select pg_catalog.pg_is_wal_replay_paused()") } else { None };
        if answer.is_some() || !ready {
            *heard = Instant::now();
        } else if heard.elapsed() >= SHUT_OUT {
            let message = "the server takes connections and does not let its owner in by its socket: whether it has paused cannot be told";
            return Err(Error::new(Kind::Failed, message)
                .hint("it goes on by itself: let psql in by pg_hba.conf and ask pg_is_wal_replay_paused()"));
        }
        Ok(answer.as_deref() == Some("t"))
    }

    fn log(&self) -> PathBuf {
        self.pgdata.join(LOG)
    }

    fn control(&self) -> Vec<u8> {
        std::fs::read(self.pgdata.join("global/pg_control")).unwrap_or_default()
    }

    fn in_production(&self) -> bool {
        ControlFile::parse(&self.control()).is_ok_and(|control| control.state == DB_IN_PRODUCTION)
    }

    /// The server has ended in good order, still in recovery, and says that it did so at the target and not because somebody stopped it. What pg_control says of the
    /// position is no proof: records that change no page may lie behind it.
    fn shut_down_at_target(&self, said_before: u64) -> bool {
        let state = ControlFile::parse(&self.control()).map(|control| control.state);
        state == Ok(DB_SHUTDOWNED_IN_RECOVERY)
            && self.pgdata.join("recovery.signal").exists()
            && self.said_since(said_before).contains("shutdown at recovery target")
    }

    fn shut_down_where(&self, said_before: u64, landing: &Landing, target: &Target) -> Result<Lsn> {
        let control = ControlFile::parse(&self.control())
            .map_err(|bad| Error::new(Kind::Failed, format!("pg_control of the restored server: {bad}")))?;
        let landed = stopped::landed(&self.said_since(said_before), &control, landing, target);
        landed.map_err(|error| misled(error, &self.log()))
    }

    /// What is new in the log since it had so many bytes.
    fn said_since(&self, before: u64) -> String {
        let said = std::fs::read(self.log()).unwrap_or_default();
        let said = said.get(usize::try_from(before).unwrap_or(usize::MAX)..).unwrap_or_default();
        String::from_utf8_lossy(said).into_owned()
    }

    /// A recovery may take days, but not stand still.
    fn demand_pulse(&self, pulse: &mut Pulse, postmaster: Option<u32>, last_line: &str) -> Result<()> {
        let Some(patience) = self.patience else { return Ok(()) };
        let resting = pulse.resting(&self.pgdata, postmaster);
        if resting <= patience {
            return Ok(());
        }
        let said = if last_line.is_empty() { "nothing" } else { last_line };
        let message =
            format!("recovery has replayed nothing for {} s; the last that the server said: {said}", resting.as_secs());
        Err(Error::new(Kind::Failed, message)
            .hint("see whether the repository answers, as fast as walrecv verify reads it"))
    }

    /// The timeline that the server made, and the position at which it left the recovered one.
    fn promoted(&self, target: TimelineId) -> Option<(u32, Lsn)> {
        let entries = std::fs::read_dir(self.pgdata.join("pg_wal")).ok()?;
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let newest = names.filter_map(|name| TimelineId::from_history_name(&name)).filter(|t| *t > target).max()?;
        let content = std::fs::read(self.pgdata.join("pg_wal").join(newest.history_name())).ok()?;
        let history = TimelineHistory::parse(newest, &content).ok()?;
        history.switch_point_of(target).map(|end| (newest.0, end))
    }

    /// One value by SQL, through the server's socket, where it lets its owner in.
    fn ask(&self, lock: &LockFile, sql: &str) -> Option<String> {
        let owner = self.account.as_ref().map_or("postgres", |a| a.name.as_str());
        // Production's login triggers are not for this: one that writes down who came shuts everybody out of a server in recovery. Only a superuser may pass by.
        let triggers: &[&str] =
            if self.programs.version >= MajorVersion::V17 { &[" -c event_triggers=off", ""] } else { &[""] };
        for triggers in triggers {
            let options = format!("{} {}{triggers}", server::NO_SEARCH_PATH, server::unhurried(self.programs.version));
            for (user, database) in [(owner, "postgres"), ("postgres", "postgres"), (owner, "template1")] {
                let mut command = server::client(self.account.as_ref(), &self.programs.path("psql"));
                server::unmoved(&mut command);
                command.env("PGOPTIONS", &options);
                command.current_dir("/").args(["-X", "-A", "-t", "-w", "-U", user, "-d", database, "-c", sql]);
                command.arg("-h").arg(lock.socket_directory.as_ref()?).arg("-p").arg(lock.port?.to_string());
                if let Ok(output) = server::run(command, "psql") {
                    return Some(String::from_utf8_lossy(&output.stdout).trim().to_owned());
                }
            }
        }
        None
    }

    /// Adds what the server's log says of the failure.
    fn with_log(&self, error: Error) -> Error {
        let log = self.pgdata.join(LOG);
        let text = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let bad = |line: &&str| ["FATAL:", "PANIC:", "ERROR:"].iter().any(|level| line.contains(level));
        match text.lines().rfind(bad) {
            Some(line) => error.context(line.trim()).hint(format!("the server's log is {}", log.display())),
            None => error.hint(format!("see the server's log {}", log.display())),
        }
    }
}

/// The data directory and the log as `pg_ctl` may be given them from within that directory: it puts both into double quotes for a shell, which reads some characters
/// there all the same.
fn in_double_quotes<'p>(pgdata: &'p Path, log: &'p Path) -> (&'p Path, &'p Path) {
    let is_read = |byte: &u8| b"$`\"\\".contains(byte);
    if pgdata.as_os_str().as_bytes().iter().any(is_read) { (Path::new("."), Path::new(LOG)) } else { (pgdata, log) }
}

/// What `pg_ctl` adds to the server's command line, through a shell: whatever a configuration file says, an included one too, the server works on these data.
fn own_directory(pgdata: &Path) -> Result<String> {
    let path = pgdata.to_str().ok_or_else(|| {
        Error::new(Kind::Usage, format!("not UTF-8: {}", pgdata.display())).hint("start the server with pg_ctl")
    })?;
    Ok(format!("-c {}", shell_word(&format!("data_directory={path}"))))
}

fn check_landing(started: &Started, landing: &Landing) -> Result<()> {
    match started.landed {
        Some(landed) if landed != landing.replayed => {
            let message = format!("the server landed at {landed}, the plan said {}", landing.replayed);
            Err(misled(Error::new(Kind::Failed, message), &started.log))
        }
        _ => Ok(()),
    }
}

fn misled(error: Error, log: &Path) -> Error {
    error.hint(format!("do not use this copy before its log is understood: {}", log.display()))
}

fn alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

fn last_log_line(log: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(4096))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    String::from_utf8_lossy(&bytes).lines().rfind(|l| !l.trim().is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_told_its_directory() {
        assert_eq!(own_directory(Path::new("/srv/data")).unwrap(), "-c data_directory=/srv/data");
        assert_eq!(own_directory(Path::new("/it's $here")).unwrap(), r"-c 'data_directory=/it'\''s $here'");
    }

    #[test]
    fn the_lock_file_is_read_as_far_as_it_goes() {
        let text = "4711\n/data\n1700000000\n5433\n/run/pg\n\n  1234  5\nready   \n";
        let lock = LockFile::parse(text);
        assert_eq!((lock.pid, lock.port, lock.status.as_str()), (Some(4711), Some(5433), "ready"));
        assert_eq!(lock.socket_directory, Some("/run/pg".into()));
        assert_eq!(LockFile::parse("4711\n/data\n"), LockFile { pid: Some(4711), ..LockFile::default() });
        assert_eq!(LockFile::parse(""), LockFile::default());
    }
}
