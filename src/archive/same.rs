//! Whether stored WAL is the WAL of a server: compared by hashes, without the identity.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::try_join_all;

use super::Archive;
use crate::error::{Error, Kind, Result};
use crate::pg::page::{LONG_HEADER, PAGE_SIZE, SHORT_HEADER};
use crate::pg::record::RecordHeader;
use crate::pg::{Lsn, SegmentName, SegmentSize, TimelineId};
use crate::repo::names::{PART_BYTES, WalObject};
use crate::seal::content::summary::{LastRecord, Summary};
use crate::seal::hash::ContentHasher;
use crate::seal::header::ObjectKind;
use crate::seal::opener::{OpenFailed, read_header};
use crate::seal::tail::{piece_marks, tail_marks};

/// Tails read at the same time.
const AT_ONCE: usize = 8;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// WAL as a server sent it, from the first byte on of what is stored in one object.
#[derive(Clone, Debug)]
pub struct Stretch {
    pub timeline: TimelineId,
    pub start: Lsn,
    pub bytes: Bytes,
    /// So many zeros follow, which were not sent: behind a WAL switch nothing else is stored.
    pub zeros: u64,
}

/// What is stored of a [`Stretch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// The same bytes, up to the position that was asked for at least.
    Same,
    /// Nothing that is stored can be compared so far: it is not there yet, or goes beyond what the server sent.
    Unknown,
    /// This object holds something else.
    Differs(String),
    /// No record ends in that object, as behind a WAL switch: whose WAL it is, the object tells that starts here.
    Below(Lsn),
}

impl Stretch {
    /// From where to where the object reaches that holds the byte before `end`.
    pub fn around(end: Lsn, size: SegmentSize) -> (Lsn, Lsn) {
        let span = size.bytes().min(PART_BYTES);
        let start = Lsn(end.0.saturating_sub(1)).align_down(span);
        (start, start + span)
    }

    pub fn end(&self) -> Lsn {
        self.start + self.bytes.len() as u64 + self.zeros
    }

    /// Hashes the bytes between two positions; `None` where they are not all there.
    fn hash(&self, hasher: &mut ContentHasher, from: Lsn, to: Lsn) -> Option<()> {
        let sent = self.start + self.bytes.len() as u64;
        if to > self.end() {
            return None;
        }
        hasher.update(self.part(from.min(sent), to.min(sent))?);
        let mut zeros = to.0.saturating_sub(from.max(sent).0) as usize;
        while zeros > 0 {
            let some = ZEROS.get(..zeros).unwrap_or(&ZEROS);
            hasher.update(some);
            zeros -= some.len();
        }
        Some(())
    }

    /// The bytes between two positions, where they were all sent.
    fn part(&self, from: Lsn, to: Lsn) -> Option<&[u8]> {
        let offset = |lsn: Lsn| lsn.0.checked_sub(self.start.0).map(|offset| offset as usize);
        self.bytes.get(offset(from)?..offset(to)?)
    }

    /// The CRC of the record that begins at `start`: its header may go on behind that of the next page.
    fn crc_at(&self, start: Lsn, size: SegmentSize) -> Option<u32> {
        let page_end = start.align_down(PAGE_SIZE) + PAGE_SIZE;
        let first = (page_end.since(start) as usize).min(RecordHeader::SIZE);
        let skipped = if size.offset_of(page_end) == 0 { LONG_HEADER } else { SHORT_HEADER };
        let behind = page_end + skipped as u64;
        let rest = (RecordHeader::SIZE - first) as u64;
        let head = self.part(start, start + first as u64)?;
        let rest = if rest == 0 { &[][..] } else { self.part(behind, behind + rest)? };
        Some(RecordHeader::parse(&[head, rest].concat().try_into().ok()?).crc)
    }
}

type Marks = Vec<(u64, [u8; 32])>;

