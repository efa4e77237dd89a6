//! How much is stored, of what, for whom, and how it grows.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::backups::{self, Shelf};
use super::census::Census;
use super::look::Look;
use super::maps::{self, Parts};
use super::{Options, Problem};
use crate::archive::Archive;
use crate::archive::backups::by_position;
use crate::error::{Context, Result};
use crate::repo::Listed;
use crate::seal::content::map::{File, Source};
use crate::seal::content::{BackupId, rfc3339};

/// Bytes that are counted as one when live ones are told from dead ones.
const BLOCK: u64 = 8192;
/// Blocks in a frame.
const FRAME_BLOCKS: u64 = 32;
const DAY: f64 = 86_400.0;

/// Objects of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Class {
    pub objects: u64,
    pub bytes: u64,
}

/// By kind of object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Classes {
    pub packs: Class,
    pub maps: Class,
    pub wal: Class,
    pub tails: Class,
    /// Ours and PostgreSQL's.
    pub manifests: Class,
    pub other: Class,
}

/// One backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Share {
    pub id: String,
    pub stopped_at: String,
    /// What it put into the repository when it was taken.
    pub stored_bytes: u64,
    /// What would come back if this one alone were deleted: packs and maps that no other backup names, and its manifests. WAL is not counted.
    pub alone_bytes: u64,
}

/// What was stored on one day (UTC, by the store's times) and is still there, whoever needs it now. All days together are all bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Day {
    pub day: String,
    /// Complete ones that are still there, by the day on which their copy ended.
    pub backups: u64,
    pub backup_bytes: u64,
    /// With tails.
    pub wal_bytes: u64,
    pub other_bytes: u64,
}

/// What to expect, if it goes on like this and nothing is deleted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// From so many days it is told.
    pub basis_days: f64,
    pub bytes_per_day: u64,
    pub bytes_in_30_days: u64,
    pub bytes_in_90_days: u64,
}

/// The whole picture of one cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    pub version: u32,
    pub cluster: String,
    pub bytes: u64,
    pub objects: u64,
    pub classes: Classes,
    pub backups: Vec<Share>,
    /// File bytes in all packs that maps name, before compression.
    pub pack_bytes: u64,
    /// Of these, what at least one backup needs; null where maps cannot be read.
    pub live_bytes: Option<u64>,
    /// The part of `pack_bytes` that no backup needs, 0 to 1.
    pub dead_share: Option<f64>,
    /// Of the packs that the newest backup needs the part that it does not need itself, 0 to 1, whether others need it or not. This decides when a backup stores
    /// survivors anew; null: there is no backup.
    pub newest_dead_share: Option<f64>,
    /// Oldest first.
    pub days: Vec<Day>,
    /// Null: there is less than a day to tell it from.
    pub forecast: Option<Forecast>,
    /// What could not be read, so that figures are incomplete.
    pub problems: Vec<Problem>,
}

impl Stats {
    pub const VERSION: u32 = 1;
}

/// Lists everything of the cluster and reads all manifests and maps.
pub async fn stats(archive: &Archive, options: &Options) -> Result<Stats> {
    let look = Look::new(archive, options);
    let root = archive.names.root();
    let listed = look.patiently(|| archive.repo.list(&root)).await.context("cannot list the cluster")?;
    let classes = classes(&listed, &root);
    let shelf = backups::shelf(&look).await?;
    let census = maps::walk(&look, &shelf).await;
    let pack_bytes: u64 = census.iter().map(|(_, _, pack)| pack.plain).sum();
    // Blocks at both ends of a piece count whole.
    let live_bytes = live(&look, &shelf).await.map(|live| live.min(pack_bytes));
    let dead_share = live_bytes.filter(|_| pack_bytes > 0).map(|live| 1.0 - live as f64 / pack_bytes as f64);
    let days = days(&listed, &root, &shelf);
    let all = [&classes.packs, &classes.maps, &classes.wal, &classes.tails, &classes.manifests, &classes.other];
    Ok(Stats {
        version: Stats::VERSION,
        cluster: archive.names.cluster.clone(),
        bytes: all.iter().map(|class| class.bytes).sum(),
        objects: all.iter().map(|class| class.objects).sum(),
        backups: shares(&listed, &root, &shelf, &census),
        pack_bytes,
        live_bytes,
        dead_share,
        newest_dead_share: newest_dead_share(&shelf),
        forecast: forecast(&listed, &root, &shelf, all.iter().map(|class| class.bytes).sum()),
        days,
        classes,
        problems: look.problems(),
    })
}

/// The folder below the cluster that an object stands in.
fn class_of<'n>(name: &'n str, root: &str) -> &'n str {
    let rest = name.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
    rest.split('/').next().unwrap_or_default()
}

fn classes(listed: &[Listed], root: &str) -> Classes {
    let mut classes = Classes::default();
    for entry in listed {
        let class = match class_of(&entry.name, root) {
            "packs" => &mut classes.packs,
            "maps" => &mut classes.maps,
            "wal" => &mut classes.wal,
            "tail" => &mut classes.tails,
            "backups" | "manifests" => &mut classes.manifests,
            _ => &mut classes.other,
        };
        class.objects += 1;
        class.bytes += entry.size;
    }
    classes
}

