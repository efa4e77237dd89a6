//! Making a repository's keys, and opening them again with a recipient's private key.

use std::fmt;

use age::plugin;
use age::secrecy::{ExposeSecret, SecretString};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};
use crate::seal::content::{hex, unhex};
use crate::seal::header::RepositoryId;
use crate::seal::key::RepositorySecret;

/// Work factor for passphrases (N = 2^18, 256 MiB of memory, about a second): what the age tools use.
const SCRYPT_LOG_N: u8 = 18;
/// Highest work factor that is tried when opening: 1 GiB of memory.
const SCRYPT_MAX_LOG_N: u8 = 20;
/// Longest plaintext of an age file of ours.
const MAX_FILE: u64 = 64 << 10;
const SECRET_LABEL: &str = "# repository secret: ";
const IDENTITY_LINE: &str = "# walrecv repository identity: opens what is stored; keep it from everyone";
const PUBLIC_LABEL: &str = "# public key: ";

/// Who may open the repository identity.
#[derive(Clone)]
pub enum Recipient {
    /// `age1…` (X25519) or a plugin recipient.
    Age(String),
    Passphrase(Zeroizing<String>),
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Recipient::Age(public) => write!(f, "Age({public})"),
            Recipient::Passphrase(_) => f.write_str("Passphrase(redacted)"),
        }
    }
}

/// The repository identity with its secret, opened.
pub struct RepositoryKeys {
    /// `AGE-SECRET-KEY-1…`.
    pub identity: Zeroizing<String>,
    /// `age1…`: what writers seal for.
    pub public: String,
    pub secret: RepositorySecret,
}

impl fmt::Debug for RepositoryKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RepositoryKeys({}, redacted)", self.public)
    }
}

/// A new random repository id.
pub fn random_repository_id() -> Result<RepositoryId> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|e| Error::new(Kind::Failed, "the operating system gives no random bytes").caused_by(e))?;
    Ok(RepositoryId(id))
}

/// New random identity and secret.
///
/// # Panics
/// When the operating system has no randomness to give: nothing could be sealed then.
pub fn generate() -> RepositoryKeys {
    let identity = age::x25519::Identity::generate();
    let secret = RepositorySecret(*random().expect("the operating system gives random bytes"));
    RepositoryKeys { identity: text_of(&identity), public: identity.to_public().to_string(), secret }
}

/// A new X25519 key pair for a person: (private key file text, `age1…`).
pub fn generate_recipient() -> (Zeroizing<String>, String) {
    let identity = age::x25519::Identity::generate();
    let public = identity.to_public().to_string();
    (Zeroizing::new(format!("# public key: {public}\n{}\n", *text_of(&identity))), public)
}

/// Folder of an identity's files (`keys/<identity>/`): the first 16 hexadecimal digits of the SHA-256 of its public key's text.
pub fn short_name(public: &str) -> String {
    hex(&Sha256::digest(public.trim())[..8])
}

/// The text of a secret file, which every writer keeps (0600).
pub fn secret_to_text(secret: &RepositorySecret) -> Zeroizing<String> {
    let digits = Zeroizing::new(hex(&secret.0));
    Zeroizing::new(format!(
        "# walrecv repository secret: every writer needs it; keep it from everyone else\n{}\n",
        *digits
    ))
}

/// Reads a secret file: one line of 64 hexadecimal digits, comments and blank lines beside it.
pub fn secret_from_text(text: &str) -> Result<RepositorySecret> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    match (lines.next().and_then(unhex), lines.next()) {
        (Some(secret), None) => Ok(RepositorySecret(secret)),
        _ => Err(Error::new(Kind::Key, "the secret file does not hold one line of 64 hexadecimal digits")
            .hint("Restore it from a copy, such as that of another host that writes.")),
    }
}

/// The age file for one recipient, and how that one is named in the file's own name. Opened by `age -d`, it is itself an identity file of the age format,
/// with the repository secret in a comment.
pub fn wrap_for(keys: &RepositoryKeys, recipient: &Recipient) -> Result<(String, Bytes)> {
    let text = Zeroizing::new(format!(
        "{IDENTITY_LINE}\n{PUBLIC_LABEL}{}\n{}\n{SECRET_LABEL}{}\n",
        keys.public,
        *keys.identity,
        *Zeroizing::new(hex(&keys.secret.0)),
    ));
    let failed = |error| Error::new(Kind::Key, "cannot wrap the repository identity").caused_by(error);
    let (name, file) = match recipient {
        Recipient::Passphrase(passphrase) => {
            let mut recipient = age::scrypt::Recipient::new(SecretString::from(passphrase.to_string()));
            recipient.set_work_factor(SCRYPT_LOG_N);
            ("passphrase".to_owned(), age::encrypt(&recipient, text.as_bytes()).map_err(failed)?)
        }
        Recipient::Age(public) => {
            let public = public.trim();
            let file = if let Ok(recipient) = public.parse::<age::x25519::Recipient>() {
                age::encrypt(&recipient, text.as_bytes()).map_err(failed)?
            } else if let Ok(recipient) = public.parse::<plugin::Recipient>() {
                let name = recipient.plugin().to_owned();
                let plugin = plugin::RecipientPluginV1::new(&name, &[recipient], &[], age::NoCallbacks);
                let plugin = plugin.map_err(|error| {
                    Error::new(Kind::Key, format!("cannot start age-plugin-{name}"))
                        .caused_by(error.to_string())
                        .hint("Install the plugin, and see that it is in PATH.")
                })?;
                age::encrypt(&plugin, text.as_bytes()).map_err(failed)?
            } else {
                return Err(not_a_recipient(public));
            };
            (short_name(public), file)
        }
    };
    Ok((name, file.into()))
}

