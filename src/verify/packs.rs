//! Packs: listed with the length that maps say; deep: every frame opened, and what the contents list says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::backups::Shelf;
use super::census::{self, Census, Pack};
use super::look::{Look, Trouble};
use super::report::{self, BadPage, LeftOver, LeftOverOf};
use super::{Flaw, Stage};
use crate::archive::Archive;
use crate::error::{Context, Result};
use crate::pg::data_page::{self, PAGE, PageState, RelationFile};
use crate::pg::{Lsn, TimelineId};
use crate::repo::Listed;
use crate::seal::content::BackupId;
use crate::seal::content::contents::{Contents, Piece, Unit};
use crate::seal::content::manifest as seen;
use crate::seal::header::{KeyClass, ObjectKind};
use crate::seal::opener::Opener;
use crate::seal::page_hash::{CHUNK, PageHash, PageHasher};

/// Folders listed side by side.
const LISTINGS: usize = 8;
const EXPECTED: &str = "a pack that maps name";

/// Packs that do not open.
pub type Bad = BTreeSet<(BackupId, u32)>;

/// Compares the census with what is listed; counts what nothing refers to.
pub async fn listed(look: &Look<'_>, shelf: &Shelf, census: &Census, present: BTreeSet<BackupId>) -> Result<LeftOver> {
    let of = present.into_iter().chain(census.packs.keys().cloned()).collect::<BTreeSet<_>>();
    let lists = of.into_iter().map(|id| one(look, shelf, census, id));
    let found: Vec<LeftOverOf> = stream::iter(lists).buffered(LISTINGS).try_collect().await?;
    let mut left_over = LeftOver::default();
    for one in found.into_iter().filter(|one| one.objects > 0) {
        left_over.objects += one.objects;
        left_over.bytes += one.bytes;
        if left_over.backups.len() < report::LEFT_OVER {
            left_over.backups.push(one);
        }
    }
    Ok(left_over)
}

/// Backups of which there is any object beside the manifest; none where one backup alone is looked at.
pub async fn present(look: &Look<'_>) -> Result<BTreeSet<BackupId>> {
    let mut ids = BTreeSet::new();
    let root = look.archive.names.root();
    if look.options.only.is_none() {
        for folder in ["packs", "maps", "manifests"] {
            let prefix = format!("{root}/{folder}");
            let found = look.patiently(|| look.archive.repo.folders(&prefix)).await;
            ids.extend(found.context(format!("cannot list {folder}"))?);
        }
        let prefix = format!("{root}/intents");
        let intents = look.patiently(|| look.archive.repo.list(&prefix)).await.context("cannot list intents")?;
        ids.extend(intents.iter().filter_map(|entry| entry.name.rsplit('/').next()).map(str::to_owned));
    }
    Ok(ids.into_iter().filter_map(|id| BackupId::parse(&id).ok()).collect())
}

/// The objects of one backup.
async fn one(look: &Look<'_>, shelf: &Shelf, census: &Census, id: BackupId) -> Result<LeftOverOf> {
    let root = look.archive.names.root();
    let list = async |folder: &str| -> Result<BTreeMap<u32, Listed>> {
        let prefix = format!("{root}/{folder}/{id}");
        let entries = look.patiently(|| look.archive.repo.list(&prefix)).await;
        let entries = entries.context(format!("cannot list {folder} of {id}"))?;
        let number = |entry: &Listed| entry.name.strip_prefix(&prefix)?.strip_prefix('/')?.parse().ok();
        Ok(entries.into_iter().filter_map(|entry| Some((number(&entry)?, entry))).collect())
    };
    let packs = list("packs").await?;
    let named = census.packs.get(&id);
    for (number, pack) in named.into_iter().flatten() {
        let name = look.archive.names.pack(id.as_str(), *number);
        let trouble = match packs.get(number) {
            None => Some(Trouble::missing()),
            Some(found) if found.size != pack.len => Some(Trouble::damaged(format!("{} bytes", found.size))),
            Some(_) => None,
        };
        // One that maps name and that no backup takes a byte from any more hurts nobody; but nothing of ours deletes it.
        match trouble {
            Some(trouble) => {
                let expected = format!("{EXPECTED}, of {} bytes", pack.len);
                look.blame(&name, &expected, trouble, shelf.names(&pack.needed));
            }
            None => look.count(|checked| checked.packs += u64::from(!look.options.deep)),
        }
    }
    let mut left = LeftOverOf { id: id.to_string(), ..LeftOverOf::default() };
    if look.options.only.is_some() || shelf.unread.contains(id.as_str()) {
        return Ok(left);
    }
    left.given_up = shelf.given_up.contains(id.as_str());
    let complete = shelf.number(id.as_str()).and_then(|number| shelf.manifests.get(number));
    let maps = shelf.manifests.iter().flat_map(|manifest| &manifest.maps).filter(|map| map.backup == id);
    let map_parts = maps.map(|map| map.parts).max().unwrap_or(0);
    let manifest_parts = complete.and_then(|m| m.server_manifest.as_ref()).map_or(0, |stored| stored.parts);
    let mut leave = |objects: BTreeMap<u32, Listed>, used: &dyn Fn(u32) -> bool| {
        for (_, entry) in objects.into_iter().filter(|(number, _)| !used(*number)) {
            left.objects += 1;
            left.bytes += entry.size;
        }
    };
    leave(packs, &|number| named.is_some_and(|named| named.contains_key(&number)));
    leave(list("maps").await?, &|number| number < map_parts);
    leave(list("manifests").await?, &|number| number < manifest_parts);
    if complete.is_none() {
        let name = look.archive.names.intent(id.as_str());
        if let Some(intent) = look.patiently(|| look.archive.repo.head(&name)).await? {
            left.objects += 1;
            left.bytes += intent.size;
        }
    }
    Ok(left)
}

