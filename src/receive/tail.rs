//! The tail of the open object: what has arrived of it is durable within the flush interval, in a local file or in pieces.
//!
//! A tail is sealed under a salt of its own, apart from the object that the same bytes end up in. A local file that failed once is never written again:
//! everything after its last successful sync goes into a new file, from memory.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::merge::Merge;
use super::salt;
use crate::archive::Archive;
use crate::disk::lane::Beside;
use crate::disk::spare::Spare;
use crate::disk::tail_file::{PreparedTail, TailFile};
use crate::error::{Class, Result};
use crate::pg::{DurableLsn, Lsn, SegmentName};
use crate::repo::Repository;
use crate::seal::header::ObjectKind;
use crate::seal::key::WriterKeys;
use crate::seal::sealer::{Compression, FRAME_BYTES};
use crate::seal::tail::TailSealer;

/// A piece of a tail, to be put into object storage.
#[derive(Debug)]
pub struct Piece {
    pub name: String,
    pub bytes: Vec<Bytes>,
    pub salt: [u8; 32],
    pub from: Lsn,
    pub to: Lsn,
}

impl Piece {
    /// Bytes of the object.
    pub fn size(&self) -> u64 {
        self.bytes.iter().map(|b| b.len() as u64).sum()
    }
}

/// What a flush did with the bytes.
#[derive(Debug)]
pub enum Flushed {
    /// Written and synced.
    Durable(DurableLsn),
    /// Written to the spool, and synced.
    Spooled,
    /// Durable once it is put.
    Piece(Piece),
}

/// Where tail files are.
#[derive(Clone)]
enum Files {
    /// The root of a repository on a local disk.
    Repository(PathBuf),
    /// The root of a spool.
    Spool(PathBuf),
}

impl Files {
    /// Where files are made, before they have their names.
    fn folder(&self, archive: &Archive) -> PathBuf {
        match self {
            Files::Repository(root) => root.join(archive.names.root()).join("tail"),
            Files::Spool(root) => root.join(archive.names.spool_folder()),
        }
    }

    fn path(&self, archive: &Archive, segment: SegmentName, run: &str) -> PathBuf {
        match self {
            Files::Repository(root) => root.join(archive.names.tail_open(segment, run)),
            Files::Spool(root) => root.join(archive.names.spool_file(segment, run)),
        }
    }

    /// Never where the repository's disk is not mounted.
    fn prepare(&self, repo: &Repository, folder: &Path, bytes: u64) -> Result<PreparedTail> {
        match self {
            Files::Repository(_) => {
                repo.demand_local_root()?;
                PreparedTail::prepare(repo.medium(), folder, bytes)
            }
            Files::Spool(_) => PreparedTail::prepare_private(repo.medium(), folder, bytes),
        }
    }
}

/// Makes tails: where they go, and a prepared file for the next one.
pub struct TailMaker {
    archive: Archive,
    compression: Compression,
    /// `None`: they are pieces.
    files: Option<Files>,
    prepared: Option<Beside<Result<PreparedTail>>>,
    /// What becomes of files that are not needed any more.
    spare: Spare,
    preallocate: u64,
    /// Local files are written as fast as possible, not as short.
    hurried: bool,
}

impl TailMaker {
    pub fn new(archive: Archive, compression: Compression, spare: Spare) -> TailMaker {
        let files = archive.repo.local_root().map(|root| Files::Repository(root.to_owned()));
        TailMaker { archive, compression, files, prepared: None, spare, preallocate: 0, hurried: false }
    }

    /// Makes those of a spool.
    pub fn spool(archive: Archive, compression: Compression, root: PathBuf) -> TailMaker {
        let files = Some(Files::Spool(root));
        let spare = Spare::default();
        TailMaker { archive, compression, files, prepared: None, spare, preallocate: 0, hurried: false }
    }

    /// Zeros that a local file begins with from now on; it grows when they are used up.
    pub fn preallocate(&mut self, bytes: u64) {
        self.preallocate = bytes;
    }

