//! The certificate that we show: `sslcert`, `sslkey`, `sslcertmode` (`fe-secure-openssl.c:initialize_SSL`).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};

/// `sslcertmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CertMode {
    Disable,
    Allow,
    Require,
}

/// Where the certificate and its key are. Where the certificate's file does not exist, none is shown.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The file was named, and is no default.
    pub named: bool,
}

/// What is shown when the server asks, and whether it asked.
#[derive(Debug)]
pub(super) struct Shown {
    certified: Option<Arc<CertifiedKey>>,
    requested: AtomicBool,
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.requested.store(true, Ordering::Relaxed);
        self.certified.clone().filter(|certified| certified.key.choose_scheme(schemes).is_some())
    }

    fn has_certs(&self) -> bool {
        // Also without one, to learn whether the server asks.
        true
    }
}

impl Shown {
    /// Reads what is configured.
    pub(super) fn read(mode: CertMode, files: Option<&Files>, provider: &CryptoProvider) -> Result<Shown> {
        let certified = match files {
            Some(files) if mode != CertMode::Disable => certified(files, provider)?.map(Arc::new),
            _ => None,
        };
        Ok(Shown { certified, requested: AtomicBool::new(false) })
    }

    pub(super) fn has_certificate(&self) -> bool {
        self.certified.is_some()
    }

    /// After the handshake: what `sslcertmode=require` finds wanting.
    pub(super) fn missing(&self, mode: CertMode) -> Option<&'static str> {
        match (mode, self.requested.load(Ordering::Relaxed), &self.certified) {
            (CertMode::Require, false, _) => Some("the server did not ask for a client certificate"),
            (CertMode::Require, true, None) => Some("there is no client certificate to show"),
            _ => None,
        }
    }
}

fn certified(files: &Files, provider: &CryptoProvider) -> Result<Option<CertifiedKey>> {
    let Files { cert, key, named } = files;
    let bad = |what: &str, path: &Path, problem: String| {
        Error::new(Kind::Usage, format!("{what} {}: {problem}", path.display()))
    };
    let bytes = match std::fs::read(cert) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            // As libpq, which goes on: the server decides whether it needs one.
            if *named {
                tracing::warn!("client certificate {} does not exist: none is shown", cert.display());
            }
            return Ok(None);
        }
        Err(error) => return Err(bad("client certificate", cert, error.to_string())),
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| bad("client certificate", cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(bad("client certificate", cert, "no certificate in it".into())
            .hint("expected PEM: -----BEGIN CERTIFICATE-----"));
    }
    let key_der = private_key(key)?;
    let signer = provider.key_provider.load_private_key(key_der).map_err(|error| {
        bad("private key", key, error.to_string()).hint("RSA, ECDSA and Ed25519 keys are supported")
    })?;
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        // A key that cannot tell its public half is left to the server to refuse.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(Some(certified)),
        Err(_) => Err(bad("private key", key, format!("does not belong to the certificate {}", cert.display()))),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let bad = |problem: &str| Error::new(Kind::Usage, format!("private key {}: {problem}", path.display()));
    let meta = std::fs::metadata(path).map_err(|error| {
        bad("cannot be read")
            .caused_by(error)
            .hint("the client certificate needs its key: set sslkey, or sslcertmode=disable")
    })?;
    if !meta.is_file() {
        return Err(bad("not a plain file"));
    }
    if too_open(meta.uid(), meta.mode()) {
        return Err(bad("can be read by others")
            .hint(format!("run chmod 0600 {}; 0640 is allowed where root owns it", path.display())));
    }
    let bytes = Zeroizing::new(std::fs::read(path).map_err(|error| bad("cannot be read").caused_by(error))?);
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(bad("is encrypted, which is not supported (sslpassword)").hint(
            "decrypt it with `openssl pkey -in KEY -out FILE`, keep that file at mode 0600, and name it in sslkey",
        ));
    }
    let der = PrivateKeyDer::from_pem_slice(&bytes).ok();
    der.or_else(|| PrivateKeyDer::try_from(bytes.to_vec()).ok()).ok_or_else(|| bad("no private key in it, PEM or DER"))
}

/// Ours: nothing for others; root's: reading for its group.
fn too_open(owner: u32, mode: u32) -> bool {
    mode & if owner == 0 { 0o037 } else { 0o077 } != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_key_files() {
        for (owner, mode, open) in [
            (1000, 0o600, false),
            (1000, 0o400, false),
            (1000, 0o640, true),
            (1000, 0o604, true),
            (0, 0o640, false),
            (0, 0o660, true),
            (0, 0o644, true),
        ] {
            assert_eq!(too_open(owner, 0o100_000 | mode), open, "{owner} {mode:o}");
        }
    }

    #[test]
    fn what_sslcertmode_require_finds_wanting() {
        let shown = |requested| Shown { certified: None, requested: AtomicBool::new(requested) };
        assert_eq!(shown(false).missing(CertMode::Allow), None);
        assert!(shown(false).missing(CertMode::Require).is_some_and(|text| text.contains("did not ask")));
        assert!(shown(true).missing(CertMode::Require).is_some_and(|text| text.contains("no client certificate")));
    }
}
