//! Floor 5: is what the repository holds whole? Reads back and changes nothing.
//!
//! ```text
//! manifests → key files → maps (each once, then as each backup reads them) → packs listed with the length that maps say
//!   → PostgreSQL's manifests → WAL: ranges, gaps, what each backup needs → everything else that is stored → are the backups still there
//! quick: what a deep check found hurt, and none has found whole since, stays hurt
//! deep: every frame of every pack and every object with WAL opened, contents lists against pages and maps
//! ```
//!
//! Three things are told apart: what is damaged or missing, what WAL lacks, and what could not be read. A store that fails for a moment is asked again;
//! one that goes on failing makes an object *unreadable*, which is neither good nor bad. What looks damaged is read a second time before it counts.

mod backups;
mod bits;
mod census;
mod keys;
mod look;
mod maps;
mod others;
mod packs;
mod remembered;
mod report;
mod runs;
pub mod stats;
mod wal;
mod wal_objects;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use report::{
    BadPage, Checked, Flaw, LeftOver, LeftOverOf, Problem, Range, Report, SeenHole, SeenMinimal, State, Verdict,
};

use crate::archive::Archive;
use crate::error::{Error, Kind, Result};
use crate::seal::content::BackupId;
use look::Look;

/// Whether a private key opens a key file to the repository identity.
pub type Opens = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// What is looked at, and how.
#[derive(Clone)]
pub struct Options {
    /// Open every byte: needs the identity. Otherwise names, lengths and the index class are enough.
    pub deep: bool,
    /// Only this backup and the WAL from its start to its stop.
    pub only: Option<BackupId>,
    /// The public key of the repository identity, whose key files are looked at; `None`: nothing is encrypted.
    pub identity: Option<String>,
    /// The private key at hand; `None`: there is none.
    pub opens: Option<Opens>,
    /// Objects that are read side by side; each takes up to 40 MiB while it is opened.
    pub jobs: usize,
    /// How long one object is asked for while the store fails.
    pub patience: Duration,
    /// Is told how it goes, from any thread.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            deep: false,
            only: None,
            identity: None,
            opens: None,
            jobs: 4,
            patience: Duration::from_secs(30),
            progress: None,
        }
    }
}

/// How it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    pub done: u64,
    /// Of so many, in the unit of the stage.
    pub total: u64,
}

/// What is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Counted in maps.
    Maps,
    /// Counted in bytes; deep only.
    Packs,
    /// Counted in maps, against the packs' contents lists; deep only.
    Runs,
    /// Counted in folders of 4 GiB of WAL.
    Wal,
}

/// Looks at the archive. An error means that nothing can be said: a listing that fails, a key that opens nothing, one backup that is none. Everything
/// else is in the report.
pub async fn verify(archive: &Archive, options: &Options) -> Result<Report> {
    let clock = Instant::now();
    let look = Look::new(archive, options);
    let mut shelf = backups::shelf(&look).await?;
    if let Some(identity) = &options.identity {
        keys::look(&look, &shelf, identity).await?;
    }
    let present = packs::present(&look).await?;
    backups::lost(&look, &mut shelf, &present).await?;
    let census = maps::walk(&look, &shelf).await;
    let left_over = packs::listed(&look, &shelf, &census, present).await?;
    if options.deep {
        let bad = packs::open_all(&look, &shelf, &census).await;
        maps::compare_runs(&look, &shelf, &bad).await;
    }
    backups::server_manifests(&look, &shelf).await;
    let stored = wal::look(&look, &shelf).await?;
    wal_objects::look(&look, &shelf, &stored).await?;
    if options.only.is_none() {
        others::look(&look).await?;
    }
    let told = remembered::ask(&look).await?;
    let remembered = remembered::blame(&look, &shelf, &told);
    let gone = backups::vanished(&look, &mut shelf).await?;
    look.forget(&gone);
    let mut report = Report { remembered, ..look.report(&shelf, stored, left_over, clock.elapsed()) };
    remembered::carry(&mut report, &told);
    look.demand_key(&report)?;
    Ok(report)
}

/// The error that ends a command whose report is not all good; `None` when it is.
pub fn refusal(report: &Report) -> Option<Error> {
    use crate::seal::content::event::Outcome;
    let count = report.problems.len() as u64 + report.problems_not_named;
    let problems = if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") };
    let (kind, text, hint) = match report.outcome {
        Outcome::Ok => return None,
        Outcome::Corrupt => (
            Kind::Corrupt,
            format!("{problems}: something that is stored is missing or damaged"),
            "Bring the named objects back from another copy of the repository, or take a new backup now: it builds on nothing that a noted check found hurt.",
        ),
        Outcome::Gap => (
            Kind::Gap,
            format!("{problems}: WAL is missing"),
            "Nothing is restored across a gap: take a new backup behind it.",
        ),
        Outcome::Unreadable => (
            Kind::Repository,
            format!("{problems}: not everything could be read, so nothing is known of that"),
            "Run it again when the repository answers; see whether this user may read all of it.",
        ),
    };
    Some(Error::new(kind, text).hint(hint))
}
