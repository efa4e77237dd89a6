//! What a backup relies on is synced first: all of its WAL, not the segment that it ends in alone.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use walrecv::disk::medium::{Disk, Form, Handle, Medium, Seen};
use walrecv::pg::{Lsn, SegmentName, SegmentNumber, TimelineId};
use walrecv::repo::Repository;

use crate::archive_pieces::archive;
use crate::support::TempDir;

/// A disk that notes what is opened to be synced.
#[derive(Clone, Debug, Default)]
struct Watched(Arc<Mutex<BTreeSet<PathBuf>>>);

impl Medium for Watched {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn Handle>> {
        Disk.create(path, mode)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        self.0.lock().expect("no test has died").insert(path.to_owned());
        Disk.open(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Disk.remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Disk.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        Disk.remove_dir(path)
    }

    fn look(&self, path: &Path) -> io::Result<Seen> {
        Disk.look(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(OsString, Form)>> {
        Disk.list(dir)
    }
}

#[test]
fn all_wal_of_a_backup_is_synced_before_it_counts() {
    let place = TempDir::new("settled");
    let root = place.join("repository");
    let watched = Watched::default();
    let repo = Repository::in_directory(root.clone(), Arc::new(watched.clone()));
    let archive = archive(&repo, 1, true);
    let size = archive.names.segment_size;
    let name = |number: u64| {
        let segment = SegmentName::new(TimelineId(1), SegmentNumber(number), size);
        (archive.names.segment(segment, None), archive.names.tail_folder(segment))
    };
    // Three whole segments, then a tail that its receiver is writing.
    let mut expected = BTreeSet::new();
    for number in 6..10 {
        let (whole, tail) = name(number);
        let file = if number < 9 { root.join(whole) } else { root.join(tail).join("0123456789abcdef.open") };
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(&file, "WAL").expect("a file");
        expected.extend([file.parent().expect("a folder").to_owned(), file]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let settle = |from: u64, to: u64| {
        watched.0.lock().expect("no test has died").clear();
        runtime.block_on(archive.settle_wal(TimelineId(1), Lsn(from), Lsn(to))).expect("a local disk")
    };
    let mib = 1 << 20;
    assert!(settle(6 * mib + 40, 9 * mib + 4000));
    let synced = || watched.0.lock().expect("no test has died").clone();
    assert!(synced().is_superset(&expected), "{:?} were not synced", expected.difference(&synced()));
    // The end of a segment is not the beginning of the next.
    settle(7 * mib, 8 * mib);
    let (first, last) = (root.join(name(7).0), root.join(name(8).0));
    assert!(synced().contains(&first) && !synced().contains(&last));
}
