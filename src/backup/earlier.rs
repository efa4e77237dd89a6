//! Complete backups, the newest first, opened one after the other: the first one nearly always is all that is asked for, and there may be hundreds.

use crate::archive::Archive;
use crate::error::{Context, Result};
use crate::seal::content::BackupId;
use crate::seal::content::manifest::{Backup, Manifest};

/// The backups of an archive, as they were listed once.
pub struct Earlier<'a> {
    archive: &'a Archive,
    /// The newest last, by where they began in WAL.
    ids: Vec<BackupId>,
    /// Given again.
    back: Option<Manifest>,
    any: bool,
}

impl<'a> Earlier<'a> {
    /// Lists them, and opens none.
    pub async fn list(archive: &'a Archive) -> Result<Earlier<'a>> {
        let prefix = format!("{}/backups", archive.names.root());
        let listed = archive.repo.list(&prefix).await.context("cannot list the backups")?;
        let ids = listed.iter().filter_map(|entry| BackupId::parse(entry.name.rsplit('/').next()?).ok());
        let mut ids: Vec<BackupId> = ids.collect();
        ids.sort_by(BackupId::by_start);
        Ok(Earlier { archive, ids, back: None, any: false })
    }

    /// The next older one that is complete. What cannot be read is passed over, with a word in the log.
    ///
    /// Errors: a store that fails for the moment: what it does not give may be the newest.
    pub async fn next(&mut self) -> Result<Option<Manifest>> {
        if let Some(back) = self.back.take() {
            return Ok(Some(back));
        }
        while let Some(id) = self.ids.pop() {
            match self.archive.backup(&id).await {
                Ok(Some(Backup::Complete(manifest))) => {
                    self.any = true;
                    return Ok(Some(*manifest));
                }
                Ok(_) => {}
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => tracing::warn!(%error, "backup {id} cannot be read, and is passed over"),
            }
        }
        Ok(None)
    }

    /// To be given once more.
    pub fn put_back(&mut self, manifest: Manifest) {
        self.back = Some(manifest);
    }

    /// Whether any was complete.
    pub fn any(&self) -> bool {
        self.any
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, SystemTime};

    use bytes::Bytes;
    use futures::future::BoxFuture;

    use super::super::intake_tests::{Bench, runtime};
    use super::super::orphans::tests::manifest_of;
    use super::*;
    use crate::error::{Error, Kind};
    use crate::pg::{Lsn, TimelineId};
    use crate::repo::backend::{Answer, Backend, Listed, Piece};
    use crate::repo::{Repository, store};
    use crate::seal::content::manifest::Tombstone;
    use crate::seal::header::ObjectKind;

    /// The bench's repository, which notes what is read, and fails for one backup.
    struct Watched {
        repo: Repository,
        read: Arc<Mutex<Vec<String>>>,
        fails: Option<BackupId>,
    }

    impl Backend for Watched {
        fn create<'a>(&'a self, _: &'a str, _: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
            Box::pin(async { Ok(Answer::Taken) })
        }

        fn read<'a>(&'a self, name: &'a str, _: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
            Box::pin(async move {
                if self.fails.as_ref().is_some_and(|id| name.ends_with(id.as_str())) {
                    return Err(Error::new(Kind::Repository, "away").transient());
                }
                self.read.lock().unwrap().push(name.rsplit('/').next().unwrap().to_owned());
                let found = self.repo.get(name).await?;
                let piece = |bytes: Bytes| Piece { size: bytes.len() as u64, bytes, modified: SystemTime::UNIX_EPOCH };
                Ok(found.map(piece))
            })
        }

        fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
            Box::pin(self.repo.list(prefix))
        }

        fn folders<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
            Box::pin(self.repo.folders(prefix))
        }

        fn delete<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
            Box::pin(async { Ok(()) })
        }

        fn settle<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
            Box::pin(async { Ok(()) })
        }

        fn make_root(&self) -> BoxFuture<'_, Result<()>> {
            Box::pin(async { Ok(()) })
        }
    }

    #[test]
    fn only_the_newest_manifests_are_opened() {
        let (bench, runtime) = (Bench::new(), runtime());
        let keys = bench.ring.fresh().unwrap();
        let put = |number: u16, kind, content: Vec<u8>| {
            let name = bench.archive.names.backup(bench.id(number).as_str());
            let claims = bench.archive.claims(kind, TimelineId(0), Lsn(0));
            let limit = Duration::from_secs(10);
            runtime.block_on(bench.archive.put_index(&keys, &name, claims, &content, limit)).unwrap();
        };
        for number in 1..=20 {
            put(number, ObjectKind::Manifest, manifest_of(&bench.id(number)).encode());
        }
        let tombstone = Tombstone {
            version: Tombstone::VERSION,
            id: bench.id(21),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            reason: String::new(),
            made_by: String::new(),
            deleted: false,
        };
        put(21, ObjectKind::Tombstone, tombstone.encode());
        std::fs::write(bench.repository().join(bench.archive.names.backup(bench.id(22).as_str())), b"none").unwrap();
        let read = Arc::new(Mutex::new(Vec::new()));
        let watched = |fails| {
            let backend = Watched { repo: bench.archive.repo.clone(), read: read.clone(), fails };
            let repo = store::Repository::with_backend("watched://", Box::new(backend));
            Archive { repo, ..bench.archive.clone() }
        };
        let archive = watched(None);
        let mut earlier = runtime.block_on(Earlier::list(&archive)).unwrap();
        let mut next = || runtime.block_on(earlier.next()).unwrap().map(|manifest| manifest.id);
        assert_eq!((next(), next()), (Some(bench.id(20)), Some(bench.id(19))));
        let expected: Vec<String> = [22, 21, 20, 19].map(|number| bench.id(number).to_string()).into();
        assert_eq!(std::mem::take(&mut *read.lock().unwrap()), expected);
        earlier.put_back(manifest_of(&bench.id(19)));
        let mut rest = Vec::new();
        while let Some(manifest) = runtime.block_on(earlier.next()).unwrap() {
            rest.push(manifest.id);
        }
        assert_eq!(rest, (1..=19).rev().map(|number| bench.id(number)).collect::<Vec<_>>());
        assert!(earlier.any());
        // Nobody knows whether that one is the newest.
        let archive = watched(Some(bench.id(20)));
        let mut earlier = runtime.block_on(Earlier::list(&archive)).unwrap();
        assert!(runtime.block_on(earlier.next()).unwrap_err().is_transient());
    }
}
