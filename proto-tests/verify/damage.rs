//! Every kind of object, damaged in every way: `verify` finds and names it as documented, and no restore gives other bytes than the backup's.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use walrecv::archive::Archive;
use walrecv::error::Kind;
use walrecv::pg::SystemIdentifier;
use walrecv::repo::Repository;
use walrecv::seal::content::event::Outcome;
use walrecv::verify::{Options, Report, State, verify};

use crate::shop::{Shop, put, run};
use crate::support::{Moto, Seed, require_moto, rounds};

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    Removed,
    Truncated,
    Flipped,
    /// With another object of its kind.
    Swapped,
    /// By the object of the same name from another repository.
    Foreign,
    /// By the object of the same kind of another cluster with the same keys.
    OtherCluster,
}

pub const HARMS: [Harm; 6] =
    [Harm::Removed, Harm::Truncated, Harm::Flipped, Harm::Swapped, Harm::Foreign, Harm::OtherCluster];

/// Which check must find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Quick,
    /// The quick one may, the deep one must.
    Deep,
    /// Nobody can, or it does no harm; the reason.
    Nobody(&'static str),
}

/// The last folder, or what stands for the kind of an object.
fn kind(name: &str) -> &'static str {
    let has = |part: &str| name.contains(part);
    match () {
        () if name.ends_with("cluster.json") => "cluster file",
        () if name.ends_with(".history") => "history",
        () if name.ends_with("/summary") => "group summary",
        () if name.ends_with(".partial") => "partial",
        () if has("/wal/") => "segment",
        () if has("/heartbeats/") => "heartbeat",
        () if has("/tail/") => "tail",
        // Of the backup that was given up.
        () if has("/packs/") && has("-0009/") => "left-over",
        () if has("/packs/") => "pack",
        () if has("/maps/") => "map",
        () if has("/intents/") => "intent",
        () if has("/manifests/") => "server manifest",
        () if has("/backups/") => "manifest",
        () if has("/plans/") => "plan",
        () if name.starts_with("events/") => "event",
        () => "other",
    }
}

/// Whether a restore reads objects of this kind.
fn is_restored(kind: &str) -> bool {
    !matches!(kind, "intent" | "plan" | "left-over" | "heartbeat" | "event" | "cluster file" | "group summary")
}

/// The documented table (docs/reference/verify.md).
fn expected(name: &str, harm: Harm) -> Found {
    use Found::*;
    match (kind(name), harm) {
        // The one that another builds on; the newest is named by nothing but checks.
        ("manifest", Harm::Removed) if name.ends_with("-0001") => Quick,
        ("manifest", Harm::Removed) => {
            Nobody("nothing else names the newest backup: its objects become left-overs, which are named")
        }
        ("intent" | "plan" | "event" | "heartbeat" | "group summary", Harm::Removed) => {
            Nobody("nothing says that there was one")
        }
        ("left-over", _) => Nobody("nothing needs it"),
        // Before a later piece, or before the position of a heartbeat.
        ("tail", Harm::Removed) => Quick,
        ("partial", Harm::Removed) => Nobody("WAL that ends earlier is no hole"),
        ("event", Harm::OtherCluster) => Nobody("events of all clusters stand in one folder"),
        ("pack", Harm::Removed | Harm::Truncated) | ("segment", Harm::Removed) => Quick,
        ("pack" | "segment" | "partial", _) => Deep,
        _ => Quick,
    }
}

/// Names and bytes of all objects.
fn everything(repo: &Repository) -> BTreeMap<String, Bytes> {
    let names = run(repo.list("")).expect("a listing");
    names.into_iter().map(|listed| (listed.name.clone(), get(repo, &listed.name))).collect()
}

pub fn get(repo: &Repository, name: &str) -> Bytes {
    run(repo.get(name)).expect("a read").unwrap_or_else(|| panic!("{name} is there"))
}

pub fn replace(repo: &Repository, name: &str, bytes: Bytes) {
    run(repo.delete(name)).expect("a delete");
    put(repo, name, &[bytes]);
}

pub fn check(archive: &Archive, deep: bool) -> Report {
    let options = Options { deep, jobs: 2, patience: Duration::from_millis(50), ..Options::default() };
    run(verify(archive, &options)).unwrap_or_else(|e| panic!("deep {deep}: {e}"))
}

/// The problems, for messages.
pub fn told(report: &Report) -> String {
    let lines = report.problems.iter().map(|p| {
        format!(
            "{:?} {}: expected {}, found {}, hurts {:?}, limits {:?}",
            p.flaw, p.object, p.expected, p.found, p.hurts, p.limits
        )
    });
    format!("{:?}\n{}\n{:?}", report.outcome, lines.collect::<Vec<_>>().join("\n"), report.backups)
}

/// A problem that names the object: itself, the folder of its parts, or (WAL that is gone) its segment.
pub fn names(report: &Report, object: &str) -> bool {
    let leaf = object.rsplit('/').next().unwrap_or_default();
    let folder = object.rsplit_once('/').map_or("", |(folder, _)| folder);
    report.problems.iter().any(|p| p.object == object || p.object == folder || (p.object.contains(leaf) && kind(object) == "segment"))
        // A hole before a piece is told by its segment.
        || (kind(object) == "tail" && report.problems.iter().any(|p| !p.object.is_empty() && folder.ends_with(&p.object)))
}

