//! Events of a cluster: written once, listed by whoever has to know.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures::stream::{self, StreamExt};
use jiff::Timestamp;

use super::verdicts::{ASKED, Noted, Verdicts};
use super::{Archive, refused};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::repo::{Found, Listed, names};
use crate::seal::content::event::{CorruptWal, Drill, Event, Hole, MinimalWal, Verified, What};
use crate::seal::header::{Claims, ObjectKind};
use crate::seal::key::WriterKeys;
use crate::seal::opener::{OpenFailed, open_index, read_header};
use crate::seal::sealer::{Compression, seal_index};

/// Events read at the same time.
pub(super) const AT_ONCE: usize = 8;
/// Of checks, which may be many, and small.
const CHECKS_AT_ONCE: usize = 32;
/// Bytes of a name up to its second: `events/2026-01/20260131T020000Z`.
const SECOND: usize = 31;

/// The beginning of an event's name.
fn prefix(at: Timestamp, kind: &str) -> String {
    names::event(&at.strftime("%Y-%m").to_string(), &at.strftime("%Y%m%dT%H%M%SZ").to_string(), kind, "")
}

/// Whether it stands under the name that it was put under: under another one it would be looked for in another place, or by others. What a later version calls
/// its kind is not known.
fn is_named(name: &str, event: &Event) -> bool {
    match &event.what {
        What::Unknown => name.get(..SECOND).is_some_and(|second| prefix(event.at, "").starts_with(second)),
        what => name.starts_with(&prefix(event.at, what.name())),
    }
}

fn hole_of(event: Event) -> Option<Hole> {
    match event.what {
        What::Hole(hole) => Some(hole),
        _ => None,
    }
}

impl Archive {
    fn event_claims(&self) -> Claims {
        self.claims(ObjectKind::Event, TimelineId(0), Lsn(0))
    }

