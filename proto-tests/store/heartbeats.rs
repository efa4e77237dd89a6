//! Heartbeats: put once, the lesser ones deleted, and believed only as far as everything before them is stored.

use std::sync::Arc;

use walrecv::archive::Archive;
use walrecv::pg::xact::PgTime;
use walrecv::pg::{Lsn, TimelineId};
use walrecv::seal::content::heartbeat::Heartbeat;

use crate::archive_pieces::{TIMELINE, archive, segment, store_segment, wal, writer};
use crate::common::{PATIENCE, runtime};
use crate::faults::{Hooked, Memory};

fn memory() -> walrecv::repo::Repository {
    Hooked::repository(Arc::<Memory>::default(), |_, _| {})
}

const MIB: u64 = 1 << 20;

fn beat(lsn: u64, time: i64) -> Heartbeat {
    Heartbeat { lsn: Lsn(lsn), time: PgTime(time) }
}

async fn put(archive: &Archive, beat: Heartbeat) {
    archive.put_heartbeat(&writer(), TIMELINE, beat, PATIENCE).await.unwrap();
}

#[test]
fn the_newest_one_that_is_covered_counts() {
    let archive = archive(&memory(), 1, true);
    runtime().block_on(async {
        assert_eq!(archive.complete_through(TIMELINE).await.unwrap(), None);
        put(&archive, beat(6 * MIB, 1_000)).await;
        assert_eq!(archive.complete_through(TIMELINE).await.unwrap(), None, "nothing is stored up to it");
        store_segment(&archive, segment(&archive, 5), &wal(MIB as usize, 1)).await;
        assert_eq!(archive.complete_through(TIMELINE).await.unwrap(), Some(beat(6 * MIB, 1_000)));

        put(&archive, beat(6 * MIB, 2_000)).await;
        put(&archive, beat(6 * MIB, 2_000)).await;
        assert_eq!(archive.heartbeats(TIMELINE).await.unwrap(), [beat(6 * MIB, 2_000)], "the lesser one is deleted");
        put(&archive, beat(7 * MIB, 3_000)).await;
        assert_eq!(archive.complete_through(TIMELINE).await.unwrap(), None, "WAL up to it is not stored");
        // Another receiver that lags says less of the time and of the WAL: both stay out of each other's way.
        put(&archive, beat(6 * MIB, 2_500)).await;
        assert_eq!(archive.complete_through(TIMELINE).await.unwrap(), Some(beat(6 * MIB, 2_500)));
        assert_eq!(archive.heartbeats(TimelineId(TIMELINE.0 + 1)).await.unwrap(), []);
        assert_eq!(archive.inventory().await.unwrap().timelines[&TIMELINE].tails.len(), 0, "it is no WAL");
    });
}

#[test]
fn what_one_speaks_of_and_is_gone_is_missed_where_no_timeline_goes_on() {
    let archive = archive(&memory(), 1, true);
    let lost = async |archive: &Archive| {
        let inventory = archive.inventory().await.unwrap();
        archive.lost_end(&inventory, TIMELINE).await.unwrap().map(|lost| (lost.from, lost.beat.lsn))
    };
    runtime().block_on(async {
        assert_eq!(lost(&archive).await, None);
        store_segment(&archive, segment(&archive, 5), &wal(MIB as usize, 1)).await;
        archive.put_history(&writer(), TIMELINE, b"1\t0/100000\tx\n2\t0/200000\tx\n", PATIENCE).await.unwrap();
        put(&archive, beat(6 * MIB, 1_000)).await;
        assert_eq!(lost(&archive).await, None);
        put(&archive, beat(6 * MIB + 80, 2_000)).await;
        assert_eq!(lost(&archive).await, Some((Lsn(6 * MIB), Lsn(6 * MIB + 80))));
        // What the old primary did after a promotion, and nobody goes on with.
        let child = TimelineId(TIMELINE.0 + 1);
        let history = format!("1\t0/100000\tx\n2\t0/200000\tx\n{TIMELINE}\t0/580000\tx\n");
        archive.put_history(&writer(), child, history.as_bytes(), PATIENCE).await.unwrap();
        assert_eq!(lost(&archive).await, None);
    });
}

#[test]
fn a_clock_that_ran_ahead_is_corrected() {
    let archive = archive(&memory(), 1, true);
    runtime().block_on(async {
        store_segment(&archive, segment(&archive, 5), &wal(MIB as usize, 1)).await;
        put(&archive, beat(5 * MIB + 8, 900_000)).await;
        put(&archive, beat(6 * MIB, 1_000)).await;
        assert_eq!(archive.heartbeats(TIMELINE).await.unwrap(), [beat(6 * MIB, 1_000)], "the wrong one is deleted");
        // Deleting may have failed, or another receiver stores it once more.
        put(&archive, beat(5 * MIB + 8, 900_000)).await;
        assert_eq!(archive.complete_through(TIMELINE).await.unwrap(), Some(beat(6 * MIB, 1_000)));
    });
}

#[test]
fn one_under_the_name_of_another_counts_for_nothing() {
    let archive = archive(&memory(), 1, true);
    runtime().block_on(async {
        store_segment(&archive, segment(&archive, 5), &wal(MIB as usize, 1)).await;
        put(&archive, beat(6 * MIB, 1_000)).await;
        let name = archive.names.heartbeat(TIMELINE, Lsn(6 * MIB), PgTime(1_000));
        let forged = archive.names.heartbeat(TIMELINE, Lsn(6 * MIB), PgTime(9_000));
        let bytes = archive.repo.get(&name).await.unwrap().unwrap();
        let judge = |_: &[u8]| walrecv::repo::Found::Different;
        archive.repo.put_once(&forged, &[bytes], &judge, PATIENCE).await.unwrap();
        assert_eq!(archive.complete_through(TIMELINE).await.unwrap(), Some(beat(6 * MIB, 1_000)));
    });
}
