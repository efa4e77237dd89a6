//! Floor 2: the server: address, socket, TLS, authentication, and the driver that feeds the machines of `wire`.

pub mod connection;
pub mod conninfo;

pub use connection::{Connection, Mode, Started};
pub use conninfo::Conninfo;