impl Archive {
    /// Compares what is stored of `sent` with it: by the hash of an object that it holds wholly, by that of the last record in one that it holds in part, by the
    /// running hashes of tails.
    pub async fn agrees(&self, sent: &Stretch, until: Lsn) -> Result<Agreement> {
        let size = self.names.segment_size;
        let segment = SegmentName::new(sent.timeline, size.segment_of(sent.start), size);
        let mut stored = Vec::new();
        if let Some((name, start)) = self.objects_of(segment).into_iter().find(|(_, start)| *start == sent.start) {
            let claims = self.claims(ObjectKind::Segment, sent.timeline, start);
            stored.extend(self.read_summary(&name, &claims).await?.map(|summary| (name, summary)));
        }
        if let Some(summary) = self.partial_summary(segment).await? {
            stored.push((self.names.partial(segment), summary));
        }
        // Of a large segment some objects are zeros, in which all servers are alike, or what a standby's file held before, in which none are.
        if sent.start > segment.start() {
            let mut reach = stored.iter().filter(|(_, of)| of.start == sent.start && of.end >= until);
            match reach.next() {
                Some((_, summary)) if summary.last_record.is_none() => {
                    let below = self.last_with_record(segment, sent.start).await?;
                    return Ok(below.map_or(Agreement::Unknown, |summary| Agreement::Below(summary.start)));
                }
                // Whether that lies behind a switch, tails do not say.
                None if until >= segment.end() => return Ok(Agreement::Unknown),
                _ => {}
            }
        }
        let mut same = false;
        for (name, summary) in stored {
            match self.agrees_with(sent, &summary, until) {
                Some(true) => same = true,
                Some(false) => return Ok(Agreement::Differs(name)),
                None => {}
            }
        }
        // A segment that is complete needs no tails any more.
        if same {
            return Ok(Agreement::Same);
        }
        self.agrees_with_tails(sent, segment, until).await
    }

    /// `None`: it cannot be compared, or not so far.
    fn agrees_with(&self, sent: &Stretch, summary: &Summary, until: Lsn) -> Option<bool> {
        let mut hasher = ContentHasher::new(self.keys.secret());
        if sent.hash(&mut hasher, summary.start, summary.end).is_some() {
            let same = hasher.finalize() == summary.hash;
            return (!same || summary.end >= until).then_some(same);
        }
        // The server has only the beginning, up to a record that ends there perhaps.
        let LastRecord { start, end, crc } = summary.last_record?;
        if end > sent.end() {
            return None;
        }
        let same = sent.crc_at(start, self.names.segment_size)? == crc;
        (!same || summary.end >= until).then_some(same)
    }

    async fn agrees_with_tails(&self, sent: &Stretch, segment: SegmentName, until: Lsn) -> Result<Agreement> {
        let mut runs: BTreeMap<([u8; 32], Lsn), (String, Marks)> = BTreeMap::new();
        let names = self.tails_of(segment).await?;
        for some in names.chunks(AT_ONCE) {
            let read = try_join_all(some.iter().map(|name| self.tail_bytes(name))).await?;
            for (name, object) in some.iter().zip(read) {
                // Gone since it was listed, or nothing in it yet.
                let Some(object) = object.filter(|object| object.iter().any(|byte| *byte != 0)) else { continue };
                match self.marks_of(segment, name, &object) {
                    Ok((salt, start, marks)) => {
                        runs.entry((salt, start)).or_insert_with(|| (name.clone(), Marks::new())).1.extend(marks);
                    }
                    Err(OpenFailed::Key(problem)) => {
                        return Err(Error::new(Kind::Key, format!("{name}: {problem}")).hint(
                            "Check secret_file: the repository secret is not the one that this was written with.",
                        ));
                    }
                    Err(problem) => tracing::warn!(name, %problem, "a tail cannot be compared"),
                }
            }
        }
        let (secret, sent) = (self.keys.secret().clone(), sent.clone());
        let compare = move || {
            let mut reached = Lsn::INVALID;
            for ((_, start), (name, mut marks)) in runs {
                marks.sort_unstable();
                let mut hasher = ContentHasher::new(&secret);
                for (len, hash) in marks {
                    let from = start + hasher.len();
                    if sent.hash(&mut hasher, from, start + len).is_none() {
                        break;
                    }
                    if hasher.finalize() != hash {
                        return Agreement::Differs(name);
                    }
                    reached = reached.max(start + len);
                }
            }
            if reached >= until { Agreement::Same } else { Agreement::Unknown }
        };
        self.repo.lane().run(compare).await
    }

