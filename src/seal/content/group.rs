//! Summary of a group: the summaries of the 4 GiB of WAL in one folder, so that one read stands for hundreds.

use serde::{Deserialize, Serialize};

use super::Malformed;
use super::summary::Summary;
use crate::pg::Lsn;
use crate::seal::sealer::OBJECT_BYTES;

const WHAT: &str = "group summary";
const VERSION: u32 = 1;
/// WAL in one folder.
pub const GROUP_BYTES: u64 = 1 << 32;

/// What was stored in one folder when this was written. It speaks only of the objects that it lists: whatever else the folder holds must be read itself, and
/// what it lists may have been deleted since. JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSummary {
    /// Of segments, or parts of segments; ascending, none overlaps the next.
    pub segments: Vec<Summary>,
    /// Of ends of the timeline (`.partial`); ascending.
    pub partials: Vec<Summary>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    segments: Vec<Summary>,
    partials: Vec<Summary>,
}

impl GroupSummary {
    /// JSON that fits one object. Where it would not (4096 segments of 1 MiB with many restore points each), the longest summaries are left out: their
    /// objects still have them.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_within(OBJECT_BYTES as usize)
    }

    fn encode_within(&self, most: usize) -> Vec<u8> {
        let mut stored = Stored { version: VERSION, segments: self.segments.clone(), partials: self.partials.clone() };
        loop {
            let out = serde_json::to_vec(&stored).expect("numbers and strings are valid JSON");
            if out.len() <= most || stored.segments.is_empty() {
                return out;
            }
            let length = |summary: &Summary| serde_json::to_vec(summary).map_or(0, |json| json.len());
            let mut lengths: Vec<usize> = stored.segments.iter().map(length).collect();
            let (mut excess, mut limit) = (out.len() - most, 0);
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            for length in lengths {
                limit = length;
                excess = excess.saturating_sub(length);
                if excess == 0 {
                    break;
                }
            }
            stored.segments.retain(|summary| length(summary) < limit);
        }
    }

    /// Reads the summary of the group whose first byte is at `first`.
    pub fn decode(bytes: &[u8], first: Lsn) -> Result<GroupSummary, Malformed> {
        let stored: Stored = serde_json::from_slice(bytes).map_err(|error| Malformed::new(WHAT, error))?;
        if stored.version != VERSION {
            return Err(Malformed::new(WHAT, format!("version {}, expected {VERSION}", stored.version)));
        }
        for list in [&stored.segments, &stored.partials] {
            let mut from = first;
            for summary in list {
                let inside = summary.start >= from && summary.end.since(first) <= GROUP_BYTES;
                if !inside || summary.end <= summary.start {
                    let text = format!("an entry from {} to {}, expected from {from}", summary.start, summary.end);
                    return Err(Malformed::new(WHAT, text));
                }
                from = summary.end;
            }
        }
        Ok(GroupSummary { segments: stored.segments, partials: stored.partials })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::xact::PgTime;
    use crate::seal::content::summary::{RestorePoint, SUMMARY_BYTES};

    const FIRST: Lsn = Lsn(7 << 32);
    const MIB: u64 = 1 << 20;

    fn segment(number: u64) -> Summary {
        Summary::of(FIRST + number * MIB, FIRST + (number + 1) * MIB, [number as u8; 32])
    }

    #[test]
    fn says_what_it_was_told() {
        let partial = Summary::of(FIRST + 9 * MIB, FIRST + 9 * MIB + 77, [9; 32]);
        // A hole, and the group's last segment.
        let group = GroupSummary { segments: vec![segment(3), segment(4), segment(4095)], partials: vec![partial] };
        assert_eq!(GroupSummary::decode(&group.encode(), FIRST), Ok(group));
        let empty = GroupSummary::default();
        assert_eq!(GroupSummary::decode(&empty.encode(), FIRST), Ok(empty));
    }

    #[test]
    fn entries_of_other_groups_and_out_of_order_are_refused() {
        let encode = |segments: Vec<Summary>| GroupSummary { segments, partials: Vec::new() }.encode();
        for bad in [
            encode(vec![segment(4096)]),
            encode(vec![segment(2), segment(1)]),
            encode(vec![segment(2), segment(2)]),
            encode(vec![Summary::of(FIRST, FIRST, [0; 32])]),
            encode(vec![Summary::of(Lsn(FIRST.0 - MIB), FIRST, [0; 32])]),
            encode(vec![Summary::of(FIRST + (GROUP_BYTES - MIB), FIRST + (GROUP_BYTES + MIB), [0; 32])]),
            br#"{"version":2,"segments":[],"partials":[]}"#.to_vec(),
            br#"{"version":1,"segments":[]}"#.to_vec(),
        ] {
            assert!(GroupSummary::decode(&bad, FIRST).is_err(), "{}", String::from_utf8_lossy(&bad));
        }
    }

    #[test]
    fn the_longest_entries_give_way() {
        let mut long = segment(1);
        let point = |n| RestorePoint { name: format!("{n:063}"), time: PgTime(0), lsn: FIRST };
        long.restore_points = (0..32).map(point).collect();
        assert!(long.encode().len() < SUMMARY_BYTES);
        let short: Vec<Summary> = (2..40).map(segment).collect();
        let all = GroupSummary { segments: [vec![long], short.clone()].concat(), partials: Vec::new() };
        let without = GroupSummary { segments: short, partials: Vec::new() };
        let most = without.encode().len() + 10;
        let found = GroupSummary::decode(&all.encode_within(most), FIRST).unwrap();
        assert_eq!(found, without);
        assert!(all.encode_within(300).len() <= 300);
    }

    #[test]
    fn a_group_of_the_smallest_segments_fits() {
        let all = GroupSummary { segments: (0..4096).map(segment).collect(), partials: Vec::new() };
        let encoded = all.encode();
        assert!(encoded.len() < 4 << 20, "{} bytes", encoded.len());
        assert_eq!(GroupSummary::decode(&encoded, FIRST).unwrap().segments.len(), 4096);
    }
}
