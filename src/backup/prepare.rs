//! Before the first byte: is this the right server, and does a receiver follow it?

use std::ops::RangeInclusive;
use std::time::Duration;

use super::reader::Reader;
use super::wal::{Moment, Reach, Reached, WalWatch};
use super::{BackupOptions, Progress, wal};
use crate::archive::Archive;
use crate::error::{Context, Error, Kind, Result};
use crate::net::{Connection, Conninfo, Mode};
use crate::pg::data_page::PAGE;
use crate::pg::{Lsn, MajorVersion, SegmentSize, TimelineId};
use crate::wire::command::Identity;

/// Longest label.
const LABEL: usize = 1000;

/// A connected server that may be backed up.
pub struct Prepared {
    pub connection: Connection,
    /// Where its socket is looked after.
    pub reader: Reader,
    pub identity: Identity,
    pub segment_size: SegmentSize,
    /// Whether pages have checksums.
    pub checksums: bool,
    /// Of a relation's files.
    pub pages_per_segment: u32,
}

/// Connects and compares the server with the archive.
pub async fn connect(archive: &Archive, server: &Conninfo, options: &BackupOptions) -> Result<Prepared> {
    demand_label(&options.label)?;
    let (reader, way) = (Reader::start()?, server.clone());
    let mut connection = reader.run(async move { Connection::connect(&way, Mode::Physical, "").await }).await?;
    if options.server_compression.is_some() && connection.version() < MajorVersion::V15 {
        let text =
            format!("PostgreSQL {} cannot compress what it sends, versions from 15 on can", connection.version());
        return Err(Error::new(Kind::Usage, text).hint("Take the backup without --server-compression."));
    }
    let identity = connection.identify_system().await?;
    let names = &archive.names;
    if identity.system != names.system {
        let text = format!(
            "{} is system {}, cluster {} in the repository is {}",
            server.describe(),
            identity.system,
            names.cluster,
            names.system
        );
        return Err(Error::new(Kind::Diverged, text)
            .hint("Check the connection string, or give the other server a cluster name of its own."));
    }
    let segment = connection.show("wal_segment_size").await?;
    if SegmentSize::from_show(&segment) != Some(names.segment_size) {
        let expected = names.segment_size.bytes() >> 20;
        let text = format!("the server's WAL segments are {segment}, those in the repository {expected}MB");
        return Err(Error::new(Kind::Diverged, text));
    }
    let page = connection.show("block_size").await?;
    if page != PAGE.to_string() {
        let text = format!("the server's pages have {page} bytes, only {PAGE} is supported");
        return Err(Error::new(Kind::Server, text));
    }
    let checksums = connection.show("data_checksums").await? == "on";
    let shown = connection.show("segment_size").await?;
    let unknown = || Error::new(Kind::Server, format!("the server's relations have segments of {shown:?}"));
    let pages_per_segment = pages_per_segment(&shown).ok_or_else(unknown)?;
    Ok(Prepared { connection, reader, identity, segment_size: names.segment_size, checksums, pages_per_segment })
}

/// backup_label is a file of lines.
fn demand_label(label: &str) -> Result<()> {
    if label.len() <= LABEL && !label.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("the label must be one line of at most {LABEL} bytes")))
}

/// From what `SHOW segment_size` prints, such as `1GB`.
fn pages_per_segment(text: &str) -> Option<u32> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match text.get(digits.len()..)? {
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    u32::try_from(bytes / PAGE as u64).ok().filter(|pages| *pages > 0)
}

