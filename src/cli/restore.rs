//! `walrecv restore`: plan, lay back, and on request start the server and wait for the target.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::args::{Common, RestoreArgs};
use super::context::Context;
use super::show::{self, BAD_PAGES};
use super::{output, target};
use crate::archive::Archive;
use crate::config::duration;
use crate::error::{Error, Kind, Result};
use crate::pg::MajorVersion;
use crate::restore::choose::PassedOver;
use crate::restore::only::{self, Database};
use crate::restore::recovery::{self, Scratch, Upstream};
use crate::restore::report::DatabasesShown;
use crate::restore::server::{Account, Programs};
use crate::restore::start::{Start, Started};
use crate::restore::{self, Action, Options, Plan, Prepared, Restored, Target, Wanted, sound};

/// Socket, `pg_hba.conf` and `pg_ident.conf` of a scratch server, inside its data directory.
const SCRATCH: &str = "walrecv-scratch";
/// Port of a scratch server when none is given; it has no TCP, so the number only names its socket.
const SCRATCH_PORT: u16 = 5432;

pub async fn run(common: &Common, args: &RestoreArgs) -> Result<()> {
    let context = Context::open_with(common, args.identity_file.as_deref()).await?;
    let (access, ring) = context.content_access().await?;
    let archive = context.archive(ring).await?;
    let target = wanted_target(args)?;
    let backup = show::chosen(&archive, args.backup.as_ref()).await?;
    let timeline = target::timeline(&archive, args.target_timeline.as_deref(), backup.as_deref()).await?;
    let wanted = Wanted { target, timeline, backup };
    let cluster = &archive.names.cluster;
    if args.plan {
        let mut prepared = prepare(&archive, &wanted, args).await?;
        if args.pgdata.is_some() {
            let options = options(common, cluster, context.settings.config_path.as_path(), args)?;
            prepared.plan.tablespaces = restore::check(&prepared, &options)?;
        }
        return show_plan(common, &prepared.plan, args.delta);
    }
    let options = options(common, cluster, context.settings.config_path.as_path(), args)?;
    let patience = duration::parse(&args.stall_limit)
        .map_err(|problem| Error::new(Kind::Usage, format!("--stall-limit: {problem}")))?;
    let mut prepared = prepare(&archive, &wanted, args).await?;
    prepared.plan.tablespaces = restore::check(&prepared, &options)?;
    let programs = if args.start { Some(programs(&prepared, args)?) } else { None };
    if args.start && !args.scratch {
        restore::demand_free_port(&archive, &prepared).await?;
    }
    restore::rehearse(&archive, access.clone(), &prepared, &options).await?;
    if common.output == output::Format::Text {
        show_plan(common, &prepared.plan, args.delta)?;
    }
    let bar = bar();
    let restored = {
        let moved = |done: u64, total: u64| {
            bar.set_length(total);
            bar.set_position(done);
        };
        restore::restore(&archive, access, &prepared, &options, &moved).await
    };
    bar.finish_and_clear();
    let restored = match restored {
        Err(error) => return Err(with_way_out(&archive, &wanted, &prepared, error).await),
        Ok(restored) => restored,
    };
    if common.output == output::Format::Text {
        show_restored(&restored, &options.pgdata);
    }
    elsewhere(&restored, programs.is_some())?;
    let started = match programs {
        Some(programs) => Some(start(&archive.names, &prepared, &options, programs, patience).await?),
        None => None,
    };
    show_end(common, &prepared, &restored, started.as_ref(), &options)
}

/// Where what the plan needs of the chosen backup is damaged, another that lands alike is taken, unless a backup was asked for.
async fn prepare(archive: &Archive, wanted: &Wanted, args: &RestoreArgs) -> Result<Prepared> {
    let first = restore::prepare(archive, wanted).await?;
    let failed = match weighed(archive, first.clone(), args).await {
        Err(error) if error.kind() == Kind::Corrupt => error,
        outcome => return outcome,
    };
    if wanted.backup.is_some() {
        return Err(with_way_out(archive, wanted, &first, failed).await);
    }
    let why = |error: &Error| format!("{error}; this restore lands at the same place without it");
    let mut damaged =
        vec![PassedOver { backup: first.choice.manifest.id.to_string(), why: why(&failed), cut_off: false }];
    while let Some(other) = sound::instead(archive, wanted, &first, &damaged).await? {
        let backup = other.choice.manifest.id.to_string();
        match weighed(archive, other, args).await {
            Err(error) if error.kind() == Kind::Corrupt => {
                damaged.push(PassedOver { backup, why: why(&error), cut_off: false })
            }
            outcome => return outcome,
        }
    }
    Err(failed)
}

