//! What a check must not overlook beside single objects: who can open the repository, the way to a timeline, which backup is meant.

use std::time::Duration;

use bytes::Bytes;
use walrecv::archive::holes::Barrier;
use walrecv::daemon::holes::Last;
use walrecv::error::Kind;
use walrecv::pg::TimelineId;
use walrecv::seal::content::BackupId;
use walrecv::seal::content::event::{Hole, Outcome, Verified, What};
use walrecv::verify::{Options, Report, State, verify};

use crate::damage::{get, names, replace, told};
use crate::shop::{Shop, put, run};
use crate::support::PATIENCE;

/// A store in a folder answers at once, or not at all.
const BRIEF: Duration = Duration::from_millis(50);

fn outcome(report: &Report) -> (Outcome, Vec<State>) {
    (report.outcome, report.backups.iter().map(|verdict| verdict.state).collect())
}

/// Who can open the repository is looked at with the backups, of which each is worth nothing without.
#[test]
fn key_files_are_looked_at() {
    let shop = Shop::new();
    let repo = &shop.archive().repo;
    let identity = Some(shop.shelf.identity().to_owned());
    let verified = |only: Option<BackupId>| {
        let options = Options { only, identity: identity.clone(), patience: BRIEF, ..Options::default() };
        run(verify(shop.archive(), &options)).expect("a report")
    };
    let report = verified(None);
    assert_eq!(outcome(&report), (Outcome::Corrupt, vec![State::Hurt; 2]), "none is there: {}", told(&report));
    let one = verified(Some(shop.backups[0].manifest.id.clone()));
    assert_eq!(outcome(&one), (Outcome::Corrupt, vec![State::Hurt]));

    let (first, file) = shop.shelf.key_file();
    put(repo, &first, std::slice::from_ref(&file));
    let report = verified(None);
    assert_eq!((report.outcome, report.checked.key_files), (Outcome::Ok, 1), "{}", told(&report));
    let line = file.iter().position(|byte| *byte == b'\n').expect("a first line");
    let flipped = |at: usize| {
        let mut bytes = file.to_vec();
        bytes[at] ^= 1;
        Bytes::from(bytes)
    };
    let cut = [file.slice(..file.len() - 1), file.slice(..line), Bytes::new(), Bytes::from_static(b"a key\n")];
    for bad in cut.into_iter().chain([0, line + 1, file.len() / 2, file.len() - 1].map(flipped)) {
        replace(repo, &first, bad);
        let report = verified(None);
        assert_eq!(outcome(&report), (Outcome::Corrupt, vec![State::Hurt; 2]), "{}", told(&report));
        assert!(names(&report, &first), "{}", told(&report));
    }
    // Another recipient can still open it: told, and no backup is lost.
    let (second, file) = shop.shelf.key_file();
    put(repo, &second, &[file]);
    let report = verified(None);
    assert_eq!(outcome(&report), (Outcome::Corrupt, vec![State::Whole; 2]), "{}", told(&report));
}

/// A heartbeat speaks of the same WAL: that is no second loss, and none from the beginning of the timeline.
#[test]
fn a_damaged_tail_is_told_once() {
    let shop = Shop::new();
    let repo = &shop.archive().repo;
    let listed = |part: &str| {
        let names = run(repo.list("")).expect("a listing").into_iter().map(|listed| listed.name);
        names.filter(|name| name.contains(part)).collect::<Vec<_>>()
    };
    let checked = |deep| {
        let options = Options { deep, patience: BRIEF, ..Options::default() };
        run(verify(shop.archive(), &options)).expect("a report")
    };
    let mut pieces = listed(".run1");
    pieces.sort();
    let last = pieces.pop().expect("a piece");
    let mut bytes = get(repo, &last).to_vec();
    *bytes.last_mut().expect("a byte") ^= 1;
    replace(repo, &last, bytes.into());
    for deep in [false, true] {
        let report = checked(deep);
        assert!(report.problems.len() == 1 && names(&report, &last), "{}", told(&report));
    }
    // Nothing else of the timeline is left.
    for name in pieces.into_iter().chain(listed("wal/00000002/")) {
        run(repo.delete(&name)).expect("a delete");
    }
    let report = checked(false);
    assert!(names(&report, &last) && !told(&report).contains(" 0/0 "), "{}", told(&report));
}

