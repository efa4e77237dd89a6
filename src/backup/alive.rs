//! Signs of life: a backup of which nothing else moves for a day (a slow transfer of what has hardly changed) would be taken for dead by an expiry. And the
//! last one, that it is complete: so would one whose manifest vanished.

use std::convert::Infallible;
use std::time::Duration;

use super::sealing::Sealing;
use super::upload::Upload;
use crate::archive::Archive;
use crate::archive::lost::COMPLETE;
use crate::error::Result;
use crate::keys::ring::WriterRing;
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::BackupId;
use crate::seal::header::ObjectKind;

/// Three may fail before a day is over.
pub const EVERY: Duration = Duration::from_secs(6 * 3600);

/// Gives a sign every so often, as long as the backup is not given up. `limit`: how long one object is tried.
pub async fn keep(archive: &Archive, ring: &WriterRing, id: &BackupId, every: Duration, limit: Duration) -> Infallible {
    let mut number = 1;
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = sign(archive, ring, id, number, limit).await {
            tracing::warn!(%error, "an expiry may take this backup for dead");
        }
        // One that failed may stand there all the same: its name is not used again.
        number += 1;
    }
}

async fn sign(archive: &Archive, ring: &WriterRing, id: &BackupId, number: u32, limit: Duration) -> Result<()> {
    // Who has been given up is told so before the manifest, and leaves nothing more behind.
    let Some(intent) = archive.intent(id).await? else { return Ok(()) };
    let claims = archive.claims(ObjectKind::Intent, TimelineId(0), Lsn(u64::from(number)));
    let name = archive.names.alive(id.as_str(), number);
    archive.put_index(&ring.fresh()?, &name, claims, &intent.encode(), limit).await
}

/// Leaves the sign that the backup is complete: its manifest is stored. It is one already, whatever becomes of this.
pub async fn complete(archive: &Archive, sealing: &mut Sealing, limit: Duration) {
    let id = sealing.id.clone();
    let put = async {
        let Some(intent) = archive.intent(&id).await? else { return Ok(0) };
        let name = archive.names.alive(id.as_str(), COMPLETE);
        let upload = sealing.index(ObjectKind::Intent, COMPLETE, &intent.encode())?;
        Upload { name, ..upload }.put(&archive.repo, limit).await
    };
    match tokio::time::timeout(limit, put).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the sign that this backup is complete could not be left"),
        Err(_) => {
            tracing::warn!("the sign that this backup is complete could not be left within {} s", limit.as_secs())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::intake_tests::{Bench, runtime};
    use super::super::orphans::tests::announced;
    use super::*;
    use crate::repo::names::{BackupPart, parse_backup_part};

    #[test]
    fn signs_come_as_long_as_the_backup_is_not_given_up() {
        let bench = Bench::new();
        let (archive, id, limit) = (&bench.archive, bench.id(1), Duration::from_secs(10));
        announced(&bench, &id);
        let signs = || {
            let listed = runtime().block_on(archive.repo.list(&archive.names.root())).unwrap();
            let part = |name: &str| {
                parse_backup_part(name.strip_prefix(&archive.names.root())?.strip_prefix('/')?).map(|p| p.1)
            };
            listed.iter().filter(|l| matches!(part(&l.name), Some(BackupPart::Alive(_)))).count()
        };
        let keep = |every: u64, long: u64| {
            let kept = keep(archive, &bench.ring, &id, Duration::from_millis(every), limit);
            runtime().block_on(async {
                tokio::time::timeout(Duration::from_millis(long), kept).await.expect_err("it never ends");
            });
        };
        keep(60_000, 100);
        assert_eq!(signs(), 0);
        keep(10, 1000);
        assert!(signs() > 1, "{}", signs());
        let before = signs();
        std::fs::remove_file(bench.repository().join(archive.names.intent(id.as_str()))).unwrap();
        std::fs::remove_dir_all(bench.repository().join(archive.names.root()).join("alive")).unwrap();
        keep(10, 300);
        assert_eq!(signs(), 0, "there were {before}");
    }
}
