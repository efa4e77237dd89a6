//! Where a server that shut down at its target landed: nobody can ask it any more, so its last words and its pg_control are compared with the plan.

use super::plan::{Landing, Stop};
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
    RestorePoint,
    Consistency,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    before: bool,
    mark: Mark,
}

impl Said {
    /// The last such line of a log; `None` where there is none that is known.
    fn parse(log: &str) -> Option<Said> {
        let said = log.lines().filter_map(|line| line.split_once(SAYS)).next_back()?.1;
        let (how, rest) = said.split_once(' ')?;
        let quoted = || rest.split('"').nth(1);
        let after_of = || rest.split_once("transaction ")?.1.split(',').next()?.trim().parse().ok();
        let mark = if rest.starts_with("WAL location") {
            Mark::Record(quoted()?.parse().ok()?)
        } else if rest.starts_with("commit of") || rest.starts_with("abort of") {
            Mark::Transaction(after_of()?)
        } else if rest.starts_with("restore point") {
            Mark::RestorePoint
        } else if rest.starts_with("reaching consistency") {
            Mark::Consistency
        } else {
            return None;
        };
        Some(Said { before: how == "before", mark })
    }

    /// Whether this is the record at which the plan ends.
    fn is_planned(&self, landing: &Landing) -> bool {
        let (before, start) = match landing.stop {
            Stop::Before { start, .. } => (true, start),
            Stop::After { start, .. } => (false, start),
            // The server is given the last record there is as its target.
            Stop::EndOfWal | Stop::Cut => (false, landing.last_record),
        };
        match self.mark {
            Mark::Record(at) => at == start && self.before == before,
            Mark::Transaction(xid) => landing.ended == Some(xid) && self.before == before,
            Mark::RestorePoint => !before,
            // It says "after" whichever it is.
            Mark::Consistency => true,
        }
    }
}

/// The end of the last record that was replayed, as the plan has it: `log` is what this run of the server said, `control` its pg_control. `Kind::Failed` where
/// they say something else.
pub fn landed(log: &str, control: &ControlFile, landing: &Landing) -> Result<Lsn> {
    let planned = format!("the plan said {}", landing.replayed);
    let Some(said) = Said::parse(log) else {
        return Err(Error::new(Kind::Failed, format!("the server does not say where it stopped, {planned}")));
    };
    if !said.is_planned(landing) {
        let line = log.lines().filter_map(|line| line.split_once(SAYS)).next_back().map_or("", |(_, words)| words);
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
                is(false, Mark::RestorePoint),
            ),
            ("recovery stopping after reaching consistency", is(false, Mark::Consistency)),
            ("recovery stopping somewhere else", None),
            ("recovery has paused", None),
        ] {
            assert_eq!(said(words), expected, "{words}");
        }
    }
}
