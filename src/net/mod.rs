//! Floor 2: the server: address, socket, TLS, authentication, and the driver that feeds the machines of `wire`.

mod backup;
mod certificate;
mod choose;
mod client_certificate;
pub mod connection;
pub mod conninfo;
mod conninfo_text;
mod dial;
mod dialer;
mod host;
mod link;
mod passfile;
mod quiet;
mod refusal;
pub mod security;
mod service;
mod settings;
mod socket;
mod target;
mod tls;
mod verify;

pub use backup::{Refusal, Upload};
pub use connection::{Connection, Mode, Started};
pub use conninfo::Conninfo;
pub use dialer::Dialer;
