//! Group summaries: made from what is stored, written once, and believed only about objects that are there.

use std::time::Duration;

use walrecv::archive::Archive;
use walrecv::error::Kind;
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, SegmentNumber};
use walrecv::repo::{Repository, WalGroup};
use walrecv::seal::content::summary::Summary;
use walrecv::seal::header::ObjectKind;
use walrecv::seal::sealer::{Compression, Sealer};

use crate::archive_pieces::{TIMELINE, archive, sealed, segment, store, writer};
use crate::common::{PATIENCE, no_env, runtime};
use crate::support::TempDir;

/// A summary that tells its segment apart from all others.
pub fn summary_of(archive: &Archive, number: u64) -> Summary {
    let size = archive.names.segment_size;
    let (start, end) = (SegmentNumber(number).start(size), SegmentNumber(number).end(size));
    let time = PgTime(number as i64 * 1_000_000);
    Summary {
        commits: 1 + number % 7,
        records: 100 + number,
        times: Some((time, PgTime(time.0 + 999_999))),
        xids: Some((number as u32 * 10, number as u32 * 10 + 9)),
        ..Summary::of(start, end, [number as u8; 32])
    }
}

/// Stores a segment that has a beginning and no WAL: enough for everything that looks at summaries.
pub async fn store_head(archive: &Archive, number: u64) {
    let name = segment(archive, number);
    let claims = archive.claims(ObjectKind::Segment, TIMELINE, name.start());
    let mut salt = [0; 32];
    getrandom::fill(&mut salt).unwrap();
    let sealed = Sealer::new(&writer(), claims, salt, Compression::None).finish(&summary_of(archive, number).encode());
    store(archive, &archive.names.segment(name, None), sealed.to_vec().into()).await;
}

fn local(dir: &TempDir) -> Archive {
    let repo = Repository::open(&format!("file://{}", dir.path().display()), &no_env).unwrap();
    archive(&repo, 1, false)
}

const GROUP: WalGroup = WalGroup { timeline: TIMELINE, first: Lsn(2 << 32) };
const FIRST: u64 = 2 * 4096;

#[test]
fn a_group_is_summed_up_once_with_its_holes() {
    let dir = TempDir::new("groups");
    let archive = local(&dir);
    runtime().block_on(async {
        assert_eq!(archive.group_summary(GROUP).await.unwrap(), None);
        for number in [FIRST + 40, FIRST + 41, FIRST + 43, FIRST + 4095, FIRST + 4096] {
            store_head(&archive, number).await;
        }
        let partial = segment(&archive, FIRST + 44);
        let bytes = sealed(&archive, ObjectKind::Partial, partial.start() + 100, b"the end of a timeline");
        store(&archive, &archive.names.partial(partial), bytes).await;
        // One whose beginning is damaged is left out.
        store_head(&archive, FIRST + 50).await;
        let damaged = dir.join(archive.names.segment(segment(&archive, FIRST + 50), None));
        let mut bytes = std::fs::read(&damaged).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&damaged, bytes).unwrap();

        assert!(archive.put_group_summary(&writer(), GROUP, PATIENCE).await.unwrap());
        let found = archive.group_summary(GROUP).await.unwrap().unwrap();
        let numbers = [FIRST + 40, FIRST + 41, FIRST + 43, FIRST + 4095];
        assert_eq!(found.segments, numbers.map(|number| summary_of(&archive, number)));
        assert_eq!(found.partials.iter().map(|s| s.start).collect::<Vec<_>>(), [partial.start() + 100]);

        // It stays what it was, whatever is stored later.
        store_head(&archive, FIRST + 42).await;
        assert!(!archive.put_group_summary(&writer(), GROUP, PATIENCE).await.unwrap());
        assert_eq!(archive.group_summary(GROUP).await.unwrap().unwrap(), found);
        assert!(archive.list_group(GROUP).await.unwrap().summary);
        let groups = archive.groups(TIMELINE).await.unwrap();
        assert_eq!(groups, [GROUP, WalGroup { first: Lsn(3 << 32), ..GROUP }]);
    });
}

#[test]
fn two_that_write_it_at_once_agree() {
    let dir = TempDir::new("groups");
    let archive = local(&dir);
    runtime().block_on(async {
        for number in FIRST..FIRST + 20 {
            store_head(&archive, number).await;
        }
        let keys = writer();
        let put = || archive.put_group_summary(&keys, GROUP, PATIENCE);
        let (a, b, c) = tokio::join!(put(), put(), put());
        let created = [a, b, c].map(|put| u32::from(put.unwrap())).iter().sum::<u32>();
        assert_eq!(created, 1);
        assert_eq!(archive.group_summary(GROUP).await.unwrap().unwrap().segments.len(), 20);
    });
}

#[test]
fn a_damaged_one_is_named() {
    let dir = TempDir::new("groups");
    let archive = local(&dir);
    runtime().block_on(async {
        store_head(&archive, FIRST).await;
        archive.put_group_summary(&writer(), GROUP, Duration::ZERO).await.unwrap();
        let path = dir.join(archive.names.group_summary(GROUP));
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = archive.group_summary(GROUP).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("0000000300000002/summary"), "{error}");
        // Under another group's name it is refused as well.
        let other = WalGroup { first: Lsn(3 << 32), ..GROUP };
        std::fs::create_dir_all(dir.join(archive.names.group_folder(other))).unwrap();
        archive.repo.delete(&archive.names.group_summary(GROUP)).await.unwrap();
        archive.put_group_summary(&writer(), GROUP, PATIENCE).await.unwrap();
        std::fs::copy(&path, dir.join(archive.names.group_summary(other))).unwrap();
        assert_eq!(archive.group_summary(other).await.unwrap_err().kind(), Kind::Corrupt);
    });
}
