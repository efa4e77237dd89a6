//! After the files: recovery settings, the plan file, missing configuration files, tablespace links.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::Serialize;

use super::decide::Bounds;
use super::ground::Claimed;
use super::plan_file::{Access, PlanFile, SIGNAL};
use super::recovery::{self, Neutralised, Scratch, Upstream, Wishes};
use super::server::Account;
use super::settings::Outside;
use super::target::Action;
use super::{Prepared, lay::Laid};
use crate::archive::Archive;
use crate::disk::durable;
use crate::disk::lay::{self as disk_lay, Ground};
use crate::error::{Error, Kind, Result};
use crate::pg::{TimelineId, label};
use crate::seal::content::manifest::Manifest;

/// How to restore.
#[derive(Clone, Debug)]
pub struct Options {
    pub pgdata: PathBuf,
    /// Tablespaces that go elsewhere: old and new place.
    pub tablespaces: Vec<(PathBuf, PathBuf)>,
    pub action: Action,
    /// Packs in flight, and threads that sync.
    pub jobs: usize,
    /// Who gets the files; `None`: this process's user.
    pub account: Option<Account>,
    /// Over a data directory of the same cluster: what is right of it stays, all else goes.
    pub delta: bool,
    /// Leave `archive_mode` as production has it.
    pub keep_archiving: bool,
    /// Leave production's subscriptions at work.
    pub keep_subscriptions: bool,
    pub scratch: Option<Scratch>,
    /// With [`Action::Follow`].
    pub upstream: Upstream,
    /// Absolute path of this program, for `restore_command`.
    pub program: PathBuf,
    /// Arguments that `wal-fetch` needs when no plan binds it.
    pub fetch_arguments: Vec<String>,
}

/// What was done, beyond copying.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    pub files: u64,
    pub bytes: u64,
    /// Bytes of these that stood there already, and were right.
    pub kept: u64,
    /// Bytes of packs that were fetched.
    pub fetched: u64,
    /// Files and directories that were removed, since the backup does not have them.
    pub removed: u64,
    /// Where the WAL lies that stood in `pg_wal`.
    pub aside: Option<PathBuf>,
    pub neutralised: Vec<Neutralised>,
    /// Of a scratch server: settings that suit it and this host.
    pub adapted: Vec<Neutralised>,
    /// Settings below what recovery demands, and what they were raised to.
    pub raised: Vec<Neutralised>,
    /// What the configuration names outside of the data directory, or includes although it is not there.
    pub outside: Vec<Outside>,
    /// Configuration files that the backup did not have and that were written.
    pub written: Vec<String>,
    /// The timeline that a standby stays on: what the server would find as the newest one does not continue this backup's.
    pub stays_on: Option<u32>,
    /// Pages whose checksums were wrong when the backup read them.
    pub bad_pages: u64,
    /// What whoever uses the restored server must know: tablespaces whose files the backup has not, a `backup_manifest` that is lost.
    pub warnings: Vec<String>,
}

/// Writes all that makes the laid files a recovery.
pub async fn configure(
    archive: &Archive,
    access: Access,
    prepared: &Prepared,
    options: &Options,
    claimed: &Claimed,
    laid: &Laid,
) -> Result<Restored> {
    let ground = &claimed.ground;
    let manifest = &prepared.choice.manifest;
    for folder in [&b"pg_wal"[..], b"pg_wal/archive_status"] {
        ground.directory(folder, if laid.group_access { 0o750 } else { 0o700 })?;
    }
    if laid.group_access {
        disk_lay::make_dir(&ground.root, 0o750, ground.owner)?;
    }
    tablespace_links(manifest, ground)?;
    let label = label::for_recovery(&manifest.backup_label.0)
        .map_err(|e| Error::new(Kind::Corrupt, "the backup's backup_label").caused_by(e))?;
    ground.whole_file(b"backup_label", &label, 0o600)?;
    let written = missing_files(ground)?;
    let (newest, stays) = (newest(archive, manifest).await?, destination(prepared, options.action));
    let conf = settings(prepared, options, ground, &written, newest)?;
    if options.action == Action::Follow {
        // A standby follows no plan: `wal-fetch` reads the configuration.
        ground.whole_file(b"standby.signal", b"", 0o600)?;
        disk_lay::make_dir(&ground.root.join(super::plan_file::DIRECTORY), 0o700, ground.owner)?;
    } else {
        ground.whole_file(b"recovery.signal", SIGNAL, 0o600)?;
        plan_file(archive, access, prepared).await?.write(&ground.root, ground.owner)?;
    }
    if let Some(scratch) = &options.scratch {
        scratch_directory(scratch, ground)?;
    }
    Ok(Restored {
        files: laid.files + 1 + u64::from(manifest.tablespace_map.is_some()),
        bytes: laid.bytes,
        kept: laid.kept,
        fetched: laid.fetched,
        removed: laid.removed,
        aside: claimed.aside.clone(),
        neutralised: conf.neutralised,
        adapted: conf.adapted,
        raised: conf.raised,
        outside: conf.outside,
        written,
        stays_on: (options.action == Action::Follow && stays != newest).then_some(stays.0),
        bad_pages: manifest.bad_page_count,
        warnings: manifest.absences().collect(),
    })
}