/// One object of the repository and what becomes of it.
struct Case<'a> {
    name: &'a str,
    harm: Harm,
}

/// Where damaged objects come from.
struct Sources {
    stranger: BTreeMap<String, Bytes>,
    sister: BTreeMap<String, Bytes>,
}

impl Sources {
    fn new(shop: &Shop) -> Sources {
        let stranger = Shop::of_system(shop.archive().names.system);
        let sister = Shop::sister(shop, SystemIdentifier(shop.archive().names.system.0 + 1));
        Sources { stranger: everything(&stranger.archive().repo), sister: everything(&sister.archive().repo) }
    }
}

/// The bytes of another repository's object for this place: of the same name but for random parts, else of the same kind.
fn like(objects: &BTreeMap<String, Bytes>, name: &str) -> Option<Bytes> {
    let leaf = |name: &str| name.splitn(4, '/').nth(3).unwrap_or(name).to_owned();
    let same = objects.iter().find(|(other, _)| leaf(other) == leaf(name));
    same.or_else(|| objects.iter().find(|(other, _)| kind(other) == kind(name))).map(|(_, bytes)| bytes.clone())
}

impl Case<'_> {
    /// Does it; what stood there before, by name. `None`: there is nothing to do it with.
    fn apply(
        &self,
        repo: &Repository,
        all: &BTreeMap<String, Bytes>,
        other: &Sources,
        seed: &mut Seed,
    ) -> Option<Vec<&str>> {
        let own = &all[self.name];
        let changed = match self.harm {
            Harm::Removed => {
                run(repo.delete(self.name)).expect("a delete");
                return Some(vec![self.name]);
            }
            Harm::Truncated => own.slice(..seed.below(own.len() as u64) as usize),
            Harm::Flipped => {
                let mut bytes = own.to_vec();
                let (at, bit) = (seed.below(own.len() as u64) as usize, seed.below(8));
                bytes[at] ^= 1 << bit;
                Bytes::from(bytes)
            }
            Harm::Swapped => return None,
            Harm::Foreign => like(&other.stranger, self.name)?,
            Harm::OtherCluster => like(&other.sister, self.name)?,
        };
        if changed == *own {
            return None;
        }
        replace(repo, self.name, changed);
        Some(vec![self.name])
    }
}

fn swap(repo: &Repository, all: &BTreeMap<String, Bytes>, name: &str, seed: &mut Seed) -> Option<Vec<String>> {
    let mates: Vec<&String> = all.keys().filter(|other| kind(other) == kind(name) && *other != name).collect();
    let mate = mates.get(seed.below(mates.len().max(1) as u64) as usize)?;
    if all[*mate] == all[name] {
        return None;
    }
    replace(repo, name, all[*mate].clone());
    replace(repo, mate, all[name].clone());
    Some(vec![name.to_owned(), (*mate).clone()])
}

/// Looks at the damage with both checks and with restores.
fn judge(shop: &Shop, archive: &Archive, harmed: &[String], harm: Harm, restores: bool) {
    let kind = kind(&harmed[0]);
    let (quick, deep) = (check(archive, false), check(archive, true));
    let what = || format!("{harm:?} {harmed:?}\nquick {}\ndeep {}", told(&quick), told(&deep));
    let found = |report: &Report| report.outcome != Outcome::Ok && harmed.iter().any(|name| names(report, name));
    match expected(&harmed[0], harm) {
        Found::Quick => assert!(found(&quick) && found(&deep), "not found\n{}", what()),
        Found::Deep => assert!(found(&deep), "not found\n{}", what()),
        Found::Nobody(_) => assert_eq!((quick.outcome, deep.outcome), (Outcome::Ok, Outcome::Ok), "{}", what()),
    }
    if kind == "manifest" && harm == Harm::Removed && expected(&harmed[0], harm) != Found::Quick {
        let id = harmed[0].rsplit('/').next().unwrap_or_default();
        assert!(deep.left_over.backups.iter().any(|left| left.id == id), "{}", what());
    }
    for number in (0..shop.backups.len()).filter(|_| restores) {
        let id = shop.backups[number].manifest.id.as_str();
        let verdict = deep.backups.iter().find(|verdict| verdict.id == id);
        let state = verdict.map(|verdict| verdict.state);
        let whole = verdict.is_some_and(|verdict| verdict.state == State::Whole && !verdict.limited);
        match shop.restore(archive, number) {
            Ok(()) => assert!(state.is_some(), "a backup that restores is not known: {}", what()),
            Err(refusal) => {
                assert!(!whole, "called whole, and refused: {refusal}\n{}", what());
                let place = harmed.iter().any(|name| {
                    let leaf = name.rsplit('/').next().unwrap_or_default();
                    refusal.contains(name)
                        || refusal.contains(leaf)
                        || refusal.contains(leaf.split('.').next().unwrap_or(leaf))
                });
                assert!(place || state.is_none() || kind == "segment", "the place is not named: {refusal}\n{}", what());
            }
        }
    }
}

