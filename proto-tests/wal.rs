//! WAL: the scanner and the record reader against made WAL, damaged WAL, and WAL of real servers read by pg_waldump.

#[path = "wal/changes.rs"]
mod changes;
#[path = "wal/cuts.rs"]
mod cuts;
#[path = "wal/damage.rs"]
mod damage;
#[path = "wal/made.rs"]
mod made;
#[path = "wal/oracle.rs"]
mod oracle;
#[path = "wal/records.rs"]
mod records;
#[path = "wal/seen.rs"]
mod seen;
mod support;
#[path = "wal/waldump.rs"]
mod waldump;