    /// Stores what happened, now; it is durable when this returns.
    pub async fn put_event(&self, keys: &WriterKeys, what: What, give_up: Duration) -> Result<()> {
        let at = Timestamp::now();
        let event = Event {
            version: Event::VERSION,
            at,
            cluster: self.names.cluster.clone(),
            system: self.names.system,
            made_by: concat!("walrecv ", env!("CARGO_PKG_VERSION")).to_owned(),
            what,
        };
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
        let token: String = salt[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let name = prefix(at, event.what.name()) + &token;
        let sealed = seal_index(keys, self.event_claims(), salt, Compression::None, &event.encode());
        let judge = move |head: &[u8]| match read_header(head) {
            Ok((header, _)) if header.salt == salt => Found::Ours,
            _ => Found::Different,
        };
        self.repo.put_once(&name, &sealed.bytes, &judge, give_up).await.map(|_| ())
    }

    /// All events of this cluster whose object is named after `kind`, oldest first. One that cannot be opened is an error: it may be a hole.
    pub async fn events(&self, kind: &str) -> Result<Vec<Event>> {
        Ok(self.named_events(kind).await?.into_iter().map(|(_, event)| event).collect())
    }

    async fn named_events(&self, kind: &str) -> Result<Vec<(String, Event)>> {
        let mut events = Vec::new();
        let mut listed = self.repo.list("events").await?;
        listed.retain(|entry| names::event_kind(&entry.name) == Some(kind));
        for entry in listed {
            // Gone since it was listed: expired.
            let Some(object) = self.repo.get(&entry.name).await? else { continue };
            let event = self.open_event(&entry.name, &object)?;
            events.extend(event.map(|event| (entry.name, event)));
        }
        events.sort_by_key(|(_, event)| event.at);
        Ok(events)
    }

    /// All events of a kind, of all clusters, newest first: by the second in the name, which is of the clock of the host that put it, then by the store's time.
    pub(super) async fn event_entries(&self, kind: &str) -> Result<Vec<Listed>> {
        let mut found = self.repo.list("events").await?;
        found.retain(|entry| names::event_kind(&entry.name) == Some(kind));
        let second = |entry: &Listed| entry.name.get(..SECOND).map(str::to_owned);
        found.sort_by_cached_key(|entry| Reverse((second(entry), entry.modified, entry.name.clone())));
        Ok(found)
    }

    pub(super) async fn event_names(&self, kind: &str) -> Result<Vec<String>> {
        Ok(self.event_entries(kind).await?.into_iter().map(|entry| entry.name).collect())
    }

    /// What a check found; `None` where it is gone, another cluster's, or cannot be opened.
    pub(super) async fn check(&self, name: String) -> Result<Option<(Timestamp, Verified)>> {
        Ok(match self.event(&name).await? {
            Some(Event { at, what: What::Verified(check), .. }) => Some((at, check)),
            _ => None,
        })
    }

    /// The backups that expiries noted as deleted. One stays deleted where its tombstone was lost since: no backup of that name ever comes again. An event that
    /// does not open tells nothing.
    pub(super) async fn noted_deleted(&self) -> Result<BTreeSet<String>> {
        let mut deleted = BTreeSet::new();
        for name in self.event_names("expiry").await? {
            if let Some(Event { what: What::Expiry(expired), .. }) = self.event(&name).await? {
                deleted.extend(expired.deleted);
            }
        }
        Ok(deleted)
    }

    /// An event whose loss does no harm; `None` where it is gone, another cluster's, or cannot be opened.
    async fn event(&self, name: &str) -> Result<Option<Event>> {
        let opened = match self.repo.get(name).await {
            Ok(object) => object.map_or(Ok(None), |object| self.open_event(name, &object)),
            Err(error) if error.kind() == Kind::Corrupt => Err(error),
            Err(error) => return Err(error),
        };
        Ok(opened.unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        }))
    }

    /// The newest drill of this archive; one that cannot be opened tells nothing.
    pub async fn last_drill(&self) -> Result<Option<(Timestamp, Drill)>> {
        self.newest_drill(1, &|_| true).await
    }

    /// The newest one that has measured how fast a backup is laid and WAL is replayed, among the newest `most` of this archive.
    pub async fn last_measured(&self, most: usize) -> Result<Option<(Timestamp, Drill)>> {
        self.newest_drill(most, &|drill| drill.measured.is_some()).await
    }

    async fn newest_drill(
        &self,
        most: usize,
        counts: &(dyn Fn(&Drill) -> bool + Sync),
    ) -> Result<Option<(Timestamp, Drill)>> {
        let read = |name: String| async move { self.event(&name).await };
        let mut reading = stream::iter(self.event_names("drill").await?.into_iter().map(read)).buffered(AT_ONCE);
        let mut looked = 0;
        while let Some(found) = reading.next().await {
            let Some(Event { at, what: What::Drill(drill), .. }) = found? else { continue };
            if counts(&drill) {
                return Ok(Some((at, drill)));
            }
            looked += 1;
            if looked >= most {
                break;
            }
        }
        Ok(None)
    }

    /// What checks of this archive have found of its backups: as many are asked as can tell anything, the newest ones, at most [`ASKED`]. One that cannot be opened
    /// tells nothing: what is lost with it is found by the next one.
    pub async fn verdicts(&self) -> Result<Verdicts> {
        let listed = self.event_entries("verified").await?;
        let behind = listed.iter().rev().scan(SystemTime::UNIX_EPOCH, |newest, entry| {
            let before = *newest;
            *newest = before.max(entry.modified);
            Some(before)
        });
        let behind: Vec<SystemTime> = behind.collect::<Vec<_>>().into_iter().rev().collect();
        let read = |(entry, behind): (Listed, SystemTime)| async move {
            let noted = |(at, check)| (Noted { at, stored: entry.modified, check }, behind);
            self.check(entry.name).await.map(|check| check.map(noted))
        };
        let mut reading = stream::iter(listed.into_iter().zip(behind).map(read)).buffered(CHECKS_AT_ONCE);
        let mut verdicts = Verdicts::default();
        while let Some(found) = reading.next().await {
            let Some((noted, behind)) = found? else { continue };
            verdicts.add(noted);
            if verdicts.checks().len() >= ASKED || verdicts.are_final(behind) {
                break;
            }
        }
        Ok(verdicts)
    }

    /// An event of this cluster from its object; `None` for another cluster's.
    pub fn open_event(&self, name: &str, object: &[u8]) -> Result<Option<Event>> {
        match open_index(object, &self.event_claims(), &*self.keys) {
            Ok(content) => {
                let event = Event::decode(&content).map_err(|e| Error::new(Kind::Corrupt, format!("{name}: {e}")))?;
                // Two clusters of one system under two names are two archives.
                if event.cluster != self.names.cluster {
                    return Ok(None);
                }
                match is_named(name, &event) {
                    true => Ok(Some(event)),
                    false => Err(Error::new(
                        Kind::Corrupt,
                        format!("{name}: it is an event {:?} of {}", event.what.name(), event.at),
                    )
                    .hint("Somebody renamed or copied it: restore the object from another copy of the repository.")),
                }
            }
            Err(OpenFailed::Claims { .. }) if self.is_foreign_event(object) => Ok(None),
            Err(problem) => Err(refused(name, problem)),
        }
    }

    /// Whether this is an event of another cluster of the same repository: what is of another repository, or no event, does not belong there.
    fn is_foreign_event(&self, object: &[u8]) -> bool {
        read_header(object).is_ok_and(|(header, _)| {
            header.claims.kind == ObjectKind::Event && header.claims.repository == self.keys.repository()
        })
    }

    /// Where this archive has holes that were given up, in the order in which that happened.
    pub async fn holes(&self) -> Result<Vec<Hole>> {
        Ok(self.events("hole").await?.into_iter().filter_map(hole_of).collect())
    }

    /// The same, known to be durable: for a receiver, which does not ask for what is in them again. An earlier run may have left one before it was.
    pub async fn settled_holes(&self) -> Result<Vec<Hole>> {
        let named = self.named_events("hole").await?;
        for (name, _) in &named {
            self.repo.settle(name).await?;
        }
        Ok(named.into_iter().filter_map(|(_, event)| hole_of(event)).collect())
    }

    /// Where servers of this archive went on under `wal_level = minimal`, in the order in which that was noted, each once.
    pub async fn minimal_wal(&self) -> Result<Vec<MinimalWal>> {
        let mut found = Vec::new();
        for event in self.events("minimal-wal").await? {
            match event.what {
                // Two receivers may have noted the same.
                What::MinimalWal(alarm) if !found.contains(&alarm) => found.push(alarm),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Whether this one is noted, and durable: for a receiver, which goes on because of it.
    pub async fn has_noted(&self, alarm: MinimalWal) -> Result<bool> {
        let named = self.named_events("minimal-wal").await?;
        let Some((name, _)) = named.into_iter().find(|(_, event)| event.what == What::MinimalWal(alarm)) else {
            return Ok(false);
        };
        self.repo.settle(&name).await.map(|()| true)
    }

    /// WAL that a server sent and that failed its checks, with the time at which that was found.
    pub async fn corrupt_wal(&self) -> Result<Vec<(Timestamp, CorruptWal)>> {
        let of = |event: Event| match event.what {
            What::CorruptWal(found) => Some((event.at, found)),
            _ => None,
        };
        Ok(self.events("corrupt-wal").await?.into_iter().filter_map(of).collect())
    }
}
