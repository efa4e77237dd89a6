//! Which packs maps name, what they say of them, and which backups need them.

use std::collections::BTreeMap;

use super::bits::Bits;
use crate::seal::content::BackupId;
use crate::seal::content::map::PackPlace;
use crate::seal::hash::content_hash;
use crate::seal::key::RepositorySecret;
use crate::seal::sealer::FramePlace;

/// One pack.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Bytes of the object.
    pub len: u64,
    /// Of its first bytes and the places of its frames.
    pub mark: [u8; 32],
    pub frames: u32,
    /// Plain bytes of all frames but the contents list.
    pub plain: u64,
    /// Backups whose maps name it.
    pub named: Bits,
    /// Backups that take at least one byte from it.
    pub needed: Bits,
}

/// All packs, by backup and number.
#[derive(Clone, Debug, Default)]
pub struct Census {
    pub packs: BTreeMap<BackupId, BTreeMap<u32, Pack>>,
}

impl Census {
    /// Notes that the maps of these backups name a pack. An error says how this contradicts what another map says of it.
    pub fn name(&mut self, secret: &RepositorySecret, place: &PackPlace, by: &Bits) -> Result<(), String> {
        let mark = mark(secret, &place.header, &place.frames);
        let frames = place.frames.len() as u32;
        let plain = place.frames.iter().skip(1).map(|frame| u64::from(frame.plain_len)).sum();
        let of = self.packs.entry(place.backup.clone()).or_default();
        let known = of.entry(place.number).or_insert_with(|| Pack {
            len: place.len,
            mark,
            frames,
            plain,
            named: Bits::default(),
            needed: Bits::default(),
        });
        known.named.add(by);
        if (known.len, known.mark) == (place.len, mark) {
            return Ok(());
        }
        Err(format!(
            "pack {} of {} as {} bytes in {frames} frames, where another map has another pack of {} bytes in {} frames",
            place.number, place.backup, place.len, known.len, known.frames
        ))
    }

    pub fn need(&mut self, backup: &BackupId, number: u32, by: &Bits) {
        if let Some(pack) = self.packs.get_mut(backup).and_then(|of| of.get_mut(&number)) {
            pack.needed.add(by);
        }
    }

    /// For a backup of which it is not known what it needs: everything that its maps name.
    pub fn need_all_named(&mut self, number: usize) {
        let packs = self.packs.values_mut().flat_map(BTreeMap::values_mut);
        packs.filter(|pack| pack.named.has(number)).for_each(|pack| pack.needed.set(number));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&BackupId, u32, &Pack)> {
        self.packs.iter().flat_map(|(backup, of)| of.iter().map(move |(number, pack)| (backup, *number, pack)))
    }
}

/// Tells two packs apart that have the same name and length.
pub fn mark(secret: &RepositorySecret, header: &[u8], frames: &[FramePlace]) -> [u8; 32] {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    for frame in frames {
        bytes.extend_from_slice(&frame.offset.to_le_bytes());
        bytes.extend_from_slice(&frame.len.to_le_bytes());
        bytes.extend_from_slice(&frame.plain_len.to_le_bytes());
    }
    content_hash(secret, &bytes)
}
