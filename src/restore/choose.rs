//! Chooses the backup and the path: the newest backup from which the server's own rules lead to the target.

use super::beside::{Beside, beside};
use super::decide::Bounds;
use super::later::{Later, later};
use super::path::{self, Beyond, Path};
use super::plan::{Landing, Met, Origin, Refusal, Stop, Walk};
use super::scan::{Hole, Read, Route};
use super::set_back::{self, Held};
use super::target::Target;
use super::{left_out, refuse};
use crate::archive::Archive;
use crate::archive::heartbeat::LostEnd;
use crate::archive::inventory::Inventory;
use crate::error::{Error, Kind, Result};
use crate::pg::xact::{Parameters, PgTime};
use crate::pg::{Lsn, SegmentName, TimelineId};
use crate::seal::content::heartbeat::Heartbeat;
use crate::seal::content::manifest::Manifest;

/// What the person asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub target: Target,
    pub timeline: Option<TimelineId>,
    /// Only this backup.
    pub backup: Option<String>,
}

/// A backup that was looked at and passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    pub backup: String,
    pub why: String,
    /// Its own WAL is not all there: nothing can be restored from it.
    pub cut_off: bool,
}

/// A backup, a path and the landing that they lead to.
#[derive(Clone, Debug)]
pub struct Choice {
    pub manifest: Manifest,
    /// A noted check found it hurt.
    pub hurt: bool,
    pub path: Path,
    pub landing: Landing,
    pub passed_over: Vec<PassedOver>,
    /// The highest settings announced in pg_control and the WAL that is replayed.
    pub parameters: Parameters,
    /// What leads round tablespaces that recovery would make, where it makes any.
    pub way_round: Option<String>,
    /// Behind what was looked through commits up to the target follow from here on: see [`left_out::beyond`].
    pub more_left_out: Option<Lsn>,
    /// Where the latest was asked for: other timelines that go on later.
    pub later: Vec<Later>,
    /// Where a time was asked for: other timelines with commits up to it.
    pub beside: Vec<Beside>,
    /// What of this could not be told, and why: sentences.
    pub unknown: Vec<String>,
    /// What the backup holds that was committed later than the target time, by a clock that was set back.
    pub held: Option<Held>,
}

/// Reads WAL until the landing is known. Changes nothing. `Kind::Target` with the nearest that can be reached; `Kind::Gap`
/// where WAL that must exist is missing, and `Kind::Corrupt` where it is damaged, with the nearest too.
pub async fn choose(archive: &Archive, inventory: &Inventory, backups: &[Manifest], wanted: &Wanted) -> Result<Choice> {
    wanted.target.check()?;
    let (path, candidates) = candidates(inventory, backups, wanted)?;
    let known = known(archive, &path, &wanted.target).await?;
    let passed_over = elsewhere(backups, &candidates, wanted, &path);
    let mut search = Search { passed_over, ..Search::of(wanted) };
    let walk = |manifest| Walk::new(wanted.target.clone(), origin(manifest)).knowing(known.clone());
    for (at, manifest) in candidates.iter().copied().enumerate() {
        let route = Route { archive, inventory, path: &path, version: version(manifest)? };
        let mut read = route.read(walk(manifest), manifest.start, search.until).await?;
        if search.until.is_none() && read.hole.is_none() && read.damage.is_none() && !read.walk.stopped() {
            read.hole = lost_end(archive, inventory, &path).await?;
        }
        search.met.join(read.walk.met().clone());
        if let Some(damage) = search.in_the_way(&mut read, &path) {
            if damage.kind() != Kind::Corrupt {
                return Err(damage);
            }
            search.damaged(manifest, &read, damage);
        } else {
            let (hole, parameters) = (read.hole, parameters(manifest, &read));
            match finish(read, &path) {
                // What was not read to its end says nothing of the end of WAL.
                Ok(landing) if search.until.is_some() && landing.is_at_the_end() => match hole {
                    Some(_) => search.fell_short(manifest),
                    None => search.led_on(manifest, refuse::NOT_MET.to_owned(), landing.last_commit.is_some()),
                },
                Ok(_) if search.is_passed => break,
                // Where the target is met, what is missing behind it does not matter.
                Ok(landing) => match hole.filter(|_| landing.stop == Stop::EndOfWal) {
                    Some(hole) => return Err(refuse::gap(&hole, &landing)),
                    None => {
                        let older: Vec<_> =
                            candidates[at..].iter().skip(1).map(|manifest| (*manifest, walk(manifest))).collect();
                        let held = set_back::held(&route, wanted, manifest, &older).await;
                        let choice = landed(&route, backups, wanted, manifest, landing, parameters).await?;
                        return Ok(Choice { passed_over: search.passed_over, held, ..choice });
                    }
                },
                Err(refusal) => search.refused(manifest, refusal, hole),
            }
        }
        if search.is_over {
            break;
        }
    }
    Err(search.end(&candidates))
}

