//! Floor 1: the conversation with the server, as machines without I/O. Bytes in, events and bytes out; time and randomness are arguments
//! (except SCRAM's nonce, which postgres-protocol draws itself).
//!
//! Every machine takes whole messages from an input buffer ([`codec::decode`]) and appends what must be sent to [`codec::Outbox`]. A message that
//! has no place in the machine's state is refused by the names of both.

pub mod base_backup;
pub mod codec;
pub mod command;
pub mod error;
pub mod message;
pub mod require_auth;
pub mod startup;
pub mod upload_manifest;
pub mod wal_stream;

pub use codec::{Machine, Message, Outbox};
pub use error::{ServerError, WireError};
