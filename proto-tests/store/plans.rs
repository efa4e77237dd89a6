//! Plans of expiries and intents of backups: listed with the store's own times, and what a backup makes of them.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use walrecv::archive::Archive;
use walrecv::error::Kind;
use walrecv::pg::{Lsn, TimelineId};
use walrecv::repo::{ClusterNames, Repository};
use walrecv::seal::content::BackupId;
use walrecv::seal::content::intent::Intent;
use walrecv::seal::content::plan::{Deletion, Plan, PlanId};
use walrecv::seal::header::ObjectKind;
use walrecv::seal::sealer::{Compression, seal_index};

use crate::archive_pieces::{archive, store, stranger, writer};
use crate::backups::{id, manifest, put};
use crate::common::{PATIENCE, runtime};
use crate::support::TempDir;

fn plan(archive: &Archive, random: u8, delete: &[u16], sweep: &[u16]) -> Plan {
    let at = Timestamp::from_second(1_769_824_800 + i64::from(random)).unwrap();
    Plan {
        version: Plan::VERSION,
        id: PlanId::new(at, [random; 8]),
        cluster: "main".into(),
        system: archive.names.system,
        created_at: at,
        delete: delete.iter().map(|n| Deletion { backup: id(*n), maps: Vec::new(), forced: false }).collect(),
        sweep: sweep.iter().map(|n| id(*n)).collect(),
        made_by: "test".into(),
        host: String::new(),
        user: String::new(),
    }
}

fn intent(archive: &Archive, id: &BackupId) -> Intent {
    let text = format!(
        r#"{{"version":1,"id":"{id}","cluster":"main","system":"{}","started_at":"2026-01-31T02:00:00Z","reuses":["{}"],"state":"","made_by":"test"}}"#,
        archive.names.system,
        crate::backups::id(1)
    );
    Intent::decode(text.as_bytes(), id).unwrap()
}

async fn put_sealed(archive: &Archive, name: &str, kind: ObjectKind, content: &[u8], salt: u8) {
    let claims = archive.claims(kind, TimelineId(0), Lsn(0));
    let sealed = seal_index(&writer(), claims, [salt; 32], Compression::None, content);
    store(archive, name, Bytes::from(sealed.bytes.concat())).await;
}

#[test]
fn a_backup_reuses_nothing_that_a_plan_names_or_may_name() {
    let dir = TempDir::new("plans");
    let repo = Repository::open(&format!("file://{}", dir.path().display()), &|_| None).unwrap();
    let archive = archive(&repo, 1, false);
    runtime().block_on(async {
        for n in 1..=3 {
            put(&archive, &id(n), ObjectKind::Manifest, &manifest(&archive, &id(n)).encode(), n as u8).await;
        }
        let allowed = async |n: u16| {
            let look = archive.look_before_reuse(Some(&id(n))).await.unwrap();
            assert_eq!(look.parent.as_ref().is_ok_and(|m| m.id == id(n)), look.parent.is_ok());
            look.parent.is_ok()
        };
        assert!(archive.list_plans().await.unwrap().plans.is_empty());
        assert!(allowed(1).await && allowed(2).await && allowed(3).await);

        let before = SystemTime::now();
        let (first, second) = (plan(&archive, 9, &[1], &[7]), plan(&archive, 4, &[], &[2]));
        let taken = archive.put_plan(&writer(), &first, PATIENCE).await.unwrap();
        archive.put_plan(&writer(), &second, PATIENCE).await.unwrap();
        assert!(taken + Duration::from_secs(1) >= before && taken <= SystemTime::now() + Duration::from_secs(1));
        let list = archive.list_plans().await.unwrap();
        let plans: Vec<_> = list.plans.iter().map(|stored| stored.plan.clone()).collect();
        assert_eq!(plans, [second, first.clone()], "oldest first");
        assert_eq!(list.plans[1].modified, taken);
        assert!(!allowed(1).await && !allowed(2).await && allowed(3).await);
        let why = archive.look_before_reuse(Some(&id(1))).await.unwrap().parent.unwrap_err();
        assert!(why.contains(first.id.as_str()), "{why}");
        assert!(list.names(&id(7)) && !list.names(&id(3)));

        // The manifest is read after the plans: what was deleted by a plan that is finished is no parent.
        archive.repo.delete(&archive.names.plan(first.id.as_str())).await.unwrap();
        assert!(allowed(1).await);
        archive.repo.delete(&archive.names.backup(id(1).as_str())).await.unwrap();
        assert!(!allowed(1).await);
        assert!(archive.look_before_reuse(None).await.unwrap().parent.is_err());

        // A plan under another's name and one that another secret sealed may name everything. What is not named as a plan is none.
        let wrong = archive.names.plan(PlanId::new(Timestamp::UNIX_EPOCH, [0; 8]).as_str());
        put_sealed(&archive, &wrong, ObjectKind::Plan, &first.encode(), 40).await;
        assert!(!allowed(3).await);
        let list = archive.list_plans().await.unwrap();
        assert_eq!((list.plans.len(), list.unreadable.len()), (1, 1), "{list:?}");
        repo.delete(&wrong).await.unwrap();
        assert!(allowed(3).await);
        for odd in ["odd", "20260131T020001Z-0a02030405060708/odd"] {
            store(&archive, &archive.names.plan(odd), Bytes::from_static(b"no object")).await;
        }
        assert!(allowed(3).await);
        assert_eq!(stranger(&archive).list_plans().await.unwrap().unreadable.len(), 1);
    });
}

