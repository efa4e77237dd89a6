//! The tar archives that BASE_BACKUP sends (`basebackup.c`, `tar.c:tarCreateHeader`): ustar, names of at most 99 bytes, base-256 sizes where octal is too short,
//! plain files, directories and symbolic links. Nothing else is accepted.

use bytes::{Buf, Bytes, BytesMut};
use tar::{EntryType, Header};

/// Size of a tar header, and what member contents are padded to.
pub const BLOCK: usize = 512;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    File,
    Directory,
    Symlink,
}

/// A member's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Without leading `./` and trailing `/`.
    pub path: Vec<u8>,
    pub kind: MemberKind,
    /// Bytes of content; 0 unless it is a file.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Target of a link, else empty.
    pub link: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarEvent {
    Member(Member),
    /// Content of the current member, in order.
    Data(Bytes),
    /// The current member's content is complete.
    End,
}

/// Why an archive was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tar archive, offset {offset}: {problem}")]
pub struct BadTar {
    /// Bytes of this archive before the refused block.
    pub offset: u64,
    pub problem: String,
}

#[derive(Debug)]
enum State {
    Header,
    Content {
        left: u64,
        padding: usize,
    },
    Padding {
        left: usize,
    },
    /// After the first zero block only zeros may follow.
    Zeros,
}

/// Takes the bytes of one archive in pieces of any size and says what they are. Holds less than one block back.
#[derive(Debug)]
pub struct TarReader {
    state: State,
    input: Bytes,
    /// The beginning of a header that was cut by the end of a piece.
    partial: BytesMut,
    offset: u64,
}

impl Default for TarReader {
    fn default() -> TarReader {
        TarReader::new()
    }
}

impl TarReader {
    pub fn new() -> TarReader {
        TarReader { state: State::Header, input: Bytes::new(), partial: BytesMut::new(), offset: 0 }
    }

    /// Gives the next bytes. Everything given before must have been taken out with [`TarReader::next`].
    pub fn feed(&mut self, bytes: Bytes) {
        debug_assert!(self.input.is_empty());
        self.input = bytes;
    }

    /// The next event; `None` when more bytes are needed.
    pub fn next_event(&mut self) -> Result<Option<TarEvent>, BadTar> {
        loop {
            match &mut self.state {
                State::Header => {
                    let Some(block) = self.block() else { return Ok(None) };
                    if block.iter().all(|b| *b == 0) {
                        self.state = State::Zeros;
                        continue;
                    }
                    let member = self.header(&block)?;
                    let padding = (BLOCK - (member.size % BLOCK as u64) as usize) % BLOCK;
                    self.state = State::Content { left: member.size, padding };
                    return Ok(Some(TarEvent::Member(member)));
                }
                State::Content { left: 0, padding } => {
                    self.state = State::Padding { left: *padding };
                    return Ok(Some(TarEvent::End));
                }
                State::Content { left, .. } => {
                    let take = (self.input.len() as u64).min(*left);
                    if take == 0 {
                        return Ok(None);
                    }
                    *left -= take;
                    self.offset += take;
                    return Ok(Some(TarEvent::Data(self.input.split_to(take as usize))));
                }
                State::Padding { left } => {
                    let take = self.input.len().min(*left);
                    *left -= take;
                    self.offset += take as u64;
                    self.input.advance(take);
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.state = State::Header;
                }
                State::Zeros => {
                    if self.input.iter().any(|b| *b != 0) {
                        return Err(self.bad("expected nothing but zeros after the end of the archive"));
                    }
                    self.offset += self.input.len() as u64;
                    self.input.clear();
                    return Ok(None);
                }
            }
        }
    }

    /// States that the archive's bytes have ended: an error when they ended inside a member. The two zero blocks may be there or not
    /// (13 and 14 send none).
    pub fn finish(&self) -> Result<(), BadTar> {
        match self.state {
            State::Zeros => Ok(()),
            State::Header if self.partial.is_empty() => Ok(()),
            _ => Err(self.bad("the archive ends inside a member")),
        }
    }

    /// The next whole block, joined from pieces where it was cut.
    fn block(&mut self) -> Option<Bytes> {
        if self.partial.is_empty() && self.input.len() >= BLOCK {
            return Some(self.input.split_to(BLOCK));
        }
        let take = self.input.len().min(BLOCK - self.partial.len());
        self.partial.extend_from_slice(&self.input.split_to(take));
        (self.partial.len() == BLOCK).then(|| self.partial.split().freeze())
    }

