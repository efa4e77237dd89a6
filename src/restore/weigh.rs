//! What a restore costs: the stored bytes that it fetches, and the time that it may take, by what was measured in this archive.

use std::collections::BTreeMap;

use super::only::Only;
use super::report::{EstimateShown, Plan};
use super::{Choice, Prepared, lay, pack};
use crate::archive::Archive;
use crate::error::Result;
use crate::repo::ClusterNames;
use crate::seal::content::event::Measured;
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::{EntryKind, File, Source};
use crate::seal::content::rfc3339;

/// Drills that are looked at for one that has measured.
const DRILLS: usize = 16;
/// What took so many times less tells nothing: most of its time went into beginning and ending.
const TOO_SMALL: u64 = 16;

impl Prepared {
    /// The same, its plan with what it costs. Reads the backup's maps, lists its WAL, and reads the newest drills.
    pub async fn weighed(self, archive: &Archive) -> Result<Prepared> {
        let Needed { bytes: stored_bytes, laid, configuration, .. } =
            needed(archive, &self.choice.manifest, self.only.as_deref()).await?;
        // No restore fails for want of an estimate: whoever restores may not even be allowed to read events.
        let drill = archive.last_measured(DRILLS).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "what drills have measured cannot be read");
            None
        });
        let estimate = drill.and_then(|(at, drill)| {
            let (laying_seconds, recovery_seconds) = seconds(&drill.measured?, &self.plan, &self.choice)?;
            Some(EstimateShown { laying_seconds, recovery_seconds, measured_at: rfc3339(at), host: drill.host })
        });
        let (landing, start) = (&self.choice.landing, self.choice.manifest.start);
        let wal_stored_bytes = archive.stored_along(&self.choice.path, start, landing.needed).await;
        let wal_stored_bytes =
            wal_stored_bytes.map_err(|error| tracing::warn!(%error, "WAL to fetch is not known")).ok();
        let plan = Plan { stored_bytes: Some(stored_bytes), wal_stored_bytes, estimate, ..self.plan };
        Ok(Prepared { plan, laid, configuration, ..self })
    }
}

/// WAL that recovery replays, in bytes.
pub fn replayed(choice: &Choice) -> u64 {
    choice.landing.replayed.since(choice.manifest.start)
}

fn seconds(measured: &Measured, plan: &Plan, choice: &Choice) -> Option<(f64, f64)> {
    let laying = scaled(plan.backup_bytes, measured.laid_bytes, measured.laying_milliseconds)?;
    Some((laying, recovery(replayed(choice), measured)?))
}

/// How long a server takes to start, and then to replay so many bytes of WAL.
fn recovery(wal_bytes: u64, measured: &Measured) -> Option<f64> {
    let replaying = measured.recovery_milliseconds.saturating_sub(measured.starting_milliseconds);
    let starting = measured.recovery_milliseconds - replaying;
    Some(starting as f64 / 1000.0 + scaled(wal_bytes, measured.wal_bytes, replaying)?)
}

/// How long `bytes` take where `of` took `milliseconds`.
fn scaled(bytes: u64, of: u64, milliseconds: u64) -> Option<f64> {
    let known = of > 0 && bytes / TOO_SMALL <= of;
    known.then(|| milliseconds as f64 / 1000.0 * (bytes as f64 / of as f64))
}

/// What is laid, and what is fetched for it.
async fn needed(archive: &Archive, manifest: &Manifest, only: Option<&Only>) -> Result<Needed> {
    let mut needed = Needed::default();
    let mut failed = None;
    let mut see = |file: File| {
        if matches!(file.path.as_slice(), b"postgresql.conf" | b"postgresql.auto.conf") {
            needed.configuration.push(file.clone());
        }
        let seen = match () {
            () if file.path == lay::CONTROL => needed.control(archive, &file),
            () if lay::is_laid(&file.path) => {
                let file = only.and_then(|only| only.reduced(&file)).map_or(file, |(reduced, _)| reduced);
                needed.file(file, &archive.names, pack::together(archive))
            }
            () => Ok(()),
        };
        if let Err(error) = seen {
            failed.get_or_insert(error);
        }
    };
    archive.each_file(manifest, &mut see).await?;
    if let Some(error) = failed {
        return Err(error);
    }
    needed.end(&archive.names, pack::together(archive))?;
    Ok(needed)
}

#[derive(Default)]
struct Needed {
    /// As it is fetched: what of a pack two windows need is fetched twice, and what lies between two frames with them.
    window: lay::Window,
    /// Of packs.
    bytes: u64,
    /// As in [`Prepared::laid`].
    laid: BTreeMap<u32, u64>,
    configuration: Vec<File>,
}

impl Needed {
    fn file(&mut self, file: File, names: &ClusterNames, together: u64) -> Result<()> {
        self.count(&file);
        if matches!(file.kind, EntryKind::Pages | EntryKind::Bytes) {
            self.window.gather(file.kind, file.runs, false)?;
        }
        if self.window.is_full() { self.end(names, together) } else { Ok(()) }
    }