/// What one pack told.
#[derive(Default)]
struct Facts {
    pages: u64,
    good: u64,
    newer: u64,
    torn: u64,
    bad: u64,
    named: Vec<(String, u64)>,
}

impl Facts {
    /// A page whose checksum is wrong, and that nobody could have been writing meanwhile, unless its backup says so.
    fn wrong(&mut self, piece: &Piece, page: u64, judge: &Judge) {
        match judge.torn.contains(&(piece.path.clone(), page)) {
            true => self.torn += 1,
            false => self.bad(piece, page),
        }
    }

    fn bad(&mut self, piece: &Piece, page: u64) {
        self.bad += 1;
        if self.named.len() < report::BAD_PAGES {
            self.named.push((String::from_utf8_lossy(&piece.path).into_owned(), page));
        }
    }
}

/// Opens every pack, frame by frame; those that are not what maps and their own lists say.
pub async fn open_all(look: &Look<'_>, shelf: &Shelf, census: &Census) -> Bad {
    let total = census.iter().map(|(_, _, pack)| pack.len).sum();
    let done = AtomicU64::new(0);
    let open = |(id, number, pack): (&BackupId, u32, &Pack)| {
        let (id, pack) = (id.clone(), pack.clone());
        let done = &done;
        async move {
            let good = open_one(look, shelf, &id, number, &pack).await;
            look.tell(Stage::Packs, done.fetch_add(pack.len, Ordering::Relaxed) + pack.len, total);
            (!good).then_some((id, number))
        }
    };
    let mut opened = stream::iter(census.iter().map(open)).buffer_unordered(look.options.jobs.max(1));
    let mut bad = Bad::new();
    while let Some(one) = opened.next().await {
        bad.extend(one);
    }
    bad
}

async fn open_one(look: &Look<'_>, shelf: &Shelf, id: &BackupId, number: u32, pack: &Pack) -> bool {
    let name = look.archive.names.pack(id.as_str(), number);
    let judge = judge_from(shelf, id, pack);
    let (archive, of, known) = (look.archive.clone(), id.clone(), Arc::new(pack.clone()));
    let open = move |bytes: Bytes| examine(&archive, &bytes, &of, number, &known, judge.as_ref());
    let trouble = match look.object(&name, KeyClass::Content, open).await {
        Ok(facts) => {
            look.count(|checked| {
                checked.packs += 1;
                checked.pages += facts.pages;
                checked.pages_good += facts.good;
                checked.pages_newer += facts.newer;
                checked.pages_torn += facts.torn;
                checked.pages_bad += facts.bad;
            });
            for (path, page) in facts.named {
                look.bad_page(BadPage { backup: id.to_string(), path, page });
            }
            return true;
        }
        Err(trouble) => trouble,
    };
    // That it is not listed has been noted.
    if trouble.flaw != Flaw::Missing {
        look.blame(&name, EXPECTED, trouble, shelf.names(&pack.needed));
    }
    false
}

/// By what pages are judged.
#[derive(Clone)]
struct Judge {
    /// Younger pages may have been written while they were read,
    start: Lsn,
    /// and none can be younger than that.
    stop: Lsn,
    per_segment: u32,
    /// Pages, by path and number in the file, that the WAL of the backup which stored them replaces.
    torn: Arc<BTreeSet<(Vec<u8>, u64)>>,
}

/// `None`: the cluster has no page checksums, as far as manifests tell. Of a backup whose manifest is gone a later one tells, which ended later.
fn judge_from(shelf: &Shelf, id: &BackupId, pack: &Pack) -> Option<Judge> {
    let own = shelf.number(id.as_str());
    let told = own.or_else(|| pack.named.iter().next()).and_then(|number| shelf.manifests.get(number))?;
    let torn = Arc::new(own.map_or_else(BTreeSet::new, |own| torn(shelf, own)));
    let judge = Judge { start: id.start(), stop: told.stop, per_segment: told.control.relation_segment_pages, torn };
    (told.control.data_checksum_version > 0).then_some(judge)
}

