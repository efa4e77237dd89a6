//! Names of objects (pure). `docs/format/repository-format.md` has the tree.

use crate::pg::xact::PgTime;
use crate::pg::{Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineId};

pub const REPOSITORY_FILE: &str = "walrecv.json";

/// Most WAL in one object: longer segments are stored in parts of this size.
pub const PART_BYTES: u64 = 16 << 20;

/// No object is longer, but for the files below: 16 MiB of plaintext in frames of some hundred bytes at least.
const LARGEST_OBJECT: u64 = 32 << 20;
/// A local tail file has a frame for each flush, which takes 80 bytes beside what is in it. Records end at multiples of 8 bytes, so 16 MiB of WAL may become 176
/// MiB; the rest is room for what is preallocated.
const LARGEST_OPEN: u64 = 256 << 20;
/// Of what people and `age` can read: files that a key or a cluster is described in.
const LARGEST_PLAIN: u64 = 1 << 20;

/// Most bytes that an object under this name can have: a longer one was not stored by walrecv, and no reader needs to take it into memory to know that.
pub fn largest(name: &str) -> u64 {
    match name.rsplit('/').next().unwrap_or_default() {
        "cluster.json" | REPOSITORY_FILE => LARGEST_PLAIN,
        _ if name.starts_with("keys/") => LARGEST_PLAIN,
        file if file.ends_with(".open") => LARGEST_OPEN,
        _ => LARGEST_OBJECT,
    }
}

/// Longest component of a name: what every file system holds, with room for the name of a staging file.
const COMPONENT_BYTES: usize = 200;

/// `keys/<identity>/`: the files that wrap an identity.
pub fn key_folder(identity: &str) -> String {
    format!("keys/{identity}")
}

/// `keys/<identity>/<recipient>-<check>.age`; `check` is 32 hexadecimal digits of [`key_file_check`](crate::seal::hash::key_file_check).
pub fn key_file(identity: &str, recipient: &str, check: &str) -> String {
    format!("keys/{identity}/{recipient}-{check}.age")
}

/// Identity, recipient and check value of a key file; `None` where the name is not made of them.
pub fn parse_key_file(name: &str) -> Option<(&str, &str, &str)> {
    let (identity, file) = name.strip_prefix("keys/")?.split_once('/')?;
    let (recipient, check) = file.strip_suffix(".age")?.rsplit_once('-')?;
    let fits = check.len() == 32 && check.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (fits && !recipient.is_empty() && !recipient.contains('/')).then_some((identity, recipient, check))
}

/// `events/<yyyy-mm>/<time>-<kind>-<16 hexadecimal digits>`: the time is UTC, `yyyymmddThhmmssZ`.
pub fn event(month: &str, time: &str, kind: &str, token: &str) -> String {
    format!("events/{month}/{time}-{kind}-{token}")
}

/// The kind of event that an object below `events/` is called after; `None` for anything else.
pub fn event_kind(name: &str) -> Option<&str> {
    let (month, file) = name.strip_prefix("events/")?.split_once('/')?;
    let (time, rest) = file.split_once('-')?;
    let (kind, token) = rest.rsplit_once('-')?;
    let placed = month.len() == 7 && time.len() == 16 && time.get(..6) == Some(month.replace('-', "").as_str());
    let plain = token.len() == 16 && token.bytes().all(|b| b.is_ascii_hexdigit());
    (placed && plain && !file.contains('/') && !kind.is_empty()).then_some(kind)
}

/// Whether `name` may name an object: components of ASCII letters, digits and `.`, `_`, `-`, `+`, `=`, separated by single slashes,
/// none of them beginning with a dot. Such a name means the same on a file system, in a URL and in a bucket.
pub fn valid_name(name: &str) -> bool {
    name.len() <= 900 && name.split('/').all(valid_component)
}

fn valid_component(component: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+' | b'=');
    (1..=COMPONENT_BYTES).contains(&component.len()) && !component.starts_with('.') && component.bytes().all(plain)
}