    /// Whether somebody waits for each flush: then nothing is compressed on the way to a local file, which goes with its segment.
    pub fn hurry(&mut self, hurried: bool) {
        self.hurried = hurried && self.files.is_some();
    }

    /// Whether files that are not needed any more are written again, where they have as many bytes as new ones begin with.
    fn reuse(&mut self) {
        self.spare.want(if self.hurried { self.preallocate } else { 0 });
    }

    /// Begins to make the next local file, away from the hot path. Without effect where tails are pieces.
    pub fn prepare(&mut self) {
        if let (Some(files), None) = (self.files.clone(), &self.prepared) {
            let (repo, bytes, folder) = (self.archive.repo.clone(), self.preallocate, files.folder(&self.archive));
            self.reuse();
            let ready = self.spare.take();
            // Without a thread the file is made when it is needed.
            let lane = self.archive.repo.lane();
            let make = move || ready.map_or_else(|| files.prepare(&repo, &folder, bytes), Ok);
            self.prepared = lane.beside("prepare", make);
        }
    }

    /// The file that was made ahead. A flush does not wait for zeros: while they are being written it gets a file without.
    fn prepared(&mut self, files: &Files) -> Result<PreparedTail> {
        let ready = match self.prepared.take() {
            Some(work) if work.is_finished() => work.join(),
            unfinished => {
                self.prepared = unfinished;
                None
            }
        };
        match ready {
            Some(Ok(ready)) => Ok(ready),
            // A folder that was not synced is not tried again.
            Some(Err(error)) if error.class() == Class::Unsynced => Err(error),
            Some(Err(_)) | None => files.prepare(&self.archive.repo, &files.folder(&self.archive), 0),
        }
    }
}

/// The tail of one object.
#[derive(Default)]
pub struct Tail {
    /// Bytes of the object that are in the tail.
    kept: usize,
    current: Option<Current>,
    /// A local file was lost, not only given up: nothing of the object counts as kept any more.
    vanished: bool,
}

struct Current {
    sealer: TailSealer,
    salt: [u8; 32],
    run: String,
    /// `None` where tails are pieces.
    file: Option<TailFile>,
}

impl Tail {
    /// Bytes of the object that were handed to the tail.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Whether anything of the object is in a tail.
    pub fn exists(&self) -> bool {
        self.kept > 0
    }

    /// The name under which the local file of this run stands, while it is written.
    pub fn file_run(&self) -> Option<&str> {
        self.current.as_ref().filter(|current| current.file.is_some()).map(|current| current.run.as_str())
    }

    /// Goes on with the byte at `kept`, in a new file: those before it are gone.
    pub fn skip(&mut self, kept: usize) {
        (self.kept, self.current) = (kept, None);
    }

    /// After a flush: sees to it that the local file need not grow in the next ones, by so many bytes.
    pub fn reserve(&mut self, ahead: u64) {
        if let Some(file) = self.current.as_mut().and_then(|current| current.file.as_mut()) {
            // A file that is dead by this says so at the next flush.
            let _ = file.reserve(ahead);
        }
    }

    /// Gives back memory that is only needed while frames are sealed.
    pub fn rest(&mut self) {
        if let Some(current) = &mut self.current {
            current.sealer.rest();
        }
    }

    /// Whether the last flush failed because the local file does not stand under its name any more. Then nothing of the object is kept.
    pub fn take_vanished(&mut self) -> bool {
        std::mem::take(&mut self.vanished)
    }

