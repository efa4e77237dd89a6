//! Replication commands: text out, typed rows in (`repl_gram.y`, `walsender.c`).

use std::fmt::Write as _;
use std::str::FromStr;

use bytes::Bytes;
use postgres_protocol::message::frontend;

use super::codec::{Machine, Message, Outbox};
use super::error::{ServerError, WireError};
use crate::pg::{Lsn, MajorVersion, SystemIdentifier, TimelineId};

/// Answer to IDENTIFY_SYSTEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    /// The current flush position: never a safe place to start after an outage.
    pub position: Lsn,
}

/// Answer to READ_REPLICATION_SLOT (15+), or to the same question by SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    pub restart_lsn: Option<Lsn>,
    pub restart_timeline: Option<TimelineId>,
}

/// Answer to TIMELINE_HISTORY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    pub name: String,
    pub content: Bytes,
}

/// Options of BASE_BACKUP. Always sent beside them: TABLESPACE_MAP, no wait for the server's archiver, VERIFY_CHECKSUMS off, no WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseBackupOptions {
    pub label: String,
    pub fast_checkpoint: bool,
    /// kB/s, 32 to 1048576.
    pub max_rate: Option<u32>,
    pub manifest: bool,
    /// Only what changed since the backup whose manifest was uploaded in this session (17+).
    pub incremental: bool,
    /// Of the archives, not of the manifest. 15 and later.
    pub compression: Option<ServerCompression>,
}

/// What a server compresses archives with before it sends them (`compression.c:parse_compress_algorithm`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerCompression {
    Zstd { level: i32 },
    Lz4,
}

impl ServerCompression {
    /// What the names of archives end with.
    pub fn suffix(self) -> &'static str {
        match self {
            ServerCompression::Zstd { .. } => ".zst",
            ServerCompression::Lz4 => ".lz4",
        }
    }

    /// Its options of BASE_BACKUP.
    fn text(self) -> String {
        match self {
            ServerCompression::Zstd { level } => format!("COMPRESSION 'zstd', COMPRESSION_DETAIL 'level={level}'"),
            ServerCompression::Lz4 => "COMPRESSION 'lz4'".to_owned(),
        }
    }
}

/// One tablespace row of BASE_BACKUP; the last one is the base directory (no oid).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespaceRow {
    pub oid: Option<u32>,
    pub location: String,
    /// Estimated size in kB.
    pub size_kb: Option<u64>,
}

/// What BASE_BACKUP yields, the same for 13/14 and 15+, in this order: Start, Archive/Data..., Manifest/ManifestData..., End, Complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEvent {
    Start {
        lsn: Lsn,
        timeline: TimelineId,
        tablespaces: Vec<TablespaceRow>,
    },
    /// The archive of `tablespaces[index]` begins: raw tar bytes follow (with or without the two zero blocks at the end).
    Archive {
        index: usize,
    },
    Data(Bytes),
    /// The manifest begins.
    Manifest,
    ManifestData(Bytes),
    Progress {
        bytes_done: u64,
    },
    End {
        lsn: Lsn,
        timeline: TimelineId,
    },
    /// The final CommandComplete: only now the backup is good.
    Complete,
}

/// Bounds of MAX_RATE in kB/s (`MAX_RATE_LOWER`, `MAX_RATE_UPPER`, `basebackup.c`).
pub const MAX_RATE: std::ops::RangeInclusive<u32> = 32..=1_048_576;
/// Bytes of rows kept for one answer; the longest legal ones (history files, settings, slots) are far below.
const MAX_ANSWER: usize = 256 << 20;

/// One result set of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Option<Bytes>>>,
    /// The text of CommandComplete.
    pub tag: String,
}

/// Puts a command into `out` as a simple query.
pub fn send(text: &str, out: &mut Outbox) -> Result<(), WireError> {
    let refused = |_| WireError::Text { what: "a command", found: "a zero byte" };
    frontend::query(text, &mut out.bytes).map_err(refused)
}

/// Runs one command by the simple query protocol. The event is every result set, after ReadyForQuery.
#[derive(Debug, Default)]
pub struct Command {
    current: Option<Rows>,
    done: Vec<Rows>,
    error: Option<Box<ServerError>>,
    size: usize,
    ready: bool,
}