/// Pages that a backup names as torn. Recovery from it replaces them; that of another backup, which names such a page as bad, does not.
fn torn(shelf: &Shelf, own: usize) -> BTreeSet<(Vec<u8>, u64)> {
    let page = |page: &seen::BadPage| (page.path.0.clone(), page.page);
    let mut torn: BTreeSet<_> = shelf.manifests.get(own).into_iter().flat_map(|m| &m.torn_pages).map(page).collect();
    if !torn.is_empty() {
        shelf.manifests.iter().flat_map(|m| &m.bad_pages).for_each(|bad| _ = torn.remove(&page(bad)));
    }
    torn
}

/// Opens a pack whole and compares it with what maps say of it and what its own contents list says. Blocks.
fn examine(
    archive: &Archive,
    object: &[u8],
    id: &BackupId,
    number: u32,
    known: &Pack,
    judge: Option<&Judge>,
) -> Result<Facts, Trouble> {
    let claims = archive.claims(ObjectKind::Pack, TimelineId(0), Lsn(u64::from(number)));
    let opener = Opener::new(object, &claims, archive.keys.as_ref(), true)?;
    let mut plain = Vec::new();
    let list = opener.whole(object, &mut plain)?;
    let places = opener.places(object)?;
    let contents = Contents::decode(&list, id, number)?;
    let header = object.get(..opener.preamble_len()).unwrap_or_default();
    if census::mark(archive.keys.secret(), header, &places) != known.mark || object.len() as u64 != known.len {
        return Err(Trouble::damaged("a whole pack of these keys, but another one than the maps describe"));
    }
    if contents.frames.len() + 1 != places.len() {
        let (listed, there) = (contents.frames.len(), places.len().saturating_sub(1));
        return Err(Trouble::damaged(format!("its contents list tells of {listed} frames, it has {there}")));
    }
    let hasher = PageHasher::new(archive.keys.secret());
    let mut facts = Facts::default();
    let mut at = 0usize;
    for (index, (pieces, place)) in contents.frames.iter().zip(places.iter().skip(1)).enumerate() {
        let frame = plain.get(at..at + place.plain_len as usize).unwrap_or_default();
        at += frame.len();
        let rest = pieces.iter().try_fold(frame, |rest, piece| look_at(piece, rest, &hasher, judge, &mut facts));
        let rest = rest.map_err(|problem| Trouble::damaged(format!("frame {}: {problem}", index + 1)))?;
        if !rest.is_empty() {
            let (left, frame) = (rest.len(), index + 1);
            let text = format!("its contents list does not tell of the last {left} bytes of frame {frame}");
            return Err(Trouble::damaged(text));
        }
    }
    Ok(facts)
}

/// Takes a piece off the front of what is left of its frame, compares it with its hashes, and counts page checksums.
fn look_at<'a>(
    piece: &Piece,
    rest: &'a [u8],
    hasher: &PageHasher,
    judge: Option<&Judge>,
    facts: &mut Facts,
) -> Result<&'a [u8], String> {
    let shown = || String::from_utf8_lossy(&piece.path).into_owned();
    let len = piece.count.checked_mul(piece.unit.bytes()).and_then(|len| usize::try_from(len).ok());
    let (own, rest) = len
        .and_then(|len| rest.split_at_checked(len))
        .ok_or_else(|| format!("its contents list tells of more of {:?} than it has", shown()))?;
    let hash = |chunk: &[u8]| if data_page::is_zero(chunk) { PageHash::ZERO } else { hasher.hash(chunk) };
    let fits = |(chunk, expected): (&[u8], &PageHash)| hash(chunk) == *expected;
    if own.chunks(CHUNK).len() != piece.hashes.len() || !own.chunks(CHUNK).zip(&piece.hashes).all(fits) {
        return Err(format!(
            "the bytes at {} of {:?} are not those that its contents list has the hash of",
            piece.first * piece.unit.bytes(),
            shown()
        ));
    }
    let relation = RelationFile::from_path(&piece.path);
    // A relation's file that ends within a page is stored as bytes, and has pages all the same.
    if piece.unit == Unit::Bytes && relation.is_none() {
        return Ok(rest);
    }
    let (pages, cut) = own.as_chunks::<PAGE>();
    facts.pages += pages.len() as u64;
    let (Some(relation), Some(judge)) = (relation, judge) else { return Ok(rest) };
    let first = piece.first * piece.unit.bytes() / PAGE as u64;
    for (number, page) in (first..).zip(pages) {
        let block = u64::from(relation.segment) * u64::from(judge.per_segment) + number;
        match data_page::judge(page, block as u32, judge.start) {
            PageState::Good | PageState::Zero => facts.good += 1,
            PageState::Newer => facts.newer += 1,
            PageState::Torn(lsn) if lsn <= judge.stop => facts.newer += 1,
            PageState::Torn(_) | PageState::Bad { .. } => facts.wrong(piece, number, judge),
        }
    }
    if !cut.is_empty() {
        facts.bad(piece, first + pages.len() as u64);
    }
    Ok(rest)
}
