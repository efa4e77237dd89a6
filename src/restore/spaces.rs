//! Tablespaces that were made after the backup. Recovery makes them where they were made then, on this host, whatever the backup's own are mapped to: it puts
//! the link of the data directory there, and writes to whatever files stand there (`create_tablespace_directories`, `commands/tablespace.c`). So that place must
//! be nobody else's, and a scratch server has no business there at all.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Prepared;
use super::configure::Options;
use super::path;
use super::plan::{Landing, MadeTablespace};
use crate::disk::lay::Ground;
use crate::error::{Error, Kind, Result};
use crate::seal::content::manifest::Manifest;

/// A mapping means a tablespace of the backup, and holds for no other.
pub fn demand_no_mapping(prepared: &Prepared, options: &Options) -> Result<()> {
    let of_backup = |made: &&MadeTablespace| {
        prepared.choice.manifest.tablespaces.iter().any(|tablespace| tablespace.location.0 == made.location)
    };
    for made in prepared.choice.landing.tablespaces.iter().filter(|made| !of_backup(made)) {
        if options.tablespaces.iter().any(|(from, _)| *from == place(made)) {
            let message = format!("no mapping holds for {}", place(made).display());
            return Err(refused(
                Kind::Usage,
                prepared,
                made,
                message,
                "leave that mapping out and make that path an empty directory of the server's user",
            ));
        }
    }
    Ok(())
}

/// Refuses a recovery that would write where something else may be, or that could not go on there. `Kind::Target` for a scratch server, which is to touch nothing
/// but its own; `Kind::Usage` for a place that is not made ready. Changes nothing.
pub fn demand_ours(prepared: &Prepared, options: &Options, ground: &Ground) -> Result<()> {
    for made in &prepared.choice.landing.tablespaces {
        let place = place(made);
        // What is laid there is its own, and recovery writes it anew.
        if ground.tablespaces.iter().any(|(_, laid)| *laid == place) {
            continue;
        }
        if options.scratch.is_some() {
            let message = format!("a scratch server would write to {}", place.display());
            return Err(refused(Kind::Target, prepared, made, message, ""));
        }
        if let Some((problem, remedy)) = in_the_way(&place, &prepared.choice.manifest, ground)? {
            let message = format!("recovery writes to {}, and {problem}", place.display());
            return Err(refused(Kind::Usage, prepared, made, message, &remedy));
        }
    }
    Ok(())
}

fn place(made: &MadeTablespace) -> PathBuf {
    PathBuf::from(OsString::from_vec(made.location.clone()))
}

fn refused(kind: Kind, prepared: &Prepared, made: &MadeTablespace, message: String, remedy: &str) -> Error {
    let MadeTablespace { oid, at, .. } = made;
    let message = format!("{message}: tablespace {oid} was made there after the backup, at {at}");
    let round = prepared.choice.way_round.as_deref().unwrap_or_default();
    let or = if remedy.is_empty() || round.is_empty() { "" } else { "; or " };
    Error::new(kind, message).hint(format!("{remedy}{or}{round}"))
}

/// What keeps recovery from making a tablespace there, or would be lost by it, and what to do.
fn in_the_way(place: &Path, manifest: &Manifest, ground: &Ground) -> Result<Option<(String, String)>> {
    let failed = |path: &Path, e| Error::new(Kind::Failed, format!("cannot look at {}", path.display())).caused_by(e);
    let ready = "make it an empty directory of the server's user";
    let there = match std::fs::metadata(place) {
        Ok(there) if there.is_dir() => there,
        Ok(_) => return Ok(Some(("it is no directory".to_owned(), ready.to_owned()))),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Some(("it is not there".to_owned(), ready.to_owned())));
        }
        Err(e) => return Err(failed(place, e)),
    };
    let user = ground.owner.map_or_else(|| rustix::process::geteuid().as_raw(), |owner| owner.uid);
    if there.uid() != user {
        // The server sets its mode, which the owner alone may.
        return Ok(Some((format!("it belongs to user {}, not to the server's", there.uid()), ready.to_owned())));
    }
    let folder = place.join(folder_name(manifest));
    match std::fs::read_dir(&folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(None),
        Ok(false) => {
            let remedy = format!("where no server uses it any more, move {} away", folder.display());
            Ok(Some(("it holds the files of a server".to_owned(), remedy)))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(&folder, e)),
    }
}

/// `TABLESPACE_VERSION_DIRECTORY` (`common/relpath.h`).
fn folder_name(manifest: &Manifest) -> String {
    format!("PG_{}_{}", manifest.version_num / 10_000, manifest.control.catalog_version)
}

/// For people: another backup, or another target, with which recovery makes no such tablespace. `None` where it makes none.
pub fn way_round(backups: &[Manifest], chosen: &Manifest, path: &path::Path, landing: &Landing) -> Option<String> {
    let (first, last) = (landing.tablespaces.first()?.at, landing.tablespaces.last()?.at);
    let later = || backups.iter().filter(|m| m.start > last && path.holds(m.stop_timeline, m.stop));
    let leads_there = later().filter(|m| m.stop <= landing.replayed).max_by_key(|m| m.stop);
    let next = later().min_by_key(|m| m.stop);
    let earlier = match first >= chosen.stop {
        true => format!(", or --target-lsn {first} --exclusive for the last moment without it"),
        false => String::new(),
    };
    Some(match (leads_there, next) {
        (Some(backup), _) => format!("go by a backup that was made after it: --backup {}", backup.id),
        (None, Some(next)) => {
            format!(
                "choose a target that the next backup reaches (from its end, --target-lsn {}, on){earlier}",
                next.stop
            )
        }
        (None, None) => {
            format!("take a backup now: it has the tablespace as its own, and reaches every later moment{earlier}")
        }
    })
}
