//! `walrecv show ID`: one backup, and what can be restored from it.

use serde_json::{Value, json};

use super::args::{Common, ShowArgs};
use super::context::Context;
use super::{list, output, target};
use crate::archive::Archive;
use crate::archive::verdicts::{Found, Noted};
use crate::error::{Context as _, Error, Kind, Result};
use crate::pg::data_page;
use crate::restore::stock;
use crate::seal::content::BackupId;
use crate::seal::content::manifest::{Backup, BadPage, Manifest, Tombstone, Transfer};

/// What a bad page is known to be.
pub(super) const BAD_PAGES: &str = "wrong checksums when they were read (damaged on the server, or being written)";

/// Of pages that looked bad and are not, if there are any.
pub(super) fn torn(manifest: &Manifest) -> Option<String> {
    let torn = manifest.torn_pages.len();
    (torn > 0)
        .then(|| format!("{torn}: torn while they were read, or damaged then; the WAL of the backup replaces them"))
}

/// Candidates that are named where a beginning is not unique.
const NAMED: usize = 4;

pub async fn run(common: &Common, args: &ShowArgs) -> Result<()> {
    let context = Context::open(common).await?;
    let (ring, unread) = context.ring_at_hand().await?;
    let archive = context.archive(ring).await?;
    let id = choose(&archive, &args.backup).await?;
    let manifest = match archive.backup(&id).await? {
        Some(Backup::Complete(manifest)) => *manifest,
        Some(Backup::GivenUp(tombstone)) => return Err(none_any_more(&tombstone)),
        None => return Err(unknown(id.as_str())),
    };
    let verdicts = archive.verdicts().await?;
    let window = list::window_of(&context, &archive, manifest).await?;
    let last = verdicts.of(id.as_str());
    match common.output {
        output::Format::Json => {
            let mut value = list::window_json(&window);
            details(&mut value, &window.manifest);
            value["open_segment_read"] = unread.is_none().into();
            value["last_verified"] = last.map_or(Value::Null, check_json);
            output::json(&value);
        }
        output::Format::Text => {
            text(&window);
            unread.into_iter().for_each(|unread| row("", unread.text()));
            row("verified", last.map_or("never".to_owned(), check_text));
        }
    }
    Ok(())
}

/// The backup that is meant: an id, a beginning that no other id has, or `latest`.
pub async fn choose(archive: &Archive, text: &str) -> Result<BackupId> {
    if text == "latest" {
        let newest = archive.newest_backup().await?;
        if newest.is_none()
            && let Some(error) = stock::lost(archive).await?
        {
            return Err(error);
        }
        return newest.map(|manifest| manifest.id).ok_or_else(|| {
            Error::new(Kind::Usage, "there is no complete backup").hint("take one with `walrecv backup`")
        });
    }
    let prefix = format!("{}/backups", archive.names.root());
    let listed = archive.repo.list(&prefix).await.context("cannot list the backups")?;
    let names = listed.iter().filter_map(|entry| entry.name.rsplit('/').next());
    let mut found: Vec<BackupId> =
        names.filter(|name| name.starts_with(text)).filter_map(|name| BackupId::parse(name).ok()).collect();
    found.sort_unstable();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(no_such(archive, text).await?),
        many => {
            let named: Vec<&str> = many.iter().take(NAMED).map(BackupId::as_str).collect();
            let text = format!("{} backups begin with {text:?}: {}", many.len(), named.join(", "));
            Err(Error::new(Kind::Usage, text).hint("give more of the id"))
        }
    }
}

/// The error for what means no backup, with the newest of those that there are.
async fn no_such(archive: &Archive, text: &str) -> Result<Error> {
    let complete = archive.list_backups().await?.complete;
    if complete.is_empty()
        && let Some(error) = stock::lost(archive).await?
    {
        return Ok(error);
    }
    Ok(Error::new(Kind::Usage, format!("there is no backup {text:?}")).hint(which(&complete, text)))
}

/// What is to be given in place of what means no backup.
fn which(complete: &[Manifest], text: &str) -> String {
    let labelled = newest(complete.iter().filter(|manifest| manifest.label == text));
    match (labelled.as_slice(), complete) {
        (_, []) => "no complete backup is stored".to_owned(),
        ([], all) => format!("`walrecv list` shows the backups; the newest are {}", newest(all.iter()).join(", ")),
        ([id], _) => format!("{text:?} is the label of a backup; give its id: {id}"),
        (ids, _) => format!("{text:?} is the label of several backups; give an id: the newest are {}", ids.join(", ")),
    }
}