impl Command {
    /// Sends `text`.
    pub fn begin(text: &str, out: &mut Outbox) -> Result<Command, WireError> {
        send(text, out)?;
        Ok(Command::default())
    }

    fn state_name(&self) -> &'static str {
        match (&self.current, &self.error) {
            _ if self.ready => "ready for a command",
            (_, Some(_)) => "command failed",
            (Some(_), _) => "result set",
            (None, _) => "command sent",
        }
    }
}

impl Machine for Command {
    type Event = Vec<Rows>;

    fn take(&mut self, message: Message, _out: &mut Outbox) -> Result<Option<Vec<Rows>>, WireError> {
        if self.ready {
            return Err(message.out_of_place(self.state_name()));
        }
        match message {
            Message::Error(error) if error.is_fatal() => return Err(WireError::Server { error, ready: false }),
            Message::Error(error) if self.error.is_none() => self.error = Some(error),
            Message::ReadyForQuery if self.error.is_some() || self.current.is_none() => {
                self.ready = true;
                return match self.error.take() {
                    Some(error) => Err(WireError::Server { error, ready: true }),
                    None => Ok(Some(std::mem::take(&mut self.done))),
                };
            }
            message if self.error.is_some() => return Err(message.out_of_place(self.state_name())),
            Message::RowDescription(columns) if self.current.is_none() => {
                self.current = Some(Rows { columns, ..Rows::default() });
            }
            Message::DataRow(row) => match &mut self.current {
                Some(rows) if rows.columns.len() == row.len() => {
                    self.size += row.iter().flatten().map(Bytes::len).sum::<usize>() + 32 * row.len();
                    if self.size > MAX_ANSWER {
                        return Err(WireError::answer("a command", format!("more than {MAX_ANSWER} bytes of rows")));
                    }
                    rows.rows.push(row);
                }
                Some(rows) => {
                    let problem = format!("row of {} columns, {} were announced", row.len(), rows.columns.len());
                    return Err(WireError::malformed("DataRow", problem));
                }
                None => return Err(Message::DataRow(row).out_of_place(self.state_name())),
            },
            Message::CommandComplete(tag) => {
                let rows = self.current.take().unwrap_or_default();
                self.done.push(Rows { tag, ..rows });
            }
            Message::EmptyQueryResponse if self.current.is_none() => self.done.push(Rows::default()),
            message => return Err(message.out_of_place(self.state_name())),
        }
        Ok(None)
    }
}

/// The only result set of an answer.
pub fn single(command: &'static str, answer: Vec<Rows>) -> Result<Rows, WireError> {
    let count = answer.len();
    match <[Rows; 1]>::try_from(answer) {
        Ok([rows]) => Ok(rows),
        Err(_) => Err(WireError::answer(command, format!("expected one result, found {count}"))),
    }
}

impl Rows {
    /// The only row, with at least `columns` columns.
    pub(super) fn one(&self, command: &'static str, columns: usize) -> Result<&[Option<Bytes>], WireError> {
        match self.rows.as_slice() {
            [row] if row.len() >= columns => Ok(row),
            rows => {
                let found = rows.first().map_or(0, Vec::len);
                let problem = format!(
                    "expected one row of at least {columns} columns, found {} rows of {found} columns",
                    rows.len()
                );
                Err(WireError::answer(command, problem))
            }
        }
    }
}

/// Text of a column that may be NULL.
pub(super) fn text(command: &'static str, row: &[Option<Bytes>], column: usize) -> Result<Option<String>, WireError> {
    let Some(Some(bytes)) = row.get(column) else { return Ok(None) };
    let text = std::str::from_utf8(bytes)
        .map_err(|_| WireError::answer(command, format!("column {} is not text", column + 1)))?;
    Ok(Some(text.to_owned()))
}

/// A value that may be NULL.
pub(super) fn value<T: FromStr>(
    command: &'static str,
    row: &[Option<Bytes>],
    column: usize,
) -> Result<Option<T>, WireError> {
    let Some(text) = text(command, row, column)? else { return Ok(None) };
    let parsed = text.parse().map_err(|_| WireError::answer(command, format!("column {} is {text:?}", column + 1)))?;
    Ok(Some(parsed))
}

