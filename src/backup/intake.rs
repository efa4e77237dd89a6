//! The server's bytes become files: tar members are read, pages checked and hashed, contents packed. Runs on a thread of its own, where it may
//! compute and block.

use std::sync::Arc;

use bytes::Bytes;

use super::bad_pages::BadPages;
use super::check::{Arrivals, ServerCheck};
use super::diff::{Diff, Fate, Passing};
use super::incremental_file::Increment;
use super::packer::Packer;
use super::places::Places;
use super::record::Record;
use super::sealing::Sealing;
use super::upload::Outbox;
use crate::disk::scratch::Scratch;
use crate::disk::sorted::{Merged, Sorter};
use crate::error::{Error, Kind, Result};
use crate::pg::data_page::{self, PAGE, RelationFile};
use crate::pg::incremental::Event as IncrementalEvent;
use crate::pg::tar::{BadTar, Member, MemberKind, TarEvent, TarReader};
use crate::pg::{Lsn, SystemIdentifier};
use crate::seal::content::manifest::{BadPage, ServerManifest};
use crate::seal::content::map::EntryKind;
use crate::seal::page_hash::{CHUNK, PageHash};
use crate::seal::sealer::Compression;
use crate::seal::unpack::{BadStream, Method, Unpack};
use crate::wire::command::{BackupEvent, ServerCompression, TablespaceRow};

/// Largest backup_label or tablespace_map that is accepted.
const KEPT: u64 = 4 << 20;
/// Memory for records that are sorted.
const SORTED: usize = 8 << 20;

/// What the intake has to know before the first byte.
pub struct Expected {
    pub system: SystemIdentifier,
    /// Where the backup's WAL begins: younger pages are not checked.
    pub start: Lsn,
    pub tablespaces: Vec<TablespaceRow>,
    /// Whether pages have checksums.
    pub checksums: bool,
    /// Of a relation's files (`RELSEG_SIZE`).
    pub pages_per_segment: u32,
    pub compression: Compression,
    /// What archives are compressed with as they come.
    pub server_compression: Option<ServerCompression>,
    /// The server sends only what changed since the parent.
    pub incremental: bool,
    /// Where lists that do not fit memory are sorted.
    pub scratch: Arc<Scratch>,
}

/// Bytes of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub files: u64,
    pub total: u64,
    /// Stored, before compression.
    pub changed: u64,
    /// Of these, those that had not changed.
    pub moved: u64,
    /// Where the parent or an interrupted backup has them.
    pub reused: u64,
    pub zero: u64,
    pub packs: u32,
    /// Before compression, of all packs of interrupted backups that are used.
    pub found: u64,
    /// Records of which the map has to say something, and rows of them all: about as many entries and runs it has.
    pub entries: u64,
    pub rows: u64,
}

/// All files that were received and stored.
pub struct Files {
    /// One for each path, in order, as [`Record::encode`] has it.
    pub records: Merged,
    /// What they were compared with, and the hashes that the next backup is compared with.
    pub diff: Diff,
    pub packs: Places,
    /// Where the records are.
    pub scratch: Arc<Scratch>,
}

/// Everything else that was received.
pub struct Received {
    pub tablespaces: Vec<TablespaceRow>,
    pub backup_label: Vec<u8>,
    pub tablespace_map: Option<Vec<u8>>,
    pub control: Vec<u8>,
    pub server_manifest: Option<ServerManifest>,
    pub bad_pages: Vec<BadPage>,
    pub bad_page_count: u64,
    /// Tablespaces whose files were not there.
    pub absent_tablespaces: Vec<u32>,
    pub tally: Tally,
}

/// The file that is being read.
struct Current {
    record: Record,
    passing: Passing,
    relation: Option<RelationFile>,
    /// The beginning of a chunk that was cut by the end of a piece.
    partial: Vec<u8>,
    /// The content, of the few files that are needed here.
    kept: Option<Vec<u8>>,
    /// Where the server sends only some blocks of the file.
    increment: Option<Increment>,
    /// The name and the size under which it was sent, and the CRC-32C of that.
    name: Vec<u8>,
    sent: u64,
    crc: u32,
}

