//! What is stored: one suite over every kind of store, the answers that stores really give, faults of a real disk, and the archive.

mod support;

#[path = "store/answers.rs"]
mod answers;
#[path = "store/archive.rs"]
mod archive;
#[path = "store/archive_pieces.rs"]
mod archive_pieces;
#[path = "store/backups.rs"]
mod backups;
#[path = "store/catalog.rs"]
mod catalog;
#[path = "store/common.rs"]
mod common;
#[path = "store/disk.rs"]
mod disk;
#[path = "store/expiry.rs"]
mod expiry;
#[path = "store/expiry_backup.rs"]
mod expiry_backup;
#[path = "store/expiry_lost.rs"]
mod expiry_lost;
#[path = "store/expiry_store.rs"]
mod expiry_store;
#[path = "store/expiry_writer.rs"]
mod expiry_writer;
#[path = "store/faults.rs"]
mod faults;
#[path = "store/groups.rs"]
mod groups;
#[path = "store/heartbeats.rs"]
mod heartbeats;
#[path = "store/made_server.rs"]
mod made_server;
#[path = "store/plans.rs"]
mod plans;
#[path = "store/scripted.rs"]
mod scripted;
#[path = "store/settled.rs"]
mod settled;
#[path = "store/spool.rs"]
mod spool;
#[path = "store/suite.rs"]
mod suite;
#[path = "store/tails.rs"]
mod tails;
