//! Is this the server? Its certificate's chain, revocation, dates and name, as libpq's `sslmode` asks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::certificate;
use super::conninfo::{Revocation, Roots, SslMode, Tls};
use super::security::Verified;
use crate::error::{Error, Kind, Result};

/// The certificates to trust; `None`: any certificate will do. As libpq, a root file that exists is used in every mode.
fn trusted(tls: &Tls) -> Result<Option<Trusted>> {
    let verify = tls.mode >= SslMode::VerifyCa;
    let pem = match &tls.roots {
        Some(Roots::System) => return system().map(Some),
        Some(Roots::File(path)) => read(path)?,
        Some(Roots::Default(path)) if path.exists() => read(path)?,
        Some(Roots::Default(path)) if verify => {
            return Err(Error::new(Kind::Usage, format!("root certificate file {} does not exist", path.display()))
                .hint("give sslrootcert=FILE with the authority's certificate, or sslrootcert=system, or a weaker sslmode"));
        }
        None if verify => {
            return Err(Error::new(Kind::Usage, "no root certificate file: the home directory is not known")
                .hint("give sslrootcert=FILE with the authority's certificate"));
        }
        _ => return Ok(None),
    };
    Ok(Some(pem))
}

/// All revocation lists. One that was named must be there and hold something; libpq would go on without.
fn revoked(places: &[Revocation]) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let mut lists = Vec::new();
    for place in places {
        match place {
            Revocation::Default(file) if !file.exists() => {}
            Revocation::Default(file) | Revocation::File(file) => lists.extend(revocation_list(file)?),
            Revocation::Directory(directory) => {
                let before = lists.len();
                for file in files_of(directory)? {
                    lists.extend(revocation_list(&file)?);
                }
                if lists.len() == before {
                    let text = format!("sslcrldir {}: no revocation list in it", directory.display());
                    return Err(Error::new(Kind::Usage, text));
                }
            }
        }
    }
    Ok(lists)
}

fn files_of(directory: &Path) -> Result<Vec<PathBuf>> {
    let failed =
        |error| Error::new(Kind::Usage, format!("sslcrldir {} cannot be read", directory.display())).caused_by(error);
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    Ok(paths.into_iter().filter(|path| path.is_file()).collect())
}

fn revocation_list(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let failed = |problem: String| {
        Error::new(Kind::Usage, format!("revocation list {}: {problem}", path.display()))
            .hint("expected PEM: -----BEGIN X509 CRL-----")
    };
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let lists = CertificateRevocationListDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let lists = lists.map_err(|error| failed(error.to_string()))?;
    if lists.is_empty() { Err(failed("no list in it".to_owned())) } else { Ok(lists) }
}

fn read(path: &Path) -> Result<Trusted> {
    let failed =
        |problem: String| Error::new(Kind::Usage, format!("root certificate file {}: {problem}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let mut trusted = Trusted { anchors: RootCertStore::empty(), exact: Vec::new() };
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        // Some self-signed server certificates are no legal anchors; they are still trusted as themselves.
        let _ = trusted.anchors.add(certificate.clone());
        trusted.exact.push(certificate);
    }
    match trusted.exact.is_empty() {
        true => Err(failed("no certificate in it".to_owned()).hint("expected PEM: -----BEGIN CERTIFICATE-----")),
        false => Ok(trusted),
    }
}

fn system() -> Result<Trusted> {
    let found = rustls_native_certs::load_native_certs();
    let mut anchors = RootCertStore::empty();
    anchors.add_parsable_certificates(found.certs);
    match anchors.is_empty() {
        true => Err(Error::new(Kind::Usage, "this system has no trusted authorities (sslrootcert=system)")
            .hint("install the ca-certificates package, or give sslrootcert=FILE")),
        false => Ok(Trusted { anchors, exact: Vec::new() }),
    }
}

#[derive(Debug)]
struct Trusted {
    anchors: RootCertStore,
    /// The certificates of the file: a server that shows one of them is trusted, as OpenSSL does, whatever its extensions say.
    exact: Vec<CertificateDer<'static>>,
}

#[derive(Debug)]
pub(super) struct Verifier {
    provider: Arc<CryptoProvider>,
    trusted: Option<Trusted>,
    /// Checks chain and revocation, where there are lists.
    revocation: Option<Arc<WebPkiServerVerifier>>,
    /// The name to verify (verify-full).
    host: Option<String>,
}

/// A refusal in our own words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// Whether we refused it ourselves, for its name or its dates.
pub(super) fn is_refusal(error: &rustls::OtherError) -> bool {
    error.0.downcast_ref::<Refusal>().is_some()
}

fn refusal(text: impl Into<String>) -> rustls::Error {
    let cause = Arc::new(Refusal(text.into()));
    rustls::Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(cause)))
}

