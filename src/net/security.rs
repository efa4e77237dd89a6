//! What protects a session, for whoever explains it.

use crate::wire::require_auth::AuthMethod;

/// What is known of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// Nothing: anyone could have answered.
    Nothing,
    /// Signed by a trusted authority.
    Chain,
    /// The same, and issued for the name that was connected to.
    Name,
}

/// How a session is protected.
#[derive(Clone, Debug)]
pub struct Security {
    /// Over a socket file, or without leaving this host.
    pub local: bool,
    /// Version and cipher, where the connection is encrypted.
    pub tls: Option<String>,
    pub verified: Verified,
    /// What the server asked for.
    pub method: AuthMethod,
    /// The login is bound to the TLS connection (SCRAM-SHA-256-PLUS): a man in the middle would be noticed.
    pub bound: bool,
}
