//! `wal-fetch`: what `restore_command` calls. Three answers, and the third is never mistaken for the second.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;

use super::ahead::{self, Piece};
use super::decide::{self, Known, Order, Own, Stored, Verdict, Wanted};
use super::hand_over::{Ahead, Launch};
use super::look;
use super::plan_file::PlanFile;
use crate::archive::Archive;
use crate::archive::read::SegmentBytes;
use crate::backoff::Backoff;
use crate::disk::lay;
use crate::error::{Error, Kind, Result};
use crate::pg::{SegmentName, SegmentSize, TimelineId};
use crate::repo::names::REPOSITORY_FILE;
use crate::seal::content::event::Hole;

/// How long a targeted recovery waits for what may pass by itself before the server is stopped.
const RECOVERY_WAIT: Duration = Duration::from_secs(30);

/// A standby waits no less than this for a store that says nothing: the first answer may take a few seconds.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);

/// The first timeline has no history: nobody needs to be asked.
const FIRST_HISTORY: &str = "00000001.history";

/// One call of `restore_command`.
#[derive(Clone, Debug)]
pub struct Call {
    /// `%f`.
    pub name: String,
    /// `%p`, relative to `pgdata` or absolute.
    pub destination: PathBuf,
    /// The data directory: the caller's working directory.
    pub pgdata: PathBuf,
    /// How long a standby is kept waiting when it cannot be found out (`--standby-wait`).
    pub standby_wait: Duration,
    /// How WAL is fetched ahead; `None`: it is not.
    pub launch: Option<Launch>,
}

impl Call {
    /// Whether a standby asks, which asks again by itself.
    fn standby(&self) -> bool {
        self.pgdata.join("standby.signal").exists()
    }

    /// How long a store that answers nothing is waited for: a standby streams, or tries to, when it is told "absent". `None`: as long as anybody waits.
    pub fn patience(&self) -> Option<Duration> {
        self.standby().then(|| self.standby_wait.max(LEAST_PATIENCE))
    }

    /// What is fetched ahead by this plan, or for a standby.
    fn ahead(&self, plan: Option<&PlanFile>) -> Option<Ahead<'_>> {
        self.launch.as_ref().map(|launch| Ahead::new(&self.pgdata, plan.map(PlanFile::mark), launch))
    }
}

/// The answer; its exit codes are 0, 1, and one above 125.
#[derive(Debug)]
pub enum Outcome {
    /// The file stands at the destination, at its full size.
    Served,
    /// Known not to exist, or no part of the planned recovery.
    Absent,
    /// Could not be found out, or must exist and cannot be read. The server must not take this for the end of WAL.
    Unknown(Error),
}

/// What can be answered without the archive: a name that nobody asks for, what is no part of the plan, and what was fetched ahead. `None`: ask
/// [`answer`]. Most calls of a recovery end here, while the server waits, so nothing is opened, and no thread started, that this does not need.
pub fn at_hand(call: &Call) -> Option<Outcome> {
    // The smallest segments have the most names: what is none of theirs is no segment of any size.
    if SegmentSize::new(1 << 20).is_some_and(|smallest| Wanted::parse(&call.name, smallest).is_none()) {
        let message = format!("expected a WAL segment or a history file, found {:?}", call.name);
        return Some(Outcome::Unknown(Error::new(Kind::Usage, message)));
    }
    // The file takes the place of what stands there, and a server asks for nothing but a new one.
    let destination = call.pgdata.join(&call.destination);
    if destination.symlink_metadata().is_ok_and(|there| !there.is_file()) {
        let message = format!("{} is no regular file, and would be replaced by one", destination.display());
        let error =
            Error::new(Kind::Usage, message).hint("give the path of a file that may be made, as PostgreSQL does");
        return Some(Outcome::Unknown(error));
    }
    if call.name == FIRST_HISTORY {
        return Some(Outcome::Absent);
    }
    // A plan that cannot be read is told by whoever needs it.
    let plan = PlanFile::binding(&call.pgdata).ok().flatten()?;
    let wanted = Wanted::parse(&call.name, plan.names.segment_size)?;
    match (plan.bounds.order(wanted), wanted) {
        (Order::Absent, _) => Some(Outcome::Absent),
        (Order::Segment { bytes, .. }, Wanted::Segment(segment)) => {
            let ahead = call.ahead(Some(&plan))?;
            let ready = ahead.ready(Piece { segment, bytes })?;
            if !ahead.give(ready, &call.pgdata.join(&call.destination)) {
                return None;
            }
            ahead.go_on(segment, goes_on_after(&plan, segment));
            Some(Outcome::Served)
        }
        _ => None,
    }
}