fn newest<'m>(all: impl DoubleEndedIterator<Item = &'m Manifest>) -> Vec<&'m str> {
    all.rev().take(NAMED).map(|manifest| manifest.id.as_str()).collect()
}

/// As [`choose`], where one may be named: one that is there no more, or never was complete, is told.
pub async fn chosen(archive: &Archive, text: Option<&String>) -> Result<Option<String>> {
    let Some(text) = text else { return Ok(None) };
    let id = choose(archive, text).await?;
    match archive.backup(&id).await {
        Ok(Some(Backup::GivenUp(tombstone))) => Err(none_any_more(&tombstone)),
        // What cannot be read is told by whoever needs it.
        _ => Ok(Some(id.to_string())),
    }
}

/// The error for a backup that was deleted, or never became one.
fn none_any_more(tombstone: &Tombstone) -> Error {
    let Tombstone { id, reason, deleted, .. } = tombstone;
    let at = output::time(tombstone.created_at);
    match deleted {
        true => Error::new(Kind::Usage, format!("backup {id} was deleted at {at}: {reason}"))
            .hint("`walrecv list` shows the backups that there are"),
        false => Error::new(Kind::Usage, format!("backup {id} was given up at {at}, before it was complete: {reason}"))
            .hint("nothing can be restored from it; `walrecv list` shows the backups that there are"),
    }
}

fn unknown(text: &str) -> Error {
    Error::new(Kind::Usage, format!("there is no backup {text:?}")).hint("`walrecv list` shows the backups")
}

/// What is known of a backup, and since which check.
pub fn check_json((noted, found): (&Noted, Found)) -> Value {
    let state = match found {
        Found::Whole => "whole",
        Found::Hurt => "hurt",
        Found::Unknown => "unknown",
    };
    json!({ "at": output::rfc3339(noted.at), "deep": noted.check.deep, "state": state })
}

fn check_text((noted, found): (&Noted, Found)) -> String {
    let state = match found {
        Found::Whole => "whole",
        Found::Hurt => "HURT: something that it needs is missing or damaged",
        Found::Unknown => "could not be read",
    };
    let depth = if noted.check.deep { "deep" } else { "quick" };
    format!("{} ({depth}): {state}", output::time(noted.at))
}

/// What `list` does not tell.
fn details(value: &mut Value, manifest: &Manifest) {
    let sizes = &manifest.sizes;
    let raw = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    value["from_standby"] = manifest.from_standby.into();
    value["checkpoint_lsn"] = manifest.checkpoint.to_string().into();
    value["stop_timeline"] = manifest.stop_timeline.0.into();
    value["zero_bytes"] = sizes.zero.into();
    value["moved_bytes"] = sizes.moved.into();
    value["carried_bytes"] = sizes.carried.into();
    value["survivors_at"] = output::rfc3339(manifest.survivors_at).into();
    value["data_checksums"] = (manifest.control.data_checksum_version > 0).into();
    let spaces = manifest.tablespaces.iter().map(|t| json!({ "oid": t.oid, "location": raw(&t.location.0) }));
    value["tablespaces"] = spaces.collect();
    let maps = manifest
        .maps
        .iter()
        .map(|map| json!({ "backup": map.backup.to_string(), "parts": map.parts, "plain_bytes": map.bytes }));
    value["maps"] = maps.collect();
    let per_segment = manifest.control.relation_segment_pages;
    let named = |page: &BadPage| {
        let (relation, block) = data_page::relation_block(&page.path.0, page.page, per_segment);
        json!({ "path": raw(&page.path.0), "page": page.page, "relation": raw(relation), "block": block })
    };
    value["bad_pages_named"] = manifest.bad_pages.iter().map(named).collect();
    value["torn_pages_named"] = manifest.torn_pages.iter().map(named).collect();
}

/// How it came: all files, or only blocks that changed. Either way it is restored as one whole.
pub fn kind(manifest: &Manifest) -> &'static str {
    match manifest.transfer {
        Transfer::Full => "full",
        Transfer::Incremental => "incr",
    }
}

