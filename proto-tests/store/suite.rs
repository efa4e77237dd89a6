//! One suite, run on every kind of store.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use futures::StreamExt;
use walrecv::error::Kind;
use walrecv::repo::{Put, Repository};

use crate::common::{PATIENCE, env_of, joined, judge, no_env, object, put, runtime};
use crate::faults::Memory;
use crate::support::{Moto, TempDir, require_moto};

async fn suite(repo: &Repository) {
    created_once(repo).await;
    raced(repo).await;
    read(repo).await;
    listed(repo).await;
    deleted(repo).await;
    odd_names(repo).await;
    big(repo).await;
    too_big(repo).await;
}

async fn created_once(repo: &Repository) {
    let name = "clusters/once/object";
    assert_eq!(put(repo, name, 1, 1, PATIENCE).await.unwrap(), Put::Created);
    assert_eq!(put(repo, name, 1, 1, PATIENCE).await.unwrap(), Put::Ours);
    assert_eq!(put(repo, name, 2, 1, PATIENCE).await.unwrap(), Put::Equal);
    let error = put(repo, name, 2, 2, PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Diverged);
    assert!(error.to_string().contains(name), "{error}");
    let error = repo.put_once(name, &object(1, 1, 101), &judge(1, 1), PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "ours by its header, but of another size: {error}");
    assert_eq!(repo.get(name).await.unwrap().unwrap(), joined(&object(1, 1, 100)));
}

/// Of sixteen writers one creates; equal ones are content, different ones are told.
async fn raced(repo: &Repository) {
    for round in 0..4 {
        let name = format!("race/{round}");
        let same = round % 2 == 0;
        let tasks = (0..16u8).map(|task| {
            let (repo, name) = (repo.clone(), name.clone());
            tokio::spawn(async move { put(&repo, &name, task, if same { 7 } else { task }, PATIENCE).await })
        });
        let mut created = 0;
        for task in tasks.collect::<Vec<_>>() {
            match task.await.unwrap() {
                Ok(Put::Created) => created += 1,
                Ok(Put::Equal) => assert!(same),
                Ok(Put::Ours) => panic!("nobody's answer was lost"),
                Err(error) => assert!(!same && error.kind() == Kind::Diverged, "{error}"),
            }
        }
        assert_eq!(created, 1, "round {round}");
    }
}

async fn read(repo: &Repository) {
    let name = "ranges/object";
    let content = Bytes::from((0..=255u8).collect::<Vec<_>>());
    repo.put_once(name, std::slice::from_ref(&content), &judge(0, 1), PATIENCE).await.unwrap();
    for (range, expected) in
        [(0..256, 0..256), (10..20, 10..20), (250..300, 250..256), (256..300, 0..0), (900..901, 0..0)]
    {
        let found = repo.get_range(name, range.clone()).await.unwrap().unwrap();
        assert_eq!(found, content.slice(expected), "{range:?}");
    }
    let head = repo.head(name).await.unwrap().unwrap();
    assert_eq!((head.name.as_str(), head.size), (name, 256));
    let age = std::time::SystemTime::now().duration_since(head.modified).unwrap_or_default();
    assert!(age.as_secs() < 3600, "modified {:?}", head.modified);
    for missing in ["ranges/none", "ranges/object2", "none/at/all", "ranges"] {
        assert_eq!(repo.head(missing).await.unwrap(), None, "{missing}");
        assert_eq!(repo.get_range(missing, 0..10).await.unwrap(), None, "{missing}");
    }
    assert_eq!(repo.get("ranges/none").await.unwrap(), None);
}

