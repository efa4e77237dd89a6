//! The settings of a restored server: recovery, and what keeps a copy from acting on production. Text in, text out; nothing is written here.

use std::path::Path;

use serde::Serialize;

use super::plan::{Landing, Stop};
use super::plan_file;
use super::settings::{self, Outside, value_of};
use super::target::{Action, Target, time_text};
use crate::error::{Error, Kind, Result};
use crate::pg::xact::Parameters;
use crate::pg::{MajorVersion, TimelineId};

const BEGIN: &str = "# walrecv restore: begin";
const END: &str = "# walrecv restore: end";
/// Settings that name a target. The server refuses two of them, so all but the one in use are emptied first
/// (`error_multiple_recovery_targets`); an emptied one must stand before the one in use.
const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];

/// A server that is thrown away again: own socket directory and port, no TCP.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// A private directory, absolute; its `pg_hba.conf` and `pg_ident.conf` are used.
    pub directory: std::path::PathBuf,
    pub port: u16,
}

/// Whom a standby streams from, once it has what the archive has.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    /// `primary_conninfo`; empty: the archive is all that it has.
    pub conninfo: String,
    /// `primary_slot_name`; may be empty.
    pub slot: String,
}

/// What the block is made from.
pub struct Wishes<'a> {
    /// The restored data directory.
    pub root: &'a Path,
    pub target: &'a Target,
    pub action: Action,
    pub landing: &'a Landing,
    pub timeline: TimelineId,
    /// The timeline that the server would find as its `latest`.
    pub newest: TimelineId,
    /// Absolute path of this program.
    pub program: &'a Path,
    /// Arguments that `wal-fetch` needs when no plan binds it, such as `--config FILE`.
    pub fetch_arguments: &'a [String],
    /// Of the server; `None`: one that is not supported.
    pub version: Option<MajorVersion>,
    /// The highest values that recovery will meet, from pg_control and WAL.
    pub parameters: Parameters,
    pub keep_archiving: bool,
    /// Leave production's subscriptions at work.
    pub keep_subscriptions: bool,
    pub scratch: Option<&'a Scratch>,
    pub upstream: &'a Upstream,
}

/// A setting of production's configuration that the restored server does not take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Neutralised {
    pub setting: String,
    pub was: String,
    pub now: String,
}

/// The new postgresql.auto.conf, and what it overrides.
#[derive(Clone, Debug)]
pub struct Written {
    pub auto_conf: Vec<u8>,
    pub neutralised: Vec<Neutralised>,
    /// Of a scratch server: what suits it and this host, and would harm nobody.
    pub adapted: Vec<Neutralised>,
    /// What recovery could not go on with.
    pub raised: Vec<Neutralised>,
    pub outside: Vec<Outside>,
}

/// Settings of a scratch server that keep it from nothing.
const ADAPTED: [&str; 5] = ["logging_collector", "log_destination", "lc_messages", "shared_buffers", "huge_pages"];

/// Appends the block to postgresql.auto.conf (an earlier block goes). `main_conf` is the restored postgresql.conf, if there is one.
pub fn write(wishes: &Wishes<'_>, main_conf: Option<&[u8]>, auto_conf: Option<&[u8]>) -> Result<Written> {
    let kept = without_block(auto_conf.unwrap_or_default());
    let main = String::from_utf8_lossy(main_conf.unwrap_or_default()).into_owned();
    let current = format!("{main}\n{}", String::from_utf8_lossy(&kept));
    let mut lines = vec![BEGIN.to_owned()];
    lines.extend(recovery(wishes)?);
    let elsewhere = main_conf.is_none() || includes(&current);
    let overrides = overrides(wishes, &current, elsewhere)?;
    lines.extend(overrides.iter().map(|(name, value)| format!("{name} = {}", quote(value))));
    let auto = String::from_utf8_lossy(&kept).into_owned();
    let raised = parameters(&wishes.parameters, &current, &auto, elsewhere);
    lines.extend(raised.iter().map(|one| format!("{} = {}", one.setting, one.now)));
    lines.push(END.to_owned());
    let mut out = kept;
    if out.last().is_some_and(|b| *b != b'\n') {
        out.push(b'\n');
    }
    out.extend_from_slice(lines.join("\n").as_bytes());
    out.push(b'\n');
    let outside = settings::outside(&current, wishes.root, &|path| path.exists());
    let (adapted, neutralised) = differences(&overrides, &current, elsewhere)
        .into_iter()
        .partition(|one| ADAPTED.contains(&one.setting.as_str()));
    Ok(Written { auto_conf: out, neutralised, adapted, raised, outside })
}