/// Whether a cluster may be called so: one component of a name, at most 63 bytes, as PostgreSQL's own names.
pub fn valid_cluster(name: &str) -> bool {
    valid_component(name) && name.len() <= 63
}

/// Whether a run may be called so: ASCII letters and digits only, and not the word that marks a local tail file.
pub fn valid_run(run: &str) -> bool {
    (1..=64).contains(&run.len()) && run != "open" && run.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// How many objects a complete segment is stored in, when it is more than one.
pub fn parts_of(size: SegmentSize) -> Option<u32> {
    (size.bytes() > PART_BYTES).then_some((size.bytes() / PART_BYTES) as u32)
}

/// The 4 GiB of WAL of one timeline that share a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WalGroup {
    pub timeline: TimelineId,
    /// Of its first byte.
    pub first: Lsn,
}

impl WalGroup {
    /// The group that holds the byte at `lsn`.
    pub fn of(timeline: TimelineId, lsn: Lsn) -> WalGroup {
        WalGroup { timeline, first: lsn.align_down(1 << 32) }
    }

    /// From the name of its folder: 16 hexadecimal digits.
    pub fn parse(folder: &str) -> Option<WalGroup> {
        let (timeline, log) = (hex(folder.get(..8)?, 8)?, hex(folder.get(8..)?, 8)?);
        (timeline > 0).then_some(WalGroup { timeline: TimelineId(timeline as u32), first: Lsn(log << 32) })
    }

    /// Whether every byte of it lies below `lsn`.
    pub fn ends_by(self, lsn: Lsn) -> bool {
        lsn.0 >> 32 > self.first.0 >> 32
    }
}

impl std::fmt::Display for WalGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08X}{:08X}", self.timeline.0, self.first.0 >> 32)
    }
}

/// Names below `clusters/<name>/<system id>-<segment size>/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNames {
    pub cluster: String,
    pub system: SystemIdentifier,
    pub segment_size: SegmentSize,
}

impl ClusterNames {
    /// `clusters/<name>/<system id>-<segment size>` (size in bytes, decimal).
    pub fn root(&self) -> String {
        format!("clusters/{}/{}-{}", self.cluster, self.system, self.segment_size.bytes())
    }

    /// The incarnation that a folder below `clusters/<name>/` is called after; `None` for anything else.
    pub fn parse_incarnation(cluster: &str, folder: &str) -> Option<ClusterNames> {
        let (system, size) = folder.split_once('-')?;
        let names = ClusterNames {
            cluster: cluster.to_owned(),
            system: SystemIdentifier(system.parse().ok()?),
            segment_size: SegmentSize::new(size.parse().ok()?)?,
        };
        // Leading zeros and signs would give one incarnation two names.
        (valid_cluster(cluster) && names.root().ends_with(&format!("/{folder}"))).then_some(names)
    }

    fn below(&self, rest: impl std::fmt::Display) -> String {
        format!("{}/{rest}", self.root())
    }

    pub fn cluster_file(&self) -> String {
        self.below("cluster.json")
    }

    /// `part` is `None` for segments of at most 16 MiB.
    pub fn segment(&self, segment: SegmentName, part: Option<u32>) -> String {
        let part = part.map(|p| format!(".{p}")).unwrap_or_default();
        self.below(format_args!("wal/{:08X}/{}/{segment}{part}", segment.timeline.0, segment.group()))
    }

    pub fn partial(&self, segment: SegmentName) -> String {
        self.below(format_args!("wal/{:08X}/{}/{segment}.partial", segment.timeline.0, segment.group()))
    }

    /// `wal/<TLI>`: the folder of a timeline's groups.
    pub fn timeline_folder(&self, timeline: TimelineId) -> String {
        self.below(format_args!("wal/{:08X}", timeline.0))
    }

    /// `wal/<TLI>/<GROUP>`
    pub fn group_folder(&self, group: WalGroup) -> String {
        format!("{}/{group}", self.timeline_folder(group.timeline))
    }

    /// `wal/<TLI>/<GROUP>/summary`
    pub fn group_summary(&self, group: WalGroup) -> String {
        format!("{}/summary", self.group_folder(group))
    }

