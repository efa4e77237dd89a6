//! What the server said of every file when it sent all of them, against what was laid.
//!
//! Each object of a repository is authentic by itself, and that a page of a map is a page of that file at that place, the packs' lists say. Which *version*
//! of the page it is, nothing says but this: a map that names what an earlier backup stored of the same place gives a file of another checksum.

use std::cmp::Ordering;

use super::{lay, plan_file};
use crate::disk::lay::Ground;
use crate::disk::sorted::{Merged, Pair, Sorter};
use crate::error::{Error, Kind, Result};
use crate::pg::manifest::Checksum;
use crate::seal::content::manifest::Manifest;
use crate::seal::content::varint::{Cursor, put};
use crate::seal::content::{BackupId, Malformed};

/// Memory for the list, which is sorted: that of some 100,000 files. What does not fit goes to a file without a name, beside the plan.
const MEMORY: usize = 8 << 20;

/// The list while it comes, in the server's order.
pub struct Sending {
    backup: BackupId,
    files: Sorter,
}

/// The list in the order of paths, which is that of maps.
pub struct Sent {
    backup: BackupId,
    files: Merged,
    /// The next one.
    next: Option<Pair>,
    /// What was said of files that are not laid from the maps.
    apart: Vec<(Vec<u8>, Said)>,
}

/// Of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    size: u64,
    /// `None`: another checksum than CRC-32C, or none.
    crc: Option<u32>,
}

impl Sent {
    pub fn begin(manifest: &Manifest, ground: &Ground) -> Sending {
        let folder = ground.root.join(plan_file::DIRECTORY);
        Sending { backup: manifest.id.clone(), files: Sorter::new(&folder, MEMORY) }
    }

    /// A file that was laid; files come in the order of their paths.
    ///
    /// Errors: `Kind::Corrupt` where the server said something else, or nothing, of it, or named one before it that was not laid.
    pub fn compare(&mut self, path: &[u8], size: u64, crc: u32) -> Result<()> {
        let said = self.said(path)?;
        said.map_or(Ok(()), |said| self.demand(path, said, size, crc))
    }

    /// As [`Sent::compare`], of a file that was not laid as the server sent it.
    pub fn pass_over(&mut self, path: &[u8]) -> Result<()> {
        self.said(path).map(|_| ())
    }

    /// What was said of a file, and with it of all before it.
    fn said(&mut self, path: &[u8]) -> Result<Option<Said>> {
        loop {
            let order = self.next.as_ref().map_or(Ordering::Greater, |(next, _)| next.as_slice().cmp(path));
            match order {
                Ordering::Less => self.pass()?,
                Ordering::Equal => return Ok(self.take()?.map(|(_, said)| said)),
                Ordering::Greater => {
                    let shown = String::from_utf8_lossy(path);
                    return Err(
                        self.refused(format!("{shown:?} is in the maps, and PostgreSQL's manifest does not name it"))
                    );
                }
            }
        }
    }

    /// All were laid. `control` is `global/pg_control`; the labels are in the manifest.
    pub fn finish(mut self, manifest: &Manifest, control: &[u8]) -> Result<()> {
        while self.next.is_some() {
            self.pass()?;
        }
        let map = manifest.tablespace_map.as_ref().map(|map| map.0.as_slice());
        let labels = [(&b"backup_label"[..], Some(manifest.backup_label.0.as_slice())), (b"tablespace_map", map)];
        for (path, said) in std::mem::take(&mut self.apart) {
            let mut known = labels.into_iter().chain([(lay::CONTROL, Some(control))]);
            if let Some((_, Some(content))) = known.find(|(name, _)| *name == path) {
                self.demand(&path, said, content.len() as u64, crc32c::crc32c(content))?;
            }
        }
        Ok(())
    }

    /// The next one was not laid from the maps.
    fn pass(&mut self) -> Result<()> {
        let Some((path, said)) = self.take()? else { return Ok(()) };
        if lay::is_laid(&path) {
            let shown = String::from_utf8_lossy(&path);
            return Err(self.refused(format!("PostgreSQL's manifest names {shown:?}, and no map does")));
        }
        self.apart.push((path, said));
        Ok(())
    }

