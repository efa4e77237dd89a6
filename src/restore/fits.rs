//! Whether what is to be laid fits where it goes: hours of copying shall not end with a full disk that could be seen before.

use std::collections::BTreeMap;
use std::path::Path;

use super::Prepared;
use crate::disk::lay::Ground;
use crate::disk::room::{self, Room};
use crate::error::{Error, Kind, Result};

/// `Kind::Failed` where the bytes that are laid certainly do not fit: zeros are holes and count for nothing, nor does the WAL that recovery needs beside. Where
/// the file system may compress, it is only told. What stands there already takes no more room, whatever of it is kept.
pub fn demand(prepared: &Prepared, ground: &Ground) -> Result<()> {
    let place =
        |oid: &u32| ground.tablespaces.iter().find(|(of, _)| of == oid).map_or(&ground.root, |(_, place)| place);
    let mut laid: BTreeMap<&Path, u64> = BTreeMap::new();
    for (oid, bytes) in &prepared.laid {
        *laid.entry(place(oid)).or_default() += bytes;
    }
    let standing = |place: &Path| if ground.is_occupied() { room::taken(place) } else { 0 };
    demand_in(laid.into_iter().map(|(place, bytes)| (place, bytes.saturating_sub(standing(place)))), &room::at)
}

/// Several places may lie in one file system.
fn demand_in<'a>(laid: impl Iterator<Item = (&'a Path, u64)>, room: &dyn Fn(&Path) -> Option<Room>) -> Result<()> {
    let mut systems: BTreeMap<u64, (Room, &Path, u64)> = BTreeMap::new();
    for (place, bytes) in laid {
        let Some(room) = room(place) else { continue };
        systems.entry(room.device).or_insert((room, place, 0)).2 += bytes;
    }
    for (room, place, bytes) in systems.into_values().filter(|(room, _, bytes)| room.free < *bytes) {
        let message = format!(
            "{} has {} MiB left, and {} MiB are to be laid there",
            place.display(),
            room.free >> 20,
            bytes.div_ceil(1 << 20)
        );
        if room.certain {
            return Err(Error::new(Kind::Failed, message).hint(
                "make room there, or name another place with --pgdata or --tablespace-mapping; nothing was changed",
            ));
        }
        tracing::warn!("{message}: it fits only where that file system compresses it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_one_file_system_share_its_room() {
        let room = |path: &Path| {
            let (device, free) = if path.starts_with("/a") { (1, 100) } else { (2, 10) };
            (path != Path::new("/unknown")).then_some(Room { device, free, certain: !path.ends_with("zfs") })
        };
        let demand =
            |laid: &[(&str, u64)]| demand_in(laid.iter().map(|(place, bytes)| (Path::new(*place), *bytes)), &room);
        demand(&[("/a/1", 60), ("/a/2", 40), ("/b", 10), ("/unknown", 1 << 40)]).unwrap();
        let refused = demand(&[("/a/1", 60), ("/a/2", 41), ("/b", 10)]).unwrap_err();
        assert!(refused.kind() == Kind::Failed && refused.to_string().starts_with("/a/1 has"), "{refused}");
        assert!(demand(&[("/b", 11)]).is_err() && demand(&[("/b/zfs", 11)]).is_ok());
    }
}