/// Opens a stored age file with the text of an identity file (age format: comments and private keys), or a passphrase. `Kind::Key` when it does not fit.
pub fn open_with_identity(age_file: &[u8], identity_file: &str) -> Result<RepositoryKeys> {
    let unreadable = |error: &dyn fmt::Display| {
        Error::new(Kind::Key, format!("cannot use the identity file: {error}"))
            .hint("Name a file with a line AGE-SECRET-KEY-1…, as init wrote it.")
    };
    let identities = age::IdentityFile::from_buffer(identity_file.as_bytes())
        .map_err(|error| unreadable(&error))?
        .into_identities()
        .map_err(|error| unreadable(&error))?;
    if identities.is_empty() {
        return Err(unreadable(&"it holds no private key"));
    }
    open(age_file, &mut identities.iter().map(|identity| identity.as_ref() as &dyn age::Identity))
}

pub fn open_with_passphrase(age_file: &[u8], passphrase: &str) -> Result<RepositoryKeys> {
    let mut identity = age::scrypt::Identity::new(SecretString::from(passphrase.to_owned()));
    identity.set_max_work_factor(SCRYPT_MAX_LOG_N);
    open(age_file, &mut std::iter::once(&identity as &dyn age::Identity))
}

fn open(age_file: &[u8], identities: &mut dyn Iterator<Item = &dyn age::Identity>) -> Result<RepositoryKeys> {
    use std::io::Read;
    let decryptor = age::Decryptor::new_buffered(age_file).map_err(refused)?;
    let mut text = Zeroizing::new(String::new());
    let reader = decryptor.decrypt(identities).map_err(refused)?;
    reader
        .take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(|error| Error::new(Kind::Corrupt, "the stored repository identity is damaged").caused_by(error))?;
    parse(&text)
}

fn refused(error: age::DecryptError) -> Error {
    match error {
        age::DecryptError::NoMatchingKeys | age::DecryptError::KeyDecryptionFailed => {
            Error::new(Kind::Key, "this key does not open the repository identity")
                .hint("Use the key of a recipient of this repository: the file that init wrote, or your copy of it.")
        }
        age::DecryptError::InvalidHeader | age::DecryptError::InvalidMac | age::DecryptError::UnknownFormat => {
            Error::new(Kind::Corrupt, format!("the stored repository identity is damaged: {error}"))
        }
        other => Error::new(Kind::Key, format!("cannot open the repository identity: {other}")),
    }
}

/// What [`wrap_for`] wrote: one private key, and the secret in its comment.
fn parse(text: &str) -> Result<RepositoryKeys> {
    let malformed = |problem| Error::new(Kind::Corrupt, format!("the repository identity file {problem}"));
    let mut keys = text.lines().map(str::trim).filter(|line| line.starts_with("AGE-SECRET-KEY-1"));
    let (Some(identity), None) = (keys.next(), keys.next()) else {
        return Err(malformed("does not hold exactly one private key"));
    };
    let mut secrets = text.lines().filter_map(|line| line.trim().strip_prefix(SECRET_LABEL));
    let (Some(Some(secret)), None) = (secrets.next().map(unhex), secrets.next()) else {
        return Err(malformed("does not hold exactly one repository secret"));
    };
    let parsed = identity.parse::<age::x25519::Identity>().map_err(|_| malformed("holds no valid private key"))?;
    let public = parsed.to_public().to_string();
    Ok(RepositoryKeys { identity: Zeroizing::new(identity.to_owned()), public, secret: RepositorySecret(secret) })
}

/// The public key of a repository identity, which is always X25519.
pub(super) fn parse_x25519(text: &str) -> Result<age::x25519::Recipient> {
    text.trim().parse().map_err(|_| {
        Error::new(Kind::Key, format!("{} is not the public key of a repository identity", shown(text.trim())))
            .hint("Set `identity` in walrecv.toml to the age1… that init printed.")
    })
}

/// 32 random bytes of the operating system.
pub(super) fn random() -> Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut bytes[..]).map_err(|error| {
        Error::new(Kind::Failed, "no random bytes from the operating system").caused_by(error.to_string())
    })?;
    Ok(bytes)
}

fn text_of(identity: &age::x25519::Identity) -> Zeroizing<String> {
    Zeroizing::new(identity.to_string().expose_secret().to_owned())
}

fn not_a_recipient(text: &str) -> Error {
    Error::new(Kind::Key, format!("{} is not an age recipient", shown(text)))
        .hint("Give an age1… public key, as age-keygen prints it.")
}

/// For messages: what does not look like a public key may be a private one, and is not repeated.
fn shown(text: &str) -> String {
    if text.starts_with("age1") { format!("{text:?}") } else { "what was given".to_owned() }
}
