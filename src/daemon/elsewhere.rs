//! A receiver that stands by relies on whoever has the slot to fill the same archive. Where that one fills another, the server lets go of WAL that is stored
//! nowhere here, and this one would wait for ever.

use std::sync::Arc;
use std::time::Duration;

use super::board::Board;
use crate::archive::Archive;
use crate::error::Result;
use crate::pg::{Lsn, TimelineId};
use crate::receive::Place;

/// How often the archive is compared with the slot, and how often it must have stood still below it.
const LOOK: Duration = Duration::from_secs(30);
const LOOKS: u32 = 4;

/// Keeps what a board says of that, for ever.
pub async fn watch(place: Place, board: Arc<Board>) {
    let mut seen = Seen::default();
    loop {
        tokio::time::sleep(LOOK).await;
        // Where the slot stands is asked before where the archive ends.
        let Some((timeline, slot)) = board.waits_at() else {
            seen = Seen::default();
            board.set_elsewhere(None);
            continue;
        };
        match stored_end(&place, timeline).await {
            Ok(end) => board.set_elsewhere(seen.look(slot, end)),
            // What is known stays: the repository may answer again.
            Err(error) => tracing::info!("how far the archive reaches is not known: {error}"),
        }
    }
}

/// Where the archive ends on the newest timeline of which it has anything, up to that of the server.
async fn stored_end(place: &Place, timeline: TimelineId) -> Result<Option<Lsn>> {
    let mut newest = None;
    for names in Archive::incarnations(&place.repo, &place.cluster).await? {
        let archive = Archive { repo: place.repo.clone(), names, keys: place.reader.clone() };
        newest = newest.max(archive.newest_end(timeline).await?);
    }
    Ok(newest.map(|(_, end)| end))
}

/// What was seen of the archive.
#[derive(Debug, Default)]
struct Seen {
    end: Option<Lsn>,
    still: u32,
}

impl Seen {
    /// What there is to say. A slot never passes what is durable in the archive that its receiver fills, so one that is ahead of this archive is another's, unless
    /// the archive is catching up with it.
    fn look(&mut self, slot: Lsn, end: Option<Lsn>) -> Option<String> {
        if end.is_some_and(|end| end >= slot) {
            *self = Seen::default();
            return None;
        }
        self.still = if self.end == end { self.still.saturating_add(1) } else { 1 };
        self.end = end;
        let reach = end.map_or("nothing is stored here".to_owned(), |end| format!("this archive ends at {end}"));
        (self.still >= LOOKS).then(|| {
            format!("whoever has the slot fills another archive: the slot is at {slot}, and {reach} and does not grow")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_that_stands_still_below_the_slot_is_told() {
        let mut seen = Seen::default();
        let mut told = |slot: u64, end: Option<u64>| seen.look(Lsn(slot), end.map(Lsn)).is_some();
        assert!((0..20).all(|_| !told(500, Some(500))), "an idle server");
        assert!((1..20).all(|n| !told(500 * n, Some(500 * n + 7))), "it is filled by the other one");
        assert!((1..20).all(|n| !told(50_000, Some(500 * n))), "it catches up");
        assert_eq!([(); 5].map(|()| told(50_000, Some(10_000))), [false, false, false, true, true]);
        assert!(!told(50_000, Some(10_001)), "it moved");
        assert!((0..9).any(|n| told(60_000 + n, Some(10_001))), "and stopped, while the slot goes on");
        assert!(!told(60_000, Some(60_000)));
        assert_eq!([(); 4].map(|()| told(60_000, None)), [false, false, false, true], "nothing is stored here");
    }
}
