//! The catalog, fed beside the stream: what was acknowledged is noted by a task of its own, through a queue that nobody waits for.
//!
//! The repository is the truth. Whatever was not noted (the queue was full, the file system of the catalog is, the last run was killed) is learned from it
//! again, and until that has been done nothing more is noted: so what is noted is always all there was, up to somewhere.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::groups::Groups;
use super::lasting::Lasting;
use super::observe::Observer;
use crate::archive::Archive;
use crate::archive::learn::Scope;
use crate::backoff::Backoff;
use crate::catalog::{Begun, Catalog, Fact, Object, Shared};
use crate::error::{Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::pg::{Lsn, TimelineId};
use crate::repo::WalGroup;

/// Notes that wait. More are learned from the repository.
const QUEUE: usize = 1024;
/// Most notes that are written at once.
const BATCH: usize = 256;
/// How long a stop waits for the last notes.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is noted.
#[derive(Debug)]
pub enum Note {
    /// A pipeline begins: everything of its timeline below `start` was stored before.
    Began {
        timeline: TimelineId,
        start: Lsn,
    },
    /// An object of this run is durable and acknowledged.
    Stored(Box<Object>),
    /// So is one of another run, equal in content. What its summary says stands in it alone.
    StoredBefore {
        timeline: TimelineId,
        start: Lsn,
        end: Lsn,
    },
    /// A group summary is stored.
    Grouped(WalGroup),
    Told(Fact),
}

/// Where notes go. Never waits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Feed {
    notes: mpsc::Sender<Note>,
    missed: Arc<AtomicBool>,
}

impl Feed {
    pub fn tell(&self, note: Note) {
        if self.notes.try_send(note).is_err() {
            self.missed.store(true, Ordering::SeqCst);
        }
    }
}

/// The tasks beside a run: they end with it.
pub struct Index {
    feed: Feed,
    keeping: JoinSet<()>,
    _grouping: JoinSet<()>,
}

impl Index {
    /// `path`: the catalog's file; without one only group summaries are written.
    pub fn start(
        path: Option<PathBuf>,
        archive: Archive,
        writer: Arc<WriterRing>,
        observer: Observer,
        lasting: Lasting,
    ) -> Index {
        let (notes, queue) = mpsc::channel(QUEUE);
        let missed = Arc::new(AtomicBool::new(false));
        let feed = Feed { notes, missed: missed.clone() };
        let (group_ends, ended) = mpsc::unbounded_channel();
        let (mut keeping, mut grouping) = (JoinSet::new(), JoinSet::new());
        grouping.spawn(Groups::new(archive.clone(), writer, observer.clone(), feed.clone()).run(ended));
        let keeper = Keeper {
            path,
            archive,
            observer,
            lasting,
            missed,
            group_ends,
            catalog: None,
            behind: true,
            due: Instant::now(),
            backoff: Backoff::new(Duration::from_secs(2), Duration::from_secs(60), 0),
            warned: false,
            damaged: Vec::new(),
            said: vec![Fact::Began(SystemTime::now())],
        };
        keeping.spawn(keeper.run(queue));
        Index { feed, keeping, _grouping: grouping }
    }

    pub fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// Waits a moment for what was told last: how the run ends is the last of it.
    pub async fn end(self, problem: Option<String>) {
        let Index { feed, mut keeping, _grouping: grouping } = self;
        let end = Note::Told(Fact::Ended { at: SystemTime::now(), problem });
        let _ = tokio::time::timeout(LAST_WORDS, feed.notes.send(end)).await;
        // The queue ends when nobody can tell anything any more.
        drop((feed, grouping));
        let _ = tokio::time::timeout(LAST_WORDS, keeping.join_next()).await;
    }
}

