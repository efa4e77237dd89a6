//! Floor 1: the conversation with the server, as machines without I/O. Bytes in, events and bytes out; time and randomness are arguments.

pub mod command;
pub mod message;