/// Seconds of the copy: from its start, after the checkpoint, to its end, before the maps are written and WAL is waited for.
pub fn took(manifest: &Manifest) -> f64 {
    manifest.stopped_at.duration_since(manifest.started_at).as_secs_f64().max(0.0)
}

/// The part of the data that this backup stored anew, 0 to 1; 0 for an empty one.
pub fn changed_share(manifest: &Manifest) -> f64 {
    let sizes = &manifest.sizes;
    if sizes.total == 0 { 0.0 } else { (sizes.changed as f64 / sizes.total as f64).min(1.0) }
}

/// What the server sent.
pub(super) fn read(manifest: &Manifest) -> String {
    format!("{} from the server", output::bytes(manifest.sizes.read))
}

/// What was stored anew, before compression.
pub(super) fn changed(manifest: &Manifest) -> String {
    format!("{} ({:.1} %)", output::bytes(manifest.sizes.changed), changed_share(manifest) * 100.0)
}

fn row(name: &str, text: impl AsRef<str>) {
    output::line(format!("{name:<12} {}", text.as_ref()));
}

fn text(window: &list::Window) {
    let manifest = &window.manifest;
    let sizes = &manifest.sizes;
    row("backup", manifest.id.as_str());
    row("label", &manifest.label);
    let standby = if manifest.from_standby { ", taken from a standby" } else { "" };
    let version = manifest.version_num;
    row("server", format!("PostgreSQL {}.{}{standby}", version / 10000, version % 10000));
    row("made by", made_by(manifest));
    let why = manifest.why_full.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    match manifest.transfer {
        Transfer::Full => row("transfer", format!("full{why}")),
        Transfer::Incremental => row("transfer", "incremental: the server sent what had changed"),
    }
    match &manifest.parent {
        Some(parent) => row("compared", format!("with {parent}, whose packs it names; it is whole without it")),
        None => row("compared", "with none: it stored everything itself"),
    }
    row("began", output::time(manifest.started_at));
    row("took", output::seconds(took(manifest)));
    row("data", format!("{} in {}", output::bytes(sizes.total), output::count(sizes.files, "file")));
    row("read", read(manifest));
    row("changed", format!("{}, {} of zeros", changed(manifest), output::bytes(sizes.zero)));
    if sizes.moved > 0 {
        row("", format!("{} of it had not changed: stored anew so that space comes back", output::bytes(sizes.moved)));
    }
    row("stored", format!("{} in {}", output::bytes(sizes.stored), output::count(sizes.packs.into(), "pack")));
    row("WAL", own_wal(manifest));
    for map in &manifest.maps {
        row("map", format!("of {}, {} before compression", map.backup, output::bytes(map.bytes)));
    }
    for space in &manifest.tablespaces {
        row("tablespace", format!("{} at {}", space.oid, String::from_utf8_lossy(&space.location.0)));
    }
    manifest.absences().for_each(|absence| row("FILES ABSENT", absence));
    if manifest.bad_page_count > 0 {
        row("BAD PAGES", format!("{}: {BAD_PAGES}", manifest.bad_page_count));
        for page in manifest.bad_pages.iter().take(10) {
            row("", bad_page(manifest, page));
        }
    }
    if let Some(torn) = torn(manifest) {
        row("torn pages", torn);
    }
    match window.end.filter(|(_, end)| *end >= manifest.stop) {
        Some((timeline, end)) => row("restorable", format!("from {} to {end} (timeline {timeline})", manifest.stop)),
        None => row("restorable", "NO: WAL from its start to its stop is missing"),
    }
    if let Some(time) = window.complete {
        row("commits", format!("complete through {}, as far as is known", target::show(time)));
    }
}

/// The program and the host that took it.
pub(super) fn made_by(manifest: &Manifest) -> String {
    let host = if manifest.host.is_empty() { String::new() } else { format!(" on {}", manifest.host) };
    format!("{}{host}", manifest.made_by)
}

/// The WAL that it cannot be restored without.
pub(super) fn own_wal(manifest: &Manifest) -> String {
    format!("{} to {}, timeline {}", manifest.start, manifest.stop, manifest.stop_timeline)
}

/// A bad page as PostgreSQL names it.
pub(super) fn bad_page(manifest: &Manifest, page: &BadPage) -> String {
    let (relation, block) = data_page::relation_block(&page.path.0, page.page, manifest.control.relation_segment_pages);
    format!("{} block {block}", String::from_utf8_lossy(relation))
}
