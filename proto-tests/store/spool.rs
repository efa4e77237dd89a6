//! What a crash left in a spool goes into the repository: as it is sealed, once, and only what is valid of this repository's own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use walrecv::archive::Archive;
use walrecv::archive::read::SegmentBytes;
use walrecv::disk::medium::disk;
use walrecv::keys::ring::WriterRing;
use walrecv::keys::setup;
use walrecv::pg::{SegmentName, SystemIdentifier};
use walrecv::receive::recover::recover;
use walrecv::receive::{Observer, Place, ReceiveEvent};
use walrecv::repo::{ClusterNames, Repository};
use walrecv::seal::header::{ObjectKind, RepositoryId};
use walrecv::seal::key::RepositorySecret;

use crate::archive_pieces::{archive, pieces, sealed as made_sealed, segment, store, store_segment, tail, wal};
use crate::common::{env_of, no_env, runtime};
use crate::support::{Call, HookedDisk, Moto, TempDir, require_moto};

const MIB: usize = 1 << 20;

struct Scene {
    _temp: TempDir,
    root: PathBuf,
    reader: Archive,
    place: Place,
    events: Arc<Mutex<Vec<ReceiveEvent>>>,
}

impl Scene {
    /// The cluster is known to the repository.
    async fn new(repo: &Repository) -> Scene {
        let reader = archive(repo, 1, true);
        store(&reader, &reader.names.cluster_file(), Bytes::from_static(b"{}")).await;
        let temp = TempDir::new("spool");
        let writer =
            WriterRing::new(RepositoryId([9; 16]), RepositorySecret([5; 32]), Some(&setup::generate().public)).unwrap();
        let place = Place {
            repo: repo.clone(),
            cluster: "main".to_owned(),
            writer: Arc::new(writer),
            reader: archive(repo, 1, false).keys,
        };
        Scene { root: temp.join("spool"), _temp: temp, reader, place, events: Arc::default() }
    }

    fn path(&self, names: &ClusterNames, segment: SegmentName, run: &str) -> PathBuf {
        self.root.join(names.spool_file(segment, run))
    }

    /// As a crash leaves it: preallocated zeros behind the last frame.
    fn leave(&self, number: u64, run: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(&self.reader.names, segment(&self.reader, number), run);
        write(&path, &[bytes, &vec![0; 100_000]].concat());
        path
    }

    async fn recover(&self) -> walrecv::error::Result<()> {
        let events = self.events.clone();
        let observer = Observer::new(move |event| events.lock().unwrap().push(event));
        recover(&self.place, &self.root, &observer).await
    }

    /// Warnings since the last time.
    fn warnings(&self) -> Vec<String> {
        let events = std::mem::take(&mut *self.events.lock().unwrap());
        let warning = |event| match event {
            ReceiveEvent::Warning(text) => Some(text),
            _ => None,
        };
        events.into_iter().filter_map(warning).collect()
    }

    async fn stored(&self, number: u64) -> Vec<u8> {
        match self.reader.read_segment(segment(&self.reader, number), None).await.unwrap() {
            Some(SegmentBytes::Prefix(bytes) | SegmentBytes::Complete(bytes)) => bytes.to_vec(),
            None => Vec::new(),
        }
    }

