//! Reading with patience, and the book in which problems are noted.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::backups::Shelf;
use super::report::{self, BadPage, Checked, Flaw, LeftOver, Problem, Report, State, Verdict};
use super::wal::Stored;
use super::{Options, Progress, Stage};
use crate::archive::Archive;
use crate::backoff::Backoff;
use crate::error::{Error, Kind, Result};
use crate::repo::names::{BackupPart, parse_backup_part};
use crate::seal::content::Malformed;
use crate::seal::content::event::Spoiled;
use crate::seal::header::{KeyClass, ObjectKind};
use crate::seal::opener::{OpenFailed, open_index};

/// Why an object is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub flaw: Flaw,
    pub found: String,
}

impl Trouble {
    pub fn damaged(found: impl ToString) -> Trouble {
        Trouble { flaw: Flaw::Damaged, found: found.to_string() }
    }

    pub fn missing() -> Trouble {
        Trouble { flaw: Flaw::Missing, found: "nothing is stored under this name".to_owned() }
    }

    /// From an error of a reader; `name` need not be told again.
    pub fn of(error: &Error, name: &str) -> Trouble {
        let text = error.to_string();
        let found = text.strip_prefix(name).map_or(text.as_str(), |rest| rest.trim_start_matches([':', ' ']));
        let flaw = match error.kind() {
            Kind::Corrupt | Kind::Diverged => Flaw::Damaged,
            Kind::Key => Flaw::Unauthentic,
            Kind::Gap => Flaw::Gap,
            // As long as patience lasted.
            _ if error.is_of_the_disk() => Flaw::Damaged,
            _ => Flaw::Unreadable,
        };
        Trouble { flaw, found: found.to_owned() }
    }
}

impl From<OpenFailed> for Trouble {
    fn from(failed: OpenFailed) -> Trouble {
        let flaw = if matches!(failed, OpenFailed::Key(_)) { Flaw::Unauthentic } else { Flaw::Damaged };
        Trouble { flaw, found: failed.to_string() }
    }
}

impl From<Malformed> for Trouble {
    fn from(malformed: Malformed) -> Trouble {
        Trouble::damaged(malformed)
    }
}

/// What all parts of the check share.
pub struct Look<'a> {
    pub archive: &'a Archive,
    pub options: &'a Options,
    book: Mutex<Book>,
    /// By class: what opens with the secret, what needs the identity too.
    tried: [Tried; 2],
    fetched: AtomicU64,
}

/// How keys did.
#[derive(Default)]
struct Tried {
    opened: AtomicU64,
    /// Objects that were refused because of their keys.
    refused: AtomicU64,
}

#[derive(Default)]
struct Book {
    problems: Vec<Problem>,
    more: Vec<Flaw>,
    checked: Checked,
    bad_pages: Vec<BadPage>,
    spoiled: Spoiled,
}

impl<'a> Look<'a> {
    pub fn new(archive: &'a Archive, options: &'a Options) -> Look<'a> {
        Look { archive, options, book: Mutex::default(), tried: Default::default(), fetched: AtomicU64::new(0) }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what was looked at.
    pub fn count(&self, add: impl FnOnce(&mut Checked)) {
        add(&mut self.book().checked);
    }

    pub fn bad_page(&self, page: BadPage) {
        let mut book = self.book();
        if book.bad_pages.len() < report::BAD_PAGES {
            book.bad_pages.push(page);
        }
    }

    pub fn tell(&self, stage: Stage, done: u64, total: u64) {
        if let Some(tell) = &self.options.progress {
            tell(Progress { stage, done, total });
        }
    }

    /// Notes a problem.
    pub fn note(&self, problem: Problem) {
        let mut book = self.book();
        if book.problems.len() < report::NAMED { book.problems.push(problem) } else { book.more.push(problem.flaw) }
    }

    /// Notes trouble with an object that these backups need.
    pub fn blame(&self, object: &str, expected: &str, trouble: Trouble, hurts: BTreeSet<String>) {
        let Trouble { flaw, found } = trouble;
        if !hurts.is_empty() && flaw != Flaw::Unreadable {
            self.spoil(object);
        }
        let (object, expected) = (object.to_owned(), expected.to_owned());
        self.note(Problem { object, flaw, expected, found, hurts, limits: BTreeSet::new() });
    }

    /// Notes a pack or a map that no new backup shall build on.
    fn spoil(&self, object: &str) {
        let root = self.archive.names.root();
        let relative = object.strip_prefix(&root).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
        match parse_backup_part(relative) {
            Some((backup, BackupPart::Pack(number))) => self.book().spoiled.add_packs(backup, [number]),
            Some((backup, BackupPart::Map(_))) => _ = self.book().spoiled.maps.insert(backup.to_owned()),
            _ => {}
        }
    }

    /// All that were noted so far.
    pub fn problems(&self) -> Vec<Problem> {
        self.book().problems.clone()
    }

