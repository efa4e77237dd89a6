//! Where a restore goes, and whether it may: into what is absent or empty, over what an interrupted restore left, and, where that was asked for, over
//! an older state of the same cluster.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::configure::Options;
use super::{Prepared, occupant, plan_file, shared, spaces};
use crate::disk::claim::{self, CONTROL, Found};
use crate::disk::clear;
use crate::disk::lay::{Ground, Over};
use crate::error::{Error, Kind, Result};
use crate::pg::SystemIdentifier;
use crate::pg::control::ControlFile;
use crate::seal::content::manifest::Manifest;

/// Begins the name of a folder of `pg_wal` that holds what stood there before a restore.
const ASIDE: &str = "walrecv-aside-";

/// What the mark of a restore says. The system decides and, in a tablespace, the data directory; the rest is for people who wonder.
#[derive(Default, Serialize, Deserialize)]
struct Mark {
    system: u64,
    /// The data directory, without links.
    #[serde(default)]
    root: String,
    backup: String,
    target: String,
    /// A write or a sync failed here, or in a place that was laid with this one: nothing of what stands there may be kept.
    #[serde(default)]
    doubted: bool,
}

impl Mark {
    fn encode(&self) -> Result<Vec<u8>> {
        let cannot = |cause| Error::new(Kind::Failed, "cannot write the mark of a restore").caused_by(cause);
        serde_json::to_vec(self).map_err(cannot)
    }
}

/// Where everything goes. A mapping that fits no tablespace, or puts two into one place, is refused.
fn places(manifest: &Manifest, options: &Options) -> Result<Ground> {
    if !options.pgdata.is_absolute() {
        return Err(Error::new(Kind::Usage, format!("{} is no absolute path", options.pgdata.display())));
    }
    let mut unused: Vec<_> = options.tablespaces.iter().collect();
    let mut tablespaces = Vec::new();
    for tablespace in &manifest.tablespaces {
        let old = PathBuf::from(OsString::from_vec(tablespace.location.0.clone()));
        // One inside the data directory moves with it.
        if !old.is_absolute() {
            continue;
        }
        let new = unused.iter().position(|(from, _)| *from == old).map(|at| unused.remove(at).1.clone());
        tablespaces.push((tablespace.oid, new.unwrap_or(old)));
    }
    if let Some((old, _)) = unused.first() {
        let known: Vec<_> =
            manifest.tablespaces.iter().map(|t| String::from_utf8_lossy(&t.location.0).into_owned()).collect();
        let text = format!("backup {} has no tablespace at {}", manifest.id, old.display());
        return Err(Error::new(Kind::Usage, text).hint(format!(
            "its tablespaces are: {}",
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        )));
    }
    demand_apart(&options.pgdata, &tablespaces)?;
    let real_root = clear::resolved(&options.pgdata);
    for place in std::iter::once(&options.pgdata).chain(tablespaces.iter().map(|(_, place)| place)) {
        demand_own_folder(place, &real_root)?;
    }
    let owner = options.account.as_ref().map(|a| a.ids);
    Ok(Ground { root: options.pgdata.clone(), tablespaces, owner, over: Over::Nothing })
}

/// No place may hold another, links looked through, but for a tablespace in a directory of its own within the data directory, where PostgreSQL lets it be.
fn demand_apart(root: &Path, tablespaces: &[(u32, PathBuf)]) -> Result<()> {
    let real_root = clear::resolved(root);
    let places: Vec<_> = tablespaces.iter().map(|(_, place)| (place, clear::resolved(place))).collect();
    let refused = |place: &Path, other: &Path| {
        let message = format!("the tablespace at {} and {} would share a place", place.display(), other.display());
        Err(Error::new(Kind::Usage, message)
            .hint("send it to a directory of its own with --tablespace-mapping; nothing was changed"))
    };
    for (number, (place, real)) in places.iter().enumerate() {
        let shared = |(_, other): &&(&PathBuf, PathBuf)| real.starts_with(other) || other.starts_with(real);
        if let Some((other, _)) = places.iter().take(number).find(shared) {
            return refused(place, other);
        }
        let within = real.strip_prefix(&real_root).ok().map(|rest| rest.components().next());
        let own = |first: Component<'_>| {
            let name = first.as_os_str().as_encoded_bytes();
            name.starts_with(b"pg_") || [&b"base"[..], b"global"].contains(&name)
        };
        if real_root.starts_with(real) || within.is_some_and(|first| first.is_none_or(own)) {
            return refused(place, root);
        }
    }
    Ok(())
}

