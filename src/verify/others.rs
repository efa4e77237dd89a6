//! Everything else that is stored: events, intents, plans, heartbeats, the cluster file.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use super::look::{Look, Trouble};
use crate::archive::cluster::check_cluster_file;
use crate::error::{Context, Result};
use crate::pg::{Lsn, TimelineId};
use crate::repo::names::{WalObject, event_kind};
use crate::seal::content::BackupId;
use crate::seal::content::intent::Intent;
use crate::seal::content::plan::{Plan, PlanId};
use crate::seal::header::{KeyClass, ObjectKind};
use crate::seal::opener::open_index;

/// Small objects read side by side.
const AT_ONCE: usize = 8;

/// What kind of object stands under a name.
#[derive(Clone)]
enum Other {
    Event,
    Intent(BackupId),
    Plan(PlanId),
    Heartbeat,
}

pub async fn look(look: &Look<'_>) -> Result<()> {
    cluster_file(look).await;
    let all = everything(look).await?;
    stream::iter(all.into_iter().map(|(name, other)| one(look, name, other)))
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
    Ok(())
}

async fn everything(look: &Look<'_>) -> Result<Vec<(String, Other)>> {
    let root = look.archive.names.root();
    let list = async |prefix: String| -> Result<Vec<String>> {
        let listed = look.patiently(|| look.archive.repo.list(&prefix)).await;
        Ok(listed.context(format!("cannot list {prefix}"))?.into_iter().map(|entry| entry.name).collect())
    };
    let mut all = Vec::new();
    let events = list("events".to_owned()).await?;
    all.extend(events.into_iter().filter(|name| event_kind(name).is_some()).map(|name| (name, Other::Event)));
    for name in list(format!("{root}/intents")).await? {
        let id = BackupId::parse(name.rsplit('/').next().unwrap_or_default());
        all.extend(id.ok().map(|id| (name, Other::Intent(id))));
    }
    for name in list(format!("{root}/plans")).await? {
        let id = PlanId::parse(name.rsplit('/').next().unwrap_or_default());
        all.extend(id.map(|id| (name, Other::Plan(id))));
    }
    for name in list(format!("{root}/tail")).await? {
        if let Some(WalObject::Heartbeat { .. }) = look.archive.parse(&name) {
            all.push((name, Other::Heartbeat));
        }
    }
    Ok(all)
}

async fn one(look: &Look<'_>, name: String, other: Other) {
    let (archive, of, whole_name) = (look.archive.clone(), other.clone(), name.clone());
    let open = move |bytes: Bytes| {
        let index = |kind| open_index(&bytes, &archive.claims(kind, TimelineId(0), Lsn(0)), &*archive.keys);
        let told = |error| Trouble::of(&error, &whole_name);
        match &of {
            Other::Event => archive.open_event(&whole_name, &bytes).map(|_| ()).map_err(told),
            Other::Heartbeat => archive.examine_heartbeat(&whole_name, &bytes).map_err(told),
            Other::Plan(id) => {
                let plan = Plan::decode(&index(ObjectKind::Plan)?, id)?;
                archive.demand_cluster(&whole_name, &plan.cluster).map_err(told)
            }
            Other::Intent(id) => {
                let intent = Intent::decode(&index(ObjectKind::Intent)?, id)?;
                archive.demand_cluster(&whole_name, &intent.cluster).map_err(told)
            }
        }
    };
    let expected = match other {
        Other::Event => "an event: if it tells of a hole, restores stop here until it is back",
        Other::Intent(_) => "the announcement of a backup",
        Other::Plan(_) => "the plan of an expiry",
        Other::Heartbeat => "a heartbeat: without it times after the last commit may be refused",
    };
    match look.object(&name, KeyClass::Index, open).await {
        Ok(()) => look.count(|checked| checked.others += 1),
        // Replaced by a newer one, or expired, since it was listed.
        Err(trouble) if trouble.flaw == super::Flaw::Missing => {}
        Err(trouble) => look.blame(&name, expected, trouble, BTreeSet::new()),
    }
}

async fn cluster_file(look: &Look<'_>) {
    let name = look.archive.names.cluster_file();
    let expected = "the name of the cluster that this folder belongs to";
    let trouble = match look.patient(&name, || check_cluster_file(&look.archive.repo, &look.archive.names)).await {
        Ok(true) => return look.count(|checked| checked.others += 1),
        Ok(false) => Trouble::missing(),
        Err(trouble) => trouble,
    };
    look.blame(&name, expected, trouble, BTreeSet::new());
}
