//! What a restore costs: the stored bytes that it fetches, and the time that it may take, by what was measured in this archive.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::only::Only;
use super::report::{EstimateShown, Plan};
use super::{Choice, Prepared, lay};
use crate::archive::Archive;
use crate::error::Result;
use crate::seal::content::event::Measured;
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::{File, PackPlace, Source};
use crate::seal::content::rfc3339;

/// Drills that are looked at for one that has measured.
const DRILLS: usize = 16;
/// What took so many times less tells nothing: most of its time went into beginning and ending.
const TOO_SMALL: u64 = 16;

impl Prepared {
    /// The same, its plan with what it costs. Reads the backup's maps, and the newest drills.
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
        let plan = Plan { stored_bytes: Some(stored_bytes), estimate, ..self.plan };
        Ok(Prepared { plan, laid, configuration, ..self })
    }
}

/// WAL that recovery replays, in bytes.
pub fn replayed(choice: &Choice) -> u64 {
    choice.landing.replayed.since(choice.manifest.start)
}

fn seconds(measured: &Measured, plan: &Plan, choice: &Choice) -> Option<(f64, f64)> {
    let Measured { laid_bytes, laying_milliseconds, wal_bytes, recovery_milliseconds } = *measured;
    let laying = scaled(plan.backup_bytes, laid_bytes, laying_milliseconds)?;
    Some((laying, scaled(replayed(choice), wal_bytes, recovery_milliseconds)?))
}

/// How long `bytes` take where `of` took `milliseconds`.
fn scaled(bytes: u64, of: u64, milliseconds: u64) -> Option<f64> {
    let known = of > 0 && bytes / TOO_SMALL <= of;
    known.then(|| milliseconds as f64 / 1000.0 * (bytes as f64 / of as f64))
}

/// What is laid, and the frames that hold it.
async fn needed(archive: &Archive, manifest: &Manifest, only: Option<&Only>) -> Result<Needed> {
    let mut needed = Needed::default();
    let mut see = |file: File| {
        if matches!(file.path.as_slice(), b"postgresql.conf" | b"postgresql.auto.conf") {
            needed.configuration.push(file.clone());
        }
        if lay::is_laid(&file.path) || file.path == lay::CONTROL {
            needed.file(&only.and_then(|only| only.reduced(&file)).map_or(file, |(reduced, _)| reduced));
        }
    };
    archive.each_file(manifest, &mut see).await?;
    Ok(needed)
}

#[derive(Default)]
struct Needed {
    /// Which frames of each pack were counted.
    packs: HashMap<(String, u32), Vec<bool>>,
    /// Of these frames, and of the contents list of each pack.
    bytes: u64,
    /// As in [`Prepared::laid`].
    laid: BTreeMap<u32, u64>,
    configuration: Vec<File>,
}

impl Needed {
    fn file(&mut self, file: &File) {
        let unit = file.kind.unit().map_or(1, |unit| unit.bytes());
        for run in &file.runs {
            let Source::Pack { pack, frame, .. } = &run.source else { continue };
            self.frame(pack, *frame);
            *self.laid.entry(tablespace(&file.path)).or_default() += run.count * unit;
        }
    }

    fn frame(&mut self, pack: &Arc<PackPlace>, frame: u32) {
        let len = |frame: u32| pack.frames.get(frame as usize).map_or(0, |place| u64::from(place.len));
        let bytes = &mut self.bytes;
        let counted = self.packs.entry((pack.backup.to_string(), pack.number)).or_insert_with(|| {
            *bytes += len(0);
            vec![false; pack.frames.len()]
        });
        if let Some(counted) = counted.get_mut(frame as usize).filter(|counted| !**counted) {
            *counted = true;
            self.bytes += len(frame);
        }
    }
}

/// The object id of the tablespace that a path of the data directory leads to, else 0.
fn tablespace(path: &[u8]) -> u32 {
    let oid = path.strip_prefix(b"pg_tblspc/").and_then(|rest| rest.split(|b| *b == b'/').next());
    oid.and_then(|oid| std::str::from_utf8(oid).ok()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::seal::content::BackupId;
    use crate::seal::content::map::{EntryKind, Run};
    use crate::seal::sealer::FramePlace;

    #[test]
    fn each_frame_is_fetched_once_and_a_list_with_each_pack() {
        let backup = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        let place = |len| FramePlace { offset: 0, len, plain_len: 0 };
        let frames = vec![place(1), place(10), place(100)];
        let pack = |number| {
            let (backup, frames) = (backup.clone(), frames.clone());
            Arc::new(PackPlace { backup, number, len: 0, header: Bytes::new(), frames })
        };
        let run =
            |number, frame| Run { first: 0, count: 1, source: Source::Pack { pack: pack(number), frame, offset: 0 } };
        let zero = Run { first: 9, count: 1, source: Source::Zero };
        let runs = vec![run(0, 1), run(0, 1), run(1, 2), zero, run(1, 9)];
        let (kind, link) = (EntryKind::Pages, Vec::new());
        let mut needed = Needed::default();
        needed.file(&File { path: b"base/1/2".to_vec(), kind, size: 0, mode: 0, mtime: 0, link, runs });
        assert_eq!(needed.bytes, 1 + 10 + 1 + 100);
        let placed = [(b"pg_tblspc/16384/PG_15/1/2".as_slice(), 16384), (b"pg_tblspc/x", 0), (b"base/1/2", 0)];
        assert!(placed.iter().all(|(path, oid)| tablespace(path) == *oid));
        // Zeros are holes.
        let written: u64 = needed.laid.values().sum();
        assert_eq!(needed.laid.into_iter().collect::<Vec<_>>(), [(0, written)]);
        assert_eq!(written, 4 * crate::pg::data_page::PAGE as u64);
    }

    #[test]
    fn what_was_measured_on_much_less_tells_nothing() {
        assert_eq!(scaled(3000, 1000, 500), Some(1.5));
        assert_eq!((scaled(0, 1000, 500), scaled(17_000, 1000, 500)), (Some(0.0), None));
        assert_eq!(scaled(5, 0, 500), None);
    }
}
