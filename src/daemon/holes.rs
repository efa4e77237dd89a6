//! What no restore gets past and no backup lies behind: an alarm that outlives the process that recorded it, and ends with the backup, whoever takes it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::board::Board;
use crate::archive::Archive;
use crate::archive::holes::Barrier;
use crate::error::{Error, Kind, Result};
use crate::pg::TimelineId;
use crate::receive::{Place, ReceiveEvent};

/// How often the repository is asked: while there is an alarm, or no answer yet, and otherwise.
const LOOK: Duration = Duration::from_secs(60);
const LOOK_ROUTINE: Duration = Duration::from_secs(600);

/// Keeps what a board says of holes as the repository has it, for ever.
pub async fn watch(place: Place, board: Arc<Board>) {
    let (mut last, mut told) = (Last::default(), None);
    loop {
        let begun = Instant::now();
        let found = look(&mut last, &place, board.timeline()).await;
        tokio::time::sleep(tell(&board, found, begun, &mut told)).await;
    }
}

/// Puts on the board what was found, by a look that began then; how long to wait for the next one. `told` is the last warning.
fn tell(board: &Board, found: Result<Vec<Barrier>>, begun: Instant, told: &mut Option<String>) -> Duration {
    match found {
        Ok(open) => {
            board.set_barriers(open, begun);
            return if board.hole().is_some() { LOOK } else { LOOK_ROUTINE };
        }
        // What may pass is told by the stream too.
        Err(error) if error.is_transient() => tracing::info!("holes are not known: {error}"),
        Err(error) => {
            let text = format!("the repository does not tell whether there are holes: {error}");
            if told.as_ref() != Some(&text) {
                board.see(&ReceiveEvent::Warning(text.clone()));
                *told = Some(text);
            }
        }
    }
    LOOK
}

async fn look(last: &mut Last, place: &Place, timeline: Option<TimelineId>) -> Result<Vec<Barrier>> {
    let stored = Archive::incarnations(&place.repo, &place.cluster).await?;
    let Some(names) = only(stored, &place.cluster)? else { return Ok(Vec::new()) };
    let archive = Archive { repo: place.repo.clone(), names, keys: place.reader.clone() };
    last.look(&archive, timeline).await
}

/// What was found the last time, when every backup could be read. Backups are read again only where something else stands under their names: an expiry puts
/// a tombstone where a manifest was.
#[derive(Default)]
pub struct Last {
    recorded: Vec<Barrier>,
    backups: Vec<(String, SystemTime, u64)>,
    open: Vec<Barrier>,
}

impl Last {
    /// What is open in the past of a server on `timeline`, or all of it. An error where a backup that may lie behind one cannot be read for the moment.
    pub async fn look(&mut self, archive: &Archive, timeline: Option<TimelineId>) -> Result<Vec<Barrier>> {
        let recorded = archive.barriers().await?;
        if recorded.is_empty() {
            return Ok(recorded);
        }
        let listed = archive.repo.list(&format!("{}/backups", archive.names.root())).await?;
        let backups = listed.into_iter().map(|backup| (backup.name, backup.modified, backup.size)).collect();
        let open = match (&self.recorded, &self.backups) == (&recorded, &backups) {
            true => self.open.clone(),
            false => {
                let mut list = archive.list_backups().await?;
                let passing =
                    list.unreadable.iter().position(|(_, error)| error.is_transient() && !error.is_of_the_disk());
                if let Some(place) = passing {
                    let (name, error) = list.unreadable.swap_remove(place);
                    return Err(error.context(format_args!("{name} cannot be read")));
                }
                let open = archive.open_among(recorded.clone(), &list.complete).await?;
                *self = match list.unreadable.is_empty() {
                    true => Last { recorded, backups, open: open.clone() },
                    // It may be put back as it was.
                    false => Last::default(),
                };
                open
            }
        };
        match timeline {
            Some(timeline) => archive.barriers_of(open, timeline).await,
            None => Ok(open),
        }
    }
}

/// The incarnation that is stored, if there is one. Which of several the stream belongs to the listing does not tell: what is known of holes stays then.
fn only<T>(mut stored: Vec<T>, cluster: &str) -> Result<Option<T>> {
    let last = stored.pop();
    if stored.is_empty() {
        return Ok(last);
    }
    let text = format!("cluster {cluster:?} has several incarnations");
    Err(Error::new(Kind::Diverged, text).hint("use a new cluster name after pg_upgrade or a new initdb"))
}