/// A value that must be there.
pub(super) fn required<T: FromStr>(
    command: &'static str,
    row: &[Option<Bytes>],
    column: usize,
) -> Result<T, WireError> {
    value(command, row, column)?.ok_or_else(|| WireError::answer(command, format!("column {} is NULL", column + 1)))
}

/// A timeline that must be there, and is never 0.
pub(super) fn timeline(command: &'static str, row: &[Option<Bytes>], column: usize) -> Result<TimelineId, WireError> {
    match required::<u32>(command, row, column)? {
        0 => Err(WireError::answer(command, "timeline 0")),
        number => Ok(TimelineId(number)),
    }
}

pub const IDENTIFY_SYSTEM: &str = "IDENTIFY_SYSTEM";

/// Reads the answer to IDENTIFY_SYSTEM.
pub fn identity(answer: Vec<Rows>) -> Result<Identity, WireError> {
    let rows = single(IDENTIFY_SYSTEM, answer)?;
    let row = rows.one(IDENTIFY_SYSTEM, 3)?;
    Ok(Identity {
        system: SystemIdentifier(required(IDENTIFY_SYSTEM, row, 0)?),
        timeline: timeline(IDENTIFY_SYSTEM, row, 1)?,
        position: required(IDENTIFY_SYSTEM, row, 2)?,
    })
}

/// SHOW of a setting; the name is an identifier, or two with a dot between them.
pub fn show_text(name: &str) -> Result<String, WireError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
    match name.chars().all(legal) && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        true => Ok(format!("SHOW {name}")),
        false => Err(WireError::Text { what: "the name of a setting", found: "anything but letters, digits, _ and ." }),
    }
}

/// Reads the answer to SHOW.
pub fn setting(answer: Vec<Rows>) -> Result<String, WireError> {
    let rows = single("SHOW", answer)?;
    required("SHOW", rows.one("SHOW", 1)?, 0)
}

pub fn timeline_history_text(timeline: TimelineId) -> String {
    format!("TIMELINE_HISTORY {timeline}")
}

/// Reads the answer to TIMELINE_HISTORY for `timeline`.
pub fn history_file(timeline: TimelineId, answer: Vec<Rows>) -> Result<HistoryFile, WireError> {
    const NAME: &str = "TIMELINE_HISTORY";
    let rows = single(NAME, answer)?;
    let row = rows.one(NAME, 2)?;
    let name: String = required(NAME, row, 0)?;
    if name != timeline.history_name() {
        return Err(WireError::answer(NAME, format!("expected {}, found {name:?}", timeline.history_name())));
    }
    match row.get(1) {
        Some(Some(content)) => Ok(HistoryFile { name, content: content.clone() }),
        _ => Err(WireError::answer(NAME, "column 2 is NULL")),
    }
}

pub fn read_slot_text(name: &str) -> Result<String, WireError> {
    Ok(format!("READ_REPLICATION_SLOT {}", identifier(name)?))
}

/// The same question as READ_REPLICATION_SLOT for versions before 15, in SQL; no row where there is no slot.
pub fn read_slot_sql(name: &str) -> Result<String, WireError> {
    // With standard_conforming_strings off a backslash would begin an escape; no slot's name has one.
    if name.contains('\\') {
        return Err(WireError::Text { what: "the name of a slot", found: "a backslash" });
    }
    let name = literal("the name of a slot", name)?;
    Ok(format!("SELECT slot_type, restart_lsn, NULL FROM pg_catalog.pg_replication_slots WHERE slot_name = {name}"))
}

/// Reads the answer to READ_REPLICATION_SLOT or [`read_slot_sql`]: `Err` of the type where it is not a physical slot.
pub fn slot(answer: Vec<Rows>) -> Result<Option<Result<SlotState, String>>, WireError> {
    const NAME: &str = "READ_REPLICATION_SLOT";
    let rows = single(NAME, answer)?;
    if rows.rows.is_empty() {
        return Ok(None);
    }
    let row = rows.one(NAME, 3)?;
    let Some(kind) = text(NAME, row, 0)? else { return Ok(None) };
    if kind != "physical" {
        return Ok(Some(Err(kind)));
    }
    let restart_timeline = value::<u32>(NAME, row, 2)?.filter(|t| *t > 0).map(TimelineId);
    Ok(Some(Ok(SlotState { restart_lsn: value::<Lsn>(NAME, row, 1)?.filter(|l| l.is_valid()), restart_timeline })))
}