    fn header(&mut self, block: &[u8]) -> Result<Member, BadTar> {
        let header = Header::from_byte_slice(block);
        let sum: u32 =
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        let unreadable = |field: &str, e: std::io::Error| self.bad(format!("{field} of a member: {e}"));
        let stated = header.cksum().map_err(|e| unreadable("checksum", e))?;
        if stated != sum {
            return Err(self.bad(format!("header checksum is {sum}, the header says {stated}")));
        }
        let path = header.path_bytes();
        let kind = match header.entry_type() {
            EntryType::Regular => MemberKind::File,
            EntryType::Directory => MemberKind::Directory,
            EntryType::Symlink => MemberKind::Symlink,
            EntryType::XHeader | EntryType::XGlobalHeader => return Err(self.bad("pax extensions are not expected")),
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::GNUSparse => {
                return Err(self.bad("GNU extensions are not expected"));
            }
            other => {
                let (code, path) = (other.as_byte() as char, String::from_utf8_lossy(&path));
                return Err(self.bad(format!("{path:?} is of type {code:?}: expected a file, directory or link")));
            }
        };
        let size = header.entry_size().map_err(|e| unreadable("size", e))?;
        if size > 0 && kind != MemberKind::File {
            return Err(self.bad(format!("{:?} is no file and has {size} bytes", String::from_utf8_lossy(&path))));
        }
        let mtime = header.mtime().map_err(|e| unreadable("time", e))?;
        let member = Member {
            path: clean(&path)
                .ok_or_else(|| self.bad(format!("unusable name {:?}", String::from_utf8_lossy(&path))))?,
            kind,
            size,
            mode: header.mode().map_err(|e| unreadable("mode", e))? & 0o7777,
            mtime: i64::try_from(mtime).map_err(|_| self.bad(format!("impossible time {mtime}")))?,
            link: header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default(),
        };
        self.offset += BLOCK as u64;
        Ok(member)
    }

    fn bad(&self, problem: impl Into<String>) -> BadTar {
        BadTar { offset: self.offset, problem: problem.into() }
    }
}

/// A member's name as a path below the archive's root; `None` for one that leads elsewhere.
fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut path = path;
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let good = path.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
    good.then(|| path.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(path: &str, kind: EntryType, content: &[u8]) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_mode(0o600);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        let mut out = header.as_bytes().to_vec();
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }

    fn archive() -> Vec<u8> {
        let mut out = member("backup_label", EntryType::Regular, b"START");
        out.extend(member("./pg_wal/", EntryType::Directory, b""));
        out.extend(member("base/1/2", EntryType::Regular, &[7; 1024]));
        out.extend(member("empty", EntryType::Regular, b""));
        out
    }

    /// Reads an archive in pieces of `step` bytes.
    fn read(bytes: &[u8], step: usize) -> Result<Vec<(Member, Vec<u8>)>, BadTar> {
        let (mut reader, mut out, mut open) = (TarReader::new(), Vec::new(), None);
        for piece in bytes.chunks(step) {
            reader.feed(Bytes::copy_from_slice(piece));
            while let Some(event) = reader.next_event()? {
                match event {
                    TarEvent::Member(m) => open = Some((m, Vec::new())),
                    TarEvent::Data(d) => open.as_mut().unwrap().1.extend_from_slice(&d),
                    TarEvent::End => out.push(open.take().unwrap()),
                }
            }
        }
        reader.finish()?;
        Ok(out)
    }

    #[test]
    fn reads_the_same_in_pieces_of_every_size_with_and_without_the_trailer() {
        let mut bytes = archive();
        let whole = read(&bytes, bytes.len()).unwrap();
        let names: Vec<_> =
            whole.iter().map(|(m, c)| (String::from_utf8_lossy(&m.path).into_owned(), c.len())).collect();
        let expected = [("backup_label", 5), ("pg_wal", 0), ("base/1/2", 1024), ("empty", 0)];
        assert_eq!(names, expected.map(|(n, l)| (n.to_owned(), l)));
        bytes.extend([0; 2 * BLOCK]);
        for step in [1, 7, 511, 512, 513, 1000, 4096] {
            assert_eq!(read(&bytes, step).unwrap(), whole, "pieces of {step}");
        }
    }

    #[test]
    fn a_cut_archive_is_refused_except_between_members() {
        let bytes = archive();
        let borders = [0, 1024, 1536, 3072, 3584];
        for cut in 0..=bytes.len() {
            assert_eq!(read(&bytes[..cut], 1 << 20).is_ok(), borders.contains(&cut), "cut at {cut}");
        }
    }

    #[test]
    fn every_damaged_header_byte_is_refused() {
        let good = member("base/1/2", EntryType::Regular, b"");
        for at in 0..BLOCK {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            assert!(read(&bytes, BLOCK).is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_postgresql_does_not_send_is_refused_by_name() {
        for (kind, word) in [
            (EntryType::XHeader, "pax"),
            (EntryType::XGlobalHeader, "pax"),
            (EntryType::GNULongName, "GNU"),
            (EntryType::Link, "type '1'"),
            (EntryType::Fifo, "type '6'"),
        ] {
            let error = read(&member("x", kind, b""), BLOCK).unwrap_err();
            assert!(error.problem.contains(word), "{error}");
        }
        let mut upward = member("a-b/c", EntryType::Regular, b"");
        upward[..5].copy_from_slice(b"../cc");
        let mut header = Header::from_byte_slice(&upward).clone();
        header.set_cksum();
        assert!(read(header.as_bytes(), BLOCK).unwrap_err().problem.contains("unusable name"));
        let mut trailing = vec![0; BLOCK];
        trailing.extend(archive());
        assert!(read(&trailing, BLOCK).unwrap_err().problem.contains("nothing but zeros"));
    }

    #[test]
    fn sizes_above_eight_gibibytes_are_base_256() {
        let mut header = Header::new_ustar();
        header.set_path("big").unwrap();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_size(40 << 30);
        header.set_cksum();
        let mut reader = TarReader::new();
        reader.feed(Bytes::copy_from_slice(header.as_bytes()));
        let Ok(Some(TarEvent::Member(member))) = reader.next_event() else { panic!("no member") };
        assert_eq!(member.size, 40 << 30);
        assert!(reader.finish().is_err());
    }
}