/// Whether the recovery needs a segment behind this one.
fn goes_on_after(plan: &PlanFile, segment: SegmentName) -> bool {
    !ahead::under_plan(&plan.bounds, segment, 1).is_empty()
}

/// Answers one call that [`at_hand`] has no answer to. `open` opens the archive where no plan says how; `env` is asked for the storage's credentials.
///
/// A standby retries by itself and never ends on "absent", while a code above 125 would end it: it is told so after `standby_wait`. Only a name
/// that no server asks for is final; a configuration that is just being edited is not.
pub async fn answer(
    call: &Call,
    env: &dyn Fn(&str) -> Option<String>,
    open: &(dyn Fn() -> BoxFuture<'static, Result<Archive>> + Sync),
) -> Outcome {
    let standby = call.standby();
    let wait = if standby { call.standby_wait } else { RECOVERY_WAIT };
    let deadline = Instant::now() + wait;
    let seed = u64::from(std::process::id());
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2), seed);
    let mut looked_again = false;
    loop {
        let error = match once(call, env, open).await {
            Ok(true) => return Outcome::Served,
            Ok(false) => return Outcome::Absent,
            Err(error) => error.context(&call.name),
        };
        if promoting(call) {
            tracing::warn!("{error}; the server has it already");
            return Outcome::Absent;
        }
        let delay = backoff.next_delay().max(Duration::from_millis(100));
        // A segment may be completed, and the next begun, between two looks.
        let moved = error.kind() == Kind::Gap && !std::mem::replace(&mut looked_again, true);
        let retry = standby || error.is_transient() || moved;
        let left = deadline.saturating_duration_since(Instant::now());
        if retry && !left.is_zero() {
            tokio::time::sleep(delay.min(left)).await;
            // Whoever fetches ahead may have got it meanwhile.
            if let Some(outcome) = at_hand(call) {
                return outcome;
            }
        } else {
            let error = explained(call, open, error).await;
            if retry && standby {
                tracing::warn!("{}", to_standby(&error));
                return Outcome::Absent;
            }
            return Outcome::Unknown(error);
        }
    }
}

/// What to do where WAL was given up for good.
const GIVEN_UP: &str = "it never will be stored: restore from a backup behind it, or to a target before it; a standby must be made anew from a \
    backup behind it, unless its primary still sends that WAL";