/// The task that holds the catalog.
struct Keeper {
    path: Option<PathBuf>,
    archive: Archive,
    observer: Observer,
    lasting: Lasting,
    missed: Arc<AtomicBool>,
    group_ends: mpsc::UnboundedSender<super::groups::Work>,
    catalog: Option<Shared>,
    /// Something is not noted: it is learned from the repository when that is due.
    behind: bool,
    due: Instant,
    backoff: Backoff,
    /// Trouble was told, and has not passed.
    warned: bool,
    /// Damage in the repository that was told.
    damaged: Vec<String>,
    /// How the run goes, and is not written yet: unlike all else that depends on nothing that is stored.
    said: Vec<Fact>,
}

impl Keeper {
    async fn run(mut self, mut queue: mpsc::Receiver<Note>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let (learn, due) = (self.behind && self.path.is_some(), self.due);
            tokio::select! {
                // What has been told is taken first: what is learned then covers it.
                biased;
                taken = queue.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return self.last_words().await;
                    }
                    self.take(&mut batch).await;
                }
                () = tokio::time::sleep_until(due), if learn => {
                    // Notes that come while this goes on wait in the queue.
                    self.missed.store(false, Ordering::SeqCst);
                    let learned = self.learn().await;
                    self.settled(learned);
                }
            }
        }
    }

    async fn take(&mut self, batch: &mut Vec<Note>) {
        let mut facts = Vec::new();
        for note in batch.drain(..) {
            self.pass_on(&note);
            match note {
                Note::Began { .. } => self.fall_behind(),
                Note::Stored(object) => facts.push(Fact::Object(*object)),
                Note::StoredBefore { timeline, start, .. } if !self.knows(timeline, start).await => self.fall_behind(),
                Note::StoredBefore { .. } => {}
                Note::Grouped(WalGroup { timeline, first }) => facts.push(Fact::Group { timeline, first }),
                Note::Told(fact @ Fact::Reached { .. }) => replace(&mut self.said, fact),
                Note::Told(fact @ Fact::Ended { .. }) => self.said.push(fact),
                Note::Told(fact) => facts.push(fact),
            }
        }
        self.write_what_was_said().await;
        if self.missed.swap(false, Ordering::SeqCst) {
            self.fall_behind();
        }
        let Some(catalog) = self.catalog.clone().filter(|_| !self.behind) else { return };
        let noted = catalog.with(move |catalog| catalog.apply(&facts, SystemTime::now())).await;
        if noted.is_err() {
            self.settled(noted);
        }
    }

    /// What cannot be written now is tried again with the next.
    async fn write_what_was_said(&mut self) {
        let Some(catalog) = self.catalog.clone().filter(|_| !self.said.is_empty()) else { return };
        let said = self.said.clone();
        if catalog.with(move |catalog| catalog.apply(&said, SystemTime::now())).await.is_ok() {
            self.said.clear();
        }
    }

    /// The run is over. What it never came to learn is learned by the next one; how it ended nobody else could tell.
    async fn last_words(&mut self) {
        if self.catalog.is_none() && self.path.is_some() {
            self.catalog = self.open().await.ok();
        }
        self.write_what_was_said().await;
    }

    /// The end of a group is acknowledged: its summary can be written.
    fn pass_on(&self, note: &Note) {
        let (timeline, start, end) = match note {
            Note::Began { timeline, start } => {
                let _ = self.group_ends.send(super::groups::Work::Began { timeline: *timeline, start: *start });
                return;
            }
            Note::Stored(object) if !object.partial => (object.timeline, object.start, object.end),
            Note::StoredBefore { timeline, start, end } => (*timeline, *start, *end),
            _ => return,
        };
        let group = WalGroup::of(timeline, start);
        if group.ends_by(end) {
            let _ = self.group_ends.send(super::groups::Work::Ended(group));
        }
    }

    /// Everything that is told from now on is left to be learned.
    fn fall_behind(&mut self) {
        if !self.behind {
            self.behind = true;
            self.due = Instant::now();
        }
    }

    async fn knows(&self, timeline: TimelineId, start: Lsn) -> bool {
        let Some(catalog) = self.catalog.clone().filter(|_| !self.behind) else { return false };
        let found = catalog.with(move |catalog| catalog.object(timeline, start)).await;
        found.is_ok_and(|object| object.is_some())
    }

    /// Opens the catalog if it is not open, and brings it up to date.
    async fn learn(&mut self) -> Result<()> {
        let catalog = match &self.catalog {
            Some(catalog) => catalog.clone(),
            None => {
                let catalog = self.open().await?;
                self.catalog = Some(catalog.clone());
                catalog
            }
        };
        let lasting = self.lasting.clone();
        let learned = self
            .archive
            .learn_but(&catalog, Scope::New, &|timeline, start| lasting.awaits(timeline, start), &|_| {})
            .await?;
        for problem in learned.damaged {
            if !self.damaged.contains(&problem) {
                self.observer.warn(format!("damaged in the repository: {problem}"));
                self.damaged.push(problem);
            }
        }
        Ok(())
    }

    async fn open(&self) -> Result<Shared> {
        let Some(path) = self.path.clone() else { return Err(Error::new(Kind::Failed, "there is no catalog")) };
        let (identity, shown, lane) = (self.archive.identity(), path.display().to_string(), self.archive.repo.lane());
        let opened = lane.clone().run(move || Catalog::write(&path, &identity)).await??;
        let Some((catalog, begun)) = opened else {
            return Err(Error::new(Kind::Busy, format!("another process writes {shown}")).transient());
        };
        if let Begun::Replaced(why) = begun {
            self.observer.warn(format!("the catalog {shown} could not be used and is made anew: {why}"));
        }
        Ok(Shared::new(catalog, lane))
    }

    /// What came of an attempt: trouble is told once, and everything is tried again later.
    fn settled(&mut self, outcome: Result<()>) {
        let Err(error) = outcome else {
            self.behind = false;
            self.warned = false;
            self.backoff.reset();
            return;
        };
        if error.kind() == Kind::Corrupt {
            // Opened again, the file is looked through and replaced.
            self.catalog = None;
        }
        if !std::mem::replace(&mut self.warned, true) {
            self.observer.warn(format!("the catalog is not up to date, the stream goes on: {error}"));
        }
        self.behind = true;
        self.due = Instant::now() + self.backoff.next_delay();
    }
}

