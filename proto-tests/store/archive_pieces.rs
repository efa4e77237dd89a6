//! Sealed WAL of all forms for the archive's tests: objects, parts, `.partial`, tail files and pieces.

use std::sync::Arc;

use bytes::Bytes;
use walrecv::archive::Archive;
use walrecv::disk::medium::disk;
use walrecv::disk::tail_file::TailFile;
use walrecv::pg::{Lsn, SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, TimelineId};
use walrecv::repo::{ClusterNames, Found, Repository};
use walrecv::seal::content::summary::Summary;
use walrecv::seal::hash::content_hash;
use walrecv::seal::header::{ObjectKind, RepositoryId};
use walrecv::seal::key::{DataKey, ReaderKeys, RepositorySecret, WriterKeys};
use walrecv::seal::sealer::{Compression, Sealer};
use walrecv::seal::tail::TailSealer;

use crate::common::PATIENCE;
use crate::support::Seed;

pub const TIMELINE: TimelineId = TimelineId(3);
const REPOSITORY: RepositoryId = RepositoryId([9; 16]);
const SYSTEM: SystemIdentifier = SystemIdentifier(77);

/// Opens what [`writer`] sealed; with `identity: false` not the contents.
struct Keys {
    secret: RepositorySecret,
    identity: bool,
}

impl ReaderKeys for Keys {
    fn repository(&self) -> RepositoryId {
        REPOSITORY
    }

    fn secret(&self) -> &RepositorySecret {
        &self.secret
    }

    fn unwrap_key(&self, wrapped: &[u8]) -> Result<DataKey, String> {
        if self.identity && wrapped == b"wrapped" { Ok(DataKey([4; 32])) } else { Err("no identity here".into()) }
    }
}

pub fn writer() -> WriterKeys {
    let (secret, data_key) = (RepositorySecret([5; 32]), DataKey([4; 32]));
    WriterKeys { repository: REPOSITORY, secret, data_key, wrapped: b"wrapped".to_vec() }
}

/// An archive with segments of so many MiB. Without `identity` it opens what every writer can.
pub fn archive(repo: &Repository, megabytes: u64, identity: bool) -> Archive {
    let segment_size = SegmentSize::new(megabytes << 20).unwrap();
    let names = ClusterNames { cluster: "main".to_owned(), system: SYSTEM, segment_size };
    let keys = Keys { secret: RepositorySecret([5; 32]), identity };
    Archive { repo: repo.clone(), names, keys: Arc::new(keys) }
}

/// The same archive for one who has another secret.
pub fn stranger(archive: &Archive) -> Archive {
    let keys = Keys { secret: RepositorySecret([6; 32]), identity: true };
    Archive { keys: Arc::new(keys), ..archive.clone() }
}

pub fn segment(archive: &Archive, number: u64) -> SegmentName {
    SegmentName::new(TIMELINE, SegmentNumber(number), archive.names.segment_size)
}

pub fn wal(len: usize, seed: u64) -> Vec<u8> {
    let mut seed = Seed::from(seed);
    let mut out = Vec::with_capacity(len + 64);
    while out.len() < len {
        let word = seed.next();
        out.extend_from_slice(&word.to_le_bytes());
        out.extend(std::iter::repeat_n(0, (word >> 8) as usize % 64));
    }
    out.truncate(len);
    out
}

/// A new salt each time.
fn salt() -> [u8; 32] {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let mut salt = [0; 32];
    salt[..8].copy_from_slice(&COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_le_bytes());
    salt
}

/// A sealed object (segment, part or partial) of the WAL from `start` on.
pub fn sealed(archive: &Archive, kind: ObjectKind, start: Lsn, wal: &[u8]) -> Bytes {
    let claims = archive.claims(kind, TIMELINE, start);
    let keys = writer();
    let mut sealer = Sealer::new(&keys, claims, salt(), Compression::Lz4);
    sealer.push(wal);
    let summary = Summary::of(start, start + wal.len() as u64, content_hash(&keys.secret, wal));
    Bytes::from(sealer.finish(&summary.encode()).bytes.concat())
}

/// Stores as it is, under a name that is free.
pub async fn store(archive: &Archive, name: &str, bytes: Bytes) {
    archive.repo.put_once(name, &[bytes], &|_| Found::Different, PATIENCE).await.unwrap();
}

/// Stores the object of a complete segment of up to 16 MiB.
pub async fn store_segment(archive: &Archive, segment: SegmentName, wal: &[u8]) {
    let object = sealed(archive, ObjectKind::Segment, segment.start(), wal);
    store(archive, &archive.names.segment(segment, None), object).await;
}

/// Bytes of a tail file of the WAL from `offset` on, flushed in these steps (last one shorter), not padded.
pub fn tail(archive: &Archive, segment: SegmentName, offset: u64, wal: &[u8], step: usize) -> Vec<u8> {
    let claims = archive.claims(ObjectKind::Tail, TIMELINE, segment.start() + offset);
    let mut sealer = TailSealer::new(&writer(), claims, salt(), Compression::Lz4);
    let mut out = sealer.preamble().to_vec();
    for flush in wal.chunks(step) {
        out.extend_from_slice(&sealer.seal(flush));
    }
    out
}

/// Writes it as a receiver does: preallocated, in place, synced.
pub fn write_tail_file(archive: &Archive, segment: SegmentName, run: &str, tail: &[u8]) {
    let path = archive.repo.local_root().unwrap().join(archive.names.tail_open(segment, run));
    let mut file = TailFile::create(&disk(), &path, 4 << 20, b"").unwrap();
    file.append(tail).unwrap();
    file.sync((SYSTEM, TIMELINE, Lsn(0))).unwrap();
}

/// The pieces of one run from `offset` on, one per step: (name, bytes).
pub fn pieces(
    archive: &Archive,
    segment: SegmentName,
    offset: u64,
    wal: &[u8],
    step: usize,
    run: &str,
) -> Vec<(String, Bytes)> {
    let claims = archive.claims(ObjectKind::Tail, TIMELINE, segment.start() + offset);
    let mut sealer = TailSealer::new(&writer(), claims, salt(), Compression::Lz4);
    let mut from = offset;
    let mut piece = |flush: &[u8]| {
        let to = from + flush.len() as u64;
        let name = archive.names.tail_piece(segment, from, to, run);
        from = to;
        (name, Bytes::from([sealer.preamble(), sealer.seal(flush)].concat()))
    };
    wal.chunks(step).map(&mut piece).collect()
}
