//! The repository: its keys, and whether it can be written as walrecv writes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use super::report::Report;
use crate::archive::key_files::Looked;
use crate::cli::context::Context;
use crate::cli::output;
use crate::disk::durable;
use crate::error::{Error, Kind, Result};
use crate::repo::{Found, Repository};

/// How long one object may take.
const PROBE_LIMIT: Duration = Duration::from_secs(20);
/// Size of the object that shows the speed.
const LARGE: usize = 4 << 20;
/// Less free space than this is worth a word on any disk.
const FEW: u64 = 1 << 30;
/// How many small objects are timed.
const ROUNDS: usize = 3;
/// Clocks further apart are worth a word: certificates, signatures and schedules go by them.
pub const SKEW: i64 = 30;

pub async fn look(context: &Context, report: &mut Report) {
    report.ok(
        "repository",
        format!("{} ({})", context.repo.url(), if context.encrypted() { "encrypted" } else { "NOT encrypted" }),
    );
    keys(context, report).await;
    space(&context.repo, report);
    write(&context.repo, context.cluster.flush_interval, report).await;
}

async fn keys(context: &Context, report: &mut Report) {
    match context.writer_ring().and_then(|ring| ring.fresh().map(|_| ())) {
        Err(error) => report.fail("keys to write", &error),
        // The context has tried the secret.
        Ok(()) if context.encrypted() => {
            report.ok("keys to write", "the repository secret is this repository's, the public key is here");
        }
        Ok(()) => report.ok("keys to write", "none: the repository is not encrypted"),
    }
    if !context.encrypted() {
        return;
    }
    let settings = &context.settings;
    for file in [&settings.secret_file, &settings.identity_file, &settings.passphrase_file].into_iter().flatten() {
        private(file, report);
    }
    key_files(context, report).await;
    match context.repository_keys().await {
        Ok(_) => report.ok("keys to restore", "the configured private key opens the repository identity"),
        Err(_) if context.settings.identity_file.is_none() && context.settings.passphrase_file.is_none() => report
            .warn(
                "keys to restore",
                "no private key is configured on this host",
                "a host that only writes needs none; make sure that another place has one",
            ),
        // One is meant to open the repository from here, and does not.
        Err(error) => report.fail("keys to restore", &error),
    }
}

/// Told before anything is written: without any of these files nobody can ever open it.
async fn key_files(context: &Context, report: &mut Report) {
    const CHECK: &str = "key files";
    match context.key_files().await {
        Ok(None) => {}
        Ok(Some(Looked { whole, damaged })) => {
            for error in &damaged {
                match whole {
                    0 => report.fail(CHECK, error),
                    _ => report.warn(CHECK, error.to_string(), error.advice().unwrap_or_default()),
                }
            }
            match whole {
                0 if damaged.is_empty() => report.fail(CHECK, &Error::new(Kind::Key, "there is none any more")),
                0 => {}
                _ => report.ok(CHECK, format!("{}, as stored", output::count(whole, "key file"))),
            }
        }
        Err(error) => report.fail(CHECK, &error),
    }
}

/// Whoever reads the secret can forge what is stored, and whoever reads the private key can read it.
fn private(file: &Path, report: &mut Report) {
    let Ok(meta) = std::fs::metadata(file) else { return };
    if meta.mode() & 0o077 != 0 {
        let found = format!("{} can be read by others: its mode is {:04o}", file.display(), meta.mode() & 0o7777);
        report.warn("mode of key files", found, format!("run chmod 0600 {}", file.display()));
    }
}

/// A disk that is nearly full stops the archive, and then the server's disk fills.
fn space(repo: &Repository, report: &mut Report) {
    const CHECK: &str = "space of the repository";
    let Some(stat) = repo.local_root().and_then(|root| rustix::fs::statvfs(root).ok()) else { return };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let whole = stat.f_blocks.saturating_mul(stat.f_frsize);
    let found = format!("{} of {} free", output::bytes(free), output::bytes(whole));
    match free < FEW || free < whole / 20 {
        true => {
            report.warn(CHECK, found, "make room: a full repository holds WAL on the server until its disk is full too")
        }
        false => report.ok(CHECK, found),
    }
}

/// Probe objects, and what they showed.
struct Probes<'a> {
    repo: &'a Repository,
    folder: String,
    made: Vec<String>,
    times: Vec<Duration>,
}

impl Probes<'_> {
    /// Creates the next object. One that stands there already is refused.
    async fn put(&mut self, content: Bytes) -> Result<String> {
        let name = format!("{}-{}", self.folder, self.made.len());
        self.put_at(&name, content).await?;
        Ok(name)
    }

    async fn put_at(&mut self, name: &str, content: Bytes) -> Result<Duration> {
        let expected = content.clone();
        let judge = move |head: &[u8]| match expected.starts_with(head) {
            true => Found::Ours,
            false => Found::Different,
        };
        if !self.made.iter().any(|made| made == name) {
            self.made.push(name.to_owned());
        }
        let begun = Instant::now();
        self.repo.put_once(name, &[content], &judge, PROBE_LIMIT).await?;
        let took = begun.elapsed();
        self.times.push(took);
        Ok(took)
    }

    /// Whether all of them could be deleted. What a write-only host may not delete stays, and is a few bytes.
    async fn delete(&mut self) -> bool {
        let mut all = true;
        for name in self.made.drain(..) {
            all &= self.repo.delete(&name).await.is_ok();
        }
        if let Some(root) = self.repo.local_root() {
            // Their folder; it stays while another check runs.
            let _ = durable::remove_empty_dir(&root.join("probe"));
        }
        all
    }
}

