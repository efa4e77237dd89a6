//! Clearing away: tails that are no longer needed, because an object holds their bytes or one piece became of many.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tokio::task::JoinSet;

use super::merge::{Compact, Merge, Pieces};
use super::object::object_bytes;
use super::put::demand_whole;
use super::spool::SpoolFiles;
use super::tail::Piece;
use crate::archive::Archive;
use crate::disk::spare::Spare;
use crate::error::{Context, Error, Kind, Result};
use crate::pg::{Lsn, SegmentName, SegmentNumber, TimelineId};
use crate::repo::names::WalObject;
use crate::repo::{ClusterNames, Repository};
use crate::seal::header::ObjectKind;

/// The tails of one pipeline's timeline, and deletions that were begun.
pub struct Clearing {
    archive: Archive,
    timeline: TimelineId,
    /// Where the pipeline began.
    start: Lsn,
    /// Segments that have tails, of this run or an earlier one.
    tailed: BTreeSet<SegmentNumber>,
    /// Per start of an object: runs under whose names this pipeline began local tail files, and its tail pieces that are durable.
    opened: BTreeMap<Lsn, Vec<String>>,
    pieces: BTreeMap<Lsn, Pieces>,
    /// Pieces of earlier runs, and where they end.
    older: Vec<(Lsn, Vec<String>)>,
    spare: Spare,
    /// The spool, and per start of an object the runs under whose names files of it were begun.
    spool: Option<SpoolFiles>,
    spooling: BTreeMap<Lsn, Vec<String>>,
    /// Segments that this pipeline received from their first byte on and has files of in the spool. What an earlier run left of others stays: it may be the last
    /// good copy.
    spooled: BTreeSet<SegmentNumber>,
    jobs: JoinSet<Result<()>>,
}

impl Clearing {
    /// Of a pipeline that begins at a position of a timeline. `older`: pieces of earlier runs that begin there or later, with where they end. Tail files of this
    /// run are written again by whoever has `spare` too.
    pub fn new(
        archive: Archive,
        (timeline, start): (TimelineId, Lsn),
        tailed: BTreeSet<SegmentNumber>,
        older: Vec<(Lsn, Vec<String>)>,
        (spare, spool): (Spare, Option<PathBuf>),
    ) -> Clearing {
        let spool = spool.map(|root| SpoolFiles::new(archive.repo.medium().clone(), root));
        let (opened, pieces, jobs) = (BTreeMap::new(), BTreeMap::new(), JoinSet::new());
        let (spooling, spooled) = (BTreeMap::new(), BTreeSet::new());
        Clearing { archive, timeline, start, tailed, opened, pieces, older, spare, spool, spooling, spooled, jobs }
    }

    /// The segment of the byte before `lsn` has a tail.
    pub fn tailed(&mut self, lsn: Lsn) {
        self.tailed.insert(self.archive.names.segment_size.segment_before(lsn));
    }

    /// A local tail file was begun under this run's name.
    pub fn opened(&mut self, object: Lsn, run: String) {
        self.opened.entry(object).or_default().push(run);
    }

    /// Those of this object do not stand under their names any more.
    pub fn vanished(&mut self, object: Lsn) {
        self.opened.remove(&object);
    }

    /// A file of the spool was begun under this run's name.
    pub fn spooling(&mut self, object: Lsn, run: String) {
        let size = self.archive.names.segment_size;
        let number = size.segment_of(object);
        self.tailed.insert(number);
        if self.start <= number.start(size) {
            self.spooled.insert(number);
        }
        self.spooling.entry(object).or_default().push(run);
    }

    /// Everything up to `lsn` is in the repository: deletes the files of the spool that have nothing more.
    pub fn settled(&mut self, lsn: Lsn) {
        let rest = self.spooling.split_off(&lsn);
        for (object, runs) in std::mem::replace(&mut self.spooling, rest) {
            let segment = self.segment_at(object);
            self.in_spool(move |spool, names| spool.delete_runs(names, segment, &runs));
        }
    }

    fn in_spool(&mut self, job: impl FnOnce(&SpoolFiles, &ClusterNames) -> Result<()> + Send + 'static) {
        if let Some(spool) = self.spool.clone() {
            let (lane, names) = (self.archive.repo.lane(), self.archive.names.clone());
            self.jobs.spawn(async move { lane.run(move || job(&spool, &names)).await? });
        }
    }

