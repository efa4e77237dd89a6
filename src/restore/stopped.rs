//! Where a server that shut down at its target landed: nobody can ask it any more, so its last words and its pg_control are compared with the plan.

use super::plan::{Landing, Stop};
use super::target::Target;
use crate::error::{Error, Kind, Result};
use crate::pg::Lsn;
use crate::pg::control::ControlFile;

/// What a server says when it stops (`recoveryStopsBefore`, `recoveryStopsAfter`; the same words from 13 to 18).
const SAYS: &str = "recovery stopping ";

/// At what it stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mark {
    /// The record that starts there.
    Record(Lsn),
    /// The commit or abort of this transaction.
    Transaction(u32),
    /// A restore point, and what is said of it behind these words: its name may have a line of its own.
    RestorePoint(String),
    Consistency,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    before: bool,
    mark: Mark,
}

impl Said {
    /// The last such words of a log; `None` where there are none that are known.
    fn parse(log: &str) -> Option<Said> {
        let said = words(log)?;
        let (how, rest) = said.split_once(' ')?;
        let quoted = || rest.split('"').nth(1);
        let after_of = || rest.split_once("transaction ")?.1.split(',').next()?.trim().parse().ok();
        let mark = if rest.starts_with("WAL location") {
            Mark::Record(quoted()?.parse().ok()?)
        } else if rest.starts_with("commit of") || rest.starts_with("abort of") {
            Mark::Transaction(after_of()?)
        } else if let Some(point) = rest.strip_prefix("restore point ") {
            Mark::RestorePoint(point.to_owned())
        } else if rest.lines().next() == Some("reaching consistency") {
            Mark::Consistency
        } else {
            return None;
        };
        Some(Said { before: how == "before", mark })
    }

    /// Whether this is the record at which the plan ends.
    fn is_planned(&self, landing: &Landing, target: &Target) -> bool {
        let (before, start) = match landing.stop {
            Stop::Before { start, .. } => (true, start),
            Stop::After { start, .. } => (false, start),
            // The server is given the last record there is as its target.
            Stop::EndOfWal | Stop::Cut => return self.mark == Mark::Record(landing.last_record) && !self.before,
        };
        match (&self.mark, target) {
            (Mark::Record(at), Target::Lsn { .. }) => *at == start && self.before == before,
            (Mark::Transaction(xid), Target::Time { .. } | Target::Xid { .. }) => {
                landing.ended == Some(*xid) && self.before == before
            }
            // A message that has lines of its own is told with tabs in front of them (`append_with_tabs`).
            (Mark::RestorePoint(said), Target::Name(name)) => {
                !before && said.starts_with(&format!("\"{}\", time ", name.replace('\n', "\n\t")))
            }
            // It says "after" whichever it is.
            (Mark::Consistency, Target::Immediate) => true,
            _ => false,
        }
    }
}

/// What stands behind [`SAYS`] in the last line of a log that has it, and behind that line: a name in it may have these words, too.
fn words(log: &str) -> Option<&str> {
    let (mut begin, mut found) = (0, None);
    for line in log.split_inclusive('\n') {
        // What begins with a tab goes on with a line before.
        let at = line.find(SAYS).filter(|_| !line.starts_with('\t'));
        found = at.map(|at| begin + at + SAYS.len()).or(found);
        begin += line.len();
    }
    found.and_then(|at| log.get(at..))
}

