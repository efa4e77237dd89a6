//! A heartbeat: up to one position, everything is stored that a server had flushed by one moment of its clock.

use serde::{Deserialize, Serialize};

use super::Malformed;
use super::text::shown;
use crate::pg::Lsn;
use crate::pg::xact::PgTime;

const WHAT: &str = "heartbeat";
const VERSION: u32 = 1;

/// What a heartbeat says of its timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Everything that the server had flushed at `time` ends here or before.
    pub lsn: Lsn,
    /// By the server's clock.
    pub time: PgTime,
}

/// JSON; members that a reader does not know are ignored.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    #[serde(with = "shown")]
    lsn: Lsn,
    /// Microseconds since 2000-01-01 00:00:00 UTC.
    time: i64,
}

impl Heartbeat {
    pub fn encode(&self) -> Vec<u8> {
        super::manifest::json(&Stored { version: VERSION, lsn: self.lsn, time: self.time.0 })
    }

    /// Reads the heartbeat whose name says `named`.
    pub fn decode(bytes: &[u8], named: Heartbeat) -> Result<Heartbeat, Malformed> {
        let stored: Stored = super::manifest::read_json(WHAT, bytes, VERSION)?;
        let found = Heartbeat { lsn: stored.lsn, time: PgTime(stored.time) };
        if found == named {
            return Ok(found);
        }
        let Heartbeat { lsn, time } = found;
        Err(Malformed::new(
            WHAT,
            format!("it stands under the name of {} at {} and speaks of {lsn} at {time}", named.lsn, named.time),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_its_name_says() {
        let beat = Heartbeat { lsn: Lsn(0x16_0000_0028), time: PgTime(848_000_000_123_456) };
        assert_eq!(Heartbeat::decode(&beat.encode(), beat), Ok(beat));
        let later = Heartbeat { time: PgTime(beat.time.0 + 1), ..beat };
        assert!(Heartbeat::decode(&beat.encode(), later).unwrap_err().to_string().contains("speaks of"));
        for bad in ["", "{}", r#"{"version":2,"lsn":"0/1","time":0}"#, r#"{"version":1,"lsn":"x","time":0}"#] {
            assert!(Heartbeat::decode(bad.as_bytes(), beat).is_err(), "{bad}");
        }
    }
}