async fn write(repo: &Repository, flush_interval: Duration, report: &mut Report) {
    let id = match crate::keys::setup::random_repository_id() {
        Ok(id) => crate::seal::content::hex(&id.0),
        Err(error) => return report.fail("repository can be written", &error),
    };
    let mut probes = Probes { repo, folder: format!("probe/{id}"), made: Vec::new(), times: Vec::new() };
    let outcome = small(&mut probes, report).await;
    let deleted = probes.delete().await;
    let times = std::mem::take(&mut probes.times);
    match outcome {
        Err(error) => return report.fail("repository can be written", &error),
        Ok(()) if deleted => report.ok("repository can be written", "objects were created, read back and deleted"),
        Ok(()) => report.ok(
            "repository can be written",
            "objects were created and read back; deleting is not allowed here, so a few bytes stay under probe/",
        ),
    }
    // A host that may not delete would leave megabytes behind with every check.
    let large = match deleted {
        true => probes.put_at(&format!("probe/{id}-large"), noise(LARGE)).await.ok(),
        false => None,
    };
    probes.delete().await;
    speed(flush_interval, times, large, report);
}

/// Small objects are created and read back, and a second creation under one name must be refused.
async fn small(probes: &mut Probes<'_>, report: &mut Report) -> Result<()> {
    let mut last = String::new();
    for round in 0..ROUNDS {
        last = probes.put(Bytes::from(format!("walrecv check {round}\n"))).await?;
    }
    let head = probes.repo.head(&last).await?;
    let times = probes.times.len();
    let second = probes.put_at(&last, Bytes::from_static(b"another walrecv check\n")).await;
    probes.times.truncate(times);
    match second {
        Err(error) if error.kind() == Kind::Diverged => {
            report.ok("objects are created once", "a second creation under the same name was refused");
        }
        Err(error) => return Err(error),
        Ok(_) => report.fail(
            "objects are created once",
            &Error::new(Kind::Repository, "the store replaced an object although it was asked to create it only if absent")
                .hint("this storage ignores conditional writes (If-None-Match): two writers would destroy each other's WAL; use another, or a newer one"),
        ),
    }
    let expected = format!("walrecv check {}\n", ROUNDS - 1);
    match probes.repo.get(&last).await? {
        Some(bytes) if bytes == expected.as_bytes() => {}
        Some(_) => return Err(Error::new(Kind::Repository, "what was read back is not what was written")),
        None => {
            return Err(Error::new(Kind::Repository, "an object that was created is not found")
                .hint("the storage must show a new object at once (read after write)"));
        }
    }
    if let Some(head) = head {
        storage_clock(head.modified, report);
    }
    Ok(())
}

fn storage_clock(modified: SystemTime, report: &mut Report) {
    let seconds = match SystemTime::now().duration_since(modified) {
        Ok(behind) => -i64::try_from(behind.as_secs()).unwrap_or(i64::MAX),
        Err(ahead) => i64::try_from(ahead.duration().as_secs()).unwrap_or(i64::MAX),
    };
    clock("clock of the storage", seconds, report);
}

/// `seconds`: how far the other clock is ahead of ours.
pub fn clock(check: &'static str, seconds: i64, report: &mut Report) {
    let side = if seconds < 0 { "behind" } else { "ahead of" };
    match seconds.unsigned_abs() {
        0..=2 => report.ok(check, "agrees with the clock of this host"),
        apart if seconds.abs() <= SKEW => report.ok(check, format!("{apart} s {side} the clock of this host")),
        apart => report.warn(
            check,
            format!("{apart} s {side} the clock of this host"),
            "set the clocks by NTP: walrecv measures ages on one clock, but certificates, signatures of requests and a person's --target-time do not",
        ),
    }
}

fn speed(interval: Duration, mut times: Vec<Duration>, large: Option<Duration>, report: &mut Report) {
    times.sort();
    let Some(median) = times.get(times.len() / 2) else { return };
    let rate = large.map(|took| (LARGE as f64 / took.as_secs_f64().max(1e-6)) as u64);
    let fast = rate.map_or(String::new(), |rate| {
        format!(", {} of noise at {}/s", output::bytes(LARGE as u64), output::bytes(rate))
    });
    let found = format!("a small object is durable after {:.0?}{fast}", round(*median));
    if *median > interval.max(Duration::from_millis(500)) {
        let advice = "WAL becomes durable no faster than that; a synchronous commit waits for it: use a nearer repository, or a longer flush_interval";
        return report.warn("speed of the repository", found, advice);
    }
    report.ok("speed of the repository", found);
}

/// Microseconds are enough.
fn round(time: Duration) -> Duration {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// Bytes that do not compress.
fn noise(length: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 8).to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

#[cfg(test)]
#[path = "repository_tests.rs"]
mod tests;
