//! What the files are made of: a header that names what the file belongs to, and blocks with their lengths and checksums.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::disk::durable::failed;
use crate::error::{Error, Kind, Result};

/// Length and CRC-32C before the bytes of a block.
pub(super) const HEAD: usize = 8;
/// Longest block that is believed: a damaged length must not take all memory.
const LONGEST: u32 = 256 << 20;
/// Written at a time.
const BUFFER: usize = 256 << 10;

/// Refuses the file: what it is, and why.
pub(super) fn refused(path: &Path, problem: &str) -> Error {
    Error::new(Kind::Corrupt, format!("{}: {problem}", path.display()))
}

/// Appends blocks to a file. The checksum of a block covers where it stands and what the file belongs to, so a block of another file, or of
/// another place, is refused.
pub(super) struct BlockWriter {
    pub path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// Bytes written and buffered.
    pub at: u64,
    seed: u32,
}

impl BlockWriter {
    /// A new private file in place of any that stands there.
    pub fn create(path: &Path, magic: &[u8; 8], belongs: &[u8]) -> Result<BlockWriter> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("cannot remove", path, e)),
            _ => {}
        }
        let open = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(path);
        let file = open.map_err(|e| failed("cannot create", path, e))?;
        let mut writer = BlockWriter::over(file, path, belongs);
        writer.raw(magic)?;
        writer.block(belongs)?;
        Ok(writer)
    }

    /// A file that has no name any more when this returns: it goes with its last handle, however the process ends.
    pub fn nameless(folder: &Path) -> Result<BlockWriter> {
        let mut token = [0; 8];
        getrandom::fill(&mut token).map_err(|e| Error::new(Kind::Failed, "no random bytes").caused_by(e))?;
        let path = folder.join(format!(".sort-{:016x}", u64::from_le_bytes(token)));
        let open = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path);
        let file = open.map_err(|e| failed("cannot create", &path, e))?;
        std::fs::remove_file(&path).map_err(|e| failed("cannot remove", &path, e))?;
        Ok(BlockWriter::over(file, &path, &token))
    }

    fn over(file: File, path: &Path, belongs: &[u8]) -> BlockWriter {
        let seed = crc32c::crc32c(belongs);
        BlockWriter { path: path.to_owned(), file, buffer: Vec::new(), at: 0, seed }
    }

    pub fn block(&mut self, bytes: &[u8]) -> Result<()> {
        let len = u32::try_from(bytes.len()).ok().filter(|len| *len <= LONGEST);
        let len =
            len.ok_or_else(|| Error::new(Kind::Failed, format!("a record of {} bytes is too long", bytes.len())))?;
        let crc = checksum(self.seed, self.at, bytes);
        self.raw(&len.to_le_bytes())?;
        self.raw(&crc.to_le_bytes())?;
        self.raw(bytes)
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Hands everything to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        let from = self.at - self.buffer.len() as u64;
        self.file.write_all_at(&self.buffer, from).map_err(|e| failed("cannot write", &self.path, e))?;
        self.buffer.clear();
        Ok(())
    }

    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file.sync_all().map_err(|e| failed("cannot sync", &self.path, e))
    }

    /// What was written, to read.
    pub fn into_blocks(mut self) -> Result<Blocks> {
        self.flush()?;
        Ok(Blocks { path: self.path, file: self.file, seed: self.seed, len: self.at })
    }
}

/// Reads blocks at known places.
pub(super) struct Blocks {
    pub path: PathBuf,
    file: File,
    seed: u32,
    /// Bytes of the file.
    pub len: u64,
}

impl Blocks {
    /// Opens a file and demands that it is of this kind and belongs where it should; where its first block begins. `None`: no such file.
    pub fn open(path: &Path, magic: &[u8; 8], belongs: &[u8]) -> Result<Option<(Blocks, u64)>> {
        let file = match File::open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| failed("cannot open", path, e))?,
        };
        let len = file.metadata().map_err(|e| failed("cannot look at", path, e))?.len();
        let blocks = Blocks { path: path.to_owned(), file, seed: crc32c::crc32c(belongs), len };
        let mut found = [0; 8];
        blocks.exactly(&mut found, 0)?;
        if found != *magic {
            return Err(refused(path, "it is no file of this kind"));
        }
        let (named, first) = blocks.block(8)?;
        if named != belongs {
            return Err(refused(path, "it belongs to something else"));
        }
        Ok(Some((blocks, first)))
    }

    /// The block at `at`, and where the next one begins.
    pub fn block(&self, at: u64) -> Result<(Vec<u8>, u64)> {
        let mut head = [0; HEAD];
        self.exactly(&mut head, at)?;
        let [a, b, c, d, crc @ ..] = head;
        let len = u32::from_le_bytes([a, b, c, d]);
        let start = at + HEAD as u64;
        if len > LONGEST || start + u64::from(len) > self.len {
            return Err(refused(&self.path, &format!("the block at {at} is damaged or cut")));
        }
        let mut bytes = vec![0; len as usize];
        self.exactly(&mut bytes, start)?;
        if checksum(self.seed, at, &bytes) != u32::from_le_bytes(crc) {
            return Err(refused(&self.path, &format!("the block at {at} is damaged")));
        }
        Ok((bytes, start + u64::from(len)))
    }

    fn exactly(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.file.read_exact_at(bytes, at).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => {
                refused(&self.path, &format!("it ends before byte {}", at + bytes.len() as u64))
            }
            _ => failed("cannot read", &self.path, e),
        })
    }
}

fn checksum(seed: u32, at: u64, bytes: &[u8]) -> u32 {
    let place =
        crc32c::crc32c_append(crc32c::crc32c_append(seed, &at.to_le_bytes()), &(bytes.len() as u32).to_le_bytes());
    crc32c::crc32c_append(place, bytes)
}