/// More names than one page of an S3 listing holds.
async fn listed(repo: &Repository) {
    let names: BTreeSet<String> = (0..1005).map(|n| format!("list/a/{}/{n}", n % 3)).collect();
    let beside = ["list/ab/1", "list/b", "list/a.x"];
    let all = names.iter().map(String::as_str).chain(beside);
    futures::stream::iter(all)
        .for_each_concurrent(16, |name| async move {
            assert_eq!(put(repo, name, 1, 1, PATIENCE).await.unwrap(), Put::Created);
        })
        .await;
    let listed = repo.list("list/a").await.unwrap();
    assert!(listed.iter().all(|l| l.size == 100));
    assert_eq!(listed.into_iter().map(|l| l.name).collect::<BTreeSet<_>>(), names);
    assert_eq!(repo.list("list").await.unwrap().len(), 1008);
    assert!(repo.list("").await.unwrap().len() > 1008);
    let folders =
        |prefix: &'static str| async move { repo.folders(prefix).await.unwrap().into_iter().collect::<BTreeSet<_>>() };
    assert_eq!(folders("list/a").await, BTreeSet::from(["0", "1", "2"].map(str::to_owned)));
    assert_eq!(folders("list").await, BTreeSet::from(["a", "ab"].map(str::to_owned)));
    assert!(folders("").await.contains("list"));
    let children = repo.children("list").await.unwrap();
    assert_eq!(children.folders.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["a", "ab"].map(str::to_owned)));
    let objects: BTreeSet<String> = children.objects.into_iter().map(|l| l.name).collect();
    assert_eq!(objects, BTreeSet::from(["list/a.x", "list/b"].map(str::to_owned)));
    let deep = repo.children("list/a/0").await.unwrap();
    assert_eq!((deep.folders.len(), deep.objects.len(), deep.objects[0].size), (0, 335, 100));
    assert!(repo.children("").await.unwrap().folders.contains(&"list".to_owned()));
    for empty in ["nowhere", "list/b", "list/a/0/0"] {
        assert!(repo.list(empty).await.unwrap().is_empty(), "{empty}");
        let children = repo.children(empty).await.unwrap();
        assert!(children.folders.is_empty() && children.objects.is_empty(), "{empty}");
        assert!(repo.folders(empty).await.unwrap().is_empty(), "{empty}");
    }
}

async fn deleted(repo: &Repository) {
    let name = "clusters/x/tail/deleted/object";
    put(repo, name, 1, 1, PATIENCE).await.unwrap();
    for _ in 0..2 {
        repo.delete(name).await.unwrap();
        assert_eq!(repo.get(name).await.unwrap(), None);
    }
    assert_eq!(put(repo, name, 2, 2, PATIENCE).await.unwrap(), Put::Created, "the name is free again");
    repo.delete("clusters/never/was").await.unwrap();
}

/// Of an object that walrecv cannot have stored nothing is read, whoever stored it. Its first bytes and its size can be looked at.
async fn too_big(repo: &Repository) {
    let name = "keys/identity/recipient.age";
    let content = Bytes::from(vec![7; (1 << 20) + 1]);
    repo.put_once(name, std::slice::from_ref(&content), &judge(0, 1), PATIENCE).await.unwrap();
    let error = repo.get(name).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains("has 1048577 bytes"), "{error}");
    assert_eq!(repo.head(name).await.unwrap().unwrap().size, 1_048_577);
    assert_eq!(repo.get_range(name, 0..10).await.unwrap().unwrap(), content.slice(..10));
    repo.delete(name).await.unwrap();
    repo.put_once(name, &[content.slice(1..)], &judge(0, 1), PATIENCE).await.unwrap();
    assert_eq!(repo.get(name).await.unwrap().unwrap(), content.slice(1..));
    repo.delete(name).await.unwrap();
}

async fn odd_names(repo: &Repository) {
    let before = repo.list("").await.unwrap().len();
    for odd in
        ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", ".hidden", "a b", "a\nb", "ä", "a%2Fb", "a\\b", "a#1"]
    {
        assert_eq!(put(repo, odd, 1, 1, PATIENCE).await.unwrap_err().kind(), Kind::Usage, "{odd:?}");
        assert_eq!(repo.get(odd).await.unwrap_err().kind(), Kind::Usage, "{odd:?}");
        assert_eq!(repo.get_range(odd, 0..1).await.unwrap_err().kind(), Kind::Usage, "{odd:?}");
        assert_eq!(repo.delete(odd).await.unwrap_err().kind(), Kind::Usage, "{odd:?}");
        if !odd.is_empty() {
            assert_eq!(repo.list(odd).await.unwrap_err().kind(), Kind::Usage, "{odd:?}");
        }
    }
    assert_eq!(repo.list("").await.unwrap().len(), before);
}

