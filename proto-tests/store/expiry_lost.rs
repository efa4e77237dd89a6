//! What an expiry must not take for rubbish: backups whose manifest somebody else removed. What it must not take for a backup that is left. And plans that must
//! stand: those of deletions that failed.

use std::time::Duration;

use walrecv::archive::lost::COMPLETE;
use walrecv::error::Kind;
use walrecv::pg::{Lsn, TimelineId};
use walrecv::retention::ExpireOptions;
use walrecv::retention::plan::Spared;
use walrecv::seal::content::BackupId;
use walrecv::seal::content::event::{Outcome, Verified, What};
use walrecv::seal::content::manifest::Backup;
use walrecv::seal::content::plan::{Deletion, Plan, PlanId};

use crate::archive_pieces::writer;
use crate::expiry::{LIFE, STALE, World, runtime};
use crate::expiry_backup::rewrite;
use crate::support::PATIENCE;

/// As the backup itself tells when its manifest is stored.
fn told(world: &World, id: &BackupId) {
    let intent = world.memory.get(&world.archive.names.intent(id.as_str())).expect("an intent");
    world.memory.put(&world.archive.names.alive(id.as_str(), COMPLETE), intent);
}

async fn found_whole(world: &World, id: &BackupId) {
    let check = Verified {
        deep: false,
        only: None,
        outcome: Outcome::Ok,
        problems: 0,
        whole: vec![id.to_string()],
        hurt: Vec::new(),
        unknown: Vec::new(),
        ..Verified::default()
    };
    world.archive.put_event(&writer(), What::Verified(check), PATIENCE).await.expect("an event");
}

/// Two backups, the second of which builds on the first.
async fn family(world: &World) -> [BackupId; 2] {
    let mut ids = [world.back_up(1).await, world.back_up(2).await];
    for seed in 3.. {
        match world.archive.backup(&ids[1]).await.expect("a manifest") {
            Some(Backup::Complete(manifest)) if manifest.parent.as_ref() == Some(&ids[0]) => break,
            _ => ids = [ids[1].clone(), world.back_up(seed).await],
        }
    }
    ids
}

#[test]
fn a_backup_whose_manifest_somebody_removed_is_missed_and_kept() {
    runtime().block_on(async {
        let world = World::new(1, 0);
        let [parent, child] = family(&world).await;
        // Nothing but a check, or its own word, tells of the child.
        for (lost, intent, checked) in [
            (&parent, true, true),
            (&parent, false, true),
            (&child, true, true),
            (&child, true, false),
            (&child, false, false),
        ] {
            let copy = World::over(world.memory.copy(), world.known.clone());
            if checked {
                found_whole(&copy, &child).await
            } else {
                told(&copy, &child)
            }
            let manifest = copy.archive.names.backup(lost.as_str());
            let bytes = copy.memory.get(&manifest).expect("a manifest");
            copy.memory.remove(&manifest);
            if !intent {
                copy.memory.remove(&copy.archive.names.intent(lost.as_str()));
            }
            let left = |copy: &World| copy.memory.names().into_iter().filter(|n| n.contains(lost.as_str())).count();
            let before = left(&copy);
            for _ in 0..3 {
                copy.memory.pass(LIFE + STALE);
                let (proposal, outcome) = copy.expire(copy.options(&[], 0)).await.unwrap();
                assert_eq!(proposal.lost.iter().map(|(id, _)| id).collect::<Vec<_>>(), [lost]);
                assert!(proposal.give_up.is_empty() && outcome.given_up.is_empty(), "{proposal:?}");
                assert!(matches!(&outcome.blocked, Some((Kind::Corrupt, text)) if text.contains(lost.as_str())));
            }
            assert_eq!(left(&copy), before, "something of {lost} went");
            let error = copy.expire(copy.options(&[lost], 0)).await.expect_err("a refusal");
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            // Put back, it is a backup like any other.
            let again = World::over(copy.memory.copy(), world.known.clone());
            again.memory.put(&manifest, bytes);
            again.restore_all().await;
            if intent {
                let (proposal, outcome) = again.expire(again.options(&[], 0)).await.unwrap();
                assert!(proposal.lost.is_empty() && outcome.blocked.is_none());
            }
            // Given up by force, it is rubbish, but for what others need.
            let forced = ExpireOptions { force: true, ..copy.options(&[lost], 0) };
            let (_, outcome) = copy.expire(forced).await.unwrap();
            assert!(outcome.given_up == [lost.clone()] && outcome.blocked.is_none(), "{outcome:?}");
            assert!(matches!(copy.archive.backup(lost).await, Ok(Some(Backup::GivenUp(_)))));
            let (proposal, _) = copy.expire(copy.options(&[], 0)).await.unwrap();
            assert!(proposal.lost.is_empty(), "{proposal:?}");
            copy.restore_all().await;
        }
    });
}