    /// Asks again while the answer is an error that may pass.
    pub async fn patient<T, F>(&self, name: &str, ask: impl Fn() -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T>>,
    {
        self.patiently(ask).await.map_err(|error| Trouble::of(&error, name))
    }

    /// As [`Look::patient`], with the error itself: for what nothing can be said without.
    pub async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let started = Instant::now();
        let mut backoff =
            Backoff::new(Duration::from_millis(200), Duration::from_secs(5), getrandom::u64().unwrap_or_default());
        loop {
            match ask().await {
                Err(error) if error.is_transient() && started.elapsed() < self.options.patience && !self.silent() => {
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                answer => return answer,
            }
        }
    }

    /// Whether the store has answered nothing for longer than anything is asked for: then each object that is left is not waited for anew.
    fn silent(&self) -> bool {
        self.archive.repo.silent_for().is_some_and(|silent| silent >= self.options.patience)
    }

    /// Fetches an object and looks at it, beside the tasks. What looks wrong is fetched and looked at once more.
    pub async fn object<T: Send + 'static>(
        &self,
        name: &str,
        class: KeyClass,
        open: impl Fn(Bytes) -> Result<T, Trouble> + Clone + Send + 'static,
    ) -> Result<T, Trouble> {
        let [index, content] = &self.tried;
        let tried = if class == KeyClass::Index { index } else { content };
        let mut last = Trouble::missing();
        for _ in 0..2 {
            let Some(bytes) = self.patient(name, || self.archive.repo.get(name)).await? else {
                last = Trouble::missing();
                continue;
            };
            self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let open = open.clone();
            let opened = self.archive.repo.lane().run(move || open(bytes)).await;
            match opened.unwrap_or_else(|error| Err(Trouble { flaw: Flaw::Unreadable, found: error.to_string() })) {
                Ok(value) => {
                    tried.opened.fetch_add(1, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(trouble) => last = trouble,
            }
        }
        if last.flaw == Flaw::Unauthentic {
            tried.refused.fetch_add(1, Ordering::Relaxed);
        }
        Err(last)
    }

    /// The content of an object of the index class, number `number` in its folder.
    pub async fn index(&self, name: &str, kind: ObjectKind, number: u32) -> Result<Vec<u8>, Trouble> {
        let claims = self.archive.claims(kind, crate::pg::TimelineId(0), crate::pg::Lsn(u64::from(number)));
        let keys = self.archive.keys.clone();
        self.object(name, KeyClass::Index, move |bytes| Ok(open_index(&bytes, &claims, &*keys)?)).await
    }

    /// Backups that were deleted while this ran are hurt by nothing.
    pub fn forget(&self, gone: &BTreeSet<String>) {
        let mut book = self.book();
        book.problems.retain_mut(|problem| {
            let blamed = !problem.hurts.is_empty();
            problem.hurts.retain(|id| !gone.contains(id));
            problem.limits.retain(|id| !gone.contains(id));
            !blamed || !problem.hurts.is_empty()
        });
    }

    pub fn report(&self, shelf: &Shelf, stored: Stored, left_over: LeftOver, took: Duration) -> Report {
        let mut book = self.book();
        let Book { mut problems, more, mut checked, bad_pages, spoiled } = std::mem::take(&mut *book);
        checked.bytes = self.fetched.load(Ordering::Relaxed);
        problems.sort_by(|a, b| (&a.object, a.flaw).cmp(&(&b.object, b.flaw)));
        let flaws = problems.iter().map(|problem| problem.flaw).chain(more.iter().copied());
        let state = |id: &str| {
            let hurting = || problems.iter().filter(|problem| problem.hurts.contains(id));
            if hurting().any(|problem| problem.flaw != Flaw::Unreadable) {
                State::Hurt
            } else if hurting().next().is_some() || !more.is_empty() {
                State::Unknown
            } else {
                State::Whole
            }
        };
        let verdict = |id: String| Verdict {
            state: state(&id),
            limited: problems.iter().any(|problem| problem.limits.contains(&id)),
            id,
        };
        let names = &self.archive.names;
        Report {
            version: Report::VERSION,
            cluster: names.cluster.clone(),
            system_identifier: names.system.to_string(),
            deep: self.options.deep,
            only: self.options.only.as_ref().map(ToString::to_string),
            outcome: report::outcome(flaws),
            milliseconds: took.as_millis() as u64,
            backups: shelf.ids().map(verdict).collect(),
            wal: stored.ranges(),
            recorded_holes: stored.recorded,
            minimal_wal: stored.minimal,
            remembered: Vec::new(),
            carried: Vec::new(),
            spoiled,
            problems_not_named: more.len() as u64,
            checked,
            left_over,
            bad_pages,
            problems,
        }
    }

    /// Where no object of a class opens at all, the key is wrong, not the archive.
    pub fn demand_key(&self, report: &Report) -> Result<()> {
        let fits =
            |tried: &Tried| tried.refused.load(Ordering::Relaxed) == 0 || tried.opened.load(Ordering::Relaxed) > 0;
        if self.tried.iter().all(fits) {
            return Ok(());
        }
        let first = report.problems.iter().find(|problem| problem.flaw == Flaw::Unauthentic);
        let text = first.map_or(String::new(), |problem| format!("{}: {}", problem.object, problem.found));
        Err(Error::new(Kind::Key, format!("nothing that is stored opens with these keys: {text}"))
            .hint("Give the identity and the repository secret that this repository was made with."))
    }
}