    fn control(&mut self, archive: &Archive, file: &File) -> Result<()> {
        self.count(file);
        self.bytes += pack::small_fetches(archive, file)?;
        Ok(())
    }

    /// What is written.
    fn count(&mut self, file: &File) {
        let unit = file.kind.unit().map_or(1, |unit| unit.bytes());
        let stored = file.runs.iter().filter(|run| matches!(run.source, Source::Pack { .. }));
        let bytes: u64 = stored.map(|run| run.count * unit).sum();
        if bytes > 0 {
            *self.laid.entry(tablespace(&file.path)).or_default() += bytes;
        }
    }

    /// What was gathered is fetched.
    fn end(&mut self, names: &ClusterNames, together: u64) -> Result<()> {
        self.bytes += std::mem::take(&mut self.window).fetches(names, together)?;
        Ok(())
    }
}

/// The object id of the tablespace that a path of the data directory leads to, else 0.
fn tablespace(path: &[u8]) -> u32 {
    let oid = path.strip_prefix(b"pg_tblspc/").and_then(|rest| rest.split(|b| *b == b'/').next());
    oid.and_then(|oid| std::str::from_utf8(oid).ok()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::error::Kind;
    use crate::pg::SystemIdentifier;
    use crate::seal::content::BackupId;
    use crate::seal::content::map::{PackPlace, Run};
    use crate::seal::sealer::FramePlace;

    #[test]
    fn what_is_fetched_is_weighed_with_what_lies_between_and_a_list_with_each_pack() {
        let backup = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        let place = |offset, len| FramePlace { offset, len, plain_len: 0 };
        // The third one lies next to the first, the last one far away.
        let frames = vec![place(0, 1), place(1, 10), place(11, 50), place(61, 100), place(9 << 20, 1000)];
        let pack = |number| {
            let (backup, frames) = (backup.clone(), frames.clone());
            Arc::new(PackPlace { backup, number, len: 0, header: Bytes::new(), frames })
        };
        let run =
            |number, frame| Run { first: 0, count: 1, source: Source::Pack { pack: pack(number), frame, offset: 0 } };
        let zero = Run { first: 9, count: 1, source: Source::Zero };
        let size = crate::pg::SegmentSize::new(16 << 20).unwrap();
        let names = ClusterNames { cluster: "main".to_owned(), system: SystemIdentifier(1), segment_size: size };
        let (kind, link) = (EntryKind::Pages, Vec::new());
        let file =
            |runs| File { path: b"base/1/2".to_vec(), kind, size: 0, mode: 0, mtime: 0, link: link.clone(), runs };
        let mut needed = Needed::default();
        needed.file(file(vec![run(0, 1), run(0, 1), run(1, 3), zero, run(0, 3)]), &names, 4 << 20).unwrap();
        needed.end(&names, 4 << 20).unwrap();
        let (near, apart) = (10 + 50 + 100, 100);
        assert_eq!(needed.bytes, (1 + near) + (1 + 60 + apart));
        // Another window fetches its list, and what it needs, again.
        needed.file(file(vec![run(0, 1), run(0, 4)]), &names, 4 << 20).unwrap();
        needed.end(&names, 4 << 20).unwrap();
        assert_eq!(needed.bytes, (1 + near) + (1 + 60 + apart) + (1 + 10 + 1000));
        assert!(needed.file(file(vec![run(0, 9)]), &names, 4 << 20).is_ok());
        assert_eq!(needed.end(&names, 4 << 20).unwrap_err().kind(), Kind::Corrupt, "no such frame");
        let placed = [(b"pg_tblspc/16384/PG_15/1/2".as_slice(), 16384), (b"pg_tblspc/x", 0), (b"base/1/2", 0)];
        assert!(placed.iter().all(|(path, oid)| tablespace(path) == *oid));
        // Zeros are holes.
        let written: u64 = needed.laid.values().sum();
        assert_eq!(needed.laid.into_iter().collect::<Vec<_>>(), [(0, written)]);
        assert_eq!(written, 7 * crate::pg::data_page::PAGE as u64);
    }

    #[test]
    fn what_was_measured_on_much_less_tells_nothing() {
        assert_eq!(scaled(3000, 1000, 500), Some(1.5));
        assert_eq!((scaled(0, 1000, 500), scaled(17_000, 1000, 500)), (Some(0.0), None));
        assert_eq!(scaled(5, 0, 500), None);
    }

    #[test]
    fn the_start_of_a_server_takes_as_long_for_any_target() {
        let measured = Measured {
            laid_bytes: 1,
            laying_milliseconds: 1,
            wal_bytes: 1000,
            recovery_milliseconds: 3000,
            starting_milliseconds: 2750,
        };
        assert_eq!(recovery(1000, &measured), Some(3.0));
        assert_eq!(recovery(10_000, &measured), Some(2.75 + 2.5));
        assert_eq!((recovery(0, &measured), recovery(17_000, &measured)), (Some(2.75), None));
    }
}