fn recovery(wishes: &Wishes<'_>) -> Result<Vec<String>> {
    let program = shell_word(wishes.program.to_str().ok_or_else(|| {
        Error::new(Kind::Usage, format!("the path of this program is not UTF-8: {:?}", wishes.program))
    })?);
    let arguments: String = wishes.fetch_arguments.iter().map(|a| format!(" {}", shell_word(a))).collect();
    let command = format!("{program} wal-fetch{arguments}").replace('%', "%%");
    if command.contains(['\n', '\r', '\0']) {
        return Err(Error::new(Kind::Usage, "a path with a line break cannot stand in restore_command"));
    }
    let mut lines = vec![format!("restore_command = {}", quote(&format!("{command} %f %p")))];
    let target = target_setting(wishes);
    let used = target.as_ref().map(|(name, _, _)| *name);
    lines.extend(TARGETS.iter().filter(|name| Some(**name) != used).map(|name| format!("{name} = ''")));
    if let Some((name, value, inclusive)) = target {
        lines.push(format!("{name} = {}", quote(&value)));
        lines.push(format!("recovery_target_inclusive = {}", if inclusive { "on" } else { "off" }));
        lines.push(format!("recovery_target_action = '{}'", wishes.action.setting()));
    }
    if wishes.action == Action::Follow && wishes.newest == wishes.timeline {
        lines.push("recovery_target_timeline = 'latest'".to_owned());
    } else {
        // Read with base 0 by the server: decimal, never the padded digits of a file name.
        lines.push(format!("recovery_target_timeline = '{}'", wishes.timeline));
    }
    if wishes.action == Action::Pause {
        lines.push("hot_standby = on".to_owned());
    }
    Ok(lines)
}

/// Name, value and inclusiveness of the one target; `None` where recovery goes to the end of what `wal-fetch` serves.
fn target_setting(wishes: &Wishes<'_>) -> Option<(&'static str, String, bool)> {
    if wishes.action == Action::Follow {
        return None;
    }
    if matches!(wishes.landing.stop, Stop::EndOfWal | Stop::Cut) {
        // Without a target the server always promotes; the start of the last record is the same place with a choice.
        let last = wishes.landing.last_record.to_string();
        return (wishes.action != Action::Promote).then_some(("recovery_target_lsn", last, true));
    }
    match wishes.target {
        Target::Latest => None,
        Target::Time { time, inclusive } => Some(("recovery_target_time", time_text(*time), *inclusive)),
        Target::Lsn { lsn, inclusive } => Some(("recovery_target_lsn", lsn.to_string(), *inclusive)),
        Target::Xid { xid, inclusive } => Some(("recovery_target_xid", xid.to_string(), *inclusive)),
        Target::Name(name) => Some(("recovery_target_name", name.clone(), true)),
        Target::Immediate => Some(("recovery_target", "immediate".to_owned(), true)),
    }
}