/// A recorded hole tells more of what is not there than what is stored around it. Asked for at the end only; what cannot be asked changes nothing.
async fn explained(
    call: &Call,
    open: &(dyn Fn() -> BoxFuture<'static, Result<Archive>> + Sync),
    error: Error,
) -> Error {
    // A plan led past no hole: there something else has happened.
    if error.kind() != Kind::Gap || !matches!(PlanFile::binding(&call.pgdata), Ok(None)) {
        return error;
    }
    let hole = async {
        let archive = open().await.ok()?;
        let Wanted::Segment(segment) = Wanted::parse(&call.name, archive.names.segment_size)? else { return None };
        look::given_up(&archive, segment).await.ok()?
    };
    match hole.await {
        None => error,
        Some(Hole { from_timeline, from, to_timeline, to, reason }) => {
            let text = format!(
                "WAL from {from} (timeline {from_timeline}) to {to} (timeline {to_timeline}) was given up: {reason}"
            );
            Error::new(Kind::Gap, text).context(&call.name).hint(GIVEN_UP)
        }
    }
}

/// What the server's log says of an answer that a standby is not given.
fn to_standby(error: &Error) -> String {
    match error.advice() {
        Some(GIVEN_UP) => format!("{error}; {GIVEN_UP}"),
        _ => format!("{error}; the standby will ask again"),
    }
}

/// Whether the server asks for the history of the timeline that it leaves, and has it. Once the signal files are gone it asks for nothing else: it
/// takes its own copy where the archive has none, and must not be stopped in the middle of a promotion by a repository that is away: it would come up on
/// the old timeline (`writeTimeLineHistory`).
fn promoting(call: &Call) -> bool {
    let signalled = ["standby.signal", "recovery.signal"].iter().any(|name| call.pgdata.join(name).exists());
    !signalled && call.name.ends_with(".history") && call.pgdata.join("pg_wal").join(&call.name).is_file()
}

/// Whether the file was served; `Err` is "unknown".
async fn once(
    call: &Call,
    env: &dyn Fn(&str) -> Option<String>,
    open: &(dyn Fn() -> BoxFuture<'static, Result<Archive>> + Sync),
) -> Result<bool> {
    let wanted = |size: SegmentSize| {
        Wanted::parse(&call.name, size).ok_or_else(|| {
            let size = size.bytes() >> 20;
            Error::new(Kind::Usage, format!("expected a WAL segment of {size} MB or a history file"))
        })
    };
    let destination = call.pgdata.join(&call.destination);
    if let Some(plan) = PlanFile::binding(&call.pgdata)? {
        return by_plan(call, wanted(plan.names.segment_size)?, &plan, env, &destination).await;
    }
    let archive = open().await?;
    let wanted = wanted(archive.names.segment_size)?;
    look::same_cluster(&call.pgdata, archive.names.system)?;
    match wanted {
        Wanted::Segment(segment) => free(&archive, segment, call, &destination).await,
        Wanted::History(timeline) => match look::history(&archive, timeline).await? {
            Some(content) => hand_over(&destination, content, None).await,
            None => Ok(false),
        },
    }
}

async fn by_plan(
    call: &Call,
    wanted: Wanted,
    plan: &PlanFile,
    env: &dyn Fn(&str) -> Option<String>,
    destination: &Path,
) -> Result<bool> {
    match (plan.bounds.order(wanted), wanted) {
        (Order::Absent, _) => Ok(false),
        (Order::History { must }, Wanted::History(timeline)) => {
            let archive = plan.archive(env)?;
            match archive.history(timeline).await? {
                Some(content) => hand_over(destination, content, None).await,
                None if must => {
                    Err(Error::new(Kind::Gap, "this history file is part of the plan and is not in the archive"))
                }
                None => {
                    // An empty mount point has no history file either, and "absent" may end a recovery for good.
                    if archive.repo.get(REPOSITORY_FILE).await?.is_none() {
                        let message = format!("the repository has no {REPOSITORY_FILE}: is it mounted?");
                        return Err(Error::new(Kind::Repository, message).transient());
                    }
                    Ok(false)
                }
            }
        }
        (Order::Segment { bytes, donors }, Wanted::Segment(segment)) => {
            call.ahead(Some(plan)).inspect(|ahead| ahead.go_on(segment, goes_on_after(plan, segment)));
            let content = planned(&plan.archive(env)?, segment, bytes, &donors).await?;
            hand_over(destination, content, Some(segment)).await
        }
        _ => Err(Error::new(Kind::Failed, "the plan mistook the kind of the file")),
    }
}

/// The first `bytes` of a segment that a plan needs, from its own object or from one of `donors`, which hold the same bytes: what is damaged in one is taken
/// from another.
pub(super) async fn planned(
    archive: &Archive,
    segment: SegmentName,
    bytes: u64,
    donors: &[TimelineId],
) -> Result<Bytes> {
    let (mut most, mut damaged) = (0, None);
    for timeline in std::iter::once(segment.timeline).chain(donors.iter().copied()) {
        let source = SegmentName::new(timeline, segment.number, segment.size);
        let content = match archive.read_segment(source, None).await {
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Diverged) => {
                damaged.get_or_insert(error);
                continue;
            }
            found => prefix(found?),
        };
        most = most.max(content.len() as u64);
        if content.len() as u64 >= bytes {
            return Ok(content.slice(..bytes as usize));
        }
    }
    if let Some(error) = damaged {
        return Err(error);
    }
    let message = format!("the plan needs {bytes} bytes of this segment, the archive has {most}");
    Err(Error::new(Kind::Gap, message).hint("make a new plan: walrecv restore --plan says what can be reached"))
}

/// Without a plan: a standby, pg_rewind, a restore command written by hand.
async fn free(archive: &Archive, segment: SegmentName, call: &Call, destination: &Path) -> Result<bool> {
    let pgdata = &call.pgdata;
    if ready_for_standby(archive, segment, call, destination).await? {
        return Ok(true);
    }
    let mut found = archive.read_segment(segment, None).await?;
    let mut beat = None;
    if stored(&found) != Stored::Complete {
        // It was stored after the WAL that it speaks of, so that is looked for later.
        beat = look::beat(archive, segment.timeline).await?;
        if beat.is_some_and(|beat| beat.lsn > segment.start()) {
            found = archive.read_segment(segment, None).await?;
        }
    }
    let stored = stored(&found);
    let content = prefix(found);
    let own = match stored {
        Stored::Prefix(_) => look::own_file(pgdata, segment, archive.names.system, &content)?,
        _ => Own::Absent,
    };
    let later = stored != Stored::Complete && look::later_wal(archive, segment).await?;
    let children = look::children(archive, segment, pgdata).await?;
    match decide::without_plan(segment, &Known { stored, later, children, own, beat }) {
        Verdict::Serve(bytes) => {
            let whole = bytes == segment.size.bytes();
            let bytes = content.len().min(bytes as usize);
            let served = hand_over(destination, content.slice(..bytes), Some(segment)).await?;
            // Only behind a whole segment there may be more.
            call.ahead(None).filter(|_| whole).inspect(|ahead| ahead.go_on(segment, true));
            Ok(served)
        }
        Verdict::Absent => Ok(false),
        Verdict::Unknown(reason) => Err(Error::new(Kind::Gap, reason)),
    }
}

/// Serves what was fetched ahead where the same rules, as of now, serve the whole segment. Of a timeline that came up since they may say otherwise.
async fn ready_for_standby(archive: &Archive, segment: SegmentName, call: &Call, destination: &Path) -> Result<bool> {
    let Some(ahead) = call.ahead(None) else { return Ok(false) };
    let Some(ready) = ahead.ready(Piece::whole(segment)) else { return Ok(false) };
    let children = look::children(archive, segment, &call.pgdata).await?;
    let known = Known { stored: Stored::Complete, later: false, children, own: Own::Absent, beat: None };
    if decide::without_plan(segment, &known) != Verdict::Serve(segment.size.bytes()) || !ahead.give(ready, destination)
    {
        return Ok(false);
    }
    ahead.go_on(segment, true);
    Ok(true)
}

fn stored(found: &Option<SegmentBytes>) -> Stored {
    match found {
        None => Stored::Nothing,
        Some(SegmentBytes::Prefix(bytes)) => Stored::Prefix(bytes.len() as u64),
        Some(SegmentBytes::Complete(_)) => Stored::Complete,
    }
}

fn prefix(found: Option<SegmentBytes>) -> Bytes {
    match found {
        None => Bytes::new(),
        Some(SegmentBytes::Complete(bytes) | SegmentBytes::Prefix(bytes)) => bytes,
    }
}

async fn hand_over(destination: &Path, content: Bytes, segment: Option<SegmentName>) -> Result<bool> {
    let size = segment.map_or(content.len() as u64, |s| s.size.bytes());
    if content.len() as u64 > size {
        let found = content.len();
        return Err(Error::new(Kind::Corrupt, format!("expected at most {size} bytes of WAL, found {found}")));
    }
    let place = destination.to_path_buf();
    let written = tokio::task::spawn_blocking(move || lay::hand_over(&place, &content, size)).await;
    written.map_err(|e| Error::new(Kind::Failed, "writing the file was interrupted").caused_by(e))??;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_told_once_of_what_and_whether_waiting_helps() {
        let gap = |hint: &str| Error::new(Kind::Gap, "not stored").context("000000010000000000000004").hint(hint);
        assert_eq!(to_standby(&gap("x")), "000000010000000000000004: not stored; the standby will ask again");
        let forever = to_standby(&gap(GIVEN_UP));
        assert!(forever.contains("must be made anew from a backup behind it") && !forever.contains("ask again"));
    }

    #[test]
    fn what_is_no_regular_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let call = |destination: &str| Call {
            name: FIRST_HISTORY.to_owned(),
            destination: destination.into(),
            pgdata: dir.path().to_owned(),
            standby_wait: Duration::ZERO,
            launch: None,
        };
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        for (destination, refused) in
            [("file", false), ("new", false), ("folder", true), ("link", true), ("/dev/null", true)]
        {
            let outcome = at_hand(&call(destination));
            assert_eq!(matches!(outcome, Some(Outcome::Unknown(_))), refused, "{destination}");
            assert_eq!(matches!(outcome, Some(Outcome::Absent)), !refused, "{destination}");
        }
    }
}
