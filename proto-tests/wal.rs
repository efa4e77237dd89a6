//! WAL: the scanner and the record reader against made WAL, damaged WAL, and WAL of real servers read by pg_waldump.

#[path = "support/wal_maker.rs"]
mod wal_maker;