/// The largest object, handed over in many slices.
async fn big(repo: &Repository) {
    let name = "packs/x/1";
    let whole: Vec<u8> = (0..16u32 << 20).map(|i| (i ^ (i >> 11)) as u8).collect();
    let parts: Vec<Bytes> = whole.chunks(300_000).map(Bytes::copy_from_slice).collect();
    assert_eq!(repo.put_once(name, &parts, &judge(0, 1), PATIENCE).await.unwrap(), Put::Created);
    assert!(repo.get(name).await.unwrap().unwrap() == whole);
    let middle = repo.get_range(name, 5_000_000..5_100_000).await.unwrap().unwrap();
    assert!(middle == whole[5_000_000..5_100_000]);
}

fn local(path: &Path) -> Repository {
    Repository::open(&format!("file://{}", path.display()), &no_env).unwrap()
}

#[test]
fn a_new_directory() {
    let dir = TempDir::new("store");
    let repo = local(&dir.join("deep/down/repository"));
    runtime().block_on(async {
        repo.make_root().await.unwrap();
        suite(&repo).await;
    });
    assert_eq!(repo.local_root(), Some(dir.join("deep/down/repository").as_path()));
}

#[test]
fn a_directory_with_folders_in_it() {
    let dir = TempDir::new("store");
    for folder in ["clusters/once", "race", "ranges", "list/a/0", "packs/x"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    runtime().block_on(suite(&local(dir.path())));
}

#[test]
fn a_bucket() {
    require_moto!();
    let moto = Moto::shared();
    let bucket = moto.bucket("suite");
    let env = env_of(moto.env());
    for url in [format!("{bucket}/some/prefix"), bucket] {
        runtime().block_on(suite(&Repository::open(&url, &env).unwrap()));
    }
}

#[test]
fn memory() {
    runtime().block_on(suite(&Repository::with_backend("memory", Box::new(Memory::default()))));
}

/// Nothing can be concluded from a repository that is not there.
async fn nothing_is_absent(repo: &Repository, place: &str) {
    let errors = [
        repo.get("a").await.unwrap_err(),
        repo.head("a").await.unwrap_err(),
        repo.get_range("a", 0..1).await.unwrap_err(),
        repo.list("").await.unwrap_err(),
        repo.list("a").await.unwrap_err(),
        repo.folders("").await.unwrap_err(),
        repo.children("").await.unwrap_err(),
        put(repo, "a/b", 1, 1, PATIENCE).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), Kind::Repository, "{error}");
        assert!(!error.is_transient(), "{error}");
        assert!(error.to_string().contains(place), "{error}");
        assert!(error.advice().is_some());
    }
}

#[test]
fn a_missing_directory_is_no_proof() {
    let dir = TempDir::new("store");
    let missing = dir.join("not-mounted");
    runtime().block_on(nothing_is_absent(&local(&missing), "not-mounted"));
    assert!(!missing.exists(), "nothing was made");
}

#[test]
fn a_missing_bucket_is_no_proof() {
    require_moto!();
    let env = env_of(Moto::shared().env());
    let repo = Repository::open("s3://no-such-bucket/x", &env).unwrap();
    runtime().block_on(nothing_is_absent(&repo, "NoSuchBucket"));
}

#[test]
fn urls() {
    for bad in ["", "repo", "/srv/repo", "ftp://x/y", "s3://", "s3:///x", "s3://b/a b", "s3://b?x=1", "s3://u:p@b/x"] {
        assert_eq!(Repository::open(bad, &no_env).err().map(|e| e.kind()), Some(Kind::Usage), "{bad}");
    }
    let env = |allow: &str| {
        env_of(vec![
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1".into()),
            ("AWS_ALLOW_HTTP", allow.into()),
            ("AWS_ACCESS_KEY_ID", "a".into()),
            ("AWS_SECRET_ACCESS_KEY", "b".into()),
        ])
    };
    assert_eq!(Repository::open("s3://b/x", &env("")).err().map(|e| e.kind()), Some(Kind::Usage));
    assert_eq!(Repository::open("s3://b/x", &env("true")).unwrap().url(), "s3://b/x");
    let azure =
        env_of(vec![("AZURE_STORAGE_ACCOUNT_NAME", "account".into()), ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5".into())]);
    assert!(Repository::open("az://container/x", &azure).is_ok());
    let google = env_of(vec![(
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        r#"{"gcs_base_url":"http://127.0.0.1:1","disable_oauth":true,"client_email":"","private_key":"","private_key_id":""}"#.into(),
    )]);
    assert!(Repository::open("gs://bucket/x", &google).is_ok());
}
