//! Records of WAL as a recovery replays them.

use std::ops::ControlFlow;
use std::sync::Arc;

use futures::stream::{self, StreamExt};

use super::Archive;
use super::inventory::Inventory;
use super::path::Path;
use crate::error::{Context, Error, Kind, Result};
use crate::pg::record::Record;
use crate::pg::scan::{ScanConfig, WalScanner};
use crate::pg::{Lsn, MajorVersion, SegmentNumber};

/// Segments of WAL that are read before they are looked at.
const AHEAD: usize = 4;

/// A stretch of WAL that is replayed.
pub struct Replay {
    pub path: Arc<Path>,
    /// What is stored of it, at least.
    pub inventory: Arc<Inventory>,
    pub version: MajorVersion,
    /// Where a record begins.
    pub from: Lsn,
    /// No record that begins here or later is replayed.
    pub to: Lsn,
}

/// Who looks at records: whether to go on, or what is impossible in one.
pub type See<'a> = &'a mut (dyn FnMut(&Record<'_>) -> Result<ControlFlow<()>, String> + Send);

impl Archive {
    /// Gives `see` every record of the stretch in order, with its body, until it has seen enough.
    ///
    /// Errors: WAL that is damaged is `Kind::Corrupt`, WAL that is missing `Kind::Gap`.
    pub async fn replay(&self, replay: &Replay, see: See<'_>) -> Result<()> {
        let Replay { path, inventory, version, from, to } = replay;
        let (version, from, to, size) = (*version, *from, *to, self.names.segment_size);
        let config = ScanConfig { version, system: self.names.system, timeline: path.target(), segment_size: size };
        let mut scanner = WalScanner::new(config, from).keeping(|_, _| true);
        let numbers = size.segment_of(from).0..=size.segment_before(to).0;
        let mut reading =
            stream::iter(numbers.map(|n| self.read_ahead(path, SegmentNumber(n), inventory))).buffered(AHEAD);
        let (mut reached, mut enough) = (from, false);
        while let Some(segment) = reading.next().await {
            let (name, bytes) = segment?;
            let new = bytes.get(size.offset_of(scanner.received()) as usize..).unwrap_or_default();
            let mut problem = None;
            let mut sink = |record: &Record<'_>| {
                reached = reached.max(record.end);
                if problem.is_none() && !enough && record.start < to {
                    match see(record) {
                        Ok(flow) => enough = flow.is_break(),
                        Err(what) => problem = Some(what),
                    }
                }
            };
            let fed = scanner.feed(new, &mut sink).map_err(|e| e.to_string());
            if enough {
                return Ok(());
            }
            // What lies behind the end is not replayed.
            if let Some(what) = fed.err().or(problem).filter(|_| reached < to) {
                return Err(Error::new(Kind::Corrupt, what)).context(name);
            }
            if reached >= to || (bytes.len() as u64) < size.bytes() {
                break;
            }
        }
        match reached >= to {
            true => Ok(()),
            false => {
                Err(Error::new(Kind::Gap, format!("the WAL could be read to {reached} only, recovery goes to {to}")))
            }
        }
    }
}
