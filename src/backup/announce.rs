//! Everyone is told what a backup builds on, and only then it is known whether that may be built on: an expiry sees the intent, or its plan is seen.

use std::future::ready;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::begin::{Begun, Local};
use super::diff::Parent;
use super::orphans::{self, Orphans};
use super::parent::{self, Chosen, Reuse};
use super::upload::Upload;
use crate::archive::Archive;
use crate::error::{Context, Error};
use crate::seal::content::BackupId;
use crate::seal::content::manifest::{Manifest, Transfer};

/// Why a backup that has begun does not become complete.
pub enum Stop {
    Failed(Error),
    /// Its intent could not be stored, and so nothing else was.
    Unannounced(Error),
    /// Why what the server did not send cannot be taken from the parent.
    Lost(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

/// What is to be announced.
pub struct Announcement<'a> {
    pub intent: Upload,
    pub begun: Begun,
    pub reuse: Option<Reuse>,
    /// Interrupted backups whose packs may be used.
    pub dead: &'a [BackupId],
    pub local: &'a Local,
    /// How long one object is tried.
    pub limit: Duration,
}

/// What is received against.
pub struct Base<'a> {
    pub begun: Begun,
    pub parent: Option<Parent>,
    pub orphans: Option<Orphans>,
    /// Before this is there, nothing may be stored: the manifest of the parent, which may be built on.
    pub sure: BoxFuture<'a, Result<Option<Manifest>, Stop>>,
}

impl<'a> Announcement<'a> {
    /// What the server sends is received while the backup is announced, where that comes to be no use only if all of the backup is: of an increment, or where there
    /// is nothing to compare with. Else it may turn out that there is less to compare with, and that is known first.
    pub async fn base(mut self, archive: &'a Archive) -> Result<Base<'a>, Stop> {
        let beside = self.reuse.is_none() || self.begun.transfer == Transfer::Incremental;
        if !beside || !self.dead.is_empty() {
            return self.first(archive).await;
        }
        match self.reuse.take().map(Reuse::ready).transpose() {
            Err(unready) => {
                self.reuse = Some(*unready);
                self.first(archive).await
            }
            Ok(ready) => {
                let (parent, pledge) = ready.unzip();
                let (intent, limit) = (self.intent, self.limit);
                let sure = async move {
                    put(intent, archive, limit).await?;
                    let Some(pledge) = pledge else { return Ok(None) };
                    pledge.look(archive).await?.map(Some).map_err(Stop::Lost)
                };
                Ok(Base { begun: self.begun, parent, orphans: None, sure: sure.boxed() })
            }
        }
    }

    /// Announces, and looks at once. A parent of which the server sent everything may be lost: then everything is stored.
    async fn first(self, archive: &'a Archive) -> Result<Base<'a>, Stop> {
        let Announcement { intent, mut begun, reuse, dead, local, limit } = self;
        put(intent, archive, limit).await?;
        let chosen = match reuse {
            None => None,
            Some(reuse) => match parent::look(archive, reuse, &local.scratch).await? {
                Ok(chosen) => Some(chosen),
                Err(lost) if begun.transfer == Transfer::Incremental => return Err(Stop::Lost(lost)),
                Err(lost) => {
                    begun.why_full = begun.why_full.map(|why| parent::everything(&why, &lost));
                    None
                }
            },
        };
        let survivors = chosen.as_ref().and_then(|chosen| chosen.parent.survivors.as_ref());
        let dead = survivors.map_or_else(|| dead.to_vec(), |survivors| survivors.others(dead));
        let orphans = orphans::usable(archive, &dead, &local.scratch).await;
        let (manifest, parent) = chosen.map(|Chosen { manifest, parent }| (manifest, parent)).unzip();
        Ok(Base { begun, parent, orphans, sure: ready(Ok(manifest)).boxed() })
    }
}

async fn put(intent: Upload, archive: &Archive, limit: Duration) -> Result<(), Stop> {
    let put = intent.put(&archive.repo, limit).await.context("cannot announce the backup");
    put.map(|_| ()).map_err(Stop::Unannounced)
}