    async fn tails(&self, number: u64) -> Vec<String> {
        let listed = self.place.repo.list(&self.reader.names.tail_folder(segment(&self.reader, number))).await.unwrap();
        listed.into_iter().map(|entry| entry.name.rsplit('/').next().unwrap().to_owned()).collect()
    }
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

async fn what_is_valid_goes_up(repo: Repository) {
    let scene = Scene::new(&repo).await;
    let (content, at) = (wal(MIB, 1), |number| segment(&scene.reader, number));
    let sealed = |number, len: usize| tail(&scene.reader, at(number), 0, &content[..len], 20_000);
    // Nothing of it is stored; its last flush was torn; only its end is missing; it is complete; the repository has more; it was never used.
    let whole = scene.leave(1, "whole", &sealed(1, 90_000));
    let torn = sealed(2, 50_000);
    let torn = scene.leave(2, "torn", &torn[..torn.len() - 5]);
    for (name, bytes) in pieces(&scene.reader, at(3), 0, &content[..60_000], 30_000, "r") {
        store(&scene.reader, &name, bytes).await;
    }
    let ahead = scene.leave(3, "ahead", &sealed(3, 70_000));
    store_segment(&scene.reader, at(4), &content).await;
    let complete = scene.leave(4, "complete", &sealed(4, 90_000));
    for (name, bytes) in pieces(&scene.reader, at(5), 0, &content[..60_000], 30_000, "r") {
        store(&scene.reader, &name, bytes).await;
    }
    let behind = scene.leave(5, "behind", &sealed(5, 50_000));
    let (empty, zeros) = (scene.leave(6, "empty", &sealed(6, 0)), scene.leave(6, "zeros", &[]));
    // A full segment, of which the object was lost on its way.
    let full = scene.leave(7, "full", &sealed(7, MIB));
    scene.recover().await.unwrap();
    assert_eq!(scene.warnings(), Vec::<String>::new());
    for file in [whole, torn, ahead, complete, behind, empty, zeros, full] {
        assert!(!file.exists(), "{}", file.display());
    }
    for (number, len) in [(1, 90_000), (2, 40_000), (3, 70_000), (4, MIB), (5, 60_000), (6, 0), (7, MIB)] {
        assert!(scene.stored(number).await == content[..len], "segment {number} is not stored up to {len}");
        let receiver = archive(&repo, 1, false);
        let end = receiver.end_in(at(number)).await.unwrap();
        assert_eq!(end.since(at(number).start()), len as u64, "segment {number} without the identity");
    }
    assert_eq!((scene.tails(1).await, scene.tails(4).await), (vec!["whole.open".to_owned()], vec![]));
    assert_eq!((scene.tails(5).await.len(), scene.tails(6).await.len()), (2, 0), "what adds nothing is not put");
    assert!(std::fs::read_dir(scene.root.join(scene.reader.names.spool_folder())).unwrap().next().is_none());
}

#[test]
fn what_is_valid_goes_into_a_folder_and_into_a_bucket() {
    let temp = TempDir::new("repo");
    let local = Repository::open(&format!("file://{}", temp.path().display()), &no_env).unwrap();
    runtime().block_on(what_is_valid_goes_up(local));
    require_moto!();
    let url = Moto::shared().bucket("spool");
    let bucket = Repository::open(&url, &env_of(Moto::shared().env())).unwrap();
    runtime().block_on(what_is_valid_goes_up(bucket));
}

#[test]
fn what_belongs_to_others_or_is_damaged_or_in_use_is_left_alone() {
    let temp = TempDir::new("repo");
    let repo = Repository::open(&format!("file://{}", temp.path().display()), &no_env).unwrap();
    runtime().block_on(async {
        let scene = Scene::new(&repo).await;
        let (content, at) = (wal(MIB, 2), segment(&scene.reader, 1));
        let good = tail(&scene.reader, at, 0, &content[..50_000], 20_000);
        // Of another system, of which the repository knows nothing.
        let other = ClusterNames { system: SystemIdentifier(78), ..scene.reader.names.clone() };
        let unknown = scene.path(&other, at, "r");
        write(&unknown, &good);
        // Damaged: an earlier flush is not whole, a later one is.
        let mut damaged = tail(&scene.reader, segment(&scene.reader, 2), 0, &content[..50_000], 20_000);
        damaged[1000] ^= 1;
        let damaged = scene.leave(2, "damaged", &damaged);
        // Another segment's.
        let misplaced = scene.leave(3, "misplaced", &good);
        // Of another repository: the id stands in the header behind magic, version and kind.
        let mut foreign = good.clone();
        let at_id = foreign.windows(16).position(|bytes| bytes == [9; 16]).unwrap();
        foreign[at_id..at_id + 16].fill(8);
        let foreign = scene.leave(4, "foreign", &foreign);
        let strange = scene.root.join("main/notes.txt");
        write(&strange, b"?");
        // Somebody writes to it.
        let used = scene.leave(1, "used", &good);
        let lock = disk().open(&used).unwrap();
        assert!(lock.try_lock().unwrap());
        scene.recover().await.unwrap();
        let warnings = scene.warnings();
        for (file, why) in [
            (&unknown, "knows nothing"),
            (&damaged, "later flush"),
            (&misplaced, "not what its name says"),
            (&foreign, "another repository"),
            (&strange, "no file of a spool"),
        ] {
            let of = file.display().to_string();
            let found = warnings.iter().any(|text| text.contains(&of) && text.contains(why));
            assert!(found && file.exists(), "{of}, {why}: {warnings:#?}");
        }
        assert_eq!(warnings.len(), 5, "{warnings:#?}");
        assert!(used.exists());
        for number in 1..=4 {
            assert_eq!(scene.tails(number).await, Vec::<String>::new());
        }
        drop(lock);
        scene.recover().await.unwrap();
        assert!(!used.exists() && scene.stored(1).await == content[..50_000]);
    });
}

#[test]
fn a_file_stays_until_its_put_is_settled_and_is_put_once() {
    let temp = TempDir::new("repo");
    let repo = Repository::open(&format!("file://{}", temp.path().display()), &no_env).unwrap();
    runtime().block_on(async {
        let scene = Scene::new(&repo).await;
        let (content, at) = (wal(MIB, 3), segment(&scene.reader, 1));
        let good = tail(&scene.reader, at, 0, &content[..50_000], 20_000);
        // A run that was killed between the put and the deletion, whose pieces were cleared away since.
        let name = scene.reader.names.tail_open(at, "twice");
        let twice = scene.leave(1, "twice", &good);
        store(&scene.reader, &name, Bytes::from(good.clone())).await;
        scene.recover().await.unwrap();
        assert!(!twice.exists() && scene.warnings().is_empty());
        // Something else stands under the name: a question for a person.
        let second = segment(&scene.reader, 2);
        let taken = scene.leave(2, "taken", &tail(&scene.reader, second, 0, &content[..50_000], 20_000));
        let other = tail(&scene.reader, second, 0, &content[..10_000], 20_000);
        store(&scene.reader, &scene.reader.names.tail_open(second, "taken"), Bytes::from(other)).await;
        scene.recover().await.unwrap();
        assert!(taken.exists() && scene.warnings().iter().any(|text| text.contains("different content")));
    });
}

/// What was stored of it is damaged since: by its name it is there, and the spool has the last good copy.
#[test]
fn a_file_stays_while_what_stands_for_it_is_damaged() {
    let temp = TempDir::new("repo");
    let repo = Repository::open(&format!("file://{}", temp.path().display()), &no_env).unwrap();
    runtime().block_on(async {
        let scene = Scene::new(&repo).await;
        let content = wal(MIB, 5);
        let at = |number| segment(&scene.reader, number);
        let names = &scene.reader.names;
        let sealed = |number| tail(&scene.reader, at(number), 0, &content[..90_000], 20_000);
        let leave = |number, run: &str| scene.leave(number, run, &sealed(number));
        // The segment, the end of the timeline, and twice the copy that a run put which was killed before it deleted the file: damaged in the middle, and at the
        // end, where it looks like a write that was torn.
        let (segment, partial) = (names.segment(at(1), None), names.partial(at(2)));
        let (middle, torn) = (names.tail_open(at(3), "middle"), names.tail_open(at(4), "torn"));
        store_segment(&scene.reader, at(1), &content).await;
        let end = made_sealed(&scene.reader, ObjectKind::Partial, at(2).start(), &content[..90_000]);
        store(&scene.reader, &partial, end).await;
        let files = [leave(1, "whole"), leave(2, "end"), leave(3, "middle"), leave(4, "torn")];
        for (number, name) in [(3, &middle), (4, &torn)] {
            let file = std::fs::read(&files[number as usize - 1]).unwrap();
            let put = file[..file.len() - 100_000].to_vec();
            store(&scene.reader, name, Bytes::from(put)).await;
        }
        for (name, part) in [(&segment, 2), (&partial, 2), (&middle, 2), (&torn, 1)] {
            let path = temp.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            let last = bytes.len() / part - 1;
            bytes[last] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        // However often it is started.
        for _ in 0..2 {
            scene.recover().await.unwrap();
            let warnings = scene.warnings();
            for (file, name) in files.iter().zip([&segment, &partial, &middle, &torn]) {
                let of = file.display().to_string();
                let told = |text: &String| text.contains(&of) && text.contains(name) && text.contains("damaged");
                assert!(file.exists() && warnings.iter().any(told), "{name}: {warnings:#?}");
            }
            assert_eq!(warnings.len(), 4, "{warnings:#?}");
        }
        // Moved away, as is advised.
        for name in [&segment, &partial, &middle, &torn] {
            std::fs::rename(temp.path().join(name), temp.path().join("aside")).unwrap();
        }
        scene.recover().await.unwrap();
        assert_eq!(scene.warnings(), Vec::<String>::new());
        for number in 1..=4 {
            assert!(scene.stored(number).await == content[..90_000], "segment {number}");
            assert!(!files[number as usize - 1].exists());
        }
    });
}

/// It is there by its name, and its disk does not give it back: no start waits for that.
#[test]
fn a_file_stays_and_nothing_waits_while_what_stands_for_it_cannot_be_read() {
    let temp = TempDir::new("repo");
    // Its first bytes can be read.
    let broken = Arc::new(Mutex::new(None::<(PathBuf, bool)>));
    let name = broken.clone();
    let disk = HookedDisk::new(move |call| {
        if let (Call::Open(path), Some((name, seen))) = (call, &mut *name.lock().unwrap())
            && path.ends_with(name.as_path())
            && std::mem::replace(seen, true)
        {
            return Err(std::io::Error::from_raw_os_error(5));
        }
        Ok(())
    });
    let repo = Repository::in_directory(temp.path().to_path_buf(), Arc::new(disk));
    runtime().block_on(async {
        let scene = Scene::new(&repo).await;
        let (content, at) = (wal(MIB, 6), segment(&scene.reader, 1));
        store_segment(&scene.reader, at, &content).await;
        let file = scene.leave(1, "whole", &tail(&scene.reader, at, 0, &content[..90_000], 20_000));
        *broken.lock().unwrap() = Some((scene.reader.names.segment(at, None).into(), false));
        scene.recover().await.expect("nothing to wait for");
        let warnings = scene.warnings();
        assert!(file.exists() && warnings.len() == 1 && warnings[0].contains("cannot be read"), "{warnings:#?}");
        *broken.lock().unwrap() = None;
        scene.recover().await.unwrap();
        assert!(!file.exists() && scene.warnings().is_empty());
    });
}

/// The store answers nothing but errors: the file stays, the error may pass, and once the store is back the same file goes up.
#[test]
fn a_store_that_is_away_leaves_everything_where_it_is() {
    use crate::faults::{Hooked, Memory};
    let memory = Arc::new(Memory::default());
    runtime().block_on(async {
        let honest = Hooked::repository(memory.clone(), |_, _| {});
        let mut scene = Scene::new(&honest).await;
        let (content, at) = (wal(MIB, 4), segment(&scene.reader, 1));
        let left = scene.leave(1, "left", &tail(&scene.reader, at, 0, &content[..50_000], 20_000));
        let nowhere = [("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "x")];
        let keys = [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")];
        let env = env_of(nowhere.iter().chain(&keys).map(|(name, value)| (*name, (*value).to_owned())).collect());
        scene.place.repo = Repository::open("s3://nobody", &env).unwrap();
        let error = scene.recover().await.unwrap_err();
        assert!(error.is_transient() && left.exists(), "{error}");
        scene.place.repo = honest;
        scene.recover().await.unwrap();
        assert!(!left.exists() && scene.stored(1).await == content[..50_000]);
    });
}
