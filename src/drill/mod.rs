//! Floor 6: a restore for the sake of knowing that it works: into a scratch server, to a point, then asked and checked, timed, and removed.

mod check;
mod report;

use std::time::{Duration, Instant};

use jiff::Timestamp;

pub use report::{Check, Drilled, State};

use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::pg::TimelineId;
use crate::pg::xact::PgTime;
use crate::restore::scratch::{ScratchServer, Setup};
use crate::restore::{self, Access, Prepared, Target, Wanted, lay};

/// What a drill demands.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// Each must return one row with one column that is true.
    pub assertions: Vec<String>,
    /// Database in which they are asked.
    pub database: String,
    /// Run pg_amcheck (with 13: bt_index_check over all B-trees).
    pub amcheck: bool,
    /// Run pg_checksums over the files of the stopped server.
    pub checksums: bool,
    /// How much may be missing if the server were lost now.
    pub rpo: Option<Duration>,
    /// How long it may take until the restored server answers.
    pub rto: Option<Duration>,
    pub jobs: usize,
}

/// Where to drill to.
#[derive(Clone, Debug)]
pub enum Point {
    Target(Target),
    /// A moment between the end of the backup and the newest commit, drawn with this seed.
    Random(u64),
}

/// Which restore.
#[derive(Clone, Debug)]
pub struct Aim {
    pub point: Point,
    /// `None`: the newest that can reach it.
    pub backup: Option<String>,
    /// `None`: the newest that continues a backup's.
    pub timeline: Option<TimelineId>,
}

/// How it goes, for whoever watches.
pub struct Watch<'a> {
    pub stage: &'a (dyn Fn(&str) + Sync),
    pub moved: lay::Progress<'a>,
}

/// Drills. What failed stands in the report; `Err` is kept for what ended the drill early, and the report says so too.
pub async fn drill(
    archive: &Archive,
    access: Access,
    setup: &Setup,
    aim: Aim,
    demands: &Demands,
    watch: &Watch<'_>,
) -> (Drilled, Option<Error>) {
    let begun = Instant::now();
    let mut report = Drilled::new(archive, &aim);
    let outcome = run(archive, access, setup, aim, demands, watch, &mut report).await;
    report.milliseconds = begun.elapsed().as_millis() as u64;
    if let Err(error) = &outcome {
        report.ended_early(error);
    }
    let named = |error: Error| match error.kind() {
        Kind::Interrupted => error,
        _ => error.context(format!("the drill failed: {}", report.stage)),
    };
    let ended = outcome.err().map(named);
    (report, ended)
}

async fn run(
    archive: &Archive,
    access: Access,
    setup: &Setup,
    Aim { point, backup, timeline }: Aim,
    demands: &Demands,
    watch: &Watch<'_>,
    report: &mut Drilled,
) -> Result<()> {
    (watch.stage)("planning");
    let mut newest_of_all = None;
    if backup.is_none() {
        // The newest one might be passed over, and an older one prove nothing of it.
        let begun = Instant::now();
        let backups = archive.list_backups().await?;
        report.add("backups", begun, Ok(check::readable(&backups)));
        newest_of_all = backups.complete.iter().max_by_key(|m| m.stopped_at).map(|m| m.id.to_string());
    }
    let earlier = timeline.is_some() || matches!(&point, Point::Target(target) if *target != Target::Latest);
    let begun = Instant::now();
    let wanted = |target| Wanted { target, timeline, backup: backup.clone() };
    let newest = restore::prepare(archive, &wanted(Target::Latest)).await;
    // Where the end itself is drilled to, its error ends the drill.
    let ends = !matches!(&point, Point::Target(target) if *target != Target::Latest);
    if !ends || newest.is_ok() {
        report.covered(archive, newest.as_ref(), backup.is_some() || timeline.is_some()).await?;
    }
    let mut prepared = match point {
        Point::Target(Target::Latest) => newest?,
        Point::Target(target) => restore::prepare(archive, &wanted(target)).await?,
        Point::Random(seed) => match random_time(&newest.as_ref(), seed) {
            Some(time) => restore::prepare(archive, &wanted(Target::Time { time, inclusive: true })).await?,
            None => {
                let prepared = newest?;
                report.remark(
                    "nothing was committed after the backup: drilled to the end of the archive, not to a random time",
                );
                prepared
            }
        },
    };
    let planning = begun.elapsed();
    if let Some(newest) = newest_of_all {
        let state = check::newest(&prepared.plan.backup.id, &prepared.plan.passed_over, &newest, earlier);
        report.add("newest backup", Instant::now(), Ok(state));
    }
    (watch.stage)("restoring");
    report.stage = "restore";
    let said = |line: &str| (watch.stage)(line);
    let raised = setup.raise(archive, access, &mut prepared, watch.moved, &said).await;
    report.planned(&prepared);
    let server = raised?;
    report.rto(planning, &prepared, &server);
    report.stage = "checks";
    let checked = examine(&server, demands, watch, report).await;
    (watch.stage)("removing");
    // An error in between removes it as well.
    let begun = Instant::now();
    let removed = server.remove();
    checked?;
    report.add("nothing is left", begun, removed.map(|()| State::Passed("stopped and removed".to_owned())));
    report.measure(demands);
    Ok(())
}