/// Reads what BASE_BACKUP yields.
pub struct Intake {
    expected: Expected,
    pub(super) sealing: Sealing,
    packer: Packer,
    /// Undoes the server's compression of the current archive.
    unpack: Option<Unpack>,
    diff: Diff,
    tar: TarReader,
    /// What the current archive's names are below.
    prefix: Vec<u8>,
    archives: usize,
    /// The tablespace of the current archive, until the directory of the server's version comes, which every one has.
    awaited: Option<u32>,
    absent: Vec<u32>,
    current: Option<Current>,
    records: Sorter,
    arrivals: Option<Arrivals>,
    backup_label: Option<Vec<u8>>,
    tablespace_map: Option<Vec<u8>>,
    control: Option<Vec<u8>>,
    check: Option<ServerCheck>,
    server_manifest: Option<ServerManifest>,
    bad_pages: BadPages,
    /// Where the server's WAL ended when all had been sent.
    stop: Option<Lsn>,
    tally: Tally,
    outbox: Outbox,
    /// The server has said so.
    complete: bool,
}

impl Intake {
    pub fn new(expected: Expected, diff: Diff, sealing: Sealing, outbox: Outbox) -> Intake {
        let packer = Packer::new(expected.compression, outbox.clone(), expected.scratch.path());
        let bad_pages = BadPages::new(expected.start, expected.scratch.path());
        let records = Sorter::new(expected.scratch.path(), SORTED);
        let arrivals = Some(Arrivals::new(expected.scratch.clone()));
        Intake {
            expected,
            sealing,
            packer,
            unpack: None,
            diff,
            tar: TarReader::new(),
            prefix: Vec::new(),
            archives: 0,
            awaited: None,
            absent: Vec::new(),
            current: None,
            records,
            arrivals,
            backup_label: None,
            tablespace_map: None,
            control: None,
            check: None,
            server_manifest: None,
            bad_pages,
            stop: None,
            tally: Tally::default(),
            outbox,
            complete: false,
        }
    }

    /// Takes what comes, in order. It may compute for a while, and wait for whoever stores.
    pub fn event(&mut self, event: BackupEvent) -> Result<()> {
        match event {
            BackupEvent::Archive { index } => self.archive(index),
            BackupEvent::Data(bytes) => self.data(bytes),
            BackupEvent::Manifest => self.manifest_begins(),
            BackupEvent::ManifestData(bytes) => match &mut self.check {
                Some(check) => check.push(&bytes, &mut self.sealing, &self.outbox),
                None => Err(refused("the server sent a manifest before it began one")),
            },
            BackupEvent::Complete => {
                self.complete = true;
                Ok(())
            }
            BackupEvent::End { lsn, .. } => {
                self.stop = Some(lsn);
                Ok(())
            }
            BackupEvent::Start { .. } | BackupEvent::Progress { .. } => Ok(()),
        }
    }

    fn archive(&mut self, index: usize) -> Result<()> {
        self.archive_ends()?;
        let row = self.expected.tablespaces.get(index).ok_or_else(|| refused("an archive of no tablespace"))?;
        self.awaited = row.oid;
        self.prefix = row.oid.map(|oid| format!("pg_tblspc/{oid}/").into_bytes()).unwrap_or_default();
        if row.oid.is_some() && !row.location.starts_with('/') {
            // Inside the data directory (15+): no link leads there, and the base archive leaves out all of pg_tblspc.
            let path = self.prefix.strip_suffix(b"/").unwrap_or_default().to_vec();
            self.note(&Record::directory(path))?;
        }
        self.tar = TarReader::new();
        self.unpack = self.expected.server_compression.map(unpack).transpose()?;
        self.archives += 1;
        Ok(())
    }

    fn archive_ends(&mut self) -> Result<()> {
        if let Some(unpack) = self.unpack.take() {
            unpack.finish().map_err(garbled)?;
        }
        self.tar.finish().map_err(damaged)?;
        if let Some(oid) = self.awaited.take() {
            // Where it finds none the server goes on as if the tablespace were empty (`sendTablespace`, `basebackup.c`). CREATE TABLESPACE makes it.
            tracing::warn!("the server found no files of tablespace {oid}: they are not in the backup");
            self.absent.push(oid);
        }
        Ok(())
    }

