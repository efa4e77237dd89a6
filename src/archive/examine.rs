//! Looking at one stored object by itself: whether it is whole, and what its name says. For who checks an archive; readers join what several objects hold.

use super::group::WalEntry;
use super::tails::Tail;
use super::{Archive, refused};
use crate::error::{Error, Kind, Result};
use crate::pg::{SegmentName, TimelineId};
use crate::repo::names::{PART_BYTES, WalObject};
use crate::seal::content::heartbeat::Heartbeat;
use crate::seal::content::summary::Summary;
use crate::seal::hash::content_hash;
use crate::seal::header::ObjectKind;
use crate::seal::opener::{Opener, open_index};

impl Archive {
    /// Opens all of an object with WAL, frame by frame, and compares its bytes with its summary: range, length and keyed hash. Blocks.
    pub fn examine_wal(&self, timeline: TimelineId, entry: &WalEntry, object: &[u8]) -> Result<(Summary, Vec<u8>)> {
        let name = entry.name.as_str();
        let size = self.names.segment_size;
        let claims = match entry.partial {
            true => {
                let segment = SegmentName::new(timeline, size.segment_of(entry.start), size);
                self.claims_inside(segment, ObjectKind::Partial, name, object)?
            }
            false => self.claims(ObjectKind::Segment, timeline, entry.start),
        };
        let mut plain = Vec::new();
        let opened = Opener::new(object, &claims, &*self.keys, true).and_then(|o| o.whole(object, &mut plain));
        let frame0 = opened.map_err(|e| refused(name, e))?;
        let corrupt = |text: String| Error::new(Kind::Corrupt, format!("{name}: {text}"));
        let summary = Summary::decode(&frame0).map_err(|e| corrupt(e.to_string()))?;
        let end = claims.start + plain.len() as u64;
        if (summary.start, summary.end) != (claims.start, end) {
            return Err(corrupt(format!(
                "its summary speaks of {} to {}, it holds {} to {end}",
                summary.start, summary.end, claims.start
            )));
        }
        let expected = size.bytes().min(PART_BYTES);
        if !entry.partial && plain.len() as u64 != expected {
            return Err(corrupt(format!("it holds {} bytes of WAL, expected {expected}", plain.len())));
        }
        if summary.hash != content_hash(self.keys.secret(), &plain) {
            return Err(corrupt("its WAL is not what its summary has the hash of".to_owned()));
        }
        Ok((summary, plain))
    }

    /// Whether a tail is whole by itself: with `content` all of it is opened, else its frames' lengths and CRC-32C are walked. `None`: it is gone.
    pub async fn examine_tail(&self, segment: SegmentName, name: &str, content: bool) -> Result<Option<()>> {
        let found = match content {
            true => self.open_tail(segment, name.to_owned()).await?.map(settled),
            false => self.measure_tail(segment, name.to_owned()).await?.map(settled),
        };
        found.transpose()
    }

    /// Whether a heartbeat says what its name says.
    pub fn examine_heartbeat(&self, name: &str, object: &[u8]) -> Result<()> {
        let Some(WalObject::Heartbeat { timeline, lsn, time }) = self.parse(name) else {
            return Err(Error::new(Kind::Corrupt, format!("{name} is not the name of a heartbeat")));
        };
        let claims = self.claims(ObjectKind::Heartbeat, timeline, lsn);
        let content = open_index(object, &claims, &*self.keys).map_err(|e| refused(name, e))?;
        let decoded = Heartbeat::decode(&content, Heartbeat { lsn, time });
        decoded.map(|_| ()).map_err(|e| Error::new(Kind::Corrupt, format!("{name}: {e}")))
    }
}

fn settled<T>(tail: Tail<T>) -> Result<()> {
    match tail {
        Tail::Sound(_) => Ok(()),
        Tail::Damaged(damage) => Err(damage.error),
    }
}
