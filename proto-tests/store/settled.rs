//! What a backup relies on is synced first: all of its WAL, not the segment that it ends in alone.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use walrecv::archive::Archive;
use walrecv::error::{Class, Result};
use walrecv::pg::{Lsn, SegmentName, SegmentNumber, TimelineId};
use walrecv::repo::Repository;

use crate::archive_pieces::archive;
use crate::support::{Call, HookedDisk, TempDir};

const MIB: u64 = 1 << 20;

/// An archive with three whole segments, then a tail that its receiver is writing.
struct Stored {
    place: TempDir,
    archive: Archive,
    /// What was synced.
    synced: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Where the next sync fails.
    bad: Arc<Mutex<Option<PathBuf>>>,
}

impl Stored {
    fn new() -> Stored {
        let place = TempDir::new("settled");
        let (synced, bad) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Mutex::new(None)));
        let (noted, failing) = (synced.clone(), bad.clone());
        let disk = HookedDisk::new(move |call| {
            let Call::Sync(path) = call else { return Ok(()) };
            if failing.lock().expect("no test has died").take_if(|bad| *bad == path).is_some() {
                return Err(io::Error::from_raw_os_error(5));
            }
            noted.lock().expect("no test has died").insert(path);
            Ok(())
        });
        let repo = Repository::in_directory(place.join("repository"), Arc::new(disk));
        let stored = Stored { archive: archive(&repo, 1, true), place, synced, bad };
        for number in 6..10 {
            let file = stored.file(number);
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
            std::fs::write(&file, "WAL").expect("a file");
        }
        stored
    }

    fn file(&self, number: u64) -> PathBuf {
        let names = &self.archive.names;
        let segment = SegmentName::new(TimelineId(1), SegmentNumber(number), names.segment_size);
        let name = match number < 9 {
            true => names.segment(segment, None),
            false => names.tail_open(segment, "0123456789abcdef"),
        };
        self.place.join("repository").join(name)
    }

    fn settle(&self, from: u64, to: u64) -> Result<bool> {
        self.synced.lock().expect("no test has died").clear();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(self.archive.settle_wal(TimelineId(1), Lsn(from), Lsn(to)))
    }

    fn synced(&self) -> BTreeSet<PathBuf> {
        self.synced.lock().expect("no test has died").clone()
    }
}

#[test]
fn all_wal_of_a_backup_is_synced_before_it_counts() {
    let stored = Stored::new();
    let expected: BTreeSet<PathBuf> = (6..10)
        .map(|number| stored.file(number))
        .flat_map(|file| [file.parent().expect("a folder").to_owned(), file])
        .collect();
    assert!(stored.settle(6 * MIB + 40, 9 * MIB + 4000).expect("a local disk"));
    let synced = stored.synced();
    assert!(synced.is_superset(&expected), "{:?} were not synced", expected.difference(&synced));
    // The end of a segment is not the beginning of the next.
    stored.settle(7 * MIB, 8 * MIB).expect("a local disk");
    let synced = stored.synced();
    assert!(synced.contains(&stored.file(7)) && !synced.contains(&stored.file(8)));
}

/// The kernel drops the pages of a failed sync and answers the next one with success: it must not be asked again.
#[test]
fn a_failed_sync_of_wal_is_final() {
    let stored = Stored::new();
    // A whole segment, the last whole one, the tail; and the folder of one.
    let folder = stored.file(9).parent().expect("a folder").to_owned();
    for bad in [stored.file(6), stored.file(8), stored.file(9), folder] {
        *stored.bad.lock().expect("no test has died") = Some(bad.clone());
        let error = stored.settle(6 * MIB + 40, 9 * MIB + 4000).expect_err("what was not synced does not count");
        assert_eq!(error.class(), Class::Unsynced, "{error}");
        assert!(!stored.synced().contains(&bad), "{} is synced once more", bad.display());
    }
    assert!(stored.settle(6 * MIB + 40, 9 * MIB + 4000).expect("a sound disk"));
}