/// The same error, whose advice is the command that restores to the same place from another backup, if there is one.
async fn with_way_out(archive: &Archive, wanted: &Wanted, prepared: &Prepared, error: Error) -> Error {
    if error.kind() != Kind::Corrupt {
        return error;
    }
    let Some(other) = sound::way_out(archive, wanted, prepared, &error).await else { return error };
    let again = again(std::env::args_os().map(|arg| arg.into_string()), &other);
    let before = error.advice().map(|advice| format!("{advice} ")).unwrap_or_default();
    error.hint(format!("{before}Backup {other} lands at the same place and does not need that object: {again}"))
}

/// The command line with this backup, for a shell. What may hold a password, or is no text, is not repeated.
fn again(args: impl Iterator<Item = std::result::Result<String, OsString>>, backup: &str) -> String {
    let same = || format!("give the same command with --backup {backup}");
    let (mut words, Ok(args)) = (Vec::new(), args.collect::<std::result::Result<Vec<String>, _>>()) else {
        return same();
    };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--backup" {
            args.next();
        } else if !arg.starts_with("--backup=") {
            words.push(arg);
        }
    }
    if words.iter().any(|word| recovery::may_hold_a_password(word)) {
        return same();
    }
    let line: Vec<String> = words.iter().map(|word| recovery::shell_word(word)).collect();
    format!("{} --backup {backup}", line.join(" "))
}

async fn weighed(archive: &Archive, prepared: Prepared, args: &RestoreArgs) -> Result<Prepared> {
    let prepared = match args.databases.as_slice() {
        [] => prepared,
        names => prepared.only(archive, &|there| only::called(names, there)).await?,
    };
    prepared.weighed(archive).await
}

/// The target that was asked for (clap made sure that there is one); a standby has none.
fn wanted_target(args: &RestoreArgs) -> Result<Target> {
    Ok(target::wanted(&args.target.point, args.exclusive)?.unwrap_or(Target::Latest))
}

fn options(common: &Common, cluster: &str, config: &Path, args: &RestoreArgs) -> Result<Options> {
    let pgdata = args.pgdata.as_deref().ok_or_else(|| Error::new(Kind::Usage, "no --pgdata given"))?;
    let absolute = |path: &Path| -> Result<PathBuf> {
        std::path::absolute(path)
            .map_err(|e| Error::new(Kind::Usage, format!("not a path: {}", path.display())).caused_by(e))
    };
    let pgdata = absolute(pgdata)?;
    demand_one_line(&pgdata)?;
    let program = std::env::current_exe().map_err(|e| {
        Error::new(Kind::Failed, "cannot tell the path of this program, which restore_command needs").caused_by(e)
    })?;
    Ok(Options {
        scratch: args
            .scratch
            .then(|| Scratch { directory: pgdata.join(SCRATCH), port: args.port.unwrap_or(SCRATCH_PORT) }),
        pgdata,
        tablespaces: args.tablespace_mapping.iter().map(|text| restore::parse_mapping(text)).collect::<Result<_>>()?,
        action: match args.target_action.as_str() {
            _ if args.target.standby => Action::Follow,
            "pause" => Action::Pause,
            "shutdown" => Action::Shutdown,
            _ => Action::Promote,
        },
        jobs: usize::from(args.jobs),
        account: Account::choose(args.owner.as_deref())?,
        delta: args.delta,
        keep_archiving: args.keep_archive_mode,
        keep_subscriptions: args.keep_subscriptions,
        upstream: Upstream {
            conninfo: args.primary_conninfo.clone().unwrap_or_default(),
            slot: args.primary_slot.clone().unwrap_or_default(),
        },
        program,
        fetch_arguments: fetch_arguments(common, cluster, config, args)?,
    })
}

/// A server writes it on a line of its lock file, from which the lines behind are counted (`CreateDataDirLockFile`).
fn demand_one_line(pgdata: &Path) -> Result<()> {
    if pgdata.as_os_str().as_encoded_bytes().iter().any(|b| b"\n\r".contains(b)) {
        return Err(Error::new(Kind::Usage, format!("--pgdata has a line break in it: {pgdata:?}")).hint(
            "postmaster.pid cannot tell of a server in such a directory: name another one; nothing was changed",
        ));
    }
    Ok(())
}

