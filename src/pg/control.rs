//! pg_control (`catalog/pg_control.h`, little-endian, 8-byte alignment): what a backup has to know of the cluster it came from.

use super::xact::Parameters;
use super::{Lsn, SegmentSize, SystemIdentifier, TimelineId};

/// The fields that are used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    pub system: SystemIdentifier,
    /// `PG_CONTROL_VERSION`: 1300 for 13 to 16, 1700, 1800.
    pub control_version: u32,
    pub catalog_version: u32,
    /// `DBState`.
    pub state: u32,
    pub checkpoint: Lsn,
    /// Redo position of that checkpoint.
    pub redo: Lsn,
    pub timeline: TimelineId,
    /// Set while a standby recovers, else 0.
    pub min_recovery_point: Lsn,
    pub min_recovery_timeline: TimelineId,
    pub parameters: Parameters,
    pub track_commit_timestamp: bool,
    /// Pages in one segment file of a relation.
    pub relation_segment_pages: u32,
    pub segment_size: SegmentSize,
    /// 0: pages carry no checksums.
    pub data_checksum_version: u32,
}

/// Why a pg_control was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pg_control: {0}")]
pub struct BadControl(pub String);

/// What every version up to 18 keeps at these places.
mod at {
    pub const SYSTEM: usize = 0;
    pub const VERSION: usize = 8;
    pub const CATALOG: usize = 12;
    pub const STATE: usize = 16;
    pub const CHECKPOINT: usize = 32;
    pub const REDO: usize = 40;
    pub const TIMELINE: usize = 48;
    pub const MIN_RECOVERY: usize = 136;
    pub const MIN_RECOVERY_TIMELINE: usize = 144;
    pub const WAL_LEVEL: usize = 172;
    pub const MAX_CONNECTIONS: usize = 180;
    pub const MAX_WORKERS: usize = 184;
    pub const MAX_SENDERS: usize = 188;
    pub const MAX_PREPARED: usize = 192;
    pub const MAX_LOCKS: usize = 196;
    pub const TRACK_COMMIT: usize = 200;
    pub const BLOCK_SIZE: usize = 216;
    pub const RELATION_SEGMENT: usize = 220;
    pub const WAL_BLOCK_SIZE: usize = 224;
    pub const WAL_SEGMENT: usize = 228;
    pub const CHECKSUMS: usize = 252;
}

/// Where the CRC-32C stands: over every byte before it.
fn crc_offset(control_version: u32) -> Option<usize> {
    match control_version {
        1300 | 1700 => Some(288),
        1800 => Some(292),
        _ => None,
    }
}

impl ControlFile {
    /// Reads the file and checks its CRC. A version other than 13 to 18's, a block size other than 8192 and an impossible segment size are refused.
    pub fn parse(content: &[u8]) -> Result<ControlFile, BadControl> {
        let field = |at: usize| content.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        let u32_at = |at: usize| field(at).ok_or_else(|| BadControl(format!("it has only {} bytes", content.len())));
        let u64_at = |at: usize| Ok(u64::from(u32_at(at + 4)?) << 32 | u64::from(u32_at(at)?));
        let i32_at = |at: usize| Ok(u32_at(at)? as i32);
        let control_version = u32_at(at::VERSION)?;
        let crc_at = crc_offset(control_version).ok_or_else(|| {
            BadControl(format!("version {control_version} is not supported (expected 1300, 1700 or 1800)"))
        })?;
        let (stated, crc) = (u32_at(crc_at)?, crc32c::crc32c(content.get(..crc_at).unwrap_or_default()));
        if stated != crc {
            return Err(BadControl(format!("its CRC-32C is {crc:08x}, the file says {stated:08x}")));
        }
        for (what, at) in [("block size", at::BLOCK_SIZE), ("WAL block size", at::WAL_BLOCK_SIZE)] {
            if u32_at(at)? != 8192 {
                return Err(BadControl(format!("{what} {} is not supported (expected 8192)", u32_at(at)?)));
            }
        }
        let segment = u32_at(at::WAL_SEGMENT)?;
        Ok(ControlFile {
            system: SystemIdentifier(u64_at(at::SYSTEM)?),
            control_version,
            catalog_version: u32_at(at::CATALOG)?,
            state: u32_at(at::STATE)?,
            checkpoint: Lsn(u64_at(at::CHECKPOINT)?),
            redo: Lsn(u64_at(at::REDO)?),
            timeline: TimelineId(u32_at(at::TIMELINE)?),
            min_recovery_point: Lsn(u64_at(at::MIN_RECOVERY)?),
            min_recovery_timeline: TimelineId(u32_at(at::MIN_RECOVERY_TIMELINE)?),
            parameters: Parameters {
                max_connections: i32_at(at::MAX_CONNECTIONS)?,
                max_worker_processes: i32_at(at::MAX_WORKERS)?,
                max_wal_senders: i32_at(at::MAX_SENDERS)?,
                max_prepared_transactions: i32_at(at::MAX_PREPARED)?,
                max_locks_per_transaction: i32_at(at::MAX_LOCKS)?,
                wal_level: i32_at(at::WAL_LEVEL)?,
            },
            track_commit_timestamp: u32_at(at::TRACK_COMMIT)? & 0xFF != 0,
            relation_segment_pages: u32_at(at::RELATION_SEGMENT)?,
            segment_size: SegmentSize::new(u64::from(segment))
                .ok_or_else(|| BadControl(format!("impossible WAL segment size {segment}")))?,
            data_checksum_version: u32_at(at::CHECKSUMS)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(version: u32) -> Vec<u8> {
        let mut bytes = vec![0u8; 8192];
        let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(at::SYSTEM, 7);
        put(at::SYSTEM + 4, 0x1000_0000);
        put(at::VERSION, version);
        put(at::CHECKPOINT, 0x2000060);
        put(at::REDO, 0x2000028);
        put(at::TIMELINE, 3);
        put(at::MAX_CONNECTIONS, 100);
        put(at::BLOCK_SIZE, 8192);
        put(at::WAL_BLOCK_SIZE, 8192);
        put(at::WAL_SEGMENT, 1 << 20);
        put(at::CHECKSUMS, 1);
        let crc_at = crc_offset(version).unwrap();
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn reads_every_layout_and_refuses_every_damaged_byte() {
        for version in [1300, 1700, 1800] {
            let bytes = sample(version);
            let control = ControlFile::parse(&bytes).unwrap();
            assert_eq!(control.system, SystemIdentifier(0x1000_0000_0000_0007));
            assert_eq!((control.redo, control.timeline), (Lsn(0x2000028), TimelineId(3)));
            assert_eq!((control.parameters.max_connections, control.data_checksum_version), (100, 1));
            for at in 0..crc_offset(version).unwrap() + 4 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x10;
                assert!(ControlFile::parse(&damaged).is_err(), "version {version}, byte {at}");
            }
            for len in 0..crc_offset(version).unwrap() + 4 {
                assert!(ControlFile::parse(&bytes[..len]).is_err(), "version {version}, {len} bytes");
            }
        }
    }
}