    /// A tail piece is durable. When its bytes were reported from an object already, it came too late to be deleted with the others. Returns what is to be
    /// merged next.
    pub fn stands(&mut self, piece: Piece, merged: bool, reported: Lsn) -> Option<Merge> {
        let object = self.object_of(piece.from);
        let names = if reported < object + object_bytes(self.archive.names.segment_size) {
            let range = Merge { from: piece.from, to: piece.to };
            let pieces = self.pieces.entry(object).or_default();
            if merged { pieces.merged(range, piece.name) } else { pieces.add(range, piece.name) }
        } else {
            vec![piece.name]
        };
        self.delete(names);
        self.pieces.last_entry().and_then(|mut last| last.get_mut().due())
    }

    /// What was to be merged is not in memory any more.
    pub fn not_merged(&mut self, merge: Merge) {
        let object = self.object_of(merge.from);
        let names = self.pieces.get_mut(&object).map(Pieces::not_merged);
        self.delete(names.unwrap_or_default());
    }

    /// Start of the object that holds the byte at `lsn`.
    pub fn object_of(&self, lsn: Lsn) -> Lsn {
        lsn.align_down(object_bytes(self.archive.names.segment_size))
    }

    /// What is to be merged before the bytes of this object leave memory.
    pub fn compact(&mut self, object: Lsn) -> Compact {
        self.pieces.get_mut(&object).map_or(Compact::Nothing, Pieces::compact)
    }

    /// Names of this pipeline's tails of one object, as they stand.
    pub fn tails_of(&self, object: Lsn) -> Vec<String> {
        let files = self.opened.get(&object).map(|runs| self.names_of(object, runs)).unwrap_or_default();
        files.into_iter().chain(self.pieces.get(&object).into_iter().flat_map(Pieces::names)).collect()
    }

    fn names_of(&self, object: Lsn, runs: &[String]) -> Vec<String> {
        runs.iter().map(|run| self.archive.names.tail_open(self.segment_at(object), run)).collect()
    }

    /// Everything up to `reported` is in the repository and was acknowledged. A tail never holds an object's last bytes, so objects below that are stored: deletes
    /// every tail of complete segments, and this run's of the parts of the others.
    pub fn reported(&mut self, reported: Lsn) {
        let size = self.archive.names.segment_size;
        while let Some(number) = self.tailed.first().copied().filter(|number| number.end(size) <= reported) {
            self.segment_stored(number);
        }
        let objects: BTreeSet<Lsn> = self.pieces.keys().chain(self.opened.keys()).copied().collect();
        for object in objects.range(..self.object_of(reported)) {
            let names = self.tails_of(*object);
            self.delete(names);
        }
        self.forget(self.object_of(reported));
        self.settled(self.object_of(reported));
    }

    /// Everything was compared with what earlier runs left, and this run has made it durable itself up to `reported`: their pieces below that go. Their local
    /// files stay as long as the segment is not complete, since who lost the server without noticing it may still write to his.
    pub fn compared(&mut self, reported: Lsn) {
        let older = std::mem::take(&mut self.older);
        let (covered, rest) = older.into_iter().partition(|(end, _)| *end <= reported);
        self.older = rest;
        let covered: Vec<(Lsn, Vec<String>)> = covered;
        self.delete(covered.into_iter().flat_map(|(_, names)| names).collect());
    }

    fn segment_stored(&mut self, number: SegmentNumber) {
        self.tailed.remove(&number);
        let size = self.archive.names.segment_size;
        let own = self.forget(number.end(size));
        let own = own.into_iter().flat_map(|(object, runs)| self.names_of(object, &runs)).collect();
        self.delete_listed(number, own, |_| true);
        self.settled(number.end(size));
        // Files that were begun and never used are not known by name.
        if self.spooled.remove(&number) {
            let segment = SegmentName::new(self.timeline, number, size);
            self.in_spool(move |spool, names| spool.delete(names, segment));
        }
    }

    /// Takes out what is known of the tails of objects that begin before `lsn`.
    fn forget(&mut self, lsn: Lsn) -> BTreeMap<Lsn, Vec<String>> {
        self.pieces = self.pieces.split_off(&lsn);
        let opened = self.opened.split_off(&lsn);
        std::mem::replace(&mut self.opened, opened)
    }

    /// The timeline ended at `received`, and that end is stored. Deletes the tails of its segment as far as the end has the same bytes: another receiver may be
    /// writing there, and an earlier one may have come further; what is theirs stays.
    pub fn ended(&mut self, received: Lsn) {
        let size = self.archive.names.segment_size;
        let last = size.segment_before(received);
        let before: Vec<SegmentNumber> = self.tailed.range(..last).copied().collect();
        before.into_iter().for_each(|number| self.segment_stored(number));
        let upto = received.since(last.start(size));
        let own: Vec<String> = self.forget(last.end(size)).into_values().flatten().collect();
        let archive = self.archive.clone();
        self.delete_listed(last, Vec::new(), move |name| match archive.parse(name) {
            Some(WalObject::TailPiece { to, .. }) => to <= upto,
            Some(WalObject::TailOpen { run, .. }) => own.contains(&run),
            _ => false,
        });
    }