/// All WAL of the last timeline is gone, and its history too: the heartbeat is what is left of it.
#[test]
fn a_timeline_that_is_gone_wholly_is_missed() {
    let shop = Shop::new();
    let archive = shop.archive();
    let listed = run(archive.repo.list("")).expect("a listing").into_iter().map(|listed| listed.name);
    let of_two = |name: &String| name.contains("wal/00000002/") || name.contains(".run1");
    let gone: Vec<String> = listed.filter(of_two).collect();
    assert!(gone.len() >= 4, "{gone:?}");
    gone.iter().for_each(|name| run(archive.repo.delete(name)).expect("a delete"));
    let checked = || run(verify(archive, &Options { patience: BRIEF, ..Options::default() })).expect("a report");
    let report = checked();
    assert_eq!(report.outcome, Outcome::Gap, "{}", told(&report));
    let fork =
        run(archive.parsed_history(TimelineId(2))).expect("a read").expect("a history").ancestors[0].switch_point;
    let span = format!("WAL from {fork} to ");
    assert!(told(&report).contains(&span) && told(&report).contains("heartbeat"), "{}", told(&report));
    run(archive.repo.delete(&archive.names.history(TimelineId(2)))).expect("a delete");
    let report = checked();
    assert_eq!(report.outcome, Outcome::Corrupt, "{}", told(&report));
    assert!(names(&report, &archive.names.history(TimelineId(2))), "{}", told(&report));
    assert!(run(archive.inventory()).expect("an inventory").demand_history(TimelineId(2)).is_err());
}

/// A server refuses to recover to a timeline without its history, so a check of one backup alone must miss it too.
#[test]
fn one_backup_is_not_whole_without_the_history_of_its_timeline() {
    let shop = Shop::new();
    let archive = shop.archive();
    let two = TimelineId(2);
    let fork = run(archive.parsed_history(two)).expect("a read").expect("a history").ancestors[0].switch_point;
    // A backup of a standby that was promoted meanwhile.
    let mut manifest = shop.backups[1].manifest.clone();
    manifest.id = BackupId::new(manifest.started_at, manifest.timeline, manifest.start, 0x77);
    (manifest.stop_timeline, manifest.stop, manifest.server_manifest) = (two, fork + 8192, None);
    shop.put_manifest(&manifest);
    let verified = || {
        let options = Options { only: Some(manifest.id.clone()), patience: BRIEF, ..Options::default() };
        run(verify(archive, &options)).expect("a report")
    };
    let sound = verified();
    assert_eq!(outcome(&sound), (Outcome::Ok, vec![State::Whole]), "{}", told(&sound));
    run(archive.repo.delete(&archive.names.history(two))).expect("a delete");
    let harmed = verified();
    assert_eq!(outcome(&harmed), (Outcome::Corrupt, vec![State::Hurt]), "{}", told(&harmed));
    assert!(names(&harmed, &archive.names.history(two)), "{}", told(&harmed));
}

#[test]
fn which_backup_is_the_newest_is_not_guessed() {
    let shop = Shop::new();
    let archive = shop.archive();
    let newest = || run(archive.newest_backup());
    let id = shop.backups[1].manifest.id.clone();
    assert_eq!(newest().expect("all can be read").expect("a backup").id, id);
    let stray = format!("{}/backups/notes.txt", archive.names.root());
    put(&archive.repo, &stray, &[Bytes::from_static(b"no backup")]);
    assert_eq!(newest().expect("a stray file is none").expect("a backup").id, id);
    let name = archive.names.backup(id.as_str());
    let mut bytes = get(&archive.repo, &name).to_vec();
    *bytes.last_mut().expect("bytes") ^= 1;
    replace(&archive.repo, &name, bytes.into());
    let error = newest().expect_err("the older one is not what was asked for");
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains(id.as_str()), "{error}");
    assert!(error.advice().is_some_and(|hint| hint.contains("by its id")), "{error}");
}

/// What a daemon remembers of backups behind a hole holds only as long as the same objects stand there, and all of them could be read.
#[test]
fn a_hole_is_open_again_when_the_backup_behind_it_is_gone() {
    let shop = Shop::new();
    let archive = shop.archive();
    let [first, second] = [&shop.backups[0].manifest, &shop.backups[1].manifest];
    let (one, to) = (TimelineId(1), second.start);
    let hole = Hole { from_timeline: one, from: first.stop, to_timeline: one, to, reason: "removed".into() };
    run(archive.put_event(&shop.keys, What::Hole(hole.clone()), PATIENCE)).expect("an event");
    let hole = Barrier::Hole(hole);
    let mut last = Last::default();
    let mut open = || run(last.look(archive, Some(one))).expect("a look");
    assert_eq!(open(), []);
    let name = archive.names.backup(second.id.as_str());
    let sound = get(&archive.repo, &name);
    let mut bytes = sound.to_vec();
    *bytes.last_mut().expect("bytes") ^= 1;
    replace(&archive.repo, &name, bytes.into());
    assert_eq!(open(), std::slice::from_ref(&hole), "nothing can be restored from it as it is");
    replace(&archive.repo, &name, sound.clone());
    assert_eq!(open(), [], "it was put back");
    // As an expiry leaves it.
    replace(&archive.repo, &name, shop.tombstone(&second.id));
    assert_eq!(open(), [hole]);
}

