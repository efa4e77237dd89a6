//! A repository in a folder that is filled by hand: WAL from memory or from a server's own files, sealed as a receiver would seal it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use walrecv::archive::{Archive, key_files};
use walrecv::keys::ring::{ReaderRing, WriterRing};
use walrecv::keys::setup::{self, RepositoryKeys};
use walrecv::pg::scan::{ScanConfig, WalScanner};
use walrecv::pg::xact::note;
use walrecv::pg::{Lsn, MajorVersion, SegmentName, SegmentSize, SystemIdentifier, TimelineId};
use walrecv::repo::{ClusterNames, Found, Repository};
use walrecv::restore::Access;
use walrecv::seal::content::summary::{Summary, SummaryBuilder};
use walrecv::seal::hash::content_hash;
use walrecv::seal::header::{ObjectKind, RepositoryId};
use walrecv::seal::sealer::{Compression, Sealer, seal_index};

use super::PATIENCE;

/// The repository, with all keys.
pub struct Shelf {
    pub archive: Archive,
    pub ring: Arc<WriterRing>,
    keys: RepositoryKeys,
    id: RepositoryId,
}

impl Shelf {
    /// A new repository in `folder` for one cluster.
    pub async fn new(folder: &Path, system: SystemIdentifier, size: SegmentSize) -> Shelf {
        let names = ClusterNames { cluster: "main".into(), system, segment_size: size };
        let (keys, id) = (setup::generate(), RepositoryId([7; 16]));
        let ring = WriterRing::new(id, keys.secret.clone(), Some(&keys.public)).expect("a ring");
        let reader = ReaderRing::new(id, keys.secret.clone(), Some(&keys.identity)).expect("a ring");
        let repo = Repository::open(&format!("file://{}", folder.display()), &|_| None).expect("a repository");
        repo.make_root().await.expect("a folder");
        std::fs::write(folder.join("walrecv.json"), "{}").expect("a file that says that this is a repository");
        Shelf { archive: Archive { repo, names, keys: Arc::new(reader) }, ring: Arc::new(ring), keys, id }
    }

    /// Another cluster with the same keys, in a folder of its own.
    pub async fn sister(&self, folder: &Path, system: SystemIdentifier) -> Shelf {
        let new = Shelf::new(folder, system, self.archive.names.segment_size).await;
        let keys = RepositoryKeys {
            identity: self.keys.identity.clone(),
            public: self.keys.public.clone(),
            secret: self.keys.secret.clone(),
        };
        let archive = Archive { keys: self.archive.keys.clone(), ..new.archive };
        Shelf { archive, ring: self.ring.clone(), keys, id: self.id }
    }

    /// What opens names, times and sizes, but no contents.
    pub fn index_keys(&self) -> Arc<ReaderRing> {
        Arc::new(ReaderRing::new(self.id, self.keys.secret.clone(), None).expect("a ring"))
    }

    /// The public key of the repository identity.
    pub fn identity(&self) -> &str {
        &self.keys.public
    }

    /// Name and content of a key file for a new recipient.
    pub fn key_file(&self) -> (String, Bytes) {
        let recipient = setup::Recipient::Age(setup::generate_recipient().1);
        let (name, file) = setup::wrap_for(&self.keys, &recipient).expect("a key file");
        (key_files::name_of(&self.keys.secret, &self.keys.public, &name, &file), file)
    }

    /// What a restore leaves for `wal-fetch`.
    pub fn access(&self) -> Access {
        Access {
            url: self.archive.repo.url().to_owned(),
            repository: self.id,
            secret: self.keys.secret.clone(),
            identity: Some(self.keys.identity.clone()),
        }
    }

    pub fn segment(&self, timeline: TimelineId, at: Lsn) -> SegmentName {
        let size = self.archive.names.segment_size;
        SegmentName::new(timeline, size.segment_of(at), size)
    }

    /// Stores a whole segment (at most 16 MB), or its beginning as the end of a timeline.
    pub async fn put_wal(&self, segment: SegmentName, bytes: &[u8]) {
        let complete = bytes.len() as u64 == segment.size.bytes();
        let kind = if complete { ObjectKind::Segment } else { ObjectKind::Partial };
        let name = match complete {
            true => self.archive.names.segment(segment, None),
            false => self.archive.names.partial(segment),
        };
        let keys = self.ring.fresh().expect("a data key");
        let claims = self.archive.claims(kind, segment.timeline, segment.start());
        let mut sealer = Sealer::new(&keys, claims, salt(), Compression::Lz4);
        sealer.push(bytes);
        let end = segment.start() + bytes.len() as u64;
        let summary = self.summary(segment, bytes, end);
        self.put(&name, &sealer.finish(&summary.encode()).bytes).await;
    }

    /// What a receiver would say of it; where that cannot be read, of its bytes alone.
    fn summary(&self, segment: SegmentName, bytes: &[u8], end: Lsn) -> Summary {
        let hash = content_hash(&self.keys.secret, bytes);
        let alone = Summary::of(segment.start(), end, hash);
        let magic = bytes.get(..2).and_then(|magic| magic.try_into().ok()).map(u16::from_le_bytes);
        let Some(version) = magic.and_then(MajorVersion::from_wal_magic) else { return alone };
        let (system, segment_size) = (self.archive.names.system, segment.size);
        let config = ScanConfig { version, system, timeline: segment.timeline, segment_size };
        let mut scanner = WalScanner::new(config, segment.start());
        let mut builder = SummaryBuilder::new(segment.start());
        let fed = scanner.feed(bytes, &mut |record| {
            if let Ok(note) = note(record, version) {
                builder.add(record, &note);
            }
        });
        fed.map_or(alone, |()| builder.finish(end, hash))
    }

    pub async fn put_history(&self, timeline: TimelineId, content: &[u8]) {
        let keys = self.ring.fresh().expect("a data key");
        let claims = self.archive.claims(ObjectKind::History, timeline, Lsn(0));
        let sealed = seal_index(&keys, claims, salt(), Compression::None, content);
        self.put(&self.archive.names.history(timeline), &sealed.bytes).await;
    }

    async fn put(&self, name: &str, bytes: &[Bytes]) {
        let put = self.archive.repo.put_once(name, bytes, &|_| Found::Different, PATIENCE).await;
        put.unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// Stores the WAL of `timeline` from `from` to `to`, as it stands in `pg_wal` of a server.
    pub async fn put_files(&self, pg_wal: &Path, timeline: TimelineId, from: Lsn, to: Lsn) {
        let mut segment = self.segment(timeline, from);
        while segment.start() < to {
            let path = pg_wal.join(segment.to_string());
            let file = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let end = to.since(segment.start()).min(segment.size.bytes());
            self.put_wal(segment, &file[..end as usize]).await;
            segment.number = segment.number.next();
        }
    }

    /// The file of an object of the repository.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.archive.repo.local_root().expect("a local repository").join(name)
    }
}

fn salt() -> [u8; 32] {
    let mut salt = [0; 32];
    getrandom::fill(&mut salt).expect("random bytes");
    salt
}
