//! Which packs the maps of backups name. Every map is read once in a run: maps never change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::stream::{self, StreamExt};

use super::plan::Needed;
use crate::archive::{Archive, refused};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::manifest::MapRef;
use crate::seal::content::map::{MapReader, Source};
use crate::seal::content::{BackupId, Malformed};
use crate::seal::header::ObjectKind;
use crate::seal::opener::open_index;

/// Maps read at the same time; of each one part of at most 16 MiB is in memory.
const AT_ONCE: usize = 3;

/// The packs that one map names.
type Packs = BTreeSet<(BackupId, u32)>;

/// Maps that were read.
#[derive(Default)]
pub struct Maps {
    known: BTreeMap<BackupId, Arc<Packs>>,
}

impl Maps {
    /// What these maps name together, and themselves; and those of them that cannot be read (missing ones among them). An error of the store ends it.
    pub async fn needed(&mut self, archive: &Archive, refs: Vec<MapRef>) -> Result<(Needed, Vec<(BackupId, Error)>)> {
        let wanted: BTreeMap<BackupId, MapRef> = refs.into_iter().map(|map| (map.backup.clone(), map)).collect();
        let missing: Vec<MapRef> =
            wanted.values().filter(|map| !self.known.contains_key(&map.backup)).cloned().collect();
        let read = |map: MapRef| async move { (packs_of(archive, &map).await, map.backup) };
        let mut reading = stream::iter(missing.into_iter().map(read)).buffer_unordered(AT_ONCE);
        let (mut found, mut dark) = (Vec::new(), Vec::new());
        while let Some((packs, id)) = reading.next().await {
            match packs {
                Ok(packs) => found.push((id, Arc::new(packs))),
                Err(error) if error.is_of_the_disk() => dark.push((id, error.recast(Kind::Corrupt))),
                Err(error) if error.is_transient() || error.kind() == Kind::Repository => return Err(error),
                Err(error) => dark.push((id, error)),
            }
        }
        drop(reading);
        self.known.extend(found);
        let mut needed = Needed::default();
        for id in wanted.into_keys() {
            for (backup, number) in self.known.get(&id).map(|packs| packs.iter()).into_iter().flatten() {
                needed.packs.entry(backup.clone()).or_default().insert(*number);
            }
            needed.maps.insert(id);
        }
        Ok((needed, dark))
    }
}

async fn packs_of(archive: &Archive, map: &MapRef) -> Result<Packs> {
    let mut reader = MapReader::new(map.backup.clone(), map.parts);
    let mut packs = Packs::new();
    for part in 0..map.parts {
        let name = archive.names.map(map.backup.as_str(), part);
        let missing = || Error::new(Kind::Corrupt, format!("{name} is missing, and a backup needs it"));
        let object = archive.repo.get(&name).await?.ok_or_else(missing)?;
        let claims = archive.claims(ObjectKind::Map, TimelineId(0), Lsn(u64::from(part)));
        let keys = archive.keys.clone();
        // Opening and decoding 16 MiB is no work for the tasks that wait for the store.
        let work = move || -> Result<_> {
            let plain = open_index(&object, &claims, keys.as_ref()).map_err(|failed| refused(&name, failed))?;
            let bad = |e: Malformed| Error::new(Kind::Corrupt, e.to_string()).context(&name);
            reader.feed(&plain).map_err(bad)?;
            collect(&mut reader, &mut packs).map_err(bad)?;
            Ok((reader, packs))
        };
        (reader, packs) = archive.repo.lane().run(work).await??;
    }
    Ok(packs)
}

fn collect(reader: &mut MapReader, packs: &mut Packs) -> Result<(), Malformed> {
    let mut last = None;
    while let Some(entry) = reader.next_entry()? {
        for run in entry.runs {
            let Source::Pack { pack, .. } = run.source else { continue };
            if last.as_ref().is_some_and(|known| Arc::ptr_eq(known, &pack)) {
                continue;
            }
            packs.insert((pack.backup.clone(), pack.number));
            last = Some(pack);
        }
    }
    Ok(())
}