/// The end of the last record that was replayed, as the plan has it: `log` is what this run of the server said, `control` its pg_control. `Kind::Failed` where
/// they say something else.
pub fn landed(log: &str, control: &ControlFile, landing: &Landing, target: &Target) -> Result<Lsn> {
    let planned = format!("the plan said {} for {}", landing.replayed, target.describe());
    let Some(said) = Said::parse(log) else {
        return Err(Error::new(Kind::Failed, format!("the server does not say where it stopped, {planned}")));
    };
    if !said.is_planned(landing, target) {
        let line = words(log).and_then(|words| words.lines().next()).unwrap_or_default();
        return Err(Error::new(Kind::Failed, format!("the server said {SAYS}{line}; {planned}")));
    }
    // No page may be newer than the landing; an older position is no contradiction, since records that change no page may lie behind it.
    if control.min_recovery_point > landing.replayed {
        let past = control.min_recovery_point;
        return Err(Error::new(Kind::Failed, format!("the server replayed up to {past}, {planned}")));
    }
    Ok(landing.replayed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(words: &str) -> Option<Said> {
        Said::parse(&format!("2026-11-21 14:05:00 UTC [1] LOG:  starting\n[1] LOG:  {words}\n[1] LOG:  bye\n"))
    }

    #[test]
    fn the_words_of_every_stop() {
        let is = |before, mark| Some(Said { before, mark });
        let lsn = Mark::Record(Lsn(0x1_0000_02A8));
        for (words, expected) in [
            (
                "recovery stopping before commit of transaction 740, time 2026-11-21 15:05:00.1+01",
                is(true, Mark::Transaction(740)),
            ),
            (
                "recovery stopping after abort of transaction 741, time 2026-11-21 15:05:00.1+01",
                is(false, Mark::Transaction(741)),
            ),
            ("recovery stopping before WAL location (LSN) \"1/2A8\"", is(true, lsn.clone())),
            ("recovery stopping after WAL location (LSN) \"1/000002A8\"", is(false, lsn)),
            (
                "recovery stopping at restore point \"before commit of x\", time 2026-11-21 15:05:00.1+01",
                is(
                    false,
                    Mark::RestorePoint(
                        "\"before commit of x\", time 2026-11-21 15:05:00.1+01\n[1] LOG:  bye\n".to_owned(),
                    ),
                ),
            ),
            ("recovery stopping after reaching consistency", is(false, Mark::Consistency)),
            ("recovery stopping after reaching consistency of something", None),
            ("recovery stopping somewhere else", None),
            ("recovery has paused", None),
        ] {
            assert_eq!(said(words), expected, "{words}");
        }
    }

    /// `ended`: the transaction that the record ends at which it stops.
    fn landing(stop: Stop, ended: Option<u32>) -> Landing {
        Landing {
            last_commit: None,
            next_commit: None,
            commits: 0,
            replayed: Lsn(0x120),
            last_record: Lsn(0x100),
            needed: Lsn(0x120),
            timeline: crate::pg::TimelineId(1),
            stop,
            missed: Vec::new(),
            missed_count: 0,
            looked: Lsn(0x120),
            tablespaces: Vec::new(),
            rolled_back: false,
            ended,
        }
    }

    #[test]
    fn a_stop_is_as_planned_only_where_target_and_record_are_the_planned_ones() {
        let at = "at restore point \"nightly\", time 2026-11-21 15:05:00.1+01";
        let commit = "before commit of transaction 740, time 2026-11-21 15:05:00.1+01";
        let (consistent, record) = ("after reaching consistency", "after WAL location (LSN) \"0/100\"");
        let said = [at, commit, consistent, record];
        let (before, after) =
            (Stop::Before { start: Lsn(0x100), end: Lsn(0x120) }, Stop::After { start: Lsn(0x100), end: Lsn(0x120) });
        let name = |name: &str| Target::Name(name.to_owned());
        let time = Target::Time { time: crate::pg::xact::PgTime(0), inclusive: true };
        let xid = Target::Xid { xid: 740, inclusive: false };
        let lsn = Target::Lsn { lsn: Lsn(0xF0), inclusive: true };
        for (target, stop, planned) in [
            (name("nightly"), after, Some(at)),
            (name("nightl"), after, None),
            (name("nightly\", time"), after, None),
            (name("other"), after, None),
            (time.clone(), before, Some(commit)),
            (xid, before, Some(commit)),
            (Target::Immediate, before, Some(consistent)),
            (Target::Immediate, after, Some(consistent)),
            (lsn, after, Some(record)),
            // These have no stop of their own: the server was given the last record.
            (Target::Latest, Stop::EndOfWal, Some(record)),
            (time, Stop::Cut, Some(record)),
            (Target::Immediate, Stop::Cut, Some(record)),
        ] {
            let landing = landing(stop, Some(740));
            for words in said {
                let said =
                    Said::parse(&format!("LOG:  {SAYS}{words}\nLOG:  shutdown at recovery target\n")).expect(words);
                assert_eq!(
                    said.is_planned(&landing, &target),
                    Some(words) == planned,
                    "{}: {words}",
                    target.describe()
                );
            }
        }
        // Lines of its own, and these very words.
        for (name, logged) in [
            ("a\nb", "a\n\tb"),
            ("a\nrecovery stopping x", "a\n\trecovery stopping x"),
            ("recovery stopping after x", "recovery stopping after x"),
        ] {
            let log = format!("LOG:  {SAYS}at restore point \"{logged}\", time 2026-11-21 15:05:00.1+01\nLOG:  bye\n");
            let said = Said::parse(&log).expect("a restore point");
            assert!(said.is_planned(&landing(after, None), &Target::Name(name.to_owned())), "{log}");
        }
    }
}