fn shares(listed: &[Listed], root: &str, shelf: &Shelf, census: &Census) -> Vec<Share> {
    let mut alone = vec![0u64; shelf.manifests.len()];
    let mut add = |number: usize, bytes: u64| {
        if let Some(sum) = alone.get_mut(number) {
            *sum += bytes;
        }
    };
    for (_, _, pack) in census.iter().filter(|(_, _, pack)| pack.named.count() == 1) {
        pack.named.iter().for_each(|number| add(number, pack.len));
    }
    // Folders of one backup: of its manifests, and of maps, which others may name.
    let mut namers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (number, manifest) in shelf.manifests.iter().enumerate() {
        for map in &manifest.maps {
            namers.entry(map.backup.as_str()).or_default().push(number);
        }
    }
    for entry in listed {
        let rest = entry.name.strip_prefix(root).unwrap_or_default();
        let mut parts = rest.trim_start_matches('/').split('/');
        let (Some(folder), Some(id)) = (parts.next(), parts.next()) else { continue };
        match (folder, namers.get(id).map(Vec::as_slice), shelf.number(id)) {
            ("maps", Some([only]), _) => add(*only, entry.size),
            ("backups" | "manifests" | "intents" | "alive", _, Some(own)) => add(own, entry.size),
            _ => {}
        }
    }
    let share = |(manifest, alone_bytes): (&crate::seal::content::manifest::Manifest, u64)| Share {
        id: manifest.id.to_string(),
        stopped_at: rfc3339(manifest.stopped_at),
        stored_bytes: manifest.sizes.stored,
        alone_bytes,
    };
    shelf.manifests.iter().zip(alone).map(share).collect()
}

/// File bytes in packs that at least one backup needs, in blocks of 8 KiB; `None` where the maps of one do not tell.
async fn live(look: &Look<'_>, shelf: &Shelf) -> Option<u64> {
    let mut blocks: HashMap<(BackupId, u32), Vec<u64>> = HashMap::new();
    let mut parts = Parts::default();
    for manifest in &shelf.manifests {
        let mut mark = |file: &File| mark(file, &mut blocks);
        maps::resolve(look, manifest, &mut parts, &mut mark).await.ok()?;
    }
    Some(blocks.values().flatten().map(|word| u64::from(word.count_ones()) * BLOCK).sum())
}

fn mark(file: &File, blocks: &mut HashMap<(BackupId, u32), Vec<u64>>) {
    let Some(unit) = file.kind.unit() else { return };
    for run in &file.runs {
        let Source::Pack { pack, frame, offset } = &run.source else { continue };
        let bits = blocks.entry((pack.backup.clone(), pack.number)).or_default();
        let begin = u64::from(*offset);
        let end = begin + run.count * unit.bytes();
        for block in begin / BLOCK..end.div_ceil(BLOCK) {
            let bit = u64::from(*frame) * FRAME_BLOCKS + block;
            let word = (bit / 64) as usize;
            if bits.len() <= word {
                bits.resize(word + 1, 0);
            }
            if let Some(word) = bits.get_mut(word) {
                *word |= 1 << (bit % 64);
            }
        }
    }
}

fn newest_dead_share(shelf: &Shelf) -> Option<f64> {
    let sizes = &shelf.manifests.iter().max_by(|a, b| by_position(a, b))?.sizes;
    Some(if sizes.carried == 0 { 0.0 } else { sizes.dead() as f64 / sizes.carried as f64 })
}

fn day_of(moment: Timestamp) -> String {
    moment.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d").to_string()
}

/// What an object was stored for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Backups,
    Wal,
    Other,
}

fn stored_for(name: &str, root: &str) -> For {
    match class_of(name, root) {
        "packs" | "maps" | "backups" | "manifests" | "intents" | "alive" => For::Backups,
        "wal" | "tail" => For::Wal,
        _ => For::Other,
    }
}

fn days(listed: &[Listed], root: &str, shelf: &Shelf) -> Vec<Day> {
    let mut days: BTreeMap<String, Day> = BTreeMap::new();
    let mut of = |moment: Timestamp, add: &dyn Fn(&mut Day)| {
        let day = day_of(moment);
        add(days.entry(day.clone()).or_insert_with(|| Day { day, ..Day::default() }));
    };
    for entry in listed {
        // A time that no calendar has: better on some day than on none.
        of(Timestamp::try_from(entry.modified).unwrap_or_default(), &|day| match stored_for(&entry.name, root) {
            For::Backups => day.backup_bytes += entry.size,
            For::Wal => day.wal_bytes += entry.size,
            For::Other => day.other_bytes += entry.size,
        });
    }
    for manifest in &shelf.manifests {
        of(manifest.stopped_at, &|day| day.backups += 1);
    }
    days.into_values().collect()
}

/// Growth from the end of the oldest backup, which is the state that it grows from, to the newest object. What was stored since counts, whether its own backup
/// is still there or not.
fn forecast(listed: &[Listed], root: &str, shelf: &Shelf, bytes: u64) -> Option<Forecast> {
    let oldest = shelf.manifests.iter().min_by_key(|manifest| manifest.stopped_at)?;
    let from = oldest.stopped_at;
    let own = |name: &str| {
        let rest = name.strip_prefix(root).unwrap_or_default().trim_start_matches('/');
        rest.split('/').nth(1) == Some(oldest.id.as_str())
    };
    let (mut added, mut basis_days) = (0u64, 0f64);
    for entry in listed.iter().filter(|entry| stored_for(&entry.name, root) != For::Other && !own(&entry.name)) {
        let Ok(moment) = Timestamp::try_from(entry.modified) else { continue };
        if moment > from {
            added += entry.size;
            basis_days = basis_days.max(moment.duration_since(from).as_secs_f64() / DAY);
        }
    }
    if basis_days < 1.0 {
        return None;
    }
    let per_day = added as f64 / basis_days;
    let later = |days: f64| bytes + (per_day * days) as u64;
    Some(Forecast {
        basis_days,
        bytes_per_day: per_day as u64,
        bytes_in_30_days: later(30.0),
        bytes_in_90_days: later(90.0),
    })
}