/// One that nothing says was complete is given up as ever, beside a check that found another one whole.
#[test]
fn what_never_was_complete_is_no_lost_backup() {
    runtime().block_on(async {
        let world = World::new(1, 0);
        let [parent, child] = family(&world).await;
        found_whole(&world, &parent).await;
        let started = jiff::Timestamp::try_from(world.memory.now()).unwrap();
        let dead = BackupId::new(started, TimelineId(1), Lsn(1), 7);
        crate::expiry_backup::sign(&world.archive, &dead, 0).await;
        world.memory.pass(STALE);
        let (proposal, outcome) = world.expire(world.options(&[], 0)).await.unwrap();
        assert!(proposal.lost.is_empty() && outcome.given_up == [dead], "{proposal:?}");
        // Nor is one that was deleted, whoever builds on it.
        world.expire(world.options(&[&parent], 0)).await.unwrap();
        let (proposal, outcome) = world.expire(world.options(&[], 0)).await.unwrap();
        assert!(proposal.lost.is_empty() && outcome.blocked.is_none(), "{proposal:?}");
        assert_eq!(world.complete(), [child]);
    });
}

/// A deletion that failed may still be under way in the store: until a later run has seen what became of it, the plan keeps others from what it names.
#[test]
fn a_plan_stands_while_a_deletion_of_its_run_is_in_doubt() {
    runtime().block_on(async {
        let world = World::new(1, 0);
        world.back_up(1).await;
        let started = jiff::Timestamp::try_from(world.memory.now()).unwrap();
        let dead = BackupId::new(started, TimelineId(1), Lsn(1), 7);
        crate::expiry_backup::sign(&world.archive, &dead, 0).await;
        let pack = world.archive.names.pack(dead.as_str(), 0);
        world.memory.put(&pack, b"a pack".to_vec().into());
        world.memory.pass(STALE);
        world.memory.set_stuck(Some(pack.clone()));
        let (_, outcome) = world.expire(world.options(&[], 0)).await.unwrap();
        assert_eq!((outcome.given_up.len(), outcome.failures.len()), (1, 1), "{outcome:?}");
        let plans = world.archive.list_plans().await.unwrap();
        assert!(outcome.unfinished && plans.names(&dead), "{plans:?}");
        world.memory.set_stuck(None);
        for _ in 0..2 {
            world.expire(world.options(&[], 0)).await.unwrap();
        }
        assert!(!world.memory.has(&pack) && world.archive.list_plans().await.unwrap().plans.is_empty());
    });
}

/// The last backup was deleted by force: that it is none any more is known, and what it left goes as it does with any other. Where nothing is known, the folder of
/// backups may be missing.
#[test]
fn what_the_last_backup_left_goes_without_force() {
    runtime().block_on(async {
        let world = World::new(1, 0);
        let last = world.back_up(1).await;
        let left = |world: &World, folder: &str| world.memory.names().iter().filter(|n| n.contains(folder)).count();
        let gone = World::over(world.memory.copy(), world.known.clone());
        let forced = ExpireOptions { force: true, ..world.options(&[&last], 1_000) };
        let (_, outcome) = world.expire(forced).await.unwrap();
        assert!(outcome.deleted == [last.clone()] && outcome.blocked.is_none(), "{outcome:?}");
        assert!(left(&world, "/packs/") > 0 && left(&world, "/maps/") > 0);
        world.memory.pass(Duration::from_secs(1_000));
        let (proposal, outcome) = world.expire(world.options(&[], 1_000)).await.unwrap();
        assert!(proposal.blocked.is_none() && outcome.blocked.is_none() && !outcome.unfinished, "{outcome:?}");
        assert_eq!((left(&world, "/packs/"), left(&world, "/maps/")), (0, 0));

        // By hand, and nothing tells of it.
        gone.memory.remove(&gone.archive.names.backup(last.as_str()));
        let before = gone.memory.names().len();
        gone.memory.pass(STALE + LIFE);
        let (proposal, outcome) = gone.expire(gone.options(&[], 0)).await.unwrap();
        assert!(
            matches!(&proposal.blocked, Some((Kind::Retention, text)) if text.contains(last.as_str())),
            "{proposal:?}"
        );
        assert!(outcome.given_up.is_empty() && gone.memory.names().len() >= before, "{outcome:?}");
        let forced = ExpireOptions { force: true, ..gone.options(&[], 0) };
        for _ in 0..2 {
            gone.expire(forced.clone()).await.unwrap();
        }
        assert_eq!((left(&gone, "/packs/"), left(&gone, "/maps/")), (0, 0));
    });
}

