//! walrecv streams PostgreSQL's WAL into a repository, takes base backups, and restores to any commit.
//!
//! This file is the map. Modules stand on floors; a module uses only modules of lower floors and the cellar, never a neighbour, never above.
//! `proto-tests/tidy.rs` reads the sources and refuses anything else.
//!
//! ```text
//! socket → net → wire → pg::WalScanner → seal → tail / segment → repo → acknowledge
//!                       verified records       (fsync or put)   once   only now
//! server ← wal-fetch ← prefetch ← archive ← seal::opener ← repo::get ← restore::plan
//! ```
//!
//! Invariants that every change must keep:
//! - A position is reported to a server as flushed only through [`pg::DurableLsn`], which only `disk` and `repo` construct.
//! - Objects are created once and never rewritten; "already exists" is a question, never an answer.
//! - `wal-fetch` exits 0, 1 (proven absence) or above 125; nothing else.
//! - Floors 0 and 1 and every `plan.rs` are pure.

// Cellar: usable by all, uses nothing.
pub mod backoff;
pub mod error;
pub mod stats;

// Floor 0
pub mod pg;

// Floor 1
pub mod seal;
pub mod wire;

// Floor 2
pub mod disk;
pub mod keys;
pub mod net;

// Floor 3
pub mod catalog;
pub mod repo;

// Floor 4
pub mod archive;

// Floor 5
pub mod backup;
pub mod find;
pub mod receive;
pub mod restore;
pub mod retention;
pub mod verify;

// Floor 6
pub mod config;
pub mod daemon;
pub mod drill;
pub mod extract;

// Floor 7
pub mod cli;
