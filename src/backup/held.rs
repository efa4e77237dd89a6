//! The packs that maps need: how long each is, how much of it is needed, and whether the repository still has it.

use std::collections::{BTreeMap, HashMap};

use futures::stream::{self, StreamExt};

use super::survivors::Fill;
use crate::archive::Archive;
use crate::error::{Context, Result};
use crate::seal::content::BackupId;
use crate::seal::content::map::{PackPlace, Run, Source};

/// Folders listed at the same time.
const AT_ONCE: usize = 16;

/// Packs by backup and number. Memory: some 40 bytes for each pack (3 MB for 1 TiB).
#[derive(Debug, Default)]
pub struct Held {
    backups: BTreeMap<BackupId, BTreeMap<u32, Pack>>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pack {
    /// Bytes of the object.
    pub len: u64,
    pub fill: Fill,
}

impl Held {
    /// Notes what a file needs; `unit`: bytes that its runs count.
    pub fn note(&mut self, runs: &[Run], unit: u64) {
        for run in runs {
            let Source::Pack { pack, .. } = &run.source else { continue };
            let packs = match self.backups.get_mut(&pack.backup) {
                Some(packs) => packs,
                None => self.backups.entry(pack.backup.clone()).or_default(),
            };
            packs.entry(pack.number).or_insert_with(|| Pack::unused(pack)).fill.live += run.count * unit;
        }
    }

    /// All packs, in order.
    pub fn packs(&self) -> impl Iterator<Item = (&BackupId, u32, &Pack)> {
        self.backups.iter().flat_map(|(backup, packs)| packs.iter().map(move |(number, pack)| (backup, *number, pack)))
    }

    /// The first pack that is one of those, for people.
    pub fn find(&self, is: impl Fn(&BackupId, u32) -> bool) -> Option<String> {
        let mut those = self.packs().filter(|(backup, number, _)| is(backup, *number));
        those.next().map(|(backup, number, _)| format!("pack {number} of backup {backup}"))
    }

    /// Whose packs these are.
    pub fn backups(&self) -> impl Iterator<Item = &BackupId> {
        self.backups.keys()
    }

    /// Bytes of files in all of them, needed or not, before compression.
    pub fn plain(&self) -> u64 {
        self.packs().map(|(_, _, pack)| pack.fill.plain).sum()
    }

    /// Lists the folders of these packs: the first one that is gone, or not as long as it was, and how many are. Nothing is opened: that costs as much as
    /// reading them, and `verify` does it.
    ///
    /// Errors: a listing that fails.
    pub async fn lost(&self, archive: &Archive) -> Result<Option<String>> {
        let looks: Vec<_> = self.backups.iter().map(|(backup, packs)| lost_of(archive, backup, packs)).collect();
        let mut looking = stream::iter(looks).buffered(AT_ONCE);
        let (mut first, mut more) = (None, 0);
        while let Some(found) = looking.next().await {
            let (one, many) = found?;
            more += many;
            first = first.or(one);
        }
        let others = |more: u64| if more > 1 { format!(" (and {} more)", more - 1) } else { String::new() };
        Ok(first.map(|first| first + &others(more)))
    }
}

impl Pack {
    /// Of which nothing is known to be needed.
    fn unused(pack: &PackPlace) -> Pack {
        let plain = pack.frames.iter().skip(1).map(|frame| u64::from(frame.plain_len)).sum();
        Pack { len: pack.len, fill: Fill { live: 0, plain } }
    }
}

/// The first pack of a backup that is not there as it was, and how many are not.
async fn lost_of(archive: &Archive, backup: &BackupId, packs: &BTreeMap<u32, Pack>) -> Result<(Option<String>, u64)> {
    let prefix = format!("{}/packs/{backup}", archive.names.root());
    let listed = archive.repo.list(&prefix).await.context("cannot list the packs of an earlier backup")?;
    let there: HashMap<String, u64> = listed.into_iter().map(|entry| (entry.name, entry.size)).collect();
    let wrong = packs.iter().filter_map(|(number, pack)| {
        let name = archive.names.pack(backup.as_str(), *number);
        match there.get(&name) {
            Some(len) if *len == pack.len => None,
            Some(len) => Some(format!("{name} has {len} bytes, expected {}", pack.len)),
            None => Some(format!("{name} is missing")),
        }
    });
    Ok(wrong.fold((None, 0), |(first, many), problem| (first.or(Some(problem)), many + 1)))
}

#[cfg(test)]
mod tests {
    use super::super::intake_tests::{Bench, Sent, made, noise, runtime};
    use super::super::layers;
    use super::super::parent_files::ParentFiles;
    use crate::disk::scratch::Scratch;
    use crate::seal::page_hash::CHUNK;

    #[test]
    fn packs_that_are_gone_or_cut_are_told() {
        let (bench, runtime) = (Bench::new(), runtime());
        let made = made(vec![("base/1/2".to_owned(), noise(2100 * CHUNK, 1))]);
        let (received, maps, _) = bench.backup(made.events(), Sent { number: 1, ..Sent::default() }).unwrap();
        assert_eq!(received.tally.packs, 2);
        let read = |map: &_, part| Ok(bench.map_part(map, part));
        let scratch = Scratch::temporary().unwrap();
        let read: &layers::ReadPart<'_> = &read;
        let held = ParentFiles::read(&maps, read, &scratch).unwrap().held;
        assert_eq!((held.packs().count(), held.plain()), (2, received.tally.changed));
        assert!(held.packs().all(|(_, _, pack)| pack.fill.live == pack.fill.plain));
        let lost = || runtime.block_on(held.lost(&bench.archive)).unwrap();
        assert_eq!(lost(), None);
        let path = |number| bench.repository().join(bench.archive.names.pack(bench.id(1).as_str(), number));
        let whole = std::fs::read(path(1)).unwrap();
        std::fs::write(path(1), &whole[1..]).unwrap();
        let told = lost().unwrap();
        assert!(told.ends_with(&format!("/1 has {} bytes, expected {}", whole.len() - 1, whole.len())), "{told}");
        std::fs::remove_file(path(0)).unwrap();
        let told = lost().unwrap();
        assert!(told.ends_with("/0 is missing (and 1 more)"), "{told}");
        std::fs::remove_dir_all(path(0).parent().unwrap()).unwrap();
        assert!(lost().unwrap().ends_with("/0 is missing (and 1 more)"));
    }
}