/// A backup is a reason to delete another one only where something can be restored from it.
#[test]
fn a_backup_that_nothing_can_be_restored_from_is_no_reason_to_delete_another() {
    runtime().block_on(async {
        let world = World::new(1, 0);
        let ids = [world.back_up(1).await, world.back_up(2).await];
        let copy = || World::over(world.memory.copy(), world.known.clone());
        let tried = async |world: &World, id: &BackupId, force: bool| {
            world
                .expire(ExpireOptions { force, ..world.options(&[id], 1_000) })
                .await
                .map(|(_, outcome)| outcome.deleted)
        };
        assert_eq!(tried(&copy(), &ids[0], false).await.unwrap(), [ids[0].clone()], "the second one is whole");

        // A check found it hurt.
        let hurt = copy();
        let check = Verified {
            deep: true,
            only: None,
            outcome: Outcome::Corrupt,
            problems: 1,
            whole: Vec::new(),
            hurt: vec![ids[1].to_string()],
            unknown: Vec::new(),
            ..Verified::default()
        };
        hurt.archive.put_event(&writer(), What::Verified(check), PATIENCE).await.unwrap();
        // Its own WAL is not there.
        let short = copy();
        let Some(Backup::Complete(mut manifest)) = short.archive.backup(&ids[1]).await.unwrap() else { panic!("none") };
        manifest.stop = manifest.start + 0x100;
        rewrite(&short.archive, &manifest).await;
        // The files of a tablespace were not there when it was taken.
        let absent = copy();
        let without = async |id: &BackupId| {
            let Some(Backup::Complete(mut manifest)) = absent.archive.backup(id).await.unwrap() else { panic!("none") };
            manifest.absent_tablespaces = vec![16_400];
            rewrite(&absent.archive, &manifest).await;
        };
        without(&ids[1]).await;
        let reasons = [
            (&hurt, "`walrecv verify`"),
            (&short, "its WAL from 0/2000028 to 0/2000128"),
            (&absent, "did not find the files of a tablespace"),
        ];
        for (world, why) in reasons {
            let error = tried(world, &ids[0], false).await.expect_err("nothing could be restored any more");
            assert!(error.kind() == Kind::Retention && error.to_string().contains(why), "{error}");
            assert!(
                error.to_string().contains(ids[1].as_str()) && error.to_string().contains(ids[0].as_str()),
                "{error}"
            );
            assert_eq!(world.complete().len(), 2);
        }
        // An earlier run was to delete the other one, and was interrupted before the check: that one stays, and the words say why.
        let plan = deleting(&hurt, &ids[0]);
        hurt.archive.put_plan(&writer(), &plan, PATIENCE).await.unwrap();
        let (proposal, _) = hurt.expire(hurt.options(&[], 1_000)).await.unwrap();
        let [(spared, Spared::Last { unfit: Some((unfit, why)) })] = proposal.spared.as_slice() else {
            panic!("{proposal:?}")
        };
        assert!((spared, unfit) == (&ids[0], &ids[1]) && why.contains("`walrecv verify`"), "{proposal:?}");
        hurt.memory.remove(&hurt.archive.names.plan(plan.id.as_str()));
        // The one that is of no use may go, and so may both by force.
        assert_eq!(tried(&hurt, &ids[1], false).await.unwrap(), [ids[1].clone()]);
        assert_eq!(tried(&short, &ids[0], true).await.unwrap(), [ids[0].clone()]);
        // No backup has them: one is as good as another.
        without(&ids[0]).await;
        assert_eq!(tried(&absent, &ids[0], false).await.unwrap(), [ids[0].clone()]);
    });
}

