//! BASE_BACKUP: two message flows, one sequence of events.
//!
//! 13 and 14 send one CopyOut of raw tar bytes per tablespace and one for the manifest (`basebackup.c:perform_base_backup`); 15 and later send one
//! CopyOut with typed messages (`basebackup_copy.c`).

use std::collections::VecDeque;

use bytes::Bytes;

use super::codec::{Machine, Message, Outbox};
use super::command::{self, BackupEvent, BaseBackupOptions, Rows, TablespaceRow};
use super::error::{ServerError, WireError};
use crate::pg::{Lsn, MajorVersion, TimelineId};

const NAME: &str = "BASE_BACKUP";
/// Rows of the tablespace list; a cluster has a handful.
const MAX_TABLESPACES: usize = 100_000;

/// Result sets in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Start,
    Tablespaces,
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Before the RowDescription of a result set.
    Expect(Set),
    /// Inside a result set.
    Rows(Set, Rows),
    /// 13, 14: between two CopyOuts. 15+: before the only one.
    Between,
    /// 13, 14: inside the archive or the manifest.
    Plain,
    /// 15+: inside the only CopyOut.
    Typed,
    /// The end position was read; CommandComplete follows.
    Ended,
    /// The final CommandComplete was read; ReadyForQuery follows.
    Completed,
    Failed(Box<ServerError>),
    Done,
}

/// The machine of one base backup.
#[derive(Debug)]
pub struct BaseBackup {
    state: State,
    typed: bool,
    manifest_asked: bool,
    /// What the names of archives end with, behind `.tar`.
    suffix: &'static str,
    start: Option<(Lsn, TimelineId)>,
    tablespaces: Vec<TablespaceRow>,
    /// Archives that have begun.
    archives: usize,
    manifest_begun: bool,
    queue: VecDeque<BackupEvent>,
}

impl BaseBackup {
    /// Sends BASE_BACKUP in the grammar of `version`.
    pub fn begin(
        options: &BaseBackupOptions,
        version: MajorVersion,
        out: &mut Outbox,
    ) -> Result<BaseBackup, WireError> {
        command::send(&command::base_backup_text(options, version)?, out)?;
        Ok(BaseBackup {
            state: State::Expect(Set::Start),
            typed: version >= MajorVersion::V15,
            manifest_asked: options.manifest,
            suffix: options.compression.map_or("", |method| method.suffix()),
            start: None,
            tablespaces: Vec::new(),
            archives: 0,
            manifest_begun: false,
            queue: VecDeque::new(),
        })
    }

