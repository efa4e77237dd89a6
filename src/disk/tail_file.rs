//! The tail of an open segment on a local disk: one preallocated, zeroed file; one write and one fdatasync per flush; no byte written twice.

use std::path::Path;

use crate::error::Result;
use crate::pg::DurableLsn;

/// An open tail file. After a failed write or sync it is dead: every later call fails, and the caller goes on in a new file.
pub struct TailFile {}

impl TailFile {
    /// Creates the file with `preallocate` zero bytes, writes `preamble`, syncs file and directories. Fails when it exists.
    pub fn create(_path: &Path, _preallocate: u64, _preamble: &[u8]) -> Result<TailFile> {
        todo!()
    }

    /// Writes sealed frames at the end of what was written; extends (zeroed) when the preallocated part is full.
    pub fn append(&mut self, _sealed: &[u8]) -> Result<()> {
        todo!()
    }

    /// fdatasync. On success everything appended is durable and the witness for `claim` (system, timeline, end LSN of what was appended) is returned.
    pub fn sync(
        &mut self,
        _claim: (crate::pg::SystemIdentifier, crate::pg::TimelineId, crate::pg::Lsn),
    ) -> Result<DurableLsn> {
        todo!()
    }

    pub fn written(&self) -> u64 {
        todo!()
    }
}