/// What a list shows of backups that are none.
#[test]
fn what_is_unfinished_is_told_from_what_is_complete_deleted_or_lost() {
    runtime().block_on(async {
        let world = World::new(1, 0);
        let [parent, child] = family(&world).await;
        let unfinished = async || {
            let announced = world.archive.announced().await.expect("intents");
            let list = world.archive.list_backups().await.expect("backups");
            let told = world.archive.unfinished(announced, &list).await.expect("what is unfinished");
            told.into_iter()
                .map(|one| (one.id, one.lost, one.stored.map_or(0, |stored| stored.packs)))
                .collect::<Vec<_>>()
        };
        assert_eq!(unfinished().await, []);
        let manifest = world.archive.names.backup(child.as_str());
        let bytes = world.memory.get(&manifest).expect("a manifest");
        world.memory.remove(&manifest);
        let told_before = unfinished().await;
        assert!(
            matches!(told_before.as_slice(), [(id, false, packs)] if *id == child && *packs > 0),
            "{told_before:?}"
        );
        told(&world, &child);
        let told_after = unfinished().await;
        assert!(matches!(told_after.as_slice(), [(id, true, _)] if *id == child), "{told_after:?}");
        // An expiry is deleting it, and has not come to leave a tombstone.
        let plan = deleting(&world, &child);
        world.archive.put_plan(&writer(), &plan, PATIENCE).await.unwrap();
        assert_eq!(unfinished().await, []);
        world.memory.remove(&world.archive.names.plan(plan.id.as_str()));
        world.memory.put(&manifest, bytes);
        let (_, outcome) = world.expire(world.options(&[&parent], 1_000_000)).await.unwrap();
        assert!(outcome.deleted == std::slice::from_ref(&parent), "{outcome:?}");
        assert!(world.memory.has(&world.archive.names.intent(parent.as_str())), "all of it is still there");
        assert_eq!(unfinished().await, []);
    });
}

/// An expiry that was finished noted what it deleted: that says the same where the tombstone is gone.
#[test]
fn a_deleted_backup_whose_tombstone_is_gone_is_not_missed() {
    runtime().block_on(async {
        let world = World::new(1, 0);
        let [parent, _] = family(&world).await;
        found_whole(&world, &parent).await;
        told(&world, &parent);
        let (_, outcome) = world.expire(world.options(&[&parent], 1_000_000)).await.unwrap();
        assert!(outcome.deleted == std::slice::from_ref(&parent), "{outcome:?}");
        world.memory.remove(&world.archive.names.backup(parent.as_str()));
        for plan in world.archive.list_plans().await.unwrap().plans {
            world.memory.remove(&world.archive.names.plan(plan.plan.id.as_str()));
        }
        let announced = world.archive.announced().await.expect("intents");
        let list = world.archive.list_backups().await.expect("backups");
        assert_eq!(world.archive.unfinished(announced, &list).await.expect("what is unfinished").len(), 0);
        for _ in 0..3 {
            world.memory.pass(LIFE + STALE);
            let (proposal, outcome) = world.expire(world.options(&[], 0)).await.unwrap();
            assert!(proposal.lost.is_empty() && outcome.blocked.is_none(), "{proposal:?} {outcome:?}");
        }
        world.restore_all().await;
    });
}

fn deleting(world: &World, id: &BackupId) -> Plan {
    let created_at = jiff::Timestamp::try_from(world.memory.now()).unwrap();
    Plan {
        version: Plan::VERSION,
        id: PlanId::new(created_at, [7; 8]),
        cluster: world.archive.names.cluster.clone(),
        system: world.archive.names.system,
        created_at,
        delete: vec![Deletion { backup: id.clone(), maps: Vec::new(), forced: false }],
        sweep: Vec::new(),
        made_by: "a test".to_owned(),
        host: String::new(),
        user: String::new(),
    }
}