    fn take(&mut self) -> Result<Option<(Vec<u8>, Said)>> {
        let next = self.files.next_pair()?;
        let Some((path, bytes)) = std::mem::replace(&mut self.next, next) else { return Ok(None) };
        let said = Said::decode(&bytes).map_err(|bad| Error::new(Kind::Failed, bad.to_string()))?;
        Ok(Some((path, said)))
    }

    fn demand(&self, path: &[u8], said: Said, size: u64, crc: u32) -> Result<()> {
        let shown = String::from_utf8_lossy(path);
        if said.size != size {
            let expected = said.size;
            return Err(self.refused(format!("{shown:?} has {size} bytes, PostgreSQL's manifest says {expected}")));
        }
        match said.crc {
            Some(expected) if expected != crc => Err(self.refused(format!(
                "the CRC-32C of {shown:?} is {crc:08x}, PostgreSQL's manifest says {expected:08x}: a map names other bytes than \
                 those that were sent"
            ))),
            _ => Ok(()),
        }
    }

    fn refused(&self, problem: String) -> Error {
        Error::new(Kind::Corrupt, problem)
            .context(format_args!("backup {}", self.backup))
            .hint("restore from another backup, and take a new one with --full")
    }
}

impl Sending {
    pub fn push(&mut self, path: &[u8], size: u64, checksum: &Checksum) -> Result<()> {
        let crc = if let Checksum::Crc32c(crc) = checksum { Some(*crc) } else { None };
        self.files.push(path, &Said { size, crc }.encode())
    }

    pub fn sorted(self) -> Result<Sent> {
        let mut files = self.files.finish()?;
        let next = files.next_pair()?;
        Ok(Sent { backup: self.backup, files, next, apart: Vec::new() })
    }
}

impl Said {
    fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self.size);
        put(&mut out, self.crc.map_or(0, |crc| u64::from(crc) + 1));
        out
    }

    fn decode(bytes: &[u8]) -> Result<Said, Malformed> {
        let mut cursor = Cursor::new("what the server said of a file", bytes);
        Ok(Said { size: cursor.number()?, crc: cursor.number()?.checked_sub(1).map(|crc| crc as u32) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(files: &[(&str, u64, Checksum)]) -> Sent {
        let folder = tempfile::tempdir().unwrap();
        let backup = BackupId::parse("20260131T020000Z-0000001A-0000000300000028-1a2b").unwrap();
        let mut sending = Sending { backup, files: Sorter::new(folder.path(), MEMORY) };
        files.iter().for_each(|(path, size, sum)| sending.push(path.as_bytes(), *size, sum).unwrap());
        sending.sorted().unwrap()
    }

    /// Refused, and with what word.
    fn refused(compared: Result<()>, word: &str) {
        let error = compared.unwrap_err();
        assert!(error.kind() == Kind::Corrupt && error.to_string().contains(word), "{error}");
    }

    #[test]
    fn each_file_is_what_the_server_sent() {
        // In the server's order; with another checksum only the size is known.
        let other = Checksum::Other { algorithm: "SHA256".to_owned(), digits: "00".to_owned() };
        let all = || {
            let files = [
                ("base/5/2", 16384, Checksum::Crc32c(7)),
                ("base/5/1", 8192, Checksum::Crc32c(0)),
                ("x", 3, other.clone()),
            ];
            sent(&files)
        };
        let mut sent = all();
        sent.compare(b"base/5/1", 8192, 0).unwrap();
        sent.compare(b"base/5/2", 16384, 7).unwrap();
        sent.compare(b"x", 3, 99).unwrap();
        refused(sent.compare(b"y", 1, 1), "does not name it");

        refused(all().compare(b"base/5/1", 8192, 1), "CRC-32C");
        refused(all().compare(b"base/5/1", 8191, 0), "has 8191 bytes");
        refused(all().compare(b"base/5/2", 16384, 7), "no map does");
        refused(all().pass_over(b"base/5/2"), "no map does");
        refused(all().pass_over(b"base/5/0"), "does not name it");
        let mut sent = all();
        sent.pass_over(b"base/5/1").unwrap();
        refused(sent.compare(b"base/5/2", 16384, 8), "CRC-32C");
    }
}