/// Holes, checks and expiries are found by the names of their events.
#[test]
fn an_event_under_another_name_is_refused() {
    let shop = Shop::new();
    let archive = shop.archive();
    let corrupt = || run(archive.corrupt_wal());
    assert_eq!(corrupt().expect("an event").len(), 1);
    let listed = run(archive.repo.list("events")).expect("a listing");
    let name = &listed.first().expect("an event").name;
    let bytes = get(&archive.repo, name);
    let (month, leaf) = name.trim_start_matches("events/").split_once('/').expect("a month");
    let (second, rest) = leaf.split_once('-').expect("a second");
    let day = if second.contains("15T") { "16T" } else { "15T" };
    let moved = format!("events/{month}/{}{day}{}-{rest}", &second[..6], &second[9..]);
    put(&archive.repo, &moved, std::slice::from_ref(&bytes));
    let error = corrupt().expect_err("it is of another time");
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains(&moved), "{error}");
    run(archive.repo.delete(&moved)).expect("a delete");
    let hole = name.replace("corrupt-wal", "hole");
    put(&archive.repo, &hole, &[bytes]);
    let error = run(archive.holes()).expect_err("it is of another kind");
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains(&hole), "{error}");
}

/// A store was away, or an object was put back: a quick check sees that as well as it saw the loss, and nothing was opened that could have been bad.
#[test]
fn what_a_quick_check_missed_is_whole_when_it_is_back() {
    let shop = Shop::new();
    let archive = shop.archive();
    let check = |deep: bool| {
        let report = run(verify(archive, &Options { deep, patience: BRIEF, ..Options::default() })).expect("a report");
        run(archive.put_event(&shop.keys, What::Verified(report.event()), PATIENCE)).expect("an event");
        // Names of events tell the second.
        std::thread::sleep(Duration::from_millis(1100));
        report.outcome
    };
    let hurt = || run(archive.verdicts()).expect("verdicts").hurt().count();
    let owner = shop.backups[0].manifest.id.to_string();
    let name = archive.names.pack(&owner, 0);
    let pack = get(&archive.repo, &name);
    let (away, back) =
        (|| run(archive.repo.delete(&name)).expect("a delete"), || shop.put(&name, std::slice::from_ref(&pack)));
    away();
    assert_eq!((check(false), hurt()), (Outcome::Corrupt, 2));
    assert!(run(archive.verdicts()).expect("verdicts").spoiled().has_pack(&owner, 0));
    back();
    assert_eq!((check(false), hurt()), (Outcome::Ok, 0));
    assert!(run(archive.verdicts()).expect("verdicts").spoiled().is_empty());
    away();
    assert_eq!((check(true), hurt()), (Outcome::Corrupt, 2));
    back();
    assert_eq!((check(false), hurt()), (Outcome::Corrupt, 2), "it takes a check like the one that found it");
    assert_eq!((check(true), hurt()), (Outcome::Ok, 0));
}

/// What people see is the newest result: a quick one that read no packs would say that all is well again.
#[test]
fn a_quick_check_does_not_hide_what_a_deep_one_found() {
    let shop = Shop::new();
    let [bad, good] = [0, 1].map(|place| shop.backups[place].manifest.id.clone());
    let note = |check: Verified| run(shop.archive().put_event(&shop.keys, What::Verified(check), PATIENCE));
    let verified = |only: Option<&BackupId>| {
        let options = Options { only: only.cloned(), patience: PATIENCE, ..Options::default() };
        run(verify(shop.archive(), &options)).expect("a report")
    };
    assert_eq!(outcome(&verified(None)), (Outcome::Ok, vec![State::Whole; 2]));
    let (whole, hurt) = (vec![good.to_string()], vec![bad.to_string()]);
    let deep = Verified {
        deep: true,
        only: None,
        outcome: Outcome::Corrupt,
        problems: 1,
        whole,
        hurt,
        unknown: vec![],
        ..Verified::default()
    };
    note(deep.clone()).expect("an event");
    // Checks of others, quick and deep: what they did not look at they say again.
    let one =
        Verified { only: Some(good.to_string()), outcome: Outcome::Ok, problems: 0, hurt: vec![], ..deep.clone() };
    for _ in 0..20 {
        note(one.clone()).expect("an event");
    }
    for only in [Some(&good), None, None] {
        let report = verified(only);
        let event = report.event();
        assert_eq!(event.remembered, [bad.to_string()], "the deep one may be too old to be asked by then");
        match only {
            Some(_) => assert_eq!(outcome(&report), (Outcome::Ok, vec![State::Whole])),
            None => {
                assert_eq!(outcome(&report), (Outcome::Corrupt, vec![State::Hurt, State::Whole]), "{}", told(&report));
                assert_eq!(event.hurt, [bad.to_string()]);
            }
        }
        note(event).expect("an event");
    }
    assert_eq!(outcome(&verified(Some(&good))), (Outcome::Ok, vec![State::Whole]));
    assert_eq!(outcome(&verified(Some(&bad))), (Outcome::Corrupt, vec![State::Hurt]));
    // Names of events tell the second.
    std::thread::sleep(Duration::from_millis(1100));
    let whole = vec![good.to_string(), bad.to_string()];
    note(Verified { outcome: Outcome::Ok, problems: 0, whole, hurt: vec![], ..deep }).expect("an event");
    assert_eq!(outcome(&verified(None)), (Outcome::Ok, vec![State::Whole; 2]));
}