#[test]
fn a_sound_archive_is_whole() {
    let shop = Shop::new();
    for deep in [false, true] {
        let report = check(shop.archive(), deep);
        assert_eq!(report.outcome, Outcome::Ok, "{}", told(&report));
        let states: Vec<_> = report.backups.iter().map(|verdict| (verdict.state, verdict.limited)).collect();
        assert_eq!(states, [(State::Whole, false); 2]);
        let left: Vec<_> = report.left_over.backups.iter().map(|left| (left.id.as_str(), left.given_up)).collect();
        assert_eq!(left, [(shop.given_up.as_str(), true)]);
        let checked = &report.checked;
        let all = (checked.manifests, checked.map_parts, checked.packs, checked.server_manifests, checked.histories);
        assert_eq!(all, (2, 2, 3, 2, 1));
        assert_eq!((checked.wal_objects, checked.tails, checked.group_summaries), (5, 2, 1));
        // Event, two intents, tombstone, plan, heartbeat, cluster file.
        assert_eq!(checked.others, 7);
        if deep {
            assert_eq!((checked.pages, checked.pages_good, checked.pages_bad), (12 + 36 + 3 + 6, 12 + 36 + 3 + 6, 0));
            assert!(checked.wal_records > 50 && checked.runs == 11, "{checked:?}");
        }
        let ranges: Vec<_> = report.wal.iter().map(|range| (range.timeline, range.from.as_str())).collect();
        assert_eq!(ranges, [(1, "0/100000"), (2, "0/300000")], "{:?}", report.wal);
    }
    assert_eq!((shop.restore(shop.archive(), 0), shop.restore(shop.archive(), 1)), (Ok(()), Ok(())));
}

/// All objects, all harms; random places differ from run to run.
#[test]
fn whatever_is_damaged_is_found_named_and_never_restored() {
    let mut seed = Seed::of_run();
    let shop = Shop::new();
    let repo = &shop.archive().repo;
    let other = Sources::new(&shop);
    for _ in 0..rounds(1, 20) {
        let all = everything(repo);
        let (mut done, mut kinds) = (0, BTreeMap::new());
        for name in all.keys().filter(|name| kind(name) != "other") {
            for harm in HARMS {
                let harmed = match harm {
                    Harm::Swapped => swap(repo, &all, name, &mut seed),
                    _ => Case { name, harm }
                        .apply(repo, &all, &other, &mut seed)
                        .map(|names| names.into_iter().map(str::to_owned).collect()),
                };
                let Some(harmed) = harmed else { continue };
                judge(&shop, shop.archive(), &harmed, harm, is_restored(kind(name)));
                for name in harmed {
                    replace(repo, &name, all[&name].clone());
                }
                *kinds.entry(kind(name)).or_insert(0) += 1;
                done += 1;
            }
        }
        assert_eq!(kinds.len(), 15, "{kinds:?}");
        assert!(done > 120, "{done} cases");
        println!("{done} cases of damage: {kinds:?}");
    }
}

/// The same through the S3 protocol, one object of each kind.
#[test]
fn damage_in_a_bucket_is_found_as_well() {
    require_moto!();
    let mut seed = Seed::of_run();
    let shop = Shop::new();
    let moto = Moto::shared();
    let env = moto.env();
    let url = moto.bucket("verify");
    let repo = Repository::open(&url, &|key| env.iter().find(|(name, _)| *name == key).map(|(_, v)| v.clone()));
    let repo = repo.expect("a bucket");
    let all = everything(&shop.archive().repo);
    all.iter().for_each(|(name, bytes)| put(&repo, name, std::slice::from_ref(bytes)));
    let archive = shop.archive_in(repo.clone());
    assert_eq!(check(&archive, true).outcome, Outcome::Ok);
    let other = Sources { stranger: BTreeMap::new(), sister: BTreeMap::new() };
    for wanted in ["pack", "map", "manifest", "server manifest", "segment", "history", "tail"] {
        let names: Vec<&String> = all.keys().filter(|name| kind(name) == wanted).collect();
        let name = names[seed.below(names.len() as u64) as usize];
        for harm in [Harm::Removed, Harm::Flipped] {
            Case { name, harm }.apply(&repo, &all, &other, &mut seed).expect("damage");
            judge(&shop, &archive, std::slice::from_ref(name), harm, harm == Harm::Flipped);
            replace(&repo, name, all[name].clone());
        }
    }
}

#[test]
fn a_wrong_key_is_no_damage() {
    let shop = Shop::new();
    for deep in [false, true] {
        let options = Options { deep, ..Options::default() };
        let error = run(verify(&shop.stranger(), &options)).expect_err("keys of a stranger");
        assert_eq!(error.kind(), Kind::Key, "{error}");
    }
    // The right secret and no identity: enough for the quick check, a wrong key for the deep one.
    let archive = shop.without_identity();
    assert_eq!(check(&archive, false).outcome, Outcome::Ok);
    let options = Options { deep: true, ..Options::default() };
    assert_eq!(run(verify(&archive, &options)).expect_err("no identity").kind(), Kind::Key);
}
