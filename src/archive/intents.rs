//! Which backups have begun, and what they reuse.

use std::time::SystemTime;

use futures::stream::{self, StreamExt};

use super::{Archive, refused};
use crate::error::{Context, Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::repo::Listed;
use crate::seal::content::intent::Intent;
use crate::seal::content::{BackupId, Malformed};
use crate::seal::header::ObjectKind;
use crate::seal::opener::open_index;

/// Intents read at the same time.
const AT_ONCE: usize = 8;

/// An intent, and when the store took it, by the store's own clock.
#[derive(Clone, Debug)]
pub struct StoredIntent {
    pub intent: Intent,
    pub modified: SystemTime,
}

/// An intent that cannot be read: a backup may be behind it, which reuses no one knows what.
#[derive(Debug)]
pub struct DarkIntent {
    pub id: BackupId,
    pub modified: SystemTime,
    pub error: Error,
}

/// Everything under `intents/`. An intent stays when its backup is complete or given up: what stands under `backups/` decides.
#[derive(Debug, Default)]
pub struct IntentList {
    /// Oldest first.
    pub intents: Vec<StoredIntent>,
    pub unreadable: Vec<DarkIntent>,
}

impl Archive {
    /// Which backups have been announced, and when the store took that: a listing, nothing is opened.
    pub async fn announced(&self) -> Result<Vec<(BackupId, SystemTime)>> {
        let prefix = format!("{}/intents", self.names.root());
        let listed = self.repo.list(&prefix).await.context("cannot list the intents of backups")?;
        let known = |entry: Listed| {
            let id = BackupId::parse(entry.name.rsplit('/').next()?).ok()?;
            (self.names.intent(id.as_str()) == entry.name).then_some((id, entry.modified))
        };
        Ok(listed.into_iter().filter_map(known).collect())
    }

    /// Reads every intent. Only a failing listing fails the whole; names that are no backup's are left out.
    pub async fn list_intents(&self) -> Result<IntentList> {
        let known = self.announced().await?.into_iter();
        let read = |id: BackupId, modified: SystemTime| async move {
            let found = self.intent(&id).await;
            (id, modified, found)
        };
        let mut reading = stream::iter(known.map(|(id, modified)| read(id, modified))).buffer_unordered(AT_ONCE);
        let mut list = IntentList::default();
        while let Some((id, modified, found)) = reading.next().await {
            match found {
                Ok(Some(intent)) => list.intents.push(StoredIntent { intent, modified }),
                // Swept since it was listed: its backup had been given up.
                Ok(None) => {}
                Err(error) => list.unreadable.push(DarkIntent { id, modified, error }),
            }
        }
        list.intents.sort_by(|a, b| a.intent.id.cmp(&b.intent.id));
        list.unreadable.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(list)
    }

    /// The intent of a backup; `None` when the store says that there is none.
    pub async fn intent(&self, id: &BackupId) -> Result<Option<Intent>> {
        let name = self.names.intent(id.as_str());
        let Some(object) = self.repo.get(&name).await? else { return Ok(None) };
        let claims = self.claims(ObjectKind::Intent, TimelineId(0), Lsn(0));
        let plain = open_index(&object, &claims, self.keys.as_ref()).map_err(|failed| refused(&name, failed))?;
        let malformed = |bad: Malformed| Error::new(Kind::Corrupt, bad.to_string()).context(&name);
        let intent = Intent::decode(&plain, id).map_err(malformed)?;
        self.demand_cluster(&name, &intent.cluster).map(|()| Some(intent))
    }

    /// The last thing a backup asks before its manifest: where its intent is gone, it has been given up long ago, so that not even the tombstone
    /// need be there any more.
    pub async fn demand_intent(&self, id: &BackupId) -> Result<()> {
        match self.intent(id).await? {
            Some(_) => Ok(()),
            None => {
                Err(Error::new(Kind::Failed, format!("backup {id} stood still for so long that an expiry gave it up"))
                    .hint("take it again"))
            }
        }
    }
}