/// A later word about a timeline takes the place of an earlier one, but what was durable stays so: see [`Fact::Reached`].
fn replace(said: &mut Vec<Fact>, mut new: Fact) {
    said.retain(|old| match (old, &mut new) {
        (Fact::Reached { timeline: a, durable: before, .. }, Fact::Reached { timeline: b, durable, .. }) if a == b => {
            *durable = (*durable).max(*before);
            false
        }
        _ => true,
    });
    said.push(new);
}

#[cfg(test)]
mod tests {
    use super::super::note::Notes;
    use super::*;

    #[test]
    fn what_was_durable_is_not_unsaid_by_who_comes_later_and_is_behind() {
        let at = SystemTime::UNIX_EPOCH;
        let reached = |timeline, to| Fact::Reached {
            timeline: TimelineId(timeline),
            durable: Lsn(to),
            server_end: Lsn(to + 1),
            at,
        };
        let mut said = vec![Fact::Began(at)];
        [reached(1, 8), reached(2, 3), reached(1, 5)].into_iter().for_each(|fact| replace(&mut said, fact));
        let last = Fact::Reached { timeline: TimelineId(1), durable: Lsn(8), server_end: Lsn(6), at };
        assert_eq!(said, [Fact::Began(at), reached(2, 3), last]);
    }

    #[test]
    fn where_the_server_was_told_nothing_nothing_is_said() {
        let (notes, mut queue) = mpsc::channel(QUEUE);
        let notes = Notes::begin(TimelineId(1), Lsn(7), Feed { notes, missed: Arc::default() });
        notes.reached(Lsn::INVALID, Lsn(9));
        assert!(matches!(queue.try_recv(), Ok(Note::Began { .. })) && queue.try_recv().is_err());
        notes.reached(Lsn(8), Lsn(9));
        assert!(matches!(queue.try_recv(), Ok(Note::Told(Fact::Reached { durable: Lsn(8), .. }))));
    }
}