/// A moment after the backup and before the newest commit, so that recovery stops at a commit after it. `None`: there is none.
fn random_time(newest: &Result<&Prepared, &Error>, seed: u64) -> Option<PgTime> {
    let choice = &newest.ok()?.choice;
    let from = PgTime::from_unix_micros(choice.manifest.stopped_at.as_microsecond()).0.saturating_add(1);
    let to = choice.landing.last_commit.map_or(i64::MIN, |commit| commit.time.0);
    let room = to.checked_sub(from).and_then(|room| u64::try_from(room).ok()).filter(|room| *room > 0)?;
    Some(PgTime(from.saturating_add_unsigned(draw(seed) % room)))
}

/// A number that looks drawn, the same for the same seed (splitmix64).
fn draw(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

async fn examine(server: &ScratchServer, demands: &Demands, watch: &Watch<'_>, report: &mut Drilled) -> Result<()> {
    let begun = Instant::now();
    let landed = server.started.landed;
    report.add(
        "landing",
        begun,
        Ok(State::Passed(landed.map_or("reached".to_owned(), |lsn| format!("at {lsn}, as planned")))),
    );
    server.disable_event_triggers().await?;
    for (number, sql) in demands.assertions.iter().enumerate() {
        (watch.stage)(&format!("assertion {}", number + 1));
        let begun = Instant::now();
        let state = check::assertion(server, &demands.database, sql).await;
        report.add(&format!("assertion {}: {sql}", number + 1), begun, state);
    }
    (watch.stage)("checking tables and indexes");
    let begun = Instant::now();
    let state = match demands.amcheck {
        true => check::amcheck(server, demands.jobs).await,
        false => Ok(State::Skipped("not asked for".to_owned())),
    };
    report.add("amcheck", begun, state);
    (watch.stage)("checking page checksums");
    let begun = Instant::now();
    let state = match demands.checksums {
        true => check::checksums(server).await,
        false => Ok(State::Skipped("not asked for".to_owned())),
    };
    report.add("checksums", begun, state);
    Ok(())
}

/// How old `then` was when it was `seen`; a moment later than that is of a clock that is ahead of this host's, and tells nothing.
fn age(then: Timestamp, seen: Timestamp) -> Option<f64> {
    (then <= seen).then(|| seen.duration_since(then).as_secs_f64())
}

/// The error with which a drill ends whose checks did not all pass: what is damaged counts more than what is only not as demanded.
pub fn refusal(report: &Drilled) -> Option<Error> {
    let failed: Vec<&Check> = report.checks.iter().filter(|check| check.failed()).collect();
    let first = failed.first()?;
    let corrupt = failed.iter().any(|check| check.corrupt);
    let kind = if corrupt { Kind::Corrupt } else { Kind::Failed };
    let others = if failed.len() > 1 { format!(", and {} more", failed.len() - 1) } else { String::new() };
    let text = format!("the drill failed: {}: {}{others}", first.name, first.detail);
    Some(
        Error::new(kind, text)
            .hint("the report names every check; restore --start --scratch gives a server to look at"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_ahead_tells_no_age() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(age(at(70), at(105)), Some(35.0));
        assert_eq!(age(at(105), at(105)), Some(0.0));
        assert_eq!(age(at(106), at(105)), None);
    }

    #[test]
    fn one_seed_draws_one_number_and_others_draw_others() {
        assert_eq!(draw(1), draw(1));
        let drawn: std::collections::BTreeSet<u64> = (0..1000).map(|seed| draw(seed) % 1_000_000).collect();
        assert!(drawn.len() > 990);
    }
}