/// What the way from the newest backup to older ones has shown.
struct Search<'a> {
    wanted: &'a Wanted,
    passed_over: Vec<PassedOver>,
    /// From here on a newer backup was read without meeting the target: it can only lie before.
    until: Option<Lsn>,
    /// Of a time: something was committed up to it behind a newer backup. An older one stops the server there only by a clock that was set back since, and
    /// nobody who asks for the newest of what there is wants that unasked (`--backup`).
    is_passed: bool,
    minimal: Option<Lsn>,
    /// Where nothing but that a transaction or a name is not there was found: to where it was looked for.
    unmet: Option<Lsn>,
    met: Met,
    /// What is told where no older backup leads there.
    error: Option<Error>,
    /// The error is damage in WAL that a backup cannot do without: where an older one would lead to.
    short_of: Option<Refusal>,
    is_over: bool,
}

impl<'a> Search<'a> {
    fn of(wanted: &'a Wanted) -> Search<'a> {
        Search {
            wanted,
            passed_over: Vec::new(),
            until: None,
            is_passed: false,
            minimal: None,
            unmet: None,
            met: Met::default(),
            error: None,
            short_of: None,
            is_over: false,
        }
    }

    /// Whether it is there or not, only reading can tell.
    fn is_searched(&self) -> bool {
        matches!(self.wanted.target, Target::Name(_) | Target::Xid { .. })
    }

    fn is_time(&self) -> bool {
        matches!(self.wanted.target, Target::Time { .. })
    }

    fn pass(&mut self, manifest: &Manifest, why: String, cut_off: bool) {
        self.passed_over.push(PassedOver { backup: manifest.id.to_string(), why, cut_off });
    }

    /// The damage, or whatever else it was, at which reading ended, unless the target is met in front of it, by the plan's cut: then nothing behind that is asked
    /// for, as behind a hole.
    fn in_the_way(&self, read: &mut Read, path: &Path) -> Option<Error> {
        let damage = read.damage.take()?;
        let is_met = || read.walk.clone().finish(path.target()).is_ok_and(|landing| landing.stop == Stop::Cut);
        if self.until.is_none() && is_met() {
            tracing::warn!("WAL after the target was not looked through: {damage}");
            return None;
        }
        Some(damage)
    }

    /// WAL on the way is damaged, and the target was not met by then.
    fn damaged(&mut self, manifest: &Manifest, read: &Read, damage: Error) {
        self.pass(manifest, "WAL that it needs is damaged".to_owned(), false);
        self.unmet = None;
        if !matches!(self.wanted.target, Target::Immediate) {
            self.until = Some(manifest.start);
        }
        self.committed(&read.walk.here());
        let own = read.walk.cut_here();
        let first = self.error.is_none();
        let error = self.error.take().unwrap_or_else(|| refuse::damaged(damage, own.as_ref()));
        self.error = Some(match &own {
            Some(own) if self.short_of.take().is_some() => error.hint(refuse::nearest_short_of_damage(own)),
            None if first || self.short_of.is_some() => {
                self.short_of = Some(read.walk.here());
                error
            }
            _ => error,
        });
        // An older one meets its own end of the backup, and what lies before this one.
        self.is_over = own.is_some() && !self.is_searched() && (self.is_passed || !self.is_time());
    }

    /// What was read behind a backup without meeting the target.
    fn committed(&mut self, read: &Refusal) {
        let committed = matches!(read, Refusal::NotReached { last_commit: Some(_), .. });
        self.is_passed |= committed && self.is_time();
    }

    /// From this backup recovery ends at a hole before it gets to where a newer one begins.
    fn fell_short(&mut self, manifest: &Manifest) {
        self.pass(manifest, "WAL is missing before the next backup".to_owned(), false);
        self.until = Some(manifest.start);
        self.short_of = None;
    }

    /// From this backup recovery gets to where a newer one begins, and the target is not met by then.
    fn led_on(&mut self, manifest: &Manifest, why: String, committed: bool) {
        self.pass(manifest, why, false);
        self.until = Some(manifest.start);
        self.is_passed |= committed && self.is_time();
        if let Some(short_of) = self.short_of.take() {
            let hint = refuse::nearest_short_of_damage(&short_of);
            self.error = self.error.take().map(|error| error.hint(hint));
            self.is_over = !self.is_searched() && (self.is_passed || !self.is_time());
        }
    }

    /// What is looked for may lie in WAL that is missing between two backups: that it is nowhere else does not show that it is not there.
    fn not_searched(&mut self, hole: Option<Hole>) {
        let target = &self.wanted.target;
        if let Some(hole) = hole.filter(|_| self.is_searched() && self.error.is_none() && !self.met.rules_out(target)) {
            self.error = Some(refuse::not_searched(target, &hole));
        }
    }

    /// WAL from this backup was read to its end, or to where a newer one begins.
    fn refused(&mut self, manifest: &Manifest, refusal: Refusal, hole: Option<Hole>) {
        let newer = self.until;
        match &refusal {
            Refusal::NotReached { last_commit, .. } if newer.is_some() && hole.is_none() => {
                return self.led_on(manifest, refuse::why(&refusal, None, newer), last_commit.is_some());
            }
            // It was not read to its end.
            Refusal::WalEndsEarly { .. } if newer.is_some() && hole.is_none() => {
                return self.led_on(manifest, refuse::NOT_MET.to_owned(), false);
            }
            Refusal::NotReached { .. } if newer.is_some() => {
                self.committed(&refusal);
                self.not_searched(hole);
                (self.until, self.short_of) = (Some(manifest.start), None);
            }
            Refusal::NotReached { end, .. } if self.is_searched() => {
                if self.passed_over.is_empty() {
                    self.unmet = Some(*end);
                }
                if hole.is_some() && !self.met.rules_out(&self.wanted.target) {
                    self.error = Some(refuse::not_reached(&self.wanted.target, &refusal, hole));
                }
                self.until = Some(manifest.start);
            }
            // Nothing was committed since this backup: a commit later than the target may lie before it, on the way from an older one.
            Refusal::NotReached { last_commit: None, .. } if self.is_time() && hole.is_none() => {}
            Refusal::NotReached { .. } => {
                self.is_over = true;
                self.error = Some(refuse::not_reached(&self.wanted.target, &refusal, hole));
            }
            // Its manifest proves that WAL was stored which is gone: the end of what is left is not the latest.
            Refusal::WalEndsEarly { end, .. } if matches!(self.wanted.target, Target::Latest) => {
                self.error.get_or_insert_with(|| refuse::cut_off(manifest, *end, hole));
                self.is_over = true;
            }
            Refusal::WalEndsEarly { .. } if newer.is_some() => self.not_searched(hole),
            Refusal::Minimal { at } => self.minimal = self.minimal.or(Some(*at)),
            _ => {}
        }
        if hole.is_some() || !matches!(refusal, Refusal::NotReached { .. }) {
            self.unmet = None;
        }
        self.pass(manifest, refuse::why(&refusal, hole, newer), matches!(refusal, Refusal::WalEndsEarly { .. }));
    }

    /// No backup leads there.
    fn end(self, candidates: &[&Manifest]) -> Error {
        let unmet = self.unmet.filter(|_| self.passed_over.len() == candidates.len());
        let told = (&self.met, unmet);
        self.error.unwrap_or_else(|| {
            refuse::unreachable(&self.wanted.target, candidates, &self.passed_over, self.minimal, told)
        })
    }
}

/// What is told of a landing beside it.
async fn landed(
    route: &Route<'_>,
    backups: &[Manifest],
    wanted: &Wanted,
    manifest: &Manifest,
    landing: Landing,
    parameters: Parameters,
) -> Result<Choice> {
    let Route { inventory, path, .. } = *route;
    // Recovery ends there, and the server takes no timeline but the first without its history.
    inventory.demand_history(landing.timeline)?;
    let way_round = super::spaces::way_round(backups, manifest, path, &landing);
    let mut unknown = Vec::new();
    let more_left_out = left_out::beyond(route, landing.looked, &wanted.target).await.unwrap_or_else(|error| {
        unknown
            .push(format!("whether more commits up to the target lie behind {} is not known: {error}", landing.looked));
        None
    });
    let (later, beside) = (Vec::new(), Vec::new());
    let (manifest, path, hurt, held) = (manifest.clone(), path.clone(), false, None);
    let passed_over = Vec::new();
    Ok(Choice {
        manifest,
        hurt,
        path,
        landing,
        passed_over,
        parameters,
        way_round,
        more_left_out,
        later,
        beside,
        unknown,
        held,
    })
}

/// The same choice with what other timelines have that is not on its way. It refuses nothing.
pub async fn compared(
    archive: &Archive,
    inventory: &Inventory,
    backups: &[Manifest],
    wanted: &Wanted,
    mut choice: Choice,
) -> Result<Choice> {
    let (path, landing) = (&choice.path, &choice.landing);
    if matches!(wanted.target, Target::Latest) {
        let found = later(archive, inventory, backups, path, landing).await;
        choice.later = found.unwrap_or_else(|error| {
            choice.unknown.push(format!("whether other timelines go on later is not known: {error}"));
            Vec::new()
        });
        return Ok(choice);
    }
    let route = Route { archive, inventory, path, version: version(&choice.manifest)? };
    let (found, more) = beside(&route, backups, landing, &wanted.target).await;
    choice.beside = found;
    choice.unknown.extend(more);
    Ok(choice)
}

/// The end of the path's WAL is none where a heartbeat shows that there was more.
async fn lost_end(archive: &Archive, inventory: &Inventory, path: &Path) -> Result<Option<Hole>> {
    let Some(LostEnd { from, beat }) = archive.lost_end(inventory, path.target()).await? else { return Ok(None) };
    let size = archive.names.segment_size;
    let from = from.max(path.legs.last().map_or(Lsn(0), |leg| leg.begin));
    let segment = SegmentName::new(path.target(), size.segment_of(from), size);
    Ok(Some(Hole { segment, shown_by: Beyond::Heartbeat { lsn: beat.lsn, time: beat.time } }))
}

/// What is known of times at which nothing was committed on this path.
async fn known(archive: &Archive, path: &Path, target: &Target) -> Result<Vec<Heartbeat>> {
    let mut known = Vec::new();
    if let Target::Time { .. } = target {
        for leg in &path.legs {
            let beats = archive.heartbeats(leg.timeline).await?;
            known.extend(beats.into_iter().filter(|beat| speaks_of(beat, leg.end)));
        }
    }
    Ok(known)
}

/// Whether a heartbeat speaks of the part of its timeline that was left at `fork`. One past it speaks of another history, and so may one right there: an old
/// primary that nobody writes to any more goes on proving that its WAL ends at the fork.
fn speaks_of(beat: &Heartbeat, fork: Option<Lsn>) -> bool {
    fork.is_none_or(|fork| beat.lsn < fork)
}

/// The path, and the backups on it, newest first.
fn candidates<'a>(
    inventory: &Inventory,
    backups: &'a [Manifest],
    wanted: &Wanted,
) -> Result<(Path, Vec<&'a Manifest>)> {
    if backups.is_empty() {
        let error = Error::new(Kind::Target, "the archive has no complete backup");
        return Err(error.hint("take one with walrecv backup"));
    }
    let named = |m: &&Manifest| wanted.backup.as_deref().is_none_or(|id| m.id.as_str() == id);
    let mut candidates: Vec<&Manifest> = backups.iter().filter(named).collect();
    if let (true, Some(id)) = (candidates.is_empty(), &wanted.backup) {
        let error = Error::new(Kind::Usage, format!("there is no complete backup {id}"));
        return Err(error.hint("walrecv list shows the backups"));
    }
    let ends: Vec<_> = candidates.iter().map(|m| (m.stop_timeline, m.stop)).collect();
    let known = inventory
        .timelines
        .keys()
        .chain(inventory.histories.keys())
        .chain(inventory.damaged.keys())
        .chain(&inventory.beats)
        .chain(ends.iter().map(|e| &e.0));
    let known = known.copied().collect();
    let path = path::choose(inventory, &known, &ends, wanted.timeline)?.ok_or_else(|| {
        let timeline = wanted.timeline.map_or("any timeline".to_owned(), |t| format!("timeline {t}"));
        Error::new(Kind::Target, format!("no complete backup lies on the way to {timeline}"))
            .hint("walrecv list shows the timelines of the backups")
    })?;
    // The server asks for the history of every timeline on its way; the last one tells of all.
    for leg in &path.legs {
        inventory.demand_sound(leg.timeline)?;
    }
    candidates.retain(|m| path.holds(m.stop_timeline, m.stop));
    candidates.sort_by_key(|m| std::cmp::Reverse((m.stop, m.start)));
    Ok((path, candidates))
}

