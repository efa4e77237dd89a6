//! Making a repository's keys, and opening them again with a recipient's private key.

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::error::Result;
use crate::seal::key::RepositorySecret;

/// Who may open the repository identity.
#[derive(Clone, Debug)]
pub enum Recipient {
    /// `age1…` (X25519) or a plugin recipient.
    Age(String),
    Passphrase(Zeroizing<String>),
}

/// The repository identity with its secret, opened.
pub struct RepositoryKeys {
    /// `AGE-SECRET-KEY-1…`.
    pub identity: Zeroizing<String>,
    /// `age1…`: what writers seal for.
    pub public: String,
    pub secret: RepositorySecret,
}

/// New random identity and secret.
pub fn generate() -> RepositoryKeys {
    todo!()
}

/// A new X25519 key pair for a person: (private key file text, `age1…`).
pub fn generate_recipient() -> (Zeroizing<String>, String) {
    todo!()
}

/// The age file for one recipient, and the name it is stored under (`keys/<identity>/<name>.age`).
pub fn wrap_for(_keys: &RepositoryKeys, _recipient: &Recipient) -> Result<(String, Bytes)> {
    todo!()
}

/// Opens a stored age file with the text of an identity file (age format: comments and private keys), or a passphrase. `Kind::Key` when it does not fit.
pub fn open_with_identity(_age_file: &[u8], _identity_file: &str) -> Result<RepositoryKeys> {
    todo!()
}

pub fn open_with_passphrase(_age_file: &[u8], _passphrase: &str) -> Result<RepositoryKeys> {
    todo!()
}