    pub fn history(&self, timeline: TimelineId) -> String {
        self.below(format_args!("wal/{}", timeline.history_name()))
    }

    /// `tail/<TLI>/<SEGMENT>`: the folder of a segment's pieces and open files.
    pub fn tail_folder(&self, segment: SegmentName) -> String {
        self.below(format_args!("tail/{:08X}/{segment}", segment.timeline.0))
    }

    /// `tail/<TLI>/<SEGMENT>/<from>-<to>.<run>`: offsets in the segment, 8 hexadecimal digits.
    pub fn tail_piece(&self, segment: SegmentName, from: u64, to: u64, run: &str) -> String {
        format!("{}/{from:08X}-{to:08X}.{run}", self.tail_folder(segment))
    }

    /// `tail/<TLI>/<SEGMENT>/<run>.open`: on a local disk, and what a spool had beyond the repository.
    pub fn tail_open(&self, segment: SegmentName, run: &str) -> String {
        format!("{}/{run}.open", self.tail_folder(segment))
    }

    /// `<name>/<system id>-<segment size>`: the folder of this cluster below a spool's.
    pub fn spool_folder(&self) -> String {
        format!("{}/{}-{}", self.cluster, self.system, self.segment_size.bytes())
    }

    /// `<name>/<system id>-<segment size>/<TLI>/<SEGMENT>`: as below `tail/`.
    pub fn spool_segment(&self, segment: SegmentName) -> String {
        format!("{}/{:08X}/{segment}", self.spool_folder(), segment.timeline.0)
    }

    /// `<name>/<system id>-<segment size>/<TLI>/<SEGMENT>/<run>.open`
    pub fn spool_file(&self, segment: SegmentName, run: &str) -> String {
        format!("{}/{run}.open", self.spool_segment(segment))
    }

    /// `tail/<TLI>/heartbeats`: apart from the segments' folders, which are emptied when a segment is complete.
    pub fn heartbeat_folder(&self, timeline: TimelineId) -> String {
        self.below(format_args!("tail/{:08X}/heartbeats", timeline.0))
    }

    /// `tail/<TLI>/heartbeats/<LSN>-<time>`: 16 hexadecimal digits each, the time in microseconds since 2000.
    pub fn heartbeat(&self, timeline: TimelineId, lsn: Lsn, time: PgTime) -> String {
        format!("{}/{:016X}-{:016X}", self.heartbeat_folder(timeline), lsn.0, time.0)
    }

    pub fn pack(&self, backup: &str, number: u32) -> String {
        self.below(format_args!("packs/{backup}/{number}"))
    }

    pub fn map(&self, backup: &str, number: u32) -> String {
        self.below(format_args!("maps/{backup}/{number}"))
    }

    pub fn intent(&self, backup: &str) -> String {
        self.below(format_args!("intents/{backup}"))
    }

    /// `alive/<backup>/<n>`: a sign of life of a backup that is being taken.
    pub fn alive(&self, backup: &str, number: u32) -> String {
        self.below(format_args!("alive/{backup}/{number}"))
    }

    pub fn backup(&self, backup: &str) -> String {
        self.below(format_args!("backups/{backup}"))
    }

    pub fn server_manifest(&self, backup: &str, part: u32) -> String {
        self.below(format_args!("manifests/{backup}/{part}"))
    }

    pub fn plan(&self, id: &str) -> String {
        self.below(format_args!("plans/{id}"))
    }
}

/// An object that a backup left, apart from what stands under `backups/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackupPart {
    Pack(u32),
    Map(u32),
    ServerManifest(u32),
    Intent,
    Alive(u32),
}

/// The backup (not checked to be one) and the object that a name relative to the cluster's root means; `None` for anything else, numbers with
/// leading zeros included.
pub fn parse_backup_part(relative: &str) -> Option<(&str, BackupPart)> {
    let fields: Vec<&str> = relative.split('/').collect();
    let number = |text: &str| text.parse::<u32>().ok().filter(|n| n.to_string() == text);
    match fields.as_slice() {
        ["packs", backup, n] => Some((backup, BackupPart::Pack(number(n)?))),
        ["maps", backup, n] => Some((backup, BackupPart::Map(number(n)?))),
        ["manifests", backup, n] => Some((backup, BackupPart::ServerManifest(number(n)?))),
        ["intents", backup] => Some((backup, BackupPart::Intent)),
        ["alive", backup, n] => Some((backup, BackupPart::Alive(number(n)?))),
        _ => None,
    }
}