/// Backups that are newer than all on the way and lie on another.
fn elsewhere(backups: &[Manifest], candidates: &[&Manifest], wanted: &Wanted, path: &Path) -> Vec<PassedOver> {
    let newest = candidates.iter().map(|m| m.stopped_at).max();
    let newer = backups.iter().filter(|m| wanted.backup.is_none() && Some(m.stopped_at) > newest);
    let why = format!("it does not lie on the way to timeline {}", path.target());
    newer.map(|m| PassedOver { backup: m.id.to_string(), why: why.clone(), cut_off: false }).collect()
}

fn origin(manifest: &Manifest) -> Origin {
    Origin {
        redo: manifest.start,
        checkpoint: manifest.checkpoint,
        consistent_at: manifest.consistent(),
        stored_to: manifest.stop,
        stopped_at: PgTime::from_unix_micros(manifest.stopped_at.as_microsecond()),
    }
}

fn version(manifest: &Manifest) -> Result<crate::pg::MajorVersion> {
    manifest.major().ok_or_else(|| {
        Error::new(Kind::Version, format!("backup {} is of server version {}", manifest.id, manifest.version_num))
    })
}

/// The landing with the timeline on which its last needed byte lies.
fn finish(read: Read, path: &Path) -> Result<Landing, Refusal> {
    let mut landing = read.walk.finish(path.target())?;
    landing.timeline = Bounds::target_for(path, landing.needed);
    Ok(landing)
}

fn parameters(manifest: &Manifest, read: &Read) -> Parameters {
    let control = &manifest.control;
    let at_backup = Parameters {
        max_connections: control.max_connections,
        max_worker_processes: control.max_worker_processes,
        max_wal_senders: control.max_wal_senders,
        max_prepared_transactions: control.max_prepared_transactions,
        max_locks_per_transaction: control.max_locks_per_transaction,
        wal_level: control.wal_level,
    };
    read.parameters.map_or(at_backup, |later| super::scan::highest(at_backup, later))
}

/// The WAL segments that a recovery reads: from `start` to `needed`.
pub fn segments(size: crate::pg::SegmentSize, start: Lsn, needed: Lsn) -> u64 {
    size.segment_before(needed).0.saturating_sub(size.segment_of(start).0) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_primary_that_stands_at_the_fork_says_nothing_of_the_new_timeline() {
        let beat = |lsn| Heartbeat { lsn: Lsn(lsn), time: PgTime(5) };
        assert!(speaks_of(&beat(99), Some(Lsn(100))) && speaks_of(&beat(100), None));
        assert!(!speaks_of(&beat(100), Some(Lsn(100))) && !speaks_of(&beat(101), Some(Lsn(100))));
    }
}
