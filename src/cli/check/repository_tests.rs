//! Stores with one odd habit each, and the line that tells of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};

use super::super::report::Verdict;
use super::*;
use crate::repo::Listed;
use crate::repo::backend::{Answer, Backend, Piece};

#[derive(Default)]
struct Odd {
    objects: Mutex<BTreeMap<String, Bytes>>,
    /// Ignores the condition of a create.
    overwrites: bool,
    forgets: bool,
    keeps: bool,
    /// Its clock is so many seconds behind.
    behind: u64,
    slow: Duration,
}

impl Backend for Odd {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> BoxFuture<'a, Result<Answer>> {
        async move {
            tokio::time::sleep(self.slow).await;
            let mut objects = self.objects.lock().unwrap();
            if objects.contains_key(name) && !self.overwrites {
                return Ok(Answer::Taken);
            }
            objects.insert(name.to_owned(), Bytes::from(parts.concat()));
            Ok(Answer::Created)
        }
        .boxed()
    }

    fn read<'a>(&'a self, name: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Option<Piece>>> {
        let objects = self.objects.lock().unwrap();
        let piece = objects.get(name).filter(|_| !self.forgets).map(|whole| {
            let size = whole.len() as u64;
            let range = range.unwrap_or(0..size);
            let bytes = whole.slice(range.start.min(size) as usize..range.end.min(size) as usize);
            Piece { bytes, size, modified: SystemTime::now() - Duration::from_secs(self.behind) }
        });
        ready(Ok(piece)).boxed()
    }

    fn list<'a>(&'a self, _prefix: &'a str) -> BoxFuture<'a, Result<Vec<Listed>>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn folders<'a>(&'a self, _prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>> {
        if self.keeps {
            return ready(Err(Error::new(Kind::Repository, "deleting is not allowed"))).boxed();
        }
        self.objects.lock().unwrap().remove(name);
        ready(Ok(())).boxed()
    }

    fn settle<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn make_root(&self) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }
}

/// Verdict and text of one check.
async fn checked(odd: Odd, check: &str) -> (Verdict, String) {
    let repo = Repository::with_backend("s3://odd", Box::new(odd));
    let mut report = Report::default();
    write(&repo, Duration::from_secs(1), &mut report).await;
    let found = report.findings.iter().find(|finding| finding.check == check);
    let found = found.unwrap_or_else(|| panic!("no {check} in {:#?}", report.findings));
    (found.verdict, format!("{} {}", found.found, found.advice.as_deref().unwrap_or_default()))
}

#[tokio::test(start_paused = true)]
async fn each_odd_store_is_told_by_its_line() {
    const WRITTEN: &str = "repository can be written";
    const ONCE: &str = "objects are created once";
    const CLOCK: &str = "clock of the storage";
    for (odd, check, verdict, words) in [
        (Odd::default(), WRITTEN, Verdict::Ok, "read back and deleted"),
        (Odd::default(), ONCE, Verdict::Ok, "refused"),
        (Odd { overwrites: true, ..Odd::default() }, ONCE, Verdict::Fail, "If-None-Match"),
        (Odd { keeps: true, ..Odd::default() }, WRITTEN, Verdict::Ok, "deleting is not allowed"),
        (Odd { behind: 400, ..Odd::default() }, CLOCK, Verdict::Warn, "400 s behind"),
        (Odd { behind: 10, ..Odd::default() }, CLOCK, Verdict::Ok, "10 s behind"),
    ] {
        let (found, text) = checked(odd, check).await;
        assert!(found == verdict && text.contains(words), "{check}: {found:?} {text}");
    }
    let (found, text) = checked(Odd { forgets: true, ..Odd::default() }, WRITTEN).await;
    assert!(found == Verdict::Fail, "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_slower_than_the_interval_is_named() {
    let slow = Odd { slow: Duration::from_millis(1100), ..Odd::default() };
    let (found, text) = checked(slow, "speed of the repository").await;
    assert!(found == Verdict::Warn && text.contains("flush_interval"), "{text}");
}