/// What a name below a cluster's `wal/` or `tail/` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalObject {
    Segment { segment: SegmentName, part: Option<u32> },
    Partial { segment: SegmentName },
    History { timeline: TimelineId },
    TailPiece { segment: SegmentName, from: u64, to: u64, run: String },
    TailOpen { segment: SegmentName, run: String },
    GroupSummary(WalGroup),
    Heartbeat { timeline: TimelineId, lsn: Lsn, time: PgTime },
}

/// Parses a name relative to the cluster's root; `None` for staging leftovers and anything unknown.
pub fn parse_wal_object(relative: &str, size: SegmentSize) -> Option<WalObject> {
    let fields: Vec<&str> = relative.split('/').collect();
    match fields.as_slice() {
        ["wal", history] => Some(WalObject::History { timeline: TimelineId::from_history_name(history)? }),
        ["wal", timeline, group, "summary"] => {
            let group = WalGroup::parse(group)?;
            (hex(timeline, 8)? == u64::from(group.timeline.0)).then_some(WalObject::GroupSummary(group))
        }
        ["wal", timeline, group, file] => {
            let (segment, suffix) = split_segment(file, size)?;
            let placed = hex(timeline, 8)? == segment.timeline.0 as u64 && *group == segment.group();
            let object = match (suffix, parts_of(size)) {
                (None, None) => WalObject::Segment { segment, part: None },
                (Some("partial"), _) => WalObject::Partial { segment },
                (Some(digits), Some(parts)) => {
                    let part = digits.parse().ok().filter(|p: &u32| *p < parts && p.to_string() == digits)?;
                    WalObject::Segment { segment, part: Some(part) }
                }
                _ => return None,
            };
            placed.then_some(object)
        }
        ["tail", timeline, "heartbeats", file] => {
            let (lsn, time) = file.split_once('-')?;
            let timeline = TimelineId(u32::try_from(hex(timeline, 8)?).ok().filter(|number| *number > 0)?);
            Some(WalObject::Heartbeat { timeline, lsn: Lsn(hex(lsn, 16)?), time: PgTime(hex(time, 16)? as i64) })
        }
        ["tail", timeline, folder, file] => {
            let segment = SegmentName::parse(folder, size)?;
            let placed = hex(timeline, 8)? == segment.timeline.0 as u64;
            parse_tail(segment, file).filter(|_| placed)
        }
        _ => None,
    }
}

fn split_segment(file: &str, size: SegmentSize) -> Option<(SegmentName, Option<&str>)> {
    let (name, suffix) = match file.split_once('.') {
        Some((name, suffix)) => (name, Some(suffix)),
        None => (file, None),
    };
    Some((SegmentName::parse(name, size)?, suffix))
}

fn parse_tail(segment: SegmentName, file: &str) -> Option<WalObject> {
    let (first, last) = file.split_once('.')?;
    if last == "open" {
        return valid_run(first).then(|| WalObject::TailOpen { segment, run: first.to_owned() });
    }
    let (from, to) = first.split_once('-')?;
    let (from, to) = (hex(from, 8)?, hex(to, 8)?);
    let placed = from < to && to <= segment.size.bytes() && valid_run(last);
    placed.then(|| WalObject::TailPiece { segment, from, to, run: last.to_owned() })
}