pub fn create_slot_text(name: &str, temporary: bool, reserve: bool) -> Result<String, WireError> {
    let temporary = if temporary { " TEMPORARY" } else { "" };
    let reserve = if reserve { " RESERVE_WAL" } else { "" };
    Ok(format!("CREATE_REPLICATION_SLOT {}{temporary} PHYSICAL{reserve}", identifier(name)?))
}

pub fn drop_slot_text(name: &str) -> Result<String, WireError> {
    Ok(format!("DROP_REPLICATION_SLOT {}", identifier(name)?))
}

pub fn start_replication_text(slot: Option<&str>, start: Lsn, timeline: TimelineId) -> Result<String, WireError> {
    let slot = slot.map(|name| identifier(name).map(|name| format!("SLOT {name} "))).transpose()?.unwrap_or_default();
    Ok(format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}"))
}

/// BASE_BACKUP in the grammar of `version`.
pub fn base_backup_text(options: &BaseBackupOptions, version: MajorVersion) -> Result<String, WireError> {
    let label = literal("the label of a backup", &options.label)?;
    if options.label.chars().any(char::is_control) {
        return Err(WireError::Text { what: "the label of a backup", found: "a control character" });
    }
    if options.max_rate.is_some_and(|rate| !MAX_RATE.contains(&rate)) {
        return Err(WireError::Text {
            what: "the maximum rate of a backup",
            found: "a value outside 32..1048576 kB/s",
        });
    }
    let old = version < MajorVersion::V15;
    let mut parts = vec![format!("LABEL {label}"), "PROGRESS".to_owned()];
    match (old, options.fast_checkpoint) {
        (true, true) => parts.push("FAST".to_owned()),
        (true, false) => {}
        (false, fast) => parts.push(format!("CHECKPOINT '{}'", if fast { "fast" } else { "spread" })),
    }
    parts.push(if old { "NOWAIT" } else { "WAIT 0" }.to_owned());
    parts.extend(options.max_rate.map(|rate| format!("MAX_RATE {rate}")));
    parts.push("TABLESPACE_MAP".to_owned());
    parts.push(if old { "NOVERIFY_CHECKSUMS" } else { "VERIFY_CHECKSUMS 0" }.to_owned());
    if old && options.compression.is_some() {
        return Err(WireError::Text { what: "the compression of a backup", found: "one that servers know from 15 on" });
    }
    parts.extend(options.compression.map(ServerCompression::text));
    if options.manifest {
        parts.push("MANIFEST 'yes'".to_owned());
        parts.push("MANIFEST_CHECKSUMS 'CRC32C'".to_owned());
    }
    if options.incremental {
        if version < MajorVersion::V17 {
            return Err(WireError::Text { what: "a base backup of a server before 17", found: "INCREMENTAL" });
        }
        parts.push("INCREMENTAL".to_owned());
    }
    let mut text = String::from("BASE_BACKUP ");
    let _ = if old { write!(text, "{}", parts.join(" ")) } else { write!(text, "({})", parts.join(", ")) };
    Ok(text)
}

/// A quoted identifier. A quote inside is refused: not every version's `repl_scanner.l` reads it doubled, and no slot's name has one.
fn identifier(name: &str) -> Result<String, WireError> {
    let refused = |found| Err(WireError::Text { what: "the name of a slot", found });
    match name {
        "" => refused("nothing"),
        name if name.contains('\0') => refused("a zero byte"),
        name if name.contains('"') => refused("a quote"),
        name => Ok(format!("\"{name}\"")),
    }
}

/// A string literal (`repl_scanner.l`: `'` doubled, a backslash is an ordinary character).
fn literal(what: &'static str, text: &str) -> Result<String, WireError> {
    if text.contains('\0') {
        return Err(WireError::Text { what, found: "a zero byte" });
    }
    Ok(format!("'{}'", text.replace('\'', "''")))
}