    /// The backup is complete and the connection takes commands again.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn state_name(&self) -> &'static str {
        match &self.state {
            State::Expect(Set::Start) => "BASE_BACKUP sent",
            State::Expect(Set::Tablespaces) | State::Rows(Set::Tablespaces, _) => "list of tablespaces",
            State::Expect(Set::End) | State::Rows(Set::End, _) => "end position of the backup",
            State::Rows(Set::Start, _) => "start position of the backup",
            State::Between => "before an archive of the backup",
            State::Plain => "inside an archive of the backup",
            State::Typed => "inside the copy of the backup",
            State::Ended => "after the end position of the backup",
            State::Completed => "backup complete",
            State::Failed(_) => "backup failed",
            State::Done => "backup over",
        }
    }

    fn refuse<T>(&self, message: &Message) -> Result<T, WireError> {
        Err(message.out_of_place(self.state_name()))
    }

    fn step(&mut self, message: Message) -> Result<(), WireError> {
        let state = std::mem::replace(&mut self.state, State::Done);
        self.state = match (state, message) {
            (State::Expect(set), Message::RowDescription(columns)) => {
                State::Rows(set, Rows { columns, ..Rows::default() })
            }
            (State::Rows(set, mut rows), Message::DataRow(row))
                if rows.columns.len() == row.len() && rows.rows.len() < MAX_TABLESPACES =>
            {
                rows.rows.push(row);
                State::Rows(set, rows)
            }
            (State::Rows(set, rows), Message::CommandComplete(_)) => self.result(set, &rows)?,
            (State::Between, Message::CopyOutResponse) if self.typed => State::Typed,
            (State::Between, Message::CopyOutResponse) => {
                self.begin_next()?;
                State::Plain
            }
            (State::Plain, Message::CopyData(data)) => {
                self.bytes(data);
                State::Plain
            }
            (State::Plain, Message::CopyDone) => match self.all_begun() {
                true => State::Expect(Set::End),
                false => State::Between,
            },
            (State::Typed, Message::CopyData(data)) => {
                self.typed_data(data)?;
                State::Typed
            }
            (State::Typed, Message::CopyDone) if self.all_begun() => State::Expect(Set::End),
            (State::Typed, Message::CopyDone) => {
                let problem = format!(
                    "the copy ended after {} of {} archives{}",
                    self.archives,
                    self.tablespaces.len(),
                    if self.manifest_asked && !self.manifest_begun { ", without a manifest" } else { "" }
                );
                return Err(WireError::answer(NAME, problem));
            }
            (State::Ended, Message::CommandComplete(_)) => State::Completed,
            (State::Completed, Message::ReadyForQuery) => {
                self.queue.push_back(BackupEvent::Complete);
                State::Done
            }
            (state, message) => {
                self.state = state;
                return self.refuse(&message);
            }
        };
        Ok(())
    }

    /// A whole result set was read.
    fn result(&mut self, set: Set, rows: &Rows) -> Result<State, WireError> {
        match set {
            Set::Start => {
                self.start = Some(position(rows)?);
                Ok(State::Expect(Set::Tablespaces))
            }
            Set::Tablespaces => {
                self.tablespaces = tablespaces(rows)?;
                let (lsn, timeline) = self.start.ok_or_else(|| WireError::answer(NAME, "no start position"))?;
                let tablespaces = self.tablespaces.clone();
                self.queue.push_back(BackupEvent::Start { lsn, timeline, tablespaces });
                Ok(State::Between)
            }
            Set::End => {
                let (lsn, timeline) = position(rows)?;
                self.queue.push_back(BackupEvent::End { lsn, timeline });
                Ok(State::Ended)
            }
        }
    }

    fn all_begun(&self) -> bool {
        self.archives == self.tablespaces.len() && self.manifest_begun == self.manifest_asked
    }

    /// 13, 14: a CopyOut begins: the next archive, or after the last one the manifest.
    fn begin_next(&mut self) -> Result<(), WireError> {
        if self.archives < self.tablespaces.len() {
            self.queue.push_back(BackupEvent::Archive { index: self.archives });
            self.archives += 1;
        } else {
            self.begin_manifest()?;
        }
        Ok(())
    }

    fn begin_manifest(&mut self) -> Result<(), WireError> {
        let due = self.manifest_asked && !self.manifest_begun && self.archives == self.tablespaces.len();
        if !due {
            return Err(WireError::answer(NAME, "a manifest where none is due"));
        }
        self.manifest_begun = true;
        self.queue.push_back(BackupEvent::Manifest);
        Ok(())
    }

    fn bytes(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.queue.push_back(match self.manifest_begun {
                true => BackupEvent::ManifestData(data),
                false => BackupEvent::Data(data),
            });
        }
    }

    /// 15+: a CopyData with a type byte.
    fn typed_data(&mut self, data: Bytes) -> Result<(), WireError> {
        let body = data.slice(1.min(data.len())..);
        match data.first() {
            Some(b'd') if self.archives > 0 => self.bytes(body),
            Some(b'd') => return Err(WireError::answer(NAME, "data before the first archive")),
            Some(b'n') => self.begin_archive(&body)?,
            Some(b'm') if body.is_empty() => self.begin_manifest()?,
            Some(b'p') => match <[u8; 8]>::try_from(body.as_ref()) {
                Ok(bytes) => self.queue.push_back(BackupEvent::Progress { bytes_done: u64::from_be_bytes(bytes) }),
                Err(_) => return Err(WireError::malformed("progress report", format!("{} bytes", body.len()))),
            },
            Some(tag) => return Err(WireError::malformed("CopyData", format!("unknown backup message {tag:#04x}"))),
            None => return Err(WireError::malformed("CopyData", "empty")),
        }
        Ok(())
    }

    /// 15+: name and path of the archive that begins; archives come in the order of the tablespace rows.
    fn begin_archive(&mut self, body: &[u8]) -> Result<(), WireError> {
        let mut parts = body.split(|b| *b == 0);
        let (Some(name), Some(_path), Some([]), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(WireError::malformed("archive header", "expected two texts"));
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let due = self.tablespaces.get(self.archives).filter(|_| !self.manifest_begun);
        let expected = match due {
            Some(TablespaceRow { oid: Some(oid), .. }) => format!("{oid}.tar{}", self.suffix),
            Some(_) => format!("base.tar{}", self.suffix),
            None => return Err(WireError::answer(NAME, format!("archive {name:?} where none is due"))),
        };
        if name != expected {
            return Err(WireError::answer(NAME, format!("expected archive {expected:?}, found {name:?}")));
        }
        self.queue.push_back(BackupEvent::Archive { index: self.archives });
        self.archives += 1;
        Ok(())
    }
}

fn position(rows: &Rows) -> Result<(Lsn, TimelineId), WireError> {
    let row = rows.one(NAME, 2)?;
    Ok((command::required(NAME, row, 0)?, command::timeline(NAME, row, 1)?))
}

fn tablespaces(rows: &Rows) -> Result<Vec<TablespaceRow>, WireError> {
    let mut list = Vec::new();
    for row in &rows.rows {
        list.push(TablespaceRow {
            oid: command::value(NAME, row, 0)?,
            location: command::text(NAME, row, 1)?.unwrap_or_default(),
            size_kb: command::value(NAME, row, 2)?,
        });
    }
    // The order matters to the reader of the archives: the base directory, which holds pg_control, is last.
    let base = list.iter().position(|row: &TablespaceRow| row.oid.is_none());
    if base.is_none_or(|index| index + 1 != list.len()) {
        return Err(WireError::answer(NAME, "expected the base directory as the last row of the tablespaces"));
    }
    Ok(list)
}

impl Machine for BaseBackup {
    type Event = BackupEvent;

    fn take(&mut self, message: Message, _out: &mut Outbox) -> Result<Option<BackupEvent>, WireError> {
        match (&mut self.state, message) {
            (State::Done, message) => return self.refuse(&message),
            (_, Message::Error(error)) if error.is_fatal() => {
                self.state = State::Done;
                return Err(WireError::Server { error, ready: false });
            }
            (State::Failed(error), Message::ReadyForQuery) => {
                let error = std::mem::take(error);
                self.state = State::Done;
                return Err(WireError::Server { error, ready: true });
            }
            (State::Failed(_), message) => return self.refuse(&message),
            (_, Message::Error(error)) => self.state = State::Failed(error),
            (_, message) => self.step(message)?,
        }
        Ok(self.queue.pop_front())
    }
}