/// What `wal-fetch` is told: where this restore read from, for the time after the plan, and what it may fetch ahead.
fn fetch_arguments(common: &Common, cluster: &str, config: &Path, args: &RestoreArgs) -> Result<Vec<String>> {
    let mut arguments = vec!["--config".to_owned(), config.display().to_string()];
    arguments.extend(common.repo.iter().flat_map(|repo| ["--repo".to_owned(), repo.clone()]));
    // Named even where it is the only one: the configuration may get a second one later.
    arguments.extend(["--cluster".to_owned(), cluster.to_owned()]);
    if let Some(file) = &args.identity_file {
        // The server calls it in its own directory.
        let file = std::path::absolute(file).map_err(|e| {
            Error::new(Kind::Usage, format!("--identity-file: not a path: {}", file.display())).caused_by(e)
        })?;
        let file = file.to_str().ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("--identity-file: not UTF-8, which restore_command needs: {}", file.display()),
            )
        })?;
        arguments.extend(["--identity-file".to_owned(), file.to_owned()]);
    }
    if let Some(size) = &args.prefetch {
        super::wal_fetch::budget(size).map_err(|e| Error::new(Kind::Usage, format!("--prefetch: {e}")))?;
        arguments.extend(["--prefetch".to_owned(), size.trim().to_owned()]);
    }
    Ok(arguments)
}

fn programs(prepared: &Prepared, args: &RestoreArgs) -> Result<Programs> {
    let number = prepared.choice.manifest.version_num;
    let version = MajorVersion::from_version_num(number).ok_or_else(|| {
        Error::new(Kind::Version, format!("the backup is of server version {number}, 13 to 18 are supported"))
    })?;
    Programs::find(version, args.pg_bindir.as_deref(), std::env::var_os("PATH").as_deref())
}

/// Hidden unless a person watches.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if !output::watched() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