/// Whether a receiver follows the server. Without one the backup could never be restored, so that is refused before anything is copied. An archive that ends close
/// behind the server says that there was one a moment ago: the backup begins then, and [`Following::fails`] waits beside it for the rest.
pub async fn follow(prepared: &Prepared, watch: &dyn WalWatch, options: &BackupOptions) -> Result<Following> {
    let Identity { timeline, position: needed, .. } = prepared.identity;
    // From the byte before: where the server is idle, nothing has been written at its position yet.
    let from = Lsn(needed.0.saturating_sub(1));
    let patience = options.follow_within;
    let reach = Reach { timeline, from, needed, patience, outage: patience, renewed: true };
    let server = prepared.connection.same_server();
    watch.attend(server, timeline, Moment::Before).await?;
    let mut following = Following { reach, server: server.clone(), seen: false };
    match near(watch, timeline, from, prepared.segment_size).await {
        Some(end) => following.seen = end >= needed,
        None => {
            let tell = |durable| options.tell(Progress::WaitingForReceiver { durable, needed });
            following.look(watch, &wal::PAUSES, tell).await?;
        }
    }
    Ok(following)
}

/// The end of the archive, where that is in the segment of the byte at `lsn`, or the one before, or later. What cannot be seen now is not near.
async fn near(watch: &dyn WalWatch, timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Option<Lsn> {
    let start = size.segment_of(lsn).start(size);
    for from in [start, Lsn(start.0.saturating_sub(size.bytes()))] {
        if let Ok(Some(end)) = watch.durable_end(timeline, from).await
            && end > from
        {
            return Some(end);
        }
    }
    None
}

/// A receiver that follows, or seems to.
pub struct Following {
    reach: Reach,
    server: Conninfo,
    /// The archive has been seen to reach where the server was.
    seen: bool,
}

impl Following {
    pub fn timeline(&self) -> TimelineId {
        self.reach.timeline
    }

    /// Where the server was.
    pub fn needed(&self) -> Lsn {
        self.reach.needed
    }

    /// The refusal, where the archive does not reach where the server was; else never returns. It looks seldom: nothing waits for it.
    pub async fn fails(&mut self, watch: &dyn WalWatch) -> Error {
        match self.look(watch, &(*wal::PAUSES.end()..=*wal::PAUSES.end()), |_| ()).await {
            Err(error) => error,
            Ok(()) => std::future::pending().await,
        }
    }

    /// Returns once the archive has reached where the server was; else the refusal.
    pub async fn until_seen(&mut self, watch: &dyn WalWatch) -> Result<()> {
        self.look(watch, &wal::PAUSES, |_| ()).await
    }

    async fn look(
        &mut self,
        watch: &dyn WalWatch,
        pauses: &RangeInclusive<Duration>,
        tell: impl Fn(Option<Lsn>),
    ) -> Result<()> {
        if self.seen {
            return Ok(());
        }
        let Reach { timeline, needed, patience, .. } = self.reach;
        let reached = self.reach.wait(watch, &self.server, pauses, tell).await;
        let Reached { durable, remark } = reached.context("does a receiver follow the server?")?;
        if durable.is_some_and(|durable| durable >= needed) {
            self.seen = true;
            return Ok(());
        }
        let state = match durable {
            Some(durable) => format!("the archive ends at {durable}, the server is at {needed} of timeline {timeline}"),
            None => format!("the archive does not hold the WAL before {needed} of timeline {timeline}"),
        };
        let remark = remark.map_or(String::new(), |remark| format!("; {remark}"));
        let text = format!("no receiver follows the server: {state} after {patience:?}{remark}");
        Err(Error::new(Kind::Slot, text)
            .hint("See what `walrecv receive` says for this cluster: a backup without its WAL cannot be restored."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_sizes_of_relations() {
        assert_eq!(pages_per_segment("1GB"), Some(131_072));
        assert_eq!(pages_per_segment("48kB"), Some(6));
        assert_eq!(pages_per_segment("2TB"), Some(268_435_456));
        for bad in ["", "GB", "1 GB", "1", "0GB", "99999999999TB"] {
            assert_eq!(pages_per_segment(bad), None, "{bad}");
        }
    }

    #[test]
    fn labels_are_one_line() {
        assert!(demand_label("it's \"fine\" \\ ü").is_ok());
        for bad in ["a\nb", "a\rb", "\0", &"x".repeat(1001)] {
            assert_eq!(demand_label(bad).unwrap_err().kind(), Kind::Usage);
        }
    }
}