/// What keeps the copy from waiting for production's standbys, archiving into production's archive, or connecting to production.
fn overrides(wishes: &Wishes<'_>, current: &str, elsewhere: bool) -> Result<Vec<(&'static str, String)>> {
    let mut out = vec![
        // The plan holds keys. A failure of this command is only a warning.
        ("recovery_end_command", format!("rm -rf {}", plan_file::DIRECTORY)),
        // It would delete from an archive that is production's.
        ("archive_cleanup_command", String::new()),
    ];
    if wishes.action == Action::Follow {
        // It is to be production's: until it is promoted it neither archives, nor waits for standbys, nor subscribes.
        let Upstream { conninfo, slot } = wishes.upstream;
        out.extend([("primary_conninfo", conninfo.clone()), ("primary_slot_name", slot.clone())]);
        // With `always` it archives what it is served, and a tail that is served as a segment is zero behind its end.
        let mode = value_of(current, "archive_mode");
        if mode.as_ref().is_some_and(|mode| mode.eq_ignore_ascii_case("always")) {
            out.push(("archive_mode", "on".to_owned()));
        } else if mode.is_none() && elsewhere && !wishes.keep_archiving {
            // It may stand where this cannot look, and with `on` a production that does not archive would keep its WAL for ever.
            out.push(("archive_mode", "off".to_owned()));
        }
        return Ok(out);
    }
    out.extend([
        ("recovery_min_apply_delay", "0".to_owned()),
        ("synchronous_standby_names", String::new()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
    ]);
    // A server that is to pause opens where there is such a file, and deletes it: beside production it would be production's. 16 and later do not know it.
    if wishes.version.is_some_and(|version| version < MajorVersion::V16) {
        out.push(("promote_trigger_file", String::new()));
    }
    if !wishes.keep_archiving || wishes.scratch.is_some() {
        out.push(("archive_mode", "off".to_owned()));
    }
    if !wishes.keep_subscriptions || wishes.scratch.is_some() {
        out.push(("max_logical_replication_workers", "0".to_owned()));
    }
    // A server empties it when it starts: beside production, on Debian, it would be production's. 15 and later do not know it.
    if value_of(current, "stats_temp_directory").is_some() {
        out.push(("stats_temp_directory", "pg_stat_tmp".to_owned()));
    }
    if let Some(scratch) = wishes.scratch {
        out.extend(alone(scratch, wishes.version)?);
    }
    Ok(out)
}

/// What a scratch server has for itself.
fn alone(scratch: &Scratch, version: Option<MajorVersion>) -> Result<Vec<(&'static str, String)>> {
    let directory = scratch.directory.to_str().filter(|d| !d.contains([',', '"', '\n']));
    let directory = directory.ok_or_else(|| {
        Error::new(Kind::Usage, format!("not usable as a socket directory: {}", scratch.directory.display()))
    })?;
    let mut out = vec![
        ("listen_addresses", String::new()),
        ("unix_socket_directories", directory.to_owned()),
        ("port", scratch.port.to_string()),
        ("hba_file", format!("{directory}/pg_hba.conf")),
        ("ident_file", format!("{directory}/pg_ident.conf")),
        ("external_pid_file", String::new()),
        ("ssl", "off".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        // What it says is searched.
        ("lc_messages", "C".to_owned()),
        // Production's may be more than this host has beside its own servers, or less than a recovery wants.
        ("shared_buffers", "128MB".to_owned()),
        ("huge_pages", "off".to_owned()),
        // pg_cron's jobs name the host that they connect to: production. Versions before 1.6 know only the second; without pg_cron both say nothing.
        ("cron.launch_active_jobs", "off".to_owned()),
        ("cron.max_running_jobs", "0".to_owned()),
    ];
    // Production's event triggers may write to production: who logged in, what was changed. Versions before 17 do not know the setting.
    if version >= Some(MajorVersion::V17) {
        out.push(("event_triggers", "off".to_owned()));
    }
    Ok(out)
}

/// The parameters that a hot standby must not have below the primary's (`CheckRequiredParameterValues`), where the configuration
/// does not show that they are high enough. `elsewhere`: a file that the backup does not have may say anything, but where `auto`, which is read last, has them.
fn parameters(needed: &Parameters, current: &str, auto: &str, elsewhere: bool) -> Vec<Neutralised> {
    let settings = [
        ("max_connections", needed.max_connections, 100),
        ("max_worker_processes", needed.max_worker_processes, 8),
        ("max_wal_senders", needed.max_wal_senders, 10),
        ("max_prepared_transactions", needed.max_prepared_transactions, 0),
        ("max_locks_per_transaction", needed.max_locks_per_transaction, 64),
    ];
    let unclear = |name: &str| elsewhere && (includes(auto) || value_of(auto, name).is_none());
    let enough = |name: &str, needed: i32, default: i32| {
        let found = value_of(current, name).map_or(Some(default), |v| v.parse().ok());
        !unclear(name) && found.is_some_and(|found| found >= needed)
    };
    let raised = settings.into_iter().filter(|(name, needed, default)| !enough(name, *needed, *default));
    let told = |(name, needed, default): (&str, i32, i32)| {
        let unsaid = || if unclear(name) { ELSEWHERE.to_owned() } else { default.to_string() };
        // What stands there may be overridden elsewhere: only so is a value that is high enough set again.
        let was = value_of(current, name).filter(|was| *was != needed.to_string()).unwrap_or_else(unsaid);
        Neutralised { setting: name.to_owned(), was, now: needed.to_string() }
    };
    raised.map(told).collect()
}

/// In place of a value that nobody here knows.
const ELSEWHERE: &str = "not in the backup's files";

/// An included file may say anything.
pub(super) fn includes(current: &str) -> bool {
    current.lines().any(|line| line.trim_start().starts_with("include"))
}

/// What the overrides change. `elsewhere`: production's settings stand, perhaps, in files that the backup does not have.
fn differences(overrides: &[(&'static str, String)], current: &str, elsewhere: bool) -> Vec<Neutralised> {
    let differs = |(name, now): &(&'static str, String)| {
        let unsaid = match *name {
            // Subscriptions stand in tables: nothing in the files tells whether there are any.
            "max_logical_replication_workers" => Some("4"),
            "archive_mode" | "synchronous_standby_names" if elsewhere => Some(ELSEWHERE),
            _ => None,
        };
        let was = value_of(current, name).or(unsaid.map(str::to_owned))?;
        (was != *now).then(|| Neutralised { setting: (*name).to_owned(), was: shown(&was), now: shown(now) })
    };
    overrides.iter().filter_map(differs).collect()
}

/// Passwords are not told.
fn shown(value: &str) -> String {
    if may_hold_a_password(value) { "(a connection with a password)".to_owned() } else { value.to_owned() }
}

/// Whether there may be a password in it. In a URI one may stand in front of the host, without the word.
pub fn may_hold_a_password(value: &str) -> bool {
    value.contains("password") || (value.contains("://") && value.contains('@'))
}

fn without_block(conf: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(conf.len());
    let mut inside = false;
    for line in conf.split_inclusive(|b| *b == b'\n') {
        let text = line.trim_ascii();
        inside |= text == BEGIN.as_bytes();
        if !inside {
            out.extend_from_slice(line);
        }
        inside &= text != END.as_bytes();
    }
    out
}

/// As the configuration file's scanner reads a string (`DeescapeQuotedString`).
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// One word for `sh`.
pub fn shell_word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:=@,".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