async fn start(
    names: &crate::repo::ClusterNames,
    prepared: &Prepared,
    options: &Options,
    programs: Programs,
    patience: Duration,
) -> Result<Started> {
    let start = Start {
        pgdata: options.pgdata.clone(),
        programs,
        account: options.account.clone(),
        action: options.action,
        patience: (!patience.is_zero()).then_some(patience),
    };
    start.probe(
        &options.program,
        &options.fetch_arguments,
        restore::report::first_segment(&prepared.choice, names.segment_size),
    )?;
    let spinner = ProgressBar::new_spinner();
    if !output::watched() {
        spinner.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let say = |line: &str| spinner.set_message(line.to_owned());
    let outcome = start.run(&prepared.choice.landing, &prepared.target, &say).await;
    spinner.finish_and_clear();
    outcome
}

/// `delta`: less is fetched where something stands that is right.
fn show_plan(common: &Common, plan: &Plan, delta: bool) -> Result<()> {
    if common.output == output::Format::Json {
        output::json(plan);
        return Ok(());
    }
    output::line(format!("target       {}", plan.target));
    output::line(format!("backup       {} ({}), {}", plan.backup.id, plan.backup.label, plan.backup.why));
    if plan.backup.hurt {
        output::line(
            "HURT         a noted check found this backup hurt: laying it back may fail, and no other was found or asked for that lands there",
        );
    }
    for passed in &plan.passed_over {
        output::line(format!("passed over  {}: {}", passed.id, passed.why));
    }
    for warning in &plan.warnings {
        output::line(format!("WARNING      {warning}"));
    }
    for leg in &plan.timelines {
        output::line(format!("timeline     {}: from {} to {}", leg.timeline, leg.begin, leg.end));
    }
    let most = if delta { "at most " } else { "" };
    let stored =
        plan.stored_bytes.map_or_else(String::new, |bytes| format!("{most}{} of packs, ", output::bytes(bytes)));
    let wal = plan.wal_stored_bytes.map_or_else(String::new, |bytes| format!("{} of WAL in ", output::bytes(bytes)));
    output::line(format!(
        "to fetch     {stored}{wal}{} ({} before compression)",
        output::count(plan.wal_segments, "segment"),
        output::bytes(plan.wal_bytes)
    ));
    output::line(format!("to lay       {} in {} files", output::bytes(plan.backup_bytes), plan.files));
    show_estimate(plan);
    plan.databases.iter().for_each(show_databases);
    match &plan.landing.last_commit {
        Some(commit) => output::line(format!(
            "lands after  commit of transaction {} at {}, LSN {}",
            commit.xid, commit.time, commit.lsn
        )),
        None => output::line("lands after  the backup itself: nothing was committed in between"),
    }
    output::line(format!(
        "             at {} on timeline {}: {}",
        plan.landing.lsn, plan.landing.timeline, plan.landing.stop
    ));
    if let Some(next) = &plan.landing.next_commit {
        output::line(format!(
            "not there    from the commit of transaction {} at {} on, LSN {}",
            next.xid, next.time, next.lsn
        ));
    }
    for laid in plan.tablespaces.iter() {
        let Some(place) = &laid.place else { continue };
        let from = if *place == laid.location { String::new() } else { format!(" (on the server: {})", laid.location) };
        output::line(format!("tablespace   {} goes to {place}{from}", laid.oid));
    }
    for made in &plan.new_tablespaces {
        output::line(format!(
            "tablespace   {} at {}, made after the backup ({}): recovery makes it there, no mapping sends it elsewhere",
            made.oid, made.location, made.lsn
        ));
    }
    show_left_out(plan);
    Ok(())
}

/// Commits up to the target that lie after the stop.
fn show_left_out(plan: &Plan) {
    for missed in &plan.missed {
        output::line(format!(
            "left out     transaction {} at {}: it lies after the stop, LSN {}",
            missed.xid, missed.time, missed.lsn
        ));
    }
    let more = plan.missed_commits.saturating_sub(plan.missed.len() as u64);
    if more > 0 {
        output::line(format!(
            "left out     and {} more up to LSN {}",
            output::count(more, "commit"),
            plan.looked_until
        ));
    }
    if let Some(from) = &plan.more_missed_from {
        output::line(format!(
            "left out     and more up to the target, in WAL from LSN {from} on: the clock was set back"
        ));
    }
}

fn show_estimate(plan: &Plan) {
    match &plan.estimate {
        Some(estimate) => output::line(format!(
            "estimate     {} to lay, {} to recover, as fast as the drill of {} on {}",
            output::seconds(estimate.laying_seconds),
            output::seconds(estimate.recovery_seconds),
            estimate.measured_at,
            estimate.host
        )),
        None => output::line("estimate     none: no drill has measured as much yet (walrecv drill does)"),
    }
}

fn show_databases(databases: &DatabasesShown) {
    let named = |one: &Database| format!("{} ({})", one.name, one.oid);
    let laid = databases.laid.iter().map(named).collect::<Vec<_>>().join(", ");
    output::line(format!("databases    {laid}"));
    for one in databases.laid.iter().filter(|one| [only::COPIED, only::CHANGED].contains(&one.why)) {
        output::line(format!("             {}, which was not asked for: {}", one.name, one.why));
    }
    for one in &databases.left_out {
        output::line(format!(
            "left out     {}: {}; it will refuse every session",
            named(one),
            output::bytes(one.bytes)
        ));
    }
    if databases.pages > 0 {
        output::line(format!("             {} pages of these are laid: recovery needs them", databases.pages));
    }
    if databases.renamed {
        output::line(
            "names        are those of the backup: pg_database was changed since, some may be called otherwise at the target",
        );
    }
}

/// What is left to do for whoever has only some databases.
fn show_drops(plan: &Plan) {
    if let Some(drop) = plan.databases.as_ref().and_then(|databases| databases.drop.as_ref()) {
        output::line(format!("then drop    what was left out, in psql: {drop} \\gexec"));
    }
}

fn show_restored(restored: &Restored, pgdata: &Path) {
    output::line(format!(
        "restored     {} in {} files to {}, with {} of packs",
        output::bytes(restored.bytes),
        restored.files,
        pgdata.display(),
        output::bytes(restored.fetched)
    ));
    if restored.kept > 0 || restored.removed > 0 {
        output::line(format!("kept         {} that stood there and were right", output::bytes(restored.kept)));
        output::line(format!("removed      {} files and directories that the backup does not have", restored.removed));
    }
    if let Some(aside) = &restored.aside {
        output::line(format!("set aside    what stood in pg_wal: {}; delete it when nobody needs it", aside.display()));
    }
    for one in &restored.neutralised {
        output::line(format!("neutralised  {} = '{}' (production has '{}')", one.setting, one.now, one.was));
    }
    for one in &restored.adapted {
        output::line(format!(
            "set          {} = '{}' (production has '{}'): for the scratch server",
            one.setting, one.now, one.was
        ));
    }
    for one in &restored.raised {
        output::line(format!("raised       {} = {} (was {}): recovery demands it", one.setting, one.now, one.was));
    }
    for one in &restored.outside {
        let there = if one.there { "outside of the data directory, look at it" } else { "NOT THERE on this host" };
        output::line(format!("outside      {} = '{}': {there}", one.setting, one.path));
    }
    for name in &restored.written {
        output::line(format!(
            "written      {name}: the backup had none (it lies outside the data directory on the server)"
        ));
    }
    if let Some(timeline) = restored.stays_on {
        output::line(format!(
            "timeline     the standby stays on {timeline}: the newest one in the archive does not continue this backup's"
        ));
    }
    for warning in &restored.warnings {
        output::line(format!("WARNING      {warning}"));
    }
    if restored.bad_pages > 0 {
        output::line(format!("BAD PAGES    {}: {BAD_PAGES}", restored.bad_pages));
    }
}

/// The server would take another directory's data for its own, and nothing in the restored one can overrule that.
fn elsewhere(restored: &Restored, start: bool) -> Result<()> {
    let Some(other) = restored.outside.iter().find(|one| start && one.setting == "data_directory") else {
        return Ok(());
    };
    let message = format!("the restored postgresql.conf sets data_directory = '{}': not started", other.path);
    Err(Error::new(Kind::Usage, message)
        .hint("take that line out of the restored postgresql.conf, then start the server"))
}

fn show_end(
    common: &Common,
    prepared: &Prepared,
    restored: &Restored,
    started: Option<&Started>,
    options: &Options,
) -> Result<()> {
    if common.output == output::Format::Json {
        output::json(&json!({ "plan": prepared.plan, "restored": restored, "started": started }));
        return Ok(());
    }
    let Some(started) = started else {
        let what = match options.action {
            Action::Pause => {
                "it recovers to the target by itself and pauses there, until `select pg_promote()` opens it"
            }
            Action::Follow => "it is a standby, and reads the archive with this configuration as its own user",
            _ => "it recovers to the target by itself",
        };
        output::line(format!("next         start the server on {}: {what}", options.pgdata.display()));
        show_drops(&prepared.plan);
        return Ok(());
    };
    match started.landed {
        Some(landed) => output::line(format!("landed       at {landed}, as planned")),
        None if options.action == Action::Follow => output::line("standby      it is consistent, and goes on"),
        None => output::line("landed       the server reached its target"),
    }
    output::line(format!("recovery     took {}", output::seconds(started.took.as_secs_f64())));
    if let (Some(pid), Some(port)) = (started.pid, started.port) {
        let socket = started.socket_directory.as_ref().map(|d| format!("-h {} ", d.display())).unwrap_or_default();
        output::line(format!("running      process {pid}: psql {socket}-p {port} -U postgres"));
    }
    if options.action == Action::Pause {
        output::line(
            "paused       look first; then `select pg_promote()` opens it as it is now; for another moment stop it and restore again",
        );
    }
    show_drops(&prepared.plan);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_in_the_path_of_the_data_directory_is_refused() {
        for bad in ["/srv/a\nb", "/srv/a\r", "\n/srv"] {
            let error = demand_one_line(Path::new(bad)).unwrap_err();
            assert!(error.kind() == Kind::Usage && error.to_string().contains("--pgdata has a line break"), "{error}");
            assert!(!error.to_string().contains(bad), "told on one line: {error}");
        }
        assert!(demand_one_line(Path::new("/srv/it's a place")).is_ok());
    }

    #[test]
    fn the_command_is_told_with_another_backup() {
        let again = |args: &[&str]| again(args.iter().map(|arg| Ok((*arg).to_owned())), "B");
        assert_eq!(again(&["walrecv", "restore", "--backup", "A", "--latest"]), "walrecv restore --latest --backup B");
        assert_eq!(
            again(&["w", "--backup=A", "--target-time", "it's 2 pm", ""]),
            "w --target-time 'it'\\''s 2 pm' '' --backup B"
        );
        for conninfo in ["password=x", "postgresql://joe:x@db1/"] {
            assert_eq!(again(&["w", "--primary-conninfo", conninfo]), "give the same command with --backup B");
        }
    }
}
