//! Single files of a backup, read without laying it back.

use super::{Archive, refused};
use crate::error::{Error, Kind, Result};
use crate::pg::{Lsn, TimelineId};
use crate::seal::content::contents::Contents;
use crate::seal::content::manifest::Manifest;
use crate::seal::content::map::{File, Merge, PackPlace, Source, Step};
use crate::seal::header::ObjectKind;
use crate::seal::opener::Opener;

/// A pack that is open, with the frame that was read last.
struct OpenPack {
    name: String,
    opener: Opener,
    contents: Contents,
    frame: Option<(u32, Vec<u8>)>,
}

impl Archive {
    /// The files of a backup whose paths are `wanted`. Reads all its maps.
    pub async fn files_of(&self, manifest: &Manifest, wanted: &(dyn Fn(&[u8]) -> bool + Sync)) -> Result<Vec<File>> {
        let mut found = Vec::new();
        let mut see = |file: File| {
            if wanted(&file.path) {
                found.push(file);
            }
        };
        self.each_file(manifest, &mut see).await?;
        Ok(found)
    }

    /// Calls `see` for each path of a backup, in order. Reads all its maps.
    pub async fn each_file(&self, manifest: &Manifest, see: &mut (dyn FnMut(File) + Send)) -> Result<()> {
        let malformed = |e| Error::new(Kind::Corrupt, "map").caused_by(e);
        let mut merge = Merge::new(&manifest.maps);
        loop {
            match merge.step().map_err(malformed)? {
                Step::Need { map, part } => {
                    let place = manifest.maps.get(map);
                    let missing = || Error::new(Kind::Corrupt, "the maps name a map that is not there");
                    let plain = self.map_part(&place.ok_or_else(missing)?.backup, part).await?;
                    merge.feed(map, &plain).map_err(malformed)?;
                }
                Step::File(file) => see(file),
                Step::End => return Ok(()),
            }
        }
    }

    /// The bytes of a file. One that is longer than `limit` is `Kind::Failed`.
    pub async fn content_of(&self, file: &File, limit: u64) -> Result<Vec<u8>> {
        let shown = String::from_utf8_lossy(&file.path).into_owned();
        if file.size > limit {
            return Err(Error::new(Kind::Failed, format!("{shown} has {} bytes, at most {limit} are read", file.size)));
        }
        let unit = file.kind.unit().map_or(1, |unit| unit.bytes());
        let mut out = vec![0; file.size as usize];
        let mut open: Option<OpenPack> = None;
        for run in &file.runs {
            let Source::Pack { pack, frame, offset } = &run.source else { continue };
            let name = self.names.pack(pack.backup.as_str(), pack.number);
            if open.as_ref().is_none_or(|open| open.name != name) {
                open = Some(self.open_pack(pack, name).await?);
            }
            let Some(open) = &mut open else { continue };
            if open.frame.as_ref().is_none_or(|(number, _)| number != frame) {
                open.frame = Some((*frame, self.frame_of(pack, &open.name, &open.opener, *frame).await?));
            }
            let (at, len) = (run.first * unit, run.count * unit);
            let stands = open.contents.stands(*frame, *offset, &file.path, at, len);
            stands.map_err(|found| {
                let place = format!("frame {frame} of {}, byte {offset}", open.name);
                let text = format!("a map says that {len} bytes at {at} of {shown:?} stand in {place}: {found}");
                Error::new(Kind::Corrupt, text).hint("see what `walrecv verify --deep` says")
            })?;
            let plain = open.frame.as_ref().map_or(&[][..], |(_, plain)| plain);
            let from = *offset as usize;
            let bytes = from.checked_add(len as usize).and_then(|to| plain.get(from..to));
            let place = out.get_mut(at as usize..(at + len) as usize);
            match (place, bytes) {
                (Some(place), Some(bytes)) => place.copy_from_slice(bytes),
                _ => {
                    let text = format!("a map names bytes of {shown} or of {} that are not there", open.name);
                    return Err(Error::new(Kind::Corrupt, text));
                }
            }
        }
        Ok(out)
    }

    async fn open_pack(&self, pack: &PackPlace, name: String) -> Result<OpenPack> {
        let claims = self.claims(ObjectKind::Pack, TimelineId(0), Lsn(u64::from(pack.number)));
        let opener = Opener::new(&pack.header, &claims, &*self.keys, true).map_err(|e| refused(&name, e))?;
        let list = self.frame_of(pack, &name, &opener, 0).await?;
        let contents = Contents::decode(&list, &pack.backup, pack.number);
        let contents = contents.map_err(|e| Error::new(Kind::Corrupt, &name).caused_by(e))?;
        Ok(OpenPack { name, opener, contents, frame: None })
    }

    async fn frame_of(&self, pack: &PackPlace, name: &str, opener: &Opener, frame: u32) -> Result<Vec<u8>> {
        let missing = || Error::new(Kind::Corrupt, format!("{name} has no frame {frame}, but a map names it"));
        let place = pack.frames.get(frame as usize).ok_or_else(missing)?;
        let range = place.offset..place.offset + u64::from(place.len);
        let gone = || Error::new(Kind::Corrupt, format!("{name} is missing, and a backup needs it"));
        let sealed = self.repo.get_range(name, range).await?.ok_or_else(gone)?;
        opener.frame(&sealed, frame, pack.is_last(frame)).map_err(|e| refused(name, e.behind(place.offset)))
    }
}