/// The map decides at the first start; the links are what the server and pg_verifybackup look at before and after.
fn tablespace_links(manifest: &Manifest, ground: &Ground) -> Result<()> {
    let Some(map) = &manifest.tablespace_map else { return Ok(()) };
    let mut lines = label::parse_tablespace_map(&map.0)
        .map_err(|e| Error::new(Kind::Corrupt, "the backup's tablespace_map").caused_by(e))?;
    for line in &mut lines {
        if let Some((_, place)) = ground.tablespaces.iter().find(|(oid, _)| *oid == line.oid) {
            line.path = place.as_os_str().as_bytes().to_vec();
            disk_lay::link(&ground.root.join(format!("pg_tblspc/{}", line.oid)), place, ground.owner)?;
        }
    }
    ground.whole_file(b"tablespace_map", &label::print_tablespace_map(&lines), 0o600)
}

/// Debian keeps these files elsewhere, so that its backups lack them.
pub const CONFIGURATION: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// Debian keeps these files elsewhere, so its backups do not have them and the server would not start.
fn missing_files(ground: &Ground) -> Result<Vec<String>> {
    let note = "# Written by walrecv restore: the backup has no file of this name.\n";
    let hba = format!("{note}local all all peer\nlocal replication all peer\n");
    let files = CONFIGURATION.into_iter().zip([note.to_owned(), hba, note.to_owned()]);
    let mut written = Vec::new();
    for (name, content) in files {
        if !ground.root.join(name).exists() {
            ground.whole_file(name.as_bytes(), content.as_bytes(), 0o600)?;
            written.push(name.to_owned());
        }
    }
    Ok(written)
}

/// The timeline that the server finds where it looks for its `latest`: it asks for one history after the other, and takes the last one that there is
/// (`findNewestTimeLine`).
async fn newest(archive: &Archive, manifest: &Manifest) -> Result<TimelineId> {
    let mut newest = manifest.stop_timeline;
    while archive.history(TimelineId(newest.0.saturating_add(1))).await?.is_some() {
        newest = TimelineId(newest.0 + 1);
    }
    Ok(newest)
}

/// The timeline that recovery shall end on. A standby goes on to the end of its path, even where that holds no WAL of its own yet.
fn destination(prepared: &Prepared, action: Action) -> TimelineId {
    let (path, landing) = (&prepared.choice.path, &prepared.choice.landing);
    if action == Action::Follow { path.target() } else { Bounds::target_for(path, landing.needed) }
}

fn settings(
    prepared: &Prepared,
    options: &Options,
    ground: &Ground,
    written: &[String],
    newest: TimelineId,
) -> Result<recovery::Written> {
    let read = |name: &str| match std::fs::read(ground.root.join(name)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(Kind::Failed, format!("cannot read the restored {name}")).caused_by(e)),
    };
    let landing = &prepared.choice.landing;
    let wishes = Wishes {
        root: &ground.root,
        target: &prepared.target,
        action: options.action,
        landing,
        timeline: destination(prepared, options.action),
        newest,
        program: &options.program,
        fetch_arguments: &options.fetch_arguments,
        version: prepared.choice.manifest.major(),
        parameters: prepared.choice.parameters,
        keep_archiving: options.keep_archiving,
        keep_subscriptions: options.keep_subscriptions,
        scratch: options.scratch.as_ref(),
        upstream: &options.upstream,
    };
    // One that was written for want of the backup's says nothing of production.
    let main = match written.iter().any(|name| name == "postgresql.conf") {
        true => None,
        false => read("postgresql.conf")?,
    };
    let conf = recovery::write(&wishes, main.as_deref(), read("postgresql.auto.conf")?.as_deref())?;
    let place = ground.root.join("postgresql.auto.conf");
    durable::replace(&place, &conf.auto_conf, 0o600)?;
    disk_lay::give(&place, ground.owner)?;
    Ok(conf)
}

pub(super) async fn plan_file(archive: &Archive, access: Access, prepared: &Prepared) -> Result<PlanFile> {
    let (path, landing) = (&prepared.choice.path, &prepared.choice.landing);
    let mut histories = BTreeSet::new();
    for leg in &path.legs {
        if archive.history(leg.timeline).await?.is_some() {
            histories.insert(leg.timeline);
        }
    }
    let target = Bounds::target_for(path, landing.needed);
    let bounds = Bounds { path: path.clone(), target, end: landing.needed, histories };
    Ok(PlanFile { names: archive.names.clone(), access, bounds })
}

/// Whoever may enter the private directory may connect.
fn scratch_directory(scratch: &Scratch, ground: &Ground) -> Result<()> {
    disk_lay::make_dir(&scratch.directory, 0o700, ground.owner)?;
    for (name, content) in [("pg_hba.conf", "local all all trust\n"), ("pg_ident.conf", "")] {
        let place = scratch.directory.join(name);
        durable::replace(&place, content.as_bytes(), 0o600)?;
        disk_lay::give(&place, ground.owner)?;
    }
    Ok(())
}