/// Nothing is laid within another data directory, which would take it along in every backup, or within a repository.
fn demand_own_folder(place: &Path, root: &Path) -> Result<()> {
    // Where that leads depends on what is made before it.
    if place.components().any(|part| part == Component::ParentDir) {
        let message = format!("{} has .. in it", place.display());
        return Err(Error::new(Kind::Usage, message).hint("name the directory without that; nothing was changed"));
    }
    let real = clear::resolved(place);
    let marks = [("PG_VERSION", "a data directory"), ("walrecv.json", "a repository")];
    for above in real.ancestors().skip(1).filter(|above| !above.starts_with(root)) {
        if let Some((_, what)) = marks.iter().find(|(mark, _)| above.join(mark).is_file()) {
            let message = format!("{} lies within {what}: {}", place.display(), above.display());
            return Err(Error::new(Kind::Usage, message).hint("name a directory of its own; nothing was changed"));
        }
    }
    Ok(())
}

/// What the data directory is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basis {
    Empty,
    /// An interrupted restore of this cluster.
    Begun,
    /// A data directory of this cluster.
    Cluster,
}

/// Looks at the data directory and the tablespaces, and refuses what must not be overwritten. Changes nothing.
pub fn look(prepared: &Prepared, options: &Options) -> Result<Ground> {
    let manifest = &prepared.choice.manifest;
    spaces::demand_no_mapping(prepared, options)?;
    let mut ground = places(manifest, options)?;
    spaces::demand_ours(prepared, options, &ground)?;
    claim::idle(&ground.root)?;
    let basis = basis(&ground.root, manifest.system, options.delta)?;
    let mut occupied = basis != Basis::Empty;
    if occupied {
        occupant::demand_none(&ground.root)?;
    }
    for (oid, place) in &ground.tablespaces {
        claim::idle(place)?;
        occupied |= tablespace(&ground.root, *oid, place, manifest.system, basis)?;
    }
    if occupied {
        shared::demand_own(&ground)?;
    }
    let places = std::iter::once(&ground.root).chain(ground.tablespaces.iter().map(|(_, place)| place));
    let doubts: Vec<bool> = places.map(|place| doubted(place)).collect::<Result<_>>()?;
    ground.over = match (occupied, doubts.contains(&true)) {
        (false, _) => Over::Nothing,
        (true, false) => Over::Kept,
        (true, true) => Over::Doubted,
    };
    Ok(ground)
}

/// Whether a mark, where there is one, says that what stands there cannot be relied upon, or says nothing.
fn doubted(path: &Path) -> Result<bool> {
    let mark = claim::read(path)?;
    Ok(mark.is_some_and(|mark| serde_json::from_slice::<Mark>(&mark).map_or(true, |mark| mark.doubted)))
}