#[test]
fn intents_are_listed_and_none_is_hidden() {
    let dir = TempDir::new("plans");
    let repo = Repository::open(&format!("file://{}", dir.path().display()), &|_| None).unwrap();
    let archive = archive(&repo, 1, false);
    runtime().block_on(async {
        let put = async |at: u16, of: u16, salt| {
            let content = intent(&archive, &id(of)).encode();
            put_sealed(&archive, &archive.names.intent(id(at).as_str()), ObjectKind::Intent, &content, salt).await;
        };
        put(2, 2, 2).await;
        put(1, 1, 1).await;
        put(3, 1, 3).await;
        // Not ours: left out, since no backup has such a name.
        store(&archive, &archive.names.intent("odd"), Bytes::from_static(b"no object")).await;
        let list = archive.list_intents().await.unwrap();
        let found: Vec<_> = list.intents.iter().map(|stored| stored.intent.clone()).collect();
        assert_eq!(found, [intent(&archive, &id(1)), intent(&archive, &id(2))]);
        let dark: Vec<_> = list.unreadable.iter().map(|dark| dark.id.clone()).collect();
        assert_eq!(dark, [id(3)]);
        assert_eq!(archive.intent(&id(9)).await.unwrap(), None);
    });
}

/// One system under two names makes the same claims in both: what names its cluster counts in that one alone.
#[test]
fn what_names_another_cluster_is_refused_in_this_one_s_folder() {
    let dir = TempDir::new("plans");
    let repo = Repository::open(&format!("file://{}", dir.path().display()), &|_| None).unwrap();
    let main = archive(&repo, 1, false);
    let names = ClusterNames { cluster: "copy".to_owned(), ..main.names.clone() };
    let copy = Archive { names, ..main.clone() };
    runtime().block_on(async {
        let (id, plan) = (id(1), plan(&main, 1, &[1], &[]));
        for archive in [&main, &copy] {
            put(archive, &id, ObjectKind::Manifest, &manifest(&main, &id).encode(), 1).await;
            let (intent, name) = (intent(&main, &id).encode(), archive.names.intent(id.as_str()));
            put_sealed(archive, &name, ObjectKind::Intent, &intent, 2).await;
            let name = archive.names.plan(plan.id.as_str());
            put_sealed(archive, &name, ObjectKind::Plan, &plan.encode(), 3).await;
        }
        let backups = main.list_backups().await.unwrap();
        assert_eq!((backups.complete.len(), backups.unreadable.len()), (1, 0));
        assert_eq!(main.list_intents().await.unwrap().intents.len(), 1);
        assert_eq!(main.list_plans().await.unwrap().plans.len(), 1);

        let (backups, plans) = (copy.list_backups().await.unwrap(), copy.list_plans().await.unwrap());
        let intents = copy.list_intents().await.unwrap();
        assert_eq!((backups.complete.len(), intents.intents.len(), plans.plans.len()), (0, 0, 0));
        let refused = backups.unreadable.iter().chain(&plans.unreadable).map(|(_, error)| error);
        for error in refused.chain(intents.unreadable.iter().map(|dark| &dark.error)) {
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            assert!(error.to_string().contains("is of cluster \"main\""), "{error}");
        }
        assert_eq!((backups.unreadable.len(), intents.unreadable.len(), plans.unreadable.len()), (1, 1, 1));
    });
}