/// What to say of what is open: the newest of each kind, and how many more there are.
pub fn words(open: &[Barrier]) -> Option<String> {
    let gone = newest(open, |barrier| match barrier {
        Barrier::Hole(hole) => Some(format!("WAL from {} to {} is gone for good", hole.from, hole.to)),
        Barrier::Minimal(_) => None,
    });
    let useless = newest(open, |barrier| match barrier {
        Barrier::Minimal(at) => {
            Some(format!("nothing is restored past {}, where the server went on under wal_level = minimal", at.lsn))
        }
        Barrier::Hole(_) => None,
    });
    let told: Vec<String> = gone.into_iter().chain(useless).collect();
    (!told.is_empty()).then(|| format!("{}: a new base backup is needed", told.join("; ")))
}

/// The last one of a kind in words, and how many more there are.
fn newest(open: &[Barrier], words: impl Fn(&Barrier) -> Option<String>) -> Option<String> {
    let mut told: Vec<String> = open.iter().filter_map(words).collect();
    let newest = told.pop()?;
    Some(match told.len() {
        0 => newest,
        more => format!("{newest}, with {more} more before it"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::Lsn;
    use crate::seal::content::event::{Hole, MinimalWal};

    fn recorded(from: u64) -> Hole {
        let timeline = TimelineId(1);
        let (from, to) = (Lsn(from), Lsn(from + 10));
        Hole { from_timeline: timeline, from, to_timeline: timeline, to, reason: "removed".to_owned() }
    }

    fn hole(from: u64) -> Barrier {
        Barrier::Hole(recorded(from))
    }

    #[test]
    fn the_newest_hole_is_named_and_the_others_are_counted() {
        assert_eq!(words(&[]), None);
        let one = words(&[hole(16)]).unwrap();
        assert!(one.contains("from 0/10 to 0/1A is gone for good: a new"), "{one}");
        let two = words(&[hole(16), hole(32)]).unwrap();
        assert!(two.contains("from 0/20") && two.contains("1 more before it"), "{two}");
        let minimal = MinimalWal { timeline: TimelineId(1), lsn: Lsn(64) };
        let three = words(&[hole(16), hole(32), Barrier::Minimal(minimal)]).unwrap();
        assert!(three.contains("1 more before it; nothing is restored past 0/40, where"), "{three}");
    }

    fn board() -> Board {
        Board::new("main", None, Duration::from_secs(1), Arc::default())
    }

    #[test]
    fn an_open_hole_is_told_from_the_start_until_a_backup_closes_it() {
        let (board, mut told) = (board(), None);
        let mut tell = |found| tell(&board, found, Instant::now(), &mut told);
        let away = || Err(Error::new(Kind::Repository, "away").transient());
        assert_eq!((tell(away()), board.report().healthy), (LOOK, true));
        assert_eq!((tell(Ok(vec![hole(16)])), board.report().healthy), (LOOK, false));
        assert_eq!((tell(away()), board.report().healthy), (LOOK, false), "what is not known does not end it");
        let report = board.report();
        assert!(report.hole.is_some() && report.problem == report.hole, "{report:?}");
        assert_eq!((tell(Ok(Vec::new())), board.report().healthy), (LOOK_ROUTINE, true));
        assert_eq!(board.report().hole, None);
        tell(Err(Error::new(Kind::Corrupt, "an event cannot be opened")));
        assert!(board.report().warning.is_some_and(|warning| warning.text.contains("cannot be opened")));
    }

    #[test]
    fn several_incarnations_do_not_end_an_alarm() {
        assert_eq!(only(Vec::<u8>::new(), "main").unwrap(), None);
        assert_eq!(only(vec![7], "main").unwrap(), Some(7));
        let (board, mut told) = (board(), None);
        board.see(&ReceiveEvent::Hole(recorded(16)));
        let found = only(vec![1, 2], "main").map(|_| Vec::new());
        tell(&board, found, Instant::now() + LOOK, &mut told);
        assert!(board.report().hole.is_some());
        assert!(board.report().warning.is_some_and(|warning| warning.text.contains("several incarnations")));
    }

    #[test]
    fn a_hole_that_is_recorded_while_the_repository_is_asked_is_not_forgotten() {
        let (board, begun) = (board(), Instant::now());
        board.see(&ReceiveEvent::Hole(recorded(48)));
        board.set_barriers(Vec::new(), begun);
        assert!(board.hole().is_some_and(|text| text.contains("0/30")));
        board.set_barriers(vec![hole(48)], begun);
        assert!(board.hole().is_some_and(|text| !text.contains("more")), "it is one hole");
        board.set_barriers(Vec::new(), Instant::now() + LOOK);
        assert_eq!(board.hole(), None);
    }
}