fn basis(root: &Path, system: SystemIdentifier, delta: bool) -> Result<Basis> {
    let what = match claim::look(root)? {
        Found::Nothing => return Ok(Basis::Empty),
        Found::Begun(mark) => return begun(root, &mark, system).map(|_| Basis::Begun),
        Found::Occupied(what) => what,
    };
    let place = root.join(CONTROL);
    let control = match std::fs::read(&place) {
        Ok(content) => ControlFile::parse(&content).map_err(|e| e.to_string()),
        Err(e) => Err(format!("{}: {e}", place.display())),
    };
    let shown = root.display();
    match control {
        Ok(control) if control.system == system && delta => Ok(Basis::Cluster),
        Ok(control) if control.system == system => {
            Err(Error::new(Kind::Usage, format!("{shown} is occupied: it is a data directory of this cluster"))
                .hint("restore into an empty directory; or stop its server and give --delta, to keep what is right of it and lose all else"))
        }
        _ if !delta => Err(Error::new(Kind::Usage, format!("{shown} is occupied: {what}"))
            .hint("restore into a new or empty directory; nothing was changed")),
        Ok(control) => {
            let message = format!("{shown} belongs to system {}, the backup to {system}", control.system);
            Err(Error::new(Kind::Diverged, message).hint("--delta works over the same cluster's data directory alone; nothing was changed"))
        }
        Err(problem) => {
            let message = format!("{shown} is no data directory of this cluster, system {system}: {problem}");
            Err(Error::new(Kind::Diverged, message).hint("restore into a new or empty directory; nothing was changed"))
        }
    }
}

/// What an interrupted restore left is gone on with, whatever backup and target it was for: what stands there is compared, not believed. Returns its data directory.
fn begun(path: &Path, mark: &[u8], system: SystemIdentifier) -> Result<String> {
    let shown = path.display();
    match serde_json::from_slice::<Mark>(mark) {
        Ok(mark) if mark.system == system.0 => Ok(mark.root),
        Ok(mark) => {
            let message =
                format!("{shown} holds an interrupted restore of system {}, the backup is of {system}", mark.system);
            Err(Error::new(Kind::Diverged, message).hint("restore into a new or empty directory; nothing was changed"))
        }
        Err(cause) => {
            let message = format!("{shown} is occupied: the mark of an interrupted restore cannot be read");
            Err(Error::new(Kind::Usage, message)
                .hint("restore into a new or empty directory; nothing was changed")
                .caused_by(cause))
        }
    }
}

/// Whether something stands in the place of a tablespace. It may be overwritten where an interrupted restore into the same data directory left it, or where it is
/// the tablespace of the data directory that is overwritten: its link leads there.
fn tablespace(root: &Path, oid: u32, place: &Path, system: SystemIdentifier, basis: Basis) -> Result<bool> {
    let what = match claim::look(place)? {
        Found::Nothing => return Ok(false),
        Found::Begun(mark) => match begun(place, &mark, system)? {
            of if of == shown(root) => return Ok(true),
            of => format!("it holds an interrupted restore into {of:?}"),
        },
        Found::Occupied(what) => what,
    };
    let link = root.join(format!("pg_tblspc/{oid}"));
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    if basis != Basis::Empty && link.is_symlink() && real(&link).is_some() && real(&link) == real(place) {
        return Ok(true);
    }
    let message = format!("{} is occupied: {what}", place.display());
    Err(Error::new(Kind::Usage, message)
        .hint("send the tablespace to an empty directory with --tablespace-mapping; nothing was changed"))
}

/// A data directory as the mark names it.
fn shown(root: &Path) -> String {
    clear::resolved(root).display().to_string()
}

/// A ground that is ours until this goes: marked and locked.
pub struct Claimed {
    pub ground: Ground,
    /// Where the WAL lies that stood in `pg_wal`.
    pub aside: Option<PathBuf>,
    /// Locked.
    marks: Vec<File>,
    mark: Mark,
}

impl Claimed {
    /// Notes that nothing of what was laid may be kept by a later restore: its sync failed, and another one of the same pages would succeed without having
    /// written them. As well as it can be: on a disk that fails the mark may fail too, but whoever could still see those pages sees it in memory as well.
    pub fn doubt(&mut self) {
        self.mark.doubted = true;
        for mark in &self.marks {
            let written = self.mark.encode().and_then(|text| {
                claim::write(mark, &text).map_err(|e| Error::new(Kind::Failed, "cannot write the mark").caused_by(e))
            });
            written.unwrap_or_else(|e| tracing::warn!("that what was laid is not to be kept is not noted: {e}"));
        }
    }
}

