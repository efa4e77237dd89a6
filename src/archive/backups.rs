//! The backups of a cluster: their manifests, and the tombstones of those that were given up.

use std::cmp::Ordering;
use std::time::Duration;

use futures::stream::{self, StreamExt};

use super::{Archive, refused};
use crate::error::{Context, Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::manifest::{Backup, Manifest, Tombstone};
use crate::seal::content::{BackupId, Malformed};
use crate::seal::header::ObjectKind;
use crate::seal::opener::{OpenFailed, open_index, read_header};

/// Manifests read at the same time.
const AT_ONCE: usize = 8;
/// Whoever must know all backups looks again after so long where some could not be read for the moment.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Everything under `backups/`.
#[derive(Debug, Default)]
pub struct BackupList {
    /// Complete backups, oldest first, as [`by_position`] says.
    pub complete: Vec<Manifest>,
    pub given_up: Vec<Tombstone>,
    /// Objects that stand there and cannot be read, with the reason: never hidden, since a backup may be behind each.
    pub unreadable: Vec<(String, Error)>,
}

impl BackupList {
    /// The objects that cannot be read and bear a backup's name.
    pub fn unread(&self) -> impl Iterator<Item = (BackupId, &Error)> {
        self.unreadable.iter().filter_map(|(name, error)| Some((id_in(name)?, error)))
    }
}

fn id_in(name: &str) -> Option<BackupId> {
    BackupId::parse(name.rsplit('/').next().unwrap_or_default()).ok()
}

/// The order of backups by where they end, which no host's clock can change: the newest timeline last, as a restore without a target takes it.
pub fn by_position(a: &Manifest, b: &Manifest) -> Ordering {
    let place = |m: &Manifest| (m.stop_timeline, m.stop, m.start);
    place(a).cmp(&place(b)).then_with(|| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)))
}

impl Archive {
    /// Reads every manifest. Only a failing listing fails the whole.
    pub async fn list_backups(&self) -> Result<BackupList> {
        let prefix = format!("{}/backups", self.names.root());
        let listed = self.repo.list(&prefix).await.context("cannot list the backups")?;
        let read = |name: String| async move {
            let last = name.rsplit('/').next().unwrap_or_default();
            let found = match BackupId::parse(last) {
                Ok(id) => self.backup(&id).await,
                Err(e) => Err(Error::new(Kind::Corrupt, e.to_string())),
            };
            (name, found)
        };
        let mut reading = stream::iter(listed.into_iter().map(|l| read(l.name))).buffer_unordered(AT_ONCE);
        let mut list = BackupList::default();
        while let Some((name, found)) = reading.next().await {
            match found {
                Ok(Some(Backup::Complete(manifest))) => list.complete.push(*manifest),
                Ok(Some(Backup::GivenUp(tombstone))) => list.given_up.push(tombstone),
                // Deleted since it was listed.
                Ok(None) => {}
                Err(error) => list.unreadable.push((name, error)),
            }
        }
        list.complete.sort_by(by_position);
        list.given_up.sort_by(|a, b| a.id.cmp(&b.id));
        list.unreadable.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(list)
    }

    /// The newest complete backup by [`by_position`]. An object that cannot be read may be a newer one: then nobody can tell, and that is the error.
    pub async fn newest_backup(&self) -> Result<Option<Manifest>> {
        let mut list = self.list_backups().await?;
        if list.unread().any(|(_, error)| error.is_transient()) {
            tokio::time::sleep(LOOK_AGAIN).await;
            list = self.list_backups().await?;
        }
        match list.unreadable.into_iter().find(|(name, _)| id_in(name).is_some()) {
            None => Ok(list.complete.pop()),
            Some((name, error)) => Err(error
                .context(format_args!("which backup is the newest is not known, since {name} cannot be read"))
                .hint("name the backup that you mean by its id, as `walrecv list` shows it")),
        }
    }

    /// Part `part` of the map that `backup` wrote, opened. A part that is not there is `Kind::Corrupt`: only what a manifest names is asked for.
    pub async fn map_part(&self, backup: &BackupId, part: u32) -> Result<Vec<u8>> {
        let name = self.names.map(backup.as_str(), part);
        let missing = || Error::new(Kind::Corrupt, format!("{name} is missing, and a backup needs it"));
        let object = self.repo.get(&name).await?.ok_or_else(missing)?;
        let claims = self.claims(ObjectKind::Map, TimelineId(0), Lsn(u64::from(part)));
        open_index(&object, &claims, self.keys.as_ref()).map_err(|failed| refused(&name, failed))
    }

    /// What stands under a backup's name; `None` when the store says that there is nothing.
    pub async fn backup(&self, id: &BackupId) -> Result<Option<Backup>> {
        let name = self.names.backup(id.as_str());
        let Some(object) = self.repo.get(&name).await? else { return Ok(None) };
        self.open_backup(id, &object).map(Some)
    }

    /// What an object says that stands under a backup's name.
    pub fn open_backup(&self, id: &BackupId, object: &[u8]) -> Result<Backup> {
        let name = self.names.backup(id.as_str());
        let refused = |failed: OpenFailed| refused(&name, failed);
        // Which of the two it is, only the object says; its claim is bound into its keys.
        let (header, _) = read_header(object).map_err(refused)?;
        let kind = header.claims.kind;
        let expected = if kind == ObjectKind::Tombstone { kind } else { ObjectKind::Manifest };
        let claims = self.claims(expected, TimelineId(0), Lsn(0));
        let plain = open_index(object, &claims, self.keys.as_ref()).map_err(refused)?;
        let malformed = |bad: Malformed| Error::new(Kind::Corrupt, bad.to_string()).context(&name);
        if expected == ObjectKind::Tombstone {
            return Tombstone::decode(&plain, id).map(Backup::GivenUp).map_err(malformed);
        }
        let manifest = Manifest::decode(&plain, id).map_err(malformed)?;
        self.demand_cluster(&name, &manifest.cluster)?;
        Ok(Backup::Complete(Box::new(manifest)))
    }
}