    fn data(&mut self, bytes: Bytes) -> Result<()> {
        let Some(mut unpack) = self.unpack.take() else { return self.plain(bytes) };
        unpack
            .feed(&bytes, &mut |piece| self.plain(Bytes::copy_from_slice(piece)).map_err(Unpacked::Refused))
            .map_err(|failed| match failed {
                Unpacked::Refused(error) => error,
                Unpacked::Bad(bad) => garbled(bad),
            })?;
        self.unpack = Some(unpack);
        Ok(())
    }

    /// Bytes of the archive itself.
    fn plain(&mut self, bytes: Bytes) -> Result<()> {
        self.tar.feed(bytes);
        while let Some(event) = self.tar.next_event().map_err(damaged)? {
            match event {
                TarEvent::Member(member) => self.begin(member)?,
                TarEvent::Data(bytes) => self.content(bytes)?,
                TarEvent::End => self.end()?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, member: Member) -> Result<()> {
        if member.path.starts_with(b"PG_") {
            self.awaited = None;
        }
        let path = [self.prefix.as_slice(), &member.path].concat();
        if let Some(begun) = Increment::begin(&self.expected, &mut self.diff, &path, &member)? {
            let (target, passing, increment) = begun;
            let Member { size: sent, mode, mtime, .. } = member;
            let hashes = passing.hashes;
            let record = Record { mode, mtime, hashes, ..Record::new(target, EntryKind::Pages, 0) };
            let (relation, increment) = (RelationFile::from_path(&record.path), Some(increment));
            let (partial, kept, crc) = (Vec::new(), None, 0);
            self.current = Some(Current { record, passing, relation, partial, kept, increment, name: path, sent, crc });
            return Ok(());
        }
        let relation = RelationFile::from_path(&path);
        let whole = member.size.is_multiple_of(PAGE as u64);
        let kind = match member.kind {
            MemberKind::Directory => EntryKind::Directory,
            // With TABLESPACE_MAP the links of pg_tblspc are in that file alone, and servers leave out or send as directories all others.
            MemberKind::Symlink => {
                let shown = String::from_utf8_lossy(&path);
                return Err(refused(&format!("{shown:?} is a link, which no server sends")));
            }
            MemberKind::File if relation.is_some() && whole => EntryKind::Pages,
            MemberKind::File => EntryKind::Bytes,
        };
        let in_manifest = matches!(path.as_slice(), b"backup_label" | b"tablespace_map");
        let kept = (in_manifest || path == b"global/pg_control").then(Vec::new);
        let Member { size, mode, mtime, link, .. } = member;
        let passing = self.diff.begin(&path, kind, size)?;
        let (base, hashes, name) = (passing.base, passing.hashes, path.clone());
        let record = Record { mode, mtime, link, mapped: !in_manifest, base, hashes, ..Record::new(path, kind, size) };
        let (partial, increment, sent, crc) = (Vec::new(), None, size, 0);
        self.current = Some(Current { record, passing, relation, partial, kept, increment, name, sent, crc });
        Ok(())
    }

    fn content(&mut self, bytes: Bytes) -> Result<()> {
        let Some(mut current) = self.current.take() else { return Err(refused("content of no file")) };
        current.crc = crc32c::crc32c_append(current.crc, &bytes);
        if let Some(kept) = &mut current.kept {
            if kept.len() as u64 + bytes.len() as u64 > KEPT {
                return Err(refused(&format!("{} is longer than {KEPT} bytes", current.record.shown())));
            }
            kept.extend_from_slice(&bytes);
        }
        if let Some(mut increment) = current.increment.take() {
            self.blocks(&mut current, &mut increment, bytes)?;
            current.increment = Some(increment);
        } else if current.record.mapped {
            self.chunks(&mut current, &bytes)?;
        }
        self.current = Some(current);
        Ok(())
    }

    /// Takes an incremental file apart: blocks that were sent are judged like all others, what nobody has is zero, and the rest stays the parent's.
    fn blocks(&mut self, current: &mut Current, increment: &mut Increment, bytes: Bytes) -> Result<()> {
        increment.reader.feed(bytes);
        while let Some(event) = increment.reader.next_event().map_err(|e| increment.refused(&current.record, &e))? {
            match event {
                IncrementalEvent::Header(header) => {
                    increment.header(&header, &mut current.record, &mut current.passing);
                }
                IncrementalEvent::Block { number, page } => {
                    self.pass(current, increment, u64::from(number))?;
                    self.whole_chunks(current, &page)?;
                }
            }
        }
        Ok(())
    }

    /// Passes over what was not sent of a file before this page, which is the next one then.
    fn pass(&mut self, current: &mut Current, increment: &mut Increment, page: u64) -> Result<()> {
        let passed = increment.pass(page, &mut self.diff, &mut current.record, &mut current.passing);
        self.tally.reused += passed.reused;
        self.tally.zero += passed.zero;
        if current.passing.next == page {
            return Ok(());
        }
        let (shown, next) = (current.record.shown(), current.passing.next);
        Err(Error::new(Kind::Failed, format!("expected page {page} of {shown} next, found {next}")))
    }

    /// Joins chunks that were cut and passes all whole ones on.
    fn chunks(&mut self, current: &mut Current, mut bytes: &[u8]) -> Result<()> {
        if !current.partial.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - current.partial.len()));
            current.partial.extend_from_slice(now);
            bytes = rest;
            if current.partial.len() == CHUNK {
                let chunk = std::mem::take(&mut current.partial);
                self.whole_chunks(current, &chunk)?;
            }
        }
        let (whole, rest) = bytes.split_at(bytes.len() / CHUNK * CHUNK);
        self.whole_chunks(current, whole)?;
        current.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Looks at chunks, of which only the last one of the file may be short, and stores those that are to be, row by row.
    fn whole_chunks(&mut self, current: &mut Current, bytes: &[u8]) -> Result<()> {
        let first = current.passing.next;
        let (mut row, mut hashes) = (first, Vec::new());
        for chunk in bytes.chunks(CHUNK) {
            let (number, len) = (current.passing.next, chunk.len() as u64);
            let zero = self.is_zero(&current.record.path, current.relation, chunk, number)?;
            let fate = self.diff.judge(&mut current.passing, current.record.kind, chunk, zero);
            if let Fate::Store(hash) | Fate::Move(hash) = fate {
                self.tally.changed += len;
                self.tally.moved += if fate == Fate::Store(hash) { 0 } else { len };
                hashes.push(hash);
                continue;
            }
            self.row(current, bytes, first, row, &mut hashes)?;
            row = number + 1;
            *if zero { &mut self.tally.zero } else { &mut self.tally.reused } += len;
            match fate {
                Fate::Zero => current.record.zero(number),
                Fate::Found(place) => current.record.found(number, place),
                Fate::Parent | Fate::Store(_) | Fate::Move(_) => {}
            }
        }
        self.row(current, bytes, first, row, &mut hashes)
    }