/// Looks, marks, looks again, and makes sure that no server starts on what is going to change. Old WAL is set aside, never deleted: it may hold what no archive has.
pub fn claim(prepared: &Prepared, options: &Options) -> Result<Claimed> {
    let before = look(prepared, options)?;
    let manifest = &prepared.choice.manifest;
    let mark = Mark {
        system: manifest.system.0,
        root: shown(&before.root),
        backup: manifest.id.to_string(),
        target: prepared.target.describe(),
        // Until it is complete, or what cannot be relied upon would be kept by the one after this.
        doubted: before.over == Over::Doubted,
    };
    let text = mark.encode()?;
    let basis_before = basis(&before.root, manifest.system, options.delta)?;
    for (_, place) in &before.tablespaces {
        claim::demand_writable(place)?;
    }
    let mut marks = vec![claim::claim(&before.root, &text, before.owner)?];
    let taken = take(&before, &|| basis(&before.root, manifest.system, options.delta), basis_before);
    if let Err(error) = taken {
        // A mark says that what stands there is nobody's: it stays only where that is so.
        if !matches!(claim::look(&before.root), Ok(Found::Begun(_))) {
            claim::unmark(&before.root).unwrap_or_else(|e| tracing::warn!("a mark stays: {e}"));
        }
        return Err(error);
    }
    // Not before no server starts there any more: in a tablespace that is in use, a mark would give it away to whoever restores next.
    for (_, place) in &before.tablespaces {
        marks.push(claim::claim(place, &text, before.owner)?);
    }
    let aside = match before.is_occupied() {
        true => old_wal(&before)?,
        false => None,
    };
    Ok(Claimed { ground: before, aside, marks, mark })
}

/// Takes pg_control away, if all is as it was before the mark stood.
fn take(ground: &Ground, basis: &dyn Fn() -> Result<Basis>, before: Basis) -> Result<()> {
    // Whoever was at work there until now may have completed it.
    if before != basis()? {
        let message = format!("{} changed while it was looked at", ground.root.display());
        return Err(Error::new(Kind::Usage, message).hint("see who else uses it; nothing was changed"));
    }
    if before != Basis::Empty {
        occupant::demand_none(&ground.root)?;
    }
    claim::take_control(&ground.root)
}

