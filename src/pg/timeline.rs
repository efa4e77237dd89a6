//! Timelines and their histories (`access/timeline.c`).

use std::fmt;

use super::Lsn;

/// A branch of the cluster's history (`TimeLineID`); 0 is never one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// Name of its history file (`TLHistoryFileName`). Timeline 1 has none.
    pub fn history_name(self) -> String {
        format!("{:08X}.history", self.0)
    }

    /// The timeline that a history file's name speaks of.
    pub fn from_history_name(name: &str) -> Option<TimelineId> {
        TimelineId::from_folder(name.strip_suffix(".history")?)
    }

    /// From 8 upper-case hexadecimal digits, as at the beginning of the names of segments; 0 is no timeline.
    pub fn from_folder(digits: &str) -> Option<TimelineId> {
        let plain = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        u32::from_str_radix(digits, 16).ok().filter(|t| plain && *t > 0).map(TimelineId)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One line of a history file: `timeline` was left at `switch_point`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    pub timeline: TimelineId,
    pub switch_point: Lsn,
}

/// The path that leads to one timeline: its ancestors, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    pub timeline: TimelineId,
    pub ancestors: Vec<Ancestor>,
}

/// A history file that PostgreSQL itself would refuse, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid history of timeline {timeline}, line {line}: {problem}")]
pub struct InvalidHistory {
    pub timeline: TimelineId,
    pub line: usize,
    pub problem: String,
}

impl TimelineHistory {
    /// A timeline without ancestors: timeline 1, or one whose history file does not exist.
    pub fn root(timeline: TimelineId) -> TimelineHistory {
        TimelineHistory { timeline, ancestors: Vec::new() }
    }

    /// Reads a history file by the rules of `readTimeLineHistory`: blank lines and lines that start with `#` are
    /// skipped, a line is timeline (decimal), white space, switch point, anything; timelines increase and stay below the
    /// file's own.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<TimelineHistory, InvalidHistory> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, line) in content.split(|b| *b == b'\n').enumerate() {
            let text = String::from_utf8_lossy(line);
            let mut fields = text.split_whitespace();
            let Some(first) = fields.next().filter(|f| !f.starts_with('#')) else { continue };
            let bad = |problem: &str| InvalidHistory { timeline, line: index + 1, problem: problem.to_owned() };
            let number = first.parse::<u32>().map_err(|_| bad("expected a timeline number first"))?;
            let switch_point = fields
                .next()
                .and_then(|f| f.parse::<Lsn>().ok())
                .ok_or_else(|| bad("expected a switch point after the timeline number"))?;
            if number == 0 || number >= timeline.0 || ancestors.last().is_some_and(|a| a.timeline.0 >= number) {
                return Err(bad("timeline numbers must increase and stay below the file's own"));
            }
            ancestors.push(Ancestor { timeline: TimelineId(number), switch_point });
        }
        Ok(TimelineHistory { timeline, ancestors })
    }

    /// Where `timeline` was left on the way to this history's timeline; `None` when it is the last one or not on the path.
    pub fn switch_point_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.ancestors.iter().find(|a| a.timeline == timeline).map(|a| a.switch_point)
    }

    /// Where `timeline` begins on this path: the end of the one before it, 0 for the first; `None` when not on the path.
    pub fn begin_of(&self, timeline: TimelineId) -> Option<Lsn> {
        let mut begin = Lsn(0);
        for ancestor in &self.ancestors {
            if ancestor.timeline == timeline {
                return Some(begin);
            }
            begin = ancestor.switch_point;
        }
        (timeline == self.timeline).then_some(begin)
    }

    /// The timeline that holds the byte at `lsn` on this path (`tliOfPointInHistory`).
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.ancestors.iter().find(|a| lsn < a.switch_point).map_or(self.timeline, |a| a.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_history_with_comments_and_blank_lines() {
        let text = b"# made by hand\n1\t0/3000060\tno recovery target specified\n\n\n2\t0/5000000\tbefore LSN 0/1\n\n";
        let history = TimelineHistory::parse(TimelineId(3), text).unwrap();
        assert_eq!(history.ancestors.len(), 2);
        assert_eq!(history.switch_point_of(TimelineId(1)), Some(Lsn(0x3000060)));
        assert_eq!(history.begin_of(TimelineId(2)), Some(Lsn(0x3000060)));
        assert_eq!(history.begin_of(TimelineId(3)), Some(Lsn(0x5000000)));
        assert_eq!(history.begin_of(TimelineId(4)), None);
        assert_eq!(history.timeline_at(Lsn(0x300005F)), TimelineId(1));
        assert_eq!(history.timeline_at(Lsn(0x3000060)), TimelineId(2));
        assert_eq!(history.timeline_at(Lsn(0x5000000)), TimelineId(3));
    }

    #[test]
    fn refuses_what_the_server_refuses() {
        for (bad, line) in [("x\t0/1\n", 1), ("1\n", 1), ("2\t0/1\n1\t0/2\n", 2), ("1\t0/1\n\n3\t0/2\n", 3)] {
            let error = TimelineHistory::parse(TimelineId(3), bad.as_bytes()).unwrap_err();
            assert_eq!(error.line, line, "{bad:?}");
        }
    }

    #[test]
    fn names() {
        assert_eq!(TimelineId(0x1A).history_name(), "0000001A.history");
        assert_eq!(TimelineId::from_history_name("0000001A.history"), Some(TimelineId(26)));
        assert_eq!(TimelineId::from_history_name("00000000.history"), None);
        assert_eq!(TimelineId::from_history_name("1.history"), None);
    }
}