    /// Stores the chunks from number `row` on that have been hashed; `bytes` begin with chunk number `first`.
    fn row(
        &mut self,
        current: &mut Current,
        bytes: &[u8],
        first: u64,
        row: u64,
        hashes: &mut Vec<PageHash>,
    ) -> Result<()> {
        let from = (row - first) as usize * CHUNK;
        let to = (from + hashes.len() * CHUNK).min(bytes.len());
        let bytes = bytes.get(from..to).unwrap_or_default();
        self.packer.add(&mut self.sealing, &mut current.record, row, bytes, hashes)?;
        hashes.clear();
        Ok(())
    }

    /// Looks at one chunk: bad pages are noted, zero ones need no place.
    fn is_zero(&mut self, path: &[u8], relation: Option<RelationFile>, chunk: &[u8], number: u64) -> Result<bool> {
        let Some(relation) = relation.filter(|_| self.expected.checksums && !chunk.is_empty()) else {
            return Ok(data_page::is_zero(chunk));
        };
        let Some(page) = chunk.first_chunk::<PAGE>() else {
            self.bad_pages.cut(path, number);
            return Ok(data_page::is_zero(chunk));
        };
        let block = u64::from(relation.segment) * u64::from(self.expected.pages_per_segment) + number;
        self.bad_pages.look(path, number, page, block as u32)
    }