/// Exactly `digits` upper-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u64> {
    let plain = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if plain { u64::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_carry_a_check_value() {
        let check = "0123456789abcdef".repeat(2);
        let name = key_file("a5", "passphrase", &check);
        assert_eq!(parse_key_file(&name), Some(("a5", "passphrase", check.as_str())));
        let upper = check.to_uppercase();
        for bad in [
            "passphrase.age",
            "b5-01.age",
            &format!("-{check}.age"),
            &format!("b5-{upper}.age"),
            &format!("b5-{check}"),
        ] {
            assert_eq!(parse_key_file(&format!("keys/a5/{bad}")), None, "{bad}");
        }
    }
    use crate::pg::SegmentNumber;

    fn names(megabytes: u64) -> ClusterNames {
        let segment_size = SegmentSize::new(megabytes << 20).unwrap();
        ClusterNames { cluster: "main".to_owned(), system: SystemIdentifier(7), segment_size }
    }

    fn relative(names: &ClusterNames, name: &str) -> Option<WalObject> {
        parse_wal_object(name.strip_prefix(&format!("{}/", names.root()))?, names.segment_size)
    }

    #[test]
    fn every_wal_name_is_read_back() {
        for megabytes in [1, 16, 64, 1024] {
            let names = names(megabytes);
            let size = names.segment_size;
            for number in [0, 1, size.per_log_id() - 1, size.per_log_id(), 5_000_000] {
                let segment = SegmentName::new(TimelineId(0xAB), SegmentNumber(number), size);
                let part = parts_of(size).map(|p| p - 1);
                let run = "r1".to_owned();
                let end = size.bytes();
                for (name, object) in [
                    (names.segment(segment, part), WalObject::Segment { segment, part }),
                    (names.partial(segment), WalObject::Partial { segment }),
                    (
                        names.tail_piece(segment, 8, end, &run),
                        WalObject::TailPiece { segment, from: 8, to: end, run: run.clone() },
                    ),
                    (names.tail_open(segment, &run), WalObject::TailOpen { segment, run: run.clone() }),
                    (
                        names.heartbeat(segment.timeline, Lsn(0x16_0000_0028), PgTime(848_000_000_123_456)),
                        WalObject::Heartbeat {
                            timeline: segment.timeline,
                            lsn: Lsn(0x16_0000_0028),
                            time: PgTime(848_000_000_123_456),
                        },
                    ),
                    (names.history(segment.timeline), WalObject::History { timeline: segment.timeline }),
                    (
                        names.group_summary(WalGroup::of(segment.timeline, segment.start())),
                        WalObject::GroupSummary(WalGroup::of(segment.timeline, segment.start())),
                    ),
                ] {
                    assert!(valid_name(&name), "{name}");
                    assert_eq!(relative(&names, &name), Some(object), "{name}");
                }
            }
        }
    }

    #[test]
    fn refuses_names_that_are_out_of_place() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let good = "wal/00000001/0000000100000000/000000010000000000000001";
        assert!(parse_wal_object(good, size).is_some());
        for bad in [
            "wal/00000002/0000000100000000/000000010000000000000001",
            "wal/00000001/0000000100000001/000000010000000000000001",
            "wal/00000001/0000000100000000/000000010000000000000001.0",
            "wal/00000001/0000000100000000/.staging-1-2",
            "wal/00000001/0000000100000000/000000010000000000000001.gz",
            "wal/00000001/0000000100000000/000000010000000000000100",
            "wal/1/0000000100000000/000000010000000000000001",
            "wal/00000001/00000001000000é/summary",
            "wal/00000000.history",
            "tail/00000001/000000010000000000000001/00000010-00000010.r",
            "tail/00000001/000000010000000000000001/00000010-01000001.r",
            "tail/00000001/000000010000000000000001/00000000-00000010.open",
            "tail/00000002/000000010000000000000001/00000000-00000010.r",
            "tail/00000001/000000010000000000000001/.open",
            "tail/00000001/000000010000000000000001/a.b.open",
            "tail/00000001/heartbeats/0000001600000028-000303448A8F9A4",
            "tail/00000000/heartbeats/0000001600000028-0003034487A8F9A4",
            "tail/00000001/heartbeats/0000001600000028",
            "packs/x/1",
            "",
        ] {
            assert_eq!(parse_wal_object(bad, size), None, "{bad}");
        }
        let large = SegmentSize::new(64 << 20).unwrap();
        for (suffix, valid) in [(".0", true), (".3", true), (".4", false), (".00", false), (".+1", false), ("", false)]
        {
            let name = format!("wal/00000001/0000000100000000/000000010000000000000001{suffix}");
            assert_eq!(parse_wal_object(&name, large).is_some(), valid, "{name}");
        }
    }

    #[test]
    fn group_summaries_say_where_they_begin() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let group = WalGroup { timeline: TimelineId(3), first: Lsn(0xA << 32) };
        let expected = Some(WalObject::GroupSummary(group));
        assert_eq!(parse_wal_object("wal/00000003/000000030000000A/summary", size), expected);
        assert_eq!(
            (WalGroup::parse(&group.to_string()), WalGroup::of(TimelineId(3), Lsn((0xB << 32) - 1))),
            (Some(group), group)
        );
        assert!(!group.ends_by(Lsn((0xB << 32) - 1)) && group.ends_by(Lsn(0xB << 32)));
        assert_eq!(parse_wal_object("wal/00000002/000000030000000A/summary", size), None);
    }

    #[test]
    fn events_say_what_they_are() {
        let name = event("2026-03", "20260304T050607Z", "corrupt-wal", "0123456789abcdef");
        assert!(valid_name(&name), "{name}");
        assert_eq!(event_kind(&name), Some("corrupt-wal"));
        for bad in [
            "events/2026-04/20260304T050607Z-hole-0123456789abcdef",
            "events/2026-03/20260304T050607Z-hole-0123456789abcde",
            "events/2026-03/20260304T050607Z-hole",
            "events/2026-03/x/20260304T050607Z-hole-0123456789abcdef",
            "wal/2026-03/20260304T050607Z-hole-0123456789abcdef",
        ] {
            assert_eq!(event_kind(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_backups_leave_is_read_back() {
        let names = names(16);
        let of = |name: &str| {
            let relative = name.strip_prefix(&format!("{}/", names.root())).unwrap();
            parse_backup_part(relative).map(|(backup, part)| (backup.to_owned(), part))
        };
        let is = |part| Some(("b".to_owned(), part));
        assert_eq!(of(&names.pack("b", 7)), is(BackupPart::Pack(7)));
        assert_eq!(of(&names.map("b", 0)), is(BackupPart::Map(0)));
        assert_eq!(of(&names.server_manifest("b", 10)), is(BackupPart::ServerManifest(10)));
        assert_eq!(of(&names.intent("b")), is(BackupPart::Intent));
        assert_eq!(of(&names.alive("b", 7)), is(BackupPart::Alive(7)));
        for bad in
            ["packs/b/07", "packs/b/+7", "packs/b/", "packs/b", "packs/b/7/8", "intents/b/1", "backups/b", "plans/p"]
        {
            assert_eq!(parse_backup_part(bad), None, "{bad}");
        }
    }

    #[test]
    fn incarnations_have_one_name_each() {
        let names = names(16);
        assert_eq!(ClusterNames::parse_incarnation("main", "7-16777216"), Some(names));
        for bad in ["7", "7-", "-16777216", "07-16777216", "+7-16777216", "7-16777217", "7-16777216-1", ""] {
            assert_eq!(ClusterNames::parse_incarnation("main", bad), None, "{bad}");
        }
        assert_eq!(ClusterNames::parse_incarnation("../x", "7-16777216"), None);
    }

    #[test]
    fn odd_names_are_refused() {
        for good in ["a", "walrecv.json", "keys/age1x/age1y.age", "a/b_c-d+e=f.0"] {
            assert!(valid_name(good), "{good}");
        }
        for bad in
            ["", "/a", "a/", "a//b", "..", "a/../b", ".hidden", "a/.b", "a b", "a\0", "a\\b", "ü", "a%2e", "a?b", "a#1"]
        {
            assert!(!valid_name(bad), "{bad}");
        }
        assert!(!valid_name(&"x".repeat(201)));
        assert!(valid_cluster("main-1.eu") && !valid_cluster("a/b") && !valid_cluster(&"x".repeat(64)));
    }
}
