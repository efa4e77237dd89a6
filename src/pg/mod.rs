//! Floor 0: what PostgreSQL's bytes mean. Pure: no async, no files, no clock, no randomness.

pub mod bare;
pub mod change;
pub mod cluster;
pub mod control;
pub mod crc;
mod cursor;
pub mod data_page;
pub mod heap;
pub mod incremental;
pub mod label;
pub mod lsn;
pub mod manifest;
pub mod manifest_writer;
pub mod page;
pub mod record;
pub mod record_crc;
pub mod replaced;
pub mod scan;
pub mod segment;
pub mod switch;
pub mod tar;
pub mod timeline;
pub mod xact;

pub use cluster::{MajorVersion, SystemIdentifier};
pub use lsn::{DurableLsn, Lsn};
pub use segment::{SegmentName, SegmentNumber, SegmentSize};
pub use timeline::{TimelineHistory, TimelineId};