    fn segment_at(&self, lsn: Lsn) -> SegmentName {
        let size = self.archive.names.segment_size;
        SegmentName::new(self.timeline, size.segment_of(lsn), size)
    }

    fn delete(&mut self, names: Vec<String>) {
        if names.is_empty() {
            return;
        }
        let bin = self.bin(names.clone());
        self.jobs.spawn(async move { bin.empty(names).await });
    }

    /// `own`: this run's among them.
    fn delete_listed(
        &mut self,
        number: SegmentNumber,
        own: Vec<String>,
        unneeded: impl Fn(&str) -> bool + Send + 'static,
    ) {
        let names = &self.archive.names;
        let segment = SegmentName::new(self.timeline, number, names.segment_size);
        let folder = names.tail_folder(segment);
        let bin = self.bin(own);
        // What lies below the start was received by an earlier run, and is complete by its name only.
        let unproven = (segment.end() <= self.start).then(|| self.archive.clone());
        self.jobs.spawn(async move {
            if let Some(archive) = unproven {
                demand_objects(&archive, segment).await.context("they stay, and may be the last good copy")?;
            }
            let listed = bin.repo.list(&folder).await?.into_iter().map(|listed| listed.name);
            let unneeded = listed.filter(|name| unneeded(name)).collect();
            bin.empty(unneeded).await
        });
    }

    fn bin(&self, own: Vec<String>) -> Bin {
        let folder = format!("{}/tail", self.archive.names.root());
        Bin { repo: self.archive.repo.clone(), folder, spare: self.spare.clone(), own }
    }

    /// The next deletion that has come to its end; `None` while there is none. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<()>> {
        // A deletion that died leaves what the next run finds.
        Some(self.jobs.join_next().await?.unwrap_or(Ok(())))
    }
}

/// Every object of a segment is there, and whole.
async fn demand_objects(archive: &Archive, segment: SegmentName) -> Result<()> {
    for (name, start) in archive.objects_of(segment) {
        let missing = || Error::new(Kind::Corrupt, format!("{name} is not stored any more"));
        let object = archive.repo.get(&name).await?.ok_or_else(missing)?;
        let claims = archive.claims(ObjectKind::Segment, segment.timeline, start);
        demand_whole(&object, &name, &claims, &*archive.keys)?;
    }
    Ok(())
}

/// Where tails go that nobody needs any more.
struct Bin {
    repo: Repository,
    /// Of the repository, where files without a name are.
    folder: String,
    spare: Spare,
    /// Those that this run wrote.
    own: Vec<String>,
}

impl Bin {
    async fn empty(&self, names: Vec<String>) -> Result<()> {
        for name in names {
            // Of several files of one object all but the last failed: what became of their blocks is not known. Nor is it what others do with theirs.
            let again = self.own.iter().filter(|own| own.ends_with(".open")).eq([&name]);
            if !(again && self.retire(&name).await?) {
                self.repo.delete(&name).await?;
            }
        }
        Ok(())
    }