    /// A tail file or piece, to be compared; `None` where it is gone. One that is longer than any counts for nothing: as if it were empty.
    pub async fn tail_bytes(&self, name: &str) -> Result<Option<Bytes>> {
        match self.repo.get(name).await {
            Err(problem) if problem.kind() == Kind::Corrupt => {
                tracing::warn!(name, %problem, "a tail cannot be compared");
                Ok(Some(Bytes::new()))
            }
            found => found,
        }
    }

    /// Salt, start, and running hashes of a tail file or piece of a segment: of so many bytes from its start on each.
    pub fn marks_of(
        &self,
        segment: SegmentName,
        name: &str,
        object: &[u8],
    ) -> Result<([u8; 32], Lsn, Marks), OpenFailed> {
        let (header, _) = read_header(object)?;
        let start = header.claims.start;
        let expected = self.claims(ObjectKind::Tail, segment.timeline, start);
        if start < segment.start() || start >= segment.end() {
            let expected = format!("a start in {segment}");
            return Err(OpenFailed::Claims { expected, found: start.to_string() });
        }
        let marks = match self.parse(name) {
            Some(WalObject::TailOpen { .. }) => tail_marks(object, &expected, &*self.keys)?,
            _ => piece_marks(object, &expected, &*self.keys)?,
        };
        Ok((header.salt, start, marks))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::keys::ring::{ReaderRing, WriterRing};
    use crate::keys::setup;
    use crate::pg::SystemIdentifier;
    use crate::repo::{ClusterNames, Found, Repository};
    use crate::seal::hash::content_hash;
    use crate::seal::header::RepositoryId;
    use crate::seal::sealer::{Compression, Sealer};
    use crate::seal::tail::TailSealer;

    const SEGMENT: u64 = 1 << 20;
    const START: Lsn = Lsn(0x0300_0000);
    const TIMELINE: TimelineId = TimelineId(1);

    struct Bench {
        archive: Archive,
        ring: WriterRing,
        segment: SegmentName,
        runtime: tokio::runtime::Runtime,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Bench {
            Bench::of(SEGMENT)
        }

        fn of(segment: u64) -> Bench {
            let (keys, id, dir) = (setup::generate(), RepositoryId([3; 16]), tempfile::tempdir().unwrap());
            let ring = WriterRing::new(id, keys.secret.clone(), Some(&keys.public)).unwrap();
            let reader = ReaderRing::new(id, keys.secret.clone(), None).unwrap();
            let segment_size = SegmentSize::new(segment).unwrap();
            let names = ClusterNames { cluster: "main".into(), system: SystemIdentifier(7), segment_size };
            let repo = Repository::open(&format!("file://{}", dir.path().display()), &|_| None).unwrap();
            let segment = SegmentName::new(TIMELINE, segment_size.segment_of(START), segment_size);
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            Bench { archive: Archive { repo, names, keys: Arc::new(reader) }, ring, segment, runtime, _dir: dir }
        }

        fn put(&self, name: &str, bytes: &[Bytes]) {
            let put = self.archive.repo.put_once(name, bytes, &|_| Found::Different, Duration::from_secs(10));
            self.runtime.block_on(put).unwrap();
        }

        fn object(&self, wal: &[u8], last_record: Option<LastRecord>) -> String {
            self.object_at(START, wal, last_record)
        }

        /// A segment, or a part of a large one.
        fn object_at(&self, start: Lsn, wal: &[u8], last_record: Option<LastRecord>) -> String {
            let claims = self.archive.claims(ObjectKind::Segment, TIMELINE, start);
            let mut sealer = Sealer::new(&self.ring.fresh().unwrap(), claims, [1; 32], Compression::Lz4);
            sealer.push(wal);
            let end = start + wal.len() as u64;
            let summary = Summary::of(start, end, content_hash(self.archive.keys.secret(), wal));
            let objects = self.archive.objects_of(self.segment);
            let (name, _) = objects.into_iter().find(|(_, at)| *at == start).unwrap();
            self.put(&name, &sealer.finish(&Summary { last_record, ..summary }.encode()).bytes);
            name
        }

        /// A tail file that begins so far behind the segment's start, of flushes of 1000 bytes.
        fn tail(&self, wal: &[u8], from: usize, to: usize, run: &str) -> String {
            let claims = self.archive.claims(ObjectKind::Tail, TIMELINE, START + from as u64);
            let mut sealer = TailSealer::new(&self.ring.fresh().unwrap(), claims, [2; 32], Compression::Lz4);
            let mut file = vec![sealer.preamble()];
            file.extend(wal[from..to].chunks(1000).map(|flush| sealer.seal(flush)));
            file.push(Bytes::from(vec![0; 5000]));
            let name = self.archive.names.tail_open(self.segment, run);
            self.put(&name, &file);
            name
        }

        fn agrees(&self, wal: &[u8], until: usize) -> Agreement {
            self.agrees_also(wal, 0, until)
        }

        fn agrees_also(&self, wal: &[u8], zeros: u64, until: usize) -> Agreement {
            let sent = Stretch { timeline: TIMELINE, start: START, bytes: Bytes::copy_from_slice(wal), zeros };
            self.runtime.block_on(self.archive.agrees(&sent, START + until as u64)).unwrap()
        }
    }

    fn wal() -> Vec<u8> {
        (0..SEGMENT as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    fn changed(wal: &[u8], at: usize) -> Vec<u8> {
        let mut wal = wal.to_vec();
        wal[at] ^= 1;
        wal
    }

    #[test]
    fn an_object_is_compared_as_a_whole() {
        let (bench, wal) = (Bench::new(), wal());
        assert_eq!(bench.agrees(&wal, 5000), Agreement::Unknown, "nothing is stored");
        let name = bench.object(&wal, None);
        assert_eq!(bench.agrees(&wal, 5000), Agreement::Same);
        assert_eq!(bench.agrees(&wal, SEGMENT as usize), Agreement::Same);
        for at in [0, 4999, 5000, SEGMENT as usize - 1] {
            assert_eq!(bench.agrees(&changed(&wal, at), 5000), Agreement::Differs(name.clone()), "{at}");
        }
        assert_eq!(bench.agrees(&wal[..SEGMENT as usize - 1], 5000), Agreement::Unknown);
    }

    #[test]
    fn zeros_behind_a_switch_need_not_be_sent() {
        let (bench, mut wal) = (Bench::new(), wal());
        wal[5000..].fill(0);
        let name = bench.object(&wal, None);
        for sent in [5000, 5001, 200_000, SEGMENT as usize] {
            let zeros = SEGMENT - sent as u64;
            assert_eq!(bench.agrees_also(&wal[..sent], zeros, 5000), Agreement::Same, "{sent}");
            let changed = changed(&wal[..sent], 4999);
            assert_eq!(bench.agrees_also(&changed, zeros, 5000), Agreement::Differs(name.clone()), "{sent}");
        }
        assert_eq!(bench.agrees_also(&wal[..4999], SEGMENT - 4999, 5000), Agreement::Differs(name));
        assert_eq!(bench.agrees_also(&wal[..5000], SEGMENT - 5001, 5000), Agreement::Unknown);
    }

    #[test]
    fn what_lies_behind_a_switch_says_nothing() {
        // The last of four parts begins at START.
        let bench = Bench::of(64 << 20);
        let (zeros, end) = (vec![0; PART_BYTES as usize], START + PART_BYTES);
        let part = |number: u64| Lsn(number * PART_BYTES);
        let ends = |sent: &[u8]| bench.agrees(sent, PART_BYTES as usize);
        bench.tail(&zeros, 0, zeros.len(), "0123456789abcdef");
        assert_eq!(ends(&zeros), Agreement::Unknown, "a tail does not say whether a record ends in it");
        assert_eq!(bench.agrees(&zeros, 5000), Agreement::Same, "where one does");
        bench.object_at(START, &zeros, None);
        assert_eq!(ends(&zeros), Agreement::Unknown, "what lies below is not stored yet");
        bench.object_at(part(2), &zeros, None);
        assert_eq!(ends(&zeros), Agreement::Unknown);
        let last = LastRecord { start: part(1) + 40, end, crc: 7 };
        let name = bench.object_at(part(1), &zeros, Some(last));
        assert_eq!(ends(&zeros), Agreement::Below(part(1)));
        assert_eq!(ends(&changed(&zeros, 5)), Agreement::Below(part(1)), "what a standby's file held before");
        let below = |bytes: &[u8]| {
            let bytes = Bytes::copy_from_slice(bytes);
            let sent = Stretch { timeline: TIMELINE, start: part(1), bytes, zeros: 0 };
            bench.runtime.block_on(bench.archive.agrees(&sent, part(2))).unwrap()
        };
        assert_eq!(below(&zeros), Agreement::Same);
        assert_eq!(below(&changed(&zeros, 5)), Agreement::Differs(name));
    }

    #[test]
    fn a_server_that_has_only_the_beginning_is_known_by_the_last_record() {
        // In one page, and with its header in two.
        for at in [9000, 16_384 - 8] {
            let (bench, mut wal) = (Bench::new(), wal());
            let record = RecordHeader::SIZE;
            let crc = 0xDEAD_BEEF_u32;
            let place = if at == 9000 { at + 20 } else { 16_384 + SHORT_HEADER + record - 8 - 4 };
            wal[place..place + 4].copy_from_slice(&crc.to_le_bytes());
            let (start, end) = (START + at as u64, START + 20_000);
            let name = bench.object(&wal, Some(LastRecord { start, end, crc }));
            assert_eq!(bench.agrees(&wal[..20_000], 15_000), Agreement::Same);
            assert_eq!(bench.agrees(&wal[..19_999], 15_000), Agreement::Unknown, "the record is not all there");
            assert_eq!(bench.agrees(&changed(&wal[..20_000], place), 15_000), Agreement::Differs(name));
        }
    }

    #[test]
    fn tails_are_compared_flush_by_flush() {
        let (bench, wal) = (Bench::new(), wal());
        let name = bench.tail(&wal, 0, 3000, "0123456789abcdef");
        for (wal, until, expected) in [
            (wal[..3000].to_vec(), 3000, Agreement::Same),
            (wal[..9000].to_vec(), 2500, Agreement::Same),
            (wal[..2999].to_vec(), 2500, Agreement::Unknown),
            (wal[..2999].to_vec(), 2000, Agreement::Same),
            (wal[..9000].to_vec(), 3001, Agreement::Unknown),
            (changed(&wal, 2999), 2500, Agreement::Differs(name.clone())),
            (changed(&wal, 0), 2500, Agreement::Differs(name.clone())),
            (changed(&wal, 3000), 2500, Agreement::Same),
        ] {
            assert_eq!(bench.agrees(&wal, until), expected, "{} bytes, {until}", wal.len());
        }
        // Another run's, which begins later and goes further.
        let later = bench.tail(&wal, 1500, 6000, "fedcba9876543210");
        assert_eq!(bench.agrees(&wal, 5500), Agreement::Same);
        assert_eq!(bench.agrees(&changed(&wal, 5000), 2500), Agreement::Differs(later));
    }
}