impl Verifier {
    /// `host`: the name to verify, or none. Reads the files that `tls` names.
    pub(super) fn new(tls: &Tls, host: Option<String>, provider: &Arc<CryptoProvider>) -> Result<Verifier> {
        let trusted = trusted(tls)?;
        let lists = if trusted.is_some() { revoked(&tls.crl)? } else { Vec::new() };
        let revocation = match &trusted {
            Some(trusted) if !lists.is_empty() => {
                let roots = Arc::new(trusted.anchors.clone());
                // As X509_V_FLAG_CRL_CHECK_ALL: every certificate of the chain needs a list, and a list that is still good.
                let builder = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
                let built = builder.with_crls(lists).enforce_revocation_expiration().build();
                Some(built.map_err(|e| Error::new(Kind::Usage, "the revocation lists cannot be used").caused_by(e))?)
            }
            _ => None,
        };
        Ok(Verifier { provider: provider.clone(), trusted, revocation, host })
    }

    /// What a session that passes has proven.
    pub(super) fn verifies(&self) -> Verified {
        match (&self.trusted, &self.host) {
            (None, None) => Verified::Nothing,
            (_, None) => Verified::Chain,
            (_, Some(_)) => Verified::Name,
        }
    }

    /// Chain and revocation; the name is verified by our own rules.
    fn unrevoked(
        &self,
        verifier: &WebPkiServerVerifier,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        use CertificateError as C;
        match verifier.verify_server_cert(server, intermediates, name, &[], now) {
            Ok(_) => Ok(()),
            // The name is looked at last (`WebPkiServerVerifier`), so all else is in order.
            Err(rustls::Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn chain(
        &self,
        trusted: &Trusted,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if trusted.exact.iter().any(|known| known == server) {
            let read = certificate::Read::new(server).map_err(refusal)?;
            return match read.date_problem(now.as_secs()) {
                None => Ok(()),
                Some(problem) => Err(refusal(format!("the server's certificate {problem}"))),
            };
        }
        let parsed = ParsedCertificate::try_from(server)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &trusted.anchors, intermediates, now, algorithms)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match (&self.trusted, &self.revocation) {
            (Some(_), Some(verifier)) => self.unrevoked(verifier, end_entity, intermediates, server_name, now)?,
            (Some(trusted), None) => self.chain(trusted, end_entity, intermediates, now)?,
            (None, _) => {}
        }
        if let Some(host) = &self.host {
            let read = certificate::Read::new(end_entity).map_err(refusal)?;
            if !read.is_for(host) {
                let names = read.describe_names();
                return Err(refusal(format!("the server's certificate is for {names}, not for {host}")));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    // The proof that the server has the certificate's key: channel binding stands on it, so it is checked in every mode.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        if ParsedCertificate::try_from(cert).is_ok() {
            return verify_tls13_signature(message, cert, dss, algorithms);
        }
        // Certificates of X.509 version 1, which older OpenSSL makes by default, have a key all the same.
        let read = certificate::Read::new(cert).map_err(refusal)?;
        let key = read.public_key().ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(key), dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