    async fn retire(&self, name: &str) -> Result<bool> {
        let Some(root) = self.repo.local_root() else { return Ok(false) };
        let (repo, spare) = (self.repo.clone(), self.spare.clone());
        let (path, folder) = (root.join(name), root.join(&self.folder));
        let retire = move || {
            repo.demand_local_root()?;
            spare.retire(repo.medium(), &path, &folder)
        };
        self.repo.lane().run(retire).await?
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::disk::medium::disk;
    use crate::keys::ring::ReaderRing;
    use crate::pg::{SegmentSize, SystemIdentifier};
    use crate::repo::names::PART_BYTES;
    use crate::seal::content::summary::Summary;
    use crate::seal::hash::content_hash;
    use crate::seal::header::RepositoryId;
    use crate::seal::key::{DataKey, RepositorySecret, WriterKeys};
    use crate::seal::sealer::{Compression, Sealer};

    /// A segment that an earlier run stored, with tails that it left, and one that this run has files of in the spool.
    #[tokio::test]
    async fn what_an_earlier_run_left_in_the_spool_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, spool) = site(dir.path(), 1 << 20);
        let names = archive.names.clone();
        let segment = |number| SegmentName::new(TimelineId(1), SegmentNumber(number), names.segment_size);
        let files = [(5, "left"), (6, "own"), (6, "unused")].map(|(number, run)| {
            let path = spool.join(names.spool_file(segment(number), run));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, b"tail").unwrap();
            path
        });
        let litter = BTreeSet::from([SegmentNumber(5)]);
        let begun = (TimelineId(1), segment(5).start());
        let mut clearing = Clearing::new(archive, begun, litter, Vec::new(), (Spare::default(), Some(spool)));
        clearing.spooling(segment(6).start(), "own".to_owned());
        clearing.reported(segment(7).start());
        while let Some(done) = clearing.next().await {
            done.unwrap();
        }
        assert_eq!(files.map(|file| file.exists()), [true, false, false]);
    }

    /// A pipeline that began in the second part of a large segment has seen nothing of the first one.
    #[tokio::test]
    async fn what_an_earlier_run_left_of_a_part_that_was_not_received_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, spool) = site(dir.path(), 64 << 20);
        let segment = SegmentName::new(TimelineId(1), SegmentNumber(3), archive.names.segment_size);
        let second = segment.start() + PART_BYTES;
        let left = |run| spool.join(archive.names.spool_file(segment, run));
        let files = ["first", "own"].map(left);
        std::fs::create_dir_all(files[0].parent().unwrap()).unwrap();
        for (begun, expected) in [(second, [true, false]), (segment.start(), [false, false])] {
            files.iter().for_each(|path| std::fs::write(path, b"tail").unwrap());
            let (begun, spool) = ((TimelineId(1), begun), (Spare::default(), Some(spool.clone())));
            let mut clearing = Clearing::new(archive.clone(), begun, BTreeSet::new(), Vec::new(), spool);
            clearing.spooling(second, "own".to_owned());
            clearing.reported(segment.end());
            while let Some(done) = clearing.next().await {
                done.unwrap();
            }
            assert_eq!(files.each_ref().map(|file| file.exists()), expected, "begun at {}", begun.1);
        }
    }

    /// Its name alone does not say that a segment is stored.
    #[tokio::test]
    async fn tails_of_a_damaged_segment_below_the_start_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, _) = site(dir.path(), 1 << 20);
        let segment = SegmentName::new(TimelineId(1), SegmentNumber(5), archive.names.segment_size);
        let secret = archive.keys.secret().clone();
        let keys = WriterKeys {
            repository: archive.keys.repository(),
            secret,
            data_key: DataKey([3; 32]),
            wrapped: vec![1; 200],
        };
        let (claims, wal) = (archive.claims(ObjectKind::Segment, segment.timeline, segment.start()), vec![9; 1 << 20]);
        let mut sealer = Sealer::new(&keys, claims, [4; 32], Compression::Lz4);
        sealer.push(&wal);
        let summary = Summary::of(segment.start(), segment.end(), content_hash(&keys.secret, &wal));
        let whole = sealer.finish(&summary.encode()).bytes.concat();
        let root = dir.path().join("repository");
        let object = root.join(archive.names.segment(segment, None));
        let tails = ["one", "two"].map(|run| root.join(archive.names.tail_open(segment, run)));
        for path in [&object, &tails[0]] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        for (stored, stay) in [(Some(&damaged), true), (None, true), (Some(&whole), false)] {
            let _ = std::fs::remove_file(&object);
            stored.iter().for_each(|bytes| std::fs::write(&object, bytes).unwrap());
            tails.iter().for_each(|path| std::fs::write(path, b"tail").unwrap());
            let (begun, litter) = ((TimelineId(1), segment.end()), BTreeSet::from([segment.number]));
            let mut clearing = Clearing::new(archive.clone(), begun, litter, Vec::new(), (Spare::default(), None));
            clearing.reported(segment.end() + 1000);
            let done = clearing.next().await.unwrap();
            assert_eq!(done.map_err(|error| error.kind()), if stay { Err(Kind::Corrupt) } else { Ok(()) });
            assert_eq!(tails.each_ref().map(|file| file.exists()), [stay; 2]);
        }
    }

    fn site(dir: &Path, segment: u64) -> (Archive, PathBuf) {
        let (root, spool) = (dir.join("repository"), dir.join("spool"));
        std::fs::create_dir_all(&root).unwrap();
        let segment_size = SegmentSize::new(segment).unwrap();
        let names = ClusterNames { cluster: "main".to_owned(), system: SystemIdentifier(9), segment_size };
        let repo = Repository::in_directory(root, disk());
        let keys = ReaderRing::new(RepositoryId([7; 16]), RepositorySecret([5; 32]), None).unwrap();
        (Archive { repo, names, keys: Arc::new(keys) }, spool)
    }
}