fn old_wal(ground: &Ground) -> Result<Option<PathBuf>> {
    clear::remove_tree(&ground.root.join(plan_file::DIRECTORY))?;
    let name = format!("{ASIDE}{}", Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
    let earlier = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(ASIDE.as_bytes());
    clear::set_aside(&shared::real(&ground.root.join("pg_wal")), &name, &earlier, ground.owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_laid_within_another_data_directory_or_a_repository() {
        let dir = tempfile::tempdir().unwrap();
        let [data, repository, root] = ["data", "repository", "new"].map(|name| dir.path().join(name));
        for (folder, mark) in [(&data, "PG_VERSION"), (&repository, "walrecv.json")] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join(mark), "").unwrap();
        }
        let within = |place: &Path| demand_own_folder(place, &clear::resolved(&root)).map_err(|e| e.kind());
        for refused in [data.join("base/x"), data.join("x"), repository.join("clusters/x"), root.join("../data/x")] {
            assert_eq!(within(&refused), Err(Kind::Usage), "{}", refused.display());
        }
        for fine in [&root, &data, &root.join("tablespace"), &dir.path().join("other")] {
            assert_eq!(within(fine), Ok(()), "{}", fine.display());
        }
        // Its own, which is restored over.
        assert_eq!(demand_own_folder(&data.join("tablespace"), &clear::resolved(&data)).map_err(|e| e.kind()), Ok(()));
    }

    #[test]
    fn a_tablespace_is_gone_on_with_by_a_restore_into_the_same_data_directory_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (root, other, place) = (dir.path().join("data"), dir.path().join("new"), dir.path().join("space"));
        let mark = |root: String| {
            let mark = Mark { system: 7, root, ..Mark::default() };
            drop(claim::claim(&place, &serde_json::to_vec(&mark).unwrap(), None).unwrap());
            std::fs::write(place.join("x"), "").unwrap();
        };
        let look = |root: &Path| tablespace(root, 16384, &place, SystemIdentifier(7), Basis::Empty);
        mark(shown(&root));
        assert!(look(&root).unwrap());
        let refused = look(&other).unwrap_err();
        assert!(refused.kind() == Kind::Usage && refused.to_string().contains("interrupted restore into"), "{refused}");
        std::os::unix::fs::symlink(&root, dir.path().join("link")).unwrap();
        std::fs::create_dir(&root).unwrap();
        assert!(look(&dir.path().join("link")).unwrap());
        // Of a restore that did not say.
        mark(String::new());
        assert!(look(&root).is_err());
    }

    #[test]
    fn what_a_failed_sync_left_is_doubted_until_a_restore_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        assert!(!doubted(&root).unwrap());
        let mark = Mark { system: 7, ..Mark::default() };
        let ground = Ground { root: root.clone(), tablespaces: Vec::new(), owner: None, over: Over::Nothing };
        let marks = vec![claim::claim(&root, &mark.encode().unwrap(), None).unwrap()];
        assert!(!doubted(&root).unwrap());
        Claimed { ground, aside: None, marks, mark }.doubt();
        assert!(doubted(&root).unwrap());
        assert_eq!(begun(&root, &claim::read(&root).unwrap().unwrap(), SystemIdentifier(7)).unwrap(), "");
        std::fs::write(root.join(claim::MARK), "{").unwrap();
        assert!(doubted(&root).unwrap(), "it says nothing");
        claim::unmark(&root).unwrap();
        assert!(!doubted(&root).unwrap());
    }

    #[test]
    fn what_stops_a_restore_before_it_begins_leaves_the_data_directory_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("global")).unwrap();
        std::fs::write(dir.path().join(CONTROL), "x").unwrap();
        let ground = Ground { root: dir.path().into(), tablespaces: Vec::new(), owner: None, over: Over::Kept };
        assert!(take(&ground, &|| Ok(Basis::Begun), Basis::Cluster).is_err());
        std::fs::write(dir.path().join("postmaster.pid"), "1\n").unwrap();
        assert!(take(&ground, &|| Ok(Basis::Cluster), Basis::Cluster).is_err(), "one has started meanwhile");
        assert!(dir.path().join(CONTROL).exists());
        std::fs::remove_file(dir.path().join("postmaster.pid")).unwrap();
        take(&ground, &|| Ok(Basis::Cluster), Basis::Cluster).unwrap();
        assert!(!dir.path().join(CONTROL).exists());
    }

    #[test]
    fn places_do_not_hold_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("data")).unwrap();
        std::os::unix::fs::symlink(at("data"), at("link")).unwrap();
        let apart = |places: &[&str]| {
            let places: Vec<_> = places.iter().zip(1..).map(|(place, oid)| (oid, at(place))).collect();
            demand_apart(&at("data"), &places)
        };
        apart(&["space", "space 2", "data/space", "link/deep/space", "data 2"]).unwrap();
        for bad in ["data", "link", "", "data/base/x", "link/global", "data/pg_tblspc/1", "data/pg_wal"] {
            assert_eq!(apart(&[bad]).unwrap_err().kind(), Kind::Usage, "{bad}");
        }
        for bad in [["a", "a"], ["a", "a/b"], ["a/b/c", "a"], ["data/s", "link/s"]] {
            assert_eq!(apart(&bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
