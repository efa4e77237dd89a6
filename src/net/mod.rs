//! Floor 2: the server: address, socket, TLS, authentication, and the driver that feeds the machines of `wire`.

mod certificate;
pub mod connection;
pub mod conninfo;
mod conninfo_text;
mod dial;
mod dialer;
mod link;
mod passfile;
mod refusal;
mod settings;
mod socket;
mod tls;

pub use connection::{Connection, Mode, Started};
pub use conninfo::Conninfo;
pub use dialer::Dialer;