    fn end(&mut self) -> Result<()> {
        let Some(mut current) = self.current.take() else { return Err(refused("the end of no file")) };
        if let Some(mut increment) = current.increment.take() {
            increment.reader.finish().map_err(|e| increment.refused(&current.record, &e))?;
            let end = current.record.chunks();
            self.pass(&mut current, &mut increment, end)?;
        }
        let last = std::mem::take(&mut current.partial);
        self.whole_chunks(&mut current, &last)?;
        match current.record.path.as_slice() {
            b"backup_label" => self.backup_label = current.kept,
            b"tablespace_map" => self.tablespace_map = current.kept,
            b"global/pg_control" => self.control = current.kept,
            _ => {}
        }
        let record = current.record;
        if record.is_file() {
            self.tally.files += 1;
            self.tally.total += record.size;
            if let Some(arrivals) = &mut self.arrivals {
                arrivals.push(&current.name, current.sent, current.crc)?;
            }
        }
        self.note(&record)
    }

    fn note(&mut self, record: &Record) -> Result<()> {
        self.tally.rows += record.rows.len() as u64;
        self.tally.entries += u64::from(record.base.is_none() || !record.rows.is_empty());
        self.records.push(&record.path, &record.encode())
    }

    /// All archives have passed: nothing is added to the packs any more, and the server says what it sent.
    fn manifest_begins(&mut self) -> Result<()> {
        self.archive_ends()?;
        let arrivals = self.arrivals.take().ok_or_else(|| refused("the server began a second manifest"))?;
        self.check = Some(ServerCheck::new(arrivals, self.expected.system, self.expected.start)?);
        Ok(())
    }

    /// Everything that was received; an interruption, unless the server has said that the backup is complete.
    pub fn finish(mut self) -> Result<(Received, Files, Sealing)> {
        if !self.complete {
            return Err(Error::new(Kind::Interrupted, "the backup was ended before it was complete"));
        }
        match self.check.take() {
            Some(check) => self.server_manifest = Some(check.finish(&mut self.sealing, &self.outbox)?),
            None => return Err(refused("the server sent no manifest")),
        }
        if self.archives != self.expected.tablespaces.len() {
            let expected = self.expected.tablespaces.len();
            return Err(refused(&format!("expected {expected} archives, received {}", self.archives)));
        }
        let missing = |file: &str| refused(&format!("the backup has no {file}"));
        let stop = self.stop.ok_or_else(|| Error::new(Kind::Server, "the server did not say where the backup ends"))?;
        let (bad_pages, bad_page_count) = self.bad_pages.finish(stop)?;
        self.absent.sort_unstable();
        let packs = self.packer.finish(&mut self.sealing)?;
        self.tally.packs = packs.len();
        self.tally.found = self.diff.held();
        let (records, scratch) = (self.records.finish()?, self.expected.scratch);
        let files = Files { records, diff: self.diff, packs, scratch };
        let received = Received {
            tablespaces: self.expected.tablespaces,
            backup_label: self.backup_label.ok_or_else(|| missing("backup_label"))?,
            tablespace_map: self.tablespace_map,
            control: self.control.ok_or_else(|| missing("global/pg_control"))?,
            server_manifest: self.server_manifest,
            bad_pages,
            bad_page_count,
            absent_tablespaces: self.absent,
            tally: self.tally,
        };
        Ok((received, files, self.sealing))
    }
}

/// Why compressed bytes were refused: as such, or for what they hold.
enum Unpacked {
    Bad(BadStream),
    Refused(Error),
}

impl From<BadStream> for Unpacked {
    fn from(bad: BadStream) -> Unpacked {
        Unpacked::Bad(bad)
    }
}

fn unpack(compression: ServerCompression) -> Result<Unpack> {
    let method = match compression {
        ServerCompression::Zstd { .. } => Method::Zstd,
        ServerCompression::Lz4 => Method::Lz4,
    };
    Unpack::new(method).map_err(garbled)
}

fn garbled(bad: BadStream) -> Error {
    Error::new(Kind::Corrupt, bad.to_string()).context("the server's compressed base backup")
}

fn damaged(bad: BadTar) -> Error {
    Error::new(Kind::Corrupt, bad.to_string()).context("the server's base backup")
}

fn refused(problem: &str) -> Error {
    Error::new(Kind::Corrupt, problem).context("the server's base backup")
}