    /// Keeps the next bytes of the object, which begins at `start` of `segment`. After an error nothing changed but that the file is given up; with what it
    /// held, where it is gone: see [`Tail::take_vanished`].
    pub fn flush(
        &mut self,
        maker: &mut TailMaker,
        keys: &WriterKeys,
        (segment, start): (SegmentName, Lsn),
        bytes: &[u8],
        wrote: &mut dyn FnMut(Lsn),
    ) -> Result<Option<Flushed>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let upto = self.kept + bytes.len();
        let from = start + self.kept as u64;
        let to = start + upto as u64;
        let mut current = match self.current.take() {
            Some(current) => current,
            None => Current::begin(maker, keys, segment, from)?,
        };
        let flushed = match &mut current.file {
            Some(file) => {
                let claim = (maker.archive.names.system, segment.timeline, to);
                let spooled = matches!(maker.files, Some(Files::Spool(_)));
                let written = match maker.hurried {
                    true => file.append(current.sealer.seal_plain(bytes)),
                    false => file.append(&current.sealer.seal(bytes)),
                };
                let synced = written.and_then(|()| match spooled {
                    true => file.sync_here().map(|()| Flushed::Spooled),
                    false => {
                        wrote(to);
                        file.sync(claim).map(Flushed::Durable)
                    }
                });
                if synced.is_err() && !file.give_up() {
                    (self.kept, self.vanished) = (0, true);
                }
                synced?
            }
            None => {
                let offset = |lsn: Lsn| lsn.since(segment.start());
                let name = maker.archive.names.tail_piece(segment, offset(from), offset(to), &current.run);
                let bytes = vec![current.sealer.preamble(), current.sealer.seal(bytes)];
                Flushed::Piece(Piece { name, bytes, salt: current.salt, from, to })
            }
        };
        self.kept = upto;
        self.current = Some(current);
        Ok(Some(flushed))
    }
}

/// One piece that is made of several, frame by frame: under a salt of its own, from the bytes themselves.
pub struct Merging {
    merge: Merge,
    sealer: TailSealer,
    salt: [u8; 32],
    run: String,
    sealed: Vec<Bytes>,
}

impl Merging {
    pub fn begin(maker: &TailMaker, keys: &WriterKeys, segment: SegmentName, merge: Merge) -> Result<Merging> {
        let (salt, run) = (salt::random()?, salt::token()?);
        let claims = maker.archive.claims(ObjectKind::Tail, segment.timeline, merge.from);
        let sealer = TailSealer::new(keys, claims, salt, maker.compression);
        Ok(Merging { merge, sealer, salt, run, sealed: Vec::new() })
    }

    /// What comes next.
    pub fn at(&self) -> Lsn {
        self.merge.from + self.sealer.plain_len()
    }

    pub fn to(&self) -> Lsn {
        self.merge.to
    }

    pub fn merge(&self) -> Merge {
        self.merge
    }

    /// Seals one frame of the bytes that are left; `false` when there are none.
    pub fn step(&mut self, left: &[u8]) -> bool {
        let frame = &left[..left.len().min(FRAME_BYTES)];
        if !frame.is_empty() {
            self.sealed.push(self.sealer.seal(frame));
        }
        left.len() > frame.len()
    }

    pub fn finish(self, archive: &Archive, segment: SegmentName) -> Piece {
        let Merge { from, to } = self.merge;
        let name = archive.names.tail_piece(segment, from.since(segment.start()), to.since(segment.start()), &self.run);
        let mut bytes = vec![self.sealer.preamble()];
        bytes.extend(self.sealed);
        Piece { name, bytes, salt: self.salt, from, to }
    }
}

impl Current {
    fn begin(maker: &mut TailMaker, keys: &WriterKeys, segment: SegmentName, start: Lsn) -> Result<Current> {
        let salt: [u8; 32] = salt::random()?;
        let run = salt::token()?;
        let claims = maker.archive.claims(ObjectKind::Tail, segment.timeline, start);
        let sealer = TailSealer::new(keys, claims, salt, maker.compression);
        let file = match maker.files.clone() {
            None => None,
            Some(files) => {
                let path = files.path(&maker.archive, segment, &run);
                let prepared = maker.prepared(&files)?;
                maker.archive.repo.demand_local_root()?;
                Some(prepared.adopt(&path, &sealer.preamble())?)
            }
        };
        Ok(Current { sealer, salt, run, file })
    }
}
